//! The rules that a config.json must keep, beyond its types.
//!
//! [`check`] is pure: no system calls, no look at the host; what depends on the host (is there a
//! cgroup controller, may this user do that) is the business of plan and engine. The rules are
//! runc's (libcontainer/configs/validate and specconv) and the specification's MUSTs; where isorun
//! refuses something because it comes with a later version, the sentence says so.

mod hooks;
mod linux;
mod memory_policy;
mod net;
mod process;
mod rdt;
mod schedule;
#[cfg(test)]
mod tests;

pub use rdt::schemata as rdt_schemata;

use std::fmt::Display;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{mounts, names, parse};
use crate::error::{Error, Result};

/// Longest host name and domain name, in bytes: __NEW_UTS_LEN of sethostname(2).
const MAX_UTS_NAME: usize = 64;

/// Options of tmpfs(5) that take a value: what templates leave on a mount that became a bind mount.
const TMPFS_OPTIONS: [&str; 8] = [
    "size",
    "nr_blocks",
    "nr_inodes",
    "mode",
    "uid",
    "gid",
    "huge",
    "mpol",
];

/// Checks a parsed `Spec`; gives one sentence, `path: reason`, for each property in it that isorun
/// does not act on and that does no harm.
///
/// # Errors
///
/// [`crate::error::Kind::Spec`] with the JSON path of the first rule that is broken.
pub fn check(spec: &Spec) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    version(spec.version(), &mut notes)?;
    root(spec)?;
    for (name, there) in [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ] {
        if there {
            notes.push(parse::other_platform(name));
        }
    }
    // Before the process, whose ids must be in the maps.
    linux::check(spec, &mut notes)?;
    // "This property is REQUIRED when start is called" (config.md, "Process"), and not before.
    if let Some(process) = spec.process() {
        process::check(process, spec.linux().as_ref(), &mut notes)?;
    }
    uts_name(spec, "hostname", spec.hostname().as_deref())?;
    uts_name(spec, "domainname", spec.domainname().as_deref())?;
    mount_list(spec, &mut notes)?;
    if let Some(hooks) = spec.hooks() {
        hooks::check(hooks)?;
    }
    if spec
        .annotations()
        .as_ref()
        .is_some_and(|map| map.contains_key(""))
    {
        return Err(Error::spec("annotations", "a key is empty"));
    }
    Ok(notes)
}

/// Checks a process that is to be executed in a container made from `spec`; the sentences as in
/// [`check()`].
///
/// # Errors
///
/// As [`check()`].
pub fn check_process(process: &oci_spec::runtime::Process, spec: &Spec) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    process::check(process, spec.linux().as_ref(), &mut notes)?;
    Ok(notes)
}

/// Refuses what no system call can be told: a string with a null byte.
fn no_null(field: impl Display, text: impl AsRef<[u8]>) -> Result<()> {
    match text.as_ref().contains(&0) {
        true => Err(Error::spec(field.to_string(), "it contains a null byte")),
        false => Ok(()),
    }
}

/// A label of a security module: written to the kernel in one line, and between quotes.
fn label(field: &str, label: Option<&str>) -> Result<()> {
    match label.is_some_and(|label| label.contains(|c: char| c.is_control() || c == '"')) {
        true => Err(Error::spec(
            field,
            "it contains a quote or a control character, which no label has",
        )),
        false => Ok(()),
    }
}

/// What runs otherwise than its author may think, one sentence each, for a warning: options of tmpfs on a
/// bind mount, and a container without a mount namespace.
pub fn warnings(spec: &Spec) -> Vec<String> {
    let mut found = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let Ok(options) = mounts::parse_mount(index, mount) else {
            continue;
        };
        if !options.bind || options.data.is_empty() {
            continue;
        }
        let names: Vec<&str> = options.data.iter().map(|(name, _)| name.as_str()).collect();
        found.push(format!(
            "mounts[{index}].options: {} of tmpfs is ignored: a bind mount shows what is there",
            names.join(", ")
        ));
    }
    if spec.linux().is_some() && !has_namespace(spec, LinuxNamespaceType::Mount) {
        found.push(
            "linux.namespaces: there is no mount namespace: what the container mounts is mounted in \
             isorun's own until it is deleted, and a process in it with CAP_SYS_CHROOT or CAP_SYS_ADMIN \
             can leave its root"
                .into(),
        );
    }
    found
}

/// Whether the list of namespaces has this kind without a path.
fn has_new_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let list = spec.linux().iter().flat_map(|linux| linux.namespaces());
    list.flatten()
        .any(|namespace| namespace.typ() == kind && names::joined(namespace).is_none())
}

/// Whether the list of namespaces has this kind, new or by path.
fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let list = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    list.is_some_and(|list| list.iter().any(|namespace| namespace.typ() == kind))
}

/// ociVersion: semantic version, major 1. A newer minor is taken, as the specification promises
/// compatibility within a major version, but what it added is not known here: a note.
fn version(version: &str, notes: &mut Vec<String>) -> Result<()> {
    const FIELD: &str = "ociVersion";
    if version.is_empty() {
        return Err(Error::spec(
            FIELD,
            "missing: it says which specification config.json follows",
        ));
    }
    let Some([major, minor, _]) = semantic(version) else {
        return Err(Error::spec(
            FIELD,
            format!(
                "{version:?} is not a semantic version such as \"{}\"",
                super::VERSION_MAX
            ),
        ));
    };
    if major != 1 {
        let max = super::VERSION_MAX;
        return Err(Error::spec(
            FIELD,
            format!(
                "{version} is not supported; isorun supports {} to {max}",
                super::VERSION_MIN
            ),
        ));
    }
    if minor > 3 {
        notes.push(format!(
            "{FIELD}: {version} is newer than {}, the version that isorun implements: what it \
             added is ignored",
            super::VERSION_MAX
        ));
    }
    Ok(())
}

/// The numbers of a semantic version; `None` where it is none (semver.org, 2.0.0).
fn semantic(version: &str) -> Option<[u64; 3]> {
    let identifiers = |text: &str| {
        text.split('.').all(|part| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
    };
    let (rest, build) = version
        .split_once('+')
        .map_or((version, None), |(a, b)| (a, Some(b)));
    let (core, pre) = rest
        .split_once('-')
        .map_or((rest, None), |(a, b)| (a, Some(b)));
    if !build.is_none_or(identifiers) || !pre.is_none_or(identifiers) {
        return None;
    }
    let mut numbers = [0; 3];
    let mut parts = core.split('.');
    for number in &mut numbers {
        let part = parts.next()?;
        let leading_zero = part.len() > 1 && part.starts_with('0');
        if leading_zero || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn root(spec: &Spec) -> Result<()> {
    let Some(root) = spec.root() else {
        return Err(Error::spec(
            "root",
            "missing: a container needs a root file system",
        ));
    };
    if root.path().as_os_str().is_empty() {
        return Err(Error::spec(
            "root.path",
            "missing: it names the directory of the root file system",
        ));
    }
    no_null("root.path", root.path().as_os_str().as_encoded_bytes())
}

fn uts_name(spec: &Spec, field: &str, name: Option<&str>) -> Result<()> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    no_null(field, name)?;
    if name.len() > MAX_UTS_NAME {
        let length = name.len();
        return Err(Error::spec(
            field,
            format!("it has {length} bytes; the kernel takes at most {MAX_UTS_NAME}"),
        ));
    }
    match has_namespace(spec, LinuxNamespaceType::Uts) {
        true => Ok(()),
        false => Err(
            Error::spec(field, "it cannot be set without a new UTS namespace")
                .remedy("add {\"type\": \"uts\"} to linux.namespaces"),
        ),
    }
}

fn mount_list(spec: &Spec, notes: &mut Vec<String>) -> Result<()> {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let field = |name: &str| format!("mounts[{index}].{name}");
        let destination = mount.destination();
        if destination.as_os_str().is_empty() {
            return Err(Error::spec(
                field("destination"),
                "missing: it says where to mount",
            ));
        }
        no_null(
            field("destination"),
            destination.as_os_str().as_encoded_bytes(),
        )?;
        if destination.is_relative() {
            notes.push(format!(
                "{}: {:?} is relative, which is deprecated; it is taken as relative to /",
                field("destination"),
                destination.display()
            ));
        }
        if let Some(source) = mount.source() {
            no_null(field("source"), source.as_os_str().as_encoded_bytes())?;
        }
        if let Some(typ) = mount.typ() {
            no_null(field("type"), typ)?;
        }
        let options = mounts::parse_mount(index, mount)?;
        mount_options(index, mount, &options)?;
        id_mapped(spec, index, mount, &options)?;
    }
    Ok(())
}

/// Mounts that show other owners: runc's rules.
fn id_mapped(
    spec: &Spec,
    index: usize,
    mount: &oci_spec::runtime::Mount,
    options: &mounts::MountOptions,
) -> Result<()> {
    let maps = [
        ("uidMappings", mount.uid_mappings()),
        ("gidMappings", mount.gid_mappings()),
    ];
    let maps = maps.map(|(name, map)| (name, map.as_deref().unwrap_or_default()));
    let given = maps.iter().filter(|(_, map)| !map.is_empty()).count();
    if options.idmap.is_none() && given == 0 {
        return Ok(());
    }
    let refuse = |why: &str| Err(Error::spec(format!("mounts[{index}]"), why));
    if !options.bind {
        return refuse("id-mapped mounts are only supported for bind-mounts");
    }
    let own = has_namespace(spec, LinuxNamespaceType::User);
    if given == 1 || given == 0 && !own {
        return refuse("id-mapped mounts must have both uid and gid mappings specified");
    }
    for (name, map) in maps {
        linux::ranges(&format!("mounts[{index}].{name}"), map)?;
    }
    Ok(())
}

/// What the options ask for together with type and source.
fn mount_options(
    index: usize,
    mount: &oci_spec::runtime::Mount,
    options: &mounts::MountOptions,
) -> Result<()> {
    // The place of an option in the list, for the path in the error.
    let place = |is: &dyn Fn(&str) -> bool| {
        let list = mount.options().as_deref().unwrap_or_default();
        match list.iter().position(|option| is(option)) {
            Some(at) => format!("mounts[{index}].options[{at}]"),
            None => format!("mounts[{index}].options"),
        }
    };
    let typ = mount.typ().as_deref().unwrap_or_default();
    if options.bind {
        if mount
            .source()
            .as_ref()
            .is_none_or(|source| source.as_os_str().is_empty())
        {
            return Err(Error::spec(
                format!("mounts[{index}].source"),
                "missing: a bind mount needs the path of what to show",
            ));
        }
        // The kernel ignores data of a bind mount, so a misspelt "readonly" would be writable. Options
        // of tmpfs cannot be that; they are told as a warning.
        let misspelt = |(name, value): &&(String, Option<String>)| {
            value.is_none() || !TMPFS_OPTIONS.contains(&name.as_str())
        };
        if let Some((name, _)) = options.data.iter().find(misspelt) {
            let is = |option: &str| option.split(['=', ',']).any(|part| part == name);
            return Err(Error::spec(
                place(&is),
                format!("unknown mount option {name:?} for a bind mount"),
            ));
        }
    } else if !options.remount && (typ.is_empty() || typ == "none") {
        return Err(Error::spec(
            format!("mounts[{index}].type"),
            "it names no file system, and the options ask for no bind mount",
        ));
    }
    Ok(())
}
