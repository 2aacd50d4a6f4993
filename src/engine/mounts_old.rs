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
use crate::sys::mount::{attr, move_mount, open_tree_clone};

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

/// Those that only mount(2) takes: fsconfig(2) knows them by no name.
const ONLY_HERE: MsFlags = MsFlags::MS_SILENT.union(MsFlags::MS_I_VERSION);

/// Whether the parameters of a new file system have a flag that only mount(2) takes.
pub fn has_flags_of_its_own(data: &[(String, Option<String>)]) -> bool {
    let only = |key: &str| {
        let mut known = SUPERBLOCK.iter();
        known.any(|(name, flag)| *name == key && ONLY_HERE.contains(*flag))
    };
    data.iter().any(|(key, value)| value.is_none() && only(key))
}

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

/// A plain bind mount of what `from` refers to on what `to` refers to, one file or directory: by the newer
/// calls, else by mount(2). No path is looked up that somebody could exchange.
///
/// # Errors
/// Those of mount(2).
pub fn bind_plain(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    match open_tree_clone(from, c"", false).and_then(|tree| move_mount(tree.as_fd(), to)) {
        // A kernel or a filter without them; EINVAL: a kernel that does not copy this one.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL) => {
            let (from, to) = (fd_path(from), fd_path(to));
            mount2(
                Some(from.as_str()),
                to.as_str(),
                NONE,
                MsFlags::MS_BIND,
                NONE,
            )
        }
        other => other,
    }
}

/// The mounts that are there before one is made, for [`Before::made`].
pub struct Before(Vec<u64>);

impl Before {
    /// Reads their numbers.
    ///
    /// # Errors
    /// Those of reading /proc/self/mountinfo.
    pub fn read() -> nix::Result<Self> {
        let mounts = super::mountinfo::read().map_err(errno_of)?;
        Ok(Self(mounts.iter().map(|mount| mount.id).collect()))
    }

    /// The mount that was just made at `path`. mount(2) gives no descriptor of it, so the path is looked up
    /// once more: what is found there must be a mount that was not there before, or somebody has put
    /// something else in its place.
    ///
    /// # Errors
    /// Those of the lookup; ESTALE when it is another.
    pub fn made(&self, root: &Root, path: &str) -> nix::Result<OwnedFd> {
        let found = root.open(path)?;
        match super::mountinfo::number(found.as_fd()).map_err(errno_of) {
            Ok(number) if self.0.contains(&number) => Err(Errno::ESTALE),
            // Before Linux 5.14 the root of a user namespace may not look at its own descriptors there.
            Ok(_) | Err(Errno::EACCES | Errno::EPERM) => Ok(found),
            Err(errno) => Err(errno),
        }
    }
}

fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
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
    check_over_proc(root, mount, &target, Some(from))?;
    mismatch(mount, &what, from, target.as_fd())?;
    let mut flags = MsFlags::MS_BIND;
    flags.set(MsFlags::MS_REC, recursive);
    let (from, to) = (fd_path(from), fd_path(target.as_fd()));
    let before = Before::read().map_err(fail)?;
    mount2(Some(from.as_str()), to.as_str(), NONE, flags, NONE).map_err(fail)?;
    let made = before.made(root, &mount.target).map_err(fail)?;
    set_own(made.as_fd(), mount)?;
    set_below(made.as_fd(), mount)?;
    propagate(made.as_fd(), mount)
}

/// Sets the propagation of the mount that `made` is the top of.
///
/// # Errors
/// A sentence with the entry's field, target and errno.
pub fn propagate(made: BorrowedFd<'_>, mount: &Mount) -> Result<()> {
    let fail = |errno| failed(mount, "set the propagation", errno);
    if mount.propagation.is_empty() {
        return Ok(());
    }
    match propagate_by_fd(made, mount) {
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let path = fd_path(made);
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
    let before = Before::read()?;
    mount2(Some(place.as_str()), place.as_str(), NONE, flags, NONE)?;
    add_flags(before.made(root, path)?.as_fd(), MsFlags::MS_RDONLY)
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
    let atime = atime_of(set, clear);
    for mount in super::mountinfo::read().map_err(errno_of)? {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What was there before is not what was made: somebody has exchanged it.
    #[test]
    fn something_else_in_the_place_of_a_new_mount_is_seen() {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = Root::new(nix::fcntl::open("/", flags, Mode::empty()).unwrap());
        let before = Before::read().unwrap();
        for path in ["/", "/proc", "/etc"] {
            let found = before.made(&root, path).err();
            assert_eq!(found, Some(Errno::ESTALE), "{path}");
        }
        // With none that was there before, all are new.
        assert!(Before(Vec::new()).made(&root, "/proc").is_ok());
        assert_eq!(before.made(&root, "/no/such").err(), Some(Errno::ENOENT));
    }

    #[test]
    fn flags_that_only_mount_takes() {
        let has = |key: &str, value: Option<&str>| {
            has_flags_of_its_own(&[
                ("size".into(), Some("1m".into())),
                (key.into(), value.map(str::to_string)),
            ])
        };
        assert!(has("silent", None) && has("iversion", None));
        assert!(!has("sync", None) && !has("lazytime", None) && !has("silent", Some("1")));
    }
}
