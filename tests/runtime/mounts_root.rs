//! The root file system and how it becomes `/`: `--no-pivot`, `linux.rootfsPropagation`, roots that are
//! mounts, and propagation of the mounts in it.

use std::fs;

use serde_json::json;

use crate::harness::{Bundle, mount_at, parse_mountinfo, run_after, run_flags_after};

fn table() -> Bundle {
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/mountinfo"]);
    bundle
}

/// The propagation of the mount at `point` without its numbers: `shared master`.
#[track_caller]
fn propagation(stdout: &str, point: &str) -> String {
    let mount = mount_at(&parse_mountinfo(stdout), point);
    let words = mount.propagation.iter();
    let names: Vec<&str> = words.map(|word| word.split(':').next().unwrap()).collect();
    names.join(" ")
}

#[test]
fn rootfs_propagation_in_all_values() {
    since_runc!(1, 2, "rootfsPropagation unbindable");
    for (value, expected) in [
        (None, ""),
        (Some("shared"), "shared"),
        (Some("rshared"), "shared"),
        (Some("slave"), ""),
        (Some("rslave"), ""),
        (Some("private"), ""),
        (Some("rprivate"), ""),
        (Some("unbindable"), "unbindable"),
        (Some("runbindable"), "unbindable"),
    ] {
        for host in ["true", "mount --make-rshared /"] {
            let mut bundle = table();
            // runc makes everything unbindable before it binds these.
            bundle
                .set("/linux/readonlyPaths", json!([]))
                .set("/linux/maskedPaths", json!([]));
            if let Some(value) = value {
                bundle.set("/linux/rootfsPropagation", json!(value));
            }
            let out = run_after(&bundle, host).ok();
            assert_eq!(propagation(&out.stdout, "/"), expected, "{value:?}, {host}");
        }
    }
}

#[test]
fn propagation_of_a_bind_in_all_values() {
    for (options, top, below) in [
        (vec!["rbind"], "master", "master"),
        (vec!["rbind", "shared"], "shared master", "master"),
        (vec!["rbind", "rshared"], "shared master", "shared master"),
        (vec!["rbind", "slave"], "master", "master"),
        (vec!["rbind", "rslave"], "master", "master"),
        (vec!["rbind", "private"], "", "master"),
        (vec!["rbind", "rprivate"], "", ""),
        (vec!["rbind", "unbindable"], "unbindable", "master"),
        (vec!["rbind", "runbindable"], "unbindable", "unbindable"),
        (vec!["rbind", "rslave", "shared"], "shared master", "master"),
        (vec!["rbind", "rprivate", "shared"], "shared", ""),
    ] {
        let mut bundle = table();
        let tree = bundle.host("tree").to_str().unwrap().to_string();
        bundle.mount("/mnt", "bind", &tree, &options);
        let out = run_after(
            &bundle,
            "mkdir $D/tree; mount -t tmpfs none $D/tree; mkdir $D/tree/sub; \
             mount -t tmpfs none $D/tree/sub; mount --make-rshared /",
        )
        .ok();
        assert_eq!(propagation(&out.stdout, "/mnt"), top, "{options:?}");
        assert_eq!(propagation(&out.stdout, "/mnt/sub"), below, "{options:?}");
    }
}

/// What is mounted in the container is to show on the host, as Kubernetes' bidirectional propagation
/// asks for it: the mount is of the host's peer group, and no slave of it.
#[test]
fn binds_of_a_shared_root_are_peers_of_the_hosts() {
    since_runc!(
        1,
        3,
        "the root is made a slave, and what was bound in it, too"
    );
    for (root, options, top, below) in [
        (
            "rshared",
            ["rbind", "rshared"].as_slice(),
            "shared",
            "shared",
        ),
        ("shared", &["rbind", "rshared"], "shared", "shared"),
        ("shared", &["rbind"], "shared", "shared"),
        ("shared", &["rbind", "slave"], "master", "shared"),
        ("rslave", &["rbind", "rshared"], "master", "master"),
        ("rprivate", &["rbind", "rshared"], "shared", "shared"),
    ] {
        let mut bundle = table();
        let tree = bundle.host("tree").to_str().unwrap().to_string();
        bundle.mount("/mnt", "bind", &tree, options);
        bundle.set("/linux/rootfsPropagation", json!(root));
        let out = run_after(
            &bundle,
            "mkdir $D/tree; mount -t tmpfs none $D/tree; mkdir $D/tree/sub; \
             mount -t tmpfs none $D/tree/sub; mount --make-rshared /",
        )
        .ok();
        assert_eq!(propagation(&out.stdout, "/mnt"), top, "{root}, {options:?}");
        let found = propagation(&out.stdout, "/mnt/sub");
        assert_eq!(found, below, "{root}, {options:?}");
    }
}

/// What is private on the host stays so when it is bound.
#[test]
fn binds_of_private_mounts_in_a_shared_root_are_private() {
    let mut bundle = table();
    let tree = bundle.host("tree").to_str().unwrap().to_string();
    bundle.mount("/t", "tmpfs", "tmpfs", &[]);
    bundle.mount("/t/mnt", "bind", &tree, &["bind"]);
    bundle.set("/linux/rootfsPropagation", json!("shared"));
    let out = run_after(
        &bundle,
        "mkdir $D/tree; mount -t tmpfs none $D/tree; mount --make-rshared /; \
         mount --make-private $D/tree",
    )
    .ok();
    assert_eq!(propagation(&out.stdout, "/t/mnt"), "");
}

/// Only /proc is guarded: who has a procfs elsewhere may cover it.
#[test]
fn a_mount_over_another_procfs() {
    let mut bundle = Bundle::sh("cat /mnt/file; ls /mnt/self 2>/dev/null || echo covered");
    fs::create_dir(bundle.host("dir")).unwrap();
    fs::write(bundle.host("dir/file"), "here\n").unwrap();
    let dir = bundle.host("dir").to_str().unwrap().to_string();
    bundle.mount("/mnt", "proc", "proc", &[]);
    bundle.mount("/mnt", "bind", &dir, &["bind"]);
    assert_eq!(bundle.run().ok().text(), "here\ncovered");
}

/// What hides a file is the host's null device: a mount on it would be seen on the host.
#[test]
fn a_mask_of_a_shared_root_is_no_peer_of_the_hosts_devices() {
    let mut bundle = table();
    bundle.set("/linux/rootfsPropagation", json!("shared"));
    bundle.set("/linux/maskedPaths", json!(["/proc/keys"]));
    let out = run_after(&bundle, "mount --make-rshared /").ok();
    assert_eq!(propagation(&out.stdout, "/proc/keys"), "");
}

#[test]
fn propagation_of_a_new_file_system() {
    for (option, expected) in [
        ("shared", "shared"),
        ("rshared", "shared"),
        ("slave", ""),
        ("private", ""),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ] {
        let mut bundle = table();
        bundle.mount("/mnt", "tmpfs", "tmpfs", &[option]);
        assert_eq!(
            propagation(&bundle.run().ok().stdout, "/mnt"),
            expected,
            "{option}"
        );
    }
}

#[test]
fn a_mount_of_the_host_arrives_through_a_slave() {
    let mut bundle = Bundle::sh(
        "echo up > /io/up; while ! test -e /io/done; do sleep 0.05; done; ls /slave/sub /private/sub",
    );
    let io = bundle.host("io").to_str().unwrap().to_string();
    fs::create_dir_all(bundle.host("io")).unwrap();
    let tree = bundle.host("tree").to_str().unwrap().to_string();
    bundle.mount("/io", "bind", &io, &["bind"]);
    bundle.mount("/slave", "bind", &tree, &["rbind", "rslave"]);
    bundle.mount("/private", "bind", &tree, &["rbind", "rprivate"]);
    // What mounts comes from beside, in the namespace that the runtime was called in.
    let out = run_after(
        &bundle,
        "mkdir $D/tree; mount -t tmpfs none $D/tree; mkdir $D/tree/sub; mount --make-rshared /; \
         ( while ! test -s $D/io/up; do $X sleep 0.05; done; \
         mount -t tmpfs none $D/tree/sub; echo late > $D/tree/sub/late; echo 1 > $D/io/done ) &",
    )
    .ok();
    assert_eq!(out.text(), "/private/sub:\n\n/slave/sub:\nlate");
}

#[test]
fn a_root_that_is_a_mount_shared_or_not() {
    since_runc!(1, 2, "a root that is no slave of the host's");
    for script in [
        "mount --bind $B/rootfs $B/rootfs",
        "mount --bind $B/rootfs $B/rootfs; mount --make-shared $B/rootfs",
        "mount --make-rshared /",
        "mount --bind $B $B; mount --make-rshared $B; mount --bind $B/rootfs $B/rootfs",
        // The same with a mount in it, which the container sees.
        "mount --bind $B/rootfs $B/rootfs; mount -t tmpfs none $B/rootfs/tmp; echo x > $B/rootfs/tmp/in",
    ] {
        let mut bundle = Bundle::sh("ls /tmp; cat /proc/self/mountinfo");
        bundle.mount("/made", "tmpfs", "tmpfs", &[]);
        let out = run_after(
            &bundle,
            &format!("{script}; cat /proc/self/mountinfo > $D/before"),
        );
        let out = out.ok();
        let table: String = out
            .stdout
            .lines()
            .filter(|line| line.contains(" - "))
            .fold(String::new(), |all, line| all + line + "\n");
        assert_eq!(propagation(&table, "/"), "", "{script}");
        assert_eq!(
            out.stdout.starts_with("in\n"),
            script.contains("/tmp/in"),
            "{script}"
        );
        assert!(
            parse_mountinfo(&table)
                .iter()
                .all(|mount| !mount.point.contains("isotest"))
        );
        bundle.assert_gone();
    }
}

#[test]
fn nothing_shows_on_the_host_whose_mounts_are_shared() {
    for (propagation, pivot) in [
        (None, true),
        (Some("rshared"), true),
        (Some("rshared"), false),
    ] {
        let mut bundle = Bundle::sh("echo ready > /data/ready");
        fs::create_dir(bundle.host("dir")).unwrap();
        let dir = bundle.host("dir").to_str().unwrap().to_string();
        bundle.mount("/data", "bind", &dir, &["bind"]);
        bundle.mount("/made", "tmpfs", "tmpfs", &["rshared"]);
        if let Some(value) = propagation {
            bundle.set("/linux/rootfsPropagation", json!(value));
        }
        // The table of the namespace that the runtime was called in, before and after.
        let flags: &[&str] = if pivot { &[] } else { &["--no-pivot"] };
        let script = "mount --make-rshared /; $X cat /proc/self/mountinfo > $D/before; \
             set -- $X sh -c '\"$@\"; s=$?; $X cat /proc/self/mountinfo > $D/after; exit $s' sh \"$@\"";
        run_flags_after(&bundle, script, flags).ok();
        let read = |name| fs::read_to_string(bundle.host(name)).unwrap();
        assert_eq!(
            read("before"),
            read("after"),
            "{propagation:?}, pivot: {pivot}"
        );
        assert!(bundle.host("dir/ready").exists());
    }
}

#[test]
fn without_pivot_root() {
    let mut bundle =
        Bundle::sh("ls -d /tmp; test -e /etc/passwd && echo own; cat /proc/self/mountinfo");
    bundle.mount("/made", "tmpfs", "tmpfs", &["ro"]);
    let out = run_flags_after(&bundle, "true", &["--no-pivot"]).ok();
    let shown = out.stdout.strip_prefix("/tmp\nown\n").unwrap();
    let mounts = parse_mountinfo(shown);
    assert!(mount_at(&mounts, "/").root.ends_with("/bundle/rootfs"));
    assert!(mount_at(&mounts, "/made").has(&["ro"]));
    let mut other = table();
    other.mount("/made", "tmpfs", "tmpfs", &["ro"]);
    let with_pivot = parse_mountinfo(&other.run().ok().stdout);
    assert_eq!(mounts.len(), with_pivot.len(), "{mounts:#?}");
}

#[test]
fn without_pivot_root_a_readonly_root_is_readonly() {
    let mut bundle = Bundle::sh("touch /x 2>/dev/null || echo refused");
    bundle.set("/root/readonly", json!(true));
    let out = run_flags_after(&bundle, "true", &["--no-pivot"]).ok();
    assert_eq!(out.text(), "refused");
}

/// While the host's whole procfs is in the mount namespace, the kernel lets everybody with a user
/// namespace of his own mount another one, which no mask covers.
#[test]
fn without_pivot_root_the_hosts_proc_and_sys_are_gone() {
    let mut bundle = Bundle::sh(
        "busybox unshare -U -r -m -p -n -f sh -c 'echo in; for kind in proc sysfs; do \
         mount -t $kind none /tmp 2>/dev/null && echo $kind; done; echo end'",
    );
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    for flags in [["--no-pivot"].as_slice(), &[]] {
        let out = run_flags_after(&bundle, "true", flags).ok();
        assert_eq!(out.text(), "in\nend", "{flags:?}");
    }
}

#[test]
fn without_pivot_root_a_private_root_is_refused() {
    for value in ["private", "rprivate"] {
        let mut bundle = Bundle::sh("echo ran");
        bundle.set("/linux/rootfsPropagation", json!(value));
        let out = run_flags_after(&bundle, "true", &["--no-pivot"]).code(1);
        assert!(
            out.stderr
                .contains("[r]private is not safe without pivot_root"),
            "{}",
            out.stderr
        );
        bundle.assert_gone();
    }
}
