//! All that a new instance is made of.

use crate::Error;
use crate::egress::Egress;
use crate::runtime::Runtime;
use crate::sandbox::{Instance, Limits};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Clone)]
pub(crate) struct Recipe {
    pub(crate) runtime: Runtime,
    pub(crate) root: PathBuf,
    /// The guest's configuration.
    pub(crate) env: Arc<Vec<(String, String)>>,
    pub(crate) egress: Egress,
    pub(crate) limits: Limits,
    /// Several requests may be under way at once: then another thread carries them.
    pub(crate) many: bool,
    /// Whether entries of other processes wake the driver.
    pub(crate) watch: bool,
}

impl Recipe {
    pub(crate) async fn instance(&self) -> Result<Instance, Error> {
        let Recipe { runtime, root, env, egress, limits, .. } = self;
        Instance::new(runtime, root, env, egress.for_instance(), *limits).await
    }
}
