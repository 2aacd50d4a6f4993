//! Id maps of a new user namespace, as the engine writes them: by its parent, directly or by newuidmap.

use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::unistd::{Pid, getegid, geteuid};

use super::run::Tried;
use crate::host::{IdMap, facts::SubIds};
use crate::sys::process;

/// How many ids an image may need.
const RANGE: u32 = 65536;

fn write(pid: Pid, file: &str, text: &str) -> Result<(), (Errno, String)> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::write(&path, text).map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        (errno, format!("write {file}: {}", text.trim()))
    })
}

/// Maps root in the namespace of `pid` to the caller's own user and group.
pub fn own(pid: Pid) -> Tried {
    let (uid, gid) = (geteuid(), getegid());
    if !uid.is_root() {
        write(pid, "setgroups", "deny")?;
    }
    write(pid, "gid_map", &format!("0 {gid} 1\n"))?;
    let map = format!("0 {uid} 1");
    write(pid, "uid_map", &format!("{map}\n"))?;
    Ok(map)
}

/// Maps a range of ids, root's directly and a user's by newuidmap and newgidmap. None where the caller's
/// own user namespace has no range.
pub fn range(pid: Pid) -> Option<Tried> {
    if geteuid().is_root() {
        return direct(pid);
    }
    Some(by_helpers(pid))
}

fn direct(pid: Pid) -> Option<Tried> {
    let longest = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let map = IdMap::parse(&text);
        map.into_iter().max_by_key(|range| range.count)
    };
    let uids = longest("/proc/self/uid_map").filter(|range| range.count > 1)?;
    let gids = longest("/proc/self/gid_map").filter(|range| range.count > 1)?;
    let line = |range: IdMap| format!("0 {} {}\n", range.inside, range.count.min(RANGE));
    Some(
        write(pid, "gid_map", &line(gids))
            .and_then(|()| write(pid, "uid_map", &line(uids)))
            .map(|()| line(uids).trim().to_string()),
    )
}

fn by_helpers(pid: Pid) -> Tried {
    let ids = SubIds::read();
    let first = |ranges: &[(u32, u32)], file: &str| {
        let range = ranges.first().copied();
        range.ok_or_else(|| {
            (
                Errno::EPERM,
                format!("find a range of the user's in {file}"),
            )
        })
    };
    let uids = first(&ids.uids, "/etc/subuid")?;
    let gids = first(&ids.gids, "/etc/subgid")?;
    if !ids.helpers {
        let step = "find newuidmap and newgidmap".to_string();
        return Err((Errno::ENOENT, step));
    }
    let own = [
        ("newgidmap", getegid().as_raw(), gids),
        ("newuidmap", geteuid().as_raw(), uids),
    ];
    for (helper, id, (start, count)) in own {
        let words = [0, id, 1, 1, start, count].map(|number| number.to_string());
        let mut command = Command::new(helper);
        command.arg(pid.to_string()).args(&words);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        process::unblock_signals_in(&mut command);
        let step = format!("{helper} {}", words.join(" "));
        let out = command.output().map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            (errno, step.clone())
        })?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            let said = said.lines().next().unwrap_or_default().trim().to_string();
            return Err((Errno::EPERM, format!("{step}: {said}")));
        }
    }
    Ok(format!("0 {} 1, 1 {} {}", geteuid(), uids.0, uids.1))
}
