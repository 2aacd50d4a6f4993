//! The vocabulary of a plan: what is done, in data.
//!
//! A step carries everything that it needs, resolved: parsed mount flags, numbers in place of names,
//! the compiled filter. Executing one means no more than making the system calls that it names.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};

use super::confine::Landlock;
use super::degrade::Feature;
use super::labels::LabelKind;
use super::schedule::{MemoryPolicy, Scheduling};
use crate::cgroup::MountView;
pub use crate::host::IdMap;

/// A step with the ways to go on when the host refuses it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What to do.
    #[serde(flatten)]
    pub action: Action,
    /// Tried in order: the first whose errnos hold the failure's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub otherwise: Vec<Otherwise>,
    /// Ways that there would be, and that the level does not allow: for the error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
}

impl From<Action> for Step {
    fn from(action: Action) -> Self {
        Self {
            action,
            otherwise: Vec::new(),
            refused: Vec::new(),
        }
    }
}

/// One allowed way to go on after a failure: a degradation, always reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Otherwise {
    /// The row of the table.
    pub row: Feature,
    /// The errnos that call for it.
    pub on: Vec<i32>,
    /// What to do in place of the step; nothing: leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// What is lost, for the report.
    pub feature: String,
    /// What takes its place.
    pub fallback: String,
    /// How the host can be made to allow it.
    pub remedy: String,
    /// Other steps depend on it: the container is planned and made again without it, in place of `action`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// A way to go on that the level does not allow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// The row of the table.
    pub row: Feature,
    /// The errnos that would call for it.
    pub on: Vec<i32>,
    /// How the host can be made to allow the step itself.
    pub remedy: String,
}

/// What the host refused and what isorun did in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degradation {
    /// The row of the table.
    pub row: Feature,
    /// What is lost.
    pub feature: String,
    /// The step that failed, as a sentence.
    pub reason: String,
    /// The errno of the failure; 0: it was known before anything was tried.
    pub errno: i32,
    /// What took its place.
    pub fallback: String,
    /// What isorun did to make up for it; empty: nothing had to be done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub compensation: String,
    /// How the host can be made to allow it.
    pub remedy: String,
}

impl std::fmt::Display for Degradation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "degraded: {}: {}; {}",
            self.feature, self.reason, self.fallback
        )?;
        if !self.compensation.is_empty() {
            write!(f, "; {}", self.compensation)?;
        }
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// The things that the child does, in the order of the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Action {
    /// A session and process group of its own: setsid(2).
    NewSession,
    /// The numbers of the processes to come are those of the member's own range: ns_last_pid, and pid_max
    /// where each pid namespace has one.
    PidRange,
    /// All CPUs that the cgroup allows: sched_setaffinity(2).
    AllCpus,
    /// The scheduler's policy and parameters: sched_setattr(2).
    Scheduler(Scheduling),
    /// The I/O priority: ioprio_set(2).
    IoPriority {
        /// Its class, for people.
        class: String,
        /// The number of the class.
        number: u32,
        /// 0 to 7, the highest first.
        level: u32,
    },
    /// The NUMA memory policy: set_mempolicy(2).
    MemoryPolicy(MemoryPolicy),
    /// The execution domain: personality(2).
    Personality {
        /// Its name in config.json.
        name: String,
        /// PER_* of linux/personality.h.
        domain: u32,
    },
    /// A session keyring of its own, so that the caller's keys are not inherited: keyrings(7).
    SessionKeyring {
        /// Its name.
        name: String,
        /// The permission bits that let the container's user search it: keyctl(2), KEYCTL_SETPERM.
        search: u32,
        /// Its SELinux label.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<String>,
    },
    /// The label that the program runs under, from the exec on.
    ExecLabel {
        /// Whose label it is.
        kind: LabelKind,
        /// The AppArmor profile, or the SELinux label.
        label: String,
    },
    /// The SELinux label of a directory, where its file system takes none at the mount.
    FileLabel {
        /// The directory, in the container.
        path: String,
        /// The label.
        label: String,
    },
    /// The cgroup the child is in now becomes the root of its cgroup namespace.
    CgroupNamespace,
    /// A time namespace with offsets, entered when the program is executed: time_namespaces(7).
    TimeNamespace {
        /// The lines for /proc/self/timens_offsets.
        offsets: Vec<String>,
    },
    /// An IPC namespace of its own, in a user namespace.
    IpcNamespace,
    /// A network namespace of its own.
    NetworkNamespace,
    /// The interface `lo` of the new network namespace goes up.
    LoopbackUp,
    /// The parent moves devices of its network namespace to the container's.
    NetDevices {
        /// Which, in the order in which they are moved.
        devices: Vec<NetDevice>,
    },
    /// The badness for the OOM killer, -1000 to 1000: proc(5).
    OomScoreAdj {
        /// The value.
        value: i32,
    },
    /// Host name of the UTS namespace.
    Hostname {
        /// The name.
        name: String,
    },
    /// NIS domain name of the UTS namespace.
    Domainname {
        /// The name.
        name: String,
    },
    /// What mounts and unmounts in the new mount namespace have to do with the host's.
    RootPropagation {
        /// MS_SLAVE, MS_PRIVATE or MS_SHARED, with MS_REC but for a root that is `shared` alone.
        flags: u64,
    },
    /// The root file system becomes a mount of its own; the steps after it resolve paths inside it.
    OpenRoot {
        /// Where it is.
        path: PathBuf,
    },
    /// One mount.
    Mount(Mount),
    /// Where the mount of type cgroup goes; the view says what it is made of.
    MountCgroup {
        /// The mount's options; its kind is not used.
        mount: Mount,
        /// The hierarchies.
        view: MountView,
        /// A hierarchy that cannot be mounted is bound; otherwise that is a failure.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        or_bind: bool,
    },
    /// The host's sysfs as a read-only bind mount, where none of its own can be had.
    BindSys {
        /// The bind mount.
        mount: Mount,
        /// Paths in the container that are hidden then.
        hidden: Vec<String>,
    },
    /// The procfs that is there as a read-only bind mount, where no new one can be had.
    BindProc {
        /// The bind mount.
        mount: Mount,
    },
    /// A directory in the place of the tmpfs of /dev/shm.
    ShmDirectory {
        /// The tmpfs that was wanted.
        mount: Mount,
    },
    /// A device node.
    Device(Device),
    /// A device node as a read-only bind mount of the host's, where nodes cannot be made.
    BindDevice {
        /// The node.
        #[serde(flatten)]
        device: Device,
        /// What the host's node has to be like; absent: as it is, and differences are told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exact: Option<NodeAsked>,
    },
    /// The symbolic links of /dev: (path, where it points).
    DevLinks {
        /// Path and target.
        links: Vec<(String, String)>,
    },
    /// Tells the parent to run the hooks prestart and createRuntime, and waits for it.
    HostHooks,
    /// Runs hooks in the container's namespaces.
    Hooks {
        /// createContainer or startContainer.
        stage: String,
        /// What to run.
        hooks: Vec<Hook>,
    },
    /// A terminal of the container's own devpts: stdin, stdout, stderr, /dev/tty and /dev/console.
    Terminal {
        /// process.consoleSize: its lines and its characters in a line, where both are there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<(u16, u16)>,
    },
    /// Mounts that things were put into become read-only.
    ReadonlyMounts,
    /// The root file system becomes `/`, and the host's mounts go away: pivot_root(2).
    PivotRoot,
    /// The same without pivot_root(2): the root file system is moved over the host's root.
    MoveRoot,
    /// The root file system becomes `/` for the container alone, whose mounts are its caller's: chroot(2).
    ChangeRoot,
    /// The propagation of `/` that the container asked for.
    FinalPropagation {
        /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE, with or without MS_REC.
        flags: u64,
    },
    /// A kernel parameter of one of the new namespaces.
    Sysctl {
        /// Its name with dots.
        key: String,
        /// Its value.
        value: String,
    },
    /// The working directory is made where it is missing.
    CreateCwd {
        /// The directory, in the container.
        path: String,
    },
    /// The mount of `/` becomes read-only.
    ReadonlyRoot,
    /// Device nodes in the root file system, and on what is mounted in it so far, cannot be opened; what the host
    /// mounts there later does not come.
    NodevRoot,
    /// A path that becomes a read-only mount of itself.
    ReadonlyPath {
        /// The path, in the container.
        path: String,
    },
    /// A path that is hidden by /dev/null or an empty read-only directory.
    MaskPath {
        /// The path, in the container.
        path: String,
        /// The SELinux label of the empty directory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<String>,
    },
    /// The file mode creation mask.
    Umask {
        /// Its bits.
        mask: u32,
    },
    /// The program is looked for, and HOME where the environment has none.
    FindProgram,
    /// A resource limit: setrlimit(2).
    Rlimit {
        /// Its name, for people.
        name: String,
        /// Its number.
        resource: u32,
        /// The soft limit.
        soft: u64,
        /// The hard limit.
        hard: u64,
    },
    /// The same, kept under the hard limit that this process may not raise.
    ClampedRlimit {
        /// Its name, for people.
        name: String,
        /// Its number.
        resource: u32,
        /// The soft limit.
        soft: u64,
        /// The hard limit.
        hard: u64,
    },
    /// PR_SET_NO_NEW_PRIVS.
    NoNewPrivs,
    /// A Landlock domain: makes up for a protection that the host does not give.
    Landlock(Landlock),
    /// The supplementary system call filter, likewise.
    Supplement,
    /// The system call filter.
    Seccomp,
    /// The same without the flags that an older kernel lacks: LOG and SPEC_ALLOW.
    SeccompWithoutFlags,
    /// Looks whether the runtime has the capabilities that the program is to get.
    Capabilities {
        /// Their mask.
        asked: u64,
    },
    /// User, groups and capabilities, of which those that the runtime has not are left out.
    Identity(Identity),
    /// The working directory, checked to be inside the root.
    Chdir {
        /// The directory, in the container.
        path: String,
    },
    /// Every descriptor from this number on is closed when the program is executed.
    CloseFrom {
        /// 3 and the number of those to keep.
        first: u32,
    },
    /// Tells the parent that all is made, and waits for `start`.
    AwaitStart,
    /// Executes the program.
    Exec,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum MountKind {
    /// A new file system.
    Fresh {
        /// Its type.
        fstype: String,
        /// Its source, as mountinfo shows it.
        source: String,
        /// Parameters of the file system, with values or without.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        data: Vec<(String, Option<String>)>,
    },
    /// A mount of what is there already.
    Bind {
        /// An absolute path on the host.
        source: PathBuf,
        /// With what is mounted below it.
        recursive: bool,
    },
    /// A change of what is mounted at the target already.
    Remount {
        /// Of the mount's flags only, else also of the file system's.
        bind: bool,
        /// Parameters of the file system.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        data: Vec<(String, Option<String>)>,
    },
}

/// A mount with all its flags as numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// The entry of config.json, for errors.
    pub field: String,
    /// The path in the container.
    pub target: String,
    /// What is mounted.
    #[serde(flatten)]
    pub what: MountKind,
    /// MOUNT_ATTR_* to set.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub set: u64,
    /// MOUNT_ATTR_* to clear.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub clear: u64,
    /// MOUNT_ATTR_* to set on the whole tree.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub recursive_set: u64,
    /// MOUNT_ATTR_* to clear on the whole tree.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub recursive_clear: u64,
    /// A tmpfs that starts with the contents of the directory that it hides.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copyup: bool,
    /// MS_* propagation flags, each applied in turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub propagation: Vec<u64>,
    /// A bind mount keeps the flags of its source's mount, as a user namespace would lock them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps: bool,
    /// Read-only only once everything is in it: tmpfs and /dev.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late_readonly: bool,
    /// The owners of the files are shown as others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idmap: Option<IdMapping>,
}

/// Through which maps a bind mount shows the owners of its files: mount_setattr(2), MOUNT_ATTR_IDMAP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// Also the mounts below.
    pub recursive: bool,
    /// Users: `inside` is the id on the file system, `outside` what it is shown as. No line: the maps
    /// of the container's user namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uid_map: Vec<IdMap>,
    /// Groups, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gid_map: Vec<IdMap>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its path in the container.
    pub path: String,
    /// S_IFCHR, S_IFBLK or S_IFIFO.
    pub kind: u32,
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner, in the container.
    pub uid: u32,
    /// Group, in the container.
    pub gid: u32,
}

/// A network device of the host that the container gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDevice {
    /// Its name on the host.
    pub name: String,
    /// Its name in the container; with `%d` the lowest number that is free there.
    pub inside: String,
}

/// What config.json says about a device node beside its number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAsked {
    /// Permission bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Owner, in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group, in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

impl NodeAsked {
    /// It says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// User, groups and capabilities of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The user id that the container's /etc/passwd has for it, where that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<u32>,
    /// Supplementary groups; absent where setgroups is not to be called.
    pub groups: Option<Vec<u32>>,
    /// The five sets; all empty where config.json names none, as runc has it.
    pub caps: CapSets,
}

/// Capability sets, a bit for each number of capabilities(7).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapSets {
    /// What execve can never go beyond.
    pub bounding: u64,
    /// What the kernel checks.
    pub effective: u64,
    /// What passes an execve of a file with inheritable bits.
    pub inheritable: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What passes every execve of an unprivileged program.
    pub ambient: u64,
}

/// A namespace that exists already and is joined by its path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Existing {
    /// Its kind, as config.json calls it.
    pub kind: String,
    /// Its CLONE_NEW* bit.
    pub flag: u64,
    /// A file of nsfs, such as /proc/PID/ns/net.
    pub path: PathBuf,
}

/// How the first process is born.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Birth {
    /// The kinds that clone3 makes, by name.
    pub namespaces: Vec<String>,
    /// The same as CLONE_NEW* bits.
    pub clone_flags: u64,
    /// User id map, when there is a new user namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uid_map: Vec<IdMap>,
    /// Group id map, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gid_map: Vec<IdMap>,
    /// Namespaces that are joined, in the order of [`crate::spec::names::NAMESPACES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joins: Vec<Existing>,
    /// A process in between joins them and makes the child: where a pid or user namespace is joined,
    /// which holds only for children or cannot be left again, and where a new user namespace would
    /// take away the right to join the others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub between: bool,
    /// The gid map is one that a user without privileges may write, once setgroups(2) is denied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deny_setgroups: bool,
    /// The maps that config.json states for a joined user namespace, of users and of groups: compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stated_maps: Option<(Vec<IdMap>, Vec<IdMap>)>,
    /// The child waits until the parent has written maps or joined it to its cgroup.
    pub child_waits: bool,
    /// Hard limits that the parent raises, because a process in a new user namespace may not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raise_limits: Vec<(u32, u64)>,
    /// OOM badness that the parent sets, likewise: a step of the kind [`Action::OomScoreAdj`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<Step>,
}

/// What is executed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The arguments; the first names the program.
    pub args: Vec<String>,
    /// The environment.
    pub env: Vec<String>,
    /// Where the program starts.
    pub cwd: String,
}

/// Hooks that the parent runs, by stage.
pub type HostHooks = BTreeMap<String, Vec<Hook>>;
