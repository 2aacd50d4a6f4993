//! Labels of AppArmor and SELinux: what the program runs under, and what its files have.
//!
//! The kernel takes a label for the next exec through /proc, and whoever can put another file in that
//! place turns the label off (CVE-2019-16884, CVE-2019-19921, CVE-2025-52881). So it is written through
//! a descriptor of the host's /proc, which is known to be the root of a procfs, and not across any
//! mount on it.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

use super::proc::PROC_MAGIC;
use super::root::Root;
use crate::error::{Error, Result};
use crate::plan::LabelKind;
use crate::sys::fs::{fs_magic, openat2, resolve};

/// The inode of a procfs's root: PROC_ROOT_INO of linux/proc_fs.h.
const PROC_ROOT_INO: u64 = 1;

/// The host's /proc, held open: it stays the host's when the root changes and when the process enters
/// other namespaces, and `thread-self` in it is whoever asks, by the number that the host knows.
pub struct HostProc(OwnedFd);

impl HostProc {
    /// Opens /proc. To be called while `/` is the host's.
    ///
    /// # Errors
    /// A sentence with the errno; EXDEV when it is not the root of a procfs.
    pub fn open() -> Result<Self> {
        Self::at("/proc")
    }

    fn at(path: &str) -> Result<Self> {
        let fail = |errno| Error::os("open", path, errno);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = open(path, flags, Mode::empty()).map_err(fail)?;
        let magic = fs_magic(dir.as_fd()).map_err(fail)?;
        if magic != PROC_MAGIC || fstat(&dir).map_err(fail)?.st_ino != PROC_ROOT_INO {
            return Err(fail(Errno::EXDEV).remedy("it is not the root of a procfs"));
        }
        Ok(Self(dir))
    }

    /// Writes `value` to the attribute `name` of this thread, with one write.
    fn write(&self, name: &str, value: &str) -> nix::Result<()> {
        let path = CString::new(format!("thread-self/attr/{name}")).map_err(|_| Errno::EINVAL)?;
        let resolve = resolve::NO_XDEV | resolve::NO_MAGICLINKS;
        let file = match openat2(self.0.as_fd(), &path, libc::O_WRONLY, 0, resolve) {
            // Before Linux 5.6, or denied.
            Err(Errno::ENOSYS | Errno::EPERM) => {
                let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
                nix::fcntl::openat(&self.0, path.as_c_str(), flags, Mode::empty())?
            }
            other => other?,
        };
        if fs_magic(file.as_fd())? != PROC_MAGIC {
            return Err(Errno::EXDEV);
        }
        nix::unistd::write(&file, value.as_bytes()).map(drop)
    }

    /// Gives this thread the label that it has from its next exec on.
    ///
    /// # Errors
    /// A sentence with the field, the label and the errno.
    pub fn exec_label(&self, kind: LabelKind, label: &str) -> Result<()> {
        let result = match kind {
            LabelKind::Apparmor => {
                let command = format!("exec {label}");
                match self.write("apparmor/exec", &command) {
                    // Before Linux 5.8 the attributes of the first module are the only ones.
                    Err(Errno::ENOENT) => self.write("exec", &command),
                    other => other,
                }
            }
            LabelKind::Selinux => self.write("exec", label),
        };
        let (field, remedy) = match kind {
            LabelKind::Apparmor => (
                "process.apparmorProfile: apply",
                "the profile is not loaded: see apparmor_parser(8)",
            ),
            LabelKind::Selinux => (
                "process.selinuxLabel: apply",
                "the policy does not know this label",
            ),
        };
        result.map_err(|errno| {
            let error = Error::os(field, label, errno);
            match (kind, errno) {
                (LabelKind::Apparmor, Errno::ENOENT) | (LabelKind::Selinux, Errno::EINVAL) => {
                    error.remedy(remedy)
                }
                _ => error,
            }
        })
    }

    /// The SELinux label of keys that this thread makes; none: the policy's.
    ///
    /// # Errors
    /// A sentence with the label and the errno.
    pub fn key_label(&self, label: &str) -> Result<()> {
        self.write("keycreate", label).map_err(|errno| {
            Error::os(
                "process.selinuxLabel: label the session keyring",
                label,
                errno,
            )
        })
    }
}

/// Gives the directory or file `path` in the container an SELinux label.
///
/// # Errors
/// A sentence with the path and the errno.
pub fn file(root: &Root, path: &str, label: &str) -> Result<()> {
    let fail = |errno| Error::os(format!("linux.mountLabel: set {label:?} on"), path, errno);
    let target = root.open(path).map_err(fail)?;
    let place = CString::new(format!("/proc/self/fd/{}", target.as_raw_fd()))
        .map_err(|_| fail(Errno::EINVAL))?;
    crate::sys::fs::set_xattr(&place, c"security.selinux", label.as_bytes()).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_of_a_procfs_will_do() {
        for path in ["/", "/proc/sys", "/proc/self/attr", "/sys"] {
            let error = HostProc::at(path).err().expect(path).to_string();
            assert!(error.contains("EXDEV"), "{path}: {error}");
        }
        // A link, even to a procfs.
        let link = std::env::temp_dir().join(format!("isorun-proc-{}", std::process::id()));
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        let refused = HostProc::at(link.to_str().unwrap()).err();
        std::fs::remove_file(&link).unwrap();
        assert!(refused.is_some());
    }

    #[test]
    fn attributes_are_this_threads_own_and_nothing_is_made() {
        let proc = HostProc::open().unwrap();
        assert_eq!(proc.write("nonesuch", "x"), Err(Errno::ENOENT));
        // Out of the directory by way of links that lead to other file systems.
        assert!(proc.write("../root/etc/hostname", "x").is_err());
        let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        // A file of the same thread that takes anything: the write reaches this thread's directory.
        proc.write("../comm", "isorun-label").unwrap();
        let now = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        proc.write("../comm", name.trim()).unwrap();
        assert_eq!(now.trim(), "isorun-label");
    }

    /// Without a security module the kernel refuses the write itself: the sentence has all parts.
    #[test]
    fn a_refusal_is_told_with_field_and_label() {
        let proc = HostProc::open().unwrap();
        for (kind, text) in [
            (
                LabelKind::Apparmor,
                "process.apparmorProfile: apply isorun-none: ",
            ),
            (
                LabelKind::Selinux,
                "process.selinuxLabel: apply isorun-none: ",
            ),
        ] {
            let error = proc.exec_label(kind, "isorun-none").unwrap_err();
            assert!(error.to_string().starts_with(text), "{error}");
        }
    }
}
