//! linux.netDevices: devices of the host that are moved into the container's network namespace.
//!
//! The "host" of these tests is a network namespace of the command's own, so that nothing on the machine
//! is moved. veth pairs, because every kernel with containers has them.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Bundle, Output, wait_for};

/// One end has everything that a device can have; the other stays.
const DEVICE: &str = "
ip link add d0 type veth peer name p0
ip link set p0 up
ip link set d0 address 02:11:22:33:44:55 mtu 1400 up
ip addr add 10.9.0.1/24 dev d0
ip addr add 10.9.0.2/24 dev d0
ip addr add 10.9.0.9 peer 10.9.0.10/32 dev d0
ip addr add 10.9.1.1/24 brd 10.9.1.200 dev d0 label d0:x
ip addr add 10.9.2.1/24 dev d0 scope link
ip addr add 10.9.3.1/24 dev d0 valid_lft 600 preferred_lft 600
[ ! -e /proc/sys/net/ipv6 ] || ip -6 addr add fd00::1/64 dev d0 nodad
";

/// What a device is like, without what may change when it moves: its number and its counters.
const LOOK: &str = "look() { ip -d addr show dev $1 | sed 's/^[0-9]*: //;s/@[^:]*//;s/ qdisc [a-z]*//;\
    s/valid_lft [0-9]*sec.*//' | grep -v fe80; }";

const AFTER: &str = "== after";

/// Runs the bundle in a network namespace of its own: `before` makes devices there, `after` prints what
/// became of them, below a line that says so.
fn run_in(bundle: &mut Bundle, before: &str, after: &str) -> Output {
    let script = format!(
        "set -eu\n{LOOK}\n{before}\nset +e\n\"$@\"; code=$?\necho '{AFTER}'\n{after}\nexit $code"
    );
    let words = ["unshare", "--net", "sh", "-c", &script, "sh"];
    bundle.prefix = words.map(String::from).to_vec();
    bundle.run()
}

/// What was printed inside, and afterwards outside.
fn parts(out: &Output) -> (&str, &str) {
    let parts = out.stdout.split_once(AFTER);
    parts.unwrap_or_else(|| panic!("nothing came after the container: {out:#?}"))
}

fn devices(bundle: &mut Bundle, devices: Value) {
    bundle.set("/linux/netDevices", devices);
}

macro_rules! needs_ip {
    () => {
        since_runc!(1, 4, "linux.netDevices");
        if !Path::new("/usr/sbin/ip").exists() && !Path::new("/sbin/ip").exists() {
            skip!("there is no ip(8): iproute2 has it");
        }
    };
}

#[test]
fn a_device_keeps_what_it_has() {
    needs_ip!();
    isorun_only!(
        "runc sets the device down first, which loses its IPv6 addresses, and makes peers and broadcasts anew"
    );
    let mut bundle = Bundle::sh("busybox ip addr show dev inside0; busybox ip link show d0");
    devices(&mut bundle, json!({"d0": {"name": "inside0"}}));
    let out = run_in(&mut bundle, DEVICE, "ip link show d0");
    let (inside, _) = parts(&out);
    for part in [
        "inside0@",
        ",UP",
        "mtu 1400",
        "link/ether 02:11:22:33:44:55",
        "inet 10.9.0.1/24 scope global inside0\n",
        "inet 10.9.0.2/24 scope global secondary inside0\n",
        "inet 10.9.0.9 peer 10.9.0.10/32 scope global inside0\n",
        "inet 10.9.1.1/24 brd 10.9.1.200 scope global inside0:x\n",
    ] {
        assert!(inside.contains(part), "{part}: {out:#?}");
    }
    if Path::new("/proc/sys/net/ipv6").exists() {
        assert!(inside.contains("inet6 fd00::1/64 scope global"), "{out:#?}");
    }
    // Not global, and not for good: the specification leaves these behind.
    for part in ["10.9.2.1", "10.9.3.1"] {
        assert!(!inside.contains(part), "{part}: {out:#?}");
    }
    for gone in ["'d0'", "\"d0\""] {
        assert!(out.stderr.contains(gone), "it is still there: {out:#?}");
    }
    bundle.assert_gone();
}

#[test]
fn several_devices_and_names_that_the_kernel_chooses() {
    needs_ip!();
    let mut bundle = Bundle::sh("ls /sys/class/net | sort");
    devices(
        &mut bundle,
        json!({"d0": {"name": "eth%d"}, "d1": {"name": "eth%d"}, "d2": {}, "d3": {"name": ""}}),
    );
    let before = "for n in 0 1 2 3; do ip link add d$n type veth peer name p$n; done";
    let out = run_in(&mut bundle, before, "").ok();
    let names: Vec<&str> = parts(&out).0.split_whitespace().collect();
    assert_eq!(names, ["d2", "d3", "eth0", "eth1", "lo"]);
}

#[test]
fn names_that_swap() {
    needs_ip!();
    // d0's new name is the one that d1 has on the host, and the other way round.
    let mut bundle =
        Bundle::sh("for n in d0 d1; do echo $n $(cat /sys/class/net/$n/address); done");
    devices(
        &mut bundle,
        json!({"d0": {"name": "d1"}, "d1": {"name": "d0"}}),
    );
    let before = "for n in 0 1; do ip link add d$n type veth peer name p$n; \
        ip link set d$n address 02:00:00:00:00:0$n; done";
    let out = run_in(&mut bundle, before, "").ok();
    assert_eq!(
        parts(&out).0.trim(),
        "d0 02:00:00:00:00:01\nd1 02:00:00:00:00:00"
    );
}

#[test]
fn with_a_user_namespace() {
    needs_ip!();
    let mut bundle = Bundle::sh("busybox ip addr show dev inside0; id -u");
    bundle.namespace("user");
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
    bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    crate::harness::chown_tree(&bundle.rootfs("/"), 200_000);
    devices(&mut bundle, json!({"d0": {"name": "inside0"}}));
    let out = run_in(&mut bundle, DEVICE, "").ok();
    for part in [",UP", "inet 10.9.0.1/24", "\n0\n"] {
        assert!(parts(&out).0.contains(part), "{part}: {out:#?}");
    }
}

#[test]
fn a_sysctl_of_a_moved_device() {
    needs_ip!();
    let mut bundle = Bundle::sh("cat /proc/sys/net/ipv4/conf/inside0/arp_ignore");
    devices(&mut bundle, json!({"d0": {"name": "inside0"}}));
    bundle.set(
        "/linux/sysctl",
        json!({"net.ipv4.conf.inside0.arp_ignore": "3"}),
    );
    let out = run_in(&mut bundle, DEVICE, "").ok();
    assert_eq!(parts(&out).0.trim(), "3");
}

/// A container that holds a network namespace.
fn holder() -> (Bundle, String) {
    let mut bundle = Bundle::new();
    bundle.args(&["sleep", "1000"]);
    bundle.run_detached().ok();
    let path = format!("/proc/{}/ns/net", bundle.pid());
    (bundle, path)
}

fn join(bundle: &mut Bundle, path: &str) {
    bundle.without_namespace("network");
    bundle.push(
        "/linux/namespaces",
        json!({"type": "network", "path": path}),
    );
}

#[test]
fn a_joined_namespace_keeps_the_device() {
    needs_ip!();
    let (_holder, path) = holder();
    let mut bundle = Bundle::sh("busybox ip addr show dev inside0");
    join(&mut bundle, &path);
    devices(&mut bundle, json!({"d0": {"name": "inside0"}}));
    // It is the namespace's now, whoever owns that, also when the container has gone.
    let before = format!("{DEVICE}\nip link property add dev d0 altname another-name-of-it");
    let after = format!("nsenter --net={path} ip addr show dev inside0");
    let out = run_in(&mut bundle, &before, &after).ok();
    assert!(
        parts(&out).1.contains("altname another-name-of-it"),
        "{out:#?}"
    );
    for part in [parts(&out).0, parts(&out).1] {
        assert!(part.contains("inet 10.9.0.1/24"), "{out:#?}");
        assert!(part.contains(",UP"), "{out:#?}");
    }
    bundle.assert_gone();
}

/// d0 as it was, up and with its addresses, and nothing in the namespace that was joined.
#[track_caller]
fn assert_back(out: &Output) {
    let (_, after) = parts(out);
    let (before, now) = after.split_once("-- now\n").expect("both looks");
    assert!(before.contains("inet 10.9.0.9 peer"), "{out:#?}");
    assert_eq!(before.trim(), now.trim(), "{out:#?}");
}

#[test]
fn a_name_that_is_taken_leaves_all_as_it_was() {
    needs_ip!();
    isorun_only!("runc leaves the device down");
    let (_holder, path) = holder();
    let mut bundle = Bundle::new();
    join(&mut bundle, &path);
    devices(
        &mut bundle,
        json!({"d0": {"name": "taken"}, "c0": {"name": "free"}}),
    );
    let before = format!(
        "{DEVICE}\nip link add c0 type veth peer name c1\nseen=$(look d0; look c0)\n\
         nsenter --net={path} ip link add taken type veth peer name other"
    );
    let after = format!(
        "echo \"$seen\"; echo '-- now'; look d0; look c0; nsenter --net={path} ip link show free"
    );
    let out = run_in(&mut bundle, &before, &after).code(1);
    assert!(
        out.stderr
            .contains("linux.netDevices.d0: move the network device to taken: EEXIST"),
        "{out:#?}"
    );
    assert_back(&out);
    assert!(out.stderr.contains("free"), "it is there: {out:#?}");
    bundle.assert_gone();
}

/// The kernel moves first and gives the name afterwards, which fails here: the device has the name
/// already, as another one of its own.
#[test]
fn a_device_that_moved_and_could_not_be_named_is_taken_back() {
    needs_ip!();
    isorun_only!("runc leaves the device where it got to");
    let mut bundle = Bundle::new();
    devices(&mut bundle, json!({"other0": {}}));
    let before = format!("{DEVICE}\nip link property add dev d0 altname other0\nseen=$(look d0)");
    let out = run_in(
        &mut bundle,
        &before,
        "echo \"$seen\"; echo '-- now'; look d0",
    )
    .code(1);
    assert!(out.stderr.contains("linux.netDevices.other0"), "{out:#?}");
    assert_back(&out);
}

#[test]
fn a_later_failure_gives_the_devices_back() {
    needs_ip!();
    isorun_only!("runc lets the device go with the namespace");
    for (what, pointer, value) in [
        ("no program", "/process/args", json!(["/not/there"])),
        (
            "a hook",
            "/hooks/createRuntime",
            json!([{"path": "/bin/false"}]),
        ),
        (
            "a mount",
            "/mounts/0",
            json!({"destination": "/x", "type": "no-such-type", "source": "x"}),
        ),
    ] {
        let mut bundle = Bundle::new();
        bundle.set(pointer, value);
        devices(
            &mut bundle,
            json!({"d0": {"name": "inside0"}, "c0": {"name": "inside1"}}),
        );
        let before =
            format!("{DEVICE}\nip link add c0 type veth peer name c1\nseen=$(look d0; look c0)");
        let after = "echo \"$seen\"; echo '-- now'; look d0; look c0";
        let out = run_in(&mut bundle, &before, after).code(1);
        assert!(!out.stderr.contains("netDevices"), "{what}: {out:#?}");
        assert!(!out.stderr.contains("after a failure"), "{what}: {out:#?}");
        assert_back(&out);
        bundle.assert_gone();
    }
}

#[test]
fn what_cannot_be_moved_is_told() {
    needs_ip!();
    isorun_only!("the sentences are isorun's");
    for (list, says) in [
        (
            json!({"missing0": {}}),
            "linux.netDevices.missing0: find the network device missing0: ENODEV",
        ),
        (
            json!({"lo": {"name": "lo2"}}),
            "linux.netDevices.lo: move the network device to lo2: EINVAL: Invalid argument; the kernel lets",
        ),
        // The first one is not moved when the second one is not there.
        (
            json!({"d0": {}, "missing0": {}}),
            "linux.netDevices.missing0: find",
        ),
    ] {
        let mut bundle = Bundle::new();
        devices(&mut bundle, list);
        let out = run_in(&mut bundle, DEVICE, "ip addr show dev d0").code(1);
        assert!(out.stderr.contains(says), "{says}: {out:#?}");
        assert!(
            parts(&out).1.contains("inet6 fd00::1/64") || !Path::new("/proc/sys/net/ipv6").exists()
        );
        assert!(parts(&out).1.contains(",UP"), "{out:#?}");
        bundle.assert_gone();
    }
}

#[test]
fn the_runtimes_own_namespace_is_refused() {
    needs_ip!();
    let says = "unable to move network devices without a private NET namespace";
    let mut bundle = Bundle::new();
    bundle.without_namespace("network");
    // sysfs belongs to the network namespace, which is the host's here.
    devices(&mut bundle, json!({"d0": {}}));
    let out = run_in(&mut bundle, DEVICE, "").code(1);
    assert!(out.stderr.contains(says), "{out:#?}");
    isorun_only!("runc looks at the list of namespaces only");
    let mut bundle = Bundle::new();
    join(&mut bundle, "/proc/self/ns/net");
    devices(&mut bundle, json!({"d0": {}}));
    let out = run_in(&mut bundle, DEVICE, "").code(1);
    assert!(out.stderr.contains(says), "{out:#?}");
    bundle.assert_gone();
}

/// The device is there from `create` on. A virtual one goes with the namespace, as the kernel has it:
/// the specification forbids the runtime to take it out before.
#[test]
fn create_start_and_delete() {
    needs_ip!();
    let mut bundle = Bundle::new();
    bundle.args(&["sleep", "1000"]);
    devices(&mut bundle, json!({"d0": {"name": "inside0"}}));
    bundle.write();
    // A namespace that several commands share.
    let mut holder = std::process::Command::new("unshare");
    holder
        .args(["--net", "sh", "-euc"])
        .arg(format!("{DEVICE}\nexec sleep 1000"));
    holder.env("ISORUN_TEST_ID", &bundle.id);
    let mut holder = holder.spawn().unwrap();
    let net = format!("--net=/proc/{}/ns/net", holder.id());
    let ip = |args: &[&str]| {
        let mut command = std::process::Command::new("nsenter");
        command.arg(&net).arg("ip").args(args).output().unwrap()
    };
    wait_for("the device", || {
        let out = ip(&["addr", "show", "dev", "d0"]);
        String::from_utf8_lossy(&out.stdout).contains("10.9.3.1")
    });
    bundle.prefix = vec!["nsenter".into(), net.clone()];
    bundle.create().ok();
    assert!(!ip(&["link", "show", "d0"]).status.success());
    assert!(ip(&["link", "show", "p0"]).status.success());
    bundle.start().ok();
    let exec = bundle.call(&["exec", &bundle.id, "cat", "/sys/class/net/inside0/mtu"]);
    assert_eq!(exec.ok().text(), "1400");
    bundle.delete_force().ok();
    wait_for("the pair to go with the namespace", || {
        !ip(&["link", "show", "p0"]).status.success()
    });
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn the_plan_tells_the_devices() {
    isorun_only!("runc has no plan");
    let mut bundle = Bundle::new();
    devices(&mut bundle, json!({"d0": {"name": "inside0"}, "d1": {}}));
    bundle.write();
    let dir = bundle.bundle_dir();
    let out = bundle.call(&["plan", dir.to_str().unwrap()]).ok();
    let says = "network devices of the host: d0 as inside0, d1";
    assert!(out.stdout.contains(says), "{out:#?}");
}
