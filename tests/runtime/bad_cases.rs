//! The table of what a config.json can have wrong; bad_input.rs checks it.

use serde_json::{Value, json};

use crate::harness::Bundle;

/// How a case goes on the reference.
pub enum Reference {
    /// It refuses as isorun does.
    Refuses,
    /// It accepts, for the reason given.
    Accepts(&'static str),
}
use Reference::{Accepts, Refuses};

/// One thing that is wrong.
pub struct Case {
    /// What is wrong, in words.
    pub name: &'static str,
    /// Makes a good bundle bad.
    pub spoil: fn(&mut Bundle),
    /// What isorun's sentence must hold: the field, and the cause.
    pub says: &'static [&'static str],
    /// What the reference makes of it.
    pub reference: Reference,
}

const fn case(
    name: &'static str,
    says: &'static [&'static str],
    reference: Reference,
    spoil: fn(&mut Bundle),
) -> Case {
    Case {
        name,
        spoil,
        says,
        reference,
    }
}

fn hook(stage: &str, hook: Value) -> Value {
    json!({ stage: [hook] })
}

fn seccomp(rule: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]})
}

/// Everything that a config.json can have wrong; the text of a file that is no JSON comes below.
pub fn cases() -> Vec<Case> {
    let mut cases = objects();
    cases.extend(linux());
    cases.extend(hooks());
    cases
}

fn objects() -> Vec<Case> {
    vec![
        case(
            "ociVersion of the future",
            &["ociVersion", "7.0.0"],
            Accepts("runc does not look"),
            |bundle| {
                bundle.set("/ociVersion", json!("7.0.0"));
            },
        ),
        case(
            "ociVersion that is none",
            &["ociVersion", "one"],
            Accepts("runc does not look"),
            |bundle| {
                bundle.set("/ociVersion", json!("one"));
            },
        ),
        case(
            "ociVersion missing",
            &["ociVersion"],
            Accepts("runc does not look"),
            |bundle| {
                bundle.unset("/ociVersion");
            },
        ),
        case(
            "args of the wrong type",
            &["process.args"],
            Refuses,
            |bundle| {
                bundle.set("/process/args", json!("sh"));
            },
        ),
        case("args empty", &["process.args"], Refuses, |bundle| {
            bundle.set("/process/args", json!([]));
        }),
        case(
            "program missing",
            &["nope", "not found"],
            Refuses,
            |bundle| {
                bundle.args(&["nope"]);
            },
        ),
        case(
            "program by path missing",
            &["/bin/nope", "no such file"],
            Refuses,
            |bundle| {
                bundle.args(&["/bin/nope"]);
            },
        ),
        case(
            "program that is a directory",
            &["/etc"],
            Refuses,
            |bundle| {
                bundle.args(&["/etc"]);
            },
        ),
        case(
            "program that may not be executed",
            &["/etc/passwd"],
            Refuses,
            |bundle| {
                bundle.args(&["/etc/passwd"]);
            },
        ),
        case("cwd relative", &["process.cwd"], Refuses, |bundle| {
            bundle.set("/process/cwd", json!("tmp"));
        }),
        case("cwd that is a file", &["/etc/passwd"], Refuses, |bundle| {
            bundle.set("/process/cwd", json!("/etc/passwd"));
        }),
        case(
            "rlimit unknown",
            &["process.rlimits[0].type", "RLIMIT_FOO"],
            Refuses,
            |bundle| {
                bundle.set(
                    "/process/rlimits",
                    json!([{"type": "RLIMIT_FOO", "soft": 1, "hard": 1}]),
                );
            },
        ),
        case(
            "rlimit soft over hard",
            &["RLIMIT_NOFILE"],
            Refuses,
            |bundle| {
                bundle.set(
                    "/process/rlimits",
                    json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 8}]),
                );
            },
        ),
        case("oom score out of range", &["oom"], Refuses, |bundle| {
            bundle.set("/process/oomScoreAdj", json!(5000));
        }),
        case("root missing", &["root"], Refuses, |bundle| {
            bundle.unset("/root");
        }),
        case(
            "root path that is not there",
            &["nope", "no such"],
            Refuses,
            |bundle| {
                bundle.set("/root/path", json!("nope"));
            },
        ),
        case(
            "root path that is a file",
            &["config.json", "director"],
            Refuses,
            |bundle| {
                bundle.set("/root/path", json!("config.json"));
            },
        ),
        case(
            "mount source missing",
            &["/nonexistent", "no such file"],
            Refuses,
            |bundle| {
                bundle.mount("/x", "bind", "/nonexistent", &["bind"]);
            },
        ),
        case("mount option unknown", &["frobnicate"], Refuses, |bundle| {
            bundle.mount("/x", "tmpfs", "tmpfs", &["frobnicate"]);
        }),
        case(
            "mount option of the wrong form",
            &["size"],
            Refuses,
            |bundle| {
                bundle.mount("/x", "tmpfs", "tmpfs", &["size=much"]);
            },
        ),
        case("mount type unknown", &["nosuchfs"], Refuses, |bundle| {
            bundle.mount("/x", "nosuchfs", "x", &[]);
        }),
        case(
            "mount without destination",
            &["mounts[6].destination"],
            Refuses,
            |bundle| {
                bundle.push("/mounts", json!({"type": "tmpfs", "source": "tmpfs"}));
            },
        ),
        case(
            "mount of a directory on a file",
            &["mounts[6]", "/etc/passwd"],
            Refuses,
            |bundle| {
                let host = bundle.host("").to_str().unwrap().to_string();
                bundle.mount("/etc/passwd", "bind", &host, &["bind"]);
            },
        ),
    ]
}

fn linux() -> Vec<Case> {
    vec![
        case(
            "namespace unknown",
            &["linux.namespaces[5].type", "pidd"],
            Refuses,
            |bundle| {
                bundle.namespace("pidd");
            },
        ),
        case(
            "namespace twice",
            &["linux.namespaces", "pid"],
            Refuses,
            |bundle| {
                bundle.namespace("pid");
            },
        ),
        case("no mount namespace", &["mount"], Refuses, |bundle| {
            bundle.without_namespace("mount");
        }),
        case(
            "device type unknown",
            &["linux.devices[0].type", "q"],
            Refuses,
            |bundle| {
                bundle.set(
                    "/linux/devices",
                    json!([{"path": "/dev/x", "type": "q", "major": 1, "minor": 1}]),
                );
            },
        ),
        case(
            "rootfsPropagation unknown",
            &["linux.rootfsPropagation", "foo"],
            Refuses,
            |bundle| {
                bundle.set("/linux/rootfsPropagation", json!("foo"));
            },
        ),
        case(
            "sysctl of the host",
            &["linux.sysctl", "kernel.panic"],
            Refuses,
            |bundle| {
                bundle.set("/linux/sysctl", json!({"kernel.panic": "1"}));
            },
        ),
        case(
            "sysctl that the kernel refuses",
            &["net.ipv4.ip_unprivileged_port_start"],
            Refuses,
            |bundle| {
                bundle.set(
                    "/linux/sysctl",
                    json!({"net.ipv4.ip_unprivileged_port_start": "many"}),
                );
            },
        ),
        case(
            "uid map of no size",
            &["linux.uidMappings"],
            Refuses,
            |bundle| {
                let map = json!([{"containerID": 0, "hostID": 1000, "size": 0}]);
                bundle
                    .namespace("user")
                    .set("/linux/uidMappings", map.clone())
                    .set("/linux/gidMappings", map);
            },
        ),
        case("uid maps that overlap", &["map"], Refuses, |bundle| {
            let map = json!([{"containerID": 0, "hostID": 1000, "size": 5}, {"containerID": 2, "hostID": 9000, "size": 5}]);
            bundle
                .namespace("user")
                .set("/linux/uidMappings", map.clone())
                .set("/linux/gidMappings", map);
        }),
        case("cpuset that is none", &["cpu"], Refuses, |bundle| {
            bundle.set("/linux/resources/cpu", json!({"cpus": "many"}));
        }),
        case(
            "seccomp action unknown",
            &["linux.seccomp.defaultAction", "SCMP_ACT_FOO"],
            Refuses,
            |bundle| {
                bundle.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_FOO"}));
            },
        ),
        case(
            "seccomp architecture unknown",
            &["linux.seccomp.architectures[0]", "SCMP_ARCH_FOO"],
            Refuses,
            |bundle| {
                bundle.set(
                    "/linux/seccomp",
                    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_FOO"]}),
                );
            },
        ),
        case(
            "seccomp argument that no call has",
            &["linux.seccomp.syscalls[0].args[0].index", "9"],
            Refuses,
            |bundle| {
                let args = json!([{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]);
                bundle.set(
                    "/linux/seccomp",
                    seccomp(
                        json!({"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO", "args": args}),
                    ),
                );
            },
        ),
        case(
            "seccomp operator unknown",
            &["linux.seccomp.syscalls[0].args[0].op", "SCMP_CMP_FOO"],
            Refuses,
            |bundle| {
                let args = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_FOO"}]);
                bundle.set(
                    "/linux/seccomp",
                    seccomp(
                        json!({"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO", "args": args}),
                    ),
                );
            },
        ),
        case(
            "seccomp rule without an action",
            &["linux.seccomp.syscalls[0].action"],
            Refuses,
            |bundle| {
                bundle.set("/linux/seccomp", seccomp(json!({"names": ["getpgrp"]})));
            },
        ),
        case(
            "seccomp NOTIFY without a listener",
            &["listenerPath"],
            Accepts("runc leaves it to libseccomp"),
            |bundle| {
                bundle.set(
                    "/linux/seccomp",
                    seccomp(json!({"names": ["getpgrp"], "action": "SCMP_ACT_NOTIFY"})),
                );
            },
        ),
    ]
}

fn hooks() -> Vec<Case> {
    vec![
        case(
            "hook fails",
            &["createRuntime", "/bin/false"],
            Refuses,
            |bundle| {
                bundle.set(
                    "/hooks",
                    hook("createRuntime", json!({"path": "/bin/false"})),
                );
            },
        ),
        case(
            "hook hangs",
            &["createRuntime", "/bin/sleep", "1 s"],
            Refuses,
            |bundle| {
                let hangs = json!({"path": "/bin/sleep", "args": ["sleep", "300"], "timeout": 1,
                "env": [format!("ISORUN_TEST_ID={}", bundle.id)]});
                bundle.set("/hooks", hook("createRuntime", hangs));
            },
        ),
        case(
            "hook is not there",
            &["/nope", "no such file"],
            Refuses,
            |bundle| {
                bundle.set("/hooks", hook("prestart", json!({"path": "/nope"})));
            },
        ),
        case(
            "hook by a relative path",
            &["hooks.createRuntime[0].path"],
            Refuses,
            |bundle| {
                bundle.set("/hooks", hook("createRuntime", json!({"path": "bin/true"})));
            },
        ),
        case(
            "hook in the container fails",
            &["createContainer", "/bin/false"],
            Refuses,
            |bundle| {
                bundle.set(
                    "/hooks",
                    hook("createContainer", json!({"path": "/bin/false"})),
                );
            },
        ),
        case(
            "hook that dies of a signal",
            &["createRuntime", "signal"],
            Refuses,
            |bundle| {
                bundle.set(
                    "/hooks",
                    hook(
                        "createRuntime",
                        json!({"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $$"]}),
                    ),
                );
            },
        ),
    ]
}
