//! The directory of leases: a file for each address with its owner, a file for each range set with the last address
//! given out, one to lock. Byte for byte those of the reference plugin.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Between the container's id and the interface's name.
const SEPARATOR: &str = "\r\n";
/// A lease has an id and a name.
const LEASE_MAX: u64 = 4096;

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

/// An address and what its file says.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) address: IpAddr,
    text: String,
}

impl Lease {
    /// Versions before 0.8 wrote the id alone.
    pub(crate) fn is_of(&self, owner: &Owner) -> bool {
        match self.text.split_once(SEPARATOR) {
            Some((id, ifname)) => id == owner.container_id && ifname == owner.ifname,
            None => self.text == owner.container_id,
        }
    }
}

/// The leases of one network, locked until dropped.
#[derive(Debug)]
pub(crate) struct Leases {
    directory: PathBuf,
    _lock: File,
}

impl Leases {
    /// Makes the directory if there is none. Waits for its turn.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        // Mode as the reference plugin's: what matters is the directory.
        let options =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o644).open(directory.join("lock"))?;
        flock(&options, FlockOperation::LockExclusive)?;
        Ok(Self { directory: directory.to_owned(), _lock: options })
    }

    /// `None` when there never was a lease.
    pub(crate) fn open_if_there(directory: &Path) -> io::Result<Option<Self>> {
        if directory.is_dir() { Self::open(directory).map(Some) } else { Ok(None) }
    }

    /// Every lease. Files that are no addresses, or vanish meanwhile, are passed over.
    pub(crate) fn list(&self) -> io::Result<Vec<Lease>> {
        let mut leases = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let Some(address) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(file) = File::open(self.directory.join(&name)) else { continue };
            let mut text = String::new();
            if file.take(LEASE_MAX).read_to_string(&mut text).is_ok() {
                leases.push(Lease { address, text: text.trim().to_owned() });
            }
        }
        Ok(leases)
    }

    /// Takes an address; `false` if somebody has it. Remembers it as the last of its range set.
    pub(crate) fn reserve(&self, address: IpAddr, owner: &Owner, set: usize) -> io::Result<bool> {
        let path = self.directory.join(address.to_string());
        let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(error),
        };
        let text = format!("{}{SEPARATOR}{}", owner.container_id, owner.ifname);
        let written = file.write_all(text.as_bytes()).and_then(|()| self.remember(address, set));
        if let Err(error) = written {
            self.remove(address);
            return Err(error);
        }
        Ok(true)
    }

    fn remember(&self, address: IpAddr, set: usize) -> io::Result<()> {
        let path = self.directory.join(format!("last_reserved_ip.{set}"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(address.to_string().as_bytes())
    }

    /// The address given out last from a range set.
    pub(crate) fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        let file = File::open(self.directory.join(format!("last_reserved_ip.{set}"))).ok()?;
        let mut text = String::new();
        file.take(LEASE_MAX).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }

    /// Gives an address back.
    pub(crate) fn remove(&self, address: IpAddr) {
        if let Err(error) = std::fs::remove_file(self.directory.join(address.to_string()))
            && error.kind() != io::ErrorKind::NotFound
        {
            eprintln!("cannot remove the lease of {address}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_belong_to_somebody() {
        let owner = Owner { container_id: "abc".to_owned(), ifname: "eth0".to_owned() };
        for (text, expected) in
            [("abc\r\neth0", true), ("abc", true), ("abc\r\neth1", false), ("abcd", false), ("", false)]
        {
            let lease = Lease { address: IpAddr::from([1, 2, 3, 4]), text: text.to_owned() };
            assert_eq!(lease.is_of(&owner), expected, "{text:?}");
        }
    }

    #[test]
    fn an_address_is_given_once() {
        let root = tempfile::tempdir().unwrap();
        let leases = Leases::open(&root.path().join("net")).unwrap();
        let owner = Owner { container_id: "abc".to_owned(), ifname: "eth0".to_owned() };
        let address = IpAddr::from([10, 0, 0, 7]);
        assert!(leases.reserve(address, &owner, 0).unwrap());
        assert!(!leases.reserve(address, &owner, 0).unwrap());
        assert_eq!(std::fs::read_to_string(root.path().join("net/10.0.0.7")).unwrap(), "abc\r\neth0");
        assert_eq!(leases.last_reserved(0), Some(address));
        assert_eq!(leases.last_reserved(1), None);
        assert_eq!(leases.list().unwrap().len(), 1);
        leases.remove(address);
        assert!(leases.list().unwrap().is_empty());
    }
}
