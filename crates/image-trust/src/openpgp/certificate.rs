//! A primary key with what it says of itself: its user ids, its end, its subkeys.

use super::Fault;
use super::key::PublicKey;
use super::packet::{Packet, parse_packets, tag};
use super::signature::{SignaturePacket, is_over, kind};

/// A primary key and all that came with it. Nothing is verified until a signature asks for the key.
#[derive(Debug)]
pub(super) struct Certificate {
    primary: PublicKey,
    own: Vec<SignaturePacket>,
    /// User ids and attributes, as signatures hash them.
    users: Vec<(Vec<u8>, Vec<SignaturePacket>)>,
    subkeys: Vec<(PublicKey, Vec<SignaturePacket>)>,
    has_unreadable_revocation: bool,
}

/// Takes a keyring apart. Keys of kinds that are not known are left out, as are signatures.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Certificate>, Fault> {
    let mut certificates: Vec<Certificate> = Vec::new();
    let mut part = Part::Unknown;
    for Packet { tag, body } in parse_packets(bytes)? {
        if tag == tag::PUBLIC_KEY {
            part = match PublicKey::parse(&body) {
                Ok(primary) => {
                    certificates.push(Certificate::of(primary));
                    Part::Primary
                }
                Err(_) => Part::UnknownKey,
            };
            continue;
        }
        let (Some(certificate), false) = (certificates.last_mut(), part == Part::UnknownKey) else { continue };
        match tag {
            tag::USER_ID => part = certificate.add_user(0xb4, &body),
            tag::USER_ATTRIBUTE => part = certificate.add_user(0xd1, &body),
            tag::PUBLIC_SUBKEY => part = certificate.add_subkey(&body),
            tag::SIGNATURE => certificate.add_signature(part, &body),
            _ => {}
        }
    }
    Ok(certificates)
}

/// Whether a signature packet says that it revokes a key, whatever else it says.
fn is_revocation(body: &[u8]) -> bool {
    let kind = match body {
        [2 | 3, _, kind, ..] | [_, kind, ..] => *kind,
        _ => return false,
    };
    matches!(kind, kind::KEY_REVOCATION | kind::SUBKEY_REVOCATION)
}

/// What the next signature is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Primary,
    User,
    Subkey,
    /// Something within a key that is not known.
    Unknown,
    /// A key that is not known, with all that follows.
    UnknownKey,
}

impl Certificate {
    fn of(primary: PublicKey) -> Self {
        Self { primary, own: vec![], users: vec![], subkeys: vec![], has_unreadable_revocation: false }
    }

    fn add_user(&mut self, head: u8, body: &[u8]) -> Part {
        let Ok(length) = u32::try_from(body.len()) else { return Part::Unknown };
        self.users.push(([&[head][..], &length.to_be_bytes(), body].concat(), vec![]));
        Part::User
    }

    fn add_subkey(&mut self, body: &[u8]) -> Part {
        match PublicKey::parse(body) {
            Ok(key) => {
                self.subkeys.push((key, vec![]));
                Part::Subkey
            }
            Err(_) => Part::Unknown,
        }
    }

    /// Only what this key may have signed itself is of interest.
    fn add_signature(&mut self, part: Part, body: &[u8]) {
        let signature = match SignaturePacket::parse(body) {
            Ok(signature) => signature,
            Err(_) => {
                // Nobody but who may revoke puts one into a keyring, so that one in an old format must not be overlooked.
                self.has_unreadable_revocation |= is_revocation(body);
                return;
            }
        };
        if !signature.issuers().iter().any(|id| id == self.primary.id()) {
            return;
        }
        match part {
            Part::Primary => self.own.push(signature),
            Part::User => self.users.last_mut().into_iter().for_each(|(_, list)| list.push(signature.clone())),
            Part::Subkey => self.subkeys.last_mut().into_iter().for_each(|(_, list)| list.push(signature.clone())),
            Part::Unknown | Part::UnknownKey => {}
        }
    }

    pub(super) fn is_same_key(&self, other: &Self) -> bool {
        self.primary.fingerprint == other.primary.fingerprint
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.own.extend(other.own);
        self.has_unreadable_revocation |= other.has_unreadable_revocation;
        for (user, signatures) in other.users {
            match self.users.iter_mut().find(|(known, _)| *known == user) {
                Some((_, known)) => known.extend(signatures),
                None => self.users.push((user, signatures)),
            }
        }
        for (subkey, signatures) in other.subkeys {
            match self.subkeys.iter_mut().find(|(known, _)| *known == subkey) {
                Some((_, known)) => known.extend(signatures),
                None => self.subkeys.push((subkey, signatures)),
            }
        }
    }

    /// The key or subkey with this id.
    pub(super) fn find(&self, id: &[u8; 8]) -> Option<(&Self, &PublicKey)> {
        let keys = std::iter::once(&self.primary).chain(self.subkeys.iter().map(|(key, _)| key));
        keys.into_iter().find(|key| key.id() == id).map(|key| (self, key))
    }

    /// Whether a signature that `key`, one of this certificate's, made at `made` counts now. Seconds since 1970.
    pub(super) fn check_signer(&self, key: &PublicKey, made: u32, now: u64) -> Result<(), Fault> {
        let wrong = |why| Err(Fault::Key { key: key.describe(), why });
        if u64::from(key.created) > now {
            return wrong("was made in the future");
        }
        if key.created > made {
            return wrong("is younger than the signature");
        }
        let newest = self.check_primary(now)?;
        if *key == self.primary {
            return if newest.iter().find(|own| own.has_flags()).is_none_or(|own| own.lets_sign()) {
                Ok(())
            } else {
                wrong("may not sign")
            };
        }
        self.subkeys
            .iter()
            .filter(|(subkey, _)| subkey == key)
            .try_for_each(|(subkey, signatures)| self.check_subkey(subkey, signatures, now))
    }

    /// That the primary key is of use now. What it says of itself: on the key, then on its user ids, newest first.
    fn check_primary(&self, now: u64) -> Result<Vec<&SignaturePacket>, Fault> {
        let key = &self.primary;
        let wrong = |why| Err(Fault::Key { key: key.describe(), why });
        let is_good = |signature: &&SignaturePacket| signature.verify(key, &[&key.body]).is_ok();
        let good: Vec<&SignaturePacket> = self.own.iter().filter(is_good).collect();
        if good.iter().any(|signature| signature.kind == kind::KEY_REVOCATION) {
            return wrong("is revoked");
        }
        if self.has_unreadable_revocation {
            return wrong("has a revocation in a format that is not supported");
        }
        let mut users: Vec<&SignaturePacket> =
            self.users.iter().filter_map(|(user, signatures)| self.check_user(user, signatures, now)).collect();
        if users.is_empty() {
            return wrong("has no user id that it signed itself");
        }
        users.sort_by_key(|signature| std::cmp::Reverse(signature.created));
        let direct = good.iter().filter(|signature| signature.kind == kind::DIRECT_KEY && !signature.is_expired(now));
        let mut newest: Vec<&SignaturePacket> = direct.copied().max_by_key(|own| own.created).into_iter().collect();
        newest.extend(users.first().copied());
        let end = newest.iter().find_map(|own| own.key_expires_after());
        if is_over(key.created, end, now) {
            return wrong("has expired");
        }
        Ok(newest)
    }

    /// The newest good signature of the key on one of its user ids, unless that takes the id back.
    fn check_user<'a>(&self, user: &[u8], signatures: &'a [SignaturePacket], now: u64) -> Option<&'a SignaturePacket> {
        let is_good = |signature: &&SignaturePacket| {
            matches!(
                signature.kind,
                kind::CERTIFICATION_FIRST..=kind::CERTIFICATION_LAST | kind::CERTIFICATION_REVOCATION
            ) && !signature.is_expired(now)
                && signature.verify(&self.primary, &[&self.primary.body, user]).is_ok()
        };
        // Of two as old, the one that takes the id back.
        let order = |signature: &&SignaturePacket| (signature.created, signature.kind);
        let newest = signatures.iter().filter(is_good).max_by_key(order)?;
        (newest.kind != kind::CERTIFICATION_REVOCATION).then_some(newest)
    }

    fn check_subkey(&self, subkey: &PublicKey, signatures: &[SignaturePacket], now: u64) -> Result<(), Fault> {
        let wrong = |why| Err(Fault::Key { key: subkey.describe(), why });
        let text: [&[u8]; 2] = [&self.primary.body, &subkey.body];
        let is_good = |signature: &&SignaturePacket| signature.verify(&self.primary, &text).is_ok();
        let good: Vec<&SignaturePacket> = signatures.iter().filter(is_good).collect();
        if good.iter().any(|signature| signature.kind == kind::SUBKEY_REVOCATION) {
            return wrong("is revoked");
        }
        let bindings =
            good.iter().filter(|signature| signature.kind == kind::SUBKEY_BINDING && !signature.is_expired(now));
        let Some(binding) = bindings.max_by_key(|signature| signature.created) else {
            return wrong("is bound to no primary key");
        };
        if !binding.lets_sign() {
            return wrong("may not sign");
        }
        let is_back = |back: &SignaturePacket| {
            back.kind == kind::PRIMARY_BINDING && !back.is_expired(now) && back.verify(subkey, &text).is_ok()
        };
        // Without it anybody could take somebody else's signing key for a subkey.
        if !binding.embedded().any(|back| is_back(&back)) {
            return wrong("has not signed its primary key");
        }
        if is_over(subkey.created, binding.key_expires_after(), now) {
            return wrong("has expired");
        }
        Ok(())
    }
}
