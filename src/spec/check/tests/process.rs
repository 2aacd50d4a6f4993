//! The rules for process.

use serde_json::{Value, json};

use super::{accepted, noted, refused};

#[test]
fn process_command() {
    // Required when it is started, not before.
    accepted(&[&[("/process", Value::Null)]]);
    refused(&[
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
            &[
                ("/process/terminal", json!(true)),
                (
                    "/process/consoleSize",
                    json!({"height": 25, "width": 65536}),
                ),
            ],
            "process.consoleSize.width",
            "65536 is over 65535",
        ),
        (
            &[("/process/apparmorProfile", json!("x\n"))],
            "process.apparmorProfile",
            "control character",
        ),
        (
            &[("/process/selinuxLabel", json!("x\0"))],
            "process.selinuxLabel",
            "control character",
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
            ("/process/terminal", json!(true)),
            ("/process/consoleSize", json!({"height": 25, "width": 80})),
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
            &[
                ("/process/terminal", json!(true)),
                ("/process/consoleSize", json!({"height": 1, "width": 0})),
            ],
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
fn process_scheduling() {
    let scheduler = |value: Value| [("/process/scheduler", value)];
    let affinity = |value: Value| [("/process/execCPUAffinity", value)];
    let io = |class: &str, level: i32| {
        let value = json!({"class": class, "priority": level});
        [("/process/ioPriority", value)]
    };
    refused(&[
        (&scheduler(json!({})), "process.scheduler.policy", "missing"),
        (
            &scheduler(json!({"policy": "SCHED_FROB"})),
            "process.scheduler.policy",
            "unknown variant",
        ),
        (
            &scheduler(json!({"policy": "SCHED_OTHER", "nice": -21})),
            "process.scheduler.nice",
            "-21 is outside",
        ),
        (
            &scheduler(json!({"policy": "SCHED_IDLE", "priority": 1})),
            "process.scheduler.priority",
            "SCHED_FIFO and SCHED_RR only",
        ),
        (
            &scheduler(json!({"policy": "SCHED_RR"})),
            "process.scheduler.priority",
            "0 is outside 1 to 99",
        ),
        (
            &scheduler(json!({"policy": "SCHED_RR", "priority": 1, "period": 5})),
            "process.scheduler.period",
            "SCHED_DEADLINE only",
        ),
        (
            &scheduler(json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_FROB"]})),
            "process.scheduler.flags[0]",
            "unknown variant",
        ),
        (
            &io("IOPRIO_CLASS_BE", 8),
            "process.ioPriority.priority",
            "8 is outside 0 to 7",
        ),
        (
            &io("IOPRIO_CLASS_NONE", 0),
            "process.ioPriority.class",
            "unknown variant",
        ),
        (
            &[("/process/ioPriority", json!({"priority": 4}))],
            "process.ioPriority.class",
            "missing",
        ),
        // As this, and with something that is read on the second pass only.
        (
            &[
                ("/process/ioPriority", json!({"class": null})),
                ("/process/oomScoreAdj", json!(null)),
            ],
            "process.ioPriority.class",
            "missing",
        ),
        (
            &affinity(json!({"initial": "0", "final": "2-1"})),
            "process.execCPUAffinity.final",
            "ends before it begins",
        ),
        (
            &affinity(json!({"initial": "9999"})),
            "process.execCPUAffinity.initial",
            "is over",
        ),
    ]);
    accepted(&[
        &scheduler(json!({"policy": "SCHED_OTHER"})),
        &scheduler(json!({"policy": "SCHED_FIFO", "priority": 99})),
        &scheduler(
            json!({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3,
            "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"]}),
        ),
        &io("IOPRIO_CLASS_RT", 0),
        &affinity(json!({"initial": "0-3,7", "final": ""})),
        &affinity(json!({"final": " 1, ,2 "})),
    ]);
}

#[test]
fn process_rights_and_limits() {
    let caps = |set: &str, names: Value| [("/process/capabilities", json!({ set: names }))];
    let limits = |list: Value| [("/process/rlimits", list)];
    refused(&[
        (
            &caps("bounding", json!(["CAP_CHOWN", 5])),
            "process.capabilities.bounding[1]",
            "invalid type: integer",
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
            &[("/process/user/uid", json!(u32::MAX))],
            "process.user.uid",
            "4294967295 is the kernel's",
        ),
        (
            &[("/process/user/gid", json!(u32::MAX))],
            "process.user.gid",
            "4294967295 is the kernel's",
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
