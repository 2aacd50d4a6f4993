//! `isorun doctor` inside containers of isorun that take something away, and a container in there beside
//! it: what doctor says is what then happens.

use serde_json::{Value, json};

use crate::doctor::{probe, remedy, report, restrictions, works};
use crate::harness::{Bundle, Output, busybox_tree, runtime};

/// What a container needs that makes containers.
const CAPS: [&str; 15] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
];

/// A container with everything, and in it isorun and a bundle at /inner.
struct Nested {
    outer: Bundle,
    inner: Value,
}

impl Nested {
    fn new() -> Self {
        let mut outer = Bundle::sh(
            "/isorun doctor --json; echo \"doctor $?\"; \
             /isorun --root /state run --bundle /inner inner 2>&1; echo \"run $?\"",
        );
        let inner = inner(&outer.config);
        std::fs::copy(&runtime().path, outer.rootfs("/isorun")).unwrap();
        busybox_tree(&outer.rootfs("/inner/rootfs"));
        let list = json!(CAPS);
        let all = json!({"bounding": list, "effective": list, "permitted": list});
        outer
            .set("/process/capabilities", all)
            .set("/process/noNewPrivileges", json!(false))
            .set("/linux/maskedPaths", json!([]))
            .set("/linux/readonlyPaths", json!([]))
            .set(
                "/linux/resources/devices",
                json!([{"allow": true, "access": "rwm"}]),
            );
        Self { outer, inner }
    }

    /// The inner container has a user namespace.
    fn with_user_namespace(&mut self) {
        let namespaces = self.inner["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
        self.inner["linux"]["uidMappings"] = map.clone();
        self.inner["linux"]["gidMappings"] = map;
    }

    /// The report, and exit status and output of the container inside.
    fn run(&self) -> (Value, i32, String) {
        let text = serde_json::to_string(&self.inner).unwrap();
        std::fs::write(self.outer.rootfs("/inner/config.json"), text).unwrap();
        let out = self.outer.run().ok();
        let (json, rest) = out
            .stdout
            .split_once("\ndoctor ")
            .unwrap_or_else(|| panic!("{out:#?}"));
        let (code, rest) = rest.split_once('\n').unwrap();
        let (said, ran) = rest.rsplit_once("run ").unwrap();
        let doctor = Output {
            command: out.command.clone(),
            code: code.parse().unwrap(),
            stdout: json.to_string(),
            stderr: out.stderr.clone(),
        };
        let report = report(&doctor);
        assert_eq!(
            report["facts"]["surroundings"]["kind"], "container",
            "{report:#}"
        );
        (report, ran.trim().parse().unwrap(), said.to_string())
    }
}

/// The base configuration without what only a machine's root has.
fn inner(base: &Value) -> Value {
    let mut inner = base.clone();
    inner["linux"].as_object_mut().unwrap().remove("resources");
    let process = inner["process"].as_object_mut().unwrap();
    process.insert("args".into(), json!(["true"]));
    process.insert("capabilities".into(), json!({}));
    let mounts = inner["mounts"].as_array_mut().unwrap();
    for mount in mounts {
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "gid=5");
        }
    }
    inner
}

#[test]
fn with_everything() {
    doctors!();
    let nested = Nested::new();
    let (report, ran, said) = nested.run();
    for name in [
        "root.mount",
        "root.proc",
        "root.pivot_root",
        "root.mknod",
        "user.proc",
    ] {
        assert!(works(&report, name), "{name}: {report:#}");
    }
    assert_eq!(ran, 0, "{said}");
}

/// What Docker's filter does without CAP_SYS_ADMIN: no new namespaces by clone, no clone3, no unshare.
#[test]
fn under_a_filter_like_dockers() {
    doctors!();
    let mut nested = Nested::new();
    let mut rules = vec![
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}),
        json!({"names": ["unshare", "setns", "mount", "umount2", "fsopen", "move_mount", "open_tree",
            "mount_setattr", "pivot_root"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}),
    ];
    for flag in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ] {
        rules.push(
            json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args":
            [{"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}]}),
        );
    }
    nested.outer.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules}),
    );
    let (report, ran, said) = nested.run();
    assert_eq!(report["mode"], "DISABLED", "{report:#}");
    assert_eq!(report["restriction"], "SECCOMP", "{report:#}");
    let first = &report["firstFailure"];
    assert_eq!(
        (&first["name"], &first["errno"]),
        (&json!("root.mount"), &json!("EPERM"))
    );
    for name in ["root.mount", "user.create"] {
        assert_eq!(probe(&report, name)["restriction"], "SECCOMP", "{report:#}");
        let repair = remedy(&report, name);
        assert!(
            repair.contains("linux.seccomp.syscalls") && repair.contains("\"unshare\""),
            "{repair}"
        );
    }
    assert_eq!(probe(&report, "root.pivot_root")["result"], "skipped");
    assert_eq!(ran, 1, "{said}");
    assert!(said.contains("EPERM"), "{said}");
}

#[test]
fn with_a_masked_proc() {
    doctors!();
    let mut nested = Nested::new();
    nested.with_user_namespace();
    nested.outer.set(
        "/linux/maskedPaths",
        json!(["/proc/kcore", "/proc/timer_list"]),
    );
    let (report, ran, said) = nested.run();
    assert_eq!(report["mode"], "DEGRADED", "{report:#}");
    assert_eq!(
        restrictions(&report).first(),
        Some(&"MASKED_PROC"),
        "{report:#}"
    );
    let proc = probe(&report, "user.proc");
    assert_eq!(
        (&proc["errno"], &proc["meaning"]),
        (&json!("EPERM"), &json!("lost"))
    );
    assert!(
        proc["why"]
            .as_str()
            .unwrap()
            .contains("is covered by a mount"),
        "{proc:#}"
    );
    assert!(
        remedy(&report, "user.proc").contains("linux.maskedPaths: []"),
        "{proc:#}"
    );
    assert!(
        works(&report, "root.proc"),
        "without a user namespace it is no matter"
    );
    assert!(
        ran == 1 && said.contains("/proc") || said.contains("degraded"),
        "{ran} {said}"
    );
}

#[test]
fn without_capabilities() {
    doctors!();
    let mut nested = Nested::new();
    nested.outer.set("/process/capabilities", json!({}));
    let (report, ran, said) = nested.run();
    assert_eq!(report["restriction"], "NO_CAPS", "{report:#}");
    let mount = probe(&report, "root.mount");
    assert_eq!(mount["errno"], "EPERM", "{mount:#}");
    assert!(
        mount["why"].as_str().unwrap().contains("CAP_SYS_ADMIN"),
        "{mount:#}"
    );
    assert!(
        remedy(&report, "root.mount").contains("CAP_SYS_ADMIN"),
        "{mount:#}"
    );
    // Root may map itself only with CAP_SETFCAP, so there is no way by a user namespace either.
    let map = probe(&report, "user.map");
    assert_eq!(
        (&map["errno"], &map["restriction"]),
        (&json!("EPERM"), &json!("NO_CAPS"))
    );
    assert_eq!(report["mode"], "DISABLED", "{report:#}");
    assert_eq!(ran, 1, "{said}");
}

#[test]
fn without_the_right_to_make_device_nodes() {
    doctors!();
    let mut nested = Nested::new();
    let list: Vec<&str> = CAPS.into_iter().filter(|cap| *cap != "CAP_MKNOD").collect();
    let caps = json!({"bounding": list, "effective": list, "permitted": list});
    nested.outer.set("/process/capabilities", caps);
    let (report, ran, said) = nested.run();
    assert_eq!(report["mode"], "DEGRADED", "{report:#}");
    let mknod = probe(&report, "root.mknod");
    assert_eq!(
        (&mknod["errno"], &mknod["restriction"]),
        (&json!("EPERM"), &json!("NO_CAPS"))
    );
    assert!(
        remedy(&report, "root.mknod").contains("CAP_MKNOD"),
        "{mknod:#}"
    );
    assert!(works(&report, "root.bind-node"), "{report:#}");
    assert_eq!(ran, 0, "{said}");
    assert!(said.contains("degraded"), "bound instead, and told: {said}");
}
