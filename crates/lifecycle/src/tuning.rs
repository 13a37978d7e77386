//! CPUs tuned for a container: interrupts, idle states and frequencies, in the files of the node.
//!
//! What a container claims is written down before anything changes, in a directory that a reboot empties as it undoes
//! the changes: `<save>/claims/<container>`, and the values the files had before in `<save>/cpuN/`, where CRI-O keeps
//! them, too. Whoever ends the claim, this daemon or the next, gives back what no other container claims.
//!
//! ```text
//! claim written            before: nothing has changed; after: ending it puts back what had changed, if anything
//! saved, then changed      a value is saved once, by the first claim of its CPU
//! put back, claim deleted  before: the restart ends the claim of a container that is gone or has ended
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use domain::cpus::{CpuMask, CpuSet, MaskChange};
use domain::id::ContainerId;
use domain::irqbalance;
use durable::Durability;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest file of sysfs or irqbalance's configuration that is read.
const FILE_MAX_BYTES: u64 = 1 << 20;
const RESUME_LATENCY: &str = "power/pm_qos_resume_latency_us";
const GOVERNOR: &str = "cpufreq/scaling_governor";
const GOVERNORS: &str = "cpufreq/scaling_available_governors";

/// Why CPUs could not be tuned.
#[derive(Debug, Error)]
pub enum TuneError {
    /// A file of the node.
    #[error("{action} {path}")]
    File {
        /// `read`, `write`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The mask of CPUs that take interrupts.
    #[error("mask of CPUs that take interrupts")]
    Mask(#[from] domain::cpus::CpuMaskError),
    /// The frequency driver of a CPU does not know the governor.
    #[error("governor {governor} is not available for CPU {cpu}")]
    Governor {
        /// As asked.
        governor: String,
        /// The CPU.
        cpu: u32,
    },
    /// The container has none of its own.
    #[error("the container has no CPUs of its own (cpuset_cpus)")]
    NoCpus,
    /// The kernel does not take the CPUs of a cgroup out of balancing.
    #[error("{0}")]
    Partition(String),
    /// A cgroup.
    #[error("cgroup")]
    Cgroup(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The spec of the container.
    #[error("read its spec")]
    Spec(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Its annotations.
    #[error(transparent)]
    Annotations(#[from] domain::spec::SpecError),
}

/// What a container has changed in the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Claim {
    /// Its CPUs, shared ones included.
    pub(crate) cpus: String,
    /// Those that were taken from interrupts.
    pub(crate) interrupts: String,
    pub(crate) has_resume_latency: bool,
    pub(crate) has_governor: bool,
    /// Those out of load balancing (v2).
    pub(crate) exclusive: String,
    /// Cgroups that lend them, outermost first, the container's own last (v2).
    pub(crate) lenders: Vec<PathBuf>,
    /// Microseconds a period that the pod's quota was raised by.
    pub(crate) pod_quota_us: i64,
    /// The pod's cgroup, as asked.
    pub(crate) cgroup_parent: String,
}

/// The files of a node, beneath one directory.
#[derive(Debug)]
pub(crate) struct Machine {
    root: PathBuf,
    save: PathBuf,
    irqbalance: Option<PathBuf>,
}

fn set(text: &str) -> CpuSet {
    // A record that does not say names no CPU that would have to be put back.
    CpuSet::parse(text).unwrap_or(CpuSet::EMPTY)
}

pub(crate) fn read(path: &Path) -> Result<String, TuneError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX_BYTES).read_to_string(&mut text))
        .map_err(|source| TuneError::File { action: "read", path: path.to_owned(), source })?;
    Ok(text)
}

/// Writes a file that is there already; the kernel's take a value whole or not at all.
pub(crate) fn write(path: &Path, value: &str) -> Result<(), TuneError> {
    File::options()
        .write(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| TuneError::File { action: "write", path: path.to_owned(), source })
}

impl Machine {
    /// The node whose files lie beneath `root`; `save` is emptied by a reboot.
    pub(crate) fn new(root: PathBuf, save: PathBuf, irqbalance: Option<PathBuf>) -> Self {
        Self { root, save, irqbalance }
    }

    fn cpu_file(&self, cpu: u32, name: &str) -> PathBuf {
        self.root.join(format!("sys/devices/system/cpu/cpu{cpu}")).join(name)
    }

    fn saved_file(&self, cpu: u32, name: &str) -> PathBuf {
        self.save.join(format!("cpu{cpu}")).join(name)
    }

    fn affinity(&self) -> PathBuf {
        self.root.join("proc/irq/default_smp_affinity")
    }

    fn claims(&self) -> PathBuf {
        self.save.join("claims")
    }

    /// Writes down what is claimed.
    pub(crate) fn save_claim(&self, id: &ContainerId, claim: &Claim) -> Result<(), TuneError> {
        let path = self.claims().join(id.as_str());
        let failed = |source| TuneError::File { action: "write", path: path.clone(), source };
        fs::create_dir_all(self.claims()).map_err(failed)?;
        let json = serde_json::to_vec(claim).map_err(|error| failed(error.into()))?;
        durable::replace(&path, &json, 0o600, Durability::Volatile).map_err(|error| failed(io::Error::other(error)))
    }

    /// What a container claims.
    pub(crate) fn load_claim(&self, id: &ContainerId) -> Result<Option<Claim>, TuneError> {
        let path = self.claims().join(id.as_str());
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| TuneError::File {
                action: "read",
                path,
                source: error.into(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(TuneError::File { action: "read", path, source }),
        }
    }

    pub(crate) fn forget_claim(&self, id: &ContainerId) -> Result<(), TuneError> {
        let path = self.claims().join(id.as_str());
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(TuneError::File { action: "delete", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Whose claims there are.
    pub(crate) fn claimants(&self) -> Vec<ContainerId> {
        let Ok(entries) = fs::read_dir(self.claims()) else { return Vec::new() };
        entries.flatten().filter_map(|entry| ContainerId::parse(entry.file_name().to_str()?).ok()).collect()
    }

    fn others(&self, id: &ContainerId) -> Vec<Claim> {
        let others = self.claimants().into_iter().filter(|other| other != id);
        others.filter_map(|other| self.load_claim(&other).ok().flatten()).collect()
    }

    /// Takes CPUs from interrupts. What is in `claim` afterwards is what ending it gives back.
    ///
    /// Returns irqbalance's new mask of banned CPUs.
    pub(crate) fn take_from_interrupts(
        &self,
        id: &ContainerId,
        cpus: &CpuSet,
        claim: &mut Claim,
    ) -> Result<String, TuneError> {
        let mask = CpuMask::parse(&read(&self.affinity())?)?;
        let of_others = self.others(id).iter().fold(CpuSet::EMPTY, |all, other| all.union(&set(&other.interrupts)));
        // CPUs that took none before any container came are the administrator's choice and stay so.
        let taken = cpus.intersection(&mask.cpus().union(&of_others));
        claim.interrupts = taken.to_string();
        self.save_claim(id, claim)?;
        self.change_mask(&mask, cpus, MaskChange::TakeOut)
    }

    fn change_mask(&self, mask: &CpuMask, cpus: &CpuSet, change: MaskChange) -> Result<String, TuneError> {
        let changed = mask.with(cpus, change)?;
        let banned = changed.inverted().to_string();
        write(&self.affinity(), &changed.to_string())?;
        if let Err(error) = self.write_banned(&banned) {
            // Two files that contradict each other would have irqbalance undo the first.
            write(&self.affinity(), &mask.to_string())?;
            return Err(error);
        }
        Ok(banned)
    }

    /// irqbalance's configuration, where it has one.
    pub(crate) fn irqbalance_config(&self) -> Option<PathBuf> {
        let path = self.irqbalance.as_ref()?;
        let path = self.root.join(path.strip_prefix("/").unwrap_or(path));
        path.is_file().then_some(path)
    }

    fn write_banned(&self, banned: &str) -> Result<(), TuneError> {
        let Some(path) = self.irqbalance_config() else { return Ok(()) };
        let text = irqbalance::with_banned(&read(&path)?, banned);
        let path = fs::canonicalize(&path).unwrap_or(path);
        durable::replace(&path, text.as_bytes(), 0o644, Durability::Durable).map_err(|error| TuneError::File {
            action: "write",
            path,
            source: io::Error::other(error),
        })
    }

    /// After a reboot no CPU is taken from interrupts, but irqbalance's configuration may still say so: it gets the mask
    /// back that it had before the first container. Tells whether it changed. Source: CRI-O.
    pub(crate) fn restore_irqbalance(&self, original: &Path) -> Result<bool, TuneError> {
        let Some(config) = self.irqbalance_config() else { return Ok(false) };
        if !CpuMask::parse(&read(&self.affinity())?)?.is_full() {
            return Ok(false);
        }
        let original = self.root.join(original.strip_prefix("/").unwrap_or(original));
        let text = read(&config)?;
        let banned = irqbalance::banned(&text);
        match read(&original) {
            Ok(before) if before.trim() == banned => Ok(false),
            Ok(before) => self.write_banned(before.trim()).map(|()| true),
            Err(TuneError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                durable::replace(&original, banned.as_bytes(), 0o644, Durability::Durable).map_err(|error| {
                    TuneError::File { action: "write", path: original, source: io::Error::other(error) }
                })?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether every CPU can be governed so; before anything changes.
    pub(crate) fn check_governor(&self, cpus: &CpuSet, governor: &str) -> Result<(), TuneError> {
        for cpu in cpus.iter() {
            if !read(&self.cpu_file(cpu, GOVERNORS))?.split_ascii_whitespace().any(|known| known == governor) {
                return Err(TuneError::Governor { governor: governor.to_owned(), cpu });
            }
        }
        Ok(())
    }

    /// Sets how long CPUs may take to wake up.
    pub(crate) fn set_resume_latency(&self, cpus: &CpuSet, value: &str) -> Result<(), TuneError> {
        cpus.iter().try_for_each(|cpu| self.change(cpu, RESUME_LATENCY, value))
    }

    /// Sets who decides about the frequency of CPUs.
    pub(crate) fn set_governor(&self, cpus: &CpuSet, value: &str) -> Result<(), TuneError> {
        cpus.iter().try_for_each(|cpu| self.change(cpu, GOVERNOR, value))
    }

    fn change(&self, cpu: u32, name: &str, value: &str) -> Result<(), TuneError> {
        let (file, saved) = (self.cpu_file(cpu, name), self.saved_file(cpu, name));
        if !saved.exists() {
            let before = read(&file)?;
            let failed = |source| TuneError::File { action: "write", path: saved.clone(), source };
            saved.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
            durable::replace(&saved, before.as_bytes(), 0o644, Durability::Volatile)
                .map_err(|error| failed(io::Error::other(error)))?;
        }
        write(&file, value)
    }

    fn put_back(&self, cpu: u32, name: &str) -> Result<(), TuneError> {
        let saved = self.saved_file(cpu, name);
        match read(&saved) {
            Ok(before) => write(&self.cpu_file(cpu, name), before.trim_end())?,
            // Never changed, or put back already.
            Err(TuneError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        fs::remove_file(&saved).map_err(|source| TuneError::File { action: "delete", path: saved, source })
    }

    /// Puts back what a claim has changed and no other claims. Returns irqbalance's new mask, if it changed.
    ///
    /// Every step is tried; the first failure is told.
    pub(crate) fn end_claim(&self, id: &ContainerId, claim: &Claim) -> Result<Option<String>, TuneError> {
        let others = self.others(id);
        let free = |is_of: fn(&Claim) -> bool| {
            let kept = others.iter().filter(|other| is_of(other));
            kept.fold(set(&claim.cpus), |free, other| free.difference(&set(&other.cpus)))
        };
        let mut done = Ok(());
        if claim.has_resume_latency {
            for cpu in free(|other| other.has_resume_latency).iter() {
                done = done.and(self.put_back(cpu, RESUME_LATENCY));
            }
        }
        if claim.has_governor {
            for cpu in free(|other| other.has_governor).iter() {
                done = done.and(self.put_back(cpu, GOVERNOR));
            }
        }
        let back = others.iter().fold(set(&claim.interrupts), |back, other| back.difference(&set(&other.interrupts)));
        let mut banned = None;
        if !back.is_empty() {
            let changed = read(&self.affinity())
                .and_then(|text| Ok(CpuMask::parse(&text)?))
                .and_then(|mask| self.change_mask(&mask, &back, MaskChange::PutIn));
            match changed {
                Ok(mask) => banned = Some(mask),
                Err(error) => done = done.and(Err(error)),
            }
        }
        done.map(|()| banned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new(mask: &str) -> Self {
            let fake = Self(tempfile::tempdir().expect("a directory"));
            fake.put("proc/irq/default_smp_affinity", mask);
            fake.put("etc/irqbalance", "# options\nIRQBALANCE_BANNED_CPUS=\"0\"\n");
            for cpu in 0..4 {
                fake.put(&format!("sys/devices/system/cpu/cpu{cpu}/{RESUME_LATENCY}"), "0\n");
                fake.put(&format!("sys/devices/system/cpu/cpu{cpu}/{GOVERNOR}"), "powersave\n");
                fake.put(&format!("sys/devices/system/cpu/cpu{cpu}/{GOVERNORS}"), "performance powersave \n");
            }
            fake
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).expect("a file");
        }

        fn get(&self, path: &str) -> String {
            fs::read_to_string(self.0.path().join(path)).expect("a file").trim_end().to_owned()
        }

        fn machine(&self) -> Machine {
            let root = self.0.path().to_owned();
            Machine::new(root.clone(), root.join("save"), Some("/etc/irqbalance".into()))
        }

        fn latency(&self, cpu: u32) -> String {
            self.get(&format!("sys/devices/system/cpu/cpu{cpu}/{RESUME_LATENCY}"))
        }
    }

    fn id(digit: char) -> ContainerId {
        ContainerId::parse(&digit.to_string().repeat(64)).expect("an id")
    }

    fn claim(machine: &Machine, id: &ContainerId, cpus: &str) -> Claim {
        let mut claim = Claim { cpus: cpus.to_owned(), has_resume_latency: true, ..Claim::default() };
        machine.save_claim(id, &claim).expect("saved");
        machine.take_from_interrupts(id, &set(cpus), &mut claim).expect("taken");
        machine.set_resume_latency(&set(cpus), "n/a").expect("set");
        claim
    }

    fn end(machine: &Machine, id: &ContainerId) {
        // As a daemon that knows nothing but the records.
        let claim = machine.load_claim(id).expect("readable").expect("a claim");
        machine.end_claim(id, &claim).expect("ends");
        machine.forget_claim(id).expect("forgotten");
    }

    #[test]
    fn what_is_changed_is_put_back_by_whoever_ends_the_claim() {
        let fake = Fake::new("f\n");
        claim(&fake.machine(), &id('a'), "1-2");
        assert_eq!(fake.get("proc/irq/default_smp_affinity"), "00000009");
        assert_eq!(fake.get("etc/irqbalance"), "# options\nIRQBALANCE_BANNED_CPUS=\"00000006\"");
        assert_eq!(
            (fake.latency(1), fake.latency(3), fake.get("save/cpu1/power/pm_qos_resume_latency_us")),
            ("n/a".into(), "0".into(), "0".into())
        );
        let machine = fake.machine();
        assert_eq!(machine.claimants(), [id('a')]);
        end(&machine, &id('a'));
        assert_eq!(fake.get("proc/irq/default_smp_affinity"), "0000000f");
        assert_eq!((fake.latency(1), machine.claimants()), ("0".to_owned(), vec![]));
        assert!(!fake.0.path().join("save/cpu1/power/pm_qos_resume_latency_us").exists());
        assert_eq!(machine.load_claim(&id('a')).expect("readable"), None);
    }

    #[test]
    fn a_cpu_that_another_container_has_got_meanwhile_stays_its() {
        let fake = Fake::new("f\n");
        let machine = fake.machine();
        claim(&machine, &id('a'), "0-1");
        claim(&machine, &id('b'), "1-2");
        assert_eq!(fake.get("proc/irq/default_smp_affinity"), "00000008");
        end(&machine, &id('a'));
        assert_eq!(
            (fake.get("proc/irq/default_smp_affinity"), fake.latency(0), fake.latency(1)),
            ("00000009".into(), "0".into(), "n/a".into())
        );
        end(&machine, &id('b'));
        assert_eq!(
            (fake.get("proc/irq/default_smp_affinity"), fake.latency(1), fake.latency(2)),
            ("0000000f".into(), "0".into(), "0".into())
        );
    }

    #[test]
    fn cpus_that_never_took_interrupts_do_not_begin_to() {
        let fake = Fake::new("e\n");
        let machine = fake.machine();
        claim(&machine, &id('a'), "0-1");
        end(&machine, &id('a'));
        assert_eq!(fake.get("proc/irq/default_smp_affinity"), "0000000e");
    }

    #[test]
    fn nothing_changes_when_something_cannot() {
        let fake = Fake::new("f\n");
        let machine = fake.machine();
        let beyond = machine.take_from_interrupts(&id('a'), &set("7"), &mut Claim::default());
        assert!(matches!(beyond, Err(TuneError::Mask(_))), "{beyond:?}");
        assert_eq!(fake.get("proc/irq/default_smp_affinity"), "f");
        assert!(matches!(machine.check_governor(&set("1"), "ondemand"), Err(TuneError::Governor { cpu: 1, .. })));
        assert!(matches!(machine.check_governor(&set("9"), "performance"), Err(TuneError::File { .. })));
        machine.check_governor(&set("0-3"), "performance").expect("available");
        machine.set_governor(&set("2"), "performance").expect("set");
        let claim = Claim { cpus: "2".to_owned(), has_governor: true, ..Claim::default() };
        assert_eq!(machine.end_claim(&id('a'), &claim).expect("ends"), None);
        assert_eq!(fake.get(&format!("sys/devices/system/cpu/cpu2/{GOVERNOR}")), "powersave");
    }

    #[test]
    fn a_reboot_gives_irqbalance_its_mask_back() {
        let fake = Fake::new("f\n");
        let machine = fake.machine();
        let original = Path::new("/etc/orig");
        assert!(!machine.restore_irqbalance(original).expect("notes"), "the first start only notes");
        assert_eq!(fake.get("etc/orig"), "0");
        claim(&machine, &id('a'), "1");
        assert!(!machine.restore_irqbalance(original).expect("looks"), "a claim is there: no reboot");
        assert_eq!(fake.get("etc/irqbalance"), "# options\nIRQBALANCE_BANNED_CPUS=\"00000002\"");
        fake.put("proc/irq/default_smp_affinity", "f\n");
        assert!(machine.restore_irqbalance(original).expect("restores"));
        assert_eq!(fake.get("etc/irqbalance"), "# options\nIRQBALANCE_BANNED_CPUS=\"0\"");
        fs::remove_file(fake.0.path().join("etc/irqbalance")).expect("removed");
        assert!(!machine.restore_irqbalance(original).expect("nothing to do"));
    }
}
