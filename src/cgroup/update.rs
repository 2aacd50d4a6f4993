//! New limits for a container that runs: all of them, or none.

use std::os::fd::AsFd;

use nix::errno::Errno;
use oci_spec::runtime::{Linux, LinuxResources};

use super::create::set;
use super::fs;
use super::hierarchies;
use super::placed::{Placed, PlacedDir};
use super::plan::{Write, plan};
use super::readback::Check;
use crate::error::{Error, Kind, Result};
use crate::log;

/// A limit as it was, for taking its change back.
struct Before<'a> {
    dir: &'a PlacedDir,
    file: String,
    value: String,
}

impl Placed {
    /// Puts limits in force and reads each back. When one is refused, those before it are set back: the
    /// old ones stay in force. Limits that depend on each other (memory and swap, quota and period) are
    /// written in the order that the kernel takes.
    ///
    /// # Errors
    /// The field whose value the kernel refuses or changes, with the file and the errno.
    pub fn update(&self, resources: LinuxResources) -> Result<()> {
        let mut linux = Linux::default();
        linux.set_resources(Some(resources));
        let host = hierarchies::detect(Some(&linux))?;
        // Paths are those of the record; only the limits of this plan are of use.
        let mut planned = plan(Some(&linux), "update", &host)?;
        for dir in &mut planned.dirs {
            // Device rules stay as they are.
            dir.devices = None;
        }
        self.check_usage(&linux)?;
        let mut pending: Vec<(&PlacedDir, &Write)> = Vec::new();
        for dir in &planned.dirs {
            if dir.writes.is_empty() {
                continue;
            }
            let mut own = self.dirs.iter().filter(|own| !own.others);
            let own = own
                .find(|own| own.version == dir.version && own.path.starts_with(&dir.mount))
                .ok_or_else(|| {
                    let sentence = format!(
                        "{}: the container has no cgroup below {}",
                        dir.writes[0].field,
                        dir.mount.display()
                    );
                    Error::new(Kind::State, sentence)
                })?;
            pending.extend(dir.writes.iter().map(|write| (own, write)));
        }
        let mut done: Vec<Before<'_>> = Vec::new();
        let written = write_all(pending.clone(), &mut done).and_then(|()| match &self.unit {
            Some(unit) => {
                unit.set(&planned.dirs)?;
                // systemd has written its own idea of them now, in percent of a CPU for one.
                write_all(pending, &mut Vec::new())
            }
            None => Ok(()),
        });
        match written {
            Ok(()) => Ok(()),
            Err(error) => {
                for before in done.iter().rev() {
                    if let Err(second) = restore(before) {
                        log::warning(&format!("after a failed update: {second}"));
                    }
                }
                Err(error)
            }
        }
    }

    /// checkBeforeUpdate: a limit below what is in use now would end processes.
    fn check_usage(&self, linux: &Linux) -> Result<()> {
        let memory = linux.resources().as_ref().and_then(|r| r.memory().as_ref());
        let Some(memory) = memory.filter(|memory| memory.check_before_update() == Some(true))
        else {
            return Ok(());
        };
        let Some(limit) = memory.limit().and_then(|limit| u64::try_from(limit).ok()) else {
            return Ok(());
        };
        let usage = self.stats()?.memory.usage.usage;
        if limit != 0 && usage > limit {
            return Err(Error::new(
                Kind::State,
                format!(
                    "linux.resources.memory.limit: unable to set memory limit to {limit} (current \
                     usage: {usage})"
                ),
            )
            .remedy("checkBeforeUpdate is set"));
        }
        Ok(())
    }
}

/// Writes all; one that is refused is tried again after the others, as long as that helps.
fn write_all<'a>(
    mut pending: Vec<(&'a PlacedDir, &Write)>,
    done: &mut Vec<Before<'a>>,
) -> Result<()> {
    loop {
        let mut refused: Vec<(&PlacedDir, &Write)> = Vec::new();
        let mut first = None;
        let count = pending.len();
        for (dir, write) in pending {
            let before = before(dir, write);
            let open = fs::open_dir(&dir.path)
                .map_err(|errno| Error::os("open cgroup", dir.path.display().to_string(), errno))?;
            match set(open.as_fd(), &dir.path, write) {
                Ok(()) => done.extend(before),
                Err(error) => {
                    // What was written and reads back otherwise is taken back, too.
                    if error.errno().is_none() {
                        done.extend(before);
                        return Err(error);
                    }
                    let again = matches!(error.errno(), Some(Errno::EINVAL | Errno::EBUSY));
                    if !again {
                        return Err(error);
                    }
                    first.get_or_insert(error);
                    refused.push((dir, write));
                }
            }
        }
        match first {
            None => return Ok(()),
            Some(error) if refused.len() == count => return Err(error),
            Some(_) => pending = refused,
        }
    }
}

/// What a file says now, in the form in which it can be written; nothing where there is no such file.
fn before<'a>(dir: &'a PlacedDir, write: &Write) -> Option<Before<'a>> {
    let instead = write.instead.as_ref().map(|(file, ..)| file);
    let names = std::iter::once(&write.file).chain(instead);
    let (file, text) = names
        .filter_map(|file| Some((file, fs::read_path(&dir.path.join(file)).ok()?)))
        .next()?;
    Some(Before {
        dir,
        file: file.clone(),
        value: as_written(write, &text)?,
    })
}

fn as_written(write: &Write, text: &str) -> Option<String> {
    let Check::Line { wants } = &write.check else {
        return Some(text.trim_end().to_string());
    };
    if write.file == "memory.oom_control" {
        let line = text
            .lines()
            .find(|line| line.starts_with("oom_kill_disable"))?;
        return line.split_whitespace().nth(1).map(str::to_string);
    }
    // One line of several: the one of the same device.
    let key = wants.split_whitespace().next()?;
    let same = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(key));
    Some(match (same, wants.split_once('=')) {
        (Some(line), _) => line.to_string(),
        // A device without a line has no limit.
        (None, Some((start, _))) => format!("{start}=max"),
        (None, None) => format!("{key} 0"),
    })
}

fn restore(before: &Before<'_>) -> Result<()> {
    let value = match before.value.as_str() {
        // An empty write is none.
        "" => "\n",
        value => value,
    };
    fs::open_dir(&before.dir.path)
        .and_then(|dir| fs::write_in(dir.as_fd(), &before.file, value))
        .map_err(|errno| {
            let path = before.dir.path.join(&before.file);
            Error::os(
                format!("write {value:?} back to"),
                path.display().to_string(),
                errno,
            )
        })
}
