//! `isorun channel`: tensor channels, which containers and the host share by name.

use std::fmt::Write;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;

use super::{Entry, Global, print, print_json};
use crate::channel::{
    Contents, Key, MODE, Member, Metadata, New, Pids, Place, Size, Usage, contents,
};
use crate::engine::pids;
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;
use crate::host::{self, IdMap};
use crate::state::Store;

pub const ENTRY: Entry = Entry {
    name: "channel",
    about: "Make, show and remove tensor channels: memory that containers share by name",
    arguments: |command| {
        command
            .long_about(
                "Tensor channels are directories in memory that containers and the host share by name.\n\
                 A container joins by annotations: io.isorun.channels=\"weights:ro,kv:rw\". Without a rule in\n\
                 /etc/isorun/channels.d a channel serves the containers of the user who made it here.",
            )
            .subcommand_required(true)
            .subcommand_value_name("command")
            .subcommand_help_heading("Commands")
            .subcommands([create(), list(), inspect(), remove(), gc()])
    },
    run,
};

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

fn name() -> Arg {
    Arg::new("name")
        .value_name("name")
        .required(true)
        .help("The channel's name; of a pod's <namespace>/<name>")
}

fn create() -> Command {
    let value = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("create")
        .about("Make a channel, which stays until it is removed")
        .args([
            name(),
            value(
                "size",
                "SIZE",
                "The most it may hold: 8g, 512m [default: half of the memory]",
            ),
            value("inodes", "N", "The most files it may hold [default: 65536]"),
            value(
                "mode",
                "MODE",
                "The permissions of its directory, octal [default: 1777]",
            ),
            value(
                "owner",
                "UID[:GID]",
                "Whose directory it is, on the host [default: the caller's]",
            ),
            value(
                "label",
                "LABEL",
                "The SELinux label of its files [default: what the policy gives a tmpfs]",
            ),
        ])
}

fn list() -> Command {
    Command::new("list").about("List the channels").args([
        Arg::new("format")
            .long("format")
            .short('f')
            .value_name("FORM")
            .default_value("table")
            .help("table or json"),
        flag("json", "The same as --format json"),
        flag("quiet", "Print only their names").short('q'),
    ])
}

fn inspect() -> Command {
    Command::new("inspect")
        .about("Tell all about a channel: limits, use, members, tensors")
        .args([name(), flag("json", "Print JSON instead")])
}

fn remove() -> Command {
    Command::new("remove")
        .about("Remove a channel and what is in it")
        .args([
            name(),
            flag(
                "force",
                "Also one with members: they keep what they have of it",
            )
            .short('f'),
        ])
}

fn gc() -> Command {
    Command::new("gc")
        .about("Remove what killed containers or a reboot have left")
        .args([
            flag("dry-run", "Only tell what would be removed"),
            flag("json", "Print JSON instead"),
        ])
}

fn run(_: &Global, matches: &ArgMatches) -> Result<Exit> {
    let place = Place::of_user(host::in_user_namespace);
    match matches.subcommand() {
        Some(("create", matches)) => make(&place, matches)?,
        Some(("list", matches)) => show_all(&place, matches)?,
        Some(("inspect", matches)) => show(&place, matches)?,
        Some(("remove", matches)) => place.remove(&key(matches)?, matches.get_flag("force"))?,
        Some(("gc", matches)) => collect(&place, matches)?,
        _ => return Err(Error::new(Kind::Usage, "channel: a command is missing")),
    }
    Ok(Exit::Success)
}

fn key(matches: &ArgMatches) -> Result<Key> {
    let name = matches.get_one::<String>("name").map_or("", String::as_str);
    name.parse()
        .map_err(|why: String| Error::new(Kind::Usage, why))
}

/// An option's value, read by `parse`.
fn value<T>(
    matches: &ArgMatches,
    option: &str,
    parse: impl Fn(&str) -> std::result::Result<T, String>,
) -> Result<Option<T>> {
    let text = matches.get_one::<String>(option);
    let parse = |text: &String| {
        parse(text).map_err(|why| Error::new(Kind::Usage, format!("--{option}: {why}")))
    };
    text.map(parse).transpose()
}

fn make(place: &Place, matches: &ArgMatches) -> Result<()> {
    let size: Option<Size> = value(matches, "size", str::parse)?;
    let inodes = value(matches, "inodes", |text| match text.parse::<u64>() {
        Ok(number) if number > 1 => Ok(number),
        _ => Err(format!("{text:?}: it is a number from 2 on")),
    })?;
    let mode = value(matches, "mode", |text| match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!("{text:?}: it is octal, such as 1777 or 770")),
    })?;
    let owner = value(matches, "owner", |text| {
        let (uid, gid) = text.split_once(':').unwrap_or((text, text));
        match (uid.parse(), gid.parse()) {
            (Ok(uid), Ok(gid)) => Ok((uid, gid)),
            _ => Err(format!("{text:?}: it is UID or UID:GID, in numbers")),
        }
    })?;
    let new = New {
        key: key(matches)?,
        size,
        inodes,
        mode: mode.unwrap_or(MODE),
        owner,
        label: value(matches, "label", |text| match text {
            text if text.is_empty() || text.contains('"') => {
                Err(format!("{text:?} is no label of SELinux"))
            }
            text => Ok(text.to_string()),
        })?,
    };
    let path = place.path(&new.key);
    place.create(&new, IdMap::own_uid_outside())?;
    print(&format!("{}\n", path.display()))
}

/// A channel, for programs.
#[derive(Debug, Serialize)]
struct View {
    name: Key,
    path: String,
    #[serde(flatten)]
    usage: Option<Usage>,
    mounted: bool,
    pinned: bool,
    tmpfs: bool,
    maker: u32,
    mode: String,
    owner: (u32, u32),
    created: String,
    members: Vec<Joined>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    contents: Option<Contents>,
}

#[derive(Debug, Serialize)]
struct Joined {
    id: String,
    pid: Option<i32>,
    access: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// The process ids that it has for itself, where GPU memory is shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pids: Option<Pids>,
    /// Those of its processes that are none of them: it has come round.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outside: Vec<u32>,
}

impl From<Member> for Joined {
    fn from(member: Member) -> Self {
        let record = member.state.as_deref().filter(|_| member.pids.is_some());
        let record = record.and_then(|state| Store::new(state.parent()?).peek(&member.id).ok());
        // The record knows whether the child could begin the range.
        let pids = match &record {
            Some(record) => record.channels.as_ref().and_then(|channels| channels.pids),
            None => member.pids,
        };
        Self {
            pids,
            outside: record.map_or_else(Vec::new, |record| pids::outside_of(&record)),
            id: member.id,
            pid: member.pid,
            access: if member.readonly { "ro" } else { "rw" },
            state: member.state.map(|path| path.display().to_string()),
        }
    }
}

impl View {
    fn of(place: &Place, metadata: Metadata) -> Result<Self> {
        let usage = place.usage(&metadata.key, &metadata);
        Ok(Self {
            path: place.path(&metadata.key).display().to_string(),
            mounted: usage.is_some(),
            usage,
            pinned: metadata.pinned,
            tmpfs: !metadata.plain,
            maker: metadata.maker,
            mode: format!("{:04o}", metadata.mode),
            owner: metadata.owner,
            created: metadata.created,
            members: place
                .members(&metadata.key)?
                .into_iter()
                .map(Joined::from)
                .collect(),
            contents: None,
            name: metadata.key,
        })
    }
}

fn show_all(place: &Place, matches: &ArgMatches) -> Result<()> {
    let form = match matches.get_one::<String>("format").map(String::as_str) {
        _ if matches.get_flag("json") => "json",
        Some(form @ ("json" | "table")) => form,
        _ => {
            let error = Error::new(Kind::Usage, "invalid format option");
            return Err(error.remedy("it is table or json"));
        }
    };
    let keys = place.keys()?;
    if matches.get_flag("quiet") {
        let lines = keys.iter().map(|key| format!("{key}\n"));
        return print(&lines.collect::<String>());
    }
    let mut views = Vec::new();
    for key in keys {
        match place.metadata(&key) {
            Ok(Some(metadata)) => views.push(View::of(place, metadata)?),
            // It was removed since its name was read.
            Ok(None) => {}
            Err(error) => crate::log::warning(&error.to_string()),
        }
    }
    match form {
        "json" => print_json(&views),
        _ => print(&table(&views)),
    }
}

fn table(views: &[View]) -> String {
    let mut rows = vec![["NAME", "SIZE", "USED", "FILES", "MEMBERS", "KEPT"].map(String::from)];
    for view in views {
        let none = || "-".to_string();
        let used = |usage: &Usage| Size(usage.used).to_string();
        let size = view.usage.and_then(|usage| usage.size);
        rows.push([
            view.name.to_string(),
            size.map_or_else(none, |size| Size(size).to_string()),
            view.usage.as_ref().map_or_else(none, used),
            view.usage
                .map_or_else(none, |usage| usage.files.to_string()),
            view.members.len().to_string(),
            if view.pinned {
                "until removed"
            } else {
                "while used"
            }
            .to_string(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        out += line.join("  ").trim_end();
        out.push('\n');
    }
    out
}

fn show(place: &Place, matches: &ArgMatches) -> Result<()> {
    let key = key(matches)?;
    let metadata = place
        .metadata(&key)?
        .ok_or_else(|| Error::new(Kind::NotFound, format!("there is no channel {key}")))?;
    let mut view = View::of(place, metadata)?;
    if view.mounted {
        view.contents = Some(contents(&place.path(&key))?);
    }
    match matches.get_flag("json") {
        true => print_json(&view),
        false => print(&text(&view)),
    }
}

/// All about a channel, for people. What members have written is told without its control characters.
fn text(view: &View) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:10} {value}");
    };
    line("channel", view.name.to_string());
    line("path", view.path.clone());
    match &view.usage {
        Some(usage) => {
            let of =
                |most: Option<String>| most.map_or_else(String::new, |most| format!(" of {most}"));
            let size = usage.size.map(|size| Size(size).to_string());
            line("used", format!("{}{}", Size(usage.used), of(size)));
            let most = usage.inodes.map(|most| most.to_string());
            line("files", format!("{}{}", usage.files, of(most)));
        }
        None => line("used", "not mounted here".into()),
    }
    if !view.tmpfs {
        line("kind", "a directory without a tmpfs of its own".into());
    }
    line(
        "kept",
        if view.pinned {
            "until removed"
        } else {
            "while used"
        }
        .into(),
    );
    let (uid, gid) = view.owner;
    line("owner", format!("{uid}:{gid}, mode {}", view.mode));
    line("made", format!("{} by uid {}", view.created, view.maker));
    for member in &view.members {
        let pid = member
            .pid
            .map_or_else(|| "none yet".to_string(), |pid| pid.to_string());
        let own = match &member.pids {
            Some(pids) => format!(", GPU memory, its processes {pids}"),
            None => String::new(),
        };
        line(
            "member",
            format!("{} {} pid {pid}{own}", member.id, member.access),
        );
        if !member.outside.is_empty() {
            let numbers: Vec<String> = member.outside.iter().map(u32::to_string).collect();
            line(
                "",
                format!(
                    "has come round: its processes {} may have another member's numbers",
                    numbers.join(", ")
                ),
            );
        }
    }
    let Some(contents) = &view.contents else {
        return out;
    };
    for endpoint in &contents.endpoints {
        line("endpoint", endpoint.escape_debug().to_string());
    }
    for tensor in &contents.tensors {
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        let (file, name) = (tensor.file.escape_debug(), tensor.name.escape_debug());
        let dtype = tensor.dtype.escape_debug();
        let size = Size(tensor.bytes);
        line(
            "tensor",
            format!("{file}: {name} {dtype} [{}] {size}", shape.join(", ")),
        );
    }
    for file in &contents.broken {
        line(
            "broken",
            format!("{}: no safetensors file", file.escape_debug()),
        );
    }
    if contents.more {
        line("", "and more".into());
    }
    out
}

fn collect(place: &Place, matches: &ArgMatches) -> Result<()> {
    let dry = matches.get_flag("dry-run");
    let found = place.gc(dry)?;
    if matches.get_flag("json") {
        return print_json(&found);
    }
    let (removed, forgot) = match dry {
        true => ("would remove", "would forget"),
        false => ("removed", "forgot"),
    };
    let mut out = String::new();
    for name in &found.removed {
        let _ = writeln!(out, "{removed} {name}");
    }
    for member in &found.forgotten {
        let _ = writeln!(out, "{forgot} the member {member}");
    }
    if out.is_empty() {
        out = "nothing to remove\n".to_string();
    }
    print(&out)
}
