//! The few files of /proc that the demo reads, as types; proc(5).
//!
//! Read here and not by a library: the probe is a part of the one small binary.

use std::path::PathBuf;

/// One line of /proc/self/mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The part of the file system that is mounted.
    pub root: String,
    /// Where it is mounted.
    pub target: PathBuf,
    /// Whether the mount is read-only.
    pub read_only: bool,
    /// The file system's type.
    pub kind: String,
    /// The file system's own options.
    pub options: Vec<String>,
}

/// The text of /proc/PID/status.
pub struct Status(String);

impl Status {
    /// Reads it for `pid`, a number or "self".
    ///
    /// # Errors
    /// Where there is no such process.
    pub fn of(pid: &str) -> std::io::Result<Self> {
        std::fs::read_to_string(format!("/proc/{pid}/status")).map(Self)
    }

    /// The word at `index` of the line `name`.
    pub fn word(&self, name: &str, index: usize) -> Option<&str> {
        let value = self
            .0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.split_whitespace().nth(index)
    }

    /// The effective user id.
    pub fn euid(&self) -> Option<u32> {
        self.word("Uid", 1)?.parse().ok()
    }
}

/// The mounts that this process sees, in the order in which they were made.
///
/// # Errors
/// Where /proc cannot be read.
pub fn mounts() -> std::io::Result<Vec<Mount>> {
    Ok(std::fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter_map(mount)
        .collect())
}

/// `36 35 98:0 /root /target rw,noatime shared:1 - ext4 /dev/root rw,errors=continue`
fn mount(line: &str) -> Option<Mount> {
    let (mount, super_block) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, target, options) = (fields.next()?, fields.next()?, fields.next()?);
    let mut fields = super_block.split(' ');
    let (kind, options_of_kind) = (fields.next()?, fields.nth(1)?);
    Some(Mount {
        root: root.to_string(),
        target: PathBuf::from(unescaped(target)),
        read_only: options.split(',').any(|option| option == "ro"),
        kind: kind.to_string(),
        options: options_of_kind.split(',').map(str::to_string).collect(),
    })
}

/// Blanks and the like are written as three octal digits after a backslash.
fn unescaped(path: &str) -> String {
    let mut parts = path.split('\\');
    let mut text = parts.next().unwrap_or_default().to_string();
    for part in parts {
        match part
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&part[3..]);
            }
            None => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line = "36 35 98:0 /a /b\\040c ro,noatime shared:1 master:2 - cgroup cgroup rw,memory";
        let found = mount(line).unwrap();
        assert_eq!(
            (found.root.as_str(), found.target.to_str()),
            ("/a", Some("/b c"))
        );
        assert!(found.read_only && found.kind == "cgroup");
        assert_eq!(found.options, ["rw", "memory"]);
        assert!(!mount("1 2 0:1 / / rw - ext4 /dev/x ro").unwrap().read_only);
        assert_eq!(mount("1 2 0:1 / / rw"), None);
        assert!(
            mounts()
                .unwrap()
                .iter()
                .any(|mount| mount.target == std::path::Path::new("/"))
        );
    }

    #[test]
    fn lines_of_status() {
        let status = Status("Name:\tUid: x\nUid:\t1\t2\t3\t4\nSeccomp:\t2\n".into());
        assert_eq!(
            (status.euid(), status.word("Seccomp", 0)),
            (Some(2), Some("2"))
        );
        assert_eq!(status.word("Secc", 0), None);
        assert_eq!(
            Status::of("self").unwrap().euid(),
            Some(nix::unistd::geteuid().as_raw())
        );
    }
}
