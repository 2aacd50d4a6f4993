//! The rules for process.

use serde_json::{Value, json};

use super::{accepted, noted, refused};

#[test]
fn process_command() {
    refused(&[
        (&[("/process", Value::Null)], "process", "missing"),
        (&[("/process/args", Value::Null)], "process.args", "missing"),
        (&[("/process/args", json!([]))], "process.args", "missing"),
        (
            &[("/process/args", json!([""]))],
            "process.args[0]",
            "empty",
        ),
        (
            &[("/process/args", json!(["a", "b\0"]))],
            "process.args[1]",
            "null byte",
        ),
        (
            &[("/process/args", json!("true"))],
            "process.args",
            "invalid type: string",
        ),
        (&[("/process/cwd", Value::Null)], "process.cwd", "missing"),
        (&[("/process/cwd", json!(""))], "process.cwd", "missing"),
        (
            &[("/process/cwd", json!("tmp"))],
            "process.cwd",
            "\"tmp\" is not an absolute path",
        ),
        (
            &[("/process/env", json!(["A=1", "B"]))],
            "process.env[1]",
            "there is no \"=\"",
        ),
        (
            &[("/process/env", json!(["=1"]))],
            "process.env[0]",
            "there is no name",
        ),
        (
            &[("/process/env", json!(["A=\0"]))],
            "process.env[0]",
            "null byte",
        ),
        (
            &[("/process/terminal", json!(true))],
            "process.terminal",
            "not supported",
        ),
        (
            &[("/process/apparmorProfile", json!("x"))],
            "process.apparmorProfile",
            "not supported",
        ),
        (
            &[("/process/selinuxLabel", json!("x"))],
            "process.selinuxLabel",
            "not supported",
        ),
        (
            &[("/process/scheduler", json!({"policy": "SCHED_OTHER"}))],
            "process.scheduler",
            "not supported",
        ),
        (
            &[(
                "/process/ioPriority",
                json!({"class": "IOPRIO_CLASS_BE", "priority": 4}),
            )],
            "process.ioPriority",
            "not supported",
        ),
        (
            &[("/process/execCPUAffinity", json!({"initial": "0"}))],
            "process.execCPUAffinity",
            "not supported",
        ),
    ]);
    accepted(&[
        &[("/process/env", json!(["A=", "B=1=2", "C D=ä"]))],
        &[("/process/env", json!([]))],
        &[
            ("/process/terminal", json!(false)),
            ("/process/consoleSize", json!({})),
        ],
        &[
            ("/process/apparmorProfile", json!("")),
            ("/process/selinuxLabel", json!("")),
        ],
        &[("/process/execCPUAffinity", json!({}))],
        &[("/process/noNewPrivileges", json!(true))],
    ]);
    noted(&[
        (
            &[("/process/consoleSize", json!({"height": 1, "width": 2}))],
            "process.consoleSize: ignored",
        ),
        (
            &[("/process/commandLine", json!("x"))],
            "process.commandLine: ignored",
        ),
        (
            &[("/process/user/username", json!("x"))],
            "process.user.username: ignored",
        ),
    ]);
}

#[test]
fn process_rights_and_limits() {
    let caps = |set: &str, names: Value| [("/process/capabilities", json!({ set: names }))];
    let limits = |list: Value| [("/process/rlimits", list)];
    refused(&[
        (
            &caps("bounding", json!(["CAP_CHOWN", "CAP_FROB"])),
            "process.capabilities.bounding[1]",
            "unknown capability \"CAP_FROB\"",
        ),
        (
            &caps("ambient", json!([""])),
            "process.capabilities.ambient[0]",
            "unknown capability \"\"",
        ),
        (
            &limits(json!([{"type": "RLIMIT_FROB", "soft": 1, "hard": 1}])),
            "process.rlimits[0].type",
            "unknown variant `RLIMIT_FROB`",
        ),
        (
            &limits(json!([{"soft": 1, "hard": 1}])),
            "process.rlimits[0].type",
            "missing",
        ),
        (
            &limits(json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}])),
            "process.rlimits[0].soft",
            "RLIMIT_CORE: the soft limit 2 is above the hard limit 1",
        ),
        (
            &limits(json!([{"type": "RLIMIT_CORE", "soft": -1, "hard": 1}])),
            "process.rlimits[0].soft",
            "invalid value",
        ),
        (
            &limits(json!([
            {"type": "RLIMIT_CORE", "soft": 1, "hard": 1},
            {"type": "RLIMIT_CPU", "soft": 1, "hard": 1},
            {"type": "RLIMIT_CORE", "soft": 1, "hard": 1}])),
            "process.rlimits[2].type",
            "RLIMIT_CORE is there twice",
        ),
        (
            &[("/process/oomScoreAdj", json!(1001))],
            "process.oomScoreAdj",
            "outside -1000 to 1000",
        ),
        (
            &[("/process/oomScoreAdj", json!(-1001))],
            "process.oomScoreAdj",
            "outside",
        ),
        (
            &[("/process/user/uid", json!(-1))],
            "process.user.uid",
            "invalid value",
        ),
        (
            &[("/process/user/uid", json!("root"))],
            "process.user.uid",
            "invalid type",
        ),
    ]);
    accepted(&[
        &caps("bounding", json!(["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"])),
        &[("/process/capabilities", json!({}))],
        &limits(
            json!([{"type": "RLIMIT_CORE", "soft": 1, "hard": 18_446_744_073_709_551_615_u64}]),
        ),
        &limits(json!([])),
        &[("/process/oomScoreAdj", json!(-1000))],
        &[(
            "/process/user",
            json!({"uid": 7, "gid": 7, "umask": 18, "additionalGids": [1, 2]}),
        )],
    ]);
}
