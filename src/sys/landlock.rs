//! Landlock, as far as the doctor tries it: landlock(7), linux/landlock.h.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const CREATE_RULESET_VERSION: u32 = 1;
/// Opening a file for writing (LANDLOCK_ACCESS_FS_WRITE_FILE).
pub const WRITE_FILE: u64 = 1 << 1;

/// The version of the interface, 1 from Linux 5.13 on.
///
/// # Errors
/// ENOSYS: the kernel lacks it; EOPNOTSUPP: it is not enabled at boot.
pub fn abi() -> nix::Result<u32> {
    let null = std::ptr::null::<u64>();
    // SAFETY: a null pointer with size 0 is what asking for the version takes.
    super::checked(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            null,
            0usize,
            CREATE_RULESET_VERSION,
        )
    })
    .map(|version| version as u32)
}

/// Denies this process and its children the accesses in `handled` to every file, for good: a ruleset
/// without any rule. The caller has no_new_privs or CAP_SYS_ADMIN.
///
/// # Errors
/// Those of landlock_create_ruleset(2) and landlock_restrict_self(2).
pub fn deny(handled: u64) -> nix::Result<()> {
    // The first field of struct landlock_ruleset_attr, all there is in version 1.
    // SAFETY: a pointer to as many bytes as are said.
    let fd = super::checked(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const handled,
            size_of::<u64>(),
            0,
        )
    })?;
    // SAFETY: made just now, and nobody else knows it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    // SAFETY: plain numbers.
    super::checked(unsafe {
        libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0)
    })
    .map(drop)
}
