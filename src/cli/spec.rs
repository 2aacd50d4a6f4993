//! `isorun spec`: writes a config.json to start from.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{Entry, Global};
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;

pub const ENTRY: Entry = Entry {
    name: "spec",
    about: "Write a config.json to start from",
    arguments: |command| {
        command
            .arg(
                Arg::new("bundle")
                    .long("bundle")
                    .short('b')
                    .value_name("DIR")
                    .value_parser(value_parser!(PathBuf))
                    .default_value(".")
                    .help("The directory to write it to"),
            )
            .arg(
                Arg::new("rootless")
                    .long("rootless")
                    .action(ArgAction::SetTrue)
                    .help("For a user without privileges: in a user namespace, without limits"),
            )
    },
    run,
};

fn run(_: &Global, matches: &ArgMatches) -> Result<Exit> {
    let bundle = matches
        .get_one::<PathBuf>("bundle")
        .cloned()
        .unwrap_or_default();
    let path = bundle.join("config.json");
    let failed = |error: &std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::new(Kind::Usage, format!("file {} exists", path.display()))
                .remedy("remove it first")
        }
        _ => Error::io("write", path.display().to_string(), error),
    };
    let cgroup2 = has_only_cgroup2();
    let text = match matches.get_flag("rootless") {
        true => {
            let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
            crate::spec::template::rootless(cgroup2, uid.as_raw(), gid.as_raw())
        }
        false => crate::spec::template(cgroup2),
    };
    // Never over an existing file: it may be the only copy of somebody's work.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(|error| failed(&error))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .map_err(|error| failed(&error))?;
    Ok(Exit::Success)
}

/// Whether /sys/fs/cgroup is cgroup v2: there runc's template has a cgroup namespace, too.
fn has_only_cgroup2() -> bool {
    statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC)
}
