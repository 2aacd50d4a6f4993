//! Containers without a mount namespace (docs/decisions/0010): every test is in a mount namespace of its
//! own, and what the container mounted has to be gone from it in the end.

use serde_json::json;

use crate::harness::{Bundle, Output, denied, script_apart};

/// A bundle without a mount namespace that runs this script.
fn bundle(script: &str) -> Bundle {
    let mut bundle = Bundle::sh(script);
    bundle
        .without_namespace("mount")
        .set("/linux/maskedPaths", json!([]))
        .set("/linux/readonlyPaths", json!([]));
    bundle
}

/// Whether the host's mounts are private, as in the namespaces of services, or shared, as systemd has
/// them; a second namespace gets what the first one shares.
const HOSTS: [&str; 2] = ["true", "mount --make-rshared /"];

/// Around a script: what is mounted here, and in a namespace that is a peer of this one, before and after.
/// Prints `same` for each of the two that is as it was.
fn around(script: &str) -> String {
    // Of each mount its point, its file system and its propagation, without numbers.
    format!(
        "seen() {{ awk '{{ at = 7; while ($at != \"-\") at++; print $5, $(at + 1) }}' $1 | sort; }}
         $X unshare --mount --propagation shared sleep 60 & peer=$!
         until [ \"$(readlink /proc/$peer/ns/mnt)\" != \"$(readlink /proc/self/ns/mnt)\" ]; do sleep 0.02; done
         trap 'kill $peer' EXIT
         seen /proc/self/mountinfo >$D/before; seen /proc/$peer/mountinfo >$D/peer
         grep -c 'shared:' /proc/self/mountinfo >$D/shared || true
         {script}
         seen /proc/self/mountinfo | cmp - $D/before && echo here: same
         seen /proc/$peer/mountinfo | cmp - $D/peer && echo peer: same
         [ $(grep -c 'shared:' /proc/self/mountinfo) = $(cat $D/shared) ] && echo shared: same"
    )
}

#[track_caller]
fn all_same(out: &Output) {
    for what in ["here", "peer", "shared"] {
        assert_eq!(out.field(what), "same", "{out:#?}");
    }
}

macro_rules! needs_mount_calls {
    () => {
        if ["open_tree", "move_mount", "mount_setattr"]
            .iter()
            .any(|call| denied(call))
        {
            skip!("without a mount namespace it takes the calls of the mount API");
        }
    };
}

#[test]
fn it_runs_in_its_root_and_leaves_nothing() {
    isorun_only!("runc makes all of the host's mounts slaves, and both leave theirs behind");
    needs_mount_calls!();
    for host in HOSTS {
        let bundle = bundle(
            "readlink /proc/self/ns/mnt; ls -d /etc/passwd; echo mine >/dev/shm/x; mount | grep -c ' /dev '",
        );
        let script = around(
            "readlink /proc/self/ns/mnt
             runtime run --bundle $B $ID
             echo run: $?",
        );
        let out = script_apart(&bundle, &format!("{host}\n{script}")).ok();
        all_same(&out);
        assert_eq!(out.field("run"), "0", "{out:#?}");
        let lines: Vec<&str> = out.stdout.lines().collect();
        assert_eq!(
            lines[0], lines[1],
            "the mount namespace is the caller's: {out:#?}"
        );
        assert_eq!(lines[2], "/etc/passwd");
        assert!(
            out.stderr.contains("there is no mount namespace"),
            "it is told: {out:#?}"
        );
    }
}

#[test]
fn created_executed_in_and_deleted() {
    isorun_only!("runc makes all of the host's mounts slaves, and both leave theirs behind");
    needs_mount_calls!();
    for host in HOSTS {
        let mut bundle = bundle("sleep 60");
        // Mounted in a copy of a mount that is the host's, and shared: it must not show there.
        let tree = bundle.host("tree").to_str().unwrap().to_string();
        bundle
            .mount("/tree", "bind", &tree, &["rbind"])
            .mount("/tree/inner", "tmpfs", "tmpfs", &[])
            .mount("/also", "bind", &tree, &["rbind", "rshared"])
            .mount("/also/other", "tmpfs", "tmpfs", &[]);
        std::fs::write(bundle.rootfs("/etc/where"), "in the container\n").unwrap();
        let script = around(
            "runtime create --bundle $B $ID
             grep -c \" $B/rootfs\" /proc/self/mountinfo | sed 's/^/mounted: /'
             grep -c \" ${D%/}/tree/\" /proc/self/mountinfo | sed 's/^/host: /'
             grep -c \" $B/rootfs/\" /proc/$peer/mountinfo | sed 's/^/other: /'
             runtime start $ID
             runtime exec --cwd /etc $ID sh -c 'pwd; cat where; ls -d /proc/1'
             runtime exec $ID ls /tree | sed 's/^/tree: /'
             runtime delete --force $ID",
        );
        let before = "mkdir $D/tree; mount -t tmpfs tree $D/tree; mkdir $D/tree/inner $D/tree/sub \
                      $D/tree/other; mount -t tmpfs sub $D/tree/sub";
        let out = script_apart(&bundle, &format!("{before}\n{host}\n{script}")).ok();
        all_same(&out);
        assert!(
            out.stdout.contains("/etc\nin the container\n/proc/1\n"),
            "{out:#?}"
        );
        let mounted: u32 = out.field("mounted").parse().unwrap();
        assert!(mounted > 8, "{out:#?}");
        assert_eq!(
            out.field("host"),
            "1",
            "what is mounted in a bind mount: {out:#?}"
        );
        assert_eq!(out.field("other"), "0", "{out:#?}");
    }
}

#[test]
fn a_creation_that_fails_leaves_nothing() {
    isorun_only!("runc makes all of the host's mounts slaves, and both leave theirs behind");
    needs_mount_calls!();
    for (what, change) in [
        ("mount", "/mounts/-"),
        ("hook", "/hooks/createRuntime"),
        ("program", "/process/args"),
    ] {
        let mut bundle = bundle("true");
        match what {
            "mount" => bundle.mount("/x", "bind", "/no/such/source", &["bind"]),
            "hook" => bundle.set(change, json!([{"path": "/bin/false"}])),
            _ => bundle.args(&["/no/such/program"]),
        };
        let script = around("runtime create --bundle $B $ID && exit 7; ls -A $root");
        let out = script_apart(&bundle, &format!("mount --make-rshared /\n{script}")).ok();
        all_same(&out);
    }
}

#[test]
fn what_a_killed_runtime_leaves_goes_with_delete() {
    isorun_only!("runc makes all of the host's mounts slaves, and both leave theirs behind");
    needs_mount_calls!();
    let mut bundle = bundle("true");
    bundle.set(
        "/hooks/createRuntime",
        json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 60", bundle.host("here").display())]}]),
    );
    let script = around(
        "$program --root $root create --bundle $B $ID & pid=$!
         until [ -e $D/here ]; do sleep 0.02; done
         grep -c \" $B/rootfs\" /proc/self/mountinfo | sed 's/^/mounted: /'
         kill -9 $pid $(cat $D/here); wait $pid || true
         runtime delete --force $ID",
    );
    let out = script_apart(&bundle, &format!("mount --make-rshared /\n{script}")).ok();
    all_same(&out);
    assert_ne!(out.field("mounted"), "0", "{out:#?}");
}

#[test]
fn only_what_was_recorded_is_unmounted() {
    isorun_only!("runc makes all of the host's mounts slaves, and both leave theirs behind");
    needs_mount_calls!();
    // Somebody else's mount on the container's: deleting says so, and takes nothing of theirs.
    let covered = bundle("sleep 60");
    let out = script_apart(
        &covered,
        &around(
            "runtime create --bundle $B $ID
             mount -t tmpfs theirs $B/rootfs
             runtime delete --force $ID && exit 7
             grep -c 'tmpfs theirs' /proc/self/mountinfo | sed 's/^/theirs: /'
             $X umount $B/rootfs
             runtime delete --force $ID",
        ),
    )
    .ok();
    all_same(&out);
    assert_eq!(out.field("theirs"), "1", "{out:#?}");
    assert!(
        out.stderr.contains("another mount was put on it"),
        "{out:#?}"
    );
    // Unmounted already, and another mount in the place: that stays.
    let replaced = bundle("sleep 60");
    let out = script_apart(
        &replaced,
        "runtime create --bundle $B $ID
         $X umount -l $B/rootfs; $X umount -l $B/rootfs
         mount -t tmpfs theirs $B/rootfs
         runtime delete --force $ID
         grep -c 'tmpfs theirs' /proc/self/mountinfo | sed 's/^/theirs: /'",
    )
    .ok();
    assert_eq!(out.field("theirs"), "1", "{out:#?}");
}

#[test]
fn a_renamed_bundle_leaves_nothing() {
    isorun_only!("runc makes all of the host's mounts slaves, and both leave theirs behind");
    needs_mount_calls!();
    let bundle = bundle("sleep 60");
    let out = script_apart(
        &bundle,
        &around(
            "runtime create --bundle $B $ID
             mv $B $B.moved
             runtime delete --force $ID; echo delete: $?
             mv $B.moved $B",
        ),
    )
    .ok();
    all_same(&out);
    assert_eq!(out.field("delete"), "0", "{out:#?}");
}

#[test]
fn the_callers_own_mount_namespace_by_its_path_is_refused() {
    isorun_only!("runc pivots it, and unmounts all that was mounted in it");
    let mut bundle = bundle("true");
    let own = json!({"type": "mount", "path": "/proc/self/ns/mnt"});
    let list = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    list.push(own);
    let script = around("runtime create --bundle $B $ID && exit 7; ls -A $root");
    let out = script_apart(&bundle, &script).ok();
    all_same(&out);
    assert!(out.stderr.contains("/proc/self/ns/mnt"), "{out:#?}");
}

#[test]
fn the_callers_own_root_is_refused() {
    isorun_only!("runc makes all of the host's mounts slaves, and both leave theirs behind");
    let mut bundle = bundle("true");
    bundle
        .set("/root/path", json!("/"))
        .set("/mounts", json!([]));
    let script = around("runtime create --bundle $B $ID && exit 7; ls -A $root");
    let out = script_apart(&bundle, &script).ok();
    all_same(&out);
    assert!(out.stderr.contains("root.path"), "{out:#?}");
}

#[test]
fn from_another_mount_namespace() {
    isorun_only!("runc makes all of the host's mounts slaves, and both leave theirs behind");
    needs_mount_calls!();
    let bundle = bundle("sleep 60");
    let out = script_apart(
        &bundle,
        &around(
            "runtime create --bundle $B $ID
             apart() { $X unshare --mount --propagation private \"$program\" --root $root \"$@\"; }
             runtime start $ID
             apart exec $ID true && exit 7
             apart delete --force $ID && exit 8
             runtime state $ID | grep -c '\"id\"' | sed 's/^/there: /'
             runtime delete --force $ID",
        ),
    )
    .ok();
    all_same(&out);
    assert_eq!(out.field("there"), "1");
    assert_eq!(
        out.stderr.matches("its mounts are in another one").count(),
        2,
        "{out:#?}"
    );
    // The namespace has gone, and the mounts with it.
    let gone = self::bundle("sleep 60");
    script_apart(
        &gone,
        "$X unshare --mount --propagation private $program --root $root create --bundle $B $ID
         runtime kill $ID KILL
         until runtime state $ID | grep -q stopped; do sleep 0.02; done
         runtime delete $ID",
    )
    .ok();
}

#[test]
fn what_needs_a_mount_namespace_is_refused() {
    for (pointer, value, says) in [
        (
            "/linux/maskedPaths",
            json!(["/proc/kcore"]),
            "unable to restrict sys entries without a private MNT namespace",
        ),
        (
            "/linux/readonlyPaths",
            json!(["/proc/sys"]),
            "unable to restrict sys entries without a private MNT namespace",
        ),
    ] {
        let mut bundle = bundle("true");
        bundle.set(pointer, value);
        let out = script_apart(&bundle, "runtime run --bundle $B $ID && exit 7; true").ok();
        assert!(out.stderr.contains(says), "{out:#?}");
    }
    let mut bundle = bundle("true");
    bundle
        .namespace("user")
        .set(
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]),
        )
        .set(
            "/linux/gidMappings",
            json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]),
        );
    script_apart(&bundle, "runtime run --bundle $B $ID && exit 7; true").ok();
}

#[test]
fn read_only_root_and_propagation_are_of_the_root_alone() {
    isorun_only!("runc makes all of the host's mounts slaves, and both leave theirs behind");
    needs_mount_calls!();
    let mut bundle = bundle("touch /x || echo ro; touch /dev/shm/x && echo rw");
    bundle
        .set("/root/readonly", json!(true))
        .set("/linux/rootfsPropagation", json!("shared"));
    let script = around("runtime run --no-pivot --bundle $B $ID; touch $B/rootfs/y && echo out");
    let out = script_apart(&bundle, &script).ok();
    all_same(&out);
    assert!(out.stdout.starts_with("ro\nrw\nout\n"), "{out:#?}");
}
