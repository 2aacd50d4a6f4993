//! What only isorun has: plan, demo, and refusing what it does not act on.

use serde_json::{Value, json};

use crate::harness::{Bundle, runtime};

#[test]
fn plan_prints_and_does_nothing() {
    isorun_only!("runc has no plan");
    let bundle = Bundle::new();
    bundle.write();
    let dir = bundle.bundle_dir();
    let text = bundle.call(&["plan", dir.to_str().unwrap()]).ok();
    assert!(text.stdout.contains("/proc"), "{text:#?}");
    let out = bundle.call(&["plan", dir.to_str().unwrap(), "--json"]).ok();
    let plan: Value = serde_json::from_str(&out.stdout).unwrap();
    let steps = plan["steps"]
        .as_array()
        .unwrap_or_else(|| panic!("steps in {plan:#}"));
    assert!(steps.len() > 10, "{plan:#}");
    bundle.assert_gone();
}

#[test]
fn plan_without_pivot_root() {
    isorun_only!("runc has no plan");
    let bundle = Bundle::new();
    bundle.write();
    let dir = bundle.bundle_dir();
    let plan = |flags: &[&str]| {
        let mut args = vec!["plan", dir.to_str().unwrap()];
        args.extend(flags);
        bundle.call(&args).ok().stdout
    };
    let (with, without) = (plan(&[]), plan(&["--no-pivot"]));
    assert!(
        with.contains("pivot_root") && !with.contains("moved over"),
        "{with}"
    );
    assert!(
        without.contains("moved over") && !without.contains("pivot_root"),
        "{without}"
    );
}

#[test]
fn plan_is_the_same_each_time() {
    isorun_only!("runc has no plan");
    let bundle = Bundle::new();
    bundle.write();
    let dir = bundle.bundle_dir();
    let plan = || {
        bundle
            .call(&["plan", dir.to_str().unwrap(), "--json"])
            .ok()
            .stdout
    };
    assert_eq!(plan(), plan());
}

#[test]
fn plan_of_a_bad_bundle_is_refused() {
    isorun_only!("runc has no plan");
    let mut bundle = Bundle::new();
    bundle.set("/process/cwd", json!("relative")).write();
    let dir = bundle.bundle_dir();
    let out = bundle.call(&["plan", dir.to_str().unwrap()]).code(1);
    assert!(out.stderr.contains("process.cwd"), "{out:#?}");
}

#[test]
fn demo_runs_and_cleans_up() {
    isorun_only!("runc has no demo");
    let bundle = Bundle::new();
    let mut command = bundle.command(&[]);
    command = {
        let mut demo = std::process::Command::new(command.get_program());
        demo.arg("demo")
            .env("ISORUN_TEST_ID", &bundle.id)
            .env("TMPDIR", bundle.host(""));
        demo
    };
    let out = crate::harness::run_command(command, &bundle.dir.join("io")).ok();
    for word in ["pid", "capabilit", "seccomp", "inside", "outside"] {
        assert!(
            out.stdout.to_lowercase().contains(word),
            "{word}: {}",
            out.stdout
        );
    }
    let left: Vec<_> = std::fs::read_dir(bundle.host(""))
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    bundle.assert_gone();
}

/// A field that is not acted on is refused by its name, or ignored with a reason in the docs; it is
/// never taken silently.
#[test]
fn fields_that_are_not_acted_on_are_named() {
    isorun_only!("runc ignores what it does not know");
    let docs =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/spec-support.md"));
    let docs = docs.unwrap_or_default();
    for (pointer, value, name) in [
        (
            "/linux/personality",
            json!({"domain": "LINUX32"}),
            "personality",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH"}),
            "scheduler",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_IDLE", "priority": 1}),
            "ioPriority",
        ),
        (
            "/process/execCPUAffinity",
            json!({"initial": "0"}),
            "execCPUAffinity",
        ),
        ("/vm", json!({"kernel": {"path": "/x"}}), "vm"),
    ] {
        let mut bundle = Bundle::new();
        bundle.set(pointer, value);
        let out = bundle.run();
        let told = out.code == 1 && out.stderr.contains(name);
        assert!(
            told || docs.contains(name),
            "{pointer} is neither refused nor documented: {out:#?}"
        );
        bundle.assert_gone();
    }
}

#[test]
fn help_names_what_works_and_nothing_else() {
    isorun_only!("runc's help is runc's");
    let bundle = Bundle::new();
    let help = bundle.call(&["--help"]).ok().stdout;
    for command in [
        "create", "start", "run", "state", "kill", "delete", "list", "spec", "features", "plan",
        "demo",
    ] {
        assert!(
            help.lines()
                .any(|line| line.trim_start().starts_with(command)),
            "{command}: {help}"
        );
    }
    for later in ["checkpoint", "restore", "doctor", "channel"] {
        let listed = help
            .lines()
            .any(|line| line.trim_start().starts_with(&format!("{later} ")));
        let works = bundle.call(&[later, "--help"]).code == 0;
        assert!(!listed || works, "{later} is in the help and does not work");
    }
    assert!(runtime().isorun);
}

/// Few machines have resctrl; on those the container's group would be seen.
#[test]
fn intel_rdt_without_resctrl_is_refused() {
    isorun_only!("runc looks for it only when schemata are given");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    if mounts.contains(" - resctrl ") {
        skip!("this host has resctrl");
    }
    for rdt in [
        json!({}),
        json!({"closID": "gold", "l3CacheSchema": "L3:0=f"}),
        json!({"enableMonitoring": true}),
    ] {
        let mut bundle = Bundle::new();
        bundle.set("/linux/intelRdt", rdt);
        let out = bundle.run().code(1);
        let says =
            "linux.intelRdt: no resctrl file system is mounted on this host; mount -t resctrl";
        assert!(out.stderr.contains(says), "{out:#?}");
        bundle.assert_gone();
    }
}
