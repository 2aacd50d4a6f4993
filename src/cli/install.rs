//! `isorun install ENGINE`: makes isorun known to an engine, or takes that back.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use nix::unistd::geteuid;

use super::{Entry, Global, print};
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;
use crate::install::{self, Change, Engine, Request};
use crate::log;

pub const ENTRY: Entry = Entry {
    name: "install",
    about: "Make isorun known to Podman, Docker, containerd or CRI-O",
    arguments: |command| {
        let flag = |name: &'static str, help: &'static str| {
            Arg::new(name)
                .long(name)
                .action(ArgAction::SetTrue)
                .help(help)
        };
        let path = |name: &'static str, value: &'static str, help: &'static str| {
            Arg::new(name)
                .long(name)
                .value_name(value)
                .value_parser(value_parser!(PathBuf))
                .help(help)
        };
        command.args([
            Arg::new("engine")
                .value_name("engine")
                .required(true)
                .value_parser(Engine::ALL.map(Engine::name))
                .help("Whose configuration"),
            flag("dry-run", "Show what would change, and change nothing"),
            flag("uninstall", "Take back what an earlier install wrote"),
            flag(
                "default",
                "Also use isorun where no runtime is named (not for containerd)",
            ),
            path(
                "etc",
                "DIR",
                "The engine's configuration is below here [default: /etc; Podman without root: ~/.config]",
            ),
            path(
                "binary",
                "FILE",
                "The path that the engine is to call [default: this program's]",
            ),
        ])
    },
    run,
};

fn run(_: &Global, matches: &ArgMatches) -> Result<Exit> {
    let engine = matches
        .get_one::<String>("engine")
        .and_then(|name| Engine::by_name(name))
        .ok_or_else(|| Error::new(Kind::Usage, "the engine is missing"))?;
    let default = matches.get_flag("default");
    if default && engine == Engine::Containerd {
        let sentence =
            "--default is not for containerd: which pods use isorun is said by a RuntimeClass";
        return Err(Error::new(Kind::Usage, sentence));
    }
    let etc = matches.get_one::<PathBuf>("etc");
    let uninstall = matches.get_flag("uninstall");
    if etc.is_none() && !uninstall && !on_path(engine.program()) {
        let sentence = format!("{} is not installed: it is not on PATH", engine.program());
        return Err(Error::new(Kind::Usage, sentence)
            .remedy("install it first, or say by --etc where its configuration is"));
    }
    let request = Request {
        engine,
        etc: match etc {
            Some(etc) => etc.clone(),
            None => default_etc(engine)?,
        },
        may_make_etc: etc.is_none() && engine == Engine::Podman && !geteuid().is_root(),
        binary: binary(matches.get_one::<PathBuf>("binary"))?,
        default,
        uninstall,
    };
    let found = install::changes(&request)?;
    for warning in &found.warnings {
        log::warning(warning);
    }
    if matches.get_flag("dry-run") {
        for change in &found.changes {
            let name = request.etc.join(&change.path).display().to_string();
            let (before, after) = (change.before.as_deref(), change.after.as_deref());
            print(&install::difference(&name, before, after))?;
        }
        return Ok(Exit::Success);
    }
    install::apply(&request, &found.changes)?;
    print(&told(&request, &found.changes))?;
    Ok(Exit::Success)
}

/// What was done, and the command to try next.
fn told(request: &Request, changes: &[Change]) -> String {
    let mut text = String::new();
    for change in changes {
        let what = if change.after.is_some() {
            "wrote"
        } else {
            "removed"
        };
        text += &format!("{what} {}\n", request.etc.join(&change.path).display());
    }
    if changes.is_empty() {
        text += match request.uninstall {
            true => "nothing to take back\n",
            false => "installed already\n",
        };
    }
    if !changes.is_empty() || !request.uninstall {
        text += &next(request);
    }
    text
}

/// The command that makes the engine see the change, or shows that it works.
fn next(request: &Request) -> String {
    let runtime = if request.default {
        ""
    } else {
        "--runtime isorun "
    };
    let image = "docker.io/library/busybox echo hello";
    // Where systemd manages Podman's cgroups and isorun cannot, Podman has to do it itself.
    let manager = match crate::spec::features(None, &[])["linux"]["cgroup"]["systemd"].as_bool() {
        Some(true) => "",
        _ => "--cgroup-manager cgroupfs ",
    };
    match (request.engine, request.uninstall) {
        (Engine::Podman, true) => String::new(),
        (Engine::Podman, false) => format!("try: podman {runtime}{manager}run --rm {image}\n"),
        (Engine::Docker, true) => "then: systemctl reload docker\n".to_string(),
        (Engine::Docker, false) => {
            format!("try: systemctl reload docker && docker run {runtime}--rm {image}\n")
        }
        (Engine::Containerd, true) => "then: systemctl restart containerd\n".to_string(),
        (Engine::Containerd, false) => "try: systemctl restart containerd && \
             crictl info | grep isorun; then a RuntimeClass with the handler isorun\n"
            .to_string(),
        (Engine::Crio, true) => "then: systemctl restart crio\n".to_string(),
        (Engine::Crio, false) => "try: systemctl restart crio && \
             crio status config | grep isorun; then a RuntimeClass with the handler isorun\n"
            .to_string(),
    }
}

/// Where the engine's configuration is, if nobody says so.
fn default_etc(engine: Engine) -> Result<PathBuf> {
    if engine != Engine::Podman || geteuid().is_root() {
        return Ok("/etc".into());
    }
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let config = match variable("XDG_CONFIG_HOME") {
        Some(config) => PathBuf::from(config),
        None => match variable("HOME") {
            Some(home) => Path::new(&home).join(".config"),
            None => {
                let sentence = "neither XDG_CONFIG_HOME nor HOME is set";
                return Err(Error::new(Kind::Usage, sentence).remedy("give --etc"));
            }
        },
    };
    Ok(config)
}

/// The path of isorun for the engine: absolute, because engines look in a PATH of their own.
fn binary(given: Option<&PathBuf>) -> Result<String> {
    let path = match given {
        Some(path) => path.clone(),
        None => std::env::current_exe()
            .map_err(|error| Error::io("read link", "/proc/self/exe", &error))?,
    };
    if !path.is_absolute() {
        let sentence = format!("--binary {}: not an absolute path", path.display());
        return Err(Error::new(Kind::Usage, sentence));
    }
    match path.to_str() {
        Some(text) if !text.chars().any(char::is_control) => Ok(text.to_string()),
        _ => {
            let sentence = format!("{}: not a path for a configuration", path.display());
            Err(Error::new(Kind::Usage, sentence).remedy("it is to be UTF-8 in one line"))
        }
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Daemons are in sbin, which a user's PATH may lack.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).is_file())
}
