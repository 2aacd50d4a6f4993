//! Facts about the machine that the planner needs: cheap ones, that decide before the clone.
//!
//! Everything else is tried when its step comes, and degraded there. What `isorun doctor` finds out
//! beyond that is in [`Probed`]: a plain `run` never asks for it, a captured host has it.

pub mod facts;
pub mod gpu;
mod ids;
mod lsm;
mod probed;

use serde::{Deserialize, Serialize};

pub use facts::Facts;
pub use ids::{Caps, IdMap};
pub use lsm::Lsm;
pub use probed::{Answer, Outcome, Probed, Restriction, Sandboxing};

use crate::cgroup::{self, Hierarchies, Systemd};
use crate::channel::{self, Place};
use crate::error::{Error, Kind, Result};

/// The form of a captured [`Host`]: it grows when a reader of the old form would misread the new one.
pub const FORM: u32 = 1;

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn form() -> u32 {
    FORM
}

/// What is known about the host. Plain data: golden tests read captured ones from files
/// (`isorun doctor --capture FILE` writes them, [`Host::parse`] reads them).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// The form of this data, [`FORM`].
    #[serde(default = "form")]
    pub version: u32,
    /// The effective user id of the runtime.
    pub euid: u32,
    /// The effective capabilities of the runtime, in its user namespace; `None` in a captured host that
    /// does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caps: Option<Caps>,
    /// The runtime is in a user namespace that is not the initial one: its root is not the machine's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user_namespace: bool,
    /// setgroups(2) is denied in that user namespace, as where a user without privileges made it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub setgroups_denied: bool,
    /// The user ids that are mapped in that user namespace; empty in the initial one, where all are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uid_map: Vec<IdMap>,
    /// The same for groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gid_map: Vec<IdMap>,
    /// The cgroup hierarchies.
    pub cgroups: Hierarchies,
    /// systemd, where it is to manage cgroups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systemd: Option<Systemd>,
    /// Security modules, where config.json asks for a label.
    #[serde(default, skip_serializing_if = "Lsm::is_none")]
    pub lsm: Lsm,
    /// The version of Landlock's interface (ABI), where something may have to be made up for; 0: the kernel
    /// lacks it, or nobody has asked.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub landlock: u32,
    /// Rules and channels, where config.json asks for some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Box<channel::Facts>>,
    /// The GPU, where GPU memory in channels is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Box<gpu::Nodes>>,
    /// What `isorun doctor` found out by trying; nothing else does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed: Option<Box<Probed>>,
}

impl Host {
    /// Looks at this machine; `linux` tells which of the slower facts are needed.
    ///
    /// # Errors
    /// When /proc or the cgroup mounts cannot be read.
    pub fn detect(linux: Option<&oci_spec::runtime::Linux>) -> Result<Self> {
        let uid_map = own_uid_map();
        let privilege = Privilege::with_map(&uid_map);
        // In the initial user namespace both are known without a look.
        let gid_map = match privilege.user_namespace {
            true => std::fs::read_to_string("/proc/self/gid_map").unwrap_or_default(),
            false => String::new(),
        };
        Ok(Self {
            version: FORM,
            euid: privilege.euid,
            caps: Some(Caps::effective()),
            user_namespace: privilege.user_namespace,
            setgroups_denied: privilege.setgroups_denied,
            uid_map: match privilege.user_namespace {
                true => IdMap::parse(&uid_map),
                false => Vec::new(),
            },
            gid_map: IdMap::parse(&gid_map),
            cgroups: cgroup::detect(linux)?,
            systemd: None,
            lsm: Lsm::default(),
            landlock: 0,
            channels: None,
            gpu: None,
            probed: None,
        })
    }

    /// Reads a captured host.
    ///
    /// # Errors
    /// What is no JSON of this form, with the place; a form that is newer than this program.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let fail = |why: String| Error::new(Kind::Spec, format!("captured host: {why}"));
        #[derive(Deserialize)]
        struct Form {
            #[serde(default = "form")]
            version: u32,
        }
        // First, because a newer form may hold what this program cannot read.
        let Form { version } =
            serde_json::from_slice(text).map_err(|error| fail(error.to_string()))?;
        if version == 0 || version > FORM {
            return Err(fail(format!(
                "version is {version}, and this program reads 1 to {FORM}"
            ))
            .remedy("capture it with this isorun: isorun doctor --capture FILE"));
        }
        serde_json::from_slice(text).map_err(|error| fail(error.to_string()))
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

    /// The same with what decides about the tensor channels that `spec` asks for, if it does.
    ///
    /// # Errors
    /// An annotation that cannot be meant; rules and metadata that cannot be read.
    pub fn with_channels(mut self, spec: &oci_spec::runtime::Spec) -> Result<Self> {
        let Some(annotations) = spec.annotations() else {
            return Ok(self);
        };
        if let Some(request) = channel::request(annotations.iter())?
            && !request.channels.is_empty()
        {
            let process = spec.process().as_ref();
            let env = process.and_then(|process| process.env().as_deref());
            let request = request.with_environment(env.unwrap_or_default());
            if !request.cuda.channels().is_empty() {
                self.gpu = Some(Box::new(gpu::Nodes::read()));
            }
            let place = Place::of_user(|| self.user_namespace);
            let outside = |map: &[IdMap], id| IdMap::outside(map, id);
            let caller = (
                outside(&self.uid_map, self.euid),
                outside(&self.gid_map, nix::unistd::getegid().as_raw()),
            );
            self.channels = Some(Box::new(channel::Facts::gather(&place, caller, &request)?));
        }
        Ok(self)
    }

    /// The same with the facts about security modules that `spec` asks for.
    pub fn with_lsm(mut self, spec: &oci_spec::runtime::Spec) -> Self {
        self.lsm = Lsm::detect(spec);
        match self.lsm.lacks_apparmor(spec) {
            true => self.with_landlock(),
            false => self,
        }
    }

    /// The same with the version of Landlock: what takes the place of a protection that is not there.
    pub fn with_landlock(mut self) -> Self {
        self.landlock = landlock();
        self
    }
}

/// The version of Landlock's interface (ABI) that this kernel has; 0: none.
pub fn landlock() -> u32 {
    crate::sys::landlock::abi().unwrap_or(0)
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
        Self::with_map(&own_uid_map())
    }

    /// The same with the text of /proc/self/uid_map.
    fn with_map(map: &str) -> Self {
        let user_namespace = is_child_namespace(map);
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
    is_child_namespace(&own_uid_map())
}

fn own_uid_map() -> String {
    std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default()
}

fn is_child_namespace(map: &str) -> bool {
    let words: Vec<&str> = map.split_ascii_whitespace().collect();
    !words.is_empty() && words != ["0", "0", "4294967295"]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_captured_host_is_read_again() {
        let host = Host::detect(None).unwrap();
        assert_eq!(
            host.user_namespace,
            !host.uid_map.is_empty(),
            "maps are told where they say something"
        );
        let text = serde_json::to_vec(&host).unwrap();
        assert_eq!(Host::parse(&text).unwrap(), host);
        // As they were written before there was a version.
        let old = br#"{"euid": 0, "cgroups": {"mode": "none"}}"#;
        assert_eq!(Host::parse(old).unwrap().version, FORM);
    }

    #[test]
    fn a_captured_host_that_cannot_be_read() {
        for (text, said) in [
            ("{", "EOF while parsing"),
            (
                "{\"version\": 99, \"euid\": \"new\"}",
                "version is 99, and this program reads 1 to 1",
            ),
            ("{\"version\": 0}", "version is 0"),
            ("{\"version\": 1}", "missing field `euid`"),
        ] {
            let error = Host::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(
                error.starts_with("captured host: ") && error.contains(said),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn the_initial_user_namespace_is_known_by_its_map() {
        assert!(!is_child_namespace("         0          0 4294967295\n"));
        assert!(!is_child_namespace(""), "a kernel without user namespaces");
        assert!(is_child_namespace("0 1000 1\n"));
        assert!(is_child_namespace("0 1000 1\n1 100000 65536\n"));
    }
}
