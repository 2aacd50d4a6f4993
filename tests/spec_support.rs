//! docs/spec-support.md says what isorun does with each property: this holds it to the code.
//!
//! tests/data/every-property.json sets every property that oci-spec has types for. That it does is
//! seen by reading it and looking for anything left at `None`; when oci-spec learns a new property,
//! the first test fails until the file and the table have it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};

use isorun::spec::{check, parse};
use serde_json::{Value, json};

const TABLE: &str = include_str!("../docs/spec-support.md");
const EVERY: &str = include_str!("data/every-property.json");
const SEEN: &str = include_str!("../integration/differential/seen.json");

/// What oci-spec has on the top level and the file does not set: other platforms, which have one row
/// each, and two names that are in oci-spec by mistake (its own words).
const LEFT_OUT: [&str; 6] = [
    "gid_mappings",
    "solaris",
    "uid_mappings",
    "vm",
    "windows",
    "zos",
];

/// The same within linux.intelRdt: oci-spec reads enableCmt and enableMbm, which no one writes.
const MISSPELT: [&str; 2] = ["enable_cmt", "enable_mbm"];

/// Rows of the table that oci-spec has no types for, or none that the file sets.
const NO_TYPES: [&str; 7] = [
    "freebsd",
    "linux.intelRdt.enableCMT",
    "linux.intelRdt.enableMBM",
    "solaris",
    "vm",
    "windows",
    "zos",
];

/// Ignored by the cgroup plan, not by `check`: only it knows what the host has.
const BY_CGROUPS: [&str; 2] = [
    "linux.resources.memory.kernel",
    "linux.resources.memory.kernelTCP",
];

/// Properties whose members are keys of a map, not names of the specification.
const MAPS: [&str; 6] = [
    "annotations",
    "linux.netDevices",
    "linux.resources.rdma",
    "linux.resources.unified",
    "linux.sysctl",
    "linux.timeOffsets",
];

/// The table: property to (status, test).
fn table() -> BTreeMap<String, (String, String)> {
    let mut rows = BTreeMap::new();
    for line in TABLE.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        // Property, isorun, runc, crun, note, test.
        assert_eq!(cells.len(), 6, "{line}");
        let property = cells[0].trim_matches('`').to_string();
        let row = (cells[1].to_string(), cells[5].trim_matches('`').to_string());
        assert!(rows.insert(property, row).is_none(), "twice: {line}");
    }
    assert!(rows.len() > 200, "only {} rows were read", rows.len());
    rows
}

/// Every property in a document, in the table's spelling.
fn properties(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = match path {
                    "" => name.clone(),
                    map if MAPS.contains(&map) => format!("{map}{{}}"),
                    _ => format!("{path}.{name}"),
                };
                if !path.ends_with("{}") {
                    found.insert(path.clone());
                }
                properties(member, &path, found);
            }
        }
        Value::Array(elements) => {
            for element in elements {
                properties(element, &format!("{path}[]"), found);
            }
        }
        _ => {}
    }
}

fn every() -> Value {
    serde_json::from_str(EVERY).unwrap()
}

#[test]
fn the_file_sets_every_property_that_oci_spec_knows() {
    let parsed = parse::parse(EVERY.as_bytes()).unwrap();
    let (spec, notes) = (parsed.spec, parsed.ignored);
    assert_eq!(notes, Vec::<String>::new());
    let debug = format!("{spec:#?}");
    let none: BTreeSet<(usize, &str)> = debug
        .lines()
        .filter_map(|line| line.strip_suffix(": None,"))
        .map(|line| (line.len() - line.trim_start().len(), line.trim_start()))
        .collect();
    let expected: BTreeSet<(usize, &str)> = LEFT_OUT
        .iter()
        .map(|name| (4, *name))
        .chain(MISSPELT.iter().map(|name| (20, *name)))
        .collect();
    assert_eq!(
        none, expected,
        "set these in tests/data/every-property.json"
    );
    // And the other way round: every name in the file is one that oci-spec reads and writes.
    let (mut in_file, mut in_types) = (BTreeSet::new(), BTreeSet::new());
    properties(&every(), "", &mut in_file);
    properties(&serde_json::to_value(&spec).unwrap(), "", &mut in_types);
    assert_eq!(in_file, in_types);
}

#[test]
fn the_table_has_every_property_and_no_other() {
    let spec = parse::parse(EVERY.as_bytes()).unwrap().spec;
    let mut known = BTreeSet::new();
    properties(&serde_json::to_value(&spec).unwrap(), "", &mut known);
    known.extend(NO_TYPES.map(String::from));
    let rows: BTreeSet<String> = table().into_keys().collect();
    let missing: Vec<&String> = known.difference(&rows).collect();
    let extra: Vec<&String> = rows.difference(&known).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing {missing:?}, too many {extra:?}"
    );
}

/// The file with everything that is refused or ignored taken out: what remains must pass.
fn accepted(rows: &BTreeMap<String, (String, String)>) -> Value {
    let mut document = every();
    for (property, (status, _)) in rows {
        if status != "yes" {
            remove(&mut document, property);
        }
    }
    document
}

/// Takes a property out of a document, in all elements of the lists on the way.
fn remove(value: &mut Value, property: &str) {
    let (first, rest) = match property.split_once(['.', '[', '{']) {
        Some((first, rest)) => (first, rest.trim_start_matches(['[', ']', '{', '}', '.'])),
        None => (property, ""),
    };
    let Some(members) = value.as_object_mut() else {
        return;
    };
    if rest.is_empty() {
        members.remove(first);
        return;
    }
    match members.get_mut(first) {
        Some(Value::Array(elements)) => elements.iter_mut().for_each(|value| remove(value, rest)),
        Some(Value::Object(inner)) if property.contains("{}") => {
            inner.values_mut().for_each(|value| remove(value, rest));
        }
        Some(other) => remove(other, rest),
        None => {}
    }
}

fn verdict(document: &Value) -> isorun::error::Result<Vec<String>> {
    let mut parsed = parse::parse(document.to_string().as_bytes())?;
    parsed.ignored.extend(check::check(&parsed.spec)?);
    Ok(parsed.ignored)
}

#[test]
fn what_is_said_to_be_acted_on_passes_without_a_note() {
    let rows = table();
    assert_eq!(verdict(&accepted(&rows)).unwrap(), Vec::<String>::new());
    // What cannot be in the file cannot be acted on.
    for property in NO_TYPES {
        assert_ne!(rows[property].0, "yes", "{property}");
    }
}

#[test]
fn what_is_said_to_be_refused_or_ignored_is_by_name() {
    let rows = table();
    let good = accepted(&rows);
    let every = every();
    let mut seen = 0;
    for (property, (status, _)) in &rows {
        if status == "yes" || BY_CGROUPS.contains(&property.as_str()) {
            continue;
        }
        // The outermost property of this status is the one that is named.
        let outermost = rows
            .iter()
            .filter(|(name, row)| {
                row.0 == *status
                    && (property == *name
                        || ["[", "{", "."]
                            .iter()
                            .any(|end| property.starts_with(&format!("{name}{end}"))))
            })
            .map(|(name, _)| name)
            .min_by_key(|name| name.len())
            .unwrap();
        let pointer = format!("/{}", outermost.replace("[]", "/0").replace('.', "/"));
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let value = every
            .pointer(&pointer)
            .cloned()
            .unwrap_or_else(|| json!({}));
        let mut document = good.clone();
        document.pointer_mut(parent).unwrap()[name] = value;
        let named = outermost.replace("[]", "[0]");
        match (status.as_str(), verdict(&document)) {
            ("refused", Err(error)) => {
                let sentence = error.to_string();
                assert!(
                    sentence.contains(&format!("{named}: ")) && sentence.contains("not supported"),
                    "{property}: {sentence}"
                );
            }
            ("ignored", Ok(notes)) => {
                assert_eq!(notes.len(), 1, "{property}: {notes:?}");
                assert!(
                    notes[0].starts_with(&format!("{named}: ")),
                    "{property}: {notes:?}"
                );
            }
            (status, other) => panic!("{property} is {status} in the table, but: {other:?}"),
        }
        seen += 1;
    }
    assert!(seen > 8, "{seen}");
}

/// The columns of the references: property to [runc, crun].
fn references() -> BTreeMap<String, [String; 2]> {
    let rows = TABLE.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let property = cells[0].trim_matches('`').to_string();
        (property, [cells[2].to_string(), cells[3].to_string()])
    })
    .collect()
}

#[test]
fn what_the_references_do_is_what_was_seen() {
    let seen: BTreeMap<String, BTreeMap<String, Option<String>>> =
        serde_json::from_str(SEEN).unwrap();
    let rows = references();
    for (property, cells) in &rows {
        let said = |runtime: &str| {
            let word = seen.get(property).and_then(|by| by[runtime].clone());
            word.unwrap_or_else(|| "–".into())
        };
        assert_eq!(
            cells,
            &[said("runc"), said("crun")],
            "{property}: integration/differential/run --record writes these columns"
        );
    }
    let unknown: Vec<&String> = seen
        .keys()
        .filter(|name| !rows.contains_key(*name))
        .collect();
    assert!(unknown.is_empty(), "seen, but no row: {unknown:?}");
    // A table of dashes says nothing.
    let dashes = rows.values().filter(|cells| cells[0] == "–").count();
    assert!(dashes < 5, "{dashes} properties were never run under runc");
}

#[test]
fn every_row_names_a_test_that_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let rows = table();
    // A cell may name several.
    let tests = rows.iter().flat_map(|(property, (status, tests))| {
        assert!(
            ["yes", "refused", "ignored"].contains(&status.as_str()),
            "{property}: {status}"
        );
        tests.split("`, `").map(move |test| (property, test))
    });
    for (property, test) in tests {
        if test.starts_with("tests/") {
            assert!(root.join(test).is_file(), "{property}: there is no {test}");
            continue;
        }
        // module::tests, module::tests::file or module::tests::name: a file, and a function in it.
        let parts: Vec<&str> = test.split("::").collect();
        let at = parts.iter().position(|part| *part == "tests").expect(test);
        let base = root.join("src").join(parts[..at].join("/"));
        let mut text = String::new();
        for file in [
            "tests.rs",
            "tests/mod.rs",
            "tests/kernel_devices.rs",
            "tests/linux.rs",
            "tests/process.rs",
        ] {
            text += &std::fs::read_to_string(base.join(file)).unwrap_or_default();
        }
        text += &std::fs::read_to_string(base.with_extension("rs")).unwrap_or_default();
        assert!(
            !text.is_empty(),
            "{property}: no tests at {}",
            base.display()
        );
        if let Some(name) = parts[at + 1..].last() {
            assert!(
                text.contains(&format!("fn {name}()")),
                "{property}: there is no {test}"
            );
        }
    }
}
