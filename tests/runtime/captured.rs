//! Real input: what Podman, Docker and containerd handed to a runtime, run on this machine.
//!
//! The files in tests/data/captured are as they were. [`adapt`] takes out what exists only on the
//! machine that they came from, and says each thing that it took.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Bundle, controller_usable, runtime};

/// A captured file, as it was handed to a runtime.
pub fn load(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/captured")
        .join(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Makes a captured config runnable here. Nothing else is touched: namespaces, capabilities,
/// seccomp, sysctls, mounts of kernel file systems, masked and read-only paths stay as they were.
fn adapt(config: &mut Value, id: &str) -> Vec<String> {
    let mut taken = Vec::new();
    // The image's tree: a busybox one takes its place. Which is read-only is kept.
    config["root"]["path"] = json!("rootfs");
    // Files that the engine kept beside the image.
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| {
        let source = mount["source"].as_str().unwrap_or_default();
        let keep = mount["type"] != "bind" || Path::new(source).exists();
        if !keep {
            taken.push(format!("bind of {source} at {}", mount["destination"]));
        }
        keep
    });
    // A profile that must be loaded into a kernel with AppArmor.
    let process = config["process"].as_object_mut().unwrap();
    if !Path::new("/sys/kernel/security/apparmor").exists()
        && let Some(profile) = process.remove("apparmorProfile")
    {
        taken.push(format!("AppArmor profile {profile}"));
    }
    // slice:prefix:name is for systemd, with the flag --systemd-cgroup. A plain path instead.
    if let Some(path) = config["linux"]["cgroupsPath"].as_str() {
        taken.push(format!("cgroupsPath {path}"));
        config["linux"]["cgroupsPath"] = json!(format!("/{id}"));
    }
    // Limits whose controller this view of cgroups does not have.
    for (key, controller) in [
        ("memory", "memory"),
        ("cpu", "cpu"),
        ("pids", "pids"),
        ("blockIO", "blkio"),
    ] {
        let resources = config["linux"]["resources"].as_object_mut().unwrap();
        if !controller_usable(controller) && resources.remove(key).is_some() {
            taken.push(format!("limits of {key}"));
        }
    }
    // This machine's administrator has no rule for it; channels.rs tries such configs where there is one.
    if let Some(annotations) = config["annotations"].as_object_mut()
        && let Some(channels) = annotations.remove("io.isorun.channels")
    {
        taken.push(format!("channels {channels}"));
    }
    // An engine's terminal comes with a console socket.
    if config["process"]["terminal"] == true {
        config["process"]["terminal"] = json!(false);
        taken.push("terminal".into());
    }
    // A reference fails where it may not raise a limit; isorun is given the file as it was.
    if !runtime().isorun {
        for limit in config["process"]["rlimits"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            for key in ["soft", "hard"] {
                limit[key] = json!(limit[key].as_u64().unwrap().min(1024));
            }
        }
    }
    taken
}

/// A bundle of the captured config, without its terminal.
pub fn adapted(name: &str) -> Bundle {
    bundle(name, "true")
}

/// A bundle of the captured config that runs `script`.
fn bundle(name: &str, script: &str) -> Bundle {
    let mut bundle = Bundle::new();
    let mut config = load(name);
    for taken in adapt(&mut config, &bundle.id) {
        println!("{name}: taken out: {taken}");
    }
    bundle.config = config;
    bundle.args(&["sh", "-c", script]);
    bundle
}

/// Runs it through create, start and delete as an engine does, and in the foreground.
fn lives(name: &str) -> Bundle {
    let bundle = bundle(name, "echo hi");
    assert_eq!(bundle.run().ok().text(), "hi", "{name}");
    let bundle = self::bundle(name, "sleep 100");
    bundle.create().ok();
    bundle.start().ok();
    assert_eq!(bundle.status(), "running", "{name}");
    bundle.kill("KILL").ok();
    bundle.wait_status("stopped");
    bundle.delete().ok();
    bundle.assert_gone();
    bundle
}

#[test]
fn podman() {
    lives("podman.json");
    let out = bundle("podman.json", "grep -e ^Cap -e ^Seccomp: -e ^Sig /proc/self/status; hostname; cat /proc/sys/net/ipv4/ping_group_range; echo $container; umask").run().ok();
    assert_eq!(out.field("CapEff"), "00000000800405fb");
    assert_eq!(out.field("Seccomp"), "2");
    assert!(
        out.stdout.ends_with("e5ddc90a4fdb\n0\t0\npodman\n0022\n"),
        "{out:#?}"
    );
}

#[test]
fn docker() {
    lives("docker.json");
    let out = bundle("docker.json", "grep -e ^Cap -e ^Seccomp: /proc/self/status; hostname; id -G; ls -A /sys/firmware | wc -l; echo x 2>/dev/null > /proc/sys/kernel/panic || echo kept").run().ok();
    assert_eq!(out.field("CapEff"), "00000000a80425fb");
    assert_eq!(out.field("Seccomp"), "2");
    assert!(
        out.stdout.ends_with("4da13f2efdd5\n0\n0\nkept\n"),
        "{out:#?}"
    );
}

#[test]
fn containerd() {
    lives("ctr.json");
    let out = bundle("ctr.json", "grep -e ^Cap -e ^NoNew /proc/self/status; ulimit -n; cat /proc/mounts | grep -c ' /run tmpfs'").run().ok();
    assert_eq!(
        (out.field("CapEff"), out.field("NoNewPrivs")),
        ("00000000a80425fb".into(), "1".into())
    );
    assert!(out.stdout.ends_with("1024\n1\n"), "{out:#?}");
}

#[test]
fn docker_with_limits() {
    let mut bundle = bundle(
        "docker-limits.json",
        "grep ^CapEff /proc/self/status; touch /x 2>/dev/null || echo read-only; ulimit -n",
    );
    // A swap limit needs swap accounting, which is one more thing of that machine.
    if let Some(memory) = bundle.config["linux"]["resources"].get_mut("memory") {
        memory.as_object_mut().unwrap().remove("swap");
    }
    let out = bundle.run().ok();
    assert!(out.stdout.contains("read-only"), "{out:#?}");
}

#[test]
fn podman_with_limits() {
    let mut bundle = bundle("podman-limits.json", "echo lives");
    if let Some(memory) = bundle.config["linux"]["resources"].get_mut("memory") {
        memory.as_object_mut().unwrap().remove("swap");
    }
    assert_eq!(bundle.run().ok().text(), "lives");
}

#[test]
fn the_adaptation_takes_only_what_it_says() {
    let mut config = load("podman.json");
    let before = config.clone();
    let taken = adapt(&mut config, "x");
    let text = taken.join("\n");
    for word in ["/dev/shm", "/etc/hosts", "machine.slice:libpod"] {
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(config["linux"]["seccomp"], before["linux"]["seccomp"]);
    assert_eq!(config["linux"]["namespaces"], before["linux"]["namespaces"]);
    assert_eq!(
        config["linux"]["maskedPaths"],
        before["linux"]["maskedPaths"]
    );
    assert_eq!(config["linux"]["sysctl"], before["linux"]["sysctl"]);
    assert_eq!(
        config["process"]["capabilities"],
        before["process"]["capabilities"]
    );
    let kinds = |config: &Value| {
        let mounts = config["mounts"].as_array().unwrap().iter();
        mounts
            .filter(|mount| mount["type"] != "bind")
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(&config), kinds(&before));
}
