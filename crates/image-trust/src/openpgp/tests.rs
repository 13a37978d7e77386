//! Keys and messages that gpg made: `tests/openpgp/make.sh`.

use super::*;

macro_rules! made {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/openpgp/", $name)).to_vec()
    };
}

/// Days after 1 January 2026, when the keys were made; the messages are of the 31st day after.
fn day(days: u64) -> u64 {
    1_767_225_600 + days * 86_400
}

fn verify(keys: &[Vec<u8>], message: &[u8], now: u64) -> Result<(), String> {
    let keyring = Keyring::parse(keys).map_err(|fault| fault.to_string())?;
    let contents = keyring.verify_at(message, now).map_err(|fault| fault.to_string())?;
    assert_eq!(contents, b"what is signed\n");
    Ok(())
}

#[track_caller]
fn check(keys: &[Vec<u8>], message: &[u8], now: u64, expected: Result<(), &str>) {
    let found = verify(keys, message, now);
    match expected {
        Ok(()) => assert_eq!(found, Ok(())),
        Err(text) => assert!(found.as_ref().is_err_and(|found| found.contains(text)), "{found:?}, not {text:?}"),
    }
}

#[test]
fn messages_of_gpg_are_verified() {
    for (key, message) in [
        (made!("ed25519.key"), made!("ed25519.sig")),
        (made!("ed25519.asc"), made!("ed25519.sig")),
        (made!("rsa3072.key"), made!("rsa3072.sig")),
        (made!("nistp256.key"), made!("nistp256.sig")),
        (made!("nistp384.key"), made!("nistp384.sig")),
        (made!("ed25519.key"), made!("plain.sig")),
        (made!("ed25519.key"), made!("zlib.sig")),
        (made!("ed25519.key"), made!("sha512.sig")),
        (made!("main.key"), made!("sub.sig")),
    ] {
        check(&[key], &message, day(60), Ok(()));
    }
    let several = [made!("rsa3072.key"), made!("ed25519.asc"), made!("main.key")];
    check(&several, &made!("ed25519.sig"), day(60), Ok(()));
    check(&[several.concat()], &made!("sub.sig"), day(60), Err("does not begin as one"));
    check(&[[made!("rsa3072.key"), made!("main.key")].concat()], &made!("sub.sig"), day(60), Ok(()));
}

#[test]
fn keys_count_while_they_are_valid() {
    check(&[made!("ends.key")], &made!("ends.sig"), day(364), Ok(()));
    check(&[made!("ends.key")], &made!("ends.sig"), day(366), Err("has expired"));
    check(&[made!("ed25519.key")], &made!("ed25519.sig"), day(0) - 1, Err("was made in the future"));
    check(&[made!("ed25519.key")], &made!("short.sig"), day(60), Ok(()));
    check(&[made!("ed25519.key")], &made!("short.sig"), day(62), Err("signature has expired"));
    check(&[made!("gone.key")], &made!("gone.sig"), day(60), Ok(()));
    check(&[made!("gone-revoked.key")], &made!("gone.sig"), day(60), Err("is revoked"));
    check(&[made!("gone-revoked.key"), made!("gone.key")], &made!("gone.sig"), day(60), Err("is revoked"));
    check(&[made!("gone.key"), made!("gone-revoked.key")], &made!("gone.sig"), day(60), Err("is revoked"));
    check(&[made!("main-sub-revoked.key")], &made!("sub.sig"), day(60), Err("is revoked"));
}

#[test]
fn what_is_not_verified_is_told_by_name() {
    let (key, now) = (made!("ed25519.key"), day(60));
    for (key, message, reason) in [
        (&made!("dsa2048.key"), made!("dsa2048.sig"), "DSA signature is not supported"),
        (&key, made!("sha1.sig"), "SHA-1 is not supported"),
        (&key, made!("textmode.sig"), "type 0x01 is not supported"),
        (&key, made!("two.sig"), "exactly one signature"),
        (&key, made!("detached.sig"), "exactly one signature"),
        (&key, made!("rsa3072.sig"), "not a key of the policy"),
        (&key, made!("ed25519.key"), "exactly one signature"),
        (&key, vec![], "exactly one signature"),
        (&made!("ed25519.sig"), made!("ed25519.sig"), "no public keys imported"),
        (&b"text".to_vec(), made!("ed25519.sig"), "no block of public keys"),
    ] {
        check(std::slice::from_ref(key), &message, now, Err(reason));
    }
}

#[test]
fn no_bit_can_be_changed() {
    let keys = [made!("ed25519.key")];
    let message = made!("plain.sig");
    let keyring = Keyring::parse(&keys).expect("parses");
    let verifies = |message: &[u8]| keyring.verify_at(message, day(60));
    let good = verifies(&message);
    assert!(good.is_ok());
    for at in 0..message.len() * 8 {
        let mut changed = message.clone();
        changed[at / 8] ^= 1 << (at % 8);
        // Heads, hints and a file's name are signed by nobody; the contents must stay the same.
        if let Ok(contents) = verifies(&changed) {
            assert_eq!(Ok(contents), good, "bit {at}");
        }
    }
}

#[test]
fn a_key_must_vouch_for_itself() {
    // Without the last packet, which is the signature on the user id, and with one whose last bit differs.
    let key = made!("ed25519.key");
    let packets = packet::parse_packets(&key).expect("parses");
    let last = packets.last().expect("there is one").body.len() + 2;
    check(&[key[..key.len() - last].to_vec()], &made!("ed25519.sig"), day(60), Err("no user id that it signed"));
    let mut changed = key;
    *changed.last_mut().expect("there is one") ^= 1;
    check(&[changed], &made!("ed25519.sig"), day(60), Err("no user id that it signed"));
    let mut changed = made!("main.key");
    *changed.last_mut().expect("there is one") ^= 1;
    check(&[changed], &made!("sub.sig"), day(60), Err("is bound to no primary key"));
}
