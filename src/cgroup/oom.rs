//! Being told when the memory of a container has run out.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::fs;
use super::hierarchies::Mode;
use super::placed::Placed;
use super::plan::Version;

/// Something to poll(2): it is ready when the memory may have run out.
pub enum OomWatch {
    /// v1: the kernel writes to the eventfd, also when the cgroup is removed.
    V1 {
        /// The eventfd.
        events: EventFd,
        /// A file that is gone when the cgroup is.
        control: PathBuf,
    },
    /// v2: the counter oom_kill of memory.events.
    V2 {
        /// The file, which poll(2) knows to have changed.
        file: OwnedFd,
        /// The counter when it was read last.
        seen: u64,
    },
}

impl Placed {
    /// Starts to watch. Nothing where no memory controller is there.
    ///
    /// # Errors
    /// The errno of what cannot be watched.
    pub fn watch_oom(&self) -> nix::Result<Option<OomWatch>> {
        for dir in self.dirs.iter().filter(|dir| !dir.others) {
            let open = |file: &str, flags| {
                let dir = fs::open_dir(&dir.path)?;
                match fs::open_in(dir.as_fd(), file, flags) {
                    Err(Errno::ENOENT) => Ok(None),
                    other => other.map(Some),
                }
            };
            match dir.version {
                Version::V1 => {
                    let Some(oom) = open("memory.oom_control", OFlag::O_RDONLY)? else {
                        continue;
                    };
                    let Some(control) = open("cgroup.event_control", OFlag::O_WRONLY)? else {
                        continue;
                    };
                    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
                    let events = EventFd::from_value_and_flags(0, flags)?;
                    let line = format!("{} {}", events.as_fd().as_raw_fd(), oom.as_raw_fd());
                    fs::put(&control, &line)?;
                    let control = dir.path.join("cgroup.event_control");
                    return Ok(Some(OomWatch::V1 { events, control }));
                }
                Version::V2 if self.mode == Mode::V2 => {
                    let Some(file) = open("memory.events", OFlag::O_RDONLY)? else {
                        continue;
                    };
                    let seen = kills(&file)?;
                    return Ok(Some(OomWatch::V2 { file, seen }));
                }
                Version::V2 => {}
            }
        }
        Ok(None)
    }
}

impl OomWatch {
    /// What to wait for.
    pub fn poll(&self) -> (BorrowedFd<'_>, PollFlags) {
        match self {
            Self::V1 { events, .. } => (events.as_fd(), PollFlags::POLLIN),
            Self::V2 { file, .. } => (file.as_fd(), PollFlags::POLLPRI),
        }
    }

    /// Whether the memory has run out since this was asked last.
    pub fn happened(&mut self) -> bool {
        match self {
            Self::V1 { events, control } => events.read().is_ok() && control.exists(),
            Self::V2 { file, seen } => match kills(file) {
                Ok(now) if now > *seen => {
                    *seen = now;
                    true
                }
                _ => false,
            },
        }
    }
}

fn kills(file: &OwnedFd) -> nix::Result<u64> {
    let text = fs::contents(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    Ok(line.and_then(|n| n.trim().parse().ok()).unwrap_or(0))
}
