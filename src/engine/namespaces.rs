//! Namespaces that exist already, and that a container joins by their paths.
//!
//! The parent opens and checks them and joins none: a user namespace cannot be left again, and a cgroup
//! cannot be made from inside one. Usually the child joins them itself, after its birth. Where a pid
//! or user namespace is among them, or a new user namespace would take away the right to join the
//! others, a process in between joins all and makes the child, as its sibling.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open as open_file};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::Pid;

use super::child::{self, Inherited};
use super::sync::{End, FromChild};
use crate::error::{Error, Kind, Result};
use crate::plan::{Action, Existing, Plan, Step};
use crate::spec::names;
use crate::sys::clone::{Born, clone_sibling};
use crate::sys::fs::fs_magic;
use crate::sys::process;

/// NSFS_MAGIC of linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

const USER: u64 = libc::CLONE_NEWUSER as u64;
const NET: u64 = libc::CLONE_NEWNET as u64;
const MOUNT: u64 = libc::CLONE_NEWNS as u64;

/// A namespace to join, open.
pub struct Joined {
    join: Existing,
    fd: OwnedFd,
}

/// Opens and checks the namespaces that the plan joins. The user namespace that this process is in
/// already is left out: nobody can join that, and nobody needs to.
///
/// # Errors
/// A path that is not there, is no namespace, or one of another kind; the mount namespace of the runtime or
/// of process 1; kernel parameters of the network that would be set in the runtime's own.
pub fn open(plan: &Plan) -> Result<Vec<Joined>> {
    let mut found = Vec::with_capacity(plan.birth.joins.len());
    for join in &plan.birth.joins {
        let fail = |errno| failed("open", join, errno);
        // O_NONBLOCK: a fifo of that name must not hang the runtime.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = open_file(&join.path, flags, Mode::empty()).map_err(fail)?;
        if fs_magic(fd.as_fd()).map_err(fail)? != NSFS_MAGIC {
            return Err(fail(Errno::EINVAL)
                .remedy("it is not a namespace; a file such as /proc/PID/ns/net is"));
        }
        let kind = crate::sys::process::namespace_kind(fd.as_fd()).map_err(fail)?;
        if kind != join.flag {
            let other = names::NAMESPACES.iter().find(|known| known.flag == kind);
            let other = other.map_or("other", |known| known.name);
            return Err(
                fail(Errno::EINVAL).remedy(format!("it is a {other} namespace, not {}", join.kind))
            );
        }
        let own = is_own(join.flag, &fd).map_err(fail)?;
        if own && join.flag == NET {
            check_own_network(plan)?;
        }
        if join.flag == MOUNT && (own || is_of_init(&fd)) {
            // pivot_root(2) moves the root of everybody in it, and the old one is unmounted then.
            return Err(fail(Errno::EINVAL).remedy(
                "it is that of isorun or of process 1, whose root the container's would replace: leave \
                 the entry out to mount in isorun's own, or its path to have a new one",
            ));
        }
        if !(own && join.flag == USER) {
            found.push(Joined {
                join: join.clone(),
                fd,
            });
        }
    }
    Ok(found)
}

fn failed(what: &str, join: &Existing, errno: Errno) -> Error {
    Error::os(
        format!("linux.namespaces: {what} the {} namespace", join.kind),
        join.path.display().to_string(),
        errno,
    )
}

/// Whether `fd` is the namespace of its kind that this process is in. Asked only where it matters.
fn is_own(flag: u64, fd: &OwnedFd) -> nix::Result<bool> {
    if flag & (USER | NET | MOUNT) == 0 {
        return Ok(false);
    }
    let file = names::NAMESPACES.iter().find(|known| known.flag == flag);
    let file = file.map_or("", |known| known.file);
    let own = nix::sys::stat::stat(format!("/proc/self/ns/{file}").as_str())?;
    let this = fstat(fd)?;
    Ok((own.st_dev, own.st_ino) == (this.st_dev, this.st_ino))
}

/// Whether `fd` is the mount namespace of process 1, as far as that may be looked at.
fn is_of_init(fd: &OwnedFd) -> bool {
    let init = nix::sys::stat::stat("/proc/1/ns/mnt");
    match (init, fstat(fd)) {
        (Ok(init), Ok(this)) => (init.st_dev, init.st_ino) == (this.st_dev, this.st_ino),
        _ => false,
    }
}

/// Parameters of the network that would be set in the runtime's own network namespace, and devices that
/// would stay there.
fn check_own_network(plan: &Plan) -> Result<()> {
    let moves = |step: &Step| matches!(step.action, Action::NetDevices { .. });
    if plan.steps.iter().any(moves) {
        return Err(Error::spec(
            "linux.netDevices",
            "unable to move network devices without a private NET namespace: the path in \
             linux.namespaces is that of isorun's own",
        ));
    }
    let net = plan.steps.iter().find_map(|step| match &step.action {
        Action::Sysctl { key, .. } if names::sysctl_dotted(key).starts_with("net.") => Some(key),
        _ => None,
    });
    match net {
        Some(key) => Err(Error::spec(
            format!("linux.sysctl[{key:?}]"),
            "it is not allowed in the host's network namespace",
        )),
        None => Ok(()),
    }
}

/// Joins all of `list`: those that this process may with the rights that it has, then the user
/// namespace, then the others, which the rights in that may allow.
///
/// # Errors
/// A sentence with the kind, the path and the errno.
pub fn enter(list: &[Joined]) -> Result<()> {
    let join = |one: &Joined| {
        let flag = CloneFlags::from_bits_retain(one.join.flag as i32);
        setns(one.fd.as_fd(), flag)
    };
    let fail = |one: &Joined| {
        let join = one.join.clone();
        move |errno| {
            let error = failed("join", &join, errno);
            match errno {
                Errno::EPERM => error.remedy(
                    "it needs CAP_SYS_ADMIN in the user namespace that this namespace belongs to",
                ),
                Errno::EINVAL if join.flag == libc::CLONE_NEWPID as u64 => {
                    error.remedy("only a pid namespace below the runtime's own can be joined")
                }
                _ => error,
            }
        }
    };
    let user = list.iter().find(|one| one.join.flag == USER);
    let mut refused = Vec::new();
    for one in list.iter().filter(|one| one.join.flag != USER) {
        match join(one) {
            Err(Errno::EPERM) if user.is_some() => refused.push(one),
            other => other.map_err(fail(one))?,
        }
    }
    if let Some(user) = user {
        join(user).map_err(fail(user))?;
    }
    refused
        .into_iter()
        .try_for_each(|one| join(one).map_err(fail(one)))
}

/// The process in between: joins `list`, makes the child as its sibling, tells the parent by `up` who
/// that is, and ends. `wait`: the parent moves this process to its cgroup first.
pub fn between(plan: &Plan, inherited: Inherited, list: Vec<Joined>, up: End, wait: bool) -> ! {
    let outcome = prepare(&list, &up, wait).and_then(|()| {
        clone_sibling(plan.birth.clone_flags).map_err(|errno| {
            Error::os(
                "clone into new namespaces:",
                plan.birth.namespaces.join(", "),
                errno,
            )
            .remedy(super::birth::birth_remedy(errno))
        })
    });
    let (message, pidfd) = match outcome {
        Ok(Born::Child) => {
            drop((list, up));
            child::run(plan, inherited)
        }
        Ok(Born::Parent(pid, pidfd)) => (FromChild::Born(pid.as_raw()), Some(pidfd)),
        Err(error) => (FromChild::Failed(error), None),
    };
    let fds: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
    let told = up.tell_with(&message, &fds);
    process::exit_now(i32::from(told.is_err()))
}

fn prepare(list: &[Joined], up: &End, wait: bool) -> Result<()> {
    let fail = |what: &'static str| move |errno| Error::os("join namespaces:", what, errno);
    // Whoever is in these namespaces must neither trace nor look into this process (CVE-2016-9962).
    process::dumpable(false).map_err(fail("hide from ptrace"))?;
    process::parent_death_signal(libc::SIGKILL).map_err(fail("set the death signal"))?;
    if wait {
        up.wait().map_err(fail("wait for the parent"))?;
    }
    enter(list)?;
    // A change of user namespace takes the death signal away.
    process::parent_death_signal(libc::SIGKILL).map_err(fail("set the death signal"))
}

/// The parent hears from the process in between who the child is, and reaps that process.
///
/// # Errors
/// What the process in between says.
pub fn child_of(between: Pid, up: &End) -> Result<(Pid, OwnedFd)> {
    let heard = up
        .hear()
        .map_err(|errno| Error::os("hear", "the process that joins namespaces", errno))?;
    let _ = nix::sys::wait::waitpid(between, None);
    match heard {
        Some((FromChild::Born(pid), mut fds)) if fds.len() == 1 => {
            Ok((Pid::from_raw(pid), fds.remove(0)))
        }
        Some((FromChild::Failed(error), _)) => Err(error),
        _ => Err(Error::new(
            Kind::System,
            "the process that joins namespaces ended before it made the container's process",
        )),
    }
}
