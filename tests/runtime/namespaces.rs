//! All eight namespaces, new or the host's, by the links in /proc/self/ns.

use serde_json::json;

use crate::harness::Bundle;

const LINKS: [(&str, &str); 8] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
    ("user", "user"),
    ("time", "time"),
];

fn host(link: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{link}"))
        .unwrap()
        .to_str()
        .unwrap()
        .to_string()
}

fn links(bundle: &mut Bundle) -> Vec<String> {
    bundle.args(&[
        "sh",
        "-c",
        "for n in pid net ipc uts mnt cgroup user time; do readlink /proc/self/ns/$n; done",
    ]);
    let links: Vec<String> = bundle
        .run()
        .ok()
        .text()
        .lines()
        .map(str::to_string)
        .collect();
    assert_eq!(links.len(), LINKS.len());
    links
}

/// Checks that exactly the listed namespaces are new.
fn assert_new(bundle: &mut Bundle, new: &[&str]) {
    for (seen, (kind, link)) in links(bundle).iter().zip(LINKS) {
        assert_eq!(
            *seen != host(link),
            new.contains(&kind),
            "{kind}: {seen}, host {}",
            host(link)
        );
    }
}

#[test]
fn the_usual_five() {
    assert_new(
        &mut Bundle::new(),
        &["pid", "network", "ipc", "uts", "mount"],
    );
}

#[test]
fn only_a_mount_namespace() {
    let mut bundle = Bundle::new();
    bundle.set("/linux/namespaces", json!([{"type": "mount"}]));
    bundle.unset("/hostname");
    // Without an own network namespace sysfs, without an own ipc mqueue: they may still be mounted
    // by root, so nothing else changes.
    assert_new(&mut bundle, &["mount"]);
}

#[test]
fn cgroup_namespace() {
    let mut bundle = Bundle::new();
    bundle.namespace("cgroup");
    assert_new(
        &mut bundle,
        &["pid", "network", "ipc", "uts", "mount", "cgroup"],
    );
    bundle.args(&["cat", "/proc/self/cgroup"]);
    let out = bundle.run().ok();
    assert!(
        !out.stdout.contains(&bundle.id),
        "its cgroup is the root of what it sees: {out:?}"
    );
}

#[test]
fn time_namespace_with_offsets() {
    since_runc!(1, 2, "time namespaces");
    let mut bundle = Bundle::new();
    bundle.namespace("time");
    assert_new(
        &mut bundle,
        &["pid", "network", "ipc", "uts", "mount", "time"],
    );
    bundle.set(
        "/linux/timeOffsets",
        json!({"boottime": {"secs": 1_000_000, "nanosecs": 0}}),
    );
    bundle.args(&["cut", "-d.", "-f1", "/proc/uptime"]);
    let inside: u64 = bundle.run().ok().text().parse().unwrap();
    assert!(inside > 1_000_000, "{inside}");
}

#[test]
fn pid_namespace_makes_pid_1() {
    let mut bundle = Bundle::sh("echo $$");
    assert_eq!(bundle.run().ok().text(), "1");
    bundle.without_namespace("pid");
    let pid: i32 = bundle.run().ok().text().parse().unwrap();
    assert!(pid > 1);
}

#[test]
fn network_namespace_is_empty_with_lo_up() {
    let bundle =
        Bundle::sh("ls /sys/class/net; cat /proc/net/dev | grep -c :; cat /sys/class/net/lo/flags");
    let out = bundle.run().ok();
    let lines: Vec<&str> = out.text().lines().collect();
    assert_eq!(&lines[..2], ["lo", "1"]);
    let flags = u32::from_str_radix(lines[2].trim_start_matches("0x"), 16).unwrap();
    assert_eq!(flags & 1, 1, "lo is up, as runc leaves it");
}

#[test]
fn network_of_the_host() {
    let mut bundle = Bundle::sh("cat /proc/net/dev | grep -c :");
    bundle.without_namespace("network");
    let inside: usize = bundle.run().ok().text().parse().unwrap();
    let table = std::fs::read_to_string("/proc/net/dev").unwrap();
    assert_eq!(
        inside,
        table.lines().filter(|line| line.contains(':')).count()
    );
}

#[test]
fn hostname_without_uts_namespace_is_refused() {
    let mut bundle = Bundle::new();
    bundle.without_namespace("uts");
    let out = bundle.run().code(1);
    assert!(out.stderr.to_lowercase().contains("uts"), "{out:#?}");
    bundle.assert_gone();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_ne!(host.trim(), "isorun-test");
}

#[test]
fn processes_of_the_container_end_with_its_init() {
    let mut bundle =
        Bundle::sh("(trap '' TERM; sleep 300) & (sleep 300) & echo started > /data/x; wait");
    let dir = bundle.host("").to_str().unwrap().to_string();
    bundle.mount("/data", "bind", &dir, &["bind"]);
    bundle.run_detached().ok();
    bundle.wait_file("x");
    bundle.kill("KILL").ok();
    bundle.wait_status("stopped");
    bundle.delete().ok();
    bundle.assert_gone();
}

#[test]
fn shared_pid_namespace_is_cleaned_by_delete() {
    // No namespace ends them: the cgroup tells which processes are the container's.
    let mut bundle = Bundle::sh("sleep 300 & sleep 300 & echo started > /data/x; exec sleep 300");
    bundle.without_namespace("pid");
    let dir = bundle.host("").to_str().unwrap().to_string();
    bundle.mount("/data", "bind", &dir, &["bind"]);
    bundle.run_detached().ok();
    bundle.wait_file("x");
    bundle.delete_force().ok();
    bundle.assert_gone();
}
