//! A foreground run with a terminal: a person at a window, or nobody at all.

use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use serde_json::json;

use crate::harness::{Bundle, terminal, wait_for};
use crate::terminal::with_terminal;

fn mode(
    terminal: &std::fs::File,
) -> (
    LocalFlags,
    nix::sys::termios::InputFlags,
    nix::sys::termios::OutputFlags,
) {
    let Termios {
        local_flags,
        input_flags,
        output_flags,
        ..
    } = tcgetattr(terminal).unwrap();
    (local_flags, input_flags, output_flags)
}

#[test]
fn a_person_at_a_window() {
    let bundle = with_terminal(
        // A trap ends the reading of a line, or comes just before it.
        "trap 'w=1; echo window; busybox stty size' WINCH; sleep 0.3; busybox stty size; \
         echo on $(readlink /proc/self/fd/0); \
         while w= line=; read line || test $w; do \
         test -z \"$line\" || { echo got $line; busybox stty size; }; done; exit 3",
    );
    let (mut person, slave) = terminal();
    let before = mode(&slave);
    let mut running = bundle.spawn_on_terminal(&slave, "");
    person.wait("24 80\r\non /dev/pts/0\r\n");
    wait_for("raw mode", || !mode(&slave).0.contains(LocalFlags::ECHO));
    assert!(
        !mode(&slave)
            .0
            .intersects(LocalFlags::ICANON | LocalFlags::ISIG)
    );
    // Echoed once, by the container's terminal.
    person.write("hello\r");
    person.wait("on /dev/pts/0\r\nhello\r\ngot hello\r\n24 80\r\n");
    person.resize(10, 40);
    person.wait("window\r\n10 40\r\n");
    person.write("again\r");
    person.wait("got again\r\n10 40\r\n");
    assert!(running.alive());
    // The end of the input, typed.
    person.write("\x04");
    running.finish().code(3);
    assert_eq!(mode(&slave), before, "the mode is as it was");
    bundle.assert_gone();
}

#[test]
fn keys_go_to_the_container() {
    let bundle = with_terminal(
        "trap 'echo interrupted; exit 4' INT; echo ready; while :; do sleep 0.05; done",
    );
    let (mut person, slave) = terminal();
    let before = mode(&slave);
    let running = bundle.spawn_on_terminal(&slave, "");
    person.wait("ready");
    wait_for("raw mode", || !mode(&slave).0.contains(LocalFlags::ISIG));
    person.write("\x03");
    person.wait("interrupted");
    running.finish().code(4);
    assert_eq!(mode(&slave), before);
}

#[test]
fn signals_are_forwarded_with_a_terminal_too() {
    let bundle = with_terminal(
        "trap 'echo terminated; exit 5' TERM; echo ready; while :; do sleep 0.05; done",
    );
    let (mut person, slave) = terminal();
    let before = mode(&slave);
    let running = bundle.spawn_on_terminal(&slave, "");
    person.wait("ready");
    running.signal(Signal::SIGTERM);
    person.wait("terminated");
    running.finish().code(5);
    assert_eq!(mode(&slave), before);
}

#[test]
fn the_mode_is_restored_after_a_kill_and_a_failure() {
    let bundle = with_terminal("echo ready; exec sleep 100");
    let (mut person, slave) = terminal();
    let before = mode(&slave);
    let running = bundle.spawn_on_terminal(&slave, "");
    person.wait("ready");
    bundle.kill("KILL").ok();
    running.finish().code(137);
    assert_eq!(mode(&slave), before);
    let mut bundle = with_terminal("");
    bundle.args(&["/nonesuch"]);
    let running = bundle.spawn_on_terminal(&slave, "");
    let out = running.finish();
    assert_ne!(out.code, 0);
    person.wait("/nonesuch");
    assert_eq!(mode(&slave), before);
    bundle.assert_gone();
}

#[test]
fn all_output_arrives_as_it_was_written() {
    let bundle = with_terminal("seq 1 30000");
    let (_person, slave) = terminal();
    let path = bundle.host("output");
    let redirect = format!(">{}", path.display());
    bundle.spawn_on_terminal(&slave, &redirect).finish().ok();
    let expected: String = (1..=30000).map(|n| format!("{n}\n")).collect();
    let seen = std::fs::read_to_string(&path).unwrap();
    assert!(
        seen == expected,
        "{} bytes of {}",
        seen.len(),
        expected.len()
    );
}

#[test]
fn a_reader_that_goes_away_does_not_hold_the_program() {
    let bundle = with_terminal("seq 1 100000; exit 6");
    let (_person, slave) = terminal();
    let fifo = bundle.host("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let redirect = format!(">{}", fifo.display());
    let running = bundle.spawn_on_terminal(&slave, &redirect);
    let mut reader = std::fs::File::open(&fifo).unwrap();
    let mut buffer = [0; 64];
    std::io::Read::read_exact(&mut reader, &mut buffer).unwrap();
    drop(reader);
    running.finish().code(6);
}

#[test]
fn input_that_is_no_terminal() {
    isorun_only!("runc never tells the container that its input has ended");
    for (input, seen) in [
        // Echoed by the terminal, then said by cat.
        ("one\n", "one\r\none\r\nafter"),
        // A last line without an end.
        ("one\ntwo", "one\r\ntwoone\r\ntwoafter"),
        ("", "after"),
    ] {
        let bundle = with_terminal("busybox stty -echo; echo ready; cat; echo after");
        let (mut person, slave) = terminal();
        std::fs::write(bundle.host("input"), input).unwrap();
        let redirect = format!("<{}", bundle.host("input").display());
        bundle.spawn_on_terminal(&slave, &redirect).finish().ok();
        let text = person.text();
        // What is echoed before stty differs; what cat says does not.
        let said = seen
            .trim_end_matches("after")
            .rsplit("\r\n")
            .next()
            .unwrap();
        assert!(
            text.ends_with(&format!("{said}after\r\n")),
            "{input:?}: {text:?}"
        );
        assert_eq!(text.matches("after").count(), 1, "{input:?}: {text:?}");
    }
}

#[test]
fn much_input_that_is_no_terminal() {
    isorun_only!("runc never tells the container that its input has ended");
    let bundle = with_terminal("busybox stty -echo; wc -l");
    let (mut person, slave) = terminal();
    let input: String = (0..50_000).map(|n| format!("line {n}\n")).collect();
    std::fs::write(bundle.host("input"), input).unwrap();
    let redirect = format!("<{}", bundle.host("input").display());
    bundle.spawn_on_terminal(&slave, &redirect).finish().ok();
    assert!(
        person.text().ends_with("50000\r\n"),
        "{:?}",
        person.text().len()
    );
}

#[test]
fn nobody_at_all() {
    let bundle = with_terminal("true");
    bundle.write();
    let dir = bundle.bundle_dir();
    let tagged = bundle.command(&[]);
    let mut command = std::process::Command::new(crate::harness::busybox());
    command
        .arg("setsid")
        .arg(tagged.get_program())
        .arg("--root")
        .arg(bundle.state_root());
    command.args(["run", "--bundle", dir.to_str().unwrap(), &bundle.id]);
    let out = crate::harness::run_command(command, &bundle.dir.join("io")).code(1);
    assert!(out.stderr.contains("/dev/tty"), "{out:#?}");
    bundle.assert_gone();
}

#[test]
fn a_process_that_keeps_the_terminal_does_not_hold_the_run() {
    let mut bundle = with_terminal("trap '' HUP; sleep 30 & echo done; exit 7");
    bundle.without_namespace("pid");
    let (mut person, slave) = terminal();
    let start = std::time::Instant::now();
    bundle.spawn_on_terminal(&slave, "").finish().code(7);
    assert!(start.elapsed().as_secs() < 20);
    person.wait("done");
    bundle.assert_gone();
}

#[test]
fn a_program_that_closes_its_terminal_for_a_while() {
    let bundle =
        with_terminal("exec 0<&- 1>&- 2>&-; sleep 0.3; exec >/dev/pts/0; echo back; exit 8");
    let (mut person, slave) = terminal();
    bundle.spawn_on_terminal(&slave, "").finish().code(8);
    person.wait("back");
}

#[test]
fn a_size_is_kept_where_the_caller_has_none() {
    let mut bundle = with_terminal("busybox stty size");
    bundle.set("/process/consoleSize", json!({"height": 7, "width": 91}));
    let (mut person, slave) = terminal();
    bundle.spawn_on_terminal(&slave, "").finish().ok();
    isorun_only!("runc takes the size of the window, even none, once the program has started");
    // The caller's window counts, where it has a size.
    assert_eq!(person.text(), "24 80\r\n");
    person.resize(0, 0);
    let mut second = Bundle::sh("busybox stty size");
    second
        .set("/process/terminal", json!(true))
        .set("/process/consoleSize", json!({"height": 7, "width": 91}));
    second.spawn_on_terminal(&slave, "").finish().ok();
    assert!(person.text().ends_with("7 91\r\n"), "{}", person.text());
}

#[test]
fn from_the_background_to_the_foreground() {
    isorun_only!("runc reads the terminal in the background, too, and its shell stops it");
    let bundle = with_terminal("echo ready; read word; echo got $word; exit 9");
    let (mut person, slave) = terminal();
    let before = mode(&slave);
    let script = "set -m; \"$@\" & sleep 0.5; echo now; read key; fg %1";
    let running = bundle.spawn_in_shell(&slave, script);
    person.wait("ready");
    person.wait("now");
    // In the background it leaves the terminal alone: what is typed is the shell's.
    assert_eq!(mode(&slave), before);
    person.write("\n");
    wait_for("raw mode", || !mode(&slave).0.contains(LocalFlags::ECHO));
    person.write("hello\r");
    person.wait("got hello");
    running.finish().code(9);
    assert_eq!(mode(&slave), before);
}

#[test]
fn a_terminal_that_is_hung_up_does_not_keep_it_busy() {
    // vhangup(2), as login and getty call it.
    let mut bundle =
        with_terminal("trap '' HUP; echo ready; read go; /probe syscall 153; sleep 3; exit 10");
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    let caps = json!(["CAP_SYS_TTY_CONFIG"]);
    bundle.set(
        "/process/capabilities",
        json!({"bounding": caps, "effective": caps, "permitted": caps}),
    );
    let (mut person, slave) = terminal();
    let running = bundle.spawn_on_terminal(&slave, "");
    person.wait("ready");
    // Not before it is seen: a hang-up takes what was not yet read with it.
    person.write("\r");
    std::thread::sleep(std::time::Duration::from_secs(2));
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.pid())).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    // proc_pid_stat(5): utime and stime, in hundredths of a second.
    let used: u64 = fields[11..13]
        .iter()
        .map(|n| n.parse::<u64>().unwrap())
        .sum();
    assert!(used < 80, "{used}: {stat}");
    running.finish().code(10);
}

#[test]
fn the_template_runs_on_a_terminal() {
    let mut bundle = Bundle::new();
    let dir = bundle.bundle_dir();
    let dir = dir.to_str().unwrap();
    bundle.call(&["spec", "--bundle", dir]).ok();
    let text = std::fs::read_to_string(bundle.bundle_dir().join("config.json")).unwrap();
    bundle.config = serde_json::from_str(&text).unwrap();
    assert_eq!(bundle.config["process"]["terminal"], json!(true));
    let (mut person, slave) = terminal();
    let running = bundle.spawn_on_terminal(&slave, "");
    // A shell, as it is; a prompt tells that it reads.
    person.wait("# ");
    person.write("echo $((6*7)); exit 11\r");
    person.wait("42\r\n");
    running.finish().code(11);
    bundle.assert_gone();
}
