//! `isorun features`: what this isorun knows, as features.md of the specification asks.

use clap::ArgMatches;

use super::{Entry, Global, print_json};
use crate::error::Result;
use crate::exit::Exit;

pub const ENTRY: Entry = Entry {
    name: "features",
    about: "Print as JSON what this isorun supports",
    arguments: |command| command,
    run,
};

fn run(_: &Global, _: &ArgMatches) -> Result<Exit> {
    print_json(&crate::spec::features())?;
    Ok(Exit::Success)
}
