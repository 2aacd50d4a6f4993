//! Pseudoterminals: the ioctls of ioctl_tty(2) that nix does not wrap.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A terminal's size in characters. Zero in both: not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// The number of the pseudoterminal whose master `fd` is (TIOCGPTN); ENOTTY when it is no master.
pub fn number(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: the kernel writes one unsigned int that lives here.
    super::checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGPTN, &raw mut number) }.into())?;
    Ok(number)
}

/// Lets the other end of `master` be opened (TIOCSPTLCK).
pub fn unlock(master: BorrowedFd<'_>) -> nix::Result<()> {
    let locked: libc::c_int = 0;
    // SAFETY: the kernel reads one int that lives here.
    super::checked(
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) }.into(),
    )
    .map(drop)
}

/// Opens the other end of `master` without any path (TIOCGPTPEER, Linux 4.13), close-on-exec; it does
/// not become the controlling terminal.
pub fn peer(master: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: plain numbers.
    let fd = super::checked(
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into(),
    )?;
    // SAFETY: made just now, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Makes `slave` the controlling terminal of this process, which must lead a session that has none
/// (TIOCSCTTY).
pub fn control(slave: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: plain numbers; 0: it is not taken from another session.
    super::checked(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Gives the controlling terminal `slave` up, for the whole session where this process leads it (TIOCNOTTY).
pub fn disown(slave: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: plain numbers.
    super::checked(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCNOTTY) }.into()).map(drop)
}

/// The size of a terminal (TIOCGWINSZ).
pub fn size(fd: BorrowedFd<'_>) -> nix::Result<Size> {
    // SAFETY: all zeroes is a valid winsize.
    let mut raw: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one winsize that lives here.
    super::checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut raw) }.into())?;
    Ok(Size {
        rows: raw.ws_row,
        columns: raw.ws_col,
    })
}

/// Sets the size of a terminal; its foreground processes get SIGWINCH when it changes (TIOCSWINSZ).
pub fn resize(fd: BorrowedFd<'_>, size: Size) -> nix::Result<()> {
    let raw = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel reads one winsize that lives here.
    super::checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const raw) }.into())
        .map(drop)
}

/// Puts copies of `fd` in the places of stdin, stdout and stderr, inherited by what is executed.
pub fn become_stdio(fd: BorrowedFd<'_>) -> nix::Result<()> {
    for number in 0..3 {
        // SAFETY: plain numbers. The standard library never owns 0, 1 and 2, so no value of it is
        // closed behind its back.
        super::checked(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    use std::os::fd::AsFd;

    #[test]
    fn a_pair_by_descriptors_only() {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = open("/dev/ptmx", flags, Mode::empty()).unwrap();
        unlock(master.as_fd()).unwrap();
        let slave = peer(master.as_fd()).unwrap();
        number(master.as_fd()).unwrap();
        assert_eq!(number(slave.as_fd()), Err(nix::errno::Errno::ENOTTY));
        let wanted = Size {
            rows: 7,
            columns: 90,
        };
        resize(master.as_fd(), wanted).unwrap();
        assert_eq!(size(slave.as_fd()), Ok(wanted));
        nix::unistd::write(&slave, b"x").unwrap();
        let mut buffer = [0; 4];
        assert_eq!(nix::unistd::read(&master, &mut buffer), Ok(1));
    }
}
