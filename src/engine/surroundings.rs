//! Steps on the surroundings of the child that need nothing of its own: session, keyring, namespaces,
//! names, kernel parameters.

use nix::errno::Errno;

use super::proc;
use crate::error::{Error, Kind, Result};
use crate::plan::{Action, Birth};
use crate::sys::{net, process};

/// Does one of these steps.
///
/// # Errors
/// A sentence with the field or the step, the object and the errno.
pub fn act(action: &Action, birth: &Birth) -> Result<()> {
    match action {
        Action::NewSession => match nix::unistd::setsid() {
            // EPERM: it leads a session already.
            Ok(_) | Err(Errno::EPERM) => Ok(()),
            Err(errno) => Err(Error::os("make", "a new session", errno)),
        },
        Action::SessionKeyring {
            name,
            search,
            label,
        } => super::keyring::join(name, *search, label.as_deref()),
        Action::CgroupNamespace => process::unshare(libc::CLONE_NEWCGROUP as u64)
            .map_err(|errno| Error::os("make", "the cgroup namespace", errno)),
        Action::TimeNamespace { offsets } => {
            process::unshare(crate::sys::clone::CLONE_NEWTIME)
                .map_err(|errno| Error::os("make", "the time namespace", errno))?;
            // The file belongs to the process's own user only while that is dumpable; not where somebody
            // else could make use of it.
            let pid = libc::CLONE_NEWPID as u64;
            let hide = !process::is_dumpable() && birth.joins.iter().all(|join| join.flag != pid);
            let fail = |errno| Error::os("own", "/proc/self/timens_offsets", errno);
            if hide {
                process::dumpable(true).map_err(fail)?;
            }
            let write = |line: &String| proc::write("self/timens_offsets", line);
            offsets.iter().try_for_each(write)?;
            match hide {
                true => process::dumpable(false).map_err(fail),
                false => Ok(()),
            }
        }
        Action::IpcNamespace => process::unshare(libc::CLONE_NEWIPC as u64)
            .map_err(|errno| Error::os("make", "the IPC namespace", errno)),
        Action::NetworkNamespace => process::unshare(libc::CLONE_NEWNET as u64)
            .map_err(|errno| Error::os("make", "the network namespace", errno)),
        Action::LoopbackUp => {
            net::loopback_up().map_err(|errno| Error::os("bring up", "the interface lo", errno))
        }
        Action::OomScoreAdj { value } => proc::write("self/oom_score_adj", &value.to_string())
            .map_err(|error| error.context("process.oomScoreAdj")),
        Action::Hostname { name } => {
            nix::unistd::sethostname(name).map_err(|errno| Error::os("hostname: set", name, errno))
        }
        Action::Domainname { name } => {
            process::set_domainname(name).map_err(|errno| Error::os("domainname: set", name, errno))
        }
        Action::Sysctl { key, value } => match crate::spec::names::sysctl_file(key) {
            Some(file) => proc::write(&format!("sys/{}", file.display()), value)
                .map_err(|error| error.context(&format!("linux.sysctl[{key:?}]"))),
            None => Err(Error::spec(
                format!("linux.sysctl[{key:?}]"),
                "it names no parameter",
            )),
        },
        other => Err(Error::new(
            Kind::System,
            format!("no way to do the step {other:?}"),
        )),
    }
}

/// Sets a limit as far as this process may: never over the hard limit that it has.
///
/// # Errors
/// A sentence with the limit's name and the errno.
pub fn clamp(name: &str, resource: u32, soft: u64, hard: u64) -> Result<()> {
    let fail = |errno| Error::os("process.rlimits: clamp", name, errno);
    let (_, highest) = process::get_rlimit(resource).map_err(fail)?;
    let hard = hard.min(highest);
    process::prlimit(0, resource, soft.min(hard), hard).map_err(fail)
}
