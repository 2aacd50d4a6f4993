//! The directory of all channels: joining and leaving, making and removing.
//!
//! Whatever changes something holds the lock, and does its steps in an order that can be repeated:
//! metadata, directory, tmpfs, member; and back: member, tmpfs, directory, metadata last. So what a
//! SIGKILL leaves half-made is completed by the next who joins, or seen by [`Place::gc`].

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::stat::Mode;

use super::locked::Locked;
use super::member::Member;
use super::metadata::{self, DEFAULT_INODES, FORMAT, Metadata};
use super::{Channel, Key, Pids, Size};
use crate::error::{Error, Kind, Result};
use crate::state::{CHANNELS, CHANNELS_LOCK, Store, holds_container, unprivileged};

/// How long somebody waits for another one's lock.
const PATIENCE: Duration = Duration::from_secs(10);

/// The permission bits of a channel that nobody says otherwise of: everybody who has it may write, and
/// only the owner removes a file.
pub const MODE: u32 = 0o1777;

/// What is said of a channel that `isorun channel create` makes.
#[derive(Debug, Clone)]
pub struct New {
    /// Which.
    pub key: Key,
    /// Its size limit.
    pub size: Option<Size>,
    /// How many files it may hold.
    pub inodes: Option<u64>,
    /// The permission bits of its directory.
    pub mode: u32,
    /// User and group of its directory; nothing: the caller's.
    pub owner: Option<(u32, u32)>,
    /// The SELinux label of its files; nothing: what the policy gives a tmpfs.
    pub label: Option<String>,
}

/// What [`Place::gc`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Collected {
    /// Channels that were removed.
    pub removed: Vec<String>,
    /// Members that were forgotten, in channels that stay: `<channel> <container>`.
    pub forgotten: Vec<String>,
}

/// What came of joining channels.
#[derive(Debug)]
pub struct Joined {
    /// The channels without a tmpfs of their own, each with why.
    pub lost: Vec<(Key, Error)>,
    /// The process ids that the member has for itself.
    pub pids: Option<Pids>,
    /// Why it has none, where it was to have some.
    pub used_up: Option<Error>,
}

/// Where channels are: one place for the host, and one for each user without privileges.
#[derive(Debug, Clone)]
pub struct Place {
    root: PathBuf,
    rootless: bool,
}

/// The file of a member that is gone, and the id that it names.
pub(super) type Gone = (PathBuf, String);

pub(super) fn shown(path: &Path) -> String {
    path.display().to_string()
}

impl Place {
    /// The place of this user; `in_user_namespace` is asked only where it matters.
    pub fn of_user(in_user_namespace: impl Fn() -> bool) -> Self {
        let root = Store::default_root(&in_user_namespace);
        Self {
            root: root.join(CHANNELS),
            rootless: unprivileged(&in_user_namespace),
        }
    }

    /// The place at `root`.
    pub fn at(root: &Path, rootless: bool) -> Self {
        Self {
            root: root.to_path_buf(),
            rootless,
        }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// It is that of a user without privileges.
    pub fn rootless(&self) -> bool {
        self.rootless
    }

    /// Where a channel is on the host.
    pub fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.directory())
    }

    pub(super) fn metadata_path(&self, directory: &str) -> PathBuf {
        self.root.join(format!(".{directory}.json"))
    }

    pub(super) fn members_path(&self, directory: &str) -> PathBuf {
        self.root.join(format!(".{directory}.members"))
    }

    /// What is known about a channel; none where it is not there.
    ///
    /// # Errors
    /// Metadata that cannot be read.
    pub fn metadata(&self, key: &Key) -> Result<Option<Metadata>> {
        let path = self.metadata_path(&key.directory());
        let found: Option<Metadata> = metadata::read(&path)?;
        if let Some(found) = &found
            && found.version > FORMAT
        {
            let sentence = format!("{} was written by a newer isorun", path.display());
            return Err(Error::new(Kind::State, sentence));
        }
        Ok(found)
    }

    /// Who made a channel with `isorun channel create`; none where a container did. Without privileges it
    /// is the user `uid` whose file the metadata is, in whatever user namespace that is asked.
    pub(super) fn maker(&self, key: &Key, metadata: &Metadata, uid: u32) -> Option<u32> {
        if !metadata.pinned {
            return None;
        }
        if !self.rootless {
            return Some(metadata.maker);
        }
        let path = self.metadata_path(&key.directory());
        let own =
            std::fs::metadata(path).is_ok_and(|data| data.uid() == nix::unistd::geteuid().as_raw());
        Some(if own { uid } else { u32::MAX })
    }

    /// The keys of all channels, sorted.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn keys(&self) -> Result<Vec<Key>> {
        let of_file = |name: &str| {
            let name = name.strip_prefix('.')?.strip_suffix(".json")?;
            Key::of_directory(name)
        };
        let mut keys: Vec<Key> = self
            .names()?
            .iter()
            .filter_map(|name| of_file(name))
            .collect();
        keys.sort();
        Ok(keys)
    }

    fn names(&self) -> Result<Vec<String>> {
        let fail = |error| Error::io("read directory", shown(&self.root), &error);
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(fail)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(fail)?.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// The members of a channel now.
    ///
    /// # Errors
    /// Files of members that cannot be read.
    pub fn members(&self, key: &Key) -> Result<Vec<Member>> {
        let (live, _) = self.sorted(&key.directory(), &metadata::boot())?;
        Ok(live)
    }

    /// The members of a channel that live, and the files of all others with the ids that they name.
    pub(super) fn sorted(&self, directory: &str, boot: &str) -> Result<(Vec<Member>, Vec<Gone>)> {
        let path = self.members_path(directory);
        let (mut live, mut dead) = (Vec::new(), Vec::new());
        let entries = match std::fs::read_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((live, dead)),
            other => other.map_err(|error| Error::io("read directory", shown(&path), &error))?,
        };
        let key = Key::of_directory(directory);
        for entry in entries.flatten() {
            let path = entry.path();
            match (metadata::read::<Member>(&path), &key) {
                // It left just now.
                (Ok(None), _) => {}
                (Ok(Some(mut member)), Some(key)) => match member.is_live(key, boot) {
                    true => live.push(member),
                    false => dead.push((path, member.id)),
                },
                // Half a file, that a SIGKILL left.
                _ => dead.push((path, String::new())),
            }
        }
        live.sort_by(|a, b| a.id.cmp(&b.id));
        Ok((live, dead))
    }

    /// Joins channels: makes those that are not there and may be made, and records the member. `plain`:
    /// where no tmpfs can be had, a directory does, and what was lost is given back. `below`: the member gets
    /// process ids of its own in the channels with GPU memory, below this number.
    ///
    /// # Errors
    /// The first channel that cannot be joined; then none is.
    pub fn join(
        &self,
        channels: &[Channel],
        member: &Member,
        uid: u32,
        (plain, below): (bool, Option<u32>),
    ) -> Result<Joined> {
        let locked = self.lock(true)?;
        let (pids, used_up) = match below.map(|limit| locked.pids(channels, limit)) {
            Some(Err(error)) if error.kind() == Kind::State => (None, Some(error)),
            other => (other.transpose()?, None),
        };
        let member = &Member {
            pids,
            ..member.clone()
        };
        let mut lost = Vec::new();
        for (done, channel) in channels.iter().enumerate() {
            match locked.join(channel, member, uid, plain) {
                Ok(refusal) => lost.extend(refusal.map(|error| (channel.key.clone(), error))),
                Err(error) => {
                    for channel in &channels[..=done] {
                        if let Err(second) = locked.leave(&channel.key, member)
                            && second.to_string() != error.to_string()
                        {
                            crate::log::warning(&format!("after a failure: {second}"));
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(Joined {
            lost,
            pids,
            used_up,
        })
    }

    /// Leaves channels; those that have no other member and are not pinned are removed.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn leave(&self, keys: &[Key], member: &Member) -> Result<()> {
        if !self.root.exists() {
            return Ok(());
        }
        let locked = self.lock(false)?;
        // One that cannot be left keeps nobody in the others.
        let left = keys.iter().map(|key| locked.leave(key, member));
        left.fold(Ok(()), Result::and)
    }

    /// Makes a channel that stays until it is removed.
    ///
    /// # Errors
    /// [`Kind::Exists`] where it is there; what the system refuses.
    pub fn create(&self, new: &New, uid: u32) -> Result<()> {
        if self.rootless && new.label.is_some() {
            let sentence = "a user without privileges cannot label a channel: it is a directory below \
                            $XDG_RUNTIME_DIR, whose labels chcon changes";
            return Err(Error::new(Kind::Usage, sentence).remedy("leave the label out"));
        }
        if self.rootless && (new.size.is_some() || new.inodes.is_some()) {
            let sentence = "a user without privileges cannot limit a channel's size: \
                            it is a directory below $XDG_RUNTIME_DIR";
            return Err(Error::new(Kind::Usage, sentence)
                .remedy("leave the limit out, or let the administrator make the channel"));
        }
        let locked = self.lock(true)?;
        if self.metadata(&new.key)?.is_some() {
            let sentence = format!("the channel {} is there already", new.key);
            return Err(Error::new(Kind::Exists, sentence)
                .remedy(format!("isorun channel inspect {}", new.key)));
        }
        let mut metadata = self.fresh(&new.key, uid, &locked.boot);
        metadata.pinned = true;
        metadata.size = new.size;
        if !self.rootless {
            metadata.inodes = Some(new.inodes.unwrap_or(DEFAULT_INODES));
        }
        metadata.label.clone_from(&new.label);
        metadata.mode = new.mode;
        metadata.owner = new.owner.unwrap_or(metadata.owner);
        let made = locked
            .save(&metadata)
            .and_then(|()| locked.mounted(&mut metadata));
        if let Err(error) = made {
            if let Err(second) = locked.take_down(&new.key, false) {
                crate::log::warning(&format!("after a failure: {second}"));
            }
            return Err(error);
        }
        Ok(())
    }

    /// Removes a channel; with `force` also one that has members, who keep what they have of it.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::State`] where it has members; what could not be removed.
    pub fn remove(&self, key: &Key, force: bool) -> Result<()> {
        let missing = || Error::new(Kind::NotFound, format!("there is no channel {key}"));
        if !self.root.exists() {
            return Err(missing());
        }
        let locked = self.lock(false)?;
        let directory = key.directory();
        let there = [
            self.metadata_path(&directory),
            self.members_path(&directory),
            self.path(key),
        ];
        if !there.iter().any(|path| path.exists()) {
            return Err(missing());
        }
        let (live, _) = self.sorted(&directory, &locked.boot)?;
        if !live.is_empty() && !force {
            let ids: Vec<&str> = live.iter().map(|member| member.id.as_str()).collect();
            let sentence = format!("the channel {key} has members: {}", ids.join(", "));
            return Err(Error::new(Kind::State, sentence)
                .remedy("stop them first, or use --force: they keep what they have of it"));
        }
        locked.take_down(key, force)
    }

    /// Removes what nobody uses: channels without a living member that are not pinned, and the files of
    /// members that are gone. `dry`: only tells.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn gc(&self, dry: bool) -> Result<Collected> {
        let mut collected = Collected::default();
        if !self.root.exists() {
            return Ok(collected);
        }
        let locked = self.lock(false)?;
        let own = |name: &str| match name.strip_prefix('.') {
            None => Key::of_directory(name),
            Some(hidden) => {
                let mut ends = [".json.new", ".json", ".members"].iter();
                Key::of_directory(ends.find_map(|end| hidden.strip_suffix(end))?)
            }
        };
        let keys: BTreeSet<Key> = self.names()?.iter().filter_map(|name| own(name)).collect();
        for key in keys {
            let directory = key.directory();
            let (live, dead) = self.sorted(&directory, &locked.boot)?;
            let pinned = match self.metadata(&key) {
                Ok(found) => found.is_some_and(|metadata| metadata.pinned),
                // Nobody knows: what somebody may have pinned is not taken away.
                Err(error) => {
                    crate::log::warning(&format!("channel {key} stays: {error}"));
                    true
                }
            };
            if live.is_empty() && !pinned {
                // One that resists keeps nothing else from being removed.
                match if dry {
                    Ok(())
                } else {
                    locked.take_down(&key, false)
                } {
                    Ok(()) => collected.removed.push(key.to_string()),
                    Err(error) => crate::log::warning(&format!("channel {key} stays: {error}")),
                }
                continue;
            }
            for (path, id) in dead {
                if !dry {
                    metadata::remove(&path)?;
                }
                collected.forgotten.push(format!("{key} {id}"));
            }
        }
        Ok(collected)
    }

    /// The metadata of a channel that is made now, for a container.
    pub(super) fn fresh(&self, key: &Key, uid: u32, boot: &str) -> Metadata {
        Metadata {
            version: FORMAT,
            key: key.clone(),
            maker: uid,
            pinned: false,
            created: crate::time::now_nanos(),
            size: None,
            inodes: None,
            label: None,
            mode: MODE,
            owner: (
                nix::unistd::geteuid().as_raw(),
                nix::unistd::getegid().as_raw(),
            ),
            plain: self.rootless,
            boot: boot.to_string(),
            device: 0,
        }
    }

    fn make_root(&self) -> Result<()> {
        let parent = self.root.parent().unwrap_or(&self.root);
        let make = |path: &Path, mode: u32| match DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
        {
            Ok(()) => Ok(()),
            Err(error) => {
                let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
                let error = Error::io("create directory", shown(path), &error);
                Err(match denied && !nix::unistd::geteuid().is_root() {
                    true => error.remedy("set XDG_RUNTIME_DIR to a directory of yours"),
                    false => error,
                })
            }
        };
        // The sticky bit keeps what is old from being cleaned away below $XDG_RUNTIME_DIR.
        make(parent, if self.rootless { 0o1700 } else { 0o700 })?;
        make(&self.root, if self.rootless { 0o1700 } else { 0o711 })
    }

    fn lock(&self, make: bool) -> Result<Locked<'_>> {
        if make {
            self.make_root()?;
        }
        if holds_container(&self.root) {
            let sentence = format!(
                "{} is the state of a container that is called {CHANNELS:?}: channels cannot be there",
                shown(&self.root)
            );
            return Err(Error::new(Kind::State, sentence)
                .remedy(format!("isorun delete {CHANNELS}, and give it another id")));
        }
        let path = self.root.join(CHANNELS_LOCK);
        let fail = |errno| Error::os("lock", shown(&path), errno);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = open(&path, flags, Mode::from_bits_truncate(0o600)).map_err(fail)?;
        let directory = open(
            &self.root,
            OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(fail)?;
        let end = Instant::now() + PATIENCE;
        let lock = loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((file, Errno::EAGAIN | Errno::EINTR)) => file,
                Err((_, errno)) => return Err(fail(errno)),
            };
            if Instant::now() >= end {
                let sentence = format!(
                    "channels are busy: another process holds {}, waited {} s",
                    path.display(),
                    PATIENCE.as_secs()
                );
                return Err(Error::new(Kind::State, sentence));
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        Ok(Locked {
            place: self,
            _lock: lock,
            directory,
            boot: metadata::boot(),
        })
    }
}
