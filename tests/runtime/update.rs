//! update: limits change while the container runs, all or none.

use std::fs;

use serde_json::json;

use crate::exec::idle;
use crate::harness::{Bundle, Output, View, cgroup_dir, controller_usable, view, wait_for};

/// A container with 64 MiB, 100 processes and half a CPU, where this view has v1's controllers.
fn limited() -> Option<Bundle> {
    if view() != View::Hybrid
        || !["memory", "cpu", "pids"]
            .iter()
            .all(|c| controller_usable(c))
    {
        return None;
    }
    let mut bundle = Bundle::sh("exec sleep 1000");
    bundle.set(
        "/linux/resources",
        json!({"memory": {"limit": 64 << 20, "swap": 128 << 20}, "pids": {"limit": 100},
            "cpu": {"shares": 500, "quota": 50_000, "period": 100_000}}),
    );
    bundle.run_detached().ok();
    Some(bundle)
}

macro_rules! limited {
    () => {
        match limited() {
            Some(bundle) => bundle,
            None => skip!("this view has no v1 controllers ({:?})", view()),
        }
    };
}

fn update(bundle: &Bundle, flags: &[&str]) -> Output {
    bundle.call(&[&["update"], flags, &[bundle.id.as_str()]].concat())
}

/// `controller/file` of the container, without the end of the line.
fn limit(bundle: &Bundle, controller: &str, file: &str) -> String {
    let dir = cgroup_dir(bundle.pid(), controller);
    let text = fs::read_to_string(dir.join(format!("{controller}.{file}"))).unwrap();
    text.trim().to_string()
}

#[test]
fn flags_one_by_one() {
    let bundle = limited!();
    let memory = |file| limit(&bundle, "memory", file);
    update(&bundle, &["--memory", "32m"]).ok();
    assert_eq!(memory("limit_in_bytes"), (32 << 20).to_string());
    assert_eq!(
        memory("memsw.limit_in_bytes"),
        (128 << 20).to_string(),
        "what is not asked for stays"
    );
    // Both above what they were, and both below: neither order is right for both.
    for (both, swap) in [(256u64, 512u64), (16, 24), (300, 300)] {
        let (limit, sum) = (format!("{both}m"), format!("{swap}m"));
        update(&bundle, &["--memory", &limit, "--memory-swap", &sum]).ok();
        assert_eq!(memory("limit_in_bytes"), (both << 20).to_string());
        assert_eq!(memory("memsw.limit_in_bytes"), (swap << 20).to_string());
    }
    update(&bundle, &["--memory-reservation", "8m"]).ok();
    assert_eq!(memory("soft_limit_in_bytes"), (8 << 20).to_string());
    update(&bundle, &["--pids-limit", "20"]).ok();
    assert_eq!(limit(&bundle, "pids", "max"), "20");
    update(&bundle, &["--pids-limit", "-1"]).ok();
    assert_eq!(limit(&bundle, "pids", "max"), "max");
    update(&bundle, &["--cpu-share", "700"]).ok();
    assert_eq!(limit(&bundle, "cpu", "shares"), "700");
    update(&bundle, &["--cpu-quota", "30000"]).ok();
    assert_eq!(limit(&bundle, "cpu", "cfs_quota_us"), "30000");
    update(&bundle, &["--cpu-period", "50000", "--cpu-quota", "60000"]).ok();
    assert_eq!(limit(&bundle, "cpu", "cfs_period_us"), "50000");
    assert_eq!(limit(&bundle, "cpu", "cfs_quota_us"), "60000");
    update(&bundle, &["--cpu-quota", "-1"]).ok();
    assert_eq!(limit(&bundle, "cpu", "cfs_quota_us"), "-1");
    update(&bundle, &["--cpuset-cpus", "0"]).ok();
    assert_eq!(limit(&bundle, "cpuset", "cpus"), "0");
    // No limit for memory takes the one of both away, too.
    update(&bundle, &["--memory", "-1"]).ok();
    assert!(memory("memsw.limit_in_bytes").parse::<u64>().unwrap() > 1 << 60);
    // Nothing asked for is nothing wrong.
    update(&bundle, &[]).ok();
}

/// The flags that few use, each where this kernel has the file.
#[test]
fn the_other_flags() {
    since_runc!(1, 2, "burst and idle groups");
    let bundle = limited!();
    for (flags, controller, file, want) in [
        (&["--cpu-burst", "5000"][..], "cpu", "cfs_burst_us", "5000"),
        (&["--cpuset-mems", "0"], "cpuset", "mems", "0"),
        (&["--cpu-idle", "1"], "cpu", "idle", "1"),
        (&["--cpu-idle", "0"], "cpu", "idle", "0"),
        (&["--blkio-weight", "300"], "blkio", "bfq.weight", "300"),
        (
            &["--memory-reservation", "-1"],
            "memory",
            "soft_limit_in_bytes",
            "",
        ),
    ] {
        let path = cgroup_dir(bundle.pid(), controller).join(format!("{controller}.{file}"));
        if !path.exists() {
            // Asked for in vain is an error, and not silence.
            let out = update(&bundle, flags).code(1);
            assert!(out.stderr.contains(controller), "{out:#?}");
            continue;
        }
        update(&bundle, flags).ok();
        let got = limit(&bundle, controller, file);
        match want {
            "" => assert!(got.parse::<u64>().unwrap() > 1 << 60, "{flags:?}: {got}"),
            want => assert_eq!(got, want, "{flags:?}"),
        }
    }
    // Real-time is its parent's to give, which may have none. More than all of the time nobody gives.
    if cgroup_dir(bundle.pid(), "cpu")
        .join("cpu.rt_runtime_us")
        .exists()
    {
        let flags = ["--cpu-rt-period", "900000", "--cpu-rt-runtime", "800000"];
        let values = || ["rt_period_us", "rt_runtime_us"].map(|file| limit(&bundle, "cpu", file));
        let before = values();
        let given = update(&bundle, &flags).code == 0;
        let want = if given {
            ["900000", "800000"].map(String::from)
        } else {
            before
        };
        assert_eq!(values(), want);
        let out = update(&bundle, &["--cpu-rt-runtime", "9999999"]).code(1);
        assert!(out.stderr.contains("rt_runtime_us"), "{out:#?}");
        assert_eq!(values(), want);
    }
    for flag in ["--kernel-memory", "--kernel-memory-tcp"] {
        let out = update(&bundle, &[flag, "10m"]).ok();
        assert!(out.stderr.to_lowercase().contains("kernel"), "{out:#?}");
    }
    // Where this host has no resctrl to write a schema to.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if !mounts.contains(" - resctrl ") {
        for flags in [
            ["--l3-cache-schema", "L3:0=f"],
            ["--mem-bw-schema", "MB:0=20"],
        ] {
            let out = update(&bundle, &flags).code(1);
            let says = match crate::harness::runtime().isorun {
                true => &format!(
                    "{}: Intel RDT: no resctrl file system is mounted on this host; mount -t resctrl",
                    flags[0]
                ),
                false => "Intel RDT",
            };
            assert!(out.stderr.contains(says), "{out:#?}");
        }
    }
}

/// `unified` by file: the files of v2 as they are called; one that is refused takes the others back.
#[test]
fn unified_by_file() {
    since_runc!(1, 1, "unified in updates");
    let bundle = idle();
    let file = |resources: &serde_json::Value| {
        let path = bundle.host("resources.json");
        fs::write(&path, resources.to_string()).unwrap();
        update(&bundle, &["--resources", path.to_str().unwrap()])
    };
    if view() == View::Hybrid {
        let resources = json!({"unified": {"pids.max": "5"}, "pids": {"limit": 6}});
        let out = file(&resources).code(1);
        assert!(
            out.stderr.contains("cannot use unified on cgroup v1"),
            "{out:#?}"
        );
        assert_eq!(limit(&bundle, "pids", "max"), "max");
        return;
    }
    let read = |name: &str| {
        fs::read_to_string(cgroup_dir(bundle.pid(), "").join(name))
            .map(|text| text.trim().to_string())
    };
    file(&json!({"unified": {"cgroup.max.depth": "7", "cgroup.max.descendants": "70"}})).ok();
    assert_eq!(read("cgroup.max.depth").unwrap(), "7");
    assert_eq!(read("cgroup.max.descendants").unwrap(), "70");
    let out = file(&json!({"unified": {"cgroup.max.depth": "8", "cgroup.max.descendants": "x"}}));
    let out = out.code(1);
    isorun_only!("runc leaves what it wrote before");
    assert!(
        out.stderr
            .contains("linux.resources.unified[\"cgroup.max.descendants\"]"),
        "{out:#?}"
    );
    assert_eq!(read("cgroup.max.depth").unwrap(), "7");
}

/// A controller that this machine does not have is named, with the field; nothing else is changed.
#[test]
fn rdma_without_its_controller() {
    isorun_only!("runc names the file");
    if controller_usable("rdma") {
        skip!("this machine has an rdma controller: integration/lab is for it");
    }
    let bundle = idle();
    let path = bundle.host("resources.json");
    let resources = json!({"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10_000}},
        "pids": {"limit": 60}});
    fs::write(&path, resources.to_string()).unwrap();
    let out = update(&bundle, &["--resources", path.to_str().unwrap()]).code(1);
    // Where there is no controller for processes either, that is the first that is missing.
    let missing = match controller_usable("pids") {
        true => "linux.resources.rdma[\"mlx5_1\"] needs the cgroup controller rdma",
        false => "linux.resources.pids.limit needs the cgroup controller pids",
    };
    assert!(out.stderr.contains(missing), "{out:#?}");
    if view() == View::Hybrid && controller_usable("pids") {
        assert_eq!(limit(&bundle, "pids", "max"), "max");
    }
}

#[test]
fn a_file_and_stdin() {
    since_runc!(1, 2, "files with nulls: 1.1.5 ends in a panic");
    let bundle = limited!();
    let path = bundle.host("resources.json");
    // What Podman writes, and nulls as Go does.
    let resources = json!({"memory": {"limit": 48 << 20, "swap": 96 << 20, "reservation": null},
        "cpu": {"shares": 300, "quota": null}, "pids": {"limit": 30}, "blockIO": {}});
    fs::write(&path, resources.to_string()).unwrap();
    update(&bundle, &["--resources", path.to_str().unwrap()]).ok();
    assert_eq!(
        limit(&bundle, "memory", "limit_in_bytes"),
        (48 << 20).to_string()
    );
    assert_eq!(limit(&bundle, "cpu", "shares"), "300");
    assert_eq!(limit(&bundle, "pids", "max"), "30");
    fs::write(&path, json!({"pids": {"limit": 31}}).to_string()).unwrap();
    let mut command = bundle.command(&["update", "-r", "-", &bundle.id]);
    command.stdin(fs::File::open(&path).unwrap());
    crate::harness::Running::start(command, &bundle.dir.join("io"))
        .finish()
        .ok();
    assert_eq!(limit(&bundle, "pids", "max"), "31");
    for text in ["", "{", "[]", "{\"memory\": 7}"] {
        fs::write(&path, text).unwrap();
        update(&bundle, &["--resources", path.to_str().unwrap()]).code(1);
    }
    update(&bundle, &["--resources", "/nonesuch"]).code(1);
}

#[test]
fn a_refused_limit_leaves_the_old_ones() {
    let bundle = limited!();
    // The quota is over what the kernel takes; the limits before it were written already.
    let out = update(
        &bundle,
        &["--memory", "40m", "--cpu-share", "900", "--cpu-quota", "5"],
    )
    .code(1);
    isorun_only!("runc says that its state and the limits may be inconsistent then");
    assert!(out.stderr.contains("linux.resources.cpu.quota"), "{out:#?}");
    assert_eq!(
        limit(&bundle, "memory", "limit_in_bytes"),
        (64 << 20).to_string()
    );
    assert_eq!(limit(&bundle, "cpu", "shares"), "500");
    assert_eq!(limit(&bundle, "cpu", "cfs_quota_us"), "50000");
    // What was not put in force is not remembered either.
    update(&bundle, &["--cpu-period", "200000"]).ok();
    assert_eq!(limit(&bundle, "cpu", "cfs_quota_us"), "50000");
    let out = update(&bundle, &["--memory", "200m"]).code(1);
    assert!(
        out.stderr.contains("linux.resources.memory.swap"),
        "{out:#?}"
    );
}

#[test]
fn usage_is_looked_at_where_asked() {
    since_runc!(1, 2, "checkBeforeUpdate");
    let bundle = limited!();
    let path = bundle.host("resources.json");
    let resources = json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}});
    fs::write(&path, resources.to_string()).unwrap();
    let out = update(&bundle, &["--resources", path.to_str().unwrap()]).code(1);
    assert!(
        out.stderr.contains("unable to set memory limit to 4096"),
        "{out:#?}"
    );
    assert_eq!(bundle.status(), "running");

    // What is in use fits below this one.
    let resources = json!({"memory": {"limit": 50 << 20, "checkBeforeUpdate": true}});
    fs::write(&path, resources.to_string()).unwrap();
    update(&bundle, &["--resources", path.to_str().unwrap()]).ok();
    assert_eq!(
        limit(&bundle, "memory", "limit_in_bytes"),
        (50 << 20).to_string()
    );
}

#[test]
fn a_paused_container_is_updated_too() {
    let bundle = limited!();
    bundle.call(&["pause", &bundle.id]).ok();
    update(&bundle, &["--pids-limit", "9"]).ok();
    assert_eq!(limit(&bundle, "pids", "max"), "9");
    bundle.call(&["resume", &bundle.id]).ok();
    wait_for("it to go on", || bundle.status() == "running");
}

#[test]
fn wrong_values_and_states() {
    let bundle = idle();
    for (flags, text) in [
        (
            &["--memory", "x"][..],
            "invalid value for memory: invalid size: 'x'",
        ),
        (&["--cpu-quota", "x"], "invalid value for cpu-quota"),
        (&["--cpu-share", "-1"], "invalid value for cpu-share"),
    ] {
        let out = update(&bundle, flags).code(1);
        assert!(out.stderr.contains(text), "{out:#?}");
    }
    let out = bundle
        .call(&["update", "--memory", "64m", "nonesuch"])
        .code(1);
    assert!(out.stderr.contains("container does not exist"), "{out:#?}");
    if view() == View::V2 && !controller_usable("pids") {
        // A limit that nothing here can enforce.
        update(&bundle, &["--pids-limit", "10"]).code(1);
    }
    bundle.kill("KILL").ok();
    bundle.wait_status("stopped");
    let out = update(&bundle, &["--pids-limit", "10"]).code(1);
    assert!(out.stderr.contains("container not running"), "{out:#?}");
}
