//! Keys as text. Source: RFC 9580 section 6.

use super::Fault;
use crate::json::decode_base64;

const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";

/// The bytes of a keyring: as they are, or of all its blocks if it is text.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<u8>, Fault> {
    // Every packet begins with a byte that no text begins with.
    if bytes.first().is_some_and(|byte| *byte >= 0x80) {
        return Ok(bytes.to_vec());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Fault::Malformed("it is neither packets nor text"))?;
    let mut lines = text.lines().map(str::trim);
    let mut decoded = Vec::new();
    while let Some(line) = lines.next() {
        if line == BEGIN {
            decoded.extend(decode_block(lines.by_ref().take_while(|line| *line != END))?);
        }
    }
    if decoded.is_empty() {
        return Err(Fault::Malformed("it has no block of public keys"));
    }
    Ok(decoded)
}

/// Headers up to an empty line, base64, and a checksum that may be missing.
fn decode_block<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<u8>, Fault> {
    let mut base64 = String::new();
    let mut checksum = None;
    let mut in_headers = true;
    for line in lines {
        if in_headers && (line.is_empty() || line.contains(": ")) {
            in_headers = !line.is_empty();
        } else if let Some(sum) = line.strip_prefix('=').filter(|sum| sum.len() == 4) {
            checksum = Some(sum);
        } else {
            in_headers = false;
            base64.push_str(line);
        }
    }
    let bytes = decode_base64(&base64).ok_or(Fault::Malformed("its base64 is damaged"))?;
    let wanted = checksum.map(|sum| decode_base64(sum).ok_or(Fault::Malformed("its checksum is damaged")));
    match wanted.transpose()? {
        Some(wanted) if wanted != crc24(&bytes) => Err(Fault::Malformed("its checksum is wrong")),
        _ => Ok(bytes),
    }
}

/// Source: RFC 9580 section 6.1.
fn crc24(bytes: &[u8]) -> [u8; 3] {
    let mut crc = 0x00b7_04ce_u32;
    for byte in bytes {
        crc ^= u32::from(*byte) << 16;
        for _ in 0..8 {
            crc <<= 1;
            if crc & 0x0100_0000 != 0 {
                crc ^= 0x0186_4cfb;
            }
        }
    }
    let [_, high, middle, low] = crc.to_be_bytes();
    [high, middle, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_joined() {
        let block = |body: &str| format!("{BEGIN}\nVersion: x\n\n{body}\n{END}\n");
        for (text, expected) in [
            (block("AQID"), Some(vec![1, 2, 3])),
            (format!("text before\n{}between\n{}", block("AQID"), block("BA==")), Some(vec![1, 2, 3, 4])),
            (format!("{BEGIN}\r\n\r\nAQ\r\nID\r\n{END}"), Some(vec![1, 2, 3])),
            (block("AQID\n=AAAA"), None),
            (block("A?ID"), None),
            ("nothing".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(decode(text.as_bytes()).ok(), expected, "{text}");
        }
        assert_eq!(crc24(b"123456789"), [0x21, 0xcf, 0x02], "the check value of CRC-24/OPENPGP");
        let sum = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, crc24(&[1, 2, 3]));
        assert_eq!(decode(block(&format!("AQID\n={sum}")).as_bytes()), Ok(vec![1, 2, 3]));
        assert_eq!(decode(&[0x99, 0, 0]), Ok(vec![0x99, 0, 0]));
    }
}
