//! isorun's own init among enemies: filters that deny what it does, programs that look into it, that change their
//! user, and namespaces in which no process ids can be given.

use serde_json::json;

use crate::channels_rootless::with_runtime_dir;
use crate::cuda::{run, sh};
use crate::harness::Bundle;
use crate::rootless::{USER, reachable};

fn give(bundle: &mut Bundle, capabilities: &[&str]) {
    for set in ["bounding", "effective", "permitted"] {
        bundle.set(&format!("/process/capabilities/{set}"), json!(capabilities));
    }
}

/// Even who may trace all processes reads nothing of the environment that isorun was called with.
#[test]
fn init_shows_nothing_of_who_called() {
    isorun_only!("channels are isorun's");
    let mut bundle = sh(
        "cat /proc/1/environ > /dev/null && echo readable; tr '\\0' '\\n' < /proc/1/environ > /tmp/environ\n\
         grep -c CALLER /tmp/environ; echo lines $(grep -c . /tmp/environ)",
    );
    give(&mut bundle, &["CAP_SYS_PTRACE", "CAP_KILL"]);
    let script = "export TOKEN_OF_CALLER=secret; runtime run --bundle $B $ID";
    let out = run(&bundle, script);
    assert!(out.stdout.starts_with("readable\n0\n"), "{out:#?}");
    assert_eq!(out.field("lines"), "0", "{out:#?}");
    give(&mut bundle, &["CAP_KILL"]);
    let out = run(&bundle, script);
    assert!(
        out.stderr.contains("/proc/1/environ: Permission denied"),
        "{out:#?}"
    );
}

/// Without privileges as well: exec joins by the program.
#[test]
fn a_user_without_privileges_has_an_init_that_nobody_looks_into() {
    isorun_only!("channels are isorun's");
    let mut bundle = with_runtime_dir(&[[0, USER, 1]]);
    if !reachable(&bundle) {
        skip!("the user cannot get at the runtime");
    }
    bundle.set("/annotations/io.isorun.cuda-ipc", json!("1"));
    bundle.args(&[
        "sh",
        "-c",
        "exec > /dev/shm/out 2>&1; cat /proc/1/comm; for file in environ mem maps; do \
         head -c 1 /proc/1/$file > /dev/null && echo read $file; done; echo program $(readlink /proc/self/ns/mnt)\n\
         echo > /dev/shm/ready; exec sleep 100",
    ]);
    bundle.call(&["channel", "create", "t-r"]).ok();
    bundle.write();
    let dir = bundle.bundle_dir();
    let id = bundle.id.clone();
    bundle
        .call(&["run", "--detach", "--bundle", dir.to_str().unwrap(), &id])
        .ok();
    let channel = bundle.host("runtime/isorun/channels/t-r");
    for _ in 0..500 {
        if channel.join("ready").exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let said = std::fs::read_to_string(channel.join("out")).unwrap_or_default();
    let exec = bundle.call(&[
        "exec",
        &id,
        "sh",
        "-c",
        "echo exec $(readlink /proc/self/ns/mnt); cat /proc/1/comm",
    ]);
    bundle.call(&["delete", "--force", &id]).ok();
    bundle.call(&["channel", "remove", "--force", "t-r"]);
    bundle.assert_gone();
    let exec = exec.ok();
    assert!(said.starts_with("isorun-init\n"), "{said}");
    assert!(!said.contains("read "), "{said}");
    assert_eq!(said.matches("Permission denied").count(), 3, "{said}");
    let namespace = exec.field("exec");
    assert!(
        said.contains(&format!("program {namespace}\n")),
        "{said} {exec:#?}"
    );
    assert!(exec.stdout.contains("isorun-init"), "{exec:#?}");
}

/// With a filter that denies prctl(2) and what closes descriptors, run and start know that the program runs.
#[test]
fn a_filter_that_denies_what_init_does() {
    isorun_only!("channels are isorun's");
    let mut bundle = sh("echo ran; exit 5");
    let denied = ["prctl", "close_range", "prlimit64", "getrlimit", "capset"];
    bundle.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}),
    );
    let out = run(
        &bundle,
        "timeout 20 $program --root $root run --bundle $B $ID",
    )
    .code(5);
    assert_eq!(out.text(), "ran");
    let out = run(
        &bundle,
        "runtime create --bundle $B $ID > $D/out; timeout 20 $program --root $root start $ID; echo start $?\n\
         wait_for 'runtime state $ID | grep -q stopped'; cat $D/out; runtime delete $ID",
    )
    .ok();
    assert_eq!(out.text(), "start 0\nran");
}

/// As by gosu: init may signal a program that is another user now, although config.json gives no CAP_KILL.
#[test]
fn a_program_that_changes_its_user_gets_signals() {
    isorun_only!("channels are isorun's");
    let mut bundle = sh(
        "exec busybox su user -s /bin/sh -c \"trap 'exit 7' TERM; id -u; echo > /dev/shm/ready; \
         while :; do sleep 0.05; done\"",
    );
    give(&mut bundle, &["CAP_SETUID", "CAP_SETGID"]);
    std::fs::create_dir_all(bundle.rootfs("/etc")).unwrap();
    let passwd = "root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n";
    std::fs::write(bundle.rootfs("/etc/passwd"), passwd).unwrap();
    std::fs::write(bundle.rootfs("/etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
    let script = "runtime run --bundle $B $ID & wait_for '[ -e $C/t-g/ready ]'; runtime kill $ID TERM\n\
         n=0; while runtime state $ID 2>/dev/null | grep -q running && [ $n -lt 250 ]; do n=$((n + 1)); sleep 0.02; done\n\
         runtime kill $ID KILL 2>/dev/null || true; code=0; wait $! || code=$?; echo code $code";
    let out = run(&bundle, script).ok();
    assert!(out.stdout.starts_with("1000\n"), "{out:#?}");
    assert_eq!(out.field("code"), "7", "{out:#?}");
}

/// A range that could not be begun is not told as one that the container has left.
#[test]
fn a_range_that_was_not_given_is_not_told() {
    isorun_only!("channels are isorun's");
    let bundle = sh("exec sleep 100");
    let script = "mount -o bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys\n\
         runtime run --detach --bundle $B $ID >$D/log 2>&1; runtime exec $ID true; runtime report $ID\n\
         runtime channel inspect t-g; runtime delete --force $ID; grep -c ns_last_pid $D/log";
    let out = run(&bundle, script).ok();
    assert!(out.stdout.contains("rw pid "), "{out:#?}");
    assert!(out.text().ends_with("\n1"), "{out:#?}");
    for wrong in ["come round", "its processes"] {
        assert!(
            !out.stdout.contains(wrong) && !out.stderr.contains(wrong),
            "{out:#?}"
        );
    }
}

/// The /proc of a mount namespace that others made may be any: nothing is written through it.
#[test]
fn no_process_ids_through_a_foreign_proc() {
    isorun_only!("channels are isorun's");
    let mut bundle = sh("echo pid $$");
    bundle.write();
    bundle.without_namespace("mount");
    bundle.push(
        "/linux/namespaces",
        json!({"type": "mount", "path": "JOIN"}),
    );
    let script = "cat /proc/sys/kernel/pid_max > $D/before\n\
         unshare -m sleep 100 & wait_for '[ \"$(readlink /proc/$!/ns/mnt)\" != \"$(readlink /proc/self/ns/mnt)\" ]'\n\
         sed -i \"s,JOIN,/proc/$!/ns/mnt,\" $B/config.json; runtime run --bundle $B $ID; kill $!\n\
         cmp $D/before /proc/sys/kernel/pid_max && echo same";
    let out = run(&bundle, script).ok();
    assert_eq!(out.text(), "pid 1\nsame", "{out:#?}");
    let why = "the mount namespace is one that others have made";
    assert!(out.stderr.contains(why), "{out:#?}");
}

/// Init stays in the host's time namespace, as it executes nothing; exec joins the program's.
#[test]
fn exec_is_in_the_programs_time_namespace() {
    isorun_only!("channels are isorun's");
    if !std::path::Path::new("/proc/self/ns/time").exists() {
        skip!("this kernel has no time namespaces");
    }
    let mut bundle = sh(
        "exec > /dev/shm/out; echo program $(readlink /proc/self/ns/time); echo > /dev/shm/ready; exec sleep 100",
    );
    bundle.namespace("time");
    bundle.set("/linux/timeOffsets", json!({"boottime": {"secs": 100000}}));
    let script = "runtime run --detach --bundle $B $ID >/dev/null 2>&1; wait_for '[ -e $C/t-g/ready ]'\n\
         cat $C/t-g/out; runtime exec $ID sh -c 'echo exec $(readlink /proc/self/ns/time)'\n\
         echo host $(readlink /proc/self/ns/time); runtime delete --force $ID";
    let out = run(&bundle, script).ok();
    assert_eq!(out.field("exec"), out.field("program"), "{out:#?}");
    assert_ne!(out.field("exec"), out.field("host"), "{out:#?}");
}

/// What the fork of the program takes away is refused.
#[test]
fn a_scheduler_that_is_reset_at_fork_is_refused() {
    isorun_only!("channels are isorun's");
    let mut bundle = sh("true");
    bundle.set(
        "/process/scheduler",
        json!({"policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_RESET_ON_FORK"]}),
    );
    let out = run(&bundle, "runtime run --bundle $B $ID").code(1);
    assert!(
        out.stderr.contains(
            "process.scheduler.flags: SCHED_FLAG_RESET_ON_FORK and GPU memory in channels"
        ),
        "{out:#?}"
    );
}
