//! The `process` object: who runs, where, with what, within which limits.

use serde_json::json;

use crate::harness::{Bundle, Output, runtime, wait_for};

/// The lines `Key:\tvalue` of the container's own /proc/self/status.
fn status_of(bundle: &Bundle) -> Output {
    bundle.run().ok()
}

#[test]
fn user_and_groups() {
    let mut bundle = Bundle::new();
    bundle.args(&["id"]);
    bundle.set(
        "/process/user",
        json!({"uid": 1000, "gid": 1001, "additionalGids": [2000, 3000]}),
    );
    assert_eq!(
        bundle.run().ok().text(),
        "uid=1000(ann) gid=1001(ann) groups=2000(extra),3000"
    );
}

#[test]
fn no_groups_but_those_given() {
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/status"]);
    assert_eq!(
        status_of(&bundle).field("Groups"),
        "",
        "the caller's groups are not passed on"
    );
}

#[test]
fn all_ids_are_set() {
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/status"]);
    bundle.set("/process/user", json!({"uid": 12, "gid": 34}));
    let out = status_of(&bundle);
    assert_eq!(out.field("Uid"), "12\t12\t12\t12");
    assert_eq!(out.field("Gid"), "34\t34\t34\t34");
}

#[test]
fn umask_given_and_default() {
    let mut bundle = Bundle::sh("umask");
    assert_eq!(bundle.run().ok().text(), "0022");
    bundle.set("/process/user/umask", json!(0o027));
    assert_eq!(bundle.run().ok().text(), "0027");
}

#[test]
fn cwd() {
    let mut bundle = Bundle::new();
    std::fs::create_dir(bundle.rootfs("/tmp/here")).unwrap();
    bundle
        .args(&["pwd"])
        .set("/process/cwd", json!("/tmp/here"));
    assert_eq!(bundle.run().ok().text(), "/tmp/here");
}

#[test]
fn missing_cwd_is_made() {
    let mut bundle = Bundle::new();
    bundle
        .args(&["pwd"])
        .set("/process/cwd", json!("/not/here/yet"));
    assert_eq!(bundle.run().ok().text(), "/not/here/yet");
    assert!(bundle.rootfs("/not/here/yet").is_dir());
}

#[test]
fn cwd_that_the_user_alone_may_enter() {
    // Entered after the change of user where root lacks the capability to do so.
    let mut bundle = Bundle::new();
    let home = bundle.rootfs("/home/ann");
    std::fs::create_dir_all(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(1000), Some(1001)).unwrap();
    std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    bundle
        .args(&["pwd"])
        .set("/process/cwd", json!("/home/ann"));
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1001}));
    assert_eq!(bundle.run().ok().text(), "/home/ann");
}

#[test]
fn relative_cwd_is_refused() {
    let mut bundle = Bundle::new();
    bundle.set("/process/cwd", json!("tmp"));
    let out = bundle.run().code(1);
    assert!(out.stderr.contains("absolute"), "{out:#?}");
    bundle.assert_gone();
}

#[test]
fn environment_is_exactly_what_is_given() {
    let mut bundle = Bundle::new();
    let given = json!(["PATH=/bin", "A=1", "EMPTY=", "TWO=a=b", "HOME=/somewhere"]);
    bundle.args(&["env"]).set("/process/env", given);
    let out = bundle.run().ok();
    let mut lines: Vec<&str> = out.text().lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["A=1", "EMPTY=", "HOME=/somewhere", "PATH=/bin", "TWO=a=b"]
    );
}

#[test]
fn the_last_value_of_a_name_counts() {
    since_runc!(1, 3, "an environment with each name once");
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/environ"]).set(
        "/process/env",
        json!(["PATH=/bin", "A=1", "HOME=/", "B=2", "A=3", "AA=4"]),
    );
    assert_eq!(
        bundle.run().ok().text(),
        "PATH=/bin\0HOME=/\0B=2\0A=3\0AA=4\0"
    );
}

#[test]
fn home_comes_from_passwd() {
    let mut bundle = Bundle::sh("echo $HOME");
    assert_eq!(bundle.run().ok().text(), "/root");
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1001}));
    assert_eq!(bundle.run().ok().text(), "/home/ann");
    bundle.set("/process/user", json!({"uid": 4711, "gid": 1001}));
    assert_eq!(bundle.run().ok().text(), "/", "an unknown user's home is /");
}

#[test]
fn arguments_arrive_unchanged() {
    let mut bundle = Bundle::new();
    bundle.args(&[
        "sh",
        "-c",
        "for a in \"$@\"; do echo \"[$a]\"; done",
        "sh",
        "",
        "a b",
        "é\"'$x",
    ]);
    assert_eq!(bundle.run().ok().text(), "[]\n[a b]\n[é\"'$x]");
}

#[test]
fn program_is_looked_up_in_the_containers_path() {
    let mut bundle = Bundle::new();
    std::fs::create_dir_all(bundle.rootfs("/opt/tools")).unwrap();
    std::fs::copy(
        crate::harness::busybox(),
        bundle.rootfs("/opt/tools/only-here"),
    )
    .unwrap();
    bundle.args(&["only-here", "echo", "found"]);
    // busybox goes by its name, so an applet name is needed: link it.
    std::fs::remove_file(bundle.rootfs("/opt/tools/only-here")).unwrap();
    std::fs::write(
        bundle.rootfs("/opt/tools/only-here"),
        "#!/bin/sh\necho found $0\n",
    )
    .unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bundle.rootfs("/opt/tools/only-here"), mode).unwrap();
    bundle.set("/process/env", json!(["PATH=/nowhere:/opt/tools:/bin"]));
    assert_eq!(bundle.run().ok().text(), "found /opt/tools/only-here");
}

#[test]
fn program_by_relative_path() {
    let mut bundle = Bundle::new();
    bundle
        .args(&["./busybox", "echo", "here"])
        .set("/process/cwd", json!("/bin"));
    assert_eq!(bundle.run().ok().text(), "here");
}

#[test]
fn rlimits() {
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/limits"]);
    bundle.set(
        "/process/rlimits",
        json!([
            {"type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
            {"type": "RLIMIT_NPROC", "soft": 77, "hard": 88},
            {"type": "RLIMIT_STACK", "soft": 1048576, "hard": 2097152},
            {"type": "RLIMIT_FSIZE", "soft": 1000000, "hard": 2000000},
            {"type": "RLIMIT_MEMLOCK", "soft": 4096, "hard": 8192}
        ]),
    );
    let out = bundle.run().ok();
    let limit = |name: &str| {
        let rest = out.field(name);
        let mut words = rest.split_whitespace().map(str::to_string);
        (words.next().unwrap(), words.next().unwrap())
    };
    let pair = |soft: &str, hard: &str| (soft.to_string(), hard.to_string());
    assert_eq!(limit("Max open files"), pair("512", "1024"));
    assert_eq!(limit("Max core file size"), pair("0", "4096"));
    assert_eq!(limit("Max processes"), pair("77", "88"));
    assert_eq!(limit("Max stack size"), pair("1048576", "2097152"));
    assert_eq!(limit("Max file size"), pair("1000000", "2000000"));
    assert_eq!(limit("Max locked memory"), pair("4096", "8192"));
}

#[test]
fn no_new_privileges() {
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/status"]);
    assert_eq!(status_of(&bundle).field("NoNewPrivs"), "1");
    bundle.set("/process/noNewPrivileges", json!(false));
    assert_eq!(status_of(&bundle).field("NoNewPrivs"), "0");
}

#[test]
fn oom_score_adj() {
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/oom_score_adj"]);
    bundle.set("/process/oomScoreAdj", json!(321));
    assert_eq!(bundle.run().ok().text(), "321");
}

#[test]
fn a_session_of_its_own() {
    let bundle = Bundle::sh("cut -d' ' -f1,5,6 /proc/self/stat; cut -d' ' -f1,5,6 /proc/1/stat");
    let out = bundle.run().ok();
    let init = out.text().lines().nth(1).unwrap();
    // Without a terminal runc leaves the caller's session; none may be the host's by number.
    assert!(init.starts_with("1 "), "{init}");
}

#[test]
fn exit_status_is_passed_on() {
    for code in [0, 1, 7, 126, 127, 255] {
        let bundle = Bundle::sh(&format!("exit {code}"));
        assert_eq!(bundle.run().code, code);
        bundle.assert_gone();
    }
}

#[test]
fn death_by_signal_is_128_and_n() {
    // The init of a pid namespace ignores what it does not handle, but for KILL: the host's pids.
    for (name, number) in [("USR1", 10), ("TERM", 15), ("KILL", 9), ("SEGV", 11)] {
        let mut bundle = Bundle::sh("exec sleep 100");
        bundle.without_namespace("pid");
        let running = bundle.spawn_run();
        bundle.wait_status("running");
        // Only when sleep runs in the place of sh or of the runtime is its end the signal's.
        let pid = bundle.pid();
        wait_for("sleep", || {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|name| name.starts_with(b"sleep"))
        });
        bundle.kill(name).ok();
        assert_eq!(running.finish().code, 128 + number, "{name}");
    }
}

#[test]
fn standard_streams_are_passed_on() {
    let bundle = Bundle::sh("read line; echo out $line; echo err >&2");
    bundle.write();
    std::fs::write(bundle.host("stdin"), "given\n").unwrap();
    let dir = bundle.bundle_dir();
    let mut command = bundle.command(&["run", "--bundle", dir.to_str().unwrap(), &bundle.id]);
    command.stdin(std::fs::File::open(bundle.host("stdin")).unwrap());
    let out = crate::harness::Running::start(command, &bundle.dir.join("io"))
        .finish()
        .ok();
    assert_eq!(out.stdout, "out given\n");
    match crate::harness::denied("keyctl") {
        // The loss of the session keyring is told, and nothing else.
        true => {
            let (err, told): (Vec<&str>, Vec<&str>) =
                out.stderr.lines().partition(|line| *line == "err");
            assert_eq!((err.len(), told.len()), (1, 1), "{out:#?}");
            assert!(told[0].contains("degraded: a session keyring"), "{told:?}");
        }
        false => assert_eq!(out.stderr, "err\n"),
    }
}

#[test]
fn domainname_of_the_process_is_not_the_hosts() {
    since_runc!(1, 2, "domainname");
    let mut bundle = Bundle::new();
    bundle.set("/domainname", json!("test.example"));
    bundle.args(&["cat", "/proc/sys/kernel/domainname"]);
    assert_eq!(bundle.run().ok().text(), "test.example");
}

#[test]
fn impossible_oom_score_adj_or_rlimit_is_clamped_with_a_warning() {
    isorun_only!("runc fails where it may not raise a limit");
    let mut bundle = Bundle::new();
    bundle.args(&["sh", "-c", "ulimit -n; ulimit -Hn"]);
    let table = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = table
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let allowed: u64 = line
        .split_whitespace()
        .nth(4)
        .unwrap()
        .parse()
        .unwrap_or(u64::MAX);
    let caps = caps::has_cap(
        None,
        caps::CapSet::Effective,
        caps::Capability::CAP_SYS_RESOURCE,
    );
    if caps.unwrap() || allowed >= 1_048_576 {
        skip!("this caller may raise the limit: nothing to clamp");
    }
    let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 1_048_576, "hard": 1_048_576}]);
    bundle.set("/process/rlimits", limit);
    bundle.write();
    let (log, dir) = (bundle.host("log"), bundle.bundle_dir());
    let out = bundle
        .call(&[
            "--log",
            log.to_str().unwrap(),
            "--log-format",
            "json",
            "run",
            "--bundle",
            dir.to_str().unwrap(),
            &bundle.id,
        ])
        .ok();
    assert_eq!(
        out.text(),
        format!("{allowed}\n{allowed}"),
        "{}",
        runtime().path.display()
    );
    assert!(
        out.stderr.contains("RLIMIT_NOFILE"),
        "a warning on stderr: {out:#?}"
    );
    let log = std::fs::read_to_string(&log).unwrap();
    let warned = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let warned: Vec<_> = warned.filter(|line| line["level"] == "warning").collect();
    assert!(
        warned
            .iter()
            .any(|line| line["msg"].as_str().unwrap().contains("RLIMIT_NOFILE")),
        "a warning in the log: {log}"
    );
}

#[test]
fn a_user_may_open_its_stdout_by_path() {
    // Through a pipe, as engines do: its inode belongs to who made it.
    let mut bundle = Bundle::sh("echo hi > /dev/stdout");
    bundle
        .set("/process/user/uid", json!(1000))
        .set("/process/user/gid", json!(1001));
    bundle.write();
    let dir = bundle.bundle_dir();
    let mut command = bundle.command(&["run", "--bundle", dir.to_str().unwrap(), &bundle.id]);
    let out = command.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        "hi\n",
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}
