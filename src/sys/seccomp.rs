//! seccomp(2): loading a filter, and asking the kernel what it knows.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Synchronise all threads of the process to the filter.
pub const FLAG_TSYNC: u32 = libc::SECCOMP_FILTER_FLAG_TSYNC as u32;
/// Log every action but ALLOW.
pub const FLAG_LOG: u32 = libc::SECCOMP_FILTER_FLAG_LOG as u32;
/// Leave speculative store bypass mitigation as it is.
pub const FLAG_SPEC_ALLOW: u32 = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;
/// Give back a listener for what the filter hands to user space.
pub const FLAG_NEW_LISTENER: u32 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;
/// A task that waits for the listener's answer can be interrupted by fatal signals only.
pub const FLAG_WAIT_KILLABLE_RECV: u32 = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32;

/// One instruction of classic BPF: the kernel's `struct sock_filter`, in JSON `[code, jt, jf, k]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u16, u8, u8, u32)", into = "(u16, u8, u8, u32)")]
pub struct Insn {
    /// What to do: class, size, mode or comparison, source.
    pub code: u16,
    /// How many instructions to skip if the comparison is true.
    pub jt: u8,
    /// How many instructions to skip if it is false.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

impl From<(u16, u8, u8, u32)> for Insn {
    fn from((code, jt, jf, k): (u16, u8, u8, u32)) -> Self {
        Self { code, jt, jf, k }
    }
}

impl From<Insn> for (u16, u8, u8, u32) {
    fn from(insn: Insn) -> Self {
        (insn.code, insn.jt, insn.jf, insn.k)
    }
}

// `load` hands the kernel a slice of Insn as an array of sock_filter.
const _: () = {
    use std::mem::{align_of, offset_of, size_of};
    assert!(size_of::<Insn>() == size_of::<libc::sock_filter>());
    assert!(align_of::<Insn>() == align_of::<libc::sock_filter>());
    assert!(offset_of!(Insn, code) == offset_of!(libc::sock_filter, code));
    assert!(offset_of!(Insn, jt) == offset_of!(libc::sock_filter, jt));
    assert!(offset_of!(Insn, jf) == offset_of!(libc::sock_filter, jf));
    assert!(offset_of!(Insn, k) == offset_of!(libc::sock_filter, k));
};

/// Puts the calling thread under `program`, for good, with `flags` (`FLAG_*`).
///
/// Gives the listener (close-on-exec) if `flags` has [`FLAG_NEW_LISTENER`]. Allocates nothing, and
/// makes no other system call than seccomp(2), so it is right before exec in a cloned child. The
/// caller has `no_new_privs` or CAP_SYS_ADMIN.
///
/// # Errors
///
/// EINVAL: the program is malformed, or the kernel does not know a flag; EACCES: neither
/// `no_new_privs` nor CAP_SYS_ADMIN; EBUSY: a filter with a listener is there already; ESRCH: TSYNC
/// was asked for and a thread could not follow; ENOSYS: a kernel without filters.
pub fn load(program: &[Insn], flags: u32) -> nix::Result<Option<OwnedFd>> {
    let filter = libc::sock_fprog {
        len: program.len().try_into().map_err(|_| Errno::EINVAL)?,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: `filter` points to `len` instructions of sock_filter's layout (asserted above), which
    // live until the call is over; the kernel copies them and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const filter,
        )
    };
    let value = Errno::result(result)?;
    if flags & FLAG_NEW_LISTENER != 0 {
        // SAFETY: with this flag the result is a new descriptor that nobody else owns.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(value as RawFd) }));
    }
    // With TSYNC the kernel tells the thread that it could not synchronise as a positive result.
    if value == 0 {
        Ok(None)
    } else {
        Err(Errno::ESRCH)
    }
}

/// Whether the kernel knows the action `SECCOMP_RET_*` of a filter's return value.
pub fn action_available(action: u32) -> bool {
    // SAFETY: the kernel reads one u32, which lives until the call is over.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0u32,
            &raw const action,
        )
    };
    result == 0
}

/// Whether the kernel knows all of `flags` (`FLAG_*`), alone or in this combination.
///
/// It asks for a filter at address zero: seccomp(2) refuses it with EFAULT after it has found the
/// flags right, so nothing is ever loaded.
pub fn flags_available(flags: u32) -> bool {
    // SAFETY: the kernel fails to read from a null pointer and reports it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    Errno::result(result) == Err(Errno::EFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked() {
        assert!(action_available(libc::SECCOMP_RET_ALLOW));
        assert!(action_available(libc::SECCOMP_RET_ERRNO));
        assert!(!action_available(0x1234_0000));
        assert!(flags_available(FLAG_LOG));
        assert!(flags_available(FLAG_SPEC_ALLOW));
        assert!(!flags_available(1 << 20));
    }

    #[test]
    fn a_bad_program_is_refused() {
        // A load of a halfword at an odd offset: never valid in a filter.
        let program = [Insn {
            code: 0x28,
            jt: 0,
            jf: 0,
            k: 1,
        }];
        assert_eq!(load(&program, 0).err(), Some(Errno::EINVAL));
        assert_eq!(load(&[], 0).err(), Some(Errno::EINVAL));
    }

    #[test]
    fn instructions_are_short_in_json() {
        let insn = Insn {
            code: 6,
            jt: 0,
            jf: 0,
            k: 0x7fff_0000,
        };
        let json = serde_json::to_string(&insn).unwrap();
        assert_eq!(json, "[6,0,0,2147418112]");
        assert_eq!(serde_json::from_str::<Insn>(&json).unwrap(), insn);
    }
}
