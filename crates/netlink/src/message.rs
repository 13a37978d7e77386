//! Messages as bytes: a header, a fixed structure, attributes that may nest. Source: netlink(7).

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`, which are not part of an attribute's type.
const FLAGS: u16 = 0xc000;
/// `NLA_F_NESTED`
pub(crate) const NESTED: u16 = 0x8000;

/// A request under construction.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of a type, with flags besides those that say how it is to be answered.
    #[must_use]
    pub fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { bytes }
    }

    /// Appends the fixed structure that comes before attributes, padded.
    #[must_use]
    pub fn with(mut self, fixed: &[u8]) -> Self {
        self.bytes.extend_from_slice(fixed);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Appends an attribute.
    ///
    /// # Panics
    /// With a payload of 64 KiB: callers put in names, numbers and addresses.
    pub fn put(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + payload.len()).expect("attributes hold names and numbers");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.pad();
        self
    }

    /// A number in the machine's order, as rtnetlink has them.
    pub fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// A number in network order, as nf_tables has them.
    pub fn put_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Text with its terminating zero byte.
    pub fn put_str(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// An attribute made of those that `fill` puts in.
    ///
    /// # Panics
    /// As [`Message::put`].
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.put(kind | NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("attributes hold names and numbers");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// The attributes alone, for one that has a structure of its own before them.
    pub(crate) fn attributes(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    /// Length and number filled in.
    pub(crate) fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("a message is far below 4 GiB");
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Attributes in bytes from the kernel. Ends at the first that is cut short.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those in `bytes`.
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The payload of the first of a type.
    #[must_use]
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(found, payload)| (found == kind).then_some(payload))
    }

    /// A number in the machine's order.
    #[must_use]
    pub fn u32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.find(kind)?.try_into().ok()?))
    }

    /// Text up to its zero byte.
    #[must_use]
    pub fn text(&self, kind: u16) -> Option<&'a str> {
        let bytes = self.find(kind)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).ok()
    }

    /// The attributes inside one.
    #[must_use]
    pub fn nested(&self, kind: u16) -> Self {
        Self(self.find(kind).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..ATTRIBUTE_HEADER)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !FLAGS;
        let payload = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// For the fuzz table: walks whatever it is given, nested once, and returns how many attributes it saw.
#[must_use]
pub fn fuzz_attributes(bytes: &[u8]) -> usize {
    Attributes::of(bytes).map(|(_, payload)| 1 + Attributes::of(payload).count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_comes_out() {
        let mut message = Message::new(16, 4).with(&[1, 2, 3]);
        message.put_str(3, "eth0").put_u32(4, 1500).nest(18, |inner| {
            inner.put(1, b"veth").put_be32(2, 7);
        });
        let bytes = message.finish(1, 9);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
        assert_eq!(u16::from_ne_bytes([bytes[6], bytes[7]]), 5);
        let attributes = Attributes::of(&bytes[HEADER + 4..]);
        assert_eq!(attributes.text(3), Some("eth0"));
        assert_eq!(attributes.u32(4), Some(1500));
        assert_eq!(attributes.nested(18).find(1), Some(&b"veth"[..]));
        assert_eq!(attributes.nested(18).find(2), Some(&[0, 0, 0, 7][..]));
        assert_eq!(attributes.count(), 3);
    }

    #[test]
    fn cut_and_foreign_bytes_end_the_walk() {
        let cases: [(&[u8], usize); 6] = [
            (&[], 0),
            (&[8, 0, 1], 0),
            (&[3, 0, 1, 0, 9, 9, 9, 9], 0),
            (&[4, 0, 1, 0], 1),
            (&[9, 0, 1, 0, 1, 2, 3, 4], 0),
            (&[0; 64], 0),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Attributes::of(bytes).count(), expected, "{bytes:?}");
        }
    }
}
