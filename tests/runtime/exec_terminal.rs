//! exec with a terminal: for a person, and for an engine that has a console socket.

use std::fs;

use serde_json::json;

use crate::exec::{exec, exec_with, idle};
use crate::harness::{Socket, Terminal, terminal, wait_for};

#[test]
fn a_person_at_a_window() {
    let bundle = idle();
    let (mut person, slave) = terminal();
    // runc sets the size once the program runs.
    let script = "sleep 0.3; busybox stty size; readlink /proc/self/fd/0; echo direct > /dev/tty; \
        read line; echo got $line; exit 3";
    let args = ["exec", "--tty", &bundle.id, "sh", "-c", script];
    let running = bundle.spawn_on_terminal_with(&slave, "", &args);
    person.wait("24 80\r\n/dev/pts/0\r\ndirect\r\n");
    person.write("hello\r");
    person.wait("got hello\r\n");
    running.finish().code(3);
    // The console is the first process's, which has none.
    exec(&bundle, &["test", "-t", "0"]).code(1);
}

#[test]
fn keys_are_signals_of_the_program() {
    let bundle = idle();
    let (mut person, slave) = terminal();
    let script = "trap 'echo interrupted; exit 4' INT; echo ready; while :; do sleep 0.05; done";
    let args = ["exec", "-t", &bundle.id, "sh", "-c", script];
    let running = bundle.spawn_on_terminal_with(&slave, "", &args);
    person.wait("ready");
    person.write("\x03");
    person.wait("interrupted");
    running.finish().code(4);
}

#[test]
fn a_console_socket_gets_the_terminal() {
    for user_namespace in [false, true] {
        let bundle = match user_namespace {
            false => idle(),
            true => {
                let mut bundle = crate::userns::mapped();
                bundle.args(&["sleep", "1000"]);
                bundle.run_detached().ok();
                bundle
            }
        };
        let socket = Socket::listen(&bundle, "console");
        let process = json!({"terminal": true, "consoleSize": {"height": 11, "width": 22},
            "user": {"uid": 1000, "gid": 1000}, "cwd": "/", "env": ["PATH=/bin"],
            "args": ["sh", "-c",
                "busybox stty size; stat -c %u /dev/pts/0; read word; echo got $word; sleep 100"]});
        let path = bundle.host("process.json");
        fs::write(&path, process.to_string()).unwrap();
        let args = [
            "exec",
            "--detach",
            "--process",
            path.to_str().unwrap(),
            "--console-socket",
            socket.arg(),
            &bundle.id,
        ];
        bundle.call(&args).ok();
        let (body, master) = socket.receive();
        assert!(body.contains("ptmx"), "the name of what is sent: {body:?}");
        let mut terminal = Terminal::new(master);
        // Its user owns it.
        terminal.wait("11 22\r\n1000\r\n");
        terminal.write("word\n");
        terminal.wait("got word\r\n");
    }
}

#[test]
fn a_pidfd_is_sent() {
    since_runc!(1, 2, "--pidfd-socket");
    let bundle = idle();
    let socket = Socket::listen(&bundle, "pidfd");
    let pid_file = bundle.host("pid");
    let flags = [
        "-d",
        "--pidfd-socket",
        socket.arg(),
        "--pid-file",
        pid_file.to_str().unwrap(),
    ];
    exec_with(&bundle, &flags, &["sleep", "1000"]).ok();
    let (body, pidfd) = socket.receive();
    assert_eq!(body, "setns");
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert_eq!(crate::descriptors::pid_of(&pidfd), pid);
}

#[test]
fn flags_that_do_not_go_together() {
    let bundle = idle();
    let out = exec_with(&bundle, &["-t", "-d"], &["true"]).code(255);
    assert!(
        out.stderr
            .contains("will detach without setting console socket"),
        "{out:#?}"
    );
    let out = exec_with(&bundle, &["--console-socket", "/nonesuch"], &["true"]).code(255);
    assert!(
        out.stderr.contains("cannot use console socket if"),
        "{out:#?}"
    );
    let flags = ["-t", "-d", "--console-socket", "/nonesuch"];
    exec_with(&bundle, &flags, &["true"]).code(255);
    // Nothing is left of any.
    let out = bundle.call(&["ps", "-f", "json", &bundle.id]).ok();
    wait_for("one process", || out.text().split(',').count() == 1);
}

/// A program that ends and leaves somebody behind who writes to the terminal without end: the command
/// ends with the program all the same.
#[test]
fn who_is_left_behind_does_not_hold_the_command_up() {
    let bundle = idle();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    let (person, slave) = terminal();
    let args = ["exec", "-t", &bundle.id, "/probe", "flood"];
    let mut running = bundle.spawn_on_terminal_with(&slave, "", &args);
    let mut buffer = [0; 65536];
    wait_for("the end of the command", || {
        // Somebody reads all of it.
        while nix::unistd::read(&person.master, &mut buffer).is_ok_and(|n| n > 0) && running.alive()
        {
        }
        !running.alive()
    });
    running.finish().code(3);
}
