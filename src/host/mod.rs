//! Facts about the machine that the planner needs: cheap ones, that decide before the clone.
//!
//! Everything else is tried when its step comes, and degraded there.

use serde::{Deserialize, Serialize};

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
        })
    }
}
