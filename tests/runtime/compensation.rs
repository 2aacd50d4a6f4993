//! What makes up for a protection that the host does not give, tried by an attacker: a program in the
//! container that does what the lost protection would have stopped (attack.c). Each test runs the same
//! attempts without the loss as well, so that an attempt which fails for another reason is seen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::degrade::at;
use crate::harness::{Bundle, Output, copy_program};

/// The attacker, static; none without a C compiler.
pub fn attacker() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runtime/attack.c");
            let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("attack");
            let mut gcc = Command::new("gcc");
            gcc.args(["-static", "-O1", "-Wall", "-Werror", "-o"])
                .arg(&made)
                .arg(source);
            let done = gcc.status().ok()?;
            assert!(done.success(), "attack.c does not compile");
            Some(made)
        })
        .as_deref()
}

/// Whether this kernel has Landlock from this version of its interface on.
pub fn landlock(least: i64) -> bool {
    // SAFETY: a null pointer with size 0 is what asking for the version takes.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0usize, 0usize, 1) };
    version >= least
}

/// A bundle with the attacker, a read-only root, and capabilities with which the attempts could be made.
pub fn bundle(caps: &[&str]) -> Option<Bundle> {
    let mut bundle = Bundle::new();
    copy_program(attacker()?, &bundle.rootfs("/attack"));
    for kind in ["bounding", "effective", "permitted"] {
        bundle.set(&format!("/process/capabilities/{kind}"), json!(caps));
    }
    bundle.set("/process/noNewPrivileges", json!(false));
    bundle.set("/root/readonly", json!(true));
    Some(bundle)
}

/// What came of each attempt: its errno, 0 where it could be done.
pub fn results(out: &Output) -> BTreeMap<String, i32> {
    let pair = |line: &str| {
        let (name, errno) = line.split_once(' ')?;
        Some((name.to_string(), errno.parse().ok()?))
    };
    out.stdout.lines().filter_map(pair).collect()
}

/// The attempts by a container's first process.
pub fn attack(bundle: &mut Bundle, level: &str, tries: &[&str]) -> BTreeMap<String, i32> {
    let mut args = vec!["/attack"];
    args.extend(tries);
    bundle.args(&args);
    results(&at(bundle, level).ok())
}

/// The attempts by a process that is executed in a container that runs.
pub fn attack_by_exec(bundle: &mut Bundle, level: &str, tries: &[&str]) -> BTreeMap<String, i32> {
    bundle.args(&["sleep", "1000"]).write();
    let dir = bundle.bundle_dir();
    let dir = dir.to_str().unwrap();
    let id = bundle.id.clone();
    let run = ["--degrade", level, "run", "--detach", "--bundle", dir, &id];
    bundle.call(&run).ok();
    let mut args = vec!["--degrade", level, "exec", &id, "/attack"];
    args.extend(tries);
    let found = results(&bundle.call(&args).ok());
    bundle.delete_force().ok();
    found
}

/// Fails unless every one of these was refused, and refused for want of permission.
pub fn all_refused(found: &BTreeMap<String, i32>, tries: &[&str]) {
    assert_eq!(found.len(), tries.len(), "each try once: {found:?}");
    for (name, errno) in found {
        let denied = [libc::EPERM, libc::EACCES, libc::EROFS, libc::ENOSYS];
        assert!(denied.contains(errno), "{name}: {errno}: {found:?}");
    }
}

/// Fails unless all of these could be done: otherwise the attempts prove nothing.
pub fn all_done(found: &BTreeMap<String, i32>, tries: &[&str]) {
    assert_eq!(found.len(), tries.len(), "each try once: {found:?}");
    assert!(found.values().all(|errno| *errno == 0), "{found:?}");
}

/// What the report says of one row.
pub fn told(bundle: &mut Bundle, level: &str, row: &str) -> Value {
    bundle.args(&["sleep", "1000"]).write();
    let dir = bundle.bundle_dir();
    let dir = dir.to_str().unwrap();
    let id = bundle.id.clone();
    let run = ["--degrade", level, "run", "--detach", "--bundle", dir, &id];
    bundle.call(&run).ok();
    let report = bundle.call(&["report", &id, "--json"]).ok();
    bundle.delete_force().ok();
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    let mut rows = report["degradations"].as_array().unwrap().iter();
    rows.find(|lost| lost["row"] == row).unwrap().clone()
}

/// Refused at the stricter levels, with the row's name and the repair.
pub fn refused_below_any(bundle: &mut Bundle, row: &str, remedy: &str) {
    bundle.args(&["true"]);
    for level in ["never", "safe"] {
        let out = at(bundle, level).code(1);
        for word in [&format!("the degradation {row:?}"), "--degrade=any", remedy] {
            assert!(out.stderr.contains(word), "{word}: {out:#?}");
        }
        bundle.assert_gone();
    }
}

macro_rules! attacked {
    ($caps:expr, $abi:literal) => {{
        isorun_only!("the levels are isorun's");
        if !$crate::compensation::landlock($abi) {
            skip!("this kernel has no Landlock from ABI {} on", $abi);
        }
        match $crate::compensation::bundle($caps) {
            Some(bundle) => bundle,
            None => skip!("there is no C compiler"),
        }
    }};
}

#[test]
fn without_apparmor() {
    let caps = [
        "CAP_KILL",
        "CAP_SYS_ADMIN",
        "CAP_SYS_MODULE",
        "CAP_SYS_PTRACE",
    ];
    let mut bundle = attacked!(&caps, 1);
    if std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text[0] == b'Y') {
        skip!("this host has AppArmor");
    }
    bundle.mount("/tmp", "tmpfs", "tmpfs", &["mode=1777"]);
    // A profile of an engine keeps the kernel's files from being written; here nothing else does.
    bundle.set("/linux/readonlyPaths", json!([]));
    let tries = [
        "mount=/tmp",
        "bind=/tmp",
        "umount=/proc/keys",
        "remount=/",
        "write=/proc/sys/kernel/domainname",
        "fsopen",
    ];
    all_done(&attack(&mut bundle, "any", &tries), &tries);
    all_done(&attack_by_exec(&mut bundle, "any", &tries), &tries);
    // Who is traced is the first process, so that only an executed one can.
    let trace = ["trace=1", "memory=1"];
    all_done(&attack_by_exec(&mut bundle, "any", &trace), &trace);

    bundle.set("/process/apparmorProfile", json!("isorun-none"));
    refused_below_any(&mut bundle, "apparmor", "enable AppArmor");
    all_refused(&attack(&mut bundle, "any", &tries), &tries);
    all_refused(&attack_by_exec(&mut bundle, "any", &tries), &tries);
    all_refused(&attack_by_exec(&mut bundle, "any", &trace), &trace);
    // Landlock by itself: the root stays read-only where its mount is not, and a module is a matter of the
    // filter.
    let more = ["create=/new", "module"];
    all_refused(&attack(&mut bundle, "any", &more), &more);
    // What is to be writable is.
    let fine = ["create=/tmp/new", "write=/dev/null", "inet"];
    all_done(&attack(&mut bundle, "any", &fine), &fine);
    all_done(&attack_by_exec(&mut bundle, "any", &fine), &fine);

    let lost = told(&mut bundle, "any", "apparmor");
    assert_eq!(lost["feature"], "the AppArmor profile isorun-none");
    for word in ["Landlock", "ABI of Landlock is", "no setuid programs"] {
        let compensation = lost["compensation"].as_str().unwrap();
        assert!(compensation.contains(word), "{word}: {lost}");
    }
    bundle.args(&["grep", "NoNewPrivs", "/proc/self/status"]);
    let out = at(&bundle, "any").ok();
    assert!(out.text().ends_with('1'), "{out:#?}");
    assert!(
        out.stderr
            .contains("degraded: the AppArmor profile isorun-none"),
        "{out:#?}"
    );
}

/// A profile that only an executed process asks for, in a container without one.
#[test]
fn without_apparmor_for_a_further_process() {
    let mut bundle = attacked!(&["CAP_SYS_ADMIN"], 1);
    bundle.args(&["sleep", "1000"]).write();
    let dir = bundle.bundle_dir();
    let dir = dir.to_str().unwrap();
    let id = bundle.id.clone();
    let exec = |level: &str, flags: &[&str], tries: &[&str]| {
        let mut args = vec!["--degrade", level, "exec"];
        args.extend(flags);
        args.extend([&*id, "/attack"]);
        args.extend(tries);
        bundle.call(&args)
    };
    let run = [
        "--degrade",
        "any",
        "run",
        "--detach",
        "--bundle",
        dir,
        &bundle.id,
    ];
    bundle.call(&run).ok();
    let tries = ["umount=/proc/keys", "fsopen"];
    let profile = ["--apparmor", "isorun-none"];
    let out = exec("safe", &profile, &tries).code(255);
    assert!(
        out.stderr.contains("the degradation \"apparmor\""),
        "{out:#?}"
    );
    // Nothing is mounted in the place of a profile, so that there is not all that makes up for it.
    let out = exec("any", &profile, &tries).code(255);
    for said in ["process.apparmorProfile", "in exec alone"] {
        assert!(out.stderr.contains(said), "{said}: {out:#?}");
    }
    all_done(&results(&exec("any", &[], &tries).ok()), &tries);
}

/// A kernel without Landlock: nothing is claimed that is not there.
#[test]
fn without_landlock() {
    let mut bundle = attacked!(&["CAP_KILL"], 1);
    let deny = match crate::denied::deny() {
        Some(deny) => deny.to_str().unwrap().to_string(),
        None => skip!("there is no C compiler"),
    };
    bundle.args(&["true"]);
    bundle.set("/process/apparmorProfile", json!("isorun-none"));
    for errno in [libc::ENOSYS, libc::EOPNOTSUPP] {
        bundle.prefix = vec![deny.clone(), errno.to_string(), "444".into()];
        let out = at(&bundle, "any").code(1);
        for word in [
            "the degradation \"apparmor\" needs Landlock",
            "this kernel lacks it or has not enabled it",
            "enable AppArmor",
        ] {
            assert!(out.stderr.contains(word), "{word}: {out:#?}");
        }
        bundle.assert_gone();
    }
    // There, and refusing to confine: an error, not a container that is said to be confined.
    bundle.prefix = vec![deny, libc::EPERM.to_string(), "446".into()];
    let out = at(&bundle, "any").code(1);
    assert!(
        out.stderr.contains("Landlock: restrict this process"),
        "{out:#?}"
    );
    bundle.assert_gone();
}

/// Puts a filter around the runtime that refuses these calls.
pub fn denied(bundle: &mut Bundle, errno: i32, calls: &str) -> Option<()> {
    let deny = crate::denied::deny()?.to_str()?.to_string();
    bundle.prefix = vec![deny, errno.to_string(), calls.into()];
    Some(())
}

/// A filter around the runtime that refuses new network namespaces.
fn no_network(bundle: &mut Bundle) {
    let calls = format!("272@0={}", libc::CLONE_NEWNET);
    denied(bundle, libc::EPERM, &calls).unwrap();
}

/// An abstract socket of the host that is listened on.
pub fn abstract_socket(bundle: &Bundle) -> (std::os::unix::net::UnixListener, String) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = format!("{}socket", bundle.id);
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    (UnixListener::bind_addr(&address).unwrap(), name)
}

#[test]
fn without_a_network_namespace() {
    let caps = ["CAP_KILL", "CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"];
    let mut bundle = attacked!(&caps, 6);
    bundle.set("/linux/readonlyPaths", json!([]));
    let (_listener, name) = abstract_socket(&bundle);
    let socket = format!("abstract={name}");
    let tries = [
        "raw",
        "raw6",
        "packet",
        "vsock",
        "uring",
        "bpf",
        "write=/proc/sys/net/ipv4/ip_default_ttl",
        &socket,
    ];
    let mut shared = attacked!(&caps, 6);
    shared.set("/linux/readonlyPaths", json!([]));
    shared.without_namespace("network");
    all_done(&attack(&mut shared, "any", &tries), &tries);
    all_done(&attack_by_exec(&mut shared, "any", &tries), &tries);

    no_network(&mut bundle);
    refused_below_any(&mut bundle, "network", "let isorun make network namespaces");
    all_refused(&attack(&mut bundle, "any", &tries), &tries);
    all_refused(&attack_by_exec(&mut bundle, "any", &tries), &tries);
    // What the attempt before has lost as well is told once.
    bundle.args(&["true"]);
    bundle.set("/process/apparmorProfile", json!("isorun-none"));
    let out = at(&bundle, "any").ok();
    assert_eq!(
        out.stderr.matches("degraded: the AppArmor").count(),
        1,
        "{out:#?}"
    );
    bundle.unset("/process/apparmorProfile");
    let fine = ["inet", "netlink", "unix"];
    all_done(&attack(&mut bundle, "any", &fine), &fine);
    all_done(&attack_by_exec(&mut bundle, "any", &fine), &fine);

    bundle.args(&[
        "sh",
        "-c",
        "readlink /proc/self/ns/net; grep CapBnd /proc/self/status",
    ]);
    let out = at(&bundle, "any").ok();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert!(out.stdout.starts_with(own.to_str().unwrap()), "{out:#?}");
    assert!(
        out.text().ends_with("0000000000200020"),
        "only CAP_KILL and CAP_SYS_ADMIN: {out:#?}"
    );
    let lost = told(&mut bundle, "any", "network");
    assert_eq!(lost["errno"], libc::EPERM, "{lost}");
    assert!(
        lost["compensation"]
            .as_str()
            .unwrap()
            .contains("raw sockets"),
        "{lost}"
    );
}

/// What would be done to the host, or is for nobody, is refused.
#[test]
fn without_a_network_namespace_not_everything_can_be_had() {
    let mut bundle = attacked!(&["CAP_KILL"], 6);
    no_network(&mut bundle);
    bundle.args(&["true"]);
    bundle.set("/linux/netDevices", json!({"isorun-none": {}}));
    let out = at(&bundle, "any").code(1);
    for word in [
        "the degradation \"network\" cannot be had with linux.netDevices",
        "EPERM",
    ] {
        assert!(out.stderr.contains(word), "{word}: {out:#?}");
    }
    bundle.assert_gone();
    bundle.unset("/linux/netDevices");
    bundle.set("/linux/sysctl", json!({"net.ipv4.ip_default_ttl": "77"}));
    let before = std::fs::read("/proc/sys/net/ipv4/ip_default_ttl").unwrap();
    let out = at(&bundle, "any").ok();
    let says = "left out where it would be the host's: net.ipv4.ip_default_ttl";
    assert!(out.stderr.contains(says), "{out:#?}");
    assert_eq!(
        std::fs::read("/proc/sys/net/ipv4/ip_default_ttl").unwrap(),
        before
    );
    bundle.assert_gone();
    bundle.unset("/linux/sysctl");
    // In a user namespace of its own, with a sysfs that shows somebody else's network.
    let mut bundle = crate::userns::mapped();
    no_network(&mut bundle);
    bundle.args(&["sh", "-c", "test -d /sys/class && echo ran"]);
    let out = at(&bundle, "any").ok();
    assert_eq!(out.text(), "ran");
    assert!(out.stderr.contains("a sysfs of its own"), "{out:#?}");
    // An older Landlock has no border for abstract sockets; none at all is refused the same.
    let mut bundle = attacked!(&["CAP_KILL"], 6);
    let calls = format!("444,272@0={}", libc::CLONE_NEWNET);
    denied(&mut bundle, libc::EPERM, &calls).unwrap();
    bundle.args(&["true"]);
    let out = at(&bundle, "any").code(1);
    assert!(
        out.stderr
            .contains("the degradation \"network\" needs Landlock"),
        "{out:#?}"
    );
    bundle.assert_gone();
}

/// Filters around the runtime by which no user namespace can be had, as where user.max_user_namespaces is
/// reached: clone3 hides its flags, so that it is not there at all, and clone is refused with just those of
/// this bundle.
pub fn no_user_namespace_before(bundle: &mut Bundle) {
    let deny = crate::denied::deny().unwrap().to_str().unwrap().to_string();
    let kinds = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWPID;
    let flags = kinds | libc::CLONE_PIDFD | libc::SIGCHLD;
    let no_clone3 = [deny.clone(), libc::ENOSYS.to_string(), "435".into()];
    let no_userns = [deny, libc::ENOSPC.to_string(), format!("56@0={flags}")];
    let filters = no_clone3.into_iter().chain(no_userns);
    // The filters' program searches no PATH.
    let filters = filters.chain(["/usr/bin/env".to_string()]);
    bundle.prefix = filters.chain(bundle.prefix.drain(..)).collect();
}

fn no_user_namespace(bundle: &mut Bundle) {
    bundle.prefix.clear();
    no_user_namespace_before(bundle);
}

/// A bundle in a user namespace, with the attacker and all that root has there.
fn mapped() -> Bundle {
    let mut bundle = crate::userns::mapped();
    copy_program(attacker().unwrap(), &bundle.rootfs("/attack"));
    for kind in ["bounding", "effective", "permitted"] {
        let caps = json!([
            "CAP_SYS_ADMIN",
            "CAP_SETUID",
            "CAP_CHOWN",
            "CAP_MKNOD",
            "CAP_SYS_PTRACE"
        ]);
        bundle.set(&format!("/process/capabilities/{kind}"), caps);
    }
    bundle.set("/process/noNewPrivileges", json!(false));
    bundle
}

#[test]
fn without_a_user_namespace_as_root() {
    drop(attacked!(&["CAP_KILL"], 1));
    let mut bundle = mapped();
    let newuser = format!("unshare={}", libc::CLONE_NEWUSER);
    let clone3 = format!("clone3={}", libc::CLONE_NEWUSER);
    // What root may do in its user namespace is what it may not do without one.
    let tries = [
        "mount=/tmp",
        "umount=/proc/keys",
        "setuid=5",
        "uring",
        "keys",
        &newuser,
        &clone3,
    ];
    all_done(&attack(&mut bundle, "any", &tries), &tries);
    all_done(&attack_by_exec(&mut bundle, "any", &tries), &tries);

    no_user_namespace(&mut bundle);
    refused_below_any(&mut bundle, "userns-root", "user.max_user_namespaces");
    all_refused(&attack(&mut bundle, "any", &tries), &tries);
    all_refused(&attack_by_exec(&mut bundle, "any", &tries), &tries);
    let trace = ["trace=1", "memory=1"];
    all_refused(&attack_by_exec(&mut bundle, "any", &trace), &trace);
    // The machine's root is out of reach, and so is what is its alone.
    std::fs::create_dir(bundle.host("roots")).unwrap();
    std::fs::write(bundle.host("roots/file"), "root's").unwrap();
    let source = bundle.host("roots").to_str().unwrap().to_string();
    bundle.mount("/roots", "bind", &source, &["bind", "rw"]);
    let more = [
        "setuid=0",
        "write=/roots/file",
        "remove=/roots/file",
        "create=/roots/new",
        "mknod=/tmp/null:1:3",
        "chown=/tmp",
        "setns",
        "write=/proc/sys/vm/swappiness",
        "module",
    ];
    all_refused(&attack(&mut bundle, "any", &more), &more);
    all_refused(&attack_by_exec(&mut bundle, "any", &more), &more);
    let fine = [
        "create=/tmp/new",
        "write=/dev/null",
        "create=/dev/shm/new",
        "inet",
    ];
    all_done(&attack(&mut bundle, "any", &fine), &fine);
    all_done(&attack_by_exec(&mut bundle, "any", &fine), &fine);
}

#[test]
fn ids_without_a_user_namespace() {
    drop(attacked!(&["CAP_KILL"], 1));
    let mut bundle = mapped();
    no_user_namespace(&mut bundle);
    bundle.set("/process/user/additionalGids", json!([7]));
    bundle.mount("/run", "tmpfs", "tmpfs", &["mode=755"]);
    let script = "grep -E '^(Uid|Gid|Groups|CapPrm|CapBnd|NoNewPrivs)' /proc/self/status; \
                  echo $HOME; touch /run/mine && stat -c %u /run/mine";
    let says = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "Uid: 200000 200000 200000 200000 Gid: 200000 200000 200000 200000 Groups: 200007 \
             CapPrm: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1 /root 200000"
        );
    };
    bundle.args(&["sh", "-c", script]);
    let out = at(&bundle, "any").ok();
    says(&out.stdout);
    assert!(
        out.stderr
            .contains("degraded: a user namespace of its own: clone"),
        "{out:#?}"
    );
    bundle.args(&["sleep", "1000"]).write();
    let dir = bundle.bundle_dir();
    let run = [
        "--degrade=any",
        "run",
        "--detach",
        "--bundle",
        dir.to_str().unwrap(),
        &bundle.id,
    ];
    bundle.call(&run).ok();
    let exec = |words: &[&str]| {
        let mut args = vec!["--degrade=any", "exec"];
        args.extend(words);
        bundle.call(&args)
    };
    let out = exec(&[&bundle.id, "sh", "-c", script]).ok();
    says(&out.stdout);
    assert_eq!(out.stderr, "", "told once, by who made it");
    let out = exec(&[
        "--user",
        "1000:1001",
        &bundle.id,
        "sh",
        "-c",
        "id -u; id -g; echo $HOME",
    ])
    .ok();
    assert_eq!(out.text(), "201000\n201001\n/home/ann");
    exec(&[
        "--cap",
        "CAP_SYS_ADMIN",
        &bundle.id,
        "sh",
        "-c",
        "grep CapEff:.0000000000000000 /proc/self/status",
    ])
    .ok();
    let out = exec(&["--user", "70000", &bundle.id, "true"]).code(255);
    assert!(out.stderr.contains("70000 is not mapped"), "{out:#?}");
    let out = bundle
        .call(&["--degrade=never", "exec", &bundle.id, "true"])
        .code(255);
    assert!(
        out.stderr.contains("the degradation \"userns-root\""),
        "{out:#?}"
    );
    bundle.delete_force().ok();

    let map = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    bundle.args(&["true"]);
    let out = at(&bundle, "any").code(1);
    assert!(out.stderr.contains("mapped to the host's root"), "{out:#?}");
    bundle.assert_gone();
}
