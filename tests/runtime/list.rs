//! list: forms, columns, states, and what is in the root directory beside good containers.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, run_command, wait_for};

/// `list` with these flags, in its lines.
fn list(bundle: &Bundle, flags: &[&str]) -> Vec<String> {
    let out = bundle.call(&[&["list"], flags].concat()).ok();
    out.stdout.lines().map(str::to_string).collect()
}

fn json_of(bundle: &Bundle) -> Vec<Value> {
    serde_json::from_str(&list(bundle, &["--format", "json"])[0]).unwrap()
}

/// Makes a second container of the same bundle in the same root directory.
fn second(bundle: &Bundle, id: &str) {
    let dir = bundle.bundle_dir();
    bundle
        .call(&["create", "--bundle", dir.to_str().unwrap(), id])
        .ok();
}

#[test]
fn states_and_columns() {
    let bundle = Bundle::sh("exec sleep 1000");
    for (status, verb) in [
        ("created", "create"),
        ("running", "start"),
        ("paused", "pause"),
        ("running", "resume"),
        ("stopped", "kill"),
    ] {
        match verb {
            "create" => bundle.create().ok(),
            "kill" => bundle.kill("KILL").ok(),
            verb => bundle.call(&[verb, &bundle.id]).ok(),
        };
        bundle.wait_status(status);
        let lines = list(&bundle, &[]);
        assert_eq!(lines.len(), 2, "{lines:#?}");
        // Columns are where the heading says.
        let heading = &lines[0];
        let cell = |from: &str, to: Option<&str>| {
            let start = heading.find(from).unwrap();
            let end = to.map_or(lines[1].len(), |to| heading.find(to).unwrap());
            lines[1][start..end].trim().to_string()
        };
        assert_eq!(cell("ID", Some("PID")), bundle.id);
        assert_eq!(cell("STATUS", Some("BUNDLE")), status);
        assert_eq!(
            cell("BUNDLE", Some("CREATED")),
            bundle.bundle_dir().to_str().unwrap()
        );
        assert_eq!(cell("OWNER", None), "root");
        let pid: i64 = cell("PID", Some("STATUS")).parse().unwrap();
        assert_eq!(pid == 0, status == "stopped", "{status}");
        let state = bundle.state();
        assert_eq!(cell("CREATED", Some("OWNER")), state["created"], "{status}");
        assert_eq!(state["pid"], json!(pid));
        // What `state` says, list says as JSON.
        let listed = &json_of(&bundle)[0];
        for (key, value) in state.as_object().unwrap() {
            // `state` leaves it empty, as runc does.
            if key == "owner" {
                continue;
            }
            assert_eq!(&listed[key], value, "{status}: {key}");
        }
    }
}

/// RFC 3339 in UTC with up to nine digits below the second, of now.
#[test]
fn the_time_of_creation() {
    let bundle = Bundle::sh("true");
    let before = Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%S"])
        .output();
    bundle.create().ok();
    let before = String::from_utf8(before.unwrap().stdout).unwrap();
    let created = bundle.state()["created"].as_str().unwrap().to_string();
    let (seconds, rest) = created.split_at(19);
    assert!(seconds >= before.trim(), "{created} {before}");
    assert_eq!(&seconds[..14], &before[..14], "{created} {before}");
    let digits = rest
        .strip_prefix('.')
        .and_then(|rest| rest.strip_suffix('Z'));
    let digits = digits.unwrap_or_else(|| panic!("{created}"));
    assert!(
        (1..=9).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()),
        "{created}"
    );
}

#[test]
fn quiet_and_wrong_forms() {
    let bundle = Bundle::sh("true");
    bundle.create().ok();
    let other = format!("{}b", bundle.id);
    second(&bundle, &other);
    for flags in [&["-q"][..], &["--quiet"], &["-q", "-f", "json"]] {
        assert_eq!(
            list(&bundle, flags),
            [bundle.id.as_str(), other.as_str()],
            "{flags:?}"
        );
    }
    assert_eq!(json_of(&bundle).len(), 2);
    let out = bundle.call(&["list", "--format", "xml"]).code(1);
    assert!(out.stderr.contains("invalid format option"), "{out:#?}");
    bundle.call(&["delete", "--force", &other]).ok();
}

/// Files, directories of others and records that cannot be read do not hide the rest.
#[test]
fn what_is_broken_hides_nothing() {
    isorun_only!("runc leaves out what it cannot read, and says so on stderr");
    let bundle = Bundle::sh("exec sleep 1000");
    bundle.run_detached().ok();
    let root = bundle.state_root();
    fs::write(root.join("a-file"), "").unwrap();
    for name in ["empty", "garbage", "newer"] {
        fs::create_dir(root.join(name)).unwrap();
        chown(root.join(name), Some(12_345), None).unwrap();
    }
    fs::write(root.join("garbage/state.json"), "{\"half\":").unwrap();
    fs::write(root.join("newer/state.json"), "{\"version\": 1000}").unwrap();
    let listed = json_of(&bundle);
    let row = |id: &str| {
        let found = listed.iter().find(|one| one["id"] == id);
        found.map(|one| {
            (
                one["status"].clone(),
                one["pid"].clone(),
                one["owner"].clone(),
            )
        })
    };
    for name in ["empty", "garbage", "newer"] {
        let want = (json!("stopped"), json!(0), json!("#12345"));
        assert_eq!(row(name), Some(want), "{listed:#?}");
    }
    let (status, _, owner) = row(&bundle.id).unwrap();
    assert_eq!((status, owner), (json!("running"), json!("root")));
    assert_eq!(listed.len(), 4, "a file is no container: {listed:#?}");
    for name in ["empty", "garbage", "newer"] {
        bundle.call(&["delete", "--force", name]).ok();
        assert!(!root.join(name).exists(), "{name}");
    }
    fs::remove_file(root.join("a-file")).unwrap();
}

/// Another user sees that there are containers, where he may look into the directory, and no more.
#[test]
fn another_user_looks() {
    isorun_only!("runc leaves out what it cannot read, and says so on stderr");
    let bundle = Bundle::sh("exec sleep 1000");
    bundle.run_detached().ok();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(bundle.state_root(), open).unwrap();
    let inner = bundle.command(&["list"]);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
    command.arg(inner.get_program()).args(inner.get_args());
    command.current_dir("/");
    let out = run_command(command, &bundle.dir.join("io"));
    if out.code == 126 || out.code == 127 || out.stderr.contains("failed to execute") {
        skip!("the runtime's binary is below a directory that only root may enter");
    }
    let out = out.ok();
    let row = out.stdout.lines().nth(1).unwrap();
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((words[0], words[1]), (bundle.id.as_str(), "0"), "{out:#?}");
    assert_eq!(words.last(), Some(&"root"), "{out:#?}");
    wait_for("it to be untouched", || bundle.status() == "running");
}
