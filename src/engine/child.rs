//! The child: walks the plan's steps in its new namespaces and becomes the container's program.
//!
//! It runs between clone3 and execve, alone in its process, with a copy of the parent's memory. It
//! decides nothing: a step is done, or one of its alternatives, or the child says what failed and
//! ends.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;

use super::hooks::{self, HookState};
use super::masks::{self, Masks};
use super::root::{Make, Root};
use super::sync::{End, FromChild};
use super::{devices, identity, instead, labels, mounts, pivot, proc, surroundings, terminal};
use crate::cgroup;
use crate::channel::Pids;
use crate::error::{Error, Kind, Result};
use crate::plan::{Action, Degradation, Feature, Identity, Plan};
use crate::sys::process;
use crate::sys::seccomp::{FLAG_LOG, FLAG_SPEC_ALLOW};
use crate::sys::terminal::Size;

/// The exit status of a child that could not become the program.
const FAILED: i32 = 255;

/// What the child has from its parent beside the plan.
pub struct Inherited {
    /// Its end of the channel.
    pub sync: End,
    /// `create`: the exec fifo, open for both directions, so that reading it waits for `start`.
    pub fifo: Option<OwnedFd>,
    /// `create`: where failures after `start` are told.
    pub late: Option<OwnedFd>,
    /// The v1 cgroups to enter.
    pub entry: Option<cgroup::Entry>,
    /// The parent has something to do before the first step: maps, a move to the cgroup.
    pub wait: bool,
    /// The signal mask that the program gets.
    pub signals: SigSet,
    /// Namespaces that it joins by itself.
    pub joins: Vec<super::namespaces::Joined>,
    /// The runtime has no privileges: it may take a descriptor of a process only while that is dumpable.
    pub unprivileged: bool,
    /// Its time namespace is still to be made: clone(2) has no room for it.
    pub time: bool,
    /// The container's root, where its mounts are its caller's: then the parent has made it.
    pub root: Option<OwnedFd>,
    /// The process ids of the container, and the runtime's own pid_max.
    pub pids: Option<(Pids, Option<(u64, u64)>)>,
    /// Where this process's arguments are in its memory, for what stays as init.
    pub arguments: Option<(usize, usize)>,
    /// The same of its environment.
    pub environment: Option<(usize, usize)>,
}

struct Child<'a> {
    plan: &'a Plan,
    inherited: Inherited,
    root: Option<Root>,
    masks: Option<Masks>,
    /// What becomes read-only when everything is in it, with its target.
    late: Vec<(String, OwnedFd)>,
    env: Vec<String>,
    program: String,
    /// Mounts of the new namespace are shared with the host's.
    shared: bool,
    started: bool,
    /// The file mode creation mask of the runtime's caller, for hooks.
    umask: Mode,
    /// The working directory that root may not enter; the user may.
    enter_as_user: Option<String>,
    /// An exec: the container is there already, with the console of its first process.
    joined: bool,
    /// It does not die with the runtime any more.
    outlives: bool,
    /// How what a step made differs from what was asked for.
    note: Option<String>,
    /// What the container may be made again without.
    lost: Option<Feature>,
}

/// Does the plan's steps; the last one executes the program. Never returns.
pub fn run(plan: &Plan, inherited: Inherited) -> ! {
    walk_and_tell(plan, inherited, None)
}

/// The same in a process that is in the container already, whose root is given (exec): nothing is
/// left to begin with.
pub fn run_joined(plan: &Plan, inherited: Inherited, root: Root) -> ! {
    walk_and_tell(plan, inherited, Some(root))
}

fn walk_and_tell(plan: &Plan, inherited: Inherited, root: Option<Root>) -> ! {
    let joined = root.is_some();
    let mut child = Child {
        plan,
        inherited,
        root,
        masks: None,
        late: Vec::new(),
        env: plan.process.env.clone(),
        program: String::new(),
        shared: false,
        started: false,
        umask: Mode::from_bits_truncate(0o022),
        enter_as_user: None,
        joined,
        outlives: false,
        note: None,
        lost: None,
    };
    let begun = if joined { Ok(()) } else { child.begin() };
    let failure = match begun.and_then(|()| child.walk()) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    child.tell_failure(failure);
    process::exit_now(FAILED)
}

impl Child<'_> {
    fn walk(&mut self) -> Result<std::convert::Infallible> {
        let plan = self.plan;
        for (number, step) in plan.steps.iter().enumerate() {
            let lost = step.perform(plan.level, |action| {
                self.act(number, action)?;
                Ok(self.note.take())
            });
            let lost = lost.inspect_err(|error| self.lost = step.again(error))?;
            if let Some(lost) = lost {
                self.degraded(lost)?;
            }
        }
        Err(Error::new(
            Kind::System,
            "the plan ends without executing a program",
        ))
    }

    /// What comes before the first step: nothing survives the parent, and the maps are there.
    fn begin(&mut self) -> Result<()> {
        let fail = |what: &'static str| move |errno| Error::os("begin in the child:", what, errno);
        process::parent_death_signal(libc::SIGKILL).map_err(fail("set the death signal"))?;
        // What the caller ignores (a shell's background job: SIGINT) is not the container's affair.
        process::default_signals();
        if self.inherited.fifo.is_some() {
            process::signals_while_waiting();
        }
        if let Some(entry) = self.inherited.entry.take() {
            entry
                .enter()
                .map_err(fail("enter the container's cgroups"))?;
        }
        let joins = std::mem::take(&mut self.inherited.joins);
        super::namespaces::enter(&joins)?;
        drop(joins);
        if self.inherited.time {
            process::unshare(crate::sys::clone::CLONE_NEWTIME)
                .map_err(fail("make the time namespace"))?;
        }
        self.let_go()?;
        if self.inherited.wait {
            self.inherited
                .sync
                .wait()
                .map_err(fail("wait for the parent"))?;
        }
        let birth = &self.plan.birth;
        if birth.uid_map.is_empty() {
            if birth
                .joins
                .iter()
                .any(|join| join.flag == libc::CLONE_NEWUSER as u64)
            {
                // Files are made by the root of the joined user namespace, where it has one.
                match process::set_ids(0, 0) {
                    Ok(()) | Err(Errno::EINVAL) => {}
                    Err(errno) => return Err(fail("become root of the user namespace")(errno)),
                }
                process::parent_death_signal(libc::SIGKILL)
                    .map_err(fail("set the death signal"))?;
            }
            // Nobody who shares a pid namespace with the container looks at this process before it
            // is what it will be (CVE-2016-9962).
            // A sandbox's process is its caller's, as are its files in /proc.
            process::dumpable(self.plan.sandbox).map_err(fail("hide from ptrace"))?;
            return Ok(());
        }
        // Files are made by the container's root, where the maps have one.
        let has_root = |map: &[crate::plan::IdMap]| map.iter().any(|line| line.inside == 0);
        if has_root(&birth.uid_map) && has_root(&birth.gid_map) {
            process::set_ids(0, 0).map_err(fail("become root of the user namespace"))?;
            // The change of ids made the process undumpable, and that is left so: who made the user
            // namespace has all rights over what is in it, and the root of another container, without any
            // right to trace others, has the same id as the machine's root (CVE-2016-9962). Only a runtime
            // without privileges, and the hooks that it runs, could not get at the process then.
            if self.inherited.unprivileged && birth.joins.is_empty() {
                process::dumpable(true).map_err(fail("own its files in /proc"))?;
            }
            // It also took the death signal away.
            process::parent_death_signal(libc::SIGKILL).map_err(fail("set the death signal"))?;
        }
        Ok(())
    }

    /// Closes the copies of the parent's descriptors: directories of the host have no business in a
    /// process that the container may look at (CVE-2024-21626).
    fn let_go(&self) -> Result<()> {
        use std::os::fd::AsRawFd;
        let own = &self.inherited;
        let mut keep: Vec<i32> = vec![own.sync.fd().as_raw_fd()];
        let others = own.fifo.iter().chain(&own.late).chain(&own.root);
        keep.extend(others.map(AsRawFd::as_raw_fd));
        let first = 3 + self.plan.preserve_fds;
        crate::sys::fs::close_from(first, keep)
            .map_err(|errno| Error::os("close", "the parent's descriptors", errno))
    }

    fn degraded(&self, degradation: Degradation) -> Result<()> {
        self.tell(&FromChild::Degraded(degradation))
    }

    fn tell(&self, message: &FromChild) -> Result<()> {
        self.inherited
            .sync
            .tell(message)
            .map_err(|errno| Error::os("tell", "the runtime that made this process", errno))
    }

    fn tell_failure(&self, failure: Error) {
        match (&self.inherited.late, self.started) {
            (Some(late), true) => {
                if let Ok(body) = serde_json::to_vec(&failure) {
                    let _ = nix::unistd::write(late, &body);
                }
            }
            _ => {
                let said = match self.lost {
                    Some(feature) => FromChild::Lost(feature, failure),
                    None => FromChild::Failed(failure),
                };
                let _ = self.inherited.sync.tell(&said);
            }
        }
    }

    fn root(&self) -> Result<&Root> {
        // The planner puts OpenRoot before every step that needs it.
        self.root
            .as_ref()
            .ok_or_else(|| Error::new(Kind::System, "the root is not open yet"))
    }

    fn act(&mut self, number: usize, action: &Action) -> Result<()> {
        match action {
            Action::PidRange => match self.inherited.pids {
                Some((range, outside)) => super::pids::begin(range, outside),
                // All were used, and that was told.
                None => Ok(()),
            },
            Action::NewSession
            | Action::SessionKeyring { .. }
            | Action::CgroupNamespace
            | Action::TimeNamespace { .. }
            | Action::IpcNamespace
            | Action::NetworkNamespace
            | Action::LoopbackUp
            | Action::OomScoreAdj { .. }
            | Action::Hostname { .. }
            | Action::Domainname { .. }
            | Action::Sysctl { .. } => surroundings::act(action, &self.plan.birth),
            Action::RootPropagation { .. }
            | Action::OpenRoot { .. }
            | Action::Mount(_)
            | Action::MountCgroup { .. }
            | Action::BindSys { .. }
            | Action::BindProc { .. }
            | Action::ShmDirectory { .. }
            | Action::Device(_)
            | Action::BindDevice { .. }
            | Action::DevLinks { .. }
            | Action::Terminal { .. }
            | Action::ReadonlyMounts
            | Action::MoveRoot
            | Action::PivotRoot
            | Action::ChangeRoot
            | Action::FinalPropagation { .. }
            | Action::CreateCwd { .. }
            | Action::ReadonlyRoot
            | Action::NodevRoot
            | Action::ReadonlyPath { .. }
            | Action::FileLabel { .. }
            | Action::MaskPath { .. } => self.files(number, action),
            Action::AllCpus
            | Action::Scheduler(_)
            | Action::IoPriority { .. }
            | Action::MemoryPolicy(_)
            | Action::Personality { .. } => super::schedule::act(action),
            Action::NetDevices { .. } => super::net_devices::ask(&self.inherited.sync),
            Action::ExecLabel { kind, label } => labels::HostProc::open()?.exec_label(*kind, label),
            Action::HostHooks => {
                self.tell(&FromChild::HostHooks)?;
                self.wait("the hooks of the host")
            }
            Action::Hooks { stage, hooks } => self.hooks(stage, hooks),
            _ => self.become_program(action),
        }
    }

    fn wait(&self, what: &str) -> Result<()> {
        self.inherited
            .sync
            .wait()
            .map_err(|errno| Error::os("wait for", what, errno))
    }

    /// The source of a step from the parent, who may open it, or as only the parent can open it.
    fn ask_for_source(&self, step: usize, plain: bool) -> Result<Vec<OwnedFd>> {
        let [mounts, users] = super::sources::namespaces()?;
        let sync = &self.inherited.sync;
        let ask = FromChild::Source { step, plain };
        sync.tell_with(&ask, &[mounts.as_fd(), users.as_fd()])
            .and_then(|()| sync.wait_with())
            .map_err(|errno| Error::os("ask for", "the source of a mount", errno))
    }

    /// Steps on mounts and files.
    fn files(&mut self, number: usize, action: &Action) -> Result<()> {
        match action {
            Action::RootPropagation { flags } => {
                self.shared = flags & libc::MS_SHARED != 0;
                let done = pivot::propagation(*flags);
                match self.plan.birth.clone_flags & libc::CLONE_NEWUSER as u64 {
                    0 => done,
                    _ => done.map_err(|error| error.context("in the new user namespace")),
                }
            }
            Action::OpenRoot { path } => {
                self.root = Some(match self.inherited.root.take() {
                    Some(root) => Root::new(root),
                    None => {
                        let ask = |plain| self.ask_for_source(number, plain);
                        pivot::open_root(path, self.shared, &ask)?
                    }
                });
                // Modes of device nodes and mount points are those that are asked for.
                self.umask = nix::sys::stat::umask(Mode::empty());
                Ok(())
            }
            Action::Mount(mount) => {
                let made = mounts::mount(self.root()?, mount, &|plain| {
                    self.ask_for_source(number, plain)
                })?;
                self.late
                    .extend(made.map(|made| (mount.target.clone(), made)));
                Ok(())
            }
            Action::MountCgroup {
                mount,
                view,
                or_bind,
            } => super::cgroup_mount::mount(self.root()?, mount, view, *or_bind),
            Action::Device(device) => devices::make(self.root()?, device),
            Action::BindDevice { device, exact } => {
                self.note = devices::bind(self.root()?, device, *exact)?;
                Ok(())
            }
            Action::DevLinks { links } => {
                let root = self.root()?;
                links
                    .iter()
                    .try_for_each(|(path, target)| devices::link(root, path, target))
            }
            Action::Terminal { size } => self.terminal(*size),
            Action::ReadonlyMounts => self.late.drain(..).try_for_each(|(target, made)| {
                mounts::make_readonly(&made)
                    .map_err(|errno| Error::os("mounts: make read-only", target, errno))
            }),
            Action::MoveRoot => pivot::move_over(self.root()?, &self.plan.rootfs),
            Action::ChangeRoot => pivot::change(self.root()?),
            Action::PivotRoot => pivot::pivot(self.root()?, self.shared),
            Action::FinalPropagation { flags } => pivot::propagation(*flags),
            Action::CreateCwd { path } => self
                .root()?
                .open_or_make(path, Make::Directory)
                .map(drop)
                .map_err(|errno| Error::os("process.cwd: make", path, errno)),
            Action::ReadonlyRoot => pivot::readonly_root(self.root()?),
            Action::NodevRoot => pivot::nodev_root(self.root()?),
            Action::ReadonlyPath { path } => masks::readonly_path(self.root()?, path),
            Action::FileLabel { path, label } => labels::file(self.root()?, path, label),
            Action::MaskPath { path, label } => self.hide(path, label.as_deref()),
            Action::BindProc { mount } => instead::proc(self.root()?, mount),
            Action::ShmDirectory { mount } => instead::shm(self.root()?, mount),
            Action::BindSys { mount, hidden } => {
                instead::tree(self.root()?, mount)?;
                hidden.iter().try_for_each(|path| self.hide(path, None))
            }
            _ => Ok(()),
        }
    }

    /// While the host's /proc is at hand, and before anything of the container can run.
    fn terminal(&self, size: Option<(u16, u16)>) -> Result<()> {
        let pair = terminal::allocate(self.root()?)?;
        if let Some((rows, columns)) = size {
            terminal::resize(pair.master.as_fd(), Size { rows, columns })?;
        }
        if !self.joined {
            terminal::mount_console(self.root()?, pair.slave.as_fd())?;
        }
        self.inherited
            .sync
            .tell_with(&FromChild::Terminal, &[pair.master.as_fd()])
            .map_err(|errno| Error::os("process.terminal: hand over", "the terminal", errno))?;
        self.wait("the terminal to be handed over")?;
        terminal::attach(pair.slave)
    }

    fn hide(&mut self, path: &str, label: Option<&str>) -> Result<()> {
        if self.masks.is_none() {
            self.masks = Some(Masks::prepare(label, self.shared)?);
        }
        match (&mut self.masks, &self.root) {
            (Some(masks), Some(root)) => masks.hide(root, path),
            _ => Ok(()),
        }
    }

    /// Steps from the finished surroundings to the program.
    fn become_program(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::Umask { mask } => {
                nix::sys::stat::umask(Mode::from_bits_truncate(*mask));
                Ok(())
            }
            Action::FindProgram => self.find_program(),
            Action::Rlimit {
                name,
                resource,
                soft,
                hard,
            } => process::prlimit(0, *resource, *soft, *hard).map_err(|errno| {
                Error::os(
                    "process.rlimits: set",
                    format!("{name} to {soft}:{hard}"),
                    errno,
                )
            }),
            Action::ClampedRlimit {
                name,
                resource,
                soft,
                hard,
            } => surroundings::clamp(name, *resource, *soft, *hard),
            Action::NoNewPrivs => process::no_new_privs()
                .map_err(|errno| Error::os("process.noNewPrivileges: set", "it", errno)),
            Action::Landlock(landlock) => super::confine::enter(landlock),
            Action::Supplement => super::confine::filter(self.plan.supplement.as_ref()),
            Action::Seccomp => self.seccomp(0),
            Action::SeccompWithoutFlags => self.seccomp(FLAG_LOG | FLAG_SPEC_ALLOW),
            Action::Capabilities { asked } => identity::look_for(*asked),
            Action::Identity(identity) => self.identity(identity),
            Action::Chdir { path } => match identity::enter(path) {
                Err(error) if error.errno() == Some(Errno::EACCES) => {
                    self.enter_as_user = Some(path.clone());
                    Ok(())
                }
                other => other,
            },
            Action::CloseFrom { first } => {
                // Nothing of the file system, nor of /proc/self, is needed from here on: while it waits
                // for `start`, nobody with the same ids looks into this process (the exec ends that).
                process::dumpable(false)
                    .map_err(|errno| Error::os("hide", "the waiting process", errno))?;
                if self.plan.has_init() {
                    // By its name `start` and `run` know init, which executes nothing: see never_executed.
                    // Here, because the filter may deny prctl(2).
                    process::set_name(crate::state::INIT);
                }
                self.root = None;
                self.masks = None;
                crate::sys::fs::cloexec_from(*first)
                    .map_err(|errno| Error::os("close at exec", "all descriptors", errno))
            }
            Action::AwaitStart => self.await_start(),
            Action::Exec => self.exec(),
            other => Err(Error::new(
                Kind::System,
                format!("no way to do the step {other:?}"),
            )),
        }
    }

    fn hooks(&mut self, stage: &str, hooks: &[oci_spec::runtime::Hook]) -> Result<()> {
        let plan = self.plan;
        let pivoted = stage == "startContainer";
        let state = HookState {
            oci_version: &plan.oci_version,
            id: &plan.id,
            status: if pivoted { "created" } else { "creating" },
            pid: if pivoted {
                std::process::id() as i32
            } else {
                proc::own_pid_outside()?
            },
            bundle: &plan.bundle,
            annotations: &plan.annotations,
        };
        if pivoted {
            return hooks::run_all(stage, hooks, &state, Path::new("/"));
        }
        // It works on the host's files, and this process's mask is that of making device nodes.
        let mask = nix::sys::stat::umask(self.umask);
        let result = hooks::run_all(stage, hooks, &state, &plan.bundle);
        nix::sys::stat::umask(mask);
        result?;
        self.tell(&FromChild::OwnHooks)?;
        self.wait("what comes after the hooks")
    }

    fn find_program(&mut self) -> Result<()> {
        let has_home = self.env.iter().any(|pair| {
            pair.strip_prefix("HOME=")
                .is_some_and(|home| !home.is_empty())
        });
        if !has_home {
            let home = identity::home(self.root()?, self.plan.uid());
            self.env.retain(|pair| !pair.starts_with("HOME="));
            self.env.push(format!("HOME={home}"));
        }
        let process = &self.plan.process;
        let name = process.args.first().map_or("", String::as_str);
        self.program = identity::find_program(name, &self.env, &process.cwd)?;
        Ok(())
    }

    fn identity(&mut self, identity: &Identity) -> Result<()> {
        let for_init = match self.plan.has_init() {
            true => super::init::KILL,
            false => 0,
        };
        identity::assume(identity, for_init)?;
        // The kernel made it what fs.suid_dumpable says, 0 on most machines: so it is no failure where a
        // filter that is there already denies it.
        let _ = process::dumpable(false);
        match self.enter_as_user.take() {
            Some(path) => identity::enter(&path),
            None => Ok(()),
        }
    }

    fn seccomp(&mut self, without: u32) -> Result<()> {
        let Some(program) = &self.plan.seccomp else {
            return Ok(());
        };
        // The filter may deny prctl(2). From here on an orphan is ended by the channel that is closed.
        self.outlive()?;
        if program.listener_path.is_some() && self.inherited.unprivileged {
            // It stays so until the exec: the filter may deny prctl(2) afterwards.
            process::dumpable(true)
                .map_err(|errno| Error::os("hand over", "the seccomp listener", errno))?;
        }
        let listener = super::filter::load(program, without)?;
        if let Some(listener) = listener {
            use std::os::fd::AsRawFd;
            self.tell(&FromChild::NotifyFd(listener.as_raw_fd()))?;
            self.wait("the seccomp listener to be handed over")?;
        }
        Ok(())
    }

    fn outlive(&mut self) -> Result<()> {
        if !self.outlives {
            process::parent_death_signal(0)
                .map_err(|errno| Error::os("outlive", "the runtime", errno))?;
            self.outlives = true;
        }
        Ok(())
    }

    fn await_start(&mut self) -> Result<()> {
        let fail = |what| move |errno| Error::os("wait for the start:", what, errno);
        self.outlive()?;
        let Some(fifo) = &self.inherited.fifo else {
            self.started = true;
            return Ok(());
        };
        self.tell(&FromChild::Ready)?;
        let mut byte = [0u8; 1];
        loop {
            match nix::unistd::read(fifo, &mut byte) {
                Err(Errno::EINTR) => {}
                Ok(1) => break,
                Ok(_) => return Err(fail("exec.fifo")(Errno::EPIPE)),
                Err(errno) => return Err(fail("exec.fifo")(errno)),
            }
        }
        self.started = true;
        Ok(())
    }

    fn exec(&mut self) -> Result<()> {
        let (env, own) = (&self.env, &self.inherited);
        match self.plan.has_init() {
            true => super::init::run(self.plan, env, &self.program, own),
            false => super::execute::program(self.plan, env, &self.program, &own.signals),
        }
    }
}
