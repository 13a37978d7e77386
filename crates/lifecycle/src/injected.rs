//! What files of the node's other programs add to a container: its CDI devices.
//!
//! Looked up before anything of the container is made, so that what is not there changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use domain::container::ContainerConfig;
use domain::spec::Edits;

use crate::blocking;
use crate::create_container::CreateContainerError;
use crate::node::Node;

impl Node {
    /// Everything that is added to a container with this request.
    pub(crate) async fn injected(
        self: &Arc<Self>,
        name: &str,
        config: &ContainerConfig,
    ) -> Result<Edits, CreateContainerError> {
        let failed = |source| CreateContainerError::Cdi { container: name.to_owned(), source: Box::new(source) };
        let devices = injection::cdi::requested(&config.cdi_devices, &config.annotations).map_err(failed)?;
        if devices.is_empty() {
            return Ok(Edits::default());
        }
        let node = Arc::clone(self);
        blocking::run("look up CDI devices", move || node.cdi.edits(&devices)).await.map_err(failed)
    }

    /// Looks for CDI devices in other directories from now on. Source: `cdi_spec_dirs`, which a reload may change.
    pub fn follow_cdi(&self, directories: Vec<PathBuf>) {
        self.cdi.set_directories(directories);
        self.cdi.look();
    }
}
