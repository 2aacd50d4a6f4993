//! Paths inside a root file system: resolved by the kernel, never by string.
//!
//! openat2(2) with RESOLVE_IN_ROOT treats the root's descriptor as `/`, so neither `..` nor a
//! symbolic link that an image planted leads out of it. Where openat2 is not to be had (before Linux
//! 5.6, or hidden by a filter) a walk by descriptors has the same result (docs/decisions/0006 says why
//! that is not libpathrs).

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

    /// What openat2 does with RESOLVE_IN_ROOT, in steps. Each step goes one name down from a
    /// descriptor and follows nothing; `..` goes back to the descriptor that the walk came from, and
    /// not to where the kernel says that the parent is now: so the walk never leaves the root, whatever
    /// is renamed meanwhile. The text of a link is walked like the rest of the path, also that of a
    /// magic link, which is thereby not followed.
    fn open_by_walk(&self, path: &str, flags: i32, resolve: u64) -> nix::Result<OwnedFd> {
        const STEP: OFlag = OFlag::O_PATH
            .union(OFlag::O_NOFOLLOW)
            .union(OFlag::O_CLOEXEC);
        let mut way: Vec<OwnedFd> = Vec::new();
        let mut todo = parts(path);
        let mut links = 0;
        let mut last: Option<(usize, String)> = None;
        while let Some(part) = todo.pop() {
            if part == ".." {
                way.pop();
                last = None;
                continue;
            }
            let here = way.last().map_or(self.fd(), AsFd::as_fd);
            let next = openat(here, part.as_str(), STEP, Mode::empty())?;
            if fstat(&next)?.st_mode & libc::S_IFMT == libc::S_IFLNK {
                links += 1;
                if links > MAX_LINKS || resolve & resolve::NO_SYMLINKS != 0 {
                    return Err(Errno::ELOOP);
                }
                let text = nix::fcntl::readlinkat(&next, "")?;
                let text = text.into_string().map_err(|_| Errno::EILSEQ)?;
                if text.starts_with('/') {
                    way.clear();
                }
                todo.extend(parts(&text));
                continue;
            }
            last = Some((way.len(), part));
            way.push(next);
        }
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match last {
            // Opened anew by its name, for the flags that were asked for.
            Some((depth, name)) if !flags.contains(OFlag::O_PATH) => {
                let parent = depth.checked_sub(1).map_or(self.fd(), |at| way[at].as_fd());
                openat(parent, name.as_str(), flags, Mode::empty())
            }
            _ => {
                let end = way.last().map_or(self.fd(), AsFd::as_fd);
                match flags.contains(OFlag::O_DIRECTORY) || !flags.contains(OFlag::O_PATH) {
                    true => openat(end, ".", flags, Mode::empty()),
                    false => end.try_clone_to_owned().map_err(|_| Errno::EMFILE),
                }
            }
        }
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
        .map_err(|errno| Error::os("root.path: open", path.display().to_string(), errno))
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
        symlink("a/../../..", dir.join("rootfs/up")).unwrap();
        symlink("loop", dir.join("rootfs/loop")).unwrap();
        std::fs::write(dir.join("rootfs/file"), "").unwrap();
        let paths = [
            "/a/b",
            "/link",
            "/link/../b",
            "/nothing",
            "/",
            ".",
            "..",
            "/../a",
            "/up",
            "/up/a",
            "/loop",
            "/file",
            "/file/x",
            "/a/./b/",
        ];
        for path in paths {
            let by_kernel = root.open(path).map(|fd| fstat(&fd).unwrap().st_ino);
            let by_walk = root
                .open_by_walk(path, libc::O_PATH, resolve::NO_MAGICLINKS)
                .map(|fd| fstat(&fd).unwrap().st_ino);
            assert_eq!(by_kernel, by_walk, "{path}");
            let flags = libc::O_RDONLY;
            assert_eq!(
                root.open_with(path, flags, resolve::NO_MAGICLINKS)
                    .map(|fd| fstat(&fd).unwrap().st_ino),
                root.open_by_walk(path, flags, resolve::NO_MAGICLINKS)
                    .map(|fd| fstat(&fd).unwrap().st_ino),
                "{path}, for reading"
            );
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
