//! `isorun events`: what a container uses, and when its memory runs out, as lines of JSON.

use std::io::Write;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches};
use serde::Serialize;

use super::{Entry, Global, container_id, id_of};
use crate::cgroup::Stats;
use crate::engine::{self, Event};
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;

pub const ENTRY: Entry = Entry {
    name: "events",
    about: "Tell what a container uses, and when its memory runs out, as JSON",
    arguments: |command| {
        command
            .arg(
                Arg::new("interval")
                    .long("interval")
                    .value_name("TIME")
                    .default_value("5s")
                    .allow_hyphen_values(true)
                    .help("How often, such as 500ms or 1m30s"),
            )
            .arg(
                Arg::new("stats")
                    .long("stats")
                    .action(ArgAction::SetTrue)
                    .help("Tell what it has used until now, once"),
            )
            .arg(container_id())
    },
    run,
};

/// A line: runc's types.Event.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Stats>,
}

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    let id = id_of(matches)?;
    let text = matches
        .get_one::<String>("interval")
        .map_or("5s", String::as_str);
    let interval = parse(text).ok_or_else(|| {
        let sentence = format!("invalid value {text:?} for flag -interval: parse error");
        Error::new(Kind::Usage, sentence).remedy("it is written like 500ms, 5s or 1m30s")
    })?;
    // In runc's order: a container that is not there is told first.
    global.store.peek(id)?;
    if interval.is_zero() {
        let sentence = "duration interval must be greater than 0";
        return Err(Error::new(Kind::Usage, sentence));
    }
    if matches.get_flag("stats") {
        let stats = engine::stats(&global.store, id)?;
        write("stats", id, Some(&stats))?;
        return Ok(Exit::Success);
    }
    engine::events(&global.store, id, interval, |event| match event {
        Event::Stats(stats) => write("stats", id, Some(&stats)),
        Event::Oom => write("oom", id, None),
    })?;
    Ok(Exit::Success)
}

/// Writes one line; false when nobody reads any more.
fn write(kind: &str, id: &str, data: Option<&Stats>) -> Result<bool> {
    let mut line = serde_json::to_vec(&Line { kind, id, data })
        .map_err(|error| Error::new(Kind::System, format!("write JSON: {error}")))?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(&line).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("write", "stdout", &error)),
    }
}

/// A time as Go's ParseDuration reads it: numbers with units, up to 292 years. A negative one is none
/// here, and counts as zero.
fn parse(text: &str) -> Option<Duration> {
    let negative = text.starts_with('-');
    let mut rest = text.trim_start_matches(['-', '+']);
    if text.len() - rest.len() > 1 || rest.is_empty() {
        return None;
    }
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut nanoseconds = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let units = rest.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = rest.split_at(units.unwrap_or(rest.len()));
        let scale = match unit {
            "ns" => 1.0,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        nanoseconds += number * scale;
        rest = after;
    }
    // What Go's type holds.
    if nanoseconds >= i64::MAX as f64 {
        return None;
    }
    match negative {
        true => Some(Duration::ZERO),
        false => Some(Duration::from_nanos(nanoseconds as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, milliseconds) in [
            ("5s", 5000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1.5s", 1500),
            ("2h", 7_200_000),
            ("0", 0),
            ("0s", 0),
            ("-5s", 0),
            ("+1s", 1000),
            ("2000000h", 7_200_000_000_000),
        ] {
            let wanted = Some(Duration::from_millis(milliseconds));
            assert_eq!(parse(text), wanted, "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "foo",
            "5x",
            "--5s",
            "1..5s",
            "9999999999h",
            "-",
            "NaNs",
            "infs",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
