//! A file system whose server stops answering: whoever looks up a name in it sleeps where no signal reaches.
//!
//! Speaks just enough of FUSE (fuse(4), protocol 7.31): the root directory is there, every name in it is asked about in
//! vain. Taking it away ends all that wait.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::tools;
use crate::world::World;

/// More than the kernel's smallest buffer and our largest write.
const REQUEST_MAX_BYTES: usize = 64 << 10;
const HEADER_BYTES: usize = 40;
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
const ENOSYS: i32 = 38;
const DIRECTORY_MODE: u32 = 0o040_755;

/// Mounted until dropped.
#[derive(Debug)]
pub struct Hung {
    directory: PathBuf,
    holder: u32,
}

impl Hung {
    /// Mounts it in the node's mount namespace.
    #[must_use]
    pub fn mount(world: &World, directory: &Path) -> Self {
        std::fs::create_dir_all(directory).expect("a directory");
        let device = File::options().read(true).write(true).open("/dev/fuse").expect("open /dev/fuse");
        // The one descriptor that mount is to inherit.
        rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::empty()).expect("fcntl");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        tools::run(world.command("mount").args(["-i", "-t", "fuse", "-o", &options, "hung"]).arg(directory));
        rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::CLOEXEC).expect("fcntl");
        std::thread::spawn(move || serve(device));
        Self { directory: directory.to_owned(), holder: world.holder_pid() }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let unmount = |option: &str| {
            let mut command = std::process::Command::new("nsenter");
            command.arg("--target").arg(self.holder.to_string()).args(["--mount", "--", "umount", "-i", option]);
            let _ = command.arg(&self.directory).output();
        };
        // By force ends all requests, even where the mount itself is busy; then it goes out of sight.
        unmount("-f");
        unmount("-l");
    }
}

/// Answers until the file system is gone, but never a look-up.
fn serve(mut device: File) {
    let mut request = vec![0; REQUEST_MAX_BYTES];
    while let Ok(count) = device.read(&mut request) {
        if count < HEADER_BYTES {
            return;
        }
        let number = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("four bytes"));
        let unique = &request[8..16];
        let answer = match number(4) {
            LOOKUP | FORGET | BATCH_FORGET | INTERRUPT => continue,
            INIT => reply(unique, 0, &init()),
            GETATTR => reply(unique, 0, &attributes()),
            _ => reply(unique, -ENOSYS, &[]),
        };
        // The request may have been given up meanwhile.
        let _ = device.write(&answer);
    }
}

fn reply(unique: &[u8], error: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).expect("small");
    [&length.to_ne_bytes()[..], &error.to_ne_bytes(), unique, body].concat()
}

/// `fuse_init_out`.
fn init() -> Vec<u8> {
    let mut body = Vec::new();
    for number in [7_u32, 31, 0, 0, 0, 4096, 1] {
        body.extend_from_slice(&number.to_ne_bytes());
    }
    body.resize(64, 0);
    body
}

/// `fuse_attr_out`: a directory, good for an hour.
fn attributes() -> Vec<u8> {
    let mut body = Vec::new();
    for number in [3600_u64, 0, 1] {
        body.extend_from_slice(&number.to_ne_bytes());
    }
    // Sizes and times.
    body.resize(16 + 60, 0);
    for number in [DIRECTORY_MODE, 2] {
        body.extend_from_slice(&number.to_ne_bytes());
    }
    body.resize(104, 0);
    body
}
