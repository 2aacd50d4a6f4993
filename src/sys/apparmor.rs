//! The name that AppArmor knows this process by, where it stands in the way of a signal.
//!
//! The profiles that engines give containers (`docker-default`, `containers-default`) take signals from
//! senders that are `unconfined`, or called runc or crun, and from no others. A profile for isorun that
//! confines nothing (`flags=(unconfined)`, which Ubuntu 24.04 and newer need for user namespaces) gives it
//! another name all the same, and the signals of `docker stop` are refused. Who is under such a profile
//! may leave it: that takes away no protection, because there was none.

use std::io::{Error, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;

/// Sends a signal by `send`. Where that is refused with EACCES, which only security modules answer, and
/// isorun is under a profile that is nothing but a name, it leaves that profile and sends once more.
pub(super) fn signal(send: impl Fn() -> nix::Result<()>) -> nix::Result<()> {
    match send() {
        Err(Errno::EACCES) if leave().is_ok() => send(),
        other => other,
    }
}

/// From a profile in the mode `unconfined` to no profile, for this thread and what it executes.
fn leave() -> Result<(), Error> {
    let places = [
        "/proc/thread-self/attr/apparmor/current",
        "/proc/thread-self/attr/current",
    ];
    let label = places
        .iter()
        .find_map(|path| Some((path, std::fs::read_to_string(path).ok()?)));
    let Some((path, _)) = label.filter(|(_, label)| is_only_a_name(label)) else {
        return Err(Error::from_raw_os_error(libc::EACCES));
    };
    // One write, and no file is made.
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    // Whoever could mount over /proc could turn the write elsewhere: design, section 10.
    if super::fs::fs_magic(file.as_fd())? != super::fs::PROC_MAGIC {
        return Err(Error::from_raw_os_error(libc::EACCES));
    }
    file.write_all(b"changeprofile unconfined")
}

/// Whether a label as `isorun (unconfined)` is a profile that confines nothing.
fn is_only_a_name(label: &str) -> bool {
    label
        .trim_end_matches(['\n', '\0'])
        .strip_suffix(" (unconfined)")
        .is_some_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn only_a_profile_that_confines_nothing_is_left() {
        for (label, only_a_name) in [
            ("isorun (unconfined)\n", true),
            ("isorun (unconfined)\0", true),
            ("unconfined\n", false),
            ("isorun (enforce)\n", false),
            ("isorun (complain)\n", false),
            (" (unconfined)", false),
            // SELinux.
            ("unconfined_u:unconfined_r:unconfined_t:s0\0", false),
            ("", false),
        ] {
            assert_eq!(is_only_a_name(label), only_a_name, "{label:?}");
        }
    }

    #[test]
    fn what_is_refused_for_another_reason_is_sent_once() {
        for answer in [Ok(()), Err(Errno::EPERM), Err(Errno::ESRCH)] {
            let sent = Cell::new(0);
            let send = || {
                sent.set(sent.get() + 1);
                answer
            };
            assert_eq!((signal(send), sent.get()), (answer, 1));
        }
    }
}
