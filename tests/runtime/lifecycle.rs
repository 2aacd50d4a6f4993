//! create, start, run, state, kill, delete, list, spec, features, pid files.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Bundle, Output, is_zombie, runtime, say_skipped, wait_for};

#[test]
fn create_start_stop_delete() {
    let mut bundle = Bundle::sh("echo ran > /h/ran; trap 'exit 0' TERM; sleep 100 & wait");
    let host = bundle.host("").to_str().unwrap().to_string();
    bundle.mount("/h", "bind", &host, &["bind"]);
    assert_eq!(bundle.status(), "none");
    bundle.create().ok();
    assert_eq!(bundle.status(), "created");
    assert!(!bundle.host("ran").exists(), "the program waits for start");
    bundle.start().ok();
    bundle.wait_file("ran");
    assert_eq!(bundle.status(), "running");
    bundle.kill("TERM").ok();
    bundle.wait_status("stopped");
    bundle.delete().ok();
    assert_eq!(bundle.status(), "none");
    bundle.assert_gone();
}

#[test]
fn state_has_what_engines_read() {
    let mut bundle = Bundle::sh("sleep 100");
    bundle.set("/annotations", json!({"a": "b"}));
    bundle.create().ok();
    let state = bundle.state();
    assert_eq!(state["id"], json!(bundle.id));
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], json!(bundle.bundle_dir()));
    assert_eq!(
        state["rootfs"],
        json!(bundle.rootfs("").to_str().unwrap().trim_end_matches('/'))
    );
    assert_eq!(state["annotations"], json!({"a": "b"}));
    assert!(
        state["ociVersion"].as_str().unwrap().starts_with("1."),
        "{state}"
    );
    assert!(state["owner"].is_string(), "{state}");
    let created = state["created"].as_str().unwrap();
    assert!(
        created.len() > 19 && &created[10..11] == "T" && created.ends_with('Z'),
        "{created}"
    );
    let pid = state["pid"].as_i64().unwrap();
    assert!(
        fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok(),
        "{pid}"
    );
    bundle.delete_force().ok();
}

#[test]
fn a_stopped_container_has_pid_0() {
    let bundle = Bundle::sh("true");
    bundle.run_detached().ok();
    bundle.wait_status("stopped");
    assert_eq!(bundle.state()["pid"], 0);
    bundle.delete().ok();
}

#[test]
fn run_deletes_the_container_at_its_end() {
    let bundle = Bundle::sh("true");
    bundle.run().ok();
    assert_eq!(bundle.status(), "none");
    bundle.assert_gone();
}

#[test]
fn run_with_keep_leaves_it() {
    since_runc!(1, 1, "--keep");
    let bundle = Bundle::sh("exit 4");
    bundle.write();
    let dir = bundle.bundle_dir();
    bundle
        .call(&[
            "run",
            "--keep",
            "--bundle",
            dir.to_str().unwrap(),
            &bundle.id,
        ])
        .code(4);
    assert_eq!(bundle.status(), "stopped");
    bundle.delete().ok();
    bundle.assert_gone();
}

#[test]
fn bundle_is_the_current_directory_by_default() {
    let bundle = Bundle::sh("echo here");
    bundle.write();
    let mut command = bundle.command(&["run", &bundle.id]);
    command.current_dir(bundle.bundle_dir());
    assert_eq!(
        crate::harness::run_command(command, &bundle.dir.join("io"))
            .ok()
            .text(),
        "here"
    );
}

#[test]
fn relative_bundle_and_short_flags() {
    let bundle = Bundle::sh("sleep 100");
    bundle.write();
    bundle.call(&["run", "-d", "-b", "bundle", &bundle.id]).ok();
    assert_eq!(bundle.state()["bundle"], json!(bundle.bundle_dir()));
    bundle.call(&["delete", "-f", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn flags_with_an_equals_sign() {
    let bundle = Bundle::sh("echo ok");
    bundle.write();
    let flag = format!("--bundle={}", bundle.bundle_dir().display());
    assert_eq!(bundle.call(&["run", &flag, &bundle.id]).ok().text(), "ok");
}

#[test]
fn pid_files_of_create_and_run() {
    for (command, extra) in [("create", None), ("run", Some("--detach"))] {
        let bundle = Bundle::sh("sleep 100");
        bundle.write();
        let (file, dir) = (bundle.host("pid"), bundle.bundle_dir());
        let mut args = vec![command];
        args.extend(extra);
        args.extend([
            "--pid-file",
            file.to_str().unwrap(),
            "--bundle",
            dir.to_str().unwrap(),
            &bundle.id,
        ]);
        bundle.call(&args).ok();
        // conmon reads the whole file as a number: no newline.
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            bundle.pid().to_string(),
            "{command}"
        );
    }
}

#[test]
fn pid_file_of_a_foreground_run() {
    let bundle = Bundle::sh("sleep 100");
    bundle.write();
    let (file, dir) = (bundle.host("pid"), bundle.bundle_dir());
    let running = bundle.spawn(&[
        "run",
        "--pid-file",
        file.to_str().unwrap(),
        "--bundle",
        dir.to_str().unwrap(),
        &bundle.id,
    ]);
    let pid: i32 = bundle.wait_file("pid").parse().unwrap();
    bundle.wait_status("running");
    assert_eq!(bundle.pid(), pid);
    bundle.kill("KILL").ok();
    running.finish().code(137);
}

#[test]
fn detached_run_returns_while_the_program_runs() {
    let bundle = Bundle::sh("sleep 100");
    bundle.run_detached().ok();
    assert_eq!(bundle.status(), "running");
    let pid = bundle.pid();
    bundle.kill("KILL").ok();
    wait_for("the end", || is_zombie(pid));
    bundle.wait_status("stopped");
}

#[test]
fn kill_by_name_and_number() {
    for signal in ["TERM", "SIGTERM", "15", "term", "sigterm"] {
        let mut bundle = Bundle::sh(
            "trap 'echo got > /h/got; exit 0' TERM; echo up > /h/up; while :; do sleep 0.05; done",
        );
        let host = bundle.host("").to_str().unwrap().to_string();
        bundle.mount("/h", "bind", &host, &["bind"]);
        bundle.run_detached().ok();
        bundle.wait_file("up");
        bundle.kill(signal).ok();
        bundle.wait_file("got");
        bundle.wait_status("stopped");
    }
}

#[test]
fn kill_without_a_signal_is_term() {
    let mut bundle = Bundle::sh(
        "trap 'echo got > /h/got; exit 0' TERM; echo up > /h/up; while :; do sleep 0.05; done",
    );
    let host = bundle.host("").to_str().unwrap().to_string();
    bundle.mount("/h", "bind", &host, &["bind"]);
    bundle.run_detached().ok();
    bundle.wait_file("up");
    bundle.call(&["kill", &bundle.id]).ok();
    bundle.wait_file("got");
}

#[test]
fn kill_all_reaches_every_process() {
    let mut bundle = Bundle::sh(
        "sh -c 'trap \"echo got > /h/got; exit 0\" USR1; echo up > /h/up; while :; do sleep 0.05; done' & trap : USR1; while :; do wait; sleep 0.05; done",
    );
    let host = bundle.host("").to_str().unwrap().to_string();
    bundle.mount("/h", "bind", &host, &["bind"]);
    bundle.run_detached().ok();
    bundle.wait_file("up");
    bundle.call(&["kill", "--all", &bundle.id, "USR1"]).ok();
    bundle.wait_file("got");
}

#[test]
fn list_as_table_json_and_ids() {
    let bundle = Bundle::sh("sleep 100");
    let header = bundle.call(&["list"]).ok().stdout;
    assert_eq!(
        header.split_whitespace().collect::<Vec<_>>(),
        ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    );
    assert_eq!(bundle.call(&["list", "--quiet"]).ok().stdout, "");
    assert_eq!(
        bundle.call(&["list", "--format", "json"]).ok().text(),
        "null"
    );
    bundle.create().ok();
    let table = bundle.call(&["list"]).ok().stdout;
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    let pid = bundle.pid().to_string();
    assert_eq!(
        row[..4],
        [
            &bundle.id,
            &pid,
            "created",
            bundle.bundle_dir().to_str().unwrap()
        ]
    );
    assert_eq!(bundle.call(&["list", "-q"]).ok().text(), bundle.id);
    let json: Value =
        serde_json::from_str(&bundle.call(&["list", "-f", "json"]).ok().stdout).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert_eq!(json[0]["id"], json!(bundle.id));
    assert_eq!(json[0]["status"], "created");
    assert_eq!(json[0]["owner"], "root");
    assert_eq!(json[0]["pid"].to_string(), pid);
}

#[test]
fn list_of_a_state_directory_that_is_not_there() {
    since_runc!(1, 3, "an error for a --root that is not there");
    let bundle = Bundle::new();
    fs::remove_dir(bundle.state_root()).unwrap();
    let out = bundle.call(&["list", "-q"]).code(1);
    assert_eq!(out.stdout, "");
    assert!(
        out.stderr
            .to_lowercase()
            .contains("no such file or directory"),
        "{out:#?}"
    );
    assert!(!bundle.state_root().exists());
}

#[test]
fn two_containers_of_one_bundle() {
    let (bundle, second) = (Bundle::sh("sleep 100"), Bundle::new());
    bundle.run_detached().ok();
    let dir = bundle.bundle_dir();
    let id = second.id.clone();
    bundle
        .call(&["run", "-d", "--bundle", dir.to_str().unwrap(), &id])
        .ok();
    let list = bundle.call(&["list", "-q"]).ok().stdout;
    assert_eq!(list.lines().count(), 2);
    bundle.call(&["delete", "--force", &id]).ok();
    assert_eq!(bundle.status(), "running");
    second.assert_gone();
}

#[test]
fn delete_force_of_each_status() {
    for status in ["none", "created", "running", "stopped"] {
        let bundle = Bundle::sh(if status == "stopped" {
            "true"
        } else {
            "sleep 100"
        });
        match status {
            "none" => {}
            "created" => drop(bundle.create().ok()),
            _ => drop(bundle.run_detached().ok()),
        }
        bundle.wait_status(status);
        bundle.delete_force().ok();
        bundle.assert_gone();
    }
}

#[test]
fn delete_of_a_created_container() {
    // runc deletes what was never started; its init is killed.
    let bundle = Bundle::sh("sleep 100");
    bundle.create().ok();
    bundle.delete().ok();
    bundle.assert_gone();
}

#[test]
fn a_created_container_can_be_killed() {
    let bundle = Bundle::sh("sleep 100");
    bundle.create().ok();
    bundle.kill("KILL").ok();
    bundle.wait_status("stopped");
    bundle.delete().ok();
    bundle.assert_gone();
}

#[test]
fn a_created_container_ends_when_it_is_asked_to() {
    if !runtime().isorun && runtime().path.ends_with("crun") {
        say_skipped("crun's waiting process ignores it, as the first one of a pid namespace");
        return;
    }
    for signal in ["TERM", "INT", "HUP"] {
        let bundle = Bundle::sh("sleep 100");
        bundle.create().ok();
        bundle.kill(signal).ok();
        bundle.wait_status("stopped");
        refused(bundle.start(), "cannot start a container that has stopped");
        bundle.delete().ok();
        bundle.assert_gone();
    }
    // The program has none of this: its shell, the first process, drops what it has no handler for.
    let bundle = Bundle::sh("sleep 1 & wait; echo on");
    let running = bundle.spawn_run();
    bundle.wait_status("running");
    bundle.kill("HUP").ok();
    assert_eq!(running.finish().ok().text(), "on");
}

/// Fails unless the command was refused with runc's status and the words.
#[track_caller]
fn refused(out: Output, words: &str) {
    let out = out.code(1);
    assert!(
        out.stderr.to_lowercase().contains(words),
        "{words:?} is not said: {out:#?}"
    );
    if runtime().isorun {
        assert_eq!(out.stderr.lines().count(), 1, "one sentence: {out:#?}");
    }
}

#[test]
fn commands_on_a_container_that_is_not_there() {
    let bundle = Bundle::new();
    for command in [["state"].as_slice(), &["start"], &["kill"], &["delete"]] {
        let mut args = command.to_vec();
        args.push(&bundle.id);
        // The phrase that containerd looks for.
        refused(bundle.call(&args), "does not exist");
    }
}

#[test]
fn commands_in_the_wrong_status() {
    let bundle = Bundle::sh("sleep 100");
    bundle.run_detached().ok();
    refused(bundle.start(), "cannot start");
    refused(bundle.delete(), "cannot delete");
    assert_eq!(
        bundle.status(),
        "running",
        "refused commands change nothing"
    );
    refused(bundle.create(), "exist");
    refused(bundle.run(), "exist");
    assert_eq!(
        bundle.status(),
        "running",
        "refused commands change nothing"
    );
    bundle.kill("KILL").ok();
    bundle.wait_status("stopped");
    refused(bundle.start(), "cannot start");
    // The phrase that containerd and Docker look for.
    refused(bundle.kill("TERM"), "container not running");
    refused(bundle.create(), "exist");
    bundle.delete().ok();
    bundle.assert_gone();
}

#[test]
fn unknown_signal_is_refused() {
    let bundle = Bundle::sh("sleep 100");
    bundle.run_detached().ok();
    for signal in ["FOO", "SIGNOPE", "-", "0x9"] {
        refused(bundle.kill(signal), "signal");
    }
    assert_eq!(bundle.status(), "running");
}

#[test]
fn spec_writes_a_config_that_runs() {
    let mut bundle = Bundle::new();
    let dir = bundle.bundle_dir();
    bundle
        .call(&["spec", "--bundle", dir.to_str().unwrap()])
        .ok();
    let text = fs::read_to_string(dir.join("config.json")).unwrap();
    bundle.config = serde_json::from_str(&text).unwrap();
    assert_eq!(
        bundle.config["root"],
        json!({"path": "rootfs", "readonly": true})
    );
    let out = bundle.call(&["spec", "--bundle", dir.to_str().unwrap()]);
    refused(out, "exist");
    bundle
        .set("/process/terminal", json!(false))
        .args(&["echo", "runs"]);
    assert_eq!(bundle.run().ok().text(), "runs");
}

#[test]
fn features_is_json_with_what_is_there() {
    since_runc!(1, 1, "features");
    let bundle = Bundle::new();
    let features: Value = serde_json::from_str(&bundle.call(&["features"]).ok().stdout).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    let list = |path: &str| {
        features
            .pointer(path)
            .unwrap_or_else(|| panic!("{path}"))
            .clone()
    };
    for hook in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ] {
        assert!(
            list("/hooks").as_array().unwrap().contains(&json!(hook)),
            "{hook}"
        );
    }
    for namespace in ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"] {
        assert!(
            list("/linux/namespaces")
                .as_array()
                .unwrap()
                .contains(&json!(namespace)),
            "{namespace}"
        );
    }
    assert!(
        list("/linux/capabilities")
            .as_array()
            .unwrap()
            .contains(&json!("CAP_SYS_ADMIN"))
    );
    assert_eq!(list("/linux/seccomp/enabled"), true);
    for action in ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_NOTIFY"] {
        assert!(
            list("/linux/seccomp/actions")
                .as_array()
                .unwrap()
                .contains(&json!(action)),
            "{action}"
        );
    }
    assert!(
        list("/mountOptions")
            .as_array()
            .unwrap()
            .contains(&json!("rbind"))
    );
}

#[test]
fn version_in_runcs_form() {
    let bundle = Bundle::new();
    let said = bundle.call(&["--version"]).ok().stdout;
    let first = said.lines().next().unwrap();
    let name = if runtime().isorun {
        "isorun version "
    } else {
        "runc version "
    };
    assert!(first.starts_with(name), "{said}");
    assert!(
        said.lines().any(|line| line.starts_with("spec: 1.")),
        "{said}"
    );
}

#[test]
fn run_passes_the_status_on_when_somebody_deletes_the_container() {
    let bundle = Bundle::sh("sleep 60");
    let running = bundle.spawn_run();
    bundle.wait_status("running");
    bundle.delete_force().ok();
    running.finish().code(137);
    bundle.assert_gone();
}

#[test]
fn pid_file_is_not_written_through_a_link() {
    let bundle = Bundle::sh("true");
    let victim = bundle.host("victim");
    std::fs::write(&victim, "keep").unwrap();
    std::os::unix::fs::symlink(&victim, bundle.host(".x.pid")).unwrap();
    bundle.write();
    let (dir, file) = (bundle.bundle_dir(), bundle.host("x.pid"));
    let out = bundle.call(&[
        "run",
        "--bundle",
        dir.to_str().unwrap(),
        "--pid-file",
        file.to_str().unwrap(),
        &bundle.id,
    ]);
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "keep");
    // runc refuses, isorun replaces the link.
    assert!(out.code == 0 || !file.exists());
}

/// "This property is REQUIRED when start is called" (config.md, "Process"); "This operation MUST generate
/// an error if process was not set" (runtime.md, "Start").
#[test]
fn without_a_process_it_is_created_and_cannot_be_started() {
    isorun_only!("runc wants a process when the container is created");
    let mut bundle = Bundle::new();
    bundle.unset("/process");
    let out = bundle.run().code(1);
    assert!(
        out.stderr.contains("config.json: process: missing"),
        "{out:#?}"
    );
    bundle.assert_gone();
    bundle.create().ok();
    assert_eq!(bundle.status(), "created");
    let out = bundle.start().code(1);
    assert!(
        out.stderr.contains("config.json: process: missing"),
        "{out:#?}"
    );
    assert_eq!(bundle.status(), "created", "nothing was set going");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

/// `--debug`: the plan, a line for each step, in the log and on stderr; without it not a word.
#[test]
fn debug_tells_what_is_done() {
    isorun_only!("its steps are isorun's");
    let mut bundle = Bundle::new();
    bundle.args(&["sh", "-c", "true", "a-secret"]).write();
    let log = bundle.host("log");
    let dir = bundle.bundle_dir();
    let run = |debug: &[&str]| {
        let _ = fs::remove_file(&log);
        let mut args = debug.to_vec();
        args.extend([
            "--log",
            log.to_str().unwrap(),
            "--log-format",
            "json",
            "run",
        ]);
        args.extend(["--bundle", dir.to_str().unwrap(), &bundle.id]);
        let out = bundle.call(&args).ok();
        (fs::read_to_string(&log).unwrap_or_default(), out.stderr)
    };
    let (told, stderr) = run(&["--debug"]);
    let lines: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    assert!(lines.iter().all(|line| line["level"] == "debug"), "{told}");
    let pivot = |text: &str| text.contains("plan: ") && text.contains("pivot_root");
    assert!(
        lines
            .iter()
            .any(|line| pivot(line["msg"].as_str().unwrap())),
        "{told}"
    );
    assert!(pivot(&stderr), "{stderr}");
    // Engines keep the log: the program's arguments are not for it.
    assert!(
        !told.contains("a-secret") && !stderr.contains("a-secret"),
        "{told}"
    );
    assert!(told.contains("plan: program    sh (3 arguments)"), "{told}");
    assert_eq!(run(&[]), (String::new(), String::new()));
}
