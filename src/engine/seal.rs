//! The binary out of the container's reach (CVE-2019-5736).
//!
//! A process of the container can reach the program that its own first process ran before, through
//! /proc/self/exe: an image whose entry point is that link, or a script whose interpreter is, would
//! open the host's isorun for writing. So the commands that put a process into a container first
//! execute themselves again from where nothing can be written: a detached read-only copy of the mount
//! that holds the binary. It belongs to no mount namespace after the exec, so nobody can make it
//! writable again, and no byte is copied. Where the kernel lacks mount_setattr (Linux 5.12) or denies
//! it, a sealed copy in memory does the same.

use std::ffi::{CString, OsString};
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::error::{Error, Kind, Result};
use crate::sys::fs::{fexec, memfd, seal, seals};
use crate::sys::mount::{attr, mount_setattr, open_tree_clone};

const SELF: &str = "/proc/self/exe";
/// Tells the second start that it is one, so that a mount that does not stay read-only ends in an
/// error and not in a circle.
const MARK: &str = "_ISORUN_SEALED";

/// Returns when this process runs from where its binary cannot be written; executes it again from
/// such a place before that. To be called first of all, with one thread.
///
/// # Errors
/// When neither way works: a container must not be started then.
pub fn ensure() -> Result<()> {
    let fail = |errno| Error::os("protect the binary: open", SELF, errno);
    let binary = open(SELF, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(fail)?;
    if is_safe(binary.as_fd()) {
        return Ok(());
    }
    if std::env::var_os(MARK).is_some() {
        return Err(Error::new(
            Kind::System,
            format!("protect the binary: it is still writable through {SELF} after a new start"),
        ));
    }
    let args = strings(std::env::args_os())?;
    let marked = std::env::vars_os()
        .map(|(name, value)| {
            let mut pair = name;
            pair.push("=");
            pair.push(value);
            pair
        })
        .chain([OsString::from(format!("{MARK}=1"))]);
    let env = strings(marked)?;
    let errno = match readonly_copy(binary.as_fd()).or_else(|_| sealed_copy(binary)) {
        Ok(copy) => fexec(copy.as_fd(), &args, &env),
        Err(errno) => errno,
    };
    Err(Error::os(
        "protect the binary: execute a read-only copy of",
        SELF,
        errno,
    )
    .remedy("it needs execveat, and CAP_SYS_ADMIN with mount_setattr (Linux 5.12) or memfd_create"))
}

fn strings(list: impl Iterator<Item = OsString>) -> Result<Vec<CString>> {
    list.map(|s| CString::new(s.into_vec()))
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| Error::new(Kind::Usage, "an argument holds a null byte"))
}

/// A sealed memfd, or a mount that is read-only.
fn is_safe(binary: BorrowedFd<'_>) -> bool {
    let all = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    if seals(binary).is_ok_and(|seals| seals & all == all) {
        return true;
    }
    // Nobody in a container of an unprivileged user has an id that may write a file of the machine's
    // root: no id of that container is the machine's 0. (An access list that lets others write shows in
    // the group bits of the mode.)
    // A capability over ids might change that.
    if !nix::unistd::geteuid().is_root()
        && !crate::host::in_user_namespace()
        && crate::sys::process::effective_caps() == Ok(0)
        && nix::sys::stat::fstat(binary)
            .is_ok_and(|stat| stat.st_uid == 0 && stat.st_mode & 0o022 == 0)
    {
        return true;
    }
    // A binary that was installed on a read-only mount is as safe as a copy of it: its own mount, and
    // not the one through which the container sees the file system, is what /proc/self/exe leads to.
    fstatvfs(binary).is_ok_and(|stat| stat.flags().contains(FsFlags::ST_RDONLY))
}

fn readonly_copy(binary: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let copy = open_tree_clone(binary, c"", false)?;
    mount_setattr(&copy, false, attr::RDONLY, 0, 0)?;
    Ok(copy)
}

fn sealed_copy(binary: OwnedFd) -> nix::Result<OwnedFd> {
    let errno = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let mut from = std::fs::File::from(binary);
    let mut to = std::fs::File::from(memfd(c"isorun")?);
    std::io::copy(&mut from, &mut to).map_err(errno)?;
    to.flush().and_then(|()| to.rewind()).map_err(errno)?;
    let copy = OwnedFd::from(to);
    seal(copy.as_fd())?;
    Ok(copy)
}
