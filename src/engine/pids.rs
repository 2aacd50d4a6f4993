//! Process ids that no other member of a channel has: where a container's own begin, and what happens when
//! they are used up.
//!
//! `ns_last_pid` is that of the pid namespace of who writes it, whatever procfs it is written through. From
//! Linux 6.14 on every pid namespace has a `pid_max` of its own, too (commit 7863dcc72d0f): there the
//! numbers end with the range, and a namespace that has used all of it goes on at 300, where no range is.
//! Before that it would be the machine's, which is left alone: whether it is the namespace's own is seen
//! by the kernel's version and by the inode, which is another one of the same procfs then.

use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, stat};

use super::proc;
use crate::channel::Pids;
use crate::error::Result;
use crate::state::Record;

const PID_MAX: &str = "/proc/sys/kernel/pid_max";

/// What a kernel allows a pid namespace whose pid_max is its own: PID_MAX_LIMIT on 64 bits.
const MOST: u32 = 4 << 20;

/// The first kernel whose pid namespaces have a pid_max of their own.
const OWN_LIMIT: (u32, u32) = (6, 14);

/// Below which number the process ids of a new pid namespace are.
pub fn limit() -> u32 {
    match kernel().is_some_and(|version| version >= OWN_LIMIT) {
        true => MOST,
        false => {
            let text = std::fs::read_to_string(PID_MAX).unwrap_or_default();
            // What the kernel has without a word of anybody's, include/linux/threads.h.
            text.trim().parse().unwrap_or(32_768)
        }
    }
}

fn kernel() -> Option<(u32, u32)> {
    let name = nix::sys::utsname::uname().ok()?;
    let mut parts = name.release().to_str()?.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The runtime's own pid_max, held open while the child compares: so the kernel does not make its inode
/// anew.
#[derive(Debug)]
pub struct Outside {
    file: OwnedFd,
}

impl Outside {
    /// Holds it; none where there is no such file.
    pub fn hold() -> Option<Self> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let file = open(PID_MAX, flags, Mode::empty()).ok()?;
        Some(Self { file })
    }

    /// Which file it is.
    pub fn identity(&self) -> Option<(u64, u64)> {
        let stat = fstat(&self.file).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }
}

/// Lets the processes of this pid namespace have the numbers of `range` from here on. To be called by its
/// first process, while /proc is the host's. `outside` is the runtime's own pid_max.
///
/// # Errors
/// A sentence with the file and the errno: EROFS where /proc/sys is read-only, as inside of Docker.
pub fn begin(range: Pids, outside: Option<(u64, u64)>) -> Result<()> {
    let own = stat(PID_MAX).ok().map(|stat| (stat.st_dev, stat.st_ino));
    if is_own(kernel(), outside, own) {
        // Without it the numbers go on after the range: seen then as what they are (see outside_of).
        if let Err(error) = proc::write("sys/kernel/pid_max", &(range.last + 1).to_string()) {
            crate::log::debug(|| format!("the process ids do not end with their range: {error}"));
        }
    }
    proc::write("sys/kernel/ns_last_pid", &(range.first - 1).to_string())
}

/// Whether a pid_max is that of this pid namespace alone. Another procfs has other numbers for the same
/// file, and on an older kernel that is the machine's.
fn is_own(
    kernel: Option<(u32, u32)>,
    outside: Option<(u64, u64)>,
    own: Option<(u64, u64)>,
) -> bool {
    let new = kernel.is_some_and(|version| version >= OWN_LIMIT);
    matches!((outside, own), (Some(outside), Some(own))
        if new && outside.0 == own.0 && outside.1 != own.1)
}

/// The number of process `pid` in its own pid namespace: the last one of NSpid, proc_pid_status(5).
pub fn inner(pid: i32) -> Option<u32> {
    numbers(pid).last().copied()
}

/// The numbers of process `pid` in the pid namespaces that it is in, from the outermost one that is seen here.
fn numbers(pid: i32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    nspid(&status)
}

fn nspid(status: &str) -> Vec<u32> {
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("NSpid:"));
    let numbers = line.unwrap_or_default().split_ascii_whitespace();
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// The numbers of the container's processes that are not in its range, but for that of init: it has started
/// so many that it has come round. None where it has no range.
pub fn outside_of(record: &Record) -> Vec<u32> {
    let pids = record.channels.as_ref().and_then(|channels| channels.pids);
    let (Some(pids), Some(placed), Some(first)) = (pids, record.placed(), record.pid) else {
        return Vec::new();
    };
    // A process may be in a pid namespace below the container's, where its number says nothing.
    let depth = numbers(first).len();
    let processes = placed.processes().unwrap_or_default();
    let inner = processes.into_iter().filter_map(|pid| {
        let numbers = numbers(pid);
        numbers.get(depth.checked_sub(1)?).copied()
    });
    let mut found: Vec<u32> = inner.filter(|pid| *pid != 1 && !pids.holds(*pid)).collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_limit() {
        assert!((301..=MOST).contains(&limit()), "{}", limit());
        assert!(kernel().is_some_and(|(major, _)| major >= 3));
        assert_eq!(inner(std::process::id() as i32), Some(std::process::id()));
        assert_eq!(nspid("Name:\tx\nNSpid:\t70\t8192\t2\n"), [70, 8192, 2]);
        let held = Outside::hold().unwrap();
        let stat = stat(PID_MAX).unwrap();
        assert_eq!(held.identity(), Some((stat.st_dev, stat.st_ino)));
    }

    /// Where it is not sure, the machine's own would be changed.
    #[test]
    fn only_a_pid_max_of_the_namespaces_own_is_written() {
        let (outside, other_inode, other_procfs) = ((20, 7), (20, 8), (21, 8));
        let own = |kernel, own| is_own(kernel, Some(outside), own);
        assert!(own(Some((6, 14)), Some(other_inode)));
        assert!(own(Some((7, 0)), Some(other_inode)));
        assert!(!own(Some((6, 13)), Some(other_inode)));
        assert!(!own(None, Some(other_inode)));
        assert!(!own(Some((6, 18)), Some(outside)));
        assert!(!own(Some((6, 18)), Some(other_procfs)));
        assert!(!own(Some((6, 18)), None));
        assert!(!is_own(Some((6, 18)), None, Some(other_inode)));
    }
}
