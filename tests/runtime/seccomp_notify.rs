//! Filters that ask an agent: what the agent is told, and agents that refuse, leave or are not there.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, Running, probe, runtime, wait_for};

/// A filter that asks the agent at `socket` for these calls.
fn filter(socket: &Path, calls: &[&str]) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "listenerPath": socket, "syscalls": [{"names": calls, "action": "SCMP_ACT_NOTIFY"}]})
}

/// An agent that serves one listener: answers with an errno, says `continue`, or takes it and leaves.
fn agent(bundle: &Bundle, name: &str, answer: &str) -> Running {
    let socket = bundle.host(name);
    let mut command = Command::new(probe().unwrap());
    command.arg("agent").arg(&socket).arg(answer);
    command.env("ISORUN_TEST_ID", &bundle.id);
    let agent = Running::start(command, &bundle.dir.join("io"));
    wait_for("the agent's socket", || socket.exists());
    agent
}

fn told(agent: Running) -> Value {
    wait_for("the agent to be told", || agent.stdout().contains('\n'));
    let text = agent.stdout();
    serde_json::from_str(text.lines().next().unwrap()).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// config-linux.md, "The Container Process State", and runtime.md, "State".
#[test]
fn what_the_agent_is_told() {
    let mut bundle = Bundle::new();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    for metadata in [Some("opaque \"data\" é"), None] {
        let name = format!("agent.{}", metadata.is_some());
        let agent = agent(&bundle, &name, "44");
        bundle.args(&["/probe", "syscall", "111"]);
        bundle.set("/annotations", json!({"org.example.note": "x"}));
        bundle.set("/linux/seccomp", filter(&bundle.host(&name), &["getpgrp"]));
        if let Some(metadata) = metadata {
            bundle.set("/linux/seccomp/listenerMetadata", json!(metadata));
        }
        assert_eq!(bundle.run().ok().text(), "ret -1 errno 44");
        let said = told(agent);
        assert_eq!(said["metadata"].as_str(), metadata, "{said}");
        assert_eq!(said["fds"], json!(["seccompFd"]), "{said}");
        let state = &said["state"];
        for version in [&said["ociVersion"], &state["ociVersion"]] {
            assert!(version.as_str().unwrap().starts_with("1."), "{said}");
        }
        assert!(said["pid"].as_i64().unwrap() > 1, "{said}");
        assert_eq!(said["pid"], state["pid"], "{said}");
        assert_eq!(state["id"], json!(bundle.id), "{said}");
        assert_eq!(state["status"], "creating", "{said}");
        assert_eq!(state["bundle"], json!(bundle.bundle_dir()), "{said}");
        assert_eq!(state["annotations"]["org.example.note"], "x", "{said}");
    }
}

/// The pid is the one that the runtime's namespaces know, and the listener serves that process.
#[test]
fn the_pid_is_the_hosts() {
    let mut bundle = Bundle::sh("sleep 100");
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    let agent = agent(&bundle, "agent", "continue");
    bundle.set(
        "/linux/seccomp",
        filter(&bundle.host("agent"), &["getpgrp"]),
    );
    bundle.create().ok();
    assert_eq!(told(agent)["pid"], json!(bundle.pid()));
}

/// Calls that the runtime makes itself between the filter and the program: the agent is asked, too.
#[test]
fn the_exec_itself_may_be_asked_for() {
    let mut bundle = Bundle::sh("echo in");
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    for no_new_privileges in [true, false] {
        let name = format!("agent.{no_new_privileges}");
        let agent = agent(&bundle, &name, "continue");
        bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        bundle.set(
            "/linux/seccomp",
            filter(&bundle.host(&name), &["execve", "chdir"]),
        );
        assert_eq!(bundle.run().ok().text(), "in");
        // execve
        wait_for("the agent to be asked", || {
            agent.stdout().contains("asked 59")
        });
    }
}

#[test]
fn an_agent_that_refuses_the_exec() {
    let mut bundle = Bundle::sh("echo in");
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    // EACCES
    let _agent = agent(&bundle, "agent", "13");
    bundle.set("/linux/seccomp", filter(&bundle.host("agent"), &["execve"]));
    let out = bundle.run();
    assert_ne!(out.code, 0, "{out:#?}");
    assert_eq!(out.stdout, "");
    if runtime().isorun {
        assert!(out.stderr.contains("exec /bin/sh: EACCES"), "{out:#?}");
    }
    bundle.assert_gone();
}

/// The kernel answers for a listener that nobody has any more.
#[test]
fn an_agent_that_leaves() {
    let mut bundle = Bundle::new();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    let agent = agent(&bundle, "agent", "leave");
    bundle.args(&["sh", "-c", "sleep 0.3; exec /probe syscall 111"]);
    bundle.set(
        "/linux/seccomp",
        filter(&bundle.host("agent"), &["getpgrp"]),
    );
    // ENOSYS
    assert_eq!(bundle.run().ok().text(), "ret -1 errno 38");
    agent.finish().ok();
}

#[test]
fn agents_that_are_not_there() {
    let bundle = Bundle::new();
    let refused = bundle.host("refused");
    // Bound once, and nobody listens any more.
    drop(UnixListener::bind(&refused).unwrap());
    let file = bundle.host("file");
    std::fs::write(&file, "").unwrap();
    let long = bundle.host(&"x".repeat(200));
    for (socket, errno) in [
        (bundle.host("nobody"), "ENOENT"),
        (refused, "ECONNREFUSED"),
        (file, "ECONNREFUSED"),
        (long, "ENAMETOOLONG"),
    ] {
        let mut bundle = Bundle::sh("echo ran");
        bundle.set("/linux/seccomp", filter(&socket, &["getpgrp"]));
        for out in [bundle.create(), bundle.run()] {
            let out = out.code(1);
            assert_eq!(out.stdout, "", "{out:#?}");
            if runtime().isorun {
                let text = "linux.seccomp.listenerPath: send the listener to ";
                assert!(
                    out.stderr.contains(text) && out.stderr.contains(errno),
                    "{out:#?}"
                );
            }
            bundle.assert_gone();
        }
    }
}

#[test]
fn what_cannot_be_asked_for_is_refused() {
    let socket = Path::new("/nonexistent");
    for (filter, field) in [
        (filter(socket, &["write"]), "linux.seccomp.syscalls[0]"),
        (
            {
                let mut filter = filter(socket, &["getpgrp"]);
                filter.as_object_mut().unwrap().remove("listenerPath");
                filter
            },
            "linux.seccomp.listenerPath",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/nonexistent"}),
            "linux.seccomp.defaultAction",
        ),
    ] {
        let mut bundle = Bundle::new();
        bundle.set("/linux/seccomp", filter.clone());
        let out = bundle.run().code(1);
        assert!(
            !runtime().isorun || out.stderr.contains(field),
            "{filter}: {out:#?}"
        );
        bundle.assert_gone();
    }
}

/// A process of exec has a filter and a listener of its own; the agent is told of the container's
/// state, and of the process that the listener is for.
#[test]
fn exec_hands_a_listener_over_as_well() {
    let mut bundle = Bundle::sh("sleep 100");
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    let first = agent(&bundle, "agent", "continue");
    bundle.set(
        "/linux/seccomp",
        filter(&bundle.host("agent"), &["getpgrp"]),
    );
    bundle.run_detached().ok();
    let pid = bundle.pid();
    assert_eq!(told(first)["pid"], json!(pid));
    std::fs::remove_file(bundle.host("agent")).unwrap();
    let out = bundle.call(&["exec", &bundle.id, "true"]);
    assert_ne!(out.code, 0, "without an agent: {out:#?}");
    let second = agent(&bundle, "agent", "44");
    let out = bundle.call(&["exec", &bundle.id, "/probe", "syscall", "111"]);
    assert_eq!(out.ok().text(), "ret -1 errno 44");
    let said = told(second);
    assert_eq!(said["state"]["status"], "running", "{said}");
    assert_eq!(said["state"]["pid"], json!(pid), "{said}");
    assert_ne!(said["pid"], json!(pid), "{said}");
}

/// An agent is asked for what a further process does as well: it is told of that process, by its pid.
#[test]
fn a_further_process_has_a_listener_of_its_own() {
    let mut bundle = Bundle::sh("exec sleep 1000");
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    let first = agent(&bundle, "agent", "continue");
    bundle.set(
        "/linux/seccomp",
        filter(&bundle.host("agent"), &["getpgrp"]),
    );
    bundle.set("/linux/seccomp/listenerMetadata", json!("of the exec"));
    bundle.run_detached().ok();
    let of_init = told(first);
    assert_eq!(of_init["pid"], json!(bundle.pid()));
    std::fs::remove_file(bundle.host("agent")).unwrap();
    let second = agent(&bundle, "agent", "43");
    let out = bundle.call(&["exec", &bundle.id, "/probe", "syscall", "111"]);
    assert_eq!(out.ok().text(), "ret -1 errno 43");
    let said = told(second);
    assert_eq!(said["metadata"], "of the exec", "{said}");
    assert_eq!(said["fds"], json!(["seccompFd"]), "{said}");
    assert_eq!(said["state"]["id"], json!(bundle.id), "{said}");
    assert_eq!(said["state"]["status"], "running", "{said}");
    assert!(said["pid"].as_i64().unwrap() > 1, "{said}");
    assert_ne!(said["pid"], of_init["pid"], "{said}");
    // Without an agent the program does not run.
    std::fs::remove_file(bundle.host("agent")).unwrap();
    let out = bundle.call(&["exec", &bundle.id, "touch", "/tmp/ran"]);
    out.code(255);
    assert!(!bundle.rootfs("/tmp/ran").exists());
}

/// An agent that hangs: its queue of connections is full, and it takes none.
#[test]
fn an_agent_that_accepts_nobody() {
    isorun_only!("runc waits without end");
    let mut bundle = Bundle::new();
    let path = bundle.host("agent");
    let listener = UnixListener::bind(&path).unwrap();
    // The shortest queue that there is, filled.
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
    bundle.set("/linux/seccomp", filter(&path, &["getpgrp"]));
    let begin = std::time::Instant::now();
    let out = bundle.run().code(1);
    assert!(begin.elapsed().as_secs() < 30, "{out:#?}");
    for part in [
        "linux.seccomp.listenerPath",
        "EAGAIN",
        "nobody accepts connections",
    ] {
        assert!(out.stderr.contains(part), "{part}: {out:#?}");
    }
    bundle.assert_gone();
}
