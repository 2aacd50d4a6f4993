//! A foreground container with a terminal: bytes go between the caller's terminal and the container's.
//!
//! The caller's terminal is raw meanwhile, so that every key, `^C` and `^Z` too, is the container's
//! business; it is set back however this ends. One loop waits for signals and for both sides. Nothing
//! here blocks while writing, and no flag of the caller's descriptors is changed: they are shared with
//! others.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::sys::termios::{
    LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr,
    tcsetattr,
};
use nix::unistd::{Pid, getpgrp, isatty, read, tcgetpgrp, write};

use super::foreground;
use crate::error::{Error, Result};
use crate::sys::terminal::{self, Size};

/// How much is moved at once. A pipe that poll(2) calls writable takes this much without blocking
/// (PIPE_BUF of pipe(7)).
const CHUNK: usize = 4096;

/// How long the terminal may be silent, when the program has ended and others still hold the terminal,
/// before its output counts as complete; milliseconds.
const SILENCE: u16 = 100;

/// How much is still read when the program has ended, bytes: more than a terminal holds, so all that
/// the program wrote itself is among it.
const LEFT: usize = 128 * 1024;

/// How long those who still write are waited for in all.
const PATIENCE: Duration = Duration::from_millis(500);

/// The terminal of whoever called isorun.
pub struct Caller {
    terminal: OwnedFd,
}

impl Caller {
    /// Finds it: stderr, stdout or stdin, whichever is a terminal, else /dev/tty.
    ///
    /// # Errors
    /// A sentence when the caller has no terminal at all.
    pub fn find() -> Result<Self> {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        for fd in [stderr.as_fd(), stdout.as_fd(), stdin.as_fd()] {
            if isatty(fd).unwrap_or(false)
                && let Ok(terminal) = fd.try_clone_to_owned()
            {
                return Ok(Self { terminal });
            }
        }
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        match open("/dev/tty", flags, Mode::empty()) {
            Ok(terminal) => Ok(Self { terminal }),
            Err(errno) => Err(Error::os("process.terminal: open", "/dev/tty", errno).remedy(
                "the caller has no terminal: detach with --console-socket, or set process.terminal \
                 to false",
            )),
        }
    }

    /// Whether reading and changing this terminal is this process's turn: one in the background leaves
    /// it alone.
    fn is_ours(&self) -> bool {
        match tcgetpgrp(&self.terminal) {
            Ok(group) => group == getpgrp(),
            // It is not this process's controlling terminal: then there is no such thing as turns.
            Err(_) => true,
        }
    }
}

/// The caller's terminal, raw while that is wished for; as it was when this is dropped.
struct Raw<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
    is_set: bool,
}

impl<'a> Raw<'a> {
    fn new(terminal: BorrowedFd<'a>) -> nix::Result<Self> {
        Ok(Self {
            terminal,
            before: tcgetattr(terminal)?,
            is_set: false,
        })
    }

    fn set(&mut self, wish: bool) -> nix::Result<()> {
        if !wish {
            return Ok(());
        }
        let mut raw = self.before.clone();
        cfmakeraw(&mut raw);
        // New lines become CR and LF here and not in the container, so that output that goes to a file
        // is as the program wrote it.
        raw.output_flags |= self.before.output_flags & OutputFlags::OPOST;
        tcsetattr(self.terminal, SetArg::TCSANOW, &raw)?;
        self.is_set = true;
        Ok(())
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        if self.is_set {
            // What was typed ahead stays for whoever reads next.
            let _ = tcsetattr(self.terminal, SetArg::TCSANOW, &self.before);
        }
    }
}

/// How reading went.
#[derive(PartialEq, Eq)]
enum Filled {
    /// There may be more.
    More,
    /// The end.
    End,
    /// Nothing more can be read, which is no end that somebody meant.
    Lost,
}

/// One direction: bytes that were read and not yet written.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads once.
    fn fill(&mut self, from: BorrowedFd<'_>) -> Filled {
        let mut buffer = [0u8; CHUNK];
        match read(from, &mut buffer) {
            Ok(0) => Filled::End,
            Ok(n) => {
                self.bytes.extend_from_slice(&buffer[..n]);
                Filled::More
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Filled::More,
            // EIO: of a master, that nobody has the other end open; of the caller's terminal, that this
            // process is in the background or the terminal is gone.
            Err(_) => Filled::Lost,
        }
    }

    /// Writes once; nothing: the other side takes no more, and what is left is dropped.
    fn drain(&mut self, to: BorrowedFd<'_>) -> Option<()> {
        let n = self.bytes.len().min(CHUNK);
        match write(to, &self.bytes[..n]) {
            Ok(n) => {
                self.bytes.drain(..n);
                Some(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Some(()),
            Err(_) => {
                self.bytes.clear();
                None
            }
        }
    }
}

/// The relay between the caller and a container's terminal.
pub struct Relay {
    caller: Caller,
    master: OwnedFd,
    /// The other end, held open while the program runs, so that the kernel does not call the terminal
    /// dead when the program closes it for a moment. Not there where this process may not open it.
    slave: Option<OwnedFd>,
    /// Nobody has the other end open: it is looked at again after a while.
    deserted: bool,
    to_container: Pending,
    to_caller: Pending,
    /// The last byte that was typed, for the end of a line without a new line.
    last: u8,
    input: Input,
    /// Somebody takes the output.
    stdout_open: bool,
}

/// What is known about stdin.
#[derive(PartialEq, Eq)]
enum Input {
    /// It is read.
    Open,
    /// It cannot be read now: it is a terminal, and this process in the background.
    Away,
    /// It is at its end.
    Ended,
}

/// What poll(2) said of each.
struct Ready {
    master: PollFlags,
    stdin: PollFlags,
    stdout: PollFlags,
}

impl Relay {
    /// Prepares the relay: `master` is the container's terminal, and takes the size of the caller's.
    ///
    /// # Errors
    /// A sentence with the errno.
    pub fn new(caller: Caller, master: OwnedFd) -> Result<Self> {
        let fail = |what: &'static str| move |errno| Error::os("relay the terminal:", what, errno);
        let flags = fcntl(&master, FcntlArg::F_GETFL).map_err(fail("look at its flags"))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        // Its open file is this process's alone: the container has the other end.
        fcntl(&master, FcntlArg::F_SETFL(flags)).map_err(fail("set its flags"))?;
        let mut termios = tcgetattr(&master).map_err(fail("read its mode"))?;
        termios.output_flags &= !OutputFlags::ONLCR;
        tcsetattr(&master, SetArg::TCSANOW, &termios).map_err(fail("set its mode"))?;
        let slave = terminal::peer(master.as_fd()).ok();
        let relay = Self {
            caller,
            master,
            slave,
            deserted: false,
            to_container: Pending::default(),
            to_caller: Pending::default(),
            last: b'\n',
            input: Input::Open,
            stdout_open: true,
        };
        relay.resize();
        Ok(relay)
    }

    /// Moves bytes, passes signals on and reaps, until `child` has ended and its output is written; its
    /// exit status, or 128 and the signal's number. All signals must be blocked.
    ///
    /// # Errors
    /// When waiting fails. The caller's terminal is set back in every case.
    pub fn run(&mut self, child: Pid) -> Result<i32> {
        let fail = |errno| Error::os("relay the terminal of", format!("process {child}"), errno);
        let terminal = self.caller.terminal.try_clone();
        let terminal = terminal
            .map_err(|error| Error::io("relay the terminal:", "copy the descriptor", &error))?;
        let mut raw = Raw::new(terminal.as_fd()).map_err(fail)?;
        raw.set(self.caller.is_ours()).map_err(fail)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&SigSet::all(), flags).map_err(fail)?;
        let status = loop {
            if let Some(status) = foreground::reap(child).map_err(fail)? {
                break status;
            }
            let time = match self.deserted {
                true => PollTimeout::from(SILENCE),
                false => PollTimeout::NONE,
            };
            self.move_once(Some(&signals), time).map_err(fail)?;
            while let Some(signal) = signals.read_signal().map_err(fail)? {
                let number = signal.ssi_signo as i32;
                if number == Signal::SIGWINCH as i32 {
                    self.resize();
                    continue;
                }
                if number == Signal::SIGCONT as i32 && self.caller.is_ours() {
                    // It was stopped, or is in the foreground now: a shell has set modes of its own.
                    raw.set(true).map_err(fail)?;
                    if self.input == Input::Away {
                        self.input = Input::Open;
                    }
                }
                foreground::pass_on(child, number).map_err(fail)?;
            }
        };
        self.finish().map_err(fail)?;
        Ok(status)
    }

    /// The size of the caller's terminal becomes the container's.
    fn resize(&self) {
        // One that has no size says nothing, and process.consoleSize stays.
        if let Ok(size) = terminal::size(self.caller.terminal.as_fd())
            && size != Size::default()
        {
            let _ = terminal::resize(self.master.as_fd(), size);
        }
    }

    /// Waits for something to do; nothing happened in the time: none. Without `signals` the program has
    /// ended, and only its output counts.
    fn wait(&self, signals: Option<&SignalFd>, time: PollTimeout) -> nix::Result<Option<Ready>> {
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLIN, self.to_caller.is_empty());
        wanted.set(PollFlags::POLLOUT, !self.to_container.is_empty());
        let reads_stdin =
            signals.is_some() && self.to_container.is_empty() && self.input == Input::Open;
        let mut fds = Vec::with_capacity(4);
        let mut add = |wish: bool, fd, events| {
            // One that is not wished for is left out: poll tells of a hang-up whatever is asked for.
            wish.then(|| {
                fds.push(PollFd::new(fd, events));
                fds.len() - 1
            })
        };
        let master = self.master.as_fd();
        let master = add(!self.deserted && !wanted.is_empty(), master, wanted);
        let writes = !self.to_caller.is_empty();
        let stdout = add(writes, stdout.as_fd(), PollFlags::POLLOUT);
        let stdin = add(reads_stdin, stdin.as_fd(), PollFlags::POLLIN);
        if let Some(signals) = signals {
            add(true, signals.as_fd(), PollFlags::POLLIN);
        }
        if poll(&mut fds, time)? == 0 {
            return Ok(None);
        }
        let events = |place: Option<usize>| {
            place
                .and_then(|n| fds[n].revents())
                .unwrap_or(PollFlags::empty())
        };
        Ok(Some(Ready {
            master: events(master),
            stdin: events(stdin),
            stdout: events(stdout),
        }))
    }

    /// Waits for something to do, and does it once. False: nothing happened in the time.
    fn move_once(&mut self, signals: Option<&SignalFd>, time: PollTimeout) -> nix::Result<bool> {
        let readable = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        let writable = PollFlags::POLLOUT | PollFlags::POLLERR | PollFlags::POLLNVAL;
        let waited = match self.wait(signals, time) {
            Err(Errno::EINTR) => return Ok(true),
            other => other?,
        };
        self.deserted = false;
        let Some(ready) = waited else {
            return Ok(false);
        };
        if ready.stdout.intersects(writable)
            && self.to_caller.drain(std::io::stdout().as_fd()).is_none()
        {
            self.stdout_open = false;
        } else if self.to_caller.is_empty() && ready.master.intersects(readable) {
            self.deserted = self.to_caller.fill(self.master.as_fd()) != Filled::More;
            if !self.stdout_open {
                // Nobody takes the output: the program is not held up for that.
                self.to_caller = Pending::default();
            }
        }
        if ready.master.contains(PollFlags::POLLOUT) {
            let _ = self.to_container.drain(self.master.as_fd());
        }
        if ready.stdin.intersects(readable | PollFlags::POLLNVAL) {
            match self.to_container.fill(std::io::stdin().as_fd()) {
                Filled::More => self.last = *self.to_container.bytes.last().unwrap_or(&self.last),
                Filled::End => self.end_of_input(),
                Filled::Lost => self.input = Input::Away,
            }
        }
        Ok(true)
    }

    /// stdin is at its end: the container's terminal is told as a person would, by the character for
    /// it; twice after a line that has no end yet, because the first only ends that line.
    fn end_of_input(&mut self) {
        self.input = Input::Ended;
        let Ok(termios) = tcgetattr(&self.master) else {
            return;
        };
        if termios.local_flags.contains(LocalFlags::ICANON) {
            let end = termios.control_chars[SpecialCharacterIndices::VEOF as usize];
            let times = if self.last == b'\n' { 1 } else { 2 };
            self.to_container
                .bytes
                .extend(std::iter::repeat_n(end, times));
        }
    }

    /// What the program still wrote before its end. Others that share its pid namespace may keep the
    /// terminal open for ever: a moment of silence ends it too, and so does a flood.
    fn finish(&mut self) -> nix::Result<()> {
        self.slave = None;
        self.to_container = Pending::default();
        let (mut waited, mut read) = (Duration::ZERO, 0);
        while self.stdout_open {
            if !self.to_caller.is_empty() {
                // What was read is written, however slow the caller is.
                self.move_once(None, PollTimeout::NONE)?;
                continue;
            }
            let begin = Instant::now();
            if !self.move_once(None, PollTimeout::from(SILENCE))? || self.deserted {
                break;
            }
            waited += begin.elapsed();
            read += self.to_caller.bytes.len();
            if waited > PATIENCE || read > LEFT {
                while self.stdout_open && !self.to_caller.is_empty() {
                    self.move_once(None, PollTimeout::NONE)?;
                }
                break;
            }
        }
        Ok(())
    }
}
