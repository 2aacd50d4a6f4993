//! A wrong command line as one sentence, and the help.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::print;
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;

/// What clap stopped at: help that was asked for is printed, the rest is an error in one sentence.
pub fn answer(error: &clap::Error, command: Option<&str>) -> Result<Exit> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            print(&error.render().to_string())?;
            Ok(Exit::Success)
        }
        _ => Err(sentence(error, command)),
    }
}

fn sentence(error: &clap::Error, command: Option<&str>) -> Error {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    };
    let arg = context(ContextKind::InvalidArg);
    let at = command.map(|name| format!("{name:?} ")).unwrap_or_default();
    let text = match error.kind() {
        ErrorKind::MissingRequiredArgument => format!("{at}requires {arg}"),
        ErrorKind::UnknownArgument if arg.starts_with('-') => {
            format!("{at}flag provided but not defined: {arg}")
        }
        ErrorKind::UnknownArgument => format!("{at}takes no further argument: {arg:?}"),
        ErrorKind::InvalidSubcommand => {
            format!(
                "there is no command {:?}",
                context(ContextKind::InvalidSubcommand)
            )
        }
        // The first line is the sentence; the others repeat the usage.
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.strip_prefix("error: ").unwrap_or(line);
            format!("{at}{line}")
        }
    };
    let remedy = match command {
        Some(name) if error.kind() != ErrorKind::InvalidSubcommand => {
            format!("see isorun {name} --help")
        }
        _ => "see isorun --help".to_string(),
    };
    Error::new(Kind::Usage, text.trim_end()).remedy(remedy)
}
