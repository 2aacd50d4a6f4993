//! Intel RDT (and its like on other CPUs): the group of the resctrl file system that a container's
//! processes are in. Kernel: Documentation/filesystems/resctrl.rst.
//!
//! ```text
//! resctrl/            the default group
//!   schemata tasks info/
//!   GROUP/            a class of service: closID, or the container's id
//!     schemata tasks mon_data/ mon_groups/
//!       ID/           what is measured for the container alone
//!         tasks mon_data/
//! ```
//!
//! Few machines have it. The tests of this module do the kernel's part in a tree of files, and debug
//! builds take the directory that `ISORUN_TEST_RESCTRL` names for it; a release has no such way.

mod change;
mod stats;
#[cfg(test)]
mod tests;

use std::fs::{self, OpenOptions};
#[cfg(not(test))]
use std::fs::{create_dir, remove_dir};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::plan::Rdt;
use crate::state::Resctrl;

pub use change::{Changed, Schemata, change};
pub use stats::stats;
#[cfg(test)]
use tests::{create_dir, remove_dir};

const FIELD: &str = "linux.intelRdt";

/// A group that has been looked at: what is asked for can be had there, as far as that can be seen.
pub struct Prepared<'a> {
    plan: &'a Rdt,
    root: PathBuf,
    group: PathBuf,
    /// It was there.
    exists: bool,
}

/// Looks for resctrl and for the group, and changes nothing.
///
/// # Errors
/// No resctrl; a group that is to be there and is not; one that is there with other schemata.
pub fn prepare(plan: &Rdt) -> Result<Prepared<'_>> {
    Prepared::below(plan, find(FIELD)?)
}

/// Where resctrl is mounted; `field` is what wants it.
fn find(field: &str) -> Result<PathBuf> {
    #[cfg(debug_assertions)]
    if let Some(root) = std::env::var_os("ISORUN_TEST_RESCTRL") {
        return Ok(root.into());
    }
    let mounts = super::mountinfo::read()
        .map_err(|error| Error::io(format!("{field}: read"), "/proc/self/mountinfo", &error))?;
    let found = mounts
        .into_iter()
        .find(|mount| mount.kind == "resctrl" && mount.root == "/");
    found.map(|mount| mount.point).ok_or_else(|| {
        Error::spec(field, "no resctrl file system is mounted on this host").remedy(
            "mount -t resctrl resctrl /sys/fs/resctrl; it needs a CPU with RDT (cat_l3, mba or \
             cqm among the flags in /proc/cpuinfo) and CONFIG_X86_CPU_RESCTRL",
        )
    })
}

impl<'a> Prepared<'a> {
    fn below(plan: &'a Rdt, root: PathBuf) -> Result<Self> {
        // Checked to be one name.
        let group = root.join(&plan.group);
        let exists = group.is_dir();
        let this = Self {
            plan,
            root,
            group,
            exists,
        };
        match (plan.named, exists) {
            (true, false) if plan.schemata.is_empty() => Err(Error::spec(
                "linux.intelRdt.closID",
                format!("there is no group {}", this.group.display()),
            )
            .remedy("make it, or say by schemata what it is to be")),
            (true, true) => this.compare().map(|()| this),
            _ => Ok(this),
        }
    }

    /// A group that is there must be what is asked for: it may be another's, too.
    fn compare(&self) -> Result<()> {
        if self.plan.schemata.is_empty() {
            return Ok(());
        }
        let path = self.group.join("schemata");
        let there = fs::read_to_string(&path).map_err(|error| {
            Error::io("linux.intelRdt: read", path.display().to_string(), &error)
        })?;
        match self.plan.schemata.iter().find(|line| !holds(line, &there)) {
            None => Ok(()),
            Some(line) => Err(Error::spec(
                "linux.intelRdt",
                format!(
                    "the group {} is there already, and its schemata do not have {line:?}",
                    self.group.display()
                ),
            )
            .remedy("use another closID, or leave the schemata out")),
        }
    }

    /// What will be made, and is to be removed again: recorded before it is made.
    fn record(&self) -> Resctrl {
        let monitoring = self
            .plan
            .monitoring
            .as_ref()
            .map(|id| self.group.join("mon_groups").join(id));
        let own = (!self.exists && !self.plan.named).then(|| self.group.clone());
        Resctrl {
            tasks: std::iter::once(self.group.clone())
                .chain(monitoring.clone())
                .collect(),
            // From within.
            remove: monitoring.into_iter().chain(own).collect(),
        }
    }

    /// Puts the first process of the container into its groups. `keep` gets them before the first one is
    /// made: from then on they are its to remove, whatever happens here.
    ///
    /// # Errors
    /// What `keep` says; a sentence with the directory or file and the errno.
    pub fn admit(&self, pid: i32, keep: impl FnOnce(&Resctrl) -> Result<()>) -> Result<()> {
        let groups = self.record();
        keep(&groups)?;
        self.make()?;
        self.set_up()?;
        enter(&groups, pid)
    }

    /// Makes the group where it is not there yet.
    ///
    /// # Errors
    /// A sentence with the directory and the errno: ENOSPC when the CPU has no class of service left.
    fn make(&self) -> Result<()> {
        if self.exists {
            return Ok(());
        }
        make_dir(&self.group, "all classes of service of this CPU are in use")
    }

    /// Writes the schemata of a group that was made, and makes the monitoring group. A group that was
    /// made for its closID and cannot be set up goes again: nobody else would remove it.
    ///
    /// # Errors
    /// A sentence with the file and the errno, and what the kernel says about the schemata.
    fn set_up(&self) -> Result<()> {
        let result = self.set_up_group();
        if result.is_err() && !self.exists && self.plan.named {
            let _ = remove_dir(&self.group);
        }
        result
    }

    fn set_up_group(&self) -> Result<()> {
        if (!self.exists || !self.plan.named) && !self.plan.schemata.is_empty() {
            let text = self.plan.schemata.join("\n") + "\n";
            let path = self.group.join("schemata");
            write(FIELD, &path, &text).map_err(|error| explained(&self.root, error))?;
        }
        match &self.plan.monitoring {
            Some(id) => make_dir(
                &self.group.join("mon_groups").join(id),
                "all monitoring groups of this CPU are in use",
            ),
            None => Ok(()),
        }
    }
}

/// Puts a process, and what it forks from now on, into the groups of its container.
///
/// # Errors
/// A sentence with the file and the errno.
pub fn enter(groups: &Resctrl, pid: i32) -> Result<()> {
    let text = format!("{pid}\n");
    let mut files = groups.tasks.iter().map(|group| group.join("tasks"));
    files.try_for_each(|file| write(FIELD, &file, &text))
}

/// Removes what was made for the container; what is gone already is fine.
///
/// # Errors
/// A sentence with the directory and the errno.
pub fn remove(groups: &Resctrl) -> Result<()> {
    groups
        .remove
        .iter()
        .try_for_each(|dir| match remove_dir(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(
                "remove the resctrl group",
                dir.display().to_string(),
                &error,
            )),
            _ => Ok(()),
        })
}

fn make_dir(dir: &Path, full: &str) -> Result<()> {
    match create_dir(dir) {
        Ok(()) => Ok(()),
        // Somebody was quicker, or the last container of this id left it.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => {
            let made = Error::io(
                "linux.intelRdt: make the resctrl group",
                dir.display().to_string(),
                &error,
            );
            Err(match made.errno() {
                Some(Errno::ENOSPC) => made.remedy(full),
                Some(Errno::EACCES | Errno::EPERM) => made.remedy("only root may make one"),
                _ => made,
            })
        }
    }
}

/// `error` with what the kernel says about the last write to a file of resctrl.
fn explained(root: &Path, error: Error) -> Error {
    let said = fs::read_to_string(root.join("info/last_cmd_status"));
    match said.unwrap_or_default().trim() {
        "" | "ok" => error,
        said => error.remedy(format!("the kernel says: {said}")),
    }
}

/// Writes to a file of the kernel's, at one stroke. There it is already.
fn write(field: &str, path: &Path, text: &str) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| {
            Error::io(
                format!("{field}: write"),
                path.display().to_string(),
                &error,
            )
        })
}

/// Whether a schemata file has all that a line asks for: `L3:0=ff;1=c0`.
fn holds(line: &str, file: &str) -> bool {
    let Some((resource, wanted)) = line.trim().split_once(':') else {
        return false;
    };
    let there: Vec<(&str, &str)> = file
        .lines()
        .filter_map(|line| line.trim().split_once(':'))
        .filter(|(name, _)| name.trim() == resource.trim())
        .flat_map(|(_, values)| pairs(values))
        .collect();
    !there.is_empty()
        && pairs(wanted).all(|(id, value)| {
            there.iter().any(|(known, found)| {
                *known == id && number(resource, found) == number(resource, value)
            })
        })
}

fn pairs(values: &str) -> impl Iterator<Item = (&str, &str)> {
    let parts = values
        .split(';')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(id, value)| (id.trim(), value.trim()))
}

/// A value without the ways to write it: bandwidths are decimal, masks hexadecimal.
fn number(resource: &str, value: &str) -> std::result::Result<u128, String> {
    let radix = if resource.trim().ends_with("MB") || resource.trim() == "SMBA" {
        10
    } else {
        16
    };
    u128::from_str_radix(value, radix).map_err(|_| value.to_string())
}
