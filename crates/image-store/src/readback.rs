//! Putting a layer's tar together again from its files and its tar-split stream.
//!
//! The stream may be another tool's and the files anybody's: lines are bounded, files are opened beneath the layer.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use domain::digest::Digest;
use domain::id::LayerId;
use durable::beneath::Root;
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::crc64::Crc64;
use crate::error::PathError;
use crate::store::Store;
use crate::table::RecordsError;

/// Longest line read: the field's writers keep segments far below a mebibyte, which base64 makes a third longer.
const LINE_MAX_BYTES: u64 = 16 << 20;
/// Piece of a file copied at a time.
const COPY_BYTES: usize = 64 << 10;

/// Why a layer's tar could not be put together.
#[derive(Debug, Error)]
pub enum ReadLayerError {
    /// No such layer, or one never finished.
    #[error("layer {layer} is not in the store")]
    NoLayer {
        /// The layer.
        layer: LayerId,
    },
    /// The records could not be read.
    #[error("read layer {layer}")]
    Records {
        /// The layer.
        layer: LayerId,
        /// Why.
        #[source]
        source: RecordsError,
    },
    /// The stream or a directory could not be opened or read.
    #[error("read layer {layer}")]
    Path {
        /// The layer.
        layer: LayerId,
        /// Why.
        #[source]
        source: PathError,
    },
    /// The stream is not one.
    #[error("read layer {layer}: line {line} of its tar-split stream is damaged")]
    Stream {
        /// The layer.
        layer: LayerId,
        /// Counted from 1.
        line: u64,
    },
    /// A file is missing or is not what was unpacked.
    #[error("read layer {layer}: file {name:?} was modified")]
    Modified {
        /// The layer.
        layer: LayerId,
        /// As the archive has it.
        name: String,
        /// What the kernel said, if it did.
        #[source]
        source: Option<io::Error>,
    },
    /// The tar is not the one that was unpacked.
    #[error("layer {layer} has digest {actual}, not {expected}")]
    Digest {
        /// The layer.
        layer: LayerId,
        /// As recorded.
        expected: Digest,
        /// As computed.
        actual: Digest,
    },
    /// The caller's writer failed.
    #[error("write the tar of layer {layer}")]
    Output {
        /// The layer.
        layer: LayerId,
        /// Why.
        #[source]
        source: io::Error,
    },
}

#[derive(Deserialize)]
struct Line<'a> {
    r#type: u8,
    #[serde(default)]
    name: Option<String>,
    #[serde(default, borrow)]
    name_raw: Option<&'a str>,
    #[serde(default)]
    size: u64,
    #[serde(default, borrow)]
    payload: Option<&'a str>,
}

impl Store {
    /// Writes the uncompressed tar a layer was made from, bit for bit, and returns its digest and length.
    ///
    /// Checks each file against its checksum and the whole against the recorded diff id; what was written before an
    /// error is worthless. With `io::sink()` this is the check of a layer's contents.
    pub fn write_layer_tar(&self, layer: &LayerId, output: &mut impl Write) -> Result<(Digest, u64), ReadLayerError> {
        let expected = {
            let layers =
                self.layers.read().map_err(|source| ReadLayerError::Records { layer: layer.clone(), source })?;
            let row = layers.find(layer.as_str()).filter(|row| !row.is_incomplete());
            let row = row.ok_or_else(|| ReadLayerError::NoLayer { layer: layer.clone() })?;
            Digest::parse(&row.diff_digest).ok()
        };
        let path_error = |source| ReadLayerError::Path { layer: layer.clone(), source };
        let split_path = self.tar_split(layer.as_str());
        let split = File::open(&split_path).map_err(PathError::new("open", &split_path)).map_err(path_error)?;
        let diff_path = self.driver.diff(layer.as_str());
        let root = Root::open(&diff_path).map_err(PathError::new("open", &diff_path)).map_err(path_error)?;
        let mut copy = Copy { layer, output, digest: Sha256::new(), size: 0 };
        let mut lines = BufReader::new(MultiGzDecoder::new(BufReader::new(split)));
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            let read = (&mut lines).take(LINE_MAX_BYTES).read_until(b'\n', &mut bytes);
            if read.map_err(PathError::new("read", &split_path)).map_err(path_error)? == 0 {
                break;
            }
            let damaged = || ReadLayerError::Stream { layer: layer.clone(), line: number };
            let line: Line<'_> = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
            let payload = STANDARD.decode(line.payload.unwrap_or_default()).map_err(|_| damaged())?;
            match line.r#type {
                2 => copy.bytes(&payload)?,
                1 if line.size == 0 => {}
                1 => {
                    let name = match (line.name, line.name_raw) {
                        (Some(name), _) => name.into_bytes(),
                        (None, Some(raw)) => STANDARD.decode(raw).map_err(|_| damaged())?,
                        (None, None) => return Err(damaged()),
                    };
                    copy.file(&root, &name, line.size, &payload)?;
                }
                _ => return Err(damaged()),
            }
        }
        let (actual, size) = (Digest::from_sha256(&copy.digest.finalize().into()), copy.size);
        match expected {
            Some(expected) if expected != actual => {
                Err(ReadLayerError::Digest { layer: layer.clone(), expected, actual })
            }
            _ => Ok((actual, size)),
        }
    }
}

struct Copy<'a, W> {
    layer: &'a LayerId,
    output: &'a mut W,
    digest: Sha256,
    size: u64,
}

impl<W: Write> Copy<'_, W> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), ReadLayerError> {
        self.digest.update(bytes);
        self.size += bytes.len() as u64;
        self.output.write_all(bytes).map_err(|source| ReadLayerError::Output { layer: self.layer.clone(), source })
    }

    fn file(&mut self, root: &Root, name: &[u8], size: u64, crc: &[u8]) -> Result<(), ReadLayerError> {
        let layer = self.layer;
        let modified =
            |source| ReadLayerError::Modified { layer: layer.clone(), name: crate::tar::shown(name), source };
        let path = Path::new(std::ffi::OsStr::from_bytes(name));
        let file = root.open_regular(path).map_err(|error| modified(Some(error)))?;
        let mut left = size;
        let mut found = Crc64::new();
        let mut buffer = vec![0; COPY_BYTES];
        // One byte more than expected is asked for, to see that there is none.
        let mut file = file.take(size.saturating_add(1));
        loop {
            let count = file.read(&mut buffer).map_err(|error| modified(Some(error)))?;
            if count == 0 {
                break;
            }
            left = left.checked_sub(count as u64).ok_or_else(|| modified(None))?;
            found.update(&buffer[..count]);
            self.bytes(&buffer[..count])?;
        }
        if left > 0 || found.finish() != *crc {
            return Err(modified(None));
        }
        Ok(())
    }
}
