//! Seccomp, by running the filter: a probe makes system calls and tells what came back.

use serde_json::{Value, json};

use crate::harness::{Bundle, Output, Running, probe, wait_for};

/// getpgrp: harmless, ignores the six arguments that conditions may look at, and neither the shell
/// nor a runtime's init needs it.
const GETPGRP: u32 = 111;
const GETPGRP_X86: u32 = 65;

/// A bundle with this profile that makes each of these calls with the probe.
fn calls(profile: Value, calls: &[String]) -> Result<Output, &'static str> {
    let mut bundle = Bundle::new();
    bundle.add_probe()?;
    let script: Vec<String> = calls
        .iter()
        .map(|call| format!("/probe {call} || echo status $?"))
        .collect();
    bundle
        .args(&["sh", "-c", &(script.join("; ") + "; true")])
        .set("/linux/seccomp", profile);
    Ok(bundle.run().ok())
}

/// What each call gave: its errno, 0 for success, or the exit status of a probe that was killed.
fn results(profile: Value, wanted: &[&str]) -> Option<Vec<String>> {
    let wanted: Vec<String> = wanted.iter().map(|call| call.to_string()).collect();
    match calls(profile, &wanted) {
        Ok(out) => Some(
            out.text()
                .lines()
                .filter(|line| line.starts_with("ret ") || line.starts_with("status "))
                .map(|line| {
                    line.rsplit_once("errno ")
                        .map_or(line, |pair| pair.1)
                        .to_string()
                })
                .collect(),
        ),
        Err(why) => {
            crate::harness::say_skipped(why);
            None
        }
    }
}

fn allow_but(rule: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]})
}

#[test]
fn errno_default_and_given() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["getgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
            {"names": ["getegid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}
        ]
    });
    let Some(seen) = results(
        profile,
        &["syscall 111", "syscall 104", "syscall 108", "syscall 39"],
    ) else {
        return;
    };
    assert_eq!(seen, ["1", "77", "0", "0"]);
}

#[test]
fn status_shows_the_filter() {
    let mut bundle = Bundle::new();
    bundle.args(&["cat", "/proc/self/status"]);
    assert_eq!(
        bundle.run().ok().field("Seccomp"),
        "0",
        "none unless asked for"
    );
    bundle.set(
        "/linux/seccomp",
        allow_but(json!({"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO"})),
    );
    let out = bundle.run().ok();
    assert_eq!(
        (out.field("Seccomp"), out.field("Seccomp_filters")),
        ("2".into(), "1".into())
    );
    bundle.set("/process/noNewPrivileges", json!(false));
    let out = bundle.run().ok();
    assert_eq!(
        (out.field("Seccomp"), out.field("NoNewPrivs")),
        ("2".into(), "0".into())
    );
}

#[test]
fn kill_kill_process_and_trap() {
    for action in [
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_TRAP",
    ] {
        let rule = json!({"names": ["getpgrp"], "action": action});
        let Some(seen) = results(allow_but(rule), &["syscall 111", "syscall 39"]) else {
            return;
        };
        assert_eq!(seen, ["status 159", "0"], "{action}: SIGSYS is 31");
    }
}

#[test]
fn trace_without_tracer_and_log() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["getpgrp"], "action": "SCMP_ACT_TRACE", "errnoRet": 5},
            {"names": ["getgid"], "action": "SCMP_ACT_LOG"}
        ]
    });
    let Some(seen) = results(profile, &["syscall 111", "syscall 104"]) else {
        return;
    };
    assert_eq!(seen, ["38", "0"]);
}

/// An operator, its values, and arguments with whether they hit.
type Operator<'a> = (&'a str, Value, &'a [(u64, bool)]);

/// Every operator, on both sides of its border and with the upper half of the word.
#[test]
fn operators() {
    const BIG: u64 = 0x1_0000_0005;
    let table: &[Operator] = &[
        (
            "SCMP_CMP_EQ",
            json!({"value": 5}),
            &[(5, true), (4, false), (BIG, false)],
        ),
        (
            "SCMP_CMP_NE",
            json!({"value": 5}),
            &[(5, false), (4, true), (BIG, true)],
        ),
        (
            "SCMP_CMP_LT",
            json!({"value": 5}),
            &[(4, true), (5, false), (BIG, false)],
        ),
        (
            "SCMP_CMP_LE",
            json!({"value": 5}),
            &[(5, true), (6, false), (BIG, false)],
        ),
        (
            "SCMP_CMP_GT",
            json!({"value": 5}),
            &[(6, true), (5, false), (BIG, true)],
        ),
        (
            "SCMP_CMP_GE",
            json!({"value": 5}),
            &[(5, true), (4, false), (BIG, true)],
        ),
        (
            "SCMP_CMP_EQ",
            json!({"value": BIG}),
            &[(BIG, true), (5, false), (0x1_0000_0000, false)],
        ),
        (
            "SCMP_CMP_LT",
            json!({"value": BIG}),
            &[(u64::MAX, false), (BIG - 1, true), (7, true)],
        ),
        (
            "SCMP_CMP_GT",
            json!({"value": BIG}),
            &[(u64::MAX, true), (BIG, false), (7, false), (BIG + 1, true)],
        ),
        (
            "SCMP_CMP_MASKED_EQ",
            json!({"value": 0xf0, "valueTwo": 0x50}),
            &[(0x5f, true), (0x6f, false), (0x1_0000_0050, true)],
        ),
        (
            "SCMP_CMP_MASKED_EQ",
            json!({"value": 0xf_0000_0000_u64, "valueTwo": 0x3_0000_0000_u64}),
            &[(0x3_1234_5678, true), (0x4_0000_0000, false)],
        ),
    ];
    for (index, (op, values, tries)) in table.iter().enumerate() {
        let position = index % 6;
        let mut condition = json!({"index": position, "op": op});
        for (key, value) in values.as_object().unwrap() {
            condition[key] = value.clone();
        }
        let rule = json!({"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9, "args": [condition]});
        let made: Vec<String> = tries
            .iter()
            .map(|(value, _)| format!("syscall {GETPGRP}{} {value}", " 99".repeat(position)))
            .collect();
        let made: Vec<&str> = made.iter().map(String::as_str).collect();
        let Some(seen) = results(allow_but(rule), &made) else {
            return;
        };
        let wanted: Vec<&str> = tries
            .iter()
            .map(|(_, hit)| if *hit { "9" } else { "0" })
            .collect();
        assert_eq!(
            seen, wanted,
            "{op} {values} at argument {position}: {tries:?}"
        );
    }
}

#[test]
fn conditions_on_two_arguments_are_both_needed() {
    let rule = json!({"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO", "args": [
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}]});
    let Some(seen) = results(
        allow_but(rule),
        &["syscall 111 1 2", "syscall 111 1 3", "syscall 111 0 2"],
    ) else {
        return;
    };
    assert_eq!(seen, ["1", "0", "0"]);
}

/// libseccomp takes one condition for each argument; runc makes a rule of each, so either is enough.
#[test]
fn conditions_on_one_argument_are_alternatives() {
    let rule = json!({"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO", "args": [
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]});
    let Some(seen) = results(
        allow_but(rule),
        &["syscall 111 1", "syscall 111 2", "syscall 111 3"],
    ) else {
        return;
    };
    assert_eq!(seen, ["1", "1", "0"]);
}

#[test]
fn several_rules_for_one_call() {
    let rule = |value: u32, errno: u32| {
        json!({"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO",
        "errnoRet": errno, "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
    };
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [rule(1, 11), rule(2, 12), rule(3, 13)]});
    let made = [
        "syscall 111 1",
        "syscall 111 2",
        "syscall 111 3",
        "syscall 111 4",
    ];
    let Some(seen) = results(profile, &made) else {
        return;
    };
    assert_eq!(seen, ["11", "12", "13", "0"]);
}

/// A call by the gate of another architecture must not slip past the rules.
#[test]
fn an_architecture_that_is_not_listed_is_killed() {
    let rule = json!({"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO"});
    let x86 = format!("int80 {GETPGRP_X86}");
    let Some(seen) = results(allow_but(rule), &["syscall 111", &x86, "int80 20"]) else {
        return;
    };
    assert_eq!(seen, ["1", "status 159", "status 159"]);
}

#[test]
fn an_architecture_that_is_listed_has_its_own_numbers() {
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9}]});
    let x32 = format!("syscall {}", GETPGRP | 0x4000_0000);
    let x86 = format!("int80 {GETPGRP_X86}");
    // 111 is vhangup on x86 and must not be taken for getpgrp.
    let Some(seen) = results(profile, &["syscall 111", &x86, "int80 20", &x32]) else {
        return;
    };
    assert_eq!(seen, ["9", "9", "0", "9"]);
}

#[test]
fn x32_that_is_not_listed_is_killed() {
    let rule = json!({"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO"});
    let (listed, other) = (
        format!("syscall {}", GETPGRP | 0x4000_0000),
        format!("syscall {}", 39 | 0x4000_0000),
    );
    let Some(seen) = results(allow_but(rule), &[&listed, &other]) else {
        return;
    };
    assert_eq!(seen, ["status 159", "status 159"]);
}

#[test]
fn unknown_names_are_left_out() {
    let rule = json!({"names": ["getpgrp", "no_such_call"], "action": "SCMP_ACT_ERRNO"});
    let Some(seen) = results(allow_but(rule), &["syscall 111"]) else {
        return;
    };
    assert_eq!(seen, ["1"]);
}

/// Calls newer than every rule of a profile get ENOSYS, so that programs fall back; older ones that
/// it leaves out get its default.
#[test]
fn newer_calls_get_enosys() {
    let captured = crate::captured::load("docker.json");
    let Some(seen) = results(
        captured["linux"]["seccomp"].clone(),
        &["syscall 600", "syscall 163"],
    ) else {
        return;
    };
    assert_eq!(seen, ["38", "1"], "acct is 163");
}

#[test]
fn default_errno() {
    let mut profile = crate::captured::load("docker.json")["linux"]["seccomp"].clone();
    profile["defaultErrnoRet"] = json!(55);
    let Some(seen) = results(profile, &["syscall 163", "syscall 39"]) else {
        return;
    };
    assert_eq!(seen, ["55", "0"]);
}

#[test]
fn profiles_of_the_engines_do_what_they_promise() {
    // acct; unshare, clone (CLONE_NEWUSER); personality; socket(AF_VSOCK), NETLINK_AUDIT, NETLINK_ROUTE
    let podman: &[(&str, &str)] = &[
        ("syscall 163", "1"),
        ("syscall 135 0", "0"),
        ("syscall 135 3", "38"),
        ("syscall 41 40 1 0", "1"),
        ("syscall 41 16 3 9", "22"),
        ("syscall 41 16 3 0", "0"),
        ("int80 20", "0"),
    ];
    let docker: &[(&str, &str)] = &[
        ("syscall 163", "1"),
        ("syscall 272 0x10000000", "1"),
        ("syscall 56 0x10000000", "1"),
        ("syscall 135 0", "0"),
        ("syscall 135 3", "1"),
        ("syscall 41 40 1 0", "1"),
        ("syscall 41 16 3 0", "0"),
        ("int80 20", "0"),
    ];
    for (name, table) in [("podman.json", podman), ("docker.json", docker)] {
        let profile = crate::captured::load(name)["linux"]["seccomp"].clone();
        let made: Vec<&str> = table.iter().map(|row| row.0).collect();
        let Some(seen) = results(profile, &made) else {
            return;
        };
        let seen: Vec<_> = made
            .iter()
            .copied()
            .zip(seen.iter().map(String::as_str))
            .collect();
        assert_eq!(seen, table, "{name}");
    }
}

#[test]
fn notify_hands_the_listener_over() {
    let mut bundle = Bundle::new();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    let socket = bundle.host("agent.sock");
    let mut command = std::process::Command::new(probe().unwrap());
    command
        .arg("agent")
        .arg(&socket)
        .arg("44")
        .env("ISORUN_TEST_ID", &bundle.id);
    let agent = Running::start(command, &bundle.dir.join("io"));
    wait_for("the agent's socket", || socket.exists());
    bundle.args(&["/probe", "syscall", "111"]);
    bundle.set(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "listenerPath": socket, "listenerMetadata": "opaque",
            "syscalls": [{"names": ["getpgrp"], "action": "SCMP_ACT_NOTIFY"}]
        }),
    );
    assert_eq!(bundle.run().ok().text(), "ret -1 errno 44");
    let said = agent.finish().ok().stdout;
    let state: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(state["fds"], json!(["seccompFd"]), "{state}");
    assert_eq!(state["metadata"], "opaque");
    assert_eq!(state["state"]["id"], json!(bundle.id));
    assert!(state["pid"].as_i64().unwrap() > 1, "{state}");
    assert!(said.contains("asked 111"), "{said}");
}

#[test]
fn notify_without_an_agent_is_refused() {
    let mut bundle = Bundle::new();
    bundle.set(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "listenerPath": bundle.host("nobody.sock"),
            "syscalls": [{"names": ["getpgrp"], "action": "SCMP_ACT_NOTIFY"}]
        }),
    );
    bundle.run().code(1);
    bundle.assert_gone();
}

#[test]
fn filter_flags() {
    since_runc!(1, 2, "seccomp flags");
    let mut profile = allow_but(json!({"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO"}));
    profile["flags"] = json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]);
    let Some(seen) = results(profile, &["syscall 111"]) else {
        return;
    };
    assert_eq!(seen, ["1"]);
}

/// With no_new_privs the filter is loaded last, and what a runtime still does after it is no more than
/// every useful filter allows.
#[test]
fn a_filter_may_deny_prctl() {
    let mut bundle = Bundle::new();
    bundle
        .args(&["sh", "-c", "echo through; exec sleep 1000"])
        .set("/process/noNewPrivileges", json!(true))
        .set(
            "/linux/seccomp",
            allow_but(json!({"names": ["prctl", "fcntl"], "action": "SCMP_ACT_ERRNO"})),
        );
    bundle.run_detached().ok();
    assert_eq!(bundle.status(), "running");
    let out = bundle.call(&["exec", &bundle.id, "echo", "through"]).ok();
    assert_eq!(out.text(), "through");
    bundle.delete_force().ok();
    bundle.create().ok();
    bundle.start().ok();
    assert_eq!(bundle.status(), "running");
}
