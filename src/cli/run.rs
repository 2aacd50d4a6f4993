//! `isorun run`: create and start, and, unless detached, wait and pass the exit status on.

use clap::{Arg, ArgAction, ArgMatches};

use super::{Entry, Global, container_id, create};
use crate::engine::{self, Request};
use crate::error::Result;
use crate::exit::Exit;

pub const ENTRY: Entry = Entry {
    name: "run",
    about: "Create and start a container, and pass its exit status on",
    arguments: |command| {
        let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
        command
            .args(create::arguments())
            .arg(
                flag("detach")
                    .short('d')
                    .help("Return when the container's program has started"),
            )
            .arg(flag("keep").help("Keep the container's state after it has ended"))
            .arg(flag("no-subreaper").help("Do not adopt the container's orphans"))
            .arg(container_id())
    },
    run,
};

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    let request = Request {
        detach: matches.get_flag("detach"),
        keep: matches.get_flag("keep"),
        no_subreaper: matches.get_flag("no-subreaper"),
        ..create::request(global, matches)?
    };
    engine::run(&request).map(Exit::of_container)
}
