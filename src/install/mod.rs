//! Makes isorun known to an engine: the change to its configuration, shown, made and taken back.
//!
//! A change is computed first, as texts before and after ([`changes`]); showing it, making it and
//! refusing it are the same path up to there. What was not written by isorun is kept byte by byte,
//! or the file is not touched.

mod containerd;
mod diff;
mod dropin;
mod files;
mod json;

use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
pub use diff::difference;
use files::Base;

/// What can call isorun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A drop-in below containers/containers.conf.d.
    Podman,
    /// The keys `runtimes` and `default-runtime` of docker/daemon.json.
    Docker,
    /// A handler of the CRI plug-in in containerd/config.toml.
    Containerd,
    /// A drop-in below crio/crio.conf.d.
    Crio,
}

impl Engine {
    /// All of them, in the order of the help.
    pub const ALL: [Engine; 4] = [
        Engine::Podman,
        Engine::Docker,
        Engine::Containerd,
        Engine::Crio,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Podman => "podman",
            Engine::Docker => "docker",
            Engine::Containerd => "containerd",
            Engine::Crio => "crio",
        }
    }

    /// The program by which it is seen whether the engine is installed.
    pub fn program(self) -> &'static str {
        match self {
            Engine::Docker => "dockerd",
            other => other.name(),
        }
    }

    /// The engine of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.name() == name)
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whose configuration.
    pub engine: Engine,
    /// The directory that stands for /etc (or, for Podman of a user, for ~/.config).
    pub etc: PathBuf,
    /// That directory may be missing (a new user has no ~/.config), and is made for what is written.
    pub may_make_etc: bool,
    /// The path of isorun as the engine is to call it.
    pub binary: String,
    /// Also make it the runtime that is used when none is named.
    pub default: bool,
    /// Take back what an earlier call wrote.
    pub uninstall: bool,
}

/// One file's change. `None` means that there is no such file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Below the base directory.
    pub path: PathBuf,
    /// The text that is there.
    pub before: Option<String>,
    /// The text that is to be there.
    pub after: Option<String>,
    /// Directories, below the base, that go with the file if they are empty then.
    pub directories: Vec<PathBuf>,
    /// The file, below the base, whose owner and mode a new one gets: what holds a copy of its text is
    /// for nobody's eyes that it is not for.
    pub like: Option<PathBuf>,
}

/// What is to be done, and what the user ought to know.
#[derive(Debug, Default)]
pub struct Changes {
    /// In the order in which they are made. Empty: all is as asked for.
    pub changes: Vec<Change>,
    /// Sentences for stderr.
    pub warnings: Vec<String>,
}

/// Computes the changes; writes nothing.
///
/// # Errors
/// A file that cannot be read or parsed, that is a symbolic link or lies behind one, or that has a
/// runtime `isorun` which this command did not write.
pub fn changes(request: &Request) -> Result<Changes> {
    let base = Base::open(&request.etc, request.may_make_etc)?;
    match request.engine {
        Engine::Podman => dropin::podman(&base, request),
        Engine::Crio => dropin::crio(&base, request),
        Engine::Docker => json::docker(&base, request),
        Engine::Containerd => containerd::containerd(&base, request),
    }
}

/// Makes the changes.
///
/// # Errors
/// The system's refusal. Each file is replaced as a whole; those before the failed one are changed.
pub fn apply(request: &Request, changes: &[Change]) -> Result<()> {
    if request.may_make_etc && changes.iter().any(|change| change.after.is_some()) {
        std::fs::create_dir_all(&request.etc).map_err(|error| {
            Error::io("make directory", request.etc.display().to_string(), &error)
        })?;
    }
    let base = Base::open(&request.etc, request.may_make_etc)?;
    for change in changes {
        match &change.after {
            Some(text) => base.replace(&change.path, text, change.like.as_deref())?,
            None => base.remove(&change.path)?,
        }
        for directory in &change.directories {
            base.remove_if_empty(directory)?;
        }
    }
    Ok(())
}

/// A string as JSON and TOML both write it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The first line of what was written as a whole.
fn header(engine: Engine) -> String {
    let name = engine.name();
    format!(
        "# Written by \"isorun install {name}\"; \"isorun install {name} --uninstall\" takes it back.\n"
    )
}

/// The refusal to touch a file.
fn refuse(base: &Base, path: &Path, why: &str) -> Error {
    Error::new(
        Kind::Usage,
        format!("{} is left as it is: {why}", base.display(path)),
    )
}

#[cfg(test)]
mod tests;
