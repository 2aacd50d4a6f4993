//! Waiting for a hook: giving it the state, reading what it prints, and ending it when its time is up.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::process::{kill, pidfd_open};

/// How much of what a hook prints is told when it fails: the last part, bytes.
const TOLD: usize = 2048;

/// How much is read at once, bytes.
const CHUNK: usize = 4096;

/// How long a hook may go on after the container that it works for has ended.
const GRACE: Duration = Duration::from_secs(1);

/// What is on the hook's stdin, written as it is read: a pipe needs no file, which a limit or a filter
/// of the container may deny to hooks that run in it, and a hook that does not read blocks nobody.
pub struct Feed<'a> {
    writer: Option<File>,
    rest: &'a [u8],
}

impl<'a> Feed<'a> {
    /// The hook's end, and this process's with `input` to write to it.
    ///
    /// # Errors
    /// Those of pipe(2).
    pub fn new(input: &'a [u8]) -> std::io::Result<(Stdio, Self)> {
        let (reader, writer) = std::io::pipe()?;
        let writer = File::from(OwnedFd::from(writer));
        // Of this end only: the flag belongs to the open file description.
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let mut feed = Self {
            writer: Some(writer),
            rest: input,
        };
        feed.push();
        Ok((Stdio::from(reader), feed))
    }

    /// Writes what fits; closes the pipe when all is written, or nobody reads any more.
    fn push(&mut self) {
        while let (Some(writer), false) = (&mut self.writer, self.rest.is_empty()) {
            match writer.write(self.rest) {
                Ok(n) => self.rest = &self.rest[n..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // EPIPE: it has closed its stdin, as it may.
                Err(_) => break,
            }
        }
        self.writer = None;
    }
}

/// A hook at work.
pub struct Waiting<'a> {
    child: &'a mut Child,
    feed: Feed<'a>,
    output: Option<File>,
    printed: Vec<u8>,
    /// Without pidfds (before Linux 5.3, or denied) its end is looked for every now and then.
    pidfd: Option<OwnedFd>,
    limit: Option<Duration>,
    begin: Instant,
    init: Option<BorrowedFd<'a>>,
    /// When the container's first process was seen to have ended.
    orphaned: Option<Instant>,
}

impl<'a> Waiting<'a> {
    /// `output` is the reading end of its stdout and stderr, `limit` its timeout, `init` a pidfd of the
    /// container's first process where that waits for the hook.
    pub fn new(
        child: &'a mut Child,
        feed: Feed<'a>,
        output: OwnedFd,
        limit: Option<Duration>,
        init: Option<BorrowedFd<'a>>,
    ) -> Self {
        Self {
            pidfd: pidfd_open(child.id() as i32).ok(),
            child,
            feed,
            output: Some(File::from(output)),
            printed: Vec::new(),
            limit,
            begin: Instant::now(),
            init,
            orphaned: None,
        }
    }

    /// Waits for its end: its status, and the last part of what it printed. What its own children still
    /// print after its end is not waited for.
    ///
    /// # Errors
    /// Why it was killed, with the group that it leads.
    pub fn wait(mut self) -> Result<(ExitStatus, Vec<u8>), String> {
        loop {
            let left = match self.time_left() {
                Ok(left) => left,
                Err(why) => {
                    let _ = kill(-(self.child.id() as i32), libc::SIGKILL);
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    return Err(why);
                }
            };
            let readable = self.poll(left)?;
            let status = self
                .child
                .try_wait()
                .map_err(|e| format!("wait for it: {e}"))?;
            if let Some(status) = status {
                self.drain();
                return Ok((status, self.printed));
            }
            if readable && !self.read_some() {
                self.output = None;
            }
        }
    }

    /// Reads what is left in the pipe after the hook's end: as much as a pipe may hold, because children
    /// that it left may go on printing for ever.
    fn drain(&mut self) {
        // /proc/sys/fs/pipe-max-size
        const PIPE: usize = 1 << 20;
        let nonblocking = self.output.as_ref().map_or(Ok(0), |file| {
            // Of this end only, as in Feed::new.
            fcntl(file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        });
        if nonblocking.is_ok() {
            for _ in 0..PIPE / CHUNK {
                if !self.read_some() {
                    break;
                }
            }
        }
    }

    /// Waits until there is something to do, and does the writing; whether there is output to read.
    fn poll(&mut self, left: PollTimeout) -> Result<bool, String> {
        let init = self.init.filter(|_| self.orphaned.is_none());
        let watched = [
            (self.output.as_ref().map(AsFd::as_fd), PollFlags::POLLIN),
            (
                self.feed.writer.as_ref().map(AsFd::as_fd),
                PollFlags::POLLOUT,
            ),
            (init, PollFlags::POLLIN),
            (self.pidfd.as_ref().map(AsFd::as_fd), PollFlags::POLLIN),
        ];
        let there = watched.iter();
        let mut fds: Vec<PollFd> = there
            .filter_map(|(fd, flags)| fd.map(|fd| PollFd::new(fd, *flags)))
            .collect();
        match poll(&mut fds, left) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(format!("wait for it: {errno}")),
        }
        let mut results = fds.iter().map(|fd| fd.any().unwrap_or(false));
        let [readable, writable, orphaned, _] =
            watched.map(|(fd, _)| fd.is_some() && results.next().unwrap_or(false));
        if writable {
            self.feed.push();
        }
        if orphaned {
            self.orphaned = Some(Instant::now());
        }
        Ok(readable)
    }

    /// How long to wait at most.
    ///
    /// Fails when the time is up: with why.
    fn time_left(&self) -> Result<PollTimeout, String> {
        const LOOK: Duration = Duration::from_millis(20);
        let over = |limit: Duration, begin: Instant| limit.checked_sub(begin.elapsed());
        let mut left = None;
        if let Some(limit) = self.limit {
            left = Some(over(limit, self.begin).ok_or_else(|| {
                let seconds = limit.as_secs();
                format!("killed: it ran longer than its timeout of {seconds} s")
            })?);
        }
        if let Some(orphaned) = self.orphaned {
            let grace = over(GRACE, orphaned).ok_or_else(|| {
                "killed: the container's first process has ended meanwhile".to_string()
            })?;
            left = Some(left.map_or(grace, |left| left.min(grace)));
        }
        if self.pidfd.is_none() {
            left = Some(left.map_or(LOOK, |left| left.min(LOOK)));
        }
        Ok(match left {
            None => PollTimeout::NONE,
            // Rounded up, so that the last wait is not followed by looking again and again.
            Some(left) => {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        })
    }

    /// Reads once and keeps the last part; false at the end of the output, and when there is nothing.
    fn read_some(&mut self) -> bool {
        let mut buffer = [0u8; CHUNK];
        let Some(n) = self
            .output
            .as_mut()
            .and_then(|file| file.read(&mut buffer).ok())
        else {
            return false;
        };
        self.printed.extend_from_slice(&buffer[..n]);
        let excess = self.printed.len().saturating_sub(TOLD);
        self.printed.drain(..excess);
        n > 0
    }
}
