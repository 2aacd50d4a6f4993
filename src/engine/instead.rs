//! What takes the place of a file system that cannot be mounted: rows of the table of degradations.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::Mode;

use super::mounts;
use super::mounts_old::fd_path;
use super::root::{Make, Root};
use crate::error::{Error, Result};
use crate::plan::{Mount, MountKind};

/// The host's trees of /proc and /sys are open to everybody: nothing to ask the parent for.
fn nothing(_plain: bool) -> Result<Vec<OwnedFd>> {
    Err(Error::os("open", "the host's tree", Errno::EACCES))
}

/// Binds a tree of the host in the place of a new file system.
///
/// # Errors
/// A sentence with the entry's field, source, target and errno.
pub fn tree(root: &Root, mount: &Mount) -> Result<()> {
    mounts::mount(root, mount, &nothing).map(drop)
}

/// Binds the procfs that is there. As for a new one, no symbolic link may lead to the target: whoever
/// plants one decides where later reads of /proc go (CVE-2019-19921).
///
/// # Errors
/// As [`tree`].
pub fn proc(root: &Root, mount: &Mount) -> Result<()> {
    drop(mounts::fresh_target(root, mount, "proc")?);
    tree(root, mount)
}

/// Makes a directory in the place of a tmpfs, and mounts it onto itself with the flags that were asked
/// for.
///
/// # Errors
/// A sentence with the entry's field, target and errno.
pub fn shm(root: &Root, mount: &Mount) -> Result<()> {
    let fail = |errno| mounts::failed(mount, "make the directory", errno);
    let mode = match &mount.what {
        MountKind::Fresh { data, .. } => data
            .iter()
            .find(|(key, _)| key == "mode")
            .and_then(|(_, value)| u32::from_str_radix(value.as_deref()?, 8).ok()),
        _ => None,
    };
    let directory = root
        .open_or_make(&mount.target, Make::Directory)
        .map_err(fail)?;
    let path = fd_path(directory.as_fd());
    let bits = Mode::from_bits_truncate(mode.unwrap_or(0o1777));
    // By its path: the descriptor is O_PATH, which fchmod(2) does not take.
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        path.as_str(),
        bits,
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
    .map_err(fail)?;
    let onto = Mount {
        what: MountKind::Bind {
            source: path.into(),
            recursive: false,
        },
        late_readonly: false,
        copyup: false,
        ..mount.clone()
    };
    tree(root, &onto)
}
