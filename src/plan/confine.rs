//! What makes up for a protection that the host does not give: Landlock, a supplementary system call
//! filter, no_new_privs, fewer capabilities, and paths that nothing is written to.
//!
//! The kernel allows one order only: the mounts and the change of the root first (Landlock forbids
//! mount(2) and pivot_root(2), and afterwards rules what the container sees), then no_new_privs,
//! Landlock, the supplementary filter, and the container's own filter last. What the rules are is
//! computed here, from the specification alone, so that `exec` comes to the same ones.

use std::collections::BTreeMap;

use oci_spec::runtime::{Linux, Spec};
use serde::{Deserialize, Serialize};

use super::degrade::Feature;
use super::sandbox;
use crate::error::Result;
use crate::host::Caps;
use crate::seccomp::Program;
use crate::spec::mounts::parse_mount;
use crate::spec::names;
use crate::sys::mount::attr;

mod filter;

/// The newest version of Landlock's interface (ABI) that isorun has rules for. A newer kernel does what
/// this one does.
pub const NEWEST_ABI: u32 = 7;

/// The versions of the interface that brought a part of it: docs.kernel.org, userspace-api/landlock.
const ABI_FILES: u32 = 1;
const ABI_SCOPES: u32 = 6;

/// What a rule of Landlock allows below a path, or on the file that the path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum May {
    /// Files are opened for reading, and directories listed.
    Read,
    /// Files are executed.
    Execute,
    /// Files are written, cut, made, renamed and removed.
    Change,
    /// Device nodes are made.
    Nodes,
    /// ioctl(2) on devices that are opened.
    Ioctl,
}

/// One rule of Landlock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The path in the container: `/`, where a mount is, or a device.
    pub path: String,
    /// What is allowed there, beside what is allowed further up.
    pub may: Vec<May>,
}

/// What ends at the border of the Landlock domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Connections to abstract sockets that processes outside have made.
    AbstractSockets,
    /// Signals to processes outside.
    Signals,
}

/// A Landlock domain: landlock(7). It also forbids mounts, and tracing processes that are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landlock {
    /// The version of the interface that the rules are for; the kernel has this one or a newer one.
    pub abi: u32,
    /// What is allowed; all else is denied.
    pub rules: Vec<Rule>,
    /// Paths that nothing is allowed on, nor on what is below: rules for what they are in go to all else in
    /// it. With one in /proc the directories of processes are left out as well, which come and go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<String>,
    /// The paths are those of the host, and no mounts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_host: bool,
    /// What ends at its border.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scope: Vec<Scope>,
}

/// The supplementary system call filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supplement {
    /// What it refuses, for people.
    pub refuses: Vec<String>,
    /// The compiled filter.
    pub program: Program,
}

/// All that makes up for what is lost.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Confinement {
    /// The Landlock domain.
    pub(super) landlock: Landlock,
    /// The filter.
    pub(super) supplement: Supplement,
    /// Capabilities that the program does not get.
    pub(super) without_caps: u64,
    /// Paths that become read-only, where they are there.
    pub(super) readonly: Vec<&'static str>,
    /// Paths that are hidden, where they are there.
    pub(super) masked: Vec<&'static str>,
}

/// The least version of Landlock that makes up for a row; nothing: it needs none.
pub(super) fn least_abi(row: Feature) -> Option<u32> {
    match row {
        Feature::Apparmor | Feature::UsernsRoot | Feature::DeviceRules => Some(ABI_FILES),
        Feature::Network | Feature::UsernsUser => Some(ABI_SCOPES),
        _ => None,
    }
}

/// Why a row cannot be made up for on a host with this version of Landlock (0: none); nothing: it can.
pub(super) fn impossible(row: Feature, abi: u32) -> Option<String> {
    let least = least_abi(row).filter(|least| abi < *least)?;
    let name = row.name();
    Some(match abi {
        0 => format!(
            "the degradation {name:?} needs Landlock to make up for it, and this kernel lacks it or has \
             not enabled it (lsm= on its command line)"
        ),
        _ => format!(
            "the degradation {name:?} needs Landlock from ABI {least} on to make up for it, and this \
             kernel has ABI {abi}"
        ),
    })
}

/// What makes up for the loss of `rows` in a container of this specification, on a host with this version
/// of Landlock; nothing where none of them needs it.
///
/// # Errors
/// A mount of the specification that cannot be read, which the plan itself refuses as well.
pub(super) fn plan(
    rows: &[Feature],
    spec: &Spec,
    linux: &Linux,
    abi: u32,
) -> Result<Option<Confinement>> {
    let rows: Vec<Feature> = rows
        .iter()
        .copied()
        .filter(|row| least_abi(*row).is_some())
        .collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let has = |row| rows.contains(&row);
    // Nobody in a user namespace makes nodes; without rules whoever made one could use it.
    let nodes = !has(Feature::UsernsRoot) && !has(Feature::DeviceRules);
    let (mut readonly, mut masked) = (Vec::new(), Vec::new());
    if has(Feature::Apparmor) {
        readonly.extend(READONLY);
        masked.extend(MASKED);
    }
    if has(Feature::Network) {
        readonly.push("/proc/sys/net");
    }
    let sandbox = has(Feature::UsernsUser);
    let mut scope = Vec::new();
    if has(Feature::Network) || sandbox {
        scope.push(Scope::AbstractSockets);
    }
    if sandbox {
        // Without a pid namespace there are others' processes.
        scope.push(Scope::Signals);
    }
    let (rules, hidden) = match sandbox {
        true => sandbox::rules(spec)?,
        false => (rules(spec, linux, nodes)?, Vec::new()),
    };
    Ok(Some(Confinement {
        landlock: Landlock {
            abi: abi.min(NEWEST_ABI),
            rules,
            hidden,
            of_host: sandbox,
            scope,
        },
        supplement: filter::supplement(&rows, linux)?,
        without_caps: rows.iter().fold(0, |all, row| all | power(*row)),
        readonly,
        masked,
    }))
}

/// What the profiles of engines for AppArmor keep from being written: files of the kernel in /proc and
/// /sys that do not belong to a process or a cgroup.
const READONLY: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/dynamic_debug",
    "/proc/fs",
    "/proc/irq",
    "/proc/mtrr",
    "/proc/scsi",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/sys",
    // Mounts in /sys, where there are any, stay what they are when /sys becomes read-only.
    "/sys/fs/bpf",
    "/sys/fs/pstore",
];

/// What they keep from being read.
const MASKED: [&str; 8] = [
    "/proc/kcore",
    "/proc/kmem",
    "/proc/mem",
    "/proc/sys/fs/binfmt_misc",
    "/sys/firmware",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
];

/// The capabilities that would be power over the host without what is lost.
fn power(row: Feature) -> u64 {
    match row {
        Feature::Network => 1 << Caps::NET_ADMIN | 1 << Caps::NET_RAW,
        Feature::DeviceRules => 1 << Caps::MKNOD,
        Feature::UsernsRoot | Feature::UsernsUser => u64::MAX,
        _ => 0,
    }
}

/// The rules mirror the mounts: what is mounted read-only may not be changed, where nothing above it may.
/// Landlock adds up what is allowed on the way to `/`, so that below a writable root a read-only mount
/// stays read-only by its own flag, which nobody in the domain can take off.
fn rules(spec: &Spec, linux: &Linux, nodes: bool) -> Result<Vec<Rule>> {
    let whole = vec![May::Read, May::Execute, May::Ioctl];
    let mut changed = vec![May::Change];
    changed.extend(nodes.then_some(May::Nodes));
    let root = spec.root().as_ref();
    let readonly = root.and_then(|root| root.readonly()).unwrap_or(false);
    let rule = |path: &str, may: &[May]| Rule {
        path: path.to_string(),
        may: may.to_vec(),
    };
    if !readonly {
        return Ok(vec![rule("/", &[whole, changed].concat())]);
    }
    // The last mount on a path is the one that is seen; a remount changes it.
    let mut mounts: BTreeMap<String, bool> = BTreeMap::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let options = parse_mount(index, mount)?;
        let target = format!("/{}", names::clean(&mount.destination().to_string_lossy()));
        let set = options.set | options.recursive_set;
        mounts.insert(target, set & attr::RDONLY == 0);
    }
    mounts.extend(super::channels::targets(spec));
    let mut rules = vec![rule("/", &whole)];
    let writable = mounts.iter().filter(|(_, writable)| **writable);
    rules.extend(writable.map(|(target, _)| rule(target, &changed)));
    // Devices are written to on read-only mounts, too.
    let default = super::mounts::DEFAULT_DEVICES
        .iter()
        .map(|(name, ..)| format!("/dev/{name}"));
    let listed = linux.devices().iter().flatten();
    let listed = listed.map(|device| device.path().to_string_lossy().into_owned());
    let own = ["/dev/console".to_string()];
    let mut devices: Vec<String> = default.chain(listed).chain(own).collect();
    devices.sort();
    devices.dedup();
    rules.extend(devices.iter().map(|path| rule(path, &[May::Change])));
    Ok(rules)
}

/// A domain for people.
pub(super) fn describe(landlock: &Landlock) -> String {
    let name = |may: &May| match may {
        May::Read => "read",
        May::Execute => "execute",
        May::Change => "change",
        May::Nodes => "make nodes",
        May::Ioctl => "ioctl",
    };
    let rules = landlock.rules.iter().map(|rule| {
        let may: Vec<&str> = rule.may.iter().map(name).collect();
        format!("{} {}", rule.path, may.join("+"))
    });
    let scope = landlock.scope.iter().map(|scope| match scope {
        Scope::AbstractSockets => "no abstract sockets of others".to_string(),
        Scope::Signals => "no signals to others".to_string(),
    });
    let hidden = landlock.hidden.iter().map(|path| format!("not {path}"));
    let all: Vec<String> = rules.chain(hidden).chain(scope).collect();
    format!("Landlock (ABI {}): {}", landlock.abi, all.join("; "))
}

#[cfg(test)]
mod tests;
