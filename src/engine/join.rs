//! The way of a further process into a container: exec's side of the join.
//!
//! ```text
//! runtime                     joiner                        process
//!   clone3 into the cgroup -->  death signal, hidden from ptrace
//!                               v1 cgroups, OOM badness, hard limits
//!                               setns(pidfd of init, all kinds)
//!                               root of the user namespace
//!                               closes all but its two channels
//!                               fork of a sibling ----------->  born in the pid namespace
//!          <-- its pid --------  ends
//!   Go   --------------------------------------------------->  steps of the plan, exec
//! ```
//!
//! Nobody in the container sees a process that has not joined all of it (CVE-2016-9962): what can be
//! seen there is born there, undumpable, with the container's root and working directory, and has
//! no descriptor of the host open but the channel to the runtime.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, stat};

use super::child::{self, Inherited};
use super::labels::HostProc;
use super::proc;
use super::root::Root;
use super::sync::FromChild;
use crate::cgroup::{self, Cgroup, Placed, SubCgroups};
use crate::error::{Error, Kind, Result};
use crate::plan::{Action, Degradation, Join, Plan};
use crate::policy::Level;
use crate::spec::names;
use crate::sys::process;
use crate::sys::sched::CpuMask;

/// The container's first process: a pid that cannot be given away while this value lives.
pub struct Init {
    /// Its pid.
    pub pid: i32,
    /// When it started, clock ticks since boot.
    pub start: u64,
    /// Opened before the start time was compared; none where the kernel has no pidfds.
    pub pidfd: Option<OwnedFd>,
}

impl Init {
    /// Takes hold of the process that has this pid and start time.
    ///
    /// # Errors
    /// ESRCH when it has ended, whoever may have its pid now.
    pub fn hold(pid: i32, start: u64) -> nix::Result<Self> {
        let pidfd = match process::pidfd_open(pid) {
            Ok(pidfd) => Some(pidfd),
            // Linux before 5.3, or a filter.
            Err(Errno::ENOSYS | Errno::EPERM) => None,
            Err(errno) => return Err(errno),
        };
        let init = Self { pid, start, pidfd };
        match init.alive() {
            true => Ok(init),
            false => Err(Errno::ESRCH),
        }
    }

    /// The program below isorun's own init: the child of it that started first, as orphans did later; or what
    /// a startContainer hook has left, which is in the same namespaces. None where there is none.
    pub fn program(&self) -> Option<Self> {
        let entries = std::fs::read_dir("/proc").ok()?.flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let children = pids.filter(|&pid| crate::state::parent_of(pid) == Some(self.pid));
        let first = children
            .filter_map(|pid| Some((crate::state::start_time(pid).ok()?, pid)))
            .min()?;
        let program = Self::hold(first.1, first.0).ok()?;
        // Whoever got that number since is the child of another process.
        let same = crate::state::parent_of(program.pid) == Some(self.pid);
        (same && program.alive() && self.alive()).then_some(program)
    }

    /// Whether it is still there, and still that process.
    pub fn alive(&self) -> bool {
        crate::state::is_alive(self.pid, self.start)
    }

    /// The cgroup of the container, or `subs` below it. What is found by the pid alone is this process's only
    /// if that is still there afterwards.
    ///
    /// # Errors
    /// Those of [`Cgroup::open_below`]; a container that has stopped.
    pub fn cgroup(&self, placed: &Placed, subs: &SubCgroups) -> Result<Cgroup> {
        let cgroup = Cgroup::open_below(placed, subs, self.pid)?;
        self.still().map(|()| cgroup)
    }

    /// Where it is now, if not in `cgroup`.
    ///
    /// # Errors
    /// Those of [`Cgroup::moved`]; a container that has stopped.
    pub fn moved(&self, cgroup: &Cgroup) -> Result<Option<Cgroup>> {
        let moved = cgroup.moved(self.pid)?;
        self.still().map(|()| moved)
    }

    fn still(&self) -> Result<()> {
        match self.alive() {
            true => Ok(()),
            false => Err(Error::new(
                Kind::State,
                "cannot exec in a stopped container",
            )),
        }
    }
}

/// What the joiner has beside the plan.
pub struct Joiner<'a> {
    /// Whom to join.
    pub init: &'a Init,
    /// How.
    pub join: &'a Join,
    /// The v1 cgroups to enter.
    pub entry: Option<cgroup::Entry>,
    /// The runtime moves this process into its cgroup, and says when that is done.
    pub wait: bool,
    /// Where the pid of the process, or what failed, is told.
    pub told: OwnedFd,
    /// The container's root, where its mount namespace is the runtime's.
    pub root: Option<OwnedFd>,
    /// The runtime's pid.
    pub parent: i32,
}

/// Joins the container and forks the process that goes through the plan there. Never returns.
pub fn run(plan: &Plan, joiner: Joiner<'_>, inherited: Inherited) -> ! {
    match enter(plan, &joiner, &inherited) {
        Ok(root) => match crate::sys::clone::fork_sibling() {
            Ok(0) => {
                drop(joiner.told);
                be_the_process(plan, inherited, root)
            }
            Ok(pid) => {
                tell(&joiner.told, &Ok(pid));
                process::exit_now(0)
            }
            Err(errno) => tell(
                &joiner.told,
                &Err(Error::os("fork into", "the pid namespace", errno)),
            ),
        },
        Err(error) => tell(&joiner.told, &Err(error)),
    }
    process::exit_now(1)
}

/// The longest message, bytes: a pipe takes that much without anybody reading it.
const LONGEST: usize = 64 * 1024;

fn tell(to: &OwnedFd, message: &Result<i32>) {
    let body = match message {
        // With the six-fold that JSON makes of some characters, four parts fit.
        Err(error) if format!("{error}").len() > LONGEST / 8 => {
            serde_json::to_vec(&Err::<i32, _>(error.clone().cut(2048)))
        }
        other => serde_json::to_vec(other),
    };
    if let Ok(body) = body {
        let _ = nix::unistd::write(to, &body);
    }
}

/// What the joiner says: the pid of the process, or what failed; nothing when it ended without a word.
///
/// # Errors
/// Those of read(2).
pub fn hear(from: &OwnedFd) -> nix::Result<Option<Result<i32>>> {
    let mut said = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        match nix::unistd::read(from, &mut buffer) {
            Ok(0) => return Ok(None),
            Ok(n) => said.extend_from_slice(&buffer[..n]),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        }
        // A long message comes in pieces.
        match serde_json::from_slice(&said) {
            Ok(message) => return Ok(Some(message)),
            Err(error) if error.is_eof() && said.len() <= LONGEST => {}
            Err(_) => return Ok(None),
        }
    }
}

/// What the process does before the steps: it dies with the runtime, and waits for its word, which
/// does not come if the runtime has died already.
fn be_the_process(plan: &Plan, inherited: Inherited, root: Root) -> ! {
    // What the caller ignores is not the container's affair, here no more than for its first process.
    process::default_signals();
    let ready = process::parent_death_signal(libc::SIGKILL).and_then(|()| inherited.sync.wait());
    if ready.is_err() {
        process::exit_now(1);
    }
    child::run_joined(plan, inherited, root)
}

fn enter(plan: &Plan, joiner: &Joiner<'_>, inherited: &Inherited) -> Result<Root> {
    let fail = |what: &'static str| move |errno| Error::os("join:", what, errno);
    die_with(joiner.parent)?;
    process::dumpable(false).map_err(fail("hide from ptrace"))?;
    if joiner.wait {
        inherited
            .sync
            .wait()
            .map_err(fail("wait for the runtime"))?;
    }
    if let Some(entry) = &joiner.entry {
        entry
            .enter()
            .map_err(fail("enter the container's cgroups"))?;
    }
    if let Some(lost) = privileged(joiner.join, plan.level)? {
        // Heard when the process has started; the runtime knows then whose it is.
        inherited
            .sync
            .tell(&FromChild::Degraded(lost))
            .map_err(fail("tell the runtime"))?;
    }
    namespaces(joiner.init, joiner.join.namespaces)?;
    if let Some(root) = &joiner.root {
        let root = root
            .try_clone()
            .map_err(|_| fail("open the container's root")(Errno::EMFILE))?;
        super::pivot::change(&Root::new(root))?;
    }
    if joiner.join.becomes_root {
        process::set_groups(&[]).or_else(|errno| match errno {
            // The user namespace forbids it; then it is not to be called later either.
            Errno::EPERM => Ok(()),
            errno => Err(fail("leave the caller's groups")(errno)),
        })?;
        match process::set_ids(0, 0) {
            // A user namespace that the container joined, and that has no root.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(fail("become root of the user namespace")(errno)),
        }
    }
    // Joining a user namespace and changing ids may have undone both.
    process::dumpable(false).map_err(fail("hide from ptrace"))?;
    die_with(joiner.parent)?;
    let keep = vec![
        inherited.sync.fd().as_raw_fd(),
        joiner.told.as_fd().as_raw_fd(),
    ];
    crate::sys::fs::close_from(3 + plan.preserve_fds, keep)
        .map_err(fail("close the runtime's descriptors"))?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("/", flags, Mode::empty())
        .map(Root::new)
        .map_err(fail("open the container's root"))
}

/// The joiner is killed when the runtime is; one that was killed before that is noticed here.
fn die_with(parent: i32) -> Result<()> {
    process::parent_death_signal(libc::SIGKILL)
        .map_err(|errno| Error::os("join:", "set the death signal", errno))?;
    match nix::unistd::getppid().as_raw() == parent {
        true => Ok(()),
        false => Err(Error::os("join:", "the runtime has ended", Errno::ESRCH)),
    }
}

/// Sets the CPUs that this process, and what it forks, may run on.
///
/// # Errors
/// The field of config.json and the errno.
pub fn set_cpus(which: &str, cpus: &CpuMask) -> Result<()> {
    crate::sys::sched::set_affinity(0, cpus).map_err(|errno| {
        let what = format!("process.execCPUAffinity.{which}: set");
        Error::os(what, "the CPU affinity", errno).remedy(match errno {
            Errno::EINVAL => "none of these CPUs is there, or the cpuset has none of them",
            _ => "",
        })
    })
}

/// What needs the privileges of the host, while /proc is the host's; what was lost there.
fn privileged(join: &Join, level: Level) -> Result<Option<Degradation>> {
    if let Some(cpus) = &join.final_cpus {
        set_cpus("final", cpus)?;
    }
    for &(resource, hard) in &join.raise_limits {
        // Refused where it is over what this process may set; the step clamps it then.
        let (soft, old) = process::get_rlimit(resource)
            .map_err(|errno| Error::os("process.rlimits: read", resource.to_string(), errno))?;
        let _ = process::prlimit(0, resource, soft.min(hard), hard.max(old));
    }
    if !join.labels.is_empty() || join.key_label.is_some() {
        let proc = HostProc::open()?;
        for (kind, label) in &join.labels {
            proc.exec_label(*kind, label)?;
        }
        // The next exec takes it back.
        if let Some(label) = &join.key_label {
            proc.key_label(label)?;
        }
    }
    match &join.oom_score_adj {
        Some(step) => step.perform(level, |action| match action {
            Action::OomScoreAdj { value } => proc::write("self/oom_score_adj", &value.to_string())
                .map_err(|error| error.context("process.oomScoreAdj"))
                .map(|()| None),
            _ => Ok(None),
        }),
        None => Ok(None),
    }
}

/// Joins the namespaces of init, of these kinds (CLONE_NEW* bits): at one stroke by its pidfd, or,
/// where the kernel does not take one (before Linux 5.8), one by one.
fn namespaces(init: &Init, kinds: u64) -> Result<()> {
    if kinds == 0 {
        return Ok(());
    }
    if let Some(pidfd) = &init.pidfd {
        match process::setns(pidfd.as_fd(), kinds) {
            Ok(()) => return Ok(()),
            Err(Errno::ESRCH) => return Err(ended()),
            // An old kernel, or one of the namespaces is this process's own already: by files it is
            // seen which, and which one fails.
            Err(_) => {}
        }
    }
    by_files(init, kinds)
}

fn ended() -> Error {
    Error::new(
        crate::error::Kind::State,
        "cannot exec in a stopped container",
    )
}

fn by_files(init: &Init, kinds: u64) -> Result<()> {
    let mut files = Vec::new();
    for kind in names::NAMESPACES.iter().filter(|k| kinds & k.flag != 0) {
        let path = format!("/proc/{}/ns/{}", init.pid, kind.file);
        let fail = |errno| Error::os("join: open", &path, errno);
        let file = open(
            path.as_str(),
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(fail)?;
        let own = stat(format!("/proc/self/ns/{}", kind.file).as_str());
        let theirs = fstat(&file).map_err(fail)?;
        // Joining the user namespace that one is in is an error, and the others would be no change.
        if own.is_ok_and(|own| (own.st_dev, own.st_ino) == (theirs.st_dev, theirs.st_ino)) {
            continue;
        }
        files.push((kind, file));
    }
    // The files are those of init and of nobody who got its pid since.
    if !init.alive() {
        return Err(ended());
    }
    // The user namespace first: it gives the privileges for the others. Where it does not (the
    // container's other namespaces belong to its parent), last.
    let user = |kind: &&names::Namespace| kind.flag == libc::CLONE_NEWUSER as u64;
    files.sort_by_key(|(kind, _)| !user(kind));
    let mut later: Vec<(&names::Namespace, OwnedFd)> = Vec::new();
    for (kind, file) in files {
        match join_one(kind, file.as_fd()) {
            Err(error) if error.errno() == Some(Errno::EPERM) && user(&kind) => {
                later.push((kind, file));
            }
            other => other?,
        }
    }
    later
        .iter()
        .try_for_each(|(kind, file)| join_one(kind, file.as_fd()))
}

fn join_one(kind: &names::Namespace, file: BorrowedFd<'_>) -> Result<()> {
    process::setns(file, kind.flag)
        .map_err(|errno| Error::os("join the container's namespace:", kind.name, errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn errors_of_any_length_come_whole_or_cut() {
        for (length, whole) in [(10, true), (6000, true), (60_000, false)] {
            let (from, to) = nix::unistd::pipe().unwrap();
            let sentence = format!("begin {} end", "\u{1}".repeat(length));
            tell(&to, &Err(Error::new(Kind::System, &*sentence)));
            drop(to);
            let heard = hear(&from)
                .unwrap()
                .expect("a message")
                .unwrap_err()
                .to_string();
            assert!(
                heard.starts_with("begin") && heard.ends_with("end"),
                "{length}: {heard}"
            );
            assert_eq!(heard == sentence, whole, "{length}");
        }
        let (from, to) = nix::unistd::pipe().unwrap();
        tell(&to, &Ok(17));
        assert_eq!(hear(&from).unwrap().unwrap().unwrap(), 17);
        nix::unistd::write(&to, b"{\"Err").unwrap();
        drop(to);
        assert!(hear(&from).unwrap().is_none(), "it ended in the middle");
    }
}
