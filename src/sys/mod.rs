//! Raw Linux calls: the only place for `unsafe`.
//!
//! Each function is one system call, or one that libc and nix do not wrap, with the kernel's own
//! names and errnos. Nothing here decides anything.

mod apparmor;
pub mod ask;
pub mod bpf;
pub mod clone;
pub mod fs;
pub mod landlock;
pub mod mount;
pub mod net;
pub mod netlink;
pub mod process;
pub mod sched;
pub mod seccomp;
pub mod socket;
pub mod terminal;

use nix::errno::Errno;

/// Turns the result of a raw system call into a number or the errno.
fn checked(result: libc::c_long) -> nix::Result<libc::c_long> {
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}
