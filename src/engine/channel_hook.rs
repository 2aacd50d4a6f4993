//! The OCI hook `isorun-hook-channel`: the same channels under any runtime.
//!
//! ```text
//! createRuntime   the container's mounts are made, its root is not `/` yet: joins, and mounts
//! poststop        leaves
//! ```
//!
//! Which of the two it is says the state on stdin. Annotations, rules and metadata are those of isorun. What
//! a hook cannot do is to change the environment: the program finds its channels in /run/isorun/channels.
//! Paths in the container's root are resolved by the kernel inside of it, in the container's mount
//! namespace; what was mounted there by isorun itself already is left as it is.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, fstat};
use serde::Deserialize;

use super::mounts::{new_filesystem, open_source};
use super::proc::PROC_MAGIC;
use super::root::{Make, Root, open_dir};
use super::sources::helped;
use crate::channel::{self, Channel, Facts, Key, Member, Place, Request, Shm};
use crate::error::{Error, Kind, Result};
use crate::host::{self, IdMap};
use crate::log;
use crate::state::{check_id, start_time};
use crate::sys::fs::fs_magic;
use crate::sys::mount::{attr, mount_idmap, mount_setattr, move_mount};

/// More than a state or a config.json ever has.
const MOST: u64 = 8 << 20;

const FLAGS: u64 = attr::NOSUID | attr::NODEV | attr::NOEXEC;

/// The state on stdin: runtime.md, "State".
#[derive(Debug, Deserialize)]
struct State {
    id: String,
    status: String,
    #[serde(default)]
    pid: i32,
    bundle: PathBuf,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What of config.json the hook needs.
#[derive(Debug, Deserialize)]
struct Config {
    root: RootOf,
    #[serde(default)]
    process: Process,
    #[serde(default)]
    linux: Linux,
}

#[derive(Debug, Deserialize)]
struct RootOf {
    path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default)]
    mount_label: String,
}

#[derive(Debug, Default, Deserialize)]
struct Process {
    #[serde(default)]
    capabilities: Capabilities,
}

#[derive(Debug, Default, Deserialize)]
struct Capabilities {
    #[serde(default)]
    bounding: Vec<String>,
}

/// The whole program. What fails is one sentence on stderr, which the runtime passes on.
pub fn main() -> ExitCode {
    // Nothing of the caller's reaches the helper that goes into the container's namespace.
    let result = crate::sys::fs::cloexec_from(3)
        .map_err(|errno| Error::os("close at exec", "inherited descriptors", errno))
        .and_then(|()| read(std::io::stdin().lock(), "the state on stdin"))
        .and_then(|state| run(&state));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error(&format!("isorun-hook-channel: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(from: impl Read, what: &str) -> Result<T> {
    let mut text = Vec::new();
    from.take(MOST)
        .read_to_end(&mut text)
        .map_err(|error| Error::io("read", what, &error))?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::new(
            Kind::Spec,
            format!("{what} is not what the specification says: {error}"),
        )
    })
}

fn run(state: &State) -> Result<()> {
    check_id(&state.id)?;
    if !state.bundle.is_absolute() {
        let bundle = state.bundle.display();
        return Err(Error::new(
            Kind::Spec,
            format!("the bundle {bundle} is no absolute path"),
        ));
    }
    let Some(request) = channel::request(state.annotations.iter())? else {
        return Ok(());
    };
    // Under isorun, which without root gives the hook no XDG_RUNTIME_DIR to look in.
    if state.annotations.contains_key(channel::JOINED) {
        return Ok(());
    }
    let place = Place::of_user(host::in_user_namespace);
    if state.status == "stopped" {
        let keys: Vec<Key> = request.channels.into_iter().map(|one| one.key).collect();
        return place.leave(&keys, &Member::of_process(&state.id, &state.bundle, 0, 0));
    }
    let container = Container::open(state)?;
    let caller = (IdMap::own_uid_outside(), IdMap::own_gid_outside());
    let facts = Facts::gather(&place, caller, &request)?;
    let mut channels = channel::grant(&request, &facts, container.admin, |key| {
        state.annotations.get(key)
    })?;
    for channel in &mut channels {
        container.check(channel, &place)?;
        channel.label = container.label.as_deref().map(channel::shared_label);
    }
    check_cuda(&channels, &state.id, &place)?;
    let member = Member::of_process(&state.id, &state.bundle, state.pid, container.start);
    place.join(&channels, &member, facts.uid, (false, None))?;
    container
        .mount_all(&channels, &request, &place)
        .inspect_err(|_| {
            let keys: Vec<Key> = channels.iter().map(|one| one.key.clone()).collect();
            if let Err(second) = place.leave(&keys, &member) {
                log::warning(&format!("after a failure: {second}"));
            }
        })
}

/// Refuses GPU memory where isorun is not the runtime, which alone can give process ids: a member whose
/// processes have another member's numbers would get errors of CUDA that nobody understands.
fn check_cuda(channels: &[Channel], id: &str, place: &Place) -> Result<()> {
    for channel in channels.iter().filter(|channel| channel.cuda) {
        let members = place.members(&channel.key)?;
        let of_isorun = |member: &Member| member.id == id && member.state.is_some();
        if !members.iter().any(of_isorun) {
            let field = format!("annotations[{:?}]", channel::CUDA);
            let sentence =
                "a hook cannot give the container process ids of its own, which CUDA needs";
            return Err(Error::spec(field, sentence)
                .remedy("let isorun be the runtime (docs/cuda.md), or leave the annotation out"));
        }
    }
    Ok(())
}

/// The container that the hook works on.
struct Container {
    start: u64,
    mounts: OwnedFd,
    /// Its user namespace, where that is not the hook's.
    users: Option<OwnedFd>,
    rootfs: PathBuf,
    admin: bool,
    /// The SELinux label of its own file systems.
    label: Option<String>,
}

impl Container {
    fn open(state: &State) -> Result<Self> {
        if state.pid <= 0 {
            let sentence = format!(
                "the state of a container that is {} has no pid",
                state.status
            );
            return Err(Error::new(Kind::Spec, sentence));
        }
        let start = start_time(state.pid)?;
        let namespace = |pid: &str, kind: &str| {
            let path = format!("/proc/{pid}/ns/{kind}");
            nix::fcntl::open(
                path.as_str(),
                OFlag::O_RDONLY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
            .map_err(|errno| Error::os("open", path, errno))
        };
        let number = |fd: &OwnedFd| {
            let stat = fstat(fd).map_err(|errno| Error::os("look at", "a namespace", errno))?;
            Ok((stat.st_dev, stat.st_ino))
        };
        let pid = state.pid.to_string();
        let mounts = namespace(&pid, "mnt")?;
        if number(&mounts)? == number(&namespace("self", "mnt")?)? {
            let sentence =
                "the container has no mount namespace of its own: its channels would be the host's";
            return Err(Error::new(Kind::Spec, sentence));
        }
        let users = namespace(&pid, "user")?;
        let own = number(&users)? == number(&namespace("self", "user")?)?;
        // Still the process that the state named: its namespaces are the container's.
        if start_time(state.pid)? != start {
            return Err(Error::os("hold", format!("process {pid}"), Errno::ESRCH));
        }
        let path = state.bundle.join("config.json");
        let file = std::fs::File::open(&path)
            .map_err(|error| Error::io("read", path.display().to_string(), &error))?;
        let config: Config = read(file, "config.json")?;
        Ok(Self {
            start,
            mounts,
            users: (!own).then_some(users),
            rootfs: state.bundle.join(config.root.path),
            label: Some(config.linux.mount_label).filter(|label| !label.is_empty()),
            admin: config
                .process
                .capabilities
                .bounding
                .iter()
                .any(|name| name == "CAP_SYS_ADMIN"),
        })
    }

    /// Refuses what could not be kept.
    fn check(&self, channel: &Channel, place: &Place) -> Result<()> {
        let key = &channel.key;
        if place.rootless() && channel.asked.is_some() {
            let sentence =
                format!("a user without privileges cannot limit the size of the channel {key}");
            return Err(Error::new(Kind::Spec, sentence).remedy("leave the annotation out"));
        }
        Ok(())
    }

    fn mount_all(&self, channels: &[Channel], request: &Request, place: &Place) -> Result<()> {
        match &request.shm {
            Some(Shm::Private(size)) => {
                let mut data = vec![
                    ("mode".to_string(), Some("1777".to_string())),
                    ("size".to_string(), Some(size.0.to_string())),
                ];
                data.extend(
                    self.label
                        .clone()
                        .map(|label| ("context".to_string(), Some(label))),
                );
                let made = new_filesystem("tmpfs", "shm", &data, FLAGS)
                    .map_err(|(errno, _)| Error::os("mount tmpfs on", "/dev/shm", errno))?;
                self.put(&made, "/dev/shm")?;
            }
            Some(Shm::Channel(name)) => {
                let named = channels.iter().find(|one| one.key.name() == name);
                if let Some(channel) = named {
                    self.put(&self.tree(channel, place)?, "/dev/shm")?;
                }
            }
            None => {}
        }
        channels
            .iter()
            .try_for_each(|channel| self.put(&self.tree(channel, place)?, &channel.key.inside()))
    }

    /// A detached mount of the channel, as the container is to see it.
    fn tree(&self, channel: &Channel, place: &Place) -> Result<OwnedFd> {
        let fail = |what: &'static str| {
            let path = channel.source.display().to_string();
            move |errno| Error::os(what, path.clone(), errno)
        };
        let tree = open_source(&channel.source, false).map_err(fail("copy the mount of"))?;
        let readonly = if channel.readonly { attr::RDONLY } else { 0 };
        mount_setattr(tree.as_fd(), false, FLAGS | readonly, 0, libc::MS_PRIVATE)
            .map_err(fail("set the flags of"))?;
        if let Some(users) = self.users.as_ref().filter(|_| !place.rootless())
            && let Err(errno) = mount_idmap(tree.as_fd(), false, users.as_fd())
        {
            log::warning(&format!(
                "degraded: the container's ids in the channel {}: {}; it is mounted with the host's ids; a kernel \
                 from 6.3 on maps the ids of a tmpfs",
                channel.key,
                crate::error::errno_words(errno)
            ));
        }
        Ok(tree)
    }

    /// Puts a detached mount into the container, unless the same file system is there already.
    fn put(&self, tree: &OwnedFd, target: &str) -> Result<()> {
        let fail = |errno| {
            let error = Error::os("mount a channel on", target, errno);
            match errno {
                Errno::ENOENT => error.remedy(
                    "the runtime has to call the hook before it changes the root: createRuntime, not later",
                ),
                Errno::EROFS => error.remedy("the image needs the directory, or a tmpfs on /run"),
                _ => error,
            }
        };
        // A directory of the file system that the target is on is not there already.
        let same = |stat: nix::sys::stat::FileStat| (stat.st_dev, stat.st_ino);
        let own = same(fstat(tree).map_err(fail)?);
        let work = || {
            let root =
                open_dir(&self.rootfs).map_err(|error| error.errno().unwrap_or(Errno::ENOENT))?;
            let root = Root::new(root);
            let at = root.open_or_make(target, Make::Directory)?;
            if fs_magic(at.as_fd())? == PROC_MAGIC {
                return Err(Errno::EPERM);
            }
            if same(fstat(&at)?) != own {
                move_mount(tree.as_fd(), at.as_fd())?;
            }
            Ok(Vec::new())
        };
        debug_assert!(tree.as_raw_fd() > 2);
        helped(&self.mounts, CloneFlags::CLONE_NEWNS, work)
            .map(drop)
            .map_err(fail)
    }
}

/// The rootfs of a bundle as the hook takes it, for tests.
#[cfg(test)]
fn parse(text: &[u8]) -> Result<State> {
    read(text, "the state on stdin")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn states_that_are_refused() {
        for (text, says) in [
            ("", "the state on stdin is not what the specification says"),
            ("{}", "missing field `id`"),
            (
                r#"{"id":"a/b","status":"creating","bundle":"/b"}"#,
                "invalid container ID format",
            ),
            (
                r#"{"id":"a","status":"creating","bundle":"b"}"#,
                "no absolute path",
            ),
            (
                r#"{"id":"a","status":"creating","bundle":"/b","annotations":{"io.isorun.channels":"x"}}"#,
                "has no pid",
            ),
            (
                r#"{"id":"a","status":"creating","pid":1,"bundle":"/b","annotations":{"io.isorun.channels":"X"}}"#,
                "is no name of a channel",
            ),
        ] {
            let error = parse(text.as_bytes())
                .and_then(|state| run(&state))
                .unwrap_err();
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
        let nothing = parse(br#"{"id":"a","status":"creating","bundle":"/b"}"#).unwrap();
        run(&nothing).unwrap();
    }

    #[test]
    fn the_hook_file_matches_what_asks_for_a_channel() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks/hooks.d/isorun-channel.json");
        let value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(
            value["stages"],
            serde_json::json!(["createRuntime", "poststop"])
        );
        let when = value["when"]["annotations"].as_object().unwrap();
        let pattern = when.keys().next().unwrap();
        assert_eq!(pattern, "^io\\.isorun\\.(channels|shm|shm\\.size)$");
    }
}
