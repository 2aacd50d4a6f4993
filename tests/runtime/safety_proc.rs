//! What a hostile image, or a hostile bundle, must not make of /proc.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::harness::{Bundle, runtime};

/// CVE-2019-16884, CVE-2019-19921: something else over /proc fools what is written there, and what
/// is masked. A volume that Kubernetes or Podman mounts by its path in the image gets there by a
/// link that the image brings.
#[test]
fn nothing_else_may_be_mounted_over_proc() {
    let mut accepted = Vec::new();
    for (target, kind) in [
        ("/proc", "bind"),
        ("/proc", "tmpfs"),
        ("/proc/self", "bind"),
        ("/proc/sys", "bind"),
        ("/proc/../proc/sys", "tmpfs"),
        ("/volume", "bind"),
        ("/volume/sys", "bind"),
        ("/volume/sys", "tmpfs"),
    ] {
        if kind == "tmpfs" && runtime().version < (1, 2) {
            continue; // older ones look at binds alone
        }
        let mut bundle = Bundle::sh("echo ran");
        fs::create_dir(bundle.host("fake")).unwrap();
        symlink("/proc", bundle.rootfs("/volume")).unwrap();
        let source = bundle.host("fake").to_str().unwrap().to_string();
        match kind {
            "bind" => bundle.mount(target, "bind", &source, &["bind"]),
            _ => bundle.mount(target, "tmpfs", "tmpfs", &[]),
        };
        let out = bundle.run();
        if out.code != 1 || !out.stderr.contains("/proc") {
            accepted.push(format!("{kind} at {target}: {} {}", out.code, out.stderr));
        }
        bundle.assert_gone();
    }
    assert!(accepted.is_empty(), "{accepted:#?}");
}

/// The same where no procfs is there yet, and with /proc written in other ways.
#[test]
fn a_directory_is_no_proc_however_it_is_written() {
    for target in ["/proc", "proc", "//proc", "/./proc/", "/dev/../proc"] {
        let mut bundle = Bundle::sh("echo ran");
        bundle
            .set("/linux/maskedPaths", json!([]))
            .set("/linux/readonlyPaths", json!([]));
        bundle.config["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| mount["destination"] != "/proc");
        fs::create_dir(bundle.host("fake")).unwrap();
        let source = bundle.host("fake").to_str().unwrap().to_string();
        bundle.mount(target, "bind", &source, &["bind"]);
        let out = bundle.run().code(1);
        assert!(out.stderr.contains("/proc"), "{target}: {out:#?}");
        bundle.assert_gone();
    }
}

#[test]
fn files_that_lxcfs_replaces_may_be_mounted_in_proc() {
    let mut bundle = Bundle::sh("cat /proc/cpuinfo /proc/meminfo /proc/stat /proc/uptime");
    fs::write(bundle.host("fake"), "fake\n").unwrap();
    let source = bundle.host("fake").to_str().unwrap().to_string();
    for name in ["cpuinfo", "meminfo", "stat", "uptime"] {
        bundle.mount(&format!("/proc/{name}"), "bind", &source, &["bind", "ro"]);
    }
    assert_eq!(bundle.run().ok().text(), "fake\nfake\nfake\nfake");
}

/// CVE-2025-52881: a sysctl that goes to a file which is no sysctl.
#[test]
fn sysctls_go_to_the_real_procfs_only() {
    let mut bundle = Bundle::sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| mount["destination"] != "/proc");
    bundle
        .set("/linux/maskedPaths", json!([]))
        .set("/linux/readonlyPaths", json!([]));
    let fake = bundle.rootfs("/proc/sys/net/ipv4");
    fs::create_dir_all(&fake).unwrap();
    fs::write(fake.join("ip_unprivileged_port_start"), "fake\n").unwrap();
    bundle.set(
        "/linux/sysctl",
        json!({"net.ipv4.ip_unprivileged_port_start": "80"}),
    );
    let out = bundle.run();
    let text = fs::read_to_string(fake.join("ip_unprivileged_port_start")).unwrap();
    if !runtime().isorun {
        skip!("runc 1.1 writes sysctls to what it finds at /proc/sys");
    }
    // Whether it is refused, or goes to the kernel by another way, is all the same.
    assert_eq!(text, "fake\n", "{out:#?}");
}

#[test]
fn sysctl_names_that_climb() {
    for name in [
        "net.../../../../../../victim",
        "net/../../../tmp/victim",
        "net..ipv4",
        "kernel.shm/../panic",
    ] {
        let mut bundle = Bundle::new();
        bundle.set("/linux/sysctl", json!({ name: "1" }));
        bundle.run().code(1);
        bundle.assert_gone();
    }
}
