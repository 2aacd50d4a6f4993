//! New limits for a container that runs: all of them, or none.

use std::os::fd::AsFd;

use nix::errno::Errno;
use oci_spec::runtime::{Linux, LinuxResources};

use super::create::set;
use super::device_change::{Changed, told};
use super::devices::Devices;
use super::fs;
use super::hierarchies::{self, Hierarchies};
use super::limits;
use super::placed::{Placed, PlacedDir};
use super::plan::{CgroupPlan, PlannedDir, Write, plan};
use super::readback::Check;
use super::systemd::Unit;
use crate::error::{Error, Kind, Result};

/// A limit as it was, for taking its change back.
struct Before<'a> {
    dir: &'a PlacedDir,
    file: String,
    value: String,
}

/// What an update has changed until now, for taking it back.
#[derive(Default)]
struct Undo<'a> {
    files: Vec<Before<'a>>,
    devices: Option<Changed<'a>>,
    /// systemd's unit was changed, too: what it is to be told again.
    unit: Option<Vec<PlannedDir>>,
}

/// What an update is to put in force.
struct Asked {
    plan: CgroupPlan,
    /// Device rules, with the directory in the plan that enforces them.
    devices: Option<(usize, Devices)>,
}

impl Asked {
    fn new(linux: &Linux, devices: Option<Devices>, host: &Hierarchies) -> Result<Self> {
        // Paths are those of the record; only the limits of this plan are of use.
        let mut plan = plan(Some(linux), "update", host)?;
        for dir in &mut plan.dirs {
            dir.devices = None;
        }
        let devices = match devices {
            None => None,
            Some(rules) => {
                let at = limits::devices_at(&plan).ok_or_else(limits::no_devices)?;
                // Without a rule, too: systemd is told that all is allowed.
                plan.dirs[at].devices = Some(rules.clone());
                Some((at, rules))
            }
        };
        Ok(Self { plan, devices })
    }
}

impl Placed {
    /// Puts limits in force and reads each back. When one is refused, those before it are set back: the
    /// old ones stay in force. Limits that depend on each other (memory and swap, quota and period) are
    /// written in the order that the kernel takes. Device rules are changed if there are some, and if
    /// they are not those of `before`, which are the limits until now: engines hand on what config.json
    /// has with every update, and somebody may have added devices since.
    ///
    /// # Errors
    /// The field whose value the kernel refuses or changes, with the file and the errno.
    pub fn update(&self, resources: LinuxResources, before: &LinuxResources) -> Result<()> {
        let known = rules(before)?;
        let new = match resources.devices().as_ref().is_none_or(Vec::is_empty) {
            true => None,
            false => Some(rules(&resources)?).filter(|new| *new != known),
        };
        let linux = with(resources);
        let host = hierarchies::detect(Some(&linux))?;
        let asked = Asked::new(&linux, new, &host)?;
        self.check_usage(&linux)?;
        let mut pending: Vec<(&PlacedDir, &Write)> = Vec::new();
        for dir in asked.plan.dirs.iter().filter(|dir| !dir.writes.is_empty()) {
            let own = self.own(dir, &dir.writes[0].field)?;
            pending.extend(dir.writes.iter().map(|write| (own, write)));
        }
        let devices = asked.devices.as_ref().map(|(at, rules)| {
            let dir = self.own(&asked.plan.dirs[*at], "linux.resources.devices")?;
            Ok::<_, Error>((dir, rules))
        });
        let devices = devices.transpose()?;
        let mut undo = Undo::default();
        let back = match &self.unit {
            Some(_) => self.in_force(&asked, &known)?,
            None => Vec::new(),
        };
        let written = write_all(pending.clone(), &mut undo.files).and_then(|()| {
            if let Some((dir, rules)) = devices {
                undo.devices = Some(self.change_devices(dir, rules, &known)?);
            }
            match &self.unit {
                Some(unit) => self.tell_unit(unit, &asked, back, pending, &mut undo),
                None => Ok(()),
            }
        });
        if written.is_err() {
            self.take_back(undo);
        }
        written
    }

    /// Sets the unit's properties, and then the limits again: systemd has written its own idea of them
    /// now, in percent of a CPU for one. `back` are those until now.
    fn tell_unit(
        &self,
        unit: &Unit,
        asked: &Asked,
        back: Vec<PlannedDir>,
        pending: Vec<(&PlacedDir, &Write)>,
        undo: &mut Undo<'_>,
    ) -> Result<()> {
        // On v1 systemd denies all devices before it allows those of its list, and knows no "all but".
        let on_v1 = matches!(undo.devices, Some(Changed::V1 { .. }));
        self.standing_still(on_v1, || {
            unit.set(&asked.plan.dirs)?;
            undo.unit = Some(back);
            unit.settle()?;
            undo.devices.as_ref().map_or(Ok(()), Changed::renew)
        })?;
        write_all(pending, &mut Vec::new())
    }

    /// Puts in force again what was before an update. What cannot be set back is told, and does not keep
    /// the rest from it.
    fn take_back(&self, undo: Undo<'_>) {
        let on_v1 = matches!(undo.devices, Some(Changed::V1 { .. }));
        self.still_if_possible(on_v1 && undo.unit.is_some(), || {
            // First the unit: systemd writes to the cgroup what it is told.
            if let (Some(unit), Some(back)) = (&self.unit, &undo.unit) {
                told(unit.set(back).and_then(|()| unit.settle()));
            }
            if let Some(changed) = undo.devices {
                self.undo_devices(changed);
            }
        });
        for before in undo.files.iter().rev() {
            told(restore(before));
        }
    }

    /// The limits and device rules that are in force where `asked` would change them, as systemd is to be
    /// told of them again: read from the cgroup, since no record has what others write there.
    fn in_force(&self, asked: &Asked, known: &Devices) -> Result<Vec<PlannedDir>> {
        let mut dirs = asked.plan.dirs.clone();
        for dir in &mut dirs {
            if dir.devices.is_some() {
                dir.devices = Some(known.clone());
            }
            let has = |file| dir.writes.iter().any(|write| write.file == file);
            if has("cpu.idle") && !has("cpu.weight") {
                // To systemd idle is a weight.
                let field = "linux.resources.cpu.idle";
                dir.writes
                    .push(Write::new("cpu", "cpu.weight", "", field, Check::Exact));
            }
            let Some(first) = dir.writes.first() else {
                continue;
            };
            let own = self.own(dir, &first.field)?;
            dir.writes.retain_mut(|write| match before(own, write) {
                Some(before) => {
                    write.value = before.value;
                    true
                }
                None => false,
            });
        }
        Ok(dirs)
    }

    /// The container's directory in the hierarchy of a planned one.
    fn own(&self, planned: &PlannedDir, field: &str) -> Result<&PlacedDir> {
        let mut own = self.dirs.iter().filter(|own| !own.others);
        own.find(|own| own.version == planned.version && own.path.starts_with(&planned.mount))
            .ok_or_else(|| {
                let sentence = format!(
                    "{field}: the container has no cgroup below {}",
                    planned.mount.display()
                );
                Error::new(Kind::State, sentence)
            })
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

fn with(resources: LinuxResources) -> Linux {
    let mut linux = Linux::default();
    linux.set_resources(Some(resources));
    linux
}

/// The device rules of these limits, with the default ones.
fn rules(resources: &LinuxResources) -> Result<Devices> {
    Devices::from_spec(resources.devices().as_deref().unwrap_or_default())
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
    Some(match same {
        Some(line) => line.to_string(),
        // A device without a line has no limit.
        None if wants.contains('=') => {
            let limits = wants.split_whitespace().skip(1);
            let names = limits.filter_map(|limit| Some(limit.split_once('=')?.0));
            names.fold(key.to_string(), |line, name| format!("{line} {name}=max"))
        }
        None => format!("{key} 0"),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cgroup::Cgroup;
    use crate::cgroup::tests::kernel::{can_v1, name, planned};
    use crate::cgroup::tests::resources;

    /// What systemd is told again is what the files say, also where somebody else has written to them;
    /// and a failure after systemd was told sets back files and device rules in one go.
    #[test]
    fn back_to_what_was_in_force() {
        if !can_v1() {
            return;
        }
        let none = json!([{"allow": false, "access": "rwm"}]);
        let asked = json!({"pids": {"limit": 50}, "cpu": {"shares": 512}, "devices": none});
        let (host, plan) = planned(&format!("/{}", name("force")), asked);
        let cgroup = Cgroup::create(&plan).unwrap();
        let placed = cgroup.placed();
        let file = |name: &str| {
            let mut paths = placed.dirs.iter().map(|dir| dir.path.join(name));
            paths.find(|path| path.exists()).unwrap()
        };
        let read = |name| std::fs::read_to_string(file(name)).unwrap();
        std::fs::write(file("pids.max"), "33").unwrap();
        std::fs::write(file("cpu.shares"), "700").unwrap();
        let all = json!([{"allow": true, "access": "rwm"}]);
        let new = json!({"pids": {"limit": 7}, "cpu": {"shares": 20}, "devices": all});
        let linux = resources(new);
        let of = |list| {
            let linux = resources(json!({ "devices": list }));
            rules(linux.resources().as_ref().unwrap()).unwrap()
        };
        let known = of(none);
        let asked = Asked::new(&linux, Some(of(all)), &host).unwrap();
        let back = placed.in_force(&asked, &known).unwrap();
        let rows = |dirs: &[PlannedDir]| {
            let rows = dirs.iter().flat_map(|dir| &dir.writes);
            let row = |row: &Write| format!("{}={}", row.file, row.value);
            rows.map(row).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(
            rows(&back),
            ["cpu.shares=700", "pids.max=33"].map(String::from).into()
        );
        assert!(back.iter().any(|dir| dir.devices.as_ref() == Some(&known)));

        let list = read("devices.list");
        let mut undo = Undo::default();
        for dir in &asked.plan.dirs {
            let own = |write: &Write| placed.own(dir, &write.field).unwrap();
            let pending = dir.writes.iter().map(|write| (own(write), write)).collect();
            write_all(pending, &mut undo.files).unwrap();
        }
        let (at, rules) = asked.devices.as_ref().unwrap();
        let dir = placed.own(&asked.plan.dirs[*at], "devices").unwrap();
        undo.devices = Some(placed.change_devices(dir, rules, &known).unwrap());
        undo.unit = Some(back);
        assert_eq!(read("pids.max"), "7\n");
        assert_eq!(read("devices.list"), "a *:* rwm\n");
        placed.take_back(undo);
        assert_eq!(read("pids.max"), "33\n");
        assert_eq!(read("cpu.shares"), "700\n");
        let sorted = |list: String| {
            let lines = list.lines().map(String::from);
            lines.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(sorted(read("devices.list")), sorted(list));
        assert!(!placed.frozen());
        placed.remove().unwrap();
    }

    /// What is written to go back, from what the file said before.
    #[test]
    fn the_way_back() {
        let line = |file: &str, wants: &str| {
            let controller = file.split('.').next().unwrap();
            Write::new(controller, file, wants, "field", Check::line(wants))
        };
        let both = "mlx hca_handle=2 hca_object=7";
        for (write, before, want) in [
            (
                line("rdma.max", both),
                "",
                "mlx hca_handle=max hca_object=max",
            ),
            (
                line("rdma.max", both),
                "old hca_handle=1 hca_object=1\nmlx hca_handle=5 hca_object=max\n",
                "mlx hca_handle=5 hca_object=max",
            ),
            (
                line("io.max", "8:0 rbps=1"),
                "8:16 rbps=2\n",
                "8:0 rbps=max",
            ),
            (line("io.weight", "8:0 100"), "default 50\n", "8:0 0"),
            (
                Write::new("pids", "pids.max", 3, "field", Check::Exact),
                "max\n",
                "max",
            ),
        ] {
            let got = as_written(&write, before);
            assert_eq!(got.as_deref(), Some(want), "{before:?}");
        }
    }
}
