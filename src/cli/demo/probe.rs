//! `isorun __probe`: the program that runs inside the demo's container.

use std::ffi::OsString;
use std::io::Read;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sched::{CloneFlags, unshare};

use super::facts::Facts;
use crate::cli::print;
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;

/// The hidden command's name.
pub const NAME: &str = "__probe";

/// Runs what `args` (after the command's name) ask for: `facts` prints a line of JSON and waits
/// for the end of stdin, so that the process can be looked at from outside; `began` prints when it
/// began; `unshare FLAG` tries a namespace and prints the errno, 0 for success.
///
/// # Errors
/// An unknown request; /proc that cannot be read.
pub fn run(args: &[OsString]) -> Result<Exit> {
    // First of all: this is the moment that is measured.
    let began = now();
    let args: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    match args.as_slice() {
        ["facts"] => {
            let facts = serde_json::to_string(&Facts::collect(began, true)?)
                .map_err(|error| Error::new(Kind::System, format!("write JSON: {error}")))?;
            print(&(facts + "\n"))?;
            // How it ends does not matter, only that it does.
            let _ = std::io::stdin().read(&mut [0]);
        }
        ["began"] => print(&format!("{}\n", began.as_nanos()))?,
        ["unshare", flag] => {
            let flag = flag.parse().map_err(|_| unknown(&args))?;
            let errno = match unshare(CloneFlags::from_bits_retain(flag)) {
                Ok(()) => 0,
                Err(errno) => errno as i32,
            };
            print(&format!("{errno}\n"))?;
        }
        _ => return Err(unknown(&args)),
    }
    Ok(Exit::Success)
}

/// Time since 1970.
pub fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn unknown(args: &[&str]) -> Error {
    Error::new(
        Kind::Usage,
        format!("{NAME} does not know {args:?}; it is a part of isorun demo"),
    )
}
