//! Masked and read-only paths of the container.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount as mount2};
use nix::sys::stat::fstat;

use super::mounts::{denied, new_filesystem};
use super::mounts_old as old;
use super::root::Root;
use crate::error::{Error, Result};
use crate::sys::mount::{attr, mount_setattr, move_mount, open_tree_clone};

const NONE: Option<&str> = None;

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
    /// Mounts are shared with the host's.
    shared: bool,
}

impl Masks {
    /// Opens what hides files. Hiding happens before the host's root goes, because kernels before
    /// Linux 6.15 copy only mounts that are attached. `shared`: what is mounted in the container shows on the
    /// host.
    ///
    /// # Errors
    /// When the host's /dev/null is not the null device.
    pub fn prepare(label: Option<&str>, shared: bool) -> Result<Self> {
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
            shared,
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
        old::bind_plain(null.as_fd(), target.as_fd()).map_err(fail)?;
        if self.shared {
            // It would be a peer of the host's /dev: what the container mounts on it, the host would find
            // on its null device.
            let made = root.open(path).map_err(fail)?;
            let name = old::fd_path(made.as_fd());
            mount2(NONE, name.as_str(), NONE, MsFlags::MS_PRIVATE, NONE).map_err(fail)?;
        }
        Ok(())
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
        let label = self.label.clone();
        data.extend(label.map(|label| ("context".into(), Some(label))));
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

/// Makes `path` a read-only mount of itself; a path that is not there is left alone. Mounts below it stay
/// what `mounts` made them, as under runc and crun.
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
        mount_setattr(tree.as_fd(), false, attr::RDONLY, 0, 0)?;
        move_mount(tree.as_fd(), target.as_fd())
    });
    match made {
        Err(errno) if denied(errno) => old::readonly_path(root, path, &target),
        other => other,
    }
    .map_err(fail)
}
