//! Files: openat2(2), close_range(2), execveat(2), statfs magic numbers, unnamed descriptors.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// RESOLVE_* of linux/openat2.h.
pub mod resolve {
    /// Do not cross mount points.
    pub const NO_XDEV: u64 = 0x01;
    /// Do not follow magic links (/proc/PID/fd/N and the like).
    pub const NO_MAGICLINKS: u64 = 0x02;
    /// Follow no symbolic link at all.
    pub const NO_SYMLINKS: u64 = 0x04;
    /// Fail with EXDEV when the path leaves the directory.
    pub const BENEATH: u64 = 0x08;
    /// The directory is the root of the resolution, as after chroot.
    pub const IN_ROOT: u64 = 0x10;
}

/// `struct open_how` of linux/openat2.h.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// openat2(2), close-on-exec. EAGAIN (a rename raced with `..`) is tried again a few times.
pub fn openat2(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: i32,
    mode: u32,
    resolve: u64,
) -> nix::Result<OwnedFd> {
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: u64::from(mode),
        resolve,
    };
    let mut tries = 0;
    loop {
        // SAFETY: a valid string, a struct of the size that is passed.
        let result = super::checked(unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                std::mem::size_of::<OpenHow>(),
            )
        });
        match result {
            Err(Errno::EAGAIN) if tries < 32 => tries += 1,
            Err(errno) => return Err(errno),
            // SAFETY: the system call made this descriptor just now.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
        }
    }
}

/// Sets close-on-exec on every descriptor from `first` on (close_range(2), Linux 5.11); where the
/// kernel lacks that, goes through /proc/self/fd.
pub fn cloexec_from(first: u32) -> nix::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: plain numbers; descriptors stay open until an exec.
    let result = super::checked(unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC)
    });
    match result {
        Ok(_) => Ok(()),
        Err(Errno::ENOSYS | Errno::EINVAL | Errno::EPERM) => cloexec_by_proc(first),
        Err(errno) => Err(errno),
    }
}

/// Closes the descriptors from `first` to `last` by close_range(2) and nothing else. Descriptors that a
/// value owns must not be among them.
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn close_range(first: u32, last: u32) -> nix::Result<()> {
    // SAFETY: plain numbers; what is closed is nobody's, see above.
    super::checked(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Closes every descriptor from `first` on, but those in `keep`. Descriptors that a value owns and
/// that is dropped later must be in `keep`: meant for a child that never drops its parent's values.
pub fn close_from(first: u32, mut keep: Vec<RawFd>) -> nix::Result<()> {
    keep.sort_unstable();
    let mut from = first;
    let mut gaps = Vec::with_capacity(keep.len() + 1);
    for fd in keep
        .iter()
        .copied()
        .filter_map(|fd| u32::try_from(fd).ok())
        .filter(|fd| *fd >= first)
    {
        if fd > from {
            gaps.push((from, fd - 1));
        }
        from = fd + 1;
    }
    gaps.push((from, u32::MAX));
    for (from, to) in gaps {
        // SAFETY: plain numbers; the caller owns what is closed, see above.
        let result = super::checked(unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) });
        match result {
            Ok(_) => {}
            // ENOSYS before Linux 5.9; a filter may say anything.
            Err(_) => return close_one_by_one(first, &keep),
        }
    }
    Ok(())
}

/// Closes all descriptors, these first, whatever the limits and filters of this process are: for one that
/// drops no value any more.
///
/// # Errors
/// As [`close_from`].
pub fn close_all(first: &[RawFd]) -> nix::Result<()> {
    for fd in first {
        // SAFETY: a plain number; nobody uses what is closed, see above.
        unsafe { libc::close(*fd) };
    }
    close_from(0, Vec::new())
}

/// What close_range(2) does, for kernels and filters that deny it: every number that this process can have
/// in use. /proc/self/fd would tell which are, but may be the container's by now, or not there.
fn close_one_by_one(first: u32, keep: &[RawFd]) -> nix::Result<()> {
    // A filter may deny it.
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let soft = limit.map_or(1024, |(soft, _)| soft);
    // Of what a caller had open before it lowered its limit, the lowest are closed in any case.
    let end = RawFd::try_from(soft.clamp(1024, 1 << 20)).unwrap_or(1024);
    for fd in RawFd::try_from(first).map_err(|_| Errno::EBADF)?..end {
        if !keep.contains(&fd) {
            // SAFETY: a plain number; the caller owns what is closed, see close_from. EBADF does no
            // harm.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

fn cloexec_by_proc(first: u32) -> nix::Result<()> {
    let entries = std::fs::read_dir("/proc/self/fd")
        .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    for entry in entries.flatten() {
        let Some(fd) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<RawFd>().ok())
        else {
            continue;
        };
        if fd >= first as RawFd {
            // SAFETY: F_SETFD changes a flag; EBADF (the directory's own descriptor) does no harm.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Whether descriptor `fd` is open and survives an exec.
pub fn is_inherited(fd: RawFd) -> bool {
    // SAFETY: F_GETFD only reads a flag.
    unsafe { libc::fcntl(fd, libc::F_GETFD) == 0 }
}

/// Clears close-on-exec of `fd`, so that it is passed on.
pub fn keep_open(fd: RawFd) -> nix::Result<()> {
    // SAFETY: F_SETFD changes a flag of the descriptor, nothing else.
    super::checked(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }.into()).map(drop)
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// Executes the program that `file` refers to; returns only the errno.
pub fn fexec(file: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> Errno {
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both vectors are null-terminated and point to strings that live on.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    Errno::last()
}

fn fstatfs(fd: BorrowedFd<'_>) -> nix::Result<libc::statfs64> {
    // SAFETY: all zeroes is a valid statfs, and the kernel fills it.
    let mut buffer: libc::statfs64 = unsafe { std::mem::zeroed() };
    // SAFETY: the buffer is writable and of the right type.
    super::checked(unsafe { libc::fstatfs64(fd.as_raw_fd(), &raw mut buffer) }.into())?;
    Ok(buffer)
}

/// PROC_SUPER_MAGIC of linux/magic.h.
pub const PROC_MAGIC: i64 = 0x9fa0;

/// The type number of the file system that `fd` is on (statfs(2) f_type).
pub fn fs_magic(fd: BorrowedFd<'_>) -> nix::Result<i64> {
    fstatfs(fd).map(|told| told.f_type)
}

/// The flags of the mount that `fd` is on (statfs(2) f_flags: ST_*), also those that libc has no name
/// for.
pub fn fs_flags(fd: BorrowedFd<'_>) -> nix::Result<u64> {
    fstatfs(fd).map(|told| told.f_flags as u64)
}

/// Sets an extended attribute of what `path` leads to (setxattr(2)).
///
/// # Errors
/// EOPNOTSUPP where the file system has none of this kind; EPERM; EINVAL for a label that no policy
/// knows.
pub fn set_xattr(path: &CStr, name: &CStr, value: &[u8]) -> nix::Result<()> {
    // SAFETY: valid strings, and a pointer to as many bytes as are said, which the kernel only reads.
    let result = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    super::checked(result.into()).map(drop)
}

/// An anonymous file in memory that can be sealed and executed (memfd_create(2)).
pub fn memfd(name: &CStr) -> nix::Result<OwnedFd> {
    const MFD_EXEC: u32 = 0x10;
    let base = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a valid string and flags.
    let mut fd = unsafe { libc::memfd_create(name.as_ptr(), base | MFD_EXEC) };
    if fd < 0 && Errno::last() == Errno::EINVAL {
        // Before Linux 6.3 MFD_EXEC is unknown, and a memfd is executable anyway.
        // SAFETY: as above.
        fd = unsafe { libc::memfd_create(name.as_ptr(), base) };
    }
    let fd = super::checked(fd.into())? as RawFd;
    // SAFETY: made just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a page of `file`, which has one, can be mapped for execution; it is unmapped again.
///
/// # Errors
/// EPERM on a file system mounted noexec; those of mmap(2).
pub fn maps_executable(file: BorrowedFd<'_>) -> nix::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: the kernel chooses an address where nothing is mapped.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            1,
            protection,
            libc::MAP_PRIVATE,
            file.as_raw_fd(),
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: the mapping that was made above, which nothing refers to.
    super::checked(unsafe { libc::munmap(page, 1) }.into()).map(drop)
}

/// Forbids every change of a memfd for good.
pub fn seal(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: plain numbers.
    super::checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }.into())
        .map(drop)
}

/// The seals of a descriptor (F_SEAL_* bits); EINVAL when it is no memfd.
pub fn seals(fd: BorrowedFd<'_>) -> nix::Result<i32> {
    // SAFETY: plain numbers.
    super::checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) }.into())
        .map(|seals| seals as i32)
}
