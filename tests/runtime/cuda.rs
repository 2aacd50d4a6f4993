//! GPU memory in channels, the runtime's part: isorun's own init, and process ids that no other member has.
//! There is no GPU here, and nothing of CUDA runs: what a container without one is told is tested, too.

use serde_json::{Value, json};

use crate::channels::{apart, of};
use crate::harness::{Bundle, Output};
use crate::userns::mapped;

/// A rule with GPU memory, and one without.
const RULES: &str = "[[rule]]\nname = \"gpu\"\nchannels = [\"t-g*\"]\naccess = \"rw\"\ncuda-ipc = true\n\
                     [[rule]]\nname = \"plain\"\nchannels = [\"t-*\"]\naccess = \"rw\"\n";

/// What a loss of it is told as.
const LOST: &str = "degraded: GPU memory in the channels";

pub fn asks(mut bundle: Bundle, channels: &str) -> Bundle {
    bundle.set(
        "/annotations",
        json!({"io.isorun.channels": channels, "io.isorun.cuda-ipc": "1"}),
    );
    bundle
}

pub fn sh(script: &str) -> Bundle {
    asks(Bundle::sh(script), "t-g")
}

pub fn run(bundle: &Bundle, script: &str) -> Output {
    let out = apart(bundle, RULES, script);
    bundle.assert_gone();
    out
}

/// The ranges of the members of t-g, as `channel inspect --json` told them, one line for each call.
fn told(out: &Output, line: &str) -> Vec<(u32, u32)> {
    let text = out.field(line);
    let view: Value = serde_json::from_str(&text).unwrap();
    let members = view["members"].as_array().unwrap();
    let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let range = |member: &Value| {
        let pids = &member["pids"];
        (number(&pids["first"]), number(&pids["last"]))
    };
    members.iter().map(range).collect()
}

/// `channel inspect --json` on one line after this word.
fn inspect(word: &str) -> String {
    format!("echo {word} $(runtime channel inspect --json t-g)\n")
}

/// Two containers have other process ids, those of their children and of what is executed in them, too; a
/// range is free again when its container was killed, and only then.
#[test]
fn process_ids_are_of_the_containers_own() {
    isorun_only!("channels are isorun's");
    let program = "sh -c 'echo child $$'; (sh -c 'echo grandchild $$' &); echo program $$ > /dev/shm/$ME; \
                   exec sleep 100";
    let mut one = sh(program);
    one.push("/process/env", json!("ME=one"));
    let mut two = asks(mapped(), "t-g");
    two.args(&["sh", "-c", program])
        .push("/process/env", json!("ME=two"));
    let start = |bundle: &str, log: &str| {
        format!("runtime run --detach --pid-file $D/{log}.pid {bundle} >$D/{log} 2>&1\n")
    };
    let script = format!(
        "{}{}wait_for '[ -s $C/t-g/one ] && [ -s $C/t-g/two ]'\n\
         cat $C/t-g/one; sed 's/^/two /' $C/t-g/two; grep -v degraded $D/one; grep -v degraded $D/two | sed 's/^/two /'\n\
         echo exec $(runtime exec $ID sh -c 'echo $$'); echo two exec $(runtime exec {two_id} sh -c 'echo $$')\n\
         grep NSpid /proc/$(cat $D/one.pid)/status; cat /proc/$(cat $D/one.pid)/comm\n\
         {}kill -9 $(cat $D/one.pid); wait_for 'runtime state $ID | grep -q stopped'\n\
         {}runtime delete $ID; {}{}runtime delete --force $ID; runtime delete --force {two_id}; ls -A $C",
        start("--bundle $B $ID", "one"),
        start(&of(&two), "two"),
        inspect("both"),
        inspect("killed"),
        start("--bundle $B $ID", "one"),
        inspect("again"),
        two_id = two.id,
    );
    let out = run(&one, &script).ok();
    two.assert_gone();
    let ranges = told(&out, "both");
    assert_eq!(ranges.len(), 2, "{out:#?}");
    let pid = |line: &str| -> u32 { out.field(line).parse().unwrap() };
    let (first, last) = (pid("program"), pid("two program"));
    let of = |pid: u32| {
        let range = ranges
            .iter()
            .find(|range| (range.0..=range.1).contains(&pid));
        *range.unwrap_or_else(|| panic!("{pid} is in none of {ranges:?}: {out:#?}"))
    };
    assert_ne!(of(first), of(last));
    for line in ["child", "grandchild", "exec"] {
        assert_eq!(of(pid(line)), of(first), "{line}: {out:#?}");
        assert_eq!(
            of(pid(&format!("two {line}"))),
            of(last),
            "{line}: {out:#?}"
        );
    }
    assert!(out.field("NSpid").ends_with("\t1"), "{out:#?}");
    assert!(
        out.stdout.lines().any(|line| line == "isorun-init"),
        "{out:#?}"
    );
    assert_eq!(told(&out, "killed"), [of(last)]);
    // The lowest free one is given: it was that of the killed one.
    let again = told(&out, "again");
    assert!(
        again.contains(&of(first)) && again.contains(&of(last)),
        "{out:#?}"
    );
    assert!(out.text().ends_with(".lock"), "{out:#?}");
}

/// The status is the program's; a signal's is 128 and its number, as init is not killed by it itself.
#[test]
fn the_status_is_the_programs() {
    isorun_only!("channels are isorun's");
    for (script, code) in [
        ("exit 0", 0),
        ("exit 3", 3),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        // What PID 1 is sent from inside is for the program.
        ("trap 'exit 9' TERM; kill -TERM 1; sleep 20 & wait $!", 9),
    ] {
        run(&sh(script), "runtime run --bundle $B $ID").code(code);
    }
    let mut bundle = sh("true");
    bundle.args(&["no-such-program"]);
    let out = run(&bundle, "runtime run --bundle $B $ID");
    assert!(
        out.stderr.contains("no-such-program") && out.code != 0,
        "{out:#?}"
    );
    // Found, but nothing that the kernel executes: the forked process says so.
    let mut bundle = sh("true");
    std::fs::write(bundle.rootfs("/bin/broken"), "\u{7f}ELF").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bundle.rootfs("/bin/broken"), mode).unwrap();
    bundle.args(&["/bin/broken"]);
    let out = run(
        &bundle,
        "runtime run --bundle $B $ID || echo run $?\n\
         runtime create --bundle $B $ID; runtime start $ID || echo start $?; runtime delete --force $ID",
    );
    assert_eq!(
        out.stderr.matches("exec /bin/broken: ENOEXEC").count(),
        2,
        "{out:#?}"
    );
    assert!(
        out.stdout.contains("run ") && out.stdout.contains("start "),
        "{out:#?}"
    );
}

/// create, start, kill, and the program's signals; orphans are reaped; nothing of init is left open.
#[test]
fn signals_reach_the_program_and_orphans_are_reaped() {
    isorun_only!("channels are isorun's");
    let bundle = sh(
        "trap 'echo got USR1; echo > /dev/shm/usr1' USR1; trap 'echo got TERM; exit 7' TERM\n\
                     for i in 1 2 3 4 5; do (sleep 0.1 & ) ; done; echo > /dev/shm/ready\n\
                     while :; do sleep 0.05; done",
    );
    let script = "runtime create --bundle $B --pid-file $D/pid $ID > $D/out; runtime state $ID | grep status\n\
         runtime start $ID; wait_for '[ -e $C/t-g/ready ]'; runtime kill $ID USR1; wait_for '[ -e $C/t-g/usr1 ]'\n\
         sleep 0.5; P=$(cat $D/pid)\n\
         echo fds $(ls /proc/$P/fd | wc -l); echo exe $(readlink /proc/$P/exe)\n\
         echo zombies $(runtime exec $ID sh -c 'for f in /proc/[0-9]*/stat; do read -r a b c d e < $f && \
         [ $c$d = Z1 ] && echo $a; done 2>/dev/null | wc -l')\n\
         echo ps $(runtime ps --format json $ID | tr -d '[ ]' | tr , '\\n' | wc -l)\n\
         runtime pause $ID; runtime state $ID | grep '\"status\"'; runtime resume $ID\n\
         runtime kill $ID TERM; wait_for 'runtime state $ID | grep -q stopped'; cat $D/out; runtime delete $ID\n\
         ls -A $C";
    let out = run(&bundle, script).ok();
    assert_eq!(out.field("fds"), "0", "{out:#?}");
    assert_eq!(out.field("zombies"), "0", "{out:#?}");
    // Init, the program, and its sleep, where it is there just now.
    let count: u32 = out.field("ps").parse().unwrap();
    assert!((2..=3).contains(&count), "{out:#?}");
    for line in ["got USR1", "got TERM", ".lock"] {
        assert!(
            out.stdout.lines().any(|one| one == line),
            "{line}: {out:#?}"
        );
    }
    for status in ["created", "paused"] {
        assert!(
            out.stdout.contains(&format!("\"status\": \"{status}\"")),
            "{out:#?}"
        );
    }
}

/// The program leads a session of its own, as the first process of another container does; sockets to listen
/// on are told to be its own, and descriptors are passed on.
#[test]
fn the_program_has_what_a_first_process_has() {
    isorun_only!("channels are isorun's");
    let bundle = sh(
        "read -r pid comm state ppid group session rest < /proc/self/stat\n\
                     echo self $pid; echo shell $$; echo parent $PPID; echo session $session\n\
                     echo listen $LISTEN_FDS $LISTEN_PID; readlink /proc/$$/fd/3; grep Cap /proc/1/status /proc/$$/status\n\
                     grep -c nosuid /proc/self/mountinfo >/dev/null; grep NoNewPrivs /proc/1/status",
    );
    let out = run(
        &bundle,
        "echo x > $D/socket; exec sh -c 'LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"' sh $program --root $root run --bundle $B $ID 3<$D/socket",
    )
    .ok();
    let shell = out.field("shell");
    assert_eq!(out.field("parent"), "1", "{out:#?}");
    assert_eq!(out.field("session"), shell, "{out:#?}");
    assert_eq!(out.field("listen"), format!("1 {shell}"), "{out:#?}");
    assert!(out.stdout.contains("/host/socket"), "{out:#?}");
    // Init has CAP_KILL, and nothing else of the program's.
    let values = |set: &str| -> Vec<u64> {
        let lines = out.stdout.lines();
        lines
            .filter(|line| line.contains(&format!("status:{set}:")))
            .filter_map(|line| line.split_whitespace().last())
            .map(|text| u64::from_str_radix(text, 16).unwrap())
            .collect()
    };
    let asked = 1 << 5 | 1 << 10 | 1 << 29;
    assert_eq!(values("CapPrm"), [1 << 5, asked], "{out:#?}");
    assert_eq!(values("CapEff"), [1 << 5, asked], "{out:#?}");
    assert_eq!(values("CapInh"), [0, 0], "{out:#?}");
    assert_eq!(values("CapBnd"), [asked, asked], "{out:#?}");
    assert_eq!(out.field("NoNewPrivs:"), "1");
}

/// The controlling terminal is the program's: it is in the foreground, and gets its signals.
#[test]
fn the_terminal_is_the_programs() {
    isorun_only!("channels are isorun's");
    let mut bundle = sh(
        "read -r pid comm state ppid group session tty foreground rest < /proc/self/stat\n\
                         echo session-is-own $((session == $$)) foreground $((foreground == $$)) tty $((tty != 0))\n\
                         read -r pid comm state ppid group session tty rest < /proc/1/stat; echo init-tty $tty\n\
                         trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.05; done",
    );
    bundle.set("/process/terminal", json!(true));
    let (mut terminal, slave) = crate::harness::terminal();
    let rules = bundle.host("etc/isorun/channels.d");
    std::fs::create_dir_all(&rules).unwrap();
    std::fs::write(rules.join("10.toml"), RULES).unwrap();
    let busybox = crate::harness::busybox();
    let script = format!(
        "X={}; D={}; exec $X unshare --mount --propagation private $X sh -c \
         \"$X cp /etc/passwd $D/etc/; $X mount -o bind $D/etc /etc; $X mount -t tmpfs tmpfs /run; exec \\\"\\$@\\\"\" sh \"$@\"",
        busybox.display(),
        bundle.host("").display()
    );
    let running = bundle.spawn_in_shell(&slave, &script);
    drop(slave);
    terminal.wait("ready");
    terminal.write("\u{3}");
    terminal.wait("interrupted");
    assert_eq!(running.finish().code, 5);
    let text = terminal.text();
    assert!(
        text.contains("session-is-own 1 foreground 1 tty 1") && text.contains("init-tty 0"),
        "{text}"
    );
    bundle.assert_gone();
}

/// Without a GPU the container runs, and is told; where nothing may be lost, it is not made.
#[test]
fn without_a_gpu_it_is_told() {
    isorun_only!("channels are isorun's");
    if std::path::Path::new("/proc/driver/nvidia/version").exists() {
        skip!("this machine has a GPU");
    }
    let bundle = sh("exec sleep 100");
    let script = "runtime run --detach --bundle $B $ID >$D/log 2>&1; cat $D/log; runtime report $ID\n\
         runtime channel inspect t-g; runtime delete --force $ID\n\
         runtime --degrade never run --bundle $B $ID 2>&1 || echo refused $?; ls -A $C";
    let out = run(&bundle, script).ok();
    for says in [
        "degraded: GPU memory in the channels t-g: this host has no NVIDIA driver: there is no \
         /proc/driver/nvidia/version; tensors of the GPU go through host memory: they are copied",
        "row          cuda-ipc",
        "rw pid ",
        ", GPU memory, its processes ",
        "the level never does not allow the degradation \"cuda-ipc\"",
        "refused 1",
    ] {
        assert!(out.stdout.contains(says), "{says}: {out:#?}");
    }
    assert!(out.text().ends_with(".lock"), "{out:#?}");
}

/// The rule decides: what the annotation asks for in vain is an error, what only the environment does is told.
#[test]
fn the_rule_decides() {
    isorun_only!("channels are isorun's");
    let by_rule = asks(Bundle::sh("echo ran"), "t-plain");
    let out = run(&by_rule, "runtime run --bundle $B $ID; ls -A $C");
    assert!(
        out.stderr.contains(
            "annotations[\"io.isorun.cuda-ipc\"]: GPU memory in the channel \"t-plain\" is refused: rule \"plain\" \
             (/etc/isorun/channels.d/10-test.toml) does not allow it"
        ) && !out.stdout.contains("ran"),
        "{out:#?}"
    );
    let env = |channels: &str, more: &[(&str, &str)]| {
        let mut bundle = Bundle::sh("echo pid $$; exit 4");
        bundle
            .set("/annotations", json!({"io.isorun.channels": channels}))
            .push("/process/env", json!("PYISOLATE_ENABLE_CUDA_IPC=1"));
        for (name, value) in more {
            bundle.set(&format!("/annotations/{name}"), json!(value));
        }
        run(&bundle, "runtime run --bundle $B $ID").code(4)
    };
    let refused = env("t-plain", &[]);
    assert_eq!(refused.field("pid"), "1");
    let why = "no rule of these channels allows it, and PYISOLATE_ENABLE_CUDA_IPC=1 only asks";
    assert!(
        refused.stderr.contains(LOST) && refused.stderr.contains(why),
        "{refused:#?}"
    );
    assert!(env("t-g", &[]).field("pid").len() > 1, "it has a range");
    let several = env("t-g,t-g2", &[]);
    assert_eq!(several.field("pid"), "1");
    assert!(
        several
            .stderr
            .contains("which of the channels t-g, t-g2 is /dev/shm"),
        "{several:#?}"
    );
    let off = env("t-g", &[("io.isorun.cuda-ipc", "0")]);
    assert_eq!(off.field("pid"), "1");
    assert!(!off.stderr.contains(LOST), "{off:#?}");
}

/// The host's process ids are unique already; those of somebody else's namespace are not to be changed.
#[test]
fn other_pid_namespaces_are_left_alone() {
    isorun_only!("channels are isorun's");
    let mut bundle = sh("echo parent $PPID; grep -c . /proc/1/comm; cat /proc/1/comm");
    bundle.without_namespace("pid");
    let out = run(
        &bundle,
        "runtime run --bundle $B $ID; cat /proc/sys/kernel/pid_max",
    )
    .ok();
    assert_ne!(out.field("parent"), "1");
    assert!(!out.stdout.contains("isorun-init"), "{out:#?}");
    let holder = Bundle::sh("exec sleep 100");
    let mut guest = sh("echo guest $PPID");
    guest.write();
    let script = format!(
        "runtime run --detach --pid-file $D/pid {} >/dev/null 2>&1\n\
         sed -i \"s,JOIN,/proc/$(cat $D/pid)/ns/pid,\" $B/config.json\n\
         runtime run --bundle $B $ID; runtime delete --force {}",
        of(&holder),
        holder.id
    );
    guest.without_namespace("pid");
    guest.push("/linux/namespaces", json!({"type": "pid", "path": "JOIN"}));
    let out = run(&guest, &script).ok();
    holder.assert_gone();
    assert_eq!(out.field("guest"), "0", "{out:#?}");
    let why = "the pid namespace is one that others have made";
    assert!(out.stderr.contains(why), "{out:#?}");
}

/// /proc/sys is read-only, as inside of Docker: the container runs with ids that others may have, and says so.
#[test]
fn ids_that_cannot_be_given_are_told() {
    isorun_only!("channels are isorun's");
    let bundle = sh("echo pid $$; exit 6");
    let script = "mount -o bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys\n\
                  runtime run --bundle $B $ID";
    let out = run(&bundle, script).code(6);
    assert_eq!(out.field("pid"), "2");
    for says in [
        "process ids of its own",
        "/proc/sys/kernel/ns_last_pid: EROFS",
    ] {
        assert!(out.stderr.contains(says), "{says}: {out:#?}");
    }
    let script = script.replace("runtime run", "runtime --degrade never run");
    // There the missing GPU is the first thing that is refused.
    assert_ne!(run(&bundle, &script).code, 6);
}

/// A container that has come round is told by exec, report and inspect. Here it does so by itself: with the
/// right to, it turns its namespace's counter back.
#[test]
fn a_container_that_has_come_round_is_told() {
    isorun_only!("channels are isorun's");
    let mut bundle =
        sh("echo 500 > /proc/sys/kernel/ns_last_pid; sleep 100 & echo > /dev/shm/ready; wait");
    bundle.unset("/linux/readonlyPaths");
    for set in ["bounding", "effective", "permitted"] {
        bundle.push(
            &format!("/process/capabilities/{set}"),
            json!("CAP_SYS_ADMIN"),
        );
    }
    let script = "runtime run --detach --bundle $B $ID >/dev/null 2>&1; wait_for '[ -e $C/t-g/ready ]'\n\
         runtime exec $ID sh -c 'echo exec $$'; runtime channel inspect t-g; runtime report $ID\n\
         runtime delete --force $ID";
    let out = run(&bundle, script).ok();
    let exec: u32 = out.field("exec").parse().unwrap();
    assert!((501..600).contains(&exec), "{out:#?}");
    let why = format!("the process has the number {exec}, and not one of ");
    assert!(out.stderr.contains(&why), "{out:#?}");
    assert!(
        out.stdout
            .contains("has come round: its processes 501 may have"),
        "{out:#?}"
    );
    assert!(
        out.stdout.contains("the process has the number 501"),
        "{out:#?}"
    );
}

/// With room for one process only there is none for the program, and nothing is left.
#[test]
fn init_is_a_process_too() {
    isorun_only!("channels are isorun's");
    if !crate::harness::controller_usable("pids") {
        skip!("the pids controller is not usable here");
    }
    let mut bundle = sh("true");
    bundle.set("/linux/resources/pids", json!({"limit": 1}));
    let out = run(&bundle, "runtime run --bundle $B $ID; ls -A $C");
    assert!(
        out.stderr.contains("start the program: fork: EAGAIN")
            && out.stderr.contains("init is a process, too"),
        "{out:#?}"
    );
}
