//! The session keyring of the container: its own, so that the keys of the runtime's caller are out of
//! reach (keyrings(7)).

use std::ffi::{CStr, CString};

use nix::errno::Errno;

use super::labels::HostProc;
use crate::error::{Error, Kind, Result};
use crate::sys::process;

/// Whoever is neither the owner nor of its group may search (keyctl_setperm(3)).
const KEY_OTH_SEARCH: u32 = 0x08;

/// Joins a new session keyring `name`, and adds `search` to its permissions: `runc exec` and whoever
/// else has the container's user joins it by that name. With `label` it has this SELinux label.
///
/// Where a keyring of this name is there that somebody else has made and opened to all, the kernel joins
/// that one (keyctl_join_session_keyring(3)): its owner would see the container's keys, and give it others.
/// Then it is one without a name, which an exec does not find. With `search` for others this is not looked
/// at: that is a user namespace, which has names of its own (Linux 5.3), and where the ids that made a
/// keyring may have none.
///
/// # Errors
/// A sentence with the name and the errno; ENOSYS and EPERM where the key calls are not to be had.
pub fn join(name: &str, search: u32, label: Option<&str>) -> Result<()> {
    let fail = |what: &'static str| move |errno| Error::os(what, name, errno);
    let text = CString::new(name)
        .map_err(|_| Errno::EINVAL)
        .map_err(fail("join the new session keyring"))?;
    // Without an errno: that a label is refused does not mean that keys are not to be had.
    let told = |error: Error| Error::new(Kind::System, error.to_string());
    let proc = label.map(labelled).transpose().map_err(told)?;
    let any = search & KEY_OTH_SEARCH != 0;
    let joined = look(Some(&text), name).and_then(|(found, own)| match any || own {
        true => Ok(found),
        false => Ok(look(None, name)?.0),
    });
    if let Some(proc) = proc {
        proc.key_label("").map_err(told)?;
    }
    let (serial, permissions) = joined?;
    process::set_key_permissions(serial, permissions | search)
        .map_err(fail("set the permissions of the session keyring"))
}

/// Joins a keyring of this name, or a new one without; its serial number and permissions, and whether it is
/// this user's.
fn look(text: Option<&CStr>, name: &str) -> Result<((i32, u32), bool)> {
    let fail = |what: &'static str| move |errno| Error::os(what, name, errno);
    let serial =
        process::join_session_keyring(text).map_err(fail("join the new session keyring"))?;
    let description = match process::describe_key(serial) {
        Ok(description) => description,
        // Only somebody else forbids even that.
        Err(Errno::EACCES) if text.is_some() => return Ok(((serial, 0), false)),
        Err(errno) => return Err(fail("look at the session keyring")(errno)),
    };
    let (owner, permissions) = owner_and_permissions(&description)
        .ok_or(Errno::EBADMSG)
        .map_err(fail("look at the session keyring"))?;
    let own = owner == nix::unistd::geteuid().as_raw();
    Ok(((serial, permissions), own))
}

fn labelled(label: &str) -> Result<HostProc> {
    let proc = HostProc::open()?;
    proc.key_label(label)?;
    Ok(proc)
}

/// The second and the fourth field of `type;uid;gid;perm;description`, which is in hexadecimal.
fn owner_and_permissions(description: &str) -> Option<(u32, u32)> {
    let mut fields = description.split(';').skip(1);
    let owner = fields.next()?.parse().ok()?;
    Some((owner, u32::from_str_radix(fields.nth(1)?, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_and_permissions_of_a_description() {
        assert_eq!(
            owner_and_permissions("keyring;7;0;3f130000;_ses.a;b"),
            Some((7, 0x3f13_0000))
        );
        assert_eq!(owner_and_permissions("keyring;0;0;;x"), None);
        assert_eq!(owner_and_permissions("keyring"), None);
    }
}
