//! The keys that leave a session and let the program go on.

use std::str::FromStr;

/// A sequence of keys, such as `ctrl-p,ctrl-q`. Empty: none leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl DetachKeys {
    /// No keys leave.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }
}

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = |name: &str| match name.as_bytes() {
            [key] if key.is_ascii_graphic() => Ok(*key),
            _ => match name.strip_prefix("ctrl-").map(str::as_bytes) {
                Some([letter]) if matches!(letter, b'a'..=b'z' | b'@' | b'['..=b'_') => Ok(letter & 0x1f),
                _ => Err(format!("{name:?} is neither a key nor ctrl- and a letter")),
            },
        };
        text.split(',').filter(|name| !name.is_empty()).map(key).collect::<Result<_, _>>().map(Self)
    }
}

/// Looks for the sequence in what is typed, across however it arrives.
#[derive(Debug)]
pub(super) struct Watch {
    keys: Vec<u8>,
    /// How many of the sequence have been typed and are held back.
    matched: usize,
}

impl Watch {
    pub(super) fn new(keys: &DetachKeys) -> Self {
        Self { keys: keys.0.clone(), matched: 0 }
    }

    /// What is to be sent of `typed`, and whether the sequence was there; what follows it is dropped.
    pub(super) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (typed.to_vec(), false);
        }
        let mut sent = Vec::with_capacity(typed.len());
        for byte in typed {
            while self.matched > 0 && self.keys[self.matched] != *byte {
                // Held back in vain: the oldest goes, the rest may still begin the sequence.
                sent.push(self.keys[0]);
                let held = &self.keys[1..self.matched];
                let keep = (0..=held.len()).rev().find(|keep| self.keys.starts_with(&held[held.len() - keep..]));
                let keep = keep.unwrap_or_default();
                sent.extend(&held[..held.len() - keep]);
                self.matched = keep;
            }
            if self.keys[self.matched] == *byte {
                self.matched += 1;
            } else {
                sent.push(*byte);
            }
            if self.matched == self.keys.len() {
                return (sent, true);
            }
        }
        (sent, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences() {
        for (text, expected) in [
            ("ctrl-p,ctrl-q", Ok(vec![16, 17])),
            ("a", Ok(vec![b'a'])),
            ("", Ok(vec![])),
            ("ctrl-[", Ok(vec![27])),
            ("ctrl-", Err(())),
            ("ctrl-P", Err(())),
            ("ab", Err(())),
        ] {
            assert_eq!(text.parse::<DetachKeys>().map(|keys| keys.0).map_err(drop), expected, "{text}");
        }
    }

    #[test]
    fn typing() {
        let cases: [(&str, &[&str], &str, bool); 8] = [
            ("a,b", &["xaby"], "x", true),
            ("a,b", &["xa", "b"], "x", true),
            ("a,b", &["aab"], "a", true),
            ("a,b", &["a", "x"], "ax", false),
            ("a,b", &["a"], "", false),
            ("a,a,b", &["aaab"], "a", true),
            ("a,b,a,c", &["ababac"], "ab", true),
            ("", &["ab"], "ab", false),
        ];
        for (keys, typed, expected, is_left) in cases {
            let mut watch = Watch::new(&keys.parse().unwrap());
            let (mut sent, mut left) = (Vec::new(), false);
            for part in typed {
                let (more, now) = watch.pass(part.as_bytes());
                sent.extend(more);
                left |= now;
            }
            assert_eq!((String::from_utf8(sent).unwrap().as_str(), left), (expected, is_left), "{keys} {typed:?}");
        }
    }
}
