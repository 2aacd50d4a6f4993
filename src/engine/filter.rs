//! Loading the compiled system call filter, and handing its listener over.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;

use super::hooks::HookState;
use crate::error::{Error, Result};
use crate::seccomp::Program;

/// How long an agent may take to accept a connection and what is sent, seconds.
const AGENT_TIMEOUT: i64 = 10;

/// Loads the filter into this process, `without` some of its flags; the listener's descriptor when the
/// filter notifies.
///
/// # Errors
/// A sentence with the errno; EINVAL when the kernel lacks a flag or action of the filter.
pub fn load(program: &Program, without: u32) -> Result<Option<OwnedFd>> {
    crate::sys::seccomp::load(&program.instructions, program.flags & !without)
        .map_err(|errno| Error::os("linux.seccomp: load", "the filter", errno))
}

/// The message to a seccomp agent (config-linux.md, "The Container Process State").
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'a> {
    oci_version: &'a str,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: &'a HookState<'a>,
}

/// Sends the listener of process `pid` of the container to the agent at `path`.
///
/// # Errors
/// A sentence with the socket's path and the errno.
pub fn hand_over(
    path: &Path,
    metadata: Option<&str>,
    state: &HookState<'_>,
    pid: i32,
    listener: RawFd,
) -> Result<()> {
    let fail = |errno| {
        Error::os(
            "linux.seccomp.listenerPath: send the listener to",
            path.display().to_string(),
            errno,
        )
    };
    let message = ProcessState {
        oci_version: state.oci_version,
        fds: ["seccompFd"],
        pid,
        metadata,
        state,
    };
    let body = serde_json::to_vec(&message).map_err(|_| fail(Errno::EINVAL))?;
    let agent = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(fail)?;
    let address = UnixAddr::new(path).map_err(fail)?;
    // For connect(2), too: an agent that hangs must not hang the command, which holds the container's lock.
    let limit = TimeVal::seconds(AGENT_TIMEOUT);
    setsockopt(&agent, sockopt::SendTimeout, &limit).map_err(fail)?;
    connect(agent.as_raw_fd(), &address).map_err(|errno| match errno {
        Errno::EAGAIN => fail(errno).remedy("nobody accepts connections there"),
        _ => fail(errno),
    })?;
    let fds = [listener];
    let rights = [ControlMessage::ScmRights(&fds)];
    let part = [IoSlice::new(&body)];
    let sent = sendmsg::<()>(
        agent.as_raw_fd(),
        &part,
        &rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map_err(fail)?;
    if sent == body.len() {
        Ok(())
    } else {
        Err(fail(Errno::EMSGSIZE))
    }
}
