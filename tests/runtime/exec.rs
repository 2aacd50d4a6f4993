//! exec: a further process in a container that runs, like the first one in everything.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Bundle, Output, View, cgroup_dir, copy_program, is_zombie, runtime, view, wait_for,
};

/// A container that runs and does nothing.
pub fn idle() -> Bundle {
    let bundle = Bundle::sh("exec sleep 1000");
    bundle.run_detached().ok();
    bundle
}

/// `exec` with these arguments after the container's id.
pub fn exec(bundle: &Bundle, command: &[&str]) -> Output {
    exec_with(bundle, &[], command)
}

/// The same with flags.
pub fn exec_with(bundle: &Bundle, flags: &[&str], command: &[&str]) -> Output {
    let args = [&["exec"], flags, &[bundle.id.as_str()], command].concat();
    bundle.call(&args)
}

/// `exec --process` with this process.
fn exec_file(bundle: &Bundle, process: &Value) -> Output {
    let path = bundle.host("process.json");
    fs::write(&path, process.to_string()).unwrap();
    bundle.call(&["exec", "--process", path.to_str().unwrap(), &bundle.id])
}

#[test]
fn exit_statuses_and_output() {
    let bundle = idle();
    let out = exec(&bundle, &["sh", "-c", "echo out; echo err >&2; exit 5"]).code(5);
    assert_eq!((out.text(), out.stderr.trim()), ("out", "err"));
    exec(&bundle, &["true"]).ok();
    exec(&bundle, &["sh", "-c", "kill -9 $$"]).code(128 + 9);
    exec(&bundle, &["sh", "-c", "exit 255"]).code(255);
    // 126 and 127 are a shell's own words, and are passed on.
    exec(&bundle, &["sh", "-c", "/nonesuch"]).code(127);
    exec(&bundle, &["sh", "-c", "/etc/passwd"]).code(126);
    // What comes after the id is the command's, flags included.
    let out = exec(&bundle, &["sh", "-c", "echo \"$@\"", "sh", "--user", "-d"]).ok();
    assert_eq!(out.text(), "--user -d");
}

#[test]
fn failures_of_the_runtime_have_their_own_status() {
    let bundle = idle();
    for (command, text) in [
        ("nonesuch", ": executable file not found in $PATH"),
        ("/nonesuch", "no such file or directory"),
        // 1.1: permission denied; 1.3: is a directory.
        (
            "/etc",
            if crate::harness::runtime().version < (1, 2) {
                "permission denied"
            } else {
                "is a directory"
            },
        ),
        ("/etc/passwd", "permission denied"),
    ] {
        let out = exec(&bundle, &[command]).code(255);
        assert!(out.stderr.contains("exec failed: "), "{out:#?}");
        assert!(out.stderr.contains(text), "{out:#?}");
    }
    let out = exec(&bundle, &[]).code(255);
    assert!(out.stderr.contains("args cannot be empty"), "{out:#?}");
    let out = bundle.call(&["exec", "nonesuch", "true"]).code(255);
    assert!(out.stderr.contains("container does not exist"), "{out:#?}");
    bundle.call(&["exec"]).code(1);
    bundle
        .call(&["exec", "--nonesuch", &bundle.id, "true"])
        .code(1);
    // What failed has left nothing: the init reaps no one.
    let pid = bundle.pid();
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert_eq!(list.trim(), "", "left in the container");
}

#[test]
fn states() {
    let bundle = Bundle::sh("exit 0");
    bundle.create().ok();
    // Before its start a container has all that a process needs.
    assert_eq!(exec(&bundle, &["echo", "early"]).ok().text(), "early");
    bundle.start().ok();
    bundle.wait_status("stopped");
    let out = exec(&bundle, &["true"]).code(255);
    assert!(
        out.stderr.contains("cannot exec in a stopped container"),
        "{out:#?}"
    );
}

#[test]
fn every_namespace_is_joined() {
    let mut bundle = crate::userns::mapped();
    bundle.args(&["sleep", "1000"]);
    bundle.run_detached().ok();
    let pid = bundle.pid();
    // Root of the namespace may look; the links are the same as those of the init.
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    for kind in kinds {
        let inside = exec(&bundle, &["readlink", &format!("/proc/self/ns/{kind}")]).ok();
        let outside = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(inside.text(), outside.to_str().unwrap(), "{kind}");
    }
    let map = exec(&bundle, &["cat", "/proc/self/uid_map"]).ok();
    assert!(map.stdout.contains("200000"), "{map:#?}");
    // A file that it makes is the container's root's.
    exec(&bundle, &["touch", "/tmp/made"]).ok();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        fs::metadata(bundle.rootfs("/tmp/made")).unwrap().uid(),
        200_000
    );
}

#[test]
fn only_what_the_container_has_of_its_own_is_joined() {
    let mut bundle = Bundle::sh("exec sleep 1000");
    bundle.without_namespace("pid").without_namespace("network");
    bundle.run_detached().ok();
    for kind in ["pid", "net"] {
        let inside = exec(&bundle, &["readlink", &format!("/proc/self/ns/{kind}")]).ok();
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_eq!(inside.text(), own.to_str().unwrap(), "{kind}");
    }
}

#[test]
fn it_is_confined_like_the_first_process() {
    let mut bundle = Bundle::sh("exec sleep 1000");
    bundle
        .set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 71}]}),
        )
        .set(
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]),
        )
        .set("/process/oomScoreAdj", json!(123))
        .set("/process/user/umask", json!(0o27));
    for no_new_privs in [true, false] {
        bundle.set("/process/noNewPrivileges", json!(no_new_privs));
        bundle.run_detached().ok();
        let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status; ulimit -n; \
            ulimit -Hn; cat /proc/self/oom_score_adj; mkdir /tmp/d 2>&1; pwd";
        let out = exec(&bundle, &["sh", "-c", script]).ok();
        for line in [
            "CapPrm:\t0000000020000420",
            "CapEff:\t0000000020000420",
            "CapBnd:\t0000000020000420",
            "CapInh:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "Seccomp:\t2",
            &format!("NoNewPrivs:\t{}", u32::from(no_new_privs)),
            // runc 1.1 sometimes leaves the soft limit at the hard one, where Go's start-up put it.
            if crate::harness::runtime().isorun {
                "100"
            } else {
                "200"
            },
            "200",
            "123",
        ] {
            assert!(
                out.stdout.lines().any(|found| found == line),
                "{line}: {out:#?}"
            );
        }
        assert!(out.stdout.contains("mkdir: "), "the filter: {out:#?}");
        assert!(out.stdout.ends_with("\n/\n"), "{out:#?}");
        bundle.delete_force().ok();
    }
}

#[test]
fn cgroups_are_the_containers() {
    let bundle = idle();
    let pid = bundle.pid();
    let inside = exec(&bundle, &["sh", "-c", "cat /proc/self/cgroup"]).ok();
    let of_init = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(inside.stdout, of_init);
}

#[test]
fn flags() {
    let bundle = idle();
    let out = exec_with(
        &bundle,
        &[
            "--user",
            "1000:1001",
            "-g",
            "2000",
            "-g",
            "2001",
            "--cwd",
            "/tmp",
            "-e",
            "A=1",
            "-e",
            "B=2 3",
            "--cap",
            "CAP_NET_RAW",
        ],
        &[
            "sh",
            "-c",
            "id; pwd; echo $A $B $HOME; grep ^CapBnd /proc/self/status",
        ],
    )
    .ok();
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert!(
        lines[0].starts_with("uid=1000(ann) gid=1001(ann)"),
        "{out:#?}"
    );
    assert!(
        lines[0].contains("2000(extra)") && lines[0].contains("2001"),
        "{out:#?}"
    );
    assert_eq!(lines[1], "/tmp");
    assert_eq!(
        lines[2], "1 2 3 /home/ann",
        "HOME is looked up for the user"
    );
    assert_eq!(lines[3], "CapBnd:\t0000000020002420");
    let home = exec_with(&bundle, &["-e", "HOME=/x"], &["sh", "-c", "echo $HOME"]).ok();
    assert_eq!(home.text(), "/x");
    let out = exec_with(&bundle, &["--user", "1000"], &["id", "-g"]).ok();
    assert_eq!(out.text(), "0", "the group stays");
    // PATH is the process's own, also where the program is looked for.
    copy_program(&bundle.rootfs("/bin/busybox"), &bundle.rootfs("/root/echo"));
    let out = exec_with(&bundle, &["-e", "PATH=/root"], &["echo", "found"]).ok();
    assert_eq!(out.text(), "found");
    exec_with(&bundle, &["-e", "PATH=/none"], &["echo"]).code(255);
}

/// HOME is the user's of /etc/passwd where the environment has none, or an empty one; / where that knows
/// nothing. PATH is what the container has.
#[test]
fn home_and_path() {
    let mut bundle = Bundle::sh("exec sleep 1000");
    bundle.set("/process/env", json!(["PATH=/bin:/none", "HOME=/of/init"]));
    bundle.run_detached().ok();
    let script = &["sh", "-c", "echo $HOME $PATH"];
    for (flags, said) in [
        (&[][..], "/of/init /bin:/none"),
        (&["-e", "HOME="], "/root /bin:/none"),
        (&["-e", "HOME=", "--user", "1000"], "/home/ann /bin:/none"),
        (&["-e", "HOME=", "--user", "4321"], "/ /bin:/none"),
        (&["-e", "HOME=/a", "-e", "HOME=/b"], "/b /bin:/none"),
        (&["-e", "PATH=/bin"], "/of/init /bin"),
    ] {
        assert_eq!(
            exec_with(&bundle, flags, script).ok().text(),
            said,
            "{flags:?}"
        );
    }
    fs::remove_file(bundle.rootfs("/etc/passwd")).unwrap();
    let out = exec_with(&bundle, &["-e", "HOME="], script).ok();
    assert_eq!(out.text(), "/ /bin:/none", "without /etc/passwd");
    // Without any PATH only a path is found.
    let process = |args: Value| json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["X=1"], "args": args});
    let out = exec_file(&bundle, &process(json!(["/bin/echo", "by path"]))).ok();
    assert_eq!(out.text(), "by path");
}

#[test]
fn unknown_names_of_capabilities_are_told_and_left_out() {
    let bundle = idle();
    let flags = ["--cap", "CAP_NET_RAW", "--cap", "CAP_X", "--cap", "kill"];
    let status = &["grep", "^CapBnd", "/proc/self/status"];
    let out = exec_with(&bundle, &flags, status).ok();
    assert_eq!(out.text(), "CapBnd:\t0000000020002420");
    let told = "ignoring unknown or unavailable capabilities: [CAP_X kill]";
    assert!(!runtime().isorun || out.stderr.contains(told), "{out:#?}");
    let names = json!(["CAP_KILL", "CAP_X"]);
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": status,
        "capabilities": {"bounding": names, "effective": names, "permitted": names}});
    let out = exec_file(&bundle, &process).ok();
    assert_eq!(out.text(), "CapBnd:\t0000000000000020");
    let told = "ignoring unknown or unavailable capabilities: [CAP_X]";
    assert!(!runtime().isorun || out.stderr.contains(told), "{out:#?}");
}

#[test]
fn no_new_privs_can_be_asked_for() {
    let mut bundle = Bundle::sh("exec sleep 1000");
    bundle.set("/process/noNewPrivileges", json!(false));
    bundle.run_detached().ok();
    let status = &["grep", "NoNewPrivs", "/proc/self/status"];
    assert!(exec(&bundle, status).ok().stdout.ends_with("0\n"));
    let out = exec_with(&bundle, &["--no-new-privs"], status).ok();
    assert!(out.stdout.ends_with("1\n"), "{out:#?}");
}

#[test]
fn a_process_file() {
    let bundle = idle();
    let mut process = json!({
        "user": {"uid": 1000, "gid": 1001, "additionalGids": [2000]},
        "args": ["sh", "-c", "id; pwd; env; cat /proc/self/status"],
        "env": ["PATH=/bin", "X=y"], "cwd": "/tmp", "terminal": false, "noNewPrivileges": true,
        "capabilities": null
    });
    let out = exec_file(&bundle, &process).ok();
    assert!(
        out.stdout
            .starts_with("uid=1000(ann) gid=1001(ann) groups=2000(extra)"),
        "{out:#?}"
    );
    assert!(
        out.stdout.contains("\n/tmp\n") && out.stdout.contains("\nX=y\n"),
        "{out:#?}"
    );
    // Without a word on them, capabilities are the container's.
    assert_eq!(out.field("CapBnd"), "0000000020000420");
    for (key, value, text) in [
        ("cwd", json!(""), "wd"),
        ("cwd", json!("tmp"), "absolute"),
        ("args", json!([]), "args"),
        ("capabilities", json!(7), "exec failed"),
    ] {
        let kept = process[key].clone();
        process[key] = value;
        let out = exec_file(&bundle, &process).code(255);
        assert!(out.stderr.contains(text), "{key}: {out:#?}");
        process[key] = kept;
    }
    let out = bundle
        .call(&["exec", "--process", "/nonesuch", &bundle.id])
        .code(255);
    assert!(out.stderr.contains("/nonesuch"), "{out:#?}");
}

/// What Podman and Docker wrote for their exec.
#[test]
fn captured_process_files() {
    for name in ["podman-exec-process.json", "docker-exec-process.json"] {
        let mut bundle = Bundle::sh("exec sleep 1000");
        // What they grant, the container and its runtime must have.
        let mut process = crate::captured::load(name);
        bundle.set("/process/capabilities", process["capabilities"].clone());
        bundle.run_detached().ok();
        // A terminal has tests of its own; the profile is of a kernel with AppArmor.
        process["terminal"] = json!(false);
        process.as_object_mut().unwrap().remove("apparmorProfile");
        let out = exec_file(&bundle, &process).ok();
        let said = process["args"][1].as_str().unwrap();
        assert_eq!(out.text(), said, "{name}");
    }
}

#[test]
fn cpus_before_and_after_the_cgroup() {
    since_runc!(1, 3, "execCPUAffinity");
    let cpus = std::thread::available_parallelism().unwrap().get();
    if cpus < 2 {
        skip!("one CPU leaves no choice");
    }
    let bundle = idle();
    let mut process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
        "args": ["grep", "Cpus_allowed_list", "/proc/self/status"]});
    for (affinity, list) in [
        (json!({"initial": "0"}), "0"),
        (json!({"initial": "0", "final": "1"}), "1"),
        (json!({"final": "1"}), "1"),
    ] {
        process["execCPUAffinity"] = affinity;
        let out = exec_file(&bundle, &process).ok();
        assert_eq!(out.field("Cpus_allowed_list"), list, "{process}");
    }
    process["execCPUAffinity"] = json!({"final": "1-0"});
    exec_file(&bundle, &process).code(255);
}

#[test]
fn users_are_plain_numbers() {
    let bundle = idle();
    for user in ["root", "-1", "4294967296", "0:x", "18446744073709551616"] {
        let out = exec_with(&bundle, &["--user", user], &["id", "-u"]);
        if user == "4294967296" || user == "-1" {
            // Older runc takes what wraps around (CVE-2026-30892).
            isorun_only!("runc 1.1 wraps around");
        }
        let out = out.code(255);
        assert!(
            out.stderr.contains("bad uid")
                || out.stderr.contains("bad gid")
                || out.stderr.contains("parsing"),
            "{out:#?}"
        );
    }
    isorun_only!("runc takes -1 for gids in other words");
    let out = exec_with(&bundle, &["-g", "-1"], &["true"]).code(255);
    assert!(out.stderr.contains("additional-gids"), "{out:#?}");
}

#[test]
fn detached_with_a_pid_file() {
    let bundle = idle();
    let path = bundle.host("pid");
    let flags = ["--detach", "--pid-file", path.to_str().unwrap()];
    exec_with(&bundle, &flags, &["sleep", "777"]).ok();
    let pid: i32 = fs::read_to_string(&path).unwrap().parse().unwrap();
    // runc returns a moment before its process has become the program.
    wait_for("the program to be executed", || {
        fs::read(format!("/proc/{pid}/cmdline")).unwrap() == b"sleep\x00777\0"
    });
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap(),
        fs::read_link(format!("/proc/{}/ns/pid", bundle.pid())).unwrap()
    );
    // It goes with the container.
    bundle.delete_force().ok();
    wait_for("the end of the process", || is_zombie(pid));
    // What cannot be written ends the process.
    bundle.run_detached().ok();
    let flags = ["--detach", "--pid-file", "/nonesuch/pid"];
    exec_with(&bundle, &flags, &["sleep", "778"]).code(255);
    let out = exec(&bundle, &["ps"]).ok();
    assert!(!out.stdout.contains("778"), "{out:#?}");
}

#[test]
fn signals_are_forwarded() {
    let bundle = idle();
    let names = ["HUP", "INT", "USR1", "TERM"];
    let traps: Vec<String> = names
        .iter()
        .map(|name| format!("trap 'echo got {name}' {name}"))
        .collect();
    let script = format!(
        "{}; trap 'exit 6' QUIT; echo ready; while :; do sleep 0.02; done",
        traps.join("; ")
    );
    let running = bundle.spawn(&["exec", &bundle.id, "sh", "-c", &script]);
    wait_for("ready", || running.stdout().contains("ready"));
    for name in names {
        running.signal(format!("SIG{name}").parse::<Signal>().unwrap());
        wait_for(&format!("{name} to arrive"), || {
            running.stdout().contains(&format!("got {name}\n"))
        });
    }
    running.signal(Signal::SIGQUIT);
    running.finish().code(6);
}

#[test]
fn the_end_of_the_container_ends_it() {
    let bundle = idle();
    let running = bundle.spawn(&["exec", &bundle.id, "sh", "-c", "echo ready; sleep 1000"]);
    wait_for("ready", || running.stdout().contains("ready"));
    bundle.kill("KILL").ok();
    running.finish().code(128 + 9);
}

#[test]
fn a_cgroup_below_the_containers() {
    let bundle = idle();
    let pid = bundle.pid();
    let controller = if view() == View::V2 { "" } else { "pids" };
    let own = cgroup_dir(pid, controller);
    fs::create_dir(own.join("below")).unwrap();
    let flag = if view() == View::V2 {
        "below"
    } else {
        "pids:below"
    };
    let script = "cat /proc/self/cgroup";
    let out = exec_with(&bundle, &["--cgroup", flag], &["sh", "-c", script]).ok();
    assert!(
        out.stdout.lines().any(|line| line.ends_with("/below")),
        "{out:#?}"
    );
    for (flag, text) in [
        ("nonesuch", ""),
        ("../other", "is not a sub cgroup path"),
        ("a:b:", ""),
    ] {
        let out = exec_with(&bundle, &["--cgroup", flag], &["true"]).code(255);
        assert!(out.stderr.contains(text), "{flag}: {out:#?}");
    }
    fs::remove_dir(own.join("below")).unwrap();
}

#[test]
fn labels_need_their_modules() {
    isorun_only!("runc 1.1 ignores an SELinux label on a host without SELinux");
    let bundle = idle();
    if !std::path::Path::new("/sys/kernel/security/apparmor").exists() {
        let out = exec_with(&bundle, &["--apparmor", "a-profile"], &["true"]).code(255);
        assert!(out.stderr.contains("process.apparmorProfile"), "{out:#?}");
    }
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        let out = exec_with(&bundle, &["--process-label", "a:b:c"], &["true"]).code(255);
        assert!(
            out.stderr.contains("selinux is disabled or not supported"),
            "{out:#?}"
        );
    }
}

/// What failed is told however long the name is that it failed with.
#[test]
fn a_long_name_does_not_hide_what_failed() {
    let mut bundle = idle();
    let long = "x".repeat(100_000);
    let out = exec(&bundle, &[&long]).code(255);
    assert!(
        out.stderr.contains("executable file not found in $PATH"),
        "{:.300}",
        out.stderr
    );
    bundle.delete_force().ok();
    bundle.args(&[&long]);
    let out = bundle.run().code(1);
    assert!(
        out.stderr.contains("executable file not found in $PATH"),
        "{:.300}",
        out.stderr
    );
    bundle.assert_gone();
}

#[test]
fn what_the_caller_ignores_is_not_ignored_in_the_container() {
    let mut bundle = idle();
    bundle.prefix = ["sh", "-c", "trap '' INT QUIT; exec \"$@\"", "sh"]
        .map(str::to_string)
        .to_vec();
    let status = exec(&bundle, &["cat", "/proc/self/status"]).ok();
    let ignored = u64::from_str_radix(&status.field("SigIgn"), 16).unwrap();
    let (int, quit) = (Signal::SIGINT as u64, Signal::SIGQUIT as u64);
    assert_eq!(
        ignored & (1 << (int - 1) | 1 << (quit - 1)),
        0,
        "{ignored:x}"
    );
}

#[test]
fn what_the_container_does_without_is_not_told_again() {
    isorun_only!("a reference fails where a limit cannot be had");
    let mut bundle = Bundle::sh("exec sleep 1000");
    bundle.set(
        "/process/rlimits",
        json!([{"type": "RLIMIT_NOFILE", "soft": 1 << 20, "hard": 1 << 20}]),
    );
    let out = bundle.run_detached().ok();
    if !out.stderr.contains("degraded") {
        skip!("this caller may give all that is asked for");
    }
    assert_eq!(exec(&bundle, &["true"]).ok().stderr, "");
    // A limit of the process's own is another matter.
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
        "args": ["true"], "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1 << 21}]});
    let out = exec_file(&bundle, &process).ok();
    assert!(out.stderr.contains("degraded"), "{out:#?}");
}
