//! `isorun features`: what this isorun knows, as features.md of the specification asks.

use clap::ArgMatches;

use super::{Entry, Global, print_json};
use crate::cgroup::PROPERTY_ANNOTATIONS;
use crate::error::Result;
use crate::exit::Exit;
use crate::seccomp;
use crate::spec::{SeccompLists, features};

/// isorun's own: levels of degradation, tensor channels.
const OWN_ANNOTATIONS: &str = "io.isorun.";

pub const ENTRY: Entry = Entry {
    name: "features",
    about: "Print as JSON what this isorun supports",
    arguments: |command| command,
    run,
};

fn run(_: &Global, _: &ArgMatches) -> Result<Exit> {
    let seccomp = SeccompLists {
        actions: seccomp::ACTIONS,
        operators: seccomp::OPERATORS,
        archs: seccomp::ARCHS,
        known_flags: seccomp::FLAGS,
        supported_flags: &seccomp::supported_flags(),
    };
    print_json(&features(
        Some(seccomp),
        &[OWN_ANNOTATIONS, PROPERTY_ANNOTATIONS],
    ))?;
    Ok(Exit::Success)
}
