//! Labels of AppArmor and SELinux, and the session keyring. Profiles that confine are the business of
//! integration/lab/scripts/apparmor: this machine may have neither module.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, run_command, runtime};

fn apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text[0] == b'Y')
}

fn selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

#[test]
fn a_profile_without_apparmor_is_refused() {
    if apparmor() {
        skip!("this host has AppArmor");
    }
    let mut bundle = Bundle::new();
    bundle.set("/process/apparmorProfile", json!("isorun-none"));
    let out = bundle.run().code(1);
    assert!(out.stderr.contains("apparmor"), "{out:#?}");
    if runtime().isorun {
        let text = "config.json: process.apparmorProfile: apparmor: config provided but apparmor not \
                    supported";
        assert!(out.stderr.contains(text), "{out:#?}");
    }
    bundle.assert_gone();
}

#[test]
fn a_process_label_without_selinux_is_refused() {
    if selinux() {
        skip!("this host has SELinux");
    }
    let mut bundle = Bundle::new();
    let label = "system_u:system_r:container_t:s0:c1,c2";
    bundle.set("/process/selinuxLabel", json!(label));
    let out = bundle.run().code(1);
    let text = "selinux label is specified in config, but selinux is disabled or not supported";
    assert!(out.stderr.contains(text), "{out:#?}");
    if runtime().isorun {
        assert!(out.stderr.contains("process.selinuxLabel: "), "{out:#?}");
    }
    bundle.assert_gone();
}

#[test]
fn a_mount_label_without_selinux_is_refused() {
    if selinux() {
        skip!("this host has SELinux");
    }
    let mut bundle = Bundle::new();
    bundle.set(
        "/linux/mountLabel",
        json!("system_u:object_r:container_file_t:s0"),
    );
    let out = bundle.run().code(1);
    if runtime().isorun {
        assert!(out.stderr.contains("linux.mountLabel: selinux"), "{out:#?}");
    }
    bundle.assert_gone();
}

#[test]
fn labels_that_are_empty_ask_for_nothing() {
    let mut bundle = Bundle::sh("echo in");
    bundle
        .set("/process/apparmorProfile", json!(""))
        .set("/process/selinuxLabel", json!(""))
        .set("/linux/mountLabel", json!(""));
    assert_eq!(bundle.run().ok().text(), "in");
}

#[test]
fn labels_that_no_module_can_have_are_refused() {
    isorun_only!("runc writes them to the kernel");
    for (pointer, field) in [
        ("/process/apparmorProfile", "process.apparmorProfile"),
        ("/process/selinuxLabel", "process.selinuxLabel"),
        ("/linux/mountLabel", "linux.mountLabel"),
    ] {
        for label in ["a\nb", "a\"b"] {
            let mut bundle = Bundle::new();
            bundle.set(pointer, json!(label));
            let out = bundle.run().code(1);
            assert!(
                out.stderr.contains(&format!("{field}: it contains")),
                "{out:#?}"
            );
        }
    }
}

/// Whether unshare(1) is there; the oracles' root has none.
fn unshare() -> bool {
    Command::new("unshare").arg("--version").output().is_ok()
}

/// The command in a mount namespace of its own in which AppArmor seems to be enabled.
fn where_apparmor_seems_to_be(command: &Command) -> Command {
    const SEEMS: &str = "mount -t tmpfs none /sys/module && mkdir -p /sys/module/apparmor/parameters \
        && echo Y > /sys/module/apparmor/parameters/enabled && exec \"$@\"";
    let mut inside = Command::new("unshare");
    inside.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        SEEMS,
        "sh",
    ]);
    inside.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        inside.current_dir(dir);
    }
    inside
}

/// The write is really made, by the child and to its own attribute: the kernel, which has no AppArmor,
/// refuses it. Nothing runs, and nothing stays.
#[test]
fn a_profile_that_the_kernel_refuses_keeps_the_program_from_running() {
    if apparmor() {
        skip!("this host has AppArmor");
    }
    if !unshare() {
        skip!("no unshare(1)");
    }
    for namespace in ["uts", "user"] {
        let mut bundle = Bundle::sh("echo ran");
        bundle.set("/process/apparmorProfile", json!("isorun-none"));
        if namespace == "user" {
            // The kernel makes no sysfs in a user namespace where something is mounted over one.
            let mounts = bundle.config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["type"] != "sysfs");
            let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
            bundle
                .namespace("user")
                .set("/linux/uidMappings", map.clone())
                .set("/linux/gidMappings", map);
        }
        bundle.write();
        let dir = bundle.bundle_dir();
        let command = bundle.command(&["run", "--bundle", dir.to_str().unwrap(), &bundle.id]);
        let out = run_command(where_apparmor_seems_to_be(&command), &bundle.dir.join("io"));
        let out = out.code(1);
        assert!(out.stderr.contains("apparmor"), "{out:#?}");
        if runtime().isorun {
            let text = "process.apparmorProfile: apply isorun-none: EINVAL";
            assert!(out.stderr.contains(text), "{namespace}: {out:#?}");
        }
        assert_eq!(out.stdout, "");
        bundle.assert_gone();
    }
}

#[test]
fn the_plan_shows_the_profile() {
    isorun_only!("runc has no plan");
    if !unshare() {
        skip!("no unshare(1)");
    }
    let mut bundle = Bundle::new();
    bundle
        .set("/process/apparmorProfile", json!("isorun-none"))
        .write();
    let command = bundle.command(&["plan", bundle.bundle_dir().to_str().unwrap()]);
    let out = run_command(where_apparmor_seems_to_be(&command), &bundle.dir.join("io")).ok();
    let line = |what: &str| out.stdout.lines().position(|line| line.contains(what));
    let label = line("label at exec: Apparmor isorun-none").unwrap();
    assert!(label < line("pivot_root").unwrap(), "{out:#?}");
}

/// The line of /proc/keys for the container's session keyring: flags, permissions, description.
fn session_keyring(bundle: &mut Bundle) -> Option<String> {
    bundle.args(&["sh", "-c", "cat /proc/keys"]);
    bundle.set("/linux/maskedPaths", json!([]));
    let out = bundle.run().ok();
    let name = format!("_ses.{}", bundle.id);
    let found = out.stdout.lines().find(|line| line.contains(&name));
    found.map(|line| line.split_whitespace().nth(4).unwrap().to_string())
}

#[test]
fn the_session_keyring_is_the_containers_own() {
    // Possessor: all; user: view, read, search, link, with which runc exec joins it.
    let mut bundle = Bundle::new();
    assert_eq!(session_keyring(&mut bundle).as_deref(), Some("3f1b0000"));
}

#[test]
fn the_session_keyring_in_a_user_namespace() {
    let mut bundle = Bundle::new();
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    bundle
        .namespace("user")
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    let permissions = session_keyring(&mut bundle).expect("the keyring");
    let bits = u32::from_str_radix(&permissions, 16).unwrap();
    assert_eq!(
        bits & 0x3f,
        0x08,
        "others may search, and no more: {permissions}"
    );
}

/// Who guesses the name of a container has a keyring of that name ready, and opens it to all.
#[test]
fn a_keyring_of_somebody_else_is_not_joined() {
    isorun_only!("runc joins it");
    let mut bundle = Bundle::new();
    let program = match crate::harness::probe() {
        Ok(program) => program,
        Err(why) => skip!("{why}"),
    };
    let mut command = std::process::Command::new(program);
    command.args(["keyring", &format!("_ses.{}", bundle.id)]);
    let mut other = crate::harness::Running::start(command, &bundle.dir.join("io"));
    crate::harness::wait_for("the keyring", || {
        assert!(other.alive(), "no keyring could be made");
        other.stdout().contains("made")
    });
    // Only those are listed that the process may view, which this one is by being joined alone.
    assert_eq!(session_keyring(&mut bundle), None);
    let out = bundle.run().ok();
    assert!(
        out.stdout.lines().any(|line| line.contains(" keyring ")),
        "it has one without a name: {out:#?}"
    );
}

#[test]
fn no_new_keyring() {
    let mut bundle = Bundle::sh("cat /proc/keys");
    bundle.set("/linux/maskedPaths", json!([])).write();
    let dir = bundle.bundle_dir();
    let flags = [
        "run",
        "--no-new-keyring",
        "--bundle",
        dir.to_str().unwrap(),
        &bundle.id,
    ];
    let out = bundle.call(&flags).ok();
    let name = format!("_ses.{}", bundle.id);
    assert!(!out.stdout.contains(&name), "{out:#?}");
}

/// The filter that denies it is the caller's, not the container's, which comes later.
#[test]
fn the_containers_filter_may_deny_the_key_calls() {
    let mut bundle = Bundle::sh("echo in");
    let rule: Value =
        json!({"names": ["keyctl", "add_key", "request_key"], "action": "SCMP_ACT_ERRNO"});
    bundle.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [rule]}),
    );
    let out = bundle.run().ok();
    assert_eq!((out.text(), out.stderr.as_str()), ("in", ""));
}
