//! The root file system: made a mount of its own, and at the end made `/`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount as mount2, umount2};
use nix::sys::stat::Mode;

use super::mounts::{Ask, denied, make_readonly, open_source};
use super::root::Root;
use crate::error::{Error, Result};
use crate::sys::mount::{attr, mount_setattr, move_mount};

const NONE: Option<&str> = None;

/// Sets the propagation of all mounts of this namespace, from `/` on: MS_* flags, usually with
/// MS_REC.
///
/// # Errors
/// A sentence with the errno.
pub fn propagation(flags: u64) -> Result<()> {
    mount2(NONE, "/", NONE, MsFlags::from_bits_retain(flags), NONE)
        .map_err(|errno| Error::os("set the mount propagation of", "/", errno))
}

/// Makes the root file system at `path` a private mount of its own and opens it: what the host mounts
/// there later is not for the container. `shared`: mounts of this namespace are shared with the host,
/// so the mount that holds the root is made private too: what is mounted in the container must not
/// show up outside, and pivot_root(2) refuses shared parents.
///
/// # Errors
/// A sentence with the path and the errno.
pub fn open_root(path: &Path, shared: bool, ask: Ask<'_>) -> Result<Root> {
    let fail = |errno| Error::os("root.path: bind mount", path.display().to_string(), errno);
    if shared {
        private_parent(path).map_err(fail)?;
    }
    let mut asked = false;
    let (tree, place) = match super::root::open_dir(path) {
        Err(error) if error.errno() == Some(Errno::EACCES) => {
            asked = true;
            let mut answer = ask(false)?.into_iter();
            match (answer.next(), answer.next()) {
                (Some(tree), Some(place)) => (Ok(tree), place),
                // It has no detached tree to give: the call is denied to it, too.
                (Some(place), None) => (Err(Errno::ENOSYS), place),
                _ => return Err(fail(Errno::EBADMSG)),
            }
        }
        place => (open_source(path, true), place?),
    };
    let made = tree.and_then(|tree| {
        mount_setattr(&tree, false, 0, 0, libc::MS_PRIVATE)?;
        move_mount(tree.as_fd(), place.as_fd()).map(|()| tree)
    });
    match made {
        Ok(tree) => Ok(Root::new(tree)),
        Err(errno) if denied(errno) && asked => match <[OwnedFd; 1]>::try_from(ask(true)?) {
            Ok([top]) => Ok(Root::new(top)),
            Err(_) => Err(fail(Errno::EBADMSG)),
        },
        Err(errno) if denied(errno) => mount_on_itself(path).map(Root::new).map_err(fail),
        Err(errno) => Err(fail(errno)),
    }
}

/// Makes the directory at `path` a mount of its own by mount(2); its top.
///
/// # Errors
/// Those of mount(2) and of opening it.
pub(super) fn mount_on_itself(path: &Path) -> nix::Result<OwnedFd> {
    private_parent(path)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount2(Some(path), path, NONE, flags, NONE)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}

fn private_parent(path: &Path) -> nix::Result<()> {
    for place in path.ancestors() {
        match mount2(NONE, place, NONE, MsFlags::MS_PRIVATE, NONE) {
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
    let old = match shared {
        true => Some(super::root::open_dir(Path::new("/"))?),
        false => None,
    };
    nix::unistd::fchdir(root.fd()).map_err(fail)?;
    // The old root lands on top of the new one (pivot_root(2), "pivot_root(".", ".")").
    nix::unistd::pivot_root(".", ".").map_err(|errno| {
        let error = Error::os("pivot_root to", "the root file system", errno);
        match errno {
            Errno::EINVAL => error.remedy("on an initial ramdisk it takes --no-pivot"),
            _ => error,
        }
    })?;
    if let Some(old) = old {
        // Otherwise the unmounting below would go on to the host. By its own descriptor: for mount(2)
        // "." is the new root still, whose mounts are to stay what they are to the host.
        nix::unistd::fchdir(&old).map_err(fail)?;
        let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
        mount2(NONE, ".", NONE, flags, NONE).map_err(fail)?;
    }
    umount2(".", MntFlags::MNT_DETACH)
        .map_err(|errno| Error::os("unmount", "the host's root", errno))?;
    nix::unistd::chdir("/").map_err(fail)
}

/// Makes the container's root `/` without pivot_root(2), for a host whose root is an initial ramdisk:
/// the mount is moved over the host's root, which stays below it, out of reach of names. `path` is
/// where the root file system is on the host.
///
/// # Errors
/// A sentence with the errno.
pub fn move_over(root: &Root, path: &Path) -> Result<()> {
    hide_kernel_file_systems(path)?;
    let fail = |errno| Error::os("move the root file system to", "/", errno);
    nix::unistd::fchdir(root.fd()).map_err(fail)?;
    let top = super::root::open_dir(Path::new("/"))?;
    match move_mount(root.fd(), top.as_fd()) {
        Err(errno) if denied(errno) => mount2(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE),
        other => other,
    }
    .map_err(fail)?;
    nix::unistd::chroot(".")
        .map_err(|errno| Error::os("chroot to", "the root file system", errno))?;
    nix::unistd::chdir("/").map_err(fail)
}

/// Makes the container's root `/` for this process and those that come from it, in a mount namespace that
/// is its caller's.
///
/// # Errors
/// A sentence with the errno.
pub fn change(root: &Root) -> Result<()> {
    let fail = |errno| Error::os("chroot to", "the root file system", errno);
    nix::unistd::fchdir(root.fd()).map_err(fail)?;
    nix::unistd::chroot(".").map_err(fail)?;
    nix::unistd::chdir("/").map_err(fail)
}

/// Takes the whole procfs and sysfs of the host out of this mount namespace: while one of them is
/// mounted anywhere in it, the kernel lets the container mount it anew without any of its masks.
fn hide_kernel_file_systems(rootfs: &Path) -> Result<()> {
    let mounts = super::mountinfo::read()
        .map_err(|error| Error::io("read", "/proc/self/mountinfo", &error))?;
    for mount in mounts {
        let whole = mount.root == "/" && matches!(mount.kind.as_str(), "proc" | "sysfs");
        let point = mount.point;
        if !whole || point.starts_with(rootfs) {
            continue;
        }
        let fail = |errno| Error::os("hide the host's", point.display().to_string(), errno);
        // Otherwise the unmounting would go on to the host.
        let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
        match mount2(NONE, &point, NONE, slave, NONE) {
            // It went with one that it was mounted in.
            Err(Errno::ENOENT | Errno::EINVAL) => continue,
            other => other.map_err(fail)?,
        }
        match umount2(&point, MntFlags::MNT_DETACH) {
            // In a user namespace it is locked; what covers it is locked then, too.
            Err(Errno::EINVAL | Errno::EPERM) => {
                mount2(Some("tmpfs"), &point, Some("tmpfs"), MsFlags::empty(), NONE)
            }
            other => other,
        }
        .map_err(fail)?;
    }
    Ok(())
}

/// Makes device nodes on the mount of `/`, and on those that lie below it so far, unusable, and lets nothing come
/// there that the host mounts later.
///
/// # Errors
/// A sentence with the errno.
pub fn nodev_root(root: &Root) -> Result<()> {
    root.open("/")
        .and_then(|top| mount_setattr(&top, true, attr::NODEV, 0, libc::MS_PRIVATE))
        .map_err(|errno| Error::os("linux.resources.devices: take the devices off", "/", errno))
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
