//! Containers of a user without privileges.
//!
//! The user is one of the tests' own: /etc/passwd, /etc/subuid and /etc/subgid that know it are bound over
//! the machine's in a mount namespace of each call.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, View, cgroups_named, runtime, view};

pub const USER: u32 = 31_000;
pub const FIRST_SUB: u32 = 500_000;

/// Runs what follows its first argument (a directory with the three files) as the user.
const AS_USER: &str = r#"
dir=$1; shift
for file in passwd subuid subgid; do mount --bind "$dir/$file" /etc/$file; done
exec setpriv --reuid 31000 --regid 31000 --clear-groups --inh-caps=-all "$@"
"#;

fn id_map(lines: &[[u32; 3]]) -> Value {
    let line = |[inside, outside, count]: &[u32; 3]| json!({"containerID": inside, "hostID": outside, "size": count});
    lines.iter().map(line).collect()
}

fn chown_tree(path: &Path, owner: u32) {
    let out = Command::new("chown")
        .args(["-hR", &format!("{owner}:{owner}")])
        .arg(path)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
}

/// A bundle of the user, in a user namespace with these maps; run as the user.
pub fn rootless(lines: &[[u32; 3]]) -> Bundle {
    let mut bundle = Bundle::new();
    bundle.namespace("user");
    bundle
        .set("/linux/uidMappings", id_map(lines))
        .set("/linux/gidMappings", id_map(lines));
    // As `spec --rootless` does.
    bundle.unset("/linux/resources");
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["type"] != "cgroup");
    for mount in mounts {
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "gid=5");
        }
    }
    become_user(&mut bundle);
    bundle
}

fn become_user(bundle: &mut Bundle) {
    let etc = bundle.host("etc");
    fs::create_dir_all(&etc).unwrap();
    let write = |name: &str, text: &str| {
        fs::write(etc.join(name), text).unwrap();
        fs::set_permissions(etc.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    };
    write(
        "passwd",
        &format!("root:x:0:0::/root:/bin/sh\nisotest:x:{USER}:{USER}::/tmp:/bin/sh\n"),
    );
    write("subuid", &format!("isotest:{FIRST_SUB}:65536\n"));
    write("subgid", &format!("isotest:{FIRST_SUB}:65536\n"));
    chown_tree(&bundle.dir, USER);
    for file in ["passwd", "subuid", "subgid"] {
        chown(etc.join(file), Some(0), Some(0)).unwrap();
    }
    let etc = etc.to_str().unwrap();
    bundle.prefix = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        AS_USER,
        "sh",
        etc,
    ]
    .map(str::to_string)
    .to_vec();
}

pub fn has_helpers() -> bool {
    Path::new("/usr/bin/newuidmap").exists()
}

/// Whether the user can get at the runtime's binary: a checkout may lie below a private directory.
pub fn reachable(bundle: &Bundle) -> bool {
    bundle.call(&["--version"]).code == 0
}

macro_rules! needs_user {
    ($bundle:expr) => {
        if !reachable(&$bundle) {
            skip!(
                "{} is below a directory that only root may enter",
                runtime().path.display()
            );
        }
    };
}

#[test]
fn one_mapped_id() {
    let mut bundle = rootless(&[[0, USER, 1]]);
    needs_user!(bundle);
    bundle.args(&[
        "sh",
        "-c",
        "id -u; cat /proc/self/setgroups; echo $(cat /proc/self/uid_map); touch /mine; echo $(ls /dev)",
    ]);
    let out = bundle.run().ok();
    let lines: Vec<&str> = out.text().lines().collect();
    assert_eq!(lines[..3], ["0", "deny", "0 31000 1"]);
    assert!(
        lines[3].contains("null") && lines[3].contains("urandom"),
        "{lines:?}"
    );
    assert_eq!(fs::metadata(bundle.rootfs("/mine")).unwrap().uid(), USER);
    assert_eq!(out.stderr, "", "nothing is degraded in such a container");
}

#[test]
fn ranges_by_newuidmap_and_newgidmap() {
    let mut bundle = rootless(&[[0, USER, 1], [1, FIRST_SUB, 65536]]);
    needs_user!(bundle);
    if !has_helpers() {
        skip!("newuidmap is not installed");
    }
    bundle
        .args(&[
            "sh",
            "-c",
            "id -u; id -G; echo $(cat /proc/self/gid_map); touch /tmp/mine",
        ])
        .set("/process/user", json!({"uid": 1000, "gid": 1001}));
    // runc gives a rootless container no groups at all.
    if runtime().isorun {
        bundle.set("/process/user/additionalGids", json!([5, 2000]));
    }
    fs::set_permissions(bundle.rootfs("/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    bundle.unset("/mounts");
    bundle.mount("/proc", "proc", "proc", &[]);
    let out = bundle.run().ok();
    let lines: Vec<&str> = out.text().lines().collect();
    assert_eq!(lines[0], "1000");
    if runtime().isorun {
        assert_eq!(lines[1], "1001 5 2000");
    }
    assert_eq!(lines[2], "0 31000 1 1 500000 65536");
    let made = fs::metadata(bundle.rootfs("/tmp/mine")).unwrap();
    assert_eq!(
        (made.uid(), made.gid()),
        (FIRST_SUB + 999, FIRST_SUB + 1000)
    );
}

#[test]
fn ranges_that_are_not_the_users() {
    let bundle = rootless(&[[0, USER, 1], [1, FIRST_SUB + 1, 65536]]);
    needs_user!(bundle);
    if !has_helpers() {
        skip!("newuidmap is not installed");
    }
    let out = bundle.run();
    assert_ne!(out.code, 0);
    if runtime().isorun {
        // Both helpers refuse; that of the groups is heard first.
        let words = [
            "linux.gidMappings: newgidmap:",
            "not allowed",
            "/etc/subgid",
        ];
        assert!(
            words.iter().all(|word| out.stderr.contains(word)),
            "{out:#?}"
        );
        assert_eq!(out.stderr.lines().count(), 1, "{out:#?}");
    }
    bundle.assert_gone();
}

#[test]
fn somebody_elses_id() {
    let bundle = rootless(&[[0, 1, 1]]);
    needs_user!(bundle);
    let out = bundle.run();
    assert_ne!(out.code, 0);
    if runtime().isorun {
        assert!(
            out.stderr.contains("linux.uidMappings") || out.stderr.contains("linux.gidMappings"),
            "{out:#?}"
        );
        let helper = has_helpers() && out.stderr.contains("not allowed");
        assert!(helper || out.stderr.contains("EPERM"), "{out:#?}");
    }
    bundle.assert_gone();
}

#[test]
fn without_the_helpers() {
    isorun_only!("the sentence is isorun's");
    let bundle = rootless(&[[0, USER, 1], [1, FIRST_SUB, 65536]]);
    needs_user!(bundle);
    bundle.write();
    let mut command = bundle.command(&[
        "run",
        "--bundle",
        bundle.bundle_dir().to_str().unwrap(),
        &bundle.id,
    ]);
    // What the prefix needs, and no helpers.
    let tools = bundle.host("tools");
    fs::create_dir(&tools).unwrap();
    for tool in ["unshare", "mount", "setpriv", "sh"] {
        let from = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(tool));
        let from = from.iter().find(|path| path.exists()).unwrap();
        std::os::unix::fs::symlink(from, tools.join(tool)).unwrap();
    }
    command.env("PATH", &tools);
    let out = crate::harness::run_command(command, &bundle.dir.join("io"));
    assert_eq!(out.code, 1, "{out:#?}");
    let words = ["linux.", "Mappings: run newgidmap: ENOENT", "install it"];
    assert!(
        words.iter().all(|word| out.stderr.contains(word)),
        "{out:#?}"
    );
    bundle.assert_gone();
}

#[test]
fn a_user_namespace_is_needed() {
    let mut bundle = rootless(&[[0, USER, 1]]);
    needs_user!(bundle);
    bundle
        .without_namespace("user")
        .unset("/linux/uidMappings")
        .unset("/linux/gidMappings");
    let out = bundle.run();
    assert_ne!(out.code, 0);
    let said = "rootless container requires user namespaces";
    assert!(out.stderr.contains(said), "{out:#?}");
    bundle.assert_gone();
}

#[test]
fn no_groups_with_one_mapped_group() {
    let mut bundle = rootless(&[[0, USER, 1]]);
    needs_user!(bundle);
    bundle.set("/process/user/additionalGids", json!([0]));
    let out = bundle.run();
    assert_ne!(out.code, 0);
    let said = "cannot set any additional groups in a rootless container";
    assert!(out.stderr.contains(said), "{out:#?}");
    bundle.assert_gone();
}

#[test]
fn cgroups_only_where_they_are_needed() {
    let mut bundle = rootless(&[[0, USER, 1]]);
    needs_user!(bundle);
    bundle.args(&["cat", "/proc/self/cgroup"]);
    bundle.run().ok();
    assert_eq!(cgroups_named(&bundle.id), Vec::<std::path::PathBuf>::new());

    bundle.set("/linux/resources/pids", json!({"limit": 10}));
    let limited = bundle.run();
    assert_ne!(limited.code, 0, "{limited:#?}");
    // In the hybrid view Debian's runc 1.1.5 words it by the file that is not there.
    if runtime().isorun {
        let word =
            "rootless needs no limits + no cgrouppath when no permission is granted for cgroups";
        let lacks = limited.stderr.contains("needs the cgroup controller pids");
        assert!(limited.stderr.contains(word) || lacks, "{limited:#?}");
    }
    bundle.assert_gone();

    if runtime().isorun {
        // Asked for, the container is born again without what may not be made.
        assert!(
            limited.stderr.contains("the degradation \"limits\""),
            "{limited:#?}"
        );
        let again = crate::degrade::at(&bundle, "any").ok();
        let told = again
            .stderr
            .matches("degraded: linux.resources.pids")
            .count();
        assert_eq!(told, 1, "{again:#?}");
        assert_eq!(cgroups_named(&bundle.id), Vec::<std::path::PathBuf>::new());
    }

    bundle.unset("/linux/resources");
    let path = format!("/{}path", bundle.id);
    bundle.set("/linux/cgroupsPath", json!(path));
    let placed = bundle.run();
    assert_ne!(placed.code, 0, "{placed:#?}");
    bundle.assert_gone();
}

#[test]
fn a_delegated_cgroup_is_used() {
    let mut bundle = rootless(&[[0, USER, 1]]);
    needs_user!(bundle);
    if view() != View::V2 {
        skip!("delegation is of cgroup v2; seen in the v2 view");
    }
    // What systemd does for a user: a subtree of its own, with the caller in a cgroup below it.
    let top = Path::new("/sys/fs/cgroup").join(format!("{}top", bundle.id));
    let own = top.join("caller");
    fs::create_dir_all(&own).unwrap();
    for dir in [&top, &own] {
        chown(dir, Some(USER), Some(USER)).unwrap();
        for file in ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(dir.join(file), Some(USER), Some(USER)).unwrap();
        }
    }
    let enter = format!("echo $$ >{}/cgroup.procs; exec \"$@\"", own.display());
    let mut prefix: Vec<String> = ["sh", "-ec", &enter, "sh"].map(str::to_string).to_vec();
    prefix.extend(bundle.prefix.clone());
    bundle.prefix = prefix;
    bundle.args(&["cat", "/proc/self/cgroup"]);
    let out = bundle.run().ok();
    let place = format!("{}top/{}", bundle.id, bundle.id);
    assert!(out.stdout.trim().ends_with(&place), "{out:#?}");
    assert!(!top.join(&bundle.id).exists(), "delete takes it away");
    fs::remove_dir(&own).unwrap();
    fs::remove_dir(&top).unwrap();
}

#[test]
fn the_whole_lifecycle_below_the_runtime_directory() {
    let mut bundle = rootless(&[[0, USER, 1]]);
    needs_user!(bundle);
    bundle.args(&["sleep", "1000"]);
    bundle.write();
    let xdg = bundle.host("xdg");
    fs::create_dir(&xdg).unwrap();
    chown(&xdg, Some(USER), Some(USER)).unwrap();
    let call = |args: &[&str]| {
        let mut command = bundle.bare_command();
        command.args(args).env("XDG_RUNTIME_DIR", &xdg);
        command.env("ISORUN_TEST_ID", &bundle.id);
        command.current_dir(&bundle.dir);
        crate::harness::run_command(command, &bundle.dir.join("io"))
    };
    let dir = bundle.bundle_dir();
    call(&["create", "--bundle", dir.to_str().unwrap(), &bundle.id]).ok();
    let name = if runtime().isorun { "isorun" } else { "runc" };
    let root = fs::metadata(xdg.join(name)).unwrap();
    assert_eq!(
        root.mode() & 0o7777,
        0o1700,
        "sticky, so that nothing is cleaned away"
    );
    assert_eq!(root.uid(), USER);
    call(&["start", &bundle.id]).ok();
    let state: Value = serde_json::from_str(call(&["state", &bundle.id]).ok().text()).unwrap();
    assert_eq!(state["status"], "running");
    let pid = state["pid"].as_i64().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        status.contains(&format!("Uid:\t{USER}\t{USER}")),
        "{status}"
    );
    call(&["kill", &bundle.id, "KILL"]).ok();
    crate::harness::wait_for("the container to stop", || {
        call(&["state", &bundle.id]).stdout.contains("\"stopped\"")
    });
    call(&["delete", &bundle.id]).ok();
    assert!(!xdg.join(name).join(&bundle.id).exists());
}

#[test]
fn the_template_of_spec_runs() {
    let mut bundle = rootless(&[[0, USER, 1]]);
    needs_user!(bundle);
    let dir = bundle.bundle_dir();
    bundle
        .call(&["spec", "--rootless", "--bundle", dir.to_str().unwrap()])
        .ok();
    let text = fs::read_to_string(dir.join("config.json")).unwrap();
    bundle.config = serde_json::from_str(&text).unwrap();
    bundle
        .args(&["sh", "-c", "id -u; ls /sys | grep -c kernel; hostname"])
        .set("/process/terminal", json!(false));
    let out = bundle.run().ok();
    let name = bundle.config["hostname"].as_str().unwrap();
    assert_eq!(out.text(), format!("0\n1\n{name}"));
}

#[test]
fn a_binary_of_the_users_own_is_out_of_reach_too() {
    isorun_only!("the binary is isorun's");
    let mut bundle = rootless(&[[0, USER, 1]]);
    let own = bundle.dir.join("isorun-own");
    fs::copy(&runtime().path, &own).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
    chown(&own, Some(USER), Some(USER)).unwrap();
    bundle.args(&["sleep", "1000"]);
    bundle.write();
    let dir = bundle.bundle_dir();
    let mut command = Command::new(&bundle.prefix[0]);
    command.args(&bundle.prefix[1..]).arg(&own);
    command.arg("--root").arg(bundle.state_root());
    command.args(["create", "--bundle", dir.to_str().unwrap(), &bundle.id]);
    command.env("ISORUN_TEST_ID", &bundle.id);
    crate::harness::run_command(command, &bundle.dir.join("io")).ok();
    // The waiting process still is isorun: what it was executed from must not be the user's file.
    let exe = fs::read_link(format!("/proc/{}/exe", bundle.pid())).unwrap();
    assert!(exe.to_string_lossy().starts_with("/memfd:"), "{exe:?}");
    bundle.delete_force().ok();
}

#[test]
fn inside_an_existing_user_namespace() {
    let mut bundle = rootless(&[[0, USER, 1]]);
    needs_user!(bundle);
    // As rootless Podman calls it: root of a user namespace, with a configuration that has none.
    bundle
        .without_namespace("user")
        .unset("/linux/uidMappings")
        .unset("/linux/gidMappings");
    let rest = ["unshare", "--user", "--map-root-user", "--mount"].map(str::to_string);
    bundle.prefix.extend(rest);
    bundle.args(&[
        "sh",
        "-c",
        "id -u; echo $(cat /proc/self/uid_map); echo x >/dev/null; ls /dev | grep -c urandom; touch /mine",
    ]);
    let out = bundle.run().ok();
    assert_eq!(out.text(), "0\n0 31000 1\n1");
    assert_eq!(fs::metadata(bundle.rootfs("/mine")).unwrap().uid(), USER);
    if runtime().isorun {
        assert_eq!(out.stderr, "", "bound device nodes are the rule there");
    }
}

#[test]
fn hooks_run_as_the_user() {
    let mut bundle = rootless(&[[0, USER, 1]]);
    needs_user!(bundle);
    let script = format!("id -u >{}", bundle.host("hook").display());
    let hook =
        json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]});
    bundle.push("/hooks/createRuntime", hook);
    bundle.run().ok();
    assert_eq!(bundle.wait_file("hook").trim(), USER.to_string());
}

#[test]
fn what_has_no_mapped_group_or_no_network_is_made_up_for() {
    isorun_only!("runc refuses such a gid, and its sysfs fails with EPERM");
    let mut bundle = rootless(&[[0, USER, 1]]);
    needs_user!(bundle);
    bundle.without_namespace("network");
    for mount in bundle.config["mounts"].as_array_mut().unwrap() {
        if mount["type"] == "devpts" {
            mount["options"]
                .as_array_mut()
                .unwrap()
                .push(json!("gid=5"));
        }
    }
    bundle.args(&[
        "sh",
        "-c",
        "ls /sys/class/net/lo/ifindex /dev/pts/ptmx; ls -A /sys/firmware /sys/kernel/debug /sys/fs/cgroup | grep -c .; \
         touch /sys/kernel/x || echo ro",
    ]);
    let out = bundle.run().ok();
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(
        lines[..2],
        ["/dev/pts/ptmx", "/sys/class/net/lo/ifindex"],
        "{out:#?}"
    );
    assert!(out.stdout.contains("ro"), "{out:#?}");
    for word in ["a sysfs of its own on /sys", "gid=5 of the devpts mount"] {
        assert!(out.stderr.contains(word), "{out:#?}");
    }
    // Only the names of the three directories and their (empty) contents.
    let listing = lines.iter().find_map(|line| line.parse::<u32>().ok());
    assert!(listing.is_some_and(|count| count <= 5), "{out:#?}");
}

#[test]
fn a_further_process() {
    let mut bundle = rootless(&[[0, USER, 1]]);
    needs_user!(bundle);
    bundle.args(&["sleep", "1000"]);
    bundle.run_detached().ok();
    let script = "id -u; cat /proc/self/setgroups; echo $(cat /proc/self/uid_map); exit 7";
    let out = bundle
        .call(&["exec", &bundle.id, "sh", "-c", script])
        .code(7);
    assert_eq!(out.text(), "0\ndeny\n0 31000 1");
    bundle.delete_force().ok();
}

#[test]
fn the_listener_of_a_filter_that_notifies() {
    let mut bundle = rootless(&[[0, USER, 1]]);
    needs_user!(bundle);
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    let socket = bundle.host("agent.sock");
    let mut command = Command::new(crate::harness::probe().unwrap());
    command
        .arg("agent")
        .arg(&socket)
        .arg("44")
        .env("ISORUN_TEST_ID", &bundle.id);
    let agent = crate::harness::Running::start(command, &bundle.dir.join("io"));
    crate::harness::wait_for("the agent's socket", || socket.exists());
    chown(&socket, Some(USER), Some(USER)).unwrap();
    bundle.args(&["/probe", "syscall", "111"]);
    bundle.set(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "listenerPath": socket,
            "syscalls": [{"names": ["getpgrp"], "action": "SCMP_ACT_NOTIFY"}]
        }),
    );
    assert_eq!(bundle.run().ok().text(), "ret -1 errno 44");
    agent.finish().ok();
}

/// The host's devices are not its user's to move.
#[test]
fn network_devices_are_refused() {
    since_runc!(1, 4, "linux.netDevices");
    let mut bundle = rootless(&[[0, USER, 1]]);
    bundle.set("/linux/netDevices", json!({"lo": {"name": "lo2"}}));
    let out = bundle.run().code(1);
    if runtime().isorun {
        let says = "linux.netDevices: network devices are not supported for rootless containers";
        assert!(out.stderr.contains(says), "{out:#?}");
    }
    bundle.assert_gone();
}
