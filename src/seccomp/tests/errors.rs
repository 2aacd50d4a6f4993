//! Impossible profiles, and the sentence for each.

use super::*;

fn error(json: &str) -> String {
    compile_for(&profile(json), Abi::X86_64)
        .unwrap_err()
        .to_string()
}

fn with_rule(rule: &str) -> String {
    error(&format!(
        r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {{"names":["read"],"action":"SCMP_ACT_LOG"}},{{{rule}}}]}}"#
    ))
}

#[test]
fn rules() {
    let table = [
        (
            r#""names":[],"action":"SCMP_ACT_LOG""#,
            "config.json: linux.seccomp.syscalls[1].names: has to name at least one system call",
        ),
        (
            r#""names":["open",""],"action":"SCMP_ACT_LOG""#,
            "config.json: linux.seccomp.syscalls[1].names[1]: the name of a system call is empty",
        ),
        (
            r#""names":["open"],"action":"SCMP_ACT_ERRNO","args":[
                {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]"#,
            "config.json: linux.seccomp.syscalls[1].args[1].index: 6 is not 0 to 5: no system call \
             has more",
        ),
        (
            r#""names":["open"],"action":"SCMP_ACT_ERRNO","errnoRet":4096"#,
            "config.json: linux.seccomp.syscalls[1].errnoRet: 4096 is too great: SCMP_ACT_ERRNO \
             takes at most 4095",
        ),
        (
            r#""names":["open"],"action":"SCMP_ACT_TRACE","errnoRet":65536"#,
            "config.json: linux.seccomp.syscalls[1].errnoRet: 65536 is too great: SCMP_ACT_TRACE \
             takes at most 65535",
        ),
        (
            r#""names":["open"],"action":"SCMP_ACT_KILL","errnoRet":1"#,
            "config.json: linux.seccomp.syscalls[1].errnoRet: SCMP_ACT_KILL does not return an \
             errno; leave it out, or use SCMP_ACT_ERRNO or SCMP_ACT_TRACE",
        ),
        (
            r#""names":["open"],"action":"SCMP_ACT_NOTIFY""#,
            "config.json: linux.seccomp.listenerPath: has to be set, as a rule has the action \
             SCMP_ACT_NOTIFY; give the path of the agent's socket",
        ),
        (
            r#""names":["open"],"action":"SCMP_ACT_LOG","args":[
                {"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},
               {"names":["close","open"],"action":"SCMP_ACT_TRAP","args":[
                {"index":0,"value":1,"op":"SCMP_CMP_EQ"}]"#,
            "config.json: linux.seccomp.syscalls[2].names[1]: the rule for open contradicts that \
             of syscalls[1]: the same conditions, or only some of them, and another action; remove \
             one of them",
        ),
    ];
    for (rule, sentence) in table {
        assert_eq!(with_rule(rule), sentence);
    }
}

#[test]
fn profiles() {
    let table = [
        (
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
            "config.json: linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be the default \
             action; use it for single system calls",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}"#,
            "config.json: linux.seccomp.defaultErrnoRet: SCMP_ACT_ALLOW does not return an errno; \
             leave it out, or use SCMP_ACT_ERRNO or SCMP_ACT_TRACE",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86","SCMP_ARCH_S390X"]}"#,
            "config.json: linux.seccomp.architectures[1]: isorun has no system call table for \
             SCMP_ARCH_S390X; it has those for SCMP_ARCH_AARCH64, SCMP_ARCH_ARM, SCMP_ARCH_X32, \
             SCMP_ARCH_X86, SCMP_ARCH_X86_64",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW",
                "flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
            "config.json: linux.seccomp.flags[1]: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is for \
             rules with SCMP_ACT_NOTIFY; remove the flag, there is no such rule",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"x"}"#,
            "config.json: linux.seccomp.listenerMetadata: must not be set without listenerPath",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/s","syscalls":[
                {"names":["open","write"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "config.json: linux.seccomp.syscalls[0].names[1]: SCMP_ACT_NOTIFY cannot be used for \
             write: the container's process needs it to hand over the listener",
        ),
    ];
    for (json, sentence) in table {
        assert_eq!(error(json), sentence);
    }
}

#[test]
fn flags_and_listener() {
    let compiled = |json: &str| compile_for(&profile(json), Abi::X86_64).unwrap();
    let flags =
        |flags: &str| compiled(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW"{flags}}}"#)).flags;
    assert_eq!(flags(""), kernel::FLAG_SPEC_ALLOW);
    assert_eq!(flags(r#","flags":[]"#), 0);
    assert_eq!(
        flags(r#","flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_TSYNC"]"#),
        kernel::FLAG_LOG | kernel::FLAG_TSYNC
    );
    let with_listener = compiled(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/agent","listenerMetadata":"m",
            "flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV","SECCOMP_FILTER_FLAG_TSYNC"],
            "syscalls":[{"names":["mount"],"action":"SCMP_ACT_NOTIFY"}]}"#,
    );
    let wanted = kernel::FLAG_NEW_LISTENER | kernel::FLAG_WAIT_KILLABLE_RECV;
    assert_eq!(with_listener.flags, wanted);
    assert_eq!(
        with_listener.listener_path.as_deref(),
        Some("/run/agent".as_ref())
    );
    assert_eq!(with_listener.listener_metadata.as_deref(), Some("m"));
    let ignored = compiled(r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/agent"}"#);
    assert_eq!(
        (ignored.listener_path, ignored.flags),
        (None, kernel::FLAG_SPEC_ALLOW)
    );
}

#[test]
fn unknown_names_are_left_out_and_told() {
    let program = compile_for(
        &profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                {"names":["spu_run","read","frobnicate","spu_run"],"action":"SCMP_ACT_ALLOW"}]}"#,
        ),
        Abi::X86_64,
    )
    .unwrap();
    assert_eq!(program.unknown, ["spu_run", "frobnicate"]);
    assert_eq!(run(&program.instructions, &Call::plain(X86_64, 0)).0, ALLOW);
}

#[test]
fn features_name_what_the_specification_types_know() {
    for action in ACTIONS {
        let json = format!(r#"{{"defaultAction":"{action}"}}"#);
        assert!(
            serde_json::from_str::<LinuxSeccomp>(&json).is_ok(),
            "{action}"
        );
    }
    for arch in ARCHS {
        let json = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","architectures":["{arch}"]}}"#);
        assert!(compile(&profile(&json)).is_ok(), "{arch}");
    }
    assert_eq!(OPERATORS.len(), OPS.len());
    for operator in OPERATORS {
        assert!(
            OPS.iter().any(|op| op.to_string() == *operator),
            "{operator}"
        );
    }
    assert!(supported_flags().iter().all(|flag| FLAGS.contains(flag)));
    assert!(supported_flags().contains(&"SECCOMP_FILTER_FLAG_LOG"));
}
