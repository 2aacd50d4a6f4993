//! Loading and checking of config.json.
//!
//! [`load`] reads a bundle and gives back a [`Loaded`]: a `Spec` that is known to be valid for this
//! version of isorun, or an error that names the JSON path of what is wrong. Nothing here starts,
//! mounts or changes anything.
//!
//! ```text
//! config.json --parse--> Spec --check--> Loaded --(plan)--> mounts::parse_mount, names::*
//! ```
//!
//! - [`parse`]: JSON to types; what Go's decoder takes (null for "not set") is taken here too;
//! - [`mod@check`]: every rule, pure, on a parsed `Spec`;
//! - [`capabilities`]: names of capabilities that are not known;
//! - [`mounts`]: mount options to flags;
//! - [`names`]: names to numbers (namespaces, rlimits, capabilities, sysctl files);
//! - [`mod@template`] and [`mod@features`]: what `isorun spec` and `isorun features` print.
//!
//! A property that the specification knows and isorun does not act on is refused by name, or named
//! in [`Loaded::ignored`]. docs/spec-support.md is the table of all of them; tests/spec_support.rs
//! holds table and code together.

pub mod capabilities;
pub mod check;
pub mod cpus;
pub mod features;
pub mod mounts;
pub mod names;
mod objects;
pub mod parse;
mod place;
pub mod spelling;
pub mod template;

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::error::{Error, Kind, Result};

pub use check::{check, check_process, warnings};
pub use features::{SeccompLists, features};
pub use parse::Parsed;
pub use template::template;

/// The lowest version of the specification that is accepted.
pub const VERSION_MIN: &str = "1.0.0";

/// The version of the specification that isorun implements.
pub const VERSION_MAX: &str = "1.3.0";

/// The largest config.json that is read, in bytes; the biggest of the real engines are under 64 KiB.
pub const MAX_SIZE: u64 = 16 << 20;

/// A bundle whose config.json was read and checked.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The specification as written, after the checks of [`check()`].
    pub spec: Spec,
    /// The bundle's directory, canonical.
    pub bundle: PathBuf,
    /// The root file system: an absolute, canonical path to a directory.
    pub rootfs: PathBuf,
    /// config.json as it was read, for the state directory: `exec` goes by it.
    pub text: Vec<u8>,
    /// What config.json asks for and isorun does not do, one sentence each: `path: reason`. For
    /// the log; a caller must not drop it.
    pub ignored: Vec<String>,
    /// What a user must hear of whatever they asked to be told: for a warning.
    pub warnings: Vec<String>,
}

/// Reads, parses and checks `<bundle>/config.json`.
///
/// # Errors
///
/// [`Kind::Spec`] when the file is missing, larger than [`MAX_SIZE`], no JSON, or breaks a rule:
/// the sentence names the JSON path. [`Kind::System`] when the file system refuses.
pub fn load(bundle: &Path) -> Result<Loaded> {
    let canonical = bundle
        .canonicalize()
        .map_err(|error| Error::io("open bundle", bundle.display().to_string(), &error))?;
    let bytes = read(&canonical)?;
    let Parsed {
        spec,
        mut ignored,
        warnings: mut told,
    } = parse::parse(&bytes)?;
    ignored.extend(check(&spec)?);
    told.extend(warnings(&spec));
    let rootfs = rootfs(&canonical, &spec)?;
    Ok(Loaded {
        warnings: told,
        spec,
        bundle: canonical,
        rootfs,
        text: bytes,
        ignored,
    })
}

/// The bytes of config.json in `bundle`.
fn read(bundle: &Path) -> Result<Vec<u8>> {
    let path = bundle.join("config.json");
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::new(
            Kind::Spec,
            format!(
                "JSON specification file config.json not found in {}",
                bundle.display()
            ),
        )
        .remedy("give the bundle's directory with --bundle, or write one with isorun spec"),
        _ => Error::io("read", path.display().to_string(), &error),
    };
    // O_NONBLOCK: a fifo of that name must not hang the runtime; for a file it means nothing.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let refuse = |why: String| Err(Error::new(Kind::Spec, format!("{}: {why}", path.display())));
    if !metadata.is_file() {
        return refuse("it is not a regular file".into());
    }
    if metadata.len() > MAX_SIZE {
        return refuse(format!(
            "it has {} bytes; at most {MAX_SIZE} are read",
            metadata.len()
        ));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
    // The limit holds for a file that grows while it is read, too.
    file.take(MAX_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    match bytes.len() as u64 > MAX_SIZE {
        true => refuse(format!("it has more than {MAX_SIZE} bytes")),
        false => Ok(bytes),
    }
}

/// Reads and parses a process file of `exec`; it is not checked. The second value is what a user must
/// hear of it: for a warning.
///
/// # Errors
///
/// [`Kind::Spec`] naming the file; the refusal of the file system.
pub fn load_process(path: &Path) -> Result<(oci_spec::runtime::Process, Option<String>)> {
    let name = path.display().to_string();
    let file = OpenOptions::new().read(true).open(path);
    let mut bytes = Vec::new();
    file.and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut bytes))
        .map_err(|error| Error::io("read the process file", &name, &error))?;
    if bytes.len() as u64 > MAX_SIZE {
        let sentence = format!("{name}: it has more than {MAX_SIZE} bytes");
        return Err(Error::new(Kind::Spec, sentence));
    }
    parse::process(&bytes).map_err(|error| error.context(&format!("process file {name}")))
}

/// root.path as a canonical directory; relative paths start at the bundle.
fn rootfs(bundle: &Path, spec: &Spec) -> Result<PathBuf> {
    let Some(root) = spec.root() else {
        return Err(Error::spec(
            "root",
            "missing: a container needs a root file system",
        ));
    };
    let path = bundle.join(root.path());
    let wrong = |why: String| Error::spec("root.path", format!("{}: {why}", path.display()));
    let canonical = path
        .canonicalize()
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => wrong("no such directory".into()),
            Some(libc::ENOTDIR) => wrong("not a directory".into()),
            _ => wrong(error.to_string()),
        })?;
    match canonical.is_dir() {
        true => Ok(canonical),
        false => Err(wrong("not a directory".into())),
    }
}

#[cfg(test)]
mod tests;
