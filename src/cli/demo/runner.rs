//! Runs the demo's containers as a user would, by `isorun run`, and never leaves one behind.
//!
//! Signals that end a program are taken from a descriptor, so that Ctrl-C at any moment leads
//! through the same clean-up as success.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::FromOutside;
use super::bundle::Bundle;
use super::facts::Facts;
use super::limits::Limits;
use super::probe;
use super::proc::Status;
use crate::error::{Error, Kind, Result};

/// A container that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the demo did not come to its end.
#[derive(Debug)]
pub enum Ended {
    /// Something failed.
    Failed(Error),
    /// The user or the system asked it to end, by this signal.
    Signalled(i32),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Ended::Failed(error)
    }
}

type Outcome<T> = std::result::Result<T, Ended>;

/// Starts containers, and hears signals meanwhile.
pub struct Runner {
    runtime: PathBuf,
    signals: SignalFd,
}

/// One container that was started, and is ended when this value goes.
struct Running {
    child: Child,
    stdout: ChildStdout,
}

impl Runner {
    /// Blocks the signals that end a program, from now on; `runtime` is the program to use.
    ///
    /// # Errors
    /// Where the system gives no descriptor for signals.
    pub fn new(runtime: PathBuf) -> Result<Self> {
        let set = SigSet::from_iter([
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGCHLD,
        ]);
        set.thread_block()
            .map_err(|errno| Error::os("block", "signals", errno))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags)
            .map_err(|errno| Error::os("open a descriptor for", "signals", errno))?;
        Ok(Self { runtime, signals })
    }

    /// Runs the bundle, whose program is the probe's `facts`: what it told, and what the host saw
    /// of it meanwhile.
    pub fn facts(&self, bundle: &Bundle) -> Outcome<(Facts, FromOutside)> {
        let mut container = self.start(bundle, "demo")?;
        let line = self.line(&mut container)?;
        let Some(line) = line else {
            return Err(self.failure(container));
        };
        let inside = serde_json::from_str(&line).map_err(|error| {
            Error::new(
                Kind::System,
                format!("the probe in the container told no facts: {error}"),
            )
        })?;
        let seen = seen_from_outside(bundle, "demo")?;
        self.end(container)?;
        Ok((inside, seen))
    }

    /// Runs the bundle, whose program is the probe's `began`: how long after the call of `run` it
    /// began.
    pub fn time_to_first_instruction(&self, bundle: &Bundle, number: usize) -> Outcome<Duration> {
        let called = probe::now();
        let mut container = self.start(bundle, &format!("timed-{number}"))?;
        let line = self.line(&mut container)?;
        let Some(began) = line.and_then(|line| line.trim().parse().ok()) else {
            return Err(self.failure(container));
        };
        self.end(container)?;
        Ok(Duration::from_nanos(began).saturating_sub(called))
    }

    /// Removes what containers are left, running or not.
    ///
    /// # Errors
    /// Where a container cannot be removed.
    pub fn remove_containers(&self, bundle: &Bundle) -> Result<()> {
        let Ok(left) = fs::read_dir(bundle.state()) else {
            return Ok(());
        };
        for name in left.flatten() {
            let id = name.file_name();
            let output = Command::new(&self.runtime)
                .arg("--root")
                .arg(bundle.state())
                .args(["delete", "--force"])
                .arg(&id)
                .output()
                .map_err(|error| Error::io("run", self.runtime.display().to_string(), &error))?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
                let sentence = format!("delete the demo's container {}: {said}", id.display());
                return Err(Error::new(Kind::System, sentence));
            }
        }
        Ok(())
    }

    fn start(&self, bundle: &Bundle, id: &str) -> Result<Running> {
        let failed = |error| Error::io("run", self.runtime.display().to_string(), &error);
        let mut child = Command::new(&self.runtime)
            .arg("--root")
            .arg(bundle.state())
            .args(["run", "--bundle"])
            .arg(bundle.path())
            .arg("--pid-file")
            .arg(pid_file(bundle, id))
            .arg(id)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for the demo, which then ends the container.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        match child.stdout.take() {
            Some(stdout) => Ok(Running { child, stdout }),
            None => Err(Error::new(Kind::System, "the container has no stdout")),
        }
    }

    /// The first line that the container writes; none where it ended without one.
    fn line(&self, container: &mut Running) -> Outcome<Option<String>> {
        let deadline = Instant::now() + PATIENCE;
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while !text.ends_with(b"\n") {
            self.wait(Some(container.stdout.as_fd()), deadline)?;
            match container.stdout.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(length) => text.extend_from_slice(&buffer[..length]),
                Err(error) => return Err(Error::io("read", "the probe's answer", &error).into()),
            }
        }
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }

    /// Lets the container end, and expects that it does so with status 0.
    fn end(&self, mut container: Running) -> Outcome<()> {
        drop(container.child.stdin.take());
        match self.exit_of(&mut container)? {
            true => Ok(()),
            false => Err(self.failure(container)),
        }
    }

    fn exit_of(&self, container: &mut Running) -> Outcome<bool> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match container.child.try_wait() {
                Ok(Some(status)) => return Ok(status.success()),
                Ok(None) => self.wait(None, deadline)?,
                Err(error) => return Err(Error::io("wait for", "the container", &error).into()),
            }
        }
    }

    /// The error of a container that failed, in the runtime's own words.
    fn failure(&self, mut container: Running) -> Ended {
        drop(container.child.stdin.take());
        if let Err(ended) = self.exit_of(&mut container) {
            return ended;
        }
        let mut said = String::new();
        if let Some(mut stderr) = container.child.stderr.take() {
            // What cannot be read cannot be told.
            let _ = stderr.read_to_string(&mut said);
        }
        let said = match said.trim() {
            "" => "it ended without a word",
            said => said.strip_prefix("isorun: ").unwrap_or(said),
        };
        Error::new(Kind::System, format!("the demo's container failed: {said}")).into()
    }

    /// Waits until `input` can be read or a child ends; ends early by a signal or at `deadline`.
    fn wait(&self, input: Option<BorrowedFd<'_>>, deadline: Instant) -> Outcome<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let sentence = format!("the demo's container hung for {} s", PATIENCE.as_secs());
                return Err(Error::new(Kind::System, sentence).into());
            }
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            fds.extend(input.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::os("wait for", "the container", errno).into()),
            }
            let readable = fds.get(1).is_some_and(|fd| fd.any() == Some(true));
            let mut child_ended = false;
            while let Ok(Some(signal)) = self.signals.read_signal() {
                match signal.ssi_signo as i32 {
                    libc::SIGCHLD => child_ended = true,
                    signal => return Err(Ended::Signalled(signal)),
                }
            }
            if readable || (input.is_none() && child_ended) {
                return Ok(());
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only after a failure or a signal is there anybody left; the container itself goes by
        // `delete --force`.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn pid_file(bundle: &Bundle, id: &str) -> PathBuf {
    bundle.path().join(format!("{id}.pid"))
}

fn seen_from_outside(bundle: &Bundle, id: &str) -> Result<FromOutside> {
    let path = pid_file(bundle, id);
    // runc writes it after the start, so the program may be faster.
    let deadline = Instant::now() + Duration::from_secs(2);
    let text = loop {
        match fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => break text,
            Err(error) if Instant::now() >= deadline => {
                return Err(Error::io("read", path.display().to_string(), &error));
            }
            _ if Instant::now() >= deadline => {
                let sentence = format!("the pid file {} is empty", path.display());
                return Err(Error::new(Kind::System, sentence));
            }
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let failed = |why: String| Error::new(Kind::System, format!("look at process {text}: {why}"));
    let pid: i32 = text
        .trim()
        .parse()
        .map_err(|_| failed("not a process id".to_string()))?;
    let uid = match Status::of(&pid.to_string()) {
        Ok(status) => status
            .euid()
            .ok_or_else(|| failed("it has no user id".to_string()))?,
        Err(error) => return Err(failed(error.to_string())),
    };
    Ok(FromOutside {
        pid,
        uid,
        limits: Limits::of(&pid.to_string()),
    })
}
