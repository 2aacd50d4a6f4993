//! What is done to channels while their lock is held: the steps of joining, leaving and removing one.

use std::fs::{DirBuilder, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use super::grant::same_size;
use super::member::Member;
use super::metadata::{self, DEFAULT_INODES, Metadata};
use super::place::{Place, shown};
use super::{Channel, Key, Pids};
use crate::error::{Error, Kind, Result};

/// The place, locked.
pub(super) struct Locked<'a> {
    pub(super) place: &'a Place,
    pub(super) _lock: Flock<OwnedFd>,
    pub(super) directory: OwnedFd,
    pub(super) boot: String,
}

impl Locked<'_> {
    pub(super) fn save(&self, metadata: &Metadata) -> Result<()> {
        let name = format!(".{}.json", metadata.key.directory());
        metadata::write(self.directory.as_fd(), &name, metadata)
            .map_err(|error| error.context(&format!("channel {}", metadata.key)))
    }

    /// Joins one channel; gives why there is only a directory, where `plain` allowed that.
    pub(super) fn join(
        &self,
        channel: &Channel,
        member: &Member,
        uid: u32,
        plain: bool,
    ) -> Result<Option<Error>> {
        let place = self.place;
        let key = &channel.key;
        let mut metadata = match place.metadata(key)? {
            Some(metadata) => {
                // Again, now that nobody changes it any more.
                if let Some(asked) = channel.asked.filter(|_| !metadata.plain) {
                    same_size(key, asked, metadata.size)?;
                }
                if channel.rule.is_none() && place.maker(key, &metadata, uid) != Some(uid) {
                    return Err(gone(key));
                }
                metadata
            }
            None if channel.create => {
                let mut metadata = place.fresh(key, uid, &self.boot);
                if !metadata.plain {
                    metadata.size = channel.size;
                    metadata.inodes = Some(channel.inodes.unwrap_or(DEFAULT_INODES));
                    metadata.label.clone_from(&channel.label);
                }
                self.save(&metadata)?;
                metadata
            }
            None => return Err(gone(key)),
        };
        // Who comes later is told, too, and may refuse it.
        let found = (metadata.plain && !place.rootless()).then(|| without(key));
        if let Some(error) = found.as_ref().filter(|_| !plain) {
            return Err(error.clone());
        }
        let lost = match self.mounted(&mut metadata) {
            Err(error) if plain && metadata.device == 0 && error.errno().is_some_and(no_tmpfs) => {
                metadata.plain = true;
                (metadata.size, metadata.inodes, metadata.label) = (None, None, None);
                self.mounted(&mut metadata)?;
                Some(error)
            }
            other => other.map(|()| found)?,
        };
        let members = place.members_path(&key.directory());
        match DirBuilder::new().mode(0o700).create(&members) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create directory", shown(&members), &error));
            }
            _ => {}
        }
        let directory = open(
            &members,
            OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| Error::os("open", shown(&members), errno))?;
        let member = Member {
            readonly: channel.readonly,
            boot: self.boot.clone(),
            pids: member.pids.filter(|_| channel.cuda),
            ..member.clone()
        };
        metadata::write(directory.as_fd(), &member.file(), &member)?;
        Ok(lost)
    }

    /// A range of process ids below `limit` that no living member has of those of `channels` in which GPU
    /// memory is shared.
    ///
    /// # Errors
    /// All are used; files of members that cannot be read.
    pub(super) fn pids(&self, channels: &[Channel], limit: u32) -> Result<Pids> {
        let mut used = Vec::new();
        let shared: Vec<&Key> = channels
            .iter()
            .filter(|channel| channel.cuda)
            .map(|channel| &channel.key)
            .collect();
        for key in &shared {
            let (live, _) = self.place.sorted(&key.directory(), &self.boot)?;
            used.extend(live.iter().filter_map(|member| member.pids));
        }
        Pids::free(limit, &used).ok_or_else(|| {
            let names: Vec<String> = shared.iter().map(ToString::to_string).collect();
            let sentence = format!(
                "all ranges of process ids below {limit} are used by the {} members of the channel {}",
                used.len(),
                names.join(", ")
            );
            Error::new(Kind::State, sentence)
        })
    }

    /// Sees to it that the channel's directory is there, and its tmpfs mounted on it.
    pub(super) fn mounted(&self, metadata: &mut Metadata) -> Result<()> {
        let path = self.place.path(&metadata.key);
        let fail = |what: &'static str| {
            let path = shown(&path);
            move |error: std::io::Error| Error::io(what, path.clone(), &error)
        };
        let new = match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(fail("create directory")(error)),
        };
        let device = |path: &Path| std::fs::symlink_metadata(path).map(|data| data.dev());
        let here = device(&path).map_err(fail("look at"))?;
        let below = device(self.place.root()).map_err(fail("look at"))?;
        if metadata.plain {
            if new || metadata.device == 0 {
                std::fs::set_permissions(&path, Permissions::from_mode(metadata.mode))
                    .map_err(fail("change the mode of"))?;
                metadata.device = here;
                self.save(metadata)?;
            }
            return Ok(());
        }
        let own = here != below && here == metadata.device && metadata.boot == self.boot;
        if own {
            return Ok(());
        }
        if here != below {
            if metadata.device != 0 && metadata.boot == self.boot {
                let sentence = format!(
                    "channel {}: something else is mounted on {}",
                    metadata.key,
                    path.display()
                );
                return Err(Error::new(Kind::State, sentence).remedy(format!(
                    "unmount it, or isorun channel remove --force {}",
                    metadata.key
                )));
            }
            // Whoever mounted it was killed before it was recorded: nobody can have joined it.
            umount2(&path, MntFlags::MNT_DETACH)
                .map_err(|errno| Error::os("unmount", shown(&path), errno))?;
        } else if metadata.device != 0 && metadata.boot == self.boot {
            let (live, _) = self.place.sorted(&metadata.key.directory(), &self.boot)?;
            let why = match live.first() {
                Some(member) => format!("{} has joined it", member.id),
                None => "it was made to stay".to_string(),
            };
            if !live.is_empty() || metadata.pinned {
                let sentence = format!(
                    "channel {}: {why}, but it is not mounted on {} in this mount namespace",
                    metadata.key,
                    path.display()
                );
                return Err(Error::new(Kind::State, sentence).remedy(format!(
                    "call isorun in the mount namespace in which the channel was made, or, where it is gone \
                     for good, isorun channel remove {}",
                    metadata.key
                )));
            }
        }
        self.mount(metadata, &path)?;
        metadata.device = device(&path).map_err(fail("look at"))?;
        metadata.boot.clone_from(&self.boot);
        self.save(metadata)
    }

    fn mount(&self, metadata: &Metadata, path: &Path) -> Result<()> {
        let options = options(metadata);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some("isorun-channel"),
            path,
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        )
        .map_err(|errno| {
            let what = format!("channel {}: mount a tmpfs ({options}) on", metadata.key);
            Error::os(what, shown(path), errno)
        })
    }

    pub(super) fn leave(&self, key: &Key, member: &Member) -> Result<()> {
        let directory = key.directory();
        let file = self.place.members_path(&directory).join(member.file());
        metadata::remove(&file)?;
        let (live, _) = self.place.sorted(&directory, &self.boot)?;
        if !live.is_empty() {
            return Ok(());
        }
        match self.place.metadata(key) {
            Ok(Some(metadata)) if metadata.pinned => Ok(()),
            // What is there and not readable stays for the administrator.
            Err(error) => Err(error),
            _ => self.take_down(key, false),
        }
    }

    /// Removes a channel with all that is in it; with `force` also what somebody else has mounted on it.
    pub(super) fn take_down(&self, key: &Key, force: bool) -> Result<()> {
        let directory = &key.directory();
        let path = self.place.path(key);
        // Where it was mounted and killed before that was recorded, the device is 0.
        let own = match self.place.metadata(key) {
            Ok(Some(metadata)) => Some(metadata).filter(|data| !data.plain),
            _ => None,
        };
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        let device = |path: &Path| std::fs::symlink_metadata(path).map(|data| data.dev());
        while let (Ok(here), Ok(below)) = (device(&path), device(self.place.root()))
            && here != below
        {
            let known = |data: &Metadata| data.device == 0 || data.device == here;
            if !force && !own.as_ref().is_some_and(known) {
                let sentence = format!(
                    "channel {key}: something else is mounted on {}",
                    path.display()
                );
                return Err(Error::new(Kind::State, sentence).remedy(format!(
                    "unmount it, or isorun channel remove --force {key}"
                )));
            }
            umount2(&path, flags).map_err(|errno| {
                Error::os("unmount", shown(&path), errno)
                    .remedy("it was mounted by another user, or in another mount namespace")
            })?;
        }
        for path in [path, self.place.members_path(directory)] {
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
                    let error = Error::io("remove", shown(&path), &error);
                    return Err(match denied && self.place.rootless() {
                        true => error.remedy(
                            "files of other ids of yours are in it: podman unshare isorun channel remove",
                        ),
                        false => error,
                    });
                }
                _ => {}
            }
        }
        let metadata = self.place.metadata_path(directory);
        metadata::remove(&metadata.with_extension("json.new"))?;
        metadata::remove(&metadata)
    }
}

/// What is said of the tmpfs when it is mounted. A label is in quotes, because a comma ends an option.
pub(super) fn options(metadata: &Metadata) -> String {
    let (uid, gid) = metadata.owner;
    let mut options = format!("mode={:o},uid={uid},gid={gid}", metadata.mode);
    if let Some(size) = metadata.size {
        options += &format!(",size={}", size.0);
    }
    if let Some(inodes) = metadata.inodes {
        options += &format!(",nr_inodes={inodes}");
    }
    if let Some(label) = &metadata.label {
        options += &format!(",context=\"{label}\"");
    }
    options
}

/// Whether a mount that failed so may be one that this host does not allow at all.
fn no_tmpfs(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EPERM | Errno::EACCES | Errno::ENODEV | Errno::ENOSYS
    )
}

/// What a member is told that joins a channel whose tmpfs could not be mounted when it was made.
fn without(key: &Key) -> Error {
    let sentence = format!(
        "the channel {key} is a directory without a tmpfs: none could be mounted when it was made"
    );
    Error::new(Kind::State, sentence).remedy(format!(
        "isorun channel remove {key}, once nobody uses it, and make it where a tmpfs can be mounted"
    ))
}

/// What was there when the container was planned, and is not what it was any more.
fn gone(key: &Key) -> Error {
    let sentence =
        format!("the channel {key} was removed, or made anew by somebody else, just now");
    Error::new(Kind::State, sentence).remedy("try again")
}
