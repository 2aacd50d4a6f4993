//! The part of the plan that is about Intel RDT.

use oci_spec::runtime::Linux;
use serde::{Deserialize, Serialize};

/// The group of the resctrl file system that the container's processes are in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rdt {
    /// Its directory below resctrl; empty for the default group.
    pub group: String,
    /// config.json names it by linux.intelRdt.closID: it may be another's, too, and stays.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub named: bool,
    /// Lines for its schemata file, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schemata: Vec<String>,
    /// The name of a monitoring group for the container alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<String>,
}

/// The lines for a schemata file that l3CacheSchema and memBwSchema ask for, or the flags of `update`.
#[must_use]
pub fn schema_lines(l3_cache: Option<&str>, mem_bw: Option<&str>) -> Vec<String> {
    let bandwidth = mem_bw.filter(|schema| !schema.is_empty());
    let lines = l3_cache.unwrap_or_default().lines();
    // Up to 1.2 of the specification: what memBwSchema says takes the place of these.
    let dropped = |line: &str| line.is_empty() || bandwidth.is_some() && line.starts_with("MB:");
    lines
        .filter(|line| !dropped(line))
        .chain(bandwidth)
        .map(String::from)
        .collect()
}

/// What linux.intelRdt asks for; `id` is the container's.
pub(super) fn plan(linux: &Linux, id: &str) -> Option<Rdt> {
    let rdt = linux.intel_rdt().as_ref()?;
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let named = filled(rdt.clos_id());
    let mut schemata = schema_lines(
        rdt.l3_cache_schema().as_deref(),
        rdt.mem_bw_schema().as_deref(),
    );
    let more = rdt.schemata().iter().flatten();
    schemata.extend(more.filter(|line| !line.is_empty()).cloned());
    Some(Rdt {
        named: named.is_some(),
        group: match named {
            Some(root) if root == "/" => String::new(),
            Some(name) => name,
            None => id.to_string(),
        },
        schemata,
        monitoring: rdt
            .enable_monitoring()
            .unwrap_or(false)
            .then(|| id.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(rdt: Value) -> Rdt {
        let linux: Linux = serde_json::from_value(json!({"intelRdt": rdt})).unwrap();
        plan(&linux, "box").unwrap()
    }

    #[test]
    fn groups_and_lines_in_the_specifications_order() {
        let none = of(json!({}));
        assert_eq!((none.group.as_str(), none.named), ("box", false));
        assert!(none.schemata.is_empty() && none.monitoring.is_none());
        let all = of(json!({
            "closID": "gold", "enableMonitoring": true,
            "schemata": ["L2:0=f", ""], "memBwSchema": "MB:0=20",
            "l3CacheSchema": "L3:0=f\nMB:0=90",
        }));
        assert_eq!((all.group.as_str(), all.named), ("gold", true));
        assert_eq!(all.schemata, ["L3:0=f", "MB:0=20", "L2:0=f"]);
        assert_eq!(all.monitoring.as_deref(), Some("box"));
        let root = of(json!({"closID": "/", "l3CacheSchema": "L3:0=f\nMB:0=90"}));
        assert_eq!((root.group.as_str(), root.named), ("", true));
        assert_eq!(root.schemata, ["L3:0=f", "MB:0=90"]);
        assert_eq!(of(json!({"closID": ""})), none);
    }
}
