//! Intel RDT, in a tree of files that debug builds take for resctrl: what create, exec, events, update
//! and delete do with a group. What the kernel makes in a new group the tests make before.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::exec::exec;
use crate::harness::{Bundle, runtime};

/// Whether this is the isorun that cargo has built for these tests, and not for a release.
fn takes_trees() -> bool {
    cfg!(debug_assertions) && runtime().path == *env!("CARGO_BIN_EXE_isorun")
}

struct Tree(PathBuf);

impl Tree {
    /// resctrl with the group "gold", and in it a monitoring group for the container.
    fn new(bundle: &mut Bundle) -> Self {
        let tree = Self(bundle.host("resctrl"));
        let own = format!("gold/mon_groups/{}", bundle.id);
        for (path, text) in [
            ("schemata", "    L3:0=ff\n"),
            ("info/L3/cbm_mask", "ff\n"),
            ("info/L3/min_cbm_bits", "2\n"),
            ("info/L3/num_closids", "16\n"),
            ("info/L3_MON/mon_features", "llc_occupancy\n"),
            // Nothing else: a file keeps what is behind what is written.
            ("gold/schemata", "L3:0=0f\n"),
            ("gold/tasks", ""),
            (&format!("{own}/tasks"), ""),
            (&format!("{own}/mon_data/mon_L3_00/llc_occupancy"), "4096\n"),
        ] {
            let path = tree.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let names = format!("ISORUN_TEST_RESCTRL={}", tree.0.display());
        bundle.prefix = vec!["env".into(), names];
        tree
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.join(path)).unwrap().trim().into()
    }
}

#[test]
fn a_group_from_create_to_delete() {
    isorun_only!("runc looks for a mounted resctrl");
    if !takes_trees() {
        skip!("only a debug build of isorun takes a tree of files for resctrl");
    }
    let mut bundle = Bundle::sh("exec sleep 1000");
    let tree = Tree::new(&mut bundle);
    let own = format!("gold/mon_groups/{}", bundle.id);
    let tasks = ["gold/tasks".to_string(), format!("{own}/tasks")];
    let rdt = json!({"closID": "gold", "enableMonitoring": true, "l3CacheSchema": "L3:0=f"});
    bundle.set("/linux/intelRdt", rdt);
    bundle.create().ok();
    let pid = bundle.pid().to_string();
    for file in &tasks {
        assert_eq!(tree.read(file), pid, "{file}");
    }
    bundle.start().ok();

    for file in &tasks {
        fs::write(tree.0.join(file), "").unwrap();
    }
    exec(&bundle, &["true"]).ok();
    let entered: i32 = tree.read(&tasks[0]).parse().unwrap();
    assert!(entered > 0 && entered.to_string() != pid);
    assert_eq!(tree.read(&tasks[1]), entered.to_string());

    let out = bundle.call(&["events", "--stats", &bundle.id]).ok();
    let line: Value = serde_json::from_str(&out.stdout).unwrap();
    assert_eq!(
        line["data"]["intel_rdt"],
        json!({
            "l3_cache_info": {"cbm_mask": "ff", "min_cbm_bits": 2, "num_closids": 16},
            "l3_cache_schema_root": "L3:0=ff", "l3_cache_schema": "L3:0=0f",
            "cmt_stats": [{"llc_occupancy": 4096}],
        })
    );

    let update = |flags: &[&str]| bundle.call(&[&["update"], flags, &[&bundle.id]].concat());
    let out = update(&["--l3-cache-schema", "L3:0=03"]).ok();
    assert_eq!(tree.read("gold/schemata"), "L3:0=03");
    assert!(out.stderr.contains("not the container's alone"), "{out:#?}");
    // With a file, too; and when a limit in it is refused, the old schema is back.
    let file = bundle.host("resources.json");
    fs::write(&file, r#"{"unified": {"no.such": "1"}}"#).unwrap();
    let flags = [
        "--resources",
        file.to_str().unwrap(),
        "--l3-cache-schema",
        "L3:0=30",
    ];
    let out = update(&flags).code(1);
    assert!(!out.stderr.contains("after a refused limit"), "{out:#?}");
    assert_eq!(tree.read("gold/schemata"), "L3:0=03");
    fs::write(&file, "{}").unwrap();
    update(&flags).ok();
    assert_eq!(tree.read("gold/schemata"), "L3:0=30");
    let out = update(&["--mem-bw-schema", "MB:0=20"]).code(1);
    let says = "--mem-bw-schema: Intel RDT: this host has no allocation of memory bandwidth";
    assert!(out.stderr.contains(says), "{out:#?}");
    assert_eq!(tree.read("gold/schemata"), "L3:0=30");

    // The kernel's part of rmdir(2).
    let own = tree.0.join(own);
    fs::remove_dir_all(own.join("mon_data")).unwrap();
    fs::remove_file(own.join("tasks")).unwrap();
    bundle.delete_force().ok();
    assert!(!own.exists(), "it was made for the container");
    assert!(tree.0.join("gold/tasks").exists(), "it was not");
}

#[test]
fn a_container_that_cannot_be_made_leaves_no_group() {
    isorun_only!("runc looks for a mounted resctrl");
    if !takes_trees() {
        skip!("only a debug build of isorun takes a tree of files for resctrl");
    }
    let mut bundle = Bundle::sh("true");
    let tree = Tree::new(&mut bundle);
    // As it is made: without its files, so that no process can be put into it.
    bundle.set("/linux/intelRdt", json!({}));
    let out = bundle.run().code(1);
    assert!(out.stderr.contains("tasks: ENOENT"), "{out:#?}");
    assert!(!tree.0.join(&bundle.id).exists());
    bundle.assert_gone();
}

#[test]
fn a_container_without_a_group_has_nothing_to_update() {
    isorun_only!("runc looks for a mounted resctrl");
    if !takes_trees() {
        skip!("only a debug build of isorun takes a tree of files for resctrl");
    }
    let mut bundle = Bundle::sh("exec sleep 1000");
    let tree = Tree::new(&mut bundle);
    bundle.run_detached().ok();
    let flags = ["update", "--l3-cache-schema", "L3:0=03", &bundle.id];
    let out = bundle.call(&flags).code(1);
    let says = "has no group of resctrl to change; a container gets one when it is made, by linux.intelRdt";
    assert!(out.stderr.contains(says), "{out:#?}");
    assert_eq!(tree.read("schemata"), "L3:0=ff");
    let out = bundle.call(&["events", "--stats", &bundle.id]).ok();
    let line: Value = serde_json::from_str(&out.stdout).unwrap();
    assert_eq!(line["data"]["intel_rdt"], json!({}));
}
