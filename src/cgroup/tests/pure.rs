//! Plans on captured hosts.

use serde_json::{Value, json};

use super::super::*;
use super::*;

fn paths(host: &Hierarchies, cgroups_path: Value) -> Vec<String> {
    let mut value = json!({});
    if !cgroups_path.is_null() {
        value["cgroupsPath"] = cgroups_path;
    }
    let plan = plan(Some(&linux(value)), "c1", host).unwrap();
    plan.dirs
        .iter()
        .map(|dir| dir.path.display().to_string())
        .collect()
}

/// (file, value) of every write, with the directory's last part.
fn writes(host: &Hierarchies, asked: Value) -> Vec<String> {
    let plan = plan(Some(&resources(asked)), "c1", host).unwrap();
    let of = |dir: &PlannedDir| {
        dir.writes
            .iter()
            .map(|write| format!("{}={}", write.file, write.value))
            .collect::<Vec<_>>()
    };
    plan.dirs.iter().flat_map(of).collect()
}

fn refusal(host: &Hierarchies, asked: Value) -> String {
    plan(Some(&resources(asked)), "c1", host)
        .unwrap_err()
        .to_string()
}

#[test]
fn hosts() {
    let host = hybrid();
    assert_eq!((host.mode, host.v1.len()), (Mode::Hybrid, 9));
    assert_eq!(host.v1[3].own, "/process_api/0b74");
    assert_eq!(host.v1[8].controllers, ["name=systemd"]);
    assert_eq!(
        host.v2.as_ref().unwrap().mount.to_str(),
        Some("/sys/fs/cgroup/unified")
    );
    let host = v1();
    assert_eq!((host.mode, host.v1.len()), (Mode::V1, 4), "{host:?}");
    assert_eq!(host.v1[1].controllers, ["cpu", "cpuacct"]);
    assert_eq!(v2("/x", &[]).mode, Mode::V2);
    let parse = super::super::hierarchies::parse;
    assert_eq!(
        parse("0::/\n", "26 22 0:25 / /proc rw - proc proc rw\n"),
        Hierarchies::none()
    );
    // Inside a Docker container on v1: the host's path, of which the mount shows the end.
    let inside = parse(
        "3:memory:/docker/abc/sub\n2:pids:/elsewhere\n",
        "1 2 0:1 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
         1 2 0:2 /docker/abc /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n",
    );
    assert_eq!(
        (inside.v1[0].own.as_str(), inside.v1[1].own.as_str()),
        ("/sub", "/")
    );
    // Outside of the cgroup namespace's root.
    assert_eq!(v2("/../../other", &[]).v2.unwrap().own, "/");
    let host = hybrid();
    let text = serde_json::to_string(&host).unwrap();
    assert_eq!(serde_json::from_str::<Hierarchies>(&text).unwrap(), host);
}

/// As runc 1.1.5 was seen to choose them on the hybrid machine.
#[test]
fn paths_on_hybrid() {
    let host = hybrid();
    let absolute = paths(&host, json!("/a/b"));
    assert_eq!(absolute[0], "/sys/fs/cgroup/cpu/a/b");
    assert_eq!(absolute[3], "/sys/fs/cgroup/memory/a/b");
    assert_eq!(
        absolute[8..],
        ["/sys/fs/cgroup/systemd/a/b", "/sys/fs/cgroup/unified/a/b"]
    );
    let relative = paths(&host, json!("a/b"));
    assert_eq!(relative[0], "/sys/fs/cgroup/cpu/a/b");
    assert_eq!(relative[3], "/sys/fs/cgroup/memory/process_api/0b74/a/b");
    for missing in [json!(null), json!("")] {
        let none = paths(&host, missing);
        assert_eq!(none[3], "/sys/fs/cgroup/memory/process_api/0b74/c1");
        assert_eq!(none[9], "/sys/fs/cgroup/unified/c1");
    }
    assert_eq!(
        paths(&host, json!("../../x"))[3],
        "/sys/fs/cgroup/memory/process_api/0b74/x"
    );
    assert_eq!(paths(&host, json!("/../../x"))[0], "/sys/fs/cgroup/cpu/x");
    assert_eq!(
        paths(&host, json!("system.slice:a:b"))[0],
        "/sys/fs/cgroup/cpu/system.slice:a:b"
    );
    assert_eq!(
        paths(&v1(), json!("x"))[1],
        "/sys/fs/cgroup/cpu,cpuacct/user.slice/x"
    );
}

/// On v2 a relative path is below the parent of the runtime's own cgroup.
#[test]
fn paths_on_v2() {
    let host = v2("/user.slice/session-1.scope", &[]);
    assert_eq!(paths(&host, json!("/a/b")), ["/sys/fs/cgroup/a/b"]);
    assert_eq!(
        paths(&host, json!("a/b")),
        ["/sys/fs/cgroup/user.slice/a/b"]
    );
    assert_eq!(paths(&host, json!(null)), ["/sys/fs/cgroup/user.slice/c1"]);
    assert_eq!(paths(&v2("/", &[]), json!(null)), ["/sys/fs/cgroup/c1"]);
    assert_eq!(paths(&v2("/", &[]), json!("/..")), ["/sys/fs/cgroup/c1"]);
    let error = plan(Some(&linux(json!({"cgroupsPath": "/a\u{0}b"}))), "c", &host).unwrap_err();
    assert!(error.to_string().contains("linux.cgroupsPath"), "{error}");
}

#[test]
fn limits_on_v2() {
    let host = v2("/", &["memory", "cpu", "pids", "cpuset", "io", "hugetlb"]);
    let asked = json!({
        "memory": {"limit": 104857600, "reservation": 1048576, "swap": 209715200},
        "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "burst": 1000, "cpus": "0-1"},
        "pids": {"limit": 100},
        "unified": {"memory.high": "90000000", "cgroup.max.depth": "3"},
    });
    assert_eq!(
        writes(&host, asked.clone()),
        [
            "cpuset.cpus=0-1",
            "cpu.weight=100",
            "cpu.max=50000 100000",
            "cpu.max.burst=1000",
            "memory.swap.max=104857600",
            "memory.max=104857600",
            "memory.low=1048576",
            "pids.max=100",
            "cgroup.max.depth=3",
            "memory.high=90000000"
        ]
    );
    let plan = plan(Some(&resources(asked)), "c1", &host).unwrap();
    assert!(plan.clone_into);
    assert_eq!(
        plan.dirs[0].controllers,
        ["cpuset", "cpu", "memory", "pids"]
    );
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<CgroupPlan>(&text).unwrap(), plan);
    // Swap is not touched unless it is asked for.
    assert_eq!(
        writes(&host, json!({"memory": {"limit": 4096}})),
        ["memory.max=4096"]
    );
    assert_eq!(
        writes(&host, json!({"memory": {"limit": -1}})),
        ["memory.swap.max=max", "memory.max=max"]
    );
    assert_eq!(
        writes(&host, json!({"cpu": {"period": 5000}})),
        ["cpu.max=max 5000"]
    );
    assert_eq!(
        writes(&host, json!({"cpu": {"quota": -1}})),
        ["cpu.max=max 100000"]
    );
    assert_eq!(
        writes(
            &host,
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]})
        ),
        ["hugetlb.2MB.max=0", "hugetlb.2MB.rsvd.max=0"]
    );
    assert_eq!(
        writes(
            &host,
            json!({"blockIO": {"weight": 500,
            "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}]}})
        ),
        ["io.bfq.weight=default 500", "io.max=8:0 wbps=1024"]
    );
}

#[test]
fn limits_on_hybrid() {
    let asked = json!({
        "memory": {"limit": 104857600, "reservation": 1048576, "swap": 209715200,
            "swappiness": 10, "disableOOMKiller": true},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0", "mems": "0"},
        "pids": {"limit": -1},
        "blockIO": {"throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 7}]},
    });
    let host = hybrid();
    assert_eq!(
        writes(&host, asked.clone()),
        [
            "cpu.shares=512",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=50000",
            "cpuset.cpus=0",
            "cpuset.mems=0",
            "memory.limit_in_bytes=104857600",
            "memory.memsw.limit_in_bytes=209715200",
            "memory.soft_limit_in_bytes=1048576",
            "memory.swappiness=10",
            "memory.oom_control=1",
            "blkio.throttle.read_iops_device=8:0 7",
            "pids.max=max"
        ]
    );
    let plan = plan(Some(&resources(asked)), "c1", &host).unwrap();
    assert!(!plan.clone_into);
    assert!(plan.v2().unwrap().devices.is_none() && plan.dirs[4].devices.is_some());
}

/// What engines send without meaning a limit needs no controller.
#[test]
fn nothing_asked() {
    let bare = v2("/", &["hugetlb"]);
    for asked in [
        json!({}),
        json!({"memory": {}, "cpu": {}, "blockIO": {}, "network": {}, "unified": {}, "rdma": {}}),
        json!({"memory": {"limit": 0, "swap": 0}, "cpu": {"shares": 0, "quota": 0, "period": 0}}),
        json!({"pids": {"limit": 0}, "hugepageLimits": [], "cpu": {"realtimeRuntime": 0}}),
        json!({"pids": {"limit": -1}, "memory": {"limit": -1}, "cpu": {"quota": -1}}),
    ] {
        assert_eq!(writes(&bare, asked.clone()), [""; 0], "{asked}");
    }
    let plan = plan(None, "c", &bare).unwrap();
    assert!(plan.dirs[0].controllers.is_empty() && plan.dirs[0].devices.is_some());
}

#[test]
fn controllers_that_are_not_there() {
    let bare = v2("/", &["hugetlb"]);
    for (asked, field, controller) in [
        (
            json!({"memory": {"limit": 1000000}}),
            "linux.resources.memory.limit",
            "memory",
        ),
        (
            json!({"cpu": {"shares": 5}}),
            "linux.resources.cpu.shares",
            "cpu",
        ),
        (
            json!({"cpu": {"cpus": "0"}}),
            "linux.resources.cpu.cpus",
            "cpuset",
        ),
        (
            json!({"pids": {"limit": 5}}),
            "linux.resources.pids.limit",
            "pids",
        ),
        (
            json!({"blockIO": {"weight": 50}}),
            "linux.resources.blockIO.weight",
            "io",
        ),
        (
            json!({"rdma": {"mlx": {"hcaHandles": 3}}}),
            "linux.resources.rdma[\"mlx\"]",
            "rdma",
        ),
        (
            json!({"network": {"classID": 3}}),
            "linux.resources.network.classID",
            "net_cls",
        ),
    ] {
        let error = refusal(&bare, asked);
        let want = format!("{field} needs the cgroup controller {controller},");
        assert!(
            error.starts_with(&want) && error.contains("here: hugetlb"),
            "{error}"
        );
    }
    let none = Hierarchies::none();
    assert!(refusal(&none, json!({"pids": {"limit": 5}})).contains("here: none"));
    assert!(
        refusal(
            &none,
            json!({"devices": [{"allow": false, "access": "rwm"}]})
        )
        .contains("devices")
    );
    assert!(plan(None, "c", &none).unwrap().dirs.is_empty());
}

#[test]
fn values_that_are_wrong() {
    let v2 = v2("/", &["memory", "cpu", "pids", "hugetlb"]);
    for (host, asked, field) in [
        (
            &v2,
            json!({"memory": {"limit": 10, "swap": 5}}),
            "linux.resources.memory.swap",
        ),
        (
            &v2,
            json!({"memory": {"swap": 5}}),
            "linux.resources.memory.swap",
        ),
        (
            &hybrid(),
            json!({"memory": {"limit": 10, "swap": 5}}),
            "linux.resources.memory.swap",
        ),
        (
            &hybrid(),
            json!({"memory": {"swappiness": 101}}),
            "linux.resources.memory.swappiness",
        ),
        (
            &v2,
            json!({"cpu": {"realtimeRuntime": 5}}),
            "linux.resources.cpu.realtimeRuntime",
        ),
        (
            &hybrid(),
            json!({"unified": {"memory.max": "1"}}),
            "linux.resources.unified[\"memory.max\"]",
        ),
        (
            &v2,
            json!({"unified": {"../x.y": "1"}}),
            "linux.resources.unified[\"../x.y\"]",
        ),
        (
            &v2,
            json!({"unified": {"cgroup.procs": "1"}}),
            "linux.resources.unified[\"cgroup.procs\"]",
        ),
        (
            &v2,
            json!({"hugepageLimits": [{"pageSize": "2/MB", "limit": 1}]}),
            "linux.resources.hugepageLimits[0].pageSize",
        ),
        (
            &v2,
            json!({"devices": [{"allow": true, "access": "x"}]}),
            "linux.resources.devices[0].access",
        ),
        (
            &v2,
            json!({"devices": [{"allow": true}]}),
            "linux.resources.devices[0].access",
        ),
        (
            &v2,
            json!({"devices": [{"allow": true, "type": "p", "access": "r"}]}),
            "linux.resources.devices[0].type",
        ),
        (
            &v2,
            json!({"devices": [{"allow": true, "major": -2, "access": "r"}]}),
            "linux.resources.devices[0].major",
        ),
    ] {
        let error = refusal(host, asked);
        assert!(
            error.starts_with(&format!("config.json: {field}: ")),
            "{error}"
        );
    }
}

/// One line of a file of v2 is one write: the kernel takes no more.
#[test]
fn lines_of_unified() {
    let host = v2("/", &["io", "memory"]);
    let asked = json!({"unified": {
        "io.max": "8:0 rbps=1\n8:16 wiops=2\n", "memory.high": "5\n", "memory.low": ""
    }});
    assert_eq!(
        writes(&host, asked),
        [
            "io.max=8:0 rbps=1",
            "io.max=8:16 wiops=2",
            "memory.high=5",
            "memory.low=",
        ]
    );
}

/// runc's words for what tools look for.
#[test]
fn sentences_as_runcs() {
    let v2 = v2("/", &["memory"]);
    for (host, asked, sentence) in [
        (
            &hybrid(),
            json!({"unified": {"memory.max": "1"}}),
            "cannot use unified on cgroup v1",
        ),
        (
            &v2,
            json!({"unified": {"a/b": "1"}}),
            "must be a file name (no slashes)",
        ),
        (
            &v2,
            json!({"unified": {"ab": "1"}}),
            "must be in the form CONTROLLER.PARAMETER",
        ),
        (
            &v2,
            json!({"unified": {"pids.max": "1"}}),
            "can't be set: controller \"pids\" not available (controllers here: memory)",
        ),
        (
            &v2,
            json!({"memory": {"swap": 5}}),
            "unable to set swap limit without memory limit",
        ),
        (
            &hybrid(),
            json!({"memory": {"limit": 10, "swap": 5}}),
            "memory+swap limit should be >= memory limit",
        ),
        (
            &hybrid(),
            json!({"memory": {"swappiness": 101}}),
            "invalid memory swappiness value: 101 (valid range is 0-100)",
        ),
    ] {
        let error = refusal(host, asked);
        assert!(error.contains(sentence), "{error}");
    }
}

/// Fields without effect are told.
#[test]
fn ignored_fields() {
    let host = v2("/", &["memory", "cpu"]);
    let asked = json!({
        "memory": {"swappiness": 10, "disableOOMKiller": true, "kernel": 5, "kernelTCP": 6},
        "cpu": {"idle": 1, "shares": 100},
    });
    let plan = plan(Some(&resources(asked)), "c", &host).unwrap();
    let mut fields: Vec<&str> = plan
        .ignored
        .iter()
        .map(|ignored| ignored.field.as_str())
        .collect();
    fields.sort();
    assert_eq!(
        fields,
        [
            "linux.resources.cpu.shares",
            "linux.resources.memory.disableOOMKiller",
            "linux.resources.memory.kernel",
            "linux.resources.memory.kernelTCP",
            "linux.resources.memory.swappiness"
        ]
    );
    assert_eq!(plan.dirs[0].writes.len(), 1);
}

#[test]
fn views() {
    let host = v1();
    let plan1 = plan(Some(&linux(json!({"cgroupsPath": "/c"}))), "c", &host).unwrap();
    let MountView::V1 { entries, links } = mount_view(&host, &plan1, Seen::Own) else {
        panic!()
    };
    assert_eq!(
        links,
        [
            ("cpu".into(), "cpu,cpuacct".into()),
            ("cpuacct".into(), "cpu,cpuacct".into())
        ]
    );
    assert_eq!(
        (entries[0].name.as_str(), entries[0].data.as_str()),
        ("systemd", "name=systemd")
    );
    assert_eq!(entries[1].data, "cpu,cpuacct");
    assert_eq!(entries[1].fs.as_deref(), Some("cgroup"));
    let MountView::V1 { entries, .. } = mount_view(&host, &plan1, Seen::Host) else {
        panic!()
    };
    assert_eq!(entries[2].fs, None);
    assert_eq!(entries[2].bind.to_str(), Some("/sys/fs/cgroup/memory/c"));
    let host = hybrid();
    let plan1 = plan(None, "c", &host).unwrap();
    let MountView::V1 { entries, links } = mount_view(&host, &plan1, Seen::Own) else {
        panic!()
    };
    assert!(links.is_empty());
    assert_eq!(entries[9].name, "unified");
    assert_eq!(entries[9].fs.as_deref(), Some("cgroup2"));
    let host = v2("/", &[]);
    let plan1 = plan(None, "c", &host).unwrap();
    assert_eq!(
        mount_view(&host, &plan1, Seen::Own),
        MountView::V2 {
            bind: "/sys/fs/cgroup/c".into(),
            own: None,
        }
    );
    assert_eq!(
        mount_view(&host, &plan1, Seen::Host),
        MountView::V2 {
            bind: "/sys/fs/cgroup".into(),
            own: None,
        }
    );
    let none = Hierarchies::none();
    assert_eq!(
        mount_view(&none, &plan(None, "c", &none).unwrap(), Seen::Own),
        MountView::None
    );
}
