//! What stands before the command: `isorun --root DIR --log FILE create …`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use crate::error::{Error, Kind, Result};
use crate::log::{self, Format};
use crate::policy::{self, Config, Level, Wish};
use crate::state::Store;

/// The options that every command has.
#[derive(Debug)]
pub struct Global {
    /// Where containers' state is.
    pub store: Store,
    /// `--root` says where.
    pub root_given: bool,
    /// `--rootless`: whether cgroups may be missing for want of permission; nothing: as the host is.
    pub rootless: Option<bool>,
    /// systemd makes containers' cgroups.
    pub systemd_cgroup: bool,
    /// How much containers may do without.
    pub degrade: Wish,
}

/// What is needed before the command line is parsed: where errors go, also those of the command
/// line itself, and which command it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Early {
    /// The command's name.
    pub command: Option<String>,
    log: Option<PathBuf>,
    format: Option<String>,
    debug: bool,
}

/// Global options that take a value.
const WITH_VALUE: [&str; 6] = ["root", "log", "log-format", "rootless", "degrade", "criu"];

impl Early {
    /// Reads the options before the command, as far as it understands them.
    pub fn scan(args: &[OsString]) -> Self {
        let mut early = Early::default();
        let mut args = args.iter().skip(1);
        while let Some(arg) = args.next() {
            let Some(arg) = arg.to_str() else { break };
            // One dash or two, as in Go.
            let Some(option) = arg.strip_prefix('-') else {
                early.command = Some(arg.to_string());
                break;
            };
            let option = option.strip_prefix('-').unwrap_or(option);
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None if WITH_VALUE.contains(&option) => (option, args.next().cloned()),
                None => (option, None),
            };
            match name {
                "log" => early.log = value.map(PathBuf::from),
                "log-format" => {
                    early.format = value.as_deref().and_then(OsStr::to_str).map(str::to_string);
                }
                "debug" => early.debug = true,
                _ => {}
            }
        }
        early
    }

    /// Opens the log.
    ///
    /// # Errors
    /// An unknown form, in runc's words; a file that cannot be opened.
    pub fn start_log(&self) -> Result<()> {
        let format = match self.format.as_deref() {
            None | Some("text") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => {
                let sentence = format!("invalid log-format: {other}");
                return Err(Error::new(Kind::Usage, sentence).remedy("it is text or json"));
            }
        };
        let file = self
            .log
            .as_deref()
            .filter(|path| !path.as_os_str().is_empty());
        log::init(file, format, self.debug)
    }
}

/// The global options, for clap.
pub fn arguments() -> [Arg; 8] {
    let path = |name: &'static str| {
        Arg::new(name)
            .long(name)
            .value_parser(value_parser!(PathBuf))
    };
    [
        path("root").value_name("DIR").help(
            "Where containers' state is kept [default: /run/isorun, or $XDG_RUNTIME_DIR/isorun]",
        ),
        path("log")
            .value_name("FILE")
            .help("Append errors and warnings to this file as well as to stderr"),
        Arg::new("log-format")
            .long("log-format")
            .value_name("FORM")
            .help("Form of the lines in the log: text or json [default: text]"),
        Arg::new("debug")
            .long("debug")
            .action(ArgAction::SetTrue)
            .help("Log what is done, too"),
        Arg::new("rootless")
            .long("rootless")
            .value_name("WHEN")
            .help("Do without cgroups that may not be made: true, false or auto [default: auto]"),
        Arg::new("systemd-cgroup")
            .long("systemd-cgroup")
            .action(ArgAction::SetTrue)
            .help("Let systemd make the cgroup; linux.cgroupsPath is slice:prefix:name then"),
        Arg::new("degrade")
            .long("degrade")
            .value_name("LEVEL")
            .help(
                "What to do where the host refuses something: never, safe or any [default: safe]",
            ),
        // Engines pass it; it has no effect.
        Arg::new("criu").long("criu").hide(true),
    ]
}

impl Global {
    /// Takes the global options from what was parsed.
    ///
    /// # Errors
    /// For what is not supported yet; where the current directory has gone.
    pub fn read(matches: &ArgMatches) -> Result<Self> {
        let root = match matches.get_one::<PathBuf>("root") {
            Some(root) => std::path::absolute(root)
                .map_err(|error| Error::io("resolve", root.display().to_string(), &error))?,
            None => Store::default_root(crate::host::in_user_namespace),
        };
        Ok(Self {
            store: Store::new(root),
            root_given: matches.contains_id("root"),
            systemd_cgroup: matches.get_flag("systemd-cgroup"),
            degrade: Wish::new(
                matches.get_one::<String>("degrade").map(String::as_str),
                std::env::var_os(policy::VARIABLE),
            )?,
            rootless: rootless(matches.get_one::<String>("rootless").map(String::as_str))?,
        })
    }
}

impl Global {
    /// How much a new container may do without.
    ///
    /// # Errors
    /// A level that nobody knows or that the administrator does not allow; a configuration that cannot
    /// be read.
    pub fn level(&self) -> Result<Level> {
        self.degrade.level(&Config::read()?)
    }
}

/// What `--rootless` means, with all words for yes and no that runc takes.
fn rootless(word: Option<&str>) -> Result<Option<bool>> {
    match word {
        None | Some("" | "auto") => Ok(None),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
        Some(word) => Err(Error::new(
            Kind::Usage,
            format!("--rootless {word:?}: it is neither true nor false nor auto"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(line: &str) -> Early {
        Early::scan(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_needed_early() {
        let early = scan("isorun --debug --root /r --log=/l --log-format json create --log /x id");
        assert_eq!(early.command.as_deref(), Some("create"));
        assert_eq!(early.log.as_deref(), Some(std::path::Path::new("/l")));
        assert_eq!((early.format.as_deref(), early.debug), (Some("json"), true));
        let early = scan("isorun -root /r -log /l -debug exec -log /x id");
        assert_eq!(early.command.as_deref(), Some("exec"));
        assert_eq!(early.log.as_deref(), Some(std::path::Path::new("/l")));
        assert!(early.debug);
        assert_eq!(
            scan("isorun --root run list").command.as_deref(),
            Some("list")
        );
        assert_eq!(
            scan("isorun --systemd-cgroup run x").command.as_deref(),
            Some("run")
        );
        assert_eq!(scan("isorun -v"), Early::default());
        assert_eq!(scan("isorun --log"), Early::default());
        let wrong = scan("isorun --log-format xml list")
            .start_log()
            .unwrap_err();
        assert!(
            wrong.to_string().starts_with("invalid log-format: xml"),
            "{wrong}"
        );
    }
}
