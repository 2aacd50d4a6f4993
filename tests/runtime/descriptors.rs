//! What is handed to the container beside its terminal: descriptors, sockets to listen on, and a pidfd
//! for whoever watches it.

use std::process::Command;

use crate::harness::{Bundle, Output, Socket, run_command};

/// `run` by a shell that has opened files before: `before` is said first in it.
fn run_after(bundle: &Bundle, before: &str, flags: &[&str]) -> Output {
    bundle.write();
    let dir = bundle.bundle_dir();
    let mut tagged = bundle.command(&["run", "--bundle", dir.to_str().unwrap()]);
    tagged.args(flags).arg(&bundle.id);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{before}\nexec \"$@\""), "sh"]);
    command.arg(tagged.get_program()).args(tagged.get_args());
    for (name, value) in tagged.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.current_dir(&bundle.dir);
    run_command(command, &bundle.dir.join("io"))
}

/// A bundle that tells its descriptors and its sockets, and files for a shell to open: a, b, c.
fn telling() -> Bundle {
    let bundle = Bundle::sh(
        "echo fds $(ls /proc/$$/fd); echo listen ${LISTEN_FDS-none} ${LISTEN_PID-none}; \
         for n in 3 4 5; do test -e /proc/$$/fd/$n && eval \"cat <&$n\"; done; true",
    );
    for name in ["a", "b", "c"] {
        std::fs::write(bundle.host(name), format!("this is {name}\n")).unwrap();
    }
    bundle
}

#[test]
fn preserved_descriptors_arrive_and_no_others() {
    let bundle = telling();
    let before = "exec 3<host/a 4<host/b 5<host/c";
    let out = run_after(&bundle, before, &["--preserve-fds", "2"]).ok();
    assert!(out.stdout.ends_with("this is a\nthis is b\n"), "{out:#?}");
    assert_eq!(out.field("listen"), "none none");
    let out = run_after(&bundle, before, &[]).ok();
    assert!(!out.stdout.contains("this is"), "{out:#?}");
}

#[test]
fn descriptors_that_are_not_there() {
    isorun_only!("runc 1.3 takes a descriptor of its own for the one that is missing");
    let bundle = telling();
    let out = run_after(&bundle, "exec 3<host/a 4<&-", &["--preserve-fds", "2"]).code(1);
    assert!(out.stderr.contains("descriptor 4"), "{out:#?}");
    bundle.assert_gone();
}

#[test]
fn sockets_to_listen_on() {
    let mut bundle = telling();
    let before = "exec 3<host/a 4<host/b 5<host/c\nexport LISTEN_FDS=2 LISTEN_PID=$$";
    let out = run_after(&bundle, before, &[]).ok();
    assert_eq!(out.field("listen"), "2 1");
    assert!(out.stdout.ends_with("this is a\nthis is b\n"), "{out:#?}");
    // Those to preserve come after them.
    let out = run_after(&bundle, before, &["--preserve-fds", "1"]).ok();
    assert_eq!(out.field("listen"), "2 1");
    assert!(
        out.stdout.ends_with("this is a\nthis is b\nthis is c\n"),
        "{out:#?}"
    );
    // They are for somebody else.
    let other = before.replace("$$", "1");
    let out = run_after(&bundle, &other, &[]).ok();
    assert_eq!(out.field("listen"), "none none");
    assert!(!out.stdout.contains("this is"), "{out:#?}");
    isorun_only!("runc 1.1 leaves the bundle's own variables beside the new ones");
    bundle.push("/process/env", serde_json::json!("LISTEN_FDS=7"));
    let out = run_after(&bundle, before, &[]).ok();
    assert_eq!(out.field("listen"), "2 1");
}

#[test]
fn sockets_to_listen_on_that_are_not_there() {
    isorun_only!("runc passes on what it has");
    let bundle = telling();
    let before = "exec 3<host/a 4<&-\nexport LISTEN_FDS=2 LISTEN_PID=$$";
    let out = run_after(&bundle, before, &[]).code(1);
    assert!(
        out.stderr
            .contains("LISTEN_FDS=2: descriptor 4 was not handed over"),
        "{out:#?}"
    );
    let huge = before.replace("=2", "=4294967295");
    let out = run_after(&bundle, &huge, &["--preserve-fds", "4294967295"]).code(1);
    assert!(
        out.stderr.contains("descriptor 4 was not handed over"),
        "{out:#?}"
    );
    bundle.assert_gone();
}

/// The pid that a pidfd stands for, here.
pub fn pid_of(pidfd: &std::os::fd::OwnedFd) -> i32 {
    use std::os::fd::AsRawFd;
    let info = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(info).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    line.unwrap_or_else(|| panic!("no pidfd: {text}"))
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn a_pidfd_is_sent() {
    since_runc!(1, 2, "--pidfd-socket");
    for command in [&["create"][..], &["run", "--detach"]] {
        let bundle = Bundle::sh("exec sleep 100");
        bundle.write();
        let socket = Socket::listen(&bundle, "pidfd");
        let dir = bundle.bundle_dir();
        let mut args = command.to_vec();
        args.extend(["--pidfd-socket", socket.arg(), "--bundle"]);
        args.extend([dir.to_str().unwrap(), &bundle.id]);
        bundle.call(&args).ok();
        let (body, pidfd) = socket.receive();
        assert_eq!(body, "standard");
        assert_eq!(pid_of(&pidfd), bundle.pid());
        bundle.delete_force().ok();
    }
}

#[test]
fn a_pidfd_that_nobody_takes() {
    since_runc!(1, 2, "--pidfd-socket");
    let bundle = Bundle::sh("true");
    bundle.write();
    let dir = bundle.bundle_dir();
    let path = bundle.host("missing");
    let args = ["--pidfd-socket", path.to_str().unwrap(), "--bundle"];
    let out = bundle.call(&[&["run"], &args[..], &[dir.to_str().unwrap(), &bundle.id]].concat());
    let out = out.code(1);
    assert!(out.stderr.contains(path.to_str().unwrap()), "{out:#?}");
    // runc 1.3 leaves its state there, for delete.
    if crate::harness::runtime().isorun {
        bundle.assert_gone();
    }
}

#[test]
fn streams_that_are_closed_or_empty() {
    let bundle = Bundle::sh("cat; echo ended; test -t 0 || echo no terminal");
    for before in ["exec <&-", "exec </dev/null"] {
        let out = run_after(&bundle, before, &[]).ok();
        assert_eq!(out.text(), "ended\nno terminal", "{before}");
    }
    isorun_only!("runc's streams are pipes of its own");
    let bundle = Bundle::sh("echo said; echo too >&2; exit 9");
    for before in ["exec <&- >&- 2>&-", "exec <&-", "exec >&-"] {
        run_after(&bundle, before, &[]).code(9);
        bundle.assert_gone();
    }
}
