//! Mounts with other owners (`uidMappings`, `idmap`, `ridmap`), and sources that only the host's root
//! can open.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use serde_json::{Value, json};

use crate::harness::{Bundle, chown_tree, run_after};

const BASE: u32 = 200_000;

fn map(inside: u32, outside: u32, size: u32) -> Value {
    json!([{"containerID": inside, "hostID": outside, "size": size}])
}

/// Puts the bundle in a user namespace where container 0 is host 200000.
fn in_user_namespace(bundle: &mut Bundle) {
    bundle.namespace("user").namespace("cgroup");
    bundle
        .set("/linux/uidMappings", map(0, BASE, 65536))
        .set("/linux/gidMappings", map(0, BASE, 65536));
    crate::harness::chown_tree(&bundle.rootfs("/"), BASE);
}

/// A directory of the host with files of users 0 and 7.
fn source(bundle: &Bundle, name: &str) -> String {
    let dir = bundle.host(name);
    fs::create_dir_all(&dir).unwrap();
    for (file, id) in [("zero", 0), ("seven", 7)] {
        fs::write(dir.join(file), "of the host\n").unwrap();
        chown(dir.join(file), Some(id), Some(id + 1)).unwrap();
    }
    dir.to_str().unwrap().to_string()
}

/// The same below a directory that only root may enter.
fn secret(bundle: &Bundle) -> String {
    let path = source(bundle, "secret/dir");
    fs::set_permissions(bundle.host("secret"), fs::Permissions::from_mode(0o700)).unwrap();
    path
}

/// Adds a bind mount with maps of its own.
fn mapped_mount(bundle: &mut Bundle, at: &str, source: &str, options: &[&str], maps: [Value; 2]) {
    let [uids, gids] = maps;
    bundle.push(
        "/mounts",
        json!({"destination": at, "type": "bind", "source": source, "options": options,
            "uidMappings": uids, "gidMappings": gids}),
    );
}

/// With CAP_CHOWN and CAP_DAC_OVERRIDE, so that the container's root may write everywhere.
fn allow(bundle: &mut Bundle, name: &str) {
    for set in ["bounding", "effective", "permitted"] {
        bundle.push(&format!("/process/capabilities/{set}"), json!(name));
    }
}

#[test]
fn maps_of_its_own_without_a_user_namespace() {
    since_runc!(1, 2, "idmapped mounts without a user namespace");
    let mut bundle = Bundle::sh("stat -c %u:%g /mnt/zero /mnt/seven; touch /mnt/new");
    let dir = source(&bundle, "dir");
    let maps = [map(0, 1000, 100), map(0, 3000, 100)];
    mapped_mount(&mut bundle, "/mnt", &dir, &["bind"], maps);
    allow(&mut bundle, "CAP_DAC_OVERRIDE");
    bundle.set("/process/user", json!({"uid": 1005, "gid": 3006}));
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(bundle.run().ok().text(), "1000:3001\n1007:3008");
    let made = fs::metadata(bundle.host("dir/new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (5, 6), "and back, on the disk");
}

#[test]
fn the_containers_maps_where_an_option_asks_for_maps() {
    since_runc!(1, 2, "the options idmap and ridmap");
    for option in ["idmap", "ridmap"] {
        let mut bundle =
            Bundle::sh("stat -c %u:%g /mnt/zero /mnt/seven /plain/zero; touch /mnt/new");
        let dir = source(&bundle, "dir");
        in_user_namespace(&mut bundle);
        bundle.mount("/mnt", "bind", &dir, &["bind", option]);
        bundle.mount("/plain", "bind", &dir, &["bind"]);
        assert_eq!(
            bundle.run().ok().text(),
            "0:1\n7:8\n65534:65534",
            "{option}"
        );
        assert_eq!(fs::metadata(bundle.host("dir/new")).unwrap().uid(), 0);
    }
}

#[test]
fn maps_of_its_own_in_a_user_namespace() {
    since_runc!(1, 2, "mappings other than the container's");
    let mut bundle = Bundle::sh("stat -c %u:%g /mnt/zero /mnt/seven");
    let dir = source(&bundle, "dir");
    in_user_namespace(&mut bundle);
    // On the disk 7 is what the container knows as 42.
    let uids = json!([{"containerID": 7, "hostID": BASE + 42, "size": 1}]);
    let gids = json!([{"containerID": 8, "hostID": BASE + 43, "size": 1},
        {"containerID": 1, "hostID": BASE + 2, "size": 1}]);
    mapped_mount(&mut bundle, "/mnt", &dir, &["bind", "ro"], [uids, gids]);
    assert_eq!(bundle.run().ok().text(), "65534:2\n42:43");
}

#[test]
fn the_maps_of_a_user_namespace_that_is_joined() {
    since_runc!(1, 2, "the options idmap and ridmap");
    let mut owner = Bundle::sh("sleep 100");
    in_user_namespace(&mut owner);
    owner.run_detached().ok();
    let mut bundle = Bundle::sh(
        "cat /proc/self/uid_map; stat -c %u:%g /mnt/seven /own/seven; readlink /proc/self/ns/ipc",
    );
    let dir = secret(&bundle);
    let namespace = format!("/proc/{}/ns/user", owner.pid());
    bundle.push(
        "/linux/namespaces",
        json!({"type": "user", "path": namespace}),
    );
    // Owned by the container's root and not by the host's, as for a user namespace of its own.
    chown_tree(&bundle.rootfs("/"), BASE);
    bundle.mount("/mnt", "bind", &dir, &["bind", "idmap"]);
    let maps = [map(0, BASE + 30, 10), map(0, BASE + 50, 10)];
    mapped_mount(&mut bundle, "/own", &dir, &["bind"], maps);
    let out = bundle.run().ok();
    let words: Vec<&str> = out.stdout.split_whitespace().collect();
    assert_eq!(words[..5], ["0", "200000", "65536", "7:8", "37:58"]);
    let host = fs::read_link("/proc/self/ns/ipc").unwrap();
    assert_ne!(host.to_str(), Some(words[5]), "a new IPC namespace is new");
}

#[test]
fn of_a_tree_the_top_alone_or_all() {
    since_runc!(1, 2, "the options idmap and ridmap");
    let mut bundle = Bundle::sh("stat -c %u /top /top/sub /all /all/sub");
    let dir = source(&bundle, "dir");
    fs::create_dir(bundle.host("dir/sub")).unwrap();
    for (at, option) in [("/top", "idmap"), ("/all", "ridmap")] {
        let maps = [map(0, 1000, 10), map(0, 1000, 10)];
        mapped_mount(&mut bundle, at, &dir, &["rbind", option], maps);
    }
    let out = run_after(&bundle, "mount -t tmpfs none $D/dir/sub").ok();
    assert_eq!(out.text(), "1000\n0\n1000\n1000");
}

#[test]
fn flags_and_propagation_beside_the_maps() {
    since_runc!(1, 2, "idmapped mounts without a user namespace");
    let mut bundle = Bundle::sh("stat -c %u /mnt; cat /proc/self/mountinfo");
    let dir = source(&bundle, "dir");
    let maps = [map(0, 1000, 10), map(0, 1000, 10)];
    let options = ["rbind", "ro", "nosuid", "rnoexec", "shared"];
    mapped_mount(&mut bundle, "/mnt", &dir, &options, maps);
    let out = bundle.run().ok();
    let (owner, table) = out.stdout.split_once('\n').unwrap();
    assert_eq!(owner, "1000");
    let mount = crate::harness::mount_at(&crate::harness::parse_mountinfo(table), "/mnt");
    assert!(
        mount.has(&["ro", "nosuid", "noexec", "idmapped"]),
        "{mount:?}"
    );
    assert!(mount.propagation[0].starts_with("shared:"), "{mount:?}");
}

#[test]
fn a_file_with_maps() {
    since_runc!(1, 2, "idmapped mounts without a user namespace");
    let mut bundle = Bundle::sh("stat -c %u:%g /etc/deep/seven");
    let dir = source(&bundle, "dir");
    let maps = [map(7, 1007, 1), map(8, 1008, 1)];
    mapped_mount(
        &mut bundle,
        "/etc/deep/seven",
        &format!("{dir}/seven"),
        &["bind"],
        maps,
    );
    assert_eq!(bundle.run().ok().text(), "1007:1008");
}

#[test]
fn a_source_that_only_the_hosts_root_can_open() {
    since_runc!(1, 2, "sources by a thread of the host");
    let mut bundle = Bundle::sh("cat /mnt/zero; stat -c %u /mapped/seven /mnt/seven");
    let dir = secret(&bundle);
    in_user_namespace(&mut bundle);
    bundle.mount("/mnt", "bind", &dir, &["rbind", "ro"]);
    bundle.mount("/mapped", "bind", &dir, &["rbind", "idmap"]);
    assert_eq!(bundle.run().ok().text(), "of the host\n7\n65534");
}

#[test]
fn its_flags_are_locked_all_the_same() {
    since_runc!(1, 2, "sources by a thread of the host");
    let mut bundle = Bundle::new();
    let dir = secret(&bundle);
    in_user_namespace(&mut bundle);
    bundle.mount("/mnt", "bind", &dir, &["rbind"]);
    bundle.mount("/mapped", "bind", &dir, &["rbind", "idmap"]);
    allow(&mut bundle, "CAP_SYS_ADMIN");
    bundle.args(&[
        "sh",
        "-c",
        "for at in /mnt /mapped; do mount -o remount,bind,rw,suid,dev,exec $at 2>/dev/null && echo changed; \
         grep \" $at \" /proc/self/mountinfo; done",
    ]);
    let out = run_after(
        &bundle,
        "mount -t tmpfs -o ro,nosuid,nodev,mode=755 none $D/secret/dir",
    )
    .ok();
    assert_eq!(
        out.stdout.matches("ro,nosuid,nodev").count(),
        2,
        "{}",
        out.stdout
    );
    assert!(!out.stdout.contains("changed"), "{}", out.stdout);
}

#[test]
fn a_root_file_system_that_only_the_hosts_root_can_open() {
    isorun_only!("runc opens the root file system as the container's user");
    let mut bundle = Bundle::sh("id -u; touch /made; cat /proc/self/mountinfo");
    in_user_namespace(&mut bundle);
    fs::set_permissions(bundle.bundle_dir(), fs::Permissions::from_mode(0o700)).unwrap();
    let out = bundle.run().ok();
    assert!(out.stdout.starts_with("0\n"), "{}", out.stdout);
    assert_eq!(fs::metadata(bundle.rootfs("/made")).unwrap().uid(), BASE);
}

#[test]
fn a_plain_bind_over_what_is_mounted_below_in_a_user_namespace() {
    isorun_only!("runc says EINVAL: mounts below are locked to the source there");
    let mut bundle = Bundle::sh("ls /mnt/sub; cat /mnt/zero");
    let dir = source(&bundle, "dir");
    fs::create_dir(bundle.host("dir/sub")).unwrap();
    in_user_namespace(&mut bundle);
    bundle.mount("/mnt", "bind", &dir, &["bind"]);
    let out = run_after(
        &bundle,
        "mount -t tmpfs none $D/dir/sub; echo x > $D/dir/sub/hidden",
    )
    .ok();
    assert_eq!(out.text(), "of the host");
    // Where flags would come unlocked it is refused, and the sentence says what to do.
    let out = run_after(
        &bundle,
        "mount --bind $D/dir $D/dir; mount -o remount,bind,nosuid $D/dir; mount -t tmpfs none $D/dir/sub",
    )
    .code(1);
    assert!(
        out.stderr.contains("EINVAL") && out.stderr.contains("\"rbind\""),
        "{}",
        out.stderr
    );
    bundle.assert_gone();
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    since_runc!(1, 2, "idmapped mounts without a user namespace");
    let some = || map(0, 1000, 10);
    let none = || json!([]);
    for (kind, options, maps, says) in [
        (
            "tmpfs",
            vec![],
            [some(), some()],
            "only supported for bind-mounts",
        ),
        (
            "tmpfs",
            vec!["idmap"],
            [none(), none()],
            "only supported for bind-mounts",
        ),
        (
            "bind",
            vec!["bind", "idmap"],
            [none(), none()],
            "both uid and gid mappings",
        ),
        (
            "bind",
            vec!["rbind", "ridmap"],
            [none(), none()],
            "both uid and gid mappings",
        ),
        (
            "bind",
            vec!["bind"],
            [some(), none()],
            "both uid and gid mappings",
        ),
        (
            "bind",
            vec!["bind"],
            [none(), some()],
            "both uid and gid mappings",
        ),
    ] {
        let mut bundle = Bundle::sh("echo ran");
        let dir = source(&bundle, "dir");
        let [uids, gids] = maps;
        let mut mount =
            json!({"destination": "/mnt", "type": kind, "source": dir, "options": options});
        for (name, map) in [("uidMappings", uids), ("gidMappings", gids)] {
            if map != json!([]) {
                mount[name] = map;
            }
        }
        bundle.push("/mounts", mount.clone());
        let out = bundle.run().code(1);
        assert!(out.stderr.contains(says), "{mount}: {}", out.stderr);
        assert_eq!(out.text(), "");
        bundle.assert_gone();
    }
}

#[test]
fn a_file_system_without_maps_is_named() {
    since_runc!(1, 2, "idmapped mounts without a user namespace");
    let mut bundle = Bundle::sh("echo ran");
    let maps = [map(0, 1000, 10), map(0, 1000, 10)];
    mapped_mount(&mut bundle, "/mnt", "/proc/tty", &["bind"], maps);
    let out = bundle.run().code(1);
    assert!(out.stderr.contains("MOUNT_ATTR_IDMAP"), "{}", out.stderr);
    if crate::harness::runtime().isorun {
        for part in ["mounts[6]", "/proc/tty", "EINVAL", "; proc may not support"] {
            assert!(out.stderr.contains(part), "{part}: {}", out.stderr);
        }
    }
    bundle.assert_gone();
}

#[test]
fn a_source_that_is_not_there_is_named() {
    let mut bundle = Bundle::sh("echo ran");
    in_user_namespace(&mut bundle);
    secret(&bundle);
    let gone = bundle.host("secret/gone").to_str().unwrap().to_string();
    bundle.mount("/mnt", "bind", &gone, &["bind"]);
    let out = bundle.run().code(1);
    assert!(out.stderr.contains(&gone), "{}", out.stderr);
    if crate::harness::runtime().isorun {
        assert!(out.stderr.contains("ENOENT"), "{}", out.stderr);
    }
    bundle.assert_gone();
}

#[test]
fn maps_that_overlap_are_refused() {
    isorun_only!("runc leaves that to the kernel");
    let mut bundle = Bundle::sh("echo ran");
    let dir = source(&bundle, "dir");
    let twice = json!([{"containerID": 0, "hostID": 1000, "size": 10},
        {"containerID": 5, "hostID": 2000, "size": 10}]);
    mapped_mount(
        &mut bundle,
        "/mnt",
        &dir,
        &["bind"],
        [twice, map(0, 1000, 10)],
    );
    let out = bundle.run().code(1);
    assert!(
        out.stderr
            .contains("mounts[6].uidMappings[1].containerID: the range overlaps"),
        "{}",
        out.stderr
    );
    bundle.assert_gone();
}
