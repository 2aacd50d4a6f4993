//! Who answers a system call: the kernel, or a filter in its place.
//!
//! Each call is made with arguments that can do nothing: the kernel refuses them with an errno that is
//! known, before it looks at any right. Another errno comes from a filter (or another security module).

use nix::errno::Errno;

/// A call that is asked for.
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// The capability without which the kernel itself says EPERM first; the call is not asked then.
    pub needs: Option<u32>,
    number: libc::c_long,
    arguments: [i64; 5],
    /// What the kernel says; 0 for success.
    kernel: &'static [Errno],
}

const SYS_ADMIN: Option<u32> = Some(21);
const NONE: i64 = 0;
const BAD_FD: i64 = -1;
const NULL_DEVICE: i64 = 0x103;

const fn call(
    name: &'static str,
    needs: Option<u32>,
    number: libc::c_long,
    arguments: [i64; 5],
    kernel: &'static [Errno],
) -> Call {
    Call {
        name,
        needs,
        number,
        arguments,
        kernel,
    }
}

/// The calls that make a container.
#[rustfmt::skip]
pub const CALLS: [Call; 13] = [
    // Size 0: no struct of any version.
    call("clone3", None, libc::SYS_clone3, [NONE; 5], &[Errno::EINVAL, Errno::EFAULT]),
    // No flag: nothing to do.
    call("unshare", None, libc::SYS_unshare, [NONE; 5], &[]),
    call("setns", None, libc::SYS_setns, [BAD_FD, 0, 0, 0, 0], &[Errno::EBADF]),
    call("mount", None, libc::SYS_mount, [NONE; 5], &[Errno::EFAULT]),
    call("umount2", None, libc::SYS_umount2, [NONE; 5], &[Errno::EFAULT]),
    call("open_tree", None, libc::SYS_open_tree, [BAD_FD, NONE, 0, 0, 0], &[Errno::EFAULT]),
    call("mount_setattr", None, libc::SYS_mount_setattr, [BAD_FD, NONE, 0, NONE, 0], &[Errno::EINVAL]),
    call("fsopen", SYS_ADMIN, libc::SYS_fsopen, [NONE; 5], &[Errno::EFAULT]),
    call("pivot_root", SYS_ADMIN, libc::SYS_pivot_root, [NONE; 5], &[Errno::EFAULT]),
    call("sethostname", SYS_ADMIN, libc::SYS_sethostname, [NONE, 1, 0, 0, 0], &[Errno::EFAULT]),
    call("mknodat", None, libc::SYS_mknodat,
        [libc::AT_FDCWD as i64, NONE, (libc::S_IFCHR | 0o600) as i64, NULL_DEVICE, 0],
        &[Errno::EFAULT]),
    call("keyctl", None, libc::SYS_keyctl, [9999, 0, 0, 0, 0], &[Errno::EOPNOTSUPP]),
    call("seccomp", None, libc::SYS_seccomp, [9999, 0, NONE, 0, 0], &[Errno::EINVAL]),
];

/// The first kernel (version, patch level) that has the call `name`; (0, 0) for one that every kernel has
/// on which isorun runs, or that is not asked for. From the man pages of the calls.
pub fn since(name: &str) -> (u32, u32) {
    match name {
        "open_tree" | "fsopen" => (5, 2),
        "clone3" => (5, 3),
        "mount_setattr" => (5, 12),
        _ => (0, 0),
    }
}

impl Call {
    /// The errno of whoever answers in the kernel's place; none where the kernel itself does. ENOSYS may
    /// be the kernel's own: see [`since`].
    pub fn refused(&self) -> Option<Errno> {
        let [a, b, c, d, e] = self.arguments;
        // SAFETY: every pointer among the arguments is null and every descriptor invalid, so the kernel
        // neither reads nor writes memory; see CALLS.
        let result = unsafe { libc::syscall(self.number, a, b, c, d, e) };
        match Errno::result(result) {
            Ok(_) => None,
            Err(errno) if self.kernel.contains(&errno) => None,
            Err(errno) => Some(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The errnos of the table are those of this kernel, where nobody answers in its place.
    #[test]
    fn the_kernel_says_what_the_table_has() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        if !status.contains("Seccomp:\t0") {
            eprintln!("skipped: the_kernel_says_what_the_table_has: a filter is in force");
            return;
        }
        let caps = crate::sys::process::effective_caps().unwrap();
        for call in &CALLS {
            if call.needs.is_none_or(|cap| caps >> cap & 1 == 1) {
                assert_eq!(call.refused(), None, "{}", call.name);
            }
        }
    }
}
