//! The rules for linux.

use serde_json::{Value, json};

use super::{accepted, noted, refused};

#[test]
fn namespaces_and_mappings() {
    let map = |ranges: &[[u64; 3]]| -> Value {
        ranges
            .iter()
            .map(|[container, host, size]| {
                json!({"containerID": container, "hostID": host, "size": size})
            })
            .collect()
    };
    let user = |uid: Value, gid: Value| {
        [
            ("/linux/namespaces/-", json!({"type": "user"})),
            ("/linux/uidMappings", uid),
            ("/linux/gidMappings", gid),
        ]
    };
    let good = || map(&[[0, 100_000, 65536]]);
    refused(&[
        (
            &[("/linux", Value::Null)],
            "linux",
            "missing: it says which namespaces",
        ),
        (
            &[
                ("/linux/namespaces", json!([])),
                ("/linux/maskedPaths", json!(["/proc/kcore"])),
            ],
            "linux.maskedPaths",
            "unable to restrict sys entries without a private MNT namespace",
        ),
        (
            &[
                ("/linux/namespaces", json!([{"type": "pid"}])),
                ("/linux/readonlyPaths", json!(["/proc/sys"])),
            ],
            "linux.readonlyPaths",
            "unable to restrict sys entries without a private MNT namespace",
        ),
        (
            &[
                ("/linux/namespaces", json!([{"type": "user"}])),
                ("/linux/uidMappings", good()),
                ("/linux/gidMappings", good()),
            ],
            "linux.namespaces",
            "a user namespace needs a mount namespace",
        ),
        (
            &[("/linux/namespaces/1/type", json!("pidd"))],
            "linux.namespaces[1].type",
            "unknown variant `pidd`",
        ),
        (
            &[("/linux/namespaces/-", json!({"type": "uts"}))],
            "linux.namespaces[4].type",
            "\"uts\" is there twice",
        ),
        (
            &[("/linux/namespaces/1/path", json!("proc/1/ns/uts"))],
            "linux.namespaces[1].path",
            "not an absolute path",
        ),
        (
            &[("/linux/uidMappings", good())],
            "linux.uidMappings",
            "without a user namespace",
        ),
        (
            &[("/linux/gidMappings", good())],
            "linux.gidMappings",
            "without a user namespace",
        ),
        (&user(Value::Null, good()), "linux.uidMappings", "missing"),
        (&user(good(), json!([])), "linux.gidMappings", "missing"),
        (
            &user(map(&[[0, 1, 0]]), good()),
            "linux.uidMappings[0].size",
            "0 or missing",
        ),
        (
            &user(map(&[[1, 1, 1]]), good()),
            "linux.uidMappings",
            "id 0 is not mapped",
        ),
        (
            &user(map(&[[0, 1, 5], [4, 100, 5]]), good()),
            "linux.uidMappings[1].containerID",
            "overlaps that of linux.uidMappings[0]",
        ),
        (
            &user(good(), map(&[[0, 1, 5], [5, 5, 5]])),
            "linux.gidMappings[1].hostID",
            "overlaps",
        ),
        (
            &user(map(&[[0, 4_294_967_290, 10]]), good()),
            "linux.uidMappings[0].hostID",
            "beyond the last id",
        ),
        (
            &user(map(&[[0, 4_294_967_296, 1]]), good()),
            "linux.uidMappings[0].hostID",
            "invalid value",
        ),
        (
            &user(
                (0..341)
                    .map(|id| json!({"containerID": id, "hostID": id, "size": 1}))
                    .collect(),
                good(),
            ),
            "linux.uidMappings",
            "341 ranges",
        ),
        (
            &[
                &user(map(&[[0, 1, 1]]), good())[..],
                &[("/process/user/uid", json!(1))],
            ]
            .concat(),
            "process.user.uid",
            "1 is not mapped",
        ),
        (
            &[
                &user(good(), map(&[[0, 1, 1]]))[..],
                &[("/process/user/gid", json!(7))],
            ]
            .concat(),
            "process.user.gid",
            "7 is not mapped",
        ),
    ]);
    accepted(&[
        &user(good(), good()),
        &user(map(&[[0, 1, 5], [5, 6, 5]]), good()),
        &user(map(&[[0, 0, u64::from(u32::MAX)]]), good()),
        &[
            ("/linux/uidMappings", json!([])),
            ("/linux/gidMappings", Value::Null),
        ],
        &[("/linux/namespaces/1/path", json!(""))],
        &[(
            "/linux/namespaces",
            json!([
            {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "network"},
            {"type": "pid"}, {"type": "cgroup"}, {"type": "time"}]),
        )],
    ]);
}

#[test]
fn time_offsets() {
    let time = |offsets: Value| {
        [
            ("/linux/namespaces/-", json!({"type": "time"})),
            ("/linux/timeOffsets", offsets),
        ]
    };
    refused(&[
        (
            &[("/linux/timeOffsets", json!({"boottime": {"secs": 1}}))],
            "linux.timeOffsets",
            "without a new time namespace",
        ),
        (
            &time(json!({"realtime": {"secs": 1}})),
            "linux.timeOffsets.realtime",
            "unknown clock",
        ),
        (
            &time(json!({"boottime": {"nanosecs": 1_000_000_000}})),
            "linux.timeOffsets.boottime.nanosecs",
            "a second or more",
        ),
    ]);
    accepted(&[
        &time(json!({"boottime": {"secs": -5, "nanosecs": 999_999_999}, "monotonic": {}})),
        &[("/linux/timeOffsets", json!({}))],
    ]);
}

#[test]
fn devices() {
    let device = |value: Value| [("/linux/devices", json!([value]))];
    let rule = |value: Value| [("/linux/resources/devices", json!([value]))];
    refused(&[
        (
            &device(json!({"path": "/dev/x", "type": "a"})),
            "linux.devices[0].type",
            "is no device",
        ),
        (
            &device(json!({"path": "/dev/x", "type": "x"})),
            "linux.devices[0].type",
            "unknown variant `x`",
        ),
        (
            &device(json!({"path": "/dev/x"})),
            "linux.devices[0].type",
            "missing",
        ),
        (
            &device(json!({"path": "dev/x", "type": "c"})),
            "linux.devices[0].path",
            "not an absolute",
        ),
        (
            &device(json!({"type": "c"})),
            "linux.devices[0].path",
            "not an absolute",
        ),
        (
            &device(json!({"path": "/dev/x", "type": "c", "major": -1})),
            "linux.devices[0].major",
            "-1 is outside 0 to 4095",
        ),
        (
            &device(json!({"path": "/dev/x", "type": "b", "minor": 1_048_576})),
            "linux.devices[0].minor",
            "outside 0 to 1048575",
        ),
        (
            &rule(json!({"allow": true})),
            "linux.resources.devices[0].access",
            "missing",
        ),
        (
            &rule(json!({"allow": true, "access": ""})),
            "linux.resources.devices[0].access",
            "missing",
        ),
        (
            &rule(json!({"allow": true, "access": "rx"})),
            "linux.resources.devices[0].access",
            "not made of r, w and m",
        ),
        (
            &rule(json!({"type": "p", "access": "r"})),
            "linux.resources.devices[0].type",
            "a (all)",
        ),
        (
            &rule(json!({"major": -2, "access": "r"})),
            "linux.resources.devices[0].major",
            "negative",
        ),
    ]);
    accepted(&[
        &device(json!({"path": "/dev/x", "type": "p"})),
        &device(
            json!({"path": "/dev/x", "type": "c", "major": 10, "minor": 229, "fileMode": 438,
            "uid": 0, "gid": 0}),
        ),
        &rule(json!({"allow": false, "access": "rwm"})),
        &rule(json!({"allow": true, "type": "c", "major": 1, "access": "m"})),
    ]);
}

#[test]
fn sysctls() {
    let sysctl = |key: &str| [("/linux/sysctl", json!({ key: "1" }))];
    let without = |key: &str, place: usize| {
        let pointer = [
            "",
            "/linux/namespaces/1",
            "/linux/namespaces/2",
            "/linux/namespaces/3",
        ][place];
        vec![
            (pointer, json!({"type": "pid"})),
            ("/linux/sysctl", json!({ key: "1" })),
        ]
    };
    for key in [
        "net.ipv4.ip_forward",
        "net/ipv4/conf/eno2.100/rp_filter",
        "kernel.msgmax",
        "kernel.sem",
        "kernel.shm_rmid_forced",
        "kernel/shmall",
        "fs.mqueue.msg_max",
        "kernel.domainname",
    ] {
        accepted(&[&sysctl(key)]);
    }
    accepted(&[&[("/linux/sysctl", json!({}))]]);
    refused(&[
        (
            &without("kernel.msgmax", 2),
            "linux.sysctl[\"kernel.msgmax\"]",
            "host's IPC namespace",
        ),
        (
            &without("fs.mqueue.x", 2),
            "linux.sysctl[\"fs.mqueue.x\"]",
            "host's IPC namespace",
        ),
        (
            &without("net.core.x", 3),
            "linux.sysctl[\"net.core.x\"]",
            "host's network namespace",
        ),
        (
            &without("kernel.domainname", 1),
            "linux.sysctl[\"kernel.domainname\"]",
            "not in a separate kernel namespace",
        ),
        (
            &sysctl("kernel.hostname"),
            "linux.sysctl[\"kernel.hostname\"]",
            "conflicts",
        ),
        (
            &sysctl("kernel.core_pattern"),
            "linux.sysctl[\"kernel.core_pattern\"]",
            "separate",
        ),
        (
            &sysctl("vm.swappiness"),
            "linux.sysctl[\"vm.swappiness\"]",
            "separate",
        ),
        (
            &sysctl("net/../kernel/core_pattern"),
            "linux.sysctl[\"net/../kernel/core_pattern\"]",
            "not the name of a sysctl",
        ),
        (
            &sysctl("net.//.x"),
            "linux.sysctl[\"net.//.x\"]",
            "not the name of a sysctl",
        ),
        (
            &sysctl(""),
            "linux.sysctl[\"\"]",
            "not the name of a sysctl",
        ),
    ]);
}

#[test]
fn paths_and_what_comes_later() {
    refused(&[
        (
            &[("/linux/maskedPaths", json!(["/a", "b"]))],
            "linux.maskedPaths[1]",
            "not an absolute",
        ),
        (
            &[("/linux/readonlyPaths", json!([""]))],
            "linux.readonlyPaths[0]",
            "not an absolute",
        ),
        (
            &[("/linux/readonlyPaths", json!(["/\0"]))],
            "linux.readonlyPaths[0]",
            "null byte",
        ),
        (
            &[("/linux/cgroupsPath", json!("\0"))],
            "linux.cgroupsPath",
            "null byte",
        ),
        (
            &[("/linux/rootfsPropagation", json!("ro"))],
            "linux.rootfsPropagation",
            "none of shared",
        ),
        (
            &[("/linux/mountLabel", json!("x\""))],
            "linux.mountLabel",
            "quote",
        ),
        (
            &[("/linux/personality", json!({"domain": "BSD"}))],
            "linux.personality.domain",
            "unknown variant",
        ),
        (
            &[("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_FROB"}))],
            "linux.seccomp.defaultAction",
            "unknown variant",
        ),
    ]);
    accepted(&[
        &[("/linux/rootfsPropagation", json!("rslave"))],
        &[("/linux/rootfsPropagation", json!(""))],
        &[
            ("/linux/mountLabel", json!("")),
            ("/linux/netDevices", json!({})),
        ],
        &[(
            "/linux/resources",
            json!({"blockIO": {}, "memory": {}, "cpu": {}, "pids": {}}),
        )],
        &[("/linux/seccomp", json!({}))],
        &[("/linux/seccomp", json!({"syscalls": []}))],
        &[("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"}))],
    ]);
    noted(&[
        (
            &[("/linux/resources/memory", json!({"useHierarchy": false}))],
            "linux.resources.memory.useHierarchy: ignored",
        ),
        (
            &[(
                "/linux/personality",
                json!({"domain": "LINUX", "flags": ["x"]}),
            )],
            "linux.personality.flags: ignored",
        ),
    ]);
}
