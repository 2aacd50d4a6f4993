//! Processes: pidfds, capabilities, prctl(2), keyctl(2), wait status, signals.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn prctl(option: i32, argument: u64) -> nix::Result<i32> {
    // SAFETY: the options used in this file take plain numbers, and zeroes for the rest.
    super::checked(unsafe { libc::prctl(option, argument, 0, 0, 0) }.into()).map(|n| n as i32)
}

/// Neither this process nor what it executes can gain privileges (PR_SET_NO_NEW_PRIVS).
pub fn no_new_privs() -> nix::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// The signal that this process gets when its parent ends; 0 for none (PR_SET_PDEATHSIG).
pub fn parent_death_signal(signal: i32) -> nix::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as u64).map(drop)
}

/// Whether others may ptrace this process and look at /proc/PID/exe (PR_SET_DUMPABLE).
pub fn dumpable(yes: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, u64::from(yes)).map(drop)
}

/// Whether it is so now (PR_GET_DUMPABLE).
pub fn is_dumpable() -> bool {
    prctl(libc::PR_GET_DUMPABLE, 0) == Ok(1)
}

/// Orphans among the descendants become children of this process (PR_SET_CHILD_SUBREAPER).
pub fn child_subreaper() -> nix::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map(drop)
}

/// Permitted capabilities survive the change away from user id 0 (PR_SET_KEEPCAPS).
pub fn keep_caps(yes: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, u64::from(yes)).map(drop)
}

/// Takes capability number `cap` out of the bounding set; EINVAL when the kernel does not know it.
pub fn bounding_drop(cap: u32) -> nix::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, u64::from(cap)).map(drop)
}

/// Whether capability number `cap` is in the bounding set; EINVAL when the kernel does not know it.
pub fn bounding_has(cap: u32) -> nix::Result<bool> {
    prctl(libc::PR_CAPBSET_READ, u64::from(cap)).map(|n| n == 1)
}

/// Empties the ambient set (PR_CAP_AMBIENT_CLEAR_ALL).
pub fn ambient_clear() -> nix::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64).map(drop)
}

/// Adds capability number `cap` to the ambient set; it must be permitted and inheritable.
pub fn ambient_raise(cap: u32) -> nix::Result<()> {
    // SAFETY: plain numbers.
    let result = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_RAISE,
            u64::from(cap),
            0,
            0,
        )
    };
    super::checked(result.into()).map(drop)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// The effective capabilities of this process, a bit for each number (capget(2)).
pub fn effective_caps() -> nix::Result<u64> {
    let mut header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 writes two data structs.
    super::checked(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    Ok(u64::from(data[0].effective) | u64::from(data[1].effective) << 32)
}

/// Sets the effective, permitted and inheritable sets at once (capset(2)).
pub fn set_caps(effective: u64, permitted: u64, inheritable: u64) -> nix::Result<()> {
    let mut header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads two data structs.
    super::checked(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) })
        .map(drop)
}

/// As [`set_caps`], leaving out what this process does not have.
///
/// # Errors
/// Those of capget(2) and capset(2).
pub fn limit_caps(effective: u64, permitted: u64, inheritable: u64) -> nix::Result<()> {
    let have = effective_caps()?;
    set_caps(effective & have, permitted & have, inheritable & have)
}

/// Joins the session keyring called `name`, which is made where there is none that may be searched, or a
/// new one without a name; its serial number (KEYCTL_JOIN_SESSION_KEYRING).
pub fn join_session_keyring(name: Option<&CStr>) -> nix::Result<i32> {
    const KEYCTL_JOIN_SESSION_KEYRING: u32 = 1;
    let name = name.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: a valid string, or the null pointer that the call takes for none.
    super::checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name) })
        .map(|serial| serial as i32)
}

/// What keyctl(2) tells of a key: `type;uid;gid;perm;description` (KEYCTL_DESCRIBE).
///
/// # Errors
/// EACCES without the permission to view it; ENOKEY; EMSGSIZE for a description of 4 KiB or more.
pub fn describe_key(serial: i32) -> nix::Result<String> {
    const KEYCTL_DESCRIBE: u32 = 6;
    let mut text = [0u8; 4096];
    // SAFETY: a pointer to as many writable bytes as are said; the kernel writes no more.
    let length = super::checked(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_DESCRIBE,
            serial,
            text.as_mut_ptr(),
            text.len(),
        )
    })? as usize;
    // The length counts the null byte at the end.
    match text.get(..length.saturating_sub(1)) {
        Some(text) => Ok(String::from_utf8_lossy(text).into_owned()),
        None => Err(nix::errno::Errno::EMSGSIZE),
    }
}

/// Sets the permissions of a key, KEY_* bits of keyctl_setperm(3) (KEYCTL_SETPERM).
///
/// # Errors
/// EACCES without the permission to change it; ENOKEY.
pub fn set_key_permissions(serial: i32, permissions: u32) -> nix::Result<()> {
    const KEYCTL_SETPERM: u32 = 5;
    // SAFETY: plain numbers.
    super::checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, serial, permissions) })
        .map(drop)
}

/// A pidfd for the process `pid` (pidfd_open(2)).
pub fn pidfd_open(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = super::checked(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: made just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends `signal` to the process of a pidfd; 0 only asks whether that is possible.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    super::apparmor::signal(|| {
        // SAFETY: a null siginfo means that of kill(2).
        super::checked(unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                pidfd.as_raw_fd(),
                signal,
                null,
                0,
            )
        })
        .map(drop)
    })
}

/// A copy of descriptor `fd` of the process of a pidfd (pidfd_getfd(2)).
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd =
        super::checked(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })?;
    // SAFETY: made just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Lets what `command` starts be killed when this process ends (PR_SET_PDEATHSIG).
pub fn die_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure makes one system call, allocates nothing and touches no lock, so it may run
    // between fork and exec.
    unsafe { command.pre_exec(|| parent_death_signal(libc::SIGKILL).map_err(Into::into)) };
}

/// Reaps one child that has ended (waitpid(2)), without waiting: its pid, and its exit code or
/// 128 + n for signal n, real-time signals included.
///
/// # Errors
/// ECHILD when there are no children.
pub fn wait_any() -> nix::Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: the kernel writes one int that lives here.
    let pid = super::checked(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }.into())?;
    let code = if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        128 + libc::WTERMSIG(status)
    };
    Ok((pid != 0).then_some((pid as i32, code)))
}

/// Waits for a blocked signal and takes it: its number (sigwaitinfo(2)).
pub fn wait_signal() -> nix::Result<i32> {
    // SAFETY: all zeroes is a valid signal set.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: fills a set that lives here.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: reads the set; no siginfo is asked for.
    super::checked(unsafe { libc::sigwaitinfo(&raw const all, std::ptr::null_mut()) }.into())
        .map(|signal| signal as i32)
}

/// Takes one of these signals, which are blocked, without waiting: its number; none where none is pending
/// (sigtimedwait(2)).
pub fn take_signal(set: &nix::sys::signal::SigSet) -> nix::Result<Option<i32>> {
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let null = std::ptr::null_mut();
    // SAFETY: reads a set and a time that live here; no siginfo is asked for.
    let taken = unsafe { libc::sigtimedwait(set.as_ref(), null, &raw const now) };
    match super::checked(taken.into()) {
        Ok(signal) => Ok(Some(signal as i32)),
        Err(nix::errno::Errno::EAGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The name of this process, of at most 15 bytes (PR_SET_NAME). What fails changes nothing.
pub fn set_name(name: &str) {
    let mut bytes = [0u8; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: the kernel reads at most 16 bytes up to a zero, and the array has both.
    let _ = unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr(), 0, 0, 0) };
}

/// Where this process's arguments are in its memory: fields 48 and 49 of /proc/self/stat; none where
/// that does not tell.
pub fn arguments() -> Option<(usize, usize)> {
    bounds(48)
}

/// Where the environment is that it was executed with: fields 50 and 51.
pub fn environment() -> Option<(usize, usize)> {
    bounds(50)
}

/// The bounds in field `first` of /proc/self/stat and in the next one.
fn bounds(first: usize) -> Option<(usize, usize)> {
    let line = std::fs::read("/proc/self/stat").ok()?;
    let end = line.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&line[end + 1..]).ok()?;
    // Field 3 is the first one after the name.
    let mut fields = rest.split_ascii_whitespace().skip(first - 3);
    let mut next = || fields.next()?.parse::<usize>().ok();
    let (begin, end) = (next()?, next()?);
    (begin != 0 && begin < end).then_some((begin, end))
}

/// Puts `text` in the place of this process's arguments or environment, as others see them in /proc/PID/cmdline
/// or environ. The bounds are those that [`arguments`] or [`environment`] gave, to this process or to the
/// one that it was forked from.
pub fn set_arguments(bounds: Option<(usize, usize)>, text: &str) {
    let Some((begin, end)) = bounds else {
        return;
    };
    let place = std::ptr::with_exposed_provenance_mut::<u8>(begin);
    let length = text.len().min(end - begin - 1);
    // SAFETY: the kernel put the strings' bytes there, on the stack, from `begin` on and up to `end`. They
    // are writable, stay as long as the process, and nothing in this process reads them afterwards: they
    // are overwritten by zeroes, so that each is still a string, and `text` is shorter than all of them.
    unsafe {
        std::ptr::write_bytes(place, 0, end - begin);
        std::ptr::copy_nonoverlapping(text.as_ptr(), place, length);
    }
}

/// Lets the program of `command` start with no signal blocked, whatever this process blocks.
pub fn unblock_signals_in(command: &mut std::process::Command) {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    use std::os::unix::process::CommandExt;
    let unblock = || {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
            .map_err(std::io::Error::from)
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(unblock) };
}

/// Gives SIGPIPE its default action back, which Rust's start-up code took away.
pub fn default_sigpipe() {
    // SAFETY: SIG_DFL installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Ignores SIGPIPE again, so that a write to a closed pipe fails instead of killing.
pub fn ignore_sigpipe() {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Sets every signal but SIGPIPE back to its default action: an ignored one stays ignored over
/// execve(2).
pub fn default_signals() {
    // The kernel's struct sigaction: SIG_DFL, no flags, an empty mask are all zeros. The C library's
    // function refuses the two signals that it keeps for itself, but they can be ignored too.
    let default = [0u64; 4];
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| *signal != libc::SIGPIPE) {
        // SAFETY: the kernel reads a struct of this size with a signal set of 8 bytes; SIG_DFL
        // installs no handler. SIGKILL and SIGSTOP refuse, and need nothing.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                size_of::<u64>(),
            )
        };
    }
}

/// Gives this process the signal handlers that runc's has, by Go's runtime, while it waits to be started: what
/// asks for an end ends it, with 128 and the signal's number, as the first process of a pid namespace too, for
/// which the kernel drops what has no handler (pid_namespaces(7)); and what a program may mean anything by
/// ends it in no pid namespace. execve(2) takes the handlers away.
pub fn signals_while_waiting() {
    extern "C" fn end(signal: libc::c_int) {
        exit_now(128 + signal);
    }
    extern "C" fn nothing(_: libc::c_int) {}
    use libc::{SIGABRT, SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGPWR, SIGQUIT, SIGTERM};
    let ends = [SIGHUP, SIGINT, SIGQUIT, SIGABRT, SIGTERM];
    let others = [
        SIGALRM,
        SIGIO,
        SIGPROF,
        SIGPWR,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGVTALRM,
    ];
    let dropped = others
        .into_iter()
        .chain(libc::SIGRTMIN()..=libc::SIGRTMAX());
    let handler = |function: extern "C" fn(libc::c_int)| function as libc::sighandler_t;
    let ends = ends.map(|signal| (signal, handler(end)));
    for (signal, handler) in ends
        .into_iter()
        .chain(dropped.map(|signal| (signal, handler(nothing))))
    {
        // SAFETY: one handler does nothing but _exit(2), which is safe in one (signal-safety(7)), the other
        // nothing at all.
        unsafe { libc::signal(signal, handler) };
    }
}

/// Sets the NIS domain name of the UTS namespace (setdomainname(2)).
pub fn set_domainname(name: &str) -> nix::Result<()> {
    // SAFETY: a pointer to as many bytes as are said.
    super::checked(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into())
        .map(drop)
}

/// Sends `signal` to process `pid` (kill(2)), any number that the kernel knows, real-time ones too.
pub fn kill(pid: i32, signal: i32) -> nix::Result<()> {
    super::apparmor::signal(|| {
        // SAFETY: plain numbers.
        super::checked(unsafe { libc::kill(pid, signal) }.into()).map(drop)
    })
}

/// Sets soft and hard limit of resource number `resource` (setrlimit(2)); `pid` 0 is this process.
pub fn prlimit(pid: i32, resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    let new = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: a valid rlimit to read, and no old one asked for.
    super::checked(
        unsafe { libc::prlimit(pid, resource as _, &raw const new, std::ptr::null_mut()) }.into(),
    )
    .map(drop)
}

/// Soft and hard limit of resource number `resource` of this process.
pub fn get_rlimit(resource: u32) -> nix::Result<(u64, u64)> {
    let mut old = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: nothing to set, a valid rlimit to write.
    let result = unsafe { libc::prlimit(0, resource as _, std::ptr::null(), &raw mut old) };
    super::checked(result.into())?;
    Ok((old.rlim_cur, old.rlim_max))
}

/// User and group ids of this process, all kinds at once (setresgid(2), setresuid(2)), by the raw
/// calls: libc's wrappers would try to signal other threads, of which there are none.
pub fn set_ids(uid: u32, gid: u32) -> nix::Result<()> {
    // To these calls -1 says "as it is": it would stay what it was, root most often.
    if uid == u32::MAX || gid == u32::MAX {
        return Err(nix::errno::Errno::EINVAL);
    }
    // SAFETY: plain numbers.
    super::checked(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: plain numbers.
    super::checked(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Supplementary groups of this process (setgroups(2)), by the raw call.
pub fn set_groups(gids: &[u32]) -> nix::Result<()> {
    // SAFETY: a pointer to as many numbers as are said.
    super::checked(unsafe { libc::syscall(libc::SYS_setgroups, gids.len(), gids.as_ptr()) })
        .map(drop)
}

/// Moves this process into new namespaces of the kinds in `flags` (unshare(2)); CLONE_NEWTIME holds
/// for the program that is executed next.
pub fn unshare(flags: u64) -> nix::Result<()> {
    // SAFETY: namespace flags change nothing in memory.
    super::checked(unsafe { libc::unshare(flags as i32) }.into()).map(drop)
}

/// Moves this process into namespaces (setns(2)): those of `kinds` (CLONE_NEW* bits) of the process
/// of a pidfd (Linux 5.8), or the one that `file`, of /proc/PID/ns, stands for. For a pid namespace
/// that means the children to come.
///
/// # Errors
/// EINVAL where the kernel takes no pidfd here, or this process is in that user namespace already;
/// EPERM; ESRCH when the process has ended.
pub fn setns(file: BorrowedFd<'_>, kinds: u64) -> nix::Result<()> {
    // SAFETY: plain numbers; namespaces are nothing in memory.
    super::checked(unsafe { libc::setns(file.as_raw_fd(), kinds as i32) }.into()).map(drop)
}

/// Ends this process at once, without running anything registered for exit.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// The kind of the namespace that `fd` is open on, as its CLONE_NEW* bit (NS_GET_NSTYPE of
/// ioctl_nsfs(2)).
///
/// # Errors
/// ENOTTY for what is no namespace.
pub fn namespace_kind(fd: BorrowedFd<'_>) -> nix::Result<u64> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: this ioctl takes no argument and returns a number.
    super::checked(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) }.into())
        .map(|kind| kind as u64)
}
