//! Tests of the verdicts: each promise is broken once, and must be told as broken.

use super::super::facts::SUCCEEDS;
use super::*;

const SETS: [&str; 5] = [
    "inheritable",
    "permitted",
    "effective",
    "bounding",
    "ambient",
];

fn facts(base: u64, capabilities: u64) -> Facts {
    let attempts = ["write /", "write /proc/sys", "read /proc/kcore", "unshare"];
    Facts {
        namespaces: NAMESPACES
            .iter()
            .zip(base..)
            .map(|(n, i)| (n.file.to_string(), i))
            .collect(),
        capabilities: SETS.map(|name| (name.to_string(), capabilities)).into(),
        attempts: attempts
            .map(|name| (name.to_string(), SUCCEEDS.to_string()))
            .into(),
        ..Facts::default()
    }
}

fn outside() -> Facts {
    Facts {
        pid: 500,
        uid_map: vec!["0 0 4294967295".into()],
        mounts: vec![("/".into(), "rw".into()), ("/home".into(), "rw".into())],
        pids: (1..80).collect(),
        interfaces: vec!["lo".into(), "eth0".into()],
        hostname: "host".into(),
        open_files: 1024,
        ..facts(100, u64::MAX)
    }
}

fn inside() -> Facts {
    let limits = Limits {
        memory: Some(MEMORY),
        pids: Some(PIDS),
        millicpus: Some(MILLICPUS),
    };
    let attempts = [
        ("write /", "EROFS"),
        ("write /proc/sys", "EROFS"),
        ("read /proc/kcore", "empty"),
        ("unshare", "EPERM"),
    ];
    Facts {
        pid: 1,
        uid_map: vec![format!("0 {FIRST_ID} {IDS}")],
        seccomp: 2,
        no_new_privileges: true,
        mounts: vec![("/".into(), "ro".into()), ("/proc/sys".into(), "ro".into())],
        pids: vec![1],
        interfaces: vec!["lo".into(), "sit0".into()],
        hostname: HOSTNAME.into(),
        open_files: OPEN_FILES,
        limits,
        attempts: attempts
            .map(|(name, it)| (name.to_string(), it.to_string()))
            .into(),
        ..facts(200, 0)
    }
}

fn seen() -> FromOutside {
    FromOutside {
        pid: 600,
        uid: FIRST_ID,
        limits: inside().limits,
    }
}

fn broken(inside: &Facts, seen: &FromOutside) -> Vec<String> {
    compare(inside, &outside(), seen, &Denied::default())
        .into_iter()
        .filter(|row| matches!(row.verdict, Verdict::Broken(_)))
        .map(|row| row.what)
        .collect()
}

#[test]
fn a_container_that_keeps_every_promise() {
    assert_eq!(broken(&inside(), &seen()), Vec::<String>::new());
}

#[test]
fn no_container_at_all_breaks_every_promise() {
    let seen = FromOutside {
        pid: 1,
        uid: 0,
        limits: Limits::default(),
    };
    let rows = compare(&outside(), &outside(), &seen, &Denied::default());
    let (holds, broken, denied) = count(&rows);
    assert_eq!((holds, denied), (0, 0), "{}", table(&rows));
    assert!(broken > 25, "{}", table(&rows));
}

#[test]
fn each_broken_promise_is_told() {
    type Break = fn(&mut Facts, &mut FromOutside);
    let cases: [(&str, Break); 16] = [
        ("user id", |_, seen| seen.uid = 0),
        ("user id map", |it, _| {
            it.uid_map = vec!["0 0 4294967295".into()]
        }),
        ("process id", |it, _| it.pid = 2),
        ("sees", |it, _| it.pids = vec![1, 2]),
        ("network namespace", |it, _| {
            it.namespaces.extend([("net".into(), 103)])
        }),
        ("time namespace", |it, _| {
            it.namespaces.retain(|kind, _| kind != "time")
        }),
        ("bounding capabilities", |it, _| {
            it.capabilities.extend([("bounding".into(), 1)])
        }),
        ("no new privileges", |it, _| it.no_new_privileges = false),
        ("seccomp", |it, _| it.seccomp = 0),
        ("call unshare(0)", |it, _| {
            drop(it.attempts.insert("unshare".into(), SUCCEEDS.into()))
        }),
        ("root file system", |it, _| {
            it.mounts.push(("/".into(), "rw".into()))
        }),
        // ENOSPC would mean that it was tried and only failed by chance.
        ("write /", |it, _| {
            drop(it.attempts.insert("write /".into(), "ENOSPC".into()))
        }),
        ("sees", |it, _| {
            it.mounts.push(("/home".into(), "ro".into()))
        }),
        ("network interfaces", |it, _| {
            it.interfaces.push("eth0".into())
        }),
        ("open files", |it, _| it.open_files = 1024),
        ("memory limit", |_, seen| seen.limits.memory = None),
    ];
    for (what, break_it) in cases {
        let (mut inside, mut seen) = (inside(), seen());
        break_it(&mut inside, &mut seen);
        assert_eq!(broken(&inside, &seen), [what]);
    }
}

#[test]
fn what_the_host_denies_is_neither_kept_nor_broken() {
    let denied = Denied {
        namespaces: vec![("time", "EINVAL: Invalid argument".into())],
        controllers: vec![("cpu", "no cpu controller here".into())],
    };
    let mut inside = inside();
    inside.namespaces.remove("time");
    inside.limits.millicpus = None;
    let rows = compare(&inside, &outside(), &seen(), &denied);
    assert_eq!((count(&rows).1, count(&rows).2), (0, 2), "{}", table(&rows));
    let text = table(&rows);
    assert!(text.contains("denied by this host: EINVAL"), "{text}");
}

#[test]
fn columns_are_aligned() {
    let text = table(&compare(&inside(), &outside(), &seen(), &Denied::default()));
    let column = text.lines().next().unwrap().find("verdict").unwrap();
    for line in text.lines().skip(1) {
        assert_eq!(line.find("ok: "), Some(column), "{line}");
    }
}
