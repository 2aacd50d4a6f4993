//! Device nodes and the links of /dev.

use std::ffi::CString;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fstat, fstatat, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat};

use super::mounts_old::bind_plain;
use super::root::{Make, Root};
use crate::error::{Error, Result};
use crate::plan::{Device, NodeAsked};
use crate::sys::mount::{attr, mount_setattr, move_mount, open_tree_clone};

/// Makes a device node. One that is there already stays when it is the same device.
///
/// # Errors
/// A sentence with the path and the errno; EPERM where nodes cannot be made (user namespaces).
pub fn make(root: &Root, device: &Device) -> Result<()> {
    let fail = |errno| Error::os("make the device", &device.path, errno);
    let (dir, name) = root.parent_of(&device.path).map_err(fail)?;
    let kind = SFlag::from_bits_truncate(device.kind);
    let mode = Mode::from_bits_truncate(device.mode);
    let number = makedev(device.major, device.minor);
    match mknodat(&dir, name.as_str(), kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let there = fstatat(&dir, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(fail)?;
            let same = there.st_mode & libc::S_IFMT == device.kind
                && (device.kind == libc::S_IFIFO || there.st_rdev == number);
            return if same {
                Ok(())
            } else {
                Err(fail(Errno::EEXIST).remedy("the root file system has something else there"))
            };
        }
        Err(errno) => return Err(fail(errno)),
    }
    if (device.uid, device.gid) != (0, 0) {
        let owner = (
            Some(Uid::from_raw(device.uid)),
            Some(Gid::from_raw(device.gid)),
        );
        fchownat(
            &dir,
            name.as_str(),
            owner.0,
            owner.1,
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .map_err(fail)?;
        // A change of owner takes set-id bits away, and the umask is 0 here, so only this is left.
        if device.mode & 0o7000 != 0 {
            nix::sys::stat::fchmodat(&dir, name.as_str(), mode, FchmodatFlags::FollowSymlink)
                .map_err(fail)?;
        }
    }
    Ok(())
}

/// Puts the host's node of the same path in the place, as a bind mount: what can be had where nodes
/// cannot be made. It must be the same device. Read-only, so that nobody in the container changes the
/// host's node; it still reads and writes (tried). Gives the differences from `device`, unless the node
/// has to be `exact`.
///
/// # Errors
/// A sentence with the path and the errno; ENODEV when the host's node is another device, EPERM (the
/// kernel's answer to mknod here) when it is not as it has to be.
pub fn bind(root: &Root, device: &Device, exact: Option<NodeAsked>) -> Result<Option<String>> {
    let fail = |errno| Error::os("bind the host's device", &device.path, errno);
    let path = std::path::Path::new(&device.path);
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let host = nix::fcntl::open(path, flags, Mode::empty()).map_err(fail)?;
    let stat = fstat(&host).map_err(fail)?;
    if stat.st_mode & libc::S_IFMT != device.kind
        || stat.st_rdev != makedev(device.major, device.minor)
    {
        return Err(fail(Errno::ENODEV));
    }
    let differences = match exact {
        None => differences(
            &stat,
            &NodeAsked {
                mode: Some(device.mode),
                uid: Some(device.uid),
                gid: Some(device.gid),
            },
        ),
        Some(asked) => match differences(&stat, &asked) {
            None => None,
            Some(told) => {
                let what = "make the device";
                return Err(Error::os(what, &device.path, Errno::EPERM)
                    .detail(format!("of the host's node, {told}")));
            }
        },
    };
    let target = root.open_or_make(&device.path, Make::File).map_err(fail)?;
    let moved = open_tree_clone(host.as_fd(), c"", false).and_then(|tree| {
        mount_setattr(tree.as_fd(), false, attr::RDONLY, 0, 0)?;
        move_mount(tree.as_fd(), target.as_fd())
    });
    if moved.is_err() {
        bind_plain(host.as_fd(), target.as_fd()).map_err(fail)?;
        let top = root.open(&device.path).map_err(fail)?;
        super::mounts::make_readonly(&top).map_err(fail)?;
    }
    Ok(differences)
}

/// How a node of the host differs from what is asked for, as it is seen from here.
fn differences(stat: &FileStat, asked: &NodeAsked) -> Option<String> {
    let mut told = Vec::new();
    if let Some(mode) = asked.mode.filter(|mode| *mode != stat.st_mode & 0o7777) {
        told.push(format!("mode {:o} and not {mode:o}", stat.st_mode & 0o7777));
    }
    if let Some(uid) = asked.uid.filter(|uid| *uid != stat.st_uid) {
        told.push(format!("owner {} and not {uid}", stat.st_uid));
    }
    if let Some(gid) = asked.gid.filter(|gid| *gid != stat.st_gid) {
        told.push(format!("group {} and not {gid}", stat.st_gid));
    }
    (!told.is_empty()).then(|| told.join(", "))
}

/// Makes a symbolic link; what is there already stays.
///
/// # Errors
/// A sentence with the path and the errno.
pub fn link(root: &Root, path: &str, target: &str) -> Result<()> {
    let fail = |errno| Error::os("make the link", path, errno);
    let (dir, name) = root.parent_of(path).map_err(fail)?;
    let target = CString::new(target).map_err(|_| fail(Errno::EINVAL))?;
    match nix::unistd::symlinkat(target.as_c_str(), &dir, name.as_str()) {
        Err(Errno::EEXIST) => Ok(()),
        other => other.map_err(fail),
    }
}
