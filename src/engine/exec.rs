//! The runtime's side of exec: a further process in a container that runs.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use oci_spec::runtime::{Process, Spec};

use super::child::Inherited;
use super::foreground::Signals;
use super::hooks::HookState;
use super::join::{self, Init, Joiner};
use super::relay::Relay;
use super::sync::{self, End, FromChild};
use super::terminal::{Destination, Receiver};
use super::{birth, filter, make, pid_file};
use crate::cgroup::{Cgroup, Placed, SubCgroups};
use crate::error::{Error, Kind, Result};
use crate::host::{Lsm, Privilege};
use crate::log;
use crate::plan::{Asked, Degradation, Feature, Joined, Lost};
use crate::policy::{Config, Wish};
use crate::state::{Record, Status, Store};
use crate::sys::clone::{Born, clone_old, clone3, single_threaded};
use crate::sys::process;

/// How long a killed process is waited for.
const END: Duration = Duration::from_millis(500);

/// What `exec` is asked for.
#[derive(Debug)]
pub struct ExecRequest {
    /// The container's id.
    pub id: String,
    /// The state directory.
    pub store: Store,
    /// What to execute, from the container's own process: the command line's flags, or a file.
    pub process: ExecProcess,
    /// Return when the program has started.
    pub detach: bool,
    /// Also in a paused container; the program starts when that is resumed.
    pub ignore_paused: bool,
    /// Where the process's pid is written to.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 on the program gets.
    pub preserve_fds: u32,
    /// The Unix socket that the terminal's master is sent to.
    pub console_socket: Option<PathBuf>,
    /// The Unix socket that a pidfd of the process is sent to.
    pub pidfd_socket: Option<PathBuf>,
    /// `--cgroup`: cgroups below the container's.
    pub cgroups: SubCgroups,
    /// How much may be lost; never more than the container was made with.
    pub degrade: Wish,
}

/// What to execute.
pub enum ExecProcess {
    /// A process of its own.
    Own(Box<Process>),
    /// The container's own process, changed.
    Changed(Box<dyn Fn(&mut Process)>),
}

impl std::fmt::Debug for ExecProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Own(_) => "Own",
            Self::Changed(_) => "Changed",
        })
    }
}

/// Executes a further process in a container. In the foreground, passes signals on, waits, and gives
/// the exit status (128 + n for signal n); detached, gives 0. A signal that ends this command before
/// the program has started ends it for good: the status is 128 + n then, and nothing is executed.
///
/// # Errors
/// A container that has stopped, or is paused; a sentence with the step, the object and the errno.
pub fn exec(request: &ExecRequest) -> Result<i32> {
    if !single_threaded() {
        return Err(Error::new(
            Kind::System,
            "a process with several threads cannot join a container",
        ));
    }
    let signals = Signals::take()?;
    make::check_preserved(0, request.preserve_fds)?;
    // Nothing that the caller left open reaches the container, but what is asked for.
    crate::sys::fs::cloexec_from(3)
        .map_err(|errno| Error::os("close at exec", "inherited descriptors", errno))?;
    let record = request.store.peek(&request.id)?;
    let init = holding(&request.store, &request.id, request.ignore_paused, &record)?;
    let joined = plan(request, &record)?;
    let mut execing = Execing {
        joined: &joined,
        record: &record,
        signals: &signals,
        joiner: None,
        child: None,
        terminal: Destination::choose(
            joined.plan.terminal(),
            request.detach,
            request.console_socket.as_deref(),
        )?,
        relay: None,
        pidfd_socket: match &request.pidfd_socket {
            Some(path) => Some(Receiver::connect("pidfd-socket", path)?),
            None => None,
        },
    };
    match execing.all(request, &init) {
        Ok(Some(pid)) if !request.detach => match execing.relay.take() {
            Some(mut relay) => relay.run(pid),
            None => signals.wait_for(pid),
        },
        Ok(Some(_)) => Ok(0),
        Ok(None) => {
            execing.end();
            Ok(128 + execing.signalled())
        }
        Err(error) => {
            execing.end();
            Err(error)
        }
    }
}

/// Whether a further process may be executed in a container.
///
/// # Errors
/// A container that is not there, has stopped, or is paused (without `ignore_paused`), in runc's words.
pub fn reachable(store: &Store, id: &str, ignore_paused: bool) -> Result<()> {
    holding(store, id, ignore_paused, &store.peek(id)?).map(drop)
}

/// The container's first process, where its state allows a further one.
fn holding(store: &Store, id: &str, ignore_paused: bool, record: &Record) -> Result<Init> {
    let stopped = || Error::new(Kind::State, "cannot exec in a stopped container");
    let pid = record.pid.ok_or_else(stopped)?;
    // The pid is held first and compared after: it cannot be given away in between.
    let init = match Init::hold(pid, record.pid_start) {
        Err(Errno::ESRCH) => return Err(stopped()),
        other => other.map_err(|errno| Error::os("open", format!("process {pid}"), errno))?,
    };
    match record.status(&store.path(id)) {
        Status::Stopped => Err(stopped()),
        Status::Creating => Err(Error::new(
            Kind::State,
            "cannot exec in a container that is being created",
        )),
        Status::Paused if !ignore_paused => Err(Error::new(
            Kind::State,
            "cannot exec in a paused container (use --ignore-paused to override)",
        )),
        _ => Ok(init),
    }
}

fn plan(request: &ExecRequest, record: &Record) -> Result<Joined> {
    let level = request.degrade.level_in(&Config::read()?, record.degrade)?;
    let text = request.store.config(&request.id)?;
    let crate::spec::Parsed { spec, warnings, .. } = crate::spec::parse::parse(&text)?;
    let (process, file) = match &request.process {
        ExecProcess::Own(process) => ((**process).clone(), "the process file"),
        ExecProcess::Changed(change) => {
            warnings.iter().for_each(|sentence| log::warning(sentence));
            let mut process = of_container(&spec)?;
            change(&mut process);
            (process, "exec")
        }
    };
    let notes = crate::spec::check_process(&process, &spec).map_err(|error| error.in_file(file))?;
    let mut without = made_without(record)?;
    let mut landlock = match without.is_empty() {
        true => 0,
        false => crate::host::landlock(),
    };
    let mut lost = None;
    let labels = [process.apparmor_profile(), process.selinux_label()];
    if labels.into_iter().flatten().any(|label| !label.is_empty()) {
        let mut asked = spec.clone();
        asked.set_process(Some(process.clone()));
        let linux = asked.linux().clone().unwrap_or_default();
        let lsm = Lsm::detect(&asked);
        if lsm.lacks_apparmor(&asked) {
            landlock = crate::host::landlock();
        }
        lost = crate::plan::labels::check(&linux, &process, &lsm, level, landlock)
            .map_err(|error| error.in_file(file))?;
    }
    let has = |feature| without.iter().any(|known: &Lost| known.feature == feature);
    if lost.is_some() && !has(Feature::Apparmor) {
        // What of it is mounts, read-only and hidden, only who makes the container can mount.
        return Err(Error::spec(
            "process.apparmorProfile",
            "the degradation \"apparmor\" cannot be had in exec alone: the container was made without it, so \
             that nothing in it is read-only or hidden in the place of a profile",
        )
        .remedy("give the container a profile, too, or leave this one out")
        .in_file(file));
    }
    without.extend(lost.as_ref().map(Lost::from));
    for note in notes {
        log::debug(|| format!("ignored: {note}"));
    }
    let asked = Asked {
        id: request.id.clone(),
        no_new_keyring: record.no_new_keyring,
        preserve_fds: request.preserve_fds,
        listen_fds: 0,
        no_pivot: false,
        rootless: None,
        systemd_cgroup: false,
        degrade: level,
        without,
    };
    let privilege = Privilege::detect();
    let mut joined = crate::plan::exec(&spec, &process, &asked, privilege, landlock)?;
    joined.plan.degradations.extend(lost);
    Ok(joined)
}

/// What the container was made without, and has something else for.
///
/// # Errors
/// An entry of the record that cannot be read: it may be of a loss that has to be made up for.
fn made_without(record: &Record) -> Result<Vec<Lost>> {
    let known = |value: &serde_json::Value| {
        let known: Degradation = serde_json::from_value(value.clone()).map_err(|error| {
            let why = format!("the record of what was degraded: {error}");
            Error::new(Kind::State, why)
                .remedy("the container was made by another version of isorun: make it again")
        })?;
        Ok(Lost::from(&known))
    };
    let all: Vec<Lost> = record.degraded.iter().map(known).collect::<Result<_>>()?;
    let confined = all.into_iter().filter(|lost| lost.feature.is_confined());
    Ok(confined.collect())
}

fn of_container(spec: &Spec) -> Result<Process> {
    spec.process()
        .clone()
        .ok_or_else(|| Error::spec("process", "missing: the container has none to start from"))
}

/// A process on its way into the container.
struct Execing<'a> {
    joined: &'a Joined,
    record: &'a Record,
    signals: &'a Signals,
    joiner: Option<Pid>,
    child: Option<Pid>,
    /// Where the terminal goes.
    terminal: Destination,
    /// The relay of a terminal that stays here.
    relay: Option<Relay>,
    pidfd_socket: Option<Receiver>,
}

/// What came of listening.
enum Heard<T> {
    Said(T),
    /// A signal ended the command.
    Signal,
}

impl Execing<'_> {
    /// The pid of the process that has executed the program; none when a signal came first.
    fn all(&mut self, request: &ExecRequest, init: &Init) -> Result<Option<Pid>> {
        let cgroup = match &self.record.cgroup {
            Some(value) => {
                let placed: Placed = serde_json::from_value(value.clone()).map_err(|error| {
                    Error::new(Kind::State, format!("the record of the cgroup: {error}"))
                })?;
                Some(init.cgroup(&placed, &request.cgroups)?)
            }
            None => None,
        };
        let pair = |what| move |errno| Error::os("make", what, errno);
        let (channel, sync) = sync::pair().map_err(pair("a socket pair"))?;
        let (told, tell) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(pair("a pipe"))?;
        self.birth(cgroup, init, (&channel, sync), tell)?;
        for lost in &self.joined.plan.degradations {
            self.degraded(lost);
        }
        let Some(pid) = self.joined_pid(&told)? else {
            return Ok(None);
        };
        if let Some(receiver) = self.pidfd_socket.take() {
            let pidfd = process::pidfd_open(pid.as_raw())
                .map_err(|errno| Error::os("open a pidfd of", "the process", errno))?;
            // runc's word for a process that is not the container's first.
            receiver.send("setns", pidfd.as_fd())?;
        }
        self.check_number(pid);
        if let Some(groups) = &self.record.resctrl {
            super::rdt::enter(groups, pid.as_raw())?;
        }
        channel
            .go()
            .map_err(|errno| Error::os("tell the process", "to go on", errno))?;
        if !self.converse(&channel, pid)? {
            return Ok(None);
        }
        if let Some(path) = &request.pid_file {
            pid_file::write(path, pid)?;
        }
        // It lives on its own from here.
        self.child = None;
        Ok(Some(pid))
    }

    /// Clones the joiner: into the v2 side of the cgroup where the kernel does that (it enters the v1
    /// side by itself), else beside it, to be moved there before it goes on.
    fn birth(
        &mut self,
        mut cgroup: Option<Cgroup>,
        init: &Init,
        (channel, sync): (&End, End),
        tell: OwnedFd,
    ) -> Result<()> {
        // isorun's own init is not to be looked into, and has executed nothing since its time namespace was
        // made: where there is a program below it, that is in all of the container's namespaces.
        let program = match &self.record.channels {
            Some(channels) if channels.init => init.program(),
            _ => None,
        };
        let mut joiner = Joiner {
            init: program.as_ref().unwrap_or(init),
            join: &self.joined.join,
            entry: cgroup.as_ref().map(Cgroup::entry).transpose()?,
            wait: false,
            told: tell,
            root: match &self.record.mounted {
                Some(mounted) => Some(super::shared_mounts::open(mounted)?),
                None => None,
            },
            parent: std::process::id() as i32,
        };
        if let Some(cpus) = &self.joined.join.initial_cpus {
            join::set_cpus("initial", cpus)?;
        }
        let mut born = clone3(0, cgroup.as_ref().and_then(Cgroup::v2_fd));
        if matches!(born, Err(Errno::EBUSY))
            && let Some(moved) = cgroup
                .as_ref()
                .map(|it| init.moved(it))
                .transpose()?
                .flatten()
        {
            born = clone3(0, moved.v2_fd());
            cgroup = Some(moved);
        }
        let fd = cgroup.as_ref().and_then(Cgroup::v2_fd);
        if let Err(errno) = born
            && (matches!(errno, Errno::ENOSYS | Errno::EPERM)
                || fd.is_some() && birth::refuses_cgroup(errno))
        {
            joiner.entry = None;
            joiner.wait = cgroup.is_some();
            born = match clone3(0, None) {
                Err(Errno::ENOSYS | Errno::EPERM) => clone_old(0),
                other => other,
            };
        }
        let inherited = Inherited {
            sync,
            fifo: None,
            late: None,
            entry: None,
            wait: false,
            signals: self.signals.before(),
            joins: Vec::new(),
            unprivileged: !nix::unistd::geteuid().is_root(),
            time: false,
            root: None,
            pids: None,
            arguments: None,
            environment: None,
        };
        match born {
            Ok(Born::Child) => {
                // It closes its copy of the runtime's end before it forks: that nobody else has it is
                // how the runtime's end is seen.
                join::run(&self.joined.plan, joiner, inherited)
            }
            Ok(Born::Parent(pid, _)) => {
                self.joiner = Some(pid);
                if joiner.wait
                    && let Some(cgroup) = &cgroup
                {
                    cgroup.join(pid.as_raw())?;
                    channel
                        .go()
                        .map_err(|errno| Error::os("tell the joiner", "to go on", errno))?;
                }
                Ok(())
            }
            Err(errno) => Err(Error::os("clone", "a process to join the container", errno)),
        }
    }

    /// Waits for the joiner to tell the pid of the process, and reaps it.
    fn joined_pid(&mut self, told: &OwnedFd) -> Result<Option<Pid>> {
        let fail = |errno| Error::os("hear", "the process that joins the container", errno);
        if matches!(self.wait_for(told.as_fd())?, Heard::Signal) {
            return Ok(None);
        }
        let pid = match join::hear(told).map_err(fail)? {
            Some(result) => Pid::from_raw(result?),
            None => return Err(vanished()),
        };
        self.child = Some(pid);
        if let Some(joiner) = self.joiner.take() {
            let _ = nix::sys::wait::waitpid(joiner, None);
        }
        Ok(Some(pid))
    }

    /// Tells a number that another member of the container's channels may have, too.
    fn check_number(&self, pid: Pid) {
        let channels = self.record.channels.as_ref();
        if let Some(pids) = channels.and_then(|channels| channels.pids)
            && let Some(inner) = super::pids::inner(pid.as_raw())
            && !pids.holds(inner)
        {
            self.degraded(&crate::plan::wrapped(inner, pids));
        }
    }

    /// Listens to the process until it has executed the program; false when a signal came first.
    fn converse(&mut self, channel: &End, pid: Pid) -> Result<bool> {
        let fail = |errno| Error::os("hear", "the process in the container", errno);
        loop {
            if matches!(self.wait_for(channel.fd())?, Heard::Signal) {
                return Ok(false);
            }
            let Some((message, fds)) = channel.hear().map_err(fail)? else {
                return match crate::state::never_executed(pid.as_raw()) {
                    true => Err(vanished()),
                    false => Ok(true),
                };
            };
            match message {
                FromChild::Degraded(degradation) => self.degraded(&degradation),
                FromChild::NotifyFd(number) => {
                    self.listener(pid, number)?;
                    channel.go().map_err(fail)?;
                }
                FromChild::Terminal => {
                    self.relay = self.terminal.take(fds)?;
                    channel.go().map_err(fail)?;
                }
                FromChild::Failed(error) | FromChild::Lost(_, error) => return Err(error),
                FromChild::HostHooks
                | FromChild::OwnHooks
                | FromChild::NetDevices
                | FromChild::Ready
                | FromChild::Source { .. }
                | FromChild::Born(_) => {
                    return Err(fail(Errno::EBADMSG));
                }
            }
        }
    }

    /// Tells a degradation, but for one that the container was made with: its maker has told it, and
    /// nobody wants to hear of it with every exec.
    fn degraded(&self, degradation: &Degradation) {
        // Which capabilities are missing is in the reason.
        let whole = degradation.row == Feature::Capabilities;
        let known = |value: &serde_json::Value| {
            value["feature"] == degradation.feature.as_str()
                && (!whole || value["reason"] == degradation.reason.as_str())
        };
        match self.record.degraded.iter().any(known) {
            true => log::debug(|| degradation.to_string()),
            false => log::warning(&degradation.to_string()),
        }
    }

    /// Waits until `fd` can be read, or a signal comes that ends this command: the process may hang,
    /// in a paused container for one.
    fn wait_for(&self, fd: std::os::fd::BorrowedFd<'_>) -> Result<Heard<()>> {
        let fail = |errno| Error::os("wait for", "the process in the container", errno);
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        // The usual case costs no descriptor for signals.
        match poll(&mut fds, PollTimeout::from(50u8)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(Heard::Said(())),
            Err(errno) => return Err(fail(errno)),
        }
        let signals = SignalFd::with_flags(&ending(), SfdFlags::SFD_CLOEXEC).map_err(fail)?;
        loop {
            let mut fds = [
                PollFd::new(fd, PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(fail(errno)),
            }
            let ready = |at: usize| fds[at].revents().is_some_and(|found| !found.is_empty());
            if ready(0) {
                return Ok(Heard::Said(()));
            }
            if ready(1) {
                return Ok(Heard::Signal);
            }
        }
    }

    /// The number of the signal that ended the command: it is still pending.
    fn signalled(&self) -> i32 {
        let Ok(signals) = SignalFd::with_flags(&ending(), SfdFlags::SFD_NONBLOCK) else {
            return libc::SIGTERM;
        };
        match signals.read_signal() {
            Ok(Some(info)) => info.ssi_signo as i32,
            _ => libc::SIGTERM,
        }
    }

    fn listener(&self, pid: Pid, number: i32) -> Result<()> {
        let plan = &self.joined.plan;
        let fail = |errno| Error::os("take", "the seccomp listener of the process", errno);
        let pidfd = process::pidfd_open(pid.as_raw()).map_err(fail)?;
        let listener = process::pidfd_getfd(pidfd.as_fd(), number).map_err(fail)?;
        let (path, metadata) = match &plan.seccomp {
            Some(program) => (&program.listener_path, program.listener_metadata.as_deref()),
            None => return Ok(()),
        };
        let path = path.as_ref().ok_or_else(|| {
            Error::spec(
                "linux.seccomp.listenerPath",
                "a filter that notifies needs it",
            )
        })?;
        let state = HookState {
            oci_version: &self.record.oci_version,
            id: &self.record.id,
            status: "running",
            pid: self.record.pid.unwrap_or(0),
            bundle: &self.record.bundle,
            annotations: &self.record.annotations,
        };
        filter::hand_over(
            Path::new(path),
            metadata,
            &state,
            pid.as_raw(),
            listener.as_raw_fd(),
        )
    }

    /// Kills what has not executed the program yet, and reaps it: the container's init, whose child it
    /// becomes, may never do that. In a frozen cgroup it stays until that is thawed, and dies then
    /// before it does anything; so it is not waited for without end.
    fn end(&mut self) {
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
        for pid in [self.joiner.take(), self.child.take()]
            .into_iter()
            .flatten()
        {
            let _ = process::kill(pid.as_raw(), libc::SIGKILL);
            let begin = Instant::now();
            while waitpid(pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive)
                && begin.elapsed() < END
            {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// The signals by which a command is asked to end.
fn ending() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        set.add(signal);
    }
    set
}

fn vanished() -> Error {
    Error::new(
        Kind::System,
        "the process ended before it executed the program",
    )
    .remedy(
        "it was killed, or the container has stopped or is short of memory: see the kernel's log",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_cannot_be_read_is_not_passed_over() {
        let mut record = Record::new("x", "/b".as_ref(), "/b/r".as_ref(), "1.2.0").unwrap();
        assert!(made_without(&record).unwrap().is_empty());
        record.degraded = vec![serde_json::json!({"row": "of-tomorrow"})];
        let error = made_without(&record).unwrap_err().to_string();
        assert!(error.contains("another version of isorun"), "{error}");
    }
}
