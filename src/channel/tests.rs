//! Tests of what needs no files: names, requests, rules, grants.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;

fn asked(pairs: &[(&str, &str)]) -> crate::error::Result<Option<Request>> {
    let owned: BTreeMap<String, String> = pairs
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    request(owned.iter())
}

fn refused(pairs: &[(&str, &str)]) -> String {
    asked(pairs).unwrap_err().to_string()
}

#[test]
fn names() {
    let long = "a".repeat(64);
    for good in ["weights", "kv-1", "a.b_c", "0", &long, "prod/weights"] {
        let key: Key = good.parse().unwrap();
        assert_eq!(key.to_string(), good);
        assert_eq!(Key::of_directory(&key.directory()), Some(key));
    }
    let longer = "a".repeat(65);
    for bad in [
        "", ".", "..", ".x", "a b", "A", "ä", "a/b/c", "a/", "/a", "a@b", "a\0", "a,b", "a:b",
        &longer,
    ] {
        assert!(bad.parse::<Key>().is_err(), "{bad:?}");
    }
    let key = Key::new(None, "kv-1.x").unwrap();
    assert_eq!(key.variable(), "ISORUN_CHANNEL_KV_1_X");
    assert_eq!(key.inside(), "/run/isorun/channels/kv-1.x");
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("1", 1),
        ("4096b", 4096),
        ("8G", 8 << 30),
        ("2tib", 2 << 40),
    ] {
        assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
    }
    for bad in [
        "",
        "0",
        "g",
        "-1",
        "1.5g",
        "8 g",
        "9999999t",
        "1e3",
        "99999999999999999999",
    ] {
        assert!(bad.parse::<Size>().is_err(), "{bad}");
    }
    assert_eq!(Size(8 << 30).to_string(), "8 GiB");
    assert_eq!(Size(1536).to_string(), "1.5 KiB");
}

#[test]
fn what_annotations_ask_for() {
    assert_eq!(
        asked(&[("a", "b"), ("io.isorun.degrade", "safe")]).unwrap(),
        None
    );
    let all = asked(&[
        ("io.isorun.channels", "weights:ro, kv:rw,plain"),
        ("io.isorun.channel.kv.size", "8g"),
        ("io.isorun.shm", "channel:shared"),
    ])
    .unwrap()
    .unwrap();
    let told: Vec<(&str, bool)> = all
        .channels
        .iter()
        .map(|one| (one.key.name(), one.readonly))
        .collect();
    assert_eq!(
        told,
        [
            ("weights", true),
            ("kv", false),
            ("plain", false),
            ("shared", false)
        ]
    );
    assert_eq!(all.channels[1].size, Some(Size(8 << 30)));
    assert_eq!(all.shm, Some(Shm::Channel("shared".into())));
    let env = all.environment();
    assert_eq!(
        env[0],
        ("ISORUN_CHANNELS".into(), "weights,kv,plain,shared".into())
    );
    assert_eq!(env[2].0, "ISORUN_CHANNEL_KV");
    let private = asked(&[("io.isorun.shm.size", "1g")]).unwrap().unwrap();
    assert_eq!(private.shm, Some(Shm::Private(Size(1 << 30))));
    assert!(private.environment().is_empty());
    let pod = asked(&[
        ("io.isorun.channels", "kv"),
        ("io.kubernetes.cri.sandbox-namespace", "prod"),
    ]);
    assert_eq!(pod.unwrap().unwrap().channels[0].key.to_string(), "prod/kv");
    let sandbox = asked(&[
        ("io.isorun.channels", "kv"),
        ("io.kubernetes.cri.container-type", "sandbox"),
    ]);
    assert_eq!(sandbox.unwrap(), None, "its program does nothing");
}

#[test]
fn what_cannot_be_meant_names_the_annotation() {
    let long = format!("{}:ro", "x".repeat(65));
    for (pairs, says) in [
        (&[("io.isorun.channels", "a/b:ro")][..], "a-z, 0-9 and"),
        (&[("io.isorun.channels", "../x")], "starts with a dot"),
        (&[("io.isorun.channels", &long)], "longer than 64 bytes"),
        (&[("io.isorun.channels", "")], "it is empty"),
        (&[("io.isorun.channels", "a:rx")], "ro or rw, not \"rx\""),
        (&[("io.isorun.channels", "a,a:ro")], "\"a\" is there twice"),
        (&[("io.isorun.channels", "a-b,a.b")], "ISORUN_CHANNEL_A_B"),
    ] {
        let error = refused(pairs);
        let start = "config.json: annotations[\"io.isorun.channels\"]: ";
        assert!(
            error.starts_with(start) && error.contains(says),
            "{pairs:?}: {error}"
        );
    }
    for (pairs, says) in [
        (
            &[
                ("io.isorun.channels", "a"),
                ("io.isorun.channel.b.size", "1g"),
            ][..],
            "[\"io.isorun.channel.b.size\"]: the container does not join a channel \"b\"",
        ),
        (
            &[
                ("io.isorun.channels", "a"),
                ("io.isorun.channel.a.size", "big"),
            ],
            "[\"io.isorun.channel.a.size\"]: \"big\" is no size",
        ),
        (
            &[
                ("io.isorun.channels", "a"),
                ("io.isorun.channel.a.sise", "1g"),
            ],
            "[\"io.isorun.channel.a.sise\"]: there is no such annotation",
        ),
        (
            &[("io.isorun.shm", "host")],
            "[\"io.isorun.shm\"]: \"host\": it is channel:<name>",
        ),
        (
            &[("io.isorun.shm", "channel:a"), ("io.isorun.shm.size", "1g")],
            "[\"io.isorun.shm.size\"]: io.isorun.shm makes the channel \"a\" /dev/shm",
        ),
        (
            &[
                ("io.isorun.shm", "channel:a"),
                ("io.isorun.channels", "a:ro"),
            ],
            "[\"io.isorun.shm\"]: the channel \"a\" is joined read-only",
        ),
        (&[("io.isorun.cuda-ipc", "1")], "the container joins none"),
        (
            &[
                ("io.isorun.channels", "a"),
                ("io.kubernetes.cri.sandbox-id", "1"),
            ],
            "whose namespace its annotations do not tell",
        ),
        (
            &[
                ("io.isorun.channels", "a"),
                ("io.kubernetes.cri.sandbox-namespace", "x"),
                ("io.kubernetes.pod.namespace", "y"),
            ],
            "another annotation names another namespace",
        ),
        (
            &[
                ("io.isorun.channels", "a"),
                ("io.kubernetes.cri.sandbox-namespace", "../x"),
            ],
            "is no namespace",
        ),
    ] {
        let error = refused(pairs);
        assert!(error.contains(says), "{pairs:?}: {error}");
    }
}

#[test]
fn patterns() {
    for (pattern, text, yes) in [
        ("kv", "kv", true),
        ("kv", "kv1", false),
        ("kv*", "kv", true),
        ("kv*", "kv1", true),
        ("*", "", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("*x", "ax", true),
        ("*x", "xa", false),
        ("a*a", "a", false),
    ] {
        assert_eq!(rules::matches(pattern, text), yes, "{pattern} {text}");
    }
}

fn rules_of(text: &str) -> Rules {
    rules::parse(text, Path::new("/etc/isorun/channels.d/10.toml")).unwrap()
}

const RULES: &str = r#"
[[rule]]
name = "nobody"
channels = ["closed*"]
access = "none"

[[rule]]
name = "readers"
channels = ["weights"]
uids = [1000]

[[rule]]
name = "team"
channels = ["weights", "kv*"]
access = "rw"
size = "1g"
gids = [0, 5]
cuda-ipc = true

[[rule]]
name = "plain"
channels = ["plain"]
access = "rw"

[[rule]]
name = "fixed"
channels = ["fixed"]
access = "rw"
create = false

[[rule]]
name = "pods"
channels = ["prod/*"]
access = "rw"
annotations = { "io.kubernetes.cri.sandbox-name" = "train-*" }
"#;

/// What a caller gets with these rules, or the refusal; `mine` was made by uid 0 with the command,
/// `others` by uid 7, `theirs` by a container.
fn decide(uid: u32, pairs: &[(&str, &str)]) -> Result<Vec<Channel>, String> {
    let annotations: BTreeMap<String, String> = pairs
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    let mut wanted = request(annotations.iter()).unwrap().unwrap();
    if annotations.contains_key("test.env") {
        wanted = wanted.with_environment(&[format!("{ENVIRONMENT}=1")]);
    }
    let made = |by, size| Made { by, size };
    let facts = Facts {
        root: "/run/isorun/channels".into(),
        uid,
        gid: uid,
        rules: rules_of(RULES),
        made: [
            ("mine", made(Some(0), Some(Size(1 << 20)))),
            ("others", made(Some(7), None)),
            ("theirs", made(None, None)),
            ("prod/mine", made(Some(0), None)),
        ]
        .map(|(key, made)| (key.to_string(), made))
        .into(),
        ..Facts::default()
    };
    let admin = annotations.contains_key("test.admin");
    grant(&wanted, &facts, admin, |key| annotations.get(key)).map_err(|error| error.to_string())
}

#[test]
fn who_gets_what() {
    let list = |text: &'static str| vec![("io.isorun.channels", text)];
    let team = decide(0, &list("weights,kv-7")).unwrap();
    assert_eq!(team[0].rule.as_deref(), Some("team"));
    assert_eq!(
        team[0].size,
        Some(Size(1 << 30)),
        "the rule's where nobody asks"
    );
    assert!(team[0].create && !team[0].readonly);
    assert_eq!(team[1].source, Path::new("/run/isorun/channels/kv-7"));
    // GPU memory: by the rule, and to who made the channel; what only the environment asks for is left out.
    let cuda = |name: &'static str| vec![("io.isorun.channels", name), ("io.isorun.cuda-ipc", "1")];
    assert!(!team[0].cuda);
    assert!(decide(0, &cuda("weights")).unwrap()[0].cuda);
    assert!(decide(0, &cuda("mine")).unwrap()[0].cuda);
    let refused = decide(0, &cuda("plain")).unwrap_err();
    assert!(
        refused.contains("annotations[\"io.isorun.cuda-ipc\"]: GPU memory in the channel \"plain\" is refused: rule \"plain\" (/etc"),
        "{refused}"
    );
    let env = vec![("io.isorun.channels", "weights"), ("test.env", "1")];
    assert!(decide(0, &env).unwrap()[0].cuda);
    let env = vec![("io.isorun.channels", "plain"), ("test.env", "1")];
    assert!(!decide(0, &env).unwrap()[0].cuda);
    let mine = decide(0, &list("mine")).unwrap();
    assert_eq!((mine[0].rule.as_deref(), mine[0].create), (None, false));
    // The first rule that is about it decides: uid 1000 only reads.
    let reader = decide(1000, &list("weights:ro")).unwrap();
    assert_eq!(reader[0].rule.as_deref(), Some("readers"));
    // Who may remount could write: that is no matter where writing is allowed anyway.
    let admin = |channel| vec![("io.isorun.channels", channel), ("test.admin", "")];
    assert!(decide(0, &admin("weights:ro")).unwrap()[0].readonly);
    let refused = decide(1000, &admin("weights:ro")).unwrap_err();
    assert!(
        refused.contains("CAP_SYS_ADMIN, with which it could make it rw"),
        "{refused}"
    );
    let pod = decide(
        0,
        &[
            ("io.isorun.channels", "kv"),
            ("io.kubernetes.cri.sandbox-namespace", "prod"),
            ("io.kubernetes.cri.sandbox-name", "train-3"),
        ],
    )
    .unwrap();
    assert_eq!(pod[0].source, Path::new("/run/isorun/channels/prod@kv"));
    assert_eq!(pod[0].key.inside(), "/run/isorun/channels/kv");
}

#[test]
fn who_is_refused() {
    let pod = |channel: &'static str, namespace: &'static str, name: &'static str| {
        vec![
            ("io.isorun.channels", channel),
            ("io.kubernetes.cri.sandbox-namespace", namespace),
            ("io.kubernetes.cri.sandbox-name", name),
        ]
    };
    let list = |text: &'static str| vec![("io.isorun.channels", text)];
    let sized = |name: &'static str, annotation: &'static str, size: &'static str| {
        vec![("io.isorun.channels", name), (annotation, size)]
    };
    for (uid, pairs, says) in [
        (
            0,
            list("closed-1:ro"),
            "rule \"nobody\" (/etc/isorun/channels.d/10.toml) allows nobody in",
        ),
        (
            1000,
            list("weights"),
            "rule \"readers\" (/etc/isorun/channels.d/10.toml) allows ro, and rw is asked for; ask for weights:ro",
        ),
        (2, list("kv"), "no rule in /etc/isorun/channels.d"),
        (
            0,
            list("fixed"),
            "rule \"fixed\" (/etc/isorun/channels.d/10.toml) lets no container make it",
        ),
        (
            0,
            list("new"),
            "isorun channel create new makes it for the containers of uid 0",
        ),
        (0, list("others"), "who is not uid 0"),
        (0, list("theirs"), "who is not uid 0"),
        (7, list("mine"), "who is not uid 7"),
        (
            0,
            sized("kv", "io.isorun.channel.kv.size", "2g"),
            "allows at most 1 GiB, not 2 GiB",
        ),
        (
            0,
            sized("mine", "io.isorun.channel.mine.size", "2m"),
            "2 MiB is asked for, and the channel mine is there already: its size is 1 MiB",
        ),
        (
            0,
            pod("kv", "prod", "serve-1"),
            "only a rule that names \"prod/kv\" lets a pod in",
        ),
        // Not the host's channel of that name, nor what was made for the namespace by hand.
        (
            0,
            pod("weights", "test", "train-1"),
            "only a rule that names \"test/weights\"",
        ),
        (
            0,
            pod("mine", "prod", "x"),
            "only a rule that names \"prod/mine\"",
        ),
    ] {
        let error = decide(uid, &pairs).unwrap_err();
        assert!(error.contains(says), "{uid} {pairs:?}: {error}");
    }
}

#[test]
fn rules_that_are_not_understood() {
    let path = Path::new("/r.toml");
    for (text, says) in [
        ("[[rule]]\nname = \"x\"\n", "missing field `channels`"),
        (
            "[[rule]]\nname = \"x\"\nchannels = [\"a\"]\nacess = \"rw\"\n",
            "line 4: unknown field `acess`",
        ),
        (
            "[[rule]]\nname = \"x\"\nchannels = [\"a\"]\naccess = \"all\"\n",
            "unknown variant `all`",
        ),
        (
            "[[rule]]\nname = \"x\"\nchannels = [\"a\"]\nsize = \"big\"\n",
            "is no size",
        ),
        (
            "[[rule]]\nname = \"x\"\nchannels = []\n",
            "rule \"x\": it names no channels",
        ),
        (
            "[[rule]]\nname = \"\"\nchannels = [\"a\"]\n",
            "it needs a name",
        ),
        (
            "[[rule]]\nname = \"x\"\nchannels = [\"a b\"]\n",
            "\"a b\" is no channel's name",
        ),
        ("rules = 1\n", "unknown field `rules`"),
    ] {
        let error = rules::parse(text, path).unwrap_err().to_string();
        assert!(
            error.starts_with("/r.toml") && error.contains(says),
            "{text}: {error}"
        );
    }
}

#[test]
fn labels_are_shared_without_categories() {
    for (of, label) in [
        (
            "system_u:object_r:container_file_t:s0:c1,c2",
            "system_u:object_r:container_file_t:s0",
        ),
        (
            "system_u:object_r:container_file_t:s0-s0:c0.c1023",
            "system_u:object_r:container_file_t:s0",
        ),
        (
            "system_u:object_r:container_file_t:s0",
            "system_u:object_r:container_file_t:s0",
        ),
        (
            "system_u:object_r:container_file_t",
            "system_u:object_r:container_file_t",
        ),
    ] {
        assert_eq!(shared_label(of), label);
    }
}
