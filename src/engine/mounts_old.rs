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
    bind_target, check_over_proc, failed, propagate as propagate_by_fd, set_attributes,
};
use super::root::Root;
use crate::error::Result;
use crate::plan::Mount;
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
        (attr::NOSYMFOLLOW, MsFlags::from_bits_retain(256)),
    ];
    let set = TABLE.iter().filter(|(bit, _)| set & bit != 0);
    set.fold(MsFlags::empty(), |all, (_, flag)| all | *flag)
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
    let mut flags = flags_of(set);
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
    let path = fd_path(target.as_fd());
    let data = parameters.join(",");
    mount2(
        Some(source),
        path.as_str(),
        Some(fstype),
        flags,
        Some(data.as_str()),
    )
}

/// A bind mount with its flags and propagation.
///
/// # Errors
/// A sentence with the entry's field, source, target and errno; flags for the whole tree cannot be
/// had by mount(2).
pub fn bind(root: &Root, mount: &Mount, source: &Path, recursive: bool) -> Result<()> {
    let what = format!("bind mount {}", source.display());
    let fail = |errno| failed(mount, &what, errno);
    let from =
        nix::fcntl::open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(fail)?;
    let target = bind_target(root, mount, from.as_fd())?;
    check_over_proc(mount, &target, Some(from.as_fd()))?;
    let mut flags = MsFlags::MS_BIND;
    flags.set(MsFlags::MS_REC, recursive);
    let (from, to) = (fd_path(from.as_fd()), fd_path(target.as_fd()));
    mount2(Some(from.as_str()), to.as_str(), NONE, flags, NONE).map_err(fail)?;
    let made = root.open(&mount.target).map_err(fail)?;
    let only_this = mount.recursive_set | mount.recursive_clear == 0;
    match set_attributes(made.as_fd(), mount) {
        Err(Errno::ENOSYS | Errno::EPERM) if only_this => {
            remount(&made, flags_of(mount.set), flags_of(mount.clear))
        }
        other => other,
    }
    .map_err(|errno| failed(mount, "set the flags of the mount", errno))?;
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
    remount(&root.open(path)?, MsFlags::MS_RDONLY, MsFlags::empty())
}

/// Sets and clears flags of a mount. A remount sets all of them anew, so those that it has are
/// repeated.
///
/// # Errors
/// Those of mount(2).
pub fn remount(mount: &OwnedFd, set: MsFlags, clear: MsFlags) -> nix::Result<()> {
    // ST_RDONLY, ST_NOSUID, ST_NODEV and ST_NOEXEC have the numbers of their MS_* flags.
    let kept = nix::sys::statvfs::fstatvfs(mount)?.flags().bits() & 0xf;
    let kept = MsFlags::from_bits_truncate(kept) & !clear;
    let flags = kept | set | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount2(NONE, fd_path(mount.as_fd()).as_str(), NONE, flags, NONE)
}
