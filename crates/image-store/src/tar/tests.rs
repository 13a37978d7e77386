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
        (b"99999999 a=b\n", "without a length"),
        (b"5 ab\n", "without ="),
        (b"5 =b\n", "bad key"),
        (b"11 uid=abcd\n", "wrong length"),
        (b"12 uid=abcd\n", "not decimal"),
        (b"0 a=b\n", "wrong length"),
    ] {
        let error = Pax::parse(text).unwrap_err();
        assert!(error.contains(reason), "{text:?}: {error}");
    }
    assert_eq!(decimal(b"9999999999999999999"), Ok(9_999_999_999_999_999_999));
    assert!(decimal(b"18446744073709551616").is_err());
    assert!(decimal(b"+1").is_err());
}
