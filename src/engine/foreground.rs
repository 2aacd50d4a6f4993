//! A foreground `run`: signals are passed on, orphans reaped, the exit status given back.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::sys::process;

/// The signals of this process, held back from before the clone on: one that arrives while the
/// container is made is passed on to it, and a child that ends at once is not missed.
pub struct Signals {
    before: SigSet,
}

impl Signals {
    /// Blocks all signals that can be.
    ///
    /// # Errors
    /// Those of sigprocmask(2).
    pub fn take() -> Result<Self> {
        let mut before = SigSet::empty();
        sigprocmask(
            SigmaskHow::SIG_SETMASK,
            Some(&SigSet::all()),
            Some(&mut before),
        )
        .map_err(|errno| Error::os("block", "signals", errno))?;
        Ok(Self { before })
    }

    /// The mask as it was: the container's program gets it.
    pub fn before(&self) -> SigSet {
        self.before
    }

    /// Passes signals on to `child` and reaps what ends, until `child` has ended; its exit status,
    /// or 128 and the signal's number.
    ///
    /// # Errors
    /// When waiting fails.
    pub fn wait_for(&self, child: Pid) -> Result<i32> {
        let fail = |errno| Error::os("wait for", format!("process {child}"), errno);
        loop {
            if let Some(status) = reap(child).map_err(fail)? {
                return Ok(status);
            }
            let signal = match process::wait_signal() {
                Err(Errno::EINTR) => continue,
                other => other.map_err(fail)?,
            };
            pass_on(child, signal).map_err(fail)?;
        }
    }
}

/// Sends `signal` on to `child`, if it is one for it.
pub(super) fn pass_on(child: Pid, signal: i32) -> nix::Result<()> {
    // SIGURG is left alone as runc does: runtimes use it for themselves. What the kernel raised for a
    // fault of this process is not the container's either.
    if signal == Signal::SIGCHLD as i32 || signal == Signal::SIGURG as i32 {
        return Ok(());
    }
    match process::kill(child.as_raw(), signal) {
        // It has ended and is not reaped yet: the next round finds it. Or it may not be signalled by
        // this process any more, which is no reason not to wait for it.
        Ok(()) | Err(Errno::ESRCH | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Reaps all children that have ended; the status of `child` if it is among them.
pub(super) fn reap(child: Pid) -> nix::Result<Option<i32>> {
    let mut found = None;
    loop {
        match process::wait_any() {
            Ok(Some((pid, status))) if pid == child.as_raw() => found = Some(status),
            Ok(None) | Err(Errno::ECHILD) => return Ok(found),
            Ok(Some(_)) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
