//! Makes a planned cgroup, and puts processes into it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::device_change;
use super::devices::Devices;
use super::fs;
use super::hierarchies::Mode;
use super::placed::{Placed, PlacedDir};
use super::plan::{CgroupPlan, PlannedDir, Version, Write};
use crate::error::{Error, Kind, Result};
use crate::sys::bpf;

/// What [`refused_devices`] knows the errors of eBPF by.
pub(super) const LOAD: &str = "load the eBPF program for linux.resources.devices of cgroup";
pub(super) const ATTACH: &str = "attach the eBPF program for linux.resources.devices to cgroup";

/// What runc says where a cgroup needs a permission that a rootless caller does not have.
pub(super) const ROOTLESS: &str =
    "rootless needs no limits + no cgrouppath when no permission is granted for cgroups";

/// A container's cgroup that was made, open.
#[derive(Debug)]
pub struct Cgroup {
    pub(super) dirs: Vec<OpenDir>,
    pub(super) placed: Placed,
    pub(super) clone_into: bool,
}

#[derive(Debug)]
pub(super) struct OpenDir {
    pub(super) version: Version,
    pub(super) path: PathBuf,
    pub(super) fd: OwnedFd,
}

/// True if the error says that the kernel refused the eBPF program of the device rules for want of
/// privilege: all other limits could be had without it.
pub fn refused_devices(error: &Error) -> bool {
    let text = error.to_string();
    matches!(
        error.errno(),
        Some(Errno::EPERM | Errno::EACCES | Errno::ENOSYS)
    ) && (text.contains(LOAD) || text.contains(ATTACH))
}

impl Cgroup {
    /// Makes the directories, writes the limits in their order, reads each back, and puts the
    /// device rules in force. What it made is removed again if one of that fails.
    ///
    /// # Errors
    /// The cgroup is there and holds processes, or is frozen; a limit that the kernel refuses or
    /// changes (the file, what was wanted and what is there); a controller that is not there (field
    /// and controller); device rules that cannot be enforced (see [`refused_devices`]).
    pub fn create(plan: &CgroupPlan) -> Result<Self> {
        let mut cgroup = Self {
            dirs: Vec::with_capacity(plan.dirs.len()),
            placed: Placed {
                mode: plan.mode,
                dirs: Vec::with_capacity(plan.dirs.len()),
                unit: None,
            },
            clone_into: plan.clone_into,
        };
        for dir in &plan.dirs {
            if let Err(error) = cgroup.make(dir) {
                let denied = matches!(
                    error.errno(),
                    Some(Errno::EACCES | Errno::EPERM | Errno::EROFS)
                );
                if denied && plan.lenient && dir.writes.is_empty() {
                    // Without privileges and without limits: the container stays where its caller is.
                    cgroup.leave_out();
                    continue;
                }
                let error = if denied && plan.rootless {
                    error.context(ROOTLESS)
                } else {
                    error
                };
                return Err(match cgroup.placed.remove() {
                    Ok(()) => error,
                    Err(more) => error.remedy(format!("and it could not be removed: {more}")),
                });
            }
        }
        Ok(cgroup)
    }

    /// Takes back what the last [`Cgroup::make`] made before it failed.
    fn leave_out(&mut self) {
        if let Some(dir) = self.placed.dirs.pop() {
            let half = Placed {
                mode: self.placed.mode,
                dirs: vec![dir],
                unit: None,
            };
            // What could not be made is usually not there.
            let _ = half.remove();
        }
    }

    /// The hierarchies that this process may not enter are left out, like those where nothing could be
    /// made: true if that is allowed, false if the container has to be in them.
    pub fn give_up(&mut self, plan: &CgroupPlan) -> bool {
        let limits = plan.dirs.iter().any(|dir| !dir.writes.is_empty());
        if !plan.lenient || limits {
            return false;
        }
        self.dirs.clear();
        let _ = self.placed.remove();
        self.placed.dirs.clear();
        true
    }

    pub(super) fn make(&mut self, dir: &PlannedDir) -> Result<()> {
        let mut made = Vec::new();
        let prepared = match (dir.version, dir.path.parent()) {
            (Version::V2, Some(parent)) if !dir.controllers.is_empty() && dir.path != dir.mount => {
                enable(dir, parent, &mut made)
            }
            _ => Ok(()),
        };
        if prepared.is_ok() && self.placed.mode == Mode::V2 {
            hand_on(dir, &mut made);
        }
        let prepared = prepared.and_then(|()| {
            fs::make_dirs(&dir.path, &dir.mount, &mut made).map_err(|(errno, path)| {
                Error::os("make cgroup", path.display().to_string(), errno).remedy(match errno {
                    Errno::EROFS => "mount the cgroup file system read-write",
                    Errno::EACCES | Errno::EPERM => "run as root, or in a delegated cgroup",
                    Errno::EAGAIN => "cgroup.max.descendants or max.depth of a parent is reached",
                    _ => "see isorun doctor",
                })
            })
        });
        let fresh = made.last().is_some_and(|last| *last == dir.path);
        if fresh {
            made.pop();
        }
        // From here on an error removes it again.
        self.placed.dirs.push(PlacedDir {
            version: dir.version,
            freezer: dir.version == Version::V2 || dir.controllers.iter().any(|c| c == "freezer"),
            path: dir.path.clone(),
            made: fresh || self.placed.unit.is_some(),
            parents: made,
            others: false,
        });
        prepared?;
        if !fresh && self.placed.unit.is_none() {
            reusable(self.placed.dirs.last_mut())?;
        }
        let fd = fs::open_dir(&dir.path)
            .map_err(|errno| Error::os("open cgroup", dir.path.display().to_string(), errno))?;
        if dir.version == Version::V1 && dir.controllers.iter().any(|name| name == "cpuset") {
            inherit_cpuset(&dir.path, &dir.mount)?;
        }
        for write in &dir.writes {
            set(fd.as_fd(), &dir.path, write)?;
        }
        if let Some(devices) = &dir.devices {
            match dir.version {
                Version::V1 => set_devices(fd.as_fd(), &dir.path, devices)?,
                Version::V2 => attach_devices(fd.as_fd(), &dir.path, devices)?,
            }
        }
        self.dirs.push(OpenDir {
            version: dir.version,
            path: dir.path.clone(),
            fd,
        });
        Ok(())
    }

    /// The directory for clone3's CLONE_INTO_CGROUP: on pure v2, where that places the child
    /// completely, a cgroup namespace of the same clone3 included: its root is this cgroup (tried).
    pub fn clone_fd(&self) -> Option<BorrowedFd<'_>> {
        self.clone_into.then(|| self.v2_fd()).flatten()
    }

    /// The directory on v2, also on a hybrid host, where CLONE_INTO_CGROUP places the child on the
    /// v2 side only and [`Cgroup::entry`] does the rest.
    pub fn v2_fd(&self) -> Option<BorrowedFd<'_>> {
        self.dirs
            .iter()
            .find(|dir| dir.version == Version::V2)
            .map(|dir| dir.fd.as_fd())
    }

    /// Moves process `pid` into the cgroup, in every hierarchy.
    ///
    /// # Errors
    /// The hierarchy and the errno, with what it means.
    pub fn join(&self, pid: i32) -> Result<()> {
        for dir in &self.dirs {
            self.join_one(dir, pid)
                .or_else(|error| self.attach(dir, pid, error))?;
        }
        Ok(())
    }

    pub(super) fn join_one(&self, dir: &OpenDir, pid: i32) -> Result<()> {
        let pid = pid.to_string();
        let mut result = Ok(());
        for _ in 0..5 {
            result = fs::write_in(dir.fd.as_fd(), "cgroup.procs", &pid);
            // EINVAL may be a task that the scheduler has not taken up yet.
            if result != Err(Errno::EINVAL) {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        result.map_err(|errno| {
            let what = format!("move process {pid} into cgroup");
            Error::os(what, dir.path.display().to_string(), errno).remedy(match errno {
                Errno::EBUSY => "it hands controllers on to cgroups below: use one that does not",
                Errno::EOPNOTSUPP => "a parent is threaded or holds processes: use another path",
                Errno::EACCES | Errno::EPERM => "run as root, or in a delegated cgroup",
                Errno::ENOSPC => "its cpuset has no CPUs or memory nodes",
                _ => "see isorun doctor",
            })
        })
    }

    /// For a child that was cloned into the v2 side ([`Cgroup::v2_fd`]) and enters the v1
    /// hierarchies by itself: the open files that [`Entry::enter`] needs.
    ///
    /// A single-threaded process that moves itself spares the kernel the wait for an RCU grace
    /// period: measured over ten hierarchies, 0.12 ms where [`Cgroup::join`] takes 15 ms. A cgroup
    /// namespace is to be unshared after it: it is rooted where the process is at that moment.
    ///
    /// # Errors
    /// A `tasks` file that cannot be opened.
    pub fn entry(&self) -> Result<Entry> {
        let v1 = self.dirs.iter().filter(|dir| dir.version == Version::V1);
        let open = |dir: &OpenDir| {
            fs::open_in(dir.fd.as_fd(), "tasks", OFlag::O_WRONLY).map_err(|errno| {
                Error::os("open", dir.path.join("tasks").display().to_string(), errno)
            })
        };
        Ok(Entry {
            files: v1.map(open).collect::<Result<_>>()?,
        })
    }

    /// Opens the cgroup of a container that runs, for a further process in it (exec).
    ///
    /// # Errors
    /// A directory that is gone.
    pub fn open(placed: &Placed) -> Result<Self> {
        let open = |dir: &PlacedDir| {
            let fd = fs::open_dir(&dir.path)
                .map_err(|errno| Error::os("open cgroup", dir.path.display().to_string(), errno))?;
            Ok(OpenDir {
                version: dir.version,
                path: dir.path.clone(),
                fd,
            })
        };
        Ok(Self {
            dirs: placed.dirs.iter().map(open).collect::<Result<_>>()?,
            placed: placed.clone(),
            clone_into: placed.mode == Mode::V2,
        })
    }

    /// The record for the state directory.
    pub fn placed(&self) -> &Placed {
        &self.placed
    }
}

/// Open files through which a single-threaded process enters its v1 cgroups by itself.
#[derive(Debug)]
pub struct Entry {
    files: Vec<OwnedFd>,
}

impl Entry {
    /// True if there is nothing to enter.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Moves the calling process, which must have a single thread, into all of them. Allocates
    /// nothing, so it may run between clone and exec.
    ///
    /// # Errors
    /// The first errno.
    pub fn enter(&self) -> std::result::Result<(), Errno> {
        self.files.iter().try_for_each(|file| fs::put(file, "0"))
    }
}

/// Refuses a cgroup that was there if somebody uses it: limits and signals would hit them.
pub(super) fn reusable(dir: Option<&mut PlacedDir>) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    let found = dir.pids()?.len();
    if found > 0 {
        dir.others = true;
        let sentence = format!(
            "container's cgroup is not empty: {found} process(es) found in {}",
            dir.path.display()
        );
        return Err(
            Error::new(Kind::State, sentence).remedy("use another linux.cgroupsPath, or end them")
        );
    }
    if dir.is_frozen() {
        let sentence = format!(
            "container's cgroup unexpectedly frozen: {}",
            dir.path.display()
        );
        return Err(
            Error::new(Kind::State, sentence).remedy("thaw it, or use another linux.cgroupsPath")
        );
    }
    Ok(())
}

/// Enables the controllers that the limits need, from the hierarchy's root down to `parent`.
fn enable(dir: &PlannedDir, parent: &Path, made: &mut Vec<PathBuf>) -> Result<()> {
    let has_all = |level: &Path| {
        fs::read_path(&level.join("cgroup.subtree_control")).is_ok_and(|text| {
            dir.controllers
                .iter()
                .all(|need| text.split_whitespace().any(|have| have == need))
        })
    };
    if has_all(parent) {
        return Ok(());
    }
    fs::make_dirs(parent, &dir.mount, made)
        .map_err(|(errno, path)| Error::os("make cgroup", path.display().to_string(), errno))?;
    let mut levels: Vec<&Path> = parent
        .ancestors()
        .take_while(|level| level.starts_with(&dir.mount))
        .collect();
    levels.reverse();
    for level in levels {
        if has_all(level) {
            continue;
        }
        let occupied = is_occupied(level);
        for controller in &dir.controllers {
            let value = format!("+{controller}");
            let result = match occupied {
                true => Err(Errno::EBUSY),
                false => fs::open_dir(level)
                    .and_then(|fd| fs::write_in(fd.as_fd(), "cgroup.subtree_control", &value)),
            };
            if let Err(errno) = result {
                let of = |write: &&Write| write.controller == *controller;
                let field = dir
                    .writes
                    .iter()
                    .find(of)
                    .map_or("linux.resources", |w| &w.field);
                let what =
                    format!("{field} needs the cgroup controller {controller}: enable it in");
                return Err(Error::os(what, level.display().to_string(), errno).remedy(
                    match errno {
                        Errno::EBUSY => {
                            "that cgroup holds processes: move them to one below it, or use another linux.cgroupsPath"
                        }
                        Errno::ENOENT | Errno::EINVAL => {
                            "delegate the controller, or remove the limit"
                        }
                        _ => "run as root or in a delegated cgroup, or remove the limit",
                    },
                ));
            }
        }
    }
    Ok(())
}

/// Enables what no limit needs, too, from the hierarchy's root down, as runc and crun do: what engines and
/// `events` measure of a container is there without a limit on it. As far as may be: who may not write, or
/// has processes in a cgroup above, has less to measure.
fn hand_on(dir: &PlannedDir, made: &mut Vec<PathBuf>) {
    let Some(parent) = dir.path.parent().filter(|_| dir.path != dir.mount) else {
        return;
    };
    let list = |level: &Path, file: &str| fs::read_path(&level.join(file)).unwrap_or_default();
    let all = list(&dir.mount, "cgroup.controllers");
    let lacking = |level: &Path| {
        let has = list(level, "cgroup.subtree_control");
        let lacks = |name: &&str| !has.split_whitespace().any(|have| have == *name);
        let names = all.split_whitespace().filter(lacks);
        names.map(|name| format!("+{name}")).collect::<Vec<_>>()
    };
    // What cannot be made is told by who makes the cgroup itself.
    if lacking(parent).is_empty() || fs::make_dirs(parent, &dir.mount, made).is_err() {
        return;
    }
    let levels = parent.ancestors();
    let mut levels: Vec<&Path> = levels.take_while(|at| at.starts_with(&dir.mount)).collect();
    levels.reverse();
    for level in levels {
        let missing = lacking(level);
        if missing.is_empty() {
            continue;
        }
        let control = fs::open_dir(level)
            .and_then(|fd| fs::open_in(fd.as_fd(), "cgroup.subtree_control", OFlag::O_WRONLY));
        if let Ok(control) = control
            && !is_occupied(level)
        {
            // One by one: one that is not to be had takes no other along.
            for controller in missing {
                let _ = fs::put(&control, &controller);
            }
        }
    }
}

/// Whether processes are in a cgroup of v2 that must not have any where controllers are handed on; only
/// the machine's first one may, and that has no type. For cpu and pids the kernel would take it, but make
/// a tree of threads of the cgroup, in which no container can be any more, with limits or without.
fn is_occupied(level: &Path) -> bool {
    level.join("cgroup.type").exists()
        && fs::read_path(&level.join("cgroup.procs")).is_ok_and(|pids| !pids.trim().is_empty())
}

/// Gives a new v1 cpuset the CPUs and memory nodes of its parent: without, nothing can enter it.
fn inherit_cpuset(path: &Path, mount: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        fill(path, mount, file)?;
    }
    Ok(())
}

/// Fills `file` from above where it is empty, and in those above as well.
fn fill(path: &Path, mount: &Path, file: &str) -> Result<()> {
    let mut empty: Vec<&Path> = Vec::new();
    for level in path.ancestors() {
        let name = level.join(file);
        let text = fs::read_path(&name)
            .map_err(|errno| Error::os("read", name.display().to_string(), errno))?;
        if text.trim().is_empty() && level != mount {
            empty.push(level);
            continue;
        }
        for level in empty.iter().rev() {
            fs::open_dir(level)
                .and_then(|fd| fs::write_in(fd.as_fd(), file, text.trim()))
                .map_err(|errno| {
                    Error::os("write", level.join(file).display().to_string(), errno)
                })?;
        }
        return Ok(());
    }
    Ok(())
}

/// Writes one limit and reads it back.
pub(super) fn set(dir: BorrowedFd<'_>, path: &Path, write: &Write) -> Result<()> {
    let (mut file, mut value, mut check) = (&write.file, &write.value, &write.check);
    let mut opened = fs::open_in(dir, file, OFlag::O_RDWR);
    if opened.as_ref().is_err_and(|errno| *errno == Errno::ENOENT)
        && let Some(instead) = &write.instead
    {
        (file, value, check) = (&instead.0, &instead.1, &instead.2);
        opened = fs::open_in(dir, file, OFlag::O_RDWR);
    }
    let name = || path.join(file).display().to_string();
    let fd = match opened {
        Ok(fd) => fd,
        Err(Errno::ENOENT) if write.optional => return Ok(()),
        Err(errno @ Errno::ENOENT) => {
            let what = format!(
                "{} needs the file {file} of the cgroup controller {}: open",
                write.field, write.controller
            );
            return Err(Error::os(what, name(), errno)
                .remedy("use a kernel that has it, or remove the limit"));
        }
        Err(errno) => return Err(Error::os(format!("{}: open", write.field), name(), errno)),
    };
    fs::put(&fd, value).map_err(|errno| {
        let what = format!("{}: write {value:?} to", write.field);
        Error::os(what, name(), errno).remedy(match errno {
            Errno::EINVAL | Errno::ERANGE => "the kernel does not take this value",
            Errno::EBUSY => "more is in use than the limit allows",
            Errno::EACCES | Errno::EPERM => "a parent cgroup allows less",
            Errno::ENODEV => "there is no such device",
            _ => "see isorun doctor",
        })
    })?;
    if *check == super::Check::Nothing {
        return Ok(());
    }
    let got = fs::contents(&fd)
        .map_err(|errno| Error::os(format!("{}: read back", write.field), name(), errno))?;
    if check.holds(value, &got) {
        return Ok(());
    }
    if file == "cpu.shares"
        && let (Ok(wanted), Ok(got)) = (value.parse::<u64>(), got.trim().parse::<u64>())
    {
        let most = if wanted > got { "maximum" } else { "minimum" };
        let sentence = format!("{}: the {most} allowed cpu-shares is {got}", write.field);
        return Err(Error::new(Kind::System, sentence).remedy(format!("{wanted} is not")));
    }
    Err(Error::new(
        Kind::System,
        format!(
            "{}: {} should be {:?}, and is {:?}",
            write.field,
            name(),
            check.wanted(value),
            got.trim()
        ),
    )
    .remedy("ask for a value that the kernel takes as it is"))
}

/// Puts device rules in force on v1, and reads them back.
fn set_devices(dir: BorrowedFd<'_>, path: &Path, devices: &Devices) -> Result<()> {
    let (writes, table) = devices.v1_writes()?;
    device_change::put(dir, path, &writes, &table)
}

/// Puts device rules in force on v2.
fn attach_devices(dir: BorrowedFd<'_>, path: &Path, devices: &Devices) -> Result<()> {
    let refused = |what: &str, errno| {
        Error::os(what, path.display().to_string(), errno)
            .remedy("run with CAP_SYS_ADMIN in the initial user namespace")
    };
    let program =
        bpf::load_device_program(&devices.program()?).map_err(|errno| refused(LOAD, errno))?;
    bpf::attach_device_program(dir, program.as_fd()).map_err(|errno| refused(ATTACH, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that stands for a cgroup: the kernel's tree cannot be had in this state in every test.
    #[test]
    fn controllers_are_not_handed_on_by_a_cgroup_with_processes() {
        let top = std::env::temp_dir().join(format!("isorun-enable-{}", std::process::id()));
        std::fs::create_dir(&top).unwrap();
        let dir = PlannedDir {
            version: Version::V2,
            controllers: vec!["pids".into()],
            mount: top.clone(),
            path: top.join("new"),
            writes: Vec::new(),
            devices: None,
        };
        let control = top.join("cgroup.subtree_control");
        let try_it = |procs: &str| {
            std::fs::write(&control, "").unwrap();
            std::fs::write(top.join("cgroup.procs"), procs).unwrap();
            let errno = enable(&dir, &top, &mut Vec::new())
                .err()
                .and_then(|e| e.errno());
            (errno, std::fs::read_to_string(&control).unwrap())
        };
        // The machine's first cgroup has no type, and may have processes.
        assert_eq!(try_it("1\n"), (None, "+pids".into()));
        std::fs::write(top.join("cgroup.type"), "domain\n").unwrap();
        let (occupied, empty) = (try_it("1\n"), try_it(""));
        std::fs::remove_dir_all(&top).unwrap();
        assert_eq!(occupied, (Some(Errno::EBUSY), String::new()));
        assert_eq!(empty, (None, "+pids".into()));
    }
}
