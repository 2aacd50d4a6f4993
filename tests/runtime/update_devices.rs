//! update of device rules: what is allowed before and after is never refused meanwhile, and what is
//! forbidden before and after is never open.

use std::fs;

use serde_json::{Value, json};

use crate::exec::exec;
use crate::harness::{
    Bundle, Output, View, cgroup_dir, controller_usable, run_command, view, wait_for,
};

/// A container with kmsg, and these rules.
fn with_rules(script: &str, rules: Value) -> Bundle {
    let mut bundle = Bundle::sh(script);
    give_kmsg(&mut bundle, rules);
    bundle.run_detached().ok();
    bundle
}

/// The container has kmsg (1:11), which is nobody's by default, and these rules.
pub fn give_kmsg(bundle: &mut Bundle, rules: Value) {
    let set = json!(["CAP_SYSLOG"]);
    bundle.set(
        "/process/capabilities",
        json!({"bounding": set, "permitted": set, "effective": set}),
    );
    bundle.set(
        "/linux/devices",
        json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}]),
    );
    bundle.set("/linux/resources/devices", rules);
}

pub fn denied() -> Value {
    json!({"allow": false, "access": "rwm"})
}

pub fn readable() -> Value {
    json!([denied(), {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}])
}

pub fn update(bundle: &Bundle, resources: &Value) -> Output {
    let path = bundle.host("resources.json");
    fs::write(&path, resources.to_string()).unwrap();
    let mut command = bundle.command(&["update", "-r", path.to_str().unwrap(), &bundle.id]);
    // The way to a user's systemd, which the harness takes out.
    if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR") {
        command.env("XDG_RUNTIME_DIR", dir);
    }
    run_command(command, &bundle.dir.join("io"))
}

/// Whether kmsg can be opened for reading and for writing.
pub fn kmsg(bundle: &Bundle) -> String {
    let script = "for how in '<' '>'; do (eval \": $how /dev/kmsg\") 2>/dev/null && echo open || \
        echo closed; done";
    let out = exec(bundle, &["sh", "-c", script]).ok();
    out.text().replace('\n', " ")
}

#[test]
fn rules_come_and_go() {
    isorun_only!("runc leaves device rules as they are");
    let bundle = with_rules("exec sleep 1000", json!([denied()]));
    assert_eq!(kmsg(&bundle), "closed closed");
    update(&bundle, &json!({"devices": readable()})).ok();
    assert_eq!(kmsg(&bundle), "open closed");
    // What says nothing of devices changes none.
    for resources in [json!({}), json!({"devices": []}), json!({"devices": null})] {
        update(&bundle, &resources).ok();
        assert_eq!(kmsg(&bundle), "open closed", "{resources}");
    }
    update(
        &bundle,
        &json!({"devices": [{"allow": true, "access": "rwm"}]}),
    )
    .ok();
    assert_eq!(kmsg(&bundle), "open open");
    update(&bundle, &json!({"devices": readable()})).ok();
    assert_eq!(kmsg(&bundle), "open closed");
    update(&bundle, &json!({"devices": [denied()]})).ok();
    assert_eq!(kmsg(&bundle), "closed closed");
    // What all containers have stays, whatever the list says.
    exec(&bundle, &["sh", "-c", "echo x > /dev/null"]).ok();
}

/// An engine hands on the list that it knows with every update; a hook for GPUs has added a device to
/// config.json since, which has to stay.
#[test]
fn a_device_of_config_json_stays() {
    isorun_only!("runc leaves device rules as they are");
    let has_pids = view() == View::Hybrid && controller_usable("pids");
    for (given, lost) in [
        (readable(), "c 1:11 r"),
        (json!([{"allow": true, "access": "rwm"}]), "b *:* rw"),
    ] {
        let bundle = with_rules("exec sleep 1000", given);
        let seen = kmsg(&bundle);
        assert!(seen.starts_with("open"), "{seen}");
        let mut resources = json!({"devices": [denied()]});
        if has_pids {
            resources["pids"] = json!({"limit": 33});
        }
        let out = update(&bundle, &resources).ok();
        assert_eq!(kmsg(&bundle), seen);
        assert!(
            out.stderr.contains("the device rules stay as they are") && out.stderr.contains(lost),
            "{out:#?}"
        );
        if has_pids {
            let pids = cgroup_dir(bundle.pid(), "pids").join("pids.max");
            assert_eq!(fs::read_to_string(pids).unwrap(), "33\n");
        }
        // What an update has added, another one may take away.
        let all = json!([{"allow": true, "access": "rwm"}]);
        update(&bundle, &json!({"devices": all})).ok();
        assert_eq!(kmsg(&bundle), "open open");
        if lost.starts_with('c') {
            update(&bundle, &json!({"devices": readable()})).ok();
            assert_eq!(kmsg(&bundle), seen);
        }
    }
}

/// While rules change some hundred times, null is always there, and kmsg never to be written to.
#[test]
fn no_gap_and_no_hole() {
    isorun_only!("runc leaves device rules as they are");
    let bundle = with_rules(
        "n=0; while test ! -e /tmp/stop; do \
            true < /dev/null || echo gap >> /tmp/bad; \
            true 2>/dev/null >> /dev/kmsg && echo hole >> /tmp/bad; \
            n=$((n+1)); done 2> /tmp/errors; echo $n > /tmp/count; exec sleep 1000",
        json!([denied()]),
    );
    let all_but = json!([
        {"allow": true, "access": "rwm"},
        {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "w"}
    ]);
    let wide = json!([denied(), {"allow": true, "type": "c", "major": 5, "access": "rwm"}]);
    for _ in 0..30 {
        for rules in [&readable(), &all_but, &wide, &json!([denied()])] {
            update(&bundle, &json!({"devices": rules})).ok();
        }
    }
    fs::write(bundle.rootfs("/tmp/stop"), "").unwrap();
    wait_for("its end", || bundle.rootfs("/tmp/count").exists());
    let bad = fs::read_to_string(bundle.rootfs("/tmp/bad")).unwrap_or_default();
    assert_eq!(bad, "", "a gap or a hole");
    wait_for("the count", || {
        fs::read_to_string(bundle.rootfs("/tmp/count"))
            .is_ok_and(|count| count.trim().parse::<u32>().is_ok_and(|count| count > 100))
    });
    assert_eq!(bundle.status(), "running");
}

#[test]
fn a_refused_update_leaves_the_rules() {
    isorun_only!("runc leaves device rules as they are");
    let bundle = with_rules("exec sleep 1000", json!([denied()]));
    for (devices, field) in [
        (json!([{"allow": true, "access": "x"}]), "devices[0].access"),
        (
            json!([{"allow": true, "type": "p", "access": "r"}]),
            "devices[0].type",
        ),
        (
            json!([{"allow": true, "type": "c", "major": -2, "access": "r"}]),
            "devices[0].major",
        ),
    ] {
        let out = update(&bundle, &json!({"devices": devices})).code(1);
        assert!(
            out.stderr.contains(&format!("linux.resources.{field}")),
            "{out:#?}"
        );
    }
    if view() == View::Hybrid && controller_usable("cpu") {
        let resources = json!({"devices": readable(), "cpu": {"quota": 5}});
        let out = update(&bundle, &resources).code(1);
        assert!(out.stderr.contains("linux.resources.cpu.quota"), "{out:#?}");
    }
    assert_eq!(kmsg(&bundle), "closed closed");
}

/// A cgroup of the container's own keeps v1 from starting over; the rest of its limits stay as well.
#[test]
fn what_v1_cannot_change_is_told() {
    isorun_only!("runc leaves device rules as they are");
    if view() != View::Hybrid || !controller_usable("devices") || !controller_usable("pids") {
        skip!("this view has no devices controller of v1");
    }
    let bundle = with_rules("exec sleep 1000", json!([denied()]));
    let below = cgroup_dir(bundle.pid(), "devices").join("below");
    fs::create_dir(&below).unwrap();
    let all = json!([{"allow": true, "access": "rwm"}]);
    let out = update(&bundle, &json!({"devices": all, "pids": {"limit": 7}})).code(1);
    assert!(
        out.stderr
            .contains("linux.resources.devices: write \"a\" to")
            && out.stderr.contains("EINVAL"),
        "{out:#?}"
    );
    let pids = cgroup_dir(bundle.pid(), "pids").join("pids.max");
    assert_eq!(fs::read_to_string(pids).unwrap(), "max\n");
    assert_eq!(kmsg(&bundle), "closed closed");
    assert_eq!(
        bundle.status(),
        "running",
        "it goes on after standing still"
    );
    fs::remove_dir(below).unwrap();
}

#[test]
fn a_paused_container_stays_paused() {
    isorun_only!("runc leaves device rules as they are");
    let bundle = with_rules("exec sleep 1000", json!([denied()]));
    bundle.call(&["pause", &bundle.id]).ok();
    let all = json!([{"allow": true, "access": "rwm"}]);
    update(&bundle, &json!({"devices": all})).ok();
    assert_eq!(bundle.status(), "paused");
    bundle.call(&["resume", &bundle.id]).ok();
    assert_eq!(kmsg(&bundle), "open open");
}
