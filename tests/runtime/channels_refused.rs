//! Tensor channels that a container does not get: denied by default, refused by a rule's name, and nothing
//! left behind.

use serde_json::{Value, json};

use crate::channels::{OPEN, apart};
use crate::harness::Bundle;

/// A refused container leaves neither itself nor a channel; `says` is in the error.
fn refused(annotations: Value, rules: &str, before: &str, says: &str) {
    let mut bundle = Bundle::new();
    bundle.set("/annotations", annotations.clone());
    let script = format!(
        "{before}\nruntime run --bundle $B $ID && exit 9\n\
         runtime plan $B && exit 9\n\
         runtime list -q; ls -A $C 2>/dev/null | grep -v -e lock -e t-made || true"
    );
    let out = apart(&bundle, rules, &script).ok();
    assert!(out.stderr.contains(says), "{annotations}: {says}: {out:#?}");
    let shown = out.stdout.replace("/run/isorun/channels/t-made\n", "");
    assert_eq!(shown, "", "{annotations}: {out:#?}");
    bundle.assert_gone();
}

#[test]
fn denied_by_default() {
    isorun_only!("channels are isorun's");
    let asks = json!({"io.isorun.channels": "t-x"});
    refused(
        asks.clone(),
        "",
        "",
        "config.json: annotations[\"io.isorun.channels\"]: channel \"t-x\" is refused: it is not there, and no \
         rule in /etc/isorun/channels.d lets a container make it; isorun channel create t-x",
    );
    let others =
        "[[rule]]\nname = \"others\"\nchannels = [\"t-*\"]\nuids = [4242]\naccess = \"rw\"\n";
    refused(
        asks.clone(),
        others,
        "",
        "no rule in /etc/isorun/channels.d",
    );
    let closed = "[[rule]]\nname = \"closed\"\nchannels = [\"*\"]\naccess = \"none\"\n";
    refused(
        asks.clone(),
        closed,
        "",
        "is refused: rule \"closed\" (/etc/isorun/channels.d/10-test.toml) allows nobody in",
    );
    let readers = "[[rule]]\nname = \"readers\"\nchannels = [\"t-x\"]\n";
    refused(
        asks,
        readers,
        "",
        "rule \"readers\" (/etc/isorun/channels.d/10-test.toml) allows ro",
    );
}

/// In Kubernetes a channel belongs to the pod's namespace, and only a rule that names it lets a pod in.
#[test]
fn kubernetes_needs_a_rule_that_names_the_namespace() {
    isorun_only!("channels are isorun's");
    let pod = |namespace: &str| {
        json!({
            "io.isorun.channels": "t-made",
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-namespace": namespace
        })
    };
    let made = "runtime channel create t-made";
    refused(
        pod("prod"),
        OPEN,
        made,
        "only a rule that names \"prod/t-made\" lets a pod in",
    );
    let rule = "[[rule]]\nname = \"pods\"\nchannels = [\"prod/t-*\"]\naccess = \"rw\"\n";
    refused(
        pod("test"),
        rule,
        made,
        "only a rule that names \"test/t-made\" lets a pod in",
    );
    let mut bundle =
        Bundle::sh("echo $ISORUN_CHANNEL_T_MADE; touch $ISORUN_CHANNEL_T_MADE/x; exec sleep 100");
    bundle.set("/annotations", pod("prod"));
    let script = format!(
        "{made}; runtime run --detach --bundle $B $ID; wait_for '[ -e $C/prod@t-made/x ]'\n\
         runtime channel list -q; ls $C/t-made; runtime delete --force $ID; ls -A $C"
    );
    let out = apart(&bundle, rule, &script).ok();
    assert!(
        out.stdout.contains("\n/run/isorun/channels/t-made\n"),
        "{out:#?}"
    );
    assert!(
        out.stdout.contains("t-made\nprod/t-made\n"),
        "the pod's is another one: {out:#?}"
    );
    assert!(
        !out.stdout.contains("prod@t-made"),
        "it went with the pod: {out:#?}"
    );
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    isorun_only!("channels are isorun's");
    let long = "x".repeat(65);
    for (annotations, says) in [
        (
            json!({"io.isorun.channels": "a/b"}),
            "annotations[\"io.isorun.channels\"]: \"a/b\" is no name",
        ),
        (
            json!({"io.isorun.channels": "..:ro"}),
            "it starts with a dot",
        ),
        (
            json!({"io.isorun.channels": long}),
            "it is longer than 64 bytes",
        ),
        (
            json!({"io.isorun.channels": "t-a_b,t-a-b"}),
            "the same variable, ISORUN_CHANNEL_T_A_B",
        ),
        (
            json!({"io.isorun.channels": "t-a:w"}),
            "the access is ro or rw",
        ),
        (
            json!({"io.isorun.channels": "t-a", "io.isorun.channel.t-a.size": "17m"}),
            "annotations[\"io.isorun.channel.t-a.size\"]: rule \"open\" (/etc/isorun/channels.d/10-test.toml) \
             allows at most 16 MiB, not 17 MiB",
        ),
        (
            json!({"io.isorun.channels": "t-made", "io.isorun.channel.t-made.size": "3m"}),
            "annotations[\"io.isorun.channel.t-made.size\"]: 3 MiB is asked for, and the channel t-made is \
             there already: its size is 2 MiB",
        ),
        (
            json!({"io.isorun.shm": "host"}),
            "annotations[\"io.isorun.shm\"]: \"host\"",
        ),
        (
            json!({"io.isorun.shm.size": "much"}),
            "annotations[\"io.isorun.shm.size\"]: \"much\" is no size",
        ),
        (
            json!({"io.isorun.cuda-ipc": "1"}),
            "annotations[\"io.isorun.cuda-ipc\"]",
        ),
    ] {
        refused(
            annotations,
            OPEN,
            "runtime channel create t-made --size 2m",
            says,
        );
    }
}

/// Rules that are not understood, or that others may write, let nobody in; who asks for no channel is not
/// kept from working.
#[test]
fn rules_that_do_not_hold() {
    isorun_only!("channels are isorun's");
    let asks = json!({"io.isorun.channels": "t-x"});
    refused(
        asks.clone(),
        "[[rule]]\nname = \"x\"\nchanels = []\n",
        "",
        "/etc/isorun/channels.d/10-test.toml, line 3: unknown field `chanels`",
    );
    refused(
        asks,
        OPEN,
        "chmod 666 /etc/isorun/channels.d/*",
        "others than its owner may write this file",
    );
    let bundle = Bundle::sh("echo ran");
    let out = apart(&bundle, "[[rule]]\n", "runtime run --bundle $B $ID").ok();
    assert_eq!(out.text(), "ran");
}

/// The root cannot hold the mount point: an error that names the channel, and no channel is left.
#[test]
fn a_failure_after_the_join_leaves_the_channel() {
    isorun_only!("channels are isorun's");
    let mut bundle = Bundle::new();
    bundle.set("/annotations", json!({"io.isorun.channels": "t-x"}));
    std::fs::remove_dir(bundle.rootfs("/run")).unwrap();
    std::fs::write(bundle.rootfs("/run"), "no directory").unwrap();
    let script = "runtime run --bundle $B $ID && exit 9; ls -A $C; grep -c isorun-channel /proc/self/mountinfo || true";
    let out = apart(&bundle, OPEN, script).ok();
    let says = "annotations[\"io.isorun.channels\"]: make the mount point on /run/isorun/channels/t-x: ENOTDIR";
    assert!(out.stderr.contains(says), "{out:#?}");
    assert_eq!(out.text(), ".lock\n0");
    bundle.assert_gone();
}

/// What somebody else has mounted on a channel is not taken away, and keeps no container from being deleted.
#[test]
fn what_is_mounted_over_a_channel() {
    isorun_only!("channels are isorun's");
    let mut bundle = Bundle::sh("exec sleep 100");
    bundle.set("/annotations", json!({"io.isorun.channels": "t-x"}));
    let script = "runtime run --detach --bundle $B $ID; mount -t tmpfs other $C/t-x\n\
         runtime delete --force $ID; runtime list -q; grep -c ' other ' /proc/self/mountinfo\n\
         runtime run --detach --bundle $B $ID && exit 9\n\
         runtime channel gc; runtime channel remove t-x && exit 9\n\
         grep -c ' other ' /proc/self/mountinfo; runtime channel remove --force t-x; ls -A $C";
    let out = apart(&bundle, OPEN, script).ok();
    assert_eq!(out.stdout, "1\nnothing to remove\n1\n.lock\n", "{out:#?}");
    for says in [
        "isorun channel gc tries it again",
        "channel t-x: something else is mounted on /run/isorun/channels/t-x; unmount it",
        "channel t-x stays: ",
    ] {
        assert!(out.stderr.contains(says), "{says}: {out:#?}");
    }
    bundle.assert_gone();
}

/// Read-only by a rule holds: who could make the mount writable again does not get in.
#[test]
fn read_only_by_a_rule_is_not_for_who_may_remount() {
    isorun_only!("channels are isorun's");
    let rule = "[[rule]]\nname = \"look\"\nchannels = [\"t-*\"]\naccess = \"ro\"\n";
    let mut bundle = Bundle::sh("true");
    bundle.set("/annotations", json!({"io.isorun.channels": "t-x:ro"}));
    let caps = json!(["CAP_SYS_ADMIN"]);
    bundle.set("/process/capabilities", json!({"bounding": caps}));
    let out = apart(&bundle, rule, "runtime run --bundle $B $ID && exit 9; true").ok();
    let says = "rule \"look\" (/etc/isorun/channels.d/10-test.toml) allows ro, and the container has CAP_SYS_ADMIN";
    assert!(out.stderr.contains(says), "{out:#?}");
    bundle.set("/process/capabilities", json!({"bounding": ["CAP_CHOWN"]}));
    apart(&bundle, rule, "runtime run --bundle $B $ID").ok();
}
