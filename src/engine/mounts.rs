//! Mounts in the container, before and after its root becomes `/`.
//!
//! Everything goes by descriptors: a detached mount is made and configured (fsopen, open_tree), its
//! target is resolved inside the root, and one move_mount puts it there; a target that is exchanged
//! in between is not followed. Where a kernel or a filter denies the new calls, mount(2) does the
//! same on /proc/self/fd/N.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::fstat;

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

/// A way to get sources that this process cannot open from the parent ([`super::sources`]).
pub type Ask<'a> = &'a dyn Fn() -> Result<Vec<OwnedFd>>;

/// Does one mount of config.json.
///
/// # Errors
/// A sentence with the entry's field, source, target and errno.
pub fn mount(root: &Root, mount: &Mount, ask: Ask<'_>) -> Result<()> {
    match &mount.what {
        MountKind::Fresh {
            fstype,
            source,
            data,
        } => fresh(root, mount, fstype, source, data),
        MountKind::Bind { source, recursive } => bind(root, mount, source, *recursive, ask),
    }
}

pub(super) fn failed(mount: &Mount, what: &str, errno: Errno) -> Error {
    Error::os(format!("{}: {what} on", mount.field), &mount.target, errno)
}

/// The target of a new file system. That of procfs and sysfs must not be reached through a symbolic
/// link: whoever plants one there decides where later writes to /proc go (CVE-2019-19921,
/// CVE-2023-28642).
fn fresh_target(root: &Root, mount: &Mount, fstype: &str) -> Result<OwnedFd> {
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
    check_over_proc(mount, &target, None)?;
    Ok(target)
}

/// The planner has refused mounts over /proc by their names; this refuses those that get there by a
/// link of the image, and anything but a procfs over /proc itself.
pub(super) fn check_over_proc(
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
    let path = nix::fcntl::readlink(fd_path(target.as_fd()).as_str())
        .map_err(|errno| failed(mount, "look at the target", errno))?;
    let path = path.to_string_lossy();
    let allowed = OVER_PROC.iter().any(|name| {
        path.strip_suffix(name)
            .is_some_and(|before| before.ends_with("/proc/"))
    });
    if allowed { Ok(()) } else { refuse() }
}

fn fresh(
    root: &Root,
    mount: &Mount,
    fstype: &str,
    source: &str,
    data: &[(String, Option<String>)],
) -> Result<()> {
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
    if !mount.copyup {
        return place(root, mount, &target, (fstype, source, &data), mount.set).map(drop);
    }
    let fail = |errno| {
        failed(
            mount,
            "copy the contents of the directory to the tmpfs",
            errno,
        )
    };
    let from = copyup::open(target.as_fd()).map_err(fail)?;
    let set = mount.set & !attr::RDONLY;
    let made = place(root, mount, &target, (fstype, source, &data), set)?;
    copyup::copy(from, copyup::open(made.as_fd()).map_err(fail)?).map_err(fail)?;
    if mount.set & attr::RDONLY != 0 {
        make_readonly(&made).map_err(fail)?;
    }
    Ok(())
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
    let made = new_filesystem(fstype, source, data, set).and_then(|made| {
        match move_mount(made.as_fd(), target.as_fd()) {
            Ok(()) => Ok(made),
            Err(errno) => Err((errno, None)),
        }
    });
    match made {
        Ok(made) => spread(root, mount, made.as_fd()).map(|()| made),
        Err((errno, _)) if denied(errno) => old::fresh(target, set, fstype, source, data)
            .and_then(|()| root.open(&mount.target))
            .map_err(|errno| failed(mount, &what, errno))
            .and_then(|made| old::propagate(root, mount).map(|()| made)),
        Err((errno, message)) => {
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
fn denied(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSYS | Errno::EPERM)
}

/// Sets the propagation of a mount that was made through `made`.
fn spread(root: &Root, mount: &Mount, made: BorrowedFd<'_>) -> Result<()> {
    match propagate(made, mount) {
        Err(errno) if denied(errno) => old::propagate(root, mount),
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
    let asked = || {
        let tree = ask()?.pop();
        tree.ok_or_else(|| failed(mount, &what, Errno::EBADMSG))
    };
    let own = match mount.idmap {
        None => open_source(source, recursive),
        // Only the parent may set the maps.
        Some(_) => Err(Errno::EACCES),
    };
    let tree = match own {
        Ok(tree) => tree,
        Err(Errno::EACCES) => asked()?,
        Err(Errno::EINVAL) if !recursive => asked()?,
        Err(errno) if denied(errno) => return old::bind(root, mount, source, recursive),
        Err(errno) => return Err(failed(mount, &what, errno)),
    };
    let target = bind_target(root, mount, tree.as_fd())?;
    check_over_proc(mount, &target, Some(tree.as_fd()))?;
    let moved = set_attributes(tree.as_fd(), mount)
        .map_err(|errno| (errno, "set the flags of the mount"))
        .and_then(|()| {
            move_mount(tree.as_fd(), target.as_fd()).map_err(|errno| (errno, what.as_str()))
        });
    match moved {
        Ok(()) => spread(root, mount, tree.as_fd()),
        // Without the maps it would be another mount than the one that is asked for.
        Err((errno, _)) if denied(errno) && mount.idmap.is_none() => {
            old::bind(root, mount, source, recursive)
        }
        Err((errno, what)) => Err(failed(mount, what, errno)),
    }
}

/// The target of a bind mount, made as a directory or file like the source where it is missing.
pub(super) fn bind_target(root: &Root, mount: &Mount, source: BorrowedFd<'_>) -> Result<OwnedFd> {
    let is_dir =
        |fd: BorrowedFd<'_>| fstat(fd).map(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR);
    let directory = is_dir(source).map_err(|errno| failed(mount, "look at the source", errno))?;
    let make = if directory {
        Make::Directory
    } else {
        Make::File
    };
    root.open_or_make(&mount.target, make)
        .map_err(|errno| failed(mount, "make the mount point", errno))
}

pub(super) fn set_attributes(tree: BorrowedFd<'_>, mount: &Mount) -> nix::Result<()> {
    if mount.recursive_set | mount.recursive_clear != 0 {
        mount_setattr(tree, true, mount.recursive_set, mount.recursive_clear, 0)?;
    }
    if mount.set | mount.clear != 0 {
        mount_setattr(tree, false, mount.set, mount.clear, 0)?;
    }
    Ok(())
}

pub(super) fn propagate(tree: BorrowedFd<'_>, mount: &Mount) -> nix::Result<()> {
    for &flags in &mount.propagation {
        mount_setattr(tree, flags & MS_REC != 0, 0, 0, flags & !MS_REC)?;
    }
    Ok(())
}

/// Sets the propagation of all mounts of this namespace, from `/` on: MS_* flags, usually with
/// MS_REC.
///
/// # Errors
/// A sentence with the errno.
pub fn root_propagation(flags: u64) -> Result<()> {
    let none: Option<&str> = None;
    nix::mount::mount(none, "/", none, MsFlags::from_bits_retain(flags), none)
        .map_err(|errno| Error::os("set the mount propagation of", "/", errno))
}

/// Makes the root file system at `path` a mount of its own and opens it. `shared`: mounts of this
/// namespace are shared with the host, so the mount that holds the root is made private first: what is
/// mounted in the container must not show up outside, and pivot_root(2) refuses shared parents.
///
/// # Errors
/// A sentence with the path and the errno.
pub fn open_root(path: &Path, shared: bool, ask: Ask<'_>) -> Result<Root> {
    let fail = |errno| Error::os("root.path: bind mount", path.display().to_string(), errno);
    if shared {
        private_parent(path).map_err(fail)?;
    }
    let (tree, place) = match super::root::open_dir(path) {
        Err(error) if error.errno() == Some(Errno::EACCES) => {
            match <[OwnedFd; 2]>::try_from(ask()?) {
                Ok([tree, place]) => (Ok(tree), place),
                Err(_) => return Err(fail(Errno::EBADMSG)),
            }
        }
        place => (open_source(path, true), place?),
    };
    match tree.and_then(|tree| move_mount(tree.as_fd(), place.as_fd()).map(|()| tree)) {
        Ok(tree) => Ok(Root::new(tree)),
        Err(errno) if denied(errno) => {
            let none: Option<&str> = None;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            nix::mount::mount(Some(path), path, none, flags, none).map_err(fail)?;
            Ok(Root::new(super::root::open_dir(path)?))
        }
        Err(errno) => Err(fail(errno)),
    }
}

fn private_parent(path: &Path) -> nix::Result<()> {
    let none: Option<&str> = None;
    for place in path.ancestors() {
        match nix::mount::mount(none, place, none, MsFlags::MS_PRIVATE, none) {
            // EINVAL: this is no mount point; the next one up may be.
            Err(Errno::EINVAL) => {}
            other => return other,
        }
    }
    Ok(())
}

/// Makes the container's root `/` and lets go of every mount of the host.
///
/// # Errors
/// A sentence with the errno.
pub fn pivot(root: &Root, shared: bool) -> Result<()> {
    let fail = |errno| Error::os("make the root file system", "/", errno);
    let none: Option<&str> = None;
    nix::unistd::fchdir(root.fd()).map_err(fail)?;
    // The old root lands on top of the new one (pivot_root(2), "pivot_root(".", ".")").
    nix::unistd::pivot_root(".", ".")
        .map_err(|errno| Error::os("pivot_root to", "the root file system", errno))?;
    if shared {
        // Otherwise the unmounting below would go on to the host.
        let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
        nix::mount::mount(none, ".", none, flags, none).map_err(fail)?;
    }
    umount2(".", MntFlags::MNT_DETACH)
        .map_err(|errno| Error::os("unmount", "the host's root", errno))?;
    nix::unistd::chdir("/").map_err(fail)
}

/// Hides paths of the container: files by /dev/null, directories by an empty read-only directory.
#[derive(Default)]
pub struct Masks {
    /// The host's /dev/null, opened and checked before the root changed: the container's own may be
    /// anything (CVE-2025-31133).
    null: Option<OwnedFd>,
    /// The one tmpfs that hides all directories: superblocks are slow to take down.
    empty: Option<OwnedFd>,
    /// Its SELinux label.
    label: Option<String>,
}

impl Masks {
    /// Opens what hides files. Hiding happens before the host's root goes, because kernels before
    /// Linux 6.15 copy only mounts that are attached.
    ///
    /// # Errors
    /// When the host's /dev/null is not the null device.
    pub fn prepare(label: Option<&str>) -> Result<Self> {
        let flags = nix::fcntl::OFlag::O_PATH
            | nix::fcntl::OFlag::O_NOFOLLOW
            | nix::fcntl::OFlag::O_CLOEXEC;
        let fail = |errno| Error::os("open", "/dev/null", errno);
        let null =
            nix::fcntl::open("/dev/null", flags, nix::sys::stat::Mode::empty()).map_err(fail)?;
        let stat = fstat(&null).map_err(fail)?;
        let device = stat.st_mode & libc::S_IFMT == libc::S_IFCHR
            && stat.st_rdev == nix::sys::stat::makedev(1, 3);
        if !device {
            return Err(fail(Errno::ENODEV).remedy("maskedPaths need the null device there"));
        }
        Ok(Self {
            null: Some(null),
            empty: None,
            label: label.map(str::to_string),
        })
    }

    /// Hides `path`; a path that is not there needs no hiding.
    ///
    /// # Errors
    /// A sentence with the path and the errno.
    pub fn hide(&mut self, root: &Root, path: &str) -> Result<()> {
        let fail = |errno| Error::os("linux.maskedPaths: hide", path, errno);
        let target = match root.open(path) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            other => other.map_err(fail)?,
        };
        let stat = fstat(&target).map_err(fail)?;
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            return self.hide_directory(&target).map_err(fail);
        }
        let Some(null) = &self.null else {
            return Err(fail(Errno::ENODEV));
        };
        let copy = open_tree_clone(null.as_fd(), c"", false);
        match copy.and_then(|copy| move_mount(copy.as_fd(), target.as_fd())) {
            Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL) => {
                let none: Option<&str> = None;
                let from = fd_path(null.as_fd());
                let to = fd_path(target.as_fd());
                nix::mount::mount(
                    Some(from.as_str()),
                    to.as_str(),
                    none,
                    MsFlags::MS_BIND,
                    none,
                )
                .map_err(fail)
            }
            other => other.map_err(fail),
        }
    }

    fn hide_directory(&mut self, target: &OwnedFd) -> nix::Result<()> {
        if let Some(empty) = &self.empty
            && let Ok(copy) = open_tree_clone(empty.as_fd(), c"", false)
        {
            return move_mount(copy.as_fd(), target.as_fd());
        }
        let set = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
        let mut data = [("size", "4k"), ("nr_inodes", "1"), ("mode", "755")]
            .map(|(key, value)| (key.to_string(), Some(value.to_string())))
            .to_vec();
        data.extend(
            self.label
                .clone()
                .map(|label| ("context".into(), Some(label))),
        );
        let made = new_filesystem("tmpfs", "tmpfs", &data, set).map_err(|(errno, _)| errno);
        match made.and_then(|made| move_mount(made.as_fd(), target.as_fd()).map(|()| made)) {
            Ok(made) => {
                self.empty = Some(made);
                Ok(())
            }
            Err(errno) if denied(errno) => old::fresh(target, set, "tmpfs", "tmpfs", &data),
            Err(errno) => Err(errno),
        }
    }
}

/// Makes `path` a read-only mount of itself; a path that is not there is left alone.
///
/// # Errors
/// A sentence with the path and the errno.
pub fn readonly_path(root: &Root, path: &str) -> Result<()> {
    let fail = |errno| Error::os("linux.readonlyPaths: make read-only", path, errno);
    let target = match root.open(path) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        other => other.map_err(fail)?,
    };
    let made = open_tree_clone(target.as_fd(), c"", true).and_then(|tree| {
        mount_setattr(tree.as_fd(), true, attr::RDONLY, 0, 0)?;
        move_mount(tree.as_fd(), target.as_fd())
    });
    match made {
        Err(errno) if denied(errno) => old::readonly_path(root, path, &target),
        other => other,
    }
    .map_err(fail)
}

/// Makes the mount that `mount` is the top of read-only.
///
/// # Errors
/// Those of mount_setattr(2) and mount(2).
pub fn make_readonly(mount: &OwnedFd) -> nix::Result<()> {
    match mount_setattr(mount, false, attr::RDONLY, 0, 0) {
        Err(errno) if denied(errno) => old::remount(mount, MsFlags::MS_RDONLY, MsFlags::empty()),
        other => other,
    }
}

/// Makes the mount of `/` read-only.
///
/// # Errors
/// A sentence with the errno.
pub fn readonly_root(root: &Root) -> Result<()> {
    root.open("/")
        .and_then(|top| make_readonly(&top))
        .map_err(|errno| Error::os("root.readonly: make read-only", "/", errno))
}
