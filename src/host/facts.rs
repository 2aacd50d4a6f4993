//! What files tell about the machine, without trying anything: kernel, distribution, what isorun itself
//! runs in, parameters, security modules, covered parts of /proc, GPUs. For `isorun doctor`.

mod gpu;
mod surroundings;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(super) use gpu::driver_version;
pub use gpu::{Card, CdiFile, Gpu};
pub use surroundings::{Distro, SandboxKind, Surroundings};

use super::Caps;

/// The parameters that decide over sandboxes, as paths below /proc/sys.
const SYSCTLS: [&str; 21] = [
    "kernel/apparmor_restrict_unprivileged_unconfined",
    "kernel/apparmor_restrict_unprivileged_userns",
    "kernel/apparmor_restrict_unprivileged_userns_complain",
    "kernel/apparmor_restrict_unprivileged_userns_force",
    "kernel/cap_last_cap",
    "kernel/keys/maxkeys",
    "kernel/pid_max",
    "kernel/unprivileged_bpf_disabled",
    "kernel/unprivileged_userns_apparmor_policy",
    "kernel/unprivileged_userns_clone",
    "kernel/yama/ptrace_scope",
    "user/max_cgroup_namespaces",
    "user/max_ipc_namespaces",
    "user/max_mnt_namespaces",
    "user/max_net_namespaces",
    "user/max_pid_namespaces",
    "user/max_time_namespaces",
    "user/max_user_namespaces",
    "user/max_uts_namespaces",
    "vm/memfd_noexec",
    "vm/overcommit_memory",
];

/// The kinds of namespaces with the inode number of the initial one (linux/proc_ns.h); the initial network
/// and mount namespace have none that is the same on all kernels.
const INITIAL: [(&str, Option<u64>); 8] = [
    ("cgroup", Some(0xEFFF_FFFB)),
    ("ipc", Some(0xEFFF_FFFF)),
    ("mnt", None),
    ("net", None),
    ("pid", Some(0xEFFF_FFFC)),
    ("time", Some(0xEFFF_FFFA)),
    ("user", Some(0xEFFF_FFFD)),
    ("uts", Some(0xEFFF_FFFE)),
];

/// File systems for which /proc and /sys keep an empty directory: what is mounted there hides nothing.
const ON_EMPTY: [&str; 14] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "efivarfs",
    "fusectl",
    "nfsd",
    "pstore",
    "securityfs",
    "selinuxfs",
    "tracefs",
];

/// What is known without trying.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Facts {
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// The distribution, by os-release(5).
    pub distro: Distro,
    /// What isorun itself runs in.
    pub surroundings: Surroundings,
    /// /proc/self/status: Seccomp (0 none, 1 strict, 2 a filter).
    pub seccomp: u32,
    /// /proc/self/status: NoNewPrivs.
    pub no_new_privs: bool,
    /// /proc/self/status: CapEff.
    pub effective: Caps,
    /// /proc/self/status: CapBnd.
    pub bounding: Caps,
    /// The security modules in their order; nothing where securityfs is not mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsms: Option<Vec<String>>,
    /// AppArmor, where it is enabled: the label that isorun runs under, as `docker-default (enforce)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apparmor: Option<String>,
    /// SELinux, where it is there: whether it is enforcing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selinux_enforcing: Option<bool>,
    /// Kernel parameters, those that are there, by their dotted names.
    pub sysctls: BTreeMap<String, String>,
    /// What is mounted over parts of /proc and hides them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub covered_proc: Vec<String>,
    /// What is mounted over parts of /sys and hides them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub covered_sys: Vec<String>,
    /// The kinds of namespaces in which isorun is not in the machine's initial one, as far as that can be
    /// told; the network and mount namespaces cannot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub foreign_namespaces: Vec<String>,
    /// Controllers that a v1 hierarchy holds, mounted here or not (/proc/cgroups): v2 has none of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_by_v1: Vec<String>,
    /// Controllers that are turned off at boot (cgroup_disable=).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disabled_controllers: Vec<String>,
    /// systemd is what the machine was booted with: /run/systemd/system is there (sd_booted(3)).
    pub systemd: bool,
    /// The caller's ranges of ids in /etc/subuid and /etc/subgid; nothing for root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subids: Option<SubIds>,
    /// GPUs: nodes, driver, CDI files.
    pub gpu: Gpu,
}

/// What newuidmap and newgidmap may map for the caller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubIds {
    /// The caller's name in /etc/passwd; its id where it has none.
    pub user: String,
    /// First id and count of each range in /etc/subuid.
    pub uids: Vec<(u32, u32)>,
    /// The same in /etc/subgid.
    pub gids: Vec<(u32, u32)>,
    /// The first id after all ranges in both files, from which on nobody has any.
    pub free: u32,
    /// newuidmap and newgidmap are in PATH.
    pub helpers: bool,
}

impl Facts {
    /// Looks at this machine and this process. What cannot be read is left as it is by default.
    pub fn read() -> Self {
        let status = text("/proc/self/status");
        let mounts = text("/proc/self/mountinfo");
        let kernel = text("/proc/sys/kernel/osrelease").trim().to_string();
        let foreign = foreign_namespaces();
        let (held_by_v1, disabled_controllers) = controllers(&text("/proc/cgroups"));
        Self {
            surroundings: Surroundings::read(&kernel, &foreign),
            kernel,
            distro: Distro::read(),
            seccomp: field(&status, "Seccomp").parse().unwrap_or(0),
            no_new_privs: field(&status, "NoNewPrivs") == "1",
            effective: caps(&status, "CapEff"),
            bounding: caps(&status, "CapBnd"),
            lsms: lsms(),
            apparmor: apparmor_label(),
            selinux_enforcing: selinux(),
            sysctls: sysctls(),
            covered_proc: covered(&mounts, "/proc/"),
            covered_sys: covered(&mounts, "/sys/"),
            foreign_namespaces: foreign,
            held_by_v1,
            disabled_controllers,
            systemd: std::path::Path::new("/run/systemd/system").is_dir(),
            subids: (!nix::unistd::geteuid().is_root()).then(SubIds::read),
            gpu: Gpu::read(),
        }
    }

    /// The kernel's version and patch level; none where its release does not begin with them.
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut numbers = self
            .kernel
            .split(|c: char| !c.is_ascii_digit())
            .map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// A parameter's value, by its dotted name.
    pub fn sysctl(&self, name: &str) -> Option<&str> {
        self.sysctls.get(name).map(String::as_str)
    }

    /// Ubuntu's restriction of unprivileged user namespaces is on.
    pub fn apparmor_restricts(&self) -> bool {
        self.sysctl("kernel.apparmor_restrict_unprivileged_userns") == Some("1")
    }

    /// isorun runs under an AppArmor profile that confines it.
    pub fn apparmor_confines(&self) -> bool {
        let free = |label: &str| label == "unconfined" || label.ends_with("(unconfined)");
        self.apparmor.as_deref().is_some_and(|label| !free(label))
    }
}

impl SubIds {
    /// Looks up the caller in /etc/passwd, /etc/subuid, /etc/subgid and PATH.
    pub fn read() -> Self {
        let uid = nix::unistd::getuid().as_raw().to_string();
        let passwd = text("/etc/passwd");
        let user = passwd
            .lines()
            .find(|line| line.split(':').nth(2) == Some(&uid))
            .and_then(|line| line.split(':').next())
            .unwrap_or(&uid)
            .to_string();
        let (uids, gids) = (text("/etc/subuid"), text("/etc/subgid"));
        Self {
            uids: ranges(&uids, &user, &uid),
            gids: ranges(&gids, &user, &uid),
            free: free(&uids).max(free(&gids)),
            helpers: in_path("newuidmap") && in_path("newgidmap"),
            user,
        }
    }
}

/// The ranges of `user` (or its number `uid`) in a file of subuid(5).
fn ranges(text: &str, user: &str, uid: &str) -> Vec<(u32, u32)> {
    let range = |line: &str| {
        let mut parts = line.trim().split(':');
        let name = parts.next()?;
        let (first, count) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        (name == user || name == uid).then_some((first, count))
    };
    text.lines().filter_map(range).collect()
}

/// The first id after all ranges of subuid(5), and not below where useradd(8) begins.
fn free(text: &str) -> u32 {
    let end = |line: &str| {
        let mut parts = line.trim().split(':').skip(1);
        let first: u32 = parts.next()?.parse().ok()?;
        first.checked_add(parts.next()?.parse().ok()?)
    };
    text.lines().filter_map(end).fold(100_000, u32::max)
}

/// Whether a program of this name is in PATH.
pub fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// The text of a file; empty where it cannot be read.
fn text(path: &str) -> String {
    std::fs::read(path).map_or_else(
        |_| String::new(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}

/// The first word of the line `name` of /proc/PID/status.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value
        .and_then(|value| value.split_whitespace().next())
        .unwrap_or_default()
}

fn caps(status: &str, name: &str) -> Caps {
    Caps::try_from(field(status, name).to_string()).unwrap_or_default()
}

fn lsms() -> Option<Vec<String>> {
    let list = std::fs::read_to_string("/sys/kernel/security/lsm").ok()?;
    Some(list.trim().split(',').map(str::to_string).collect())
}

fn apparmor_label() -> Option<String> {
    let enabled = text("/sys/module/apparmor/parameters/enabled");
    if !enabled.starts_with('Y') {
        return None;
    }
    // The second is the same on kernels that have no directory for each module (before 5.8).
    let label = [
        "/proc/self/attr/apparmor/current",
        "/proc/self/attr/current",
    ]
    .iter()
    .find_map(|file| std::fs::read_to_string(file).ok());
    Some(
        label
            .unwrap_or_default()
            .trim_end_matches(['\n', '\0'])
            .to_string(),
    )
}

/// Whether SELinux is enforcing, where it is there: by its file system, or without that (in containers it
/// is often not mounted) by the label of this process.
fn selinux() -> Option<bool> {
    match std::fs::read_to_string("/sys/fs/selinux/enforce") {
        Ok(word) => Some(word.trim() == "1"),
        Err(_) => {
            let label = text("/proc/self/attr/current");
            // user:role:type:level; AppArmor's labels have no three colons.
            (label.split(':').count() >= 4).then_some(true)
        }
    }
}

fn sysctls() -> BTreeMap<String, String> {
    let read = |path: &&str| {
        let value = std::fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
        Some((path.replace('/', "."), value.trim().to_string()))
    };
    SYSCTLS.iter().filter_map(read).collect()
}

/// The mount points below `top` (`/proc/`) where something is hidden, by the text of mountinfo.
fn covered(mounts: &str, top: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in mounts.lines() {
        let Some((mount, fs)) = line.split_once(" - ") else {
            continue;
        };
        let Some(point) = mount.split(' ').nth(4) else {
            continue;
        };
        let kind = fs.split(' ').next().unwrap_or_default();
        if point.starts_with(top)
            && !ON_EMPTY.contains(&kind)
            // The tmpfs that holds the hierarchies of v1 is mounted on an empty directory, too.
            && !point.starts_with("/sys/fs/cgroup")
            && !found.iter().any(|known| known == point)
        {
            found.push(point.to_string());
        }
    }
    found
}

/// From /proc/cgroups (name, hierarchy, number of cgroups, enabled): the controllers of v1 hierarchies, and
/// those that are turned off.
fn controllers(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut held, mut disabled) = (Vec::new(), Vec::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [name, .., "0"] => disabled.push((*name).to_string()),
            [name, hierarchy, ..] if *hierarchy != "0" => held.push((*name).to_string()),
            _ => {}
        }
    }
    (held, disabled)
}

fn foreign_namespaces() -> Vec<String> {
    let foreign = |(kind, initial): &(&str, Option<u64>)| {
        let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
        let link = link.to_str()?;
        let inode: u64 = link.split_once('[')?.1.trim_end_matches(']').parse().ok()?;
        (*initial != Some(inode) && initial.is_some()).then(|| (*kind).to_string())
    };
    INITIAL.iter().filter_map(foreign).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_status() {
        let status = "Name:\tSeccomp: 9\nSeccomp:\t2\nNoNewPrivs:\t1\nCapEff:\t00000000a80425fb\n";
        assert_eq!(field(status, "Seccomp"), "2");
        assert!(caps(status, "CapEff").has(Caps::MKNOD));
        assert!(!caps(status, "CapEff").has(Caps::SYS_ADMIN));
        assert_eq!(caps(status, "CapBnd"), Caps(0));
    }

    #[test]
    fn what_hides_a_part_of_proc() {
        let mounts = "\
21 20 0:5 / /proc rw - proc proc rw
22 21 0:6 / /proc/kcore rw - tmpfs tmpfs rw
23 21 0:5 /sys /proc/sys ro - proc proc rw
24 21 0:7 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw
25 20 0:8 / /sys/fs/cgroup rw - tmpfs tmpfs rw
26 20 0:9 / /sys/firmware ro - tmpfs tmpfs ro
27 20 0:9 / /sys/kernel/debug rw - debugfs debugfs rw
";
        assert_eq!(covered(mounts, "/proc/"), ["/proc/kcore", "/proc/sys"]);
        assert_eq!(covered(mounts, "/sys/"), ["/sys/firmware"]);
    }

    #[test]
    fn ranges_of_a_user() {
        let file = "# x\nann:100000:65536\n1000:300000:10\nbob:1:2\nann:x:1\n";
        assert_eq!(
            ranges(file, "ann", "1000"),
            [(100_000, 65536), (300_000, 10)]
        );
        assert_eq!(ranges(file, "eve", "7"), []);
        assert_eq!((free(file), free("")), (300_010, 100_000));
    }

    #[test]
    fn who_holds_a_controller() {
        let text = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t3\t1\t1\nmemory\t0\t1\t0\npids\t0\t9\t1\n";
        let (held, disabled) = controllers(text);
        assert_eq!(
            (held.join(" "), disabled.join(" ")),
            ("cpu".into(), "memory".into())
        );
    }

    #[test]
    fn who_is_confined_by_apparmor() {
        for (label, confined) in [
            (None, false),
            (Some("unconfined"), false),
            (Some("podman (unconfined)"), false),
            (Some("docker-default (enforce)"), true),
            (Some("unprivileged_userns (enforce)"), true),
        ] {
            let facts = Facts {
                apparmor: label.map(str::to_string),
                ..Facts::default()
            };
            assert_eq!(facts.apparmor_confines(), confined, "{label:?}");
        }
    }

    #[test]
    fn this_machine() {
        let facts = Facts::read();
        assert!(!facts.kernel.is_empty() && facts.bounding != Caps(0));
        assert!(facts.sysctl("kernel.pid_max").is_some());
        let json = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<Facts>(&json).unwrap(), facts);
    }
}
