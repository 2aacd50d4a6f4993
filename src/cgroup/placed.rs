//! The record of a container's cgroup: what every command after create works with.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::getpid;
use serde::{Deserialize, Serialize};

use super::fs;
use super::hierarchies::Mode;
use super::plan::{CgroupPlan, Version};
use super::systemd::{Scope, Unit};
use super::walk;
use crate::error::{Error, Kind, Result};
use crate::log;
use crate::sys::process;

/// How long to wait for processes that were killed to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long to try to remove a cgroup that is busy.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);
/// How long a freezer may take. An uninterruptible process can hold it up for ever.
const FREEZE_LIMIT: Duration = Duration::from_millis(500);

/// Where a container's cgroup is, and which parts of it create made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placed {
    /// How cgroups were mounted.
    pub mode: Mode,
    /// One directory for each hierarchy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dirs: Vec<PlacedDir>,
    /// systemd's unit that it is, where systemd made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
}

/// The container's directory in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacedDir {
    /// v1 or v2.
    pub version: Version,
    /// It can freeze: v2, or v1's freezer.
    #[serde(default)]
    pub freezer: bool,
    /// The container's directory.
    pub path: PathBuf,
    /// Create made it: delete removes it.
    pub made: bool,
    /// Directories above it that create made, outermost first: removed when they are empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<PathBuf>,
    /// It was there and held the processes of others: nothing of it is touched.
    #[serde(default)]
    pub others: bool,
}

impl PlacedDir {
    /// The processes in it and in the cgroups below; none if it is gone.
    pub(super) fn pids(&self) -> Result<BTreeSet<i32>> {
        let mut found = BTreeSet::new();
        if !self.others {
            collect(&self.path, self.version, &mut found)?;
        }
        Ok(found)
    }

    /// True if it is frozen or about to be.
    pub(super) fn is_frozen(&self) -> bool {
        let (file, thawed) = match self.version {
            Version::V2 => ("cgroup.freeze", "0"),
            Version::V1 => ("freezer.state", "THAWED"),
        };
        self.freezer && fs::word(&self.path.join(file)).is_ok_and(|state| state != thawed)
    }

    /// Asks the freezer; no freezer is no error, since freezing only helps.
    fn freeze(&self, frozen: bool) -> bool {
        self.freezer && !self.others && self.set_frozen(frozen).is_ok()
    }

    /// Asks the freezer.
    pub(super) fn set_frozen(&self, frozen: bool) -> std::result::Result<(), Errno> {
        let (file, value) = match (self.version, frozen) {
            (Version::V2, true) => ("cgroup.freeze", "1"),
            (Version::V2, false) => ("cgroup.freeze", "0"),
            (Version::V1, true) => ("freezer.state", "FROZEN"),
            (Version::V1, false) => ("freezer.state", "THAWED"),
        };
        write(&self.path, file, value)
    }

    /// True when all of its processes stand still.
    pub(super) fn froze(&self) -> bool {
        match self.version {
            Version::V2 => fs::read_path(&self.path.join("cgroup.events"))
                .is_ok_and(|events| events.lines().any(|line| line == "frozen 1")),
            Version::V1 => fs::read_path(&self.path.join("freezer.state"))
                .is_ok_and(|state| state.trim() == "FROZEN"),
        }
    }
}

impl Placed {
    /// What [`super::Cgroup::create`] would make now: to be written down before it is made, so that
    /// a runtime that dies in between leaves nothing unknown.
    pub fn planned(plan: &CgroupPlan) -> Self {
        let missing = |path: &Path| nix::sys::stat::lstat(path) == Err(Errno::ENOENT);
        let dirs = plan.dirs.iter().map(|dir| {
            let made = dir.path != dir.mount && missing(&dir.path);
            let mut parents: Vec<PathBuf> = Vec::new();
            // Slices are systemd's own.
            if made && plan.scope.is_none() {
                let above = dir.path.ancestors().skip(1);
                let above = above.take_while(|level| *level != dir.mount && missing(level));
                parents.extend(above.map(Path::to_path_buf));
                parents.reverse();
            }
            let mut placed = PlacedDir {
                version: dir.version,
                freezer: dir.version == Version::V2
                    || dir.controllers.iter().any(|name| name == "freezer"),
                path: dir.path.clone(),
                made,
                parents,
                others: false,
            };
            // Create refuses such a one; until then it must not be taken for the container's. One
            // that cannot be read is not ours either.
            placed.others = !made && placed.pids().map_or(true, |pids| !pids.is_empty());
            placed
        });
        Self {
            mode: plan.mode,
            dirs: dirs.collect(),
            unit: plan.scope.as_ref().map(Scope::unit),
        }
    }

    /// The processes of the container: those in its cgroups and in the ones below, in any
    /// hierarchy. Processes outside of this pid namespace have no number here and are left out.
    ///
    /// # Errors
    /// A cgroup.procs file that cannot be read. A cgroup that is gone has no processes.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut found = BTreeSet::new();
        for dir in self.dirs.iter().filter(|dir| !dir.others) {
            collect(&dir.path, dir.version, &mut found)?;
        }
        Ok(found.into_iter().collect())
    }

    /// True if a directory of the container is there, with processes or without.
    pub fn exists(&self) -> bool {
        let mut own = self.dirs.iter().filter(|dir| !dir.others);
        own.any(|dir| dir.path.is_dir())
    }

    /// Sends signal number `signal` to every process of the container; real-time signals too. This
    /// process and PID 1 are never among them.
    ///
    /// # Errors
    /// The processes cannot be listed, or one cannot be signalled; the others still are.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        let mut failed = None;
        for pid in self.victims()? {
            match process::kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    failed = Some(Error::os(
                        format!("send signal {signal} to"),
                        format!("process {pid}"),
                        errno,
                    ))
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Kills everything in the container's cgroups and waits until it is gone.
    ///
    /// On v2 and on hybrid the kernel does it at one stroke (cgroup.kill, Linux 5.14). Else the
    /// cgroup is frozen, so that nothing can fork away, every process is killed, and it is thawed;
    /// again until none is left. This process and PID 1 are never among them.
    ///
    /// # Errors
    /// Processes that are still there after ten seconds, with their numbers.
    pub fn kill(&self) -> Result<()> {
        if self.victims()?.is_empty() {
            return Ok(());
        }
        let this = getpid().as_raw();
        for dir in self
            .dirs
            .iter()
            .filter(|dir| dir.version == Version::V2 && !dir.others)
        {
            let pids = dir.pids()?;
            if !pids.contains(&this) && !pids.contains(&1) {
                // ENOENT: an older kernel. The loop below does it then.
                let _ = write(&dir.path, "cgroup.kill", "1");
            }
        }
        for dir in self.dirs.iter().filter(|dir| dir.version == Version::V1) {
            // What v1 has frozen dies only once it is thawed.
            dir.freeze(false);
        }
        // The kernel takes a moment; nothing more to do in most cases.
        if fs::wait_until(Duration::from_millis(50), || {
            Ok::<_, Error>(self.victims()?.is_empty())
        })? {
            return Ok(());
        }
        let gone = fs::wait_until(KILL_LIMIT, || {
            let freezers = self.dirs.iter().filter(|dir| dir.freeze(true));
            for freezer in freezers.collect::<Vec<_>>() {
                let _ = fs::wait_until(FREEZE_LIMIT, || Ok::<_, Errno>(freezer.froze()));
            }
            let sent = self.signal_all(libc::SIGKILL);
            for dir in &self.dirs {
                dir.freeze(false);
            }
            sent?;
            Ok::<_, Error>(self.victims()?.is_empty())
        })?;
        if gone {
            return Ok(());
        }
        let left = self.victims()?;
        let sentence = format!(
            "processes {left:?} of the container are still there {} seconds after SIGKILL",
            KILL_LIMIT.as_secs()
        );
        Err(Error::new(Kind::System, sentence)
            .remedy("look for what holds them in the kernel (/proc/PID/stack), and delete again"))
    }

    /// The processes that may be signalled.
    fn victims(&self) -> Result<Vec<i32>> {
        let this = getpid().as_raw();
        let mut pids = self.processes()?;
        pids.retain(|pid| *pid > 1 && *pid != this);
        Ok(pids)
    }

    /// True if the container is frozen (paused).
    pub fn frozen(&self) -> bool {
        self.freezer().is_some_and(PlacedDir::is_frozen)
    }

    /// Removes what create made: the container's directories with the cgroups that were made in
    /// them, and those above as far as they are empty. What is missing is fine.
    ///
    /// # Errors
    /// A directory that stays busy for five seconds, with the processes in it; it goes on with the
    /// others first.
    pub fn remove(&self) -> Result<()> {
        self.remove_within(REMOVE_LIMIT)
    }

    pub(super) fn remove_within(&self, limit: Duration) -> Result<()> {
        let mut failed = None;
        if let Some(unit) = &self.unit
            && !self.dirs.iter().any(|dir| dir.others)
            && let Err(error) = unit.stop()
        {
            // The directories are what counts.
            log::warning(&format!("stop unit {}: {error}", unit.name));
        }
        for dir in self.dirs.iter().filter(|dir| dir.made && !dir.others) {
            let gone = fs::wait_until(limit, || walk::remove(&dir.path));
            let path = dir.path.display().to_string();
            match gone {
                Ok(true) => {}
                Ok(false) => {
                    let pids = dir.pids().unwrap_or_default();
                    let error = Error::os("remove cgroup", path, Errno::EBUSY);
                    failed = Some(error.remedy(match pids.is_empty() {
                        true => "delete the container again".to_string(),
                        false => format!("end the processes {pids:?}, and delete again"),
                    }));
                }
                Err(errno) => failed = Some(Error::os("remove cgroup", path, errno)),
            }
        }
        for parent in self.dirs.iter().flat_map(|dir| dir.parents.iter().rev()) {
            // Somebody else may use it by now.
            let _ = fs::remove_dir(parent);
        }
        failed.map_or(Ok(()), Err)
    }
}

fn write(dir: &Path, file: &str, value: &str) -> std::result::Result<(), Errno> {
    use std::os::fd::AsFd;
    fs::write_in(fs::open_dir(dir)?.as_fd(), file, value)
}

/// Adds the processes of `path` and of the cgroups below it.
fn collect(path: &Path, version: Version, found: &mut BTreeSet<i32>) -> Result<()> {
    let read =
        |dir: BorrowedFd<'_>, file: &str| fs::contents(fs::open_in(dir, file, OFlag::O_RDONLY)?);
    walk::visit(path, |dir| {
        let text = match read(dir, "cgroup.procs") {
            // A threaded cgroup of v2 lists its threads only.
            Err(Errno::EOPNOTSUPP) if version == Version::V2 => read(dir, "cgroup.threads"),
            other => other,
        };
        let text = match text {
            Ok(text) => text,
            Err(Errno::ENOENT | Errno::ENODEV) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        found.extend(
            text.lines()
                .filter_map(|line| line.parse::<i32>().ok())
                .filter(|pid| *pid > 0),
        );
        Ok(())
    })
    .map_err(|errno| {
        Error::os(
            "read processes of cgroup",
            path.display().to_string(),
            errno,
        )
    })
}
