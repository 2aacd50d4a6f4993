//! What a hostile container must not get out of an exec. The names of the advisories say which class.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::exec::{exec, exec_with, idle};
use crate::harness::{Bundle, Running, run_command, runtime, wait_for};

fn all_caps() -> Value {
    let list = json!([
        "CAP_DAC_OVERRIDE",
        "CAP_SYS_CHROOT",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_KILL"
    ]);
    json!({"bounding": list, "permitted": list, "effective": list})
}

fn every_cap() -> Value {
    let known = serde_json::to_value(
        caps::all()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
    );
    let list = known.unwrap();
    json!({"bounding": list, "permitted": list, "effective": list})
}

/// CVE-2016-9962: whoever comes in is seen by the container's processes only when nothing can be had
/// of it any more.
#[test]
fn nobody_gets_at_a_process_that_joins() {
    for user_namespace in [false, true] {
        let mut bundle = match user_namespace {
            false => Bundle::new(),
            true => crate::userns::mapped(),
        };
        if let Err(why) = bundle.add_probe() {
            skip!("{why}");
        }
        // With all capabilities of its user namespace nothing but being undumpable is in its way. (On
        // the host's own, CAP_SYS_PTRACE would be the right to trace, and nothing to defend against.)
        let caps = if user_namespace {
            every_cap()
        } else {
            all_caps()
        };
        bundle.set("/process/capabilities", caps);
        bundle.args(&["/probe", "spy", "sleep"]);
        let running = bundle.spawn_run();
        wait_for("the spy", || running.stdout().contains("spying"));
        bundle.wait_status("running");
        for _ in 0..30 {
            exec(&bundle, &["sleep", "0"]).ok();
        }
        fs::write(bundle.rootfs("/tmp/stop"), "").unwrap();
        let out = running.finish().ok();
        assert!(
            !out.stdout.contains("got "),
            "user namespace {user_namespace}: {out:#?}"
        );
        // It did see them come; if not, this machine is too fast for the test to mean much.
        if out.stdout.contains("seen 0\n") {
            skip!("the spy saw no process between its birth and its program");
        }
    }
}

/// CVE-2024-21626: a working directory by a descriptor that the runtime left open.
#[test]
fn no_working_directory_outside() {
    let bundle = idle();
    for fd in 3..16 {
        let cwd = format!("/proc/self/fd/{fd}");
        let out = exec_with(&bundle, &["--cwd", &cwd], &["pwd"]);
        assert_eq!(out.code, 255, "{cwd}: {out:#?}");
        assert_eq!(out.text(), "", "{cwd}");
    }
    for cwd in ["/proc/self/cwd", "/proc/self/root"] {
        let out = exec_with(&bundle, &["--cwd", cwd], &["ls", "-d", "bin"]);
        assert!(out.code == 255 || out.text() == "bin", "{cwd}: {out:#?}");
    }
}

#[test]
fn no_descriptor_is_leaked() {
    let bundle = idle();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    for (flags, expected) in [
        (&[][..], vec!["0", "1", "2"]),
        (&["--preserve-fds", "2"], vec!["0", "1", "2", "3", "4"]),
    ] {
        let args = [&["exec"], flags, &[bundle.id.as_str(), "/probe", "fds"]].concat();
        let inner = bundle.command(&args);
        let mut command = Command::new("sh");
        let script = "exec 3</dev/null 4</dev/null 5</dev/zero 7</ 9>/dev/null; exec \"$@\"";
        command.args(["-c", script, "sh"]).arg(inner.get_program());
        command.args(inner.get_args()).stdin(Stdio::null());
        let out = Running::start(command, &bundle.dir.join("io"))
            .finish()
            .ok();
        let fds: Vec<&str> = out
            .stdout
            .lines()
            .map(|line| line.split(' ').nth(1).unwrap())
            .collect();
        assert_eq!(fds, expected, "{flags:?}: {out:#?}");
    }
    let out = exec_with(&bundle, &["--preserve-fds", "40"], &["true"]).code(255);
    assert!(out.stderr.contains("exec failed"), "{out:#?}");
}

/// CVE-2019-5736: the program is the runtime itself, by a link or as an interpreter.
#[test]
fn the_runtimes_file_cannot_be_written() {
    let mut bundle = Bundle::sh("exec sleep 1000");
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    bundle.set("/process/capabilities", all_caps());
    fs::write(bundle.rootfs("/script"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(bundle.rootfs("/script"), fs::Permissions::from_mode(0o755)).unwrap();
    bundle.run_detached().ok();
    let copy = bundle.host("runtime");
    match fs::copy(&runtime().path, &copy) {
        // The root of integration/oracles is a small tmpfs.
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            let _ = fs::remove_file(&copy);
            skip!("there is no room for a copy of the runtime");
        }
        other => drop(other.unwrap()),
    }
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let before = fs::read(&copy).unwrap();
    for program in ["/proc/self/exe", "/script"] {
        // It executes the runtime in the container, where it finds a wrong command line.
        let usual = bundle.command(&["exec", "--detach", &bundle.id, program, "--version"]);
        let mut command = Command::new(&copy);
        command
            .args(usual.get_args())
            .env("ISORUN_TEST_ID", &bundle.id);
        run_command(command, &bundle.dir.join("io"));
        assert!(
            fs::read(&copy).unwrap() == before,
            "{program}: the file has changed"
        );
    }
    // What would be left to write is on a read-only mount or sealed: also while it is there.
    let script = "/proc/self/exe";
    let out = exec(&bundle, &["/probe", "write", script]).ok();
    assert_eq!(
        out.text(),
        "/proc/self/exe 26",
        "ETXTBSY of the probe itself"
    );
}

/// The pid of the container's init may be somebody else's by now: the start time tells.
#[test]
fn a_pid_that_was_given_away_is_not_joined() {
    isorun_only!("it edits isorun's own record");
    let bundle = idle();
    let path = bundle.state_root().join(&bundle.id).join("state.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut record: Value = serde_json::from_str(&text).unwrap();
    record["pidStart"] = json!(record["pidStart"].as_u64().unwrap() - 1);
    fs::write(&path, record.to_string()).unwrap();
    let out = exec(&bundle, &["true"]).code(255);
    assert!(
        out.stderr.contains("cannot exec in a stopped container"),
        "{out:#?}"
    );
    fs::write(&path, text).unwrap();
    exec(&bundle, &["true"]).ok();
}

/// What the caller of the runtime has beside its user id is not the program's.
#[test]
fn groups_keys_and_environment_of_the_caller_stay_outside() {
    if Command::new("setpriv").arg("--version").output().is_err() {
        skip!("there is no setpriv to give the caller groups");
    }
    for user_namespace in [false, true] {
        let mut bundle = match user_namespace {
            false => Bundle::new(),
            true => crate::userns::mapped(),
        };
        bundle.args(&["sleep", "1000"]);
        bundle.run_detached().ok();
        let script = "id -G; env; grep ^Cap /proc/self/status";
        let inner = bundle.command(&["exec", &bundle.id, "sh", "-c", script]);
        let mut command = Command::new("setpriv");
        command.args(["--groups", "0,4242", "--inh-caps", "+sys_admin"]);
        command.arg(inner.get_program()).args(inner.get_args());
        command.env("SECRET_OF_THE_HOST", "1").stdin(Stdio::null());
        let out = Running::start(command, &bundle.dir.join("io"))
            .finish()
            .ok();
        assert!(!out.stdout.contains("4242"), "{out:#?}");
        assert!(!out.stdout.contains("SECRET"), "{out:#?}");
        assert_eq!(out.field("CapInh"), "0000000000000000");
        assert_eq!(out.field("CapBnd"), "0000000020000420");
    }
}

/// The program is the container's, also where the host has one of that name.
#[test]
fn the_program_is_looked_for_in_the_container() {
    let bundle = idle();
    let name = bundle.id.trim_end_matches('.').to_string() + "-only-outside";
    let outside = std::path::Path::new("/tmp").join(&name);
    fs::write(&outside, "#!/bin/sh\necho outside\n").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o755)).unwrap();
    let out = exec(&bundle, &[outside.to_str().unwrap()]);
    fs::remove_file(&outside).unwrap();
    out.code(255);
    fs::write(
        bundle.rootfs("/bin/only-inside"),
        "#!/bin/sh\necho inside\n",
    )
    .unwrap();
    fs::set_permissions(
        bundle.rootfs("/bin/only-inside"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    assert_eq!(exec(&bundle, &["only-inside"]).ok().text(), "inside");
}

/// The bundle may change after the container was made: the filter is the one that it was made with.
#[test]
fn the_filter_is_the_containers_whatever_the_bundle_says_now() {
    let mut bundle = Bundle::sh("exec sleep 1000");
    let filter = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
    bundle.set("/linux/seccomp", filter);
    bundle.run_detached().ok();
    bundle.unset("/linux/seccomp").write();
    exec(&bundle, &["mkdir", "/tmp/d"]).code(1);
    bundle.unset("/process/noNewPrivileges").write();
    exec(&bundle, &["mkdir", "/tmp/d"]).code(1);
}
