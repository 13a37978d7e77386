//! zstd:chunked layers of simple archives, honest or changed. Also a module of the image store's tests, by its path.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const BLOCK: usize = 512;
const PREFIX: &str = "io.github.containers.zstd-chunked.";

/// A layer as it travels.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What the manifest says of it.
    pub annotations: BTreeMap<String, String>,
}

/// How to make one.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// Whether the blob carries its tar-split stream, as current tools write it.
    pub has_split: bool,
    /// Files of more bytes are stored in chunks of as many.
    pub chunk_bytes: usize,
}

impl Default for How {
    fn default() -> Self {
        Self { has_split: true, chunk_bytes: 64 << 10 }
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("compresses")
}

fn octal(field: &[u8]) -> u64 {
    let text: String =
        field.iter().take_while(|byte| **byte != 0 && **byte != b' ').map(|byte| char::from(*byte)).collect();
    u64::from_str_radix(&text, 8).unwrap_or(0)
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Attributes among the records of an extension header.
fn attributes(mut records: &[u8]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    while let Some(space) = records.iter().position(|byte| *byte == b' ') {
        let length: usize = text(&records[..space]).parse().expect("a length");
        let record = &records[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').expect("a value");
        if let Some(name) = text(&record[..equals]).strip_prefix("SCHILY.xattr.") {
            found.insert(name.to_owned(), STANDARD.encode(&record[equals + 1..]));
        }
        records = &records[length..];
    }
    found
}

fn skippable(into: &mut Vec<u8>, bytes: &[u8]) -> usize {
    into.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18]);
    into.extend_from_slice(&u32::try_from(bytes.len()).expect("short").to_le_bytes());
    into.extend_from_slice(bytes);
    into.len() - bytes.len()
}

/// The blob of an archive of ustar headers, with records for attributes at most; `change` may spoil the table.
pub fn build(tar: &[u8], how: How, change: impl FnOnce(&mut Value)) -> Blob {
    let (mut bytes, mut entries) = (Vec::new(), Vec::new());
    let (mut split, mut position) = (String::new(), 0);
    let mut line = |mut value: Value| {
        value["position"] = position.into();
        position += 1;
        split.push_str(&format!("{value}\n"));
    };
    let (mut at, mut segment, mut written) = (0, 0, 0);
    let mut xattrs = BTreeMap::new();
    while at + BLOCK <= tar.len() && tar[at..at + BLOCK].iter().any(|byte| *byte != 0) {
        let header = &tar[at..at + BLOCK];
        let size = usize::try_from(octal(&header[124..136])).expect("small");
        let content = &tar[at + BLOCK..at + BLOCK + size];
        let next = at + BLOCK + size.next_multiple_of(BLOCK);
        if header[156] == b'x' {
            xattrs = attributes(content);
            at = next;
            continue;
        }
        let kind = match header[156] {
            b'1' => "hardlink",
            b'2' => "symlink",
            b'3' => "char",
            b'4' => "block",
            b'5' => "dir",
            b'6' => "fifo",
            _ => "reg",
        };
        let name = text(&header[..100]);
        let time = octal(&header[136..148]);
        let (minutes, seconds) = (time / 60, time % 60);
        let (hours, minutes) = (minutes / 60, minutes % 60);
        let mut entry = json!({
            "type": kind, "name": name, "linkName": text(&header[157..257]), "mode": octal(&header[100..108]),
            "size": size, "uid": octal(&header[108..116]), "gid": octal(&header[116..124]),
            "modtime": format!("{}T{:02}:{minutes:02}:{seconds:02}Z", day(hours / 24), hours % 24),
        });
        if matches!(header[156], b'3' | b'4') {
            entry["devMajor"] = octal(&header[329..337]).into();
            entry["devMinor"] = octal(&header[337..345]).into();
        }
        if !xattrs.is_empty() {
            entry["xattrs"] = json!(std::mem::take(&mut xattrs));
        }
        line(json!({ "type": 2, "payload": STANDARD.encode(&tar[segment..at + BLOCK]) }));
        segment = at + BLOCK;
        bytes.extend(frame(&tar[written..at + BLOCK]));
        written = at + BLOCK + size;
        if size > 0 {
            line(json!({ "type": 1, "name": name, "size": size, "payload": STANDARD.encode([0; 8]) }));
            segment += size;
            entry["digest"] = digest(content).into();
            let chunks: Vec<&[u8]> = content.chunks(how.chunk_bytes).collect();
            let mut parts = vec![entry];
            parts.extend(chunks.iter().skip(1).map(|_| json!({ "type": "chunk", "name": name })));
            for (index, chunk) in chunks.iter().enumerate() {
                parts[index]["offset"] = bytes.len().into();
                if chunks.len() > 1 {
                    parts[index]["chunkSize"] = chunk.len().into();
                    parts[index]["chunkOffset"] = (index * how.chunk_bytes).into();
                    parts[index]["chunkDigest"] = digest(chunk).into();
                    if chunk.iter().all(|byte| *byte == 0) {
                        parts[index]["chunkType"] = "zeros".into();
                    }
                }
                bytes.extend(frame(chunk));
            }
            parts[0]["endOffset"] = bytes.len().into();
            entries.extend(parts);
        } else {
            line(json!({ "type": 1, "name": name, "payload": null }));
            entries.push(entry);
        }
        at = next;
    }
    line(json!({ "type": 2, "payload": STANDARD.encode(&tar[segment..]) }));
    bytes.extend(frame(&tar[written..]));

    let split = frame(split.as_bytes());
    let mut table = json!({ "version": 1, "entries": entries });
    if how.has_split {
        table["tarSplitDigest"] = digest(&split).into();
    }
    change(&mut table);
    let plain = serde_json::to_vec(&table).expect("JSON");
    let table = frame(&plain);
    let start = skippable(&mut bytes, &table);
    let mut annotations = BTreeMap::new();
    annotations.insert(format!("{PREFIX}manifest-checksum"), digest(&table));
    annotations.insert(format!("{PREFIX}manifest-position"), format!("{start}:{}:{}:1", table.len(), plain.len()));
    let mut footer: Vec<u64> = vec![start as u64, table.len() as u64, plain.len() as u64, 1];
    if how.has_split {
        let start = skippable(&mut bytes, &split);
        annotations.insert(format!("{PREFIX}tarsplit-position"), format!("{start}:{}:0", split.len()));
        footer.extend([start as u64, split.len() as u64, 0]);
    }
    let mut tail: Vec<u8> = footer.iter().flat_map(|number| number.to_le_bytes()).collect();
    tail.extend_from_slice(b"GNUlInUx");
    skippable(&mut bytes, &tail);
    Blob { bytes, annotations }
}

/// The date of a day after the epoch.
fn day(mut days: u64) -> String {
    let mut year = 1970;
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, days + 1)
}
