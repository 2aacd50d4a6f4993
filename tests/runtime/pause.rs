//! pause and resume: a container stands still in its freezer, on v1 and on v2.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::exec::{exec, idle};
use crate::harness::{Bundle, is_zombie, wait_for};

/// A container that counts in /tmp/count.
fn counting() -> Bundle {
    let bundle = Bundle::sh("while :; do echo x >> /tmp/count; sleep 0.01; done");
    bundle.run_detached().ok();
    wait_for("the first count", || count(&bundle) > 0);
    bundle
}

fn count(bundle: &Bundle) -> u64 {
    std::fs::metadata(bundle.rootfs("/tmp/count")).map_or(0, |data| data.len())
}

fn pause(bundle: &Bundle) {
    bundle.call(&["pause", &bundle.id]).ok();
}

fn resume(bundle: &Bundle) {
    bundle.call(&["resume", &bundle.id]).ok();
}

#[test]
fn nothing_runs_while_it_is_paused() {
    let bundle = counting();
    for _ in 0..3 {
        pause(&bundle);
        assert_eq!(bundle.status(), "paused");
        let before = count(&bundle);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(count(&bundle), before, "it runs on");
        resume(&bundle);
        assert_eq!(bundle.status(), "running");
        wait_for("it to go on", || count(&bundle) > before);
    }
    pause(&bundle);
    let list = bundle.call(&["list"]).ok();
    assert!(list.stdout.contains("paused"), "{list:#?}");
}

#[test]
fn what_does_not_go_in_which_state() {
    let bundle = counting();
    let refused = |args: &[&str], code: i32, text: &str| {
        let out = bundle.call(args).code(code);
        assert!(out.stderr.contains(text), "{out:#?}");
    };
    let id = bundle.id.as_str();
    refused(&["resume", id], 1, "container not paused");
    refused(&["pause", "nonesuch"], 1, "container does not exist");
    pause(&bundle);
    refused(&["pause", id], 1, "container not running");
    refused(
        &["start", id],
        1,
        "cannot start a container in the paused state",
    );
    refused(
        &["delete", id],
        1,
        &format!("cannot delete container {id} that is not stopped: paused"),
    );
    refused(
        &["exec", id, "true"],
        255,
        "cannot exec in a paused container (use --ignore-paused to override)",
    );
    resume(&bundle);
    bundle.kill("KILL").ok();
    bundle.wait_status("stopped");
    refused(&["pause", id], 1, "container not running");
    refused(&["resume", id], 1, "container not paused");
}

#[test]
fn a_created_container_can_be_paused() {
    let bundle = Bundle::sh("echo started > /tmp/started");
    bundle.create().ok();
    pause(&bundle);
    assert_eq!(bundle.status(), "paused");
    resume(&bundle);
    assert_eq!(bundle.status(), "created");
    bundle.start().ok();
    bundle.wait_status("stopped");
    assert!(bundle.rootfs("/tmp/started").exists());
}

#[test]
fn signals_wait_and_kill_does_not() {
    let bundle = Bundle::sh("trap 'echo got > /tmp/got' TERM; while :; do sleep 0.01; done");
    bundle.run_detached().ok();
    // The trap is there when a signal has done something.
    wait_for("the trap", || {
        bundle.kill("TERM").ok();
        bundle.rootfs("/tmp/got").exists()
    });
    pause(&bundle);
    std::fs::remove_file(bundle.rootfs("/tmp/got")).unwrap();
    bundle.kill("TERM").ok();
    std::thread::sleep(Duration::from_millis(50));
    assert!(!bundle.rootfs("/tmp/got").exists());
    resume(&bundle);
    wait_for("the signal", || bundle.rootfs("/tmp/got").exists());
    pause(&bundle);
    bundle.kill("KILL").ok();
    bundle.wait_status("stopped");
    bundle.delete().ok();
    bundle.assert_gone();
}

#[test]
fn delete_by_force_ends_a_paused_container() {
    for shared in [false, true] {
        let mut bundle = Bundle::sh("sleep 1001 & sleep 1002 & exec sleep 1003");
        if shared {
            bundle.without_namespace("pid");
        }
        bundle.run_detached().ok();
        pause(&bundle);
        bundle.delete_force().ok();
        bundle.assert_gone();
    }
}

#[test]
fn an_exec_that_ignores_the_pause_starts_with_the_resume() {
    let bundle = idle();
    pause(&bundle);
    let mut running = bundle.spawn(&["exec", "--ignore-paused", &bundle.id, "echo", "late"]);
    std::thread::sleep(Duration::from_millis(150));
    assert!(running.alive() && running.stdout().is_empty(), "it ran");
    resume(&bundle);
    assert_eq!(running.finish().ok().text(), "late");
}

/// Whoever gives up such an exec does not want its program to run when somebody resumes the container.
#[test]
fn an_exec_that_was_ended_in_a_paused_container_never_runs() {
    isorun_only!("runc 1.1 forwards the signal only when the program runs");
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let bundle = idle();
        pause(&bundle);
        let running = bundle.spawn(&["exec", "--ignore-paused", &bundle.id, "touch", "/tmp/ran"]);
        std::thread::sleep(Duration::from_millis(200));
        running.signal(signal);
        let begin = Instant::now();
        running.finish().code(128 + signal as i32);
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "it waited for the resume"
        );
        resume(&bundle);
        // What comes later sees what is left of it.
        exec(&bundle, &["true"]).ok();
        std::thread::sleep(Duration::from_millis(100));
        assert!(!bundle.rootfs("/tmp/ran").exists(), "{signal}: it ran");
        let out = bundle.call(&["ps", "-f", "json", &bundle.id]).ok();
        assert_eq!(out.text().split(',').count(), 1, "{signal}: {out:#?}");
    }
}

#[test]
fn kill_reaches_all_who_share_a_pid_namespace() {
    since_runc!(1, 2, "the kill of all processes without a pid namespace");
    let mut bundle = Bundle::sh("sleep 1004 & exec sleep 1005");
    bundle.without_namespace("pid");
    bundle.run_detached().ok();
    let list = || {
        let out = bundle.call(&["ps", "-f", "json", &bundle.id]).ok();
        serde_json::from_str::<Option<Vec<i32>>>(&out.stdout)
            .unwrap()
            .unwrap_or_default()
    };
    wait_for("both", || list().len() == 2);
    let pids = list();
    bundle.kill("KILL").ok();
    for pid in pids {
        wait_for("the end of each", || is_zombie(pid));
    }
    bundle.delete().ok();
    bundle.assert_gone();
}

/// The first process has ended by itself; those that it left go by SIGKILL, and by no other signal.
#[test]
fn kill_reaches_who_is_left_of_a_shared_pid_namespace() {
    since_runc!(1, 2, "the kill of all processes without a pid namespace");
    let mut bundle = Bundle::sh("sleep 1007 & sleep 0.1");
    bundle.without_namespace("pid");
    bundle.run_detached().ok();
    bundle.wait_status("stopped");
    let left = || {
        let out = bundle.call(&["ps", "-f", "json", &bundle.id]).ok();
        serde_json::from_str::<Option<Vec<i32>>>(&out.stdout)
            .unwrap()
            .unwrap_or_default()
    };
    assert_eq!(left().len(), 1, "the sleep is there");
    let out = bundle.kill("TERM").code(1);
    assert!(out.stderr.contains("container not running"), "{out:#?}");
    assert_eq!(left().len(), 1, "the sleep is there");
    bundle.kill("KILL").ok();
    wait_for("its end", || left().is_empty());
    bundle.delete().ok();
    bundle.assert_gone();
}

#[test]
fn kill_all_reaches_everyone() {
    if !crate::ps::has_ps() {
        skip!("there is no ps here");
    }
    let bundle = Bundle::sh("trap : TERM; sleep 1006 & wait; while :; do sleep 0.01; done");
    bundle.run_detached().ok();
    let has = |name: &str| {
        let out = bundle.call(&["ps", &bundle.id]).ok();
        // The shell's own command line has the name too, but not at its end.
        out.stdout.lines().any(|line| line.ends_with(name))
    };
    wait_for("the child", || has("sleep 1006"));
    isorun_only!("runc 1.2 made the flag one without effect");
    bundle.call(&["kill", "--all", &bundle.id, "TERM"]).ok();
    wait_for("the end of the child", || !has("sleep 1006"));
    assert_eq!(bundle.status(), "running");
    bundle.call(&["kill", "--all", &bundle.id, "KILL"]).ok();
    bundle.wait_status("stopped");
    // As in runc: with nobody left there is nothing wrong.
    bundle.call(&["kill", "--all", &bundle.id, "KILL"]).ok();
    let out = bundle.kill("KILL").code(1);
    assert!(out.stderr.contains("container not running"), "{out:#?}");
}

/// SIGKILL to a stopped container that shares its pid namespace finds nobody left in its cgroup, which is
/// as well; without the cgroup, and with another signal, it is refused.
#[test]
fn kill_with_nobody_left() {
    since_runc!(1, 2, "the kill of all processes without a pid namespace");
    let mut bundle = Bundle::sh("true");
    bundle.without_namespace("pid");
    bundle.run_detached().ok();
    bundle.wait_status("stopped");
    bundle.kill("KILL").ok();
    assert_eq!(bundle.status(), "stopped");
    let out = bundle.kill("TERM").code(1);
    assert!(out.stderr.contains("container not running"), "{out:#?}");
    bundle.delete().ok();
    let own = Bundle::sh("true");
    own.run_detached().ok();
    own.wait_status("stopped");
    let out = own.kill("KILL").code(1);
    assert!(out.stderr.contains("container not running"), "{out:#?}");
    own.delete().ok();
}
