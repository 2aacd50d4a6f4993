//! The one channel between the parent and the child while a container is made.
//!
//! A SEQPACKET socket pair; a message is one tag byte and a JSON body.
//!
//! ```text
//! parent                         child
//!   clone3  ------------------->   born
//!   maps, cgroup (if child_waits)
//!   Go      ------------------->   steps...
//!           <-------------------   Degraded {..}          any number of times
//!           <-------------------   Source n + namespaces  for sources that the child may not open
//!   a helper opens it
//!   Go + descriptors  --------->   steps...
//!           <-------------------   NetDevices + namespace if there are any
//!   moves them there
//!   Go      ------------------->   steps...
//!           <-------------------   HostHooks              if there are any
//!   hooks prestart, createRuntime
//!   Go      ------------------->   steps...
//!           <-------------------   OwnHooks               after createContainer hooks
//!   looks whether one has deleted the container
//!   Go      ------------------->   steps...
//!           <-------------------   Terminal, master      if it has one
//!   to the console socket, or kept
//!   Go      ------------------->
//!           <-------------------   NotifyFd n             if the filter notifies
//!   pidfd_getfd, hand over
//!   Go      ------------------->
//!           <-------------------   Ready                  create: then the exec fifo
//!           <-------------------   Failed {..}, Lost {..} at any time, and the child ends
//!           <-------------------   (end of file)          run: the program is executed
//! ```
//!
//! Either side that finds the other gone gives up: the child exits, the parent cleans up.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::plan::{Degradation, Feature};
use crate::sys::socket::{recv_with_fds, send_with_fds};

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromChild {
    /// The process in between (on a pair of its own) has made the child with this pid; a pidfd comes
    /// with it.
    Born(i32),
    /// A step was done in another way.
    Degraded(Degradation),
    /// The source of the mount of this step, which the child may not open; with descriptors of the
    /// child's mount and user namespace.
    Source {
        /// The number of the step.
        step: usize,
        /// Itself, in place of a detached copy.
        plain: bool,
    },
    /// The network devices of the host are due, for the network namespace that comes with it.
    NetDevices,
    /// The hooks prestart and createRuntime are due.
    HostHooks,
    /// The hooks createContainer have run.
    OwnHooks,
    /// The terminal's master, as the descriptor that comes with it.
    Terminal,
    /// The child's descriptor number of the seccomp listener.
    NotifyFd(i32),
    /// All is made; the child waits for `start`.
    Ready,
    /// A step failed; the child ends.
    Failed(Error),
    /// A step failed without which the container may be planned and made again; the child ends.
    Lost(Feature, Error),
}

/// The longest message, bytes.
const LONGEST: usize = 64 * 1024;

/// How long a part of a failure may be where the whole is too long, bytes: with the six-fold that JSON
/// makes of some of them, four parts fit.
const PART: usize = 2048;

/// One end of the channel.
pub struct End(OwnedFd);

/// Makes the two ends, both close-on-exec: (parent's, child's).
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> nix::Result<(End, End)> {
    let (a, b) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    Ok((End(a), End(b)))
}

impl End {
    /// The child tells the parent.
    ///
    /// # Errors
    /// EPIPE when the parent is gone.
    pub fn tell(&self, message: &FromChild) -> nix::Result<()> {
        let json = |message: &FromChild| serde_json::to_vec(message).map_err(|_| Errno::EINVAL);
        let mut body = json(message)?;
        if body.len() > LONGEST
            && let FromChild::Failed(error) = message
        {
            body = json(&FromChild::Failed(error.clone().cut(PART)))?;
        }
        // write(2), not sendmsg: the seccomp filter may be loaded already, and every useful filter
        // allows write. SIGPIPE is still ignored here.
        nix::unistd::write(&self.0, &body).map(drop)
    }

    /// The child tells the parent, and gives it copies of descriptors. Only for steps before the seccomp
    /// filter, which may deny sendmsg.
    ///
    /// # Errors
    /// EPIPE when the parent is gone.
    pub fn tell_with(&self, message: &FromChild, fds: &[BorrowedFd<'_>]) -> nix::Result<()> {
        let body = serde_json::to_vec(message).map_err(|_| Errno::EINVAL)?;
        send_with_fds(self.fd(), &body, fds).map(drop)
    }

    /// The parent hears what the child says, with the descriptors that came with it; nothing: the
    /// child's end is closed.
    ///
    /// # Errors
    /// Those of recvmsg(2); EBADMSG for what is no message.
    pub fn hear(&self) -> nix::Result<Option<(FromChild, Vec<OwnedFd>)>> {
        let mut buffer = vec![0u8; LONGEST];
        let (n, fds) = match recv_with_fds(self.fd(), &mut buffer) {
            Err(Errno::ECONNRESET) => return Ok(None),
            other => other?,
        };
        if n == 0 {
            return Ok(None);
        }
        serde_json::from_slice(&buffer[..n])
            .map(|message| Some((message, fds)))
            .map_err(|_| Errno::EBADMSG)
    }

    /// The parent lets the child go on.
    ///
    /// # Errors
    /// EPIPE when the child is gone.
    pub fn go(&self) -> nix::Result<()> {
        self.go_with(&[])
    }

    /// The parent lets the child go on, and gives it copies of descriptors.
    ///
    /// # Errors
    /// EPIPE when the child is gone.
    pub fn go_with(&self, fds: &[BorrowedFd<'_>]) -> nix::Result<()> {
        send_with_fds(self.fd(), b"G", fds).map(drop)
    }

    /// The child waits for [`End::go`]. By read(2), which every useful seccomp filter allows.
    ///
    /// # Errors
    /// EPIPE when the parent is gone.
    pub fn wait(&self) -> nix::Result<()> {
        let mut byte = [0u8; 1];
        loop {
            match nix::unistd::read(&self.0, &mut byte) {
                Err(Errno::EINTR) => {}
                Ok(1) => return Ok(()),
                Ok(_) => return Err(Errno::EPIPE),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The child waits for [`End::go_with`]: the descriptors. Only before the seccomp filter.
    ///
    /// # Errors
    /// EPIPE when the parent is gone.
    pub fn wait_with(&self) -> nix::Result<Vec<OwnedFd>> {
        let mut byte = [0u8; 1];
        match recv_with_fds(self.fd(), &mut byte)? {
            (1, fds) => Ok(fds),
            _ => Err(Errno::EPIPE),
        }
    }

    /// The socket, to wait for it beside other descriptors.
    pub fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.0.as_fd()
    }
}
