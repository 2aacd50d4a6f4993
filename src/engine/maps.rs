//! The id maps of a new user namespace: written directly where that is allowed, else by newuidmap and
//! newgidmap, which may map the ranges that /etc/subuid and /etc/subgid give to a user.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::unistd::{Pid, geteuid};

use super::proc;
use crate::error::{Error, Kind, Result};
use crate::plan::{Birth, IdMap};
use crate::sys::process;

/// One of the two maps: its file, its field, its helper.
struct Side<'a> {
    file: &'static str,
    field: &'static str,
    helper: &'static str,
    map: &'a [IdMap],
}

/// Writes the maps of the new user namespace that process `pid` is in; nothing where there is none.
///
/// # Errors
/// A sentence with the field, and what the kernel or the helper says.
pub fn write(birth: &Birth, pid: Pid) -> Result<()> {
    let sides = [
        Side {
            file: "gid_map",
            field: "linux.gidMappings",
            helper: "newgidmap",
            map: &birth.gid_map,
        },
        Side {
            file: "uid_map",
            field: "linux.uidMappings",
            helper: "newuidmap",
            map: &birth.uid_map,
        },
    ];
    if birth.deny_setgroups {
        // Without it the kernel lets nobody unprivileged write a gid map (user_namespaces(7)): groups
        // that take rights away could be dropped.
        proc::write(&format!("{pid}/setgroups"), "deny")?;
    }
    let mut helpers = Vec::new();
    for side in sides.iter().filter(|side| !side.map.is_empty()) {
        let direct = geteuid().is_root() || side.map.len() == 1 && side.map[0].count == 1;
        let written = if direct {
            proc::write(&format!("{pid}/{}", side.file), &text(side.map))
        } else {
            Err(Error::os(side.field, "", Errno::EPERM))
        };
        match written {
            Err(error) if error.errno() == Some(Errno::EPERM) => match start(side, pid) {
                Ok(helper) => helpers.push((side, helper)),
                // The kernel's answer tells more than that the helper is missing.
                Err(missing) if direct => {
                    return Err(error.context(side.field).remedy(missing.to_string()));
                }
                Err(missing) => return Err(missing),
            },
            other => other.map_err(|error| error.context(side.field))?,
        }
    }
    // Both at once: each is a process that reads files.
    helpers
        .into_iter()
        .map(|(side, helper)| finish(side, helper))
        .fold(Ok(()), Result::and)
}

/// Maps as /proc/PID/uid_map takes them.
pub(super) fn text(map: &[IdMap]) -> String {
    let lines = map
        .iter()
        .map(|m| format!("{} {} {}\n", m.inside, m.outside, m.count));
    lines.collect()
}

fn start(side: &Side<'_>, pid: Pid) -> Result<Child> {
    let mut command = Command::new(side.helper);
    command.arg(pid.to_string());
    for line in side.map {
        command.args([line.inside, line.outside, line.count].map(|n| n.to_string()));
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    process::unblock_signals_in(&mut command);
    command.spawn().map_err(|error| {
        let what = format!("{}: run", side.field);
        Error::io(what, side.helper, &error).remedy(match error.kind() {
            std::io::ErrorKind::NotFound => {
                "more than one's own id can only be mapped with it: install it (Debian: uidmap, Fedora: \
                 shadow-utils)"
            }
            _ => "more than one's own id can only be mapped with it",
        })
    })
}

fn finish(side: &Side<'_>, mut helper: Child) -> Result<()> {
    let mut said = String::new();
    if let Some(stderr) = helper.stderr.take() {
        // What it says is a line; more is not read.
        let _ = stderr.take(4096).read_to_string(&mut said);
    }
    let status = helper
        .wait()
        .map_err(|error| Error::io("wait for", side.helper, &error))?;
    if status.success() {
        return Ok(());
    }
    let file = match side.file {
        "uid_map" => "/etc/subuid",
        _ => "/etc/subgid",
    };
    let said = match said.lines().next().map(str::trim) {
        Some(line) if !line.is_empty() => line.to_string(),
        _ => format!("{}: {status}", side.helper),
    };
    Err(
        Error::new(Kind::System, format!("{}: {said}", side.field)).remedy(format!(
            "the host ids must be your own or in your ranges in {file}"
        )),
    )
}

/// Checks that the joined user namespace of process `pid` has the maps that config.json states for it.
/// Engines give both, and whatever was computed from the stated maps (owners of files, for one) would
/// be wrong with others.
///
/// # Errors
/// The first field that differs.
pub fn compare(birth: &Birth, pid: Pid) -> Result<()> {
    let Some((uids, gids)) = &birth.stated_maps else {
        return Ok(());
    };
    for (file, field, stated) in [
        ("uid_map", "linux.uidMappings", uids),
        ("gid_map", "linux.gidMappings", gids),
    ] {
        let path = format!("/proc/{pid}/{file}");
        let text =
            std::fs::read_to_string(&path).map_err(|error| Error::io("read", &path, &error))?;
        let mut there = IdMap::parse(&text);
        let mut stated = stated.clone();
        there.sort_by_key(|line| line.inside);
        stated.sort_by_key(|line| line.inside);
        if !stated.is_empty() && there != stated {
            return Err(Error::spec(
                field,
                "it is not the map of the user namespace that linux.namespaces joins",
            )
            .remedy("leave it out: a joined namespace has its maps already"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_as_text_and_back() {
        let map = [
            IdMap {
                inside: 0,
                outside: 1000,
                count: 1,
            },
            IdMap {
                inside: 1,
                outside: 100_000,
                count: 65536,
            },
        ];
        assert_eq!(text(&map), "0 1000 1\n1 100000 65536\n");
        assert_eq!(IdMap::parse(&text(&map)), map);
        assert_eq!(
            IdMap::parse("         0          0 4294967295\n")[0].count,
            u32::MAX
        );
    }
}
