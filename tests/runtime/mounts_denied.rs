//! What is mounted is the same where the newer calls are denied: the container's table with each of
//! them missing, compared with the table that it has otherwise.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::json;

use crate::denied::deny;
use crate::harness::{Bundle, chown_tree, run_command};

/// The calls of the mount API (x86_64): open_tree, move_mount, fsopen, fsconfig, fsmount, mount_setattr.
const CALLS: [u32; 6] = [428, 429, 430, 431, 432, 442];

/// A bundle with mounts of all kinds.
fn bundle() -> Bundle {
    let mut bundle = Bundle::sh(
        "ls /copied /late; touch /late/x /dev/x / 2>/dev/null && echo writable; cat /proc/self/mountinfo",
    );
    let tree = bundle.host("tree");
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("file"), "").unwrap();
    let tree = tree.to_str().unwrap().to_string();
    // Otherwise the first run would make it, and later ones give the tmpfs its mode.
    for dir in ["/late", "/whole"] {
        fs::create_dir(bundle.rootfs(dir)).unwrap();
    }
    fs::create_dir(bundle.rootfs("/copied")).unwrap();
    fs::write(bundle.rootfs("/copied/kept"), "").unwrap();
    bundle.mount("/plain", "bind", &tree, &["bind"]);
    bundle.mount(
        "/flags",
        "bind",
        &tree,
        &["rbind", "ro", "nodev", "noatime", "rprivate"],
    );
    bundle.mount(
        "/strict",
        "bind",
        &tree,
        &["bind", "strictatime", "nosuid", "unbindable"],
    );
    bundle.mount("/dir", "bind", &tree, &["bind", "noexec", "nodiratime"]);
    // A tree of three mounts, made of the container's own.
    bundle.mount("/whole", "tmpfs", "tmpfs", &["nosuid", "mode=755"]);
    bundle.mount("/whole/a b", "tmpfs", "tmpfs", &["noatime", "mode=755"]);
    bundle.mount("/whole/a b/c", "bind", &tree, &["bind"]);
    let whole = bundle.rootfs("/whole").to_str().unwrap().to_string();
    let options = ["rbind", "nodev", "rro", "rnoexec", "rstrictatime"];
    bundle.mount("/tree", "bind", &whole, &options);
    bundle.mount("/file", "bind", &format!("{tree}/file"), &["bind", "ro"]);
    bundle.mount("/plain", "bind", &tree, &["bind", "remount", "nosuid"]);
    bundle.mount(
        "/copied",
        "tmpfs",
        "tmpfs",
        &["tmpcopyup", "ro", "size=1m", "mode=711"],
    );
    bundle.mount("/late", "tmpfs", "tmpfs", &["ro", "nosuid", "sync"]);
    bundle.mount("/late/below", "bind", &tree, &["bind", "shared"]);
    bundle.mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["ro", "nosuid", "nodev", "noexec"],
    );
    bundle
        .namespace("cgroup")
        .set("/root/readonly", json!(true));
    bundle
}

/// The container's output, without the numbers that differ from run to run.
fn table(bundle: &Bundle, denied: Option<(i32, &str)>, flags: &[&str]) -> Option<String> {
    bundle.write();
    let dir = bundle.bundle_dir().to_str()?.to_string();
    let mut arguments = vec!["run"];
    arguments.extend(flags);
    arguments.extend(["--bundle", &dir, &bundle.id]);
    let runtime = bundle.command(&arguments);
    let mut command = match denied {
        None => runtime,
        Some((errno, numbers)) => {
            let mut command = Command::new(deny()?);
            command.arg(errno.to_string()).arg(numbers);
            command.arg(runtime.get_program()).args(runtime.get_args());
            command.env("ISORUN_TEST_ID", &bundle.id);
            command
        }
    };
    command.current_dir(&bundle.dir);
    let out = run_command(command, &bundle.dir.join("io")).ok();
    assert_eq!(out.stderr, "", "{denied:?}");
    bundle.assert_gone();
    let plain = |word: &str| match word.split_once(':') {
        Some((name @ ("shared" | "master"), _)) => name.to_string(),
        _ => word.to_string(),
    };
    let line = |line: &str| {
        let skipped = if line.contains(" - ") { 3 } else { 0 };
        let words: Vec<String> = line.split(' ').skip(skipped).map(plain).collect();
        words.join(" ")
    };
    Some(out.stdout.lines().map(line).collect::<Vec<_>>().join("\n"))
}

fn same_table(bundle: &Bundle, flags: &[&str]) {
    let expected = table(bundle, None, flags).unwrap();
    for point in ["/late/below", "/tree/a\\040b/c"] {
        assert!(expected.contains(&format!(" {point} ")), "{expected}");
    }
    let all = CALLS.map(|number| number.to_string()).join(",");
    let alone = CALLS.map(|number| number.to_string());
    for numbers in alone.iter().chain([&all]) {
        for errno in [38, 1] {
            let Some(got) = table(bundle, Some((errno, numbers)), flags) else {
                skip!("there is no C compiler");
            };
            let differs = |line: &&str| !expected.lines().any(|other| other == *line);
            let lines: Vec<&str> = got.lines().filter(differs).collect();
            assert!(got == expected, "{numbers} with {errno}: {lines:#?}");
        }
    }
}

#[test]
fn the_same_mounts_by_the_older_calls() {
    isorun_only!("what a reference does without a call is its own business");
    same_table(&bundle(), &[]);
}

#[test]
fn the_same_in_a_user_namespace() {
    isorun_only!("what a reference does without a call is its own business");
    let mut bundle = bundle();
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
    bundle.namespace("user");
    bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    chown_tree(&bundle.rootfs("/"), 200_000);
    // Access times are locked there.
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| {
        !matches!(
            mount["destination"].as_str(),
            Some("/strict" | "/flags" | "/dir")
        )
    });
    for mount in mounts
        .iter_mut()
        .filter(|mount| mount["destination"] == "/tree")
    {
        mount["options"] = json!(["rbind", "nodev", "rro", "rnoexec"]);
    }
    same_table(&bundle, &[]);
}

#[test]
fn the_same_without_pivot_root() {
    isorun_only!("what a reference does without a call is its own business");
    same_table(&bundle(), &["--no-pivot"]);
}

#[test]
fn a_source_that_only_the_hosts_root_can_open_by_the_older_calls() {
    isorun_only!("what a reference does without a call is its own business");
    let mut bundle = Bundle::sh("cat /mnt/file; touch /mnt/x 2>/dev/null || echo refused");
    let dir = bundle.host("secret/dir");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("file"), "of the host\n").unwrap();
    fs::set_permissions(bundle.host("secret"), fs::Permissions::from_mode(0o700)).unwrap();
    let dir = dir.to_str().unwrap().to_string();
    bundle.mount("/mnt", "bind", &dir, &["rbind", "ro"]);
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
    bundle.namespace("user");
    bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    chown_tree(&bundle.rootfs("/"), 200_000);
    for errno in [38, 1] {
        for number in CALLS {
            let Some(got) = table(&bundle, Some((errno, &number.to_string())), &[]) else {
                skip!("there is no C compiler");
            };
            assert_eq!(got.trim(), "of the host\nrefused", "{number} with {errno}");
        }
    }
}

#[test]
fn a_root_that_only_the_hosts_root_can_reach_by_the_older_calls() {
    isorun_only!("what a reference does without a call is its own business");
    let mut bundle = Bundle::sh("touch /here && echo made; grep -c ' / ' /proc/self/mountinfo");
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
    bundle.namespace("user");
    bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    chown_tree(&bundle.rootfs("/"), 200_000);
    fs::set_permissions(bundle.bundle_dir(), fs::Permissions::from_mode(0o700)).unwrap();
    let expected = table(&bundle, None, &[]).unwrap();
    assert!(expected.starts_with("made\n"), "{expected}");
    for errno in [38, 1] {
        for number in CALLS
            .map(|number| number.to_string())
            .into_iter()
            .chain([all()])
        {
            let Some(got) = table(&bundle, Some((errno, &number)), &[]) else {
                skip!("there is no C compiler");
            };
            assert_eq!(got, expected, "{number} with {errno}");
        }
    }
}

/// All of them at once, as before Linux 5.2.
fn all() -> String {
    CALLS.map(|number| number.to_string()).join(",")
}

#[test]
fn what_has_no_older_call_is_refused_by_name() {
    isorun_only!("what a reference does without a call is its own business");
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    let mut bundle = Bundle::sh("echo ran");
    let dir = bundle.host("").to_str().unwrap().to_string();
    bundle.push(
        "/mounts",
        json!({"destination": "/mnt", "type": "bind", "source": dir, "options": ["bind"],
            "uidMappings": map, "gidMappings": map}),
    );
    bundle.write();
    let Some(deny) = deny() else {
        skip!("there is no C compiler");
    };
    let dir = bundle.bundle_dir().to_str().unwrap().to_string();
    let runtime = bundle.command(&["run", "--bundle", &dir, &bundle.id]);
    let mut command = Command::new(deny);
    command.args(["38", "442"]).arg(runtime.get_program());
    command.args(runtime.get_args()).current_dir(&bundle.dir);
    let out = run_command(command, &bundle.dir.join("io")).code(1);
    let says = "mounts[6]: set MOUNT_ATTR_IDMAP on";
    assert!(
        out.stderr.contains(says) && out.stderr.contains("ENOSYS"),
        "{}",
        out.stderr
    );
    bundle.assert_gone();
}
