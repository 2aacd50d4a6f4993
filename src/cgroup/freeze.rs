//! Pausing: all processes of a container stand still, in one freezer.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::fs;
use super::placed::{Placed, PlacedDir};
use super::plan::Version;
use crate::error::{Error, Kind, Result};

/// How long all processes of a container may take to stand still.
const LIMIT: Duration = Duration::from_secs(10);
/// How long v1's freezer may stay between its two states until it is thawed and asked again.
const AGAIN: Duration = Duration::from_millis(100);

impl Placed {
    /// The directory that freezes the container: v1's freezer where there is one, as under runc,
    /// else v2.
    pub(super) fn freezer(&self) -> Option<&PlacedDir> {
        let of = |version| {
            let mut dirs = self.dirs.iter();
            dirs.find(move |dir| dir.version == version && dir.freezer && !dir.others)
        };
        of(Version::V1).or_else(|| of(Version::V2))
    }

    /// Freezes all processes of the container, and waits until they are. What cannot be frozen
    /// completely is thawed again.
    ///
    /// # Errors
    /// No freezer; the errno of the freezer's file; a process that does not stand still in time.
    pub fn pause(&self) -> Result<()> {
        let dir = self.freezer().ok_or_else(no_freezer)?;
        let begin = Instant::now();
        loop {
            ask(dir, true)?;
            if fs::wait_until(AGAIN, || Ok::<_, Errno>(dir.froze()))
                .map_err(|errno| failed(dir, errno))?
            {
                return Ok(());
            }
            if begin.elapsed() > LIMIT {
                let _ = ask(dir, false);
                let sentence = format!(
                    "pause: the processes in {} do not stand still in {} s",
                    dir.path.display(),
                    LIMIT.as_secs()
                );
                return Err(Error::new(Kind::System, sentence)
                    .remedy("one of them may hang in the kernel: see /proc/PID/stack"));
            }
            if dir.version == Version::V1 {
                // A process that was forked meanwhile, or ptraced, can hold v1's freezer up for ever:
                // it starts over.
                ask(dir, false)?;
            }
        }
    }

    /// Lets a frozen container go on.
    ///
    /// # Errors
    /// No freezer; the errno of its file; it stays frozen, as below a frozen parent.
    pub fn resume(&self) -> Result<()> {
        let dir = self.freezer().ok_or_else(no_freezer)?;
        ask(dir, false)?;
        match fs::wait_until(LIMIT, || Ok::<_, Errno>(!dir.froze()))
            .map_err(|errno| failed(dir, errno))?
        {
            true => Ok(()),
            false => Err(failed(dir, Errno::EBUSY).remedy("a cgroup above it may be frozen")),
        }
    }
}

fn ask(dir: &PlacedDir, frozen: bool) -> Result<()> {
    dir.set_frozen(frozen).map_err(|errno| failed(dir, errno))
}

fn failed(dir: &PlacedDir, errno: Errno) -> Error {
    Error::os("freeze or thaw", dir.path.display().to_string(), errno)
}

fn no_freezer() -> Error {
    Error::new(
        Kind::System,
        "the container has no cgroup that can be frozen",
    )
    .remedy("mount the freezer controller or cgroup v2, and create the container again")
}
