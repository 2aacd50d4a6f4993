//! Names of capabilities that this version does not know. config.md, `process.capabilities`: what cannot
//! be mapped to the kernel is told as a warning, and does not fail. oci-spec refuses such a name, and takes
//! spellings that are none (`kill`, `cap_kill`, `CAP_CAP_KILL`), which runc takes for unknown ones: so a
//! document is without them before it becomes a type.

use std::collections::HashMap;

use oci_spec::runtime::Capability;
use serde::Deserialize;
use serde_json::Value;

use super::names;

/// Of config.json: the names of its capabilities, and nothing else.
#[derive(Deserialize)]
struct Document {
    process: Option<Part>,
}

#[derive(Deserialize)]
struct Part {
    capabilities: Option<HashMap<String, Option<Vec<Option<String>>>>>,
}

/// Whether config.json, a text that is known to be read, has a name that is not known. One pass without a
/// tree of values, for the happy path.
pub(super) fn any_unknown(text: &[u8]) -> bool {
    let sets = match serde_json::from_slice::<Document>(text) {
        Ok(document) => document.process.and_then(|process| process.capabilities),
        // Of a form that the slower way has to look at.
        Err(_) => return true,
    };
    let mut lists = sets.iter().flat_map(HashMap::values).flatten();
    lists.any(|names| names.iter().flatten().any(|name| !known(name)))
}

/// Takes the unknown names out of a process object, all sets of it; gives the warning about them.
pub(super) fn drop_unknown(process: &mut Value) -> Option<String> {
    let sets = process.get_mut("capabilities")?.as_object_mut()?;
    let mut found = Vec::new();
    for list in sets.values_mut().filter_map(Value::as_array_mut) {
        list.retain(|name| match name.as_str() {
            Some(name) if !known(name) => {
                found.push(name.to_string());
                false
            }
            _ => true,
        });
    }
    warning(found).map(|sentence| format!("process.capabilities: {sentence}"))
}

/// runc's warning about unknown names, each once and in order; none about none.
pub fn warning(mut unknown: Vec<String>) -> Option<String> {
    unknown.sort_unstable();
    unknown.dedup();
    let names = super::parse::one_line(unknown.join(" "));
    (!unknown.is_empty())
        .then(|| format!("ignoring unknown or unavailable capabilities: [{names}]"))
}

/// The capability of a name as the specification has it.
pub fn by_name(name: &str) -> Option<Capability> {
    let mut table = names::CAPABILITIES.iter();
    table
        .find(|(_, known)| *known == name)
        .map(|(found, _)| *found)
}

fn known(name: &str) -> bool {
    by_name(name).is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_goes_and_is_told_once() {
        let mut process = json!({"capabilities": {
            "bounding": ["CAP_KILL", "CAP_Z", "kill", "CAP_CAP_KILL", 5],
            "ambient": ["CAP_Z", "a\nb"], "effective": null}});
        assert!(any_unknown(
            json!({"process": process}).to_string().as_bytes()
        ));
        assert_eq!(
            drop_unknown(&mut process).unwrap(),
            "process.capabilities: ignoring unknown or unavailable capabilities: \
             [CAP_CAP_KILL CAP_Z a\\nb kill]"
        );
        let left = json!({"bounding": ["CAP_KILL", 5], "ambient": [], "effective": null});
        assert_eq!(process["capabilities"], left);
        assert_eq!(drop_unknown(&mut process), None);
        assert_eq!(drop_unknown(&mut json!({})), None);
    }

    #[test]
    fn known_names_need_no_second_look() {
        for document in [
            json!({}),
            json!({"process": {}}),
            json!({"process": {"capabilities": {}}}),
            json!({"process": {"capabilities": {"bounding": ["CAP_KILL"]}}, "linux": {"x": [1]}}),
        ] {
            assert!(!any_unknown(document.to_string().as_bytes()), "{document}");
        }
    }
}
