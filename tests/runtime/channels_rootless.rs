//! Tensor channels of a user without privileges: directories below $XDG_RUNTIME_DIR.

use std::os::unix::fs::{PermissionsExt, chown};

use serde_json::json;

use crate::harness::Bundle;
use crate::rootless::{FIRST_SUB, USER, has_helpers, reachable, rootless};

/// The bundle's user with a runtime directory.
pub fn with_runtime_dir(lines: &[[u32; 3]]) -> Bundle {
    let mut bundle = rootless(lines);
    let dir = bundle.host("runtime");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    chown(&dir, Some(USER), Some(USER)).unwrap();
    let variable = format!("XDG_RUNTIME_DIR={}", dir.display());
    bundle.prefix.extend(["env".to_string(), variable]);
    bundle.set("/annotations", json!({"io.isorun.channels": "t-r"}));
    bundle
}

fn left(bundle: &Bundle) -> Vec<String> {
    let dir = bundle.host("runtime/isorun/channels");
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name != ".lock").collect()
}

#[test]
fn a_channel_of_the_users_own() {
    isorun_only!("channels are isorun's");
    let mut bundle = with_runtime_dir(&[[0, USER, 1]]);
    if !reachable(&bundle) {
        skip!("the user cannot get at the runtime");
    }
    bundle.args(&[
        "sh",
        "-c",
        "cd $ISORUN_CHANNEL_T_R; cat host; echo $ISORUN_CHANNELS > inside; stat -c '%u %a' . host",
    ]);
    let refused = bundle.run().code(1);
    let says = format!("isorun channel create t-r makes it for the containers of uid {USER}");
    assert!(refused.stderr.contains(&says), "{refused:#?}");
    let made = bundle.call(&["channel", "create", "t-r"]).ok();
    let dir = bundle.host("runtime/isorun/channels/t-r");
    assert_eq!(made.text(), dir.to_str().unwrap());
    std::fs::write(dir.join("host"), "from the host\n").unwrap();
    chown(dir.join("host"), Some(USER), Some(USER)).unwrap();
    let out = bundle.run().ok();
    assert_eq!(out.text(), "from the host\n0 1777\n0 644");
    assert_eq!(out.stderr, "", "nothing is degraded");
    let inside = std::fs::read_to_string(dir.join("inside")).unwrap();
    assert_eq!(inside, "t-r\n");
    let shown = bundle.call(&["channel", "inspect", "t-r"]).ok();
    assert!(
        shown.stdout.contains("a directory without a tmpfs"),
        "{shown:#?}"
    );
    bundle.call(&["channel", "remove", "t-r"]).ok();
    assert_eq!(left(&bundle), Vec::<String>::new());
}

/// A size cannot be had: refused, but where a memory limit bounds it or the level says so; and told.
#[test]
fn a_size_is_a_degradation() {
    isorun_only!("channels are isorun's");
    let mut bundle = with_runtime_dir(&[[0, USER, 1]]);
    if !reachable(&bundle) {
        skip!("the user cannot get at the runtime");
    }
    let with_limit = bundle
        .call(&["channel", "create", "t-r", "--size", "1m"])
        .code(1);
    assert!(
        with_limit
            .stderr
            .contains("let the administrator make the channel"),
        "{with_limit:#?}"
    );
    bundle.call(&["channel", "create", "t-r"]).ok();
    bundle.set("/annotations/io.isorun.channel.t-r.size", json!("1m"));
    bundle.write();
    let dir = bundle.bundle_dir().to_str().unwrap().to_string();
    let run = |level: &str| bundle.call(&["--degrade", level, "run", "--bundle", &dir, &bundle.id]);
    let refused = run("safe").code(1);
    for says in [
        "annotations[\"io.isorun.channel.t-r.size\"]: a user without privileges cannot limit",
        "does not allow the degradation \"channel-quota\"",
    ] {
        assert!(refused.stderr.contains(says), "{says}: {refused:#?}");
    }
    let out = run("any").ok();
    assert!(
        out.stderr
            .contains("degraded: the size of the channel \"t-r\""),
        "{out:#?}"
    );
    bundle.assert_gone();
    bundle.call(&["channel", "remove", "t-r"]).ok();
}

/// Other ids of the user's own write in it, too; what they leave, the channel's removal takes.
#[test]
fn subordinate_ids_write_in_it() {
    isorun_only!("channels are isorun's");
    let mut bundle = with_runtime_dir(&[[0, USER, 1], [1, FIRST_SUB, 65536]]);
    if !reachable(&bundle) || !has_helpers() {
        skip!("newuidmap, or the runtime, cannot be had");
    }
    bundle.set("/process/user", json!({"uid": 5, "gid": 5}));
    bundle.args(&[
        "sh",
        "-c",
        "id -u; echo x > $ISORUN_CHANNEL_T_R/x && cat $ISORUN_CHANNEL_T_R/x",
    ]);
    bundle.call(&["channel", "create", "t-r"]).ok();
    let out = bundle.run().ok();
    assert_eq!(out.text(), "5\nx");
    bundle.call(&["channel", "remove", "t-r"]).ok();
    assert_eq!(left(&bundle), Vec::<String>::new());
}

/// The hook is installed for all runtimes of the host: isorun, which gives hooks no XDG_RUNTIME_DIR, tells it that
/// there is nothing to do.
#[test]
fn the_hook_does_not_stand_in_the_way() {
    isorun_only!("channels are isorun's");
    let mut bundle = with_runtime_dir(&[[0, USER, 1]]);
    if !reachable(&bundle) {
        skip!("the user cannot get at the runtime");
    }
    let hook = json!([{"path": env!("CARGO_BIN_EXE_isorun-hook-channel"), "timeout": 30}]);
    bundle
        .set("/hooks/createRuntime", hook.clone())
        .set("/hooks/poststop", hook);
    bundle.args(&[
        "sh",
        "-c",
        "echo x > $ISORUN_CHANNEL_T_R/x; grep -c t-r /proc/self/mountinfo",
    ]);
    bundle.call(&["channel", "create", "t-r"]).ok();
    let out = bundle.run().ok();
    assert_eq!((out.text(), out.stderr.as_str()), ("1", ""), "{out:#?}");
    bundle.call(&["channel", "remove", "t-r"]).ok();
    assert_eq!(left(&bundle), Vec::<String>::new());
}
