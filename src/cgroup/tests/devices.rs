//! Programs of device rules on the running kernel: replaced, put back, left to who they are.

use std::fs;
use std::os::fd::AsFd;

use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::super::devices::Devices;
use super::super::*;
use super::kernel::{can_v1, inside_v2, name, planned};
use super::resources;
use crate::sys::bpf::{self, Programs};

fn asked(devices: Value) -> LinuxResources {
    resources(json!({ "devices": devices }))
        .resources()
        .clone()
        .unwrap()
}

fn rules(resources: &LinuxResources) -> Devices {
    Devices::from_spec(resources.devices().as_ref().unwrap()).unwrap()
}

fn ids(placed: &Placed) -> Vec<u32> {
    let dir = fs::File::open(&placed.dirs[0].path).unwrap();
    let there = Programs::of(dir.as_fd()).unwrap();
    there.attached.iter().map(|one| one.id).collect()
}

/// A cgroup with these device rules, in the v2 view that the test is in.
fn cgroup(test: &str, devices: &Value) -> Cgroup {
    let (_, plan) = planned(&format!("/{}", name(test)), json!({ "devices": devices }));
    Cgroup::create(&plan).unwrap()
}

#[test]
fn one_program_takes_the_place_of_another() {
    if !inside_v2("devices::one_program_takes_the_place_of_another") {
        return;
    }
    let old = json!([{"allow": false, "access": "rwm"}]);
    let cgroup = cgroup("replace", &old);
    let placed = cgroup.placed();
    let first = ids(placed);
    assert_eq!(first.len(), 1);
    // The same rules, as engines send them with every update, change nothing.
    placed
        .update(asked(old.clone()), &asked(old.clone()))
        .unwrap();
    assert_eq!(ids(placed), first);
    let new = json!([{"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]);
    placed
        .update(asked(new.clone()), &asked(old.clone()))
        .unwrap();
    let second = ids(placed);
    assert!(second.len() == 1 && second != first, "{second:?}");
    // Who has added devices has put a program of his own in the place of ours: it is replaced as well.
    let all = json!([{"allow": true, "access": "rwm"}]);
    let dir = fs::File::open(&placed.dirs[0].path).unwrap();
    let program = rules(&asked(all.clone())).program().unwrap();
    let foreign = bpf::load_device_program(&program).unwrap();
    bpf::attach_device_program(dir.as_fd(), foreign.as_fd()).unwrap();
    assert_eq!(ids(placed).len(), 2);
    placed
        .update(asked(old.clone()), &asked(new.clone()))
        .unwrap();
    assert_eq!(ids(placed).len(), 1);
    // All allowed needs none; and from none to one.
    placed
        .update(asked(all.clone()), &asked(old.clone()))
        .unwrap();
    assert_eq!(ids(placed), [0; 0]);
    placed.update(asked(old), &asked(all)).unwrap();
    assert_eq!(ids(placed).len(), 1);
    placed.remove().unwrap();
}

#[test]
fn a_change_is_taken_back() {
    if !inside_v2("devices::a_change_is_taken_back") {
        return;
    }
    let none = json!([{"allow": false, "access": "rwm"}]);
    let all = json!([{"allow": true, "access": "rwm"}]);
    let cgroup = cgroup("back", &none);
    let placed = cgroup.placed();
    let dir = fs::File::open(&placed.dirs[0].path).unwrap();
    let program = rules(&asked(all.clone())).program().unwrap();
    let second = bpf::load_device_program(&program).unwrap();
    bpf::attach_device_program(dir.as_fd(), second.as_fd()).unwrap();
    let mut before = ids(placed);
    before.sort_unstable();
    assert_eq!(before.len(), 2);
    let known = rules(&asked(none.clone()));
    let other = json!([{"allow": true, "type": "b", "access": "rwm"}]);
    for new in [all, other] {
        let new = rules(&asked(new));
        let changed = placed
            .change_devices(&placed.dirs[0], &new, &known)
            .unwrap();
        assert_eq!(ids(placed).len(), usize::from(!new.allow_all()));
        placed.undo_devices(changed);
        let mut now = ids(placed);
        now.sort_unstable();
        assert_eq!(now, before);
    }
    // systemd may take it off while it sets its own.
    let new = rules(&asked(
        json!([{"allow": true, "type": "b", "access": "rwm"}]),
    ));
    let changed = placed
        .change_devices(&placed.dirs[0], &new, &known)
        .unwrap();
    let there = Programs::of(dir.as_fd()).unwrap();
    assert!(there.attached[0].is_ours());
    bpf::detach_device_program(dir.as_fd(), there.attached[0].program.as_fd()).unwrap();
    changed.renew().unwrap();
    assert_eq!(ids(placed), [there.attached[0].id]);
    changed.renew().unwrap();
    assert_eq!(ids(placed).len(), 1);
    placed.remove().unwrap();
}

/// Where v1 has to start from nothing, nobody sees it.
#[test]
fn standing_still_on_v1() {
    if !can_v1() {
        return;
    }
    let (host, plan) = planned(&format!("/{}", name("still")), json!({}));
    let freezers = |v1: &V1Hierarchy| v1.controllers.iter().any(|name| name == "freezer");
    if !host.v1.iter().any(freezers) {
        return println!("skipped: no freezer");
    }
    let cgroup = Cgroup::create(&plan).unwrap();
    let placed = cgroup.placed();
    let frozen = || Ok::<_, crate::error::Error>(placed.frozen());
    assert!(placed.standing_still(true, frozen).unwrap());
    assert!(!placed.frozen());
    assert!(!placed.standing_still(false, frozen).unwrap());
    placed.pause().unwrap();
    assert!(placed.standing_still(true, frozen).unwrap());
    assert!(placed.frozen(), "who is paused stays so");
    placed.resume().unwrap();
    placed.remove().unwrap();
}
