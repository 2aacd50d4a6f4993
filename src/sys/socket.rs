//! Descriptors over Unix sockets: SCM_RIGHTS of unix(7).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// The most descriptors that one message carries here.
pub const MAX_FDS: usize = 4;

/// Sends `body` with copies of `fds`; without SIGPIPE. The number of bytes sent.
///
/// # Errors
/// Those of sendmsg(2): EPIPE when the other end is gone.
pub fn send_with_fds(
    socket: BorrowedFd<'_>,
    body: &[u8],
    fds: &[BorrowedFd<'_>],
) -> nix::Result<usize> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[] } else { &rights[..] };
    let part = [IoSlice::new(body)];
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &part,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Receives a message into `buffer`: its length (0: the other end is closed) and the descriptors that
/// came with it, close-on-exec, at most [`MAX_FDS`].
///
/// # Errors
/// Those of recvmsg(2); EMSGSIZE when there were more descriptors than fit.
pub fn recv_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut part = [IoSliceMut::new(buffer)];
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut part, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel installed these descriptors for this message, and nobody else knows
            // them.
            fds.extend(
                numbers
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(Errno::EMSGSIZE);
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::AsFd;

    #[test]
    fn descriptors_travel() {
        let (a, b) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        send_with_fds(a.as_fd(), b"one", &[write.as_fd()]).unwrap();
        send_with_fds(a.as_fd(), b"none", &[]).unwrap();
        drop((a, write));
        let mut buffer = [0; 16];
        let (n, fds) = recv_with_fds(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..n], fds.len()), (&b"one"[..], 1));
        nix::unistd::write(&fds[0], b"x").unwrap();
        assert_eq!(nix::unistd::read(&read, &mut buffer).unwrap(), 1);
        assert!(!crate::sys::fs::is_inherited(fds[0].as_raw_fd()));
        let (n, fds) = recv_with_fds(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..n], fds.len()), (&b"none"[..], 0));
        assert_eq!(recv_with_fds(b.as_fd(), &mut buffer).unwrap().0, 0);
    }
}
