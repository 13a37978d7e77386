//! What happens to the node's CPUs when a container with CPUs of its own starts, and when it has ended.
//!
//! The start of the container fails with the first step that does; its end, which comes then, takes back the others.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use domain::cpus::CpuSet;
use domain::id::ContainerId;
use domain::spec::{CgroupManagerKind, CgroupParent, CgroupVersion, Interrupts, Tuning, has_whole_cpus};
use oci_spec::runtime::LinuxResources;
use runtime_client::program;

use crate::blocking;
use crate::container::Container;
use crate::handler::cpus_of;
use crate::node::Node;
use crate::tuning::{Claim, TuneError, read, write};
use crate::undo::chain;

const IRQBALANCE: &str = "irqbalance";
/// The cgroup within the container's for the CPUs that are its alone; the program moves its own threads there.
const OWN_CPUS_CGROUP: &str = "cgroup-child";
const EXCLUSIVE: &str = "cpuset.cpus.exclusive";
const PARTITION: &str = "cpuset.cpus.partition";
/// The kernel's default, where a spec gives a quota and no period.
const DEFAULT_PERIOD_US: u64 = 100_000;

fn cgroup(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TuneError {
    TuneError::Cgroup(error.into())
}

/// What one container's start needs to know.
struct Job<'a> {
    container: &'a Container,
    tuning: &'a Tuning,
    resources: LinuxResources,
    /// With the shared ones.
    cpus: CpuSet,
    shared: CpuSet,
    parent: CgroupParent,
    /// Whether the pod has a cgroup of its own, which is then ours to change.
    has_pod_cgroup: bool,
}

impl Node {
    /// Does to the node what the annotations of its pod ask for a container that is about to start.
    pub(crate) async fn tune(&self, container: &Container) -> Result<(), TuneError> {
        let sandbox = self.objects.sandbox(&container.sandbox).filter(|_| !container.is_infra());
        let Some(sandbox) = sandbox else { return Ok(()) };
        let tuning = self.tuning(&sandbox, &container.config.metadata.name)?;
        let Some(tuning) = tuning.filter(|tuning| !tuning.is_idle()) else { return Ok(()) };
        let resources = self.resources_in_spec(container).await?;
        let given_parent = &sandbox.config.cgroup_parent;
        if !has_whole_cpus(given_parent, &resources) {
            tracing::info!(container.id = %container.id, "the container has no whole CPUs to itself, none are tuned");
            return Ok(());
        }
        let cpus = resources.cpu().as_ref().and_then(|cpu| cpu.cpus().clone()).unwrap_or_default();
        let shared = cpus_of(self.config.runtime.shared_cpuset.as_ref()).unwrap_or_default();
        let job = Job {
            container,
            tuning: &tuning,
            resources,
            cpus: CpuSet::parse(&cpus).map_err(cgroup)?,
            shared: if tuning.has_shared_cpus { shared } else { CpuSet::EMPTY },
            parent: CgroupParent::parse(self.cgroups.kind(), given_parent).map_err(cgroup)?,
            has_pod_cgroup: !given_parent.is_empty(),
        };
        let _tuning = self.tuning_lock.lock().await;
        self.apply(&job).await
    }

    async fn resources_in_spec(&self, container: &Container) -> Result<LinuxResources, TuneError> {
        let directory = container.directory.clone();
        blocking::run("read resources", move || {
            let spec = state_store::spec::load_spec(&directory)?.ok_or("its config.json is missing")?;
            Ok(serde_json::from_value(spec.linux.resources)?)
        })
        .await
        .map_err(TuneError::Spec)
    }

    async fn apply(&self, job: &Job<'_>) -> Result<(), TuneError> {
        let (id, tuning, machine) = (&job.container.id, job.tuning, &self.machine);
        let needs_cpus = tuning.has_no_load_balancing
            || tuning.interrupts != Interrupts::Balanced
            || tuning.resume_latency.is_some()
            || tuning.governor.is_some();
        if needs_cpus && job.cpus.is_empty() {
            return Err(TuneError::NoCpus);
        }
        if let Some(governor) = &tuning.governor {
            machine.check_governor(&job.cpus, governor)?;
        }
        let mut claim = Claim {
            cpus: job.cpus.to_string(),
            has_resume_latency: tuning.resume_latency.is_some(),
            has_governor: tuning.governor.is_some(),
            ..Claim::default()
        };
        machine.save_claim(id, &claim)?;
        if !job.shared.is_empty() {
            self.share(job, &mut claim)?;
        }
        if tuning.has_no_load_balancing {
            tracing::info!(container.id = %id, cpus = %job.cpus, "taking CPUs out of load balancing");
            self.stop_balancing(job, &mut claim)?;
        }
        let interrupted = job.cpus.difference(&tuning.housekeeping(&job.cpus, &self.facts));
        if tuning.interrupts != Interrupts::Balanced {
            tracing::info!(container.id = %id, cpus = %interrupted, "taking CPUs from interrupts");
            let banned = machine.take_from_interrupts(id, &interrupted, &mut claim)?;
            self.tell_irqbalance(&banned).await;
        }
        if tuning.has_no_quota {
            tracing::info!(container.id = %id, "lifting the CPU quota");
            if job.has_pod_cgroup {
                self.write_pod_quota(&job.parent, None)?;
            }
            self.write_container_quota(job, None)?;
        }
        if let Some(latency) = &tuning.resume_latency {
            machine.set_resume_latency(&job.cpus, latency)?;
        }
        if let Some(governor) = &tuning.governor {
            machine.set_governor(&job.cpus, governor)?;
        }
        Ok(())
    }

    /// Takes back what a container's start did to the node. Without a claim there is nothing.
    pub(crate) async fn untune(&self, id: &ContainerId) -> Result<(), TuneError> {
        let Some(claim) = self.machine.load_claim(id)? else { return Ok(()) };
        let _tuning = self.tuning_lock.lock().await;
        let mut done = self.give_cgroups_back(id, &claim);
        match self.machine.end_claim(id, &claim) {
            Ok(Some(banned)) => self.tell_irqbalance(&banned).await,
            Ok(None) => {}
            Err(error) => done = done.and(Err(error)),
        }
        // A claim that could not be ended whole is ended with the next try, or with the next start of the daemon.
        done.and_then(|()| self.machine.forget_claim(id))
    }

    /// Ends the claims of containers that no longer exist, and gives irqbalance its own mask back after a reboot.
    pub(crate) async fn restore_tuning(&self) {
        for id in self.machine.claimants() {
            if self.objects.container(&id).is_none()
                && let Err(error) = self.untune(&id).await
            {
                tracing::error!(container.id = %id, error = %chain(&error), "what a container has changed of the node's CPUs stays");
            }
        }
        let original = &self.config.runtime.irqbalance_config_restore_file;
        if original.is_empty() || original == "disable" {
            return;
        }
        match self.machine.restore_irqbalance(Path::new(original)) {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!("irqbalance gets the banned CPUs back that it had before any container");
                self.restart_irqbalance().await;
            }
            Err(error) => tracing::warn!(error = %chain(&error), "restoring irqbalance's banned CPUs failed"),
        }
    }

    /// A failure is only told: interrupts go where the kernel's mask says, and irqbalance follows when it starts anew.
    async fn tell_irqbalance(&self, banned: &str) {
        if self.machine.irqbalance_config().is_some() && self.restart_irqbalance().await {
            return;
        }
        let Some(path) = program::find(IRQBALANCE) else {
            tracing::warn!("irqbalance is not installed");
            return;
        };
        let variable = format!("IRQBALANCE_BANNED_CPUS={banned}");
        if let Err(error) = program::run(&path, &[OsStr::new("--oneshot")], &[&variable]).await {
            tracing::warn!(error = %chain(&error), "balancing interrupts once failed");
        }
    }

    async fn restart_irqbalance(&self) -> bool {
        let Some(systemctl) = program::find("systemctl") else { return false };
        let arguments = |verb: &'static str| [OsStr::new(verb), OsStr::new(IRQBALANCE)];
        let is_enabled = program::run(&systemctl, &arguments("is-enabled"), &[]).await;
        if !is_enabled.is_ok_and(|printed| printed.trim() == "enabled") {
            return false;
        }
        match program::run(&systemctl, &arguments("restart"), &[]).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "restarting irqbalance failed");
                false
            }
        }
    }

    /// Room for the shared CPUs in the quotas, and on v2 a cgroup for those that are the container's alone.
    fn share(&self, job: &Job<'_>, claim: &mut Claim) -> Result<(), TuneError> {
        let cpu = job.resources.cpu().clone().unwrap_or_default();
        let period = cpu.period().unwrap_or(DEFAULT_PERIOD_US);
        let micros = |cpus: &CpuSet| i64::try_from(cpus.len() as u64 * period).unwrap_or(i64::MAX);
        if cpu.quota().is_some_and(|quota| quota > 0) {
            if job.has_pod_cgroup
                && let Some(quota) = self.pod_quota(&job.parent)?
            {
                claim.pod_quota_us = micros(&job.shared);
                job.container.cgroup_parent.clone_into(&mut claim.cgroup_parent);
                self.machine.save_claim(&job.container.id, claim)?;
                self.write_pod_quota(&job.parent, Some(quota.saturating_add(claim.pod_quota_us)))?;
            }
            self.write_container_quota(job, Some(micros(&job.cpus)))?;
        }
        if self.cgroups.version() == CgroupVersion::V2 {
            let inner = self.inner_cgroup(job)?;
            write(&inner.join("cgroup.subtree_control"), "+cpu +cpuset")?;
            let child = inner.join(OWN_CPUS_CGROUP);
            match std::fs::create_dir(&child) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(TuneError::File { action: "create", path: child, source });
                }
                _ => {}
            }
            write(&child.join("cpuset.cpus"), &job.cpus.difference(&job.shared).to_string())?;
        }
        Ok(())
    }

    /// The directory in which the container's first process is: crun makes one within the container's.
    fn inner_cgroup(&self, job: &Job<'_>) -> Result<PathBuf, TuneError> {
        let path = job.parent.container_directory(job.container.id.as_str());
        let directory = self.cgroups.layout().directory("cpuset", &path);
        let directory = directory.ok_or_else(|| cgroup("there is no cpuset controller"))?;
        let inner = directory.join("container");
        Ok(if inner.is_dir() { inner } else { directory })
    }

    fn stop_balancing(&self, job: &Job<'_>, claim: &mut Claim) -> Result<(), TuneError> {
        let inner = self.inner_cgroup(job)?;
        if self.cgroups.version() == CgroupVersion::V1 {
            // The kubelet sees to the cgroups above, which must not balance these CPUs either. Source: CRI-O.
            return write(&inner.join("cpuset.sched_load_balance"), "0");
        }
        let own = job.cpus.difference(&job.shared);
        let directory = self.cgroups.layout().directory("cpuset", &job.parent.directory());
        let directory = directory.ok_or_else(|| cgroup("there is no cpuset controller"))?;
        let root = self.cgroups.layout().unified().unwrap_or(Path::new("/")).to_owned();
        claim.lenders = lenders(&root, &directory, &inner, !job.shared.is_empty());
        claim.exclusive = own.to_string();
        self.machine.save_claim(&job.container.id, claim)?;
        isolate(&claim.lenders, &own)
    }

    fn give_cgroups_back(&self, id: &ContainerId, claim: &Claim) -> Result<(), TuneError> {
        let mut done = Ok(());
        if !claim.lenders.is_empty() {
            done = CpuSet::parse(&claim.exclusive).map_err(cgroup).and_then(|cpus| unisolate(&claim.lenders, &cpus));
        }
        if claim.pod_quota_us > 0 {
            let lowered =
                CgroupParent::parse(self.cgroups.kind(), &claim.cgroup_parent).map_err(cgroup).and_then(|parent| {
                    match self.pod_quota(&parent)? {
                        Some(quota) if quota > claim.pod_quota_us => {
                            self.write_pod_quota(&parent, Some(quota - claim.pod_quota_us))
                        }
                        _ => Ok(()),
                    }
                });
            if let Err(error) = lowered {
                // The pod's cgroup may be gone before its container's end is seen.
                tracing::debug!(container.id = %id, error = %chain(&error), "a pod's quota stays raised");
            }
        }
        done
    }

    /// The cgroups of a container that may have a quota; crun has it in the inner one. Some runtimes cannot lift one.
    fn write_container_quota(&self, job: &Job<'_>, quota: Option<i64>) -> Result<(), TuneError> {
        let path = job.parent.container_directory(job.container.id.as_str());
        let outer = self.quota_file(&path)?;
        let inner = self.quota_file(&format!("{path}/container"))?;
        self.write_quota(path.rsplit('/').next().unwrap_or_default(), &outer, quota)?;
        if inner.exists() { write(&inner, &self.quota_text(quota)) } else { Ok(()) }
    }

    fn quota_file(&self, path: &str) -> Result<PathBuf, TuneError> {
        let directory = self.cgroups.layout().directory("cpu", path);
        let directory = directory.ok_or_else(|| cgroup("there is no cpu controller"))?;
        Ok(directory.join(match self.cgroups.version() {
            CgroupVersion::V1 => "cpu.cfs_quota_us",
            CgroupVersion::V2 => "cpu.max",
        }))
    }

    fn quota_text(&self, quota: Option<i64>) -> String {
        match (quota, self.cgroups.version()) {
            (Some(quota), _) => quota.to_string(),
            (None, CgroupVersion::V1) => "-1".to_owned(),
            (None, CgroupVersion::V2) => "max".to_owned(),
        }
    }

    /// Microseconds a period; `None` is unlimited.
    fn pod_quota(&self, parent: &CgroupParent) -> Result<Option<i64>, TuneError> {
        let text = read(&self.quota_file(&parent.directory())?)?;
        let quota = text.split_ascii_whitespace().next().and_then(|word| word.parse::<i64>().ok());
        Ok(quota.filter(|quota| *quota > 0))
    }

    fn write_pod_quota(&self, parent: &CgroupParent, quota: Option<i64>) -> Result<(), TuneError> {
        let path = parent.directory();
        self.write_quota(path.rsplit('/').next().unwrap_or_default(), &self.quota_file(&path)?, quota)
    }

    fn write_quota(&self, unit: &str, file: &Path, quota: Option<i64>) -> Result<(), TuneError> {
        // systemd would write its own value again with its next change of the unit.
        if self.cgroups.kind() == CgroupManagerKind::Systemd {
            let period = self.period(file)?;
            let a_second = quota.and_then(|quota| u64::try_from(quota).ok());
            let a_second = a_second.map(|quota| quota.saturating_mul(1_000_000) / period);
            ::cgroup::systemd::set_cpu_quota(unit, a_second).map_err(cgroup)?;
        }
        write(file, &self.quota_text(quota))
    }

    fn period(&self, quota_file: &Path) -> Result<u64, TuneError> {
        let text = match self.cgroups.version() {
            CgroupVersion::V1 => read(&quota_file.with_file_name("cpu.cfs_period_us"))?,
            CgroupVersion::V2 => read(quota_file)?,
        };
        let period = text.split_ascii_whitespace().last().and_then(|word| word.parse::<u64>().ok());
        Ok(period.filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD_US))
    }
}

/// The cgroups through which CPUs come to a container, outermost first. The last one becomes a partition.
fn lenders(root: &Path, pod: &Path, inner: &Path, has_shared: bool) -> Vec<PathBuf> {
    let within = inner.strip_prefix(root).unwrap_or(Path::new(""));
    let mut all: Vec<PathBuf> =
        within.ancestors().filter(|path| !path.as_os_str().is_empty()).map(|path| root.join(path)).collect();
    all.reverse();
    debug_assert!(inner.starts_with(pod), "a container's cgroup is within its pod's");
    if has_shared {
        all.push(inner.join(OWN_CPUS_CGROUP));
    }
    all
}

/// Makes the last cgroup a partition of its own, whose CPUs the scheduler does not balance.
///
/// Source: the kernel's admin-guide/cgroup-v2.rst, remote partitions (Linux 6.7): every cgroup on the way lends the CPUs.
fn isolate(lenders: &[PathBuf], cpus: &CpuSet) -> Result<(), TuneError> {
    for directory in lenders {
        let file = directory.join(EXCLUSIVE);
        let before = match read(&file) {
            Err(TuneError::File { source, .. })
                if source.kind() == io::ErrorKind::NotFound && directory.join("cpuset.cpus").exists() =>
            {
                return Err(TuneError::Partition(format!(
                    "this kernel cannot take the CPUs of a container out of load balancing: it has no {EXCLUSIVE} (Linux 6.7)"
                )));
            }
            before => CpuSet::parse(&before?).map_err(cgroup)?,
        };
        write(&file, &before.union(cpus).to_string())?;
    }
    let Some(last) = lenders.last() else { return Ok(()) };
    write(&last.join(PARTITION), "isolated")?;
    let said = read(&last.join(PARTITION))?;
    if said.contains("invalid") {
        return Err(TuneError::Partition(format!("the kernel refuses to isolate CPUs {cpus}: {}", said.trim())));
    }
    Ok(())
}

/// Takes it back, innermost first. Cgroups that are gone have given their CPUs back by themselves.
fn unisolate(lenders: &[PathBuf], cpus: &CpuSet) -> Result<(), TuneError> {
    let unless_gone = |done: Result<(), TuneError>| match done {
        Err(TuneError::File { source, .. })
            if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc_enodev()) =>
        {
            Ok(())
        }
        done => done,
    };
    if let Some(last) = lenders.last() {
        unless_gone(write(&last.join(PARTITION), "member"))?;
    }
    for directory in lenders.iter().rev() {
        let file = directory.join(EXCLUSIVE);
        unless_gone(read(&file).and_then(|before| {
            let rest = CpuSet::parse(&before).map_err(cgroup)?.difference(cpus);
            // An empty write is none to the kernel.
            write(&file, &format!("{rest}\n"))
        }))?;
    }
    Ok(())
}

/// What reading and writing answer when the cgroup went away while its file was open.
const fn libc_enodev() -> i32 {
    rustix::io::Errno::NODEV.raw_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn cpus_are_lent_all_the_way_down_and_given_back() {
        let root = tempfile::tempdir().expect("a directory");
        let pod = root.path().join("kubepods.slice/kubepods-pod1.slice");
        let inner = pod.join("crio-x.scope/container");
        std::fs::create_dir_all(inner.join(OWN_CPUS_CGROUP)).expect("directories");
        let all = lenders(root.path(), &pod, &inner, true);
        let names: Vec<_> = all.iter().map(|path| path.file_name().expect("a name").to_str().expect("text")).collect();
        assert_eq!(names, ["kubepods.slice", "kubepods-pod1.slice", "crio-x.scope", "container", OWN_CPUS_CGROUP]);
        assert_eq!(lenders(root.path(), &pod, &inner, false).len(), 4);

        let own = CpuSet::parse("2-3").expect("a list");
        File::create(all[0].join("cpuset.cpus")).expect("a file");
        let refused = isolate(&all, &own).expect_err("an old kernel");
        assert!(refused.to_string().contains("Linux 6.7"), "{refused}");
        for directory in &all {
            File::create(directory.join(EXCLUSIVE)).expect("a file");
            File::create(directory.join(PARTITION)).expect("a file");
        }
        write(&all[0].join(EXCLUSIVE), "7\n").expect("written");
        isolate(&all, &own).expect("isolates");
        let exclusive =
            || all.iter().map(|path| read(&path.join(EXCLUSIVE)).expect("read").trim().to_owned()).collect::<Vec<_>>();
        assert_eq!(exclusive(), ["2-3,7", "2-3", "2-3", "2-3", "2-3"]);
        assert_eq!(read(&all[4].join(PARTITION)).expect("read"), "isolated");
        std::fs::remove_dir_all(&inner).expect("gone");
        unisolate(&all, &own).expect("gives back");
        assert_eq!(read(&all[0].join(EXCLUSIVE)).expect("read"), "7\n");
        assert_eq!(read(&all[2].join(EXCLUSIVE)).expect("read"), "\n");
    }
}
