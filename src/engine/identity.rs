//! Who the process is: user, groups, capabilities, home; and which program it becomes.

use nix::errno::Errno;
use nix::unistd::AccessFlags;

use super::root::Root;
use crate::error::{Error, Kind, Result};
use crate::plan::Identity;
use crate::sys::process;

/// How much of /etc/passwd is read at most, bytes.
const PASSWD_LIMIT: u64 = 4 << 20;

/// Looks whether this process has the capabilities of the mask `asked`.
///
/// # Errors
/// EPERM with the names of those that it has not.
pub fn look_for(asked: u64) -> Result<()> {
    let have = process::effective_caps()
        .map_err(|errno| Error::os("process.capabilities: look at", "isorun's own", errno))?;
    if asked & !have == 0 {
        return Ok(());
    }
    let names = crate::spec::names::capability_names(asked & !have).join(", ");
    Err(Error::os("process.capabilities: give", names, Errno::EPERM)
        .detail("the runtime itself does not have them"))
}

/// Changes user, groups and capabilities for good. Capabilities that the runtime does not have are left
/// out: [`look_for`] has told of them. Those of the mask `more` are kept as long as nothing is executed.
///
/// # Errors
/// A sentence with what was being set and the errno.
pub fn assume(identity: &Identity, more: u64) -> Result<()> {
    let fail = |what: &str| {
        let what = what.to_string();
        move |errno| Error::os("process.user: set", what, errno)
    };
    let caps = &identity.caps;
    let have = process::effective_caps().map_err(fail("capabilities"))?;
    for cap in 0..64 {
        if caps.bounding >> cap & 1 == 0 {
            match process::bounding_drop(cap) {
                // The kernel knows no capability of this number, nor any after it.
                Err(Errno::EINVAL) => break,
                // Without CAP_SETPCAP the set stays as it is; that matters only if it holds the cap.
                Err(Errno::EPERM) if !process::bounding_has(cap).unwrap_or(true) => {}
                other => other.map_err(|errno| {
                    Error::os(
                        "process.capabilities.bounding: drop",
                        cap.to_string(),
                        errno,
                    )
                })?,
            }
        }
    }
    process::keep_caps(true).map_err(fail("keepcaps"))?;
    if let Some(groups) = &identity.groups {
        process::set_groups(groups).map_err(|errno| {
            Error::os(
                "process.user.additionalGids: set",
                format!("{groups:?}"),
                errno,
            )
        })?;
    }
    own_stdio(identity.uid)?;
    let ids = format!("{}:{}", identity.uid, identity.gid);
    process::set_ids(identity.uid, identity.gid).map_err(|errno| {
        let error = Error::os("process.user: become", ids, errno);
        match errno {
            Errno::EINVAL => error.remedy("the id is not in the maps of the user namespace"),
            _ => error,
        }
    })?;
    process::keep_caps(false).map_err(fail("keepcaps"))?;
    process::set_caps(
        (caps.effective | more) & have,
        (caps.permitted | more) & have,
        caps.inheritable & have,
    )
    .map_err(|errno| Error::os("process.capabilities: set", "the sets", errno))?;
    raise_ambient(caps.ambient & caps.permitted & caps.inheritable & have)
}

/// Gives stdin, stdout and stderr to the user, as runc does: otherwise a program that is not root
/// could not open /dev/stdout, which its /proc/self/fd/1 is. Devices of the host other than
/// terminals are left alone.
fn own_stdio(uid: u32) -> Result<()> {
    use nix::sys::stat::fstat;
    use std::os::fd::AsFd;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for (name, fd) in [
        ("stdin", stdin.as_fd()),
        ("stdout", stdout.as_fd()),
        ("stderr", stderr.as_fd()),
    ] {
        let Ok(stat) = fstat(fd) else { continue };
        let device = matches!(stat.st_mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
        if stat.st_uid == uid || device && !nix::unistd::isatty(fd).unwrap_or(false) {
            continue;
        }
        match nix::unistd::fchown(fd, Some(uid.into()), None) {
            // Its owner or group is not mapped in the user namespace, or the file system takes no
            // change: it stays as it is.
            Ok(()) | Err(Errno::EPERM | Errno::EINVAL | Errno::EROFS) => {}
            Err(errno) => return Err(Error::os("process.user: own", name, errno)),
        }
    }
    Ok(())
}

fn raise_ambient(ambient: u64) -> Result<()> {
    match process::ambient_clear() {
        // Before Linux 4.3 there is no ambient set.
        Err(Errno::EINVAL) if ambient == 0 => return Ok(()),
        other => other
            .map_err(|errno| Error::os("process.capabilities.ambient: clear", "the set", errno))?,
    }
    for cap in (0..64).filter(|cap| ambient >> cap & 1 == 1) {
        process::ambient_raise(cap).map_err(|errno| {
            Error::os(
                "process.capabilities.ambient: raise",
                cap.to_string(),
                errno,
            )
        })?;
    }
    Ok(())
}

/// The home directory of `uid` by the container's /etc/passwd, `/` where it names none.
pub fn home(root: &Root, uid: u32) -> String {
    let passwd = root
        .read_small("/etc/passwd", PASSWD_LIMIT)
        .unwrap_or_default();
    home_in(&String::from_utf8_lossy(&passwd), uid).unwrap_or_else(|| "/".to_string())
}

/// The sixth field of the first line of passwd(5) whose third field is `uid`.
fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let found = fields.len() >= 6 && fields[2].parse() == Ok(uid) && !fields[5].is_empty();
        found.then(|| fields[5].to_string())
    })
}

/// The path of the program: `name` itself when it holds a slash, else the first executable file in
/// PATH. To be called with the container's root as `/` and its working directory not yet entered:
/// `cwd` is where relative names start.
///
/// # Errors
/// The sentences that engines know: `executable file not found in $PATH`, `no such file or
/// directory`, `permission denied`.
pub fn find_program(name: &str, env: &[String], cwd: &str) -> Result<String> {
    let told = |why: &str| Error::new(Kind::System, format!("exec: {name:?}: {why}"));
    if name.contains('/') {
        let path = below(cwd, name);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Err(told("no such file or directory")),
            Err(Errno::EISDIR) => Err(told("is a directory: permission denied")),
            Err(Errno::EACCES) => Err(told("permission denied")),
            Err(errno) => Err(Error::os("exec: look at", path, errno)),
        };
    }
    let path = env.iter().rev().find_map(|pair| pair.strip_prefix("PATH="));
    let mut denied = false;
    for dir in path
        .unwrap_or_default()
        .split(':')
        .filter(|_| !name.is_empty())
    {
        // An empty part is the working directory, as in a shell.
        let found = below(&below(cwd, dir), name);
        match executable(&found) {
            Ok(()) => return Ok(found),
            Err(Errno::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    let remedy = if denied {
        "a file of that name is there, but not executable"
    } else {
        ""
    };
    Err(told("executable file not found in $PATH").remedy(remedy))
}

fn below(dir: &str, name: &str) -> String {
    match name {
        "" => dir.to_string(),
        name if name.starts_with('/') => name.to_string(),
        name => format!("{}/{name}", dir.trim_end_matches('/')),
    }
}

fn executable(path: &str) -> nix::Result<()> {
    let stat = nix::sys::stat::stat(path)?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG if stat.st_mode & 0o111 == 0 => Err(Errno::EACCES),
        libc::S_IFREG => nix::unistd::access(path, AccessFlags::X_OK),
        libc::S_IFDIR => Err(Errno::EISDIR),
        _ => Err(Errno::EACCES),
    }
}

/// Enters the working directory, and checks that it is inside the root: a descriptor of the host that
/// leaked would lead out (CVE-2024-21626).
///
/// # Errors
/// A sentence with the path and the errno.
pub fn enter(path: &str) -> Result<()> {
    nix::unistd::chdir(path).map_err(|errno| Error::os("process.cwd: enter", path, errno))?;
    match nix::unistd::getcwd() {
        // The kernel says "(unreachable)/..." for a directory outside the root, which is no absolute
        // path, and ENOENT for one that is gone.
        Ok(cwd) if cwd.is_absolute() => Ok(()),
        Ok(_) | Err(Errno::ENOENT) => Err(Error::os("process.cwd: enter", path, Errno::EXDEV)
            .remedy("it leads out of the container's root file system")),
        Err(errno) => Err(Error::os("process.cwd: check", path, errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_from_passwd() {
        let passwd =
            "# comment\nbroken:x:7\nroot:x:0:0::/root:/bin/sh\nu:x:7:7::/home/u:\ne:x:8:8:::\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 7).as_deref(), Some("/home/u"));
        assert_eq!(home_in(passwd, 8), None);
        assert_eq!(home_in(passwd, 9), None);
    }

    #[test]
    fn programs() {
        let env = ["PATH=/nowhere:/bin:/usr/bin".to_string()];
        let found = find_program("sh", &env, "/").unwrap();
        assert!(found == "/bin/sh" || found == "/usr/bin/sh", "{found}");
        assert_eq!(find_program("./sh", &[], "/bin").unwrap(), "/bin/./sh");
        let sentence = |name| find_program(name, &env, "/").unwrap_err().to_string();
        assert_eq!(
            sentence("nonesuch"),
            "exec: \"nonesuch\": executable file not found in $PATH"
        );
        assert_eq!(
            sentence("/nonesuch"),
            "exec: \"/nonesuch\": no such file or directory"
        );
        assert_eq!(
            sentence("/etc/passwd"),
            "exec: \"/etc/passwd\": permission denied"
        );
        assert!(sentence("/etc").ends_with("permission denied"));
        assert!(find_program("", &env, "/").is_err());
    }
}
