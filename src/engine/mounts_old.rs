//! The same mounts by mount(2), where a kernel or a filter denies the newer calls.
//!
//! Targets and sources are named by /proc/self/fd/N, so a path that is exchanged in between is not
//! followed here either.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount as mount2};
use nix::sys::stat::Mode;

use super::mounts::{
    bind_target, check_over_proc, failed, mismatch, propagate as propagate_by_fd, set_below,
    set_own,
};
use super::root::Root;
use crate::error::Result;
use crate::plan::Mount;
use crate::sys::fs::fs_flags;
use crate::sys::mount::attr;

const NONE: Option<&str> = None;

/// The path by which a descriptor can be named to mount(2).
pub fn fd_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Flags of the superblock, which mount(2) takes as bits and fsconfig(2) by name.
const SUPERBLOCK: [(&str, MsFlags); 6] = [
    ("sync", MsFlags::MS_SYNCHRONOUS),
    ("dirsync", MsFlags::MS_DIRSYNC),
    ("mand", MsFlags::MS_MANDLOCK),
    ("silent", MsFlags::MS_SILENT),
    ("iversion", MsFlags::MS_I_VERSION),
    ("lazytime", MsFlags::MS_LAZYTIME),
];

/// MS_NOSYMFOLLOW of linux/mount.h (Linux 5.10).
const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);

/// The access-time modes, of which a mount has one.
const ATIME: MsFlags = MsFlags::MS_NOATIME
    .union(MsFlags::MS_RELATIME)
    .union(MsFlags::MS_STRICTATIME);

/// The flags of mount(2) for MOUNT_ATTR_* bits.
pub fn flags_of(set: u64) -> MsFlags {
    const TABLE: [(u64, MsFlags); 8] = [
        (attr::RDONLY, MsFlags::MS_RDONLY),
        (attr::NOSUID, MsFlags::MS_NOSUID),
        (attr::NODEV, MsFlags::MS_NODEV),
        (attr::NOEXEC, MsFlags::MS_NOEXEC),
        (attr::NOATIME, MsFlags::MS_NOATIME),
        (attr::STRICTATIME, MsFlags::MS_STRICTATIME),
        (attr::NODIRATIME, MsFlags::MS_NODIRATIME),
        (attr::NOSYMFOLLOW, NOSYMFOLLOW),
    ];
    let set = TABLE.iter().filter(|(bit, _)| set & bit != 0);
    set.fold(MsFlags::empty(), |all, (_, flag)| all | *flag)
}

/// The flags that a mount has, as mount(2) takes them.
fn flags_now(mount: BorrowedFd<'_>) -> nix::Result<MsFlags> {
    // ST_* of statfs(2) and linux/statfs.h.
    const TABLE: [(u64, MsFlags); 8] = [
        (0x1, MsFlags::MS_RDONLY),
        (0x2, MsFlags::MS_NOSUID),
        (0x4, MsFlags::MS_NODEV),
        (0x8, MsFlags::MS_NOEXEC),
        (0x400, MsFlags::MS_NOATIME),
        (0x800, MsFlags::MS_NODIRATIME),
        (0x1000, MsFlags::MS_RELATIME),
        (0x2000, NOSYMFOLLOW),
    ];
    let told = fs_flags(mount)?;
    let set = TABLE.iter().filter(|(bit, _)| told & bit != 0);
    let flags = set.fold(MsFlags::empty(), |all, (_, flag)| all | *flag);
    Ok(match flags.intersects(ATIME) {
        true => flags,
        false => flags | MsFlags::MS_STRICTATIME,
    })
}

/// The flags of the superblock and the data for mount(2) in the parameters of a file system.
fn parameters(data: &[(String, Option<String>)]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut parameters = Vec::new();
    for (key, value) in data {
        match (value, SUPERBLOCK.iter().find(|(name, _)| name == key)) {
            // The label of SELinux may have commas, which would end it.
            (Some(value), _) if key.ends_with("context") => {
                parameters.push(format!("{key}=\"{value}\""));
            }
            (Some(value), _) => parameters.push(format!("{key}={value}")),
            (None, Some((_, flag))) => flags |= *flag,
            (None, None) => parameters.push(key.clone()),
        }
    }
    (flags, parameters.join(","))
}

/// A new file system on `target`.
///
/// # Errors
/// Those of mount(2).
pub fn fresh(
    target: &OwnedFd,
    set: u64,
    fstype: &str,
    source: &str,
    data: &[(String, Option<String>)],
) -> nix::Result<()> {
    let (flags, data) = parameters(data);
    let path = fd_path(target.as_fd());
    mount2(
        Some(source),
        path.as_str(),
        Some(fstype),
        flags | flags_of(set),
        Some(data.as_str()),
    )
}

/// Other flags and parameters for the file system that is mounted at `target`.
///
/// # Errors
/// Those of mount(2): EINVAL where nothing is mounted.
pub fn remount_file_system(
    target: &OwnedFd,
    set: u64,
    data: &[(String, Option<String>)],
) -> nix::Result<()> {
    let (flags, data) = parameters(data);
    let flags = flags | flags_of(set) | MsFlags::MS_REMOUNT;
    let path = fd_path(target.as_fd());
    mount2(NONE, path.as_str(), NONE, flags, Some(data.as_str()))
}

/// A bind mount of `from` with its flags and propagation.
///
/// # Errors
/// A sentence with the entry's field, source, target and errno.
pub fn bind(root: &Root, mount: &Mount, from: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let source = nix::fcntl::readlink(fd_path(from).as_str()).unwrap_or_default();
    let what = format!("bind mount {}", source.to_string_lossy());
    let fail = |errno| failed(mount, &what, errno);
    let target = bind_target(root, mount, from)?;
    check_over_proc(mount, &target, Some(from))?;
    mismatch(mount, &what, from, target.as_fd())?;
    let mut flags = MsFlags::MS_BIND;
    flags.set(MsFlags::MS_REC, recursive);
    let (from, to) = (fd_path(from), fd_path(target.as_fd()));
    mount2(Some(from.as_str()), to.as_str(), NONE, flags, NONE).map_err(fail)?;
    let made = root.open(&mount.target).map_err(fail)?;
    set_own(made.as_fd(), mount)?;
    set_below(made.as_fd(), mount)?;
    propagate(root, mount)
}

/// Sets the propagation of the mount that is at the target now.
///
/// # Errors
/// A sentence with the entry's field, target and errno.
pub fn propagate(root: &Root, mount: &Mount) -> Result<()> {
    let fail = |errno| failed(mount, "set the propagation", errno);
    if mount.propagation.is_empty() {
        return Ok(());
    }
    let made = root.open(&mount.target).map_err(fail)?;
    match propagate_by_fd(made.as_fd(), mount) {
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let path = fd_path(made.as_fd());
            mount.propagation.iter().try_for_each(|&flags| {
                let flags = MsFlags::from_bits_retain(flags);
                mount2(NONE, path.as_str(), NONE, flags, NONE).map_err(fail)
            })
        }
        other => other.map_err(fail),
    }
}

/// A read-only bind mount of `path` on itself; `target` is what it resolved to.
///
/// # Errors
/// Those of mount(2).
pub fn readonly_path(root: &Root, path: &str, target: &OwnedFd) -> nix::Result<()> {
    let place = fd_path(target.as_fd());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount2(Some(place.as_str()), place.as_str(), NONE, flags, NONE)?;
    add_flags(root.open(path)?.as_fd(), MsFlags::MS_RDONLY)
}

fn remount(mount: BorrowedFd<'_>, flags: MsFlags) -> nix::Result<()> {
    let flags = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount2(NONE, fd_path(mount).as_str(), NONE, flags, NONE)
}

/// Sets flags of a mount. A remount sets all of them anew, so those that it has are repeated.
///
/// # Errors
/// Those of mount(2).
pub fn add_flags(mount: BorrowedFd<'_>, set: MsFlags) -> nix::Result<()> {
    remount(mount, flags_now(mount)? | set)
}

/// The access-time mode that is asked for, where one is.
fn atime_of(set: u64, clear: u64) -> Option<MsFlags> {
    (clear & attr::ATIME != 0).then_some(match set & attr::ATIME {
        attr::NOATIME => MsFlags::MS_NOATIME,
        attr::STRICTATIME => MsFlags::MS_STRICTATIME,
        _ => MsFlags::MS_RELATIME,
    })
}

/// Sets the flags of a bind mount (MOUNT_ATTR_* in `set` and `clear`): those of `set`, and no others but
/// the locked ones, unless they are in `clear`.
///
/// # Errors
/// EPERM when a locked flag would have to go.
pub fn set_flags(mount: BorrowedFd<'_>, set: u64, clear: u64) -> nix::Result<()> {
    let atime = atime_of(set, clear);
    let wanted = flags_of(set & !attr::ATIME) | atime.unwrap_or(MsFlags::empty());
    match remount(mount, wanted) {
        Err(Errno::EPERM) => {}
        other => return other,
    }
    // A locked flag stays locked on repetition. Access times would be changed silently (the kernel lets
    // some of their flags hide others), so they have to be what is asked for.
    let now = flags_now(mount)?;
    let cleared = now.intersects(flags_of(clear & !attr::ATIME));
    if cleared || atime.is_some_and(|kind| kind != now & ATIME) {
        return Err(Errno::EPERM);
    }
    remount(mount, wanted | now)
}

/// Sets and clears flags of all mounts of the tree whose top is `top`, one after the other.
///
/// # Errors
/// Those of mount(2) and of reading the table of mounts.
pub fn set_tree_flags(top: BorrowedFd<'_>, set: u64, clear: u64) -> nix::Result<()> {
    let path = nix::fcntl::readlink(fd_path(top).as_str())?;
    let path = Path::new(&path);
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let atime = atime_of(set, clear);
    for mount in super::mountinfo::read().map_err(errno)? {
        if !mount.point.starts_with(path) {
            continue;
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let here = nix::fcntl::open(&mount.point, flags, Mode::empty())?;
        let mut kept = flags_now(here.as_fd())? & !flags_of(clear & !attr::ATIME);
        if atime.is_some() {
            kept &= !ATIME;
        }
        let atime = atime.unwrap_or(MsFlags::empty());
        remount(here.as_fd(), kept | flags_of(set & !attr::ATIME) | atime)?;
    }
    Ok(())
}
