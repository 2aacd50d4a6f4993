//! Packets with a descriptor, on sockets that never block.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::error::{Error, Result, io};
use crate::wire::{MAX_MESSAGE, Message};

/// CMSG_LEN of one descriptor. CMSG_SPACE would let two in.
const ONE_DESCRIPTOR: usize = 20;

const CENTURY: Duration = Duration::from_secs(3_000_000_000);

#[repr(align(8))]
struct Control([MaybeUninit<u8>; ONE_DESCRIPTOR]);

/// What came.
pub(crate) enum Incoming {
    Message(Message, Option<OwnedFd>),
    /// Nothing for now.
    Nothing,
    /// The other side has gone.
    End,
}

/// Sends one packet, or says why not: EAGAIN and ETOOMANYREFS mean not yet.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<()> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|descriptor| [descriptor]);
    if let Some(descriptors) = &descriptors {
        // The space is for one.
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(()),
        }
    }
}

/// Whether a packet can be sent later.
pub(crate) fn is_full(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::AGAIN | Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM
    )
}

/// Takes the next packet, if there is one. `last` is the sequence of the one before.
pub(crate) fn receive(socket: BorrowedFd<'_>, last: &mut u64) -> Result<Incoming> {
    let mut bytes = [0; MAX_MESSAGE];
    let mut resets = 0;
    loop {
        let mut space = Control([MaybeUninit::uninit(); ONE_DESCRIPTOR]);
        let mut control = RecvAncillaryBuffer::new(&mut space.0);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = match recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            flags,
        ) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => return Ok(Incoming::Nothing),
            // It closed without having read everything. What it said before is still there.
            Err(Errno::CONNRESET) if resets == 0 => {
                resets += 1;
                continue;
            }
            Err(Errno::CONNRESET) => return Ok(Incoming::End),
            Err(errno) => return Err(io("receive from a channel's socket")(errno)),
        };
        // Taken at once, so that they are closed whatever the message is.
        let mut descriptors = Vec::new();
        let mut strange = false;
        for part in control.drain() {
            match part {
                RecvAncillaryMessage::ScmRights(rights) => descriptors.extend(rights),
                _ => strange = true,
            }
        }
        if received.bytes == 0 && descriptors.is_empty() {
            return Ok(Incoming::End);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(Error::Malformed(
                "a message that is too long, or that has too many descriptors".into(),
            ));
        }
        let message = Message::decode(&bytes[..received.bytes]).map_err(Error::Malformed)?;
        if message.sequence <= *last {
            return Err(Error::Malformed(format!(
                "sequence {} after {last}",
                message.sequence
            )));
        }
        *last = message.sequence;
        if strange || descriptors.len() != usize::from(message.body.has_descriptor()) {
            return Err(Error::Malformed(format!(
                "{} with {} descriptors",
                message.body.name(),
                descriptors.len()
            )));
        }
        return Ok(Incoming::Message(message, descriptors.pop()));
    }
}

/// Waits until there is something to receive, or the other side has gone; false after the deadline.
pub(crate) fn wait(socket: BorrowedFd<'_>, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(io("poll a channel's socket")(errno)),
        }
    }
}

/// Whether the other side is still there.
#[cfg(feature = "cuda")]
pub(crate) fn is_connected(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    match poll(&mut fds, Some(&timespec(Duration::ZERO))) {
        Ok(_) => !fds[0].revents().intersects(gone),
        Err(_) => true,
    }
}

/// The end of a time that begins now; for ever is a century.
pub(crate) fn deadline(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout.min(CENTURY)).unwrap_or(now)
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.min(CENTURY).as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
