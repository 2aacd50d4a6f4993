//! `isorun demo`: a container that needs nothing but this binary, seen from inside and outside.
//!
//! ```text
//! host     what does this host allow?          a process for each namespace tries it
//! bundle   a temporary bundle                  its only file is this program
//! runner   isorun run … isorun __probe facts   as a user would, in a process of its own
//! facts    the same questions inside and outside
//! report   a table; a promise that does not hold makes the exit status 1
//! ```

mod bundle;
mod facts;
mod host;
mod limits;
pub mod probe;
mod proc;
mod report;
mod runner;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::{Entry, Global, print};
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;
use bundle::Bundle;
use facts::Facts;
use host::Denied;
use report::FromOutside;
use runner::{Ended, Runner};

pub const ENTRY: Entry = Entry {
    name: "demo",
    about: "Run this program in a container of its own, and show what isolates it",
    arguments: |command| {
        // Hidden: the demo with another runtime, which may lack a namespace, tests the demo.
        let runtime = Arg::new("runtime")
            .long("runtime")
            .value_parser(value_parser!(PathBuf))
            .hide(true);
        let without = Arg::new("without")
            .long("without")
            .action(ArgAction::Append)
            .hide(true);
        command.arg(runtime).arg(without)
    },
    run,
};

/// Containers whose start is timed; the median is told.
const TIMED: usize = 9;

fn run(_: &Global, matches: &ArgMatches) -> Result<Exit> {
    if !nix::unistd::geteuid().is_root() {
        let sentence = "the demo needs root in this version";
        return Err(Error::new(Kind::Usage, sentence).remedy("run it with sudo"));
    }
    let runtime = matches.get_one::<PathBuf>("runtime").cloned();
    let runner = Runner::new(runtime.unwrap_or_else(|| "/proc/self/exe".into()))?;
    let mut denied = Denied::find_out();
    for name in matches.get_many::<String>("without").into_iter().flatten() {
        denied.leave_out(name)?;
    }
    let bundle = Bundle::make(&denied)?;
    let shown = show(&runner, &bundle, &denied);
    // Also after a failure and after Ctrl-C.
    let removed = runner.remove_containers(&bundle).and(bundle.remove());
    match shown {
        Err(Ended::Failed(error)) => Err(error),
        Err(Ended::Signalled(signal)) => removed.map(|()| Exit::Signal(signal)),
        Ok(exit) => removed.map(|()| exit),
    }
}

fn show(runner: &Runner, bundle: &Bundle, denied: &Denied) -> std::result::Result<Exit, Ended> {
    let outside = Facts::collect(probe::now(), false)?;
    let (inside, seen) = runner.facts(bundle)?;
    let rows = report::compare(&inside, &outside, &seen, denied);
    let (holds, broken, refused) = report::count(&rows);
    print("One container, asked from inside and compared with this host:\n\n")?;
    print(&report::table(&rows))?;
    print(&format!(
        "\n{holds} promises hold, {broken} broken, {refused} denied by this host\n"
    ))?;

    bundle.write_config(denied, "began")?;
    let mut times = Vec::with_capacity(TIMED);
    for number in 0..TIMED {
        times.push(runner.time_to_first_instruction(bundle, number)?);
    }
    times.sort_unstable();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    print(&format!(
        "from `isorun run` to the first instruction in the container: {:.1} ms \
         (median of {TIMED}, fastest {:.1} ms)\n",
        milliseconds(times[TIMED / 2]),
        milliseconds(times[0]),
    ))?;
    Ok(if broken == 0 {
        Exit::Success
    } else {
        Exit::Failure
    })
}
