//! A wrong command line as one sentence, and the help.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{print, words};
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;
use crate::log;

/// What clap stopped at: help that was asked for is printed, the rest is an error in one sentence.
pub fn answer(error: &clap::Error, command: Option<&str>) -> Result<Exit> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            print(&error.render().to_string())?;
            Ok(Exit::Success)
        }
        ErrorKind::InvalidSubcommand => {
            log::error(&sentence(error, command).to_string());
            Ok(Exit::NoCommand)
        }
        _ => Err(sentence(error, command)),
    }
}

/// How many arguments a command takes, in runc's words.
fn arguments(command: &str, too_many: bool) -> &'static str {
    match (command, too_many) {
        ("kill" | "ps" | "exec", false) => "a minimum of 1 argument(s)",
        ("kill", true) => "a maximum of 2 argument(s)",
        ("list" | "spec" | "features", _) => "exactly 0 argument(s)",
        ("plan" | "demo" | "install", _) => "other arguments",
        _ => "exactly 1 argument(s)",
    }
}

/// An error of [`words`], with where to read on.
pub fn of_word(error: Error, command: Option<&str>) -> Error {
    error.remedy(see(command))
}

fn see(command: Option<&str>) -> String {
    let known = command.filter(|name| super::COMMANDS.iter().any(|entry| entry.name == *name));
    match known {
        Some(name) => format!("see isorun {name} --help"),
        None => "see isorun --help".to_string(),
    }
}

/// The sentence, with runc's phrases in it.
pub fn sentence(error: &clap::Error, command: Option<&str>) -> Error {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    };
    let arg = context(ContextKind::InvalidArg);
    // `--bundle <DIR>` as Go names it.
    let flag = || {
        let name = arg.split([' ', '=']).next().unwrap_or_default();
        format!("-{}", name.trim_start_matches('-'))
    };
    let name = command.unwrap_or_default();
    let text = match error.kind() {
        ErrorKind::MissingRequiredArgument => format!(
            "{name:?} requires {}: {arg} is missing",
            arguments(name, false)
        ),
        ErrorKind::UnknownArgument if arg.starts_with('-') => {
            format!("flag provided but not defined: {}", flag())
        }
        ErrorKind::UnknownArgument => format!(
            "{name:?} requires {}: {arg:?} is one too many",
            arguments(name, true)
        ),
        ErrorKind::InvalidSubcommand => format!(
            "No help topic for '{}': there is no such command",
            context(ContextKind::InvalidSubcommand)
        ),
        ErrorKind::InvalidValue if context(ContextKind::InvalidValue).is_empty() => {
            match arg.starts_with('-') {
                true => return of_word(words::needs_argument(&flag()), command),
                // An empty word in the place of the container's name.
                false => "container ID cannot be empty".to_string(),
            }
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => format!(
            "invalid value {:?} for flag {}: parse error",
            context(ContextKind::InvalidValue),
            flag()
        ),
        // The first line is the sentence; the others repeat the usage.
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_string()
        }
    };
    Error::new(Kind::Usage, text.trim_end()).remedy(see(command))
}
