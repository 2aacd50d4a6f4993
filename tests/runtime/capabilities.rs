//! The five capability sets, as /proc/self/status shows them.

use serde_json::{Value, json};

use crate::harness::{Bundle, Output, runtime};

const CHOWN: u64 = 1;
const KILL: u64 = 1 << 5;
const SETPCAP: u64 = 1 << 8;
const BIND: u64 = 1 << 10;
const ADMIN: u64 = 1 << 21;

fn run_with(capabilities: Value, user: u32) -> Output {
    let mut bundle = Bundle::new();
    bundle
        .args(&["cat", "/proc/self/status"])
        .set("/process/capabilities", capabilities);
    bundle.set("/process/user", json!({"uid": user, "gid": user}));
    bundle.set("/process/noNewPrivileges", json!(false));
    bundle.run().ok()
}

fn set(out: &Output, name: &str) -> u64 {
    u64::from_str_radix(&out.field(name), 16).unwrap()
}

#[test]
fn sets_of_root() {
    let three = json!(["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let out = run_with(
        json!({"bounding": three, "permitted": three, "effective": three}),
        0,
    );
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(set(&out, name), CHOWN | KILL | BIND, "{name}");
    }
    assert_eq!(set(&out, "CapInh"), 0);
    assert_eq!(set(&out, "CapAmb"), 0);
}

#[test]
fn each_set_is_its_own() {
    // A user without the magic of uid 0: what survives exec is the ambient set.
    let out = run_with(
        json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SYS_ADMIN"],
            "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "inheritable": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "ambient": ["CAP_NET_BIND_SERVICE"],
            "effective": ["CAP_CHOWN"]
        }),
        1000,
    );
    assert_eq!(set(&out, "CapBnd"), CHOWN | KILL | BIND | ADMIN);
    assert_eq!(set(&out, "CapInh"), KILL | BIND);
    assert_eq!(set(&out, "CapAmb"), BIND);
    assert_eq!(set(&out, "CapPrm"), BIND);
    assert_eq!(set(&out, "CapEff"), BIND);
}

#[test]
fn a_user_keeps_none_without_ambient() {
    let two = json!(["CAP_CHOWN", "CAP_KILL"]);
    let out = run_with(
        json!({"bounding": two, "permitted": two, "effective": two}),
        1000,
    );
    assert_eq!(set(&out, "CapPrm"), 0);
    assert_eq!(set(&out, "CapEff"), 0);
    assert_eq!(set(&out, "CapBnd"), CHOWN | KILL);
}

#[test]
fn empty_sets_leave_nothing() {
    let out = run_with(json!({}), 0);
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(set(&out, name), 0, "{name}");
    }
}

#[test]
fn without_the_object_there_are_none() {
    let mut bundle = Bundle::new();
    bundle
        .args(&["cat", "/proc/self/status"])
        .unset("/process/capabilities");
    let out = bundle.run().ok();
    // The specification leaves it open; runc gives none.
    for name in ["CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(set(&out, name), 0, "{name}");
    }
}

/// CVE-2022-29162: inheritable capabilities let a file capability raise what nobody gave.
#[test]
fn nothing_is_inheritable_unless_asked() {
    let three = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETPCAP"]);
    let out = run_with(
        json!({"bounding": three, "permitted": three, "effective": three}),
        0,
    );
    assert_eq!(set(&out, "CapPrm"), CHOWN | KILL | SETPCAP);
    assert_eq!(set(&out, "CapInh"), 0);
}

#[test]
fn capabilities_have_their_effect() {
    let mut bundle = Bundle::sh("chown 5:5 /tmp/file && echo may || echo may not");
    std::fs::write(bundle.rootfs("/tmp/file"), "").unwrap();
    assert_eq!(bundle.run().ok().text(), "may not");
    bundle.set(
        "/process/capabilities",
        json!({"bounding": ["CAP_CHOWN"],
        "permitted": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"]}),
    );
    assert_eq!(bundle.run().ok().text(), "may");
}

#[test]
fn an_unknown_name_is_told_and_left_out() {
    // config.md: "MUST be logged as a warning", and no spelling but the specification's is a name.
    let names = json!(["CAP_KILL", "CAP_OF_TOMORROW", "chown", "CAP_CAP_CHOWN"]);
    let out = run_with(
        json!({"bounding": names, "effective": names, "permitted": names}),
        0,
    );
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(set(&out, name), KILL, "{name}");
    }
    if runtime().isorun {
        let told =
            "ignoring unknown or unavailable capabilities: [CAP_CAP_CHOWN CAP_OF_TOMORROW chown]";
        assert!(out.stderr.contains(told), "{out:#?}");
    }
}
