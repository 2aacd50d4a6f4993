//! The hook isorun-hook-channel: the same channels under runc and crun, and once more nothing under isorun.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::channels::{OPEN, apart, of};
use crate::harness::{Bundle, Output};
use crate::userns::mapped;

const INSIDE: &str = "/run/isorun/channels";

fn found(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut dirs = path.split(':').chain(["/usr/sbin"]);
    dirs.find_map(|dir| Some(Path::new(dir).join(name)).filter(|path| path.is_file()))
}

/// Why a runtime cannot be tried here, or where it is. bookworm's crun refuses hybrid cgroups, and wants to raise the
/// limit of locked memory: in the root of integration/oracles there is a newer one.
fn other(name: &str) -> Result<PathBuf, String> {
    let path = found(name).ok_or_else(|| format!("{name} is not installed"))?;
    let plain = Bundle::new();
    let out = under(&path, &plain, "", "runtime run --bundle $B $ID");
    match out.code {
        0 => Ok(path),
        _ => {
            // bookworm's crun leaves its cgroup when it fails.
            plain.sweep();
            let said = out.stderr.trim();
            Err(format!("{name} runs no container here: {said}"))
        }
    }
}

/// A bundle with the hook, as Podman and CRI-O write it by hooks/hooks.d.
fn hooked(mut bundle: Bundle, annotations: serde_json::Value) -> Bundle {
    let hook = json!([{"path": env!("CARGO_BIN_EXE_isorun-hook-channel"), "timeout": 30}]);
    bundle
        .set("/hooks/createRuntime", hook.clone())
        .set("/hooks/poststop", hook)
        .set("/annotations", annotations);
    bundle
}

/// The script under another runtime; `isorun` is isorun.
fn under(runtime: &Path, bundle: &Bundle, rules: &str, script: &str) -> Output {
    let isorun = env!("CARGO_BIN_EXE_isorun");
    let script = format!(
        "program={}; isorun() {{ {isorun} \"$@\"; }}\n{script}",
        runtime.display()
    );
    apart(bundle, rules, &script)
}

macro_rules! under_each {
    ($($name:ident)*) => { $(mod $name {
        fn run(scenario: fn(&std::path::Path)) {
            isorun_only!("it brings a runtime of its own");
            match super::other(stringify!($name)) {
                Ok(path) => scenario(&path),
                Err(why) => skip!("{why}"),
            }
        }
        #[test]
        fn two_containers_meet() {
            run(super::meet);
        }
        #[test]
        fn a_private_dev_shm() {
            run(super::private);
        }
        #[test]
        fn what_the_hook_refuses() {
            run(super::refuses);
        }
        #[test]
        fn links_of_an_image_stay_in_it() {
            run(super::stay_in_it);
        }
    })* };
}

under_each!(runc crun);

fn meet(runtime: &Path) {
    let writer = hooked(
        Bundle::sh(&format!(
            "echo tensor > {INSIDE}/t-h/a; echo shm > /dev/shm/b; exec sleep 100"
        )),
        json!({"io.isorun.channels": "t-h:rw", "io.isorun.shm": "channel:t-h"}),
    );
    let mut reader = hooked(mapped(), json!({"io.isorun.channels": "t-h:ro"}));
    reader.args(&[
        "sh",
        "-c",
        &format!(
            "cat {INSIDE}/t-h/a {INSIDE}/t-h/b; touch {INSIDE}/t-h/c 2>&1; stat -c '%u %a' {INSIDE}/t-h/a; \
             grep ' {INSIDE}/t-h ' /proc/self/mountinfo"
        ),
    ]);
    let script = format!(
        "runtime run --detach --bundle $B $ID >/dev/null; wait_for '[ -e $C/t-h/b ]'\n\
         isorun channel inspect t-h | grep member; runtime run {}; ls -A $C\n\
         runtime delete --force $ID; wait_for '! [ -e $C/t-h ]'; ls -A $C",
        of(&reader)
    );
    let out = under(runtime, &writer, OPEN, &script).ok();
    let member = format!("member     {} rw pid ", writer.id);
    for says in [
        &member,
        "tensor\nshm\n",
        "Read-only file system",
        "0 644\n",
        "idmapped",
    ] {
        assert!(out.stdout.contains(says), "{says}: {out:#?}");
    }
    let mount = out
        .stdout
        .lines()
        .find(|line| line.contains(" - tmpfs isorun-channel"))
        .unwrap();
    assert!(mount.contains("ro,nosuid,nodev,noexec"), "{mount}");
    assert!(
        out.stdout
            .ends_with(".t-h.json\n.t-h.members\nt-h\n.lock\n"),
        "{out:#?}"
    );
}

fn private(runtime: &Path) {
    let bundle = hooked(
        Bundle::sh("df -k /dev/shm | tail -n 1"),
        json!({"io.isorun.shm.size": "7m"}),
    );
    let out = under(runtime, &bundle, "", "runtime run --bundle $B $ID").ok();
    assert_eq!(
        out.stdout.split_whitespace().nth(1),
        Some("7168"),
        "{out:#?}"
    );
}

/// A refusal ends the container's making, and leaves nothing.
fn refuses(runtime: &Path) {
    let mut admin = mapped();
    for set in ["bounding", "effective", "permitted"] {
        admin.push(
            &format!("/process/capabilities/{set}"),
            json!("CAP_SYS_ADMIN"),
        );
    }
    for (bundle, channels, rules, says) in [
        (
            Bundle::new(),
            "t-x",
            "",
            "no rule in /etc/isorun/channels.d",
        ),
        (Bundle::new(), "../x", OPEN, "is no name of a channel"),
        (
            admin,
            "t-x:ro",
            "[[rule]]\nname = \"look\"\nchannels = [\"t-*\"]\naccess = \"ro\"\n",
            "allows ro, and the container has CAP_SYS_ADMIN, with which it could make it rw",
        ),
    ] {
        // crun writes what a hook says where this annotation tells, and nowhere else.
        let told = bundle.host("told");
        let annotations =
            json!({"io.isorun.channels": channels, "run.oci.hooks.stderr": told.to_str().unwrap()});
        let bundle = hooked(bundle, annotations);
        let script =
            "runtime run --bundle $B $ID && exit 9; ls -A $C 2>/dev/null | grep -v lock || true";
        let out = under(runtime, &bundle, rules, script).ok();
        let said = std::fs::read_to_string(told).unwrap_or_default() + &out.stderr;
        assert!(said.contains(says), "{says}: {said} {out:#?}");
        assert_eq!(out.text(), "", "{out:#?}");
        bundle.assert_gone();
    }
}

/// An image that leads /run elsewhere leads it nowhere outside of itself.
fn stay_in_it(runtime: &Path) {
    let bundle = hooked(
        Bundle::sh(&format!(
            "grep -c isorun-channel /proc/self/mountinfo; touch {INSIDE}/t-l/x; ls /out/isorun/channels"
        )),
        json!({"io.isorun.channels": "t-l"}),
    );
    std::fs::remove_dir(bundle.rootfs("/run")).unwrap();
    std::os::unix::fs::symlink("/../../../../../out", bundle.rootfs("/run")).unwrap();
    std::fs::create_dir(bundle.rootfs("/out")).unwrap();
    let out = under(
        runtime,
        &bundle,
        OPEN,
        "runtime run --bundle $B $ID; ls -d /out || true",
    )
    .ok();
    assert_eq!(out.text(), "1\nt-l");
}

/// Installed where isorun is the runtime, it is told that everything is done.
#[test]
fn under_isorun_it_has_nothing_to_do() {
    isorun_only!("it is about isorun");
    let bundle = hooked(
        Bundle::sh(&format!(
            "grep -c isorun-channel /proc/self/mountinfo; echo x > {INSIDE}/t-i/x"
        )),
        json!({"io.isorun.channels": "t-i"}),
    );
    let out = apart(&bundle, OPEN, "runtime run --bundle $B $ID; ls -A $C").ok();
    assert_eq!(out.text(), "1\n.lock");
}

/// A hook cannot give process ids: it says so, and the container is not made. Under isorun it finds them given.
#[test]
fn gpu_memory_is_isoruns_alone() {
    isorun_only!("it brings a runtime of its own");
    let runc = match other("runc") {
        Ok(path) => path,
        Err(why) => skip!("{why}"),
    };
    let rules = OPEN.replace("access", "cuda-ipc = true\naccess");
    let asks = json!({"io.isorun.channels": "t-h", "io.isorun.cuda-ipc": "1"});
    let bundle = hooked(Bundle::sh("echo ran $PPID"), asks);
    let out = under(
        &runc,
        &bundle,
        &rules,
        "runtime run --bundle $B $ID; ls -A $C",
    );
    assert!(!out.stdout.contains("ran"), "{out:#?}");
    let says = "a hook cannot give the container process ids of its own";
    assert!(out.stderr.contains(says), "{out:#?}");
    let out = apart(&bundle, &rules, "runtime run --bundle $B $ID").ok();
    assert_eq!(out.text(), "ran 1");
}
