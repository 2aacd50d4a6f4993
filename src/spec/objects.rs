//! Objects that are written as arrays. Derived types can be read from these, too: an empty array
//! would pass for an object without a member, which Go's decoder, and so runc, refuses.

use serde_json::Value;

use crate::error::{Error, Result};

/// Names of properties that are arrays.
const LISTS: &[&str] = &[
    "additionalGids",
    "ambient",
    "architectures",
    "args",
    "bounding",
    "createContainer",
    "createRuntime",
    "devices",
    "effective",
    "env",
    "flags",
    "gidMappings",
    "hugepageLimits",
    "inheritable",
    "maskedPaths",
    "mounts",
    "names",
    "namespaces",
    "options",
    "permitted",
    "poststart",
    "poststop",
    "prestart",
    "priorities",
    "readonlyPaths",
    "rlimits",
    "schemata",
    "startContainer",
    "syscalls",
    "throttleReadBpsDevice",
    "throttleReadIOPSDevice",
    "throttleWriteBpsDevice",
    "throttleWriteIOPSDevice",
    "uidMappings",
    "weightDevice",
];

/// Where the specification has objects that are structures of ours; `*` is each element or member.
const OBJECTS: &[&str] = &[
    "root",
    "process",
    "process.user",
    "process.consoleSize",
    "process.capabilities",
    "process.rlimits.*",
    "process.scheduler",
    "process.ioPriority",
    "process.execCPUAffinity",
    "mounts.*",
    "mounts.*.uidMappings.*",
    "mounts.*.gidMappings.*",
    "hooks",
    "hooks.*.*",
    "linux",
    "linux.namespaces.*",
    "linux.uidMappings.*",
    "linux.gidMappings.*",
    "linux.timeOffsets",
    "linux.timeOffsets.*",
    "linux.devices.*",
    "linux.netDevices.*",
    "linux.resources",
    "linux.resources.*",
    "linux.resources.devices.*",
    "linux.resources.hugepageLimits.*",
    "linux.resources.network.priorities.*",
    "linux.resources.blockIO.*.*",
    "linux.resources.rdma.*",
    "linux.seccomp",
    "linux.seccomp.syscalls.*",
    "linux.seccomp.syscalls.*.args.*",
    "linux.intelRdt",
    "linux.memoryPolicy",
    "linux.personality",
];

/// Members of `linux.resources` that are arrays.
const RESOURCE_LISTS: [&str; 2] = ["devices", "hugepageLimits"];

/// Whether a text, JSON that can be read, may have an array where an object belongs. Cheap, for the
/// happy path: it says yes to a `[` in a string, too, and to every array that the specification does
/// not know.
pub(super) fn may_be_arrays(text: &[u8]) -> bool {
    let mut at = 0;
    while let Some(found) = text[at..].iter().position(|&byte| byte == b'[') {
        let before = text[..at + found].trim_ascii_end();
        at += found + 1;
        let Some((b':', name)) = before.split_last() else {
            return true;
        };
        let name = name.trim_ascii_end().strip_suffix(b"\"");
        let known = name.is_some_and(|name| {
            LISTS.iter().any(|list| {
                name.strip_suffix(list.as_bytes())
                    .is_some_and(|rest| rest.ends_with(b"\""))
            })
        });
        if !known {
            return true;
        }
    }
    false
}

/// Refuses an array where the specification has an object. `below` is where the document belongs:
/// nothing, or `process.` for a process file.
///
/// # Errors
/// The path of the first one.
pub(super) fn check(document: &Value, below: &str) -> Result<()> {
    let patterns = OBJECTS.iter().filter_map(|path| path.strip_prefix(below));
    for pattern in patterns {
        let parts: Vec<_> = pattern.split('.').collect();
        if let Some(path) = array_at(document, &parts, String::new()) {
            return Err(Error::spec(path, "it must be an object, not an array"));
        }
    }
    Ok(())
}

/// Refuses a `process.ioPriority` without a class, which the specification requires: oci-spec 0.10 reads
/// best effort there, runc and crun refuse it.
///
/// # Errors
/// The path of the class.
pub(super) fn priority_has_class(priority: Option<&Value>) -> Result<()> {
    match priority.and_then(Value::as_object) {
        Some(members) if members.get("class").is_none_or(Value::is_null) => Err(Error::spec(
            "process.ioPriority.class",
            "missing: it is IOPRIO_CLASS_RT, IOPRIO_CLASS_BE or IOPRIO_CLASS_IDLE",
        )),
        _ => Ok(()),
    }
}

/// The path of the first array at a place of `parts`.
fn array_at(value: &Value, parts: &[&str], path: String) -> Option<String> {
    let Some((part, rest)) = parts.split_first() else {
        let name = path.rsplit('.').next().unwrap_or_default();
        let resource = path.starts_with("linux.resources.") && RESOURCE_LISTS.contains(&name);
        return (value.is_array() && !resource).then_some(path);
    };
    let dot = if path.is_empty() { "" } else { "." };
    match (*part, value) {
        ("*", Value::Array(list)) => list
            .iter()
            .enumerate()
            .find_map(|(index, item)| array_at(item, rest, format!("{path}[{index}]"))),
        ("*", Value::Object(map)) => map
            .iter()
            .find_map(|(name, item)| array_at(item, rest, format!("{path}{dot}{name}"))),
        (name, Value::Object(map)) => array_at(map.get(name)?, rest, format!("{path}{dot}{name}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arrays_in_the_place_of_objects_are_found() {
        let good = br#"{"process": {"args" : ["a"], "rlimits": [{}]}, "mounts":[{"options": []}]}"#;
        assert!(!may_be_arrays(good));
        for (text, path) in [
            (r#"{"linux": []}"#, "linux"),
            (r#"{"linux": {"resources": []}}"#, "linux.resources"),
            (r#"{"process": {"user": [1, 2]}}"#, "process.user"),
            (r#"{"mounts": [[]]}"#, "mounts[0]"),
            (r#"{"mounts": [{}, []]}"#, "mounts[1]"),
            (
                r#"{"linux": {"resources": {"memory": []}}}"#,
                "linux.resources.memory",
            ),
            (r#"{"hooks": {"poststop": [[]]}}"#, "hooks.poststop[0]"),
        ] {
            assert!(may_be_arrays(text.as_bytes()), "{text}");
            let value = serde_json::from_str(text).unwrap();
            let error = check(&value, "").unwrap_err().to_string();
            assert!(error.contains(&format!("{path}: ")), "{text}: {error}");
        }
    }

    #[test]
    fn arrays_that_belong_there_are_none() {
        let value = json!({"process": {"args": ["[", "]"]}, "x": {"user": []}, "linux": {"resources":
            {"devices": [{}], "hugepageLimits": [{}]}, "seccomp": {"syscalls": [{"args": [{}]}]}}});
        assert!(may_be_arrays(value.to_string().as_bytes()));
        check(&value, "").unwrap();
        assert!(check(&json!({"user": []}), "process.").is_err());
        check(&json!({"args": []}), "process.").unwrap();
    }

    #[test]
    fn an_io_priority_needs_its_class() {
        for wrong in [json!({}), json!({"priority": 1}), json!({"class": null})] {
            let error = priority_has_class(Some(&wrong)).unwrap_err().to_string();
            assert!(
                error.contains("process.ioPriority.class: missing"),
                "{error}"
            );
        }
        priority_has_class(None).unwrap();
        priority_has_class(Some(&json!({"class": "IOPRIO_CLASS_RT"}))).unwrap();
    }
}
