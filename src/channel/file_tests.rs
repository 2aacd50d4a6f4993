//! Tests with files: rules, members, what is collected, headers of tensors.

use std::path::Path;

use super::*;
use crate::state::{Channels, Phase, Record};

#[test]
fn files_of_rules() {
    use std::os::unix::fs::PermissionsExt;
    let dir = scratch("rules");
    assert_eq!(rules::read_from(&dir.join("none")).unwrap(), []);
    let rule = |name: &str| format!("[[rule]]\nname = \"{name}\"\nchannels = [\"a\"]\n");
    for (file, name) in [
        ("20.toml", "second"),
        ("10.toml", "first"),
        ("x.txt", "none"),
    ] {
        std::fs::write(dir.join(file), rule(name)).unwrap();
        std::fs::set_permissions(dir.join(file), PermissionsExt::from_mode(0o644)).unwrap();
    }
    let found = rules::read_from(&dir).unwrap();
    let names: Vec<&str> = found.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    std::fs::set_permissions(dir.join("10.toml"), PermissionsExt::from_mode(0o664)).unwrap();
    let error = rules::read_from(&dir).unwrap_err().to_string();
    assert!(
        error.contains("others than its owner may write") && error.contains("chmod"),
        "{error}"
    );
    std::fs::remove_dir_all(dir).unwrap();
}

fn scratch(name: &str) -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("isorun-channel-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn channel(place: &Place, name: &str) -> Channel {
    let key = Key::new(None, name).unwrap();
    Channel {
        source: place.path(&key),
        key,
        readonly: false,
        rule: Some("test".into()),
        create: true,
        asked: None,
        size: None,
        inodes: None,
        cuda: false,
        label: None,
    }
}

/// A container of this process, whose record names the channel.
fn container(dir: &Path, id: &str, channel: &str) -> Member {
    let state = dir.join("state").join(id);
    std::fs::create_dir_all(&state).unwrap();
    let me = std::process::id() as i32;
    let mut record = Record::new(id, dir, dir, "1.2.0").unwrap();
    record.pid = Some(me);
    record.pid_start = crate::state::start_time(me).unwrap();
    record.phase = Phase::Made;
    record.channels = Some(Channels {
        root: dir.join("channels"),
        rootless: true,
        keys: vec![channel.into()],
        pids: None,
        init: false,
    });
    std::fs::write(
        state.join("state.json"),
        serde_json::to_vec(&record).unwrap(),
    )
    .unwrap();
    Member::of_state(id, &state)
}

#[test]
fn a_channel_lives_as_long_as_its_members() {
    let dir = scratch("members");
    let place = Place::at(&dir.join("channels"), true);
    let kv = channel(&place, "kv");
    let (a, b) = (container(&dir, "a", "kv"), container(&dir, "b", "kv"));
    let join = |member| place.join(std::slice::from_ref(&kv), member, 0, (false, None));
    let ids = || -> Vec<String> {
        let members = place.members(&kv.key).unwrap();
        members.into_iter().map(|member| member.id).collect()
    };
    assert_eq!(join(&a).unwrap().lost.len(), 0);
    join(&b).unwrap();
    join(&b).unwrap();
    assert_eq!(ids(), ["a", "b"]);
    assert!(place.gc(false).unwrap().removed.is_empty());
    let keys = [kv.key.clone()];
    place.leave(&keys, &a).unwrap();
    std::fs::write(place.path(&kv.key).join("tensor"), "x").unwrap();
    // Killed: nobody says that it has gone.
    std::fs::remove_dir_all(dir.join("state/b")).unwrap();
    assert_eq!(ids(), Vec::<String>::new());
    let dry = place.gc(true).unwrap();
    assert_eq!(dry.removed, ["kv"]);
    assert!(place.path(&kv.key).exists(), "a dry run does nothing");
    assert_eq!(place.gc(false).unwrap(), dry);
    let left: Vec<_> = std::fs::read_dir(place.root()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "only the lock: {left:?}");
    // A container of the same id that does not name the channel is no member.
    join(&container(&dir, "c", "other")).unwrap();
    assert_eq!(ids(), Vec::<String>::new());
    place.leave(&keys, &a).unwrap();
    assert!(place.keys().unwrap().is_empty());
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_was_made_by_hand_stays() {
    let dir = scratch("pinned");
    let place = Place::at(&dir.join("channels"), true);
    let key = Key::new(None, "kv").unwrap();
    let new = New {
        key: key.clone(),
        size: None,
        inodes: None,
        mode: MODE,
        owner: None,
        label: None,
    };
    place.create(&new, 5).unwrap();
    assert!(
        place
            .create(&new, 5)
            .unwrap_err()
            .to_string()
            .contains("is there already")
    );
    let sized = New {
        size: Some(Size(1)),
        ..new.clone()
    };
    assert!(
        place.create(&sized, 5).is_err(),
        "no quota without privileges"
    );
    let member = container(&dir, "a", "kv");
    place
        .join(&[channel(&place, "kv")], &member, 5, (false, None))
        .unwrap();
    let error = place.remove(&key, false).unwrap_err().to_string();
    assert!(error.contains("has members: a"), "{error}");
    place.leave(std::slice::from_ref(&key), &member).unwrap();
    assert_eq!(place.gc(false).unwrap(), Collected::default());
    // What a SIGKILL left of a member is forgotten, and the channel stays.
    let members = dir.join("channels/.kv.members");
    std::fs::write(members.join("half"), "{").unwrap();
    assert_eq!(place.gc(false).unwrap().forgotten, ["kv "]);
    // Nobody knows whether a newer isorun's channel is to stay.
    let file = dir.join("channels/.kv.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"version\":1", "\"version\":99")).unwrap();
    assert!(place.metadata(&key).is_err(), "{text}");
    assert_eq!(place.gc(false).unwrap(), Collected::default());
    assert!(place.path(&key).exists());
    std::fs::write(&file, text).unwrap();
    place.remove(&key, false).unwrap();
    let gone = place.remove(&key, false).unwrap_err();
    assert_eq!(gone.kind(), crate::error::Kind::NotFound);
    std::fs::remove_dir_all(dir).unwrap();
}

/// SELinux is not on this machine: what the kernel would be given.
#[test]
fn the_label_of_a_channel() {
    let dir = scratch("label");
    let place = Place::at(&dir.join("channels"), false);
    let mut metadata = place.fresh(&Key::new(None, "kv").unwrap(), 0, "boot");
    assert!(!locked::options(&metadata).contains("context"));
    metadata.label = Some(shared_label("system_u:object_r:container_file_t:s0:c1,c2"));
    assert_eq!(
        locked::options(&metadata),
        "mode=1777,uid=0,gid=0,context=\"system_u:object_r:container_file_t:s0\""
    );
    std::fs::remove_dir_all(dir).unwrap();
}

/// Ids are unique in one place of a runtime only: the same id in another bundle is another member.
#[test]
fn members_of_the_hook_are_told_apart() {
    let dir = scratch("hook");
    let place = Place::at(&dir.join("channels"), true);
    let kv = channel(&place, "kv");
    let pid = std::process::id() as i32;
    let start = crate::state::start_time(pid).unwrap();
    let member = |bundle| Member::of_process("web", Path::new(bundle), pid, start);
    for bundle in ["/a", "/b"] {
        let join = place.join(std::slice::from_ref(&kv), &member(bundle), 0, (false, None));
        join.unwrap();
    }
    let gone = Member::of_process("web", Path::new("/b"), 0, 0);
    place.leave(std::slice::from_ref(&kv.key), &gone).unwrap();
    assert_eq!(place.members(&kv.key).unwrap().len(), 1);
    place
        .leave(std::slice::from_ref(&kv.key), &member("/a"))
        .unwrap();
    assert!(place.keys().unwrap().is_empty());
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn another_boot_has_no_members() {
    let dir = scratch("boot");
    let place = Place::at(&dir.join("channels"), true);
    let kv = channel(&place, "kv");
    let member = container(&dir, "a", "kv");
    place
        .join(std::slice::from_ref(&kv), &member, 0, (false, None))
        .unwrap();
    let file = std::fs::read_dir(dir.join("channels/.kv.members"))
        .unwrap()
        .flatten()
        .next()
        .unwrap()
        .path();
    let text = std::fs::read_to_string(&file).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    std::fs::write(&file, text.replace(boot.trim(), "another")).unwrap();
    assert_eq!(place.gc(false).unwrap().removed, ["kv"]);
    std::fs::remove_dir_all(dir).unwrap();
}

/// A safetensors file: the header's length, the header, the data.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn tensors_in_a_channel() {
    let dir = scratch("tensors");
    let good =
        r#"{"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    std::fs::write(dir.join("good.safetensors"), safetensors(good, 16)).unwrap();
    let wrong = [
        safetensors(good, 15),
        safetensors("{", 0),
        safetensors(
            r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
            8,
        ),
        safetensors(
            r#"{"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#,
            8,
        ),
        u64::MAX.to_le_bytes().to_vec(),
        (1u64 << 40).to_le_bytes().to_vec(),
        b"short".to_vec(),
        Vec::new(),
    ];
    for (number, bytes) in wrong.iter().enumerate() {
        std::fs::write(dir.join(format!("wrong{number}.safetensors")), bytes).unwrap();
    }
    nix::unistd::mkfifo(&dir.join("fifo.safetensors"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("link.safetensors")).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(dir.join("producer.sock")).unwrap();
    std::fs::write(dir.join("no.sock"), "").unwrap();
    let found = contents(&dir).unwrap();
    assert_eq!(found.endpoints, ["producer"]);
    assert_eq!(found.broken.len(), wrong.len(), "{found:?}");
    let [tensor] = &found.tensors[..] else {
        panic!("{found:?}")
    };
    assert_eq!((tensor.name.as_str(), tensor.bytes), ("w", 16));
    assert_eq!(
        (tensor.dtype.as_str(), &tensor.shape[..]),
        ("F32", &[2, 2][..])
    );
    std::fs::remove_dir_all(dir).unwrap();
}

/// Members with GPU memory have other process ids, as long as they live; those of other channels may have
/// the same.
#[test]
fn process_ids_of_members() {
    let dir = scratch("pids");
    let place = Place::at(&dir.join("channels"), true);
    let gpu = |name: &str| Channel {
        cuda: true,
        ..channel(&place, name)
    };
    let join = |channels: &[Channel], id: &str, limit| {
        let member = container(&dir, id, channels[0].key.name());
        place.join(channels, &member, 0, (false, limit)).unwrap()
    };
    let low = |limit, id: &str| join(&[gpu("kv")], id, Some(limit));
    let first = low(3072, "a").pids.unwrap();
    let second = low(3072, "b").pids.unwrap();
    assert_eq!((first.first, second.first), (1024, 2048));
    let third = low(3072, "c");
    assert_eq!(third.pids, None);
    let why = third.used_up.unwrap().to_string();
    let says = "all ranges of process ids below 3072 are used by the 2 members of the channel kv";
    assert!(why.contains(says), "{why}");
    // Another channel has all of them, a channel without GPU memory none, and who asks for none gets none.
    assert_eq!(join(&[gpu("w")], "d", Some(3072)).pids, Some(first));
    let plain = [gpu("x"), channel(&place, "y")];
    assert!(join(&plain, "e", Some(3072)).pids.is_some());
    let y = std::fs::read_dir(dir.join("channels/.y.members")).unwrap();
    let member = std::fs::read_to_string(y.last().unwrap().unwrap().path()).unwrap();
    assert!(!member.contains("\"pids\""), "{member}");
    assert_eq!(join(&[channel(&place, "z")], "f", None).pids, None);
    // A member that is no more, however it went.
    std::fs::remove_dir_all(dir.join("state/a")).unwrap();
    assert_eq!(low(3072, "g").pids, Some(first));
    std::fs::remove_dir_all(dir).unwrap();
}
