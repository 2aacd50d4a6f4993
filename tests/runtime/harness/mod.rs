//! What every test stands on: which runtime, which view, bundles, time limits, leak checks.

mod bundle;
mod config;
mod hostmounts;
mod leaks;
mod mountinfo;
mod probe;
mod pty;
mod run;
pub mod systemd;

pub use bundle::{Bundle, busybox_tree, copy_program};
pub use hostmounts::{chown_tree, run_after, run_flags_after, script_apart};
pub use leaks::{cgroups_named, is_zombie, processes_tagged};
pub use mountinfo::{Mount, mount_at, parse_mountinfo};
pub use probe::probe;
pub use pty::{Socket, Terminal, terminal};
pub use run::{Output, Running, run_command, wait_for};

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Which program is under test.
pub struct Runtime {
    /// The absolute path of its binary.
    pub path: PathBuf,
    /// isorun itself, not a reference.
    pub isorun: bool,
    /// The reference's version, `(1, 1)` for 1.1.5; isorun's counts as the newest.
    pub version: (u32, u32),
}

/// The runtime that `RUNTIME` names, by default the isorun that cargo has just built.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let path = match std::env::var("RUNTIME") {
            Ok(name) if name.contains('/') => PathBuf::from(name),
            Ok(name) if !name.is_empty() && name != "isorun" => search(&name),
            _ => PathBuf::from(env!("CARGO_BIN_EXE_isorun")),
        };
        let said = Command::new(&path).arg("--version").output();
        let said = said.unwrap_or_else(|error| panic!("{} --version: {error}", path.display()));
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        // Known by what it is not, so that an isorun with a broken --version is still isorun.
        let reference = ["runc", "crun", "youki"]
            .iter()
            .any(|name| said.starts_with(name));
        let version = if reference {
            parse_version(&said)
        } else {
            (u32::MAX, 0)
        };
        Runtime {
            path,
            isorun: !reference,
            version,
        }
    })
}

/// Whether integration/deny/run has this system call refused around the runtime, and what it runs. A test
/// whose subject is lost with the call (a degradation that is told, an error that names the call, or what
/// the container's own program does with it) says so by this; that a container is made without the call
/// is what all the others show.
pub fn denied(call: &str) -> bool {
    std::env::var("ISORUN_TEST_DENIED").is_ok_and(|said| said.split(':').next() == Some(call))
}

fn parse_version(said: &str) -> (u32, u32) {
    let word = said
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let mut parts = word
        .unwrap_or("0.0")
        .split('.')
        .map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn search(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path
        .split(':')
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("RUNTIME={name}: no such program in PATH ({path})"))
}

/// The static busybox that bundles are made of: Debian's, or where `ISORUN_TEST_BUSYBOX` says.
pub fn busybox() -> PathBuf {
    std::env::var_os("ISORUN_TEST_BUSYBOX").map_or_else(|| "/bin/busybox".into(), PathBuf::from)
}

/// How this process sees cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// v1 controllers below `/sys/fs/cgroup/<controller>`, with or without a v2 tree beside them.
    Hybrid,
    /// `/sys/fs/cgroup` is a cgroup2 mount.
    V2,
}

/// The view, seen rather than told: `tests/in-v2-view` changes what is mounted.
pub fn view() -> View {
    let stat = nix::sys::statfs::statfs("/sys/fs/cgroup").expect("statfs /sys/fs/cgroup");
    match stat.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC {
        true => View::V2,
        false => View::Hybrid,
    }
}

/// Whether a cgroup controller can be used for containers in this view.
pub fn controller_usable(name: &str) -> bool {
    match view() {
        View::Hybrid => Path::new("/sys/fs/cgroup").join(name).is_dir(),
        View::V2 => std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|list| list.split_whitespace().any(|known| known == name)),
    }
}

/// The directory of the cgroup that a process is in, for a controller (in v2 the one tree).
pub fn cgroup_dir(pid: i32, controller: &str) -> PathBuf {
    let list =
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the process's cgroups");
    for line in list.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, names, path) = (parts.next(), parts.next().unwrap(), parts.next().unwrap());
        let path = path.trim_start_matches('/');
        match view() {
            View::V2 if names.is_empty() => return Path::new("/sys/fs/cgroup").join(path),
            View::Hybrid if names.split(',').any(|name| name == controller) => {
                return Path::new("/sys/fs/cgroup").join(controller).join(path);
            }
            _ => {}
        }
    }
    panic!("process {pid} has no {controller} cgroup in {list}");
}

/// Tells that a test could not run, past libtest's capture, in the form that `tests/run` counts.
pub fn say_skipped(why: &str) {
    use std::io::Write;
    let thread = std::thread::current();
    let line = format!("skipped: {}: {why}\n", thread.name().unwrap_or("test"));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Leaves the test, counted as skipped.
macro_rules! skip {
    ($($why:tt)*) => {{
        crate::harness::say_skipped(&format!($($why)*));
        return;
    }};
}

/// Leaves the test on a reference: the reason why only isorun can pass it. `ISORUN_TEST_ALL=1` runs
/// it nevertheless, to see whether the reason is (still) true.
macro_rules! isorun_only {
    ($why:literal) => {
        if !crate::harness::runtime().isorun && std::env::var_os("ISORUN_TEST_ALL").is_none() {
            skip!("isorun only: {}", $why);
        }
    };
}

/// Leaves a test of `isorun doctor` where that says nothing: on a reference, and where integration/deny
/// has put a filter of its own around the runtime.
macro_rules! doctors {
    () => {
        isorun_only!("doctor is a command of isorun's own");
        if std::env::var_os("ISORUN_TEST_DENIED").is_some() {
            skip!("doctor's tests bring their own filters");
        }
    };
}

/// Leaves the test on a runc older than the one that has the feature.
macro_rules! since_runc {
    ($major:literal, $minor:literal, $what:literal) => {
        if crate::harness::runtime().version < ($major, $minor) {
            skip!(
                "this runc is older than {}.{}, which brought {}",
                $major,
                $minor,
                $what
            );
        }
    };
}
