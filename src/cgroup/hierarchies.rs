//! Facts: which cgroup hierarchies are mounted, and where this process is in each.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use oci_spec::runtime::Linux;
use serde::{Deserialize, Serialize};

use super::fs::read_path;
use super::limits;
use crate::error::{Error, Result};

/// Where every distribution mounts cgroups.
const DEFAULT_MOUNT: &str = "/sys/fs/cgroup";

/// How cgroups are mounted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One unified hierarchy.
    V2,
    /// One hierarchy for each controller or group of controllers.
    V1,
    /// v1 hierarchies, and a v2 hierarchy beside them.
    Hybrid,
    /// No cgroup file system is mounted.
    None,
}

/// The mounted hierarchies: plain data, a part of the plan's host facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchies {
    /// Which kind of set-up this is.
    pub mode: Mode,
    /// The v1 hierarchies, in the order in which they are mounted; none in mode v2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub v1: Vec<V1Hierarchy>,
    /// The v2 hierarchy, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v2: Option<V2Hierarchy>,
}

impl Hierarchies {
    /// Whether one of them can enforce device rules: v1's controller `devices`, or v2.
    pub fn rule_devices(&self) -> bool {
        let devices = |v1: &V1Hierarchy| v1.controllers.iter().any(|name| name == "devices");
        self.v2.is_some() || self.v1.iter().any(devices)
    }
}

/// One mounted v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct V1Hierarchy {
    /// The controllers in it, as /proc/self/cgroup names them: `cpu`, `cpuacct`, `name=systemd`.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// This process's own cgroup in it, as a path below the mount point that starts with `/`.
    pub own: String,
}

/// The mounted v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct V2Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// This process's own cgroup in it, as a path below the mount point that starts with `/`.
    pub own: String,
    /// The controllers that its root offers; `None` when nobody needed to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controllers: Option<Vec<String>>,
}

impl Hierarchies {
    /// No cgroups at all.
    pub fn none() -> Self {
        Self {
            mode: Mode::None,
            v1: Vec::new(),
            v2: None,
        }
    }
}

/// Finds out how cgroups are mounted and where this process is in them.
///
/// On pure v2 that is one statfs and /proc/self/cgroup; only otherwise is the mount table read,
/// once. The list of v2 controllers is read only where the limits in `linux` need one.
///
/// # Errors
/// A file under /proc or the list of controllers that cannot be read.
pub fn detect(linux: Option<&Linux>) -> Result<Hierarchies> {
    let own = match read_path(Path::new("/proc/self/cgroup")) {
        Ok(text) => text,
        // A kernel without cgroups has no such file.
        Err(Errno::ENOENT) => return Ok(Hierarchies::none()),
        Err(errno) => return Err(Error::os("read", "/proc/self/cgroup", errno)),
    };
    let unified =
        statfs(DEFAULT_MOUNT).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let mut found = if unified {
        let own = own_path(&own, "").unwrap_or("/");
        Hierarchies {
            mode: Mode::V2,
            v1: Vec::new(),
            v2: Some(V2Hierarchy {
                mount: DEFAULT_MOUNT.into(),
                own: below("/", own),
                controllers: None,
            }),
        }
    } else {
        let mounts = read_path(Path::new("/proc/self/mountinfo"))
            .map_err(|errno| Error::os("read", "/proc/self/mountinfo", errno))?;
        parse(&own, &mounts)
    };
    if let Some(v2) = &mut found.v2
        && limits::needs_controllers(linux)
    {
        v2.controllers = Some(available(&v2.mount)?);
    }
    Ok(found)
}

fn available(mount: &Path) -> Result<Vec<String>> {
    let file = mount.join("cgroup.controllers");
    let text =
        read_path(&file).map_err(|errno| Error::os("read", file.display().to_string(), errno))?;
    Ok(text.split_whitespace().map(str::to_string).collect())
}

/// The hierarchies that /proc/self/cgroup and /proc/self/mountinfo tell of.
pub(super) fn parse(own: &str, mountinfo: &str) -> Hierarchies {
    let mut found = Hierarchies::none();
    let all: Vec<MountLine> = mountinfo.lines().filter_map(MountLine::parse).collect();
    let cover = Cover::of(mountinfo, &all);
    for mount in all {
        if cover.hides(mount.id, mount.parent, &mount.escaped) {
            continue;
        }
        if mount.fs == "cgroup2" {
            // Further mounts of the same hierarchy show the same cgroups.
            if found.v2.is_none() {
                let path = own_path(own, "").unwrap_or("/");
                found.v2 = Some(V2Hierarchy {
                    mount: mount.point,
                    own: below(&mount.root, path),
                    controllers: None,
                });
            }
        } else if let Some((names, path)) = v1_line(own, &mount.options) {
            if found.v1.iter().any(|known| known.controllers == names) {
                continue;
            }
            found.v1.push(V1Hierarchy {
                controllers: names,
                own: below(&mount.root, path),
                mount: mount.point,
            });
        }
    }
    found.mode = match (found.v1.is_empty(), &found.v2) {
        (true, None) => Mode::None,
        (true, Some(_)) => Mode::V2,
        (false, None) => Mode::V1,
        (false, Some(_)) => Mode::Hybrid,
    };
    found
}

struct MountLine {
    id: u32,
    parent: u32,
    /// The mount point as the file has it.
    escaped: String,
    root: String,
    point: PathBuf,
    fs: String,
    options: Vec<String>,
}

impl MountLine {
    /// One line of mountinfo (proc_pid_mountinfo(5)), if it is a cgroup mount.
    fn parse(line: &str) -> Option<Self> {
        let (mount, fs) = line.split_once(" - ")?;
        let mut fs = fs.split(' ');
        let kind = fs
            .next()
            .filter(|kind| *kind == "cgroup" || *kind == "cgroup2")?;
        let options = fs.nth(1)?;
        let mut mount = mount.split(' ');
        let (id, parent) = (mount.next()?.parse().ok()?, mount.next()?.parse().ok()?);
        let (root, point) = (mount.nth(1)?, mount.next()?);
        Some(Self {
            id,
            parent,
            escaped: point.to_string(),
            root: unescape(root),
            point: unescape(point).into(),
            fs: kind.to_string(),
            options: options.split(',').map(str::to_string).collect(),
        })
    }
}

/// The mounts that can lie over the cgroup mounts: id, the mount that they are on, and where.
struct Cover<'a>(Vec<(u32, u32, &'a str)>);

impl<'a> Cover<'a> {
    fn of(mountinfo: &'a str, cgroups: &[MountLine]) -> Self {
        let read = |line: &'a str| {
            let mut words = line.split(' ');
            let id = words.next()?.parse().ok()?;
            let parent = words.next()?.parse().ok()?;
            let point = words.nth(2)?;
            let counts = cgroups.iter().any(|one| within(&one.escaped, point));
            counts.then_some((id, parent, point))
        };
        Self(mountinfo.lines().filter_map(read).collect())
    }

    /// Whether a path to the mount leads to another one: one on top of it, or one on the same parent
    /// mount at a directory above; and the same for the mounts that it is in.
    fn hides(&self, mut id: u32, mut parent: u32, point: &str) -> bool {
        let on_top = |(_, on, at): &(u32, u32, &str)| *on == id && *at == point;
        if self.0.iter().any(on_top) {
            return true;
        }
        let mut point = point;
        // The mounts that a mount is in are fewer than all.
        for _ in 0..=self.0.len() {
            let above = |(other, on, at): &(u32, u32, &str)| {
                *on == parent && *other != id && *at != point && within(point, at)
            };
            if self.0.iter().any(above) {
                return true;
            }
            let up = self.0.iter().find(|(other, ..)| *other == parent);
            let Some((up, next, at)) = up.filter(|(up, next, _)| up != next) else {
                return false;
            };
            (id, parent, point) = (*up, *next, at);
        }
        false
    }
}

/// Whether a path is `above` or below it.
fn within(path: &str, above: &str) -> bool {
    let rest = path.strip_prefix(above);
    rest.is_some_and(|rest| above == "/" || rest.is_empty() || rest.starts_with('/'))
}

/// Undoes the octal escapes of mountinfo for space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    let mut out = text.to_string();
    for (escape, plain) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        if out.contains(escape) {
            out = out.replace(escape, plain);
        }
    }
    out
}

/// The path in the line of /proc/self/cgroup whose controllers are `controllers` (`""`: v2).
fn own_path<'a>(own: &'a str, controllers: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (names, path) = rest.split_once(':')?;
        (names == controllers).then_some(path)
    })
}

/// The line of /proc/self/cgroup for a v1 mount with these options: its controllers and path.
///
/// The controllers of the line are what counts: the mount options hold others as well (`rw`,
/// `xattr`, `release_agent=`), and their order differs.
fn v1_line<'a>(own: &'a str, options: &[String]) -> Option<(Vec<String>, &'a str)> {
    own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (names, path) = rest.split_once(':')?;
        let names: Vec<String> = names.split(',').map(str::to_string).collect();
        let all = !names[0].is_empty() && names.iter().all(|name| options.contains(name));
        all.then_some((names, path))
    })
}

/// `path` as seen below a mount whose root is `root`: inside a container /proc/self/cgroup may tell
/// the host's path, of which only the part below the mount's root can be reached.
fn below(root: &str, path: &str) -> String {
    if path.split('/').any(|part| part == "..") {
        // Outside of the cgroup namespace's root: nothing there can be reached from here.
        return "/".into();
    }
    let rest = match root {
        "/" => Some(path),
        _ => path
            .strip_prefix(root)
            .filter(|rest| rest.is_empty() || rest.starts_with('/')),
    };
    match rest {
        Some(rest) if !rest.is_empty() => rest.to_string(),
        _ => "/".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "3:memory:/m\n2:pids:/p\n0::/u\n";

    fn points(mountinfo: &str) -> Vec<(String, String)> {
        let found = parse(OWN, mountinfo);
        let v1 = found.v1.iter().map(|v1| (&v1.mount, &v1.own));
        let v2 = found.v2.iter().map(|v2| (&v2.mount, &v2.own));
        let text = |(mount, own): (&PathBuf, &String)| (mount.display().to_string(), own.clone());
        v1.chain(v2).map(text).collect()
    }

    fn pair(point: &str, own: &str) -> (String, String) {
        (point.to_string(), own.to_string())
    }

    /// The first of two mounts at one place, which nobody can reach any more.
    #[test]
    fn a_covered_mount_is_none() {
        let root = "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
        let memory = "30 20 0:30 / /cg/memory rw - cgroup cgroup rw,memory\n";
        let bound = "31 30 0:30 /m /cg/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(
            points(&[root, memory, bound].concat()),
            [pair("/cg/memory", "/")]
        );
        // A tmpfs over the directory above, with others in it.
        let over = "40 20 0:40 / /cg rw - tmpfs none rw\n";
        let pids = "41 40 0:31 / /cg/pids rw - cgroup cgroup rw,pids\n";
        let unified = "42 40 0:32 / /cg/unified rw - cgroup2 none rw\n";
        assert_eq!(
            points(&[root, memory, over, pids, unified].concat()),
            [pair("/cg/pids", "/p"), pair("/cg/unified", "/u")]
        );
        // Over the root of the mount that they are in, which hides all of them.
        let second = "50 40 0:50 / /cg rw - tmpfs none rw\n";
        let later = "51 50 0:30 / /cg/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(
            points(&[root, memory, over, pids, unified, second, later].concat()),
            [pair("/cg/memory", "/m")]
        );
        // A name that only begins like it covers nothing.
        let beside = "60 20 0:60 / /cg/mem rw - tmpfs none rw\n";
        assert_eq!(
            points(&[root, memory, beside].concat()),
            [pair("/cg/memory", "/m")]
        );
        // cgroup2 that a second cgroup2 covers.
        let first = "70 20 0:32 /a /cg/u rw - cgroup2 none rw\n";
        let above = "71 70 0:32 / /cg/u rw - cgroup2 none rw\n";
        assert_eq!(
            points(&[root, first, above].concat()),
            [pair("/cg/u", "/u")]
        );
    }
}
