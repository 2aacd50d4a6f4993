//! A terminal that goes to a console socket: as conmon and containerd take it.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;

use serde_json::json;

use crate::harness::{Bundle, Output, Socket, Terminal, runtime};

/// A bundle with a terminal that runs this script.
pub fn with_terminal(script: &str) -> Bundle {
    let mut bundle = Bundle::sh(script);
    bundle.set("/process/terminal", json!(true));
    bundle
}

/// `create` or `run --detach` with a console socket.
fn call(bundle: &Bundle, command: &[&str], socket: &str) -> Output {
    bundle.write();
    let dir = bundle.bundle_dir();
    let mut args = command.to_vec();
    args.extend(["--console-socket", socket, "--bundle"]);
    args.extend([dir.to_str().unwrap(), &bundle.id]);
    bundle.call(&args)
}

/// Runs it detached, and gives its terminal.
fn detached(bundle: &Bundle) -> Terminal {
    let socket = Socket::listen(bundle, "console");
    call(bundle, &["run", "--detach"], socket.arg()).ok();
    Terminal::new(socket.receive().1)
}

#[test]
fn create_sends_the_terminal_and_start_uses_it() {
    let bundle = with_terminal("read word; echo got $word; exec sleep 100");
    let socket = Socket::listen(&bundle, "console");
    call(&bundle, &["create"], socket.arg()).ok();
    let (body, master) = socket.receive();
    assert!(body.contains("ptmx"), "the name of what is sent: {body:?}");
    let mut terminal = Terminal::new(master);
    let device = terminal.master.metadata().unwrap().rdev();
    assert_eq!(device, nix::sys::stat::makedev(5, 2), "a pty's master");
    assert_eq!(terminal.text(), "", "nothing before the start");
    bundle.start().ok();
    terminal.write("hello\n");
    // Echoed by the terminal first, with the new lines of one.
    terminal.wait("hello\r\ngot hello\r\n");
    bundle.delete_force().ok();
    bundle.assert_gone();
}

#[test]
fn everything_is_the_terminal() {
    let bundle = with_terminal(
        "for n in 0 1 2; do test -t $n && readlink /proc/self/fd/$n; done; ls /proc/$$/fd; \
         stat -c '%t:%T %u %a' /dev/console /dev/pts/0; echo direct > /dev/tty; \
         cut -d' ' -f5-8 /proc/1/stat; echo done",
    );
    let mut terminal = detached(&bundle);
    terminal.wait("done\r\n");
    let text = terminal.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["/dev/pts/0"; 3], "{text}");
    let fds: Vec<&str> = lines[3].split_whitespace().collect();
    // The shell has one more for its script or its terminal, none from outside.
    assert!(
        fds.starts_with(&["0", "1", "2"]) && fds.len() <= 4,
        "{text}"
    );
    assert_eq!(lines[4..6], ["88:0 0 620"; 2], "{text}");
    assert_eq!(lines[6], "direct", "{text}");
    // Process group and session of its own, the terminal 136:0, in the foreground.
    assert_eq!(lines[7], "1 1 34816 1", "{text}");
}

#[test]
fn keys_are_signals() {
    let bundle =
        with_terminal("trap 'echo interrupted' INT; echo ready; while :; do sleep 0.05; done");
    let mut terminal = detached(&bundle);
    terminal.wait("ready");
    terminal.write("\x03");
    terminal.wait("interrupted");
    assert_eq!(bundle.status(), "running");
}

#[test]
fn the_size_is_as_configured() {
    let mut bundle = with_terminal("busybox stty size; echo done");
    bundle.set("/process/consoleSize", json!({"height": 7, "width": 91}));
    let mut terminal = detached(&bundle);
    terminal.wait("done");
    assert_eq!(terminal.text(), "7 91\r\ndone\r\n");
}

#[test]
fn a_size_without_a_terminal_does_nothing() {
    let mut bundle = Bundle::sh("echo runs");
    bundle.set("/process/consoleSize", json!({"height": 7, "width": 91}));
    assert_eq!(bundle.run().ok().text(), "runs");
}

#[test]
fn the_user_owns_it() {
    let mut bundle = with_terminal(
        "stat -c %u /dev/pts/0 /dev/console; echo one > /dev/tty; echo two > /dev/console; \
         echo three > /dev/stderr",
    );
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1001}));
    let mut terminal = detached(&bundle);
    terminal.wait("three\r\n");
    assert_eq!(terminal.text(), "1000\r\n1000\r\none\r\ntwo\r\nthree\r\n");
}

#[test]
fn on_a_read_only_root() {
    let mut bundle = with_terminal("echo x > /dev/console; touch /x || echo refused");
    bundle.set("/root/readonly", json!(true));
    let mut terminal = detached(&bundle);
    terminal.wait("refused");
    assert!(terminal.text().starts_with("x\r\n"), "{}", terminal.text());
}

#[test]
fn in_a_user_namespace() {
    let mut bundle = with_terminal("stat -c %u:%g /dev/pts/0; echo x > /dev/tty; echo done");
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
    bundle.namespace("user");
    bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    let tree = bundle.rootfs("/");
    let mut chown = std::process::Command::new(crate::harness::busybox());
    chown.args(["chown", "-hR", "200000:200000"]).arg(&tree);
    assert!(chown.status().unwrap().success());
    let mut terminal = detached(&bundle);
    terminal.wait("done");
    assert_eq!(terminal.text(), "0:5\r\nx\r\ndone\r\n");
}

#[test]
fn an_engines_config_with_a_terminal() {
    isorun_only!("this runc may not raise the limits that Podman asks for");
    for name in ["podman-limits.json", "docker-limits.json"] {
        let mut bundle = crate::captured::adapted(name);
        bundle.set("/process/terminal", json!(true));
        bundle.args(&["sh", "-c", "test -t 0 && echo yes > /dev/tty"]);
        let mut terminal = detached(&bundle);
        terminal.wait("yes\r\n");
    }
}

/// Refused with a sentence that has these words, and nothing is left.
#[track_caller]
fn refused(bundle: &Bundle, out: Output, words: &str) {
    let out = out.code(1);
    assert!(out.stderr.contains(words), "{words:?} in {out:#?}");
    if runtime().isorun {
        assert_eq!(out.stderr.trim().lines().count(), 1, "{out:#?}");
    }
    bundle.assert_gone();
}

#[test]
fn flags_and_config_must_fit() {
    let name = if runtime().isorun { "isorun" } else { "runc" };
    let bundle = with_terminal("true");
    let socket = Socket::listen(&bundle, "console");
    let missing =
        format!("cannot allocate tty if {name} will detach without setting console socket");
    refused(&bundle, bundle.create(), &missing);
    refused(&bundle, bundle.run_detached(), &missing);
    let useless = format!("cannot use console socket if {name} will not detach or allocate tty");
    refused(&bundle, call(&bundle, &["run"], socket.arg()), &useless);
    let without = Bundle::sh("true");
    for command in [&["create"][..], &["run"], &["run", "-d"]] {
        refused(&without, call(&without, command, socket.arg()), &useless);
    }
}

#[test]
fn sockets_that_do_not_take_it() {
    let bundle = with_terminal("true");
    let deaf = bundle.host("deaf");
    drop(UnixListener::bind(&deaf).unwrap());
    let file = bundle.host("file");
    std::fs::write(&file, "").unwrap();
    let datagrams = bundle.host("datagrams");
    let _datagrams = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
    let long = bundle.host(&"x".repeat(108));
    for (path, errno) in [
        (bundle.host("missing"), "ENOENT"),
        (deaf, "ECONNREFUSED"),
        (file, "ECONNREFUSED"),
        (datagrams, "EPROTOTYPE"),
        (long, "ENAMETOOLONG"),
    ] {
        let path = path.to_str().unwrap();
        for command in [&["create"][..], &["run", "-d"]] {
            let out = call(&bundle, command, path);
            // runc says it in the words of Go.
            let words = if runtime().isorun { errno } else { "" };
            refused(&bundle, out, words);
        }
    }
}

#[test]
fn a_socket_that_hangs_up_without_reading() {
    isorun_only!("runc's child has a connection of its own and hears of it another way");
    let bundle = with_terminal("true");
    let path = bundle.host("console");
    // What is sent before it hangs up has arrived, as far as anybody can tell: on a busy machine that
    // happens, and it is to hang up sooner.
    for _ in 0..20 {
        let listener = UnixListener::bind(&path).unwrap();
        let closer = std::thread::spawn(move || drop(listener.accept()));
        let out = call(&bundle, &["create"], path.to_str().unwrap());
        closer.join().unwrap();
        std::fs::remove_file(&path).unwrap();
        match out.code {
            0 => bundle.call(&["delete", "--force", &bundle.id]).ok(),
            _ => return refused(&bundle, out, "send to --console-socket"),
        };
    }
    panic!("it never hung up in time");
}

#[test]
fn a_container_without_devpts_has_no_terminal() {
    isorun_only!("runc 1.1 opens whatever is at /dev/ptmx");
    let mut bundle = with_terminal("true");
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["type"] != "devpts");
    let socket = Socket::listen(&bundle, "console");
    let out = call(&bundle, &["create"], socket.arg());
    refused(&bundle, out, "a mount of type devpts on /dev/pts");
    // Something else in its place: the host's own null device, called ptmx.
    std::fs::create_dir(bundle.host("pts")).unwrap();
    let made = std::process::Command::new("cp")
        .arg("-a")
        .args(["/dev/null", bundle.host("pts/ptmx").to_str().unwrap()])
        .status();
    assert!(made.unwrap().success());
    let source = bundle.host("pts").to_str().unwrap().to_string();
    bundle.mount("/dev/pts", "bind", &source, &["bind"]);
    let socket = Socket::listen(&bundle, "second");
    let out = call(&bundle, &["create"], socket.arg());
    refused(&bundle, out, "ENODEV");
}

#[test]
fn what_is_mounted_over_ptmx_is_not_opened() {
    isorun_only!("runc 1.1 opens whatever is at /dev/ptmx");
    let mut bundle = with_terminal("true");
    bundle.mount("/dev/pts/ptmx", "bind", "/dev/null", &["bind"]);
    let socket = Socket::listen(&bundle, "console");
    let out = call(&bundle, &["create"], socket.arg());
    refused(&bundle, out, "open /dev/pts/ptmx of the container");
}

/// A bundle whose /dev is the image's own directory, with what an image may have put there.
fn with_dev_of_the_image() -> Bundle {
    let mut bundle = with_terminal("echo x > /dev/console; echo done");
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/dev");
    bundle
}

#[test]
fn a_planted_console_is_not_followed() {
    isorun_only!("runc before 1.3.3 follows it: CVE-2025-52565");
    let bundle = with_dev_of_the_image();
    for target in ["/etc/passwd", "/proc/sys/kernel/core_pattern", "nowhere"] {
        let link = bundle.rootfs("/dev/console");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(target, &link).unwrap();
        let socket = Socket::listen(&bundle, &target.replace('/', "-"));
        let out = call(&bundle, &["create"], socket.arg());
        refused(&bundle, out, "/dev/console: ELOOP");
    }
    let link = bundle.rootfs("/dev/console");
    std::fs::remove_file(&link).unwrap();
    std::fs::create_dir(&link).unwrap();
    let socket = Socket::listen(&bundle, "directory");
    let out = call(&bundle, &["create"], socket.arg());
    refused(&bundle, out, "/dev/console: EISDIR");
    assert!(!bundle.rootfs("/nowhere").exists() && !bundle.rootfs("/dev/nowhere").exists());
}

#[test]
fn a_console_of_the_image_is_covered() {
    let bundle = with_dev_of_the_image();
    std::fs::write(bundle.rootfs("/dev/console"), "").unwrap();
    let mut terminal = detached(&bundle);
    terminal.wait("x\r\ndone");
    let left = std::fs::read_to_string(bundle.rootfs("/dev/console")).unwrap();
    assert_eq!(left, "", "the image's file stays as it was");
}

#[test]
fn the_plan_has_the_step() {
    isorun_only!("runc has no plan");
    let mut bundle = with_terminal("true");
    bundle.set("/process/consoleSize", json!({"height": 7, "width": 91}));
    bundle.write();
    let dir = bundle.bundle_dir();
    let out = bundle.call(&["plan", dir.to_str().unwrap()]).ok();
    assert!(
        out.stdout
            .contains("terminal of 91x7, also on /dev/console"),
        "{out:#?}"
    );
    bundle.set("/process/terminal", json!(false)).write();
    let out = bundle.call(&["plan", dir.to_str().unwrap()]).ok();
    assert!(!out.stdout.contains("terminal of"), "{out:#?}");
    assert!(
        out.stdout.contains("process.consoleSize: ignored"),
        "{out:#?}"
    );
}

#[test]
fn with_the_calls_of_older_kernels() {
    isorun_only!("what a reference does without a call is its own business");
    let Some(deny) = crate::denied::deny() else {
        skip!("there is no C compiler");
    };
    // open_tree, move_mount, openat2; and all that Linux 4.19 lacks.
    for (errno, numbers) in [
        ("1", "428"),
        ("38", "428"),
        ("1", "429"),
        ("1", "437"),
        ("38", "437"),
        ("38", "424,428,429,430,431,432,434,435,436,437,439,442"),
    ] {
        let bundle = with_terminal("stat -c %t:%T /dev/console; echo x > /dev/console; echo done");
        bundle.write();
        let socket = Socket::listen(&bundle, "console");
        let dir = bundle.bundle_dir();
        let args = ["run", "--detach", "--console-socket", socket.arg(), "-b"];
        let mut isorun = bundle.command(&args);
        isorun.arg(dir).arg(&bundle.id);
        let mut command = std::process::Command::new(deny);
        command.args([errno, numbers]).arg(isorun.get_program());
        command.args(isorun.get_args());
        crate::harness::run_command(command, &bundle.dir.join("io")).ok();
        let mut terminal = Terminal::new(socket.receive().1);
        terminal.wait("done");
        assert_eq!(
            terminal.text(),
            "88:0\r\nx\r\ndone\r\n",
            "{errno} {numbers}"
        );
    }
}
