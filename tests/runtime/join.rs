//! Namespaces by path: every kind, with a new, a joined and no user namespace.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::harness::{Bundle, runtime, wait_for};

const BASE: u32 = 200_000;

/// Kind and file of those that a container can join without further ado.
const KINDS: [(&str, &str); 4] = [
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
];

fn id_map() -> Value {
    json!([{"containerID": 0, "hostID": BASE, "size": 65536}])
}

fn give_tree(bundle: &Bundle) {
    let out = std::process::Command::new("chown")
        .args(["-hR", &format!("{BASE}:{BASE}")])
        .arg(bundle.rootfs("/"))
        .output()
        .unwrap();
    assert!(out.status.success());
}

/// A container that runs and has namespaces of its own of all kinds; with `user` a user namespace, too.
fn holder(user: bool) -> (Bundle, i32) {
    let mut bundle = Bundle::new();
    bundle.args(&["sleep", "1000"]).namespace("cgroup");
    if user {
        bundle.namespace("user");
        bundle
            .set("/linux/uidMappings", id_map())
            .set("/linux/gidMappings", id_map());
        give_tree(&bundle);
    }
    bundle.run_detached().ok();
    let pid = bundle.pid();
    (bundle, pid)
}

/// Puts a path into the list of namespaces, in the place of a new one.
fn join(bundle: &mut Bundle, kind: &str, path: &str) {
    bundle.without_namespace(kind);
    bundle.push("/linux/namespaces", json!({"type": kind, "path": path}));
}

fn join_of(bundle: &mut Bundle, kind: &str, file: &str, pid: i32) {
    join(bundle, kind, &format!("/proc/{pid}/ns/{file}"));
}

fn link(pid: i32, file: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap();
    link.to_string_lossy().into_owned()
}

/// Runs the bundle and gives the links of these namespaces, seen from inside.
fn seen(bundle: &mut Bundle, files: &[&str]) -> Vec<String> {
    let script = format!(
        "for n in {}; do readlink /proc/self/ns/$n; done",
        files.join(" ")
    );
    bundle.args(&["sh", "-c", &script]);
    let out = bundle.run().ok();
    out.stdout.lines().map(str::to_string).collect()
}

#[test]
fn each_kind_alone() {
    let (_holder, pid) = holder(false);
    for (kind, file) in KINDS {
        let mut bundle = Bundle::new();
        join_of(&mut bundle, kind, file, pid);
        if kind == "uts" {
            // Setting it would rename the other container, too, which runc does.
            bundle.unset("/hostname");
        }
        let got = seen(&mut bundle, &[file, "mnt"]);
        assert_eq!(got[0], link(pid, file), "{kind}");
        assert_ne!(got[1], link(pid, "mnt"), "{kind}");
    }
}

#[test]
fn a_pid_namespace() {
    let (_holder, pid) = holder(false);
    let mut bundle = Bundle::sh("readlink /proc/self/ns/pid; ps | grep -c 'sleep 1000'; echo $$");
    join_of(&mut bundle, "pid", "pid", pid);
    let out = bundle.run().ok();
    let lines: Vec<&str> = out.text().lines().collect();
    assert_eq!(lines[0], link(pid, "pid"));
    assert_ne!(
        lines[1], "0",
        "the other container's processes are there: {out:#?}"
    );
    assert_ne!(lines[2], "1", "its first process has another number");
}

#[test]
fn the_exit_status_of_one_in_a_joined_pid_namespace() {
    let (_holder, pid) = holder(false);
    let mut bundle = Bundle::sh("exit 42");
    join_of(&mut bundle, "pid", "pid", pid);
    assert_eq!(bundle.run().code, 42);
}

#[test]
fn created_started_killed_and_deleted_in_a_joined_pid_namespace() {
    let (_holder, pid) = holder(false);
    // A process that outlives the first one: nothing but the cgroup knows it.
    let mut bundle = Bundle::sh("sleep 1001 & sleep 1002");
    join_of(&mut bundle, "pid", "pid", pid);
    bundle.create().ok();
    assert_eq!(link(bundle.pid(), "pid"), link(pid, "pid"));
    bundle.start().ok();
    bundle.kill("KILL").ok();
    bundle.wait_status("stopped");
    bundle.delete().ok();
    bundle.assert_gone();
    assert!(
        fs::exists(format!("/proc/{pid}")).unwrap(),
        "the other one goes on"
    );
}

#[test]
fn a_time_namespace() {
    since_runc!(1, 2, "time namespaces");
    let mut other = Bundle::new();
    other.args(&["sleep", "1000"]).namespace("time");
    other.set(
        "/linux/timeOffsets",
        json!({"boottime": {"secs": 1_000_000}}),
    );
    other.run_detached().ok();
    let pid = other.pid();
    let mut bundle = Bundle::sh("readlink /proc/self/ns/time; cut -d. -f1 /proc/uptime");
    join_of(&mut bundle, "time", "time", pid);
    let out = bundle.run().ok();
    let lines: Vec<&str> = out.text().lines().collect();
    assert_eq!(lines[0], link(pid, "time"));
    assert!(lines[1].parse::<u64>().unwrap() >= 1_000_000, "{out:#?}");
}

#[test]
fn a_user_namespace_with_new_others() {
    since_runc!(1, 2, "joined user namespaces without maps");
    let (_holder, pid) = holder(true);
    let mut bundle = Bundle::new();
    give_tree(&bundle);
    join_of(&mut bundle, "user", "user", pid);
    let got = seen(&mut bundle, &["user", "mnt", "pid", "net", "ipc", "uts"]);
    assert_eq!(got[0], link(pid, "user"));
    for (seen, file) in got[1..].iter().zip(["mnt", "pid", "net", "ipc", "uts"]) {
        assert_ne!(*seen, link(pid, file), "{file}");
    }
    bundle.args(&[
        "sh",
        "-c",
        "echo $(cat /proc/self/uid_map); id -u; touch /mine",
    ]);
    assert_eq!(bundle.run().ok().text(), "0 200000 65536\n0");
    assert_eq!(fs::metadata(bundle.rootfs("/mine")).unwrap().uid(), BASE);
}

#[test]
fn a_pod_shares_user_network_ipc_uts_and_pid() {
    since_runc!(1, 2, "joined user namespaces without maps");
    let (_holder, pid) = holder(true);
    let mut bundle = Bundle::new();
    give_tree(&bundle);
    bundle.unset("/hostname");
    let shared = [
        ("user", "user"),
        ("network", "net"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("pid", "pid"),
    ];
    for (kind, file) in shared {
        join_of(&mut bundle, kind, file, pid);
    }
    let files = shared.map(|(_, file)| file);
    let got = seen(&mut bundle, &files);
    assert_eq!(got, files.map(|file| link(pid, file)));
    // containerd and CRI-O state the maps beside the path.
    if runtime().isorun || runtime().version >= (1, 2) {
        bundle
            .set("/linux/uidMappings", id_map())
            .set("/linux/gidMappings", id_map());
        assert_eq!(seen(&mut bundle, &["user"]), [link(pid, "user")]);
    }
}

#[test]
fn a_new_user_namespace_with_joined_others() {
    isorun_only!("a sysfs of a network that belongs to others is refused to runc");
    let (_holder, pid) = holder(false);
    for (kind, file) in KINDS {
        let mut bundle = Bundle::new();
        bundle.namespace("user");
        bundle
            .set("/linux/uidMappings", id_map())
            .set("/linux/gidMappings", id_map());
        give_tree(&bundle);
        // A name cannot be set in what belongs to others.
        if kind == "uts" {
            bundle.unset("/hostname");
        }
        join_of(&mut bundle, kind, file, pid);
        let got = seen(&mut bundle, &[file, "user"]);
        assert_eq!(got[0], link(pid, file), "{kind}");
        assert_ne!(got[1], link(pid, "user"), "{kind}");
    }
}

#[test]
fn stated_maps_must_be_those_of_the_joined_namespace() {
    isorun_only!("runc 1.1 refuses maps beside a path altogether");
    let (_holder, pid) = holder(true);
    let mut bundle = Bundle::new();
    join_of(&mut bundle, "user", "user", pid);
    let other = json!([{"containerID": 0, "hostID": BASE + 1, "size": 65536}]);
    bundle
        .set("/linux/uidMappings", id_map())
        .set("/linux/gidMappings", other);
    let out = bundle.run();
    assert_eq!(out.code, 1);
    let said = "linux.gidMappings: it is not the map of the user namespace";
    assert!(out.stderr.contains(said), "{out:#?}");
    bundle.assert_gone();
}

#[test]
fn a_mount_namespace() {
    let (_holder, pid) = holder(false);
    let mut bundle = Bundle::new();
    // What is mounted in the joined one: the other container's own root has no bundles.
    bundle.set("/mounts", json!([]));
    bundle
        .unset("/linux/maskedPaths")
        .unset("/linux/readonlyPaths");
    join_of(&mut bundle, "mount", "mnt", pid);
    let out = bundle.run();
    if runtime().isorun {
        // The root file system is looked for in the joined namespace, and is not there.
        assert_eq!(out.code, 1);
        assert!(
            out.stderr.contains("root.path") && out.stderr.contains("ENOENT"),
            "{out:#?}"
        );
    } else {
        assert_ne!(out.code, 0);
    }
    bundle.assert_gone();
}

#[test]
fn a_mount_namespace_that_has_the_root() {
    // One that is a copy of the machine's, held by a process that only waits.
    let mut waits = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sleep", "1000"])
        .spawn()
        .unwrap();
    let pid = i32::try_from(waits.id()).unwrap();
    let own = link(i32::try_from(std::process::id()).unwrap(), "mnt");
    wait_for("unshare", || link(pid, "mnt") != own);
    let mut bundle = Bundle::new();
    join_of(&mut bundle, "mount", "mnt", pid);
    let got = seen(&mut bundle, &["mnt"]);
    let joined = link(pid, "mnt");
    waits.kill().unwrap();
    waits.wait().unwrap();
    assert_eq!(got, [joined]);
}

/// What is refused: the path, and the words of the sentence.
fn refused(kind: &str, path: &str, words: &[&str]) {
    let mut bundle = Bundle::new();
    join(&mut bundle, kind, path);
    let out = bundle.run();
    assert_ne!(out.code, 0);
    if runtime().isorun {
        assert!(
            words.iter().all(|word| out.stderr.contains(word)),
            "{out:#?}"
        );
        assert_eq!(out.stderr.lines().count(), 1, "{out:#?}");
    }
    bundle.assert_gone();
}

#[test]
fn wrong_paths() {
    let field = "linux.namespaces: open the network namespace";
    refused(
        "network",
        "/nonexistent/net",
        &[field, "/nonexistent/net: ENOENT"],
    );
    refused("network", "/etc/passwd", &[field, "it is not a namespace"]);
    refused(
        "network",
        "/proc/self/ns/uts",
        &[field, "it is a uts namespace, not network"],
    );
    refused(
        "network",
        "proc/self/ns/net",
        &["linux.namespaces[4].path", "not an absolute path"],
    );
    refused(
        "pid",
        "/proc/self/ns/user",
        &["the pid namespace", "it is a user namespace, not pid"],
    );
}

#[test]
fn a_fifo_in_the_place_of_a_namespace() {
    isorun_only!("opening it would wait for ever under runc");
    let bundle = Bundle::new();
    let path = bundle.host("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused("ipc", path.to_str().unwrap(), &["it is not a namespace"]);
}

#[test]
fn the_runtimes_own_network_by_path_takes_no_sysctls() {
    let mut bundle = Bundle::new();
    join(&mut bundle, "network", "/proc/self/ns/net");
    bundle.set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
    let out = bundle.run();
    assert_ne!(out.code, 0);
    assert!(out.stderr.contains("network namespace"), "{out:#?}");
    bundle.assert_gone();
    bundle.unset("/linux/sysctl");
    let own = link(i32::try_from(std::process::id()).unwrap(), "net");
    assert_eq!(seen(&mut bundle, &["net"]), [own]);
}

#[test]
fn offsets_need_a_time_namespace_of_ones_own() {
    isorun_only!("the sentence is isorun's");
    let mut bundle = Bundle::new();
    join(&mut bundle, "time", "/proc/self/ns/time");
    bundle.set("/linux/timeOffsets", json!({"boottime": {"secs": 1}}));
    let out = bundle.run();
    assert_eq!(out.code, 1);
    assert!(
        out.stderr.contains("without a new time namespace"),
        "{out:#?}"
    );
}

#[test]
fn a_further_process_joins_what_the_container_joined() {
    let (_holder, pid) = holder(true);
    let mut bundle = Bundle::new();
    give_tree(&bundle);
    bundle.args(&["sleep", "1000"]).unset("/hostname");
    // Debian's runc wants the maps stated nowhere and reads none.
    since_runc!(1, 2, "joined user namespaces without maps");
    for (kind, file) in [
        ("user", "user"),
        ("network", "net"),
        ("pid", "pid"),
        ("uts", "uts"),
    ] {
        join_of(&mut bundle, kind, file, pid);
    }
    bundle.run_detached().ok();
    let script = "for n in user net pid uts mnt; do readlink /proc/self/ns/$n; done; id -u";
    let out = bundle.call(&["exec", &bundle.id, "sh", "-c", script]).ok();
    let own = bundle.pid();
    let mut want: Vec<String> = ["user", "net", "pid", "uts"]
        .map(|file| link(pid, file))
        .to_vec();
    want.extend([link(own, "mnt"), "0".to_string()]);
    assert_eq!(out.stdout.lines().collect::<Vec<_>>(), want);
    bundle.delete_force().ok();
}

/// CVE-2016-9962, from the other side: a container whose pid namespace another one joins has no right to
/// trace, and gets at nothing of what that one is before it is confined. Who made a user namespace has
/// all rights over it, though, and by its id this container's root is that user.
#[test]
fn nobody_gets_at_a_container_that_joins() {
    for user_namespace in [false, true] {
        if user_namespace && !runtime().isorun {
            // It needs a /proc in the container.
            break;
        }
        let mut spy = Bundle::new();
        if let Err(why) = spy.add_probe() {
            skip!("{why}");
        }
        let list = json!([
            "CAP_DAC_OVERRIDE",
            "CAP_SYS_CHROOT",
            "CAP_SETUID",
            "CAP_KILL"
        ]);
        spy.set(
            "/process/capabilities",
            json!({"bounding": list, "permitted": list, "effective": list}),
        );
        spy.args(&["/probe", "spy", "sleep"]);
        let running = spy.spawn_run();
        wait_for("the spy", || running.stdout().contains("spying"));
        let mut bundle = match user_namespace {
            false => Bundle::new(),
            true => crate::userns::mapped(),
        };
        bundle.args(&["sleep", "0"]);
        join_of(&mut bundle, "pid", "pid", spy.pid());
        if user_namespace {
            // The kernel gives no procfs of a pid namespace that belongs to others.
            let mounts = bundle.config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["type"] != "proc");
            bundle
                .unset("/linux/maskedPaths")
                .unset("/linux/readonlyPaths");
        }
        for _ in 0..20 {
            bundle.run().ok();
        }
        fs::write(spy.rootfs("/tmp/stop"), "").unwrap();
        let out = running.finish().ok();
        assert!(
            !out.stdout.contains("got "),
            "user namespace {user_namespace}: {out:#?}"
        );
    }
}
