//! Programs of device rules on the running kernel: replaced, put back, left to who they are.

use std::fs;
use std::os::fd::AsFd;

use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::super::devices::Devices;
use super::super::*;
use super::kernel::{Shell, can_v1, inside_v2, name, planned};
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

/// Before Linux 5.6 the second step may fail: nothing of the first is left then.
#[test]
fn half_a_replacement_is_taken_off() {
    if !inside_v2("devices::half_a_replacement_is_taken_off") {
        return;
    }
    let none = json!([{"allow": false, "access": "rwm"}]);
    let cgroup = cgroup("half", &none);
    let placed = cgroup.placed();
    let before = ids(placed);
    let dir = fs::File::open(&placed.dirs[0].path).unwrap();
    let program = rules(&asked(none)).program().unwrap();
    let load = || bpf::load_device_program(&program).unwrap();
    let (elsewhere, new) = (load(), load());
    let failed = bpf::replace_in_two_steps(dir.as_fd(), elsewhere.as_fd(), new.as_fd());
    assert_eq!(failed, Err(nix::errno::Errno::ENOENT));
    assert_eq!(ids(placed), before);
    // And with the one that is there.
    let there = Programs::of(dir.as_fd()).unwrap();
    let old = there.attached[0].program.as_fd();
    bpf::replace_in_two_steps(dir.as_fd(), old, new.as_fd()).unwrap();
    assert!(ids(placed).len() == 1 && ids(placed) != before);
    placed.remove().unwrap();
}

/// v1 does not tell what it denies on top of everything allowed: after a change is taken back, and after
/// somebody else (systemd) has allowed all, it is denied again.
#[test]
fn what_v1_denies_is_denied_again() {
    if !can_v1() {
        return;
    }
    let but = |names: &[(i64, i64)]| {
        let mut list = vec![json!({"allow": true, "access": "rwm"})];
        list.extend(names.iter().map(|(major, minor)| {
            json!({"allow": false, "type": "c", "major": major, "minor": minor, "access": "rw"})
        }));
        Value::Array(list)
    };
    // kmsg, and one that nobody opens.
    let (kmsg, other) = (but(&[(1, 11)]), but(&[(10, 250)]));
    let (_, plan) = planned(&format!("/{}", name("again")), json!({"devices": kmsg}));
    let Some(at) = plan.dirs.iter().position(|dir| dir.devices.is_some()) else {
        return println!("skipped: no devices controller of v1");
    };
    let mut shell = Shell::new();
    let mut open = || {
        shell.tell("(: < /dev/kmsg) 2>/dev/null && echo open || echo refused");
        shell.line()
    };
    if open() != "open" {
        return println!("skipped: kmsg cannot be opened here");
    }
    let cgroup = Cgroup::create(&plan).unwrap();
    let placed = cgroup.placed();
    let dir = &placed.dirs[at];
    cgroup.join(shell.pid()).unwrap();
    let mut open = || {
        shell.tell("(: < /dev/kmsg) 2>/dev/null && echo open || echo refused");
        shell.line()
    };
    assert_eq!(open(), "refused");
    let known = rules(&asked(kmsg));
    for new in [other, json!([{"allow": false, "access": "rwm"}])] {
        let new = rules(&asked(new));
        let changed = placed.change_devices(dir, &new, &known).unwrap();
        placed.undo_devices(changed);
        assert_eq!(open(), "refused", "{new:?}");
    }
    let both = rules(&asked(but(&[(1, 11), (10, 250)])));
    let changed = placed.change_devices(dir, &both, &known).unwrap();
    fs::write(dir.path.join("devices.allow"), "a").unwrap();
    assert_eq!(open(), "open");
    changed.renew().unwrap();
    assert_eq!(open(), "refused");
    drop(shell);
    placed.kill().unwrap();
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
