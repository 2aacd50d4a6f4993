//! The session keyring of the container: its own, so that the keys of the runtime's caller are out of
//! reach (keyrings(7)).

use std::ffi::CString;

use nix::errno::Errno;

use super::labels::HostProc;
use crate::error::{Error, Result};
use crate::sys::process;

/// Joins a new session keyring `name`, and adds `search` to its permissions: `runc exec` and whoever
/// else has the container's user joins it by that name. With `label` it has this SELinux label.
///
/// # Errors
/// A sentence with the name and the errno; ENOSYS and EPERM where the key calls are not to be had.
pub fn join(name: &str, search: u32, label: Option<&str>) -> Result<()> {
    let fail = |what: &'static str| move |errno| Error::os(what, name, errno);
    let text = CString::new(name)
        .map_err(|_| Errno::EINVAL)
        .map_err(fail("join the new session keyring"))?;
    let proc = label.map(labelled).transpose()?;
    let joined = process::join_session_keyring(&text).map_err(|errno| {
        let error = fail("join the new session keyring")(errno);
        match errno {
            Errno::EDQUOT => error.remedy(
                "the user's quota of keys is used up: see /proc/key-users, \
                 /proc/sys/kernel/keys/maxkeys, or use --no-new-keyring",
            ),
            _ => error,
        }
    });
    if let Some(proc) = proc {
        proc.key_label("")?;
    }
    let serial = joined?;
    let description = process::describe_key(serial).map_err(fail("look at the session keyring"))?;
    let permissions = permissions(&description)
        .ok_or(Errno::EBADMSG)
        .map_err(fail("look at the session keyring"))?;
    process::set_key_permissions(serial, permissions | search)
        .map_err(fail("set the permissions of the session keyring"))
}

fn labelled(label: &str) -> Result<HostProc> {
    let proc = HostProc::open()?;
    proc.key_label(label)?;
    Ok(proc)
}

/// The fourth field of `type;uid;gid;perm;description`, in hexadecimal.
fn permissions(description: &str) -> Option<u32> {
    u32::from_str_radix(description.split(';').nth(3)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_of_a_description() {
        assert_eq!(
            permissions("keyring;0;0;3f130000;_ses.a;b"),
            Some(0x3f13_0000)
        );
        assert_eq!(permissions("keyring;0;0;;x"), None);
        assert_eq!(permissions("keyring"), None);
    }
}
