//! `mounts`: what the container's mountinfo and its files say.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::harness::{Bundle, Mount, View, mount_at, parse_mountinfo, view};

/// Runs the bundle with `cat /proc/self/mountinfo` and gives the mounts.
fn mounts(bundle: &mut Bundle) -> Vec<Mount> {
    bundle.args(&["cat", "/proc/self/mountinfo"]);
    parse_mountinfo(&bundle.run().ok().stdout)
}

/// A directory of the host with a file in it.
fn source(bundle: &Bundle, name: &str) -> String {
    let dir = bundle.host(name);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("file"), "of the host\n").unwrap();
    dir.to_str().unwrap().to_string()
}

#[test]
fn bind_of_a_directory_is_the_hosts() {
    let mut bundle = Bundle::sh("cat /data/file; echo back > /data/new");
    let dir = source(&bundle, "dir");
    bundle.mount("/data", "bind", &dir, &["bind"]);
    assert_eq!(bundle.run().ok().text(), "of the host");
    assert_eq!(
        fs::read_to_string(bundle.host("dir/new")).unwrap(),
        "back\n"
    );
}

#[test]
fn bind_by_option_without_type() {
    let mut bundle = Bundle::sh("cat /data/file");
    let dir = source(&bundle, "dir");
    bundle.push(
        "/mounts",
        serde_json::json!({"destination": "/data", "source": dir, "options": ["rbind", "ro"]}),
    );
    assert_eq!(bundle.run().ok().text(), "of the host");
}

#[test]
fn bind_of_a_file_makes_its_target() {
    let mut bundle = Bundle::sh("cat /etc/deep/er/file");
    let dir = source(&bundle, "dir");
    bundle.mount(
        "/etc/deep/er/file",
        "bind",
        &format!("{dir}/file"),
        &["bind", "ro"],
    );
    assert_eq!(bundle.run().ok().text(), "of the host");
    assert_eq!(
        fs::read(bundle.rootfs("/etc/deep/er/file")).unwrap(),
        b"",
        "an empty stand-in"
    );
}

#[test]
fn bind_source_relative_to_the_bundle() {
    let mut bundle = Bundle::sh("cat /data/file");
    fs::create_dir(bundle.bundle_dir().join("beside")).unwrap();
    fs::write(bundle.bundle_dir().join("beside/file"), "beside\n").unwrap();
    bundle.mount("/data", "bind", "beside", &["bind"]);
    assert_eq!(bundle.run().ok().text(), "beside");
}

#[test]
fn readonly_bind() {
    let mut bundle = Bundle::sh("echo x > /data/new || echo refused; cat /proc/self/mountinfo");
    let dir = source(&bundle, "dir");
    bundle.mount("/data", "bind", &dir, &["bind", "ro"]);
    let out = bundle.run().ok();
    let (first, table) = out.stdout.split_once('\n').unwrap();
    assert_eq!(first, "refused");
    assert!(mount_at(&parse_mountinfo(table), "/data").has(&["ro"]));
    assert!(!bundle.host("dir/new").exists());
}

#[test]
fn flags_of_a_bind_are_seen() {
    let mut bundle = Bundle::new();
    let dir = source(&bundle, "dir");
    bundle.mount(
        "/a",
        "bind",
        &dir,
        &["bind", "nosuid", "nodev", "noexec", "noatime"],
    );
    bundle.mount("/b", "bind", &dir, &["bind", "ro", "nodiratime"]);
    bundle.mount("/c", "bind", &dir, &["bind"]);
    let mounts = mounts(&mut bundle);
    assert!(mount_at(&mounts, "/a").has(&["rw", "nosuid", "nodev", "noexec", "noatime"]));
    assert!(mount_at(&mounts, "/b").has(&["ro", "nodiratime"]));
    let plain = mount_at(&mounts, "/c");
    assert!(
        plain.has(&["rw"]) && !plain.has(&["nosuid"]) && !plain.has(&["noexec"]),
        "{plain:?}"
    );
}

#[test]
fn noexec_has_its_effect() {
    let mut bundle = Bundle::sh("/data/tool || echo status $?");
    let dir = source(&bundle, "dir");
    fs::write(bundle.host("dir/tool"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(bundle.host("dir/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    bundle.mount("/data", "bind", &dir, &["bind", "noexec"]);
    assert_eq!(bundle.run().ok().text(), "status 126");
}

/// A directory with a tmpfs below it on the host, made by hand and removed by the guard's drop.
struct SubMount(std::path::PathBuf);

impl SubMount {
    fn new(bundle: &Bundle) -> (Self, String) {
        let dir = source(bundle, "tree");
        let sub = bundle.host("tree/sub");
        fs::create_dir(&sub).unwrap();
        let none: Option<&str> = None;
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), &sub, Some("tmpfs"), flags, none).unwrap();
        fs::write(sub.join("inner"), "below\n").unwrap();
        (Self(sub), dir)
    }
}

impl Drop for SubMount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn recursive_bind_takes_what_is_mounted_below() {
    let mut bundle = Bundle::sh("cat /r/sub/inner; ls /plain/sub");
    let (_guard, dir) = SubMount::new(&bundle);
    bundle.mount("/r", "bind", &dir, &["rbind"]);
    bundle.mount("/plain", "bind", &dir, &["bind"]);
    assert_eq!(
        bundle.run().ok().text(),
        "below",
        "and a plain bind does not"
    );
}

#[test]
fn recursive_bind_with_ro_and_rro() {
    let mut bundle = Bundle::new();
    let (_guard, dir) = SubMount::new(&bundle);
    bundle.mount("/ro", "bind", &dir, &["rbind", "ro"]);
    bundle.mount("/rro", "bind", &dir, &["rbind", "rro"]);
    let mounts = mounts(&mut bundle);
    assert!(mount_at(&mounts, "/ro").has(&["ro"]));
    assert!(
        mount_at(&mounts, "/ro/sub").has(&["rw"]),
        "ro is the top mount's alone"
    );
    assert!(mount_at(&mounts, "/rro").has(&["ro"]));
    assert!(mount_at(&mounts, "/rro/sub").has(&["ro"]), "rro goes down");
}

#[test]
fn tmpfs_size_mode_and_owner() {
    let mut bundle = Bundle::new();
    bundle.mount(
        "/t",
        "tmpfs",
        "tmpfs",
        &["nosuid", "size=64k", "mode=1770", "uid=5", "gid=6"],
    );
    bundle.args(&[
        "sh",
        "-c",
        "stat -c '%a %u:%g' /t; cat /proc/self/mountinfo",
    ]);
    let out = bundle.run().ok();
    let (stat, table) = out.stdout.split_once('\n').unwrap();
    assert_eq!(stat, "1770 5:6");
    let mount = mount_at(&parse_mountinfo(table), "/t");
    assert_eq!(mount.kind, "tmpfs");
    assert!(
        mount.has(&["rw", "nosuid"]) && mount.super_has("size=64k"),
        "{mount:?}"
    );
}

#[test]
fn tmpfs_size_has_its_effect() {
    let mut bundle =
        Bundle::sh("dd if=/dev/zero of=/t/big bs=1k count=100 2>&1 | grep -o 'No space.*'");
    bundle.mount("/t", "tmpfs", "tmpfs", &["size=64k"]);
    assert_eq!(bundle.run().ok().text(), "No space left on device");
}

#[test]
fn tmpfs_with_tmpcopyup() {
    let mut bundle = Bundle::sh("cat /t/sub/file; echo new > /t/sub/file");
    fs::create_dir_all(bundle.rootfs("/t/sub")).unwrap();
    fs::write(bundle.rootfs("/t/sub/file"), "of the image\n").unwrap();
    bundle.mount("/t", "tmpfs", "tmpfs", &["tmpcopyup"]);
    assert_eq!(bundle.run().ok().text(), "of the image");
    assert_eq!(
        fs::read_to_string(bundle.rootfs("/t/sub/file")).unwrap(),
        "of the image\n"
    );
}

#[test]
fn readonly_tmpfs() {
    let mut bundle = Bundle::new();
    bundle.mount("/t", "tmpfs", "tmpfs", &["ro", "noexec", "mode=700"]);
    assert!(mount_at(&mounts(&mut bundle), "/t").has(&["ro", "noexec"]));
}

#[test]
fn kernel_file_systems_of_the_base_config() {
    let mut bundle = Bundle::new();
    let mounts = mounts(&mut bundle);
    assert_eq!(mount_at(&mounts, "/proc").kind, "proc");
    let sys = mount_at(&mounts, "/sys");
    assert!(
        sys.kind == "sysfs" && sys.has(&["ro", "nosuid", "nodev", "noexec"]),
        "{sys:?}"
    );
    let pts = mount_at(&mounts, "/dev/pts");
    assert!(
        pts.kind == "devpts" && pts.has(&["nosuid", "noexec"]),
        "{pts:?}"
    );
    for option in ["gid=5", "mode=620", "ptmxmode=666"] {
        assert!(pts.super_has(option), "{option}: {pts:?}");
    }
    let queue = mount_at(&mounts, "/dev/mqueue");
    assert!(
        queue.kind == "mqueue" && queue.has(&["nosuid", "nodev", "noexec"]),
        "{queue:?}"
    );
    let shm = mount_at(&mounts, "/dev/shm");
    assert!(
        shm.kind == "tmpfs" && shm.super_has("size=65536k"),
        "{shm:?}"
    );
    let dev = mount_at(&mounts, "/dev");
    assert!(
        dev.kind == "tmpfs" && dev.has(&["nosuid"]) && dev.super_has("mode=755"),
        "{dev:?}"
    );
    assert!(!dev.has(&["relatime"]), "strictatime: {dev:?}");
}

#[test]
fn proc_is_of_the_new_pid_namespace() {
    let bundle = Bundle::sh(
        "ls -d /proc/[0-9]* | grep -cv -e /proc/1$ | grep -q '^[0-3]$' && tr '\\0' ' ' < /proc/1/cmdline | cut -c1-5",
    );
    assert_eq!(bundle.run().ok().text(), "sh -c");
}

#[test]
fn nothing_of_the_hosts_tree_is_left() {
    let mut bundle = Bundle::new();
    let mounts = mounts(&mut bundle);
    let root = mount_at(&mounts, "/");
    assert!(root.root.ends_with("/bundle/rootfs"), "{root:?}");
    for mount in &mounts {
        let known = ["/", "/proc", "/dev", "/sys"];
        let below = known.iter().any(|top| {
            mount.point == *top
                || mount
                    .point
                    .starts_with(&format!("{}/", top.trim_end_matches('/')))
        });
        assert!(below, "{mount:?}");
        assert!(
            !mount.point.contains("isotest"),
            "the old root is out of sight: {mount:?}"
        );
    }
}

#[test]
fn mounts_of_the_container_stay_inside() {
    let mut bundle = Bundle::sh("echo ready > /data/ready; sleep 100");
    let dir = source(&bundle, "dir");
    bundle.mount("/data", "bind", &dir, &["bind"]);
    bundle.mount("/secret", "tmpfs", "tmpfs", &[]);
    bundle.run_detached().ok();
    bundle.wait_file("dir/ready");
    let host = parse_mountinfo(&fs::read_to_string("/proc/self/mountinfo").unwrap());
    assert!(
        !host.iter().any(|mount| mount.point.contains(&bundle.id)),
        "{host:#?}"
    );
}

#[test]
fn propagation_of_the_root_and_of_a_mount() {
    let mut bundle = Bundle::new();
    let dir = source(&bundle, "dir");
    bundle.mount("/shared", "bind", &dir, &["bind", "shared"]);
    bundle.mount("/private", "bind", &dir, &["bind", "rprivate"]);
    let mounts = mounts(&mut bundle);
    let shared = mount_at(&mounts, "/shared");
    assert!(
        shared
            .propagation
            .iter()
            .any(|word| word.starts_with("shared:")),
        "{shared:?}"
    );
    assert!(mount_at(&mounts, "/private").propagation.is_empty());
}

#[test]
fn order_of_mounts_is_kept() {
    let mut bundle = Bundle::sh("cat /over/file; ls /over/sub");
    let dir = source(&bundle, "dir");
    bundle.mount("/over", "tmpfs", "tmpfs", &[]);
    bundle.mount("/over", "bind", &dir, &["bind"]);
    bundle.mount("/over/sub", "tmpfs", "tmpfs", &[]);
    assert_eq!(bundle.run().ok().text(), "of the host");
}

#[test]
fn target_is_made_in_a_readonly_root() {
    let mut bundle = Bundle::sh("cat /made/here/file; touch /x 2>&1 | grep -o 'Read-only.*'");
    let dir = source(&bundle, "dir");
    bundle
        .set("/root/readonly", true.into())
        .mount("/made/here", "bind", &dir, &["bind"]);
    assert_eq!(
        bundle.run().ok().text(),
        "of the host\nRead-only file system"
    );
}

#[test]
fn cgroup_mount_shows_the_containers_own() {
    let mut bundle = Bundle::new();
    bundle.mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "ro"],
    );
    bundle.namespace("cgroup");
    bundle.args(&[
        "sh",
        "-c",
        "cat /proc/self/cgroup /proc/self/mountinfo; ls /sys/fs/cgroup >/dev/null",
    ]);
    let out = bundle.run().ok();
    let (own, table): (Vec<&str>, Vec<&str>) =
        out.stdout.lines().partition(|line| !line.contains(" - "));
    assert!(own.iter().any(|line| line.ends_with(":/")), "{own:?}");
    let mounts = parse_mountinfo(&table.join("\n"));
    match view() {
        View::V2 => {
            let mount = mount_at(&mounts, "/sys/fs/cgroup");
            assert_eq!((mount.kind.as_str(), mount.root.as_str()), ("cgroup2", "/"));
            assert!(mount.has(&["ro", "nosuid", "nodev", "noexec"]), "{mount:?}");
        }
        View::Hybrid => {
            let mount = mount_at(&mounts, "/sys/fs/cgroup/pids");
            assert_eq!((mount.kind.as_str(), mount.root.as_str()), ("cgroup", "/"));
            assert!(mount.has(&["ro", "nosuid", "nodev", "noexec"]), "{mount:?}");
        }
    }
}

#[test]
fn cgroup_mount_without_cgroup_namespace() {
    // The container sees its own cgroup as the top of the mount, not the host's tree.
    let mut bundle = Bundle::sh(
        "cat /sys/fs/cgroup/pids/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null; true",
    );
    bundle.mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "ro"],
    );
    if view() == View::V2 {
        skip!("a cgroup2 mount shows what its cgroup namespace does: without one, the host's tree");
    }
    let out = bundle.run().ok();
    let pids: Vec<&str> = out.text().lines().collect();
    assert!(
        pids.contains(&"1") && pids.len() <= 2,
        "only the container's processes: {pids:?}"
    );
}

#[test]
fn writable_cgroup_mount() {
    let mut bundle = Bundle::new();
    bundle.mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev"],
    );
    bundle.namespace("cgroup");
    let mounts = mounts(&mut bundle);
    let point = if view() == View::V2 {
        "/sys/fs/cgroup"
    } else {
        "/sys/fs/cgroup/pids"
    };
    assert!(mount_at(&mounts, point).has(&["rw"]));
}
