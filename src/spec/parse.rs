//! JSON to types.
//!
//! One pass on the happy path. Only when that fails: nulls are taken out (Go's decoder, which the
//! engines write for, reads null as "not set"), and if it still fails, the place of the mistake is
//! turned into a JSON path.

use oci_spec::runtime::{Process, Spec};
use serde_ignored::Path;
use serde_json::Value;

use super::{capabilities, objects, place, spelling};
use crate::error::{Error, Kind, Result};

/// Top-level objects of other platforms than Linux. `freebsd` came with specification 1.3.
pub const OTHER_PLATFORMS: [&str; 5] = ["freebsd", "solaris", "vm", "windows", "zos"];

/// A config.json that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The document as types.
    pub spec: Spec,
    /// A sentence for each thing in it that is left out, for the log.
    pub ignored: Vec<String>,
    /// What of it a user must hear: for a warning.
    pub warnings: Vec<String>,
}

/// Parses config.json.
///
/// Properties that the specification does not know are ignored, as it demands, except that a name
/// which differs from a known one in upper and lower case only is worth a sentence.
///
/// # Errors
///
/// [`Kind::Spec`]: not JSON (with line and column), or a value of the wrong type, an unknown name of
/// an enumeration, a missing property (with the JSON path).
pub fn parse(bytes: &[u8]) -> Result<Parsed> {
    // Derived types can be read from arrays, too; the document itself must be an object.
    let first = match typed(bytes) {
        Ok(parsed) if bytes.trim_ascii_start().starts_with(b"{") => {
            let process = parsed.spec.process().as_ref();
            let named = process.is_some_and(|process| process.capabilities().is_some());
            if named && capabilities::any_unknown(bytes) {
                return parse_loosely(bytes, None);
            }
            let priority = process.is_some_and(|process| process.io_priority().is_some());
            if objects::may_be_arrays(bytes) || priority {
                let value: Value = serde_json::from_slice(bytes).map_err(plain)?;
                objects::check(&value, "")?;
                objects::priority_has_class(value.pointer("/process/ioPriority"))?;
            }
            return Ok(parsed);
        }
        Ok(_) => return Err(no_object()),
        Err(error) => error,
    };
    parse_loosely(bytes, Some(&first))
}

/// The second pass, on a document that is made to what our types read; `first` is what they said of it
/// as written.
fn parse_loosely(bytes: &[u8], first: Option<&serde_json::Error>) -> Result<Parsed> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|error| {
        Error::new(
            Kind::Spec,
            format!("config.json is not valid JSON: {error}"),
        )
    })?;
    if !value.is_object() {
        return Err(no_object());
    }
    objects::check(&value, "")?;
    let (mut ignored, mut warnings) = (Vec::new(), Vec::new());
    let changed = normalise(&mut value, &mut ignored, &mut warnings);
    if let Some(first) = first.filter(|_| !changed) {
        return Err(explain(bytes, first, true));
    }
    let text = serde_json::to_vec(&value).map_err(plain)?;
    match typed(&text) {
        Ok(parsed) => {
            objects::priority_has_class(value.pointer("/process/ioPriority"))?;
            ignored.extend(parsed.ignored);
            Ok(Parsed {
                spec: parsed.spec,
                ignored,
                warnings,
            })
        }
        Err(error) => Err(explain(&text, &error, false)),
    }
}

/// Parses the text of a process file of `exec`: what config.json has as its `process`. The second value
/// is what a user must hear of it: for a warning.
///
/// # Errors
///
/// As [`parse`], without the path of what is wrong: serde's own words.
pub fn process(bytes: &[u8]) -> Result<(Process, Option<String>)> {
    let wrong = |error: serde_json::Error| Error::new(Kind::Spec, one_line(error.to_string()));
    let mut value: Value = serde_json::from_slice(bytes).map_err(wrong)?;
    objects::check(&value, "process.")?;
    drop_nulls(&mut value);
    spelling::process(&mut value);
    let warning = capabilities::drop_unknown(&mut value);
    match value.as_object_mut() {
        None => return Err(Error::new(Kind::Spec, "it is not a JSON object")),
        // Go's decoder starts from root.
        Some(map) => map
            .entry("user")
            .or_insert_with(|| Value::Object(serde_json::Map::new())),
    };
    objects::priority_has_class(value.get("ioPriority"))?;
    let process = serde_json::from_value(value).map_err(wrong)?;
    Ok((process, warning))
}

/// The one pass: types, and a sentence for each left-out name.
fn typed(bytes: &[u8]) -> serde_json::Result<Parsed> {
    let mut ignored = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let spec = serde_ignored::deserialize(&mut json, |path| ignored.extend(unknown(&path)))?;
    json.end()?;
    Ok(Parsed {
        spec,
        ignored,
        warnings: Vec::new(),
    })
}

/// What to say about a name that the types do not have; nothing where the specification has it
/// neither.
fn unknown(path: &Path<'_>) -> Option<String> {
    let Path::Map { parent, key } = path else {
        return None;
    };
    let top = matches!(parent, Path::Root);
    if top && OTHER_PLATFORMS.contains(&key.as_str()) {
        return Some(other_platform(key));
    }
    // Not in oci-spec by these names, and of no effect by any: the specification has dropped them.
    if let "linux.intelRdt.enableCMT" | "linux.intelRdt.enableMBM" = json_path(path).as_str() {
        return Some(format!(
            "{}: ignored, enableMonitoring takes its place since specification 1.3",
            json_path(path)
        ));
    }
    let known = KNOWN.iter().find(|known| known.eq_ignore_ascii_case(key))?;
    // The right name in the wrong place is a name that the specification does not know there.
    (known != key).then(|| {
        format!(
            "{}: ignored, names are case-sensitive: the specification's is \"{known}\"",
            json_path(path)
        )
    })
}

/// Why an object of another platform is left out.
pub(super) fn other_platform(name: &str) -> String {
    format!("{name}: ignored, it is for another platform than Linux")
}

/// `linux.namespaces[2].type`, from the path of serde_ignored.
fn json_path(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", json_path(parent)),
        Path::Map { parent, key } => match json_path(parent) {
            parent if parent.is_empty() => one_line(key.clone()),
            parent => format!("{parent}.{}", one_line(key.clone())),
        },
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => json_path(parent),
    }
}

/// Makes of a document what Go's decoder makes of it, where our types are stricter: a null member
/// is absent, `process.user` may be absent (root), a seccomp object that says nothing is no filter,
/// names of capabilities may be unknown, and what is for other platforms does not matter. Tells whether
/// anything changed.
fn normalise(value: &mut Value, ignored: &mut Vec<String>, warnings: &mut Vec<String>) -> bool {
    let mut changed = drop_nulls(value);
    let Some(top) = value.as_object_mut() else {
        return changed;
    };
    for name in OTHER_PLATFORMS {
        if top.remove(name).is_some() {
            ignored.push(other_platform(name));
            changed = true;
        }
    }
    if let Some(process) = top.get_mut("process").and_then(Value::as_object_mut)
        && !process.contains_key("user")
    {
        process.insert("user".into(), Value::Object(serde_json::Map::new()));
        changed = true;
    }
    if let Some(process) = top.get_mut("process") {
        changed |= spelling::process(process);
        let unknown = capabilities::drop_unknown(process);
        changed |= unknown.is_some();
        warnings.extend(unknown);
    }
    if let Some(linux) = top.get_mut("linux").and_then(Value::as_object_mut)
        && linux.get("seccomp").is_some_and(says_nothing)
    {
        linux.remove("seccomp");
        changed = true;
    }
    changed
}

/// A seccomp object without default action and system calls: runc takes it as no filter.
fn says_nothing(seccomp: &Value) -> bool {
    let Some(seccomp) = seccomp.as_object() else {
        return false;
    };
    let action = seccomp
        .get("defaultAction")
        .is_none_or(|action| action == "");
    let calls = seccomp
        .get("syscalls")
        .is_none_or(|calls| calls.as_array().is_some_and(Vec::is_empty));
    action && calls
}

/// Takes out null members, at every depth; tells whether there were any.
pub fn drop_nulls(value: &mut Value) -> bool {
    let mut changed = false;
    match value {
        Value::Object(map) => {
            let before = map.len();
            map.retain(|_, member| !member.is_null());
            changed = map.len() != before;
            map.values_mut()
                .for_each(|member| changed |= drop_nulls(member));
        }
        Value::Array(list) => list
            .iter_mut()
            .for_each(|member| changed |= drop_nulls(member)),
        _ => {}
    }
    changed
}

/// Makes a sentence of serde_json's error: the JSON path, and the place where it helps, which is in
/// the text as written only.
fn explain(text: &[u8], error: &serde_json::Error, as_written: bool) -> Error {
    let path = one_line(place::path_at(text, error.line(), error.column()));
    let mut detail = one_line(error.to_string());
    if !as_written && let Some(at) = detail.rfind(" at line ") {
        detail.truncate(at);
    }
    // These two are said of the object around the member.
    for (prefix, says) in [
        ("missing field `", "missing"),
        ("duplicate field `", "it is there twice"),
    ] {
        let Some(rest) = detail.strip_prefix(prefix) else {
            continue;
        };
        let (name, place) = rest.split_once('`').unwrap_or((rest, ""));
        let dot = if path.is_empty() { "" } else { "." };
        return Error::spec(format!("{path}{dot}{name}"), format!("{says}{place}"));
    }
    let path = if path.is_empty() {
        "config.json".into()
    } else {
        path
    };
    Error::spec(path, detail)
}

/// Names and values may hold anything; a sentence is one line.
pub(super) fn one_line(text: String) -> String {
    match text.contains(char::is_control) {
        true => text.escape_debug().to_string(),
        false => text,
    }
}

fn no_object() -> Error {
    Error::new(Kind::Spec, "config.json is not a JSON object")
}

fn plain(error: serde_json::Error) -> Error {
    Error::new(Kind::Spec, format!("config.json: {error}"))
}

/// Every name that the specification's Linux part uses, for spotting a wrong case: runc's decoder
/// accepts `readOnly`, so a config that works there must not lose its meaning here unnoticed.
const KNOWN: [&str; 151] = [
    "ociVersion",
    "process",
    "root",
    "hostname",
    "domainname",
    "mounts",
    "hooks",
    "annotations",
    "linux",
    "path",
    "readonly",
    "destination",
    "type",
    "source",
    "options",
    "uidMappings",
    "gidMappings",
    "terminal",
    "consoleSize",
    "height",
    "width",
    "user",
    "uid",
    "gid",
    "umask",
    "additionalGids",
    "username",
    "args",
    "commandLine",
    "env",
    "cwd",
    "capabilities",
    "bounding",
    "effective",
    "inheritable",
    "permitted",
    "ambient",
    "rlimits",
    "hard",
    "soft",
    "noNewPrivileges",
    "apparmorProfile",
    "oomScoreAdj",
    "scheduler",
    "policy",
    "nice",
    "priority",
    "flags",
    "runtime",
    "deadline",
    "period",
    "selinuxLabel",
    "ioPriority",
    "class",
    "execCPUAffinity",
    "initial",
    "final",
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
    "timeout",
    "sysctl",
    "resources",
    "cgroupsPath",
    "namespaces",
    "devices",
    "netDevices",
    "seccomp",
    "rootfsPropagation",
    "maskedPaths",
    "readonlyPaths",
    "mountLabel",
    "intelRdt",
    "memoryPolicy",
    "personality",
    "timeOffsets",
    "containerID",
    "hostID",
    "size",
    "major",
    "minor",
    "fileMode",
    "allow",
    "access",
    "memory",
    "cpu",
    "pids",
    "blockIO",
    "hugepageLimits",
    "network",
    "rdma",
    "unified",
    "limit",
    "reservation",
    "swap",
    "kernel",
    "kernelTCP",
    "swappiness",
    "disableOOMKiller",
    "useHierarchy",
    "checkBeforeUpdate",
    "shares",
    "quota",
    "burst",
    "realtimeRuntime",
    "realtimePeriod",
    "cpus",
    "mems",
    "idle",
    "weight",
    "leafWeight",
    "weightDevice",
    "throttleReadBpsDevice",
    "throttleWriteBpsDevice",
    "throttleReadIOPSDevice",
    "throttleWriteIOPSDevice",
    "rate",
    "pageSize",
    "classID",
    "priorities",
    "name",
    "hcaHandles",
    "hcaObjects",
    "defaultAction",
    "defaultErrnoRet",
    "architectures",
    "listenerPath",
    "listenerMetadata",
    "syscalls",
    "names",
    "action",
    "errnoRet",
    "index",
    "value",
    "valueTwo",
    "op",
    "closID",
    "schemata",
    "l3CacheSchema",
    "memBwSchema",
    "enableCMT",
    "enableMBM",
    "enableMonitoring",
    "mode",
    "nodes",
    "domain",
    "secs",
    "nanosecs",
];
