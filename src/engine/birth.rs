//! The birth of a container's first process: the clone into its cgroup and namespaces, and what the
//! parent settles before the child goes on.
//!
//! Until the child goes on nothing has happened that others could see, so that a birth which fails can
//! be tried again as a whole, without what the host does not give ([`crate::plan::degrade::reborn`]).

use nix::errno::Errno;
use nix::unistd::Pid;

use super::child::{self, Inherited};
use super::make::Making;
use super::namespaces::{self, Joined};
use super::{maps, proc, sync};
use crate::cgroup::Cgroup;
use crate::error::{Error, Kind, Result};
use crate::log;
use crate::plan::degrade::Stage;
use crate::plan::{Action, Degradation};
use crate::state::Record;
use crate::sys::clone::{Born, CLONE_NEWTIME, clone_old, clone3};
use crate::sys::process;

impl Making<'_> {
    /// Clones the child: into the v2 side of its cgroup where the kernel does that (it enters the v1
    /// side by itself), else beside it, to be moved there before it goes on.
    pub(super) fn birth(
        &mut self,
        cgroup: &mut Cgroup,
        mut inherited: Inherited,
        joins: Vec<Joined>,
    ) -> Result<Pid> {
        let between = self.plan.birth.between && !joins.is_empty();
        let flags = match between {
            true => 0,
            false => self.plan.birth.clone_flags,
        };
        let pair = || sync::pair().map_err(|errno| Error::os("make", "a socket pair", errno));
        let (up, down) = between.then(pair).transpose()?.unzip();
        let mut apart = Vec::new();
        match between {
            true => apart = joins,
            false => inherited.joins = joins,
        }
        let mut born = match self.plan.cgroup.scope {
            // It is not there yet: the parent sees to that while the child waits.
            Some(_) => Err(Errno::ENOSYS),
            None => clone3(flags, cgroup.v2_fd()),
        };
        let into = cgroup.v2_fd().is_some();
        let mut moved = false;
        let retry = |errno: Errno| errno == Errno::ENOSYS || into && refuses_cgroup(errno);
        if let Err(errno) = &born
            && let errno = *errno
            && (retry(errno) || errno == Errno::EPERM)
        {
            // Moved as a whole by the parent; the child waits for that.
            inherited.entry = None;
            inherited.wait |= !between;
            moved = true;
            born = match clone3(flags, None) {
                // Docker's default filter hides clone3; clone may still be allowed.
                // It has no room for a time namespace, which the child makes: it is in it from its
                // exec on.
                Err(Errno::ENOSYS | Errno::EPERM) => clone_old(flags & !CLONE_NEWTIME),
                other => other,
            };
            if matches!(born, Ok(Born::Child)) && flags & CLONE_NEWTIME != 0 {
                inherited.time = true;
            }
        }
        match born {
            Ok(Born::Child) => {
                // The parent's end must be the parent's alone: that it closes is how the child sees
                // that the parent is gone.
                self.channel = None;
                drop(up);
                match down {
                    Some(down) => namespaces::between(self.plan, inherited, apart, down, moved),
                    None => child::run(self.plan, inherited),
                }
            }
            Ok(Born::Parent(pid, pidfd)) => {
                self.waits = inherited.wait;
                drop((inherited, down));
                self.child = Some((pid, pidfd));
                if moved {
                    self.enter_cgroup(cgroup, pid)?;
                }
                let Some(up) = up else { return Ok(pid) };
                if moved {
                    up.go()
                        .map_err(|errno| Error::os("tell", "the process in between", errno))?;
                }
                let found = namespaces::child_of(pid, &up);
                self.child = None;
                let (pid, pidfd) = found?;
                self.child = Some((pid, pidfd));
                Ok(pid)
            }
            Err(errno) => Err(Error::os(
                "clone into new namespaces:",
                self.plan.birth.namespaces.join(", "),
                errno,
            )
            .remedy(birth_remedy(errno))),
        }
    }

    /// Moves a process that could not be born in the cgroup. A rootless one may stay outside where
    /// nothing depends on it.
    fn enter_cgroup(&mut self, cgroup: &mut Cgroup, pid: Pid) -> Result<()> {
        if self.plan.cgroup.scope.is_some() {
            // Others see it from here on.
            self.stage = None;
            let started = cgroup.start_scope(&self.plan.cgroup, pid.as_raw());
            // From when there is a unit, a failure has to end it.
            self.cgroup = Some(cgroup.placed().clone());
            return started;
        }
        self.stage = self.stage.map(|_| Stage::Cgroup);
        match cgroup.join(pid.as_raw()) {
            Err(error)
                if matches!(error.errno(), Some(Errno::EACCES | Errno::EPERM))
                    && cgroup.give_up(&self.plan.cgroup) =>
            {
                self.cgroup = None;
                Ok(())
            }
            other => other,
        }
    }

    /// The maps of a new user namespace; a joined one has to have those that are stated.
    pub(super) fn map_ids(&self, pid: Pid) -> Result<()> {
        maps::write(&self.plan.birth, pid)?;
        maps::compare(&self.plan.birth, pid)
    }

    /// What else only the parent can do for the child before it goes on.
    pub(super) fn settle(&mut self, pid: Pid, record: &mut Record) -> Result<()> {
        let birth = &self.plan.birth;
        for &(resource, hard) in &birth.raise_limits {
            // Refused where the limit is over what this process may set; the child's step tells it then.
            let _ = process::prlimit(pid.as_raw(), resource, hard, hard);
        }
        if let Some(step) = &birth.oom_score_adj {
            let lost = step.perform(self.plan.level, |action| match action {
                Action::OomScoreAdj { value } => {
                    proc::write(&format!("{pid}/oom_score_adj"), &value.to_string())
                        .map_err(|error| error.context("process.oomScoreAdj"))
                        .map(|()| None)
                }
                _ => Ok(None),
            })?;
            if let Some(lost) = lost {
                self.report(&lost, record)?;
            }
        }
        if self.waits { self.go() } else { Ok(()) }
    }

    /// Tells a degradation: an entry in the record, and a warning, unless an attempt before has said it.
    pub(super) fn report(&mut self, degradation: &Degradation, record: &mut Record) -> Result<()> {
        let warning = degradation.to_string();
        if !self.told.contains(&warning) {
            log::warning(&warning);
            self.told.push(warning);
        }
        let value = serde_json::to_value(degradation)
            .map_err(|error| Error::new(Kind::System, format!("record a degradation: {error}")))?;
        record.degraded.push(value);
        Ok(())
    }
}

pub(super) fn refuses_cgroup(errno: Errno) -> bool {
    // EOPNOTSUPP and EBUSY: the cgroup cannot hold processes in the way it is set up; joining it says
    // more. E2BIG and EINVAL: Linux before 5.7.
    matches!(
        errno,
        Errno::E2BIG | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EBUSY | Errno::EACCES
    )
}

/// What may be done where namespaces cannot be made.
pub(super) fn birth_remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM => "it needs CAP_SYS_ADMIN, and a kernel and filter that allow these kinds",
        Errno::ENOSPC => "a limit on namespaces is reached: see /proc/sys/user/max_*_namespaces",
        Errno::EINVAL => "the kernel lacks one of these kinds of namespace",
        Errno::EAGAIN => "a limit on processes is reached: pids.max of the cgroup, RLIMIT_NPROC",
        _ => "",
    }
}
