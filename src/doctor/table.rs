//! The probes: name, what people call the step, and what it means when it is refused.

use crate::host::Caps;

/// What a container loses without a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// No container at all.
    Essential,
    /// Something that configurations ask for.
    Needed,
    /// Nothing that there is no full replacement for, or that only some ask for.
    Extra,
}

/// One probe.
#[derive(Debug)]
pub struct Probe {
    /// Its name; of a chain's step without `root.` or `user.`.
    pub id: &'static str,
    /// For people.
    pub title: &'static str,
    /// What is lost without it.
    pub weight: Weight,
    /// The system calls that a filter may refuse for it, by their names in sys::ask.
    pub calls: &'static [&'static str],
    /// The capability that it needs in the user namespace that isorun runs in.
    pub cap: Option<u32>,
    /// The kernel parameter that can forbid it (ENOSPC).
    pub sysctl: Option<&'static str>,
}

const fn probe(
    id: &'static str,
    title: &'static str,
    weight: Weight,
    calls: &'static [&'static str],
    cap: Option<u32>,
    sysctl: Option<&'static str>,
) -> Probe {
    Probe {
        id,
        title,
        weight,
        calls,
        cap,
        sysctl,
    }
}

use Weight::{Essential, Extra, Needed};

const ADMIN: Option<u32> = Some(Caps::SYS_ADMIN);
const BIRTH: &[&str] = &["clone3", "unshare"];
const MOUNT: &[&str] = &["mount", "fsopen", "move_mount"];
const BIND: &[&str] = &["mount", "open_tree"];

/// The steps of a container, in the order in which it takes them.
#[rustfmt::skip]
pub const STEPS: [Probe; 28] = [
    probe("create", "user namespace", Essential, BIRTH, None, Some("user.max_user_namespaces")),
    // Who is root maps itself only with that, since Linux 5.12; others need no capability.
    probe("map", "map of one's own id", Essential, &[], Some(Caps::SETFCAP), None),
    probe("map-range", "map of a range of ids", Needed, &[], None, None),
    probe("mount", "mount namespace", Essential, BIRTH, ADMIN, Some("user.max_mnt_namespaces")),
    probe("private", "private mounts", Essential, &["mount"], ADMIN, None),
    probe("tmpfs", "mount a tmpfs", Essential, MOUNT, ADMIN, None),
    probe("bind", "bind mount", Essential, BIND, ADMIN, None),
    probe("readonly", "read-only mount", Needed, &["mount", "mount_setattr"], ADMIN, None),
    probe("mount-api", "newer mount calls", Extra, &["fsopen", "open_tree", "mount_setattr"], ADMIN, None),
    probe("devpts", "terminals (devpts)", Needed, MOUNT, ADMIN, None),
    probe("mknod", "device nodes (mknod)", Needed, &["mknodat"], Some(Caps::MKNOD), None),
    probe("bind-node", "device nodes by bind mount", Needed, BIND, ADMIN, None),
    probe("idmap-tmpfs", "id-mapped tmpfs", Extra, &["mount_setattr"], ADMIN, None),
    probe("idmap-root", "id-mapped mount of what / is on", Extra, &["mount_setattr"], ADMIN, None),
    probe("pivot_root", "change of the root (pivot_root)", Essential, &["pivot_root"], ADMIN, None),
    probe("pid", "pid namespace", Essential, BIRTH, ADMIN, Some("user.max_pid_namespaces")),
    probe("proc", "a /proc of its own", Needed, MOUNT, ADMIN, None),
    probe("proc-bind", "the existing /proc instead", Extra, BIND, ADMIN, None),
    probe("ns_last_pid", "choice of the next pid", Extra, &[], None, None),
    probe("net", "network namespace", Needed, BIRTH, ADMIN, Some("user.max_net_namespaces")),
    probe("loopback", "loopback interface", Needed, &[], Some(Caps::NET_ADMIN), None),
    probe("sysfs", "a /sys of its own", Needed, MOUNT, ADMIN, None),
    probe("ipc", "IPC namespace", Needed, BIRTH, ADMIN, Some("user.max_ipc_namespaces")),
    probe("mqueue", "message queues (mqueue)", Needed, MOUNT, ADMIN, None),
    probe("uts", "UTS namespace", Needed, BIRTH, ADMIN, Some("user.max_uts_namespaces")),
    probe("hostname", "a host name of its own", Needed, &["sethostname"], ADMIN, None),
    probe("cgroup", "cgroup namespace", Needed, BIRTH, ADMIN, Some("user.max_cgroup_namespaces")),
    probe("cgroup-mount", "mount of cgroup2", Needed, MOUNT, ADMIN, None),
];

/// The last step, apart because older kernels lack it and few ask for it.
pub const TIME: Probe = probe(
    "time",
    "time namespace",
    Extra,
    BIRTH,
    ADMIN,
    Some("user.max_time_namespaces"),
);

/// What every container has beside its namespaces.
#[rustfmt::skip]
pub const COMMON: [Probe; 23] = [
    probe("seccomp.no_new_privs", "no_new_privs", Essential, &[], None, None),
    probe("seccomp.filter", "filter for system calls", Essential, &["seccomp"], None, None),
    probe("seccomp.log", "filter that logs (LOG)", Extra, &["seccomp"], None, None),
    probe("seccomp.spec_allow", "filter with SPEC_ALLOW", Extra, &["seccomp"], None, None),
    probe("seccomp.tsync", "filter for all threads (TSYNC)", Extra, &["seccomp"], None, None),
    probe("seccomp.listener", "filter that asks (NOTIFY)", Extra, &["seccomp"], None, None),
    probe("landlock", "Landlock", Extra, &[], None, None),
    probe("apparmor.load", "load an AppArmor profile", Extra, &[], Some(Caps::MAC_ADMIN), None),
    probe("cgroup.create", "cgroup", Needed, &[], None, None),
    probe("cgroup.memory", "memory limit", Needed, &[], None, None),
    probe("cgroup.cpu", "CPU limit", Needed, &[], None, None),
    probe("cgroup.pids", "limit of processes", Needed, &[], None, None),
    probe("cgroup.devices", "rules for devices", Needed, &[], ADMIN, None),
    probe("cgroup.delegated", "cgroups by the user's systemd", Extra, &[], None, None),
    probe("limit.rlimit", "limits over the caller's", Needed, &[], Some(Caps::SYS_RESOURCE), None),
    probe("limit.oom_score_adj", "lower oom_score_adj", Needed, &[], Some(Caps::SYS_RESOURCE), None),
    probe("keyring", "session keyring", Needed, &["keyctl"], None, Some("kernel.keys.maxkeys")),
    probe("shm", "/dev/shm", Needed, &[], None, None),
    probe("new.clone3", "clone3", Extra, &["clone3"], None, None),
    probe("new.openat2", "openat2", Extra, &[], None, None),
    probe("new.pidfd", "pidfd", Extra, &[], None, None),
    probe("new.memfd", "memfd with seals", Extra, &[], None, None),
    probe("new.close_range", "close_range", Extra, &[], None, None),
];

/// Which chain a step belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// Without a new user namespace: by root.
    Root,
    /// In a new user namespace.
    User,
    /// Neither.
    Common,
}

/// The probe of this name, and the chain that it belongs to.
pub fn find(name: &str) -> Option<(Chain, &'static Probe)> {
    let step = |id: &str| STEPS.iter().chain([&TIME]).find(|probe| probe.id == id);
    if let Some(id) = name.strip_prefix("root.") {
        return step(id).map(|probe| (Chain::Root, probe));
    }
    if let Some(id) = name.strip_prefix("user.") {
        return step(id).map(|probe| (Chain::User, probe));
    }
    COMMON
        .iter()
        .find(|probe| probe.id == name)
        .map(|probe| (Chain::Common, probe))
}

/// All names in the order in which they are told: the chain of root, the one with a user namespace, the
/// rest.
pub fn names() -> impl Iterator<Item = String> {
    let chain = |prefix: &'static str, skip: usize| {
        let steps = STEPS.iter().skip(skip).chain([&TIME]);
        steps.map(move |probe| format!("{prefix}.{}", probe.id))
    };
    let common = COMMON.iter().map(|probe| probe.id.to_string());
    // The first three are about the user namespace.
    chain("root", 3).chain(chain("user", 0)).chain(common)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_its_probe_and_is_documented() {
        let docs = include_str!("../../docs/doctor.md");
        let mut count = 0;
        for name in names() {
            let (_, probe) = find(&name).unwrap_or_else(|| panic!("{name}"));
            assert!(name.ends_with(probe.id), "{name}");
            assert!(
                docs.contains(&format!("`{}`", probe.id)),
                "{name} is not in docs/doctor.md"
            );
            for call in probe.calls {
                // move_mount cannot be asked without doing something.
                let known = crate::sys::ask::CALLS
                    .iter()
                    .any(|known| known.name == *call);
                assert!(known || *call == "move_mount", "{name}: {call}");
            }
            count += 1;
        }
        assert_eq!(count, 25 + 1 + 28 + 1 + COMMON.len());
        assert!(find("root.bogus").is_none() && find("bogus").is_none());
    }
}
