//! Going through a cgroup and all below it. A container that may make cgroups can make them deeper than
//! the kernel takes paths, than there are descriptors and than a stack is: this goes from one directory to
//! the next by descriptor, with two open at a time, and remembers names only.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::fs;

const FLAGS: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Calls `visit` with the directory `top` and with each below it, every one before those below it. What is
/// missing or goes meanwhile is left out.
///
/// # Errors
/// What `visit` says first; the errno of a directory that cannot be opened or read.
pub(super) fn visit<E: From<Errno>>(
    top: &Path,
    mut visit: impl FnMut(BorrowedFd<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let Some(mut dir) = present(Dir::openat(AT_FDCWD, top, FLAGS, Mode::empty()))? else {
        return Ok(());
    };
    visit(dir.as_fd())?;
    // On each level those that are still to be gone to.
    let mut levels = vec![below(&mut dir)?];
    while let Some(level) = levels.last_mut() {
        match level.pop() {
            Some(name) => {
                let child = Dir::openat(dir.as_fd(), name.as_c_str(), FLAGS, Mode::empty());
                if let Some(child) = present(child)? {
                    dir = child;
                    visit(dir.as_fd())?;
                    levels.push(below(&mut dir)?);
                }
            }
            None => {
                levels.pop();
                if !levels.is_empty() {
                    dir = Dir::openat(dir.as_fd(), c"..", FLAGS, Mode::empty())?;
                }
            }
        }
    }
    Ok(())
}

/// Removes the directory `top` and those below it. False if something in it is busy.
///
/// # Errors
/// The errno of a directory that cannot be opened, read or removed.
pub(super) fn remove(top: &Path) -> Result<bool, Errno> {
    if fs::remove_dir(top)? {
        return Ok(true);
    }
    let Some(mut dir) = present(Dir::openat(AT_FDCWD, top, FLAGS, Mode::empty()))? else {
        return Ok(true);
    };
    // The names on the way down.
    let mut way: Vec<CString> = Vec::new();
    loop {
        match first_that_stays(&mut dir)? {
            Found::Deeper(name) => {
                let child = Dir::openat(dir.as_fd(), name.as_c_str(), FLAGS, Mode::empty());
                if let Some(child) = present(child)? {
                    way.push(name);
                    dir = child;
                }
            }
            Found::Nothing => {
                let Some(name) = way.pop() else {
                    return fs::remove_dir(top);
                };
                dir = Dir::openat(dir.as_fd(), c"..", FLAGS, Mode::empty())?;
                if !gone(unlinkat(
                    dir.as_fd(),
                    name.as_c_str(),
                    UnlinkatFlags::RemoveDir,
                ))? {
                    return Ok(false);
                }
            }
        }
    }
}

enum Found {
    /// One that holds others, or processes.
    Deeper(CString),
    /// All that there were are removed.
    Nothing,
}

/// Removes what can be removed directly below `dir`, up to the first that cannot.
fn first_that_stays(dir: &mut Dir) -> Result<Found, Errno> {
    for name in below(dir)? {
        if !gone(unlinkat(
            dir.as_fd(),
            name.as_c_str(),
            UnlinkatFlags::RemoveDir,
        ))? {
            return Ok(Found::Deeper(name));
        }
    }
    Ok(Found::Nothing)
}

/// The names of the directories below.
fn below(dir: &mut Dir) -> Result<Vec<CString>, Errno> {
    // Each directory below is a link to this one; a file system that does not count them says 1.
    if fstat(dir.as_fd())?.st_nlink == 2 {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in dir.iter() {
        let Some(entry) = present(entry)? else { break };
        let name = entry.file_name();
        if entry.file_type() == Some(Type::Directory) && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// What is missing is nothing, and no error.
fn present<T>(found: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn gone(removed: Result<(), Errno>) -> Result<bool, Errno> {
    match removed {
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(true),
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    use nix::fcntl::openat;
    use nix::sys::stat::mkdirat;

    /// Far deeper than a path can say, each level with something beside it.
    fn tree(top: &Path, depth: usize) {
        let name = "d".repeat(200);
        std::fs::create_dir(top).unwrap();
        let mut at: OwnedFd = nix::fcntl::open(top, FLAGS, Mode::empty()).unwrap();
        for _ in 0..depth {
            for name in [name.as_str(), "beside"] {
                mkdirat(&at, name, Mode::from_bits_truncate(0o755)).unwrap();
            }
            at = openat(&at, name.as_str(), FLAGS, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn deeper_than_a_path_and_a_stack() {
        const DEPTH: usize = 2_000;
        let top = std::env::temp_dir().join(format!("isorun-walk-{}", std::process::id()));
        tree(&top, DEPTH);
        let walked = top.clone();
        let small = std::thread::Builder::new().stack_size(64 << 10);
        let walker = small.spawn(move || {
            let mut seen = 0;
            visit(&walked, |_| {
                seen += 1;
                Ok::<_, Errno>(())
            })
            .unwrap();
            assert_eq!(seen, 1 + 2 * DEPTH);
            assert!(remove(&walked).unwrap());
        });
        walker.unwrap().join().unwrap();
        assert!(!top.exists());
        // What is not there is nothing to do.
        visit(&top, |_| Err(Errno::EIO)).unwrap();
        assert!(remove(&top).unwrap());
    }

    #[test]
    fn something_that_is_busy() {
        let top = std::env::temp_dir().join(format!("isorun-busy-{}", std::process::id()));
        tree(&top, 2);
        // In a cgroup it would be a process.
        std::fs::write(top.join("beside/file"), "").unwrap();
        assert!(matches!(remove(&top), Ok(false)));
        std::fs::remove_file(top.join("beside/file")).unwrap();
        assert!(remove(&top).unwrap());
    }
}
