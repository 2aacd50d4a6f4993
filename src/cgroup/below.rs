//! Cgroups below a container's own: where `exec --cgroup` puts a process, and where a container has
//! moved its first process to.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

use super::create::Cgroup;
use super::fs;
use super::hierarchies::{self, Hierarchies, Mode};
use super::placed::Placed;
use super::plan::Version;
use crate::error::{Error, Kind, Result};

/// Paths below the container's cgroup, by v1 controller; the empty name stands for all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubCgroups(BTreeMap<String, PathBuf>);

impl SubCgroups {
    /// Reads the values of `--cgroup`: `[controller[,controller]...:]path`.
    ///
    /// # Errors
    /// [`Kind::Usage`], in runc's words.
    pub fn parse(values: &[String]) -> Result<Self> {
        let invalid = |value: &str, why: &str| {
            Error::new(
                Kind::Usage,
                format!("invalid --cgroup argument: {value} ({why})"),
            )
        };
        let mut map = BTreeMap::new();
        for value in values {
            let Some((controllers, path)) = value.split_once(':') else {
                if values.len() != 1 {
                    return Err(invalid(value, "missing <controller>: prefix"));
                }
                map.insert(String::new(), below(value)?);
                continue;
            };
            for controller in controllers.split(',') {
                if controller.is_empty() {
                    return Err(invalid(value, "empty <controller> prefix"));
                }
                if map.insert(controller.to_string(), below(path)?).is_some() {
                    let sentence = format!(
                        "invalid --cgroup argument(s): controller {controller} specified multiple \
                         times"
                    );
                    return Err(Error::new(Kind::Usage, sentence));
                }
            }
        }
        Ok(Self(map))
    }
}

/// A path that stays below where it starts, without the slash before it.
fn below(path: &str) -> Result<PathBuf> {
    let inside = Path::new(path)
        .components()
        .try_fold(PathBuf::new(), |so_far, part| match part {
            Component::Normal(name) => Some(so_far.join(name)),
            Component::RootDir | Component::CurDir => Some(so_far),
            Component::ParentDir | Component::Prefix(_) => None,
        });
    inside.filter(|_| !path.contains('\0')).ok_or_else(|| {
        Error::new(Kind::Usage, format!("{path} is not a sub cgroup path"))
            .remedy("--cgroup takes a path below the container's cgroup")
    })
}

impl Cgroup {
    /// Opens the cgroup of a container that runs, or `subs` below it, for a further process in it. Where
    /// somebody has moved its first process `pid` and taken its cgroup away, that is where this one is.
    ///
    /// # Errors
    /// A directory that is not there; a controller that the container has no cgroup of.
    pub fn open_below(placed: &Placed, subs: &SubCgroups, pid: i32) -> Result<Self> {
        if subs.0.is_empty() {
            return match Self::open(placed) {
                Err(error) if error.errno() == Some(Errno::ENOENT) => {
                    Self::open(&where_it_is(placed, pid)?)
                }
                opened => opened,
            };
        }
        let mut placed = placed.clone();
        if let Some(sub) = subs.0.get("") {
            for dir in &mut placed.dirs {
                let path = dir.path.join(sub);
                // Beside v1, nobody needs to have made it on v2 too.
                if dir.version == Version::V1 || placed.mode == Mode::V2 || path.is_dir() {
                    dir.path = path;
                }
            }
            return Self::open(&placed);
        }
        let host = hierarchies::detect(None)?;
        for (controller, sub) in &subs.0 {
            let mount = mount_of(&host, controller);
            let dir = mount.and_then(|mount| {
                placed
                    .dirs
                    .iter_mut()
                    .find(|dir| dir.path.starts_with(mount))
            });
            let dir = dir.ok_or_else(|| {
                let sentence = format!("unknown controller {controller} in --cgroup");
                Error::new(Kind::Usage, sentence)
                    .remedy("on cgroup v2 there is one path for all, without a controller")
            })?;
            dir.path = dir.path.join(sub);
        }
        Self::open(&placed)
    }

    /// On v2 the cgroup that process `pid`, of the container, is in now; none where that is this one.
    /// A container that hands controllers on to cgroups of its own must have left its own: nothing
    /// can be put there (EBUSY).
    ///
    /// # Errors
    /// Where that cannot be found out or opened.
    pub fn moved(&self, pid: i32) -> Result<Option<Self>> {
        let text = cgroups_of(pid)?;
        let host = hierarchies::detect(None)?;
        let Some(v2) = &host.v2 else {
            return Ok(None);
        };
        let Some(path) = directory(&text, &v2.mount, |names| names.is_empty())? else {
            return Ok(None);
        };
        let at = self.dirs.iter().position(|dir| dir.version == Version::V2);
        let Some(at) = at.filter(|at| path != self.dirs[*at].path) else {
            return Ok(None);
        };
        let mut moved = Self::open(self.placed())?;
        moved.dirs[at].fd = fs::open_dir(&path)
            .map_err(|errno| Error::os("open cgroup", path.display().to_string(), errno))?;
        moved.dirs[at].path = path;
        Ok(Some(moved))
    }
}

/// What the kernel says of the cgroups of a process: cgroups(7).
fn cgroups_of(pid: i32) -> Result<String> {
    let name = format!("/proc/{pid}/cgroup");
    fs::read_path(Path::new(&name)).map_err(|errno| Error::os("read", &name, errno))
}

/// The directory of the cgroup that `text` names for the hierarchy at `mount`; `ours` tells by the names of
/// its controllers which line that is.
///
/// # Errors
/// A cgroup outside of this process's cgroup namespace, of which the kernel says `..`.
fn directory(text: &str, mount: &Path, ours: impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let line = text.lines().find_map(|line| {
        let (names, path) = line.split_once(':')?.1.split_once(':')?;
        ours(names).then(|| path.trim_start_matches('/'))
    });
    let Some(inside) = line else {
        return Ok(None);
    };
    let path = mount.join(inside);
    if inside.split('/').any(|part| part == "..") {
        let name = path.display().to_string();
        return Err(Error::os("open cgroup", name, Errno::EXDEV));
    }
    Ok(Some(path))
}

/// The same, with the cgroups of process `pid` in the place of those that are not there any more.
fn where_it_is(placed: &Placed, pid: i32) -> Result<Placed> {
    let (text, host) = (cgroups_of(pid)?, hierarchies::detect(None)?);
    let mut placed = placed.clone();
    for dir in placed.dirs.iter_mut().filter(|dir| !dir.path.is_dir()) {
        let found = match dir.version {
            Version::V2 => match &host.v2 {
                Some(v2) => directory(&text, &v2.mount, |names| names.is_empty())?,
                None => None,
            },
            Version::V1 => match host.v1.iter().find(|v1| dir.path.starts_with(&v1.mount)) {
                Some(v1) => directory(&text, &v1.mount, |names| {
                    names
                        .split(',')
                        .any(|name| v1.controllers.iter().any(|own| own == name))
                })?,
                None => None,
            },
        };
        if let Some(path) = found {
            dir.path = path;
        }
    }
    Ok(placed)
}

fn mount_of<'a>(host: &'a Hierarchies, controller: &str) -> Option<&'a Path> {
    let v1 = host
        .v1
        .iter()
        .find(|v1| v1.controllers.iter().any(|name| name == controller));
    v1.map(|v1| v1.mount.as_path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Result<SubCgroups> {
        SubCgroups::parse(&values.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn the_cgroup_of_a_process() {
        let text = "4:cpu,cpuacct:/a/b\n2:pids:/../x\n1:name=systemd:/\n0::/c\n";
        let at = |name: &str| directory(text, Path::new("/m"), |names| names == name);
        assert_eq!(at("cpu,cpuacct").unwrap(), Some(PathBuf::from("/m/a/b")));
        assert_eq!(at("").unwrap(), Some(PathBuf::from("/m/c")));
        assert_eq!(at("memory").unwrap(), None);
        assert_eq!(at("pids").unwrap_err().errno(), Some(Errno::EXDEV));
    }

    #[test]
    fn arguments() {
        assert_eq!(parse(&[]).unwrap(), SubCgroups::default());
        let one = parse(&["/a//b/."]).unwrap();
        assert_eq!(one.0.get(""), Some(&PathBuf::from("a/b")));
        let two = parse(&["cpu,memory:x", "pids:/y"]).unwrap();
        assert_eq!(two.0.len(), 3);
        assert_eq!(two.0.get("memory"), Some(&PathBuf::from("x")));
        for (values, start) in [
            (
                &["a", "b"][..],
                "invalid --cgroup argument: a (missing <controller>: prefix)",
            ),
            (
                &[":a"],
                "invalid --cgroup argument: :a (empty <controller> prefix)",
            ),
            (
                &["cpu,:a"],
                "invalid --cgroup argument: cpu,:a (empty <controller> prefix)",
            ),
            (
                &["cpu:a", "cpu:b"],
                "invalid --cgroup argument(s): controller cpu specified multiple times",
            ),
            (&["../x"], "../x is not a sub cgroup path"),
            (&["cpu:a/../../b"], "a/../../b is not a sub cgroup path"),
        ] {
            let error = parse(values).unwrap_err().to_string();
            assert!(error.starts_with(start), "{values:?}: {error}");
        }
    }
}
