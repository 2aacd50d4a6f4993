//! Hooks in corner cases: each stage failing and running out of time, children that go on, much output,
//! a large state, and containers that are deleted while a hook runs.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Bundle, is_zombie, runtime, wait_for};
use crate::hooks::{STAGES, hooked, script};

/// Well under the ten seconds that a command waits for a lock.
const SOON: Duration = Duration::from_secs(8);

fn read(bundle: &Bundle, name: &str) -> String {
    let text = fs::read_to_string(bundle.host(name)).unwrap_or_default();
    text.trim().to_string()
}

/// A command line of the runtime on the bundle's own container, for hooks.
fn on_itself(bundle: &Bundle, command: &str) -> String {
    let (program, root) = (runtime().path.display(), bundle.state_root());
    format!("{program} --root {} {command}", root.display())
}

fn set_hook(bundle: &mut Bundle, stage: &str, text: &str) {
    let hook = script(bundle, stage, text);
    bundle.set(&format!("/hooks/{stage}"), json!([hook]));
}

#[test]
fn each_stage_that_fails_before_the_program_is_told_with_its_output() {
    isorun_only!("runc 1.1 says less, and learns nothing of startContainer hooks after start");
    for stage in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
    ] {
        let bundle = hooked(&[stage], |_| "echo out; echo told >&2; exit 7".to_string());
        let at_start = stage == "startContainer";
        let out = if at_start {
            bundle.create().ok();
            bundle.start().code(1)
        } else {
            bundle.create().code(1)
        };
        let text = format!("run {stage} hook #0 (/bin/sh): exit status: 7: out\ntold\n");
        assert!(out.stderr.ends_with(&text), "{stage}: {out:#?}");
        if at_start {
            // What failed is there to be looked at, and to be deleted.
            bundle.wait_status("stopped");
            bundle.delete().ok();
        }
        assert_eq!(read(&bundle, "own.pid"), "", "{stage}: the program ran");
        bundle.assert_gone();
    }
}

#[test]
fn stages_after_the_program_has_started() {
    isorun_only!("runc runs poststart hooks in create");
    let bundle = hooked(&["poststart"], |_| "echo told >&2; exit 7".to_string());
    bundle.create().ok();
    let out = bundle.start().code(1);
    assert!(out.stderr.contains("run poststart hook #0"), "{out:#?}");
    assert!(out.stderr.contains("told"), "{out:#?}");
    bundle.assert_gone();

    let bundle = hooked(&["poststop"], |_| "echo told >&2; exit 7".to_string());
    bundle.run_detached().ok();
    let out = bundle.delete_force().ok();
    assert!(
        out.stderr.contains("warning: run poststop hook #0") && out.stderr.contains("told"),
        "{out:#?}"
    );
    bundle.assert_gone();
}

#[test]
fn a_hook_that_is_not_there_or_dies_of_a_signal() {
    for stage in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
    ] {
        let mut bundle = hooked(&[stage], |_| String::new());
        bundle.set(&format!("/hooks/{stage}/0/path"), json!("/nonesuch"));
        let out = bundle.run();
        assert_ne!(out.code, 0, "{stage}: {out:#?}");
        if runtime().isorun {
            let text = format!("run {stage} hook #0 (/nonesuch): execute it: ENOENT");
            assert!(out.stderr.contains(&text), "{out:#?}");
        }
        bundle.assert_gone();
        let bundle = hooked(&[stage], |_| "kill -9 $$".to_string());
        let out = bundle.run();
        assert_ne!(out.code, 0, "{stage}: {out:#?}");
        if runtime().isorun {
            assert!(out.stderr.contains("signal: 9"), "{out:#?}");
        }
        bundle.assert_gone();
    }
}

#[test]
fn timeouts_of_the_later_stages() {
    isorun_only!(
        "runc gives poststart hooks no end of their own, and start does not wait for hooks"
    );
    let hang = |stage: &str| {
        let mut bundle = hooked(&[stage], |_| "sleep 300 & sleep 300".to_string());
        bundle.set(&format!("/hooks/{stage}/0/timeout"), json!(1));
        bundle
    };
    let over = "killed: it ran longer than its timeout of 1 s";
    for stage in ["startContainer", "poststart"] {
        let bundle = hang(stage);
        bundle.create().ok();
        let begin = Instant::now();
        let out = bundle.start().code(1);
        assert!(out.stderr.contains(over), "{stage}: {out:#?}");
        assert!(begin.elapsed() < SOON, "{stage}");
        bundle.delete_force().ok();
        bundle.assert_gone();
    }
    let bundle = hang("poststop");
    bundle.run_detached().ok();
    let begin = Instant::now();
    let out = bundle.delete_force().ok();
    assert!(out.stderr.contains(over), "{out:#?}");
    assert!(begin.elapsed() < SOON);
    bundle.assert_gone();
}

/// A daemon that a hook starts keeps its output open: nobody waits for that.
#[test]
fn children_that_hold_the_output_open() {
    isorun_only!("runc waits for the end of the output");
    for end in ["exit 0", "echo told >&2; exit 3"] {
        let bundle = hooked(&["createRuntime"], |_| {
            format!("sleep 300 & echo $! > $H/pid; {end}")
        });
        let begin = Instant::now();
        let out = bundle.create();
        assert!(begin.elapsed() < SOON, "{end}");
        let good = end == "exit 0";
        assert_eq!(out.code, i32::from(!good), "{out:#?}");
        assert_eq!(out.stderr.contains("told"), !good, "{out:#?}");
        let daemon: i32 = read(&bundle, "pid").parse().unwrap();
        assert!(!is_zombie(daemon), "it is the administrator's");
        let pid = nix::unistd::Pid::from_raw(daemon);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

#[test]
fn a_timeout_ends_the_children_too() {
    for stage in ["prestart", "createRuntime"] {
        let mut bundle = hooked(&[stage], |_| {
            "sleep 300 & echo $! > $H/pid; sleep 300".to_string()
        });
        bundle.set(&format!("/hooks/{stage}/0/timeout"), json!(1));
        let begin = Instant::now();
        if !runtime().isorun {
            skip!("runc leaves the children of a hook alone");
        }
        bundle.create().code(1);
        assert!(begin.elapsed() < SOON, "{stage}");
        let child: i32 = read(&bundle, "pid").parse().unwrap();
        wait_for("the hook's child to be gone", || is_zombie(child));
        bundle.assert_gone();
    }
}

/// One that left the group, as daemons do, outlives the hook; the command ends all the same.
#[test]
fn a_timeout_does_not_wait_for_daemons() {
    isorun_only!("runc waits for the end of the output");
    let mut bundle = hooked(&["createRuntime"], |_| {
        "setsid sleep 300 & echo $! > $H/pid; sleep 300".to_string()
    });
    bundle.set("/hooks/createRuntime/0/timeout", json!(1));
    let begin = Instant::now();
    bundle.create().code(1);
    assert!(begin.elapsed() < SOON);
    let pid = nix::unistd::Pid::from_raw(read(&bundle, "pid").parse().unwrap());
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    bundle.assert_gone();
}

#[test]
fn of_much_output_the_last_part_is_told() {
    for stage in ["createRuntime", "createContainer", "startContainer"] {
        let bundle = hooked(&[stage], |_| {
            "i=0; while [ $i -lt 30000 ]; do echo 0123456789012345678901234567890123456789; \
             i=$((i+1)); done; printf 'the\\377end\\n' >&2; exit 1"
                .to_string()
        });
        let out = bundle.run();
        assert_ne!(out.code, 0, "{stage}");
        if runtime().isorun {
            assert!(
                out.stderr.trim_end().ends_with("the\u{fffd}end"),
                "{stage}: {out:#?}"
            );
            assert!(out.stderr.len() < 3000, "{stage}: {}", out.stderr.len());
        }
        bundle.assert_gone();
    }
}

#[test]
fn a_failure_with_many_lines_is_one_line_in_the_log() {
    let bundle = hooked(&["createRuntime"], |_| {
        "echo 'a\"b'; echo c; exit 1".to_string()
    });
    bundle.write();
    let (dir, log) = (bundle.bundle_dir(), bundle.host("log"));
    let (dir, file) = (dir.to_str().unwrap(), log.to_str().unwrap());
    let flags = [
        "--log",
        file,
        "--log-format",
        "json",
        "create",
        "--bundle",
        dir,
        &bundle.id,
    ];
    bundle.call(&flags).code(1);
    let text = fs::read_to_string(&log).unwrap();
    let errors: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .filter(|line: &Value| line["level"] == "error")
        .collect();
    assert!(!errors.is_empty(), "{text}");
    let last = errors.last().unwrap()["msg"].as_str().unwrap();
    assert!(last.contains("hook"), "{text}");
    if runtime().isorun {
        assert!(last.ends_with("a\"b\nc"), "{text}");
    }
}

/// With a state that is larger than a pipe: hooks that read all of it, and hooks that read nothing.
#[test]
fn a_large_state_is_read_or_not() {
    const SIZE: usize = 300_000;
    for text in [
        "wc -c > $H/$STAGE",
        "echo 0 > $H/$STAGE",
        "exec <&-; echo 0 > $H/$STAGE",
    ] {
        let mut bundle = hooked(&STAGES, |stage| text.replace("$STAGE", stage));
        bundle.set(
            "/annotations",
            json!({"org.example.large": "x".repeat(SIZE)}),
        );
        bundle.create().ok();
        bundle.start().ok();
        bundle.wait_file("own.pid");
        bundle.delete_force().ok();
        for stage in STAGES {
            let seen: usize = read(&bundle, stage).parse().unwrap();
            assert_eq!(
                seen > SIZE,
                text.starts_with("wc"),
                "{stage}: {text}: {seen}"
            );
        }
    }
}

/// Hooks of the stage startContainer run under the container's limits and filter.
#[test]
fn a_large_state_where_the_container_may_make_no_files() {
    isorun_only!("the limit on the size of files ends runc itself");
    let mut bundle = hooked(&["startContainer"], |_| "wc -c".to_string());
    bundle.args(&["sh", "-c", "echo in"]);
    bundle
        .set(
            "/annotations",
            json!({"org.example.large": "x".repeat(100_000)}),
        )
        .set(
            "/process/rlimits",
            json!([{"type": "RLIMIT_FSIZE", "soft": 0, "hard": 0}]),
        )
        .set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["memfd_create"], "action": "SCMP_ACT_ERRNO"}]}),
        );
    bundle.create().ok();
    bundle.start().ok();
    bundle.wait_status("stopped");
    bundle.delete().ok();
}

#[test]
fn a_hook_that_deletes_its_own_container() {
    isorun_only!("runc has no record of a container while its hooks run");
    for stage in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = hooked(&[], |_| String::new());
        bundle.args(&["sh", "-c", "echo started"]);
        let delete = on_itself(&bundle, &format!("delete --force {}", bundle.id));
        set_hook(
            &mut bundle,
            stage,
            &format!("{delete} && echo done > $H/done"),
        );
        for run in [false, true] {
            let begin = Instant::now();
            let made = if run { bundle.run() } else { bundle.create() };
            let out = made.code(1);
            assert!(begin.elapsed() < SOON, "{stage}: {:?}", begin.elapsed());
            assert_eq!(out.stdout, "", "{stage}: the program must not run");
            let said = ["deleted by one of its own hooks", "first process"];
            let tells = said.iter().any(|words| out.stderr.contains(words));
            assert!(tells, "{stage}: {out:#?}");
            assert_eq!(read(&bundle, "done"), "done", "{stage}: {out:#?}");
            fs::remove_file(bundle.host("done")).unwrap();
            assert_eq!(bundle.status(), "none");
            bundle.assert_gone();
        }
    }
}

#[test]
fn a_poststart_hook_that_deletes_its_own_container() {
    isorun_only!("runc runs poststart hooks in create");
    let mut bundle = hooked(&[], |_| String::new());
    let delete = on_itself(&bundle, &format!("delete --force {}", bundle.id));
    set_hook(&mut bundle, "poststart", &delete);
    bundle.create().ok();
    let begin = Instant::now();
    bundle.start().ok();
    assert!(begin.elapsed() < SOON);
    assert_eq!(bundle.status(), "none");
    bundle.assert_gone();
    // In the foreground: the program was killed, and there is nothing left to delete.
    bundle.run().code(137);
    bundle.assert_gone();
}

#[test]
fn a_poststop_hook_that_deletes_its_own_container() {
    let mut bundle = hooked(&[], |_| String::new());
    let delete = on_itself(&bundle, &format!("delete --force {}", bundle.id));
    set_hook(
        &mut bundle,
        "poststop",
        &format!("{delete} && echo done > $H/done"),
    );
    bundle.run_detached().ok();
    let begin = Instant::now();
    let out = bundle.delete_force().ok();
    assert!(begin.elapsed() < SOON, "{out:#?}");
    assert_eq!(read(&bundle, "done"), "done", "{out:#?}");
    bundle.assert_gone();
}

#[test]
fn a_container_that_is_deleted_while_a_hook_of_the_host_runs() {
    isorun_only!("runc has no record of a container while its hooks run");
    let bundle = hooked(&["createRuntime"], |_| {
        "echo $$ > $H/pid; exec sleep 300".to_string()
    });
    let creating = bundle.spawn_create();
    let hook: i32 = bundle.wait_file("pid").trim().parse().unwrap();
    let begin = Instant::now();
    bundle.delete_force().ok();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    let out = creating.finish().code(1);
    assert!(out.stderr.contains("first process has ended"), "{out:#?}");
    wait_for("the hook to be gone", || is_zombie(hook));
    bundle.assert_gone();
}

#[test]
fn a_container_that_is_deleted_while_a_hook_in_it_runs() {
    isorun_only!("runc has no record of a container while its hooks run");
    for stage in ["createContainer", "startContainer"] {
        let bundle = hooked(&[stage], |_| "echo in > $H/in; sleep 300".to_string());
        let running = bundle.spawn_run();
        bundle.wait_file("in");
        let begin = Instant::now();
        bundle.delete_force().ok();
        assert!(begin.elapsed() < SOON, "{stage}: {:?}", begin.elapsed());
        let out = running.finish();
        assert_ne!(out.code, 0, "{stage}: {out:#?}");
        bundle.assert_gone();
    }
}

/// A hook that lives on after the container had its work done in time: it is left to end.
#[test]
fn a_hook_that_kills_the_container_may_finish() {
    isorun_only!("runc has no record of a container while its hooks run");
    let mut bundle = hooked(&[], |_| String::new());
    let kill = on_itself(&bundle, &format!("kill {} KILL", bundle.id));
    set_hook(
        &mut bundle,
        "createRuntime",
        &format!("{kill}; sleep 0.2; echo done > $H/done"),
    );
    let out = bundle.create().code(1);
    assert_eq!(read(&bundle, "done"), "done");
    assert!(out.stderr.contains("ended before it was ready"), "{out:#?}");
    bundle.assert_gone();
}

#[test]
fn after_a_failure_poststop_hooks_run_once_and_may_look_at_nothing() {
    // Also where no hook on the host has run before.
    for stage in ["createRuntime", "createContainer"] {
        let mut bundle = hooked(&[stage], |_| "exit 1".to_string());
        set_hook(
            &mut bundle,
            "poststop",
            "cat >> $H/poststop; echo >> $H/poststop",
        );
        bundle.create().code(1);
        let text = read(&bundle, "poststop");
        if !runtime().isorun && text.is_empty() {
            skip!("this runc runs no poststop hooks after a failure");
        }
        let state: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(state["status"], "stopped", "{text}");
        assert_eq!(state["pid"].as_i64().unwrap_or(0), 0, "{text}");
        bundle.assert_gone();
    }
}

#[test]
fn without_arguments_the_path_is_the_name() {
    let mut bundle = hooked(&[], |_| String::new());
    let program = bundle.host("hook");
    let text = format!(
        "#!/bin/sh\ntr '\\0' ' ' < /proc/$$/cmdline > {}\n",
        bundle.host("argv").display()
    );
    fs::write(&program, text).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    bundle.set(
        "/hooks/createRuntime",
        json!([{"path": program, "env": ["PATH=/usr/bin:/bin"]}]),
    );
    bundle.create().ok();
    assert_eq!(
        read(&bundle, "argv"),
        format!("/bin/sh {}", program.display())
    );
}
