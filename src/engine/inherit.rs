//! What the child gets from its parent: the channel, the fifos that it waits at, its cgroups.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode as FileMode;

use super::child::Inherited;
use super::lifecycle;
use super::make::Mode;
use super::sync::{self, End};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::state::Dir;

/// Opens what the child gets, and makes the channel: (parent's end, the child's things).
///
/// # Errors
/// A sentence with the object and the errno.
pub fn inherit(plan: &Plan, dir: &Dir, mode: &Mode, cgroup: &Cgroup) -> Result<(End, Inherited)> {
    let (parent, sync) = sync::pair().map_err(|errno| Error::os("make", "a socket pair", errno))?;
    let (fifo, late, signals) = match mode {
        Mode::Run(signals) => (None, None, *signals),
        Mode::Create => {
            let fifo = make_fifo(&dir.fifo_path())?;
            let late = make_fifo(&lifecycle::late_path(dir))?;
            (
                Some(fifo),
                Some(late),
                SigSet::thread_get_mask().unwrap_or(SigSet::empty()),
            )
        }
    };
    let entry = Some(cgroup.entry()?);
    let wait = plan.birth.child_waits;
    Ok((
        parent,
        Inherited {
            sync,
            fifo,
            late,
            entry,
            wait,
            signals,
            joins: Vec::new(),
            unprivileged: !nix::unistd::geteuid().is_root(),
            time: false,
            root: None,
            pids: None,
            arguments: match plan.has_init() {
                true => crate::sys::process::arguments(),
                false => None,
            },
            environment: match plan.has_init() {
                true => crate::sys::process::environment(),
                false => None,
            },
        },
    ))
}

fn make_fifo(path: &Path) -> Result<OwnedFd> {
    let fail = |errno| Error::os("make the fifo", path.display().to_string(), errno);
    nix::unistd::mkfifo(path, FileMode::from_bits_truncate(0o600)).map_err(fail)?;
    // Both directions: opening never waits, and the reader never sees the end of the file.
    nix::fcntl::open(path, OFlag::O_RDWR | OFlag::O_CLOEXEC, FileMode::empty()).map_err(fail)
}
