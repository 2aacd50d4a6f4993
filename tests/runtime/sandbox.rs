//! The process sandbox: what is left for who is not root and gets no user namespace, tried by an attacker.

use std::path::PathBuf;
use std::process::{Child, Command};

use serde_json::json;

use crate::compensation::{all_done, all_refused, attacker, landlock, results, told};
use crate::degrade::at;
use crate::harness::{Bundle, copy_program, run_command};
use crate::rootless::{USER, reachable, rootless};

/// A process of the user, which is ended with this value.
struct Victim(Child);

impl Victim {
    fn new() -> Self {
        use std::os::unix::process::CommandExt;
        let mut sleep = Command::new("sleep");
        Self(sleep.arg("1000").uid(USER).gid(USER).spawn().unwrap())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Files of the user outside of the sandbox, and a directory that it may change.
struct Home {
    file: PathBuf,
    work: PathBuf,
}

/// A bundle of the user with / as its root. The prefix by which it has no user namespace is put in front.
fn sandbox() -> Option<(Bundle, Home)> {
    let mut bundle = rootless(&[[0, USER, 1]]);
    let home = Home {
        file: bundle.host("file"),
        work: bundle.host("work"),
    };
    copy_program(attacker()?, &bundle.host("attack"));
    std::fs::create_dir(&home.work).unwrap();
    for file in [home.file.clone(), home.work.join("old")] {
        std::fs::write(&file, "the user's").unwrap();
        std::os::unix::fs::chown(file, Some(USER), Some(USER)).unwrap();
    }
    std::os::unix::fs::chown(&home.work, Some(USER), Some(USER)).unwrap();
    let source = home.work.to_str().unwrap().to_string();
    bundle.mount(&source, "bind", &source, &["bind", "rw"]);
    bundle.set("/root", json!({"path": "/", "readonly": true}));
    Some((bundle, home))
}

/// As where user.max_user_namespaces is reached, for just the namespaces of this bundle.
fn deny_namespaces(bundle: &mut Bundle) {
    crate::compensation::no_user_namespace_before(bundle);
}

macro_rules! sandboxed {
    () => {{
        isorun_only!("the process sandbox is isorun's");
        if !landlock(6) {
            skip!("this kernel has no Landlock from ABI 6 on");
        }
        let Some((bundle, home)) = sandbox() else {
            skip!("there is no C compiler");
        };
        if !reachable(&bundle) {
            skip!("the runtime is below a directory that only root may enter");
        }
        (bundle, home)
    }};
}

#[test]
fn an_attacker_in_the_sandbox() {
    let (mut bundle, home) = sandboxed!();
    let victim = Victim::new();
    let pid = victim.0.id();
    let (_listener, name) = crate::compensation::abstract_socket(&bundle);
    let path = bundle.host("socket");
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(USER), Some(USER)).unwrap();
    let file = home.file.to_str().unwrap();
    let tries: Vec<String> = [
        format!("write={file}"),
        format!("truncate={file}"),
        format!("chmod={file}"),
        format!("create={file}.new"),
        format!("trace={pid}"),
        format!("memory={pid}"),
        format!("signal={pid}"),
        format!("abstract={name}"),
        format!("connect={}", path.display()),
        "inet".into(),
        "unix".into(),
        "pair=2".into(),
        "pair=3".into(),
        "keys".into(),
        "shm".into(),
        "create=/dev/shm/isotest-sandbox".into(),
        "read=/proc/keys".into(),
        "uring".into(),
        format!("unshare={}", libc::CLONE_NEWUSER),
        format!("clone3={}", libc::CLONE_NEWUSER),
        format!("remove={file}"),
    ]
    .to_vec();
    let tries: Vec<&str> = tries.iter().map(String::as_str).collect();
    let attack = bundle.host("attack").to_str().unwrap().to_string();
    // What the user can do without a sandbox.
    let mut plain = Command::new(&bundle.prefix[0]);
    plain.args(&bundle.prefix[1..]).arg(&attack).args(&tries);
    all_done(&results(&run_command(plain, &bundle.host("")).ok()), &tries);
    let _ = std::fs::remove_file("/dev/shm/isotest-sandbox");
    let again = || {
        let _ = std::fs::remove_file(format!("{file}.new"));
        std::fs::write(file, "the user's").unwrap();
        std::os::unix::fs::chown(file, Some(USER), Some(USER)).unwrap();
    };
    again();

    deny_namespaces(&mut bundle);
    let args = |tries: &[&str]| {
        let mut args = vec![attack.clone()];
        args.extend(tries.iter().map(|one| (*one).to_string()));
        json!(args)
    };
    bundle.set("/process/args", args(&tries));
    for level in ["never", "safe"] {
        let out = at(&bundle, level).code(1);
        assert!(
            out.stderr.contains("the degradation \"userns-user\""),
            "{out:#?}"
        );
        bundle.assert_gone();
    }
    let out = at(&bundle, "any").ok();
    all_refused(&results(&out), &tries);
    assert!(
        out.stderr
            .contains("degraded: namespaces and mounts of its own"),
        "{out:#?}"
    );
    let new = format!("create={}/new", home.work.display());
    let old = format!("remove={}/old", home.work.display());
    let fine = [
        new.as_str(),
        "pair=1",
        "pair=5",
        "write=/dev/null",
        "read=/etc/passwd",
        "read=/proc/meminfo",
    ];
    let mut both = fine.to_vec();
    both.push(&old);
    bundle.set("/process/args", args(&both));
    all_done(&results(&at(&bundle, "any").ok()), &both);
    let lost = told(&mut bundle, "any", "userns-user");
    assert!(
        lost["compensation"]
            .as_str()
            .unwrap()
            .contains("ABI of Landlock"),
        "{lost}"
    );

    bundle.args(&["sleep", "1000"]).write();
    let dir = bundle.bundle_dir();
    let run = [
        "--degrade=any",
        "run",
        "--detach",
        "--bundle",
        dir.to_str().unwrap(),
        &bundle.id,
    ];
    bundle.call(&run).ok();
    let exec = |tries: &[&str]| {
        let mut args = vec!["--degrade=any", "exec", &bundle.id, &attack];
        args.extend(tries);
        results(&bundle.call(&args).ok())
    };
    all_refused(&exec(&tries), &tries);
    all_done(&exec(&fine), &fine);
    bundle.delete_force().ok();
    assert_eq!(std::fs::read(file).unwrap(), b"the user's");
}

#[test]
fn what_a_sandbox_cannot_hold() {
    let (mut bundle, home) = sandboxed!();
    deny_namespaces(&mut bundle);
    bundle.args(&["true"]);
    at(&bundle, "any").ok();
    let good = bundle.config.clone();
    let work = home.work.to_str().unwrap();
    let bind = |source: &str| json!({"destination": "/mnt", "type": "bind", "source": source, "options": ["rbind", "ro"]});
    let onto = |path: &str, option: &str| json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", option]});
    let deep = format!("{work}/deep");
    for (pointer, value, said) in [
        ("/root/path", json!("rootfs"), "root.path"),
        ("/root/readonly", json!(false), "root.readonly"),
        ("/mounts/0", bind(work), "mounts[0]"),
        (
            "/linux/readonlyPaths",
            json!([format!("{work}/deep")]),
            "is to be read-only",
        ),
        (
            "/linux/sysctl",
            json!({"kernel.domainname": "x"}),
            "linux.sysctl",
        ),
        (
            "/mounts",
            json!([onto(work, "rw"), onto(&deep, "ro")]),
            "mounts[1]",
        ),
        (
            "/mounts",
            json!([onto(work, "noexec")]),
            "mounts[0].options",
        ),
    ] {
        bundle.config = good.clone();
        bundle.set(pointer, value);
        let out = at(&bundle, "any").code(1);
        for word in [said, "user.max_user_namespaces"] {
            assert!(out.stderr.contains(word), "{word}: {out:#?}");
        }
        bundle.assert_gone();
    }
}

/// As on Ubuntu 24.04: the user namespace is made, and the first mount in it is refused. The caller's mounts
/// all lie there, so a filter stands for the profile, which knows about namespaces.
fn deny_mounts(bundle: &mut Bundle, errno: i32) {
    let deny = crate::denied::deny().unwrap().to_str().unwrap().to_string();
    // Only root filters without it; what comes before in the prefix mounts by itself.
    let prefix = ["setpriv", "--no-new-privs"].map(str::to_string);
    let filter = [deny, errno.to_string(), libc::SYS_mount.to_string()];
    bundle.prefix.extend(prefix.into_iter().chain(filter));
}

#[test]
fn a_user_namespace_without_rights_is_none() {
    let (mut bundle, home) = sandboxed!();
    let plain = bundle.prefix.clone();
    let file = format!("write={}", home.file.display());
    let new = format!("create={}/new", home.work.display());
    let attack = bundle.host("attack").to_str().unwrap().to_string();
    for errno in [libc::EACCES, libc::EPERM] {
        bundle.prefix.clone_from(&plain);
        deny_mounts(&mut bundle, errno);
        // What doctor says beforehand is what the container meets.
        let doctor = bundle.call(&["doctor", "--json"]).code(2);
        let doctor: serde_json::Value = serde_json::from_str(&doctor.stdout).unwrap();
        let name = format!("{:?}", nix::errno::Errno::from_raw(errno));
        let first = &doctor["firstFailure"];
        assert_eq!(
            (&doctor["mode"], &first["name"], &first["errno"]),
            (&json!("DISABLED"), &json!("user.private"), &json!(name)),
        );

        let refused = format!("in the new user namespace: set the mount propagation of /: {name}");
        bundle.args(&["true"]);
        for level in ["never", "safe"] {
            let out = at(&bundle, level).code(1);
            for word in [&refused, "the degradation \"userns-user\"", "apparmor"] {
                assert!(out.stderr.contains(word), "{word}: {out:#?}");
            }
            bundle.assert_gone();
        }
        bundle.args(&[&attack, &file, &new]);
        let out = at(&bundle, "any").ok();
        let done = results(&out);
        assert_eq!(done[&file], libc::EACCES, "{out:#?}");
        assert_eq!(done[&new], 0, "{out:#?}");
        std::fs::remove_file(home.work.join("new")).unwrap();
        let lost = told(&mut bundle, "any", "userns-user");
        assert_eq!(lost["errno"], errno, "{lost}");
        let reason = lost["reason"].as_str().unwrap();
        assert!(reason.starts_with(&refused), "{lost}");
    }
    // A root file system of its own takes mounts: both failures are told.
    bundle.set("/root/path", json!("rootfs"));
    let out = at(&bundle, "any").code(1);
    for word in ["root.path", "before that: in the new user namespace"] {
        assert!(out.stderr.contains(word), "{word}: {out:#?}");
    }
    bundle.assert_gone();
}

/// Root is refused the mount outside as well: that is told with what was tried before, and nothing is left.
#[test]
fn roots_mounts_refused_everywhere() {
    isorun_only!("what is lost in another way is isorun's");
    if !landlock(1) || crate::denied::deny().is_none() {
        skip!("there is no Landlock, or no C compiler");
    }
    let mut bundle = crate::userns::mapped();
    bundle.prefix.clear();
    deny_mounts(&mut bundle, libc::EACCES);
    let first = "in the new user namespace: set the mount propagation of /: EACCES";
    let out = at(&bundle, "safe").code(1);
    for word in [first, "the degradation \"userns-root\""] {
        assert!(out.stderr.contains(word), "{word}: {out:#?}");
    }
    bundle.assert_gone();
    let out = at(&bundle, "any").code(1);
    let both = ["set the mount propagation of /: EACCES", "before that: in"];
    for word in both {
        assert!(out.stderr.contains(word), "{word}: {out:#?}");
    }
    bundle.assert_gone();
}
