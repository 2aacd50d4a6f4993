//! `isorun start`: lets the program of a created container go.

use clap::ArgMatches;

use super::{Entry, Global, container_id, id_of};
use crate::engine;
use crate::error::Result;
use crate::exit::Exit;

pub const ENTRY: Entry = Entry {
    name: "start",
    about: "Start the program of a created container",
    arguments: |command| command.arg(container_id()),
    run,
};

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    engine::start(&global.store, id_of(matches)?)?;
    Ok(Exit::Success)
}
