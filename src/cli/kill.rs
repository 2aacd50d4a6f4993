//! `isorun kill`: sends a signal to the container's first process, or to all of them.

use clap::{Arg, ArgAction, ArgMatches};

use super::{Entry, Global, container_id, id_of, signal};
use crate::engine;
use crate::error::Result;
use crate::exit::Exit;

pub const ENTRY: Entry = Entry {
    name: "kill",
    about: "Send a signal to a container's first process",
    arguments: |command| {
        command
            .arg(container_id())
            .arg(
                Arg::new("signal")
                    .default_value("SIGTERM")
                    .help("A name, with or without SIG, or a number"),
            )
            .arg(
                Arg::new("all")
                    .long("all")
                    .short('a')
                    .action(ArgAction::SetTrue)
                    .help("Send it to all processes of the container"),
            )
    },
    run,
};

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    let id = id_of(matches)?;
    let signal = matches
        .get_one::<String>("signal")
        .map(String::as_str)
        // An empty word is none, as under runc.
        .filter(|word| !word.is_empty())
        .unwrap_or("SIGTERM");
    let signal = signal::parse(signal).map_err(|error| match global.store.peek(id) {
        // In runc's order: a container that is not there is told first.
        Err(missing) => missing,
        Ok(_) => error,
    })?;
    engine::kill(&global.store, id, signal, matches.get_flag("all"))?;
    Ok(Exit::Success)
}
