//! Facts about the machine that the planner needs: cheap ones, that decide before the clone.
//!
//! Everything else is tried when its step comes, and degraded there.

mod lsm;

use serde::{Deserialize, Serialize};

pub use lsm::Lsm;

use crate::cgroup::{self, Hierarchies, Systemd};
use crate::error::Result;

/// What is known about the host. Plain data: golden tests read captured ones from files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// The effective user id of the runtime.
    pub euid: u32,
    /// The runtime is in a user namespace that is not the initial one: its root is not the machine's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user_namespace: bool,
    /// setgroups(2) is denied in that user namespace, as where a user without privileges made it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub setgroups_denied: bool,
    /// The cgroup hierarchies.
    pub cgroups: Hierarchies,
    /// systemd, where it is to manage cgroups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systemd: Option<Systemd>,
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
        let privilege = Privilege::detect();
        Ok(Self {
            euid: privilege.euid,
            user_namespace: privilege.user_namespace,
            setgroups_denied: privilege.setgroups_denied,
            cgroups: cgroup::detect(linux)?,
            systemd: None,
            lsm: Lsm::default(),
        })
    }

    /// The same with the systemd that is to manage cgroups: the system's, or without privileges the
    /// user's.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn with_systemd(mut self, rootless: Option<bool>) -> Result<Self> {
        let user = rootless.unwrap_or(!self.is_real_root());
        self.systemd = Some(Systemd::detect(user)?);
        Ok(self)
    }

    /// The same with the facts about security modules that `spec` asks for.
    pub fn with_lsm(mut self, spec: &oci_spec::runtime::Spec) -> Self {
        self.lsm = Lsm::detect(spec);
        self
    }
}

/// What this process may do with ids and groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Privilege {
    /// The effective user id.
    pub euid: u32,
    /// It is in a user namespace that is not the initial one.
    pub user_namespace: bool,
    /// setgroups(2) is denied in that user namespace.
    pub setgroups_denied: bool,
}

impl Privilege {
    /// Looks at this process.
    pub fn detect() -> Self {
        let user_namespace = in_user_namespace();
        // In the initial one it is always allowed.
        let setgroups_denied = user_namespace
            && std::fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"deny"));
        Self {
            euid: nix::unistd::geteuid().as_raw(),
            user_namespace,
            setgroups_denied,
        }
    }
}

impl Host {
    /// The part of it that is about this process's ids.
    pub fn privilege(&self) -> Privilege {
        Privilege {
            euid: self.euid,
            user_namespace: self.user_namespace,
            setgroups_denied: self.setgroups_denied,
        }
    }

    /// The runtime is the machine's root: in the initial user namespace, with uid 0.
    pub fn is_real_root(&self) -> bool {
        self.euid == 0 && !self.user_namespace
    }
}

/// Whether this process is in a user namespace that is not the initial one: only that one maps all
/// ids to themselves (user_namespaces(7)). Where /proc does not tell, there are none.
pub fn in_user_namespace() -> bool {
    let map = std::fs::read("/proc/self/uid_map").unwrap_or_default();
    is_child_namespace(&String::from_utf8_lossy(&map))
}

fn is_child_namespace(map: &str) -> bool {
    let words: Vec<&str> = map.split_ascii_whitespace().collect();
    !words.is_empty() && words != ["0", "0", "4294967295"]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initial_user_namespace_is_known_by_its_map() {
        assert!(!is_child_namespace("         0          0 4294967295\n"));
        assert!(!is_child_namespace(""), "a kernel without user namespaces");
        assert!(is_child_namespace("0 1000 1\n"));
        assert!(is_child_namespace("0 1000 1\n1 100000 65536\n"));
    }
}
