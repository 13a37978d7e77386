//! The node's AppArmor profiles: loaded at the start, looked up before anything is made, changed by a reload.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::Config;
use confinement::apparmor::{DefaultOrigin, LoadProfileError, Machine, Profiles, ResolveProfileError};
use domain::apparmor::ApparmorName;
use domain::security::SecurityProfile;
use durable::Durability;

use crate::blocking;
use crate::node::Node;
use crate::undo::chain;

/// Beside the volatile version file: as long-lived as what the kernel has loaded.
const STAMP: &str = "apparmor-crio-default";

impl Node {
    /// The profile a sandbox or container comes down to, known to be loaded.
    pub(crate) async fn apparmor_profile(
        &self,
        choice: Option<&SecurityProfile>,
        is_privileged: bool,
    ) -> Result<Option<ApparmorName>, ResolveProfileError> {
        let (profiles, choice) = (Arc::clone(&self.apparmor), choice.cloned());
        blocking::run("look up the AppArmor profile", move || profiles.resolve(choice.as_ref(), is_privileged)).await
    }

    /// Takes another default profile; on an error the old one stays.
    pub async fn reload_apparmor(&self, name: &str) -> Result<(), LoadProfileError> {
        let (profiles, name) = (Arc::clone(&self.apparmor), name.to_owned());
        let origin = blocking::run("change the AppArmor profile", move || profiles.reload(&name)).await?;
        tell(&origin);
        save_stamp(&self.config, &self.apparmor);
        Ok(())
    }
}

/// Sees to it that the configured profile is loaded.
pub(crate) fn load(config: &Config) -> Result<Profiles, LoadProfileError> {
    let known = stamp_path(config).and_then(|path| std::fs::read_to_string(path).ok());
    let (profiles, origin) = Profiles::load(Machine::detect(), &config.runtime.apparmor_profile, known.as_deref())?;
    tell(&origin);
    save_stamp(config, &profiles);
    Ok(profiles)
}

fn tell(origin: &DefaultOrigin) {
    match origin {
        DefaultOrigin::Unavailable => tracing::info!("AppArmor is disabled on this node"),
        DefaultOrigin::Unconfined => tracing::info!("the default AppArmor profile is unconfined, as configured"),
        DefaultOrigin::Loaded => tracing::info!("loaded the default AppArmor profile crio-default"),
        DefaultOrigin::StillLoaded => tracing::debug!("the default AppArmor profile crio-default is still loaded"),
        DefaultOrigin::Named(name) => tracing::info!(profile = %name, "using an AppArmor profile that is loaded"),
        DefaultOrigin::FoundWithoutParser => {
            tracing::warn!("this node has no apparmor_parser; the profile crio-default that is loaded is used as it is")
        }
        DefaultOrigin::MissingParser => tracing::warn!(
            "this node has AppArmor but no apparmor_parser to load the profile crio-default: containers that ask for \
             the default profile are refused, those that ask for none run unconfined"
        ),
    }
}

fn stamp_path(config: &Config) -> Option<PathBuf> {
    Some(config.root.version_file.as_deref()?.parent()?.join(STAMP))
}

/// Without it the next start only loads what is loaded already.
fn save_stamp(config: &Config, profiles: &Profiles) {
    let (Some(path), Some(stamp)) = (stamp_path(config), profiles.stamp()) else { return };
    let save = |path: &Path| -> Result<(), Box<dyn std::error::Error>> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        Ok(durable::replace(path, stamp.as_bytes(), 0o600, Durability::Volatile)?)
    };
    if let Err(error) = save(&path) {
        tracing::debug!(error = %chain(&*error), "remembering the loaded AppArmor profile failed");
    }
}
