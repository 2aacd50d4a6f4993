//! The parent's side of making a container: record, cgroup, birth, hooks; and taking all of it back
//! when something fails.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::unistd::Pid;

use super::hooks::{self, HookState};
use super::inherit::inherit;
use super::namespaces;
use super::net_devices::Moving;
use super::relay::Relay;
use super::sync::{End, FromChild};
use super::terminal::{Destination, Receiver};
use super::{Request, channels, lifecycle, pid_file, pids, rdt, shared_mounts};
use crate::cgroup::{Cgroup, Placed};
use crate::error::{Error, Kind, Result};
use crate::log;
use crate::plan::degrade::{self, Stage};
use crate::plan::{Asked, Feature, Plan};
use crate::state::{Channels, Dir, Mounted, Phase, Record, Resctrl, start_time};
use crate::sys::clone::single_threaded;
use crate::sys::process;

/// Whether the program waits for `start`.
pub enum Mode {
    /// `create`: it waits.
    Create,
    /// `run`: it runs at once, with this signal mask.
    Run(SigSet),
}

/// A container that was made.
pub struct Made {
    /// The first process.
    pub pid: Pid,
    /// When it started: the field `pid_start` of the record.
    pub start: u64,
    /// The relay of its terminal, in the foreground.
    pub relay: Option<Relay>,
    plan: Plan,
}

impl Made {
    /// Runs the hooks of the stage poststart.
    ///
    /// # Errors
    /// Those of the hooks.
    pub fn poststart(&self) -> Result<()> {
        run_hooks(&self.plan, "poststart", "running", self.pid)
    }
}

/// Makes a container.
///
/// # Errors
/// A sentence with the step, the object and the errno; nothing stays behind then.
pub fn make(request: &Request, mode: Mode) -> Result<Made> {
    if !single_threaded() {
        return Err(Error::new(
            Kind::System,
            "a process with several threads cannot make containers",
        ));
    }
    if nix::unistd::geteuid().is_root() {
        // Every process that is forked from here on is so from its first moment: see `Child::begin`.
        process::dumpable(false)
            .map_err(|errno| Error::os("hide from ptrace:", "this process", errno))?;
    }
    let mut asked = Asked {
        id: request.id.clone(),
        no_new_keyring: request.no_new_keyring,
        preserve_fds: request.preserve_fds,
        listen_fds: request.listen_fds,
        no_pivot: request.no_pivot,
        rootless: request.rootless,
        systemd_cgroup: request.systemd_cgroup,
        degrade: request.degrade,
        without: Vec::new(),
    };
    check_preserved(request.listen_fds, request.preserve_fds)?;
    // Nothing that the caller left open reaches a hook or the container, but what is asked for.
    crate::sys::fs::cloexec_from(3)
        .map_err(|errno| Error::os("close at exec", "inherited descriptors", errno))?;
    let (loaded, mut host, mut plan) = super::plan_on(&request.bundle, &asked)?;
    if loaded.spec.process().is_none() && matches!(mode, Mode::Run(_)) {
        return Err(super::no_process());
    }
    super::tell(&loaded, &plan);
    let detached = request.detach || matches!(mode, Mode::Create);
    let socket = request.console_socket.as_deref();
    let mut terminal = Destination::choose(plan.terminal(), detached, socket)?;
    let mut pidfd_socket = match &request.pidfd_socket {
        Some(path) => Some(Receiver::connect("pidfd-socket", path)?),
        None => None,
    };
    let mut told = Vec::new();
    loop {
        let dir = request.store.create(&request.id)?;
        let mut making = Making {
            plan: &plan,
            cgroup: None,
            mounted: None,
            child: None,
            begun: false,
            channel: None,
            waits: false,
            stage: None,
            hooked: false,
            lost: None,
            seen: false,
            terminal,
            relay: None,
            pidfd_socket,
            net_devices: None,
            resctrl: None,
            joined: None,
            told,
        };
        let failed = match making.all(request, &dir, &loaded.text, &mode) {
            Ok((pid, start)) => {
                return Ok(Made {
                    pid,
                    start,
                    relay: making.relay.take(),
                    plan,
                });
            }
            Err(error) => error,
        };
        making.undo(&dir);
        if let Err(second) = dir.remove() {
            log::warning(&format!("after a failure: {second}"));
        }
        let (stage, lost) = (making.stage, making.lost);
        let next = again(failed, (stage, lost), &plan, &mut asked, |asked| {
            host.landlock = crate::host::landlock();
            crate::plan::build(&loaded, &host, asked)
        });
        if next.is_err() {
            // Without the lock: see delete.
            making.poststop();
        }
        (terminal, pidfd_socket, told) = (making.terminal, making.pidfd_socket, making.told);
        plan = next?;
    }
}

/// The plan without what a birth that failed has shown not to be there: at a stage, or as the child says.
///
/// # Errors
/// The failure, and those before it, where nothing may be given up for it.
fn again(
    failed: Error,
    (stage, lost): (Option<Stage>, Option<Feature>),
    plan: &Plan,
    asked: &mut Asked,
    replan: impl FnOnce(&Asked) -> Result<Plan>,
) -> Result<Plan> {
    let root = nix::unistd::geteuid().is_root();
    let landlock = crate::host::landlock();
    let lost = match (stage, lost) {
        (_, Some(feature)) => degrade::given_up(feature, failed.clone(), plan.level, landlock),
        (Some(stage), None) => degrade::reborn(stage, failed.clone(), plan, root, landlock),
        (None, None) => Err(failed.clone()),
    };
    let lost = match lost {
        // Each only once: giving it up has not helped.
        Ok(lost)
            if asked
                .without
                .iter()
                .any(|known| known.feature == lost.feature) =>
        {
            Err(failed)
        }
        other => other,
    };
    let next = lost.and_then(|lost| {
        log::debug(|| {
            format!(
                "tried again without what this host does not give: {}",
                lost.reason
            )
        });
        asked.without.push(lost);
        replan(asked)
    });
    next.map_err(|error| {
        let before = asked.without.iter();
        before.fold(error, |error, lost| {
            error.also(&format!("before that: {}", lost.reason))
        })
    })
}

pub(super) fn check_preserved(listen: u32, count: u32) -> Result<()> {
    for fd in (3..=i32::MAX).take(listen as usize + count as usize) {
        // What isorun opened itself, such as the log, has close-on-exec, and what was handed to it not.
        if !crate::sys::fs::is_inherited(fd) {
            return Err(Error::new(
                Kind::Usage,
                match i64::from(fd) < 3 + i64::from(listen) {
                    true => format!("LISTEN_FDS={listen}: descriptor {fd} was not handed over"),
                    false => {
                        format!("--preserve-fds {count}: descriptor {fd} was not handed over")
                    }
                },
            ));
        }
    }
    Ok(())
}

/// What was made so far, for taking it back.
pub(super) struct Making<'a> {
    pub(super) plan: &'a Plan,
    pub(super) cgroup: Option<Placed>,
    /// What is mounted for it in this mount namespace.
    mounted: Option<Mounted>,
    pub(super) child: Option<(Pid, OwnedFd)>,
    /// There was a first process: poststop hooks run after a failure, whatever failed, as under runc.
    begun: bool,
    /// The parent's end.
    pub(super) channel: Option<End>,
    /// The child waits for the parent before its first step.
    pub(super) waits: bool,
    /// Where the birth is, as long as nothing has happened that others can see.
    pub(super) stage: Option<Stage>,
    /// What the child has found not to be there, as long as that is so.
    lost: Option<Feature>,
    /// Something of it was seen by others: a failure is final.
    seen: bool,
    /// Hooks of the container have run, which may have deleted it.
    hooked: bool,
    /// Where the terminal goes.
    terminal: Destination,
    /// The relay of a terminal that stays here.
    relay: Option<Relay>,
    /// Who is sent a pidfd of the child.
    pidfd_socket: Option<Receiver>,
    /// Devices of the host that were moved to the container.
    net_devices: Option<Moving>,
    /// Its groups of resctrl.
    resctrl: Option<Resctrl>,
    /// Its tensor channels.
    joined: Option<Channels>,
    /// The warnings of what was lost, by this attempt and those before it.
    pub(super) told: Vec<String>,
}

impl Making<'_> {
    fn all(
        &mut self,
        request: &Request,
        dir: &Dir,
        config: &[u8],
        mode: &Mode,
    ) -> Result<(Pid, u64)> {
        let plan = self.plan;
        let mut record = Record::new(&plan.id, &plan.bundle, &plan.rootfs, &plan.oci_version)?;
        record.annotations = plan.annotations.clone();
        record.poststart = plan.hooks("poststart").to_vec();
        record.poststop = plan.hooks("poststop").to_vec();
        record.no_new_keyring = request.no_new_keyring;
        record.no_process = plan.process.args.is_empty();
        record.degrade = plan.level;
        // Written before the cgroup is made: whoever kills this process in between leaves nothing that
        // `delete --force` does not find.
        let planned = Placed::planned(&plan.cgroup);
        record.cgroup = Some(to_json(&planned)?);
        let detached = match plan.shares_mounts {
            true => Some(shared_mounts::prepare(&plan.rootfs)?),
            false => None,
        };
        let (detached, mounted) = detached.unzip();
        record.mounted = mounted;
        record.channels = channels::recorded(plan);
        dir.save(&record)?;
        dir.keep_origin()?;
        // Before the clone, whose copy of the mounts has them then.
        self.joined.clone_from(&record.channels);
        let (lost, pids) = channels::join(plan, dir)?;
        if let Some(channels) = &mut record.channels {
            channels.pids = pids;
        }
        // Opened before anything is made: most wrong paths end here.
        let joins = namespaces::open(plan)?;
        let rdt = plan.rdt.as_ref().map(rdt::prepare).transpose()?;
        self.stage = Some(Stage::Cgroup);
        let mut cgroup = match plan.cgroup.scope {
            // systemd makes it once the child is there.
            Some(_) => Cgroup::pending(&plan.cgroup)?,
            None => Cgroup::create(&plan.cgroup)?,
        };
        self.cgroup = Some(cgroup.placed().clone());

        let (parent, mut inherited) = inherit(plan, dir, mode, &cgroup)?;
        self.mounted = record.mounted.clone();
        // Until the child is ready.
        let outside = pids.and_then(|_| pids::Outside::hold());
        inherited.pids = pids.map(|range| (range, outside.as_ref().and_then(|it| it.identity())));
        inherited.root = detached.map(shared_mounts::Detached::attach).transpose()?;
        if plan.sandbox {
            inherited.root = Some(super::root::open_dir(Path::new("/"))?);
        }
        self.channel = Some(parent);
        self.stage = Some(Stage::Clone);
        let pid = self.birth(&mut cgroup, inherited, joins)?;
        self.begun = true;
        record.cgroup = Some(to_json(cgroup.placed())?);
        record.pid = Some(pid.as_raw());
        record.pid_start = start_time(pid.as_raw())?;
        dir.save(&record)?;
        self.stage = self.stage.map(|_| Stage::Maps);
        self.map_ids(pid)?;
        // What comes now is seen by others, if only in systemd, resctrl, or at the end of a socket.
        self.stage = None;
        self.seen = plan.cgroup.scope.is_some() || rdt.is_some() || self.pidfd_socket.is_some();
        for lost in plan.degradations.iter().chain(&lost) {
            self.report(lost, &mut record)?;
        }
        if let (Some(receiver), Some((_, pidfd))) = (self.pidfd_socket.take(), &self.child) {
            // runc's word for a container's first process.
            receiver.send("standard", pidfd.as_fd())?;
        }
        if let Some(rdt) = rdt {
            // Recorded before it is made, as the cgroup is.
            rdt.admit(pid.as_raw(), |groups| {
                record.resctrl = Some(groups.clone());
                dir.save(&record)?;
                self.resctrl = Some(groups.clone());
                Ok(())
            })?;
        }
        self.settle(pid, &mut record)?;
        // The child is at work meanwhile: this costs no time.
        dir.keep_config(config)?;
        self.converse(&mut record, dir, mode)?;
        if self.hooked {
            // By a hook that ran on while the child went on.
            self.not_deleted(dir)?;
        }
        self.channel = None;
        record.phase = Phase::Made;
        dir.save(&record)?;
        if let Some(path) = &request.pid_file {
            pid_file::write(path, pid)?;
        }
        // The container lives on its own from here; nothing is to be taken back.
        self.child = None;
        Ok((pid, record.pid_start))
    }

    /// Listens to the child until it is ready (`create`) or has executed its program (`run`).
    fn converse(&mut self, record: &mut Record, dir: &Dir, mode: &Mode) -> Result<()> {
        let fail = |errno| Error::os("hear", "the container's first process", errno);
        loop {
            let heard = match &self.channel {
                Some(channel) => channel.hear().map_err(fail)?,
                None => None,
            };
            let (message, fds) = heard.unzip();
            match message {
                Some(FromChild::Degraded(degradation)) => {
                    if degradation.row == Feature::CudaIpc
                        && let Some(channels) = &mut record.channels
                    {
                        // It has not got them: none of its processes is outside of them either.
                        channels.pids = None;
                    }
                    self.report(&degradation, record)?;
                }
                Some(FromChild::Source { step, plain }) => {
                    let namespaces = fds.unwrap_or_default();
                    let asked = (step, plain);
                    let (opened, lost) = super::sources::provide(self.plan, asked, &namespaces)?;
                    if let Some(lost) = lost {
                        self.report(&lost, record)?;
                    }
                    self.answer(&opened)?;
                }
                Some(FromChild::Terminal) => {
                    self.seen = true;
                    self.relay = self.terminal.take(fds.unwrap_or_default())?;
                    self.go()?;
                }
                Some(FromChild::NetDevices) => {
                    self.seen = true;
                    self.net_devices(fds.unwrap_or_default())?;
                    self.go()?;
                }
                Some(FromChild::HostHooks) => {
                    self.seen = true;
                    self.host_hooks()?;
                    self.after_hooks(dir)?;
                }
                Some(FromChild::OwnHooks) => self.after_hooks(dir)?,
                Some(FromChild::NotifyFd(number)) => {
                    self.listener(number)?;
                    self.go()?;
                }
                Some(FromChild::Ready) => return Ok(()),
                // Said on another pair only.
                Some(FromChild::Born(_)) => {}
                Some(FromChild::Failed(error)) if error.errno() == Some(Errno::ENOMEM) => {
                    return Err(error.remedy(
                        "linux.resources.memory.limit may be too low to make the container",
                    ));
                }
                Some(FromChild::Failed(error)) => return Err(error),
                Some(FromChild::Lost(feature, error)) => {
                    self.lost = Some(feature).filter(|_| !self.seen);
                    return Err(match self.seen {
                        true => error.also(
                            "too late to make the container again without it: systemd, resctrl or the \
                             pidfd socket has seen it",
                        ),
                        false => error,
                    });
                }
                None => return self.silent(mode),
            }
        }
    }

    pub(super) fn go(&self) -> Result<()> {
        self.answer(&[])
    }

    /// Lets the child go on, with these descriptors.
    fn answer(&self, fds: &[OwnedFd]) -> Result<()> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match &self.channel {
            Some(channel) => channel.go_with(&fds).map_err(|errno| match errno {
                Errno::EPIPE => ended("the container's first process ended before it was ready"),
                errno => Error::os("tell the child", "to go on", errno),
            }),
            None => Ok(()),
        }
    }

    fn net_devices(&mut self, from_child: Vec<OwnedFd>) -> Result<()> {
        let devices = self.plan.net_devices();
        // Kept before the first is moved: a failure takes them back.
        self.net_devices
            .insert(Moving::prepare(from_child)?)
            .all(devices)
    }

    fn pid(&self) -> Pid {
        self.child
            .as_ref()
            .map_or(Pid::from_raw(0), |(pid, _)| *pid)
    }

    fn host_hooks(&mut self) -> Result<()> {
        let pidfd = self.child.as_ref().map(|(_, pidfd)| pidfd.as_fd());
        for stage in ["prestart", "createRuntime"] {
            let state = hook_state(self.plan, "creating", self.pid());
            let hooks = self.plan.hooks(stage);
            hooks::run_all_for(stage, hooks, &state, &self.plan.bundle, pidfd)?;
        }
        Ok(())
    }

    /// Lets the child go on, unless one of the container's hooks has deleted it.
    fn after_hooks(&mut self, dir: &Dir) -> Result<()> {
        self.hooked = true;
        self.not_deleted(dir)?;
        self.go()
    }

    fn not_deleted(&self, dir: &Dir) -> Result<()> {
        match dir.is_deleted() {
            true => Err(Error::new(
                Kind::State,
                format!(
                    "container {:?} was deleted by one of its own hooks",
                    self.plan.id
                ),
            )),
            false => Ok(()),
        }
    }

    fn listener(&self, number: i32) -> Result<()> {
        let Some((pid, pidfd)) = &self.child else {
            return Ok(());
        };
        let Some(program) = &self.plan.seccomp else {
            return Ok(());
        };
        let listener = process::pidfd_getfd(pidfd.as_fd(), number)
            .map_err(|errno| Error::os("take", "the seccomp listener of the child", errno))?;
        let Some(path) = &program.listener_path else {
            return Err(Error::spec(
                "linux.seccomp.listenerPath",
                "a filter that notifies needs it",
            ));
        };
        let state = hook_state(self.plan, "creating", *pid);
        let metadata = program.listener_metadata.as_deref();
        use std::os::fd::AsRawFd;
        super::filter::hand_over(
            Path::new(path),
            metadata,
            &state,
            pid.as_raw(),
            listener.as_raw_fd(),
        )
    }

    /// The child's end is closed: it became the program (`run`), or died without a word.
    fn silent(&self, mode: &Mode) -> Result<()> {
        let sentence = match mode {
            Mode::Run(_) if crate::state::never_executed(self.pid().as_raw()) => {
                "the container's first process ended before it executed the program"
            }
            Mode::Run(_) => return Ok(()),
            Mode::Create => "the container's first process ended before it was ready",
        };
        Err(ended(sentence))
    }

    /// Takes back what was made. What fails here is told, but does not hide the first failure.
    fn undo(&mut self, dir: &Dir) {
        if let Some((pid, _)) = self.child.take() {
            // By its number, which works everywhere: it is this process's own and not reaped yet.
            let _ = process::kill(pid.as_raw(), libc::SIGKILL);
            let _ = nix::sys::wait::waitpid(pid, None);
        }
        if let Some(mounted) = self.mounted.take() {
            shared_mounts::take_away(&mounted)
                .unwrap_or_else(|error| log::warning(&format!("after a failure: {error}")));
        }
        if let Some(groups) = self.resctrl.take() {
            rdt::remove(&groups)
                .unwrap_or_else(|error| log::warning(&format!("after a failure: {error}")));
        }
        if let Some(joined) = self.joined.take() {
            channels::leave(Some(&joined), dir.id(), dir.path())
                .unwrap_or_else(|error| log::warning(&format!("after a failure: {error}")));
        }
        // Their namespace is still there: it has a socket open in it.
        if let Some(moving) = self.net_devices.take() {
            moving.back();
        }
        if let Some(placed) = self.cgroup.take() {
            lifecycle::remove_cgroup(&placed)
                .unwrap_or_else(|error| log::warning(&format!("after a failure: {error}")));
        }
    }

    fn poststop(&self) {
        if self.begun {
            let nobody = Pid::from_raw(0);
            let state = hook_state(self.plan, "stopped", nobody);
            lifecycle::run_poststop(self.plan.hooks("poststop"), &state);
        }
    }
}

fn ended(sentence: &str) -> Error {
    Error::new(Kind::System, sentence)
        .remedy("it may have been killed, by a memory limit for one: see the kernel's log")
}

fn to_json(placed: &Placed) -> Result<serde_json::Value> {
    serde_json::to_value(placed)
        .map_err(|error| Error::new(Kind::System, format!("record the cgroup: {error}")))
}

fn hook_state<'a>(plan: &'a Plan, status: &'a str, pid: Pid) -> HookState<'a> {
    HookState {
        oci_version: &plan.oci_version,
        id: &plan.id,
        status,
        pid: pid.as_raw(),
        bundle: &plan.bundle,
        annotations: &plan.annotations,
    }
}

fn run_hooks(plan: &Plan, stage: &str, status: &str, pid: Pid) -> Result<()> {
    hooks::run_all(
        stage,
        plan.hooks(stage),
        &hook_state(plan, status, pid),
        &plan.bundle,
    )
}
