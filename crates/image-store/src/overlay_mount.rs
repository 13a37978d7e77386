//! The mount of an overlay: by one call where its data fit a page, else directory by directory.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::MountFlags;

/// Mount data must fit one page, its NUL included.
const MOUNT_DATA_MAX_BYTES: usize = 4095;

/// Splits options into those the kernel takes as flags and those overlay takes as text.
pub(crate) fn mount_options(options: &[String]) -> (MountFlags, Vec<String>) {
    let mut flags = MountFlags::empty();
    let mut texts = Vec::new();
    for option in options {
        match option.as_str() {
            "nodev" => flags |= MountFlags::NODEV,
            "nosuid" => flags |= MountFlags::NOSUID,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            "ro" => flags |= MountFlags::RDONLY,
            "dev" => flags -= MountFlags::NODEV,
            "suid" => flags -= MountFlags::NOSUID,
            "exec" => flags -= MountFlags::NOEXEC,
            "rw" => flags -= MountFlags::RDONLY,
            "defaults" | "async" | "atime" | "diratime" => {}
            other => texts.push(other.to_owned()),
        }
    }
    (flags, texts)
}

/// One call for an overlay.
pub(crate) struct MountCall<'a> {
    pub(crate) lowers: &'a [PathBuf],
    /// The layer's own directory, when it is written to.
    pub(crate) upper: Option<&'a Path>,
    pub(crate) merged: &'a Path,
    pub(crate) options: &'a [String],
    pub(crate) flags: MountFlags,
}

impl MountCall<'_> {
    /// Options of the directories that are written to.
    fn writable(&self) -> impl Iterator<Item = (&'static str, PathBuf)> + '_ {
        let names = [("upperdir", "diff"), ("workdir", "work")].into_iter();
        self.upper.into_iter().flat_map(move |upper| names.clone().map(move |(key, name)| (key, upper.join(name))))
    }

    fn data(&self, lowers: &[PathBuf]) -> String {
        let mut data = String::from("lowerdir=");
        for (index, lower) in lowers.iter().enumerate() {
            if index > 0 {
                data.push(':');
            }
            data.push_str(&lower.to_string_lossy());
        }
        for (key, path) in self.writable() {
            data.push_str(&format!(",{key}={}", path.display()));
        }
        for option in self.options {
            data.push(',');
            data.push_str(option);
        }
        data
    }

    pub(crate) fn mount(&self, home: &Path) -> io::Result<()> {
        let data = self.data(self.lowers);
        if data.len() <= MOUNT_DATA_MAX_BYTES {
            return self.mount_with(&data);
        }
        match self.mount_one_by_one() {
            // A kernel before 6.8 does not take lower directories one by one.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
            other => return Ok(other?),
        }
        // The same directories by a shorter path: about a hundred fit a page.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(CWD, home, flags, Mode::empty())?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&handle)));
        let lowers: Vec<PathBuf> =
            self.lowers.iter().map(|lower| short.join(lower.strip_prefix(home).unwrap_or(lower))).collect();
        let data = self.data(&lowers);
        if data.len() > MOUNT_DATA_MAX_BYTES {
            return Err(io::Error::other("more layers than this kernel mounts"));
        }
        self.mount_with(&data)
    }

    fn mount_with(&self, data: &str) -> io::Result<()> {
        let data = std::ffi::CString::new(data)?;
        Ok(rustix::mount::mount("overlay", self.merged, "overlay", self.flags, Some(data.as_c_str()))?)
    }

    /// `fsconfig(2)` with `lowerdir+`, Linux 6.8.
    fn mount_one_by_one(&self) -> Result<(), rustix::io::Errno> {
        use rustix::mount::{
            FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
            fsconfig_set_string, fsmount, fsopen, move_mount,
        };
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for lower in self.lowers {
            fsconfig_set_string(context.as_fd(), "lowerdir+", lower)?;
        }
        for (key, path) in self.writable() {
            fsconfig_set_string(context.as_fd(), key, path)?;
        }
        for option in self.options {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(context.as_fd(), key, value.trim_matches('"'))?,
                None => fsconfig_set_flag(context.as_fd(), option.as_str())?,
            }
        }
        if self.flags.contains(MountFlags::RDONLY) {
            fsconfig_set_flag(context.as_fd(), "ro")?;
        }
        fsconfig_create(context.as_fd())?;
        let mut attributes = MountAttrFlags::empty();
        for (flag, attribute) in [
            (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
            (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
            (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
            (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
            (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        ] {
            if self.flags.contains(flag) {
                attributes |= attribute;
            }
        }
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        move_mount(mount.as_fd(), "", CWD, self.merged, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_texts_are_told_apart() {
        let options: Vec<String> = ["nodev", "metacopy=on", "nosuid", "dev"].map(str::to_owned).to_vec();
        let (flags, texts) = mount_options(&options);
        assert_eq!(flags, MountFlags::NOSUID);
        assert_eq!(texts, ["metacopy=on"]);
    }
}
