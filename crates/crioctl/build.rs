//! Compiles the CRI's protobuf text to a descriptor, by which JSON is read and written.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../cri-api/proto/cri_v1.proto");
    let descriptors = protox::compile(["cri_v1.proto"], ["../cri-api/proto"])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    // A build script's output is made again whenever it is in doubt; it need not survive a crash.
    #[allow(clippy::disallowed_methods)]
    std::fs::write(out.join("cri_v1.bin"), descriptors.encode_to_vec())?;
    Ok(())
}
