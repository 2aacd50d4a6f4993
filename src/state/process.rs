//! Is the process that a state file names still that process?
//!
//! A pid alone does not say: pids are used again. The pid together with the start time (field 22
//! of /proc/PID/stat, proc_pid_stat(5), in clock ticks since boot) does.

use std::fs::File;
use std::io::Read;

use nix::errno::Errno;

use crate::error::{Error, Result};

/// The start time of process `pid`, in clock ticks since boot. Costs three system calls.
///
/// # Errors
/// ESRCH where there is no such process.
pub fn start_time(pid: i32) -> Result<u64> {
    match stat(pid) {
        Some((_, start)) => Ok(start),
        None => Err(Error::os(
            "read the start time of process",
            pid.to_string(),
            Errno::ESRCH,
        )),
    }
}

/// Whether process `pid` exists, is the one that started at `start`, and is no zombie.
pub fn is_alive(pid: i32, start: u64) -> bool {
    // X: being torn down. Neither runs anything or can be sent a signal with effect.
    matches!(stat(pid), Some((state, began)) if began == start && state != b'Z' && state != b'X')
}

/// The name of isorun's own init, which executes nothing: at most 15 bytes.
pub const INIT: &str = "isorun-init";

/// Whether process `pid`, alive or not reaped yet, has not executed a program since it was forked
/// (PF_FORKNOEXEC, 0x40, in field 9 of its stat file), nor is to be isorun's own init, which has its name
/// before its filter is loaded: that it was killed before it had a program is seen by its status only. False
/// where it does not exist.
pub fn never_executed(pid: i32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    flags(&line).is_some_and(|flags| flags & 0x40 != 0) && !is_init(&line)
}

/// Whether field 2 of a stat file is the name of isorun's init.
fn is_init(line: &[u8]) -> bool {
    let begin = line.iter().position(|&byte| byte == b'(');
    let end = line.iter().rposition(|&byte| byte == b')');
    matches!((begin, end), (Some(begin), Some(end)) if line.get(begin + 1..end) == Some(INIT.as_bytes()))
}

/// Whether process `pid` is the parent of this process, or that one's, and so on. By the numbers of the
/// procfs on /proc, which need not be those of this process's own pid namespace: a createContainer hook is
/// in that of the container, with the host's /proc.
pub fn is_ancestor(pid: i32) -> bool {
    let own = std::fs::read_link("/proc/self").ok();
    let mut at: Option<i32> = own.and_then(|link| link.to_str()?.parse().ok());
    // A process that is adopted meanwhile makes the way shorter; none makes a circle.
    while let Some(one) = at.filter(|&one| one > 1) {
        at = parent_of(one);
        if at == Some(pid) {
            return true;
        }
    }
    false
}

/// The parent of process `pid`; none where there is no such process.
pub fn parent_of(pid: i32) -> Option<i32> {
    parent(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 4 of a stat file.
fn parent(line: &[u8]) -> Option<i32> {
    let end = line.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&line[end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn flags(line: &[u8]) -> Option<u64> {
    let end = line.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&line[end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(6)?.parse().ok()
}

/// State letter and start time of a process; none where it does not exist.
fn stat(pid: i32) -> Option<(u8, u64)> {
    // 52 numbers of at most 20 digits and a name of at most 64 bytes fit.
    let mut buffer = [0u8; 1536];
    let length = File::open(format!("/proc/{pid}/stat"))
        .ok()?
        .read(&mut buffer)
        .ok()?;
    parse(&buffer[..length])
}

fn parse(line: &[u8]) -> Option<(u8, u64)> {
    // The name (field 2) may hold blanks and parentheses itself; the last ")" ends it.
    let end = line.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&line[end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // The state is field 3, the start time field 22.
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_name_with_parentheses_is_no_obstacle() {
        let line = b"42 (a) S 1 (b)) R 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 9 9\n";
        assert_eq!(parse(line), Some((b'R', 777)));
        assert_eq!(flags(line), Some(4194560));
        assert!(!is_init(line) && is_init(b"42 (isorun-init) S 1 42 42 0"));
        assert_eq!(parse(b"42 (x) R 1"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn this_process_lives_and_another_start_time_is_another_process() {
        let pid = std::process::id() as i32;
        let start = start_time(pid).unwrap();
        assert!(is_alive(pid, start));
        assert!(!is_alive(pid, start + 1));
    }

    #[test]
    fn ancestors() {
        assert!(is_ancestor(std::os::unix::process::parent_id() as i32));
        assert!(!is_ancestor(std::process::id() as i32), "only those above");
        assert!(!is_ancestor(0));
        assert_eq!(parent(b"42 (a) S 1 (b)) R 17 42 42 0"), Some(17));
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read line"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let start = start_time(pid).unwrap();
        assert!(is_alive(pid, start));
        drop(child.stdin.take());
        // The child is a zombie from its end until wait(); it has no other way to go.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while is_alive(pid, start) && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(!is_alive(pid, start));
        assert_eq!(start_time(pid).unwrap(), start);
        child.wait().unwrap();
        assert_eq!(start_time(pid).unwrap_err().errno(), Some(Errno::ESRCH));
    }
}
