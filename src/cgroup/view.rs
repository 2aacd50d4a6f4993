//! Pure: what a mount of type `cgroup` in the container is made of.
//!
//! As runc has it, with one difference: on a hybrid host the container sees the v2 side as well
//! (runc leaves it out although the processes are in it).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::hierarchies::{Hierarchies, Mode};
use super::plan::{CgroupPlan, Version};

/// How `/sys/fs/cgroup` of the container is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum MountView {
    /// The host has no cgroups.
    None,
    /// Mount `cgroup2` at the destination. With a cgroup namespace its root is the container's
    /// cgroup; without one it is the host's whole tree, so that the paths of /proc/self/cgroup can
    /// be followed.
    V2 {
        /// What to bind instead, where the kernel refuses the mount (EPERM, EBUSY).
        bind: PathBuf,
        /// What to bind where that was not made, for want of permission: the runtime's own cgroup.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        own: Option<PathBuf>,
    },
    /// Mount a tmpfs (`mode=755`) at the destination, and in it:
    V1 {
        /// One directory for each hierarchy.
        entries: Vec<ViewEntry>,
        /// Symbolic links (name, target) for hierarchies of several controllers.
        links: Vec<(String, String)>,
    },
}

/// One directory below the tmpfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewEntry {
    /// Its name: `cpu`, `cpu,cpuacct`, `systemd`, `unified`.
    pub name: String,
    /// The file system to mount with a cgroup namespace: `cgroup` or `cgroup2`. `None` without one:
    /// only the bind shows the container no more than its own cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs: Option<String>,
    /// The data of that mount: `cpu,cpuacct`, `name=systemd`; empty for `cgroup2`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub data: String,
    /// The host's directory to bind without a cgroup namespace, or where the mount is refused.
    pub bind: PathBuf,
    /// The runtime's own cgroup, to bind where the container's was not made for want of permission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<PathBuf>,
}

/// Which cgroup namespace the container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A new one: its root is the container's cgroup.
    Own,
    /// An existing one, whose root is what it was made with.
    Joined,
    /// The runtime's.
    Host,
}

/// What to mount for a mount of type `cgroup`, in a container in that cgroup namespace.
pub fn mount_view(host: &Hierarchies, plan: &CgroupPlan, seen: Seen) -> MountView {
    let cgroup_ns = seen == Seen::Own;
    let own = |mount: &Path, path: &str| {
        plan.lenient
            .then(|| mount.join(path.trim_start_matches('/')))
    };
    let own_v2 = host.v2.as_ref().and_then(|v2| own(&v2.mount, &v2.own));
    if host.mode == Mode::V2 {
        let whole = host.v2.as_ref().map(|v2| v2.mount.clone());
        let made = plan.v2().map(|dir| dir.path.clone());
        // What is bound where the mount is refused is the container's own also in a namespace that it
        // joined: the rest of the host's tree is not what that one shows.
        return match if seen == Seen::Host { whole } else { made } {
            Some(bind) => MountView::V2 { bind, own: own_v2 },
            None => MountView::None,
        };
    }
    let mut entries = Vec::new();
    let mut links = Vec::new();
    for dir in &plan.dirs {
        let (name, fs, data) = match dir.version {
            Version::V1 => {
                let data = dir.controllers.join(",");
                // The mount point's own name, so that the container finds what the host has.
                let name = dir
                    .mount
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned());
                (name.unwrap_or_else(|| data.clone()), "cgroup", data)
            }
            Version::V2 => ("unified".to_string(), "cgroup2", String::new()),
        };
        if dir.version == Version::V1 && dir.controllers.len() > 1 {
            let others = dir
                .controllers
                .iter()
                .filter(|controller| **controller != name);
            links.extend(others.map(|controller| (controller.clone(), name.clone())));
        }
        let fs = cgroup_ns.then(|| fs.to_string());
        entries.push(ViewEntry {
            name,
            fs,
            data,
            bind: dir.path.clone(),
            own: match dir.version {
                Version::V1 => host
                    .v1
                    .iter()
                    .find(|v1| v1.mount == dir.mount)
                    .and_then(|v1| own(&v1.mount, &v1.own)),
                Version::V2 => own_v2.clone(),
            },
        });
    }
    match entries.is_empty() {
        true => MountView::None,
        false => MountView::V1 { entries, links },
    }
}
