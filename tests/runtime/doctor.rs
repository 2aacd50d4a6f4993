//! `isorun doctor` as it is called, under restrictions that are real: what it says is what then happens
//! to a container beside it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use isorun::host::{Host, Sandboxing};
use serde_json::{Value, json};

use crate::denied::deny;
use crate::harness::{
    Bundle, Output, Running, View, run_command, runtime, script_apart, terminal, view,
};
use crate::rootless::{FIRST_SUB, USER, has_helpers, reachable, rootless};

/// The report of a call with `--json`, whose exit status must be that of its mode.
#[track_caller]
pub fn report(out: &Output) -> Value {
    let report: Value =
        serde_json::from_str(&out.stdout).unwrap_or_else(|error| panic!("{error} in {out:#?}"));
    let code = match report["mode"].as_str() {
        Some("FULL") => 0,
        Some("DEGRADED") => 1,
        Some("DISABLED") => 2,
        other => panic!("mode {other:?} in {out:#?}"),
    };
    assert_eq!(out.code, code, "{out:#?}");
    report
}

/// What the report says of one probe.
#[track_caller]
pub fn probe<'a>(report: &'a Value, name: &str) -> &'a Value {
    let probes = report["probes"].as_array().unwrap();
    let found = probes.iter().find(|probe| probe["name"] == name);
    found.unwrap_or_else(|| panic!("no probe {name} in {report:#}"))
}

pub fn works(report: &Value, name: &str) -> bool {
    probe(report, name)["meaning"] == "works"
}

/// The names in `restrictions`.
pub fn restrictions(report: &Value) -> Vec<&str> {
    let list = report["restrictions"].as_array().unwrap();
    list.iter().map(|name| name.as_str().unwrap()).collect()
}

/// All that the remedy of this probe says.
pub fn remedy(report: &Value, name: &str) -> String {
    let remedy = &probe(report, name)["remedy"];
    let commands = remedy["commands"].as_array().cloned().unwrap_or_default();
    let commands: Vec<String> = commands
        .iter()
        .map(|line| line.as_str().unwrap().to_string())
        .collect();
    format!(
        "{}\n{}",
        remedy["text"].as_str().unwrap_or_default(),
        commands.join("\n")
    )
}

/// The container ran, and nothing was lost.
pub fn clean(out: &Output) -> bool {
    out.code == 0 && !out.stderr.contains("degraded")
}

fn mountinfo() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

/// What is mounted since `before`, but for what tests and engines beside this one mount in places of their own.
fn new_mounts(before: &str) -> Vec<String> {
    let old: Vec<&str> = before.lines().collect();
    let elsewhere = |line: &str| line.contains("isotest") || line.contains("/containers/");
    let now = mountinfo();
    let new = now.lines().filter(|line| !old.contains(line));
    new.filter(|line| !elsewhere(line))
        .map(str::to_string)
        .collect()
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap()
}

/// The cgroups that doctor's process `pid` may have left.
fn left(pid: i32) -> Vec<std::path::PathBuf> {
    crate::harness::cgroups_named(&format!("isorun-doctor-{pid}"))
}

#[test]
fn as_root_and_nothing_is_left() {
    doctors!();
    let bundle = Bundle::new();
    let before = mountinfo();
    let name = hostname();
    let start = Instant::now();
    let doctor = bundle.spawn(&["doctor", "--json"]);
    let pid = doctor.pid();
    let out = doctor.finish();
    // 50 ms are measured on the release binary by hand; this is a guard for machines full of tests.
    assert!(start.elapsed() < Duration::from_secs(20));
    let report = report(&out);
    assert_eq!(out.stderr, "", "{out:#?}");
    for name in [
        "root.pivot_root",
        "root.pid",
        "seccomp.filter",
        "user.create",
        "user.map",
    ] {
        assert!(works(&report, name), "{name}: {report:#}");
    }
    let new = new_mounts(&before);
    assert_eq!(
        new,
        Vec::<String>::new(),
        "mounts are in the probes' namespaces"
    );
    assert_eq!(left(pid), Vec::<std::path::PathBuf>::new());
    assert_eq!(hostname(), name);
    bundle.assert_gone();
}

/// In a chroot / is no mount, so nothing can be made private: then nothing may be mounted either, or it is
/// mounted for the machine.
#[test]
fn where_mounts_cannot_be_private_none_is_made() {
    doctors!();
    let bundle = Bundle::sh("true");
    std::fs::copy(&runtime().path, bundle.rootfs("/isorun")).unwrap();
    let out = script_apart(
        &bundle,
        "mount -t tmpfs top $D; mount --make-shared $D
         mkdir $D/root; cp -a $B/rootfs/. $D/root/; mkdir -p $D/root/proc $D/root/tmp
         mount -t proc proc $D/root/proc
         cat /proc/self/mountinfo >$D/before
         $X chroot $D/root /isorun doctor --json || echo \"code: $?\" >&2
         diff $D/before /proc/self/mountinfo >&2 && echo 'mounts: same' >&2",
    );
    assert!(out.stderr.contains("code: 2"), "{out:#?}");
    assert!(out.stderr.contains("mounts: same"), "{out:#?}");
    let report: Value = serde_json::from_str(&out.stdout).unwrap();
    assert_eq!(probe(&report, "root.private")["meaning"], "lost");
    for name in ["root.tmpfs", "root.proc", "root.sysfs", "root.mqueue"] {
        assert_eq!(probe(&report, name)["meaning"], "nothing", "{name}");
    }
}

/// Limits over the caller's: on machines where root lacks CAP_SYS_RESOURCE, they are refused.
#[test]
fn limits_as_containers_then_have_them() {
    doctors!();
    let mut bundle = Bundle::new();
    let report = report(&bundle.call(&["doctor", "--json"]));
    let (soft, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    bundle.set(
        "/process/rlimits",
        json!([{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard + 1}]),
    );
    let out = bundle.run();
    assert_eq!(works(&report, "limit.rlimit"), clean(&out), "{out:#?}");
    if !works(&report, "limit.rlimit") {
        assert!(restrictions(&report).contains(&"NO_CAPS"), "{report:#}");
        assert!(remedy(&report, "limit.rlimit").contains("SYS_RESOURCE"));
        assert_eq!(probe(&report, "limit.rlimit")["errno"], "EPERM");
    }
}

/// A container's limits of memory, CPU and processes.
#[test]
fn limits_of_cgroups_as_containers_then_have_them() {
    doctors!();
    for (probe, resources) in [
        ("cgroup.memory", json!({"memory": {"limit": 64 << 20}})),
        (
            "cgroup.cpu",
            json!({"cpu": {"quota": 50_000, "period": 100_000}}),
        ),
        ("cgroup.pids", json!({"pids": {"limit": 32}})),
    ] {
        let mut bundle = Bundle::new();
        bundle.set("/linux/resources", resources);
        let out = bundle.run();
        let report = report(&bundle.call(&["doctor", "--json"]));
        assert_eq!(works(&report, probe), clean(&out), "{probe}: {out:#?}");
    }
}

/// Doctor and a container under the same filter: `deny HOW NUMBERS`.
fn under(how: &str, numbers: &str) -> Option<(Output, Output)> {
    let mut bundle = Bundle::new();
    bundle.args(&["true"]);
    bundle.write();
    let dir = bundle.bundle_dir().to_str()?.to_string();
    let denied = |args: &[&str]| {
        let runtime = bundle.command(args);
        let mut command = Command::new(deny()?);
        command.args([how, numbers]).arg(runtime.get_program());
        command
            .args(runtime.get_args())
            .env("ISORUN_TEST_ID", &bundle.id);
        Some(run_command(command, &bundle.dir.join("io")))
    };
    let doctor = denied(&["doctor", "--json"])?;
    let ran = denied(&["run", "--bundle", &dir, &bundle.id])?;
    if ran.code != 0 {
        bundle.delete_force();
    }
    Some((doctor, ran))
}

const MOUNT: &str = "165,428,429,430,442";

#[test]
fn filters_are_named_and_what_they_take() {
    doctors!();
    // Number of the call on x86_64, the step that it is for, and whether a container is left.
    for (numbers, first, mode) in [
        (MOUNT, "root.private", "DISABLED"),
        ("155", "root.pivot_root", "DISABLED"),
        ("133,259", "root.mknod", "DEGRADED"),
        ("250", "keyring", "DEGRADED"),
        ("170", "root.hostname", "DEGRADED"),
    ] {
        let Some((doctor, ran)) = under("1", numbers) else {
            skip!("there is no C compiler");
        };
        let report = report(&doctor);
        let found = probe(&report, first);
        assert_eq!(report["mode"], mode, "{first}: {report:#}");
        assert_eq!(found["meaning"], "lost", "{found:#}");
        assert_eq!(found["errno"], "EPERM", "{found:#}");
        assert_eq!(found["restriction"], "SECCOMP", "{found:#}");
        assert!(restrictions(&report).contains(&"SECCOMP"), "{report:#}");
        // Shown by a call that can do nothing, not guessed from there being a filter.
        let why = found["why"].as_str().unwrap();
        assert!(
            why.contains("answers EPERM where the kernel would not"),
            "{found:#}"
        );
        if mode == "DISABLED" {
            assert_eq!(report["firstFailure"]["name"], first, "{report:#}");
            assert_eq!(report["restriction"], "SECCOMP", "{report:#}");
        }
        assert!(remedy(&report, first).len() > 20, "{found:#}");
        if report["facts"]["surroundings"]["kind"] == "none" {
            assert!(
                remedy(&report, first).contains("SystemCallFilter="),
                "{found:#}"
            );
        }
        // What it says is what then happens.
        assert!(!clean(&ran), "{first}: {ran:#?}");
        assert!(mode != "DISABLED" || ran.code != 0, "{first}: {ran:#?}");
    }
}

#[test]
fn calls_with_a_full_replacement_are_no_loss() {
    doctors!();
    for (number, name) in [
        ("435", "new.clone3"),
        ("437", "new.openat2"),
        ("430", "root.mount-api"),
    ] {
        let Some((doctor, ran)) = under("38", number) else {
            skip!("there is no C compiler");
        };
        let report = report(&doctor);
        assert_eq!(probe(&report, name)["meaning"], "without", "{report:#}");
        assert_eq!(probe(&report, name)["errno"], "ENOSYS");
        assert!(
            works(&report, "root.tmpfs") && works(&report, "root.mount"),
            "{report:#}"
        );
        assert!(clean(&ran), "{name}: {ran:#?}");
    }
}

#[test]
fn a_filter_that_kills_is_an_answer() {
    doctors!();
    let Some((doctor, ran)) = under("kill", "170") else {
        skip!("there is no C compiler");
    };
    let report = report(&doctor);
    for name in ["root.hostname", "user.hostname"] {
        let found = probe(&report, name);
        assert_eq!(found["result"], "crashed", "{found:#}");
        assert_eq!(found["restriction"], "SECCOMP", "{found:#}");
        assert!(
            found["detail"].as_str().unwrap().contains("SIGSYS"),
            "{found:#}"
        );
    }
    assert!(
        works(&report, "root.cgroup"),
        "the others are tried: {report:#}"
    );
    assert_ne!(ran.code, 0, "{ran:#?}");
}

/// Ubuntu's AppArmor says of who has made a user namespace that it has no capabilities; a filter that denies
/// the question stands for it. What can be done is shown by doing it, not by what is said of it.
#[test]
fn capabilities_are_not_asked_but_tried() {
    doctors!();
    let capget = libc::SYS_capget.to_string();
    let Some((doctor, _)) = under("1", &capget) else {
        skip!("there is no C compiler");
    };
    let report: Value = serde_json::from_str(&doctor.stdout).unwrap();
    if !works(&report, "user.map") {
        skip!("no user namespaces here");
    }
    assert!(works(&report, "user.mount"), "{report:#}");
}

#[test]
fn a_probe_that_hangs_ends() {
    doctors!();
    let bundle = Bundle::new();
    let Some(deny) = deny() else {
        skip!("there is no C compiler");
    };
    let runtime = bundle.command(&["doctor", "--json"]);
    let mut command = Command::new(deny);
    command.args(["hang", "170"]).arg(runtime.get_program());
    command
        .args(runtime.get_args())
        .env("ISORUN_TEST_ID", &bundle.id);
    let start = Instant::now();
    let doctor = Running::start(command, &bundle.dir.join("io"));
    let pid = doctor.pid();
    let report = report(&doctor.finish());
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    let found = probe(&report, "root.hostname");
    assert_eq!(
        (&found["result"], &found["meaning"]),
        (&json!("hung"), &json!("lost"))
    );
    assert!(
        works(&report, "keyring"),
        "the other groups have answered: {report:#}"
    );
    assert_eq!(left(pid), Vec::<std::path::PathBuf>::new());
    // None of the processes that hung is left: they are the container's, by the tag.
    bundle.assert_gone();
}

/// Parameters of a user namespace of the test's own, set by its root.
#[test]
fn parameters_of_the_kernel_are_named() {
    doctors!();
    for (kind, first, mode) in [
        ("user", "user.create", "DEGRADED"),
        ("ipc", "root.ipc", "DEGRADED"),
        ("mnt", "root.mount", "DISABLED"),
    ] {
        let mut bundle = Bundle::new();
        let script = format!("echo 0 >/proc/sys/user/max_{kind}_namespaces; exec \"$@\"");
        let words = [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-ec",
            &script,
            "sh",
        ];
        bundle.prefix = words.map(str::to_string).to_vec();
        // Root of a user namespace makes no device rules and owns no controllers.
        bundle.unset("/linux/resources");
        let mounts = bundle.config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["type"] != "devpts");
        if kind == "user" {
            bundle.namespace("user");
            let map = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
            bundle
                .set("/linux/uidMappings", map.clone())
                .set("/linux/gidMappings", map);
        }
        let report = report(&bundle.call(&["doctor", "--json"]));
        let found = probe(&report, first);
        assert_eq!(report["mode"], mode, "{report:#}");
        assert_eq!(found["errno"], "ENOSPC", "{found:#}");
        assert_eq!(found["restriction"], "SYSCTL", "{found:#}");
        let command = format!("sudo sysctl -w user.max_{kind}_namespaces=15000");
        assert!(remedy(&report, first).contains(&command), "{found:#}");
        let why = format!("user.max_{kind}_namespaces is 0");
        assert!(found["why"].as_str().unwrap().contains(&why), "{found:#}");
        if mode == "DISABLED" {
            assert_eq!(report["firstFailure"]["name"], first);
            assert_eq!(report["restriction"], "SYSCTL");
        }
        let out = bundle.run();
        assert_ne!(out.code, 0, "{out:#?}");
        assert!(out.stderr.contains("ENOSPC"), "{out:#?}");
    }
}

#[test]
fn as_a_user() {
    doctors!();
    let mut bundle = rootless(&[[0, USER, 1], [1, FIRST_SUB, 65536]]);
    if !reachable(&bundle) {
        skip!(
            "{} is below a directory that only root may enter",
            runtime().path.display()
        );
    }
    bundle.args(&["true"]);
    let doctor = report(&bundle.call(&["doctor", "--json"]));
    assert_eq!(doctor["host"]["euid"], USER);
    assert!(
        !doctor["probes"].to_string().contains("root.mount"),
        "{doctor:#}"
    );
    let expected = [
        "create",
        "map",
        "mount",
        "bind",
        "proc",
        "sysfs",
        "mqueue",
        "loopback",
        "pivot_root",
    ];
    for step in expected {
        assert!(
            works(&doctor, &format!("user.{step}")),
            "{step}: {doctor:#}"
        );
    }
    // A user makes no device nodes and raises no limits: told, and no loss.
    for normal in ["user.mknod", "limit.oom_score_adj"] {
        assert_eq!(probe(&doctor, normal)["meaning"], "without", "{doctor:#}");
    }
    let cgroup = probe(&doctor, "cgroup.create");
    assert_eq!(cgroup["errno"], "EACCES", "{cgroup:#}");
    let expected = match (view(), doctor["facts"]["systemd"].as_bool()) {
        (View::Hybrid, _) => "systemd.unified_cgroup_hierarchy=1",
        (View::V2, Some(true)) => "Delegate=cpu",
        (View::V2, _) => "sudo chown -R isotest /sys/fs/cgroup/isorun",
    };
    assert!(
        remedy(&doctor, "cgroup.create").contains(expected),
        "{cgroup:#}"
    );

    assert_eq!(works(&doctor, "user.map-range"), clean(&bundle.run()));
    assert_eq!(works(&doctor, "user.map-range"), has_helpers());

    // The same user without a range of users; behind that of groups all ids are free.
    std::fs::write(bundle.host("etc/subuid"), "").unwrap();
    let doctor = report(&bundle.call(&["doctor", "--json"]));
    let range = probe(&doctor, "user.map-range");
    assert_eq!(
        (&range["meaning"], &range["errno"]),
        (&json!("lost"), &json!("EPERM"))
    );
    let command = "sudo usermod --add-subuids 565536-631071 --add-subgids 565536-631071 isotest";
    assert!(
        remedy(&doctor, "user.map-range").contains(command),
        "{range:#}"
    );
    assert_ne!(bundle.run().code, 0);
}

#[test]
fn captured_for_tests_of_plans() {
    doctors!();
    let bundle = Bundle::new();
    let file = bundle.host("host.json");
    let path = file.to_str().unwrap();
    let out = bundle.call(&["doctor", "--json", "--capture", path]);
    let report = report(&out);
    let host = Host::parse(&std::fs::read(&file).unwrap()).unwrap();
    let probed = host.probed.as_ref().expect("its probes");
    assert_eq!(host.euid, 0);
    assert_eq!(serde_json::to_value(probed.mode).unwrap(), report["mode"]);
    assert_ne!(probed.mode, Sandboxing::Disabled);
    assert_eq!(
        probed.works("root.pivot_root"),
        works(&report, "root.pivot_root")
    );
    assert!(!probed.works("root.bogus"));

    let nowhere = bundle
        .call(&["doctor", "--capture", "/nonexistent/host.json"])
        .code(1);
    assert_eq!(nowhere.stdout, "");
    let said = "write /nonexistent/host.json: ENOENT";
    assert!(nowhere.stderr.contains(said), "{nowhere:#?}");
}

#[test]
fn the_table_has_colours_on_a_terminal_only() {
    doctors!();
    let bundle = Bundle::new();
    let piped = bundle.call(&["doctor"]);
    assert!(!piped.stdout.contains('\x1b'), "{}", piped.stdout);
    for words in [
        "Restriction: ",
        "Containers of root",
        "Containers in a user namespace",
        "GPU",
    ] {
        assert!(piped.stdout.contains(words), "{words}: {}", piped.stdout);
    }
    for (no_color, coloured) in [(None, true), (Some(""), true), (Some("1"), false)] {
        let (mut screen, slave) = terminal();
        let mut command = bundle.command(&["doctor"]);
        command.env_remove("NO_COLOR");
        if let Some(value) = no_color {
            command.env("NO_COLOR", value);
        }
        let to = || std::process::Stdio::from(slave.try_clone().unwrap());
        let running = Running::start_with(command, &bundle.dir.join("io"), Some((to(), to())));
        screen.wait("What every container has");
        running.finish();
        let text = screen.text();
        assert_eq!(
            text.contains("\x1b["),
            coloured,
            "NO_COLOR={no_color:?}: {text}"
        );
    }
}

#[test]
fn the_profile_is_for_this_binary() {
    doctors!();
    let bundle = Bundle::new();
    let out = bundle.call(&["doctor", "--apparmor-profile"]).ok();
    let path = std::fs::canonicalize(&runtime().path).unwrap();
    let line = format!("profile isorun {} flags=(unconfined) {{", path.display());
    assert!(out.stdout.contains(&line), "{}", out.stdout);
    if Path::new("/usr/sbin/apparmor_parser").exists() {
        let file = bundle.host("profile");
        std::fs::write(&file, &out.stdout).unwrap();
        let mut parse = Command::new("apparmor_parser");
        parse
            .args(["--skip-kernel-load", "--skip-cache"])
            .arg(&file);
        run_command(parse, &bundle.dir.join("io")).ok();
    }
}
