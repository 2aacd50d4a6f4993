//! Sources of mounts that the child cannot open by itself, or not as they are to be shown.
//!
//! The child asks over the channel when it may not reach a source (in a user namespace it is nobody
//! on the host), and for every mount with other owners. It hands over descriptors of its mount and
//! user namespace. The parent, which keeps the host's identity, forks a helper that joins that mount
//! namespace and copies the tree there: so the copy carries the locked flags of the child's own
//! mounts, and the container cannot take the host's read-only, nosuid, nodev or noexec off
//! (docs/decisions/0005). Nothing of this runs for a container that asks for nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::Pid;

use super::mounts::{denied, open_source};
use crate::error::{Error, Result};
use crate::plan::{
    Action, Degradation, Feature, IdMap, IdMapping, Mount, MountKind, Otherwise, Plan,
};
use crate::sys::clone::{Born, clone_old, clone3};
use crate::sys::mount::{mount_idmap, mount_setattr};
use crate::sys::process;
use crate::sys::socket::{recv_with_fds, send_with_fds};

/// What the child hands over when it asks: its mount and its user namespace.
///
/// # Errors
/// A sentence with the path and the errno.
pub fn namespaces() -> Result<[OwnedFd; 2]> {
    let open = |name: &str| {
        let path = format!("/proc/self/ns/{name}");
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path.as_str(), flags, Mode::empty())
            .map_err(|errno| Error::os("open", path, errno))
    };
    Ok([open("mnt")?, open("user")?])
}

/// The parent's answer for step `number` of the plan: the source as a detached tree, or itself where
/// the child needs it `plain` for mount(2); for the root file system also the directory that it goes on
/// (that alone, where there are no detached trees), and as `plain` the mount that was made of it. With it
/// comes what was lost on the way.
///
/// # Errors
/// A sentence with the entry's field, the source and the errno.
pub fn provide(
    plan: &Plan,
    (number, plain): (usize, bool),
    from_child: &[OwnedFd],
) -> Result<(Vec<OwnedFd>, Option<Degradation>)> {
    let failed = match opened(plan, (number, plain), from_child, true) {
        Ok(opened) => return Ok((opened, None)),
        Err(error) => error,
    };
    // Only here, where the maps are set, can be gone on without them.
    let errno = failed.errno().map_or(0, |errno| errno as i32);
    let ways = plan
        .steps
        .get(number)
        .map_or(&[][..], |step| &step.otherwise);
    let about = |way: &&Otherwise| way.row == Feature::ChannelIdmap && way.on.contains(&errno);
    match ways.iter().find(about) {
        Some(way) => {
            let opened = opened(plan, (number, plain), from_child, false)?;
            Ok((opened, Some(way.taken(&failed, None))))
        }
        None => Err(failed),
    }
}

/// The same, where `mapped` is false without the owners that the mount asks for.
fn opened(
    plan: &Plan,
    (number, plain): (usize, bool),
    from_child: &[OwnedFd],
    mapped: bool,
) -> Result<Vec<OwnedFd>> {
    let [mounts, users] = from_child else {
        return Err(Error::os(
            "hear of",
            "the child's namespaces",
            Errno::EBADMSG,
        ));
    };
    match plan.steps.get(number).map(|step| &step.action) {
        Some(Action::OpenRoot { path }) if plain => helped(mounts, CloneFlags::CLONE_NEWNS, || {
            super::pivot::mount_on_itself(path).map(|top| vec![top])
        })
        .map_err(|errno| Error::os("root.path: bind mount", path.display().to_string(), errno)),
        Some(Action::OpenRoot { path }) => helped(mounts, CloneFlags::CLONE_NEWNS, || {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let place = nix::fcntl::open(path.as_path(), flags, Mode::empty())?;
            match open_source(path, true) {
                Err(errno) if denied(errno) => Ok(vec![place]),
                tree => Ok(vec![tree?, place]),
            }
        })
        .map_err(|errno| Error::os("root.path: bind mount", path.display().to_string(), errno)),
        Some(Action::Mount(mount)) => match &mount.what {
            MountKind::Bind { source, .. } if plain => {
                helped(mounts, CloneFlags::CLONE_NEWNS, || {
                    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
                    nix::fcntl::open(source.as_path(), flags, Mode::empty()).map(|fd| vec![fd])
                })
                .map_err(|errno| failed(mount, source, errno))
            }
            MountKind::Bind { source, recursive } => {
                let tree = tree(mount, source, *recursive, mounts)?;
                if let Some(mapping) = mount.idmap.as_ref().filter(|_| mapped) {
                    map_owners(mount, source, mapping, &tree, users)?;
                }
                Ok(vec![tree])
            }
            _ => Err(asked_for_nothing(number)),
        },
        _ => Err(asked_for_nothing(number)),
    }
}

fn asked_for_nothing(number: usize) -> Error {
    let step = format!("step {number} of the plan");
    Error::os("open the source of", step, Errno::EBADMSG)
}

fn failed(mount: &Mount, source: &Path, errno: Errno) -> Error {
    let what = format!("{}: bind mount {} on", mount.field, source.display());
    Error::os(what, &mount.target, errno)
}

fn tree(mount: &Mount, source: &Path, recursive: bool, mounts: &OwnedFd) -> Result<OwnedFd> {
    let fail = |errno| failed(mount, source, errno);
    let opened = helped(mounts, CloneFlags::CLONE_NEWNS, || {
        open_source(source, recursive).map(|tree| vec![tree])
    });
    match opened {
        Ok(mut trees) => trees.pop().ok_or_else(|| fail(Errno::EBADMSG)),
        // In the mount namespace of a user namespace everything that is mounted below the source is
        // locked to it. In the host's it is not; but there no flag is locked either, so that is for
        // mounts only that have none.
        Err(Errno::EINVAL) if !recursive => match open_source(source, false) {
            Ok(tree)
                if unrestricted(&tree)
                    && mount_setattr(&tree, false, 0, 0, libc::MS_SLAVE).is_ok() =>
            {
                Ok(tree)
            }
            _ => Err(fail(Errno::EINVAL).remedy(
                "with something mounted below the source it takes the option \"rbind\" here",
            )),
        },
        Err(errno) => Err(fail(errno)),
    }
}

/// Whether the mount of `tree` is neither read-only nor nosuid, nodev or noexec.
fn unrestricted(tree: &OwnedFd) -> bool {
    use nix::sys::statvfs::{FsFlags, fstatvfs};
    let restricting =
        FsFlags::ST_RDONLY | FsFlags::ST_NOSUID | FsFlags::ST_NODEV | FsFlags::ST_NOEXEC;
    fstatvfs(tree).is_ok_and(|stat| !stat.flags().intersects(restricting))
}

/// Puts the maps on a tree that nothing has seen yet.
fn map_owners(
    mount: &Mount,
    source: &Path,
    mapping: &IdMapping,
    tree: &OwnedFd,
    container: &OwnedFd,
) -> Result<()> {
    let own;
    let users = match mapping.uid_map.is_empty() && mapping.gid_map.is_empty() {
        true => container,
        false => {
            own = user_namespace(&mapping.uid_map, &mapping.gid_map)
                .map_err(|error| error.context(&mount.field))?;
            &own
        }
    };
    mount_idmap(tree.as_fd(), mapping.recursive, users.as_fd()).map_err(|errno| {
        let what = format!("{}: set MOUNT_ATTR_IDMAP on", mount.field);
        let error = Error::os(what, source.display().to_string(), errno);
        match errno {
            Errno::EINVAL => {
                let kind = file_system(tree).unwrap_or_else(|| "its file system".into());
                let below = if mapping.recursive { ", or one mounted below it," } else { "" };
                error.remedy(format!("{kind}{below} may not support id-mapped mounts on this kernel"))
            }
            Errno::EPERM => error.remedy(
                "it may be an id-mapped mount already, or its file system belongs to another user namespace",
            ),
            _ => error,
        }
    })
}

/// The type of the file system of `tree`, by the device number that mountinfo has for it.
fn file_system(tree: &OwnedFd) -> Option<String> {
    use nix::sys::stat::{major, minor};
    let device = fstat(tree).ok()?.st_dev;
    let number = format!("{}:{}", major(device), minor(device));
    let mounts = super::mountinfo::read().ok()?;
    let found = mounts.into_iter().find(|mount| mount.device == number);
    found.map(|mount| mount.kind)
}

fn fork(namespaces: u64) -> nix::Result<Born> {
    match clone3(namespaces, None) {
        Err(Errno::ENOSYS | Errno::EPERM) => clone_old(namespaces),
        other => other,
    }
}

/// Does `work` in a process of the host's identity in the namespace `namespace` of this kind, and gives
/// what it opened.
///
/// # Errors
/// Those of `work`, of fork and of setns(2); ECHILD when the process ended without a word.
pub(super) fn helped(
    namespace: &OwnedFd,
    kind: CloneFlags,
    work: impl FnOnce() -> nix::Result<Vec<OwnedFd>>,
) -> nix::Result<Vec<OwnedFd>> {
    let (here, there) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    let pid = match fork(0)? {
        Born::Child => {
            let opened = process::parent_death_signal(libc::SIGKILL)
                .and_then(|()| nix::sched::setns(namespace, kind))
                .and_then(|()| work());
            let (errno, opened) = match opened {
                Ok(opened) => (0, opened),
                Err(errno) => (errno as i32, Vec::new()),
            };
            let fds: Vec<BorrowedFd<'_>> = opened.iter().map(AsFd::as_fd).collect();
            let sent = send_with_fds(there.as_fd(), &errno.to_ne_bytes(), &fds);
            process::exit_now(i32::from(sent.is_err()))
        }
        Born::Parent(pid, _) => pid,
    };
    drop(there);
    let mut errno = [0; 4];
    let heard = recv_with_fds(here.as_fd(), &mut errno);
    reap(pid);
    match (heard?, i32::from_ne_bytes(errno)) {
        ((4, opened), 0) => Ok(opened),
        ((4, _), errno) => Err(Errno::from_raw(errno)),
        // It ended without a word: killed.
        _ => Err(Errno::ECHILD),
    }
}

/// A user namespace with these maps, that holds no process.
fn user_namespace(uids: &[IdMap], gids: &[IdMap]) -> Result<OwnedFd> {
    let fail = |errno| Error::os("make", "a user namespace for the maps", errno);
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(fail)?;
    let pid = match fork(libc::CLONE_NEWUSER as u64).map_err(fail)? {
        Born::Child => {
            drop(write);
            // Until the parent has what it wants, or is gone.
            let _ = nix::unistd::read(&read, &mut [0]);
            process::exit_now(0)
        }
        Born::Parent(pid, _) => pid,
    };
    let made = [("gid_map", gids), ("uid_map", uids)]
        .into_iter()
        .try_for_each(|(name, map)| {
            super::proc::write(&format!("{pid}/{name}"), &super::maps::text(map))
        })
        .and_then(|()| {
            let path = format!("/proc/{pid}/ns/user");
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            nix::fcntl::open(path.as_str(), flags, Mode::empty())
                .map_err(|errno| Error::os("open", path, errno))
        });
    drop(write);
    reap(pid);
    made
}

fn reap(pid: Pid) {
    while nix::sys::wait::waitpid(pid, None) == Err(Errno::EINTR) {}
}
