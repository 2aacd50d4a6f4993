//! `root`, masked and read-only paths, sysctl, hostname.

use std::fs;

use serde_json::json;

use crate::harness::{Bundle, mount_at, parse_mountinfo};

#[test]
fn readonly_root() {
    let mut bundle = Bundle::sh("touch /x 2>&1 | grep -o 'Read-only.*'; cat /proc/self/mountinfo");
    bundle.set("/root/readonly", json!(true));
    let out = bundle.run().ok();
    let (said, table) = out.stdout.split_once('\n').unwrap();
    assert_eq!(said, "Read-only file system");
    assert!(mount_at(&parse_mountinfo(table), "/").has(&["ro"]));
}

#[test]
fn writable_root() {
    let bundle = Bundle::sh("echo text > /made");
    bundle.run().ok();
    assert_eq!(
        fs::read_to_string(bundle.rootfs("/made")).unwrap(),
        "text\n"
    );
}

#[test]
fn absolute_root_path() {
    let mut bundle = Bundle::sh("cat /mark");
    let elsewhere = bundle.host("tree");
    crate::harness::busybox_tree(&elsewhere);
    fs::write(elsewhere.join("mark"), "elsewhere\n").unwrap();
    bundle.set("/root/path", json!(elsewhere));
    assert_eq!(bundle.run().ok().text(), "elsewhere");
}

#[test]
fn missing_pieces_of_the_tree_are_made() {
    // An image may lack /proc, /dev and /sys.
    let bundle =
        Bundle::sh("cat /proc/1/comm; test -c /dev/null && test -d /sys/kernel && echo all");
    for dir in ["proc", "dev", "sys"] {
        fs::remove_dir(bundle.rootfs(dir)).unwrap();
    }
    assert_eq!(bundle.run().ok().text(), "sh\nall");
}

#[test]
fn hostname() {
    let mut bundle = Bundle::new();
    bundle
        .args(&["hostname"])
        .set("/hostname", json!("box.example"));
    assert_eq!(bundle.run().ok().text(), "box.example");
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_ne!(host.trim(), "box.example");
}

#[test]
fn masked_file_reads_empty_and_directory_is_empty() {
    let mut bundle = Bundle::sh(
        "wc -c < /etc/secret; ls -A /secrets | wc -l; echo x > /secrets/y || echo refused",
    );
    fs::write(bundle.rootfs("/etc/secret"), "secret").unwrap();
    fs::create_dir(bundle.rootfs("/secrets")).unwrap();
    fs::write(bundle.rootfs("/secrets/key"), "secret").unwrap();
    bundle.set(
        "/linux/maskedPaths",
        json!(["/etc/secret", "/secrets", "/not/there"]),
    );
    assert_eq!(bundle.run().ok().text(), "0\n0\nrefused");
    assert_eq!(
        fs::read_to_string(bundle.rootfs("/etc/secret")).unwrap(),
        "secret"
    );
}

#[test]
fn masked_paths_of_proc_and_sys() {
    let bundle =
        Bundle::sh("wc -c < /proc/keys; ls -A /sys/firmware | wc -l; cat /proc/self/mountinfo");
    let out = bundle.run().ok();
    assert!(out.stdout.starts_with("0\n0\n"), "{out:?}");
    let table = out.stdout.splitn(3, '\n').nth(2).unwrap();
    let firmware = mount_at(&parse_mountinfo(table), "/sys/firmware");
    assert!(
        firmware.kind == "tmpfs" && firmware.has(&["ro"]),
        "{firmware:?}"
    );
}

#[test]
fn readonly_paths() {
    let mut bundle = Bundle::sh(
        "echo x > /data/file || echo refused; cat /data/file; \
         echo 1 > /proc/sys/kernel/panic || echo refused; cat /proc/self/mountinfo",
    );
    fs::create_dir(bundle.rootfs("/data")).unwrap();
    fs::write(bundle.rootfs("/data/file"), "kept\n").unwrap();
    bundle.set(
        "/linux/readonlyPaths",
        json!(["/proc/sys", "/data", "/not/there"]),
    );
    let out = bundle.run().ok();
    assert!(
        out.stdout.starts_with("refused\nkept\nrefused\n"),
        "{out:?}"
    );
    let table = out.stdout.splitn(4, '\n').nth(3).unwrap();
    let proc_sys = mount_at(&parse_mountinfo(table), "/proc/sys");
    assert!(
        proc_sys.kind == "proc" && proc_sys.has(&["ro"]),
        "{proc_sys:?}"
    );
    assert!(mount_at(&parse_mountinfo(table), "/data").has(&["ro"]));
}

/// A mount below says itself whether it is read-only.
#[test]
fn readonly_path_leaves_the_mounts_below() {
    let mut bundle = Bundle::sh(
        "echo x > /data/file || echo refused; echo kept > /data/in/file && cat /data/in/file",
    );
    fs::create_dir_all(bundle.rootfs("/data/in")).unwrap();
    bundle.mount("/data/in", "tmpfs", "tmpfs", &["nosuid"]);
    bundle.set("/linux/readonlyPaths", json!(["/data"]));
    assert_eq!(bundle.run().ok().text(), "refused\nkept");
}

/// A mount on / would lie above the container's root, where nobody looks.
#[test]
fn the_root_as_a_readonly_path() {
    for path in ["/", "//."] {
        let mut bundle =
            Bundle::sh("echo x > /file || echo refused; echo x > /tmp/file && echo fine");
        fs::create_dir_all(bundle.rootfs("/tmp")).unwrap();
        bundle.mount("/tmp", "tmpfs", "tmpfs", &[]);
        bundle.set("/linux/readonlyPaths", json!([path]));
        assert_eq!(bundle.run().ok().text(), "refused\nfine", "{path}");
    }
}

#[test]
fn readonly_path_keeps_the_flags_of_its_mount() {
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/mountinfo"]);
    bundle.mount("/t", "tmpfs", "tmpfs", &["nosuid", "nodev", "noexec"]);
    fs::create_dir(bundle.host("dir")).unwrap();
    let dir = bundle.host("dir").to_str().unwrap().to_string();
    bundle.mount("/t/sub", "bind", &dir, &["bind", "nosuid", "nodev"]);
    bundle.set("/linux/readonlyPaths", json!(["/t/sub"]));
    let mounts = parse_mountinfo(&bundle.run().ok().stdout);
    let sub = mount_at(&mounts, "/t/sub");
    assert!(sub.has(&["ro", "nosuid", "nodev"]), "{sub:?}");
}

#[test]
fn sysctls() {
    let mut bundle = Bundle::sh(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni \
         /proc/sys/fs/mqueue/msg_max /proc/sys/net/ipv4/conf/lo/rp_filter",
    );
    bundle.set(
        "/linux/sysctl",
        json!({"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shmmni": "123",
            "fs.mqueue.msg_max": "7", "net/ipv4/conf/lo/rp_filter": "2"}),
    );
    if crate::harness::runtime().version < (1, 2) {
        // The slash form came later; the same value by the dotted name.
        let sysctl = bundle.config["linux"]["sysctl"].as_object_mut().unwrap();
        sysctl.remove("net/ipv4/conf/lo/rp_filter");
        sysctl.insert("net.ipv4.conf.lo.rp_filter".into(), json!("2"));
    }
    assert_eq!(bundle.run().ok().text(), "80\n123\n7\n2");
    let host = fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    assert_ne!(host.trim(), "123", "the host's own value is untouched");
}

#[test]
fn sysctl_of_the_host_is_refused() {
    for (name, without) in [
        ("kernel.panic", None),
        ("vm.swappiness", None),
        ("kernel.shmmni", Some("ipc")),
        ("net.ipv4.ip_forward", Some("network")),
        ("kernel.hostname", None),
    ] {
        let mut bundle = Bundle::new();
        if let Some(namespace) = without {
            bundle.without_namespace(namespace);
            bundle.config["mounts"]
                .as_array_mut()
                .unwrap()
                .retain(|mount| mount["type"] != "mqueue");
        }
        bundle.set("/linux/sysctl", json!({ name: "1" }));
        let out = bundle.run().code(1);
        assert!(out.stderr.contains("sysctl"), "{name}: {out:#?}");
        bundle.assert_gone();
    }
}

#[test]
fn annotations_are_in_the_state() {
    let mut bundle = Bundle::sh("sleep 100");
    bundle.set(
        "/annotations",
        json!({"org.example.key": "value é", "empty": ""}),
    );
    bundle.create().ok();
    assert_eq!(bundle.state()["annotations"]["org.example.key"], "value é");
    assert_eq!(bundle.state()["annotations"]["empty"], "");
}
