//! Writes to the host's /proc, each after a check that it is procfs: a process that can mount over
//! /proc could turn them elsewhere (CVE-2019-16884, CVE-2025-52881).

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::error::{Error, Kind, Result};

pub use crate::sys::fs::PROC_MAGIC;

/// Writes `value` to the file `name` below /proc, with one write. To be called while `/proc` is the
/// host's.
///
/// # Errors
/// A sentence with the path, the value and the errno.
pub fn write(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/{name}");
    let fail = |errno| Error::os(format!("write {value:?} to"), &path, errno);
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let fd = open(path.as_str(), flags, Mode::empty()).map_err(fail)?;
    let magic = {
        use std::os::fd::AsFd;
        crate::sys::fs::fs_magic(fd.as_fd()).map_err(fail)?
    };
    if magic != PROC_MAGIC {
        return Err(fail(Errno::EXDEV).remedy("the file is not on procfs"));
    }
    nix::unistd::write(&fd, value.as_bytes())
        .map(drop)
        .map_err(fail)
}

/// This process's pid as the host's /proc numbers it.
///
/// # Errors
/// When /proc/self cannot be read.
pub fn own_pid_outside() -> Result<i32> {
    let link = std::fs::read_link("/proc/self")
        .map_err(|error| Error::io("read", "/proc/self", &error))?;
    link.to_string_lossy()
        .parse()
        .map_err(|_| Error::new(Kind::System, "/proc/self is not the link of procfs"))
}
