//! Mounts of type `cgroup` and `cgroup2`, with and without a cgroup and a user namespace, as the host
//! has its cgroups.

use serde_json::json;

use crate::harness::{Bundle, Mount, View, chown_tree, parse_mountinfo, view};

const OPTIONS: [&str; 5] = ["nosuid", "noexec", "nodev", "relatime", "ro"];

/// The container's mounts at and below /sys/fs/cgroup, and what it says about writing there.
fn mounted(kind: &str, cgroup_namespace: bool, user_namespace: bool) -> (Vec<Mount>, String) {
    let mut bundle = Bundle::sh(
        "for at in /sys/fs/cgroup /sys/fs/cgroup/pids; do \
         test -e $at/cgroup.procs && { mkdir $at/new 2>/dev/null && echo made; echo seen; }; done; \
         cat /proc/self/mountinfo",
    );
    bundle.mount("/sys/fs/cgroup", kind, "cgroup", &OPTIONS);
    if cgroup_namespace {
        bundle.namespace("cgroup");
    }
    if user_namespace {
        let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
        bundle.namespace("user");
        bundle
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map);
        chown_tree(&bundle.rootfs("/"), 200_000);
    }
    let out = bundle.run().ok();
    let (table, said): (Vec<&str>, Vec<&str>) =
        out.stdout.lines().partition(|line| line.contains(" - "));
    let mut mounts = parse_mountinfo(&table.join("\n"));
    mounts.retain(|mount| mount.point.starts_with("/sys/fs/cgroup"));
    (mounts, said.join(" "))
}

#[test]
fn with_and_without_namespaces() {
    since_runc!(
        1,
        2,
        "the options of the tmpfs that holds the hierarchies of v1"
    );
    for (own, user) in [(true, false), (false, false), (true, true), (false, true)] {
        let (mounts, said) = mounted("cgroup", own, user);
        let case = format!("cgroup namespace: {own}, user namespace: {user}: {mounts:#?}");
        assert_eq!(said, "seen", "{case}");
        for mount in &mounts {
            assert!(mount.has(&["ro", "nosuid", "nodev", "noexec"]), "{case}");
        }
        match view() {
            View::V2 => {
                assert_eq!(mounts.len(), 1, "{case}");
                assert_eq!(mounts[0].kind, "cgroup2", "{case}");
            }
            View::Hybrid => {
                assert_eq!(mounts[0].kind, "tmpfs", "{case}");
                assert!(mounts.iter().any(|mount| mount.kind == "cgroup"), "{case}");
            }
        }
        // The top of what is mounted is the container's own cgroup, not the host's tree: always with a
        // cgroup namespace, and on v1 by a bind of it.
        if own {
            for mount in mounts.iter().filter(|mount| mount.kind != "tmpfs") {
                assert_eq!(mount.root, "/", "{case}");
            }
        }
    }
}

#[test]
fn of_type_cgroup2() {
    for own in [true, false] {
        let (mounts, said) = mounted("cgroup2", own, false);
        assert_eq!(said, "seen", "{mounts:#?}");
        assert_eq!(mounts.len(), 1, "{mounts:#?}");
        assert_eq!(mounts[0].kind, "cgroup2");
        assert!(mounts[0].has(&["ro", "nosuid", "nodev", "noexec"]));
    }
}

#[test]
fn of_type_cgroup2_in_a_user_namespace_without_a_cgroup_namespace() {
    isorun_only!("runc has the other way for type cgroup only");
    if view() != View::V2 {
        skip!("only where cgroup2 is all that there is");
    }
    let (mounts, said) = mounted("cgroup2", false, true);
    assert_eq!((said.as_str(), mounts.len()), ("seen", 1), "{mounts:#?}");
    assert!(
        mounts[0].kind == "cgroup2" && mounts[0].has(&["ro"]),
        "{mounts:#?}"
    );
}
