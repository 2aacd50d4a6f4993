//! `features` says what the code does: everything in the document is taken by `plan`, and what is not in it
//! is refused; and nothing that runc lists is missing without a reason.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Bundle, Output};

fn document() -> Value {
    let out = Bundle::new().call(&["features"]).ok();
    serde_json::from_str(&out.stdout).expect("features prints JSON")
}

fn names(document: &Value, pointer: &str) -> BTreeSet<String> {
    let list = document.pointer(pointer).and_then(Value::as_array);
    let list = list.unwrap_or_else(|| panic!("{pointer} is a list: {document:#}"));
    list.iter()
        .map(|name| name.as_str().expect("a name").to_string())
        .collect()
}

fn plan(bundle: &Bundle) -> Output {
    bundle.write();
    bundle.call(&["plan", bundle.bundle_dir().to_str().unwrap(), "--json"])
}

/// Each of these values, put into a bundle by `put`, is taken; `other` is not.
#[track_caller]
fn all_taken(names: &BTreeSet<String>, other: &str, put: impl Fn(&mut Bundle, &str)) {
    assert!(!names.is_empty());
    for name in names {
        let mut bundle = Bundle::new();
        put(&mut bundle, name);
        let out = plan(&bundle);
        assert_eq!(out.code, 0, "{name} is in features: {}", out.stderr);
        for word in ["unknown", "ignored"] {
            assert!(!out.stderr.contains(word), "{name}: {}", out.stderr);
        }
    }
    assert!(!names.contains(other));
    let mut bundle = Bundle::new();
    put(&mut bundle, other);
    plan(&bundle).code(1);
}

#[test]
fn mount_options() {
    isorun_only!("it asks isorun's plan");
    let document = document();
    all_taken(
        &names(&document, "/mountOptions"),
        "wonderful",
        |bundle, name| {
            bundle.mount("/mnt", "bind", "/", &["rbind", name]);
            if name.ends_with("idmap") {
                let map = json!([{"containerID": 0, "hostID": 100_000, "size": 10}]);
                let last = bundle.config["mounts"].as_array().unwrap().len() - 1;
                bundle.set(&format!("/mounts/{last}/uidMappings"), map.clone());
                bundle.set(&format!("/mounts/{last}/gidMappings"), map);
            }
        },
    );
}

#[test]
fn namespaces_capabilities_and_hooks() {
    isorun_only!("it asks isorun's plan");
    let document = document();
    all_taken(
        &names(&document, "/linux/namespaces"),
        "wonderful",
        |bundle, name| {
            bundle.without_namespace(name).namespace(name);
            if name == "user" {
                let map = json!([{"containerID": 0, "hostID": 100_000, "size": 10}]);
                bundle.set("/linux/uidMappings", map.clone());
                bundle.set("/linux/gidMappings", map);
            }
        },
    );
    // One that is not known is told, as the specification has it.
    let listed = names(&document, "/linux/capabilities");
    let mut bundle = Bundle::new();
    let mut all: Vec<&str> = listed.iter().map(String::as_str).collect();
    bundle.set("/process/capabilities/bounding", json!(all));
    // As text: warnings are no part of the JSON.
    let text = |bundle: &Bundle| {
        bundle.write();
        let out = bundle.call(&["plan", bundle.bundle_dir().to_str().unwrap()]);
        out.ok()
    };
    let out = text(&bundle);
    assert!(
        listed.len() > 40 && !out.stdout.contains("unknown"),
        "{out:#?}"
    );
    all.push("CAP_WONDERFUL");
    bundle.set("/process/capabilities/bounding", json!(all));
    let told = "ignoring unknown or unavailable capabilities: [CAP_WONDERFUL]";
    let out = text(&bundle);
    assert!(out.stdout.contains(told), "{out:#?}");
    // A name that is no hook is ignored, as the specification has it: what is planned tells.
    for name in names(&document, "/hooks") {
        let mut bundle = Bundle::new();
        bundle.set(
            &format!("/hooks/{name}"),
            json!([{"path": "/bin/hook-of-this-test"}]),
        );
        let out = plan(&bundle).ok();
        assert!(
            out.stdout.contains("/bin/hook-of-this-test"),
            "{name}: {out:#?}"
        );
    }
}

#[test]
fn seccomp() {
    isorun_only!("it asks isorun's plan");
    let document = document();
    let rule = |action: &str, operator: &str| {
        json!({"names": ["getpgrp"], "action": action,
               "args": [{"index": 0, "value": 1, "valueTwo": 1, "op": operator}]})
    };
    let profile = |arch: &str, flag: Option<&str>, rule: Value| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [arch], "flags": flag.iter().collect::<Vec<_>>(),
               "listenerPath": "/run/agent", "syscalls": [rule]})
    };
    let at = |name: &str| names(&document, &format!("/linux/seccomp/{name}"));
    const ARCH: &str = "SCMP_ARCH_X86_64";
    all_taken(&at("actions"), "SCMP_ACT_WONDERFUL", |bundle, name| {
        let profile = profile(ARCH, None, rule(name, "SCMP_CMP_EQ"));
        bundle.set("/linux/seccomp", profile);
    });
    all_taken(&at("operators"), "SCMP_CMP_WONDERFUL", |bundle, name| {
        let profile = profile(ARCH, None, rule("SCMP_ACT_ERRNO", name));
        bundle.set("/linux/seccomp", profile);
    });
    all_taken(&at("archs"), "SCMP_ARCH_WONDERFUL", |bundle, name| {
        let profile = profile(name, None, rule("SCMP_ACT_ERRNO", "SCMP_CMP_EQ"));
        bundle.set("/linux/seccomp", profile);
    });
    all_taken(
        &at("knownFlags"),
        "SECCOMP_FILTER_FLAG_WONDERFUL",
        |bundle, name| {
            // A flag that is for filters with a listener only.
            let action = match name.contains("KILLABLE") {
                true => "SCMP_ACT_NOTIFY",
                false => "SCMP_ACT_ERRNO",
            };
            let profile = profile(ARCH, Some(name), rule(action, "SCMP_CMP_EQ"));
            bundle.set("/linux/seccomp", profile);
        },
    );
    assert!(at("supportedFlags").is_subset(&at("knownFlags")));
}

#[test]
fn versions_switches_and_annotations() {
    isorun_only!("it asks isorun's plan");
    let document = document();
    for name in ["ociVersionMin", "ociVersionMax"] {
        let mut bundle = Bundle::new();
        bundle.set("/ociVersion", document[name].clone());
        plan(&bundle).ok();
    }
    // What the document says that there is not is refused, and what it says that there is is taken.
    let rows = [
        (
            "intelRdt/enabled",
            "/linux/intelRdt",
            json!({"closID": "a"}),
        ),
        (
            "netDevices/enabled",
            "/linux/netDevices",
            json!({"dummy0": {"name": "eth0"}}),
        ),
    ];
    for (switch, pointer, value) in rows {
        let said = document.pointer(&format!("/linux/{switch}")) == Some(&json!(true));
        let mut bundle = Bundle::new();
        bundle.set(pointer, value);
        let out = plan(&bundle);
        // On a host without resctrl it may still not be had, which is another sentence.
        let refused = out.code != 0 && out.stderr.contains("not supported by this version");
        assert_eq!(said, !refused, "{switch}: {out:#?}");
    }
    let modes = names(&document, "/linux/memoryPolicy/modes");
    for mode in &modes {
        let mut bundle = Bundle::new();
        let nodes = if matches!(mode.as_str(), "MPOL_DEFAULT" | "MPOL_LOCAL") {
            ""
        } else {
            "0"
        };
        bundle.set("/linux/memoryPolicy", json!({"mode": mode, "nodes": nodes}));
        plan(&bundle).ok();
    }
    if modes.is_empty() {
        let mut bundle = Bundle::new();
        bundle.set(
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}),
        );
        plan(&bundle).code(1);
    }
    for (pointer, expected) in [
        ("/linux/cgroup/v1", json!(true)),
        ("/linux/cgroup/v2", json!(true)),
        ("/linux/cgroup/systemd", json!(true)),
        ("/linux/cgroup/systemdUser", json!(true)),
        ("/linux/cgroup/rdma", json!(true)),
        ("/linux/apparmor/enabled", json!(true)),
        ("/linux/selinux/enabled", json!(true)),
        ("/linux/mountExtensions/idmap/enabled", json!(true)),
        (
            "/potentiallyUnsafeConfigAnnotations",
            json!(["io.isorun.", "org.systemd.property."]),
        ),
        (
            "/annotations/io.isorun.version",
            json!(env!("CARGO_PKG_VERSION")),
        ),
    ] {
        assert_eq!(document.pointer(pointer), Some(&expected), "{pointer}");
    }
}
