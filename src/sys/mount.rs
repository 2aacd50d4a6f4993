//! The mount API of Linux 5.2 (fsopen, fsmount, open_tree, move_mount) and 5.12 (mount_setattr),
//! which libc and nix do not wrap. See fsopen(2), open_tree(2), move_mount(2), mount_setattr(2).

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `MOUNT_ATTR_RDONLY` and its like, of linux/mount.h.
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    /// Set-user-ID bits and file capabilities do nothing.
    pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
    /// Device nodes do nothing.
    pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
    /// Programs cannot be executed.
    pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
    /// The field of the access-time modes; cleared as a whole when one is set.
    pub const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
    /// Access times are never updated.
    pub const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
    /// Access times are always updated.
    pub const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
    /// Access times of directories are not updated.
    pub const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;
    /// Owners are shown through the maps of a user namespace.
    pub const IDMAP: u64 = libc::MOUNT_ATTR_IDMAP;
}

const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
const AT_RECURSIVE: u32 = 0x8000;
const AT_EMPTY_PATH: u32 = 0x1000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const STATX_MNT_ID: u32 = 0x1000;
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

fn owned(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = super::checked(result)? as RawFd;
    // SAFETY: the system call made this descriptor just now, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a context to configure a new file system of type `fstype` (close-on-exec).
pub fn fsopen(fstype: &CStr) -> nix::Result<OwnedFd> {
    // SAFETY: a valid string and flags.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC) })
}

/// Sets a parameter: `key=value`, or the flag `key` without a value.
pub fn fsconfig_set(context: BorrowedFd<'_>, key: &CStr, value: Option<&CStr>) -> nix::Result<()> {
    let (command, pointer) = match value {
        Some(value) => (FSCONFIG_SET_STRING, value.as_ptr()),
        None => (FSCONFIG_SET_FLAG, std::ptr::null()),
    };
    // SAFETY: valid strings; a flag takes a null value, and aux is 0 for both commands.
    super::checked(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            key.as_ptr(),
            pointer,
            0,
        )
    })
    .map(drop)
}

/// Makes the configured superblock.
pub fn fsconfig_create(context: BorrowedFd<'_>) -> nix::Result<()> {
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: the command takes no key and no value.
    super::checked(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            null,
            null,
            0,
        )
    })
    .map(drop)
}

/// What the kernel wrote about the last failure of this context, e.g. `tmpfs: Bad value for 'size'`.
pub fn fs_message(context: BorrowedFd<'_>) -> Option<String> {
    let mut buffer = [0u8; 256];
    let n = nix::unistd::read(context, &mut buffer).ok()?;
    let text = String::from_utf8_lossy(&buffer[..n]);
    // A line is "e message": the first letter is the severity.
    Some(text.trim().trim_start_matches("e ").to_string())
}

/// A detached mount of the context's superblock, with `attributes` ([`attr`]).
pub fn fsmount(context: BorrowedFd<'_>, attributes: u64) -> nix::Result<OwnedFd> {
    // SAFETY: plain numbers.
    owned(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            attributes,
        )
    })
}

/// A detached copy of the mount at `path` below `dir` (an empty path: of `dir` itself), with what is
/// mounted below it when `recursive`.
pub fn open_tree_clone(dir: BorrowedFd<'_>, path: &CStr, recursive: bool) -> nix::Result<OwnedFd> {
    let mut flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    if path.is_empty() {
        flags |= AT_EMPTY_PATH;
    }
    // SAFETY: a valid string and flags.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// Attaches the detached mount `from` on top of the object that `target` refers to.
pub fn move_mount(from: BorrowedFd<'_>, target: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: both paths are empty strings, so only the descriptors count.
    super::checked(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// The number of the mount that `fd` is on: one that is never given to another mount (Linux 6.8), or
/// the one of /proc/self/mountinfo, which may be given anew once the mount has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountId {
    /// The number.
    pub id: u64,
    /// Whether no other mount ever has it.
    pub unique: bool,
}

/// Numbers of the mount that `fd` is on: the one that identifies it best, and that of
/// /proc/self/mountinfo. Linux 5.8.
///
/// # Errors
/// Those of statx(2); EOPNOTSUPP where the kernel does not tell.
pub fn mount_ids(fd: BorrowedFd<'_>) -> nix::Result<(MountId, u64)> {
    let listed = statx_mount(fd, STATX_MNT_ID)?.ok_or(nix::errno::Errno::EOPNOTSUPP)?;
    let own = match statx_mount(fd, STATX_MNT_ID_UNIQUE)? {
        Some(id) => MountId { id, unique: true },
        None => MountId {
            id: listed,
            unique: false,
        },
    };
    Ok((own, listed))
}

/// The number of a mount namespace that is never given to another one (Linux 6.10): ioctl_nsfs(2).
///
/// # Errors
/// ENOTTY and EINVAL before; EBADF where `fd` is no mount namespace.
pub fn namespace_id(fd: BorrowedFd<'_>) -> nix::Result<u64> {
    // _IOR(0xb7, 5, __u64) of linux/nsfs.h.
    const NS_GET_MNTNS_ID: libc::Ioctl = 0x8008_b705_u32 as libc::Ioctl;
    let mut id = 0u64;
    // SAFETY: the request writes one u64, and that is what it is given.
    super::checked(libc::c_long::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), NS_GET_MNTNS_ID, &raw mut id)
    }))?;
    Ok(id)
}

/// Whether `fd` is the root of a mount; no where the kernel does not tell (before Linux 5.8).
///
/// # Errors
/// Those of statx(2).
pub fn is_mount_root(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    // STATX_ATTR_MOUNT_ROOT of linux/stat.h.
    const MOUNT_ROOT: u64 = 0x2000;
    let buffer = statx(fd, 0)?;
    Ok(buffer.stx_attributes & buffer.stx_attributes_mask & MOUNT_ROOT != 0)
}

fn statx_mount(fd: BorrowedFd<'_>, mask: u32) -> nix::Result<Option<u64>> {
    let buffer = statx(fd, mask)?;
    Ok((buffer.stx_mask & mask != 0).then_some(buffer.stx_mnt_id))
}

fn statx(fd: BorrowedFd<'_>, mask: u32) -> nix::Result<libc::statx> {
    // SAFETY: all zeroes is a valid statx, and the kernel fills it.
    let mut buffer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: a valid string, and a writable buffer of the right type.
    super::checked(libc::c_long::from(unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            AT_EMPTY_PATH as i32,
            mask,
            &raw mut buffer,
        )
    }))?;
    Ok(buffer)
}

/// Changes attributes (`set`, `clear`: [`attr`]) and propagation (MS_PRIVATE and its like, 0: leave
/// it) of the mount that `mount` refers to, and of all below it when `recursive`.
pub fn mount_setattr(
    mount: impl AsFd,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> nix::Result<()> {
    let attributes = MountAttr {
        attr_set: set,
        attr_clr: clear,
        propagation,
        userns_fd: 0,
    };
    setattr(mount.as_fd(), recursive, &attributes)
}

/// Shows the owners of the files of a detached mount through the maps of the user namespace that
/// `userns` refers to (Linux 5.12).
///
/// # Errors
/// EINVAL when the file system cannot do it, EPERM when the mount has other maps already, or the
/// caller has no CAP_SYS_ADMIN in the user namespace that owns the file system.
pub fn mount_idmap(
    mount: BorrowedFd<'_>,
    recursive: bool,
    userns: BorrowedFd<'_>,
) -> nix::Result<()> {
    let attributes = MountAttr {
        attr_set: attr::IDMAP,
        userns_fd: userns.as_raw_fd() as u64,
        ..MountAttr::default()
    };
    setattr(mount, recursive, &attributes)
}

fn setattr(mount: BorrowedFd<'_>, recursive: bool, attributes: &MountAttr) -> nix::Result<()> {
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: a valid string, a struct of the size that is passed.
    super::checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            std::mem::size_of::<MountAttr>(),
        )
    })
    .map(drop)
}
