//! Directories, programs and bad peers for the tests.
#![allow(dead_code)]

pub mod bad;

use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use isorun_channel::wire::{Body, Hello, Message};
use isorun_channel::{Channel, Policy};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, sendmsg, socket_with,
};

pub const SHORT: Duration = Duration::from_millis(100);
pub const LONG: Duration = Duration::from_secs(20);

/// A channel in a directory of its own, removed in the end.
pub struct Place {
    pub path: PathBuf,
    pub channel: Channel,
}

impl Place {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("isotest-chan-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let channel = Channel::at(&path).unwrap();
        Self { path, channel }
    }

    pub fn entries(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(&self.path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A program of examples/, ended with the test.
pub struct Program {
    pub child: Child,
    output: BufReader<ChildStdout>,
}

impl Program {
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        // Cargo puts tests into target/<profile>/deps and examples beside it.
        let test = std::env::current_exe().unwrap();
        let path = test.parent().unwrap().parent().unwrap();
        let mut child = Command::new(path.join("examples").join(name))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}; cargo test builds the examples"));
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Its other lines, once it has ended well.
    pub fn end(mut self) -> Vec<String> {
        let lines = (&mut self.output).lines().map(Result::unwrap).collect();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        lines
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says that a test could not run, past the harness, which shows what failed tests say only.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {why}\n", thread.name().unwrap_or("test"));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < until, "{what}: not within {LONG:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How many descriptors this process has, of those that look like `what`.
pub fn descriptors(what: &str) -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|link| link.to_string_lossy().contains(what))
        .count()
}

/// A client that sends whatever it likes.
pub struct Raw {
    pub socket: OwnedFd,
    pub sequence: u64,
}

impl Raw {
    pub fn connect(path: &Path, endpoint: &str) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let address = SocketAddrUnix::new(path.join(format!("{endpoint}.sock"))).unwrap();
        connect(&socket, &address).unwrap();
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(LONG),
        )
        .unwrap();
        Self {
            socket,
            sequence: 0,
        }
    }

    /// Connected, and welcome.
    pub fn welcome(path: &Path, endpoint: &str, roles: u32, credits: u32) -> Self {
        let mut raw = Self::connect(path, endpoint);
        raw.say(0, hello(roles, credits), &[]).unwrap();
        assert!(matches!(raw.hear().unwrap().body, Body::Welcome(_)));
        raw
    }

    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        send(self.socket.as_fd(), bytes, descriptors)
    }

    pub fn say(
        &mut self,
        refers: u64,
        body: Body,
        descriptors: &[BorrowedFd<'_>],
    ) -> rustix::io::Result<()> {
        self.sequence += 1;
        let message = Message {
            sequence: self.sequence,
            refers,
            body,
        };
        self.send(&message.encode(), descriptors)
    }

    /// The next message; nothing at the end. Descriptors that come with it are closed by the kernel.
    pub fn hear(&self) -> Option<Message> {
        let mut bytes = [0_u8; 4096];
        for _ in 0..2 {
            match recv(&self.socket, &mut bytes[..], RecvFlags::empty()) {
                Ok((0, _)) => return None,
                Ok((_, length)) => return Some(Message::decode(&bytes[..length]).unwrap()),
                Err(rustix::io::Errno::CONNRESET) => {}
                Err(errno) => panic!("recv: {errno}"),
            }
        }
        None
    }
}

pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let flags = SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags).map(drop)
}

pub fn hello(roles: u32, credits: u32) -> Body {
    Body::Hello(Hello {
        lowest: 1,
        highest: 1,
        roles,
        features: 0,
        credits,
        queue: 0,
        policy: Policy::DropOldest,
    })
}
