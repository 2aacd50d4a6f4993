//! Probes in processes of their own: what one does to itself is gone with it, a crash is an answer, and
//! nothing waits longer than [`LIMIT`].
//!
//! A group is a process that tries one thing after another and tells each over a pipe, a line of JSON when
//! it begins and one when it has the answer. Groups run side by side. Whatever a group forks is in its
//! process group and ends with it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::{Answer, Outcome};
use crate::sys::clone::{fork_into, single_threaded};
use crate::sys::process;

/// Longer than all groups together take on a slow machine; whoever needs more hangs.
const LIMIT: Duration = Duration::from_secs(10);
/// How long the end of a killed process is waited for. One that sleeps uninterruptibly in the kernel (a
/// file system whose server is gone) does not end: it is left to whoever inherits it.
const GONE: Duration = Duration::from_millis(500);

/// Answers by the probe's name.
pub type Answers = BTreeMap<String, Outcome>;

/// A group: its name, for messages, and what its process does.
pub struct Group<'a> {
    /// The first part of its probes' names.
    pub name: &'static str,
    /// Runs in the child.
    pub work: &'a dyn Fn(&Teller),
}

/// One line over the pipe.
#[derive(Serialize, Deserialize)]
enum Line {
    Begin(String),
    End(String, Outcome),
    /// A process below the group's was killed by this signal, in the midst of what it had begun.
    Killed(String),
}

/// How a probe tells its answers. Every process of a group writes to the same pipe, one at a time.
pub struct Teller {
    pipe: OwnedFd,
    prefix: &'static str,
}

impl Teller {
    /// Tries `probe` (a name without the prefix): `work` gives what was found, or errno and step.
    /// Whether it works.
    pub fn try_it(&self, probe: &str, work: impl FnOnce() -> Tried) -> bool {
        self.begin(probe);
        let outcome = match work() {
            Ok(found) => Outcome::ok(found),
            Err((errno, step)) => Outcome::failed(errno as i32, step),
        };
        let ok = outcome.is_ok();
        self.end(probe, outcome);
        ok
    }

    /// Says that `probe` is being tried, before what may kill this process.
    pub fn begin(&self, probe: &str) {
        self.say(&Line::Begin(self.name(probe)));
    }

    /// Says the answer.
    pub fn end(&self, probe: &str, outcome: Outcome) {
        self.say(&Line::End(self.name(probe), outcome));
    }

    /// Says of `probes` that they were not tried for want of `before`.
    pub fn skip(&self, probes: &[&str], before: &str) {
        let why = format!("needs {}", self.name(before));
        for probe in probes {
            self.end(probe, Outcome::other(Answer::Skipped, why.clone()));
        }
    }

    fn name(&self, probe: &str) -> String {
        match probe {
            "" => self.prefix.to_string(),
            probe => format!("{}.{probe}", self.prefix),
        }
    }

    fn say(&self, line: &Line) {
        let Ok(mut text) = serde_json::to_vec(line) else {
            return;
        };
        text.push(b'\n');
        // At most PIPE_BUF, so in one piece; a parent that is gone needs no answer.
        let _ = nix::unistd::write(&self.pipe, &text);
    }

    /// Forks a child into new namespaces and does `work` in it; `before` runs in the parent first, with
    /// the child's pid, while the child waits. Waits for the child's end.
    ///
    /// # Errors
    /// The errno of the birth, by clone3 or where that is denied by clone, as containers are born.
    pub fn born(
        &self,
        namespaces: u64,
        before: impl FnOnce(Pid),
        work: impl FnOnce(),
    ) -> nix::Result<()> {
        let (wait, go) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let Some(pid) = birth(namespaces)? else {
            drop(go);
            let _ = nix::unistd::read(&wait, &mut [0]);
            drop(wait);
            work();
            process::exit_now(0)
        };
        drop(wait);
        before(pid);
        drop(go);
        if let Some(signal) = killed(pid) {
            self.say(&Line::Killed(signal));
        }
        Ok(())
    }
}

impl Teller {
    /// Does `work` in a fork of this process, by clone(2) without anything new, and waits for its end.
    ///
    /// # Errors
    /// The errno of the fork.
    pub fn forked(&self, work: impl FnOnce()) -> nix::Result<()> {
        match fork_into(0)? {
            0 => {
                work();
                process::exit_now(0)
            }
            pid => {
                if let Some(signal) = killed(Pid::from_raw(pid)) {
                    self.say(&Line::Killed(signal));
                }
                Ok(())
            }
        }
    }
}

/// What a probe's work gives: what was found, or errno and the step that was refused.
pub type Tried = std::result::Result<String, (Errno, String)>;

/// A child in new namespaces; none in the child itself. As the engine does it: clone3, and clone where a
/// filter hides that.
fn birth(namespaces: u64) -> nix::Result<Option<Pid>> {
    use crate::sys::clone::{Born, clone3};
    match clone3(namespaces, None) {
        Ok(Born::Child) => Ok(None),
        Ok(Born::Parent(pid, _)) => Ok(Some(pid)),
        Err(Errno::ENOSYS | Errno::EPERM) => match fork_into(namespaces)? {
            0 => Ok(None),
            pid => Ok(Some(Pid::from_raw(pid))),
        },
        Err(errno) => Err(errno),
    }
}

/// Waits for a child: the signal that killed it, by name.
fn killed(pid: Pid) -> Option<String> {
    loop {
        match waitpid(pid, None) {
            Err(Errno::EINTR) => {}
            Ok(status) => return end(&status),
            Err(_) => return None,
        }
    }
}

struct Running {
    name: &'static str,
    pid: Pid,
    pipe: OwnedFd,
    heard: Vec<u8>,
    open: bool,
}

/// Runs all groups side by side and collects their answers.
///
/// # Errors
/// Where no process can be made at all.
pub fn groups(groups: &[Group<'_>]) -> Result<Answers> {
    debug_assert!(single_threaded(), "a fork copies one thread only");
    let mut running = Vec::with_capacity(groups.len());
    for group in groups {
        match start(group) {
            Ok(one) => running.push(one),
            Err(errno) => {
                stop(&running);
                return Err(Error::os(
                    "make a process for",
                    "the doctor's probes",
                    errno,
                ));
            }
        }
    }
    let deadline = Instant::now() + LIMIT;
    while running.iter().any(|one| one.open) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || listen(&mut running, left).is_err() {
            break;
        }
    }
    let mut answers = Answers::new();
    for one in running {
        // Also where it has ended: what it forked may still be there.
        let hung = one.open;
        let _ = nix::sys::signal::killpg(one.pid, Signal::SIGKILL);
        let how = reap(one.pid);
        collect(&one, how.filter(|_| !hung), &mut answers);
    }
    Ok(answers)
}

fn start(group: &Group<'_>) -> nix::Result<Running> {
    let (pipe, tell) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    match fork_into(0)? {
        0 => {
            drop(pipe);
            // A probe that is refused by SIGSYS or the like dumps no core.
            let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
            let _ = process::parent_death_signal(libc::SIGKILL);
            let _ = nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0));
            process::default_signals();
            let teller = Teller {
                pipe: tell,
                prefix: group.name,
            };
            (group.work)(&teller);
            process::exit_now(0)
        }
        pid => {
            let pid = Pid::from_raw(pid);
            // Both sides do it, so that it is done before either goes on.
            let _ = nix::unistd::setpgid(pid, pid);
            Ok(Running {
                name: group.name,
                pid,
                pipe,
                heard: Vec::new(),
                open: true,
            })
        }
    }
}

fn stop(running: &[Running]) {
    for one in running {
        let _ = nix::sys::signal::killpg(one.pid, Signal::SIGKILL);
        let _ = reap(one.pid);
    }
}

/// As [`killed`], for a process that was sent SIGKILL: waits no longer than [`GONE`].
fn reap(pid: Pid) -> Option<String> {
    let deadline = Instant::now() + GONE;
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::StillAlive) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(status) => return end(&status),
            Err(_) => return None,
        }
    }
}

/// How a process ended, where that was not well.
fn end(status: &WaitStatus) -> Option<String> {
    match status {
        WaitStatus::Signaled(_, signal, _) => Some(signal.to_string()),
        WaitStatus::Exited(_, code) if *code != 0 => Some(format!("exit status {code}")),
        _ => None,
    }
}

fn listen(running: &mut [Running], left: Duration) -> nix::Result<()> {
    let mut fds = Vec::with_capacity(running.len());
    let mut which = Vec::with_capacity(running.len());
    for (index, one) in running.iter().enumerate().filter(|(_, one)| one.open) {
        fds.push(PollFd::new(one.pipe.as_fd(), PollFlags::POLLIN));
        which.push(index);
    }
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Err(Errno::EINTR) => return Ok(()),
        other => other?,
    };
    let ready: Vec<usize> = fds
        .iter()
        .zip(&which)
        .filter(|(fd, _)| fd.any().unwrap_or(true))
        .map(|(_, index)| *index)
        .collect();
    drop(fds);
    for index in ready {
        let one = &mut running[index];
        let mut buffer = [0; 4096];
        match nix::unistd::read(&one.pipe, &mut buffer) {
            Err(Errno::EINTR) => {}
            Ok(0) | Err(_) => one.open = false,
            Ok(count) => one.heard.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(())
}

/// What a group said; `how` its process ended, where that was not well. What was begun and not ended is
/// where it crashed or hung.
fn collect(one: &Running, how: Option<String>, answers: &mut Answers) {
    let mut begun: Vec<String> = Vec::new();
    for line in one.heard.split(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Line::Begin(probe)) => begun.push(probe),
            Ok(Line::End(probe, outcome)) => {
                begun.retain(|known| *known != probe);
                answers.insert(probe, outcome);
            }
            Ok(Line::Killed(signal)) => {
                for probe in begun.drain(..) {
                    answers.insert(
                        probe,
                        Outcome::other(Answer::Crashed, format!("ended by {signal}")),
                    );
                }
            }
            Err(_) => {}
        }
    }
    for probe in begun {
        let outcome = match (&how, one.open) {
            (Some(signal), _) => Outcome::other(Answer::Crashed, format!("ended by {signal}")),
            (None, true) => {
                Outcome::other(Answer::Hung, format!("no answer in {} s", LIMIT.as_secs()))
            }
            (None, false) => Outcome::other(Answer::Crashed, "ended without an answer"),
        };
        answers.insert(probe, outcome);
    }
    if one.heard.is_empty() {
        let name = format!("{}.process", one.name);
        answers.insert(
            name,
            Outcome::other(Answer::Crashed, "ended without a word"),
        );
    }
}
