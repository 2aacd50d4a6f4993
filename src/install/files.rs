//! Reads and replaces files below a directory that may belong to somebody else: below it no symbolic
//! link is followed, so a link that was planted there leads nowhere.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use crate::error::{Error, Kind, Result};

/// The largest configuration that is read: what is larger is no configuration.
const LIMIT: u64 = 4 << 20;

/// A directory, held open.
pub struct Base {
    fd: Option<OwnedFd>,
    path: PathBuf,
}

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

impl Base {
    /// Opens the directory itself, through links: whoever names it means what it leads to. One that
    /// `may_be_missing` and is holds nothing.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn open(path: &Path, may_be_missing: bool) -> Result<Self> {
        let fd =
            match open(path, DIRECTORY, Mode::empty()) {
                Err(Errno::ENOENT) if may_be_missing => None,
                opened => Some(opened.map_err(|errno| {
                    Error::os("open directory", path.display().to_string(), errno)
                })?),
            };
        Ok(Self {
            fd,
            path: path.to_path_buf(),
        })
    }

    /// How a path below is shown.
    pub fn display(&self, path: &Path) -> String {
        self.path.join(path).display().to_string()
    }

    /// The text of a file, `None` where there is none.
    ///
    /// # Errors
    /// Something that is no ordinary file, lies behind a link, or is not UTF-8.
    pub fn read(&self, path: &Path) -> Result<Option<String>> {
        let Some(parent) = self.parent(path, false)? else {
            return Ok(None);
        };
        let name = name_of(path);
        let Some(stat) = self.stat(&parent, path)? else {
            return Ok(None);
        };
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(self.strange(path, &stat));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = openat(&parent, name, flags, Mode::empty())
            .map_err(|errno| self.failed("open", path, errno))?;
        let mut text = Vec::new();
        File::from(fd)
            .take(LIMIT + 1)
            .read_to_end(&mut text)
            .map_err(|error| Error::io("read", self.display(path), &error))?;
        if text.len() as u64 > LIMIT {
            let sentence = format!("{} is larger than 4 MiB", self.display(path));
            return Err(Error::new(Kind::Usage, sentence));
        }
        String::from_utf8(text)
            .map(Some)
            .map_err(|_| Error::new(Kind::Usage, format!("{} is not UTF-8", self.display(path))))
    }

    /// The directories above a file that are not there.
    ///
    /// # Errors
    /// As [`Base::read`].
    pub fn missing_directories(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let mut missing = Vec::new();
        let mut above = path.parent();
        while let Some(directory) = above.filter(|path| !path.as_os_str().is_empty()) {
            let there = match self.parent(directory, false)? {
                Some(parent) => self.stat(&parent, directory)?.is_some(),
                None => false,
            };
            if there {
                break;
            }
            missing.push(directory.to_path_buf());
            above = directory.parent();
        }
        Ok(missing)
    }

    /// Puts a text in the place of a file, with its owner and mode; a new one has those of `like`, a file
    /// beside it, or is 0644. Readers see the old one or the new one.
    ///
    /// # Errors
    /// The system's refusal; the old file is still there then.
    pub fn replace(&self, path: &Path, text: &str, like: Option<&Path>) -> Result<()> {
        let parent = self
            .parent(path, true)?
            .ok_or_else(|| self.failed("open", path, Errno::ENOENT))?;
        let name = name_of(path);
        let old = match (self.stat(&parent, path)?, like) {
            (None, Some(like)) => self.stat(&parent, like)?,
            (old, _) => old,
        };
        let new = format!(".isorun-install.{}", std::process::id());
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let failed = |errno| self.failed("write", path, errno);
        let fd = openat(
            &parent,
            new.as_str(),
            flags,
            Mode::from_bits_truncate(0o600),
        )
        .map_err(failed)?;
        let mut file = File::from(fd);
        let written = (|| {
            if let Some(old) = &old
                && (old.st_uid, old.st_gid) != {
                    let new = fstat(&file)?;
                    (new.st_uid, new.st_gid)
                }
            {
                fchown(
                    &file,
                    Some(Uid::from_raw(old.st_uid)),
                    Some(Gid::from_raw(old.st_gid)),
                )?;
            }
            let mode = old.map_or(0o644, |old| old.st_mode & 0o777);
            fchmod(&file, Mode::from_bits_truncate(mode))?;
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO)))?;
            renameat(&parent, new.as_str(), &parent, name)
        })();
        written.map_err(|errno| {
            let _ = unlinkat(&parent, new.as_str(), UnlinkatFlags::NoRemoveDir);
            failed(errno)
        })
    }

    /// Removes a file; one that is not there is no failure.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn remove(&self, path: &Path) -> Result<()> {
        self.unlink(path, UnlinkatFlags::NoRemoveDir, &[Errno::ENOENT])
    }

    /// Removes a directory that has become empty; any other stays.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn remove_if_empty(&self, path: &Path) -> Result<()> {
        let harmless = [Errno::ENOENT, Errno::ENOTEMPTY, Errno::EEXIST];
        self.unlink(path, UnlinkatFlags::RemoveDir, &harmless)
    }

    fn unlink(&self, path: &Path, flags: UnlinkatFlags, harmless: &[Errno]) -> Result<()> {
        let Some(parent) = self.parent(path, false)? else {
            return Ok(());
        };
        match unlinkat(&parent, name_of(path), flags) {
            Err(errno) if !harmless.contains(&errno) => Err(self.failed("remove", path, errno)),
            _ => Ok(()),
        }
    }

    /// The names in a directory below; none where it is missing.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn names(&self, path: &Path) -> Result<Vec<String>> {
        let Some(parent) = self.parent(&path.join("x"), false)? else {
            return Ok(Vec::new());
        };
        let failed = |errno| self.failed("read directory", path, errno);
        let mut dir = nix::dir::Dir::from_fd(parent).map_err(failed)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(failed)?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// The directory that holds `path`, walked name by name; `None` where a part of it is missing
    /// and is not to be made.
    fn parent(&self, path: &Path, make: bool) -> Result<Option<OwnedFd>> {
        let Some(fd) = &self.fd else {
            return Ok(None);
        };
        let mut fd = fd
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Error::io("open directory", self.display(Path::new("")), &error))?;
        let mut walked = PathBuf::new();
        for part in path.parent().into_iter().flat_map(Path::iter) {
            walked.push(part);
            if make {
                match mkdirat(&fd, part, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(self.failed("make directory", &walked, errno)),
                }
            }
            fd = match openat(&fd, part, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::ENOENT) => return Ok(None),
                Err(errno @ (Errno::ENOTDIR | Errno::ELOOP)) => {
                    return Err(match self.stat(&fd, &walked)? {
                        Some(stat) => self.strange(&walked, &stat),
                        None => self.failed("open directory", &walked, errno),
                    });
                }
                Err(errno) => return Err(self.failed("open directory", &walked, errno)),
            };
        }
        Ok(Some(fd))
    }

    fn stat(&self, parent: &OwnedFd, path: &Path) -> Result<Option<FileStat>> {
        match fstatat(parent, name_of(path), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.failed("stat", path, errno)),
        }
    }

    /// The refusal of what is neither an ordinary file nor, above one, a directory.
    fn strange(&self, path: &Path, stat: &FileStat) -> Error {
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let what = match kind {
            SFlag::S_IFLNK => "a symbolic link, and none is followed here",
            SFlag::S_IFDIR => "a directory",
            SFlag::S_IFREG => "a file",
            _ => "no ordinary file",
        };
        let sentence = format!("{} is {what}", self.display(path));
        let error = Error::new(Kind::Usage, sentence);
        if kind == SFlag::S_IFLNK {
            return error.remedy("give --etc the directory that it leads to, or edit it by hand");
        }
        error
    }

    fn failed(&self, operation: &str, path: &Path, errno: Errno) -> Error {
        let error = Error::os(operation, self.display(path), errno);
        match errno {
            Errno::EACCES | Errno::EPERM => error.remedy("run it as root"),
            _ => error,
        }
    }
}

/// The last name of a path that this module's callers made; never empty.
fn name_of(path: &Path) -> &std::ffi::OsStr {
    path.file_name().unwrap_or(path.as_os_str())
}
