//! The namespaces of a sandbox: which, with what set up in them, and where they are pinned.

use std::sync::Arc;

use domain::id_maps::IdMaps;
use domain::security::NamespaceMode;
use domain::spec::{CheckedSysctls, SysctlNamespace, check_sysctls};
use domain::userns::fit_sysctl;
use sys::namespace::{Kinds, Pins, Wanted};

use crate::node::Node;
use crate::run_sandbox::{Plan, RunSandboxError};
use crate::sandbox::{SandboxNamespaces, pin_name};
use crate::undo::{Undo, Undone};
use crate::{blocking, userns};

impl Node {
    pub(crate) async fn make_namespaces(
        self: &Arc<Self>,
        plan: &Plan,
        id_maps: Option<IdMaps>,
        undo: &mut Undo,
    ) -> Result<SandboxNamespaces, RunSandboxError> {
        let options = &plan.config.security.namespaces;
        let kinds = Kinds {
            net: options.network != NamespaceMode::Node,
            ipc: options.ipc != NamespaceMode::Node,
            uts: options.network != NamespaceMode::Node,
        };
        if !(kinds.net || kinds.ipc || kinds.uts || id_maps.is_some()) {
            return Ok(SandboxNamespaces::default());
        }
        let sysctls = self.sysctls(plan, kinds, id_maps.as_ref());
        let (directory, name) = (self.config.runtime.namespaces_dir.clone(), pin_name(&plan.id));
        let hostname = plan.hostname.clone();
        let (user, pins) = blocking::run("pin namespaces", move || {
            let wanted = Wanted { kinds, hostname: Some(&hostname), sysctls: &sysctls };
            let Some(maps) = id_maps else {
                return sys::namespace::pin(&directory, &name, &wanted).map(|pins| (None, pins));
            };
            let (users, groups) = (userns::ranges(maps.uids()), userns::ranges(maps.gids()));
            let maps = sys::namespace::IdMaps { users: &users, groups: &groups };
            sys::namespace::pin_with_user(&directory, &name, &wanted, &maps).map(|(user, pins)| (Some(user), pins))
        })
        .await
        .map_err(|source| RunSandboxError::Namespaces { sandbox: plan.name.clone(), source: Box::new(source) })?;
        let Pins { net, ipc, uts } = pins;
        let namespaces = SandboxNamespaces { network: net, ipc, uts, user };
        let paths = namespaces.clone();
        undo.push("unpin namespaces", move || {
            let paths = paths.clone();
            async move { unpin(paths).await }
        });
        Ok(namespaces)
    }

    fn sysctls(&self, plan: &Plan, kinds: Kinds, id_maps: Option<&IdMaps>) -> Vec<sys::namespace::Sysctl> {
        let defaults: Vec<(String, String)> = self
            .config
            .runtime
            .default_sysctls
            .iter()
            .map(|sysctl| (sysctl.key().to_owned(), sysctl.value().to_owned()))
            .collect();
        let CheckedSysctls { accepted, skipped } =
            check_sysctls(&defaults, &plan.config.sysctls, !kinds.net, !kinds.ipc);
        for skipped in skipped {
            tracing::warn!(sandbox.id = %plan.id, sysctl = skipped.name, reason = %skipped.reason, "skipping a sysctl");
        }
        let wanted = accepted.into_iter().filter(|sysctl| match sysctl.namespace() {
            SysctlNamespace::Network => kinds.net,
            SysctlNamespace::Ipc => kinds.ipc,
        });
        wanted
            .filter_map(|sysctl| {
                let fitting = id_maps.and_then(|maps| fit_sysctl(sysctl.name(), sysctl.value(), maps));
                let value = fitting.as_deref().unwrap_or(sysctl.value());
                match sys::namespace::Sysctl::parse(&sysctl.path(), value) {
                    Ok(parsed) => Some(parsed),
                    Err(error) => {
                        tracing::warn!(sandbox.id = %plan.id, sysctl = sysctl.name(), %error, "skipping a sysctl");
                        None
                    }
                }
            })
            .collect()
    }
}

/// Unpins whatever is pinned; what is missing is unpinned.
pub(crate) async fn unpin(namespaces: SandboxNamespaces) -> Undone {
    blocking::run("unpin namespaces", move || {
        for path in namespaces.paths() {
            sys::namespace::unpin(path)?;
        }
        Ok(())
    })
    .await
}
