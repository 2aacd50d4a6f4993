//! The command line: parse, call, print. One file for each command.
//!
//! Flags, output and exit codes follow runc, because engines call isorun in its place. A command's
//! file has `command()`, what it takes, and `run()`, which asks the layers below and prints.

mod channel;
mod create;
mod delete;
mod demo;
mod doctor;
mod events;
mod exec;
mod features;
mod global;
mod install;
mod kill;
mod list;
mod passwd;
mod pause;
mod plan;
mod ps;
mod report;
mod run;
mod signal;
mod spec;
mod start;
mod state;
mod update;
mod usage;
mod version;
mod words;

use std::ffi::OsString;
use std::io::Write;

use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::error::{Error, Kind, Result};
use crate::exit::Exit;
use crate::log;
use global::Global;

/// A command: its name, what it takes, and what it does.
struct Entry {
    name: &'static str,
    about: &'static str,
    /// Adds description and arguments; only called when the command is the one that was asked for.
    arguments: fn(Command) -> Command,
    run: fn(&Global, &ArgMatches) -> Result<Exit>,
}

/// All commands, in the order in which the help shows them.
const COMMANDS: &[Entry] = &[
    create::ENTRY,
    start::ENTRY,
    run::ENTRY,
    exec::ENTRY,
    state::ENTRY,
    kill::ENTRY,
    delete::ENTRY,
    list::ENTRY,
    report::ENTRY,
    ps::ENTRY,
    events::ENTRY,
    update::ENTRY,
    pause::PAUSE,
    pause::RESUME,
    spec::ENTRY,
    features::ENTRY,
    channel::ENTRY,
    plan::ENTRY,
    doctor::ENTRY,
    install::ENTRY,
    demo::ENTRY,
];

/// Runs the command that `args` (the program's name first) asks for. Says on stderr and in `--log`
/// why it failed, where it did.
pub fn main(args: Vec<OsString>) -> Exit {
    // The demo's program inside its container does without the rest.
    let result = match args.get(1) {
        Some(name) if name == demo::probe::NAME => demo::probe::run(&args[2..]),
        _ => dispatch(&args),
    };
    match result {
        Ok(exit) => exit,
        Err(error) => {
            log::error(&error.to_string());
            Exit::Failure
        }
    }
}

fn dispatch(args: &[OsString]) -> Result<Exit> {
    let early = global::Early::scan(args);
    // Before anything else: these commands end in a process that could reach this binary through
    // its own /proc/self/exe.
    if matches!(early.command.as_deref(), Some("create" | "run" | "exec")) {
        crate::engine::seal::ensure()?;
    }
    // Also a wrong command line is told in the log.
    early.start_log()?;
    if let Some(name) = early.command.as_deref()
        && LATER.contains(&name)
    {
        let sentence = format!("{name} is not supported yet: isorun does not call CRIU");
        return Err(
            Error::new(Kind::Usage, sentence).remedy("use runc for containers that are to move")
        );
    }
    let matches = match parse(args) {
        Ok(matches) => matches,
        Err(Wrong::Word(error)) => return Err(usage::of_word(error, early.command.as_deref())),
        Err(Wrong::Line(error)) => return usage::answer(&error, early.command.as_deref()),
    };
    let global = Global::read(&matches)?;
    if matches.get_flag("version") {
        return version::run();
    }
    let Some((name, arguments)) = matches.subcommand() else {
        print(&command().render_help().to_string())?;
        return Ok(Exit::Success);
    };
    match COMMANDS.iter().find(|entry| entry.name == name) {
        Some(entry) => (entry.run)(&global, arguments),
        None => Err(Error::new(
            Kind::Usage,
            format!("there is no command {name:?}"),
        )),
    }
}

/// Commands of runc that this version does not have.
const LATER: [&str; 2] = ["checkpoint", "restore"];

/// Commands whose first argument ends the flags: the rest is a program's command line.
const WHOLE_LINE: [&str; 2] = ["exec", "ps"];

/// What is wrong with a command line.
enum Wrong {
    /// A flag, by the rules of Go's flags.
    Word(Error),
    /// What clap says.
    Line(clap::Error),
}

/// Parses a command line. Flags in forms that only Go's package flag takes are written anew first, where
/// there may be one; a usual command line pays nothing for that.
fn parse(args: &[OsString]) -> std::result::Result<ArgMatches, Wrong> {
    let first = match words::needs_care(args) {
        true => None,
        false => Some(command().try_get_matches_from(args)),
    };
    match first {
        Some(Ok(matches)) => return Ok(matches),
        Some(Err(error)) if !error.use_stderr() => return Err(Wrong::Line(error)),
        _ => {}
    }
    let global = Command::new("isorun")
        .args(global::arguments())
        .arg(version_flag());
    let one = |name: &str| {
        let entry = COMMANDS.iter().find(|entry| entry.name == name)?;
        Some((entry.arguments)(Command::new(entry.name)))
    };
    let args = words::rewritten(args, &global, one, &WHOLE_LINE).map_err(Wrong::Word)?;
    command().try_get_matches_from(args).map_err(Wrong::Line)
}

fn version_flag() -> Arg {
    Arg::new("version")
        .long("version")
        .short('v')
        .action(ArgAction::SetTrue)
        .help("Print the version")
}

/// The whole command line, for parsing and for the help.
fn command() -> Command {
    let commands = COMMANDS.iter().map(|entry| {
        Command::new(entry.name)
            .about(entry.about)
            .args_override_self(true)
            .defer(entry.arguments)
    });
    Command::new("isorun")
        .about("An OCI container runtime: runs bundles as runc does, and shows its plan first")
        // The last one counts, as with runc.
        .args_override_self(true)
        .args(global::arguments())
        .arg(version_flag())
        .subcommands(commands)
        .subcommand_value_name("command")
        .subcommand_help_heading("Commands")
}

/// The positional argument that most commands take.
fn container_id() -> Arg {
    Arg::new("id")
        .value_name("container-id")
        .required(true)
        .value_parser(NonEmptyStringValueParser::new())
        .help("The container's name on this host")
}

/// The value of [`container_id`].
fn id_of(matches: &ArgMatches) -> Result<&str> {
    let id: &String = matches
        .get_one("id")
        .ok_or_else(|| Error::new(Kind::Usage, "the container ID is missing"))?;
    crate::state::check_id(id)?;
    Ok(id)
}

/// Writes to stdout. That nobody reads it any more (`isorun list | head -1`) is no failure.
///
/// # Errors
/// Where stdout cannot be written, such as a full file system.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("write", "stdout", &error))
        }
        _ => Ok(()),
    }
}

/// Prints a value as JSON, indented as runc does.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::new(Kind::System, format!("write JSON: {error}")))?;
    print(&(text + "\n"))
}

#[cfg(test)]
mod tests;
