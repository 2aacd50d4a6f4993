//! Every rule, as a row: what is changed in a good config.json, and what is said about it.

mod kernel_devices;
mod linux;
mod process;

use serde_json::{Value, json};

use crate::error::{Kind, Result};
use crate::spec::parse;

/// What is set where in the good config.json.
type Changes<'a> = &'a [(&'a str, Value)];

/// A config.json that passes.
fn good() -> Value {
    json!({
        "ociVersion": "1.3.0",
        "root": { "path": "rootfs" },
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["true"], "cwd": "/" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "namespaces": [
                { "type": "mount" }, { "type": "uts" }, { "type": "ipc" }, { "type": "network" }
            ]
        },
    })
}

/// Sets `value` at a JSON pointer, making the objects on the way; null takes the member out.
fn set(document: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let mut place = document;
    for step in parent.split('/').skip(1) {
        place = match place {
            Value::Array(list) => &mut list[step.parse::<usize>().unwrap()],
            Value::Object(map) => map.entry(step).or_insert_with(|| json!({})),
            other => panic!("{pointer}: {other} is no container"),
        };
    }
    match place {
        Value::Array(list) if name == "-" => list.push(value),
        Value::Array(list) => list[name.parse::<usize>().unwrap()] = value,
        Value::Object(map) if value.is_null() => drop(map.remove(name)),
        Value::Object(map) => drop(map.insert(name.into(), value)),
        other => panic!("{pointer}: {other} is no container"),
    }
}

fn verdict(changes: Changes<'_>) -> Result<Vec<String>> {
    let mut document = good();
    for (pointer, value) in changes {
        set(&mut document, pointer, value.clone());
    }
    let mut parsed = parse::parse(document.to_string().as_bytes())?;
    parsed.ignored.extend(crate::spec::check(&parsed.spec)?);
    Ok(parsed.ignored)
}

/// The rows' verdicts: each is refused, with the path and the words.
fn refused(rows: &[(Changes<'_>, &str, &str)]) {
    for (changes, path, says) in rows {
        let error = verdict(changes).expect_err(&format!("{changes:?} must be refused"));
        let sentence = error.to_string();
        assert_eq!(error.kind(), Kind::Spec, "{sentence}");
        assert!(
            sentence.contains(&format!("config.json: {path}: ")) && sentence.contains(says),
            "{changes:?}: {sentence:?} lacks {path:?} or {says:?}"
        );
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
    }
}

/// The rows' verdicts: each passes without a note.
fn accepted(rows: &[Changes<'_>]) {
    for changes in rows {
        let notes = verdict(changes).unwrap_or_else(|error| panic!("{changes:?}: {error}"));
        assert_eq!(notes, Vec::<String>::new(), "{changes:?}");
    }
}

/// The rows' verdicts: each passes with exactly one note, which has these words.
fn noted(rows: &[(Changes<'_>, &str)]) {
    for (changes, says) in rows {
        let notes = verdict(changes).unwrap_or_else(|error| panic!("{changes:?}: {error}"));
        assert_eq!(notes.len(), 1, "{changes:?}: {notes:?}");
        assert!(notes[0].contains(says), "{changes:?}: {notes:?}");
    }
}

#[test]
fn good_is_good() {
    accepted(&[&[]]);
}

#[test]
fn versions() {
    let version = |text: &str| [("/ociVersion", json!(text))];
    for text in [
        "1.0.0",
        "1.0.0-rc5",
        "1.0.2-dev",
        "1.1.0-rc.2",
        "1.1.0+dev",
        "1.2.1",
        "1.3.0",
        "1.3.7",
    ] {
        assert_eq!(
            verdict(&version(text)).unwrap(),
            Vec::<String>::new(),
            "{text}"
        );
    }
    for text in ["0.5.0", "2.0.0", "10.0.0"] {
        refused(&[(
            &version(text),
            "ociVersion",
            "isorun supports 1.0.0 to 1.3.0",
        )]);
    }
    for text in [
        "1",
        "1.0",
        "1.0.0.0",
        "v1.0.0",
        "1.0.x",
        "1.00.0",
        "1.0.0-",
        "1.0.0-a..b",
        " 1.0.0",
        "+1.0.0",
        "1.-1.0",
        "latest",
    ] {
        refused(&[(&version(text), "ociVersion", "is not a semantic version")]);
    }
    refused(&[
        (&version(""), "ociVersion", "missing"),
        (&[("/ociVersion", Value::Null)], "ociVersion", "missing"),
        (
            &[("/ociVersion", json!(1))],
            "ociVersion",
            "invalid type: integer",
        ),
    ]);
    noted(&[(&version("1.4.0"), "ociVersion: 1.4.0 is newer than 1.3.0")]);
}

#[test]
fn root_and_names() {
    let long = "a".repeat(65);
    refused(&[
        (&[("/root", Value::Null)], "root", "missing"),
        (&[("/root/path", Value::Null)], "root.path", "missing"),
        (&[("/root/path", json!("a\0"))], "root.path", "null byte"),
        (&[("/hostname", json!(long))], "hostname", "65 bytes"),
        (&[("/domainname", json!(long))], "domainname", "65 bytes"),
        (&[("/hostname", json!("a\0"))], "hostname", "null byte"),
        (
            &[
                ("/hostname", json!("a")),
                ("/linux/namespaces/1/type", json!("pid")),
            ],
            "hostname",
            "without a new UTS namespace",
        ),
        (
            &[
                ("/domainname", json!("a")),
                ("/linux/namespaces/1/type", json!("pid")),
            ],
            "domainname",
            "without a new UTS namespace",
        ),
        (
            &[("/annotations", json!({"": "x"}))],
            "annotations",
            "a key is empty",
        ),
        (
            &[("/annotations", json!({"a": 1}))],
            "annotations.a",
            "invalid type",
        ),
    ]);
    accepted(&[
        &[
            ("/hostname", json!("a".repeat(64))),
            ("/domainname", json!("example.org")),
        ],
        &[
            ("/hostname", json!("")),
            ("/linux/namespaces/1/type", json!("pid")),
        ],
        &[
            ("/root/readonly", json!(true)),
            ("/annotations", json!({"a": ""})),
        ],
    ]);
    noted(&[
        (
            &[("/solaris", json!({}))],
            "solaris: ignored, it is for another platform",
        ),
        (&[("/windows", json!({}))], "windows: ignored"),
        (&[("/vm", json!({}))], "vm: ignored"),
        (
            &[("/vm", json!({"kernel": {"path": "/k"}, "hwConfig": {}}))],
            "vm: ignored",
        ),
        (&[("/zos", json!({}))], "zos: ignored"),
        (&[("/freebsd", json!({"jail": {}}))], "freebsd: ignored"),
    ]);
}

#[test]
fn mounts() {
    let mount = |value: Value| [("/mounts/0", value)];
    let bind = |options: Value| {
        mount(json!({"destination": "/a", "source": "/b", "type": "bind", "options": options}))
    };
    let map = |size: u32| json!([{"hostID": 1, "containerID": 0, "size": size}]);
    let bind_with = |members: &[(&str, Value)]| {
        let mut made = json!({"destination": "/a", "source": "/b", "type": "bind"});
        for (name, value) in members {
            made[*name] = value.clone();
        }
        mount(made)
    };
    let tmpfs = |options: Value| {
        mount(json!({"destination": "/a", "source": "x", "type": "tmpfs", "options": options}))
    };
    refused(&[
        (
            &mount(json!({"type": "proc"})),
            "mounts[0].destination",
            "missing",
        ),
        (
            &mount(json!({"type": "proc", "destination": ""})),
            "mounts[0].destination",
            "missing",
        ),
        (
            &mount(json!({"type": "proc", "destination": "/\0"})),
            "mounts[0].destination",
            "null",
        ),
        (
            &mount(json!({"type": "p\0", "destination": "/"})),
            "mounts[0].type",
            "null byte",
        ),
        (
            &mount(json!({"destination": "/a"})),
            "mounts[0].type",
            "it names no file system",
        ),
        (
            &mount(json!({"destination": "/a", "type": "none"})),
            "mounts[0].type",
            "no file system",
        ),
        (
            &mount(json!({"destination": "/a", "type": "bind"})),
            "mounts[0].source",
            "missing",
        ),
        (
            &bind(json!(["rbind", "readonly"])),
            "mounts[0].options[1]",
            "unknown mount option \"readonly\"",
        ),
        (
            &bind(json!(["ro,nosuid"])),
            "mounts[0].options[0]",
            "unknown mount option \"ro\"",
        ),
        (
            &bind(json!(["mode=755", "seize=1k"])),
            "mounts[0].options[1]",
            "unknown mount option \"seize\"",
        ),
        (
            &bind(json!(["size"])),
            "mounts[0].options[0]",
            "unknown mount option \"size\"",
        ),
        (&bind(json!(["a\0b"])), "mounts[0].options[0]", "null byte"),
        (&bind(json!([1])), "mounts[0].options[0]", "invalid type"),
        (
            &tmpfs(json!(["=5"])),
            "mounts[0].options[0]",
            "needs a name",
        ),
        (&bind(json!(["ridmap"])), "mounts[0]", "both uid and gid"),
        (
            &tmpfs(json!(["idmap"])),
            "mounts[0]",
            "only supported for bind",
        ),
        (
            &[("/mounts/0/uidMappings", map(1))],
            "mounts[0]",
            "only supported for bind",
        ),
        (
            &bind_with(&[("gidMappings", map(1))]),
            "mounts[0]",
            "both uid and gid",
        ),
        (
            &bind_with(&[("gidMappings", map(1)), ("uidMappings", map(0))]),
            "mounts[0].uidMappings[0].size",
            "it is 0",
        ),
        (&[("/mounts", json!({}))], "mounts", "invalid type: map"),
    ]);
    accepted(&[
        &[("/mounts", Value::Null)],
        &[("/mounts", json!([]))],
        &[("/mounts/0/uidMappings", json!([]))],
        &bind(json!(["rbind", "rprivate", "ro", "nosuid"])),
        &bind(Value::Null),
        &bind_with(&[("gidMappings", map(1)), ("uidMappings", map(2))]),
        &tmpfs(json!(["mode=755", "size=64k", "whatever-the-kernel-knows"])),
        &mount(json!({"destination": "/a", "source": "b", "type": "none", "options": ["bind"]})),
        &mount(json!({"destination": "/a", "type": "none", "options": ["remount", "ro"]})),
        &mount(json!({"destination": "/a", "type": "ext4", "source": "/dev/sda"})),
    ]);
    noted(&[(
        &mount(json!({"destination": "a/b", "type": "tmpfs"})),
        "mounts[0].destination: \"a/b\" is relative",
    )]);
}

#[test]
fn hooks() {
    for stage in crate::spec::names::HOOKS {
        let pointer = format!("/hooks/{stage}");
        let field = |name: &str| format!("hooks.{stage}[1].{name}");
        let hook = |value: Value| [(pointer.as_str(), json!([{"path": "/bin/true"}, value]))];
        refused(&[
            (&hook(json!({})), &field("path"), "missing"),
            (
                &hook(json!({"path": ""})),
                &field("path"),
                "not an absolute path",
            ),
            (
                &hook(json!({"path": "bin/true"})),
                &field("path"),
                "not an absolute path",
            ),
            (
                &hook(json!({"path": "/a", "timeout": 0})),
                &field("timeout"),
                "greater than zero",
            ),
            (
                &hook(json!({"path": "/a", "timeout": -3})),
                &field("timeout"),
                "greater than zero",
            ),
            (
                &hook(json!({"path": "/a", "args": ["\0"]})),
                &field("args[0]"),
                "null byte",
            ),
            (
                &hook(json!({"path": "/a", "env": ["A=1", "\0"]})),
                &field("env[1]"),
                "null byte",
            ),
        ]);
        accepted(&[&hook(
            json!({"path": "/a", "args": [], "env": ["A=1"], "timeout": 1}),
        )]);
    }
    accepted(&[
        &[("/hooks", json!({}))],
        &[("/hooks", json!({"poststop": []}))],
    ]);
}

#[test]
fn what_is_told_as_a_warning() {
    let told = |changes: Changes<'_>| {
        let mut document = good();
        for (pointer, value) in changes {
            set(&mut document, pointer, value.clone());
        }
        let spec = parse::parse(document.to_string().as_bytes()).unwrap().spec;
        crate::spec::check(&spec).unwrap();
        crate::spec::warnings(&spec).join("\n")
    };
    assert_eq!(told(&[]), "");
    let bind = json!([{"destination": "/a", "type": "bind", "source": "/b",
                       "options": ["bind", "mode=755,size=1k", "ro"]}]);
    let sentence = told(&[("/mounts", bind)]);
    assert!(
        sentence.starts_with("mounts[0].options: mode, size of tmpfs is ignored"),
        "{sentence}"
    );
    let sentence = told(&[("/linux/namespaces", json!([{"type": "pid"}]))]);
    assert!(sentence.contains("CAP_SYS_CHROOT"), "{sentence}");
}
