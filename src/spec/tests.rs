//! Bundles on disk, and what JSON may look like.

use std::fs;
use std::path::Path;

use super::*;

fn captured(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/captured")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A bundle with this config.json and an empty rootfs; gone when dropped.
struct Bundle(PathBuf);

impl Bundle {
    fn new(name: &str, config: &str) -> Self {
        let path = std::env::temp_dir().join(format!("isorun-spec-{}-{name}", std::process::id()));
        fs::create_dir_all(path.join("rootfs")).unwrap();
        fs::write(path.join("config.json"), config).unwrap();
        Self(path)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn minimal(more: &str) -> String {
    format!(
        r#"{{"ociVersion":"1.3.0","root":{{"path":"rootfs"}},
        "process":{{"user":{{}},"args":["true"],"cwd":"/"}},
        "linux":{{"namespaces":[{{"type":"mount"}}]}}{more}}}"#
    )
}

#[test]
fn a_bundle_loads() {
    let bundle = Bundle::new("good", &minimal(""));
    let loaded = load(&bundle.0.join("rootfs/..")).unwrap();
    assert_eq!(loaded.bundle, bundle.0.canonicalize().unwrap());
    assert_eq!(loaded.rootfs, loaded.bundle.join("rootfs"));
    assert_eq!(loaded.ignored, Vec::<String>::new());
    assert_eq!(
        loaded
            .spec
            .process()
            .as_ref()
            .unwrap()
            .args()
            .as_ref()
            .unwrap(),
        &["true"]
    );
}

#[test]
fn an_absolute_rootfs_and_a_link_to_one() {
    let bundle = Bundle::new("links", &minimal(""));
    std::os::unix::fs::symlink("rootfs", bundle.0.join("link")).unwrap();
    for path in [
        bundle.0.join("rootfs").display().to_string(),
        "link".into(),
        "./rootfs/".into(),
    ] {
        fs::write(
            bundle.0.join("config.json"),
            minimal("").replace("\"rootfs\"", &format!("{path:?}")),
        )
        .unwrap();
        let loaded = load(&bundle.0).unwrap();
        assert_eq!(
            loaded.rootfs,
            bundle.0.canonicalize().unwrap().join("rootfs"),
            "{path}"
        );
    }
}

#[test]
fn bad_bundles() {
    let bundle = Bundle::new("bad", &minimal(""));
    let file = bundle.0.join("config.json");
    let says = |words: &[&str]| {
        let error = load(&bundle.0).unwrap_err();
        let sentence = error.to_string();
        assert!(
            words.iter().all(|word| sentence.contains(word)),
            "{sentence} lacks {words:?}"
        );
        assert_eq!(error.kind(), Kind::Spec, "{sentence}");
    };
    let absent = load(&bundle.0.join("nothing-here")).unwrap_err();
    assert!(absent.to_string().contains("ENOENT"), "{absent}");

    fs::write(&file, "").unwrap();
    says(&["not valid JSON", "line 1"]);
    fs::write(&file, "{\n\"ociVersion\": \"1.3.0\",\n}").unwrap();
    says(&["not valid JSON", "line 3 column 1"]);
    fs::write(&file, "[]").unwrap();
    says(&["not a JSON object"]);
    fs::write(&file, minimal("") + "x").unwrap();
    says(&["not valid JSON", "trailing characters"]);
    fs::write(&file, minimal("").replace("\"rootfs\"", "\"no\"")).unwrap();
    says(&["root.path", "no such directory"]);
    fs::write(&file, minimal("").replace("\"rootfs\"", "\"config.json\"")).unwrap();
    says(&["root.path", "not a directory"]);
    fs::write(
        &file,
        minimal("").replace("\"rootfs\"", "\"config.json/a\""),
    )
    .unwrap();
    says(&["root.path", "not a directory"]);
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(MAX_SIZE + 1)
        .unwrap();
    says(&["at most 16777216 are read"]);
    fs::remove_file(&file).unwrap();
    says(&[
        "JSON specification file config.json not found",
        "isorun spec",
    ]);
    fs::create_dir(&file).unwrap();
    says(&["not a regular file"]);
    fs::remove_dir(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    says(&["not a regular file"]);
}

#[test]
fn types_are_told_with_path_and_place() {
    for (more, path, detail) in [
        (
            ",\"hostname\":1",
            "hostname",
            "invalid type: integer `1`, expected a string at line 3",
        ),
        (
            ",\"mounts\":[{\"destination\":\"/a\",\"options\":\"ro\"}]",
            "mounts[0].options",
            "expected a",
        ),
        (
            ",\"hooks\":{\"poststop\":[{\"path\":\"/a\",\"timeout\":1.5}]}",
            "hooks.poststop[0].timeout",
            "invalid type: floating point",
        ),
        (
            ",\"hostname\":\"a\",\"hostname\":\"b\"",
            "hostname",
            "it is there twice at line 3",
        ),
    ] {
        let error = parse::parse(minimal(more).as_bytes())
            .unwrap_err()
            .to_string();
        let path = format!("config.json: {path}: ");
        assert!(
            error.contains(&path) && error.contains(detail),
            "{error} lacks {path} {detail}"
        );
    }
}

#[test]
fn a_new_line_in_a_name_stays_in_its_line() {
    for more in [
        ",\"annotations\":{\"a\\nb\":1}",
        ",\"mounts\":[{\"destination\":\"/a\",\"source\":\"/\",\"options\":[\"bind\",\"a\\nb\"]}]",
        ",\"process\":{\"user\":{},\"args\":[\"true\"],\"cwd\":\"a\\nb\"}",
    ] {
        let text = minimal(more);
        let text = match more.contains("process") {
            true => text.replacen("\"process\"", "\"was\"", 1),
            false => text,
        };
        let verdict = parse::parse(text.as_bytes()).and_then(|parsed| check(&parsed.spec));
        let sentence = verdict.unwrap_err().to_string();
        assert!(
            !sentence.contains('\n') && sentence.contains("a\\nb"),
            "{sentence}"
        );
    }
}

#[test]
fn null_means_absent_everywhere() {
    // Every member of every object in real configs, one at a time: with null instead of its value
    // the document is read as without it.
    let text = captured("docker.json");
    let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
    document["linux"]["seccomp"]["syscalls"]
        .as_array_mut()
        .unwrap()
        .truncate(2);
    document["hooks"] = serde_json::json!({"prestart": [{"path": "/a", "timeout": 1, "env": []}]});
    let mut pointers = Vec::new();
    collect(&document, String::new(), &mut pointers);
    assert!(pointers.len() > 100, "{}", pointers.len());
    for pointer in pointers {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let mut null = document.clone();
        let mut absent = document.clone();
        null.pointer_mut(parent).unwrap()[name] = serde_json::Value::Null;
        absent
            .pointer_mut(parent)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(name);
        let read = |value: &serde_json::Value| {
            parse::parse(value.to_string().as_bytes()).map_err(|error| {
                error
                    .to_string()
                    .split(" at line")
                    .next()
                    .unwrap()
                    .to_string()
            })
        };
        assert_eq!(read(&null), read(&absent), "{pointer}");
    }
}

fn collect(value: &serde_json::Value, pointer: String, into: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (name, member) in map {
                into.push(format!("{pointer}/{name}"));
                collect(member, format!("{pointer}/{name}"), into);
            }
        }
        serde_json::Value::Array(list) => {
            for (index, member) in list.iter().enumerate() {
                collect(member, format!("{pointer}/{index}"), into);
            }
        }
        _ => {}
    }
}

#[test]
fn unknown_names_are_ignored_and_wrong_case_is_told() {
    let notes = parse::parse(
        minimal(",\"x\":{\"y\":1},\"mounts\":[{\"destination\":\"/a\",\"Z\":0}]").as_bytes(),
    )
    .unwrap()
    .ignored;
    assert_eq!(notes, Vec::<String>::new());
    let text = minimal("").replace(
        "\"path\":\"rootfs\"",
        "\"path\":\"rootfs\",\"readOnly\":true",
    );
    let parsed = parse::parse(text.as_bytes()).unwrap();
    let (spec, notes) = (parsed.spec, parsed.ignored);
    assert_eq!(spec.root().as_ref().unwrap().readonly(), None);
    assert_eq!(
        notes,
        ["root.readOnly: ignored, names are case-sensitive: the specification's is \"readonly\""]
    );
}

#[test]
fn a_user_may_be_absent_as_in_runc() {
    let spec = parse::parse(minimal("").replace("\"user\":{},", "").as_bytes())
        .unwrap()
        .spec;
    assert_eq!(spec.process().as_ref().unwrap().user().uid(), 0);
}

#[test]
fn captured_configs() {
    for name in ["podman.json", "docker.json", "ctr.json"] {
        let parsed = parse::parse(captured(name).as_bytes()).unwrap();
        let (spec, notes) = (parsed.spec, parsed.ignored);
        assert_eq!(notes, Vec::<String>::new(), "{name}");
        assert_eq!(check(&spec).unwrap(), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn features_is_the_type_of_the_specification() {
    let lists = SeccompLists {
        actions: &["SCMP_ACT_KILL", "SCMP_ACT_ALLOW"],
        operators: &["SCMP_CMP_EQ"],
        archs: &["SCMP_ARCH_X86_64"],
        known_flags: &["SECCOMP_FILTER_FLAG_LOG"],
        supported_flags: &[],
    };
    let document = features(Some(lists), &["org.systemd.property."]);
    let typed: oci_spec::runtime::Features = serde_json::from_value(document.clone()).unwrap();
    assert_eq!(typed.oci_version_max(), "1.3.0");
    assert_eq!(typed.hooks().as_ref().unwrap().len(), 6);
    let linux = typed.linux().as_ref().unwrap();
    assert_eq!(linux.namespaces().as_ref().unwrap().len(), 8);
    assert_eq!(linux.capabilities().as_ref().unwrap().len(), 41);
    let options = typed.mount_options().as_ref().unwrap();
    assert!(options.contains(&"rro".to_string()) && options.contains(&"ridmap".to_string()));
    assert_eq!(
        document["linux"]["mountExtensions"]["idmap"]["enabled"],
        true
    );
    assert_eq!(document["linux"]["seccomp"]["actions"][0], "SCMP_ACT_ALLOW");
    assert_eq!(
        features(None, &[])["linux"]["seccomp"],
        serde_json::json!({"enabled": false})
    );
    // Nothing is claimed that check refuses, and nothing is left unsaid: no null after a round trip.
    assert!(
        !serde_json::to_string(&typed).unwrap().contains("null"),
        "{typed:?}"
    );
}

/// A small generator of numbers (xorshift), so that a failure can be run again.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

#[test]
fn damaged_configs_give_one_sentence_and_never_a_panic() {
    // Seccomp's long list would take most of the hits.
    let mut document: serde_json::Value = serde_json::from_str(&captured("podman.json")).unwrap();
    document["linux"]["seccomp"]["syscalls"]
        .as_array_mut()
        .unwrap()
        .truncate(3);
    let text = serde_json::to_string_pretty(&document)
        .unwrap()
        .into_bytes();
    let words: [&[u8]; 12] = [
        b"null",
        b"-1",
        b"1e99",
        b"{}",
        b"[]",
        b"\"\"",
        b"\"\\u0000\"",
        b"true",
        b",",
        b"}",
        b"\\",
        b"\xff",
    ];
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut refused = 0;
    for round in 0..500 {
        let mut damaged = text.clone();
        for _ in 0..=numbers.below(2) {
            let from = numbers.below(damaged.len());
            // Mostly a whole token gives way to a word, so that the JSON stays JSON.
            let length = match numbers.below(3) {
                0 => numbers.below(9),
                _ => damaged[from..]
                    .iter()
                    .take_while(|byte| !b",]}\n".contains(byte))
                    .count(),
            };
            let to = (from + length).min(damaged.len());
            damaged.splice(from..to, words[numbers.below(words.len())].iter().copied());
        }
        let verdict = parse::parse(&damaged).and_then(|parsed| check(&parsed.spec));
        if let Err(error) = verdict {
            refused += 1;
            let sentence = error.to_string();
            assert!(!sentence.contains('\n'), "round {round}: {sentence:?}");
            assert!(
                sentence.contains("config.json"),
                "round {round}: {sentence}"
            );
        }
    }
    assert!((100..500).contains(&refused), "{refused}");
}
