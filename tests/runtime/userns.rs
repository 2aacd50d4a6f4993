//! A user namespace with maps written by root.

use serde_json::json;

use crate::harness::Bundle;

pub const BASE: u32 = 200_000;

/// A bundle in a user namespace where container 0 is host 200000, with a tree that it owns.
pub fn mapped() -> Bundle {
    let mut bundle = Bundle::new();
    let map = json!([{"containerID": 0, "hostID": BASE, "size": 65536}]);
    bundle.namespace("user").namespace("cgroup");
    bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    crate::harness::chown_tree(&bundle.rootfs("/"), BASE);
    bundle
}

#[test]
fn maps_are_as_given() {
    let mut bundle = mapped();
    bundle.args(&[
        "cat",
        "/proc/self/uid_map",
        "/proc/self/gid_map",
        "/proc/self/setgroups",
    ]);
    let out = bundle.run().ok();
    let words: Vec<&str> = out.stdout.split_whitespace().collect();
    assert_eq!(
        words,
        ["0", "200000", "65536", "0", "200000", "65536", "allow"]
    );
}

#[test]
fn the_message_queues_belong_to_the_containers_root() {
    let mut bundle = mapped();
    bundle.args(&["stat", "-c", "%u", "/dev/mqueue"]);
    let out = bundle.run().ok();
    assert_eq!(out.text(), "0");
}

#[test]
fn several_maps() {
    let mut bundle = mapped();
    let map = json!([
        {"containerID": 0, "hostID": BASE, "size": 10},
        {"containerID": 1000, "hostID": 300_000, "size": 1}
    ]);
    bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    bundle.args(&[
        "sh",
        "-c",
        "cat /proc/self/uid_map; touch /tmp/mine; stat -c %u:%g /tmp/mine",
    ]);
    std::os::unix::fs::chown(bundle.rootfs("/tmp"), Some(300_000), Some(300_000)).unwrap();
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let out = bundle.run().ok();
    let words: Vec<&str> = out.stdout.split_whitespace().collect();
    assert_eq!(
        words,
        ["0", "200000", "10", "1000", "300000", "1", "1000:1000"]
    );
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        std::fs::metadata(bundle.rootfs("/tmp/mine")).unwrap().uid(),
        300_000
    );
}

#[test]
fn inside_it_is_root_and_outside_nobody_much() {
    let mut bundle = mapped();
    bundle.args(&[
        "sh",
        "-c",
        "id -u; cat /proc/self/status | grep ^CapEff; echo x > /tmp/made; sleep 100",
    ]);
    let running = bundle.spawn_run();
    bundle.wait_status("running");
    let pid = bundle.pid();
    crate::harness::wait_for("the file", || bundle.rootfs("/tmp/made").exists());
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uid = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap();
    assert_eq!(uid, format!("Uid:\t{BASE}\t{BASE}\t{BASE}\t{BASE}"));
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        std::fs::metadata(bundle.rootfs("/tmp/made")).unwrap().uid(),
        BASE
    );
    bundle.kill("KILL").ok();
    let out = running.finish();
    assert!(
        out.stdout.starts_with("0\nCapEff:\t0000000020000420"),
        "{out:#?}"
    );
}

#[test]
fn devices_and_mounts_in_a_user_namespace() {
    let mut bundle = mapped();
    bundle.args(&["sh", "-c", "echo x > /dev/null && head -c 2 /dev/zero | wc -c; test -d /sys/class/net/lo && echo sysfs; ls -d /dev/mqueue; hostname"]);
    assert_eq!(
        bundle.run().ok().text(),
        "2\nsysfs\n/dev/mqueue\nisorun-test"
    );
}

#[test]
fn supplementary_groups_in_a_user_namespace() {
    let mut bundle = mapped();
    bundle.args(&["id", "-G"]);
    bundle.set(
        "/process/user",
        json!({"uid": 5, "gid": 6, "additionalGids": [7, 8]}),
    );
    assert_eq!(bundle.run().ok().text(), "6 7 8");
}

#[test]
fn a_user_that_is_not_mapped_is_refused() {
    let mut bundle = mapped();
    bundle.set("/process/user", json!({"uid": 70_000, "gid": 0}));
    bundle.run().code(1);
    bundle.assert_gone();
}

#[test]
fn maps_without_namespace_are_refused() {
    isorun_only!("runc ignores maps where no user namespace is asked for");
    let mut bundle = Bundle::new();
    let map = json!([{"containerID": 0, "hostID": BASE, "size": 65536}]);
    bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    bundle.run().code(1);
    bundle.assert_gone();
}

#[test]
fn every_process_of_it_is_gone_after_delete() {
    let mut bundle = mapped();
    bundle.args(&["sh", "-c", "sleep 300 & exec sleep 300"]);
    bundle.run_detached().ok();
    bundle.wait_status("running");
    bundle.delete_force().ok();
    bundle.assert_gone();
}

#[test]
fn flags_of_the_hosts_mounts_cannot_be_taken_off() {
    let mut bundle = mapped();
    let source = bundle.host("sealed");
    std::fs::create_dir_all(&source).unwrap();
    let path = source.to_str().unwrap().to_string();
    bundle.mount("/mnt", "bind", &path, &["rbind"]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.push(
            &format!("/process/capabilities/{set}"),
            json!("CAP_SYS_ADMIN"),
        );
    }
    bundle.args(&[
        "sh",
        "-c",
        "mount -o remount,bind,rw,suid,dev,exec /mnt 2>/dev/null; grep ' /mnt ' /proc/self/mountinfo",
    ]);
    nix::mount::mount(
        Some("none"),
        &source,
        Some("tmpfs"),
        nix::mount::MsFlags::MS_RDONLY
            | nix::mount::MsFlags::MS_NODEV
            | nix::mount::MsFlags::MS_NOSUID,
        None::<&str>,
    )
    .unwrap();
    let out = bundle.run();
    nix::mount::umount2(&source, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let out = out.ok();
    assert!(out.stdout.contains("ro,nosuid,nodev"), "{}", out.stdout);
}

/// Maps that the kernel cannot take are a mistake, and no user namespace that it denies.
#[test]
fn maps_that_cannot_be_written() {
    isorun_only!("degradation is isorun's");
    let mut bundle = mapped();
    // One page is what the kernel reads (user_namespaces(7)), and these are more.
    let ranges =
        (0..300).map(|at| json!({"containerID": at, "hostID": 2_000_000_000 + at, "size": 1}));
    let map: serde_json::Value = ranges.collect();
    bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    bundle.args(&["true"]);
    let out = crate::degrade::at(&bundle, "any").code(1);
    assert!(out.stderr.contains("EINVAL"), "{out:#?}");
    assert!(!out.stderr.contains("degrad"), "{out:#?}");
    bundle.assert_gone();
}
