//! Default and listed devices, the links in /dev, and what the device rules allow.

use serde_json::json;

use crate::harness::Bundle;

#[test]
fn default_devices() {
    let mut bundle = Bundle::new();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    bundle.args(&[
        "/probe",
        "node",
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/dev/random",
        "/dev/urandom",
        "/dev/tty",
    ]);
    assert_eq!(
        bundle.run().ok().text(),
        "/dev/null c 1:3 666 0:0\n/dev/zero c 1:5 666 0:0\n/dev/full c 1:7 666 0:0\n\
         /dev/random c 1:8 666 0:0\n/dev/urandom c 1:9 666 0:0\n/dev/tty c 5:0 666 0:0"
    );
}

#[test]
fn links_in_dev() {
    let bundle = Bundle::sh(
        "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; test -e /dev/console; echo $?",
    );
    assert_eq!(
        bundle.run().ok().text(),
        "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n1"
    );
}

#[test]
fn a_listed_ptmx_stays_the_link() {
    let mut bundle = Bundle::sh("readlink /dev/ptmx; : < /dev/ptmx && echo opened");
    bundle.set(
        "/linux/devices",
        json!([{"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2, "fileMode": 0o666}]),
    );
    assert_eq!(bundle.run().ok().text(), "pts/ptmx\nopened");
}

#[test]
fn default_devices_work() {
    let bundle = Bundle::sh(
        "echo gone > /dev/null; head -c 4 /dev/zero | od -An -tx1; head -c 8 /dev/urandom | wc -c; \
         echo x 2>/dev/null > /dev/full || echo full",
    );
    assert_eq!(bundle.run().ok().text(), "00 00 00 00\n8\nfull");
}

#[test]
fn listed_devices() {
    let mut bundle = Bundle::new();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    bundle.args(&[
        "/probe",
        "node",
        "/dev/mine",
        "/dev/sub/kmsg",
        "/dev/disk",
        "/dev/pipe",
    ]);
    bundle.set(
        "/linux/devices",
        json!([
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8},
            {"path": "/dev/sub/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o600},
            {"path": "/dev/disk", "type": "b", "major": 7, "minor": 300, "fileMode": 0o660, "uid": 0, "gid": 6},
            {"path": "/dev/pipe", "type": "p", "fileMode": 0o622}
        ]),
    );
    if crate::harness::denied("mknod") {
        // There is no node of the host to bind in the place of these: told by name, nothing is left.
        let out = bundle.run().code(1);
        assert!(out.stderr.contains("/dev/"), "{out:#?}");
        return bundle.assert_gone();
    }
    assert_eq!(
        bundle.run().ok().text(),
        "/dev/mine c 1:3 640 7:8\n/dev/sub/kmsg c 1:11 600 0:0\n/dev/disk b 7:300 660 0:6\n\
         /dev/pipe p 0:0 622 0:0"
    );
}

#[test]
fn umask_of_the_caller_does_not_touch_device_modes() {
    let mut bundle = Bundle::new();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    bundle.args(&["/probe", "node", "/dev/null"]).write();
    let script = "umask 077; exec \"$@\"";
    let mut command = std::process::Command::new("sh");
    let inner = bundle.command(&[
        "run",
        "--bundle",
        bundle.bundle_dir().to_str().unwrap(),
        &bundle.id,
    ]);
    command
        .args(["-c", script, "sh"])
        .arg(inner.get_program())
        .args(inner.get_args());
    let out = crate::harness::run_command(command, &bundle.dir.join("io")).ok();
    assert_eq!(out.text(), "/dev/null c 1:3 666 0:0");
}

#[test]
fn device_rules_have_their_effect() {
    // kmsg may be made by its maker, but opened only where a rule says so.
    let kmsg =
        json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}]);
    let set = json!(["CAP_SYSLOG"]);
    let mut bundle = Bundle::sh("(: < /dev/kmsg) 2>/dev/null && echo open || echo closed");
    bundle.set("/linux/devices", kmsg);
    // Where dmesg is restricted, reading the log takes the capability as well.
    bundle.set(
        "/process/capabilities",
        json!({"bounding": set, "permitted": set, "effective": set}),
    );
    bundle.set(
        "/linux/resources/devices",
        json!([{"allow": false, "access": "rwm"}]),
    );
    assert_eq!(bundle.run().ok().text(), "closed");
    bundle.set(
        "/linux/resources/devices",
        json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}
        ]),
    );
    assert_eq!(bundle.run().ok().text(), "open");
}

#[test]
fn mknod_needs_its_rule_and_capability() {
    if crate::harness::denied("mknod") {
        skip!("the filter around the runtime refuses the container's own mknod too");
    }
    // The default rules allow every mknod; opening what was made is another matter.
    let mut bundle = Bundle::sh(
        "mknod /tmp/a c 1 3 && echo null; mknod /tmp/k c 1 11; (: < /tmp/k) && echo kmsg; true",
    );
    let set = json!(["CAP_MKNOD", "CAP_SYSLOG"]);
    bundle.set(
        "/process/capabilities",
        json!({"bounding": set, "permitted": set, "effective": set}),
    );
    bundle.set(
        "/linux/resources/devices",
        json!([{"allow": false, "access": "rwm"}]),
    );
    assert_eq!(bundle.run().ok().text(), "null");
    let mut bundle = Bundle::sh("mknod /tmp/a c 1 3 2>/dev/null && echo made || echo refused");
    assert_eq!(
        bundle
            .set("/process/noNewPrivileges", json!(true))
            .run()
            .ok()
            .text(),
        "refused"
    );
}
