//! Tensor channels: containers that name the same one meet there.
//!
//! Everything is done in a mount namespace of each test, with a /run and an /etc of its own.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::harness::{Bundle, Output, script_apart};
use crate::userns::mapped;

/// Where a container sees its channels.
const INSIDE: &str = "/run/isorun/channels";

/// A rule that lets everybody make and use channels whose names begin with `t-`.
pub const OPEN: &str =
    "[[rule]]\nname = \"open\"\nchannels = [\"t-*\"]\naccess = \"rw\"\nsize = \"16m\"\n";

/// Runs a script with these rules; `runtime` is the runtime, `$ID` and `$B` the bundle's.
pub fn apart(bundle: &Bundle, rules: &str, script: &str) -> Output {
    let etc = bundle.host("etc");
    let _ = std::fs::remove_dir_all(&etc);
    let rules_dir = etc.join("isorun/channels.d");
    std::fs::create_dir_all(&rules_dir).unwrap();
    if !rules.is_empty() {
        let file = rules_dir.join("10-test.toml");
        std::fs::write(&file, rules).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    // The reader of every channel is told by what it prints; nothing may be left at the end.
    let script = format!(
        "cp /etc/passwd $D/etc/ 2>/dev/null || true; mount -o bind $D/etc /etc; mount -t tmpfs tmpfs /run\n\
         C=/run/isorun/channels\n\
         wait_for() {{ n=0; until eval \"$1\"; do n=$((n + 1)); [ $n -lt 1500 ] || \
         {{ echo \"waited in vain: $1\" >&2; exit 97; }}; sleep 0.02; done; }}\n\
         {script}"
    );
    script_apart(bundle, &script)
}

/// Another container's bundle: its arguments for `run`.
pub fn of(bundle: &Bundle) -> String {
    bundle.write();
    format!("--bundle {} {}", bundle.bundle_dir().display(), bundle.id)
}

fn joins(mut bundle: Bundle, channels: &str) -> Bundle {
    bundle.set("/annotations", json!({"io.isorun.channels": channels}));
    bundle
}

/// One writes, and the other, in a user namespace of its own, reads the same memory: with its own ids, and
/// nothing more than it was let in for.
#[test]
fn two_containers_meet_in_a_channel() {
    isorun_only!("channels are isorun's");
    let writer = joins(
        Bundle::sh(&format!(
            "echo tensor > {INSIDE}/t-w/a; echo $ISORUN_CHANNELS $ISORUN_CHANNEL_T_W; \
             while ! [ -e {INSIDE}/t-kv/done ]; do sleep 0.02; done; cat {INSIDE}/t-kv/done; exec sleep 100"
        )),
        "t-w:rw,t-kv:rw",
    );
    let mut reader = joins(mapped(), "t-w:ro,t-kv");
    reader.args(&[
        "sh",
        "-c",
        &format!(
            "cat {INSIDE}/t-w/a; touch {INSIDE}/t-w/b 2>&1; stat -c '%u %a %n' {INSIDE}/t-w {INSIDE}/t-w/a; \
             grep ' {INSIDE}/t-w ' /proc/self/mountinfo; echo seen > {INSIDE}/t-kv/done"
        ),
    ]);
    let script = format!(
        "runtime run --detach --bundle $B $ID > $D/writer; wait_for '[ -e $C/t-w/a ]'\n\
         runtime exec $ID env | grep ISORUN_CHANNEL\n\
         runtime run {reader}\n\
         wait_for 'grep -q seen $D/writer'; cat $D/writer; stat -c 'outside %u %a %n' $C/t-w $C/t-kv/done\n\
         runtime channel list; runtime delete --force $ID; ls -A $C; grep isorun-channel /proc/self/mountinfo",
        reader = of(&reader)
    );
    let out = apart(&writer, OPEN, &script);
    for line in [
        "ISORUN_CHANNELS=t-w,t-kv",
        "ISORUN_CHANNEL_T_KV=/run/isorun/channels/t-kv",
        "tensor",
        "0 1777 /run/isorun/channels/t-w",
        "0 644 /run/isorun/channels/t-w/a",
        "t-w,t-kv /run/isorun/channels/t-w",
        "seen",
        // What the other container's root has made is root's here, too: the ids are those in the container.
        "outside 0 644 /run/isorun/channels/t-kv/done",
        "t-w   16 MiB  4 KiB  1      1        while used",
    ] {
        assert!(
            out.stdout.lines().any(|one| one == line),
            "{line}: {out:#?}"
        );
    }
    assert!(out.stdout.contains("Read-only file system"), "{out:#?}");
    let mount = out
        .stdout
        .lines()
        .find(|line| line.contains(" - tmpfs isorun-channel"))
        .unwrap();
    for word in [
        "ro,nosuid,nodev,noexec",
        "idmapped",
        "size=16384k",
        "nr_inodes=65536",
    ] {
        assert!(mount.contains(word), "{word}: {mount}");
    }
    // The last line of the script found nothing left; its grep says so.
    assert!(out.stdout.trim_end().ends_with(".lock"), "{out:#?}");
    assert_eq!(out.code, 1, "{out:#?}");
    writer.assert_gone();
    reader.assert_gone();
}

/// Several containers that start at once, none of which finds the channel: they get the same one.
#[test]
fn containers_that_start_at_once_get_the_same_channel() {
    isorun_only!("channels are isorun's");
    let all: Vec<Bundle> = (0..5)
        .map(|number| {
            let script = format!(
                "touch {INSIDE}/t-race/{number}; n=0; while [ $(ls {INSIDE}/t-race | wc -w) -lt 5 ]; do \
                 n=$((n + 1)); [ $n -lt 1000 ] || exit 9; sleep 0.02; done"
            );
            joins(Bundle::sh(&script), "t-race")
        })
        .collect();
    let starts: Vec<String> = all
        .iter()
        .map(|bundle| format!("runtime run {} & all=\"$all $!\"\n", of(bundle)))
        .collect();
    let script = format!(
        "all=\n{}for one in $all; do wait $one; done; ls -A $C; runtime channel list -q",
        starts.concat()
    );
    let out = apart(&all[0], OPEN, &script).ok();
    assert_eq!(out.text(), ".lock", "the last one took the channel with it");
}

/// What a SIGKILL leaves is no member, is found by gc, and does not keep the next container out.
#[test]
fn a_runtime_killed_while_it_joins_leaves_nothing_that_gc_does_not_find() {
    isorun_only!("channels are isorun's");
    let Some(deny) = crate::denied::deny() else {
        skip!("the program that kills needs gcc");
    };
    // mount(2) comes when the metadata and the directory are there, clone3 when all is, flock before any;
    // renameat when the metadata is half written.
    for (call, number) in [
        ("mount", 165),
        ("clone3", 435),
        ("flock", 73),
        ("rename", 264),
    ] {
        let bundle = joins(Bundle::new(), "t-kill");
        let script = format!(
            "{deny} kill {number} \"$program\" --root \"$root\" run --bundle $B $ID && exit 9\n\
             runtime channel list -q | sed 's/^/there: /'\n\
             runtime channel gc > $D/gc; echo left: $(ls -A $C 2>/dev/null | grep -v lock)\n\
             grep -c isorun-channel /proc/self/mountinfo || true\n\
             runtime delete --force $ID; runtime run --bundle $B $ID; echo again: $(ls -A $C)",
            deny = deny.display()
        );
        let out = apart(&bundle, OPEN, &script).ok();
        assert_eq!(
            out.stdout.lines().last(),
            Some("again: .lock"),
            "{call}: {out:#?}"
        );
        assert!(out.stdout.contains("left:\n0\n"), "{call}: {out:#?}");
        bundle.assert_gone();
    }
}

/// Nobody is told that a container was killed, and its channel goes with the next gc; `delete` takes it, too.
#[test]
fn a_killed_container_is_no_member() {
    isorun_only!("channels are isorun's");
    let bundle = joins(Bundle::sh("exec sleep 100"), "t-dead");
    let script = "runtime run --detach --bundle $B $ID\n\
         runtime channel gc; runtime channel remove t-dead && exit 9\n\
         runtime kill $ID KILL; wait_for 'runtime state $ID | grep -q stopped'\n\
         runtime channel inspect t-dead | grep -c member\n\
         runtime channel gc --dry-run; runtime channel gc; ls -A $C\n\
         runtime delete $ID";
    let out = apart(
        &bundle,
        OPEN,
        &script.replace("| grep -c member", "| grep -c member || true"),
    )
    .ok();
    assert_eq!(
        out.text(),
        "nothing to remove\n0\nwould remove t-dead\nremoved t-dead\n.lock"
    );
    let says = format!("the channel t-dead has members: {}", bundle.id);
    assert!(out.stderr.contains(&says), "{out:#?}");
}

/// Channels are one for the host, whatever --root says, and no container.
#[test]
fn channels_are_no_containers() {
    isorun_only!("channels are isorun's");
    let bundle = Bundle::new();
    // Whoever comes first: a container of that name would hide the channels, or they would hide it.
    let script = "$program run --bundle $B channels && exit 9\n\
         $program channel create t-a; $program list -q; $program delete --force channels\n\
         $program state channels && exit 9\n\
         $program run --bundle $B channels && exit 9\n\
         $program channel list -q; runtime channel list -q";
    let out = apart(&bundle, "", script).ok();
    assert_eq!(out.text(), "/run/isorun/channels/t-a\nt-a\nt-a");
    assert!(
        out.stderr
            .matches("no container can be called \"channels\" here")
            .count()
            == 2,
        "{out:#?}"
    );
}

/// An isorun that did not keep the id may have left such a container: it is one until it is deleted.
#[test]
fn a_container_that_is_called_channels_is_seen() {
    isorun_only!("channels are isorun's");
    let bundle = Bundle::sh("exec sleep 100");
    let script = "$program --root /run/elsewhere run --detach --bundle $B channels\n\
         mkdir -p /run/isorun; mv /run/elsewhere/channels /run/isorun/channels\n\
         $program channel create t-a && exit 9; $program channel gc && exit 9\n\
         $program list -q; $program delete --force channels; $program channel create t-a; $program list -q";
    let out = apart(&bundle, "", script).ok();
    assert_eq!(out.text(), "channels\n/run/isorun/channels/t-a");
    let says = "/run/isorun/channels is the state of a container that is called \"channels\"";
    assert_eq!(out.stderr.matches(says).count(), 2, "{out:#?}");
}

/// Where no tmpfs can be had a directory does, if the level says so: for those who come later, too, and each is told.
#[test]
fn a_channel_without_a_tmpfs_is_told_to_every_member() {
    isorun_only!("channels are isorun's");
    let Some(deny) = crate::denied::deny() else {
        skip!("the program that denies needs gcc");
    };
    let first = joins(Bundle::sh("exec sleep 100"), "t-plain");
    let second = joins(Bundle::sh("echo joined"), "t-plain");
    // 165 is mount(2), and 14 the flags (nosuid, nodev, noexec) that only the channel's has.
    let script = format!(
        "first() {{ {deny} 1 165@3=14 \"$program\" --root \"$root\" --degrade $1 run --detach --bundle $B $ID; }}\n\
         first safe && exit 9; ls -A $C; first any\n\
         runtime --degrade any run {second}; runtime --degrade safe run {second} && exit 9\n\
         runtime channel inspect t-plain | grep directory; runtime delete --force $ID; ls -A $C",
        deny = deny.display(),
        second = of(&second)
    );
    let out = apart(&first, OPEN, &script).ok();
    assert_eq!(out.stdout.lines().next(), Some(".lock"), "{out:#?}");
    assert!(out.stdout.contains("joined\n"), "{out:#?}");
    assert!(out.stdout.ends_with(".lock\n"), "{out:#?}");
    assert_eq!(
        out.stderr
            .matches("degraded: a tmpfs of its own for the channel t-plain")
            .count(),
        2,
        "{out:#?}"
    );
    let says = "the channel t-plain is a directory without a tmpfs: none could be mounted when it was made";
    assert_eq!(out.stderr.matches(says).count(), 2, "{out:#?}");
    first.assert_gone();
    second.assert_gone();
}

/// As on a kernel before 6.3, which maps no ids of a tmpfs: the host's ids are in the channel, and that is told, or
/// refused where nothing may be lost.
#[test]
fn a_kernel_that_maps_no_ids_of_a_tmpfs() {
    isorun_only!("channels are isorun's");
    let Some(deny) = crate::denied::deny() else {
        skip!("the program that denies needs gcc");
    };
    let mut bundle = joins(mapped(), "t-ids");
    bundle.args(&[
        "sh",
        "-c",
        &format!("touch {INSIDE}/t-ids/x; stat -c %u {INSIDE}/t-ids/x"),
    ]);
    // 442 is mount_setattr.
    let script = format!(
        "runtime channel create t-ids\n\
         start() {{ {deny} 38 442 \"$program\" --root \"$root\" --degrade $1 run --bundle $B $ID; }}\n\
         start never && exit 9; start safe; stat -c %u $C/t-ids/x",
        deny = deny.display(),
    );
    let out = apart(&bundle, OPEN, &script).ok();
    let base = crate::userns::BASE.to_string();
    assert_eq!(
        out.text(),
        format!("/run/isorun/channels/t-ids\n0\n{base}"),
        "{out:#?}"
    );
    for says in [
        "isorun: annotations[\"io.isorun.channels\"]: set MOUNT_ATTR_IDMAP on /run/isorun/channels/t-ids: ENOSYS",
        "degraded: the container's ids in /run/isorun/channels/t-ids: ",
        "it is mounted with the host's ids",
    ] {
        assert!(out.stderr.contains(says), "{says}: {out:#?}");
    }
    bundle.assert_gone();
}

/// /dev/shm is the channel, in the place of whatever config.json has there; or a private one of this size.
#[test]
fn dev_shm_from_a_channel_or_of_a_size() {
    isorun_only!("channels are isorun's");
    let look = "df -k /dev/shm | tail -n 1; grep -c ' /dev/shm ' /proc/self/mountinfo; \
                [ -w /dev/shm ] && echo x > /dev/shm/mine; ls /run/isorun/channels/t-shm";
    let mut bundle = Bundle::sh(look);
    let annotations =
        json!({"io.isorun.shm": "channel:t-shm", "io.isorun.channel.t-shm.size": "3m"});
    bundle.set("/annotations", annotations);
    // As Podman has it: a bind mount of a directory of its own.
    let shm = bundle.host("shm");
    std::fs::create_dir_all(&shm).unwrap();
    for kind in ["tmpfs", "bind", "none"] {
        let mounts = bundle.config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/dev/shm");
        match kind {
            "tmpfs" => drop(bundle.mount("/dev/shm", "tmpfs", "shm", &["size=1m"])),
            "bind" => drop(bundle.mount("/dev/shm", "bind", shm.to_str().unwrap(), &["rbind"])),
            _ => {}
        }
        let out = apart(&bundle, OPEN, "runtime run --bundle $B $ID").ok();
        let words: Vec<&str> = out.stdout.split_whitespace().collect();
        assert_eq!(words[..2], ["isorun-channel", "3072"], "{kind}: {out:#?}");
        assert_eq!(words[6..], ["1", "mine"], "{kind}: {out:#?}");
        assert!(!shm.join("mine").exists());
    }
    let mut bundle = Bundle::sh("df -k /dev/shm | tail -n 1; stat -c %a /dev/shm");
    bundle.set("/annotations", json!({"io.isorun.shm.size": "5m"}));
    let out = bundle.run().ok();
    let words: Vec<&str> = out.stdout.split_whitespace().collect();
    assert_eq!((words[1], words[6]), ("5120", "1777"), "{out:#?}");
}

/// A full channel is the kernel's ENOSPC for who writes, by bytes and by files.
#[test]
fn limits_hold() {
    isorun_only!("channels are isorun's");
    let bundle = joins(
        Bundle::sh(&format!(
            "cd {INSIDE}/t-full; dd if=/dev/zero of=big bs=64k count=99 2>&1 | grep -o 'No space.*'; rm big; \
             n=0; while touch f$n 2>/dev/null; do n=$((n + 1)); done; echo $n"
        )),
        "t-full",
    );
    let script = "runtime channel create t-full --size 1m --inodes 20; runtime run --bundle $B $ID";
    let out = apart(&bundle, "", script).ok();
    assert!(out.stdout.contains("No space left on device"), "{out:#?}");
    // The directory itself is one of the twenty.
    assert_eq!(out.stdout.lines().last(), Some("19"), "{out:#?}");
}

/// `isorun channel` in the forms for programs and people.
#[test]
fn the_command() {
    isorun_only!("channels are isorun's");
    let bundle = joins(Bundle::sh("exec sleep 100"), "t-cmd:ro");
    let header = r#"{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + 16, 1);
    std::fs::write(bundle.host("model.safetensors"), file).unwrap();
    let script = "runtime channel create t-cmd --size 2m --inodes 100 --mode 770 --owner 1000:1001\n\
         stat -c '%a %u %g' $C/t-cmd /run/isorun; cp $D/model.safetensors $C/t-cmd\n\
         runtime run --detach --bundle $B $ID\n\
         runtime channel inspect t-cmd --json > $D/inspect; runtime channel list --format json > $D/list\n\
         runtime channel inspect t-cmd\n\
         for wrong in 'create t-cmd' 'create T' 'create x --size 0' 'create x --mode 9' 'create x --owner me' \
         'remove none' 'inspect none' 'list --format xml' frob ''; do\n\
         runtime channel $wrong && exit 9; done\n\
         runtime channel remove --force t-cmd; ls -A $C; runtime delete --force $ID";
    let out = apart(&bundle, "", script).ok();
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(bundle.host(name)).unwrap()).unwrap()
    };
    let view = read("inspect");
    assert_eq!(view["size"], 2 << 20, "{view:#}");
    for (name, value) in [
        ("/inodes", json!(100)),
        ("/pinned", json!(true)),
        ("/files", json!(1)),
        ("/used", json!(4096)),
        ("/members/0/id", json!(bundle.id)),
        ("/members/0/access", json!("ro")),
        ("/tensors/0/name", json!("w")),
        ("/tensors/0/shape", json!([2, 2])),
        ("/tensors/0/bytes", json!(16)),
    ] {
        assert_eq!(view.pointer(name), Some(&value), "{name}: {view:#}");
    }
    assert!(view["members"][0]["pid"].as_i64().unwrap() > 1);
    let list = read("list");
    assert_eq!(
        (&list[0]["name"], list.as_array().unwrap().len()),
        (&json!("t-cmd"), 1)
    );
    assert!(out.stdout.contains("770 1000 1001\n700 0 0\n"), "{out:#?}");
    for line in [
        "used       4 KiB of 2 MiB",
        "files      1 of 100",
        "tensor     model.safetensors: w F32 [2, 2] 16 B",
    ] {
        assert!(
            out.stdout.lines().any(|one| one == line),
            "{line}: {out:#?}"
        );
    }
    for says in [
        "the channel t-cmd is there already",
        "\"T\" is no name of a channel: it may have only a-z, 0-9 and . _ -",
        "--size: \"0\" is no size: it must not be 0",
        "--mode: \"9\": it is octal",
        "--owner: \"me\": it is UID or UID:GID",
        "there is no channel none",
        "invalid format option; it is table or json",
    ] {
        assert!(out.stderr.contains(says), "{says}: {out:#?}");
    }
    assert!(out.stdout.ends_with(".lock\n"), "{out:#?}");
}

/// What Podman and Docker write, with their /run, /dev/shm and read-only roots: the channel is there.
#[test]
fn configurations_of_engines() {
    isorun_only!("channels are isorun's");
    for name in [
        "podman.json",
        "podman-limits.json",
        "docker.json",
        "docker-limits.json",
        "ctr.json",
    ] {
        for readonly in [false, true] {
            let mut bundle = crate::captured::adapted(name);
            let script = "echo $ISORUN_CHANNELS > $ISORUN_CHANNEL_T_W/x && cat $ISORUN_CHANNEL_T_W/x /dev/shm/x";
            bundle
                .args(&["sh", "-c", script])
                .set("/root/readonly", json!(readonly));
            if !bundle.config["annotations"].is_object() {
                bundle.set("/annotations", json!({}));
            }
            bundle.config["annotations"]["io.isorun.channels"] = json!("t-w:rw");
            bundle.config["annotations"]["io.isorun.shm"] = json!("channel:t-w");
            let out = apart(&bundle, OPEN, "runtime run --bundle $B $ID").ok();
            assert_eq!(out.text(), "t-w\nt-w", "{name}, read-only {readonly}");
            bundle.assert_gone();
        }
    }
}

/// bundles/channels: what the README tells a person to run.
#[test]
fn the_example_of_the_host_and_a_container() {
    isorun_only!("channels are isorun's");
    if !std::path::Path::new("/usr/bin/python3").exists() {
        skip!("the example writes config.json with python3");
    }
    let bundle = Bundle::new();
    let example = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/bundles/channels/host-to-container"
    );
    let busybox = crate::harness::busybox();
    let script = format!(
        "ISORUN=$program BUSYBOX={} TMPDIR=$D {example}; ls -A $C; ls -A $D",
        busybox.display()
    );
    let out = apart(&bundle, "", &script).ok();
    for says in [
        "model.safetensors: w F32 [64, 64] 16 KiB",
        "weights is read-only here",
        "seen: owner 0",
        "the same bytes\n.lock\netc\n",
    ] {
        assert!(out.stdout.contains(says), "{says}: {out:#?}");
    }
}
