//! cgroups: where the container is, limits read back and felt, what delete removes.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::{Bundle, View, cgroup_dir, cgroups_named, controller_usable, view, wait_for};

fn read(dir: &Path, file: &str) -> String {
    let path = dir.join(file);
    fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_string()
}

/// The file's value in the container's cgroup, by the names that v1 and v2 have for it.
fn value(bundle: &Bundle, controller: &str, v1: &str, v2: &str) -> String {
    let dir = cgroup_dir(bundle.pid(), controller);
    read(&dir, if view() == View::V2 { v2 } else { v1 })
}

/// Leaves the test where the view has no such controller to limit anything with.
macro_rules! needs {
    ($controller:literal) => {
        if !controller_usable($controller) {
            skip!(
                "this view has no {} controller to use ({:?})",
                $controller,
                view()
            );
        }
    };
}

/// Every hierarchy's path of the process.
fn paths(pid: i32) -> Vec<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let split = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1).map(str::to_string);
        (parts.next().unwrap(), parts.next().unwrap())
    };
    text.lines().map(split).collect()
}

/// The path in the hierarchy that the view shows: pids stands for all of v1.
fn main_path(pid: i32) -> String {
    let wanted = if view() == View::V2 { "" } else { "pids" };
    paths(pid)
        .into_iter()
        .find(|(names, _)| names == wanted)
        .unwrap()
        .1
}

#[test]
fn every_hierarchy_in_sight_has_the_container() {
    let bundle = Bundle::sh("sleep 100");
    bundle.create().ok();
    for (controllers, path) in paths(bundle.pid()) {
        let seen = view() == View::Hybrid || controllers.is_empty();
        assert_eq!(path.ends_with(&bundle.id), seen, "{controllers}: {path}");
    }
}

#[test]
fn absolute_path_is_from_the_top() {
    let mut bundle = Bundle::sh("sleep 100");
    let path = format!("/{}", bundle.id);
    bundle.set("/linux/cgroupsPath", json!(path)).create().ok();
    for (controllers, seen) in paths(bundle.pid()) {
        if view() == View::Hybrid || controllers.is_empty() {
            assert_eq!(seen, path, "{controllers}");
        }
    }
}

#[test]
fn relative_path_is_taken_and_cleaned() {
    // The parts that leave the tree are cut, so it may not climb.
    for path in ["{}", "../../{}", "./{}/."] {
        let mut bundle = Bundle::sh("sleep 100");
        let path = path.replace("{}", &bundle.id);
        bundle.set("/linux/cgroupsPath", json!(path)).create().ok();
        let seen = main_path(bundle.pid());
        assert!(
            seen.ends_with(&bundle.id) && !seen.contains(".."),
            "{path}: {seen}"
        );
        bundle.delete_force().ok();
        bundle.assert_gone();
    }
}

#[test]
fn a_path_of_several_levels_is_made_and_removed() {
    let mut bundle = Bundle::sh("sleep 100");
    let path = format!("/{0}/middle/{0}leaf", bundle.id);
    bundle.set("/linux/cgroupsPath", json!(path)).create().ok();
    assert_eq!(main_path(bundle.pid()), path);
    bundle.delete_force().ok();
    let left = cgroups_named(&format!("{}leaf", bundle.id));
    assert!(left.is_empty(), "{left:?}");
    for parent in cgroups_named(&bundle.id) {
        // runc leaves the parents that it made; isorun removes what it made.
        assert!(!crate::harness::runtime().isorun, "{}", parent.display());
        let _ = fs::remove_dir(parent.join("middle"));
        let _ = fs::remove_dir(&parent);
    }
}

#[test]
fn the_parents_of_others_stay() {
    let mut bundle = Bundle::sh("sleep 100");
    let tops: Vec<PathBuf> = match view() {
        View::V2 => vec!["/sys/fs/cgroup".into()],
        View::Hybrid => ["pids", "cpu", "freezer"]
            .map(|name| Path::new("/sys/fs/cgroup").join(name))
            .to_vec(),
    };
    let parents: Vec<PathBuf> = tops.iter().map(|top| top.join(&bundle.id)).collect();
    for parent in &parents {
        fs::create_dir(parent).unwrap();
    }
    bundle
        .set(
            "/linux/cgroupsPath",
            json!(format!("/{0}/{0}leaf", bundle.id)),
        )
        .create()
        .ok();
    bundle.delete_force().ok();
    for parent in &parents {
        assert!(
            parent.is_dir(),
            "{} was not made by create",
            parent.display()
        );
    }
    for left in cgroups_named(&bundle.id) {
        let _ = fs::remove_dir(&left);
    }
}

#[test]
fn memory_limit_is_in_force() {
    needs!("memory");
    let mut bundle = Bundle::sh("sleep 100");
    bundle.set(
        "/linux/resources/memory",
        json!({"limit": 33_554_432, "reservation": 16_777_216}),
    );
    bundle.create().ok();
    assert_eq!(
        value(&bundle, "memory", "memory.limit_in_bytes", "memory.max"),
        "33554432"
    );
    assert_eq!(
        value(
            &bundle,
            "memory",
            "memory.soft_limit_in_bytes",
            "memory.low"
        ),
        "16777216"
    );
}

#[test]
fn memory_limit_is_felt() {
    needs!("memory");
    let mut bundle = Bundle::new();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    bundle.set("/linux/resources/memory", json!({"limit": 33_554_432}));
    bundle.args(&["/probe", "memory", "8"]);
    assert_eq!(bundle.run().ok().text(), "touched");
    bundle.args(&["/probe", "memory", "64"]);
    // Swap, where there is any, may hold the rest: then it lives.
    let swap = fs::read_to_string("/proc/swaps").unwrap().lines().count() > 1;
    assert_eq!(bundle.run().code, if swap { 0 } else { 137 });
    bundle.assert_gone();
}

#[test]
fn memory_limit_of_minus_one_is_none() {
    needs!("memory");
    let mut bundle = Bundle::sh("sleep 100");
    bundle.set("/linux/resources/memory", json!({"limit": -1}));
    bundle.create().ok();
    let seen = value(&bundle, "memory", "memory.limit_in_bytes", "memory.max");
    assert!(
        seen == "max" || seen.parse::<u64>().unwrap() > 1 << 60,
        "{seen}"
    );
}

#[test]
fn oom_killer_switch_and_swappiness() {
    if view() == View::V2 {
        skip!("v2 has neither of the two");
    }
    needs!("memory");
    let mut bundle = Bundle::sh("sleep 100");
    bundle.set(
        "/linux/resources/memory",
        json!({"limit": 33_554_432, "swappiness": 10, "disableOOMKiller": true}),
    );
    let dir = |bundle: &Bundle| cgroup_dir(bundle.pid(), "memory");
    bundle.create().ok();
    assert_eq!(read(&dir(&bundle), "memory.swappiness"), "10");
    assert!(read(&dir(&bundle), "memory.oom_control").contains("oom_kill_disable 1"));
}

#[test]
fn cpu_shares_quota_and_period() {
    needs!("cpu");
    let mut bundle = Bundle::sh("sleep 100");
    bundle.set(
        "/linux/resources/cpu",
        json!({"shares": 512, "quota": 20_000, "period": 50_000}),
    );
    bundle.create().ok();
    match view() {
        View::V2 => {
            assert_eq!(value(&bundle, "cpu", "", "cpu.max"), "20000 50000");
            let weight: u64 = value(&bundle, "cpu", "", "cpu.weight").parse().unwrap();
            // Two formulas are about: 20 of old, 59 since runc 1.4.
            assert!([20, 59].contains(&weight), "{weight}");
        }
        View::Hybrid => {
            assert_eq!(value(&bundle, "cpu", "cpu.shares", ""), "512");
            let dir = cgroup_dir(bundle.pid(), "cpu");
            if !dir.join("cpu.cfs_quota_us").exists() {
                skip!("this kernel's cpu controller has no bandwidth control");
            }
            assert_eq!(read(&dir, "cpu.cfs_quota_us"), "20000");
            assert_eq!(read(&dir, "cpu.cfs_period_us"), "50000");
        }
    }
}

#[test]
fn cpu_quota_is_felt() {
    needs!("cpu");
    let mut bundle = Bundle::new();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    bundle.set(
        "/linux/resources/cpu",
        json!({"quota": 20_000, "period": 100_000}),
    );
    bundle.args(&["/probe", "burn", "1000"]);
    let out = bundle.run().ok();
    let used: u64 = out.text().strip_prefix("burned ").unwrap().parse().unwrap();
    assert!(
        used < 500,
        "{used} ms of processor time in 1 s with a fifth of a processor"
    );
}

#[test]
fn cpuset() {
    needs!("cpuset");
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/status"]);
    bundle.set("/linux/resources/cpu", json!({"cpus": "0", "mems": "0"}));
    let out = bundle.run().ok();
    assert_eq!(out.field("Cpus_allowed_list"), "0");
    assert_eq!(out.field("Mems_allowed_list"), "0");
}

#[test]
fn pids_limit() {
    needs!("pids");
    let mut bundle = Bundle::sh("sleep 100");
    bundle.set("/linux/resources/pids", json!({"limit": 10}));
    bundle.create().ok();
    assert_eq!(value(&bundle, "pids", "pids.max", "pids.max"), "10");
    bundle.delete_force().ok();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    bundle.args(&["/probe", "forks", "30"]);
    // EAGAIN; the probe itself is one of the ten.
    assert_eq!(bundle.run().ok().text(), "forked 9 errno 11");
}

#[test]
fn pids_limit_of_minus_one_is_none() {
    needs!("pids");
    let mut bundle = Bundle::sh("sleep 100");
    bundle.set("/linux/resources/pids", json!({"limit": -1}));
    bundle.create().ok();
    assert_eq!(value(&bundle, "pids", "pids.max", "pids.max"), "max");
}

#[test]
fn a_limit_without_its_controller_is_refused() {
    if controller_usable("pids") {
        skip!("this view has every controller that could be asked for");
    }
    let mut bundle = Bundle::new();
    bundle.set("/linux/resources/pids", json!({"limit": 10}));
    let out = bundle.run().code(1);
    assert!(out.stderr.contains("pids"), "{out:#?}");
    bundle.assert_gone();
}

#[test]
fn cgroups_made_inside_are_removed() {
    let mut bundle = Bundle::new();
    let top = if view() == View::V2 { "" } else { "/pids" };
    bundle.args(&[
        "sh",
        "-c",
        &format!("mkdir -p /sys/fs/cgroup{top}/sub/sub && echo made > /h/made; sleep 100"),
    ]);
    bundle.namespace("cgroup");
    bundle.mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev"],
    );
    let host = bundle.host("").to_str().unwrap().to_string();
    bundle.mount("/h", "bind", &host, &["bind"]);
    bundle.run_detached().ok();
    bundle.wait_file("made");
    bundle.delete_force().ok();
    bundle.assert_gone();
}

#[test]
fn nothing_is_made_before_the_configuration_is_known_to_be_right() {
    let mut bundle = Bundle::new();
    bundle.set("/linux/resources/memory", json!({"limit": "much"}));
    bundle.run().code(1);
    bundle.assert_gone();
}

#[test]
fn processes_of_the_cgroup_end_with_delete() {
    if view() == View::V2 && !crate::harness::runtime().isorun {
        skip!("runc 1.1 leaves the v2 cgroup where processes outlive the init");
    }
    // A process that left the pid namespace's shelter is still in the cgroup: the host's pids.
    let mut bundle =
        Bundle::sh("setsid sleep 300 & setsid sleep 300 & echo up > /h/up; exec sleep 300");
    bundle.without_namespace("pid");
    let host = bundle.host("").to_str().unwrap().to_string();
    bundle.mount("/h", "bind", &host, &["bind"]);
    bundle.run_detached().ok();
    bundle.wait_file("up");
    let dir = cgroup_dir(bundle.pid(), "pids");
    wait_for("three processes", || {
        read(&dir, "cgroup.procs").lines().count() == 3
    });
    bundle.delete_force().ok();
    bundle.assert_gone();
}

#[test]
fn v2_file_by_unified() {
    if view() != View::V2 || !controller_usable("pids") {
        skip!("unified needs a v2 tree with a controller");
    }
    let mut bundle = Bundle::sh("sleep 100");
    bundle.set("/linux/resources/unified", json!({"pids.max": "17"}));
    bundle.create().ok();
    assert_eq!(value(&bundle, "pids", "", "pids.max"), "17");
}

/// Also what no limit needs: without the controllers there is nothing to measure in the container's cgroup.
#[test]
fn v2_controllers_are_handed_on_without_a_limit() {
    let top = Path::new("/sys/fs/cgroup");
    if view() != View::V2 || read(top, "cgroup.controllers").is_empty() {
        skip!("this view has no v2 tree with a controller");
    }
    let mut bundle = Bundle::sh("exec sleep 1000");
    let path = format!("/{}-top/below/{}", bundle.id, bundle.id);
    bundle.set("/linux/cgroupsPath", json!(path));
    bundle.run_detached().ok();
    let dir = cgroup_dir(bundle.pid(), "");
    assert!(dir.ends_with(path.trim_start_matches('/')), "{dir:?}");
    // All that the tree's own top hands on, which may be in no position to.
    let handed = read(top, "cgroup.subtree_control");
    if handed.is_empty() {
        skip!("the top of this v2 tree hands no controller on");
    }
    assert_eq!(read(&dir, "cgroup.controllers"), handed);
    bundle.delete_force().ok();
    for left in [
        format!("{}-top/below", bundle.id),
        format!("{}-top", bundle.id),
    ] {
        // runc leaves them.
        let _ = fs::remove_dir(top.join(left));
    }
    bundle.assert_gone();
}

/// A container that may make cgroups makes them so deep that their paths are longer than a path may be.
#[test]
fn cgroups_too_deep_for_a_path_are_found_and_removed() {
    isorun_only!("runc leaves them: ENAMETOOLONG");
    use nix::fcntl::{OFlag, open, openat};
    use nix::sys::stat::{Mode, mkdirat};
    let mut bundle = Bundle::new();
    bundle.args(&["sleep", "1000"]);
    bundle.run_detached().ok();
    let top = cgroup_dir(bundle.pid(), "pids");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut at = open(&top, flags, Mode::empty()).unwrap();
    let name = "d".repeat(200);
    for _ in 0..25 {
        mkdirat(&at, name.as_str(), Mode::from_bits_truncate(0o755)).unwrap();
        at = openat(&at, name.as_str(), flags, Mode::empty()).unwrap();
    }
    drop(at);
    let out = bundle.call(&["ps", "--format", "json", &bundle.id]).ok();
    assert_eq!(out.text(), format!("[{}]", bundle.pid()));
    bundle.kill("KILL").ok();
    bundle.wait_status("stopped");
    bundle.delete().ok();
    bundle.assert_gone();
    assert!(!top.exists());
}

/// A cgroup that somebody uses, or that is frozen, is refused in runc's words, and stays as it is.
#[test]
fn a_cgroup_that_is_in_use_or_frozen() {
    since_runc!(1, 2, "the refusal of a cgroup that is in use");
    let first = crate::exec::idle();
    let path = main_path(first.pid());
    let mut second = Bundle::sh("true");
    second.set("/linux/cgroupsPath", json!(path));
    for run in [Bundle::run, Bundle::create] {
        let out = run(&second).code(1);
        assert!(
            out.stderr
                .contains("container's cgroup is not empty: 1 process(es) found"),
            "{out:#?}"
        );
        second.assert_gone();
    }
    assert_eq!(first.status(), "running");
    let (controller, file, frozen, thawed) = match view() {
        View::V2 => ("", "cgroup.freeze", "1", "0"),
        View::Hybrid => ("freezer", "freezer.state", "FROZEN", "THAWED"),
    };
    let dir = cgroup_dir(first.pid(), controller);
    let empty = dir.with_file_name(format!("{}frozen", first.id));
    std::fs::create_dir(&empty).unwrap();
    std::fs::write(empty.join(file), frozen).unwrap();
    let top = std::path::Path::new(&path).with_file_name(empty.file_name().unwrap());
    second.set("/linux/cgroupsPath", json!(top));
    let out = second.run().code(1);
    assert!(
        out.stderr
            .contains("container's cgroup unexpectedly frozen"),
        "{out:#?}"
    );
    assert_eq!(
        std::fs::read_to_string(empty.join(file)).unwrap().trim(),
        frozen
    );
    second.assert_gone();
    std::fs::write(empty.join(file), thawed).unwrap();
    std::fs::remove_dir(&empty).unwrap();
}
