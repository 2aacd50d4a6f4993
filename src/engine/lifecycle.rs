//! What happens to a container after it was made: start, kill, delete.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use super::hooks::{self, HookState};
use crate::cgroup::Placed;
use crate::error::{Error, Kind, Result};
use crate::log;
use crate::state::{Dir, Phase, Record, Status, Store};
use crate::sys::process;

/// How long a killed container may take to end.
const DEATH: Duration = Duration::from_secs(10);

/// The fifo through which a created container tells what failed after `start`.
pub(super) fn late_path(dir: &Dir) -> PathBuf {
    dir.path().join("late.fifo")
}

fn wrong_state(sentence: String) -> Error {
    Error::new(Kind::State, sentence)
}

/// The record of a container that was made; one that was not has nothing to work on.
fn record(dir: &Dir) -> Result<Record> {
    dir.record()?.ok_or_else(|| {
        wrong_state(format!(
            "container {:?} was never made completely",
            dir.id()
        ))
        .remedy("isorun delete --force removes what there is")
    })
}

/// Lets the program of a created container go, waits until it is executed, and runs the hooks of the
/// stage poststart.
///
/// # Errors
/// A container in another state; what failed between the start and the program; a poststart hook,
/// which stops the container.
pub fn start(store: &Store, id: &str) -> Result<()> {
    let dir = store.open(id)?;
    let record = record(&dir)?;
    match record.status(dir.path()) {
        Status::Created => {}
        Status::Running => {
            return Err(wrong_state(
                "cannot start an already running container".into(),
            ));
        }
        Status::Stopped => {
            return Err(wrong_state(
                "cannot start a container that has stopped".into(),
            ));
        }
        status @ (Status::Creating | Status::Paused) => {
            return Err(wrong_state(format!(
                "cannot start a container in the {status} state"
            )));
        }
    }
    // Before anything is set going: it stays as it was made.
    if record.no_process {
        return Err(super::no_process());
    }
    open_gate(&dir)?;
    drop(dir);
    // The end of the fifo means that the program was executed, or that the process is dead.
    if let Some(pid) = record.pid
        && crate::state::never_executed(pid)
    {
        return Err(Error::new(
            Kind::System,
            "start: the container's first process ended before it executed the program",
        )
        .remedy("it was killed, or its memory limit is too low: see the kernel's log"));
    }
    let state = state_of(&record, "running", record.pid.unwrap_or(0));
    hooks::run_all("poststart", &record.poststart, &state, &record.bundle).inspect_err(|_| {
        if let Err(error) = delete(store, id, true) {
            log::warning(&format!("after a failing hook: {error}"));
        }
    })
}

/// Wakes the process that waits at the exec fifo, and hears whether the program was executed.
fn open_gate(dir: &Dir) -> Result<()> {
    let path = dir.fifo_path();
    let fail = |errno| Error::os("start: open", path.display().to_string(), errno);
    // The reading end first: what the child says from now on is not lost. Once the child has executed
    // its program (or ended) nobody holds the fifo for writing, which poll tells.
    let late = late_path(dir);
    let late = open(
        &late,
        OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(fail)?;
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let fifo = match open(&path, flags, Mode::empty()) {
        Err(Errno::ENXIO) => {
            return Err(wrong_state(
                "cannot start a container that has stopped".into(),
            ));
        }
        other => other.map_err(fail)?,
    };
    // Removed before the byte: from here on the container counts as running, and nobody starts it a
    // second time.
    nix::unistd::unlink(&path).map_err(fail)?;
    nix::unistd::write(&fifo, b"0").map_err(fail)?;
    let mut told = Vec::new();
    loop {
        let mut fds = [PollFd::new(late.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(fail(errno)),
        }
        let mut buffer = [0u8; 4096];
        match nix::unistd::read(&late, &mut buffer) {
            Ok(0) => break,
            Ok(n) => told.extend_from_slice(&buffer[..n]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(fail(errno)),
        }
    }
    let _ = nix::unistd::unlink(&late_path(dir));
    if told.is_empty() {
        return Ok(());
    }
    Err(serde_json::from_slice::<Error>(&told).unwrap_or_else(|_| {
        Error::new(
            Kind::System,
            "start: the container's process failed and could not say why",
        )
    }))
}

fn state_of<'a>(record: &'a Record, status: &'a str, pid: i32) -> HookState<'a> {
    HookState {
        oci_version: &record.oci_version,
        id: &record.id,
        status,
        pid,
        bundle: &record.bundle,
        annotations: &record.annotations,
    }
}

/// Sends `signal` to the container's first process, or with `all` to all of its processes.
///
/// # Errors
/// `container not running` when it has ended; the errno of the signal.
pub fn kill(store: &Store, id: &str, signal: i32, all: bool) -> Result<()> {
    // Without the lock: pid and start time say which process is meant, and a hook that hangs in
    // another command must not keep anybody from killing the container.
    let record = store.peek(id)?;
    let alive = matches!(
        record.status(&store.path(id)),
        Status::Created | Status::Running | Status::Paused | Status::Creating
    );
    if all && let Some(placed) = record.placed() {
        return placed.signal_all(signal);
    }
    match record.pid {
        Some(pid) if alive => {
            if signal == libc::SIGKILL
                && !ends_its_namespace(pid)
                && let Some(placed) = record.placed()
            {
                // Who shares its pid namespace with others does not take its children along.
                signal_checked(pid, record.pid_start, signal)?;
                return placed.kill();
            }
            signal_checked(pid, record.pid_start, signal)?;
            if signal == libc::SIGKILL {
                thaw(&record);
            }
            Ok(())
        }
        _ => {
            // As under runc: those that a container without a pid namespace of its own has left, if
            // any, as long as there is its cgroup.
            if signal == libc::SIGKILL
                && let Some(placed) = record.placed()
                && placed.exists()
                && shares_pid_namespace(store, id)
            {
                return placed.kill();
            }
            Err(wrong_state("container not running".into()))
        }
    }
}

/// Whether config.json gives the container no pid namespace of its own.
fn shares_pid_namespace(store: &Store, id: &str) -> bool {
    let Ok(parsed) = store
        .config(id)
        .and_then(|text| crate::spec::parse::parse(&text))
    else {
        return false;
    };
    let mut list = parsed
        .spec
        .linux()
        .iter()
        .flat_map(|linux| linux.namespaces());
    let own = |one: &LinuxNamespace| one.typ() == LinuxNamespaceType::Pid && one.path().is_none();
    !list.any(|list| list.iter().any(own))
}

/// Sends a signal to the process that has this pid and start time, and to no other that got the pid
/// after it.
fn signal_checked(pid: i32, start: u64, signal: i32) -> Result<()> {
    let fail = |errno| match errno {
        Errno::ESRCH => wrong_state("container not running".into()),
        errno => Error::os(
            format!("send signal {signal} to"),
            format!("process {pid}"),
            errno,
        ),
    };
    match process::pidfd_open(pid) {
        Ok(pidfd) => {
            if !crate::state::is_alive(pid, start) {
                return Err(fail(Errno::ESRCH));
            }
            process::pidfd_signal(pidfd.as_fd(), signal).map_err(fail)
        }
        // Linux before 5.3, or a filter: the window between check and signal is small.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            if !crate::state::is_alive(pid, start) {
                return Err(fail(Errno::ESRCH));
            }
            process::kill(pid, signal).map_err(fail)
        }
        Err(errno) => Err(fail(errno)),
    }
}

/// What v1's freezer holds dies only once it is let go.
fn thaw(record: &Record) {
    if let Some(placed) = record.placed().filter(Placed::frozen)
        && let Err(error) = placed.resume()
    {
        log::debug(|| format!("after a kill: {error}"));
    }
}

/// Whether process `pid` is the first one of its pid namespace, whose end is that of all others in
/// it: the last number of the line NSpid, proc_pid_status(5).
fn ends_its_namespace(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let mut numbers = line.unwrap_or_default().split_ascii_whitespace();
    // Before Linux 4.1 there is no such line: then it is what nearly all containers are.
    numbers.next_back().is_none_or(|last| last == "1")
}

/// Kills what is left in a cgroup and removes it.
pub(super) fn remove_cgroup(placed: &Placed) -> Result<()> {
    placed.kill()?;
    placed.remove()
}

/// Removes what a container has left: processes, cgroup, state; then runs its poststop hooks. With
/// `force` also one that runs, and one that was never made completely. Called by a hook of the container
/// that is being made, it comes back at once, and whoever makes it takes everything back after the hook.
///
/// # Errors
/// A container that runs, without `force`; what could not be removed.
pub fn delete(store: &Store, id: &str, force: bool) -> Result<()> {
    // First of all, because whoever holds the lock may be waiting for it: `start` for a hook in the
    // container, for one. Again while the lock is waited for, because `create` may be about to say which
    // process it has made. What cannot be killed is told below.
    let kill_first = || {
        if force
            && let Ok(record) = store.peek(id)
            && let Some(pid) = record.pid
        {
            let _ = signal_checked(pid, record.pid_start, libc::SIGKILL);
        }
    };
    kill_first();
    let mut from_hook = None;
    let opened = store.open_meanwhile(id, &mut || {
        kill_first();
        *from_hook.get_or_insert_with(|| is_in_hook_of(store, id))
    });
    match opened {
        // Whoever makes the container waits for the hook that this command is a part of.
        Err(_) if force && from_hook == Some(true) => store.mark_deleted(id),
        opened => delete_locked(opened?, id, force),
    }
}

/// Whether this process was started, by way of a hook, by the one that is making container `id`.
fn is_in_hook_of(store: &Store, id: &str) -> bool {
    let record = store.peek(id);
    record.is_ok_and(|record| {
        record.phase == Phase::Creating && crate::state::is_ancestor(record.creator_pid)
    })
}

/// Deletes by force the container whose first process was `pid`, started at `start`, if it is still
/// there: somebody else may have deleted it, and made another one of the same id.
///
/// # Errors
/// As [`delete`].
pub(super) fn delete_own(store: &Store, id: &str, pid: i32, start: u64) -> Result<()> {
    let dir = match store.open(id) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    };
    match dir.record() {
        Ok(Some(record)) if (record.pid, record.pid_start) == (Some(pid), start) => {
            delete_locked(dir, id, true)
        }
        _ => Ok(()),
    }
}

fn delete_locked(dir: Dir, id: &str, force: bool) -> Result<()> {
    let record = match dir.record() {
        Ok(Some(record)) => record,
        read if force => {
            if let Err(error) = read {
                log::warning(&format!("{error}; what the first record names is removed"));
            }
            match dir.origin() {
                Some(origin) => origin,
                None => return dir.remove(),
            }
        }
        Ok(None) => {
            return Err(
                wrong_state(format!("container {id:?} was never made completely"))
                    .remedy("isorun delete --force removes what there is"),
            );
        }
        Err(error) => return Err(error),
    };
    let status = record.status(dir.path());
    match status {
        Status::Stopped | Status::Created => {}
        _ if force => {}
        status => {
            return Err(wrong_state(format!(
                "cannot delete container {id} that is not stopped: {status}"
            ))
            .remedy("stop it first, or use --force"));
        }
    }
    end(&record)?;
    if let Some(placed) = record.placed() {
        remove_cgroup(&placed)?;
    }
    if let Some(mounted) = &record.mounted {
        super::shared_mounts::take_away(mounted)?;
    }
    if let Some(groups) = &record.resctrl {
        super::rdt::remove(groups)?;
    }
    // What is left of a channel is for `isorun channel gc`; the container goes all the same.
    if let Err(error) = super::channels::leave_all(&record, &dir) {
        log::warning(&format!("{error}; isorun channel gc tries it again"));
    }
    // Removed before the hooks run, as by runc: one that deletes the container, too, or makes the next
    // one of the same id, does not wait for the lock that is held here for its own end.
    dir.remove()?;
    let state = state_of(&record, "stopped", 0);
    run_poststop(&record.poststop, &state);
    Ok(())
}

/// Runs the poststop hooks. The specification: one that fails is logged, and those after it run all
/// the same.
pub(super) fn run_poststop(list: &[oci_spec::runtime::Hook], state: &HookState<'_>) {
    for hook in list {
        let one = std::slice::from_ref(hook);
        if let Err(error) = hooks::run_all("poststop", one, state, state.bundle) {
            log::warning(&error.to_string());
        }
    }
}

/// Kills the first process and waits for its end; what shares its pid namespace goes with it.
fn end(record: &Record) -> Result<()> {
    let Some(pid) = record.pid else { return Ok(()) };
    match signal_checked(pid, record.pid_start, libc::SIGKILL) {
        Err(error) if error.kind() == Kind::State => return Ok(()),
        other => other?,
    }
    thaw(record);
    let begin = Instant::now();
    let pidfd = process::pidfd_open(pid);
    while crate::state::is_alive(pid, record.pid_start) {
        if begin.elapsed() > DEATH {
            return Err(Error::new(
                Kind::System,
                format!("process {pid} of the container is still there 10 s after SIGKILL"),
            ));
        }
        match &pidfd {
            Ok(pidfd) => {
                let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut fds, PollTimeout::from(100u8));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    Ok(())
}
