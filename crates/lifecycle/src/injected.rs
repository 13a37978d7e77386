//! What files of the node's other programs add to a container: its CDI devices and the node's hooks.
//!
//! Looked up before anything of the container is made, so that what is not there changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use domain::container::ContainerConfig;
use domain::image::ImageConfig;
use domain::spec::{Edits, process_args};
use injection::hooks::Subject;

use crate::blocking;
use crate::create_container::CreateContainerError;
use crate::node::Node;
use crate::sandbox::Sandbox;

impl Node {
    /// Everything that is added to a container with this request.
    ///
    /// Hooks come before those of devices, as in CRI-O. Infra containers have neither.
    pub(crate) async fn injected(
        self: &Arc<Self>,
        name: &str,
        config: &ContainerConfig,
        image: &ImageConfig,
        sandbox: &Sandbox,
    ) -> Result<Edits, CreateContainerError> {
        let failed = |source| CreateContainerError::Cdi { container: name.to_owned(), source: Box::new(source) };
        let devices = injection::cdi::requested(&config.cdi_devices, &config.annotations).map_err(failed)?;
        let subject = subject(config, image, sandbox);
        let mut edits = self.classes.edits(name, config, sandbox)?;
        let node = Arc::clone(self);
        blocking::run("look up hooks and CDI devices", move || {
            edits.append(node.hooks.edits(&subject));
            edits.append(node.cdi.edits(&devices)?);
            Ok(edits)
        })
        .await
        .map_err(failed)
    }

    /// Looks for CDI devices in other directories from now on. Source: `cdi_spec_dirs`, which a reload may change.
    pub fn follow_cdi(&self, directories: Vec<PathBuf>) {
        self.cdi.set_directories(directories);
        self.cdi.look();
    }
}

/// What hooks are chosen by: annotations of the container and, over them, of its pod.
fn subject(config: &ContainerConfig, image: &ImageConfig, sandbox: &Sandbox) -> Subject {
    let mut annotations = config.annotations.clone();
    annotations.extend(sandbox.config.annotations.clone());
    // A request without any command is refused when its spec is assembled.
    let command = process_args(&config.command, &config.args, image).unwrap_or_default().into_iter().next();
    Subject { command: command.unwrap_or_default(), annotations, has_bind_mounts: !config.mounts.is_empty() }
}
