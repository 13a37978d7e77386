//! Random names.

use std::fs::File;
use std::io::{self, Read};

use domain::id::LayerId;

fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// `count` times two hexadecimal digits, at most 32.
pub(crate) fn hex(count: usize) -> io::Result<String> {
    Ok(layer_id()?.as_str()[..count.min(32) * 2].to_owned())
}

/// Identity of a container's layer.
pub(crate) fn layer_id() -> io::Result<LayerId> {
    Ok(LayerId::from_bytes(bytes::<32>()?))
}

/// The short name of a layer below `l`: 26 characters of the base32 alphabet.
pub(crate) fn link_name() -> io::Result<String> {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let random = bytes::<26>()?;
    Ok(random.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}
