//! A cgroup that systemd makes: the unit first, with the container's process in it, then what systemd
//! does not do.

use std::path::Path;

use nix::errno::Errno;

use super::create::{Cgroup, OpenDir, ROOTLESS, reusable};
use super::placed::{Placed, PlacedDir};
use super::plan::{CgroupPlan, Version};
use crate::error::{Error, Result};

impl Cgroup {
    /// The cgroup of a plan for systemd before its process is there: nothing is made yet.
    ///
    /// # Errors
    /// It is there, and somebody uses it.
    pub fn pending(plan: &CgroupPlan) -> Result<Self> {
        for dir in &plan.dirs {
            reusable(Some(&mut PlacedDir {
                version: dir.version,
                freezer: dir.freezes(),
                path: dir.path.clone(),
                made: false,
                parents: Vec::new(),
                others: false,
            }))?;
        }
        Ok(Self {
            dirs: Vec::with_capacity(plan.dirs.len()),
            placed: Placed {
                mode: plan.mode,
                dirs: Vec::with_capacity(plan.dirs.len()),
                unit: None,
            },
            clone_into: false,
        })
    }

    /// Lets systemd make the unit with process `pid` in it, which must wait meanwhile; then writes all
    /// limits, those that systemd knows of exactly, reads them back, puts the device rules in force, and
    /// moves the process into the v1 hierarchies that systemd leaves alone.
    ///
    /// # Errors
    /// As [`Cgroup::create`], and systemd's. [`Cgroup::placed`] has the unit from when there is one.
    pub fn start_scope(&mut self, plan: &CgroupPlan, pid: i32) -> Result<()> {
        let Some(scope) = &plan.scope else {
            return Ok(());
        };
        scope.start(pid)?;
        self.placed.unit = Some(scope.unit());
        for dir in &plan.dirs {
            self.make(dir).map_err(|error| match error.errno() {
                Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) if plan.rootless => {
                    error.context(ROOTLESS)
                }
                _ => error,
            })?;
        }
        let mine = self.dirs.iter().zip(&plan.dirs).filter(|(open, planned)| {
            // In its own hierarchies systemd has done it.
            let systemd = planned
                .controllers
                .iter()
                .any(|name| name == "name=systemd");
            open.version == Version::V1 && !systemd
        });
        for (open, _) in mine {
            self.join_one(open, pid)?;
        }
        Ok(())
    }

    /// After a process could not be moved by its file: systemd may do it, where it made the cgroup. A
    /// user may only move what is below a cgroup of its own, which a login session is not.
    pub(super) fn attach(&self, dir: &OpenDir, pid: i32, error: Error) -> Result<()> {
        let denied = matches!(error.errno(), Some(Errno::EACCES | Errno::EPERM));
        match &self.placed.unit {
            Some(unit) if denied && dir.version == Version::V2 => {
                unit.attach(&below(&dir.path, &unit.name), pid)
            }
            _ => Err(error),
        }
    }
}

/// The part of a path below the directory of this name, with the slash before it; empty for itself.
fn below(path: &Path, unit: &str) -> String {
    let parts = path.iter().skip_while(|part| *part != unit).skip(1);
    parts.fold(String::new(), |so_far, part| {
        format!("{so_far}/{}", part.to_string_lossy())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_unit() {
        for (path, want) in [
            ("/sys/fs/cgroup/a.slice/x.scope", ""),
            ("/sys/fs/cgroup/a.slice/x.scope/b/c", "/b/c"),
            ("/sys/fs/cgroup/other", ""),
        ] {
            assert_eq!(below(Path::new(path), "x.scope"), want, "{path}");
        }
    }
}
