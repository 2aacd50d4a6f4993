//! What a process can tell about itself and its surroundings: the same facts inside and outside.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use super::limits::Limits;
use super::proc::{self, Status};
use crate::error::{Error, Result};

/// What [`Facts::attempts`] says of an attempt that was not refused.
pub const SUCCEEDS: &str = "succeeds";

/// The facts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// When the program began, in nanoseconds since 1970. The wall clock: unlike the monotonic
    /// ones it is the same in every time namespace.
    pub began: u64,
    /// Its process id, as it sees it itself.
    pub pid: i32,
    /// Its effective user id, as it sees it itself.
    pub uid: u32,
    /// Lines of /proc/self/uid_map: first id inside, first id outside, count.
    pub uid_map: Vec<String>,
    /// Inode of each namespace, by its name in /proc/self/ns.
    pub namespaces: BTreeMap<String, u64>,
    /// The five capability sets as bit masks, by name.
    pub capabilities: BTreeMap<String, u64>,
    /// 0 none, 1 strict, 2 filter; proc_pid_status(5).
    pub seccomp: u32,
    /// Whether execve(2) can give no privileges any more.
    pub no_new_privileges: bool,
    /// Mount points, each with `ro` or `rw`.
    pub mounts: Vec<(String, String)>,
    /// Every process that it sees.
    pub pids: Vec<i32>,
    /// Every network interface that it sees.
    pub interfaces: Vec<String>,
    /// The host name.
    pub hostname: String,
    /// RLIMIT_NOFILE, soft.
    pub open_files: u64,
    /// Limits of its cgroups.
    pub limits: Limits,
    /// What was tried, and the name of the errno that refused it, or [`SUCCEEDS`].
    pub attempts: BTreeMap<String, String>,
}

impl Facts {
    /// Collects them for this process. `began` is when it began. `inside` tries for real what
    /// would leave a trace outside.
    ///
    /// # Errors
    /// Where /proc cannot be read.
    pub fn collect(began: Duration, inside: bool) -> Result<Self> {
        let failed = |error| Error::io("read", "/proc/self", &error);
        let status = Status::of("self").map_err(failed)?;
        let number = |name| {
            status
                .word(name, 0)
                .and_then(|word| word.parse().ok())
                .unwrap_or(0)
        };
        let set = |name| {
            status
                .word(name, 0)
                .and_then(|set| u64::from_str_radix(set, 16).ok())
                .unwrap_or(0)
        };
        let sets = [
            ("inheritable", set("CapInh")),
            ("permitted", set("CapPrm")),
            ("effective", set("CapEff")),
            ("bounding", set("CapBnd")),
            ("ambient", set("CapAmb")),
        ];
        let mounts = proc::mounts().map_err(failed)?.into_iter().map(|mount| {
            let mode = if mount.read_only { "ro" } else { "rw" };
            (mount.target.display().to_string(), mode.to_string())
        });
        Ok(Self {
            began: u64::try_from(began.as_nanos()).unwrap_or(u64::MAX),
            pid: nix::unistd::getpid().as_raw(),
            uid: status.euid().unwrap_or(u32::MAX),
            uid_map: lines("/proc/self/uid_map"),
            namespaces: namespaces(Path::new("/proc/self/ns")),
            capabilities: sets.map(|(name, set)| (name.to_string(), set)).into(),
            seccomp: number("Seccomp"),
            no_new_privileges: number("NoNewPrivs") == 1,
            mounts: mounts.collect(),
            pids: pids(),
            interfaces: interfaces(),
            hostname: nix::unistd::gethostname()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            open_files: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            limits: Limits::of("self"),
            attempts: attempts(inside)
                .map(|(name, it)| (name.to_string(), it))
                .into(),
        })
    }

    /// The outcome of the attempt `name`.
    pub fn attempt(&self, name: &str) -> &str {
        self.attempts.get(name).map_or("not tried", String::as_str)
    }
}

/// The inodes of the namespaces in a /proc/PID/ns directory, by name.
pub fn namespaces(directory: &Path) -> BTreeMap<String, u64> {
    let inode = |kind: &&str| {
        // `pid:[4026531836]`; a kernel without this kind has no such file.
        let link = std::fs::read_link(directory.join(kind)).ok()?;
        let inode = link.to_str()?.split(['[', ']']).nth(1)?.parse().ok()?;
        Some((kind.to_string(), inode))
    };
    ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
        .iter()
        .filter_map(inode)
        .collect()
}

fn lines(path: &str) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

fn pids() -> Vec<i32> {
    let Ok(names) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut pids: Vec<i32> = names
        .filter_map(|name| name.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

fn interfaces() -> Vec<String> {
    // Two lines of headings, then `  lo: 0 0 …`.
    lines("/proc/self/net/dev")
        .iter()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.to_string()))
        .collect()
}

fn attempts(inside: bool) -> [(&'static str, String); 4] {
    let outcome = |result: std::io::Result<File>| match result {
        Ok(_) => SUCCEEDS.to_string(),
        Err(error) => errno_name(Errno::from_raw(error.raw_os_error().unwrap_or_default())),
    };
    let mut options = OpenOptions::new();
    options.write(true);
    let root = match inside {
        true => outcome(
            options
                .clone()
                .create_new(true)
                .open("/written-by-isorun-demo"),
        ),
        // A file without a name: it leaves nothing.
        false => outcome(options.clone().custom_flags(libc::O_TMPFILE).open("/")),
    };
    // Opened for writing, not written.
    let sysctl = outcome(options.open("/proc/sys/kernel/domainname"));
    let mut byte = [0];
    let kcore = match File::open("/proc/kcore").and_then(|mut file| file.read(&mut byte)) {
        Ok(0) => "empty".to_string(),
        Ok(_) => SUCCEEDS.to_string(),
        Err(error) => errno_name(Errno::from_raw(error.raw_os_error().unwrap_or_default())),
    };
    // Without flags it does nothing, and needs no privilege: only a filter can refuse it.
    let nothing = match unshare(CloneFlags::empty()) {
        Ok(()) => SUCCEEDS.to_string(),
        Err(errno) => errno_name(errno),
    };
    [
        ("write /", root),
        ("write /proc/sys", sysctl),
        ("read /proc/kcore", kcore),
        ("unshare", nothing),
    ]
}

fn errno_name(errno: Errno) -> String {
    format!("{errno:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_as_it_is() {
        let facts = Facts::collect(Duration::from_nanos(5), false).unwrap();
        assert_eq!((facts.began, facts.pid), (5, std::process::id() as i32));
        assert!(facts.pids.contains(&facts.pid));
        assert_eq!(facts.uid, nix::unistd::geteuid().as_raw());
        assert!(facts.namespaces.len() >= 7 && facts.namespaces["mnt"] > 0);
        assert_eq!(facts.capabilities.len(), 5);
        assert!(facts.mounts.iter().any(|(target, _)| target == "/"));
        assert!(
            facts.interfaces.iter().any(|name| name == "lo"),
            "{:?}",
            facts.interfaces
        );
        assert_eq!(facts.attempt("unshare"), SUCCEEDS);
        assert!(facts.open_files > 0 && !facts.hostname.is_empty());
        let text = serde_json::to_string(&facts).unwrap();
        assert!(!text.contains('\n'));
        assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts);
    }
}
