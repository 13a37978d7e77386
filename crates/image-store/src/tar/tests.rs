//! Headers by table; whole archives of GNU tar are in `tests/interop.rs`.

use super::header::number;
use super::pax::{Pax, decimal};
use super::*;

/// A header with these fields, checksum included.
fn block(change: impl FnOnce(&mut [u8; BLOCK])) -> Vec<u8> {
    let mut bytes = [0_u8; BLOCK];
    bytes[..4].copy_from_slice(b"name");
    bytes[156] = b'0';
    bytes[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut bytes);
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes.to_vec()
}

fn first(bytes: &[u8]) -> Result<Option<Member>, TarError> {
    Reader::new(bytes).next_member()
}

#[test]
fn numbers_are_octal_or_base_256() {
    for (field, expected) in [
        (&b"0000644\0"[..], Ok(0o644)),
        (b"   644 \0", Ok(0o644)),
        (b"\0\0\0\0\0\0\0\0", Ok(0)),
        (b"        ", Ok(0)),
        (b"777\x00999", Ok(0o777)),
        (b"\x80\0\0\0\0\0\0\x05", Ok(5)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff", Ok(-1)),
        (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Ok(i64::MAX)),
        (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", Err("number too large")),
        (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", Err("number too large")),
        (b"0000648\0", Err("a number that is not octal")),
        (b"-000644\0", Err("a number that is not octal")),
    ] {
        assert_eq!(number(field), expected, "{field:?}");
    }
}

#[test]
fn headers_say_what_members_are() {
    let plain = first(&block(|_| {})).unwrap().unwrap();
    assert_eq!((plain.name.as_slice(), plain.kind, plain.size), (&b"name"[..], Kind::File, 0));
    let prefixed = first(&block(|bytes| bytes[345..350].copy_from_slice(b"a/b/c"))).unwrap().unwrap();
    assert_eq!(prefixed.name, b"a/b/c/name");
    // GNU uses the place of the prefix for something else.
    let gnu = first(&block(|bytes| {
        bytes[257..265].copy_from_slice(b"ustar  \0");
        bytes[345..350].copy_from_slice(b"12345");
    }));
    assert_eq!(gnu.unwrap().unwrap().name, b"name");
    let old_directory = first(&block(|bytes| {
        bytes[4] = b'/';
        bytes[156] = 0;
    }));
    assert_eq!(old_directory.unwrap().unwrap().kind, Kind::Directory);
    // A size of something without content does not count.
    let link = first(&block(|bytes| {
        bytes[156] = b'1';
        bytes[124..135].copy_from_slice(b"00000001000");
    }));
    assert_eq!(link.unwrap().unwrap().size, 0);
    for (change, reason) in [
        (&(|bytes: &mut [u8; BLOCK]| bytes[124..126].copy_from_slice(b"zz")) as &dyn Fn(&mut [u8; BLOCK]), "octal"),
        (&|bytes| bytes[124..136].fill(0xff), "negative size"),
        (&|bytes| bytes[108..116].copy_from_slice(b"\x80\0\0\x01\0\0\0\0"), "owner out of range"),
        (&|bytes| bytes[156] = b'M', "not supported"),
        (&|bytes| bytes[0] = 0, "name is empty"),
    ] {
        let error = first(&block(change)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let mut damaged = block(|_| {});
    damaged[5] = b'x';
    assert!(first(&damaged).unwrap_err().to_string().contains("checksum"));
}

#[test]
fn ends_are_told_apart() {
    let file = block(|bytes| bytes[124..135].copy_from_slice(b"00000000005"));
    let whole = [&file[..], b"12345", &[0; 507], &[0; 1024]].concat();
    assert_eq!(scan(&whole).unwrap(), 1);
    // No end marker, or not even the padding: Go's reader forgives both.
    assert_eq!(scan(&whole[..1024]).unwrap(), 1);
    assert_eq!(scan(&whole[..517]).unwrap(), 1);
    assert_eq!(scan(&[]).unwrap(), 0);
    for end in [1, 511, 513, 516] {
        assert!(matches!(scan(&whole[..end]), Err(TarError::EndsEarly { .. })), "{end}");
    }
    let single = [&[0; 512][..], &file].concat();
    assert!(scan(&single).unwrap_err().to_string().contains("single zero block"));
}

#[test]
fn raw_bytes_and_content_are_the_whole_archive() {
    let file = block(|bytes| bytes[124..135].copy_from_slice(b"00000000005"));
    let whole = [&file[..], b"12345", &[0; 507], &block(|_| {}), &[0; 1024], b"behind"].concat();
    let mut reader = Reader::new(&whole[..]);
    let mut again = Vec::new();
    while reader.next_member().unwrap().is_some() {
        again.append(reader.take_raw());
        loop {
            let piece = reader.content().unwrap();
            if piece.is_empty() {
                break;
            }
            again.extend_from_slice(piece);
            let count = piece.len();
            reader.advance(count);
        }
    }
    while reader.trailing().unwrap() {}
    again.append(reader.take_raw());
    assert_eq!(again, whole);
}

#[test]
fn pax_records_are_checked() {
    let pax = Pax::parse(b"11 path=a/b\n20 mtime=12.3456789\n25 SCHILY.xattr.user.a=b\n").unwrap_err();
    assert_eq!(pax, "PAX record of a wrong length");
    let pax = Pax::parse(b"12 path=a/b\n20 mtime=12.3456789\n25 SCHILY.xattr.user.a=b\n");
    assert_eq!(pax.unwrap().xattrs, [(b"user.a".to_vec(), b"b".to_vec())]);
    for (text, reason) in [
        (&b"x"[..], "without a length"),
        (b"5 a=b", "wrong length"),
        (b"99999999 a=b\n", "wrong length"),
        (b"-9 a=b\n", "wrong length"),
        (b"4 =\n", "wrong length"),
        (b"99999999999999999999 a=b\n", "not decimal"),
        (b"5 ab\n", "without ="),
        (b"5 =b\n", "without a key"),
        (b"11 uid=abcd\n", "wrong length"),
        (b"x uid=abcd\n", "not decimal"),
        (b"0 a=b\n", "wrong length"),
    ] {
        let error = Pax::parse(text).unwrap_err();
        assert!(error.contains(reason), "{text:?}: {error}");
    }
    for (text, number) in [
        (&b"9223372036854775807"[..], Some(i64::MAX)),
        (b"9223372036854775808", None),
        (b"+1", Some(1)),
        (b"-01", Some(-1)),
        (b"1_0", None),
        (b" 1", None),
        (b"", None),
    ] {
        assert_eq!(decimal(text).ok(), number, "{text:?}");
    }
}

/// Archives no archiver writes, and what Go 1.27's archive/tar makes of each: members, then perhaps `ERR`.
const SAMPLES: &str = include_str!("samples.json");

#[derive(serde::Deserialize)]
struct Sample {
    /// Base64 of gzip.
    archive: String,
    members: String,
}

/// A member and its content as the samples have them.
fn shown_whole(member: &Member, content: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut content = content.to_vec();
    if let Some(map) = &member.sparse {
        let mut whole = vec![0; usize::try_from(map.real_size).unwrap()];
        for extent in &map.extents {
            let (at, length) = (usize::try_from(extent.offset).unwrap(), usize::try_from(extent.length).unwrap());
            whole[at..at + length].copy_from_slice(&content[..length]);
            content.drain(..length);
        }
        content = whole;
    }
    let kind = match member.kind {
        Kind::File => '0',
        Kind::HardLink => '1',
        Kind::Symlink => '2',
        Kind::CharDevice => '3',
        Kind::BlockDevice => '4',
        Kind::Directory => '5',
        Kind::Fifo => '6',
    };
    let mut xattrs: Vec<String> =
        member.xattrs.iter().map(|(name, value)| format!("{}={}", hex(name), hex(value))).collect();
    xattrs.sort();
    let digest = hex(&<sha2::Sha256 as sha2::Digest>::digest(&content));
    let Member { mode, uid, gid, modified: (seconds, nanoseconds), device: (major, minor), .. } = member;
    let (name, link, size) = (hex(&member.name), hex(&member.link), content.len());
    format!(
        "{kind} {name} {link} {mode:o} {uid} {gid} {size} {seconds}.{nanoseconds} {major},{minor} {} {}",
        xattrs.join(","),
        &digest[..16]
    )
}

fn read_member(reader: &mut Reader<&[u8]>) -> Result<Option<String>, TarError> {
    let Some(member) = reader.next_member()? else { return Ok(None) };
    let mut content = Vec::new();
    loop {
        let piece = reader.content()?;
        if piece.is_empty() {
            return Ok(Some(shown_whole(&member, &content)));
        }
        content.extend_from_slice(piece);
        let count = piece.len();
        reader.advance(count);
    }
}

#[test]
fn odd_archives_read_as_go_reads_them() {
    use base64::Engine;
    use std::io::Read;
    let samples: Vec<Sample> = serde_json::from_str(SAMPLES).unwrap();
    for (number, sample) in samples.iter().enumerate() {
        let packed = base64::engine::general_purpose::STANDARD.decode(&sample.archive).unwrap();
        let mut archive = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut archive).unwrap();
        let mut reader = Reader::new(&archive[..]);
        let mut members = Vec::new();
        loop {
            match read_member(&mut reader) {
                Ok(Some(member)) => members.push(member),
                Ok(None) => break,
                Err(_) => {
                    members.push("ERR".to_owned());
                    break;
                }
            }
        }
        assert_eq!(members.join(";"), sample.members, "sample {number}");
    }
}
