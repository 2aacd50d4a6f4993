//! What makes up for device rules that cannot be set, tried by the attacker of compensation.rs.

use std::path::PathBuf;

use serde_json::json;

use crate::compensation::{all_done, all_refused, attack, denied, results};
use crate::harness::{Bundle, Output};

/// A container whose device rules cannot be set: v1's controller is read-only, or eBPF is denied.
fn run_without_rules(bundle: &mut Bundle, level: &str, flags: &[&str]) -> Output {
    run_without_rules_after(bundle, "", level, flags)
}

fn run_without_rules_after(
    bundle: &mut Bundle,
    before: &str,
    level: &str,
    flags: &[&str],
) -> Output {
    let script = match crate::harness::view() {
        crate::harness::View::Hybrid => "mount -o remount,bind,ro /sys/fs/cgroup/devices",
        crate::harness::View::V2 => {
            denied(bundle, libc::EPERM, "321").unwrap();
            ""
        }
    };
    let script = format!("{script}\n{before}\nexport ISORUN_DEGRADE={level}");
    let out = crate::harness::run_flags_after(bundle, &script, flags);
    bundle.prefix.clear();
    out
}

#[test]
fn without_device_rules() {
    let caps = ["CAP_KILL", "CAP_MKNOD", "CAP_SYS_ADMIN"];
    let mut bundle = attacked!(&caps, 1);
    if crate::harness::denied("mknod") {
        skip!("the filter around the runtime refuses the attacker's mknod, and tmpcopyup's, too");
    }
    bundle.set("/root/readonly", json!(false));
    bundle.unset("/linux/readonlyPaths");
    // The kernel's log: no device that every container has, and writing to it needs no more than the node.
    let node = |path: PathBuf| {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&path, SFlag::S_IFCHR, mode, makedev(1, 11)).unwrap();
    };
    node(bundle.rootfs("/log"));
    std::fs::create_dir(bundle.host("nodes")).unwrap();
    node(bundle.host("nodes/log"));
    let source = bundle.host("nodes").to_str().unwrap().to_string();
    bundle.mount("/nodes", "bind", &source, &["rbind", "rw"]);
    let listed = json!({"path": "/dev/log", "type": "c", "major": 1, "minor": 11});
    bundle.push("/linux/devices", listed);
    std::fs::create_dir(bundle.rootfs("/copied")).unwrap();
    node(bundle.rootfs("/copied/log"));
    bundle.mount("/copied", "tmpfs", "tmpfs", &["tmpcopyup"]);
    let tries = [
        "write=/log",
        "write=/copied/log",
        "write=/nodes/log",
        "mknod=/tmp/log:1:11",
        "remount=/",
    ];
    let fine = ["write=/dev/null", "read=/dev/zero", "create=/tmp/new"];
    let rules = bundle.config["linux"]["resources"]["devices"].clone();
    bundle.set(
        "/linux/resources/devices",
        json!([{"allow": true, "access": "rwm"}]),
    );
    all_done(&attack(&mut bundle, "any", &tries), &tries);
    std::fs::remove_file(bundle.rootfs("/tmp/log")).unwrap();

    bundle.set("/linux/resources/devices", rules);
    let args = |bundle: &mut Bundle, tries: &[&str]| {
        let mut args = vec!["/attack"];
        args.extend(tries);
        bundle.args(&args);
    };
    for level in ["never", "safe"] {
        let out = run_without_rules(&mut bundle, level, &[]).code(1);
        assert!(
            out.stderr.contains("the degradation \"device-rules\""),
            "{out:#?}"
        );
        bundle.assert_gone();
    }
    args(&mut bundle, &tries);
    let out = run_without_rules(&mut bundle, "any", &[]).ok();
    assert!(
        out.stderr.contains("degraded: linux.resources.devices"),
        "{out:#?}"
    );
    all_refused(&results(&out), &tries);
    args(&mut bundle, &fine);
    all_done(
        &results(&run_without_rules(&mut bundle, "any", &[]).ok()),
        &fine,
    );
    args(&mut bundle, &["write=/dev/log"]);
    let found = results(&run_without_rules(&mut bundle, "any", &[]).ok());
    assert_eq!(
        found["write=/dev/log"],
        libc::ENOENT,
        "the rules refuse it: left out"
    );

    let mounts = bundle.config["mounts"].clone();
    bundle.mount("/dev", "tmpfs", "tmpfs", &["tmpcopyup"]);
    let out = run_without_rules(&mut bundle, "any", &[]).code(1);
    assert!(out.stderr.contains("tmpcopyup on /dev"), "{out:#?}");
    bundle.assert_gone();
    bundle.set("/mounts", mounts);
    what_comes_later(&mut bundle);
    what_lies_in_the_root(&mut bundle);

    bundle.args(&["sleep", "1000"]);
    run_without_rules(&mut bundle, "any", &["--detach"]).ok();
    let exec = |tries: &[&str]| {
        let mut args = vec!["--degrade=any", "exec", &bundle.id, "/attack"];
        args.extend(tries);
        results(&bundle.call(&args).ok())
    };
    all_refused(&exec(&tries), &tries);
    all_done(&exec(&fine), &fine);
}

/// A file system of the host's that lies in the root file system already: its devices cannot be opened, and what
/// the host mounts in it later does not come.
fn what_lies_in_the_root(bundle: &mut Bundle) {
    let before = bundle.config.clone();
    let below = bundle.rootfs("/below");
    std::fs::create_dir_all(&below).unwrap();
    let place = below.to_str().unwrap();
    let script = format!(
        "mount -t tmpfs none {place}\nmount --make-shared {place}\nmkdir {place}/sub\n\
         mknod {place}/log c 1 11\n\
         (sleep 1; mount -t tmpfs none {place}/sub; mknod {place}/sub/log c 1 11) &"
    );
    let tries = "exec /attack write=/below/log write=/below/sub/log";
    bundle.args(&["sh", "-c", &format!("sleep 3; {tries}")]);
    let all = json!([{"allow": true, "access": "rwm"}]);
    let rules = std::mem::replace(&mut bundle.config["linux"]["resources"]["devices"], all);
    let out = crate::harness::run_flags_after(bundle, &script, &[]).ok();
    all_done(
        &results(&out),
        &["write=/below/log", "write=/below/sub/log"],
    );
    bundle.config["linux"]["resources"]["devices"] = rules;
    let found = results(&run_without_rules_after(bundle, &script, "any", &[]).ok());
    assert_eq!(found["write=/below/log"], libc::EACCES);
    assert_eq!(found["write=/below/sub/log"], libc::ENOENT);
    std::fs::remove_dir(below).unwrap();
    bundle.config = before;
}

/// What the host mounts later below a bound directory does not come to the container, which could open its
/// devices: not without being asked for, and not by a slave.
fn what_comes_later(bundle: &mut Bundle) {
    let before = bundle.config.clone();
    let later = bundle.host("later");
    std::fs::create_dir_all(later.join("sub")).unwrap();
    let source = later.to_str().unwrap().to_string();
    bundle.mount("/later", "bind", &source, &["rbind", "rw"]);
    bundle.args(&["sh", "-c", "sleep 3; exec /attack write=/later/sub/log"]);
    let script = format!(
        "mount --bind {source} {source}\nmount --make-shared {source}\n\
         (sleep 1; mount -t tmpfs none {source}/sub; mknod {source}/sub/log c 1 11) &"
    );
    let plain = |bundle: &mut Bundle, script: &str| {
        let all = json!([{"allow": true, "access": "rwm"}]);
        let rules = std::mem::replace(&mut bundle.config["linux"]["resources"]["devices"], all);
        let out = crate::harness::run_flags_after(bundle, script, &[]);
        bundle.config["linux"]["resources"]["devices"] = rules;
        results(&out.ok())
    };
    assert_eq!(
        plain(bundle, &script)["write=/later/sub/log"],
        0,
        "it does come"
    );
    let found = results(&run_without_rules_after(bundle, &script, "any", &[]).ok());
    assert_eq!(found["write=/later/sub/log"], libc::ENOENT);
    bundle.config = before.clone();
    bundle.mount("/later", "bind", &source, &["rbind", "rw", "rslave"]);
    let out = run_without_rules(bundle, "any", &[]).code(1);
    assert!(
        out.stderr.contains("cannot be had with slave mounts"),
        "{out:#?}"
    );
    bundle.assert_gone();
    bundle.config = before;
}
