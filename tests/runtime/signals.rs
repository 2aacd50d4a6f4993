//! A foreground run passes signals on, and ends when its program ends.

use nix::sys::signal::Signal;

use crate::harness::{Bundle, run_command, wait_for};

#[test]
fn signals_are_forwarded() {
    let names = ["HUP", "INT", "QUIT", "USR1", "USR2", "TERM", "CONT", "ALRM"];
    let traps: Vec<String> = names
        .iter()
        .map(|name| format!("trap 'echo got {name}' {name}"))
        .collect();
    let bundle = Bundle::sh(&format!(
        "{}; trap 'exit 5' PIPE; echo ready; while :; do sleep 0.02; done",
        traps.join("; ")
    ));
    let running = bundle.spawn_run();
    wait_for("ready", || running.stdout().contains("ready"));
    for name in names {
        running.signal(format!("SIG{name}").parse::<Signal>().unwrap());
        wait_for(&format!("{name} to arrive"), || {
            running.stdout().contains(&format!("got {name}\n"))
        });
    }
    bundle.kill("PIPE").ok();
    running.finish().code(5);
}

#[test]
fn a_signal_that_ends_the_program_ends_the_run() {
    let mut bundle = Bundle::sh("echo ready; exec sleep 100");
    bundle.without_namespace("pid");
    let running = bundle.spawn_run();
    bundle.wait_status("running");
    let pid = bundle.pid();
    wait_for("sleep", || {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|name| name.starts_with(b"sleep"))
    });
    running.signal(Signal::SIGTERM);
    running.finish().code(128 + 15);
    bundle.assert_gone();
}

#[test]
fn orphans_of_the_container_do_not_hold_the_run() {
    // Children end with their pid namespace, and the run with its init.
    let bundle = Bundle::sh("sleep 300 & sleep 300 & exit 3");
    bundle.run().code(3);
    bundle.assert_gone();
}

#[test]
fn stdin_at_its_end_does_not_end_the_run() {
    let bundle = Bundle::sh("cat; echo after");
    assert_eq!(bundle.run().ok().text(), "after");
}

#[test]
fn what_the_caller_ignores_is_not_ignored_inside() {
    since_runc!(1, 2, "default actions of signals");
    let mut bundle = Bundle::new();
    bundle
        .args(&["grep", "^SigIgn", "/proc/self/status"])
        .write();
    let runtime = bundle.command(&[
        "run",
        "--bundle",
        bundle.bundle_dir().to_str().unwrap(),
        &bundle.id,
    ]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' INT USR1 34; exec \"$@\"", "sh"]);
    shell.arg(runtime.get_program()).args(runtime.get_args());
    let out = run_command(shell, &bundle.host("")).ok();
    assert_eq!(out.field("SigIgn"), "0000000000000000");
}
