//! /proc/self/mountinfo: the mounts of this process's namespace (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number, as long as it is there.
    pub id: u64,
    /// The device number of its file system: `major:minor`.
    pub device: String,
    /// The part of the file system that is mounted.
    pub root: String,
    /// Where, as this process sees it.
    pub point: PathBuf,
    /// The type of the file system.
    pub kind: String,
}

/// The mounts, in the kernel's order: what is mounted on something comes after it.
///
/// # Errors
/// Those of reading the file.
pub fn read() -> std::io::Result<Vec<Line>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(parse).collect())
}

/// The number of the mount that a descriptor is in: `mnt_id` of proc_pid_fdinfo(5).
///
/// # Errors
/// Those of reading the file; EIO for one that does not say it.
pub fn number(fd: BorrowedFd<'_>) -> std::io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let found = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let number = found.and_then(|number| number.trim().parse().ok());
    number.ok_or_else(|| std::io::Error::from_raw_os_error(libc::EIO))
}

fn parse(line: &str) -> Option<Line> {
    let (own, rest) = line.split_once(" - ")?;
    let mut fields = own.split(' ');
    let id = fields.next()?.parse().ok()?;
    let mut fields = fields.skip(1);
    Some(Line {
        id,
        device: fields.next()?.to_string(),
        root: fields.next()?.to_string(),
        point: PathBuf::from(OsString::from_vec(unescaped(fields.next()?))),
        kind: rest.split(' ').next()?.to_string(),
    })
}

/// A field without its escapes: blanks and the like are written as `\040`.
fn unescaped(field: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\');
        let code = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = parse("22 28 0:21 /r /a\\040b/proc rw,nosuid shared:5 - proc none rw").unwrap();
        assert_eq!(line.point, PathBuf::from("/a b/proc"));
        assert_eq!((line.device.as_str(), line.root.as_str()), ("0:21", "/r"));
        assert_eq!(line.kind, "proc");
        assert_eq!(parse(""), None);
        assert_eq!(unescaped("a\\134040\\0"), b"a\\040\\0");
        assert!(
            read()
                .unwrap()
                .iter()
                .any(|line| line.point.as_os_str() == "/")
        );
    }
}
