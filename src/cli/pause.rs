//! `isorun pause` and `isorun resume`: a container stands still, and goes on.

use clap::ArgMatches;

use super::{Entry, Global, container_id, id_of};
use crate::engine;
use crate::error::Result;
use crate::exit::Exit;

pub const PAUSE: Entry = Entry {
    name: "pause",
    about: "Let all processes of a container stand still",
    arguments: |command| command.arg(container_id()),
    run: pause,
};

pub const RESUME: Entry = Entry {
    name: "resume",
    about: "Let a paused container go on",
    arguments: |command| command.arg(container_id()),
    run: resume,
};

fn pause(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    engine::pause(&global.store, id_of(matches)?)?;
    Ok(Exit::Success)
}

fn resume(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    engine::resume(&global.store, id_of(matches)?)?;
    Ok(Exit::Success)
}
