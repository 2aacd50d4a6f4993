//! Small file operations in cgroup directories, relative to a directory descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;
use nix::unistd::{UnlinkatFlags, mkdir, read, unlinkat, write};

/// Opens a cgroup's directory as a place to start from.
pub(super) fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
}

/// Opens a file in the cgroup. Its name never leads out: callers pass single names.
pub(super) fn open_in(dir: BorrowedFd<'_>, file: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    openat(
        dir,
        file,
        flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// Writes `value` in one call: the kernel takes each write as a whole.
pub(super) fn put(fd: impl AsFd, value: &str) -> Result<(), Errno> {
    match write(fd, value.as_bytes())? {
        n if n == value.len() => Ok(()),
        _ => Err(Errno::EIO),
    }
}

/// Writes `value` to a file of the cgroup.
pub(super) fn write_in(dir: BorrowedFd<'_>, file: &str, value: &str) -> Result<(), Errno> {
    put(open_in(dir, file, OFlag::O_WRONLY)?, value)
}

/// All of a file that is open, from its start.
pub(super) fn contents(fd: impl AsFd) -> Result<String, Errno> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match pread(fd.as_fd(), &mut buffer, text.len() as i64)? {
            0 => break,
            n => text.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// All of a file by path.
pub(super) fn read_path(path: &Path) -> Result<String, Errno> {
    let fd = open(
        path,
        OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match read(&fd, &mut buffer)? {
            0 => break,
            n => text.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The first word of a file by path, which is a short one.
pub(super) fn word(path: &Path) -> Result<String, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = open(path, flags, Mode::empty())?;
    let mut buffer = [0; 64];
    let length = read(&fd, &mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    Ok(text.split_whitespace().next().unwrap_or("").to_string())
}

/// Makes `path` and what is missing above it, but nothing at or above `root`, and returns what it
/// made, outermost first. With one missing level this is one system call.
pub(super) fn make_dirs(
    path: &Path,
    root: &Path,
    made: &mut Vec<std::path::PathBuf>,
) -> Result<(), (Errno, std::path::PathBuf)> {
    let mode = Mode::from_bits_truncate(0o755);
    let levels = path.ancestors().take_while(|level| *level != root);
    'again: for _ in 0..8 {
        // Up to one that is there or can be made, and down again.
        let mut missing: Vec<&Path> = Vec::new();
        for level in levels.clone() {
            match mkdir(level, mode) {
                Ok(()) => made.push(level.to_path_buf()),
                Err(Errno::EEXIST) => {}
                Err(Errno::ENOENT) => {
                    missing.push(level);
                    continue;
                }
                Err(errno) => return Err((errno, level.to_path_buf())),
            }
            break;
        }
        for level in missing.into_iter().rev() {
            match mkdir(level, mode) {
                Ok(()) => made.push(level.to_path_buf()),
                Err(Errno::EEXIST) => {}
                // Somebody has removed the parent.
                Err(Errno::ENOENT) => continue 'again,
                Err(errno) => return Err((errno, level.to_path_buf())),
            }
        }
        return Ok(());
    }
    Err((Errno::ENOENT, path.to_path_buf()))
}

/// Removes an empty cgroup. True if it is gone, false if it is busy or has cgroups of its own.
pub(super) fn remove_dir(path: &Path) -> Result<bool, Errno> {
    match unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(true),
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Waits in growing steps until `done` says so; false once `limit` has passed.
pub(super) fn wait_until<E>(
    limit: Duration,
    mut done: impl FnMut() -> Result<bool, E>,
) -> Result<bool, E> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(100);
    loop {
        if done()? {
            return Ok(true);
        }
        if start.elapsed() >= limit {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}
