//! The table of degradations: one row of the design's table (section 6) is one row here.

use super::ways;
use super::{Compensation, Feature, Row, Stage};
use crate::policy::Level;
use Compensation::{By, NotNeeded};

/// A row about no step and no birth, to be completed.
const ROW: Row = Row {
    feature: Feature::Essential,
    what: "",
    on: &[],
    fallback: "",
    level: None,
    compensation: NotNeeded(""),
    remedy: "",
    instead: |_, _| None,
    birth: |_, _, _| false,
};

/// Errnos by which a kernel or a filter says that a call is not to be had.
const DENIED: &[i32] = &[libc::EPERM, libc::ENOSYS];

/// Errnos by which a user namespace is refused: EPERM (Debian's sysctl, AppArmor, a filter), ENOSPC
/// (user.max_user_namespaces, nesting), EUSERS (the same before Linux 4.9), EINVAL (a kernel without
/// them), EACCES (AppArmor, when its maps are written).
const NO_USERNS: &[i32] = &[
    libc::EPERM,
    libc::EACCES,
    libc::ENOSPC,
    libc::EUSERS,
    libc::EINVAL,
];

/// All rows, in the order in which alternatives are tried.
pub const TABLE: &[Row] = &[
    Row {
        feature: Feature::Mknod,
        what: "a device node cannot be made; or, in a user namespace, where none can be, the host's \
               differs from what linux.devices asks for",
        on: DENIED,
        fallback: "a read-only bind mount of the host's node with the same numbers, with the host's owner \
                   and mode",
        level: Some(Level::Safe),
        compensation: NotNeeded(
            "it still reads and writes; its mode and owner cannot be changed from inside",
        ),
        remedy: "run isorun with CAP_MKNOD, outside of a user namespace",
        instead: ways::mknod,
        ..ROW
    },
    Row {
        feature: Feature::SysfsUserns,
        what: "sysfs, in a user namespace, with a network namespace that is not the container's own",
        on: &[libc::EPERM],
        fallback: "a recursive read-only bind mount of the host's /sys",
        level: Some(Level::Safe),
        compensation: By("the trees of cgroups, debugfs, security modules and firmware are hidden"),
        remedy: "give the container a network namespace of its own, or bind /sys in config.json",
        instead: ways::sysfs_userns,
        ..ROW
    },
    Row {
        feature: Feature::Mqueue,
        what: "mqueue, with an IPC namespace that is not the container's own",
        on: &[libc::EPERM],
        fallback: "left out: the IPC namespace is not the container's own",
        level: Some(Level::Safe),
        compensation: NotNeeded("the queues are somebody else's"),
        remedy: "give the container an IPC namespace of its own",
        instead: ways::mqueue,
        ..ROW
    },
    Row {
        feature: Feature::CgroupMount,
        what: "a cgroup file system, with a cgroup namespace of the container's own",
        on: &[libc::EPERM, libc::EBUSY],
        fallback: "a bind mount of the container's own cgroup",
        level: Some(Level::Safe),
        compensation: NotNeeded("it shows the same files"),
        remedy: "let isorun mount cgroup file systems, or leave the mount out",
        instead: ways::cgroup_mount,
        ..ROW
    },
    Row {
        feature: Feature::DevptsGid,
        what: "the gid of a devpts mount is not mapped in the user namespace",
        on: &[libc::EINVAL],
        fallback: "mounted without gid=: terminals belong to the group of who opens them",
        level: Some(Level::Safe),
        compensation: NotNeeded("only the group's members lose access"),
        remedy: "map the group in linux.gidMappings, or leave the option out",
        instead: ways::devpts_gid,
        ..ROW
    },
    Row {
        feature: Feature::OomScoreAdj,
        what: "process.oomScoreAdj is lower than the caller may set",
        on: &[libc::EACCES, libc::EPERM],
        fallback: "clamped: it stays what it is, because lowering needs a privilege",
        level: Some(Level::Safe),
        compensation: NotNeeded("the container dies sooner than asked, never later"),
        remedy: "run isorun with CAP_SYS_RESOURCE, or ask for a higher value",
        instead: ways::oom_score_adj,
        ..ROW
    },
    Row {
        feature: Feature::Rlimit,
        what: "a limit of process.rlimits is over what the caller may set",
        on: &[libc::EPERM],
        fallback: "clamped to the hard limit that isorun itself has",
        level: Some(Level::Safe),
        compensation: NotNeeded("the container gets less than asked, never more"),
        remedy: "run isorun with CAP_SYS_RESOURCE, or raise the hard limit of its caller",
        instead: ways::rlimit,
        ..ROW
    },
    Row {
        feature: Feature::SeccompFlags,
        what: "the kernel lacks a flag of the system call filter that only tells or speeds up: LOG, SPEC_ALLOW",
        on: &[libc::EINVAL],
        fallback: "the filter is loaded without them",
        level: Some(Level::Safe),
        compensation: NotNeeded("it refuses the same calls"),
        remedy: "a kernel from 4.17 on has both",
        instead: ways::seccomp_flags,
        ..ROW
    },
    Row {
        feature: Feature::Keyring,
        what: "a session keyring: the kernel has none, or a filter denies the key calls",
        on: &[libc::ENOSYS, libc::EPERM, libc::EACCES],
        fallback: "left out: the key calls are not to be had here",
        level: Some(Level::Safe),
        compensation: NotNeeded("the container cannot use the caller's keys by these calls either"),
        remedy: "--no-new-keyring says that this is meant",
        instead: ways::keyring,
        ..ROW
    },
    Row {
        feature: Feature::Affinity,
        what: "the CPU affinity of isorun's caller cannot be widened to all CPUs of the cgroup",
        on: &[libc::EINVAL, libc::EPERM, libc::ENOSYS],
        fallback: "the container has the affinity of the runtime's caller",
        level: Some(Level::Safe),
        compensation: NotNeeded("it has fewer CPUs than it may, never more"),
        remedy: "let isorun call sched_setaffinity",
        instead: ways::affinity,
        ..ROW
    },
    Row {
        feature: Feature::Capabilities,
        what: "capabilities that config.json asks for and isorun itself does not have",
        on: &[libc::EPERM],
        fallback: "the container runs without them",
        level: Some(Level::Safe),
        compensation: NotNeeded(
            "it can do less than asked, never more; the specification wants no failure here",
        ),
        remedy: "run isorun with these capabilities, or leave them out of the configuration",
        instead: ways::capabilities,
        ..ROW
    },
    Row {
        feature: Feature::KeyringQuota,
        what: "a session keyring: the quota of keys is used up",
        on: &[libc::EDQUOT],
        fallback: "left out: the container inherits the caller's keys",
        level: Some(Level::Any),
        compensation: NotNeeded("the loss is what the level any accepts"),
        remedy: "raise /proc/sys/kernel/keys/maxkeys, see /proc/key-users, or use --no-new-keyring",
        instead: ways::keyring,
        ..ROW
    },
    Row {
        feature: Feature::Shm,
        what: "/dev/shm cannot be a tmpfs",
        on: &[libc::EPERM, libc::EACCES, libc::ENODEV],
        fallback: "a directory of the file system that /dev is on: slower, and with no size of its own",
        level: Some(Level::Any),
        compensation: By("it is mounted onto itself with the flags that were asked for"),
        remedy: "let isorun mount a tmpfs, or bind a directory to /dev/shm in config.json",
        instead: ways::shm,
        ..ROW
    },
    Row {
        feature: Feature::ChannelQuota,
        what: "a tensor channel's quota cannot be had: rootless, or where its tmpfs is refused",
        fallback: "the channel is a directory without a quota of its own; also at level safe where \
                   linux.resources.memory.limit bounds it",
        level: Some(Level::Any),
        compensation: NotNeeded("the file system that it is on has limits of its own"),
        remedy: "leave the size out, or let the administrator make the channel",
        ..ROW
    },
    Row {
        feature: Feature::ChannelIdmap,
        what: "a tensor channel cannot be mounted with the ids of the container's user namespace",
        on: &[libc::EINVAL, libc::EPERM, libc::ENOSYS],
        fallback: "it is mounted with the host's ids: each member's files are nobody's for members of \
                   another user namespace, and open to them as their permissions for others say",
        level: Some(Level::Safe),
        compensation: NotNeeded("nobody can do more in it than with the ids of the container"),
        remedy: "a kernel from 6.3 on maps the ids of a tmpfs",
        instead: ways::channel_idmap,
        ..ROW
    },
    Row {
        feature: Feature::CudaIpc,
        what: "GPU memory in channels: no GPU or driver, device nodes or rules for them that are missing, no \
               process ids of the member's own, or a rule that does not allow what only \
               PYISOLATE_ENABLE_CUDA_IPC=1 asks for",
        on: &[
            libc::EPERM,
            libc::EACCES,
            libc::EROFS,
            libc::ENOENT,
            libc::EINVAL,
        ],
        fallback: "tensors of the GPU go through host memory: they are copied",
        level: Some(Level::Safe),
        compensation: NotNeeded(
            "the program gets the same tensors, later; nobody gets more than asked",
        ),
        remedy: "give the container the GPU by CDI (docs/cuda.md), or leave io.isorun.cuda-ipc out",
        instead: ways::pid_range,
        ..ROW
    },
    Row {
        feature: Feature::Sysfs,
        what: "sysfs, anywhere else",
        on: &[libc::EPERM],
        fallback: "a recursive read-only bind mount of the host's /sys",
        level: Some(Level::Any),
        compensation: By("the trees of cgroups, debugfs, security modules and firmware are hidden"),
        remedy: "let isorun mount sysfs (inside a container: unmask /sys), or bind /sys in config.json",
        instead: ways::sysfs,
        ..ROW
    },
    Row {
        feature: Feature::Procfs,
        what: "a new procfs is refused, because the one that is there is masked",
        on: &[libc::EPERM],
        fallback: "a recursive read-only bind mount of the /proc that is there: it shows its processes",
        level: Some(Level::Any),
        compensation: By("nothing can be written through it"),
        remedy: "unmask /proc around isorun (docker: --security-opt systempaths=unconfined, podman: \
                 --security-opt unmask=ALL)",
        instead: ways::procfs,
        ..ROW
    },
    Row {
        feature: Feature::Limits,
        what: "the cgroup controller, or the permission for a cgroup, that a limit of linux.resources needs",
        on: &[
            libc::EACCES,
            libc::EPERM,
            libc::EROFS,
            libc::ENOENT,
            libc::EBUSY,
        ],
        fallback: "the container runs without the limit",
        level: Some(Level::Any),
        compensation: NotNeeded("the loss is what the level any accepts"),
        remedy: "enable the controller and delegate the cgroup (systemd: Delegate=yes), or leave the limit out",
        birth: |stage, _, cgroup| {
            let limits = cgroup.dirs.iter().any(|dir| !dir.writes.is_empty());
            let rules = cgroup.dirs.iter().any(|dir| dir.devices.is_some());
            // A unit of systemd's is seen by others: it is not made twice.
            let fixed = cgroup.scope.is_some() || rules;
            stage == Stage::Cgroup && !fixed && (limits || !cgroup.lenient)
        },
        ..ROW
    },
    Row {
        feature: Feature::DeviceRules,
        what: "the permission for a cgroup that device rules need",
        on: &[libc::EACCES, libc::EPERM, libc::EROFS, libc::ENOSYS],
        fallback: "the container runs without device rules",
        level: Some(Level::Any),
        compensation: By(
            "CAP_MKNOD goes; devices that the rules would refuse are left out, and those that the image and \
             bound mounts hold cannot be opened (nodev); no_new_privs; Landlock and a supplementary system \
             call filter refuse mounts and device nodes. The price: no setuid programs, no mounts inside, no \
             device by a bind mount, and processes of different execs cannot trace each other",
        ),
        remedy: "let isorun make cgroups and load eBPF programs, or allow all devices in linux.resources.devices",
        birth: |stage, _, cgroup| {
            stage == Stage::Cgroup && cgroup.dirs.iter().any(|dir| dir.devices.is_some())
        },
        ..ROW
    },
    Row {
        feature: Feature::Apparmor,
        what: "an AppArmor profile is asked for, and AppArmor is off",
        fallback: "the container runs without the profile",
        level: Some(Level::Any),
        compensation: By(
            "no_new_privs; Landlock and a supplementary system call filter refuse mounts, changes of the \
             kernel and tracing across their border; files of the kernel in /proc and /sys are read-only \
             or hidden. The price: no setuid programs, no mounts inside, and processes of different execs \
             cannot trace each other",
        ),
        remedy: "enable AppArmor, or leave process.apparmorProfile out",
        ..ROW
    },
    Row {
        feature: Feature::Network,
        what: "a network namespace cannot be made",
        on: &[
            libc::EPERM,
            libc::ENOSPC,
            libc::EUSERS,
            libc::EINVAL,
            libc::ENOSYS,
        ],
        fallback: "the network is shared with the host",
        level: Some(Level::Any),
        compensation: By(
            "CAP_NET_ADMIN and CAP_NET_RAW go; no_new_privs; a supplementary system call filter refuses raw \
             sockets, all families but UNIX, IP and netlink, bpf and perf_event_open; Landlock (from ABI 6 on) refuses abstract \
             sockets of processes outside; /proc/sys/net is read-only. The price: no setuid programs, no \
             mounts inside, no io_uring, and processes of different execs cannot trace each other nor meet \
             on abstract sockets",
        ),
        remedy: "let isorun make network namespaces: CAP_SYS_ADMIN, /proc/sys/user/max_net_namespaces",
        instead: ways::network,
        ..ROW
    },
    Row {
        feature: Feature::UsernsRoot,
        what: "a user namespace is denied, or the first mount in it is, and the caller is root",
        on: NO_USERNS,
        fallback: "the container runs as the host ids that were mapped, never as the host's root",
        level: Some(Level::Any),
        compensation: By(
            "no capabilities; no_new_privs; Landlock and a supplementary system call filter refuse mounts, \
             device nodes, changes of the kernel, keys, user namespaces and tracing across their border; only \
             file systems that a user namespace may mount; flags of bound mounts stay. The price: the \
             program cannot change its ids nor the owners of files, no setuid programs, no mounts inside, \
             no io_uring, and processes of different execs cannot trace each other",
        ),
        remedy: "allow user namespaces: user.max_user_namespaces, and filters and profiles that let clone make \
                 them and let mount(2) work in them",
        instead: ways::userns_root,
        birth: |stage, facts, _| {
            stage != Stage::Cgroup && facts.makes(libc::CLONE_NEWUSER) && facts.root
        },
    },
    Row {
        feature: Feature::UsernsUser,
        what: "a user namespace is denied, or the first mount in it is, and the caller is not root",
        on: NO_USERNS,
        fallback: "a process sandbox, only for bundles whose root is /",
        level: Some(Level::Any),
        compensation: By(
            "Landlock (from ABI 6 on): / is only read, bind mounts of a path onto itself say what may be \
             changed, masked paths and those of new file systems are out of reach, as are signals to and \
             abstract sockets of others; no_new_privs; a system call filter refuses tracing, keys, changes \
             of mode, owner and times, user namespaces, what an IPC or network namespace was to keep apart, \
             UNIX sockets but connected pairs, io_uring, and changes of the kernel. The price: no namespaces, \
             host name, terminal or devices of its own, directories on the way to what is out of reach cannot be \
             listed, processes in /proc are not seen where maskedPaths names something in it, and executed processes cannot signal each other",
        ),
        remedy: "allow user namespaces: user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                 kernel.apparmor_restrict_unprivileged_userns or isorun's profile for AppArmor \
                 (isorun doctor --apparmor-profile)",
        instead: ways::userns_user,
        birth: |stage, facts, _| {
            stage != Stage::Cgroup && facts.makes(libc::CLONE_NEWUSER) && !facts.root
        },
    },
    Row {
        feature: Feature::Essential,
        what: "the system call filter or an action of it that notifies, capabilities that are to be taken away, \
               no_new_privs, masked and read-only paths, a read-only root",
        fallback: "none: an error",
        level: None,
        compensation: NotNeeded("nothing could make up for it"),
        remedy: "",
        ..ROW
    },
];
