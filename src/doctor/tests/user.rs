//! What a user without privileges lacks: ranges of ids, their helpers, cgroups.

use super::{Degraded, EACCES, EPERM, Full, Machine, check};
use crate::cgroup::Mode;
use crate::host::Outcome;
use crate::host::facts::SubIds;

#[test]
fn what_a_user_lacks() {
    let mut machine = Machine::user();
    machine.fails("user.map-range", EPERM);
    machine.probed.facts.subids = Some(SubIds {
        user: "ann".into(),
        free: 231_072,
        ..SubIds::default()
    });
    let remedy = "sudo usermod --add-subuids 231072-296607 --add-subgids 231072-296607 ann";
    check(
        "no ranges",
        &machine,
        Degraded,
        &[],
        "user.map-range",
        &[remedy],
    );

    machine.probed.facts.subids = Some(SubIds {
        user: "ann".into(),
        uids: vec![(1, 2)],
        gids: vec![(1, 2)],
        free: 100_000,
        helpers: false,
    });
    check(
        "no helpers",
        &machine,
        Degraded,
        &[],
        "user.map-range",
        &["sudo apt install uidmap"],
    );
    machine.probed.facts.distro.id = "fedora".into();
    check(
        "no helpers",
        &machine,
        Degraded,
        &[],
        "user.map-range",
        &["dnf install shadow-utils"],
    );

    let mut machine = Machine::user();
    machine.fails("cgroup.create", EACCES);
    machine.probed.probes.remove("cgroup.delegated");
    let remedies = ["systemd.unified_cgroup_hierarchy=1"];
    check("no v2", &machine, Degraded, &[], "cgroup.create", &remedies);
    machine.host.cgroups.mode = Mode::V2;
    let remedies = ["sudo chown -R ann /sys/fs/cgroup/isorun"];
    check(
        "no systemd",
        &machine,
        Degraded,
        &[],
        "cgroup.create",
        &remedies,
    );
    machine.probed.facts.systemd = true;
    let remedies = [
        "Delegate=cpu cpuset io memory pids",
        "systemd-run --user --scope",
    ];
    check(
        "no delegation",
        &machine,
        Degraded,
        &[],
        "cgroup.create",
        &remedies,
    );
    let delegated = Outcome::ok("cpu memory pids");
    machine
        .probed
        .probes
        .insert("cgroup.delegated".into(), delegated);
    check("systemd delegates", &machine, Full, &[], "", &[]);
    let delegated = Outcome::ok("memory pids");
    machine
        .probed
        .probes
        .insert("cgroup.delegated".into(), delegated);
    check(
        "but no cpu",
        &machine,
        Degraded,
        &[],
        "cgroup.create",
        &remedies,
    );
}
