//! `isorun plan`: prints what `create` would do with a bundle, and does nothing.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::{Entry, Global, print, print_json};
use crate::engine;
use crate::error::Result;
use crate::exit::Exit;
use crate::log;
use crate::plan::{self, Asked};

/// The id that stands for the container's own in what is printed, such as its cgroup.
const ID: &str = "ID";

pub const ENTRY: Entry = Entry {
    name: "plan",
    about: "Print the steps that create would take for a bundle, without taking them",
    arguments: |command| {
        command
            .arg(
                Arg::new("bundle")
                    .value_name("BUNDLE")
                    .value_parser(value_parser!(PathBuf))
                    .default_value(".")
                    .help("The bundle's directory"),
            )
            .arg(
                Arg::new("json")
                    .long("json")
                    .action(ArgAction::SetTrue)
                    .help("Print JSON instead"),
            )
    },
    run,
};

fn run(_: &Global, matches: &ArgMatches) -> Result<Exit> {
    let bundle = matches
        .get_one::<PathBuf>("bundle")
        .cloned()
        .unwrap_or_default();
    let (loaded, plan) = engine::plan(
        &bundle,
        &Asked {
            id: ID.into(),
            ..Asked::default()
        },
    )?;
    for ignored in &loaded.ignored {
        log::warning(ignored);
    }
    match matches.get_flag("json") {
        true => print_json(&plan)?,
        false => print(&plan::text(&plan))?,
    }
    Ok(Exit::Success)
}
