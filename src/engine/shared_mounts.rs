//! Containers without a mount namespace of their own (docs/decisions/0010): what is mounted for them is
//! in the caller's, below two mounts on the root file system's directory.
//!
//! ```text
//!   rootfs                 a directory, perhaps on a mount that is shared with other namespaces
//!     first                rootfs without what is mounted in it; private
//!       second             rootfs with what is mounted in it, as slaves: the container's root
//!         proc, dev, …     the mounts of config.json
//! ```
//!
//! The first one is there for the second: mounted on a mount that is shared, that one would be shared,
//! too, and all that is mounted in it would show up in other namespaces. The first one does show up
//! there, and goes again from there with its unmounting, because nothing else does.
//!
//! The mounts are numbered while they are detached still, and the numbers recorded before they are
//! attached: whoever kills the runtime in between leaves nothing that `delete --force` does not find. What
//! is taken away is only what has these numbers.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount as mount2, umount2};
use nix::sys::stat::{Mode, fstat};

use super::mountinfo;
use super::mounts_old::fd_path;
use super::root::open_dir;
use crate::error::{Error, Kind, Result};
use crate::state::Mounted;
use crate::sys::mount::{mount_ids, mount_setattr, move_mount, namespace_id, open_tree_clone};

const NONE: Option<&str> = None;

/// The mounts of a container's root, not attached yet.
pub struct Detached {
    place: OwnedFd,
    first: OwnedFd,
    second: OwnedFd,
}

/// Makes the mounts for the root file system at `path`, without attaching them, and says what is to be
/// recorded.
///
/// # Errors
/// A sentence with the path and the errno; ENOSYS before Linux 5.12.
pub fn prepare(path: &Path) -> Result<(Detached, Mounted)> {
    if path == Path::new("/") {
        // A mount on the caller's own root is beyond every path: nobody could take it away again, and
        // whoever joins this mount namespace would land in it.
        let why = "the caller's own / cannot be it without a mount namespace";
        return Err(
            Error::spec("root.path", why).remedy("add {\"type\": \"mount\"} to linux.namespaces")
        );
    }
    let fail = |errno| {
        let error = Error::os("root.path: bind mount", path.display().to_string(), errno);
        match errno {
            Errno::ENOSYS | Errno::EOPNOTSUPP => error.remedy(
                "without a mount namespace it takes Linux 5.12, and a filter that allows open_tree, \
                 move_mount and mount_setattr",
            ),
            Errno::EPERM => {
                error.remedy("without a mount namespace it takes CAP_SYS_ADMIN over the caller's")
            }
            _ => error,
        }
    };
    let place = open_dir(path)?;
    let copy = |recursive| open_tree_clone(place.as_fd(), c"", recursive);
    let first = copy(false).map_err(fail)?;
    let second = copy(true).map_err(fail)?;
    mount_setattr(&second, true, 0, 0, libc::MS_SLAVE).map_err(fail)?;
    mount_setattr(&second, false, 0, 0, libc::MS_PRIVATE).map_err(fail)?;
    let (one, one_listed) = mount_ids(first.as_fd()).map_err(fail)?;
    let (two, two_listed) = mount_ids(second.as_fd()).map_err(fail)?;
    let mounted = Mounted {
        namespace: own_namespace()?,
        point: path.to_path_buf(),
        ids: [one.id, two.id],
        listed: [one_listed, two_listed],
    };
    let detached = Detached {
        place,
        first,
        second,
    };
    Ok((detached, mounted))
}

impl Detached {
    /// Attaches the mounts, and gives the container's root.
    ///
    /// # Errors
    /// A sentence with the errno; what is attached already has to be taken away.
    pub fn attach(self) -> Result<OwnedFd> {
        let fail = |errno| Error::os("attach", "the mount of the root file system", errno);
        move_mount(self.first.as_fd(), self.place.as_fd()).map_err(fail)?;
        mount_setattr(&self.first, false, 0, 0, libc::MS_PRIVATE).map_err(fail)?;
        move_mount(self.second.as_fd(), self.first.as_fd()).map_err(fail)?;
        Ok(self.second)
    }
}

/// Opens the root of such a container, for another process in it.
///
/// # Errors
/// It is not there any more, or not in this mount namespace.
pub fn open(mounted: &Mounted) -> Result<OwnedFd> {
    here(mounted)?;
    let root = open_dir(&mounted.point)?;
    match mount_ids(root.as_fd()) {
        Ok((own, _)) if own.id == mounted.ids[1] => Ok(root),
        Ok(_) => Err(Error::new(
            Kind::State,
            format!(
                "what is mounted on {} is not the container's root any more",
                mounted.point.display()
            ),
        )),
        Err(errno) => Err(Error::os(
            "look at the mount of",
            mounted.point.display().to_string(),
            errno,
        )),
    }
}

/// Unmounts all that is left of what was mounted for a container; nothing is no error.
///
/// # Errors
/// A sentence with the path and the errno; another mount hides them; they are in another namespace.
pub fn take_away(mounted: &Mounted) -> Result<()> {
    if here(mounted).is_err() && !is_alive(mounted.namespace) {
        return Ok(());
    }
    here(mounted)?;
    let path = &mounted.point;
    let visible = unmount_at(mounted, path, false)?;
    let elsewhere = |mount: &mountinfo::Line| mount.point != *path;
    for moved in listed(mounted)?.into_iter().filter(elsewhere) {
        // A directory above it was renamed.
        unmount_at(mounted, &moved.point, true)?;
    }
    let left = listed(mounted)?
        .into_iter()
        // Numbers of this list are given again; the one on top is known not to be the container's.
        .any(|mount| mount.id != visible && mount.point == *path);
    match left {
        false => Ok(()),
        true => Err(Error::os("unmount", path.display().to_string(), Errno::EBUSY).remedy(
            "another mount was put on it, which hides the container's: unmount that, and delete again",
        )),
    }
}

/// The lines of /proc/self/mountinfo with the container's numbers.
fn listed(mounted: &Mounted) -> Result<Vec<mountinfo::Line>> {
    let mut mounts =
        mountinfo::read().map_err(|error| Error::io("read", "/proc/self/mountinfo", &error))?;
    mounts.retain(|mount| mounted.listed.contains(&mount.id));
    Ok(mounts)
}

/// Unmounts what is the container's on top of `path`; gives the number in the table of what is there
/// then, 0 for nothing. `surely`: only by numbers that are never given again.
fn unmount_at(mounted: &Mounted, path: &Path, surely: bool) -> Result<u64> {
    let fail = |errno| Error::os("unmount", path.display().to_string(), errno);
    // The upper one first. One more than there are, to see what is left on top.
    let mut visible = 0;
    for _ in 0..=mounted.ids.len() {
        let top = match open_dir(path) {
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENOTDIR)) => {
                return Ok(0);
            }
            other => other?,
        };
        let (own, listed) = mount_ids(top.as_fd()).map_err(fail)?;
        visible = listed;
        if !mounted.ids.contains(&own.id) || surely && !own.unique {
            break;
        }
        let name = fd_path(top.as_fd());
        // Otherwise the unmounting of what is below would go on to what it was copied from.
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount2(NONE, name.as_str(), NONE, private, NONE).map_err(fail)?;
        umount2(name.as_str(), MntFlags::MNT_DETACH).map_err(fail)?;
    }
    Ok(visible)
}

/// Whether the mounts are in this process's mount namespace.
fn here(mounted: &Mounted) -> Result<()> {
    if own_namespace()? == mounted.namespace {
        return Ok(());
    }
    Err(Error::new(
        Kind::State,
        format!(
            "the container has no mount namespace of its own, and its mounts are in another one (number \
             {}) than this command",
            mounted.namespace
        ),
    )
    .remedy("call isorun in the mount namespace in which the container was made"))
}

fn own_namespace() -> Result<u64> {
    namespace("/proc/self/ns/mnt".as_ref())
        .map_err(|errno| Error::os("look at", "/proc/self/ns/mnt", errno))
}

/// The number of a mount namespace: one that is never given again, or, before Linux 6.10, that of its file.
fn namespace(path: &Path) -> nix::Result<u64> {
    let file = nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    match namespace_id(file.as_fd()) {
        Ok(id) => Ok(id),
        Err(_) => fstat(&file).map(|found| found.st_ino),
    }
}

/// Whether a process lives in this mount namespace. One that nobody lives in has gone with its mounts,
/// but for a file that holds it, which cannot be known.
fn is_alive(wanted: u64) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
        .any(|entry| namespace(&entry.path().join("ns/mnt")) == Ok(wanted))
}
