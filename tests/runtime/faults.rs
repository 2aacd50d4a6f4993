//! The runtime is killed at its worst moments; then `delete --force` leaves nothing.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Bundle, Running, is_zombie, wait_for};

/// A bundle whose hook of this stage tells that it runs, and blocks.
fn blocked_at(stage: &str) -> Bundle {
    let mut bundle = Bundle::sh("sleep 300");
    let file = bundle.host("blocked").to_str().unwrap().to_string();
    let text = format!("echo $$ > {file}; exec sleep 300");
    bundle.set(
        &format!("/hooks/{stage}"),
        json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/usr/bin:/bin"]}]),
    );
    bundle
}

/// Kills the runtime while the hook blocks, then the hook, which nobody else would.
fn kill_in_hook(bundle: &Bundle, running: Running, hook_is_ours: bool) {
    let hook: i32 = bundle.wait_file("blocked").trim().parse().unwrap();
    running.signal(Signal::SIGKILL);
    running.finish().code(137);
    if hook_is_ours && !is_zombie(hook) {
        let _ = kill(Pid::from_raw(hook), Signal::SIGKILL);
    }
}

#[track_caller]
fn delete_leaves_nothing(bundle: &Bundle) {
    bundle.delete_force().ok();
    bundle.assert_gone();
    // And the id is free again.
    assert_eq!(bundle.status(), "none");
}

#[test]
fn killed_in_a_prestart_hook() {
    isorun_only!("runc 1.1 writes no state before its hooks: the cgroup and the init stay");
    let bundle = blocked_at("prestart");
    kill_in_hook(&bundle, bundle.spawn_create(), true);
    delete_leaves_nothing(&bundle);
}

#[test]
fn killed_in_a_create_runtime_hook() {
    isorun_only!("runc 1.1 writes no state before its hooks: the cgroup and the init stay");
    let bundle = blocked_at("createRuntime");
    kill_in_hook(&bundle, bundle.spawn_create(), true);
    delete_leaves_nothing(&bundle);
}

#[test]
fn killed_in_a_create_container_hook() {
    isorun_only!("runc 1.1 writes no state before its hooks: the cgroup and the init stay");
    let bundle = blocked_at("createContainer");
    kill_in_hook(&bundle, bundle.spawn_create(), false);
    delete_leaves_nothing(&bundle);
}

#[test]
fn killed_in_a_poststart_hook() {
    let bundle = blocked_at("poststart");
    kill_in_hook(&bundle, bundle.spawn_run(), true);
    delete_leaves_nothing(&bundle);
}

#[test]
fn killed_while_it_waits_for_a_foreground_container() {
    let bundle = Bundle::sh("sleep 300 & sleep 300");
    let running = bundle.spawn_run();
    bundle.wait_status("running");
    running.signal(Signal::SIGKILL);
    running.finish().code(137);
    delete_leaves_nothing(&bundle);
}

#[test]
fn killed_after_the_pid_file_was_written() {
    let mut bundle = blocked_at("poststart");
    bundle
        .args(&["sh", "-c", "sleep 300 & exec sleep 300"])
        .write();
    let (file, dir) = (bundle.host("pid"), bundle.bundle_dir());
    let running = bundle.spawn(&[
        "run",
        "--pid-file",
        file.to_str().unwrap(),
        "--bundle",
        dir.to_str().unwrap(),
        &bundle.id,
    ]);
    // runc writes the pid file after the hooks, isorun before or after: either way it is late.
    kill_in_hook(&bundle, running, true);
    delete_leaves_nothing(&bundle);
}

#[test]
fn killed_at_any_moment() {
    isorun_only!("runc leaves what it made before it wrote its state");
    // Delays that sweep over the whole creation; wherever the kill hits, the outcome is the same.
    for step in 0..40u64 {
        let bundle = Bundle::sh("sleep 300");
        let running = bundle.spawn_create();
        std::thread::sleep(std::time::Duration::from_micros(step * 250));
        running.signal(Signal::SIGKILL);
        running.finish();
        delete_leaves_nothing(&bundle);
    }
}

#[test]
fn init_killed_behind_the_runtimes_back() {
    let bundle = Bundle::sh("sleep 300 & sleep 300");
    bundle.run_detached().ok();
    let pid = bundle.pid();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_for("the init to end", || is_zombie(pid));
    bundle.wait_status("stopped");
    delete_leaves_nothing(&bundle);
}

#[test]
fn init_killed_before_start() {
    let bundle = Bundle::sh("sleep 300");
    bundle.create().ok();
    kill(Pid::from_raw(bundle.pid()), Signal::SIGKILL).unwrap();
    bundle.wait_status("stopped");
    // Must neither hang on the fifo nor claim success.
    bundle.start().code(1);
    delete_leaves_nothing(&bundle);
}

#[test]
fn state_that_is_garbage() {
    isorun_only!("runc cannot delete a container whose state it cannot read");
    let bundle = Bundle::sh("sleep 300");
    bundle.create().ok();
    let dir = bundle.state_root().join(&bundle.id);
    let pid = bundle.pid();
    for entry in std::fs::read_dir(&dir).unwrap().flatten() {
        if entry.file_name().to_string_lossy().ends_with(".json") {
            std::fs::write(entry.path(), "{\"half\":").unwrap();
        }
    }
    let out = bundle.call(&["state", &bundle.id]).code(1);
    assert_eq!(out.stderr.lines().count(), 1, "one sentence: {out:#?}");
    let out = bundle.delete_force().ok();
    assert!(!dir.exists(), "the directory is gone");
    assert!(
        !out.stderr.is_empty(),
        "what could not be found is not passed over in silence"
    );
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    let groups = crate::harness::cgroups_named(&bundle.id);
    wait_for("the cgroups to be empty", || {
        groups
            .iter()
            .all(|group| std::fs::remove_dir(group).is_ok() || !group.exists())
    });
}

#[test]
fn a_start_hook_that_hangs_keeps_nobody_from_killing() {
    isorun_only!("runc's start does not wait for the hooks of the container");
    let mut bundle = Bundle::sh("sleep 300");
    bundle.set(
        "/hooks/startContainer",
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "exec sleep 300"]}]),
    );
    for how in ["kill", "delete"] {
        bundle.create().ok();
        let mut start = bundle.spawn(&["start", &bundle.id]);
        // The fifo goes when `start` has let the process go, which is then in its hook for good.
        bundle.wait_status("running");
        assert!(start.alive());
        let begin = std::time::Instant::now();
        match how {
            "kill" => bundle.kill("KILL").ok(),
            _ => bundle.delete_force().ok(),
        };
        let out = start.finish();
        assert_eq!(out.code, 1, "{how}: {out:#?}");
        assert!(
            out.stderr.contains("before it executed") || how == "delete",
            "{out:#?}"
        );
        assert!(begin.elapsed().as_secs() < 8, "{how} waited for the hook");
        delete_leaves_nothing(&bundle);
    }
}

/// The last record is gone; where the cgroup is, the first one says.
#[test]
fn the_record_is_missing() {
    isorun_only!("runc cannot delete a container whose state it cannot read");
    for script in ["sleep 300", "sleep 300 & exec sleep 300"] {
        let mut bundle = Bundle::sh(script);
        bundle.without_namespace("pid");
        bundle.run_detached().ok();
        let record = bundle.state_root().join(&bundle.id).join("state.json");
        std::fs::remove_file(&record).unwrap();
        let out = bundle.call(&["state", &bundle.id]).code(1);
        assert!(out.stderr.contains("container does not exist"), "{out:#?}");
        let list = bundle.call(&["list"]).ok();
        assert!(list.stdout.contains(&bundle.id), "{list:#?}");
        delete_leaves_nothing(&bundle);
    }
}

/// Who creates it is still at it, in a hook: `delete --force` does not wait for the hook's end.
#[test]
fn deleted_while_it_is_being_created() {
    isorun_only!("runc 1.1 writes no state before its hooks");
    let bundle = blocked_at("createRuntime");
    let running = bundle.spawn_create();
    let hook: i32 = bundle.wait_file("blocked").trim().parse().unwrap();
    assert_eq!(bundle.status(), "creating");
    let begin = std::time::Instant::now();
    delete_leaves_nothing(&bundle);
    assert!(begin.elapsed().as_secs() < 8, "it waited for the hook");
    running.finish().code(1);
    wait_for("the hook to end", || is_zombie(hook));
}

/// The first process is gone, and somebody else of the container is not.
#[test]
fn the_init_is_gone_and_the_cgroup_is_not_empty() {
    since_runc!(1, 2, "the end of all who share a pid namespace");
    let mut bundle = Bundle::sh("trap '' TERM HUP; sleep 300 & exec sleep 0.1");
    bundle.without_namespace("pid");
    bundle.run_detached().ok();
    bundle.wait_status("stopped");
    assert!(
        !crate::harness::processes_tagged(&bundle.id).is_empty(),
        "the sleep is there"
    );
    delete_leaves_nothing(&bundle);
}
