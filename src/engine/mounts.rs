//! Mounts in the container, before its root becomes `/`.
//!
//! Everything goes by descriptors: a detached mount is made and configured (fsopen, open_tree), its
//! target is resolved inside the root, and one move_mount puts it there; a target that is exchanged
//! in between is not followed. Where a kernel or a filter denies the new calls, mount(2) does the
//! same on /proc/self/fd/N.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, fstat};

use super::copyup;
use super::mounts_old as old;
use super::mounts_old::fd_path;
use super::proc::PROC_MAGIC;
use super::root::{Make, Root};
use crate::error::{Error, Result};
use crate::plan::{Mount, MountKind, OVER_PROC};
use crate::sys::fs::{fs_magic, resolve};
use crate::sys::mount::{
    attr, fs_message, fsconfig_create, fsconfig_set, fsmount, fsopen, mount_setattr, move_mount,
    open_tree_clone,
};

const MS_REC: u64 = libc::MS_REC;

/// A way to get sources that this process cannot open from the parent ([`super::sources`]): `true` asks
/// for the plain source in place of a detached copy.
pub type Ask<'a> = &'a dyn Fn(bool) -> Result<Vec<OwnedFd>>;

/// Does one mount of config.json. What it gives back is a mount that is to become read-only when the
/// container is made: until then things are put into it.
///
/// # Errors
/// A sentence with the entry's field, source, target and errno.
pub fn mount(root: &Root, mount: &Mount, ask: Ask<'_>) -> Result<Option<OwnedFd>> {
    match &mount.what {
        MountKind::Fresh {
            fstype,
            source,
            data,
        } => {
            let made = fresh(root, mount, fstype, source, data)?;
            Ok(Some(made).filter(|_| mount.late_readonly))
        }
        MountKind::Bind { source, recursive } => {
            bind(root, mount, source, *recursive, ask).map(|()| None)
        }
        MountKind::Remount { bind, data } => remount(root, mount, *bind, data),
    }
}

pub(super) fn failed(mount: &Mount, what: &str, errno: Errno) -> Error {
    Error::os(format!("{}: {what} on", mount.field), &mount.target, errno)
}

/// The target of a new file system. That of procfs and sysfs must not be reached through a symbolic
/// link: whoever plants one there decides where later writes to /proc go (CVE-2019-19921,
/// CVE-2023-28642).
pub(super) fn fresh_target(root: &Root, mount: &Mount, fstype: &str) -> Result<OwnedFd> {
    if matches!(fstype, "proc" | "sysfs") {
        let strict = || root.open_with(&mount.target, libc::O_PATH, resolve::NO_SYMLINKS);
        return match strict() {
            Err(Errno::ENOENT) => root
                .open_or_make(&mount.target, Make::Directory)
                .and_then(|_| strict()),
            other => other,
        }
        .map_err(|errno| {
            let error = failed(mount, &format!("mount {fstype}"), errno);
            match errno {
                Errno::ELOOP => error.remedy("the target must not be a symbolic link"),
                _ => error,
            }
        });
    }
    let target = root
        .open_or_make(&mount.target, Make::Directory)
        .map_err(|errno| failed(mount, "make the mount point", errno))?;
    check_over_proc(root, mount, &target, None)?;
    Ok(target)
}

/// The planner has refused mounts over /proc by their names; this refuses those that get there by a
/// link of the image, and anything but a procfs over /proc itself. Over another procfs of the container
/// (`mounts` may have one elsewhere) everything may be mounted: nothing is trusted there.
pub(super) fn check_over_proc(
    root: &Root,
    mount: &Mount,
    target: &OwnedFd,
    source: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let on_proc = |fd: BorrowedFd<'_>| {
        fs_magic(fd)
            .map(|magic| magic == PROC_MAGIC)
            .map_err(|errno| failed(mount, "look at the file system", errno))
    };
    let refuse = || {
        Err(failed(mount, "mount", Errno::EPERM)
            .remedy("nothing but lxcfs' files may be mounted inside /proc"))
    };
    if mount.target == "/proc" {
        return match source {
            Some(source) if !on_proc(source)? => refuse(),
            _ => Ok(()),
        };
    }
    if !on_proc(target.as_fd())? {
        return Ok(());
    }
    let real = |fd: BorrowedFd<'_>| {
        nix::fcntl::readlink(fd_path(fd).as_str())
            .map_err(|errno| failed(mount, "look at the target", errno))
    };
    let path = real(target.as_fd())?.to_string_lossy().into_owned();
    let top = real(root.fd())?.to_string_lossy().into_owned();
    let allowed = match path.strip_prefix(top.trim_end_matches('/')) {
        Some("/proc") => false,
        Some(inside) => match inside.strip_prefix("/proc/") {
            Some(name) => OVER_PROC.contains(&name),
            None => inside.starts_with('/'),
        },
        // Not below the root as this process sees it: nobody knows whose /proc it is.
        None => false,
    };
    if allowed { Ok(()) } else { refuse() }
}

fn fresh(
    root: &Root,
    mount: &Mount,
    fstype: &str,
    source: &str,
    data: &[(String, Option<String>)],
) -> Result<OwnedFd> {
    let here = || root.open(&mount.target).and_then(|fd| fstat(&fd)).ok();
    // A tmpfs without a mode of its own has that of the directory it hides, as under runc.
    let bare = fstype == "tmpfs" && !data.iter().any(|(key, _)| key == "mode");
    let hidden = if bare { here() } else { None };
    let target = fresh_target(root, mount, fstype)?;
    let mut data = data.to_vec();
    if let Some(hidden) = hidden {
        data.push((
            "mode".into(),
            Some(format!("{:o}", hidden.st_mode & 0o7777)),
        ));
    }
    let set = match mount.late_readonly {
        true => mount.set & !attr::RDONLY,
        false => mount.set,
    };
    if !mount.copyup {
        return place(root, mount, &target, (fstype, source, &data), set);
    }
    let fail = |errno| {
        failed(
            mount,
            "copy the contents of the directory to the tmpfs",
            errno,
        )
    };
    let from = copyup::open(target.as_fd()).map_err(fail)?;
    let made = place(root, mount, &target, (fstype, source, &data), set)?;
    copyup::copy(from, copyup::open(made.as_fd()).map_err(fail)?).map_err(fail)?;
    Ok(made)
}

/// Puts a new file system (type, source, parameters) on `target`: the top of the mount.
fn place(
    root: &Root,
    mount: &Mount,
    target: &OwnedFd,
    (fstype, source, data): (&str, &str, &[(String, Option<String>)]),
    set: u64,
) -> Result<OwnedFd> {
    let what = format!("mount {fstype}");
    // fsconfig(2) has no way to say them.
    let made = match old::has_flags_of_its_own(data) {
        true => Err((Errno::ENOSYS, None)),
        false => new_filesystem(fstype, source, data, set).and_then(|made| {
            match move_mount(made.as_fd(), target.as_fd()) {
                Ok(()) => Ok(made),
                Err(errno) => Err((errno, None)),
            }
        }),
    };
    match made {
        Ok(made) => spread(mount, made.as_fd()).map(|()| made),
        Err((errno, _)) if denied(errno) => old::Before::read()
            .and_then(|before| {
                old::fresh(target, set, fstype, source, data)?;
                before.made(root, &mount.target)
            })
            .map_err(|errno| failed(mount, &what, errno))
            .and_then(|made| old::propagate(made.as_fd(), mount).map(|()| made)),
        Err((errno, message)) => {
            if errno == Errno::EINVAL && message.is_none() && !is_dir(target.as_fd())? {
                return Err(failed(mount, &what, Errno::ENOTDIR));
            }
            let error = failed(mount, &what, errno);
            Err(match message {
                Some(message) => error.remedy(format!("the kernel says: {message}")),
                None if errno == Errno::ENODEV => {
                    error.remedy("the kernel knows no file system of this type")
                }
                None => error,
            })
        }
    }
}

/// Whether an errno may mean that the call itself is not to be had: a kernel before it, or a filter.
/// mount(2) then tells whether it is really the mount that is refused.
pub(super) fn denied(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSYS | Errno::EPERM)
}

/// Sets the propagation of a mount that was made through `made`.
fn spread(mount: &Mount, made: BorrowedFd<'_>) -> Result<()> {
    match propagate(made, mount) {
        Err(errno) if denied(errno) => old::propagate(made, mount),
        other => other.map_err(|errno| failed(mount, "set the propagation", errno)),
    }
}

/// A detached mount of a new file system; the kernel's own words with the errno when it fails.
///
/// # Errors
/// The errno of the call that failed; ENOSYS or EPERM may mean that the mount API is not to be had, and
/// callers fall back to mount(2).
pub fn new_filesystem(
    fstype: &str,
    source: &str,
    data: &[(String, Option<String>)],
    set: u64,
) -> std::result::Result<OwnedFd, (Errno, Option<String>)> {
    let text = |s: &str| CString::new(s).map_err(|_| (Errno::EINVAL, None));
    let context = fsopen(&text(fstype)?).map_err(|errno| (errno, None))?;
    let told = |errno| (errno, fs_message(context.as_fd()));
    if !source.is_empty() {
        fsconfig_set(context.as_fd(), c"source", Some(&text(source)?)).map_err(told)?;
    }
    if set & attr::RDONLY != 0 && !matches!(fstype, "cgroup2" | "cgroup" | "proc" | "mqueue") {
        // mount(2) with MS_RDONLY makes the superblock read-only too; the ones left out are shared
        // with others, for whom that must not change.
        fsconfig_set(context.as_fd(), c"ro", None).map_err(told)?;
    }
    for (key, value) in data {
        let value = value.as_deref().map(text).transpose()?;
        fsconfig_set(context.as_fd(), &text(key)?, value.as_deref()).map_err(told)?;
    }
    fsconfig_create(context.as_fd()).map_err(told)?;
    fsmount(context.as_fd(), set).map_err(told)
}

/// A detached copy of the tree at `source`, a path of the host.
///
/// # Errors
/// Those of open_tree(2).
pub fn open_source(source: &Path, recursive: bool) -> nix::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(source.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    open_tree_clone(nix::fcntl::AT_FDCWD, &path, recursive)
}

fn bind(root: &Root, mount: &Mount, source: &Path, recursive: bool, ask: Ask<'_>) -> Result<()> {
    let what = format!("bind mount {}", source.display());
    let own = match mount.idmap {
        None => open_source(source, recursive),
        // Only the parent may set the maps.
        Some(_) => Err(Errno::EACCES),
    };
    let tree = match own {
        Ok(tree) => tree,
        Err(errno) if errno == Errno::EACCES || errno == Errno::EINVAL && !recursive => {
            one(mount, &what, ask(false)?)?
        }
        Err(errno) if denied(errno) => return bind_by_path(root, mount, source, recursive, ask),
        Err(errno) => return Err(failed(mount, &what, errno)),
    };
    let target = bind_target(root, mount, tree.as_fd())?;
    check_over_proc(root, mount, &target, Some(tree.as_fd()))?;
    mismatch(mount, &what, tree.as_fd(), target.as_fd())?;
    // Without the maps it would be another mount than the one that is asked for.
    let may_fall_back = |errno| denied(errno) && mount.idmap.is_none();
    let moved = own_by_setattr(tree.as_fd(), mount)
        .map_err(|errno| flags_refused(mount, errno))
        .and_then(|()| {
            below_by_setattr(tree.as_fd(), mount).map_err(|errno| flags_refused(mount, errno))
        })
        .and_then(|()| {
            move_mount(tree.as_fd(), target.as_fd()).map_err(|errno| failed(mount, &what, errno))
        });
    match moved {
        Ok(()) => spread(mount, tree.as_fd()),
        Err(error) if error.errno().is_some_and(may_fall_back) => {
            bind_by_path(root, mount, source, recursive, ask)
        }
        Err(error) => Err(error),
    }
}

fn bind_by_path(
    root: &Root,
    mount: &Mount,
    source: &Path,
    recursive: bool,
    ask: Ask<'_>,
) -> Result<()> {
    let what = format!("bind mount {}", source.display());
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let from = match nix::fcntl::open(source, flags, Mode::empty()) {
        Err(Errno::EACCES) => one(mount, &what, ask(true)?)?,
        own => own.map_err(|errno| failed(mount, &what, errno))?,
    };
    old::bind(root, mount, from.as_fd(), recursive)
}

/// The one descriptor of an answer.
fn one(mount: &Mount, what: &str, answer: Vec<OwnedFd>) -> Result<OwnedFd> {
    let [fd] = <[OwnedFd; 1]>::try_from(answer).map_err(|_| failed(mount, what, Errno::EBADMSG))?;
    Ok(fd)
}

fn is_dir(fd: BorrowedFd<'_>) -> Result<bool> {
    let kind = fstat(fd).map(|stat| stat.st_mode & libc::S_IFMT);
    kind.map(|kind| kind == libc::S_IFDIR)
        .map_err(|errno| Error::os("look at", "what is to be mounted", errno))
}

/// Refuses a directory on a file and the other way round, for which the kernel has only EINVAL.
pub(super) fn mismatch(
    mount: &Mount,
    what: &str,
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
) -> Result<()> {
    let says = match (is_dir(source)?, is_dir(target)?) {
        (true, false) => "the source is a directory, what is at the target is none",
        (false, true) => "the source is no directory, what is at the target is one",
        _ => return Ok(()),
    };
    Err(failed(mount, what, Errno::ENOTDIR).remedy(says))
}

/// The target of a bind mount, made as a directory or file like the source where it is missing.
pub(super) fn bind_target(root: &Root, mount: &Mount, source: BorrowedFd<'_>) -> Result<OwnedFd> {
    let make = match is_dir(source)? {
        true => Make::Directory,
        false => Make::File,
    };
    root.open_or_make(&mount.target, make)
        .map_err(|errno| failed(mount, "make the mount point", errno))
}

/// Changes what is mounted at the target: the flags of the mount (`bind`), or the file system's.
fn remount(
    root: &Root,
    mount: &Mount,
    bind: bool,
    data: &[(String, Option<String>)],
) -> Result<Option<OwnedFd>> {
    let fail = |errno| {
        let error = failed(mount, "remount what is", errno);
        match errno {
            Errno::EINVAL => error.remedy("it has to be a mount already, and to know the options"),
            _ => error,
        }
    };
    let target = root.open(&mount.target).map_err(fail)?;
    check_over_proc(root, mount, &target, None)?;
    if bind {
        set_own(target.as_fd(), mount)?;
        set_below(target.as_fd(), mount)?;
    } else {
        let set = match mount.late_readonly {
            true => mount.set & !attr::RDONLY,
            false => mount.set,
        };
        old::remount_file_system(&target, set, data).map_err(fail)?;
    }
    spread(mount, target.as_fd())?;
    Ok(Some(target).filter(|_| mount.late_readonly))
}

fn flags_refused(mount: &Mount, errno: Errno) -> Error {
    let error = failed(mount, "set the flags of the mount", errno);
    match errno {
        Errno::EPERM => error.remedy(
            "flags of the host's mounts are locked in a user namespace: ask for no other access times, \
             and not for rw, suid, dev or exec where they are off",
        ),
        Errno::EINVAL => error.remedy("it has to be a mount"),
        _ => error,
    }
}

/// Sets the flags of the top mount as runc does: as soon as one flag is set or cleared, the flags that
/// nobody asked for go, as far as they are not locked. Access times stay as they are unless asked for.
///
/// # Errors
/// A sentence with the entry's field, target and errno.
pub(super) fn set_own(top: BorrowedFd<'_>, mount: &Mount) -> Result<()> {
    match own_by_setattr(top, mount) {
        // The old call takes off what is not named.
        Err(errno) if denied(errno) && !mount.keeps => old::set_flags(top, mount.set, mount.clear),
        other => other,
    }
    .map_err(|errno| flags_refused(mount, errno))
}

fn own_by_setattr(top: BorrowedFd<'_>, mount: &Mount) -> nix::Result<()> {
    const REPLACED: u64 =
        attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC | attr::NOSYMFOLLOW;
    let again = matches!(mount.what, MountKind::Remount { .. });
    if mount.keeps {
        return match mount.set | mount.clear {
            0 => Ok(()),
            _ => mount_setattr(top, false, mount.set, mount.clear, 0),
        };
    }
    if mount.set | mount.clear == 0 && !again {
        return Ok(());
    }
    let mut clear = mount.clear | REPLACED & !mount.set;
    if clear & attr::ATIME != 0 || mount.set & attr::NODIRATIME != 0 {
        clear |= attr::ATIME | attr::NODIRATIME & !mount.set;
    }
    match mount_setattr(top, false, mount.set, clear, 0) {
        Err(Errno::EPERM) => mount_setattr(top, false, mount.set, mount.clear, 0),
        other => other,
    }
}

/// Sets the flags that are for all mounts of the tree, which is attached: `rro` and the like.
///
/// # Errors
/// A sentence with the entry's field, target and errno.
pub(super) fn set_below(top: BorrowedFd<'_>, mount: &Mount) -> Result<()> {
    match below_by_setattr(top, mount) {
        Err(errno) if denied(errno) => {
            old::set_tree_flags(top, mount.recursive_set, mount.recursive_clear)
        }
        other => other,
    }
    .map_err(|errno| flags_refused(mount, errno))
}

fn below_by_setattr(top: BorrowedFd<'_>, mount: &Mount) -> nix::Result<()> {
    if mount.recursive_set | mount.recursive_clear == 0 {
        return Ok(());
    }
    mount_setattr(top, true, mount.recursive_set, mount.recursive_clear, 0)
}

pub(super) fn propagate(tree: BorrowedFd<'_>, mount: &Mount) -> nix::Result<()> {
    for &flags in &mount.propagation {
        mount_setattr(tree, flags & MS_REC != 0, 0, 0, flags & !MS_REC)?;
    }
    Ok(())
}

/// Makes the mount that `mount` is the top of read-only.
///
/// # Errors
/// Those of mount_setattr(2) and mount(2).
pub fn make_readonly(mount: &OwnedFd) -> nix::Result<()> {
    match mount_setattr(mount, false, attr::RDONLY, 0, 0) {
        Err(errno) if denied(errno) => old::add_flags(mount.as_fd(), MsFlags::MS_RDONLY),
        other => other,
    }
}
