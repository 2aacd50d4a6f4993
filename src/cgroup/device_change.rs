//! New device rules for a container that runs. At no moment is a device refused that was allowed and
//! stays so, and at none can one be opened that was forbidden and stays so.
//!
//! On v2 the program is replaced at one stroke. On v1 what is new is written first, then what goes. Where
//! v1's base changes (all allowed, or all denied but a list) its controller starts from nothing, so the
//! container stands still meanwhile. What v1 does not give (docs/decisions/0004): without a freezer such a
//! change is seen, and cgroups below lose for good what is denied for a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;

use super::create::{ATTACH, LOAD};
use super::devices::{Access, DeviceKind, Devices, Folded, Name, line};
use super::fs;
use super::placed::{Placed, PlacedDir};
use super::plan::Version;
use crate::error::{Error, Kind, Result};
use crate::log;
use crate::sys::bpf::{self, Attached, Programs};

const FIELD: &str = "linux.resources.devices";

/// Lines for files of v1's controller, in their order.
type Lines = Vec<(&'static str, String)>;

/// Rules that were put in force, with what it takes to go back to those before.
pub(super) enum Changed<'a> {
    /// The tables that v1's controller had, and has.
    V1 {
        dir: &'a PlacedDir,
        before: Folded,
        now: Folded,
    },
    /// The programs that the cgroup had, and the one that it has now; none where all is allowed.
    V2 {
        dir: &'a PlacedDir,
        before: Vec<Attached>,
        now: Option<OwnedFd>,
    },
}

impl Placed {
    /// Puts `rules` in force in the place of those that are; `known` are the rules as they were asked for
    /// last: v1's controller does not tell what it denies on top of everything allowed.
    ///
    /// # Errors
    /// The kernel's refusal; the old rules are in force then.
    pub(super) fn change_devices<'a>(
        &'a self,
        dir: &'a PlacedDir,
        rules: &Devices,
        known: &Devices,
    ) -> Result<Changed<'a>> {
        match dir.version {
            Version::V1 => {
                let now = rules.fold()?;
                let before = current(&dir.path, &known.fold().unwrap_or_default())?;
                let still = before.0 != now.0;
                let lines = certain(&before, &now, &before);
                match self.standing_still(still, || write(&dir.path, &lines, &now)) {
                    Ok(()) => Ok(Changed::V1 { dir, before, now }),
                    Err(error) => {
                        told(self.go_back(dir, &before, &now));
                        Err(error)
                    }
                }
            }
            Version::V2 => replace(dir, rules),
        }
    }

    /// Back from wherever the way from `before` to `now` was left, and whatever systemd has written since.
    fn go_back(&self, dir: &PlacedDir, before: &Folded, now: &Folded) -> Result<()> {
        let found = current(&dir.path, &Folded::default())?;
        let lines = certain(&found, before, now);
        self.still_if_possible(found.0 != before.0, || write(&dir.path, &lines, before))
    }

    /// Does `work`, if `still` while no process of the container runs.
    pub(super) fn standing_still<T>(
        &self,
        still: bool,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        // Who is paused stays so; without a freezer it has to go without.
        if !still || self.freezer().is_none() || self.frozen() {
            return work();
        }
        self.pause()?;
        let done = work();
        self.resume()?;
        done
    }

    /// The same for the way back, which has to be gone also where the processes do not stand still.
    pub(super) fn still_if_possible<T>(&self, still: bool, work: impl FnOnce() -> T) -> T {
        if !still || self.freezer().is_none() || self.frozen() {
            return work();
        }
        let paused = self.pause();
        let resume = paused.is_ok();
        told(paused);
        let done = work();
        if resume {
            told(self.resume());
        }
        done
    }

    /// Goes back to the rules before a change.
    pub(super) fn undo_devices(&self, changed: Changed<'_>) {
        match changed {
            Changed::V1 { dir, before, now } => told(self.go_back(dir, &before, &now)),
            Changed::V2 { dir, before, now } => told(put_back(dir, &before, now.as_ref())),
        }
    }
}

impl Changed<'_> {
    /// Puts the rules in force again, after systemd has set its own.
    pub(super) fn renew(&self) -> Result<()> {
        match self {
            Self::V1 { dir, now, .. } => {
                let found = current(&dir.path, &Folded::default())?;
                write(&dir.path, &certain(&found, now, now), now)
            }
            Self::V2 { now: None, .. } => Ok(()),
            Self::V2 {
                dir,
                now: Some(now),
                ..
            } => {
                let fd = open(dir)?;
                let there = Programs::of(fd.as_fd()).map_err(|errno| refused(LOOK, dir, errno))?;
                if there.attached.iter().any(Attached::is_ours) {
                    return Ok(());
                }
                bpf::attach_device_program(fd.as_fd(), now.as_fd())
                    .map_err(|errno| refused(ATTACH, dir, errno))
            }
        }
    }
}

/// An error of going back, which is not the one to be told first.
pub(super) fn told(back: Result<()>) {
    if let Err(error) = back {
        log::warning(&format!("after a failed update: {error}"));
    }
}

const LOOK: &str = "find the eBPF program of linux.resources.devices at cgroup";
const DETACH: &str = "detach the old eBPF program of linux.resources.devices from cgroup";

fn refused(what: &str, dir: &PlacedDir, errno: Errno) -> Error {
    Error::os(what, dir.path.display().to_string(), errno)
        .remedy("run with CAP_SYS_ADMIN in the initial user namespace")
}

fn open(dir: &PlacedDir) -> Result<OwnedFd> {
    fs::open_dir(&dir.path)
        .map_err(|errno| Error::os("open cgroup", dir.path.display().to_string(), errno))
}

/// systemd's program says what the properties of the unit say, and is changed with those. Any other one
/// is ours, or was made of ours by somebody who added devices.
fn of_systemd(program: &Attached) -> bool {
    program.name.starts_with("sd_")
}

fn replace<'a>(dir: &'a PlacedDir, rules: &Devices) -> Result<Changed<'a>> {
    let fd = open(dir)?;
    let there = Programs::of(fd.as_fd()).map_err(|errno| refused(LOOK, dir, errno))?;
    let now = match rules.allow_all() {
        true => None,
        false => Some(
            bpf::load_device_program(&rules.program()?)
                .map_err(|errno| refused(LOAD, dir, errno))?,
        ),
    };
    let mut before = there.attached.iter().filter(|one| !of_systemd(one));
    if let Some(now) = &now {
        match before.next() {
            Some(old) => there.replace(fd.as_fd(), old.program.as_fd(), now.as_fd()),
            None => bpf::attach_device_program(fd.as_fd(), now.as_fd()),
        }
        .map_err(|errno| refused(ATTACH, dir, errno))?;
    }
    let detached = before.try_for_each(|old| {
        bpf::detach_device_program(fd.as_fd(), old.program.as_fd())
            .map_err(|errno| refused(DETACH, dir, errno))
    });
    let mut before = there.attached;
    before.retain(|one| !of_systemd(one));
    match detached {
        Ok(()) => Ok(Changed::V2 { dir, before, now }),
        Err(error) => {
            told(put_back(dir, &before, now.as_ref()));
            Err(error)
        }
    }
}

/// A step back to programs that were attached, by their place in the list of those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StepBack {
    /// Beside those that are.
    Attach(usize),
    /// In the place of the one of now.
    Replace(usize),
    /// The one of now comes off.
    Detach,
}

/// The steps back to `gone` programs, from one that is there `now` or from none. The one of now goes last:
/// until then it and those before forbid what both forbid.
fn steps_back(now: bool, gone: usize) -> Vec<StepBack> {
    let mut steps: Vec<StepBack> = (0..gone).rev().map(StepBack::Attach).collect();
    match (now, steps.last_mut()) {
        (true, Some(last)) => *last = StepBack::Replace(0),
        (true, None) => steps.push(StepBack::Detach),
        (false, _) => {}
    }
    steps
}

/// Attaches `before` again, and takes `now` off.
fn put_back(dir: &PlacedDir, before: &[Attached], now: Option<&OwnedFd>) -> Result<()> {
    let fd = open(dir)?;
    let there = Programs::of(fd.as_fd()).map_err(|errno| refused(LOOK, dir, errno))?;
    let missing = |old: &&Attached| there.attached.iter().all(|one| one.id != old.id);
    let gone: Vec<&Attached> = before.iter().filter(missing).collect();
    for step in steps_back(now.is_some(), gone.len()) {
        let old = |at: usize| gone[at].program.as_fd();
        match (step, now) {
            (StepBack::Replace(at), Some(now)) => there.replace(fd.as_fd(), now.as_fd(), old(at)),
            (StepBack::Detach, Some(now)) => bpf::detach_device_program(fd.as_fd(), now.as_fd()),
            (StepBack::Attach(at) | StepBack::Replace(at), _) => {
                bpf::attach_device_program(fd.as_fd(), old(at))
            }
            (StepBack::Detach, None) => Ok(()),
        }
        .map_err(|errno| refused(ATTACH, dir, errno))?;
    }
    Ok(())
}

/// The table that v1's controller has now. What it denies on top of everything allowed it does not tell:
/// that is as in `known`.
fn current(path: &Path, known: &Folded) -> Result<Folded> {
    let file = path.join("devices.list");
    let text = fs::read_path(&file)
        .map_err(|errno| Error::os("read", file.display().to_string(), errno))?;
    let mut found = parse(&text).ok_or_else(|| {
        let sentence = format!("{}: {text:?} is no list of devices", file.display());
        Error::new(Kind::System, sentence)
    })?;
    if found.0 && known.0 {
        found.1 = known.1.clone();
    }
    Ok(found)
}

/// devices.list (Linux Documentation/admin-guide/cgroup-v1/devices.rst): `a *:* rwm` alone where all is
/// allowed, without what is denied on top of it; else what is allowed.
fn parse(text: &str) -> Option<Folded> {
    let mut found = BTreeMap::new();
    for entry in text.lines() {
        let mut words = entry.split_ascii_whitespace();
        let kind = match words.next()? {
            "a" => return Some((true, BTreeMap::new())),
            "b" => DeviceKind::Block,
            "c" => DeviceKind::Char,
            _ => return None,
        };
        let (major, minor) = words.next()?.split_once(':')?;
        let number = |text: &str| match text {
            "*" => Some(None),
            text => text.parse::<u32>().ok().map(Some),
        };
        let name: Name = (kind, number(major)?, number(minor)?);
        let access = Access::try_from(words.next()?.to_string()).ok()?;
        *found.entry(name).or_default() |= access.bits();
    }
    Some((false, found))
}

/// The lines that lead from one table to the other.
fn transition(from: &Folded, to: &Folded) -> Lines {
    let (more, less) = match to.0 {
        true => ("devices.deny", "devices.allow"),
        false => ("devices.allow", "devices.deny"),
    };
    let mut lines = Lines::new();
    let nothing = BTreeMap::new();
    let mut old = &from.1;
    if from.0 != to.0 {
        // The one that takes exceptions away is the one that sets their opposite as the base.
        lines.push((less, "a".to_string()));
        old = &nothing;
    }
    let mut differ = |file, some: &BTreeMap<Name, u8>, others: &BTreeMap<Name, u8>| {
        for (name, bits) in some {
            let only = bits & !others.get(name).copied().unwrap_or(0);
            if only != 0 {
                lines.push((file, line(name, only)));
            }
        }
    };
    differ(more, &to.1, old);
    differ(less, old, &to.1);
    lines
}

/// The lines that lead to `to` for sure. With all allowed as the base, before and after, nobody can tell
/// which exceptions are there: all of `to` are written, which does no harm to one that is there, and then
/// those of `others` that may be there are taken away.
fn certain(found: &Folded, to: &Folded, others: &Folded) -> Lines {
    if !(found.0 && to.0) {
        return transition(found, to);
    }
    let mut lines = transition(&(true, BTreeMap::new()), to);
    if others.0 {
        let less = transition(others, to).into_iter();
        lines.extend(less.filter(|(file, _)| *file == "devices.allow"));
    }
    lines
}

/// Writes lines, and reads back what is in force.
fn write(path: &Path, lines: &Lines, to: &Folded) -> Result<()> {
    let open = fs::open_dir(path)
        .map_err(|errno| Error::os("open cgroup", path.display().to_string(), errno))?;
    put(open.as_fd(), path, lines, to)
}

/// Writes lines to v1's controller, and compares what it says then with the table `wanted`.
pub(super) fn put(
    dir: std::os::fd::BorrowedFd<'_>,
    path: &Path,
    lines: &[(&'static str, String)],
    wanted: &Folded,
) -> Result<()> {
    for (file, line) in lines {
        fs::write_in(dir, file, line).map_err(|errno| {
            let what = format!("{FIELD}: write {line:?} to");
            Error::os(what, path.join(file).display().to_string(), errno).remedy(match errno {
                Errno::EINVAL => "all is allowed or denied only where no cgroups are below it",
                _ => "a parent cgroup allows fewer devices",
            })
        })?;
    }
    let file = path.join("devices.list");
    let got = fs::read_path(&file)
        .map_err(|errno| Error::os("read", file.display().to_string(), errno))?;
    // With "all" as the base the kernel does not list the exceptions.
    let want: BTreeSet<String> = match wanted.0 {
        true => BTreeSet::from(["a *:* rwm".to_string()]),
        false => wanted
            .1
            .iter()
            .map(|(name, bits)| line(name, *bits))
            .collect(),
    };
    let have: BTreeSet<String> = got.lines().map(str::to_string).collect();
    if have == want {
        return Ok(());
    }
    let sentence = format!(
        "{FIELD}: {} should be {want:?}, and is {have:?}",
        file.display()
    );
    Err(Error::new(Kind::System, sentence).remedy("a parent cgroup allows other devices"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(base: bool, lines: &[&str]) -> Folded {
        (base, parse(&lines.join("\n")).unwrap().1)
    }

    fn told(lines: &Lines) -> Vec<String> {
        let one = |(file, line): &(&str, String)| {
            format!("{} {line}", file.trim_start_matches("devices."))
        };
        lines.iter().map(one).collect()
    }

    #[test]
    fn what_the_kernel_lists() {
        assert_eq!(parse("a *:* rwm\n"), Some((true, BTreeMap::new())));
        assert_eq!(parse(""), Some((false, BTreeMap::new())));
        let found = parse("c 1:3 rwm\nb *:* m\nc 136:* rw\n").unwrap();
        assert!(!found.0);
        assert_eq!(found.1.len(), 3);
        assert_eq!(found.1[&(DeviceKind::Char, Some(136), None)], 6);
        for wrong in ["x 1:3 r", "c 1 r", "c 1:3", "c 1:3 x", "c a:3 r"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    /// The difference alone, and what is new before what goes.
    #[test]
    fn only_the_difference() {
        for (base, from, to, want) in [
            (false, &["c 1:3 rwm"][..], &["c 1:3 rwm"][..], &[][..]),
            (
                false,
                &["c 1:* rwm", "c 5:0 r"],
                &["c 1:3 rwm", "c 5:0 rw"],
                &["allow c 1:3 rwm", "allow c 5:0 w", "deny c 1:* rwm"],
            ),
            (false, &["c 1:3 rwm"], &["c 1:3 r"], &["deny c 1:3 wm"]),
            // With all allowed the exceptions are what is denied.
            (
                true,
                &["c 1:11 rw"],
                &["c 1:11 r", "b 8:0 m"],
                &["deny b 8:0 m", "allow c 1:11 w"],
            ),
        ] {
            let lines = transition(&table(base, from), &table(base, to));
            assert_eq!(told(&lines), want, "{from:?} {to:?}");
        }
        let lines = transition(&table(true, &["b 8:0 r"]), &table(false, &["c 1:3 rwm"]));
        assert_eq!(told(&lines), ["deny a", "allow c 1:3 rwm"]);
        let lines = transition(&table(false, &["c 1:3 rwm"]), &table(true, &["b 8:0 r"]));
        assert_eq!(told(&lines), ["allow a", "deny b 8:0 r"]);
    }

    /// One line to a model of the kernel's controller.
    fn apply(table: &mut Folded, (file, line): &(&'static str, String)) {
        if line == "a" {
            *table = (*file == "devices.allow", BTreeMap::new());
            return;
        }
        let adds = (*file == "devices.deny") == table.0;
        for (name, bits) in parse(line).unwrap().1 {
            let entry = table.1.entry(name).or_default();
            *entry = if adds { *entry | bits } else { *entry & !bits };
        }
        table.1.retain(|_, bits| *bits != 0);
    }

    /// From wherever a change was left, also by systemd, the way back ends where it began; the kernel
    /// tells no exceptions of "all".
    #[test]
    fn back_from_every_line() {
        let tables = [
            table(true, &[]),
            table(true, &["c 1:11 rw"]),
            table(true, &["c 1:11 r", "b 8:0 m"]),
            table(true, &["b 8:0 rwm"]),
            table(false, &[]),
            table(false, &["c 1:3 rwm", "b 8:0 m"]),
            table(false, &["c 1:11 r"]),
        ];
        for before in &tables {
            for now in &tables {
                let lines = certain(before, now, before);
                for count in 0..=lines.len() {
                    for systemd in ["", "devices.allow", "devices.deny"] {
                        let mut table = before.clone();
                        for line in &lines[..count] {
                            apply(&mut table, line);
                        }
                        match systemd {
                            "" => {}
                            file => apply(&mut table, &(file, "a".to_string())),
                        }
                        let mut seen = table.clone();
                        if seen.0 {
                            seen.1.clear();
                        }
                        for line in certain(&seen, before, now) {
                            apply(&mut table, &line);
                        }
                        assert_eq!(&table, before, "{now:?} {count} {systemd}");
                    }
                }
            }
        }
    }

    /// Programs A and B, of which each forbids something of its own, gave way to N: at no step back is
    /// open what all forbid that were there before, and what N forbids too stays forbidden.
    #[test]
    fn the_new_program_goes_last() {
        for (now, gone) in [(true, 0), (true, 1), (true, 3), (false, 0), (false, 2)] {
            let steps = steps_back(now, gone);
            let mut there: Vec<usize> = Vec::new();
            let mut new = now;
            for step in &steps {
                match step {
                    StepBack::Attach(at) => there.push(*at),
                    StepBack::Replace(at) => {
                        there.push(*at);
                        new = false;
                    }
                    StepBack::Detach => new = false,
                }
                // Either the new one is still there, or all the old ones are.
                assert!(new || !now || there.len() == gone, "{steps:?}");
            }
            there.sort_unstable();
            assert!(!new && there == (0..gone).collect::<Vec<_>>(), "{steps:?}");
        }
    }

    /// A model of the kernel's controller is moved from each of many tables to each other: after every
    /// line, what both allow is allowed, and what both forbid is forbidden.
    #[test]
    fn no_gap_and_no_hole_at_any_line() {
        let names: Vec<Name> = vec![
            (DeviceKind::Char, Some(1), Some(3)),
            (DeviceKind::Char, Some(1), None),
            (DeviceKind::Char, None, None),
            (DeviceKind::Block, Some(8), Some(0)),
        ];
        let probes = [
            (DeviceKind::Char, 1, 3),
            (DeviceKind::Char, 1, 5),
            (DeviceKind::Char, 9, 9),
            (DeviceKind::Block, 8, 0),
            (DeviceKind::Block, 8, 1),
        ];
        let allows = |table: &Folded, probe: (DeviceKind, u32, u32), bit: u8| {
            let hit = table.1.iter().any(|((kind, major, minor), bits)| {
                *kind == probe.0
                    && major.is_none_or(|n| n == probe.1)
                    && minor.is_none_or(|n| n == probe.2)
                    && bits & bit != 0
            });
            table.0 != hit
        };
        let tables = |base: bool| {
            let names = names.clone();
            (0..81u32).map(move |mut pick| {
                let mut table = (base, BTreeMap::new());
                for name in &names {
                    let bits = [0u8, 2, 6][(pick % 3) as usize];
                    pick /= 3;
                    if bits != 0 {
                        table.1.insert(*name, bits);
                    }
                }
                table
            })
        };
        for base in [false, true] {
            for from in tables(base) {
                for to in tables(base) {
                    let mut now = from.clone();
                    for step in certain(&from, &to, &from) {
                        apply(&mut now, &step);
                        let (file, line) = step;
                        for probe in probes {
                            for bit in [2, 4] {
                                let (a, b) = (allows(&from, probe, bit), allows(&to, probe, bit));
                                assert!(
                                    a != b || allows(&now, probe, bit) == a,
                                    "{from:?} {to:?} {file} {line} {probe:?}"
                                );
                            }
                        }
                    }
                    now.1.retain(|_, bits| *bits != 0);
                    assert_eq!(now, to);
                }
            }
        }
    }
}
