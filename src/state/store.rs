//! The directories of all containers, and the lock on each.
//!
//! The lock is an exclusive flock(2) on the container's directory itself, so that there is no lock
//! file to leave behind. A directory may be removed between open and flock; its link count is zero
//! then, and whoever got the lock of such a directory starts over.
//!
//! A lock belongs to the open file description: a child that is forked (not executed) while it is
//! held shares it. Such a child must close [`Dir::fd`], or the lock outlives a killed parent.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::record::{Record, Status};
use super::{check_id, process};
use crate::error::{Error, Kind, Result};

const RECORD: &str = "state.json";
const RECORD_NEW: &str = "state.json.new";
const ORIGIN: &str = "origin";
/// config.json as it was when the container was made.
const CONFIG: &str = "config.json";
/// Says that a hook has deleted the container that is being made.
const DELETED: &str = "deleted";
/// The name of the fifo on which a created container waits for `start`.
pub(super) const FIFO: &str = "exec.fifo";

/// The directory beside the containers' in which tensor channels are, and the file in it by which it is
/// told from a container that somebody called so in a root directory of his own.
pub const CHANNELS: &str = "channels";
/// See [`CHANNELS`].
pub const CHANNELS_LOCK: &str = ".lock";

/// How long a command waits for another one that works on the same container.
const PATIENCE: Duration = Duration::from_secs(10);

/// All containers below one root directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    patience: Duration,
}

/// One container's directory, locked: nobody else changes it as long as this value lives.
#[derive(Debug)]
pub struct Dir {
    id: String,
    path: PathBuf,
    lock: Flock<OwnedFd>,
}

/// One line of [`Store::list`].
#[derive(Debug)]
pub struct Entry {
    /// The container's id.
    pub id: String,
    /// Its state directory.
    pub path: PathBuf,
    /// Its record, or why there is none that can be read.
    pub record: Result<Record>,
}

impl Store {
    /// The store below `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            patience: PATIENCE,
        }
    }

    /// Where the containers of this user are without `--root`: /run/isorun, or, without
    /// privileges, $XDG_RUNTIME_DIR/isorun where that is set. As under runc, the root of a user
    /// namespace counts as one without privileges unless USER says root (`podman unshare` keeps the
    /// user's name, Docker's rootless daemon too); `in_user_namespace` is asked only for root.
    pub fn default_root(in_user_namespace: impl FnOnce() -> bool) -> PathBuf {
        match runtime_dir() {
            Some(dir) if acts_unprivileged(in_user_namespace) => Path::new(&dir).join("isorun"),
            _ => PathBuf::from("/run/isorun"),
        }
    }

    /// Whether `id` is not a container's (of an isorun that did not keep it) but the directory of channels.
    fn is_channels(&self, id: &str) -> bool {
        let path = self.path(id);
        id == CHANNELS && path.join(CHANNELS_LOCK).exists() && !holds_container(&path)
    }

    /// Whether channels are, or will be, below this root.
    fn keeps_channels(&self) -> bool {
        let users = runtime_dir().map(|dir| Path::new(&dir).join("isorun"));
        self.root == Path::new("/run/isorun") || users.is_some_and(|dir| self.root == dir)
    }

    /// Waits at most this long for a lock, instead of ten seconds.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The state directory of container `id`, whether it exists or not. `id` must be checked.
    pub fn path(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Makes the directory of a new container, and locks it. Of several that ask for the same id
    /// at the same time exactly one gets it.
    ///
    /// # Errors
    /// [`Kind::Exists`] in runc's words; [`Kind::Usage`] for an invalid id; the system's refusal.
    pub fn create(&self, id: &str) -> Result<Dir> {
        check_id(id)?;
        let path = self.path(id);
        if self.is_channels(id) || id == CHANNELS && self.keeps_channels() {
            let sentence =
                format!("no container can be called {id:?} here: tensor channels are there");
            return Err(Error::new(Kind::Usage, sentence));
        }
        loop {
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    self.make_root()?;
                    continue;
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    return Err(Error::new(
                        Kind::Exists,
                        format!(
                            "container with given ID already exists: {id:?} in {}",
                            self.root.display()
                        ),
                    ));
                }
                Err(error) => return Err(Error::io("create directory", display(&path), &error)),
            }
            // A `delete --force` may see the empty directory first and take it away.
            if let Some(dir) = self.lock(id, &path, &mut || false)? {
                return Ok(dir);
            }
        }
    }

    /// Locks the directory of an existing container, complete or not; waits for whoever has the
    /// lock, up to ten seconds.
    ///
    /// # Errors
    /// [`Kind::NotFound`] in runc's words; [`Kind::State`] naming who holds the lock.
    pub fn open(&self, id: &str) -> Result<Dir> {
        self.open_meanwhile(id, &mut || false)
    }

    /// The same; `meanwhile` is done each time before it waits a little, and says whether to give up.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_meanwhile(&self, id: &str, meanwhile: &mut dyn FnMut() -> bool) -> Result<Dir> {
        check_id(id)?;
        if self.is_channels(id) {
            return Err(self.not_found(id));
        }
        self.lock(id, &self.path(id), meanwhile)?
            .ok_or_else(|| self.not_found(id))
    }

    /// Tells whoever is making container `id`, and holds its lock, that it is to be deleted:
    /// [`Dir::is_deleted`]. `id` must be checked.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn mark_deleted(&self, id: &str) -> Result<()> {
        let path = self.path(id).join(DELETED);
        File::create(&path)
            .map(drop)
            .map_err(|error| Error::io("write", display(&path), &error))
    }

    /// Reads the record of a container without a lock: it is always a whole one, and may be
    /// replaced a moment later.
    ///
    /// # Errors
    /// [`Kind::NotFound`] in runc's words; [`Kind::State`] where the container has no record that
    /// can be read.
    pub fn peek(&self, id: &str) -> Result<Record> {
        check_id(id)?;
        let dir = self.path(id);
        match read_record(&dir)? {
            Some(record) => Ok(record),
            None if dir.is_dir() && !self.is_channels(id) => Err(no_record(id)),
            None => Err(self.not_found(id)),
        }
    }

    /// config.json as container `id` was made from it; nobody but the store's owner can have changed
    /// it since. `id` must be checked.
    ///
    /// # Errors
    /// The system's refusal; a container that an isorun before 0.2 made has none.
    pub fn config(&self, id: &str) -> Result<Vec<u8>> {
        let path = self.path(id).join(CONFIG);
        fs::read(&path).map_err(|error| Error::io("read", display(&path), &error))
    }

    /// The ids of all containers, sorted, also of those that have no record that can be read.
    ///
    /// # Errors
    /// Where the root directory cannot be read. That it does not exist is no error.
    pub fn ids(&self) -> Result<Vec<String>> {
        let failed = |error| Error::io("read directory", display(&self.root), &error);
        let names = match fs::read_dir(&self.root) {
            Ok(names) => names,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut ids = Vec::new();
        for name in names {
            let name = name.map_err(failed)?;
            let is_directory = name.file_type().is_ok_and(|kind| kind.is_dir());
            if let (true, Ok(id)) = (is_directory, name.file_name().into_string())
                && check_id(&id).is_ok()
                && !self.is_channels(&id)
            {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// All containers, one after the other in the order of their ids, each read when it is its
    /// turn. Takes no lock; containers may come and go meanwhile.
    ///
    /// # Errors
    /// As [`Store::ids`].
    pub fn list(&self) -> Result<impl Iterator<Item = Entry> + '_> {
        Ok(self.ids()?.into_iter().filter_map(|id| {
            let path = self.path(&id);
            let record = match read_record(&path) {
                Ok(Some(record)) => Ok(record),
                Ok(None) if path.is_dir() => Err(no_record(&id)),
                // It was deleted since its name was read.
                Ok(None) => return None,
                Err(error) => Err(error),
            };
            Some(Entry { id, path, record })
        }))
    }

    fn not_found(&self, id: &str) -> Error {
        let sentence = format!(
            "container does not exist: there is no {id:?} in {}",
            self.root.display()
        );
        Error::new(Kind::NotFound, sentence)
    }

    fn make_root(&self) -> Result<()> {
        // Below $XDG_RUNTIME_DIR the sticky bit keeps what is old from being cleaned away (XDG Base
        // Directory Specification); runc sets it, too.
        let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        let sticky = runtime_dir.is_some_and(|dir| self.root.starts_with(dir));
        DirBuilder::new()
            .recursive(true)
            .mode(if sticky { 0o1700 } else { 0o700 })
            .create(&self.root)
            .map_err(|error| {
                let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
                let error = Error::io("create directory", display(&self.root), &error);
                match denied && !nix::unistd::geteuid().is_root() {
                    true => error
                        .remedy("set XDG_RUNTIME_DIR, or name a directory of yours with --root"),
                    false => error,
                }
            })
    }

    /// Opens and locks `path`; none where it does not exist, or does not exist any more.
    fn lock(
        &self,
        id: &str,
        path: &Path,
        meanwhile: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Dir>> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let mut fd = match open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(Error::os("open directory", display(path), errno)),
        };
        let begin = Instant::now();
        let mut pause = Duration::from_micros(500);
        let lock = loop {
            fd = match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((fd, Errno::EAGAIN | Errno::EINTR)) => fd,
                Err((_, errno)) => return Err(Error::os("lock directory", display(path), errno)),
            };
            if begin.elapsed() >= self.patience || meanwhile() {
                return Err(busy(id, path, begin.elapsed()));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let links = fstat(lock.as_fd())
            .map_err(|errno| Error::os("stat directory", display(path), errno))?
            .st_nlink;
        if links == 0 {
            return Ok(None);
        }
        Ok(Some(Dir {
            id: id.to_string(),
            path: path.to_path_buf(),
            lock,
        }))
    }
}

/// Whether a directory is the state of a container, one that is just being made included.
pub fn holds_container(dir: &Path) -> bool {
    [RECORD, RECORD_NEW]
        .iter()
        .any(|name| dir.join(name).exists())
}

fn runtime_dir() -> Option<std::ffi::OsString> {
    std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty())
}

fn acts_unprivileged(in_user_namespace: impl FnOnce() -> bool) -> bool {
    !nix::unistd::geteuid().is_root()
        || std::env::var_os("USER").is_none_or(|user| user != "root") && in_user_namespace()
}

/// Whether what is kept is kept for one user without privileges: see [`Store::default_root`].
pub fn unprivileged(in_user_namespace: impl FnOnce() -> bool) -> bool {
    !nix::unistd::geteuid().is_root()
        || runtime_dir().is_some() && acts_unprivileged(in_user_namespace)
}

impl Dir {
    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory's descriptor, which carries the lock. A forked child must close its copy.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Whether one of the container's hooks has deleted it: [`Store::mark_deleted`].
    pub fn is_deleted(&self) -> bool {
        self.path.join(DELETED).exists()
    }

    /// The fifo on which the created container waits for `start`.
    pub fn fifo_path(&self) -> PathBuf {
        self.path.join(FIFO)
    }

    /// The container's record; none where its creator was killed before it wrote one.
    ///
    /// # Errors
    /// Where there is one that cannot be read.
    pub fn record(&self) -> Result<Option<Record>> {
        read_record(&self.path)
    }

    /// Keeps the record that was saved last under a second name, for [`Dir::origin`].
    ///
    /// # Errors
    /// Those of linkat(2).
    pub fn keep_origin(&self) -> Result<()> {
        nix::unistd::linkat(self.fd(), RECORD, self.fd(), ORIGIN, AtFlags::empty())
            .map_err(|errno| Error::os("keep", display(&self.path.join(ORIGIN)), errno))
    }

    /// The first record of the container, for a `delete --force` that cannot read the last one: it
    /// says where the cgroup is.
    pub fn origin(&self) -> Option<Record> {
        let path = self.path.join(ORIGIN);
        Record::parse(&fs::read(&path).ok()?, &path).ok()
    }

    /// The container's status; without a record nobody lives, since this value holds the lock.
    ///
    /// # Errors
    /// As [`Dir::record`].
    pub fn status(&self) -> Result<Status> {
        Ok(self
            .record()?
            .map_or(Status::Stopped, |record| record.status(&self.path)))
    }

    /// Keeps config.json as the container was made from it, for [`Store::config`].
    ///
    /// # Errors
    /// The system's refusal.
    pub fn keep_config(&self, text: &[u8]) -> Result<()> {
        let path = self.path.join(CONFIG);
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(self.fd(), CONFIG, flags, Mode::from_bits_truncate(0o600))
            .map_err(|errno| Error::os("write", display(&path), errno))?;
        File::from(fd)
            .write_all(text)
            .map_err(|error| Error::io("write", display(&path), &error))
    }

    /// Replaces the container's record: a reader sees the old one or the new one, never half.
    ///
    /// # Errors
    /// The system's refusal (no space, read-only); the old record is still there then.
    pub fn save(&self, record: &Record) -> Result<()> {
        let path = self.path.join(RECORD);
        let failed = |errno| Error::os("write", display(&path), errno);
        let text = serde_json::to_vec(record).map_err(|error| {
            Error::new(Kind::State, format!("write {}: {error}", path.display()))
        })?;
        let flags = OFlag::O_WRONLY
            | OFlag::O_CREAT
            | OFlag::O_TRUNC
            | OFlag::O_NOFOLLOW
            | OFlag::O_CLOEXEC;
        let fd = openat(
            self.fd(),
            RECORD_NEW,
            flags,
            Mode::from_bits_truncate(0o600),
        )
        .map_err(failed)?;
        let written = File::from(fd)
            .write_all(&text)
            .map_err(|error| Error::io("write", display(&path), &error))
            .and_then(|()| renameat(self.fd(), RECORD_NEW, self.fd(), RECORD).map_err(failed));
        if written.is_err() {
            // Half a file helps nobody; the error that is told is the first one.
            let _ = unlinkat(self.fd(), RECORD_NEW, UnlinkatFlags::NoRemoveDir);
        }
        written
    }

    /// Removes the files of the directory and the directory itself; links are removed, not
    /// followed. The record goes last, so that a removal that was interrupted can be repeated.
    ///
    /// # Errors
    /// The system's refusal, or a directory inside, which isorun never makes.
    pub fn remove(self) -> Result<()> {
        for name in [FIFO, RECORD_NEW] {
            self.unlink(name)?;
        }
        let others = fs::read_dir(&self.path)
            .map_err(|error| Error::io("read directory", display(&self.path), &error))?;
        for name in others {
            let name =
                name.map_err(|error| Error::io("read directory", display(&self.path), &error))?;
            if name.file_name() != RECORD {
                self.unlink(name.file_name())?;
            }
        }
        self.unlink(RECORD)?;
        unlinkat(AT_FDCWD, &self.path, UnlinkatFlags::RemoveDir)
            .map_err(|errno| Error::os("remove directory", display(&self.path), errno))
    }

    fn unlink(&self, name: impl AsRef<OsStr>) -> Result<()> {
        match unlinkat(self.fd(), name.as_ref(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(Error::os(
                "remove",
                display(&self.path.join(name.as_ref())),
                errno,
            )),
        }
    }
}

impl Entry {
    /// The container's status. Without a record it is being made if somebody holds its lock.
    pub fn status(&self) -> Status {
        match &self.record {
            Ok(record) => record.status(&self.path),
            Err(_) if is_locked(&self.path) => Status::Creating,
            Err(_) => Status::Stopped,
        }
    }

    /// User id of who made the container.
    pub fn owner(&self) -> u32 {
        match &self.record {
            Ok(record) => record.owner,
            Err(_) => fs::symlink_metadata(&self.path).map_or(0, |data| data.uid()),
        }
    }
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

fn no_record(id: &str) -> Error {
    let sentence =
        format!("container does not exist: the creation of {id:?} has not finished or was killed");
    Error::new(Kind::NotFound, sentence).remedy("isorun delete --force removes what is left of it")
}

fn read_record(dir: &Path) -> Result<Option<Record>> {
    let path = dir.join(RECORD);
    match File::open(&path).and_then(whole) {
        Ok(text) => Record::parse(&text, &path).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", display(&path), &error)),
    }
}

/// A regular file in as few calls as there can be: `list` reads one for each container. It gives less than
/// is asked for at its end only.
fn whole(mut file: File) -> std::io::Result<Vec<u8>> {
    let mut text = vec![0; 4096];
    let mut length = 0;
    loop {
        match file.read(&mut text[length..]) {
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if length < text.len() {
            text.truncate(length);
            return Ok(text);
        }
        text.resize(2 * length, 0);
    }
}

fn is_locked(path: &Path) -> bool {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
    let Ok(fd) = open(path, flags, Mode::empty()) else {
        return false;
    };
    matches!(
        Flock::lock(fd, FlockArg::LockSharedNonblock),
        Err((_, Errno::EAGAIN))
    )
}

/// The error for a lock that was not to be had, naming who has it where /proc/locks tells.
fn busy(id: &str, path: &Path, waited: Duration) -> Error {
    let holder = fs::metadata(path)
        .ok()
        .zip(fs::read_to_string("/proc/locks").ok())
        .and_then(|(data, locks)| holder_in(&locks, data.ino()));
    let who = match holder {
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let gone = if process::start_time(pid).is_err() {
                ", which has ended,"
            } else {
                ""
            };
            format!("process {pid} ({}){gone} holds its lock", name.trim())
        }
        None => "another process holds its lock".to_string(),
    };
    let sentence = format!(
        "container {id:?} is busy: {who}, waited {} s",
        waited.as_secs()
    );
    Error::new(Kind::State, sentence)
}

/// The pid of the process that took the exclusive flock on inode `inode`; see proc_locks(5).
fn holder_in(locks: &str, inode: u64) -> Option<i32> {
    locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 1234 00:19:5678 0 EOF; waiting ones have "->" after the number.
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, file, ..] = fields.as_slice() else {
            return None;
        };
        let found = file.rsplit(':').next()?.parse::<u64>().ok()?;
        (found == inode).then(|| pid.parse().ok())?
    })
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
