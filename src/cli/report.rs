//! `isorun report`: what a container does without, why, and what repairs it.

use std::fmt::Write;

use clap::{Arg, ArgAction, ArgMatches};
use serde::Serialize;

use super::{Entry, Global, container_id, id_of, print, print_json};
use crate::engine::pids;
use crate::error::{Error, Kind, Result, errno_words};
use crate::exit::Exit;
use crate::plan::{Degradation, wrapped};
use crate::policy::Level;
use crate::state::Record;

pub const ENTRY: Entry = Entry {
    name: "report",
    about: "Tell what a container does without, why, and what repairs it",
    arguments: |command| {
        command.arg(container_id()).arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print JSON instead"),
        )
    },
    run,
};

/// The report: docs/degradation.md tells what its fields mean.
#[derive(Debug, Serialize)]
struct Report {
    id: String,
    level: Level,
    degradations: Vec<Degradation>,
}

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    let report = Report::of(global.store.peek(id_of(matches)?)?)?;
    match matches.get_flag("json") {
        true => print_json(&report)?,
        false => print(&text(&report))?,
    }
    Ok(Exit::Success)
}

impl Report {
    fn of(record: Record) -> Result<Self> {
        let read = |value| {
            serde_json::from_value(value).map_err(|error| {
                let sentence = format!("the record of what was degraded: {error}");
                Error::new(Kind::State, sentence).remedy("another version of isorun wrote it")
            })
        };
        // Seen now, and not when it was made.
        let pids = record.channels.as_ref().and_then(|channels| channels.pids);
        let outside = pids::outside_of(&record).into_iter().next();
        let wrapped = pids.zip(outside).map(|(pids, pid)| wrapped(pid, pids));
        let degradations = record.degraded.into_iter().map(read);
        let mut degradations: Vec<Degradation> = degradations.collect::<Result<_>>()?;
        degradations.extend(wrapped);
        Ok(Self {
            id: record.id,
            level: record.degrade,
            degradations,
        })
    }
}

/// The table for people: a block for each degradation, a line for each thing to know.
fn text(report: &Report) -> String {
    let Report {
        id,
        level,
        degradations,
    } = report;
    if degradations.is_empty() {
        return format!("container {id} runs without degradation (level {level})\n");
    }
    let mut out = format!(
        "container {id} runs with {} degradation{} (level {level})\n",
        degradations.len(),
        if degradations.len() == 1 { "" } else { "s" }
    );
    for lost in degradations {
        let _ = writeln!(out, "\n{}", lost.feature);
        let errno = match lost.errno {
            0 => String::new(),
            code => errno_words(nix::errno::Errno::from_raw(code)),
        };
        for (name, value) in [
            ("row", &lost.row.name()),
            ("why", &lost.reason),
            ("errno", &errno),
            ("instead", &lost.fallback),
            ("made up for", &lost.compensation),
            ("repair", &lost.remedy),
        ] {
            if !value.is_empty() {
                let _ = writeln!(out, "  {name:12} {value}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Feature;

    fn report(degradations: Vec<Degradation>) -> Report {
        Report {
            id: "web".into(),
            level: Level::Safe,
            degradations,
        }
    }

    #[test]
    fn for_people() {
        assert_eq!(
            text(&report(Vec::new())),
            "container web runs without degradation (level safe)\n"
        );
        let lost = Degradation {
            row: Feature::Rlimit,
            feature: "RLIMIT_NOFILE 9:9".into(),
            reason: "set it: EPERM".into(),
            errno: libc::EPERM,
            fallback: "clamped".into(),
            compensation: String::new(),
            remedy: "raise it".into(),
        };
        assert_eq!(
            text(&report(vec![lost])),
            "container web runs with 1 degradation (level safe)\n\nRLIMIT_NOFILE 9:9\n  \
             row          rlimit\n  why          set it: EPERM\n  \
             errno        EPERM: Operation not permitted\n  instead      clamped\n  \
             repair       raise it\n"
        );
    }

    #[test]
    fn what_an_older_isorun_wrote_is_told() {
        let mut record = Record::new("x", "/b".as_ref(), "/b/r".as_ref(), "1.2.0").unwrap();
        record.degraded = vec![serde_json::json!({"feature": "?"})];
        let error = Report::of(record).unwrap_err().to_string();
        assert!(error.contains("another version of isorun"), "{error}");
    }
}
