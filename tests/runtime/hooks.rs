//! Hooks at all six stages: order, namespaces, state, environment, directory, time limit, failure.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Bundle, is_zombie, runtime, wait_for};

pub const STAGES: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// A hook that runs a script with a PATH; `$H` is the host directory, under its name in the
/// namespace where the stage runs.
pub fn script(bundle: &Bundle, stage: &str, text: &str) -> Value {
    let host = match stage {
        "startContainer" => "/h".to_string(),
        _ => bundle.host("").to_str().unwrap().to_string(),
    };
    // The tag lets the leak check find a hook that outlives its container.
    let env = [
        "PATH=/usr/bin:/bin".to_string(),
        format!("H={host}"),
        format!("ISORUN_TEST_ID={}", bundle.id),
    ];
    json!({"path": "/bin/sh", "args": ["sh", "-c", text], "env": env})
}

/// A bundle with the host directory at /h and the same script as hook of every stage given.
pub fn hooked(stages: &[&str], text: impl Fn(&str) -> String) -> Bundle {
    let mut bundle = Bundle::sh(
        "readlink /proc/self/ns/mnt > /h/own.mnt; readlink /proc/self/ns/pid > /h/own.pid; sleep 100",
    );
    let host = bundle.host("").to_str().unwrap().to_string();
    bundle.mount("/h", "bind", &host, &["bind"]);
    for stage in stages {
        let hook = script(&bundle, stage, &text(stage));
        bundle.set(&format!("/hooks/{stage}"), json!([hook]));
    }
    bundle
}

fn read(bundle: &Bundle, name: &str) -> String {
    fs::read_to_string(bundle.host(name))
        .unwrap_or_default()
        .trim()
        .to_string()
}

#[test]
fn order_of_the_stages() {
    let bundle = hooked(&STAGES, |stage| format!("echo {stage} >> $H/order"));
    bundle.create().ok();
    let created = ["prestart", "createRuntime", "createContainer"];
    // runc runs poststart at the end of create, against the specification.
    let early = read(&bundle, "order").replace("\npoststart", "");
    assert_eq!(early.lines().collect::<Vec<_>>(), created);
    bundle.start().ok();
    bundle.wait_file("own.pid");
    if runtime().isorun {
        let late: Vec<String> = read(&bundle, "order")
            .lines()
            .skip(3)
            .map(str::to_string)
            .collect();
        assert_eq!(late, ["startContainer", "poststart"]);
    }
    bundle.delete_force().ok();
    assert_eq!(read(&bundle, "order").lines().last(), Some("poststop"));
    assert_eq!(read(&bundle, "order").lines().count(), 6, "each ran once");
}

#[test]
fn several_hooks_of_a_stage_run_in_order() {
    let mut bundle = hooked(&[], |_| String::new());
    for stage in STAGES {
        let hooks: Vec<Value> = (1..4)
            .map(|n| script(&bundle, stage, &format!("echo {n} >> $H/{stage}")))
            .collect();
        bundle.set(&format!("/hooks/{stage}"), json!(hooks));
    }
    bundle.run_detached().ok();
    bundle.wait_file("own.pid");
    bundle.delete_force().ok();
    for stage in STAGES {
        assert_eq!(read(&bundle, stage), "1\n2\n3", "{stage}");
    }
}

#[test]
fn namespaces_of_the_stages() {
    let bundle = hooked(&STAGES, |stage| {
        format!(
            "readlink /proc/self/ns/mnt > $H/{stage}.mnt; readlink /proc/self/ns/pid > $H/{stage}.pid"
        )
    });
    bundle.run_detached().ok();
    bundle.wait_file("own.pid");
    bundle.delete_force().ok();
    let host = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
    for stage in ["prestart", "createRuntime", "poststart", "poststop"] {
        assert_eq!(
            read(&bundle, &format!("{stage}.mnt")),
            host("mnt").to_str().unwrap(),
            "{stage}"
        );
        assert_eq!(
            read(&bundle, &format!("{stage}.pid")),
            host("pid").to_str().unwrap(),
            "{stage}"
        );
    }
    for stage in ["createContainer", "startContainer"] {
        let seen = read(&bundle, &format!("{stage}.mnt"));
        assert_eq!(seen, read(&bundle, "own.mnt"), "{stage}: mount namespace");
    }
    assert_eq!(
        read(&bundle, "startContainer.pid"),
        read(&bundle, "own.pid")
    );
}

#[test]
fn create_container_hook_sees_the_host_and_start_container_hook_the_container() {
    let mut bundle = hooked(&[], |_| String::new());
    let rootfs = bundle.rootfs("");
    let before = format!(
        "test -f {}/bin/busybox && test -d /work -o -d /usr && echo host > $H/create",
        rootfs.display()
    );
    let after = "test ! -e /usr && test -f /bin/busybox && echo container > $H/start";
    let (before, after) = (
        script(&bundle, "createContainer", &before),
        script(&bundle, "startContainer", after),
    );
    bundle
        .set("/hooks/createContainer", json!([before]))
        .set("/hooks/startContainer", json!([after]));
    bundle.run_detached().ok();
    bundle.wait_file("own.pid");
    assert_eq!(read(&bundle, "create"), "host");
    assert_eq!(read(&bundle, "start"), "container");
}

#[test]
fn state_on_stdin() {
    let mut bundle = hooked(&STAGES, |stage| format!("cat > $H/{stage}.json"));
    bundle.set("/annotations", json!({"org.example.note": "é"}));
    bundle.create().ok();
    let pid = bundle.pid();
    bundle.start().ok();
    bundle.wait_file("own.pid");
    bundle.delete_force().ok();
    let statuses = [
        "creating", "creating", "creating", "created", "running", "stopped",
    ];
    for (stage, status) in STAGES.iter().zip(statuses) {
        let text = read(&bundle, &format!("{stage}.json"));
        let state: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{stage}: {error}: {text}"));
        assert_eq!(state["id"], json!(bundle.id), "{stage}");
        // runc: see order_of_the_stages.
        let early = !runtime().isorun && *stage == "poststart";
        assert_eq!(
            state["status"],
            if early { "created" } else { status },
            "{stage}"
        );
        assert_eq!(state["bundle"], json!(bundle.bundle_dir()), "{stage}");
        assert_eq!(state["annotations"]["org.example.note"], "é", "{stage}");
        assert!(
            state["ociVersion"].as_str().unwrap().starts_with("1."),
            "{stage}"
        );
        if ["prestart", "createRuntime", "poststart"].contains(stage) {
            assert_eq!(
                state["pid"], pid,
                "{stage}: the pid that the runtime's namespace knows"
            );
        }
    }
}

#[test]
fn environment_is_exactly_what_is_given() {
    let mut bundle = hooked(&[], |_| String::new());
    for stage in ["createRuntime", "createContainer"] {
        let file = bundle.host(stage);
        let dump = format!("tr '\\0' '\\n' < /proc/self/environ > {}", file.display());
        bundle.set(
            &format!("/hooks/{stage}"),
            json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("exec /bin/sh -c \"{dump}\"")], "env": ["ONLY=this", "B=2"]}]),
        );
    }
    bundle.run_detached().ok();
    for stage in ["createRuntime", "createContainer"] {
        let seen = read(&bundle, stage);
        // sh sets PWD for what it executes; everything else was given.
        let mut seen: Vec<&str> = seen
            .lines()
            .filter(|line| !line.starts_with("PWD="))
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, ["B=2", "ONLY=this"], "{stage}");
    }
}

/// CVE-2025-23266: a hook that takes the caller's, or the image's, environment.
#[test]
fn no_environment_given_is_an_empty_one() {
    isorun_only!("runc before 1.3 gives hooks without env the environment of runc");
    let mut bundle = hooked(&[], |_| String::new());
    for stage in ["createRuntime", "createContainer"] {
        let file = bundle.host(stage);
        let dump = format!(
            "/usr/bin/tr '\\0' '\\n' < /proc/$$/environ > {0}; echo done >> {0}",
            file.display()
        );
        bundle.set(
            &format!("/hooks/{stage}"),
            json!([{"path": "/bin/sh", "args": ["sh", "-c", dump]}]),
        );
    }
    bundle.run_detached().ok();
    for stage in ["createRuntime", "createContainer"] {
        assert_eq!(read(&bundle, stage), "done", "{stage}");
    }
}

#[test]
fn directory_of_the_hooks() {
    let bundle = hooked(&STAGES, |stage| format!("/bin/pwd > $H/{stage}"));
    bundle.run_detached().ok();
    bundle.wait_file("own.pid");
    bundle.delete_force().ok();
    let here = bundle.bundle_dir();
    for stage in ["prestart", "createRuntime", "createContainer"] {
        if stage == "createContainer" && !runtime().isorun {
            continue; // runc: the rootfs, before the pivot
        }
        // Never a directory that the image controls.
        let seen = read(&bundle, stage);
        assert!(
            seen == here.to_str().unwrap() || seen == "/",
            "{stage}: {seen}"
        );
    }
    let seen = read(&bundle, "startContainer");
    assert_eq!(seen, "/", "startContainer");
    assert_eq!(read(&bundle, "createRuntime"), here.to_str().unwrap());
}

#[test]
fn arguments_are_as_given() {
    let mut bundle = hooked(&[], |_| String::new());
    let file = bundle.host("argv");
    let text = format!(
        "tr '\\0' '|' < /proc/self/cmdline > {}; echo x $0 \"$1\" >> {}",
        file.display(),
        file.display()
    );
    bundle.set("/hooks/createRuntime", json!([{"path": "/bin/bash", "args": ["zero", "-c", text, "name", "a b"], "env": ["PATH=/bin"]}]));
    if !std::path::Path::new("/bin/bash").exists() {
        skip!("no bash on this host");
    }
    bundle.run_detached().ok();
    assert!(
        read(&bundle, "argv").ends_with("x name a b"),
        "{}",
        read(&bundle, "argv")
    );
}

#[test]
fn a_hook_that_fails_ends_the_creation() {
    for stage in ["prestart", "createRuntime", "createContainer"] {
        let bundle = hooked(&[stage], |_| "echo told >&2; exit 3".to_string());
        let out = bundle.create().code(1);
        assert!(out.stderr.contains("hook"), "{stage}: {out:#?}");
        assert_eq!(bundle.status(), "none", "{stage}");
        bundle.assert_gone();
    }
}

#[test]
fn later_hooks_do_not_run_after_a_failure() {
    let mut bundle = hooked(&[], |_| String::new());
    let (fails, marks) = (
        script(&bundle, "createRuntime", "exit 1"),
        script(&bundle, "createRuntime", "echo ran > $H/later"),
    );
    bundle.set("/hooks/createRuntime", json!([fails, marks]));
    let marks = script(&bundle, "createContainer", "echo ran > $H/later");
    bundle.set("/hooks/createContainer", json!([marks]));
    bundle.create().code(1);
    assert_eq!(read(&bundle, "later"), "");
    bundle.assert_gone();
}

#[test]
fn a_start_container_hook_that_fails_keeps_the_program_from_running() {
    let mut bundle = hooked(&["startContainer"], |_| "exit 3".to_string());
    bundle.args(&["sh", "-c", "echo ran > /h/program"]);
    let out = bundle.run();
    assert_ne!(out.code, 0, "{out:#?}");
    assert!(out.stderr.contains("hook"), "{out:#?}");
    assert_eq!(read(&bundle, "program"), "");
    bundle.assert_gone();
}

#[test]
fn a_poststart_hook_that_fails_ends_the_container() {
    let bundle = hooked(&["poststart"], |_| "exit 3".to_string());
    let out = bundle.run().code(1);
    assert!(out.stderr.contains("hook"), "{out:#?}");
    bundle.assert_gone();
}

#[test]
fn a_poststop_hook_that_fails_stops_neither_the_others_nor_delete() {
    let mut bundle = hooked(&[], |_| String::new());
    let (fails, marks) = (
        script(&bundle, "poststop", "exit 1"),
        script(&bundle, "poststop", "echo ran > $H/later"),
    );
    bundle.set("/hooks/poststop", json!([fails, marks]));
    bundle.run_detached().ok();
    bundle.delete_force().ok();
    bundle.assert_gone();
    if runtime().isorun {
        // The specification: log the error, and continue with the remaining hooks.
        assert_eq!(read(&bundle, "later"), "ran");
    }
}

#[test]
fn a_hook_that_hangs_is_killed_after_its_timeout() {
    for stage in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = hooked(&[stage], |_| "echo $$ > $H/pid; exec sleep 300".to_string());
        bundle.set(&format!("/hooks/{stage}/0/timeout"), json!(1));
        let out = bundle.create().code(1);
        assert!(out.stderr.contains("time"), "{stage}: {out:#?}");
        if stage != "createContainer" {
            let pid: i32 = read(&bundle, "pid").parse().unwrap();
            wait_for("the hook to be gone", || is_zombie(pid));
        }
        bundle.assert_gone();
    }
}

#[test]
fn a_hook_within_its_timeout_is_left_alone() {
    let mut bundle = hooked(&["createRuntime"], |_| {
        "sleep 0.3; echo done > $H/slow".to_string()
    });
    bundle.set("/hooks/createRuntime/0/timeout", json!(30));
    bundle.create().ok();
    assert_eq!(read(&bundle, "slow"), "done");
}

#[test]
fn a_hook_may_close_its_stdin_and_write_much() {
    let bundle = hooked(&["createRuntime"], |_| {
        "exec <&-; i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done".to_string()
    });
    bundle.create().ok();
}

#[test]
fn create_runtime_hook_can_work_on_the_containers_network() {
    // What CNI plug-ins and Podman do: the namespaces of the pid in the state are there already.
    let bundle = hooked(&["createRuntime"], |_| {
        "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/' | head -1); readlink /proc/$pid/ns/net > $H/net".to_string()
    });
    bundle.create().ok();
    let seen = read(&bundle, "net");
    let inside = fs::read_link(format!("/proc/{}/ns/net", bundle.pid())).unwrap();
    assert_eq!(seen, inside.to_str().unwrap());
    assert_ne!(
        seen,
        fs::read_link("/proc/self/ns/net")
            .unwrap()
            .to_str()
            .unwrap()
    );
}

#[test]
fn hooks_start_with_no_signal_blocked() {
    let mut bundle = Bundle::sh("true");
    // No shell, which would unblock them itself.
    bundle.set(
        "/hooks",
        json!({"prestart": [{
            "path": "/bin/busybox",
            "args": ["grep", "-q", "^SigBlk:.0000000000000000$", "/proc/self/status"],
        }]}),
    );
    bundle.run().ok();
}

/// A hook writes files on the host: a mask of 0 would let everybody write them.
#[test]
fn hooks_have_the_callers_umask() {
    let mut bundle = Bundle::new();
    let file = bundle.host("umask").to_str().unwrap().to_string();
    for stage in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        let text = format!("echo {stage} $(umask) >> {file}");
        bundle.set(
            &format!("/hooks/{stage}"),
            json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/usr/bin:/bin"]}]),
        );
    }
    bundle.run().ok();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("Umask:\t"))
        .unwrap();
    let text = fs::read_to_string(bundle.host("umask")).unwrap();
    assert_eq!(text.lines().count(), 5, "{text}");
    for line in text.lines() {
        assert!(line.ends_with(&format!(" {own}")), "{text}");
    }
}
