//! exec into a container whose first process is in another cgroup than the one that was made for it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::exec::{exec, exec_with, idle};
use crate::harness::{Bundle, View, cgroup_dir, view, wait_for};

/// A container that hands controllers on has left its own cgroup, as systemd does; nothing can be put
/// into that any more.
#[test]
fn a_container_that_moved_to_a_cgroup_of_its_own() {
    if view() != View::V2 {
        skip!("only a cgroup v2 view refuses processes beside cgroups with controllers");
    }
    since_runc!(1, 1, "going after the init");
    let bundle = idle();
    let pid = bundle.pid();
    let own = cgroup_dir(pid, "");
    let moved = own.join("init.scope");
    fs::create_dir(&moved).unwrap();
    fs::write(moved.join("cgroup.procs"), pid.to_string()).unwrap();
    let offered = fs::read_to_string(own.join("cgroup.controllers")).unwrap();
    let Some(controller) = offered.split_whitespace().next() else {
        skip!("no controller is handed on to containers here");
    };
    fs::write(own.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let out = exec(&bundle, &["cat", "/proc/self/cgroup"]).ok();
    assert!(out.stdout.contains("/init.scope\n"), "{out:#?}");
}

/// A cgroup beside the container's, with its first process: (controller, its own cgroup, the other one).
fn moved_away(bundle: &Bundle) -> (&'static str, PathBuf, PathBuf) {
    let controller = if view() == View::V2 { "" } else { "pids" };
    let pid = bundle.pid();
    let own = cgroup_dir(pid, controller);
    let other = own.with_file_name(format!("{}-beside", bundle.id));
    fs::create_dir(&other).unwrap();
    fs::write(other.join("cgroup.procs"), pid.to_string()).unwrap();
    assert_eq!(cgroup_dir(pid, controller), other);
    (controller, own, other)
}

/// The cgroup that an exec's process is in.
fn executed(bundle: &Bundle, controller: &str) -> PathBuf {
    let file = bundle.host("exec-pid");
    let flags = ["-d", "--pid-file", file.to_str().unwrap()];
    exec_with(bundle, &flags, &["sleep", "1000"]).ok();
    let pid: i32 = fs::read_to_string(&file).unwrap().parse().unwrap();
    cgroup_dir(pid, controller)
}

/// Takes the container and the cgroup beside its own away; what is in that one is killed before.
fn clean(bundle: &Bundle, other: &Path) {
    bundle.delete_force().ok();
    let left = || fs::read_to_string(other.join("cgroup.procs")).is_ok_and(|list| !list.is_empty());
    wait_for("the cgroup to be empty", || !left());
    fs::remove_dir(other).unwrap();
    bundle.assert_gone();
}

/// The limits that were asked for are those of its own cgroup: what is executed goes there.
#[test]
fn the_containers_own_cgroup_counts() {
    let bundle = idle();
    let (controller, own, other) = moved_away(&bundle);
    assert_eq!(executed(&bundle, controller), own);
    clean(&bundle, &other);
}

/// Somebody has moved the container and taken its cgroup away: what is executed goes where it is, and not
/// to the cgroup of who calls, which has other limits.
#[test]
fn a_cgroup_that_has_gone() {
    isorun_only!("on v1 runc fails; on v2 it goes after the first process, too");
    let bundle = idle();
    let (controller, own, other) = moved_away(&bundle);
    fs::remove_dir(&own).unwrap();
    assert_eq!(executed(&bundle, controller), other);
    clean(&bundle, &other);
}
