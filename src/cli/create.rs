//! `isorun create`: makes a container that waits for `start`.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::{Entry, Global, container_id, id_of};
use crate::engine::{self, Request};
use crate::error::{Error, Kind, Result};
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
        flag("no-new-keyring").help("Keep the caller's session keyring"),
        Arg::new("preserve-fds")
            .long("preserve-fds")
            .value_name("N")
            .value_parser(value_parser!(u32))
            .default_value("0")
            .help("Pass this many descriptors more to the container, from 3 on"),
        // These come with a later version; until then they are refused by name.
        flag("no-pivot").hide(true),
        path("console-socket").hide(true),
        path("pidfd-socket").hide(true),
    ]
}

/// The engine's request from the command line of `create` or `run`.
pub fn request(global: &Global, matches: &ArgMatches) -> Result<Request> {
    for later in ["console-socket", "pidfd-socket", "no-pivot"] {
        if matches.value_source(later) == Some(ValueSource::CommandLine) {
            let sentence = format!("--{later} is not supported by this version of isorun");
            return Err(Error::new(Kind::Usage, sentence));
        }
    }
    let absolute = |name| match matches.get_one::<PathBuf>(name) {
        Some(path) => std::path::absolute(path)
            .map(Some)
            .map_err(|error| Error::io("resolve", path.display().to_string(), &error)),
        None => Ok(None),
    };
    Ok(Request {
        id: id_of(matches)?.to_string(),
        bundle: absolute("bundle")?.unwrap_or_else(|| PathBuf::from(".")),
        store: global.store.clone(),
        pid_file: absolute("pid-file")?,
        detach: false,
        keep: false,
        no_subreaper: false,
        no_new_keyring: matches.get_flag("no-new-keyring"),
        preserve_fds: matches.get_one("preserve-fds").copied().unwrap_or(0),
    })
}
