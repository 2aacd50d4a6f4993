//! `isorun create`: makes a container that waits for `start`.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::{Entry, Global, container_id, id_of};
use crate::engine::{self, Request};
use crate::error::{Error, Result};
use crate::exit::Exit;

pub const ENTRY: Entry = Entry {
    name: "create",
    about: "Make a container from a bundle; its program waits for start",
    arguments: |command| command.args(arguments()).arg(container_id()),
    run,
};

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    engine::create(&request(global, matches)?)?;
    Ok(Exit::Success)
}

/// What `create` and `run` both take.
pub fn arguments() -> [Arg; 7] {
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    let path = |name: &'static str| {
        Arg::new(name)
            .long(name)
            .value_parser(value_parser!(PathBuf))
    };
    [
        path("bundle")
            .short('b')
            .value_name("DIR")
            .default_value(".")
            .help("The bundle: a directory with config.json and the root file system"),
        path("pid-file")
            .value_name("FILE")
            .help("Write the container's process id to this file"),
        flag("no-pivot").help("Move the root file system over the host's instead of pivot_root"),
        flag("no-new-keyring").help("Keep the caller's session keyring"),
        Arg::new("preserve-fds")
            .long("preserve-fds")
            .value_name("N")
            .value_parser(value_parser!(u32))
            .default_value("0")
            .help("Pass this many descriptors more to the container, from 3 on"),
        path("console-socket")
            .value_name("SOCKET")
            .help("Send the terminal's master to this Unix socket"),
        path("pidfd-socket")
            .value_name("SOCKET")
            .help("Send a pidfd of the container's first process to this Unix socket"),
    ]
}

/// The engine's request from the command line of `create` or `run`.
pub fn request(global: &Global, matches: &ArgMatches) -> Result<Request> {
    let absolute = |name| match matches.get_one::<PathBuf>(name) {
        Some(path) => std::path::absolute(path)
            .map(Some)
            .map_err(|error| Error::io("resolve", path.display().to_string(), &error)),
        None => Ok(None),
    };
    Ok(Request {
        degrade: global.level()?,
        id: id_of(matches)?.to_string(),
        bundle: absolute("bundle")?.unwrap_or_else(|| PathBuf::from(".")),
        store: global.store.clone(),
        pid_file: absolute("pid-file")?,
        detach: false,
        keep: false,
        no_subreaper: false,
        no_new_keyring: matches.get_flag("no-new-keyring"),
        no_pivot: matches.get_flag("no-pivot"),
        preserve_fds: matches.get_one("preserve-fds").copied().unwrap_or(0),
        listen_fds: listen_fds(),
        // As they were written: made absolute, a path may become longer than a socket's can be.
        console_socket: matches.get_one::<PathBuf>("console-socket").cloned(),
        pidfd_socket: matches.get_one::<PathBuf>("pidfd-socket").cloned(),
        rootless: global.rootless,
        systemd_cgroup: global.systemd_cgroup,
    })
}

/// How many sockets to listen on were handed over, in systemd's way (sd_listen_fds(3)): those that are
/// for another process, or not a number, are none.
fn listen_fds() -> u32 {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    match number("LISTEN_PID") {
        Some(pid) if pid == std::process::id() => number("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    }
}
