//! Flags of mounts: set and cleared, of one mount and of a tree, on new file systems and binds, with
//! `remount`, and locked in a user namespace.

use std::fs;

use serde_json::json;

use crate::harness::{Bundle, Mount, chown_tree, mount_at, parse_mountinfo, run_after};

const BASE: u32 = 200_000;

/// On the host: a restricted tmpfs with another one below it.
const TREE: &str = "mkdir $D/tree; mount -t tmpfs -o nosuid,nodev,noatime,mode=755 none $D/tree; \
    mkdir $D/tree/sub; mount -t tmpfs -o noexec,mode=755 none $D/tree/sub";

/// A bundle that prints its mountinfo and has `$D/tree` at /mnt with these options.
fn bound(options: &[&str]) -> Bundle {
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/mountinfo"]);
    let tree = bundle.host("tree").to_str().unwrap().to_string();
    bundle.mount("/mnt", "bind", &tree, options);
    bundle
}

fn in_user_namespace(bundle: &mut Bundle) {
    let map = json!([{"containerID": 0, "hostID": BASE, "size": 65536}]);
    bundle.namespace("user").namespace("cgroup");
    bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    chown_tree(&bundle.rootfs("/"), BASE);
}

/// The options of the mounts /mnt and /mnt/sub, joined by commas.
fn flags(table: &str) -> (String, String) {
    let mounts = parse_mountinfo(table);
    let of = |point: &str| mount_at(&mounts, point).options.join(",");
    (of("/mnt"), of("/mnt/sub"))
}

#[test]
fn of_a_bind_of_a_restricted_mount() {
    since_runc!(1, 2, "flags that clear, and nosymfollow");
    const SUB: &str = "rw,noexec,relatime";
    // As soon as one flag is given, those that are not go; access times stay unless they are given.
    for (options, top, below) in [
        (vec!["rbind"], "rw,nosuid,nodev,noatime", SUB),
        (vec!["rbind", "ro"], "ro,noatime", SUB),
        (vec!["rbind", "rw"], "rw,noatime", SUB),
        (vec!["rbind", "nodev"], "rw,nodev,noatime", SUB),
        (vec!["rbind", "suid"], "rw,noatime", SUB),
        (vec!["rbind", "dev", "exec"], "rw,noatime", SUB),
        (vec!["rbind", "relatime"], "rw,relatime", SUB),
        (vec!["rbind", "strictatime"], "rw", SUB),
        (vec!["rbind", "nodiratime"], "rw,nodiratime,relatime", SUB),
        (vec!["rbind", "nosymfollow"], "rw,noatime,nosymfollow", SUB),
        (vec!["rbind", "nosymfollow", "symfollow"], "rw,noatime", SUB),
        (vec!["rbind", "rw", "ro"], "ro,noatime", SUB),
        (vec!["rbind", "ro", "rw"], "rw,noatime", SUB),
        (
            vec!["rbind", "noexec", "rprivate"],
            "rw,noexec,noatime",
            SUB,
        ),
    ] {
        let out = run_after(&bound(&options), TREE).ok();
        let (got_top, got_below) = flags(&out.stdout);
        assert_eq!(
            (got_top.as_str(), got_below.as_str()),
            (top, below),
            "{options:?}"
        );
    }
}

#[test]
fn of_a_whole_tree() {
    since_runc!(1, 2, "the order of flags with and without r");
    for (options, top, below) in [
        (
            vec!["rbind", "rro"],
            "ro,nosuid,nodev,noatime",
            "ro,noexec,relatime",
        ),
        (
            vec!["rbind", "rro", "rnosuid"],
            "ro,nosuid,nodev,noatime",
            "ro,nosuid,noexec,relatime",
        ),
        (
            vec!["rbind", "rsuid", "rdev"],
            "rw,noatime",
            "rw,noexec,relatime",
        ),
        (
            vec!["rbind", "rexec"],
            "rw,nosuid,nodev,noatime",
            "rw,relatime",
        ),
        (
            vec!["rbind", "rnoexec", "rnodev"],
            "rw,nosuid,nodev,noexec,noatime",
            "rw,nodev,noexec,relatime",
        ),
        (
            vec!["rbind", "rrelatime"],
            "rw,nosuid,nodev,relatime",
            "rw,noexec,relatime",
        ),
        (
            vec!["rbind", "rstrictatime"],
            "rw,nosuid,nodev",
            "rw,noexec",
        ),
        (
            vec!["rbind", "rnoatime"],
            "rw,nosuid,nodev,noatime",
            "rw,noexec,noatime",
        ),
        (
            vec!["rbind", "ratime"],
            "rw,nosuid,nodev,relatime",
            "rw,noexec,relatime",
        ),
        (
            vec!["rbind", "rnodiratime"],
            "rw,nosuid,nodev,noatime,nodiratime",
            "rw,noexec,nodiratime,relatime",
        ),
        (
            vec!["rbind", "rnodiratime", "rdiratime"],
            "rw,nosuid,nodev,noatime",
            "rw,noexec,relatime",
        ),
        (
            vec!["rbind", "rnosymfollow"],
            "rw,nosuid,nodev,noatime,nosymfollow",
            "rw,noexec,relatime,nosymfollow",
        ),
        (
            vec!["rbind", "rnosymfollow", "rsymfollow"],
            "rw,nosuid,nodev,noatime",
            "rw,noexec,relatime",
        ),
        // For the top both count: its own first, then those of the tree.
        (
            vec!["rbind", "ro", "rrw"],
            "rw,noatime",
            "rw,noexec,relatime",
        ),
        (
            vec!["rbind", "rro", "rw"],
            "ro,noatime",
            "ro,noexec,relatime",
        ),
        (vec!["rbind", "ro", "rexec"], "ro,noatime", "rw,relatime"),
    ] {
        let out = run_after(&bound(&options), TREE).ok();
        let (got_top, got_below) = flags(&out.stdout);
        assert_eq!(
            (got_top.as_str(), got_below.as_str()),
            (top, below),
            "{options:?}"
        );
    }
}

#[test]
fn atime_takes_noatime_off() {
    isorun_only!("runc leaves noatime: it looks at access times that are chosen only");
    for options in [["rbind", "atime"], ["rbind", "ratime"]] {
        let out = run_after(&bound(&options), TREE).ok();
        let top = flags(&out.stdout).0;
        assert!(
            !top.contains("noatime") && top.contains("relatime"),
            "{options:?}: {top}"
        );
    }
}

#[test]
fn locked_flags_of_the_host_stay_in_a_user_namespace() {
    since_runc!(1, 2, "flags that clear");
    for (options, top) in [
        (vec!["rbind"], "rw,nosuid,nodev,noatime"),
        (vec!["rbind", "ro"], "ro,nosuid,nodev,noatime"),
        (
            vec!["rbind", "rw", "noexec"],
            "rw,nosuid,nodev,noexec,noatime",
        ),
        (vec!["rbind", "exec"], "rw,nosuid,nodev,noatime"),
        (vec!["rbind", "noatime"], "rw,nosuid,nodev,noatime"),
        (
            vec!["rbind", "nosymfollow"],
            "rw,nosuid,nodev,noatime,nosymfollow",
        ),
        (vec!["rbind", "rnoexec"], "rw,nosuid,nodev,noexec,noatime"),
    ] {
        let mut bundle = bound(&options);
        in_user_namespace(&mut bundle);
        assert_eq!(
            flags(&run_after(&bundle, TREE).ok().stdout).0,
            top,
            "{options:?}"
        );
    }
    for option in [
        "suid",
        "dev",
        "relatime",
        "strictatime",
        "atime",
        "nodiratime",
        "rsuid",
        "rdev",
        "rexec",
        "ratime",
    ] {
        let mut bundle = bound(&["rbind", option]);
        in_user_namespace(&mut bundle);
        let out = run_after(&bundle, TREE).code(1);
        assert_eq!(out.text(), "", "{option}");
        if crate::harness::runtime().isorun {
            assert!(
                out.stderr.contains("EPERM") && out.stderr.contains("locked"),
                "{option}: {}",
                out.stderr
            );
        }
        bundle.assert_gone();
    }
}

#[test]
fn sysfs_in_a_user_namespace_with_the_hosts_network() {
    isorun_only!("runc says EPERM");
    let mut bundle =
        Bundle::sh("test -d /sys/class/net/lo && echo there; cat /proc/self/mountinfo");
    in_user_namespace(&mut bundle);
    bundle.without_namespace("network");
    let out = bundle.run().ok();
    let table = out.stdout.strip_prefix("there\n").unwrap();
    let mounts = parse_mountinfo(table);
    assert!(
        mounts.iter().any(|mount| mount.point == "/sys"),
        "{mounts:#?}"
    );
    for mount in mounts
        .iter()
        .filter(|mount| mount.point.starts_with("/sys"))
    {
        assert!(mount.has(&["ro", "nosuid", "nodev", "noexec"]), "{mount:?}");
    }
    assert!(
        out.stderr.contains("degraded: a sysfs of its own on /sys") && out.stderr.contains("EPERM"),
        "{}",
        out.stderr
    );
}

#[test]
fn readonly_root_in_a_user_namespace_keeps_the_hosts_flags() {
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/mountinfo"]);
    in_user_namespace(&mut bundle);
    bundle.set("/root/readonly", json!(true));
    let out = run_after(
        &bundle,
        "mount --bind $B/rootfs $B/rootfs; mount -o remount,bind,nosuid,nodev,noatime $B/rootfs",
    )
    .ok();
    let root = mount_at(&parse_mountinfo(&out.stdout), "/");
    assert_eq!(root.options.join(","), "ro,nosuid,nodev,noatime");
}

/// The mount that `cat /proc/self/mountinfo` shows at /mnt.
fn fresh(options: &[&str]) -> Mount {
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/mountinfo"]);
    bundle.mount("/mnt", "tmpfs", "tmpfs", options);
    mount_at(&parse_mountinfo(&bundle.run().ok().stdout), "/mnt")
}

#[test]
fn of_a_new_file_system() {
    since_runc!(1, 2, "nosymfollow");
    for (options, flags) in [
        (vec![], "rw,relatime"),
        (vec!["ro"], "ro,relatime"),
        (vec!["ro", "rw"], "rw,relatime"),
        (
            vec!["nosuid", "nodev", "noexec"],
            "rw,nosuid,nodev,noexec,relatime",
        ),
        (vec!["nosuid", "nodev", "suid", "dev"], "rw,relatime"),
        (vec!["noatime"], "rw,noatime"),
        (vec!["noatime", "atime"], "rw,relatime"),
        (vec!["noatime", "relatime"], "rw,noatime"),
        (vec!["strictatime", "noatime", "relatime"], "rw"),
        (vec!["strictatime", "nodiratime"], "rw,nodiratime"),
        (vec!["nosymfollow"], "rw,relatime,nosymfollow"),
    ] {
        assert_eq!(fresh(&options).options.join(","), flags, "{options:?}");
    }
    let synced = fresh(&["sync", "dirsync"]);
    assert!(
        synced.super_has("sync") && synced.super_has("dirsync"),
        "{synced:?}"
    );
}

#[test]
fn flags_of_a_tree_on_a_new_file_system_are_its_own() {
    isorun_only!("runc drops them");
    for (options, flags) in [
        (vec!["rro"], "ro,relatime"),
        (vec!["rnosuid", "rnodev"], "rw,nosuid,nodev,relatime"),
        (vec!["ro", "rrw"], "rw,relatime"),
        (vec!["noatime", "rstrictatime"], "rw"),
        (vec!["rnosymfollow"], "rw,relatime,nosymfollow"),
    ] {
        assert_eq!(fresh(&options).options.join(","), flags, "{options:?}");
    }
}

#[test]
fn a_readonly_tmpfs_takes_what_comes_after_it() {
    let mut bundle = Bundle::sh(
        "cat /t/data/file /copied/kept; touch /t/x /copied/x 2>/dev/null || echo refused",
    );
    fs::create_dir(bundle.host("dir")).unwrap();
    fs::write(bundle.host("dir/file"), "below\n").unwrap();
    fs::create_dir(bundle.rootfs("/copied")).unwrap();
    fs::write(bundle.rootfs("/copied/kept"), "kept\n").unwrap();
    let dir = bundle.host("dir").to_str().unwrap().to_string();
    bundle.mount("/t", "tmpfs", "tmpfs", &["ro", "mode=755"]);
    bundle.mount("/copied", "tmpfs", "tmpfs", &["ro", "tmpcopyup"]);
    bundle.mount("/t/data", "bind", &dir, &["bind"]);
    assert_eq!(bundle.run().ok().text(), "below\nkept\nrefused");
}

#[test]
fn a_readonly_dev_has_its_devices() {
    let mut bundle = Bundle::sh(
        "echo x > /dev/null; readlink /dev/fd; touch /dev/new 2>/dev/null || echo refused",
    );
    bundle.mount("/dev", "tmpfs", "tmpfs", &["ro", "nosuid", "mode=755"]);
    assert_eq!(bundle.run().ok().text(), "/proc/self/fd\nrefused");
}

#[test]
fn remount_of_a_bind_sets_its_flags_anew() {
    since_runc!(1, 2, "flags that clear");
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/mountinfo"]);
    fs::create_dir(bundle.host("dir")).unwrap();
    let dir = bundle.host("dir").to_str().unwrap().to_string();
    bundle.mount("/mnt", "bind", &dir, &["bind", "nosuid", "noatime"]);
    bundle.mount("/mnt", "bind", &dir, &["bind", "remount", "ro", "nodev"]);
    bundle.mount("/sys", "none", "/sys", &["bind", "remount", "nosuid"]);
    let mounts = parse_mountinfo(&bundle.run().ok().stdout);
    assert_eq!(
        mount_at(&mounts, "/mnt").options.join(","),
        "ro,nodev,noatime"
    );
    assert_eq!(
        mount_at(&mounts, "/sys").options.join(","),
        "rw,nosuid,relatime"
    );
    let here = mounts.iter().filter(|mount| mount.point == "/mnt").count();
    assert_eq!(here, 1, "nothing more is mounted");
}

#[test]
fn remount_of_a_file_system_changes_its_parameters() {
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/mountinfo"]);
    bundle.mount("/mnt", "tmpfs", "tmpfs", &["nosuid", "size=1m"]);
    bundle.mount(
        "/mnt",
        "tmpfs",
        "tmpfs",
        &["remount", "ro", "noexec", "size=64k"],
    );
    let mounts = parse_mountinfo(&bundle.run().ok().stdout);
    let mount = mount_at(&mounts, "/mnt");
    assert_eq!(mount.options.join(","), "ro,noexec,relatime");
    assert!(
        mount.super_has("size=64k") && mount.super_has("rw"),
        "{mount:?}"
    );
}

#[test]
fn remount_of_nothing_is_refused() {
    for (kind, options) in [
        ("tmpfs", ["remount", "size=64k"].as_slice()),
        ("bind", &["bind", "remount", "ro"]),
    ] {
        let mut bundle = Bundle::sh("echo ran");
        fs::create_dir(bundle.rootfs("/mnt")).unwrap();
        let dir = bundle.host("").to_str().unwrap().to_string();
        bundle.mount("/mnt", kind, &dir, options);
        let out = bundle.run().code(1);
        assert_eq!(out.text(), "");
        if crate::harness::runtime().isorun {
            assert!(
                out.stderr.contains("mounts[6]") && out.stderr.contains("EINVAL"),
                "{}",
                out.stderr
            );
        }
        bundle.assert_gone();
    }
}

/// What templates leave on a tmpfs that became a bind mount; anything else unknown may be a misspelt `ro`.
#[test]
fn options_of_tmpfs_on_a_bind_mount_are_told() {
    isorun_only!("runc refuses them, crun drops them without a word");
    let mut bundle = Bundle::sh("cat /mnt/file; stat -c %a /mnt");
    let tree = bundle.host("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "there\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    fs::set_permissions(&tree, mode).unwrap();
    let tree = tree.to_str().unwrap().to_string();
    bundle.mount("/mnt", "bind", &tree, &["rbind", "mode=755", "size=1k"]);
    let out = bundle.run().ok();
    assert_eq!(out.stdout, "there\n711\n");
    let told = "warning: mounts[6].options: mode, size of tmpfs is ignored";
    assert!(out.stderr.contains(told), "{out:#?}");
}

/// Flags that fsconfig(2) does not know: such a mount is made by mount(2), with all else that it has.
#[test]
fn flags_that_only_the_old_call_takes() {
    for options in [
        &["silent"][..],
        &["iversion"],
        &["silent", "loud", "iversion", "noiversion"],
        &["loud"],
        &["noiversion"],
    ] {
        let mut all = vec!["nosuid", "size=64k", "mode=711", "noatime", "unbindable"];
        all.extend(options);
        let mut bundle = Bundle::sh("cat /proc/self/mountinfo; stat -c %a /fresh");
        bundle.mount("/fresh", "tmpfs", "here", &all);
        let out = bundle.run().ok();
        let line = out.stdout.lines().find(|line| line.contains(" /fresh "));
        let line = line.unwrap_or_else(|| panic!("{options:?}: {out:#?}"));
        for part in [
            "nosuid,noatime",
            "unbindable - tmpfs here",
            "size=64k",
            "mode=711",
        ] {
            assert!(line.contains(part), "{options:?}: {part}: {line}");
        }
        assert!(out.stdout.ends_with("711\n"), "{out:#?}");
    }
}
