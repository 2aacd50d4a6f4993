//! ps: which processes a container has.

use crate::exec::idle;
use crate::harness::{Bundle, wait_for};

/// Whether there is a ps(1), which makes the table.
pub fn has_ps() -> bool {
    std::process::Command::new("ps").output().is_ok()
}

fn pids(bundle: &Bundle) -> Vec<i32> {
    let out = bundle.call(&["ps", "--format", "json", &bundle.id]).ok();
    serde_json::from_str::<Option<Vec<i32>>>(&out.stdout)
        .unwrap()
        .unwrap_or_default()
}

#[test]
fn json_and_table() {
    if !has_ps() {
        skip!("there is no ps here");
    }
    let bundle = Bundle::sh("sleep 1111 & sleep 2222 & exec sleep 3333");
    bundle.run_detached().ok();
    wait_for("three processes", || {
        let out = bundle.call(&["ps", &bundle.id]).ok();
        ["sleep 1111", "sleep 2222", "sleep 3333"]
            .iter()
            .all(|name| out.stdout.contains(name))
    });
    let mut found = pids(&bundle);
    found.sort_unstable();
    assert_eq!(found.len(), 3);
    assert!(found.contains(&bundle.pid()));
    let out = bundle.call(&["ps", &bundle.id]).ok();
    assert!(out.stdout.starts_with("UID"), "{out:#?}");
    assert_eq!(out.stdout.lines().count(), 4, "{out:#?}");
    // What follows the id is for ps.
    let out = bundle
        .call(&["ps", &bundle.id, "-e", "-o", "pid,args"])
        .ok();
    assert_eq!(out.stdout.lines().count(), 4, "{out:#?}");
    assert!(out.stdout.trim_start().starts_with("PID"), "{out:#?}");
    let out = bundle.call(&["ps", &bundle.id, "-e", "-o", "args"]).code(1);
    assert!(
        out.stderr.contains("couldn't find PID field in ps output"),
        "{out:#?}"
    );
    bundle.call(&["ps", &bundle.id, "--nonesuch"]).code(1);
    // An exec'd process is one of them.
    bundle
        .call(&["exec", "--detach", &bundle.id, "sleep", "4444"])
        .ok();
    assert_eq!(pids(&bundle).len(), 4);
}

#[test]
fn other_states() {
    let bundle = Bundle::sh("exit 0");
    bundle.create().ok();
    assert_eq!(pids(&bundle), [bundle.pid()]);
    bundle.start().ok();
    bundle.wait_status("stopped");
    let out = bundle.call(&["ps", "-f", "json", &bundle.id]).ok();
    assert_eq!(out.stdout, "null\n");
    if has_ps() {
        assert_eq!(
            bundle.call(&["ps", &bundle.id]).ok().stdout.lines().count(),
            1
        );
    }
    let out = bundle.call(&["ps", "nonesuch"]).code(1);
    assert!(out.stderr.contains("container does not exist"), "{out:#?}");
    bundle.call(&["ps"]).code(1);
    let other = idle();
    let out = other.call(&["ps", "--format", "xml", &other.id]).code(1);
    assert!(out.stderr.contains("invalid format option"), "{out:#?}");
}
