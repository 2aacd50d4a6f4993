//! What is wrong is told in one sentence, in the log too, with runc's exit status, and leaves
//! nothing behind.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Bundle, runtime};

/// How a case goes on the reference.
enum Reference {
    /// It refuses as isorun does.
    Refuses,
    /// It accepts, for the reason given.
    Accepts(&'static str),
}
use Reference::{Accepts, Refuses};

/// One thing that is wrong.
struct Case {
    name: &'static str,
    /// Makes a good bundle bad.
    spoil: fn(&mut Bundle),
    /// What isorun's sentence must hold: the field, and the cause.
    says: &'static [&'static str],
    reference: Reference,
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
fn cases() -> Vec<Case> {
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
        case("process missing", &["process"], Refuses, |bundle| {
            bundle.unset("/process");
        }),
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
            "capability unknown",
            &["process.capabilities.bounding", "CAP_FOO"],
            Accepts("runc warns and goes on"),
            |bundle| {
                bundle.set("/process/capabilities/bounding", json!(["CAP_FOO"]));
            },
        ),
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
            &["nope", "no such file"],
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
            &["/etc/passwd", "director"],
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

/// One line in a log that was there before.
const OLD: &str =
    "{\"level\":\"info\",\"msg\":\"of another call\",\"time\":\"2020-01-01T00:00:00Z\"}\n";

/// Calls the runtime with a log and checks all that a refusal must be; what is wrong, or nothing.
fn refusal(bundle: &Bundle, args: &[&str], says: &[&str]) -> Result<(), String> {
    let log = bundle.host("log.json");
    fs::write(&log, OLD).unwrap();
    let mut all = vec!["--log", log.to_str().unwrap(), "--log-format", "json"];
    all.extend(args);
    let out = bundle.call(&all);
    let log = fs::read_to_string(&log).unwrap();
    let told = || format!("{out:#?}\nlog: {log}");
    if out.code != 1 {
        return Err(format!("exit status {} instead of 1: {}", out.code, told()));
    }
    if !log.starts_with(OLD) {
        return Err(format!("the log's earlier lines are gone: {}", told()));
    }
    let last: Value = serde_json::from_str(log.lines().last().unwrap())
        .map_err(|error| format!("{error}: {}", told()))?;
    let said = out.stderr.trim_end();
    let time = last["time"].as_str().unwrap_or_default();
    let logged = last["msg"].as_str().unwrap_or_default().trim_end();
    if last["level"] != "error" || logged != said || time.len() < 20 || !time.starts_with("20") {
        return Err(format!("stderr and the log's last line differ: {}", told()));
    }
    if runtime().isorun {
        if said.contains('\n') || log.lines().count() != 2 {
            return Err(format!("more than one sentence: {}", told()));
        }
        for word in says {
            if !said.to_lowercase().contains(&word.to_lowercase()) {
                return Err(format!("{word:?} is not said: {said}"));
            }
        }
    }
    match bundle.left_behind() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("left behind: {left:#?}")),
    }
}

#[test]
fn every_bad_config() {
    let mut wrong = Vec::new();
    for case in cases() {
        if let (false, Accepts(why)) = (runtime().isorun, &case.reference) {
            println!("{}: not on this reference: {why}", case.name);
            continue;
        }
        for command in ["run", "create"] {
            // What only exec finds out is found by create as well.
            let mut bundle = Bundle::new();
            (case.spoil)(&mut bundle);
            bundle.write();
            let dir = bundle.bundle_dir();
            let args = [
                command,
                "--bundle",
                dir.to_str().unwrap(),
                &bundle.id.clone(),
            ];
            if let Err(why) = refusal(&bundle, &args, case.says) {
                wrong.push(format!("{} ({command}): {why}", case.name));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn files_that_are_no_config() {
    let texts: &[(&str, Option<&[u8]>)] = &[
        ("missing", None),
        ("empty", Some(b"")),
        ("cut off", Some(b"{ \"ociVersion\": \"1.0.2\", ")),
        ("no object", Some(b"[1, 2]")),
        ("binary", Some(b"\x7fELF\0\x01\xff")),
        ("a number that is none", Some(b"{\"ociVersion\": 1.0.2}")),
    ];
    let mut wrong = Vec::new();
    for (name, text) in texts {
        let bundle = Bundle::new();
        if let Some(text) = text {
            fs::write(bundle.bundle_dir().join("config.json"), text).unwrap();
        }
        let dir = bundle.bundle_dir();
        let args = ["run", "--bundle", dir.to_str().unwrap(), &bundle.id];
        if let Err(why) = refusal(&bundle, &args, &["config.json"]) {
            wrong.push(format!("{name}: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bundle_that_is_not_there() {
    let bundle = Bundle::new();
    refusal(
        &bundle,
        &["run", "--bundle", "/nonexistent/bundle", &bundle.id],
        &["/nonexistent/bundle"],
    )
    .unwrap();
}

#[test]
fn ids_that_are_none() {
    for id in ["a/b", "../x", ".", "..", "a b", "a\nb", "é", "a;b", "/abs"] {
        let bundle = Bundle::new();
        bundle.write();
        let dir = bundle.bundle_dir();
        for command in ["run", "create"] {
            refusal(
                &bundle,
                &[command, "--bundle", dir.to_str().unwrap(), id],
                &["id"],
            )
            .unwrap_or_else(|why| panic!("{command} {id:?}: {why}"));
        }
        for command in ["state", "start", "kill", "delete"] {
            // None of these may climb out of the state directory either.
            let out = bundle.call(&[command, id]);
            assert_eq!(out.code, 1, "{command} {id:?}: {out:#?}");
        }
        assert!(bundle.bundle_dir().join("config.json").exists());
    }
}

#[test]
fn good_ids() {
    for suffix in ["a_b", "a+b", "a-b", "a.b", "A9"] {
        let bundle = Bundle::new();
        bundle.write();
        let (dir, id) = (bundle.bundle_dir(), format!("{}{suffix}", bundle.id));
        bundle
            .call(&["run", "--bundle", dir.to_str().unwrap(), &id])
            .ok();
        bundle.assert_gone();
    }
}

#[test]
fn an_id_that_exists() {
    let bundle = Bundle::sh("sleep 100");
    bundle.create().ok();
    let dir = bundle.bundle_dir();
    let log = bundle.host("log.json");
    let out = bundle.call(&[
        "--log",
        log.to_str().unwrap(),
        "--log-format",
        "json",
        "create",
        "--bundle",
        dir.to_str().unwrap(),
        &bundle.id,
    ]);
    assert_eq!(out.code, 1, "{out:#?}");
    assert!(out.stderr.contains("exist"), "{out:#?}");
    let last: Value =
        serde_json::from_str(fs::read_to_string(&log).unwrap().lines().last().unwrap()).unwrap();
    assert_eq!(last["msg"], out.stderr.trim_end());
    assert_eq!(bundle.status(), "created", "the first is as it was");
}

#[test]
fn wrong_status_and_unknown_signal_are_logged() {
    let bundle = Bundle::sh("sleep 100");
    bundle.run_detached().ok();
    let log = bundle.host("log.json");
    for args in [
        ["start", &bundle.id, ""],
        ["delete", &bundle.id, ""],
        ["kill", &bundle.id, "FOO"],
    ] {
        let mut all = vec!["--log", log.to_str().unwrap(), "--log-format", "json"];
        all.extend(args.iter().filter(|arg| !arg.is_empty()));
        let out = bundle.call(&all).code(1);
        let last: Value =
            serde_json::from_str(fs::read_to_string(&log).unwrap().lines().last().unwrap())
                .unwrap();
        assert_eq!(last["msg"], out.stderr.trim_end(), "{args:?}");
        assert_eq!(last["level"], "error");
    }
    assert_eq!(bundle.status(), "running");
}

#[test]
fn log_as_text() {
    let bundle = Bundle::new();
    let log = bundle.host("log");
    fs::write(&log, "of another call\n").unwrap();
    bundle
        .call(&["--log", log.to_str().unwrap(), "state", "nope"])
        .code(1);
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.starts_with("of another call\n"), "{text}");
    let line = text.lines().nth(1).unwrap();
    assert!(
        line.starts_with("time=")
            && line.contains("level=error")
            && line.contains("does not exist"),
        "{line}"
    );
}

#[test]
fn command_lines_that_are_wrong() {
    let bundle = Bundle::new();
    for args in [
        vec!["run"],
        vec!["state"],
        vec!["kill"],
        vec!["run", "--frob", "x"],
        vec!["--frob"],
        vec!["--log-format", "xml", "list"],
    ] {
        let out = bundle.call(&args);
        assert_eq!(out.code, 1, "{args:?}: {out:#?}");
        assert!(!out.stderr.is_empty(), "{args:?}");
    }
    assert_ne!(bundle.call(&["frob"]).code, 0);
    bundle.assert_gone();
}
