//! Between a mounted root and a bundle the runtime can take: users, mounts, files, the runtime spec.
//!
//! Blocking throughout. Whatever is looked up or made inside the root is resolved beneath its handle, so that nothing an
//! image contains leads out of it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use domain::apparmor::ApparmorName;
use domain::container::ContainerConfig;
use domain::id::ContainerId;
use domain::id_maps::RootOwner;
use domain::resources::Resources;
use domain::selinux::Labels;
use domain::spec::annotations::{ContainerFacts, container_annotations};
use domain::spec::{
    ContainerInputs, CpuInputs, Edits, GeneratedFiles, NamespacePaths, ResolvedDevice, ResolvedMount, Tuning, Workload,
    container_spec, wanted_capabilities,
};
use domain::user::{ResolvedUser, UserRequest, resolve_user};
use durable::beneath::{Links, Root};
use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{AtFlags, FileType, Gid, OFlags, Uid};

use crate::create_container::CreateContainerError;
use crate::handler::Handler;
use crate::image::LocalImage;
use crate::limits::limits_of;
use crate::mounts;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::seccomp_notifier::Action;
use crate::user_files::{self, UserFile};
use crate::userns;
use crate::volumes::ImageVolume;
use crate::working_directory::leads_into_process;

/// The CRI's `user_specified_image`, which CRI-O does not keep and does not miss.
pub(crate) const USER_SPECIFIED_IMAGE: &str = "io.kubernetes.cri-o.UserSpecifiedImage";

/// What preparation leaves for the runtime.
pub(crate) struct Prepared {
    pub(crate) directory: PathBuf,
    pub(crate) bundle: PathBuf,
    pub(crate) user: ResolvedUser,
    pub(crate) created: domain::time::Timestamp,
    pub(crate) limits: Resources,
    /// Its filter hands refused calls to the daemon.
    pub(crate) notifier: Option<Action>,
}

/// The blocking part between mount and runtime.
pub(crate) struct PrepareJob {
    pub(crate) id: ContainerId,
    pub(crate) name: String,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) config: ContainerConfig,
    pub(crate) devices: Vec<ResolvedDevice>,
    pub(crate) edits: Edits,
    pub(crate) image: LocalImage,
    pub(crate) log: PathBuf,
    pub(crate) target_pid: Option<i32>,
    pub(crate) image_volumes: Vec<ImageVolume>,
    pub(crate) apparmor: Option<ApparmorName>,
    pub(crate) handler: Arc<Handler>,
    pub(crate) tuning: Option<Tuning>,
    pub(crate) labels: Option<Labels>,
    pub(crate) seccomp_artifact: Option<Vec<u8>>,
    pub(crate) directory: PathBuf,
    pub(crate) bundle: PathBuf,
    pub(crate) created: domain::time::Timestamp,
    pub(crate) rootfs: PathBuf,
}

impl PrepareJob {
    pub(crate) fn run(self, node: &Node) -> Result<Prepared, CreateContainerError> {
        let container = || self.name.clone();
        let root = Root::open(&self.rootfs).map_err(|source| self.root_error("open", Path::new("/"), source))?;
        self.check_places(&root)?;
        let read = |path: &'static str| {
            user_files::read(&root, path).map_err(|source| self.root_error("read", Path::new(path), source))
        };
        let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
        let security = &self.config.security;
        let request = UserRequest {
            run_as_user: security.run_as_user,
            run_as_username: &security.run_as_username,
            run_as_group: security.run_as_group,
            supplemental_groups: &security.supplemental_groups,
            policy: security.supplemental_groups_policy,
        };
        let user = resolve_user(&request, &self.image.config.user, &passwd.bytes, &group.bytes)
            .and_then(|user| {
                let maps = self.sandbox.id_maps.as_ref();
                node.user_inside(user, &self.sandbox.config, maps, &passwd.bytes, &group.bytes)
            })
            .map_err(|source| CreateContainerError::User { container: container(), source })?;
        let volumes = self.make_directories(node, &root, &user)?;
        let failed = |source| CreateContainerError::NodeFiles { container: container(), source: Box::new(source) };
        let copies = self.node_files(node, &root).map_err(failed)?;
        let mut mounts = mounts::resolve_mounts(&node.config, &self.config.mounts, &self.sandbox.handler.facts)
            .map_err(|source| CreateContainerError::Mounts { container: container(), source: Box::new(source) })?;
        let images = node
            .mount_volumes(&self.id, &self.image_volumes, &self.sandbox.handler.facts, self.sandbox.id_maps.as_ref())
            .map_err(|source| CreateContainerError::ImageVolume(Box::new(source)))?;
        mounts.extend(images);
        self.make_log_directory()?;
        let localtime = self.localtime(node, &root).map_err(failed)?;
        let files = GeneratedFiles { localtime, ..self.generate_files(&user, &passwd, &group)? };
        let selinux = self.label(&files, &mounts, &volumes)?;
        let further: Vec<ResolvedMount> = volumes.into_iter().chain(copies).collect();
        let (seccomp, notifier) = node.notifying_filter(&self.sandbox, &self.id, self.seccomp(node)?);
        let rootfs = self.rootfs.display().to_string();
        let inputs = ContainerInputs {
            id: &self.id,
            config: &self.config,
            sandbox: &self.sandbox.config,
            image: &self.image.config,
            user: &user,
            node: &node.facts,
            defaults: &node.spec_defaults,
            handler: &self.sandbox.handler.facts,
            hostname: &self.sandbox.hostname,
            cgroup: &node.cgroups.placement(&self.sandbox.config.cgroup_parent),
            namespaces: &self.namespaces(),
            id_maps: self.sandbox.id_maps.as_ref(),
            files: &files,
            rootfs: &rootfs,
            mounts: &mounts,
            further_mounts: &further,
            devices: &self.devices,
            edits: &self.edits,
            pod_annotations: &self.sandbox.effective_annotations(),
            cpus: self.cpus(node),
            seccomp: seccomp.as_deref(),
            apparmor: self.apparmor.as_ref(),
            selinux: &selinux,
            annotations: self.annotations(node, &rootfs),
        };
        let assembled = container_spec(inputs)
            .map_err(|source| CreateContainerError::Spec { container: container(), source: Box::new(source) })?;
        node.say_once(&assembled.clamped);
        let limits = assembled.spec.linux().as_ref().and_then(|linux| serde_json::to_value(linux.resources()).ok());
        let score = assembled.spec.process().as_ref().and_then(oci_spec::runtime::Process::oom_score_adj);
        let limits = limits_of(&limits.unwrap_or_default(), score.map(i64::from));
        let json =
            assembled.to_json().map_err(|source| CreateContainerError::SpecJson { container: container(), source })?;
        for directory in [&self.directory, &self.bundle] {
            state_store::spec::save_spec(directory, &json)
                .map_err(|source| CreateContainerError::Record { container: container(), source })?;
        }
        // Devices may come with groups of their own; what is reported is what the process has.
        let groups = assembled.spec.process().as_ref().and_then(|process| process.user().additional_gids().clone());
        let user = ResolvedUser { additional_gids: groups.unwrap_or_default(), ..user };
        Ok(Prepared { directory: self.directory, bundle: self.bundle, user, created: self.created, limits, notifier })
    }

    fn cpus<'a>(&'a self, node: &'a Node) -> CpuInputs<'a> {
        let runtime = &node.config.runtime;
        CpuInputs {
            workload: Workload::of(&node.workloads, &self.sandbox.config.annotations),
            tuning: self.tuning.as_ref(),
            shared: runtime.shared_cpuset.as_ref().map_or("", config::CpuSet::as_str),
            exec: self.handler.exec_cpu,
            gomaxprocs_floor: runtime.min_injected_gomaxprocs,
        }
    }

    /// The filter of the container, made for the capabilities it will have.
    fn seccomp(&self, node: &Node) -> Result<Option<Arc<LinuxSeccomp>>, CreateContainerError> {
        let security = &self.config.security;
        let capabilities = if security.privileged {
            node.facts.bounding
        } else {
            wanted_capabilities(&security.capabilities, &node.spec_defaults.capabilities)
                .map_err(|source| CreateContainerError::Spec {
                    container: self.name.clone(),
                    source: Box::new(source),
                })?
                .and(node.facts.bounding)
        };
        let handler = self.sandbox.handler.seccomp_profile.as_deref();
        let resolved = match &self.seccomp_artifact {
            Some(profile) => node.seccomp.resolve_bytes(profile, capabilities),
            None => node.seccomp.resolve(security.seccomp.as_ref(), security.privileged, capabilities, handler),
        };
        resolved
            .map_err(|source| CreateContainerError::Seccomp { container: self.name.clone(), source: Box::new(source) })
    }

    fn root_error(&self, action: &'static str, path: &Path, source: io::Error) -> CreateContainerError {
        CreateContainerError::Root { container: self.name.clone(), action, path: path.to_owned(), source }
    }

    /// Runtimes mount on these and then make nodes and links below them by their names, on the node where the image has a
    /// link there: runc 1.1.5 makes `/dev/ptmx` wherever `/dev` leads to.
    fn check_places(&self, root: &Root) -> Result<(), CreateContainerError> {
        for place in ["dev", "proc", "sys"] {
            let found = match rustix::fs::statat(root.as_fd(), place, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => found,
                Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => return Err(self.root_error("look at", &Path::new("/").join(place), error.into())),
            };
            if !FileType::from_raw_mode(found.st_mode).is_dir() {
                return Err(CreateContainerError::Place { container: self.name.clone(), place });
            }
        }
        Ok(())
    }

    /// The directories of the image's VOLUME lines and its working directory, and the customary `/etc/mtab`.
    ///
    /// Returns the mounts of volumes that are directories of the node (`image_volumes = "bind"`).
    fn make_directories(
        &self,
        node: &Node,
        root: &Root,
        user: &ResolvedUser,
    ) -> Result<Vec<ResolvedMount>, CreateContainerError> {
        let mut mounts = Vec::new();
        let owner = self.sandbox.root_owner();
        for (number, volume) in self.image.config.volumes.iter().enumerate() {
            if self.config.mounts.iter().any(|mount| mount.container_path == *volume) {
                continue;
            }
            match node.config.image.image_volumes {
                config::ImageVolumes::Ignore => {}
                config::ImageVolumes::Mkdir => make_directory(root, Path::new(volume), self.sandbox.owner(user))
                    .map_err(|source| self.root_error("create volume", Path::new(volume), source))?,
                config::ImageVolumes::Bind => mounts.push(self.bind_volume(number, volume)?),
            }
        }
        let cwd = domain::spec::process_cwd(&self.config, &self.image.config)
            .map_err(|source| CreateContainerError::Spec { container: self.name.clone(), source: Box::new(source) })?;
        if let Some(place) = leads_into_process(root, Path::new(&cwd)) {
            return Err(CreateContainerError::WorkingDirectory {
                container: self.name.clone(),
                path: cwd.into(),
                place,
            });
        }
        make_directory(root, Path::new(&cwd), owner)
            .map_err(|source| self.root_error("create working directory", Path::new(&cwd), source))?;
        link_mtab(root, owner).map_err(|source| self.root_error("link", Path::new("/etc/mtab"), source))?;
        Ok(mounts)
    }

    /// A directory beside the bundle for one volume. Its name is a number: the volume's own is the image's to choose.
    fn bind_volume(&self, number: usize, volume: &str) -> Result<ResolvedMount, CreateContainerError> {
        let path = self.bundle.join("mounts").join(number.to_string());
        let made = std::fs::create_dir_all(&path).and_then(|()| userns::give(&path, self.sandbox.root_owner()));
        made.map_err(|source| CreateContainerError::File { container: self.name.clone(), path: path.clone(), source })?;
        Ok(ResolvedMount {
            destination: volume.to_owned(),
            source: path.display().to_string(),
            ..ResolvedMount::default()
        })
    }

    fn make_log_directory(&self) -> Result<(), CreateContainerError> {
        let Some(parent) = self.log.parent() else { return Ok(()) };
        std::fs::create_dir_all(parent).map_err(|source| CreateContainerError::File {
            container: self.name.clone(),
            path: parent.to_owned(),
            source,
        })
    }

    /// A passwd and a group with a line for whoever the image does not know.
    fn generate_files(
        &self,
        user: &ResolvedUser,
        passwd: &UserFile,
        group: &UserFile,
    ) -> Result<GeneratedFiles, CreateContainerError> {
        let home = user.home.clone().unwrap_or_else(|| "/".to_owned());
        let text = |path: &Path| Some(path.display().to_string());
        let files = &self.sandbox.files;
        let write = |name: &str, file: &UserFile, id: u32, line: Option<String>| {
            let owner = self.sandbox.root_owner();
            // Ids of files are the node's, and those of users are the namespace's.
            let id = owner.is_none().then_some(id);
            let Some(line) = line.filter(|_| !file.is_left_alone(id)) else { return Ok(None) };
            let path = self.bundle.join(name);
            let written = user_files::write(&path, file, &line).and_then(|()| userns::give(&path, owner));
            written.map_err(|source| CreateContainerError::File {
                container: self.name.clone(),
                path: path.clone(),
                source,
            })?;
            Ok(text(&path))
        };
        Ok(GeneratedFiles {
            resolv_conf: text(&files.resolv_conf),
            hostname: text(&files.hostname),
            containerenv: text(&files.containerenv),
            shm: text(&files.shm),
            passwd: write("passwd", passwd, user.uid, user.missing_passwd_line(&home))?,
            group: write("group", group, user.gid, user.missing_group_line())?,
            localtime: None,
        })
    }

    fn annotations(&self, node: &Node, rootfs: &str) -> BTreeMap<String, String> {
        let config = &self.config;
        let sandbox = &self.sandbox;
        let stop_signal = self.image.config.stop_signal.clone();
        let facts = ContainerFacts {
            id: self.id.clone(),
            name: self.name.clone(),
            sandbox_id: sandbox.id.clone(),
            sandbox_name: sandbox.name.clone(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            created: self.created,
            log_path: self.log.display().to_string(),
            image: config.image.image.clone(),
            image_name: self.image.repo_tags.first().cloned().unwrap_or_default(),
            image_id: Some(self.image.id.clone()),
            repo_digests: self.image.repo_digests.clone(),
            has_tty: config.tty,
            has_stdin: config.stdin,
            is_stdin_once: config.stdin_once,
            resolv_path: sandbox.files.resolv_conf.display().to_string(),
            mount_point: rootfs.to_owned(),
            // Nothing is recorded of the profile of an artifact. Source: CRI-O.
            seccomp_profile: match self.seccomp_artifact {
                Some(_) => String::new(),
                None => node.seccomp.reference(config.security.seccomp.as_ref(), config.security.privileged),
            },
            ips: sandbox.ips.iter().map(ToString::to_string).collect(),
            volumes: config.mounts.clone(),
            stop_signal: match config.stop_signal {
                Some(signal) => Some(signal.number().to_string()),
                None => Some(stop_signal).filter(|signal| !signal.is_empty()),
            },
            platform_runtime_path: sandbox
                .handler
                .platform_runtime(&self.image.config)
                .map_or_else(String::new, |path| path.display().to_string()),
        };
        let mut annotations = container_annotations(&facts, &sandbox.config.annotations, node.cgroups.kind());
        if !config.image.user_specified_image.is_empty() {
            annotations.insert(USER_SPECIFIED_IMAGE.to_owned(), config.image.user_specified_image.clone());
        }
        annotations
    }

    fn namespaces(&self) -> NamespacePaths {
        let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let namespaces = &self.sandbox.namespaces;
        let of_process = |pid: i32| format!("/proc/{pid}/ns/pid");
        NamespacePaths {
            network: text(&namespaces.network),
            ipc: text(&namespaces.ipc),
            uts: text(&namespaces.uts),
            user: text(&namespaces.user),
            pid: self.sandbox.infra_pid().map(of_process),
            target_pid: self.target_pid.map(of_process),
        }
    }
}

/// Makes a directory and its parents, every step resolved beneath the root; what is made belongs to `owner`.
fn make_directory(root: &Root, path: &Path, owner: Option<RootOwner>) -> io::Result<()> {
    let mut made = PathBuf::from("/");
    for component in path.components() {
        let std::path::Component::Normal(name) = component else { continue };
        let parent = root.open_beneath(&made, OFlags::PATH | OFlags::DIRECTORY, 0, Links::InRoot)?;
        match rustix::fs::mkdirat(parent.as_fd(), name, rustix::fs::Mode::from_raw_mode(0o755)) {
            Ok(()) => give_at(parent.as_fd(), Path::new(name), owner)?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        made.push(name);
    }
    match root.open_beneath(&made, OFlags::PATH | OFlags::DIRECTORY, 0, Links::InRoot) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(io::Error::new(error.kind(), "what the image has there is not a directory"))
        }
        result => result.map(drop),
    }
}

/// Programs that print mounts read `/etc/mtab`. Source: CRI-O.
fn link_mtab(root: &Root, owner: Option<RootOwner>) -> io::Result<()> {
    let etc = match root.open_beneath(Path::new("/etc"), OFlags::PATH | OFlags::DIRECTORY, 0, Links::InRoot) {
        Ok(etc) => etc,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(error),
    };
    match rustix::fs::symlinkat("/proc/mounts", etc.as_fd(), "mtab") {
        Ok(()) => give_at(etc.as_fd(), Path::new("mtab"), owner),
        Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn give_at(directory: BorrowedFd<'_>, name: &Path, owner: Option<RootOwner>) -> io::Result<()> {
    let Some(owner) = owner else { return Ok(()) };
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    Ok(rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}
