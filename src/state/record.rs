//! One container's state.json, and the status that follows from it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};

use super::process;
use crate::cgroup::Placed;
use crate::error::{Error, Kind, Result};
use crate::policy::Level;

/// The version of the format that this isorun writes. Fields may be added within a version
/// (readers skip what they do not know); a number goes up when a field changes its meaning.
pub const FORMAT: u32 = 1;

/// The root of a container without a mount namespace of its own: everything that was mounted for it is
/// below these mounts, and goes with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mounted {
    /// The mount namespace: its number by ioctl_nsfs(2), or the inode number of /proc/PID/ns/mnt.
    pub namespace: u64,
    /// Where they are mounted, one on the other: the root file system's directory.
    pub point: PathBuf,
    /// Their numbers, the one that the container sees last; by statx(2) the kind that is never given
    /// again, where the kernel has it.
    pub ids: [u64; 2],
    /// Their numbers in /proc/PID/mountinfo.
    pub listed: [u64; 2],
}

/// How far the making of the container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// `create` or `run` is at work, or was killed at it.
    Creating,
    /// The container was made completely: its process waits for `start`, runs, or has ended.
    Made,
}

/// The status of a container, in the words of the runtime specification (runtime.md, "State").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// It is being made.
    Creating,
    /// It is made, and its program has not been started.
    Created,
    /// Its program runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its first process has ended, or never came to be.
    Stopped,
}

impl Status {
    /// The word that `state` and `list` print.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The groups of the resctrl file system that a container's processes are in: linux.intelRdt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resctrl {
    /// Directories whose `tasks` every process of the container is written to, in this order.
    pub tasks: Vec<PathBuf>,
    /// Directories that were made for the container and go with it, in this order.
    #[serde(default)]
    pub remove: Vec<PathBuf>,
}

/// The tensor channels that a container has joined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channels {
    /// Where channels are.
    pub root: PathBuf,
    /// They are those of a user without privileges.
    #[serde(default)]
    pub rootless: bool,
    /// Their keys.
    pub keys: Vec<String>,
    /// The process ids that it has for itself, where GPU memory is shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<crate::channel::Pids>,
    /// The container's first process is isorun's own init.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
}

/// Everything that later commands need to know about a container; the contents of state.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// `FORMAT` of the isorun that wrote it.
    pub version: u32,
    /// `ociVersion` of the bundle's config.json.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Process id of the container's first process, seen from the runtime's pid namespace.
    #[serde(default)]
    pub pid: Option<i32>,
    /// When that process started: field 22 of /proc/PID/stat, in clock ticks since boot.
    #[serde(default)]
    pub pid_start: u64,
    /// Process id of the `create` or `run` that made the container.
    pub creator_pid: i32,
    /// When that process started, as `pid_start`.
    pub creator_start: u64,
    /// The bundle's directory, absolute.
    pub bundle: PathBuf,
    /// The root file system's directory, absolute.
    pub rootfs: PathBuf,
    /// When `create` or `run` began, RFC 3339 in UTC.
    pub created: String,
    /// `annotations` of config.json, and what isorun adds.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Effective user id of who made it.
    pub owner: u32,
    /// Hooks that `start` runs.
    #[serde(default)]
    pub poststart: Vec<Hook>,
    /// Hooks that `delete` runs.
    #[serde(default)]
    pub poststop: Vec<Hook>,
    /// What the cgroup manager needs to find the container's cgroup again.
    #[serde(default)]
    pub cgroup: Option<serde_json::Value>,
    /// Its groups of resctrl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resctrl: Option<Resctrl>,
    /// `linux.resources` as updates have left it, as far as later ones depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<serde_json::Value>,
    /// It kept its caller's session keyring, and what is executed in it keeps its own caller's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_new_keyring: bool,
    /// config.json has no `process`: it cannot be started.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_process: bool,
    /// The mounts that it has in the mount namespace of its caller, where it has none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounted: Option<Mounted>,
    /// Its tensor channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Channels>,
    /// How much it may do without.
    #[serde(default)]
    pub degrade: Level,
    /// How far the making has come.
    pub phase: Phase,
    /// What the container does without, because the host did not allow it.
    #[serde(default)]
    pub degraded: Vec<serde_json::Value>,
}

impl Record {
    /// A record in [`Phase::Creating`], made now by this process; the rest is for the engine.
    ///
    /// # Errors
    /// Where /proc does not tell this process's own start time.
    pub fn new(id: &str, bundle: &Path, rootfs: &Path, oci_version: &str) -> Result<Self> {
        let creator_pid = nix::unistd::getpid().as_raw();
        Ok(Self {
            version: FORMAT,
            oci_version: oci_version.to_string(),
            id: id.to_string(),
            pid: None,
            pid_start: 0,
            creator_pid,
            creator_start: process::start_time(creator_pid)?,
            bundle: bundle.to_path_buf(),
            rootfs: rootfs.to_path_buf(),
            created: crate::time::now_nanos(),
            annotations: BTreeMap::new(),
            owner: nix::unistd::geteuid().as_raw(),
            poststart: Vec::new(),
            poststop: Vec::new(),
            cgroup: None,
            resctrl: None,
            resources: None,
            no_new_keyring: false,
            no_process: false,
            mounted: None,
            channels: None,
            degrade: Level::default(),
            phase: Phase::Creating,
            degraded: Vec::new(),
        })
    }

    /// Reads the text of a state.json at `path`.
    pub(super) fn parse(text: &[u8], path: &Path) -> Result<Self> {
        let broken = |why: String| {
            Error::new(
                Kind::State,
                format!("state file {} is not readable: {why}", path.display()),
            )
            .remedy("isorun delete --force removes the container")
        };
        // A newer format may not even have the fields of this one: its number is told, where there is one.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let newer = |version: u32| {
            broken(format!(
                "format {version} was written by a newer isorun, this one knows up to {FORMAT}"
            ))
        };
        match serde_json::from_slice::<Self>(text) {
            Ok(record) if record.version > FORMAT => Err(newer(record.version)),
            Ok(record) => Ok(record),
            Err(error) => Err(match serde_json::from_slice::<Version>(text) {
                Ok(found) if found.version > FORMAT => newer(found.version),
                _ => broken(error.to_string()),
            }),
        }
    }

    /// Whether the container's first process is alive: it exists, is the same, is no zombie.
    pub fn is_alive(&self) -> bool {
        self.pid
            .is_some_and(|pid| process::is_alive(pid, self.pid_start))
    }

    /// Where the container's cgroup is; none without one, or with one that cannot be read.
    pub fn placed(&self) -> Option<Placed> {
        let value = self.cgroup.as_ref()?;
        Placed::deserialize(value).ok()
    }

    fn is_frozen(&self) -> bool {
        self.placed().is_some_and(|placed| placed.frozen())
    }

    /// The container's status, where `dir` is its state directory. Costs eight system calls.
    pub fn status(&self, dir: &Path) -> Status {
        let alive = self.is_alive();
        match self.phase {
            Phase::Creating if alive => Status::Creating,
            Phase::Creating if process::is_alive(self.creator_pid, self.creator_start) => {
                Status::Creating
            }
            Phase::Creating => Status::Stopped,
            Phase::Made if !alive => Status::Stopped,
            Phase::Made if self.is_frozen() => Status::Paused,
            Phase::Made if dir.join(super::store::FIFO).exists() => Status::Created,
            Phase::Made => Status::Running,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn record(id: &str) -> Record {
        Record::new(id, Path::new("/b"), Path::new("/b/rootfs"), "1.2.0").unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_unknown_fields_are_skipped() {
        let mut written = record("x");
        written.pid = Some(7);
        written.annotations.insert("k".into(), "v".into());
        written.cgroup = Some(serde_json::json!({"path": "/a"}));
        let text = serde_json::to_string(&written).unwrap();
        assert_eq!(
            Record::parse(text.as_bytes(), Path::new("s")).unwrap(),
            written
        );
        let more = text.replacen('{', "{\"fromTheFuture\":1,", 1);
        assert_eq!(
            Record::parse(more.as_bytes(), Path::new("s")).unwrap(),
            written
        );
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let newer = Record::parse(b"{\"version\":99}", Path::new("/r/x/state.json")).unwrap_err();
        assert!(newer.to_string().contains("newer isorun"), "{newer}");
        let torn = Record::parse(b"{\"version\":1,", Path::new("/r/x/state.json")).unwrap_err();
        assert_eq!(torn.kind(), Kind::State);
        assert!(torn.to_string().contains("/r/x/state.json"), "{torn}");
        assert!(torn.to_string().contains("delete --force"), "{torn}");
    }

    #[test]
    fn statuses() {
        let dir = std::env::temp_dir().join(format!("isorun-status-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let me = std::process::id() as i32;
        let mut it = record("x");
        assert_eq!(
            it.status(&dir),
            Status::Creating,
            "the creator is this process"
        );
        it.creator_start += 1;
        assert_eq!(it.status(&dir), Status::Stopped, "the creator has gone");
        it.pid = Some(me);
        it.pid_start = process::start_time(me).unwrap();
        assert_eq!(
            it.status(&dir),
            Status::Creating,
            "only the creator has gone"
        );
        it.phase = Phase::Made;
        assert_eq!(it.status(&dir), Status::Running);
        std::fs::write(dir.join("exec.fifo"), "").unwrap();
        assert_eq!(it.status(&dir), Status::Created);
        it.pid_start += 1;
        assert_eq!(
            it.status(&dir),
            Status::Stopped,
            "the pid belongs to another process now"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
