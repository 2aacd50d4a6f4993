//! `isorun delete`: removes what a container has left.

use clap::{Arg, ArgAction, ArgMatches};

use super::{Entry, Global, container_id, id_of};
use crate::engine;
use crate::error::{Kind, Result};
use crate::exit::Exit;

pub const ENTRY: Entry = Entry {
    name: "delete",
    about: "Remove a stopped container",
    arguments: |command| {
        command.arg(container_id()).arg(
            Arg::new("force")
                .long("force")
                .short('f')
                .action(ArgAction::SetTrue)
                .help("Kill it first where it runs; that it does not exist is no error then"),
        )
    },
    run,
};

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    let force = matches.get_flag("force");
    match engine::delete(&global.store, id_of(matches)?, force) {
        Err(error) if force && error.kind() == Kind::NotFound => Ok(Exit::Success),
        result => result.map(|()| Exit::Success),
    }
}
