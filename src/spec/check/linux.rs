//! linux: namespaces, mappings, devices, sysctl, paths, and the consistency of resources.

use oci_spec::runtime::{
    Linux, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, LinuxResources, Spec,
};

use super::{has_namespace, has_new_namespace, memory_policy, net, no_null, process, rdt};
use crate::error::{Error, Result};
use crate::spec::{mounts, names};

/// Ranges of a map that the kernel takes at most: UID_GID_MAP_MAX_EXTENTS of user_namespaces(7).
const MAX_RANGES: usize = 340;

/// The kernel's device numbers have 12 bits of major and 20 of minor.
const MAX_MAJOR: i64 = 0xfff;
const MAX_MINOR: i64 = 0xf_ffff;

/// Checks what is below `linux`.
///
/// # Errors
///
/// The path of the first field that breaks a rule.
pub(super) fn check(spec: &Spec, notes: &mut Vec<String>) -> Result<()> {
    namespaces(spec)?;
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    mappings(spec, linux)?;
    time_offsets(spec, linux)?;
    devices(linux)?;
    sysctl(spec, linux)?;
    paths(linux)?;
    if let Some(resources) = linux.resources() {
        self::resources(resources, notes)?;
    }
    net::check(spec, linux)?;
    if let Some(policy) = linux.memory_policy() {
        memory_policy::check(policy)?;
    }
    if let Some(rdt) = linux.intel_rdt() {
        rdt::check(rdt, notes)?;
    }
    super::label("linux.mountLabel", linux.mount_label().as_deref())?;
    if linux
        .personality()
        .as_ref()
        .and_then(|personality| personality.flags().as_ref())
        .is_some_and(|flags| !flags.is_empty())
    {
        notes.push(
            "linux.personality.flags: ignored, none are defined; runc ignores them too".into(),
        );
    }
    Ok(())
}

fn namespaces(spec: &Spec) -> Result<()> {
    let list = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_deref());
    let mut seen = 0;
    for (index, namespace) in list.unwrap_or_default().iter().enumerate() {
        let row = names::namespace_of(namespace.typ());
        if seen & row.flag != 0 {
            let name = row.name;
            return Err(Error::spec(
                format!("linux.namespaces[{index}].type"),
                format!("namespace \"{name}\" is there twice"),
            ));
        }
        seen |= row.flag;
        let Some(path) = names::joined(namespace) else {
            continue;
        };
        let field = format!("linux.namespaces[{index}].path");
        no_null(&field, path.as_os_str().as_encoded_bytes())?;
        if !path.is_absolute() {
            let path = path.display();
            return Err(Error::spec(
                field,
                format!("{path:?} is not an absolute path"),
            ));
        }
    }
    if seen & names::namespace_of(LinuxNamespaceType::Mount).flag != 0 {
        return Ok(());
    }
    without_mount_namespace(
        spec,
        seen & names::namespace_of(LinuxNamespaceType::User).flag != 0,
    )
}

/// What cannot be had in the caller's mount namespace (docs/decisions/0010).
fn without_mount_namespace(spec: &Spec, user: bool) -> Result<()> {
    const ADD: &str = "add {\"type\": \"mount\"} to linux.namespaces";
    let Some(linux) = spec.linux() else {
        return Err(Error::spec(
            "linux",
            "missing: it says which namespaces the container has",
        )
        .remedy(ADD));
    };
    if user {
        let why = "a user namespace needs a mount namespace beside it: it gives no right to mount \
                   anything in the caller's";
        return Err(Error::spec("linux.namespaces", why).remedy(ADD));
    }
    for (name, paths) in [
        ("maskedPaths", linux.masked_paths()),
        ("readonlyPaths", linux.readonly_paths()),
    ] {
        if paths.as_ref().is_some_and(|paths| !paths.is_empty()) {
            // In runc's words.
            let why = "unable to restrict sys entries without a private MNT namespace";
            return Err(Error::spec(format!("linux.{name}"), why).remedy(ADD));
        }
    }
    Ok(())
}

fn mappings(spec: &Spec, linux: &Linux) -> Result<()> {
    let user = has_namespace(spec, LinuxNamespaceType::User);
    let joined = user && !has_new_namespace(spec, LinuxNamespaceType::User);
    for (name, map) in [
        ("uidMappings", linux.uid_mappings()),
        ("gidMappings", linux.gid_mappings()),
    ] {
        let field = format!("linux.{name}");
        let map = map.as_deref().unwrap_or_default();
        match (user, map.is_empty()) {
            (false, true) => continue,
            // Of a joined namespace the maps are what they are; engines repeat them here, and the
            // engine compares.
            (true, true) if joined => continue,
            (false, false) => {
                return Err(Error::spec(field, "it is there without a user namespace")
                    .remedy("add {\"type\": \"user\"} to linux.namespaces"));
            }
            (true, true) => {
                return Err(Error::spec(field, "missing: a new user namespace needs it"));
            }
            (true, false) => ranges(&field, map)?,
        }
        if !joined && !process::mapped(0, map) {
            return Err(Error::spec(field, "the container's id 0 is not mapped"));
        }
    }
    Ok(())
}

/// The kernel's rules for a map: ranges are not empty, end in 32 bits and do not overlap.
pub(super) fn ranges(field: &str, map: &[LinuxIdMapping]) -> Result<()> {
    if map.len() > MAX_RANGES {
        let count = map.len();
        return Err(Error::spec(
            field,
            format!("{count} ranges; the kernel takes {MAX_RANGES}"),
        ));
    }
    type Side = fn(&LinuxIdMapping) -> u32;
    let sides: [(&str, Side); 2] = [
        ("containerID", LinuxIdMapping::container_id),
        ("hostID", LinuxIdMapping::host_id),
    ];
    for (index, range) in map.iter().enumerate() {
        if range.size() == 0 {
            return Err(Error::spec(
                format!("{field}[{index}].size"),
                "it is 0 or missing",
            ));
        }
        for (name, first) in sides {
            let span = |range: &LinuxIdMapping| {
                let start = u64::from(first(range));
                start..start + u64::from(range.size())
            };
            let this = span(range);
            // The last id, 4294967295, is the kernel's "no id".
            let why = if this.end > u64::from(u32::MAX) {
                "the range goes beyond the last id, 4294967294".to_string()
            } else {
                let hit = map[..index].iter().position(|other| {
                    let other = span(other);
                    this.start < other.end && other.start < this.end
                });
                match hit {
                    Some(other) => format!("the range overlaps that of {field}[{other}]"),
                    None => continue,
                }
            };
            return Err(Error::spec(format!("{field}[{index}].{name}"), why));
        }
    }
    Ok(())
}

fn time_offsets(spec: &Spec, linux: &Linux) -> Result<()> {
    let Some(offsets) = linux.time_offsets().as_ref().filter(|map| !map.is_empty()) else {
        return Ok(());
    };
    if !has_new_namespace(spec, LinuxNamespaceType::Time) {
        return Err(Error::spec(
            "linux.timeOffsets",
            "it is there without a new time namespace",
        )
        .remedy("add {\"type\": \"time\"} to linux.namespaces"));
    }
    for (clock, offset) in offsets {
        let shown = clock.escape_debug();
        if !["monotonic", "boottime"].contains(&clock.as_str()) {
            return Err(Error::spec(
                format!("linux.timeOffsets.{shown}"),
                "unknown clock; a time namespace has monotonic and boottime",
            ));
        }
        if offset
            .nanosecs()
            .is_some_and(|nanos| nanos >= 1_000_000_000)
        {
            return Err(Error::spec(
                format!("linux.timeOffsets.{shown}.nanosecs"),
                "it is a second or more",
            ));
        }
    }
    Ok(())
}

fn devices(linux: &Linux) -> Result<()> {
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let field = |name: &str| format!("linux.devices[{index}].{name}");
        let path = device.path();
        no_null(field("path"), path.as_os_str().as_encoded_bytes())?;
        if !path.is_absolute() {
            let path = path.display();
            return Err(Error::spec(
                field("path"),
                format!("{path:?} is not an absolute path"),
            ));
        }
        match device.typ() {
            LinuxDeviceType::A => {
                return Err(Error::spec(
                    field("type"),
                    "\"a\" is no device; it is c, u, b or p",
                ));
            }
            LinuxDeviceType::P => continue,
            LinuxDeviceType::B | LinuxDeviceType::C | LinuxDeviceType::U => {}
        }
        for (name, number, max) in [
            ("major", device.major(), MAX_MAJOR),
            ("minor", device.minor(), MAX_MINOR),
        ] {
            if !(0..=max).contains(&number) {
                return Err(Error::spec(
                    field(name),
                    format!("{number} is outside 0 to {max}"),
                ));
            }
        }
    }
    Ok(())
}

/// Sysctls that an IPC namespace has its own of, beside all of `fs.mqueue`.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Only sysctls that a new namespace of the container has its own of: anything else would change
/// the host. The list is runc's.
fn sysctl(spec: &Spec, linux: &Linux) -> Result<()> {
    for (key, value) in linux.sysctl().iter().flatten() {
        let wrong = |why: &str| Err(Error::spec(format!("linux.sysctl[{key:?}]"), why));
        no_null(format_args!("linux.sysctl[{key:?}]"), value)?;
        if names::sysctl_file(key).is_none() {
            return wrong("it is not the name of a sysctl");
        }
        let name = names::sysctl_dotted(key);
        if IPC_SYSCTLS.contains(&name.as_str()) || name.starts_with("fs.mqueue.") {
            if !has_namespace(spec, LinuxNamespaceType::Ipc) {
                return wrong("it is not allowed in the host's IPC namespace");
            }
        } else if name.starts_with("net.") {
            if !has_namespace(spec, LinuxNamespaceType::Network) {
                return wrong("it is not allowed in the host's network namespace");
            }
        } else if name == "kernel.hostname" {
            return wrong("it conflicts with the property hostname, which sets the same");
        } else if name != "kernel.domainname" || !has_namespace(spec, LinuxNamespaceType::Uts) {
            return wrong("it is not in a separate kernel namespace, so it would change the host");
        }
    }
    Ok(())
}

fn paths(linux: &Linux) -> Result<()> {
    for (name, list) in [
        ("maskedPaths", linux.masked_paths()),
        ("readonlyPaths", linux.readonly_paths()),
    ] {
        for (index, path) in list.iter().flatten().enumerate() {
            let field = format_args!("linux.{name}[{index}]");
            no_null(field, path)?;
            if !path.starts_with('/') {
                let field = field.to_string();
                return Err(Error::spec(
                    field,
                    format!("{path:?} is not an absolute path"),
                ));
            }
        }
    }
    if let Some(path) = linux.cgroups_path() {
        no_null("linux.cgroupsPath", path.as_os_str().as_encoded_bytes())?;
    }
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => Ok(()),
        Some(name) if mounts::propagation(name).is_some() => Ok(()),
        Some(name) => Err(Error::spec(
            "linux.rootfsPropagation",
            format!("{name:?} is none of shared, slave, private and unbindable"),
        )),
    }
}

/// Consistency only: which controllers are there and which values they take is the business of the
/// cgroup module.
fn resources(resources: &LinuxResources, notes: &mut Vec<String>) -> Result<()> {
    for (index, rule) in resources.devices().iter().flatten().enumerate() {
        let field = |name: &str| format!("linux.resources.devices[{index}].{name}");
        if matches!(rule.typ(), Some(LinuxDeviceType::U | LinuxDeviceType::P)) {
            return Err(Error::spec(field("type"), "a rule is for a (all), b or c"));
        }
        let access = rule.access().as_deref().unwrap_or_default();
        if access.is_empty() {
            return Err(Error::spec(
                field("access"),
                "missing: it is made of r, w and m",
            ));
        }
        if access.bytes().any(|letter| !b"rwm".contains(&letter)) {
            return Err(Error::spec(
                field("access"),
                format!("{access:?} is not made of r, w and m"),
            ));
        }
        // -1 is how runc writes "any" into its own state; the specification leaves it out.
        for (name, number) in [("major", rule.major()), ("minor", rule.minor())] {
            if number.is_some_and(|number| number < -1) {
                return Err(Error::spec(field(name), "it is negative"));
            }
        }
    }
    if let Some(memory) = resources.memory()
        && memory.use_hierarchy() == Some(false)
    {
        notes.push(
            "linux.resources.memory.useHierarchy: ignored, the kernel always counts the groups \
             below, too"
                .into(),
        );
    }
    Ok(())
}
