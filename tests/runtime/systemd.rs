//! `--systemd-cgroup`, with a stand-in for systemd: the real one is in integration/lab/scripts/systemd.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::harness::systemd::Systemd;
use crate::harness::{Bundle, Output, View, cgroup_dir, cgroups_named, view};
use crate::update_devices::{denied, give_kmsg, kmsg, readable, update};

/// A bundle whose scope is in a slice of its own, and its systemd.
fn bundle(script: &str) -> (Bundle, Systemd, String) {
    let mut bundle = Bundle::sh(script);
    let systemd = Systemd::at(&bundle.host("bus"));
    bundle.prefix = systemd.prefix();
    let slice = format!("{}slice", bundle.id.replace('-', "_"));
    let path = format!("{slice}:iso:{}", bundle.id);
    bundle.set("/linux/cgroupsPath", json!(path));
    (bundle, systemd, slice)
}

fn call(bundle: &Bundle, verb: &[&str]) -> Output {
    bundle.write();
    let dir = bundle.bundle_dir();
    let mut args = vec!["--systemd-cgroup"];
    args.extend(verb);
    args.extend(["--bundle", dir.to_str().unwrap(), bundle.id.as_str()]);
    bundle.call(&args)
}

#[test]
fn the_container_is_in_its_scope_with_its_limits() {
    isorun_only!("the stand-in speaks to isorun alone");
    let (mut bundle, systemd, slice) = bundle("sleep 100");
    bundle.set(
        "/annotations",
        json!({"org.systemd.property.TimeoutStopSec": "uint64 7"}),
    );
    if view() == View::Hybrid {
        bundle.set("/linux/resources/memory", json!({"limit": 67_108_864}));
        bundle.set("/linux/resources/pids", json!({"limit": 20}));
    }
    call(&bundle, &["create"]).ok();
    let pid = bundle.pid();
    let unit = format!("iso-{}.scope", bundle.id);
    let (name, properties) = systemd.last("StartTransientUnit");
    assert_eq!(name, unit);
    for (key, value) in [
        ("Slice", slice.as_str()),
        ("Delegate", "1"),
        ("DefaultDependencies", "0"),
        ("TimeoutStopUSec", "7000000"),
        ("PIDs", &pid.to_string()),
    ] {
        assert_eq!(properties[key], value, "{key}");
    }
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let place = format!("/{slice}/{unit}");
    for line in cgroups.lines() {
        // In the v2 view the machine's v1 hierarchies are out of sight.
        if view() == View::Hybrid || line.starts_with("0::") {
            assert!(line.ends_with(&place), "{line}");
        }
    }
    if view() == View::Hybrid {
        assert_eq!(properties["MemoryLimit"], "67108864");
        assert_eq!(properties["TasksMax"], "20");
        assert_eq!(properties["DevicePolicy"], "strict");
        for (controller, file, value) in [
            ("memory", "memory.limit_in_bytes", "67108864"),
            ("pids", "pids.max", "20"),
        ] {
            let got = fs::read_to_string(cgroup_dir(pid, controller).join(file)).unwrap();
            assert_eq!(got.trim(), value, "{file}");
        }
    }
    bundle.start().ok();
    // Commands after it need no flag: the record knows.
    let inside = bundle
        .call(&["exec", &bundle.id, "cat", "/proc/self/cgroup"])
        .ok();
    assert!(!inside.stdout.is_empty());
    bundle.delete_force().ok();
    assert!(systemd.calls().contains(&"StopUnit".to_string()));
    assert!(systemd.units().is_empty(), "{:?}", systemd.units());
    clean_slice(&slice);
    bundle.assert_gone();
}

/// The slice's directories in the hierarchies that the stand-in does not know.
fn clean_slice(slice: &str) {
    for left in cgroups_named(slice) {
        let _ = fs::remove_dir(left);
    }
}

#[test]
fn run_passes_the_status_on_and_leaves_nothing() {
    isorun_only!("the stand-in speaks to isorun alone");
    let (mut bundle, systemd, slice) = bundle("cat /proc/self/cgroup; exit 7");
    bundle.namespace("cgroup");
    let out = call(&bundle, &["run"]).code(7);
    // Rooted in its scope, not in where the runtime is.
    for line in out.stdout.lines().filter(|line| line.starts_with("0::")) {
        assert_eq!(line, "0::/");
    }
    let calls = systemd.calls();
    assert_eq!(calls, ["StartTransientUnit", "StopUnit", "ResetFailedUnit"]);
    assert!(systemd.units().is_empty());
    clean_slice(&slice);
    bundle.assert_gone();
}

#[test]
fn a_job_that_fails_leaves_nothing() {
    isorun_only!("the stand-in speaks to isorun alone");
    let (bundle, systemd, _) = bundle("touch /host/ran");
    systemd.next_result("failed");
    let out = call(&bundle, &["run"]).code(1);
    let part = format!(
        "error creating systemd unit `iso-{}.scope`: got `failed`",
        bundle.id
    );
    assert!(out.stderr.contains(&part), "{}", out.stderr);
    bundle.assert_gone();
}

/// A limit that the kernel refuses once the unit is there: it goes again.
#[test]
fn a_refused_limit_ends_the_unit() {
    isorun_only!("the stand-in speaks to isorun alone");
    if view() == View::V2 {
        skip!("this view has no cpuset controller to refuse anything");
    }
    let (mut bundle, systemd, slice) = bundle("true");
    bundle.set("/linux/resources/cpu", json!({"cpus": "4000"}));
    let out = call(&bundle, &["run"]).code(1);
    assert!(
        out.stderr.contains("linux.resources.cpu.cpus"),
        "{}",
        out.stderr
    );
    assert!(systemd.calls().contains(&"StopUnit".to_string()));
    assert!(systemd.units().is_empty());
    clean_slice(&slice);
    bundle.assert_gone();
}

/// systemd is told of new limits as well; those that the kernel refuses it never hears of.
#[test]
fn an_update_is_one_of_the_unit() {
    isorun_only!("the stand-in speaks to isorun alone");
    if view() == View::V2 {
        skip!("this view has no memory controller");
    }
    let (mut bundle, systemd, slice) = bundle("sleep 100");
    bundle.set("/linux/resources/memory", json!({"limit": 67_108_864}));
    call(&bundle, &["create"]).ok();
    bundle
        .call(&[
            "update",
            "--memory",
            "33554432",
            "--cpu-quota",
            "12345",
            &bundle.id,
        ])
        .ok();
    let (_, told) = systemd.last("SetUnitProperties");
    assert_eq!(told["MemoryLimit"], "33554432");
    assert_eq!(told["CPUQuotaPerSecUSec"], "130000");
    assert!(!told.contains_key("DevicePolicy"), "{told:?}");
    let memory = cgroup_dir(bundle.pid(), "memory").join("memory.limit_in_bytes");
    assert_eq!(fs::read_to_string(&memory).unwrap().trim(), "33554432");
    let count = systemd.calls().len();
    bundle
        .call(&[
            "update",
            "--memory",
            "16777216",
            "--cpuset-cpus",
            "4000",
            &bundle.id,
        ])
        .code(1);
    assert_eq!(systemd.calls().len(), count, "{:?}", systemd.calls());
    assert_eq!(fs::read_to_string(&memory).unwrap().trim(), "33554432");
    bundle.delete_force().ok();
    clean_slice(&slice);
}

/// systemd is told of new device rules, too; where it cannot be, the old ones are put in force again, and
/// the limits with them.
#[test]
fn device_rules_are_those_of_the_unit() {
    isorun_only!("the stand-in speaks to isorun alone");
    let (mut bundle, systemd, slice) = bundle("exec sleep 1000");
    give_kmsg(&mut bundle, json!([denied()]));
    call(&bundle, &["run", "--detach"]).ok();
    assert_eq!(kmsg(&bundle), "closed closed");
    update(&bundle, &json!({"devices": readable()})).ok();
    assert_eq!(kmsg(&bundle), "open closed");
    let (_, told) = systemd.last("SetUnitProperties");
    assert_eq!(told["DevicePolicy"], "strict");
    assert!(told["DeviceAllow"].contains("/dev/char/1:11 r"), "{told:?}");
    let all = json!([{"allow": true, "access": "rwm"}]);
    update(&bundle, &json!({"devices": all})).ok();
    let (_, told) = systemd.last("SetUnitProperties");
    assert_eq!(told["DevicePolicy"], "strict");
    assert_eq!(told["DeviceAllow"], "block-* rwm,char-* rwm");
    update(&bundle, &json!({"devices": readable()})).ok();
    drop(systemd);
    let mut resources = json!({"devices": [denied()]});
    if view() == View::Hybrid {
        resources["pids"] = json!({"limit": 12});
    }
    update(&bundle, &resources).code(1);
    assert_eq!(kmsg(&bundle), "open closed");
    if view() == View::Hybrid {
        let pids = cgroup_dir(bundle.pid(), "pids").join("pids.max");
        assert_eq!(fs::read_to_string(pids).unwrap(), "max\n");
    }
    bundle.delete_force().ok();
    clean_slice(&slice);
}

/// Where systemd is gone, the container goes all the same.
#[test]
fn delete_without_systemd() {
    isorun_only!("the stand-in speaks to isorun alone");
    let (bundle, systemd, slice) = bundle("sleep 100");
    call(&bundle, &["create"]).ok();
    drop(systemd);
    let out = bundle.delete_force().ok();
    assert!(out.stderr.contains("stop unit iso-"), "{}", out.stderr);
    clean_slice(&slice);
    bundle.assert_gone();
}

/// A unit of this name that somebody uses is left alone.
#[test]
fn the_unit_of_others_stays() {
    isorun_only!("the stand-in speaks to isorun alone");
    let (first, systemd, slice) = bundle("sleep 100");
    call(&first, &["create"]).ok();
    let mut second = Bundle::sh("true");
    second.prefix = systemd.prefix();
    second.set(
        "/linux/cgroupsPath",
        first.config["linux"]["cgroupsPath"].clone(),
    );
    let out = call(&second, &["run"]).code(1);
    assert!(
        out.stderr.contains("container's cgroup is not empty"),
        "{}",
        out.stderr
    );
    assert_eq!(first.status(), "created");
    assert_eq!(systemd.units().len(), 1);
    second.assert_gone();
    first.delete_force().ok();
    clean_slice(&slice);
}

#[test]
fn paths_and_annotations_that_are_refused() {
    isorun_only!("the stand-in speaks to isorun alone");
    let (mut bundle, systemd, _) = bundle("true");
    for (path, part) in [
        (
            "/a/b",
            "expected cgroupsPath to be of format \\\"slice:prefix:name\\\" for systemd cgroups",
        ),
        ("a-.slice:b:c", "invalid slice name: a-.slice"),
    ] {
        bundle.set("/linux/cgroupsPath", json!(path));
        let out = call(&bundle, &["run"]).code(1);
        let said = out.stderr.replace('"', "\\\"").replace("\\\\", "\\");
        assert!(said.contains(part), "{path}: {}", out.stderr);
    }
    bundle.set("/linux/cgroupsPath", json!("a.slice:b:c"));
    bundle.set("/annotations", json!({"org.systemd.property.Foo": "bar"}));
    let out = call(&bundle, &["run"]).code(1);
    assert!(
        out.stderr.contains("org.systemd.property.Foo"),
        "{}",
        out.stderr
    );
    assert!(systemd.calls().is_empty(), "{:?}", systemd.calls());
}

#[test]
fn without_systemd_it_is_said() {
    isorun_only!("runc has words of its own for a bus that is not there");
    if Path::new("/run/systemd/system").is_dir() {
        skip!("systemd is at work here");
    }
    let mut bundle = Bundle::sh("true");
    let nowhere = format!(
        "DBUS_SYSTEM_BUS_ADDRESS=unix:path={}",
        bundle.host("bus").display()
    );
    bundle.prefix = vec!["env".into(), nowhere];
    let out = call(&bundle, &["run"]).code(1);
    let part =
        "systemd cgroup flag passed, but systemd support for managing cgroups is not available";
    assert!(out.stderr.contains(part), "{}", out.stderr);
}
