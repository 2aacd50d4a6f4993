//! `isorun update`: new limits for a container that runs.

use std::io::Read;

use clap::{Arg, ArgMatches};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::{Entry, Global, container_id, id_of};
use crate::engine::{self, Schemata};
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;
use crate::log;

pub const ENTRY: Entry = Entry {
    name: "update",
    about: "Change the limits of a container",
    arguments: |command| {
        let flags = FLAGS.iter().map(|flag| {
            Arg::new(flag.name)
                .long(flag.name)
                .value_name("VALUE")
                .allow_hyphen_values(true)
                .help(flag.help)
                .hide(flag.help.is_empty())
        });
        command
            .arg(
                Arg::new("resources")
                    .long("resources")
                    .short('r')
                    .value_name("FILE")
                    .allow_hyphen_values(true)
                    .help(
                        "Read linux.resources from this JSON file, - is stdin; of the flags only \
                         those of schemata count then",
                    ),
            )
            .args(flags)
            .arg(container_id())
    },
    run,
};

/// How a flag's value is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A number that cannot be negative.
    Unsigned,
    /// A number.
    Signed,
    /// Bytes, with a unit or without; -1 is no limit.
    Bytes,
    /// A list of numbers.
    Text,
    /// It has no effect any more.
    Obsolete,
}

struct Flag {
    name: &'static str,
    /// Where it goes in linux.resources; empty where it goes somewhere else.
    field: &'static str,
    kind: Form,
    help: &'static str,
}

const fn flag(name: &'static str, field: &'static str, kind: Form, help: &'static str) -> Flag {
    Flag {
        name,
        field,
        kind,
        help,
    }
}

const L3_CACHE: &str = "l3-cache-schema";
const MEM_BW: &str = "mem-bw-schema";

const FLAGS: [Flag; 18] = [
    flag(
        "blkio-weight",
        "/blockIO/weight",
        Form::Unsigned,
        "Weight of block I/O, 10 to 1000",
    ),
    flag(
        "cpu-period",
        "/cpu/period",
        Form::Unsigned,
        "Period of the CPU quota, microseconds",
    ),
    flag(
        "cpu-quota",
        "/cpu/quota",
        Form::Signed,
        "CPU time in a period, microseconds",
    ),
    flag(
        "cpu-burst",
        "/cpu/burst",
        Form::Unsigned,
        "CPU time that may be saved, microseconds",
    ),
    flag(
        "cpu-share",
        "/cpu/shares",
        Form::Unsigned,
        "CPU shares, against other containers",
    ),
    flag(
        "cpu-rt-period",
        "/cpu/realtimePeriod",
        Form::Unsigned,
        "Real-time period, microseconds",
    ),
    flag(
        "cpu-rt-runtime",
        "/cpu/realtimeRuntime",
        Form::Signed,
        "Real-time quota, microseconds",
    ),
    flag(
        "cpu-idle",
        "/cpu/idle",
        Form::Signed,
        "1: only when nothing else wants the CPU",
    ),
    flag(
        "cpuset-cpus",
        "/cpu/cpus",
        Form::Text,
        "CPUs to use, such as 0-3,7",
    ),
    flag(
        "cpuset-mems",
        "/cpu/mems",
        Form::Text,
        "Memory nodes to use",
    ),
    flag(
        "memory",
        "/memory/limit",
        Form::Bytes,
        "Memory, such as 64m; -1 is no limit",
    ),
    flag(
        "memory-reservation",
        "/memory/reservation",
        Form::Bytes,
        "Memory to keep when it is short",
    ),
    flag(
        "memory-swap",
        "/memory/swap",
        Form::Bytes,
        "Memory and swap together; -1 is no limit",
    ),
    flag(
        "pids-limit",
        "/pids/limit",
        Form::Signed,
        "Processes and threads; -1 is no limit",
    ),
    flag("kernel-memory", "", Form::Obsolete, ""),
    flag("kernel-memory-tcp", "", Form::Obsolete, ""),
    flag(
        L3_CACHE,
        "",
        Form::Text,
        "Schema of the L3 cache, such as L3:0=ff (Intel RDT)",
    ),
    flag(
        MEM_BW,
        "",
        Form::Text,
        "Schema of the memory bandwidth, such as MB:0=20 (Intel RDT)",
    ),
];

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    let id = id_of(matches)?;
    global.store.peek(id)?;
    let value = match matches.get_one::<String>("resources") {
        Some(file) if !file.is_empty() => from_file(file)?,
        _ => from_flags(matches)?,
    };
    let resources: LinuxResources = serde_json::from_value(value)
        .map_err(|error| Error::new(Kind::Spec, format!("linux.resources: {error}")))?;
    // As under runc: these count with a file, too.
    let schema = |flag: &str| matches.get_one::<String>(flag).cloned();
    let schemata = Schemata {
        l3_cache: schema(L3_CACHE),
        mem_bw: schema(MEM_BW),
    };
    engine::update(&global.store, id, resources, &schemata)?;
    Ok(Exit::Success)
}

/// The largest file of limits that is read, bytes.
const MAX_SIZE: u64 = 1 << 20;

fn from_file(file: &str) -> Result<Value> {
    let mut text = Vec::new();
    let read = match file {
        "-" => std::io::stdin().take(MAX_SIZE).read_to_end(&mut text),
        path => {
            std::fs::File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut text))
        }
    };
    read.map_err(|error| Error::io("read the resources from", file, &error))?;
    // Go's decoder, for which engines write, takes null for "not set" and reads one value.
    let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<Value>();
    let mut value = match values.next() {
        Some(Ok(value @ Value::Object(_))) => value,
        Some(Err(error)) => return Err(wrong(file, &error.to_string())),
        Some(Ok(_)) => return Err(wrong(file, "it is not a JSON object")),
        None => return Err(wrong(file, "EOF")),
    };
    crate::spec::parse::drop_nulls(&mut value);
    // `{"limit": 0}` says nothing, and an empty `pids` even less.
    if value.pointer("/pids").is_some()
        && value.pointer("/pids/limit").is_none()
        && let Some(map) = value.as_object_mut()
    {
        map.remove("pids");
    }
    Ok(value)
}

fn wrong(file: &str, why: &str) -> Error {
    Error::new(Kind::Spec, format!("resources in {file}: {why}"))
}

fn from_flags(matches: &ArgMatches) -> Result<Value> {
    let mut resources = Value::Object(Map::new());
    for flag in &FLAGS {
        let given = matches.get_one::<String>(flag.name);
        let Some(text) = given.filter(|text| !text.is_empty()) else {
            continue;
        };
        let value = match flag.kind {
            Form::Obsolete => {
                log::warning(&format!(
                    "--{} is ignored: Linux has no such limit any more",
                    flag.name
                ));
                continue;
            }
            // Not of linux.resources.
            _ if flag.field.is_empty() => continue,
            Form::Text => json!(text),
            Form::Unsigned => text
                .parse::<u64>()
                .map(Value::from)
                .map_err(|_| invalid(flag, text))?,
            Form::Signed => text
                .parse::<i64>()
                .map(Value::from)
                .map_err(|_| invalid(flag, text))?,
            Form::Bytes => bytes(text)
                .map(Value::from)
                .ok_or_else(|| invalid(flag, text))?,
        };
        let (group, name) = flag.field[1..].split_once('/').unwrap_or_default();
        resources[group][name] = value;
    }
    Ok(resources)
}

fn invalid(flag: &Flag, text: &str) -> Error {
    let sentence = match flag.kind {
        Form::Bytes => format!("invalid value for {}: invalid size: '{text}'", flag.name),
        _ => format!(
            "invalid value for {}: {text:?} is not a number for it",
            flag.name
        ),
    };
    Error::new(Kind::Usage, sentence)
}

/// `64m`, `1.5 GB`, `1024`, `2MiB`: units are powers of 1024, as in Docker's go-units; -1 stays.
fn bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let mut letters = unit.chars();
    let shift = match letters.next() {
        None => 0,
        Some('b') if unit == "b" => 0,
        Some(letter) => {
            if !matches!(letters.as_str(), "" | "b" | "ib") {
                return None;
            }
            10 * (1 + "kmgtp".find(letter)?)
        }
    };
    let bytes = number * (1u64 << shift) as f64;
    (bytes < i64::MAX as f64).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, wanted) in [
            ("-1", -1),
            ("0", 0),
            ("1024", 1024),
            ("64m", 64 << 20),
            ("64MB", 64 << 20),
            ("64MiB", 64 << 20),
            ("1.5g", 3 << 29),
            ("2 k", 2048),
            ("7b", 7),
        ] {
            assert_eq!(bytes(text), Some(wanted), "{text}");
        }
        for text in ["", "x", "-2", "5x", "5mm", "m", "1e3", "99999999p", "1..2"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
