//! A channel's directory: names, listening, connecting. docs/channel-protocol.md, section 1.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, fstat, statat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::error::{Error, Result, io};

const MAX_NAME: usize = 64;
const BACKLOG: i32 = 64;

/// A channel that this process may use: a directory that isorun has mounted, or any other one.
#[derive(Clone, Debug)]
pub struct Channel {
    pub(crate) directory: Arc<OwnedFd>,
    path: PathBuf,
}

impl Channel {
    /// The channel of a name: where `ISORUN_CHANNEL_<NAME>` says, else below `/run/isorun/channels`, else below
    /// `$XDG_RUNTIME_DIR/isorun/channels`.
    pub fn open(name: &str) -> Result<Self> {
        check_name("channel", name)?;
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Error::Name(format!(
                "channel {name}: names of channels have no capitals"
            )));
        }
        if let Some(path) = std::env::var_os(variable(name)) {
            return Self::at(path);
        }
        let path = Path::new("/run/isorun/channels").join(name);
        if path.is_dir() {
            return Self::at(path);
        }
        if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR") {
            let path = Path::new(&runtime).join("isorun/channels").join(name);
            if path.is_dir() {
                return Self::at(path);
            }
        }
        Err(Error::Missing(format!(
            "there is no channel {name}: {} is not set, and /run/isorun/channels has none (isorun channel create {name}, or the annotation io.isorun.channels)",
            variable(name)
        )))
    }

    /// The channel in a directory.
    pub fn at(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(io(format!("open the channel {}", path.display())))?;
        Ok(Self {
            directory: Arc::new(directory),
            path,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn show(&self, entry: &str) -> String {
        self.path.join(entry).display().to_string()
    }

    /// The way to an entry for calls that take a path only: by the descriptor where there is a /proc, so that the
    /// limit of 107 bytes is none.
    fn address(&self, descriptor: &impl AsRawFd, entry: Option<&str>) -> Result<SocketAddrUnix> {
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
        if let Some(entry) = entry {
            path.push(entry);
        }
        SocketAddrUnix::new(path.as_os_str().as_bytes())
            .map_err(io(format!("the address of {}", self.path.display())))
    }
}

/// The variable that tells where a channel is.
fn variable(name: &str) -> String {
    let name = name.to_ascii_uppercase().replace(['-', '.'], "_");
    format!("ISORUN_CHANNEL_{name}")
}

/// Names of endpoints and of named tensors.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let refuse = |why: &str| Err(Error::Name(format!("{what} {name:?}: {why}")));
    if name.is_empty() || name.len() > MAX_NAME {
        return refuse("a name has 1 to 64 bytes");
    }
    if !name.as_bytes()[0].is_ascii_alphanumeric() {
        return refuse("a name begins with a letter or a digit");
    }
    match name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    {
        true => Ok(()),
        false => refuse("a name has letters, digits, and . _ - only"),
    }
}

/// A socket that clients find, and the lock that says that it is alive.
pub(crate) struct Listening {
    pub(crate) socket: OwnedFd,
    channel: Channel,
    endpoint: String,
    // Closed last, with the struct: the lock goes with it.
    _lock: OwnedFd,
}

fn seqpacket() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(io("make a socket"))
}

impl Listening {
    /// Takes the endpoint over if nobody serves it.
    pub(crate) fn new(channel: &Channel, endpoint: &str, mode: u32) -> Result<Self> {
        check_name("endpoint", endpoint)?;
        let lock = lock(channel, endpoint)?;
        let directory = channel.directory.as_fd();
        let (new, entry) = (format!(".{endpoint}.new"), format!("{endpoint}.sock"));
        match rustix::fs::unlinkat(directory, &new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(io(format!("remove {}", channel.show(&new)))(errno)),
        }
        let socket = seqpacket()?;
        let address = channel.address(&*channel.directory, Some(&new))?;
        bind(&socket, &address).map_err(io(format!("make the socket {}", channel.show(&new))))?;
        let ready =
            rustix::fs::chmodat(directory, &new, Mode::from_raw_mode(mode), AtFlags::empty())
                .and_then(|()| listen(&socket, BACKLOG))
                .and_then(|()| rustix::fs::renameat(directory, &new, directory, &entry));
        if let Err(errno) = ready {
            let _ = rustix::fs::unlinkat(directory, &new, AtFlags::empty());
            return Err(io(format!("listen on {}", channel.show(&entry)))(errno));
        }
        Ok(Self {
            socket,
            channel: channel.clone(),
            endpoint: endpoint.to_owned(),
            _lock: lock,
        })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // What does not work is what a killed listener leaves, too: the next one takes it over.
        let directory = self.channel.directory.as_fd();
        for entry in [format!("{}.sock", self.endpoint), lock_name(&self.endpoint)] {
            let _ = rustix::fs::unlinkat(directory, entry, AtFlags::empty());
        }
    }
}

fn lock_name(endpoint: &str) -> String {
    format!(".{endpoint}.lock")
}

fn lock(channel: &Channel, endpoint: &str) -> Result<OwnedFd> {
    let entry = lock_name(endpoint);
    let shown = channel.show(&entry);
    let directory = channel.directory.as_fd();
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    for _ in 0..16 {
        let lock = rustix::fs::openat(directory, &entry, flags, Mode::from_raw_mode(0o600))
            .map_err(io(format!("open {shown}")))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN) => {
                return Err(Error::InUse(format!(
                    "the endpoint {endpoint} in {} is served by another process",
                    channel.path.display()
                )));
            }
            Err(errno) => return Err(io(format!("lock {shown}"))(errno)),
        }
        // Its owner may have removed it between the two.
        let mine = fstat(&lock).map_err(io(format!("fstat {shown}")))?;
        match statat(directory, &entry, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino) => {
                return Ok(lock);
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(io(format!("look at {shown}"))(errno)),
        }
    }
    Err(Error::InUse(format!(
        "{shown} is removed again and again by others"
    )))
}

/// A connected socket.
pub(crate) fn connect_to(channel: &Channel, endpoint: &str, deadline: Instant) -> Result<OwnedFd> {
    check_name("endpoint", endpoint)?;
    let entry = format!("{endpoint}.sock");
    let shown = channel.show(&entry);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let missing = |why: &str| Error::Missing(format!("endpoint {endpoint}: {shown} {why}"));
    let found =
        rustix::fs::openat(&*channel.directory, &entry, flags, Mode::empty()).map_err(|errno| {
            match errno {
                Errno::NOENT => missing("is not there: nobody serves it yet"),
                errno => io(format!("open {shown}"))(errno),
            }
        })?;
    let stat = fstat(&found).map_err(io(format!("fstat {shown}")))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(missing("is no socket"));
    }
    let socket = seqpacket()?;
    let address = channel.address(&found, None)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            // The backlog is full.
            Err(Errno::AGAIN) if Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            Err(Errno::AGAIN) => {
                return Err(Error::InUse(format!(
                    "{shown}: too many wait for it already"
                )));
            }
            Err(Errno::CONNREFUSED) => {
                return Err(missing("is stale: who served it has gone"));
            }
            Err(errno) => return Err(io(format!("connect to {shown}"))(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "7", "model.layers-0_x", &"n".repeat(64)] {
            assert!(check_name("endpoint", good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".a",
            "-a",
            "a/b",
            "..",
            "a b",
            "ä",
            "a\0",
            &"n".repeat(65),
        ] {
            assert!(
                matches!(check_name("endpoint", bad), Err(Error::Name(_))),
                "{bad}"
            );
        }
        assert!(matches!(Channel::open("../x"), Err(Error::Name(_))));
        assert!(matches!(Channel::open("Abc"), Err(Error::Name(_))));
        assert_eq!(variable("a-b.c"), "ISORUN_CHANNEL_A_B_C");
    }
}
