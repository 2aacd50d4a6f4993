//! What is wrong is told in one sentence, in the log too, with runc's exit status, and leaves
//! nothing behind.

use std::fs;

use serde_json::Value;

use crate::bad_cases::{Reference::Accepts, cases};
use crate::harness::{Bundle, Output, runtime};

/// One line in a log that was there before.
const OLD: &str =
    "{\"level\":\"info\",\"msg\":\"of another call\",\"time\":\"2020-01-01T00:00:00Z\"}\n";

/// What was said on stderr; the program's name before it is no part of the sentence.
fn sentence(out: &Output) -> &str {
    let said = out.stderr.trim_end();
    said.strip_prefix("isorun: ").unwrap_or(said)
}

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
    let said = sentence(&out);
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
fn every_bad_config_by_run() {
    every_bad_config("run");
}

/// What only exec finds out is found by create as well.
#[test]
fn every_bad_config_by_create() {
    every_bad_config("create");
}

fn every_bad_config(command: &str) {
    let mut wrong = Vec::new();
    for case in cases() {
        if let (false, Accepts(why)) = (runtime().isorun, &case.reference) {
            println!("{}: not on this reference: {why}", case.name);
            continue;
        }
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
            wrong.push(format!("{}: {why}", case.name));
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
    assert_eq!(last["msg"], sentence(&out));
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
        assert_eq!(last["msg"], sentence(&out), "{args:?}");
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
