//! What happens in a container, as it happens: statistics, and memory that has run out.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::join::Init;
use crate::cgroup::{Placed, Stats};
use crate::error::{Error, Kind, Result};
use crate::log;
use crate::state::{Record, Status, Store};

/// One thing to tell.
#[derive(Debug)]
pub enum Event {
    /// What it has used until now.
    Stats(Box<Stats>),
    /// Its memory has run out, and a process of it was killed.
    Oom,
}

fn running(store: &Store, id: &str) -> Result<Record> {
    let record = store.peek(id)?;
    match record.status(&store.path(id)) {
        Status::Stopped => Err(Error::new(
            Kind::State,
            format!("container with id {id} is not running"),
        )),
        _ => Ok(record),
    }
}

fn placed(record: &Record) -> Result<Placed> {
    record.placed().ok_or_else(|| {
        let sentence = format!("container {:?} has no cgroup to ask", record.id);
        Error::new(Kind::State, sentence)
    })
}

/// What a container has used until now.
///
/// # Errors
/// `container with id … is not running`; a file of its cgroup or of resctrl that cannot be read.
pub fn stats(store: &Store, id: &str) -> Result<Stats> {
    let record = running(store, id)?;
    used(&record, &placed(&record)?)
}

fn used(record: &Record, placed: &Placed) -> Result<Stats> {
    let mut stats = placed.stats()?;
    if let Some(groups) = &record.resctrl {
        stats.intel_rdt = super::rdt::stats(groups)?;
    }
    Ok(stats)
}

/// Tells of a container until it has ended, or `tell` says that nobody listens any more: its
/// statistics in every `interval`, and when its memory runs out.
///
/// # Errors
/// As [`stats`]; what `tell` says.
pub fn events(
    store: &Store,
    id: &str,
    interval: Duration,
    mut tell: impl FnMut(Event) -> Result<bool>,
) -> Result<()> {
    let record = running(store, id)?;
    let placed = placed(&record)?;
    let init = match record.pid.map(|pid| Init::hold(pid, record.pid_start)) {
        Some(Ok(init)) => init,
        _ => return Ok(()),
    };
    let mut watch = placed.watch_oom().unwrap_or_else(|errno| {
        log::warning(&format!("events: out-of-memory cannot be watched: {errno}"));
        None
    });
    let mut next = Instant::now() + interval;
    loop {
        let rest = next.saturating_duration_since(Instant::now());
        let mut fds = Vec::with_capacity(2);
        if let Some(pidfd) = &init.pidfd {
            fds.push(PollFd::new(pidfd.as_fd(), PollFlags::POLLIN));
        }
        if let Some(watch) = &watch {
            let (fd, flags) = watch.poll();
            fds.push(PollFd::new(fd, flags));
        }
        // Without a pidfd the end of the container is looked for every now and then. A long time is
        // waited for in parts.
        let part = Duration::from_millis(if init.pidfd.is_some() { 30_000 } else { 500 });
        let milliseconds = rest.min(part).as_millis() as u16 + 1;
        match poll(&mut fds, PollTimeout::from(milliseconds)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::os("wait for", "events of the container", errno)),
        }
        if watch.as_mut().is_some_and(|watch| watch.happened()) && !tell(Event::Oom)? {
            return Ok(());
        }
        if !init.alive() {
            return Ok(());
        }
        if Instant::now() >= next {
            next = Instant::now() + interval;
            if !tell(Event::Stats(Box::new(used(&record, &placed)?)))? {
                return Ok(());
            }
        }
    }
}
