//! Making the container's first process: clone3(2).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

/// `CLONE_NEWTIME` of linux/sched.h; only clone3 and unshare take it.
pub const CLONE_NEWTIME: u64 = 0x0000_0080;
const CLONE_PARENT: u64 = 0x0000_8000;
const CLONE_PIDFD: u64 = 0x0000_1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of linux/sched.h, version 2 (Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which side of [`clone3`] this is.
pub enum Born {
    /// The new process.
    Child,
    /// The caller: the child's pid and a pidfd for it (close-on-exec).
    Parent(Pid, OwnedFd),
}

/// Forks a child into new namespaces (`namespaces`: CLONE_NEW* bits), on cgroup v2 straight into the
/// cgroup whose directory `cgroup` is. The child has a copy of this process's memory, as after
/// fork(2).
///
/// # Errors
/// Those of clone3(2): ENOSYS before Linux 5.3 and under filters that hide it, EPERM and ENOSPC for
/// user namespaces, EINVAL for a kind the kernel lacks.
///
/// The caller must have one thread only: locks that another thread holds would stay locked in the
/// child for ever. [`single_threaded`] tells.
pub fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> nix::Result<Born> {
    let mut args = CloneArgs {
        flags: namespaces,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    with_pidfd(args)
}

/// The same, but the new process is a child of this one's parent (CLONE_PARENT). By clone(2) where
/// clone3 is not to be had.
///
/// # Errors
/// As [`clone3`] and [`clone_old`].
pub fn clone_sibling(namespaces: u64) -> nix::Result<Born> {
    // Its exit signal is that of this process; naming one is refused.
    let args = CloneArgs {
        flags: namespaces | CLONE_PARENT,
        ..CloneArgs::default()
    };
    match with_pidfd(args) {
        Err(Errno::ENOSYS | Errno::EPERM) => clone_old(namespaces | CLONE_PARENT),
        other => other,
    }
}

fn with_pidfd(mut args: CloneArgs) -> nix::Result<Born> {
    let mut pidfd: RawFd = -1;
    args.flags |= CLONE_PIDFD;
    args.pidfd = &raw mut pidfd as u64;
    // SAFETY: without CLONE_VM and without a stack of its own the child goes on with a copy of this
    // address space, like after fork; `args` and `pidfd` outlive the call, the kernel writes one int.
    let pid = super::checked(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            std::mem::size_of::<CloneArgs>(),
        )
    })?;
    if pid == 0 {
        return Ok(Born::Child);
    }
    // SAFETY: the kernel made this descriptor for us just now and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Born::Parent(Pid::from_raw(pid as i32), fd))
}

/// The fallback of [`clone3`] where a filter hides clone3: clone(2) with the same meaning, without
/// the cgroup (the caller joins it) and without `CLONE_NEWTIME` (clone has no room for it).
///
/// # Errors
/// Those of clone(2); EINVAL when `namespaces` holds CLONE_NEWTIME.
pub fn clone_old(namespaces: u64) -> nix::Result<Born> {
    if namespaces & CLONE_NEWTIME != 0 {
        return Err(Errno::EINVAL);
    }
    let mut pidfd: RawFd = -1;
    let flags = namespaces | CLONE_PIDFD | libc::SIGCHLD as u64;
    // SAFETY: as in clone3; the third argument (parent_tid) receives the pidfd with CLONE_PIDFD.
    let pid = super::checked(unsafe {
        libc::syscall(libc::SYS_clone, flags, 0u64, &raw mut pidfd, 0u64, 0u64)
    })?;
    if pid == 0 {
        return Ok(Born::Child);
    }
    if pidfd < 0 {
        // Before Linux 5.2 clone(2) takes CLONE_PIDFD for a flag without meaning.
        // SAFETY: plain numbers; the child is this process's own and not reaped yet.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        let _ = nix::sys::wait::waitpid(Pid::from_raw(pid as i32), None);
        return Err(Errno::ENOSYS);
    }
    // SAFETY: the kernel made this descriptor for us just now and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Born::Parent(Pid::from_raw(pid as i32), fd))
}

/// Forks a sibling: a child of this process's parent, in the pid namespace that setns(2) has chosen
/// for children; with a copy of this process's memory, as after fork(2). 0 in the sibling, its pid
/// as this process's own pid namespace numbers it here.
///
/// # Errors
/// Those of clone(2).
///
/// As with [`clone3`], the caller must have one thread only.
pub fn fork_sibling() -> nix::Result<i32> {
    let flags = libc::CLONE_PARENT as u64 | libc::SIGCHLD as u64;
    // SAFETY: as in clone3: neither CLONE_VM nor a stack, and no pointer is passed.
    super::checked(unsafe { libc::syscall(libc::SYS_clone, flags, 0u64, 0u64, 0u64, 0u64) })
        .map(|pid| pid as i32)
}

/// Forks a child into new namespaces (`namespaces`: CLONE_NEW* bits) by clone(2) alone: 0 in the child,
/// its pid in the parent. For kernels and filters that have nothing newer.
///
/// # Errors
/// Those of clone(2).
///
/// As with [`clone3`], the caller must have one thread only.
pub fn fork_into(namespaces: u64) -> nix::Result<i32> {
    let flags = namespaces | libc::SIGCHLD as u64;
    // SAFETY: as in clone3: neither CLONE_VM nor a stack, and no pointer is passed.
    super::checked(unsafe { libc::syscall(libc::SYS_clone, flags, 0u64, 0u64, 0u64, 0u64) })
        .map(|pid| pid as i32)
}

/// Whether this process has exactly one thread (st_nlink of /proc/self/task counts them).
/// True when /proc cannot be read: nothing in isorun starts threads.
pub fn single_threaded() -> bool {
    match nix::sys::stat::stat("/proc/self/task") {
        Ok(stat) => stat.st_nlink == 3,
        Err(_) => true,
    }
}
