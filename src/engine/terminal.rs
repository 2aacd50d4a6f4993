//! The container's terminal: made from its own devpts, by descriptors.
//!
//! ```text
//! child                                          parent
//!   allocate: ptmx of the container's devpts
//!   mount_console: the slave on /dev/console
//!   the master, over the channel    --------->   check_master
//!                                                to the console socket, or kept for the relay
//!   attach: stdin, stdout, stderr, /dev/tty
//! ```
//!
//! No path of the container is opened for reading or writing here but `ptmx` in a directory that was
//! seen to be a devpts; the slave comes from its master (TIOCGPTPEER), never from a name that somebody
//! could have put something else behind (CVE-2025-52565).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, fstat, makedev};
use nix::sys::time::{TimeVal, TimeValLike};

use super::mounts_old::bind_plain;
use super::proc::PROC_MAGIC;
use super::root::Root;
use crate::error::{Error, Result};
use crate::sys::fs::{fs_magic, openat2, resolve};
use crate::sys::socket::send_with_fds;
use crate::sys::terminal::{self, Size};

/// DEVPTS_SUPER_MAGIC of linux/magic.h.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Where the container's devpts is.
const DEVPTS: &str = "/dev/pts";

/// How long a console socket that nobody accepts on may hold the command up, seconds.
const CONNECT_TIMEOUT: i64 = 10;

/// The two ends of a pseudoterminal.
pub struct Pair {
    /// The end that types and reads: the engine's or the relay's.
    pub master: OwnedFd,
    /// The end that the container's program has.
    pub slave: OwnedFd,
}

/// Makes a pseudoterminal in the devpts that is mounted on /dev/pts of `root`.
///
/// # Errors
/// A sentence with the errno: ENOENT without a /dev/pts, ENODEV when that is no devpts.
pub fn allocate(root: &Root) -> Result<Pair> {
    let fail = |what: &'static str| move |errno| Error::os("process.terminal:", what, errno);
    let remedy = "a terminal needs a mount of type devpts on /dev/pts";
    let pts = root
        .open_with(
            DEVPTS,
            libc::O_PATH | libc::O_DIRECTORY,
            resolve::NO_MAGICLINKS,
        )
        .map_err(|errno| fail("open /dev/pts of the container")(errno).remedy(remedy))?;
    let magic = fs_magic(pts.as_fd()).map_err(fail("look at /dev/pts of the container"))?;
    if magic != DEVPTS_MAGIC {
        return Err(fail("open /dev/pts of the container")(Errno::ENODEV).remedy(remedy));
    }
    let master = open_ptmx(pts.as_fd()).map_err(fail("open /dev/pts/ptmx of the container"))?;
    terminal::unlock(master.as_fd()).map_err(fail("unlock the pseudoterminal"))?;
    let slave =
        terminal::peer(master.as_fd()).map_err(fail("open the other end of the pseudoterminal"))?;
    Ok(Pair { master, slave })
}

/// The directory is a devpts, where the kernel alone makes files; only something mounted over ptmx
/// could still be in its place, which the flags keep out (and the check, without openat2).
fn open_ptmx(pts: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NOFOLLOW;
    let only_here = resolve::NO_XDEV | resolve::NO_SYMLINKS;
    match openat2(pts, c"ptmx", flags, 0, only_here) {
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let path = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let seen = openat(pts, "ptmx", path, Mode::empty())?;
            if !is_ptmx(seen.as_fd())? {
                return Err(Errno::ENODEV);
            }
            let flags = OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC;
            let opened = openat(pts, "ptmx", flags, Mode::empty())?;
            is_ptmx(opened.as_fd())?
                .then_some(opened)
                .ok_or(Errno::ENODEV)
        }
        other => other,
    }
}

/// Whether `fd` is the device 5:2 on a devpts.
fn is_ptmx(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    let stat = fstat(fd)?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFCHR
        && stat.st_rdev == makedev(5, 2)
        && fs_magic(fd)? == DEVPTS_MAGIC)
}

/// Whether what came over the channel is a pseudoterminal's master, and not something that would let
/// whoever gets it reach further.
///
/// # Errors
/// A sentence when it is not.
pub fn check_master(fd: BorrowedFd<'_>) -> Result<()> {
    let fail = |errno| {
        Error::os(
            "process.terminal: check",
            "the terminal of the container",
            errno,
        )
    };
    if !is_ptmx(fd).map_err(fail)? {
        return Err(fail(Errno::ENODEV));
    }
    terminal::number(fd).map(drop).map_err(fail)
}

/// Sets the size that process.consoleSize asks for.
///
/// # Errors
/// A sentence with the errno.
pub fn resize(fd: BorrowedFd<'_>, size: Size) -> Result<()> {
    terminal::resize(fd, size).map_err(|errno| {
        Error::os(
            "process.consoleSize: set",
            "the size of the terminal",
            errno,
        )
    })
}

/// Puts `slave` on /dev/console of the container, by descriptors on both sides. A link in its place is
/// refused: it would choose another target.
///
/// # Errors
/// A sentence with the errno: ELOOP for a link, EISDIR for a directory.
pub fn mount_console(root: &Root, slave: BorrowedFd<'_>) -> Result<()> {
    let fail = |errno| {
        Error::os(
            "process.terminal: mount the terminal on",
            "/dev/console",
            errno,
        )
    };
    let target = console_target(root).map_err(|errno| {
        let error = fail(errno);
        match errno {
            Errno::ELOOP => error.remedy("it must not be a symbolic link"),
            Errno::EROFS => error.remedy("/dev is read-only and has no such file"),
            _ => error,
        }
    })?;
    bind_plain(slave, target.as_fd()).map_err(fail)
}

/// /dev/console, made where it is missing: a file, not on procfs, not reached by a link of its own.
fn console_target(root: &Root) -> nix::Result<OwnedFd> {
    let (dir, name) = root.parent_of("/dev/console")?;
    let path = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let target = match openat(&dir, name.as_str(), path, Mode::empty()) {
        Err(Errno::ENOENT) => {
            let make = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            openat(&dir, name.as_str(), make, Mode::from_bits_truncate(0o666))?;
            openat(&dir, name.as_str(), path, Mode::empty())?
        }
        other => other?,
    };
    match fstat(&target)?.st_mode & libc::S_IFMT {
        libc::S_IFLNK => Err(Errno::ELOOP),
        libc::S_IFDIR => Err(Errno::EISDIR),
        _ if fs_magic(target.as_fd())? == PROC_MAGIC => Err(Errno::EXDEV),
        _ => Ok(target),
    }
}

/// Makes `slave` stdin, stdout and stderr of this process, and its controlling terminal: /dev/tty. The
/// process must lead a session.
///
/// # Errors
/// A sentence with the errno.
pub fn attach(slave: OwnedFd) -> Result<()> {
    let fail = |what: &'static str| move |errno| Error::os("process.terminal:", what, errno);
    terminal::become_stdio(slave.as_fd()).map_err(fail("put it in the place of stdin"))?;
    terminal::control(slave.as_fd()).map_err(fail("make it the controlling terminal"))
}

/// A connection to somebody who waits for a descriptor: `--console-socket`, `--pidfd-socket`.
pub struct Receiver {
    socket: OwnedFd,
    /// The flag and the path, for errors.
    name: String,
}

impl Receiver {
    /// Connects to the Unix socket at `path`, which the command line's `flag` names.
    ///
    /// # Errors
    /// A sentence with flag, path and errno: ENOENT, ECONNREFUSED when nobody listens, ENAMETOOLONG for
    /// more than 107 bytes, EAGAIN when nobody accepted in time.
    pub fn connect(flag: &str, path: &Path) -> Result<Self> {
        let name = format!("{flag} {}", path.display());
        let fail = |errno| {
            let error = Error::os("connect to", format!("--{name}"), errno);
            match errno {
                Errno::ENAMETOOLONG => error.remedy("a socket's path has at most 107 bytes"),
                Errno::ECONNREFUSED => error.remedy("nobody listens there"),
                Errno::EAGAIN => error.remedy("nobody accepts connections there"),
                Errno::EPROTOTYPE => error.remedy("it must be a stream socket"),
                _ => error,
            }
        };
        let address = UnixAddr::new(path).map_err(fail)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(fail)?;
        let timeout = TimeVal::seconds(CONNECT_TIMEOUT);
        setsockopt(&socket, sockopt::SendTimeout, &timeout).map_err(fail)?;
        use std::os::fd::AsRawFd;
        connect(socket.as_raw_fd(), &address).map_err(fail)?;
        Ok(Self { socket, name })
    }

    /// Sends a copy of `fd` with `body`, as engines expect it: one message, one descriptor.
    ///
    /// # Errors
    /// A sentence with flag, path and errno.
    pub fn send(&self, body: &str, fd: BorrowedFd<'_>) -> Result<()> {
        let fail = |errno| Error::os("send to", format!("--{}", self.name), errno);
        match send_with_fds(self.socket.as_fd(), body.as_bytes(), &[fd]) {
            Ok(sent) if sent == body.len() => Ok(()),
            Ok(_) => Err(fail(Errno::EMSGSIZE)),
            Err(errno) => Err(fail(errno)),
        }
    }

    /// Sends a terminal's master; the body is the name under which runc opened it.
    ///
    /// # Errors
    /// As [`Receiver::send`].
    pub fn send_terminal(&self, master: BorrowedFd<'_>) -> Result<()> {
        self.send("/dev/pts/ptmx", master)
    }
}

/// Where the container's terminal is to go.
pub enum Destination {
    /// It has none.
    Nowhere,
    /// `--console-socket`.
    Socket(Receiver),
    /// The caller's own terminal: a foreground `run` or `exec`.
    Caller(super::relay::Caller),
}

impl Destination {
    /// Finds out where the terminal goes, before anything is made. `wanted`: process.terminal.
    ///
    /// # Errors
    /// runc's two sentences for flags that do not go together; what [`Receiver::connect`] and
    /// [`super::relay::Caller::find`] say.
    pub fn choose(wanted: bool, detached: bool, socket: Option<&Path>) -> Result<Self> {
        let usage = |sentence| Err(Error::new(crate::error::Kind::Usage, sentence));
        match (wanted, detached, socket) {
            (true, true, None) => {
                usage("cannot allocate tty if isorun will detach without setting console socket")
            }
            (true, true, Some(path)) => {
                Receiver::connect("console-socket", path).map(Destination::Socket)
            }
            (_, _, Some(_)) => {
                usage("cannot use console socket if isorun will not detach or allocate tty")
            }
            (true, false, None) => super::relay::Caller::find().map(Destination::Caller),
            (false, _, None) => Ok(Destination::Nowhere),
        }
    }

    /// Brings the terminal that came with a message of the process there, once; the relay of one that
    /// stays with the caller.
    ///
    /// # Errors
    /// When nothing came, or what is no terminal; what [`Receiver::send`] and
    /// [`super::relay::Relay::new`] say.
    pub fn take(&mut self, fds: Vec<OwnedFd>) -> Result<Option<super::relay::Relay>> {
        let master = fds.into_iter().next().ok_or_else(|| {
            let sentence = "process.terminal: the process in the container sent no terminal";
            Error::new(crate::error::Kind::System, sentence)
        })?;
        check_master(master.as_fd())?;
        match std::mem::replace(self, Self::Nowhere) {
            Self::Socket(receiver) => receiver.send_terminal(master.as_fd()).map(|()| None),
            Self::Caller(caller) => super::relay::Relay::new(caller, master).map(Some),
            Self::Nowhere => Ok(None),
        }
    }
}
