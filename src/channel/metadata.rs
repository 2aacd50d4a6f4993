//! What is kept beside a channel, and where.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Key, Size};
use crate::error::{Error, Kind, Result};

/// The version of the format; it goes up when a field changes its meaning.
pub const FORMAT: u32 = 1;

/// How many files a channel may hold where nobody says so.
pub const DEFAULT_INODES: u64 = 65_536;

/// More than a file of this module ever has.
const MOST: u64 = 64 << 10;

/// What is known about a channel: `.<name>.json` beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The version of the format, of the isorun that wrote it.
    pub version: u32,
    /// Which channel it is.
    pub key: Key,
    /// The user id of who made it, as the kernel has it.
    pub maker: u32,
    /// It was made by `isorun channel create`, and stays without members.
    pub pinned: bool,
    /// When it was made, RFC 3339 in UTC.
    pub created: String,
    /// The size limit of its tmpfs; nothing: half of the memory, or the file system's that it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// How many files it may hold; nothing without a tmpfs of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// The SELinux label that all its files have; nothing: what the policy gives a tmpfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The permission bits of its directory.
    pub mode: u32,
    /// User and group of its directory.
    pub owner: (u32, u32),
    /// It is a directory of the file system that is there, without a tmpfs of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
    /// The boot of the machine in which it was mounted: /proc/sys/kernel/random/boot_id.
    pub boot: String,
    /// The device number of its file system, once it is mounted.
    #[serde(default)]
    pub device: u64,
}

/// The number of this boot; empty where /proc does not tell.
pub fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_string()
}

/// Reads a file of this module; none where it is not there.
///
/// # Errors
/// The system's refusal; what is no JSON of this form, or of a newer isorun.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let shown = || path.display().to_string();
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| Error::io("read", shown(), &error))?,
    };
    let mut text = Vec::new();
    file.take(MOST)
        .read_to_end(&mut text)
        .map_err(|error| Error::io("read", shown(), &error))?;
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        let sentence = format!("{} is not readable: {error}", shown());
        Error::new(Kind::State, sentence)
            .remedy("isorun channel remove --force removes the channel")
    })
}

/// Replaces the file `name` of the directory: a reader sees the old one or the new one.
///
/// # Errors
/// The system's refusal; the old file is still there then.
pub fn write(directory: BorrowedFd<'_>, name: &str, value: &impl Serialize) -> Result<()> {
    let failed = |errno| Error::os("write", name, errno);
    let text = serde_json::to_vec(value)
        .map_err(|error| Error::new(Kind::State, format!("write {name}: {error}")))?;
    let new = format!("{name}.new");
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(
        directory,
        new.as_str(),
        flags,
        Mode::from_bits_truncate(0o600),
    )
    .map_err(failed)?;
    let written = File::from(fd)
        .write_all(&text)
        .map_err(|error| Error::io("write", name, &error))
        .and_then(|()| renameat(directory, new.as_str(), directory, name).map_err(failed));
    if written.is_err() {
        let _ = unlinkat(directory.as_fd(), new.as_str(), UnlinkatFlags::NoRemoveDir);
    }
    written
}

/// Removes a file; that it is not there is no failure.
///
/// # Errors
/// The system's refusal.
pub fn remove(path: &Path) -> Result<()> {
    match nix::unistd::unlink(path) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Error::os("remove", path.display().to_string(), errno)),
    }
}
