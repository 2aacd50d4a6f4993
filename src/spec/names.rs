//! Names of the specification as numbers of the kernel.

use std::path::PathBuf;

use oci_spec::runtime::{
    Capabilities, Capability, LinuxNamespaceType, MemoryPolicyFlagType, MemoryPolicyModeType,
    PosixRlimitType,
};

/// A kind of namespace: what config.json calls it, its clone flag and its file in /proc/PID/ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    /// The specification's type.
    pub kind: LinuxNamespaceType,
    /// Its name in config.json, such as `network`.
    pub name: &'static str,
    /// The CLONE_NEW* flag for clone3, unshare and setns; see namespaces(7).
    pub flag: u64,
    /// Its file in /proc/PID/ns, such as `net`.
    pub file: &'static str,
}

const fn namespace(
    kind: LinuxNamespaceType,
    name: &'static str,
    flag: u64,
    file: &'static str,
) -> Namespace {
    Namespace {
        kind,
        name,
        flag,
        file,
    }
}

/// All kinds of namespaces, by name. CLONE_NEWTIME is for clone3 and unshare only: clone(2) has its
/// bit in the exit signal.
pub const NAMESPACES: [Namespace; 8] = [
    namespace(
        LinuxNamespaceType::Cgroup,
        "cgroup",
        libc::CLONE_NEWCGROUP as u64,
        "cgroup",
    ),
    namespace(
        LinuxNamespaceType::Ipc,
        "ipc",
        libc::CLONE_NEWIPC as u64,
        "ipc",
    ),
    namespace(
        LinuxNamespaceType::Mount,
        "mount",
        libc::CLONE_NEWNS as u64,
        "mnt",
    ),
    namespace(
        LinuxNamespaceType::Network,
        "network",
        libc::CLONE_NEWNET as u64,
        "net",
    ),
    namespace(
        LinuxNamespaceType::Pid,
        "pid",
        libc::CLONE_NEWPID as u64,
        "pid",
    ),
    namespace(
        LinuxNamespaceType::Time,
        "time",
        libc::CLONE_NEWTIME as u64,
        "time",
    ),
    namespace(
        LinuxNamespaceType::User,
        "user",
        libc::CLONE_NEWUSER as u64,
        "user",
    ),
    namespace(
        LinuxNamespaceType::Uts,
        "uts",
        libc::CLONE_NEWUTS as u64,
        "uts",
    ),
];

/// The row of [`NAMESPACES`] for a kind.
pub fn namespace_of(kind: LinuxNamespaceType) -> &'static Namespace {
    let at = match kind {
        LinuxNamespaceType::Cgroup => 0,
        LinuxNamespaceType::Ipc => 1,
        LinuxNamespaceType::Mount => 2,
        LinuxNamespaceType::Network => 3,
        LinuxNamespaceType::Pid => 4,
        LinuxNamespaceType::Time => 5,
        LinuxNamespaceType::User => 6,
        LinuxNamespaceType::Uts => 7,
    };
    &NAMESPACES[at]
}

/// The path of a namespace that is to be joined; none where a new one is asked for.
pub fn joined(namespace: &oci_spec::runtime::LinuxNamespace) -> Option<&std::path::Path> {
    let path = namespace.path().as_deref()?;
    (!path.as_os_str().is_empty()).then_some(path)
}

/// The six stages of hooks, in the order in which they run.
pub const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// The resource number of setrlimit(2) and its name in the specification.
// The casts: musl's constants have another type than glibc's.
#[allow(clippy::unnecessary_cast)]
pub fn rlimit(kind: PosixRlimitType) -> (u32, &'static str) {
    use PosixRlimitType as R;
    match kind {
        R::RlimitAs => (libc::RLIMIT_AS as u32, "RLIMIT_AS"),
        R::RlimitCore => (libc::RLIMIT_CORE as u32, "RLIMIT_CORE"),
        R::RlimitCpu => (libc::RLIMIT_CPU as u32, "RLIMIT_CPU"),
        R::RlimitData => (libc::RLIMIT_DATA as u32, "RLIMIT_DATA"),
        R::RlimitFsize => (libc::RLIMIT_FSIZE as u32, "RLIMIT_FSIZE"),
        R::RlimitLocks => (libc::RLIMIT_LOCKS as u32, "RLIMIT_LOCKS"),
        R::RlimitMemlock => (libc::RLIMIT_MEMLOCK as u32, "RLIMIT_MEMLOCK"),
        R::RlimitMsgqueue => (libc::RLIMIT_MSGQUEUE as u32, "RLIMIT_MSGQUEUE"),
        R::RlimitNice => (libc::RLIMIT_NICE as u32, "RLIMIT_NICE"),
        R::RlimitNofile => (libc::RLIMIT_NOFILE as u32, "RLIMIT_NOFILE"),
        R::RlimitNproc => (libc::RLIMIT_NPROC as u32, "RLIMIT_NPROC"),
        R::RlimitRss => (libc::RLIMIT_RSS as u32, "RLIMIT_RSS"),
        R::RlimitRtprio => (libc::RLIMIT_RTPRIO as u32, "RLIMIT_RTPRIO"),
        R::RlimitRttime => (libc::RLIMIT_RTTIME as u32, "RLIMIT_RTTIME"),
        R::RlimitSigpending => (libc::RLIMIT_SIGPENDING as u32, "RLIMIT_SIGPENDING"),
        R::RlimitStack => (libc::RLIMIT_STACK as u32, "RLIMIT_STACK"),
    }
}

/// Modes of linux.memoryPolicy: MPOL_* of linux/mempolicy.h.
pub const MEMORY_POLICIES: [(MemoryPolicyModeType, &str, u32); 7] = [
    (MemoryPolicyModeType::MpolDefault, "MPOL_DEFAULT", 0),
    (MemoryPolicyModeType::MpolPreferred, "MPOL_PREFERRED", 1),
    (MemoryPolicyModeType::MpolBind, "MPOL_BIND", 2),
    (MemoryPolicyModeType::MpolInterleave, "MPOL_INTERLEAVE", 3),
    (MemoryPolicyModeType::MpolLocal, "MPOL_LOCAL", 4),
    (
        MemoryPolicyModeType::MpolPreferredMany,
        "MPOL_PREFERRED_MANY",
        5,
    ),
    (
        MemoryPolicyModeType::MpolWeightedInterleave,
        "MPOL_WEIGHTED_INTERLEAVE",
        6,
    ),
];

/// Flags of linux.memoryPolicy: MPOL_F_* of linux/mempolicy.h.
pub const MEMORY_POLICY_FLAGS: [(MemoryPolicyFlagType, &str, u32); 3] = [
    (
        MemoryPolicyFlagType::MpolFNumaBalancing,
        "MPOL_F_NUMA_BALANCING",
        1 << 13,
    ),
    (
        MemoryPolicyFlagType::MpolFRelativeNodes,
        "MPOL_F_RELATIVE_NODES",
        1 << 14,
    ),
    (
        MemoryPolicyFlagType::MpolFStaticNodes,
        "MPOL_F_STATIC_NODES",
        1 << 15,
    ),
];

/// Name and number of a mode.
pub fn memory_policy(mode: MemoryPolicyModeType) -> (&'static str, u32) {
    let found = MEMORY_POLICIES.iter().find(|(known, ..)| *known == mode);
    found.map_or(("MPOL_DEFAULT", 0), |(_, name, number)| (name, *number))
}

/// Name and bit of a flag.
pub fn memory_policy_flag(flag: MemoryPolicyFlagType) -> (&'static str, u32) {
    let found = MEMORY_POLICY_FLAGS
        .iter()
        .find(|(known, ..)| *known == flag);
    found.map_or(("", 0), |(_, name, bit)| (name, *bit))
}

/// Every capability: its place is its number in the kernel (capabilities(7)).
pub const CAPABILITIES: [(Capability, &str); 41] = [
    (Capability::Chown, "CAP_CHOWN"),
    (Capability::DacOverride, "CAP_DAC_OVERRIDE"),
    (Capability::DacReadSearch, "CAP_DAC_READ_SEARCH"),
    (Capability::Fowner, "CAP_FOWNER"),
    (Capability::Fsetid, "CAP_FSETID"),
    (Capability::Kill, "CAP_KILL"),
    (Capability::Setgid, "CAP_SETGID"),
    (Capability::Setuid, "CAP_SETUID"),
    (Capability::Setpcap, "CAP_SETPCAP"),
    (Capability::LinuxImmutable, "CAP_LINUX_IMMUTABLE"),
    (Capability::NetBindService, "CAP_NET_BIND_SERVICE"),
    (Capability::NetBroadcast, "CAP_NET_BROADCAST"),
    (Capability::NetAdmin, "CAP_NET_ADMIN"),
    (Capability::NetRaw, "CAP_NET_RAW"),
    (Capability::IpcLock, "CAP_IPC_LOCK"),
    (Capability::IpcOwner, "CAP_IPC_OWNER"),
    (Capability::SysModule, "CAP_SYS_MODULE"),
    (Capability::SysRawio, "CAP_SYS_RAWIO"),
    (Capability::SysChroot, "CAP_SYS_CHROOT"),
    (Capability::SysPtrace, "CAP_SYS_PTRACE"),
    (Capability::SysPacct, "CAP_SYS_PACCT"),
    (Capability::SysAdmin, "CAP_SYS_ADMIN"),
    (Capability::SysBoot, "CAP_SYS_BOOT"),
    (Capability::SysNice, "CAP_SYS_NICE"),
    (Capability::SysResource, "CAP_SYS_RESOURCE"),
    (Capability::SysTime, "CAP_SYS_TIME"),
    (Capability::SysTtyConfig, "CAP_SYS_TTY_CONFIG"),
    (Capability::Mknod, "CAP_MKNOD"),
    (Capability::Lease, "CAP_LEASE"),
    (Capability::AuditWrite, "CAP_AUDIT_WRITE"),
    (Capability::AuditControl, "CAP_AUDIT_CONTROL"),
    (Capability::Setfcap, "CAP_SETFCAP"),
    (Capability::MacOverride, "CAP_MAC_OVERRIDE"),
    (Capability::MacAdmin, "CAP_MAC_ADMIN"),
    (Capability::Syslog, "CAP_SYSLOG"),
    (Capability::WakeAlarm, "CAP_WAKE_ALARM"),
    (Capability::BlockSuspend, "CAP_BLOCK_SUSPEND"),
    (Capability::AuditRead, "CAP_AUDIT_READ"),
    (Capability::Perfmon, "CAP_PERFMON"),
    (Capability::Bpf, "CAP_BPF"),
    (Capability::CheckpointRestore, "CAP_CHECKPOINT_RESTORE"),
];

/// A set of capabilities as the kernel's bit mask: bit n is capability n; none for `None`.
pub fn capability_mask(set: Option<&Capabilities>) -> u64 {
    let Some(set) = set else { return 0 };
    CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(_, (capability, _))| set.contains(capability))
        .fold(0, |mask, (bit, _)| mask | 1 << bit)
}

/// The names in a bit mask of capabilities; a bit without a name is `CAP_<number>`.
pub fn capability_names(mask: u64) -> Vec<String> {
    (0..64)
        .filter(|bit| mask & (1 << bit) != 0)
        .map(|bit| match CAPABILITIES.get(bit) {
            Some((_, name)) => (*name).to_string(),
            None => format!("CAP_{bit}"),
        })
        .collect()
}

/// A sysctl's name with dots, as the rules speak of it: `net/ipv4/conf/eno2.100/x` becomes
/// `net.ipv4.conf.eno2/100.x`. The first separator decides which of the two forms it is (sysctl(8)).
pub fn sysctl_dotted(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'/' => key.chars().map(swap_separator).collect(),
        _ => key.to_string(),
    }
}

/// The file of a sysctl below /proc/sys, relative to it; `None` where a part is empty, `.` or `..`,
/// which would lead somewhere else.
pub fn sysctl_file(key: &str) -> Option<PathBuf> {
    let path: String = sysctl_dotted(key).chars().map(swap_separator).collect();
    let bad = |part: &str| part.is_empty() || part == "." || part == "..";
    match path.contains('\0') || path.split('/').any(bad) {
        true => None,
        false => Some(PathBuf::from(path)),
    }
}

/// A path as if there were no links: below the root, without empty, `.` and `..` parts, and without a slash at either end.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn swap_separator(character: char) -> char {
    match character {
        '.' => '/',
        '/' => '.',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_numbers_are_those_of_the_caps_crate() {
        for (number, (capability, name)) in CAPABILITIES.iter().enumerate() {
            let known: caps::Capability = name.parse().unwrap();
            assert_eq!(usize::from(known.index()), number, "{name}");
            assert_eq!(format!("CAP_{capability}"), *name);
        }
        assert_eq!(caps::all().len(), CAPABILITIES.len());
    }

    #[test]
    fn capability_masks() {
        let set: Capabilities = [Capability::Chown, Capability::CheckpointRestore].into();
        assert_eq!(capability_mask(Some(&set)), 1 | 1 << 40);
        assert_eq!(capability_mask(None), 0);
        assert_eq!(
            capability_names(1 | 1 << 40 | 1 << 50),
            ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE", "CAP_50"]
        );
    }

    #[test]
    fn namespaces_match_the_types() {
        for row in NAMESPACES {
            assert_eq!(namespace_of(row.kind), &row);
            assert_eq!(row.flag, row.kind as u64, "{}", row.name);
            let named: LinuxNamespaceType =
                serde_json::from_value(serde_json::json!(row.name)).unwrap();
            assert_eq!(named, row.kind);
            assert!(
                std::path::Path::new("/proc/self/ns")
                    .join(row.file)
                    .exists(),
                "{}",
                row.file
            );
        }
    }

    #[test]
    fn rlimit_names_are_those_of_the_specification() {
        for name in [
            "AS",
            "CORE",
            "CPU",
            "DATA",
            "FSIZE",
            "LOCKS",
            "MEMLOCK",
            "MSGQUEUE",
            "NICE",
            "NOFILE",
            "NPROC",
            "RSS",
            "RTPRIO",
            "RTTIME",
            "SIGPENDING",
            "STACK",
        ] {
            let name = format!("RLIMIT_{name}");
            let kind: PosixRlimitType = name.parse().unwrap();
            assert_eq!(rlimit(kind).1, name);
        }
        assert_eq!(rlimit(PosixRlimitType::RlimitNofile).0, 7);
        assert_eq!(rlimit(PosixRlimitType::RlimitRttime).0, 15);
    }

    #[test]
    fn sysctl_names() {
        for (key, dotted, file) in [
            (
                "net.ipv4.ip_forward",
                "net.ipv4.ip_forward",
                Some("net/ipv4/ip_forward"),
            ),
            (
                "net/ipv4/ip_forward",
                "net.ipv4.ip_forward",
                Some("net/ipv4/ip_forward"),
            ),
            (
                "net/ipv4/conf/eno2.100/rp_filter",
                "net.ipv4.conf.eno2/100.rp_filter",
                Some("net/ipv4/conf/eno2.100/rp_filter"),
            ),
            (
                "net.ipv4.conf.eno2/100.rp_filter",
                "net.ipv4.conf.eno2/100.rp_filter",
                Some("net/ipv4/conf/eno2.100/rp_filter"),
            ),
            (
                "net/../kernel/core_pattern",
                "net.//.kernel.core_pattern",
                None,
            ),
            (
                "net.//.kernel.core_pattern",
                "net.//.kernel.core_pattern",
                None,
            ),
            ("net..x", "net..x", None),
            ("net.", "net.", None),
            ("", "", None),
        ] {
            assert_eq!(sysctl_dotted(key), dotted);
            assert_eq!(sysctl_file(key), file.map(PathBuf::from), "{key}");
        }
    }
}
