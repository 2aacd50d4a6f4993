//! Facts about the machine that the planner needs: cheap ones, that decide before the clone.
//!
//! Everything else is tried when its step comes, and degraded there.

mod lsm;

use serde::{Deserialize, Serialize};

pub use lsm::Lsm;

use crate::cgroup::{self, Hierarchies};
use crate::error::Result;

/// What is known about the host. Plain data: golden tests read captured ones from files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// The effective user id of the runtime.
    pub euid: u32,
    /// The cgroup hierarchies.
    pub cgroups: Hierarchies,
    /// Security modules, where config.json asks for a label.
    #[serde(default, skip_serializing_if = "Lsm::is_none")]
    pub lsm: Lsm,
}

impl Host {
    /// Looks at this machine; `linux` tells which of the slower facts are needed.
    ///
    /// # Errors
    /// When /proc or the cgroup mounts cannot be read.
    pub fn detect(linux: Option<&oci_spec::runtime::Linux>) -> Result<Self> {
        Ok(Self {
            euid: nix::unistd::geteuid().as_raw(),
            cgroups: cgroup::detect(linux)?,
            lsm: Lsm::default(),
        })
    }

    /// The same with the facts about security modules that `spec` asks for.
    pub fn with_lsm(mut self, spec: &oci_spec::runtime::Spec) -> Self {
        self.lsm = Lsm::detect(spec);
        self
    }
}
