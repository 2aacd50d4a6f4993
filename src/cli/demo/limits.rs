//! The limits of a process's cgroups, as the cgroup file systems mounted here show them.
//!
//! Read with this file's own eyes and not by the cgroup manager: the demo is to find out whether
//! the manager did what it says.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::proc::{self, Mount};

/// The limits that the demo sets; none where there is no limit, or no way to see it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
    /// Thousandths of a CPU.
    pub millicpus: Option<u64>,
}

/// Where a controller's files are for one process.
struct Place {
    directory: PathBuf,
    unified: bool,
}

impl Limits {
    /// The limits of process `pid` (a number, or "self").
    pub fn of(pid: &str) -> Self {
        let read = |controller: &str, v1: &str, v2: &str| {
            let place = place(pid, controller)?;
            let name = if place.unified { v2 } else { v1 };
            std::fs::read_to_string(place.directory.join(name)).ok()
        };
        let cpu = read("cpu", "cpu.cfs_quota_us", "cpu.max").and_then(|quota| {
            match quota.split_once(' ') {
                Some((quota, period)) => millicpus(quota, period),
                None => millicpus(&quota, &read("cpu", "cpu.cfs_period_us", "cpu.max")?),
            }
        });
        Self {
            memory: number(read("memory", "memory.limit_in_bytes", "memory.max")),
            pids: number(read("pids", "pids.max", "pids.max")),
            millicpus: cpu,
        }
    }

    /// Whether this host has `controller`, as far as this process can see.
    pub fn can(controller: &str) -> bool {
        place("self", controller).is_some()
    }
}

/// A limit; "max", and v1's number near 2^63 that means the same, are none.
fn number(text: Option<String>) -> Option<u64> {
    text?
        .trim()
        .parse()
        .ok()
        .filter(|&limit: &u64| limit < 1 << 60)
}

fn millicpus(quota: &str, period: &str) -> Option<u64> {
    // A quota of "max" or -1 is none.
    let quota: u64 = quota.trim().parse().ok()?;
    let period: u64 = period.trim().parse().ok().filter(|&period| period > 0)?;
    Some(quota * 1000 / period)
}

fn place(pid: &str, controller: &str) -> Option<Place> {
    let mounts = proc::mounts().ok()?;
    let paths = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let directory = |mount: &Mount, path: &str| {
        // The mount may show a part of the hierarchy only; the path names it whole.
        let below = path
            .strip_prefix(mount.root.trim_end_matches('/'))
            .unwrap_or(path);
        mount.target.join(below.trim_start_matches('/'))
    };
    // Lines are `number:controllers:path`; on v2 the number is 0 and there are no controllers.
    let path_of = |wanted: &dyn Fn(&str) -> bool| {
        paths.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            wanted(fields.next()?).then(|| fields.next())?
        })
    };
    let has = |mount: &Mount| mount.options.iter().any(|option| option == controller);
    let v1 = mounts
        .iter()
        .rev()
        .find(|mount| mount.kind == "cgroup" && has(mount));
    if let Some(mount) = v1 {
        let path = path_of(&|names| names.split(',').any(|name| name == controller))?;
        return Some(Place {
            directory: directory(mount, path),
            unified: false,
        });
    }
    let mount = mounts.iter().rev().find(|mount| mount.kind == "cgroup2")?;
    let offered = std::fs::read_to_string(mount.target.join("cgroup.controllers")).ok()?;
    if !offered.split_whitespace().any(|name| name == controller) {
        return None;
    }
    let path = path_of(&str::is_empty)?;
    Some(Place {
        directory: directory(mount, path),
        unified: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(Some("67108864\n".into())), Some(67_108_864));
        assert_eq!(number(Some("max\n".into())), None);
        assert_eq!(number(Some("9223372036854771712\n".into())), None);
        assert_eq!(number(None), None);
        assert_eq!(millicpus("50000", "100000\n"), Some(500));
        assert_eq!(millicpus("max", "100000\n"), None);
        assert_eq!(millicpus("-1\n", "100000\n"), None);
        assert_eq!(millicpus("1", "0"), None);
    }

    #[test]
    fn an_unknown_controller_is_not_there() {
        assert!(!Limits::can("no-such-controller"));
    }
}
