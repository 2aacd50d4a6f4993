//! `isorun plan`: prints what `create` would do with a bundle, and does nothing.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::{Entry, Global, print, print_json};
use crate::engine;
use crate::error::Result;
use crate::exit::Exit;
use crate::plan::Asked;

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
                Arg::new("no-pivot")
                    .long("no-pivot")
                    .action(ArgAction::SetTrue)
                    .help("As create with this flag"),
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

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    let bundle = matches
        .get_one::<PathBuf>("bundle")
        .cloned()
        .unwrap_or_default();
    let asked = Asked {
        id: id_for(&bundle),
        no_pivot: matches.get_flag("no-pivot"),
        rootless: global.rootless,
        systemd_cgroup: global.systemd_cgroup,
        degrade: global.level()?,
        ..Asked::default()
    };
    let (loaded, plan) = engine::plan(&bundle, &asked)?;
    if matches.get_flag("json") {
        return print_json(&plan).map(|()| Exit::Success);
    }
    print(&crate::plan::text(&plan))?;
    for sentence in &loaded.warnings {
        print(&format!("\nwarning: {sentence}"))?;
    }
    for sentence in &loaded.ignored {
        print(&format!("\nignored: {sentence}"))?;
    }
    Ok(Exit::Success)
}

/// The id that stands in the plan: the bundle's name, where it can be one.
fn id_for(bundle: &Path) -> String {
    let path = bundle
        .canonicalize()
        .unwrap_or_else(|_| bundle.to_path_buf());
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    match crate::state::check_id(&name) {
        Ok(()) => name,
        Err(_) => "container".to_string(),
    }
}
