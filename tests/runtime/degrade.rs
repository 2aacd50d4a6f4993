//! Each row of the table of degradations, on a host that is made to refuse its step: at level never an
//! error that names the row and the repair, at the row's level and above a container that runs, a
//! warning, and a report.

use serde_json::{Value, json};

use crate::denied::deny;
use crate::harness::{Bundle, Output, controller_usable, run_flags_after};
use crate::userns::mapped;

/// The calls of the mount API (x86_64), so that mount(2) is used, whose flags a filter can see.
const MOUNT_API: &str = "428,429,430,431,432,442";

const NOATIME: u32 = 1024;

/// What `run` says at this level.
pub fn at(bundle: &Bundle, level: &str) -> Output {
    bundle.write();
    let dir = bundle.bundle_dir();
    let dir = dir.to_str().unwrap();
    bundle.call(&["--degrade", level, "run", "--bundle", dir, &bundle.id])
}

/// Puts a filter around the runtime; none without a C compiler.
fn denied(bundle: &mut Bundle, errno: i32, calls: &str) -> Option<()> {
    let program = deny()?.to_str()?;
    bundle.prefix = vec![program.into(), errno.to_string(), calls.into()];
    Some(())
}

/// A runtime without this capability, which its container cannot have then either.
fn without_capability(bundle: &mut Bundle, name: &str) {
    let name = format!("-{name}");
    let words = ["setpriv", "--inh-caps", &name, "--bounding-set", &name];
    bundle.prefix = words.map(str::to_string).to_vec();
}

/// Fails unless the row does what the table says: refused below `least`, told from there on.
fn row(bundle: &Bundle, name: &str, least: &str, remedy: &str) {
    row_by(bundle, name, least, remedy, &|level| at(bundle, level));
}

fn row_by(bundle: &Bundle, name: &str, least: &str, remedy: &str, run: &dyn Fn(&str) -> Output) {
    let levels = ["never", "safe", "any"];
    let first = levels.iter().position(|level| *level == least).unwrap();
    for (number, level) in levels.iter().enumerate() {
        let out = run(level);
        if number < first {
            let out = out.code(1);
            for word in [
                format!("the degradation {name:?}"),
                format!("the level {level}"),
                format!("--degrade={least}"),
                remedy.to_string(),
            ] {
                assert!(out.stderr.contains(&word), "{word}: {out:#?}");
            }
            bundle.assert_gone();
        } else {
            let out = out.ok();
            assert!(out.text().ends_with("ran"), "{level}: {out:#?}");
            assert!(
                out.stderr.contains("warning: degraded: "),
                "{level}: {out:#?}"
            );
        }
    }
}

/// The report of the container, made at this level and left running.
fn report(bundle: &mut Bundle, level: &str) -> Value {
    bundle.args(&["sleep", "1000"]).write();
    let dir = bundle.bundle_dir();
    let dir = dir.to_str().unwrap();
    bundle
        .call(&[
            "--degrade",
            level,
            "run",
            "--detach",
            "--bundle",
            dir,
            &bundle.id,
        ])
        .ok();
    let out = bundle.call(&["report", &bundle.id, "--json"]).ok();
    serde_json::from_str(&out.stdout).unwrap()
}

macro_rules! denied {
    ($bundle:expr, $errno:expr, $calls:expr) => {
        if denied(&mut $bundle, $errno, $calls).is_none() {
            skip!("there is no C compiler");
        }
    };
}

#[test]
fn limits_over_the_callers() {
    isorun_only!("runc fails where it may not raise a limit");
    let mut bundle = Bundle::sh("ulimit -Hn; echo ran");
    // Podman's default.
    let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 1_048_576, "hard": 1_048_576}]);
    bundle.set("/process/rlimits", limit);
    without_capability(&mut bundle, "sys_resource");
    let mut prefix: Vec<String> = vec!["prlimit".into(), "--nofile=1024:2048".into()];
    prefix.append(&mut bundle.prefix);
    bundle.prefix = prefix;
    row(&bundle, "rlimit", "safe", "CAP_SYS_RESOURCE");
    let out = at(&bundle, "never");
    assert!(out.stderr.contains("RLIMIT_NOFILE"), "{out:#?}");
    assert_eq!(at(&bundle, "safe").text(), "2048\nran");

    let report = report(&mut bundle, "safe");
    assert_eq!(report["level"], "safe");
    let lost = &report["degradations"][0];
    assert_eq!(
        report["degradations"].as_array().unwrap().len(),
        1,
        "{report}"
    );
    for (key, value) in [
        ("row", json!("rlimit")),
        ("feature", json!("RLIMIT_NOFILE 1048576:1048576")),
        ("errno", json!(libc::EPERM)),
    ] {
        assert_eq!(lost[key], value, "{report}");
    }
    for key in ["reason", "fallback", "remedy"] {
        assert!(!lost[key].as_str().unwrap().is_empty(), "{key}: {report}");
    }
    let table = bundle.call(&["report", &bundle.id]).ok();
    for word in [
        "runs with 1 degradation (level safe)",
        "why ",
        "instead ",
        "repair ",
    ] {
        assert!(table.stdout.contains(word), "{word}: {}", table.stdout);
    }
    let annotation = &bundle.state()["annotations"]["io.isorun.degraded"];
    assert!(annotation.as_str().unwrap().contains("\"rlimit\""));
    let list = bundle.call(&["list"]).ok();
    assert!(!list.stdout.contains("DEGRADED"), "runc's form: {list:#?}");
    let long = bundle.call(&["list", "--long"]).ok();
    let line = long
        .stdout
        .lines()
        .find(|line| line.starts_with(&bundle.id));
    assert!(line.unwrap().ends_with(" 1"), "{long:#?}");
    let json = bundle.call(&["list", "--long", "--format", "json"]).ok();
    let list: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(list[0]["degraded"], 1, "{list}");

    // What is executed in it is no laxer than it, and may be stricter.
    let exec = |level: &str| bundle.call(&["--degrade", level, "exec", &bundle.id, "true"]);
    exec("any").ok();
    let out = exec("never").code(255);
    assert!(
        out.stderr.contains("the degradation \"rlimit\""),
        "{out:#?}"
    );
}

#[test]
fn nothing_is_reported_where_nothing_is_lost() {
    isorun_only!("the report is isorun's");
    let mut bundle = Bundle::new();
    if crate::harness::denied("keyctl") || crate::harness::denied("mknod") {
        skip!("the call that is denied around the runtime is told");
    }
    let report = report(&mut bundle, "never");
    assert_eq!(
        report,
        json!({"id": bundle.id, "level": "never", "degradations": []})
    );
    let table = bundle.call(&["report", &bundle.id]).ok();
    let says = format!(
        "container {} runs without degradation (level never)\n",
        bundle.id
    );
    assert_eq!(table.stdout, says);
    let none = bundle.call(&["report", "isotest-nobody"]).code(1);
    assert!(none.stderr.contains("does not exist"), "{none:#?}");
}

#[test]
fn an_oom_score_below_the_callers() {
    isorun_only!("runc fails where it may not lower the score");
    let mut bundle = Bundle::sh("echo ran");
    bundle.set("/process/oomScoreAdj", json!(-1000));
    without_capability(&mut bundle, "sys_resource");
    if !at(&bundle, "safe").stderr.contains("degraded") {
        skip!("this caller has the lowest score already");
    }
    row(&bundle, "oom-score-adj", "safe", "CAP_SYS_RESOURCE");
    // In a user namespace the parent sets it.
    let mut bundle = mapped();
    bundle.args(&["sh", "-c", "echo ran"]);
    bundle.set("/process/oomScoreAdj", json!(-1000));
    without_capability(&mut bundle, "sys_resource");
    row(&bundle, "oom-score-adj", "safe", "CAP_SYS_RESOURCE");
}

#[test]
fn a_session_keyring() {
    isorun_only!("the levels are isorun's");
    let mut bundle = Bundle::sh("echo ran");
    for errno in [libc::ENOSYS, libc::EPERM] {
        denied!(bundle, errno, "250");
        row(&bundle, "keyring", "safe", "--no-new-keyring");
    }
    // A full quota is another matter: the container would have the caller's keys.
    denied!(bundle, libc::EDQUOT, "250");
    row(&bundle, "keyring-quota", "any", "maxkeys");
}

#[test]
fn device_nodes() {
    isorun_only!("the levels are isorun's");
    let mut bundle = Bundle::sh("echo x >/dev/null && head -c1 /dev/zero | wc -c && echo ran");
    denied!(bundle, libc::EPERM, "133,259");
    row(&bundle, "mknod", "safe", "CAP_MKNOD");
    // Root in the container has CAP_FOWNER here, and could change the host's node without it.
    let set = json!(["CAP_FOWNER", "CAP_CHOWN"]);
    for kind in ["bounding", "effective", "permitted"] {
        bundle.set(&format!("/process/capabilities/{kind}"), set.clone());
    }
    bundle.args(&["sh", "-c", "chmod 600 /dev/null || echo kept; echo ran"]);
    assert_eq!(at(&bundle, "safe").ok().text(), "kept\nran");
    // How the node differs from what is asked for is told.
    let device = json!({"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 5, "gid": 0});
    bundle.push("/linux/devices", device);
    let out = at(&bundle, "safe").ok();
    let says = "mode 666 and not 600, owner 0 and not 5";
    assert!(out.stderr.contains(says), "{out:#?}");
}

#[test]
fn device_nodes_in_a_user_namespace() {
    isorun_only!("the levels are isorun's");
    let mut bundle = mapped();
    bundle.args(&[
        "sh",
        "-c",
        "chmod 600 /dev/null 2>/dev/null || echo x >/dev/null; echo ran",
    ]);
    if crate::harness::denied("keyctl") {
        skip!("the loss of the keyring is told");
    }
    // The specification leaves it to the runtime how devices get there: nothing is lost.
    assert_eq!(at(&bundle, "never").ok().stderr, "");
    let device =
        json!({"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600});
    bundle.push("/linux/devices", device);
    row(&bundle, "mknod", "safe", "outside of a user namespace");
    let out = at(&bundle, "safe").ok();
    assert!(out.stderr.contains("mode 666 and not 600"), "{out:#?}");
}

#[test]
fn file_systems_of_foreign_namespaces() {
    isorun_only!("runc fails there");
    let mut bundle = mapped();
    bundle
        .args(&["sh", "-c", "echo ran"])
        .without_namespace("network");
    row(
        &bundle,
        "sysfs-userns",
        "safe",
        "network namespace of its own",
    );
    let mut bundle = mapped();
    bundle
        .args(&["sh", "-c", "echo ran"])
        .without_namespace("ipc");
    row(&bundle, "mqueue", "safe", "IPC namespace of its own");
}

#[test]
fn a_group_of_terminals_that_is_not_mapped() {
    isorun_only!("runc refuses the mount");
    let mut bundle = mapped();
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 1}]);
    bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .args(&["sh", "-c", "test -c /dev/ptmx; echo ran"]);
    row(&bundle, "devpts-gid", "safe", "linux.gidMappings");
}

#[test]
fn a_cgroup_file_system() {
    isorun_only!("the levels are isorun's");
    let mut bundle =
        Bundle::sh("ls /sys/fs/cgroup >/dev/null && grep -c cgroup /proc/mounts && echo ran");
    bundle.namespace("cgroup");
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["noatime"]);
    // Only new cgroup file systems are mounted with these flags: a bind mount has one more.
    let calls = format!("{MOUNT_API},165@3={NOATIME}");
    denied!(bundle, libc::EPERM, &calls);
    if crate::harness::view() == crate::harness::View::Hybrid {
        skip!("the tmpfs that holds the hierarchies has the same flags: seen in the v2 view");
    }
    row(&bundle, "cgroup-mount", "safe", "leave the mount out");
}

#[test]
fn flags_of_the_filter() {
    isorun_only!("the levels are isorun's");
    let mut bundle = Bundle::sh("echo ran");
    let filter = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO"}]});
    bundle.set("/linux/seccomp", filter);
    denied!(bundle, libc::EINVAL, "317@1=2");
    row(&bundle, "seccomp-flags", "safe", "4.17");
    // The filter itself never goes.
    denied!(bundle, libc::EINVAL, "317");
    for level in ["never", "safe", "any"] {
        let out = at(&bundle, level).code(1);
        assert!(out.stderr.contains("linux.seccomp: load"), "{out:#?}");
    }
}

#[test]
fn capabilities_that_the_runtime_lacks() {
    isorun_only!("runc only warns");
    let mut bundle = Bundle::sh("echo ran");
    for kind in ["bounding", "effective", "permitted"] {
        bundle.push(
            &format!("/process/capabilities/{kind}"),
            json!("CAP_SYS_TIME"),
        );
    }
    without_capability(&mut bundle, "sys_time");
    row(
        &bundle,
        "capabilities",
        "safe",
        "run isorun with these capabilities",
    );
    let out = at(&bundle, "never");
    assert!(
        out.stderr
            .contains("CAP_SYS_TIME: the runtime itself does not"),
        "{out:#?}"
    );
    assert!(
        !out.stderr.contains("CAP_KILL"),
        "only what is missing: {out:#?}"
    );
}

#[test]
fn the_cpu_affinity() {
    isorun_only!("the levels are isorun's");
    let mut bundle = Bundle::sh("echo ran");
    denied!(bundle, libc::EPERM, "203");
    row(&bundle, "affinity", "safe", "sched_setaffinity");
}

#[test]
fn a_masked_proc() {
    isorun_only!("runc fails there");
    let mut bundle = mapped();
    bundle.args(&[
        "sh",
        "-c",
        "test -d /proc/self/fd && ! touch /proc/sys/kernel/domainname 2>/dev/null && echo ran",
    ]);
    // In a user namespace a new procfs may show no more than the one that is there.
    let script = "mount -t tmpfs tmpfs /proc/tty";
    let flags = |level: &str| ["--degrade".to_string(), level.to_string()];
    let run = |level: &str| masked(&bundle, script, &flags(level));
    row_by(&bundle, "procfs", "any", "systempaths=unconfined", &run);
}

#[test]
fn a_masked_sysfs() {
    isorun_only!("runc fails there");
    let mut bundle = mapped();
    bundle.args(&["sh", "-c", "test -d /sys/class && echo ran"]);
    let script = "mount -t tmpfs tmpfs /sys/kernel";
    let flags = |level: &str| ["--degrade".to_string(), level.to_string()];
    let run = |level: &str| masked(&bundle, script, &flags(level));
    row_by(&bundle, "sysfs", "any", "unmask /sys", &run);
}

/// `run` at a level in a mount namespace that the script has changed.
fn masked(bundle: &Bundle, script: &str, global: &[String; 2]) -> Output {
    let script = format!("{script}; export ISORUN_DEGRADE={}", global[1]);
    run_flags_after(bundle, &script, &[])
}

#[test]
fn shared_memory_without_a_tmpfs() {
    isorun_only!("the levels are isorun's");
    let mut bundle = Bundle::sh(
        "echo x >/dev/shm/f && stat -c %a /dev/shm && grep ' /dev/shm ' /proc/mounts | grep -c noexec; \
         echo ran",
    );
    for mount in bundle.config["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/dev/shm" {
            mount["options"]
                .as_array_mut()
                .unwrap()
                .push(json!("noatime"));
        }
    }
    // nosuid, nodev, noexec and noatime: no other mount of this container has these four.
    let calls = format!("{MOUNT_API},165@3={}", 2 | 4 | 8 | NOATIME);
    denied!(bundle, libc::EPERM, &calls);
    row(&bundle, "shm", "any", "bind a directory to /dev/shm");
    assert_eq!(at(&bundle, "any").text(), "1777\n1\nran");
}

#[test]
fn a_limit_without_its_controller() {
    isorun_only!("the levels are isorun's");
    let mut bundle = Bundle::sh("echo ran");
    if controller_usable("rdma") {
        skip!("this view has every controller that could be asked for");
    }
    bundle.set(
        "/linux/resources/rdma",
        json!({"mlx5_1": {"hcaHandles": 3}}),
    );
    row(&bundle, "limits", "any", "enable the controller");
    let report = report(&mut bundle, "any");
    let lost = &report["degradations"][0];
    assert_eq!(lost["errno"], 0, "nothing was tried: {report}");
    assert!(
        lost["feature"].as_str().unwrap().contains("rdma"),
        "{report}"
    );
}
