//! Golden plans: hosts that were captured once, times specifications, compared with files.
//!
//! So a change of the planner shows as a difference that a person reads, for every kind of host, on
//! any machine. `ISORUN_UPDATE_GOLDEN=1 cargo test --test golden_plans` writes the files anew; read
//! the difference before you commit it. `cargo test --test golden_plans -- --ignored --nocapture`
//! prints this machine's host as tests/fixtures/hosts holds them.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read its files has failed"
)]

use std::path::{Path, PathBuf};

use isorun::host::Host;
use isorun::plan::{self, Action, Asked, Feature, Lost, Plan};
use isorun::policy::Level;
use isorun::spec::{Loaded, check, parse};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn json_files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {}", dir.display());
    files
}

/// A captured host, with a rule of the administrator's for the channels that specifications ask for.
fn host(text: &[u8]) -> isorun::error::Result<Host> {
    let mut host = Host::parse(text)?;
    let facts = serde_json::json!({
        "root": "/run/isorun/channels", "uid": host.euid, "gid": host.euid, "rootless": host.euid != 0,
        "rules": [{
            "name": "team", "channels": ["weights", "kv", "w"], "access": "rw", "size": "1g",
            "file": "/etc/isorun/channels.d/10-team.toml"
        }, {
            "name": "gpu", "channels": ["gpu"], "access": "rw", "cuda-ipc": true,
            "file": "/etc/isorun/channels.d/20-gpu.toml"
        }],
        "made": {"weights": {"by": 0, "size": 1 << 30}}
    });
    host.channels = Some(serde_json::from_value(facts).unwrap());
    // Written by hand, after what an H200 machine has: hosts with nothing but cgroup v2 have a GPU.
    if host.cgroups.v2.is_some() && host.cgroups.v1.is_empty() {
        let node = |path: &str, major: u32, minor: u32| serde_json::json!({"path": path, "major": major, "minor": minor});
        let gpu = serde_json::json!({"driver": "575.57.08", "nodes": [
            node("/dev/nvidia-uvm", 511, 0), node("/dev/nvidia0", 195, 0), node("/dev/nvidiactl", 195, 255)
        ]});
        host.gpu = Some(serde_json::from_value(gpu).unwrap());
    }
    Ok(host)
}

fn loaded(name: &str, text: &[u8]) -> Loaded {
    let parsed = parse::parse(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (spec, mut ignored) = (parsed.spec, parsed.ignored);
    ignored.extend(check(&spec).unwrap_or_else(|e| panic!("{name}: {e}")));
    // Paths of no machine: a plan is made without looking at any.
    Loaded {
        warnings: Vec::new(),
        text: Vec::new(),
        spec,
        bundle: "/bundle".into(),
        rootfs: "/bundle/rootfs".into(),
        ignored,
    }
}

/// The plan as the golden file has it: the filter's instructions are the seccomp tests' business.
fn shown(plan: &Plan) -> String {
    let mut value = serde_json::to_value(plan).unwrap();
    if let Some(filter) = value.get_mut("seccomp") {
        filter["instructions"] = "left out".into();
    }
    serde_json::to_string_pretty(&value).unwrap() + "\n"
}

#[test]
fn plans_are_as_the_files_say() {
    let update = std::env::var_os("ISORUN_UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for (host_name, host) in json_files(&tests().join("fixtures/hosts")) {
        let host = self::host(&host).unwrap_or_else(|e| panic!("{host_name}: {e}"));
        for (spec_name, text) in json_files(&tests().join("fixtures/specs")) {
            let asked = Asked {
                id: "golden".into(),
                ..Asked::default()
            };
            let file = tests().join(format!("golden/{host_name}.{spec_name}.json"));
            let got = match plan::build(&loaded(&spec_name, &text), &host, &asked) {
                Ok(plan) => shown(&plan),
                Err(error) => format!("{error}\n"),
            };
            if update {
                std::fs::write(&file, &got).unwrap();
            } else if std::fs::read_to_string(&file).ok().as_deref() != Some(&got) {
                wrong.push(format!("{}\n{got}", file.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "plans differ from their files:\n{}",
        wrong.join("\n")
    );
}

/// The plans of a rootful, a rootless and a nested container (one with ids that another one mapped), as
/// people read them, at the levels that are not the default: what passes and what is refused.
#[test]
fn what_each_level_allows_is_as_the_files_say() {
    let update = std::env::var_os("ISORUN_UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for (host_name, text) in json_files(&tests().join("fixtures/hosts")) {
        let host = self::host(&text).unwrap();
        let nested = Host {
            euid: 0,
            user_namespace: true,
            ..host.clone()
        };
        for (name, spec, host) in [
            ("rootful", "podman", &host),
            ("rootless", "rootless", &host),
            ("nested", "shared-root", &nested),
        ] {
            let text = std::fs::read(tests().join(format!("fixtures/specs/{spec}.json"))).unwrap();
            for level in [Level::Never, Level::Any] {
                let asked = Asked {
                    id: "golden".into(),
                    degrade: level,
                    ..Asked::default()
                };
                let got = match plan::build(&loaded(spec, &text), host, &asked) {
                    Ok(plan) => plan::text(&plan),
                    Err(error) => format!("{error}\n"),
                };
                let file = tests().join(format!("golden/levels/{host_name}.{name}.{level}.txt"));
                if update {
                    std::fs::write(&file, &got).unwrap();
                } else if std::fs::read_to_string(&file).ok().as_deref() != Some(&got) {
                    wrong.push(format!("{}\n{got}", file.display()));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "plans differ from their files:\n{}",
        wrong.join("\n")
    );
}

/// What makes up for each loss that needs it, at level any, as people read it: with a read-only root, where
/// the rules of Landlock say most, and with a writable one.
#[test]
fn what_makes_up_for_a_loss_is_as_the_files_say() {
    let update = std::env::var_os("ISORUN_UPDATE_GOLDEN").is_some();
    let text = std::fs::read(tests().join("fixtures/hosts/v2.json")).unwrap();
    let mut host = Host::parse(&text).unwrap();
    host.landlock = 7;
    let podman = std::fs::read(tests().join("fixtures/specs/podman.json")).unwrap();
    let podman: serde_json::Value = serde_json::from_slice(&podman).unwrap();
    let mut wrong = Vec::new();
    let mut compare = |name: &str, spec: &serde_json::Value, host: &Host, without: &[Feature]| {
        let lost = |feature: &Feature| Lost {
            feature: *feature,
            reason: format!("{} cannot be had", feature.name()),
            errno: nix::errno::Errno::EPERM as i32,
        };
        let asked = Asked {
            id: "golden".into(),
            degrade: Level::Any,
            without: without.iter().map(lost).collect(),
            ..Asked::default()
        };
        let mut loaded = loaded(name, spec.to_string().as_bytes());
        if spec["root"]["path"] == "/" {
            loaded.rootfs = "/".into();
        }
        let got = match plan::build(&loaded, host, &asked) {
            Ok(plan) => plan::text(&plan),
            Err(error) => format!("{error}\n"),
        };
        let file = tests().join(format!("golden/compensation/{name}.txt"));
        if update {
            std::fs::write(&file, &got).unwrap();
        } else if std::fs::read_to_string(&file).ok().as_deref() != Some(&got) {
            wrong.push(format!("{}\n{got}", file.display()));
        }
    };
    for (kind, readonly) in [("readonly", true), ("writable", false)] {
        let mut spec = podman.clone();
        spec["root"]["readonly"] = readonly.into();
        spec["process"]["apparmorProfile"] = "profile".into();
        compare(&format!("apparmor.{kind}"), &spec, &host, &[]);
    }
    compare("network", &podman, &host, &[Feature::Network]);
    let mut spec = podman.clone();
    spec["linux"]["netDevices"] = serde_json::json!({"eth1": {}});
    compare("network.devices", &spec, &host, &[Feature::Network]);
    let text = std::fs::read(tests().join("fixtures/specs/userns-hooks.json")).unwrap();
    let userns: serde_json::Value = serde_json::from_slice(&text).unwrap();
    compare("userns-root", &userns, &host, &[Feature::UsernsRoot]);
    let both = [Feature::UsernsRoot, Feature::Network];
    compare("userns-root.network", &userns, &host, &both);
    let mut spec = userns.clone();
    for map in ["uidMappings", "gidMappings"] {
        spec["linux"][map] = serde_json::json!([{"containerID": 0, "hostID": 0, "size": 100}]);
    }
    compare("userns-root.host-0", &spec, &host, &[Feature::UsernsRoot]);
    let mut spec: serde_json::Value = serde_json::from_slice(
        &std::fs::read(tests().join("fixtures/specs/rootless.json")).unwrap(),
    )
    .unwrap();
    let user = Host {
        euid: 1000,
        ..host.clone()
    };
    compare("userns-user.root", &spec, &user, &[Feature::UsernsUser]);
    spec["root"] = serde_json::json!({"path": "/", "readonly": true});
    compare("userns-user", &spec, &user, &[Feature::UsernsUser]);
    let rules = [Feature::DeviceRules];
    compare("device-rules", &podman, &host, &rules);
    host.landlock = 5;
    compare("network.old-landlock", &podman, &host, &[Feature::Network]);
    let mut spec = podman.clone();
    spec["process"]["apparmorProfile"] = "profile".into();
    host.landlock = 0;
    compare("apparmor.no-landlock", &spec, &host, &[]);
    assert!(
        wrong.is_empty(),
        "plans differ from their files:\n{}",
        wrong.join("\n")
    );
}

/// The row of the table that nothing passes: what protects the host has no way around it at any level,
/// and at level never nothing has.
#[test]
fn what_protects_is_never_left_out() {
    for (host_name, text) in json_files(&tests().join("fixtures/hosts")) {
        let host = self::host(&text).unwrap();
        for (name, text) in json_files(&tests().join("fixtures/specs")) {
            for level in Level::ALL {
                let asked = Asked {
                    degrade: level,
                    ..Asked::default()
                };
                let Ok(plan) = plan::build(&loaded(&name, &text), &host, &asked) else {
                    continue;
                };
                for step in &plan.steps {
                    let why = format!("{host_name} {name} {level}: {step:?}");
                    if level == Level::Never {
                        assert!(step.otherwise.is_empty(), "{why}");
                    }
                    match &step.action {
                        Action::Identity(_)
                        | Action::NoNewPrivs
                        | Action::MaskPath { .. }
                        | Action::ReadonlyPath { .. }
                        | Action::ReadonlyRoot
                        | Action::ReadonlyMounts
                        | Action::PivotRoot
                        | Action::CloseFrom { .. }
                        | Action::ExecLabel { .. } => assert!(step.otherwise.is_empty(), "{why}"),
                        Action::Seccomp => {
                            let mut ways = step.otherwise.iter();
                            let flags = Some(Action::SeccompWithoutFlags);
                            assert!(ways.all(|way| way.action == flags), "{why}");
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

#[test]
fn a_plan_survives_json() {
    let (_, host) = &json_files(&tests().join("fixtures/hosts"))[0];
    let host = self::host(host).unwrap();
    for (name, text) in json_files(&tests().join("fixtures/specs")) {
        let plan = plan::build(&loaded(&name, &text), &host, &Asked::default()).unwrap();
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan, "{name}");
    }
}

#[test]
fn order_is_what_security_needs() {
    let (_, host) = &json_files(&tests().join("fixtures/hosts"))[0];
    let host = self::host(host).unwrap();
    for (name, text) in json_files(&tests().join("fixtures/specs")) {
        let loaded = loaded(&name, &text);
        let plan = plan::build(&loaded, &host, &Asked::default()).unwrap();
        let kinds: Vec<String> = plan
            .steps
            .iter()
            .map(|step| {
                serde_json::to_value(step).unwrap()["step"]
                    .as_str()
                    .unwrap()
                    .to_string()
            })
            .collect();
        let at = |kind: &str| kinds.iter().position(|k| k == kind);
        let before = |a: &str, b: &str| {
            if let (Some(a_at), Some(b_at)) = (at(a), at(b)) {
                assert!(a_at < b_at, "{name}: {a} comes after {b}: {kinds:?}");
            }
        };
        before("root-propagation", "open-root");
        before("open-root", "mount");
        before("mount", "pivot-root");
        before("mask-path", "pivot-root");
        before("readonly-path", "mask-path");
        before("pivot-root", "identity");
        before("close-from", "identity");
        before("identity", "await-start");
        before("await-start", "exec");
        assert_eq!(at("exec"), Some(kinds.len() - 1), "{name}");
        let process = loaded.spec.process().as_ref().unwrap();
        match process.no_new_privileges() {
            Some(true) => {
                before("no-new-privs", "identity");
                before("identity", "seccomp");
            }
            _ => before("seccomp", "identity"),
        }
    }
}

/// With labels: the program's after the host's hooks and before the root changes, the mounts' as a
/// parameter of each file system that takes one.
#[test]
fn labels_are_where_they_must_be() {
    let hosts = json_files(&tests().join("fixtures/hosts"));
    for (host_name, text) in &hosts {
        let mut host = self::host(text).unwrap();
        // Its configuration has no user namespace, which only root may do without.
        host.euid = 0;
        host.lsm = isorun::host::Lsm {
            apparmor: true,
            selinux: true,
        };
        let (name, text) = &json_files(&tests().join("fixtures/specs"))
            .into_iter()
            .find(|(name, _)| name == "podman")
            .unwrap();
        let mut spec: serde_json::Value = serde_json::from_slice(text).unwrap();
        let hook = serde_json::json!([{"path": "/bin/true"}]);
        spec["hooks"] = serde_json::json!({"createContainer": hook, "startContainer": hook});
        // Not every host has their controllers.
        spec["linux"].as_object_mut().unwrap().remove("resources");
        spec["process"]["apparmorProfile"] = "profile".into();
        spec["process"]["selinuxLabel"] = "process:label".into();
        spec["linux"]["mountLabel"] = "file:label:s0:c1,c2".into();
        let loaded = loaded(name, spec.to_string().as_bytes());
        let plan = plan::build(&loaded, &host, &Asked::default())
            .unwrap_or_else(|error| panic!("{host_name}: {error}"));
        let steps = serde_json::to_value(&plan.steps).unwrap();
        let steps = steps.as_array().unwrap();
        let at = |test: &dyn Fn(&serde_json::Value) -> bool| steps.iter().position(test).unwrap();
        let label = |kind: &'static str| {
            at(&move |step| step["step"] == "exec-label" && step["kind"] == kind)
        };
        let hooks = at(&|step| step["stage"] == "createContainer");
        let pivot = at(&|step| step["step"] == "pivot-root");
        for kind in ["apparmor", "selinux"] {
            assert!(hooks < label(kind) && label(kind) < pivot, "{host_name}");
        }
        assert_eq!(steps[label("apparmor")]["label"], "profile");
        assert_eq!(steps[label("selinux")]["label"], "process:label");
        let keyring = at(&|step| step["step"] == "session-keyring");
        assert_eq!(steps[keyring]["label"], "process:label");
        let mut labelled = Vec::new();
        for step in steps {
            let context = serde_json::json!(["context", "file:label:s0:c1,c2"]);
            let has = step["data"]
                .as_array()
                .is_some_and(|d| d.contains(&context));
            let fstype = step["fstype"].as_str().unwrap_or_default();
            let takes_one = !["", "proc", "sysfs", "mqueue", "cgroup2"].contains(&fstype);
            assert_eq!(has, takes_one, "{host_name}: {step}");
            if has {
                labelled.push(fstype.to_string());
            }
            if step["step"] == "mask-path" {
                assert_eq!(step["label"], "file:label:s0:c1,c2");
            }
        }
        assert!(labelled.contains(&"devpts".to_string()), "{labelled:?}");
        let after = at(&|step| step["step"] == "file-label");
        assert_eq!(steps[after]["path"], "/dev/mqueue");
        assert_eq!(steps[after - 1]["fstype"], "mqueue");
    }
}

#[test]
#[ignore = "prints this machine's host for tests/fixtures/hosts"]
fn capture() {
    println!(
        "{}",
        serde_json::to_string_pretty(&Host::detect(None).unwrap()).unwrap()
    );
}
