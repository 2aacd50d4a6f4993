//! `isorun doctor`: what this machine lets a container have.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::{Entry, Global, print, print_json};
use crate::doctor::{self, Colour};
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;
use crate::host::{Host, Sandboxing};

pub const ENTRY: Entry = Entry {
    name: "doctor",
    about: "Try what containers need on this machine; say what is refused, why, and the repair",
    arguments: |command| {
        let flag = |name: &'static str, help: &'static str| {
            Arg::new(name)
                .long(name)
                .action(ArgAction::SetTrue)
                .help(help)
        };
        command
            .after_help("Exit status: 0 all works, 1 something is lost, 2 no container can be made.")
            .arg(flag("json", "Print JSON instead (docs/doctor.md)"))
            .arg(
                Arg::new("capture")
                    .long("capture")
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .help("Write what was found to FILE, as tests of plans read it"),
            )
            .arg(flag(
                "apparmor-profile",
                "Print the AppArmor profile that lets this isorun make user namespaces, and try nothing",
            ))
    },
    run,
};

fn run(_: &Global, matches: &ArgMatches) -> Result<Exit> {
    if matches.get_flag("apparmor-profile") {
        let path = std::env::current_exe()
            .map_err(|error| Error::io("find out", "the path of isorun", &error))?;
        print(&doctor::apparmor_profile(&path)?)?;
        return Ok(Exit::Success);
    }
    let host = doctor::examine()?;
    if let Some(path) = matches.get_one::<PathBuf>("capture") {
        capture(&host, path)?;
    }
    if matches.get_flag("json") {
        print_json(&doctor::json(&host)?)?;
    } else {
        print(&doctor::text(&host, colour())?)?;
    }
    Ok(match host.probed.map(|probed| probed.mode) {
        Some(Sandboxing::Full) => Exit::Success,
        Some(Sandboxing::Degraded) => Exit::Container(1),
        Some(Sandboxing::Disabled) | None => Exit::Container(2),
    })
}

/// Colours on a terminal, unless somebody said no: <https://no-color.org>.
fn colour() -> Colour {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match std::io::stdout().is_terminal() && !refused {
        true => Colour::Always,
        false => Colour::Never,
    }
}

fn capture(host: &Host, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(host)
        .map_err(|error| Error::new(Kind::System, format!("write JSON: {error}")))?;
    std::fs::write(path, text + "\n")
        .map_err(|error| Error::io("write", path.display().to_string(), &error))
}
