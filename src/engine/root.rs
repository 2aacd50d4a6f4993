//! Paths inside a root file system: resolved by the kernel, never by string.
//!
//! openat2(2) with RESOLVE_IN_ROOT treats the root's descriptor as `/`, so neither `..` nor a
//! symbolic link that an image planted leads out of it. Where openat2 is not to be had (before Linux
//! 5.6, or hidden by a filter) libpathrs walks the path with the same result.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat, mkdirat};

use crate::error::{Error, Result};
use crate::sys::fs::{openat2, resolve};

/// How many symbolic links a path may go through: the kernel's own limit.
const MAX_LINKS: usize = 40;

/// A root file system, open.
pub struct Root {
    fd: OwnedFd,
}

/// What a missing mount target becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

fn c_path(path: &str) -> nix::Result<CString> {
    // RESOLVE_IN_ROOT takes an absolute path as relative to the root, but an empty one is ENOENT.
    CString::new(if path.is_empty() { "." } else { path }).map_err(|_| Errno::EINVAL)
}

impl Root {
    /// Takes the descriptor of the root's directory.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens `path` as O_PATH inside the root, following links inside it; magic links of procfs are
    /// refused, because they lead anywhere.
    ///
    /// # Errors
    /// The errno of the resolution: ENOENT, ENOTDIR, ELOOP.
    pub fn open(&self, path: &str) -> nix::Result<OwnedFd> {
        self.open_with(path, libc::O_PATH, resolve::NO_MAGICLINKS)
    }

    /// Opens `path` with the given flags and RESOLVE_* beside IN_ROOT.
    ///
    /// # Errors
    /// As [`Root::open`].
    pub fn open_with(&self, path: &str, flags: i32, resolve: u64) -> nix::Result<OwnedFd> {
        let c_path = c_path(path)?;
        match openat2(self.fd(), &c_path, flags, 0, resolve | resolve::IN_ROOT) {
            Err(Errno::ENOSYS | Errno::EPERM) => self.open_by_walk(path, flags, resolve),
            other => other,
        }
    }

    fn open_by_walk(&self, path: &str, flags: i32, resolve: u64) -> nix::Result<OwnedFd> {
        let errno = |e: pathrs::error::Error| match e.kind() {
            pathrs::error::ErrorKind::OsError(Some(code)) => Errno::from_raw(code),
            _ => Errno::ENOSYS,
        };
        let root = pathrs::Root::from_fd(self.fd.try_clone().map_err(|_| Errno::EMFILE)?);
        if resolve & resolve::NO_SYMLINKS != 0 {
            // The walk can only refuse a link in the last place; the places before it are asked for
            // one by one.
            let mut seen = String::new();
            for part in path.split('/').filter(|part| !part.is_empty()) {
                seen = format!("{seen}/{part}");
                let handle = root.resolve_nofollow(&seen).map_err(errno)?;
                let stat = fstat(&handle)?;
                if stat.st_mode & libc::S_IFMT == libc::S_IFLNK {
                    return Err(Errno::ELOOP);
                }
            }
        }
        let handle = root.resolve(path).map_err(errno)?;
        if flags & libc::O_PATH != 0 {
            return Ok(OwnedFd::from(handle));
        }
        let flags = pathrs::flags::OpenFlags::from_bits_retain((flags | libc::O_CLOEXEC) as u64);
        handle.reopen(flags).map(OwnedFd::from).map_err(errno)
    }

    /// The same as [`Root::open`], and what is missing is made: directories (mode 0755), the last
    /// part as `make` says. A dangling symbolic link is followed inside the root, and what it points
    /// at is made.
    ///
    /// # Errors
    /// The errno of the resolution or of the making: EROFS, EACCES, ENOTDIR, ELOOP.
    pub fn open_or_make(&self, path: &str, make: Make) -> nix::Result<OwnedFd> {
        match self.open(path) {
            Err(Errno::ENOENT) => self.make(path, make),
            other => other,
        }
    }

    fn make(&self, path: &str, make: Make) -> nix::Result<OwnedFd> {
        // `done` is a path without links that exists; `todo` is what is left, last part first.
        let mut done = String::new();
        let mut todo: Vec<String> = parts(path);
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == ".." {
                done.truncate(done.rfind('/').unwrap_or(0));
                continue;
            }
            let parent = self.open_with(&done, libc::O_PATH | libc::O_DIRECTORY, NO_LINKS)?;
            let name = OsStr::from_bytes(part.as_bytes());
            let made = match make {
                Make::File if todo.is_empty() => make_file(parent.as_fd(), name),
                _ => mkdirat(&parent, name, Mode::from_bits_retain(0o755)),
            };
            match made {
                Ok(()) => {}
                Err(Errno::EEXIST | Errno::EROFS | Errno::EACCES) => {
                    if let Ok(target) = nix::fcntl::readlinkat(&parent, name) {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Errno::ELOOP);
                        }
                        let target = target.into_string().map_err(|_| Errno::EILSEQ)?;
                        if target.starts_with('/') {
                            done.clear();
                        }
                        todo.extend(parts(&target));
                        continue;
                    }
                    if let Err(errno) = made
                        && errno != Errno::EEXIST
                        && nix::sys::stat::fstatat(&parent, name, LAST_NOFOLLOW).is_err()
                    {
                        return Err(errno);
                    }
                }
                Err(errno) => return Err(errno),
            }
            done = format!("{done}/{part}");
        }
        self.open_with(&done, libc::O_PATH, NO_LINKS)
    }

    /// The directory of `path`, made where missing, and the last part of it.
    ///
    /// # Errors
    /// As [`Root::open_or_make`]; EINVAL when the path has no last part.
    pub fn parent_of(&self, path: &str) -> nix::Result<(OwnedFd, String)> {
        let mut list = parts(path);
        if list.is_empty() || list[0] == ".." {
            return Err(Errno::EINVAL);
        }
        let name = list.remove(0);
        list.reverse();
        Ok((self.open_or_make(&list.join("/"), Make::Directory)?, name))
    }

    /// The bytes of the regular file `path`, at most `limit` of them; nothing when it is not there.
    /// A fifo or device that an image put in its place is not opened for reading.
    pub fn read_small(&self, path: &str, limit: u64) -> Option<Vec<u8>> {
        use std::io::Read;
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let probe = self.open(path).ok()?;
        if fstat(&probe).ok()?.st_mode & libc::S_IFMT != libc::S_IFREG {
            return None;
        }
        let fd = self.open_with(path, flags, resolve::NO_MAGICLINKS).ok()?;
        let mut bytes = Vec::new();
        std::fs::File::from(fd)
            .take(limit)
            .read_to_end(&mut bytes)
            .ok()?;
        Some(bytes)
    }
}

const NO_LINKS: u64 = resolve::NO_SYMLINKS;
const LAST_NOFOLLOW: nix::fcntl::AtFlags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;

/// The parts of a path, last first, without empty ones and `.`.
fn parts(path: &str) -> Vec<String> {
    path.split('/')
        .rev()
        .filter(|p| !p.is_empty() && *p != ".")
        .map(String::from)
        .collect()
}

fn make_file(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::from_bits_retain(0o755)).map(drop)
}

/// Opens a directory of the host by its path, for use as a root or a start.
///
/// # Errors
/// The errno of open(2), with the path.
pub fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
        .map_err(|errno| Error::os("open", path.display().to_string(), errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scratch(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("isorun-root-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("rootfs")).unwrap();
        dir
    }

    fn root(dir: &Path) -> Root {
        Root::new(open_dir(&dir.join("rootfs")).unwrap())
    }

    #[test]
    fn makes_missing_parts_inside() {
        let dir = scratch("makes");
        root(&dir)
            .open_or_make("/a/b/../c/file", Make::File)
            .unwrap();
        assert!(dir.join("rootfs/a/c/file").is_file());
        assert!(dir.join("rootfs/a/b").is_dir());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn links_and_dots_stay_inside() {
        let dir = scratch("links");
        std::fs::create_dir(dir.join("outside")).unwrap();
        symlink(dir.join("outside"), dir.join("rootfs/absolute")).unwrap();
        symlink("../../outside", dir.join("rootfs/relative")).unwrap();
        symlink("gone/deep", dir.join("rootfs/dangling")).unwrap();
        let root = root(&dir);
        for path in [
            "/absolute/x",
            "/relative/x",
            "/../../outside/x",
            "dangling/x",
        ] {
            root.open_or_make(path, Make::File).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.join("outside")).unwrap().count(), 0);
        assert!(dir.join("rootfs/gone/deep/x").is_file());
        assert!(dir.join("rootfs/outside/x").is_file());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_loop_of_links_ends() {
        let dir = scratch("loop");
        symlink("b", dir.join("rootfs/a")).unwrap();
        symlink("a", dir.join("rootfs/b")).unwrap();
        assert_eq!(
            root(&dir).open_or_make("/a/x", Make::File).err(),
            Some(Errno::ELOOP)
        );
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_walk_agrees_with_the_kernel() {
        let dir = scratch("walk");
        std::fs::create_dir_all(dir.join("rootfs/a/b")).unwrap();
        symlink("/a/b", dir.join("rootfs/link")).unwrap();
        let root = root(&dir);
        for path in ["/a/b", "/link", "/link/../b", "/nothing"] {
            let by_kernel = root.open(path).map(|fd| fstat(&fd).unwrap().st_ino);
            let by_walk = root
                .open_by_walk(path, libc::O_PATH, resolve::NO_MAGICLINKS)
                .map(|fd| fstat(&fd).unwrap().st_ino);
            assert_eq!(by_kernel, by_walk, "{path}");
        }
        assert_eq!(
            root.open_by_walk("/link", libc::O_PATH, NO_LINKS).err(),
            root.open_with("/link", libc::O_PATH, NO_LINKS).err()
        );
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn small_files_only() {
        let dir = scratch("small");
        std::fs::write(dir.join("rootfs/passwd"), "root:x").unwrap();
        nix::unistd::mkfifo(&dir.join("rootfs/fifo"), Mode::from_bits_retain(0o600)).unwrap();
        let root = root(&dir);
        assert_eq!(root.read_small("/passwd", 4).unwrap(), b"root");
        assert!(root.read_small("/fifo", 4).is_none());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
