//! `--systemd-cgroup` with a real systemd: a user's manager of its own (tests/with-systemd), whose units
//! are asked for by systemctl. The limits that this machine has no v2 controller for are in
//! integration/lab/scripts/systemd.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{Bundle, Output, run_command, wait_for};
use crate::update_devices::{denied, give_kmsg, kmsg, readable, update};

const INSIDE: &str = "ISORUN_WITH_SYSTEMD";

/// Runs this test again beside a systemd of its own. True in there, where the test shall go on.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/with-systemd");
    for tool in [
        "/lib/systemd/systemd",
        "/usr/bin/dbus-daemon",
        "/usr/bin/systemctl",
        script,
    ] {
        if !Path::new(tool).is_file() {
            crate::harness::say_skipped(&format!("{tool} is not there"));
            return false;
        }
    }
    let mut command = Command::new(script);
    command.arg(std::env::current_exe().unwrap());
    command.args([&format!("systemd_real::{test}"), "--exact", "--nocapture"]);
    let dir = std::env::temp_dir().join(format!("isotest-systemd-{}-{test}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let out = run_command(command, &dir);
    fs::remove_dir_all(&dir).unwrap();
    if out.code == 125 {
        crate::harness::say_skipped(&format!("no systemd comes up here: {}", out.stderr));
        return false;
    }
    let out = out.ok();
    assert!(out.stdout.contains("1 passed"), "{out:#?}");
    false
}

fn call(bundle: &Bundle, verb: &[&str]) -> Output {
    bundle.write();
    let dir = bundle.bundle_dir();
    let mut args = vec!["--rootless=true", "--systemd-cgroup"];
    args.extend(verb);
    args.extend(["--bundle", dir.to_str().unwrap(), bundle.id.as_str()]);
    // The harness takes it out.
    let mut command = bundle.command(&args);
    command.env("XDG_RUNTIME_DIR", "/run/user/0");
    run_command(command, &bundle.dir.join("io"))
}

/// The value of a property of the container's scope.
fn property(bundle: &Bundle, name: &str) -> String {
    let unit = format!("lab-{}.scope", bundle.id);
    let out = Command::new("systemctl")
        .args(["--user", "show", &unit, "--value", "--property", name])
        .output()
        .unwrap();
    String::from_utf8(out.stdout).unwrap().trim().to_string()
}

fn bundle(script: &str) -> Bundle {
    let mut bundle = Bundle::sh(script);
    let path = format!("lab-tests.slice:lab:{}", bundle.id);
    bundle.set("/linux/cgroupsPath", json!(path));
    bundle
}

#[test]
fn a_container_is_a_scope() {
    since_runc!(1, 2, "major numbers in DeviceAllow");
    if !inside("a_container_is_a_scope") {
        return;
    }
    let mut bundle = bundle("sleep 100");
    bundle.set(
        "/annotations",
        json!({
            "org.systemd.property.TimeoutStopSec": "uint64 7",
            "org.systemd.property.CollectMode": "'inactive-or-failed'",
        }),
    );
    call(&bundle, &["run", "--detach"]).ok();
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).unwrap();
    let line = cgroup.lines().find(|line| line.starts_with("0::")).unwrap();
    let place = format!("/lab.slice/lab-tests.slice/lab-{}.scope", bundle.id);
    assert!(line.ends_with(&place), "{line}");
    for (name, value) in [
        ("ActiveState", "active"),
        ("Slice", "lab-tests.slice"),
        ("Delegate", "yes"),
        ("DefaultDependencies", "no"),
        ("MemoryAccounting", "yes"),
        ("CPUAccounting", "yes"),
        ("IOAccounting", "yes"),
        ("TasksAccounting", "yes"),
        ("DevicePolicy", "strict"),
        ("TimeoutStopUSec", "7s"),
        ("CollectMode", "inactive-or-failed"),
        ("ControlGroup", line.strip_prefix("0::").unwrap()),
    ] {
        assert_eq!(property(&bundle, name), value, "{name}");
    }
    let allowed = property(&bundle, "DeviceAllow");
    for device in ["/dev/char/1:3 rwm", "char-136 rwm", "char-* m"] {
        assert!(allowed.contains(device), "{device}: {allowed}");
    }
    // Both sets of rules are in force: systemd's and our own, which say the same.
    let out = bundle.call(&[
        "exec",
        &bundle.id,
        "sh",
        "-c",
        "echo x > /dev/null && echo in",
    ]);
    assert_eq!(out.ok().text(), "in");
    let mut delete = bundle.command(&["delete", "--force", &bundle.id]);
    delete.env("XDG_RUNTIME_DIR", "/run/user/0");
    run_command(delete, &bundle.dir.join("io")).ok();
    assert_eq!(property(&bundle, "LoadState"), "not-found");
    bundle.assert_gone();
}

#[test]
fn run_ends_with_the_scope() {
    if !inside("run_ends_with_the_scope") {
        return;
    }
    let bundle = bundle("exit 7");
    call(&bundle, &["run"]).code(7);
    assert_eq!(property(&bundle, "LoadState"), "not-found");
    bundle.assert_gone();
}

/// systemd ends the container; the failed unit is gone with delete.
#[test]
fn a_failed_scope_is_forgotten() {
    since_runc!(1, 2, "the end of failed units");
    if !inside("a_failed_scope_is_forgotten") {
        return;
    }
    let mut bundle = bundle("trap '' TERM; sleep 100");
    bundle.set(
        "/annotations",
        json!({
            "org.systemd.property.RuntimeMaxSec": "1",
            "org.systemd.property.TimeoutStopSec": "1",
        }),
    );
    call(&bundle, &["run", "--detach"]).ok();
    bundle.wait_status("stopped");
    wait_for("the unit to fail", || {
        property(&bundle, "ActiveState") == "failed"
    });
    let mut delete = bundle.command(&["delete", &bundle.id]);
    delete.env("XDG_RUNTIME_DIR", "/run/user/0");
    run_command(delete, &bundle.dir.join("io")).ok();
    assert_eq!(property(&bundle, "LoadState"), "not-found");
    bundle.assert_gone();
}

#[test]
fn what_systemd_refuses_is_told() {
    if !inside("what_systemd_refuses_is_told") {
        return;
    }
    let mut bundle = bundle("true");
    bundle.set(
        "/annotations",
        json!({"org.systemd.property.NoSuchThing": "true"}),
    );
    let out = call(&bundle, &["run"]).code(1);
    assert!(
        out.stderr.contains("unable to start unit") && out.stderr.contains("NoSuchThing"),
        "{}",
        out.stderr
    );
    assert_eq!(property(&bundle, "LoadState"), "not-found");
    bundle.assert_gone();
}

/// Device rules are the unit's, too: what systemd does when it reads its files again neither loosens nor
/// loses them, before an update or after.
#[test]
fn device_rules_survive_a_reload() {
    isorun_only!("runc leaves device rules as they are");
    if !inside("device_rules_survive_a_reload") {
        return;
    }
    let mut bundle = bundle("exec sleep 1000");
    give_kmsg(&mut bundle, json!([denied()]));
    call(&bundle, &["run", "--detach"]).ok();
    let all = json!([{"allow": true, "access": "rwm"}]);
    let none = json!([denied()]);
    for (rules, seen, listed) in [
        (None, "closed closed", false),
        (Some(readable()), "open closed", true),
        (Some(none.clone()), "closed closed", false),
        (Some(all), "open open", false),
        (Some(none), "closed closed", false),
    ] {
        if let Some(rules) = rules {
            update(&bundle, &json!({"devices": rules})).ok();
        }
        // Both sets of rules are in force when update ends: it waits for systemd's.
        assert_eq!(kmsg(&bundle), seen);
        assert_eq!(property(&bundle, "DevicePolicy"), "strict", "{seen}");
        let allowed = property(&bundle, "DeviceAllow");
        assert_eq!(allowed.contains("/dev/char/1:11 r"), listed, "{allowed}");
        let mut reload = Command::new("systemctl");
        let done = reload.args(["--user", "daemon-reload"]).status();
        assert!(done.unwrap().success());
        wait_for("systemd", || property(&bundle, "ActiveState") == "active");
        assert_eq!(kmsg(&bundle), seen);
    }
    let mut delete = bundle.command(&["delete", "--force", &bundle.id]);
    delete.env("XDG_RUNTIME_DIR", "/run/user/0");
    run_command(delete, &bundle.dir.join("io")).ok();
    bundle.assert_gone();
}
