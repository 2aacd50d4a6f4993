//! A connection to the bus on which systemd is, synchronous, for a few calls.
//!
//! Whoever is on the bus can send this process a message that looks like one of systemd's. The bus
//! itself vouches for the sender of each, so only what comes from the owner of systemd's name counts,
//! or from the bus.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::wire::{self, Call, Malformed, Message, Reader, Value, Writer};
use crate::error::{Error, Kind, Result};

/// How long everything on one connection may take together. runc waits as long for a job.
const LIMIT: Duration = Duration::from_secs(30);
/// The bus itself, as the sender and the receiver of messages.
const DRIVER: &str = "org.freedesktop.DBus";
/// systemd's name on the bus.
const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const OBJECT: &str = "/org/freedesktop/systemd1";
/// How many ended jobs are remembered: there is one of this process at a time.
const MOST_JOBS: usize = 256;

/// A method call that was answered by an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// Its name, as `org.freedesktop.systemd1.NoSuchUnit`.
    pub(super) name: String,
    /// Its sentence.
    pub(super) text: String,
}

impl Refused {
    /// Whether it is this one of systemd's errors.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name.strip_prefix("org.freedesktop.systemd1.") == Some(name)
    }

    /// As an error of this runtime.
    pub(super) fn error(&self, doing: &str) -> Error {
        Error::new(
            Kind::System,
            format!("{doing}: systemd says {:?} ({})", self.text, self.name),
        )
    }
}

/// A connection.
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// The unique name of who owns systemd's name; empty on a socket of systemd's own.
    systemd: String,
    /// Jobs that have ended while something else was waited for: object, result.
    ended: Vec<(String, String)>,
    until: Instant,
}

impl Bus {
    /// Connects to the system's bus, or the user's.
    ///
    /// # Errors
    /// No systemd, no bus, or one that does not let this process in.
    pub(super) fn connect(user: bool) -> Result<Self> {
        let addresses = match user {
            true => user_addresses()?,
            false => system_addresses(),
        };
        let mut failed = None;
        for address in addresses {
            match dial(&address) {
                Ok(stream) => return Self::over(stream, address.direct),
                Err(errno) => {
                    let name = address.path.display().to_string();
                    failed.get_or_insert(Error::os("connect to the bus of systemd", name, errno));
                }
            }
        }
        let error = failed.unwrap_or_else(|| {
            Error::new(
                Kind::System,
                "no address of systemd's bus is one of a Unix socket",
            )
        });
        if !Path::new("/run/systemd/system").is_dir() {
            return Err(error.context(
                "systemd cgroup flag passed, but systemd support for managing cgroups is not \
                 available",
            ));
        }
        Err(error.remedy("start dbus, or do without --systemd-cgroup"))
    }

    /// Introduces itself on a stream that is connected. `direct`: systemd is at its other end, and not
    /// a bus.
    pub(super) fn over(stream: UnixStream, direct: bool) -> Result<Self> {
        let mut bus = Self {
            stream,
            serial: 0,
            systemd: String::new(),
            ended: Vec::new(),
            until: Instant::now() + LIMIT,
        };
        bus.authenticate()?;
        if direct {
            return Ok(bus);
        }
        bus.of_driver("Hello", &[])?;
        let owner = bus.of_driver("GetNameOwner", &[SYSTEMD])?;
        let owner = Reader::new(&owner.body).text().map_err(malformed)?;
        bus.systemd = owner.to_string();
        Ok(bus)
    }

    /// As sd-bus does it: without a name, so that the bus takes the uid that the kernel tells. Inside a
    /// user namespace nobody can know the name by which the bus knows him.
    fn authenticate(&mut self) -> Result<()> {
        self.send(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        let mut text = Vec::new();
        let mut buffer = [0; 256];
        while text.iter().filter(|byte| **byte == b'\n').count() < 2 && text.len() < 1024 {
            let count = self.receive(&mut buffer)?;
            text.extend_from_slice(&buffer[..count]);
            if text.starts_with(b"REJECTED") || text.starts_with(b"ERROR") {
                break;
            }
        }
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines();
        let (data, ok) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
        if data.starts_with("DATA") && ok.starts_with("OK ") && lines.next().is_none() {
            return Ok(());
        }
        Err(Error::new(
            Kind::System,
            format!("the bus of systemd does not let this process in: {text:?}"),
        ))
    }

    /// Waits no longer than this from now on.
    #[cfg(test)]
    pub(super) fn limit(&mut self, limit: Duration) {
        self.until = Instant::now() + limit;
    }

    fn left(&self) -> Result<Duration> {
        match self.until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(late()),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.left()?;
        self.stream
            .set_write_timeout(Some(left))
            .and_then(|()| self.stream.write_all(bytes))
            .map_err(|error| broken(&error))
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let left = self.left()?;
            self.stream
                .set_read_timeout(Some(left))
                .map_err(|error| broken(&error))?;
            match self.stream.read(buffer) {
                Ok(0) => return Err(broken(&io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(&error)),
            }
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            filled += self.receive(&mut buffer[filled..])?;
        }
        Ok(())
    }

    fn message(&mut self) -> Result<Message> {
        let mut start = [0; wire::FIXED];
        self.fill(&mut start)?;
        let length = wire::length(&start).map_err(malformed)?;
        let mut bytes = vec![0; length];
        bytes[..wire::FIXED].copy_from_slice(&start);
        self.fill(&mut bytes[wire::FIXED..])?;
        wire::decode(&bytes).map_err(malformed)
    }

    /// Calls a method and waits for the answer to it.
    fn call(&mut self, call: &Call<'_>) -> Result<std::result::Result<Message, Refused>> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&call.encode(serial))?;
        loop {
            let message = self.message()?;
            let from = &message.sender;
            let counts = from == call.destination
                || from == &self.systemd && call.destination != DRIVER
                // What the bus itself says when there is nobody to ask.
                || from == DRIVER && message.kind == wire::ERROR;
            if message.reply_to != Some(serial) || !counts {
                self.note(message);
                continue;
            }
            match message.kind {
                wire::RETURN => return Ok(Ok(message)),
                wire::ERROR => {
                    let text = match message.signature.starts_with('s') {
                        true => Reader::new(&message.body).text().map_err(malformed)?,
                        false => "",
                    };
                    return Ok(Err(Refused {
                        name: message.error.clone(),
                        text: text.to_string(),
                    }));
                }
                _ => {}
            }
        }
    }

    /// Remembers systemd's word that a job has ended; everything else is not for us.
    fn note(&mut self, message: Message) {
        let is_one = message.kind == wire::SIGNAL
            && message.sender == self.systemd
            && message.path == OBJECT
            && message.interface == MANAGER
            && message.member == "JobRemoved"
            && message.signature == "uoss";
        if !is_one || self.ended.len() >= MOST_JOBS {
            return;
        }
        let mut reader = Reader::new(&message.body);
        let mut read = || {
            reader.u32()?;
            let job = reader.text()?.to_string();
            reader.text()?;
            Ok::<_, Malformed>((job, reader.text()?.to_string()))
        };
        if let Ok(job) = read() {
            self.ended.push(job);
        }
    }

    fn of_driver(&mut self, member: &str, texts: &[&str]) -> Result<Message> {
        let mut writer = Writer::default();
        for text in texts {
            writer.text(text);
        }
        let call = Call {
            destination: DRIVER,
            path: "/org/freedesktop/DBus",
            interface: DRIVER,
            member,
            signature: &"s".repeat(texts.len()),
            body: writer.finish(),
        };
        self.call(&call)?.map_err(|refused| {
            Error::new(
                Kind::System,
                format!(
                    "the bus refuses {member}: {:?} ({})",
                    refused.text, refused.name
                ),
            )
            .remedy("is systemd at work, and on this bus?")
        })
    }

    /// Calls a method of systemd's manager.
    pub(super) fn manager(
        &mut self,
        member: &str,
        signature: &str,
        body: Vec<u8>,
    ) -> Result<std::result::Result<Message, Refused>> {
        self.systemd_call(MANAGER, member, signature, body)
    }

    fn systemd_call(
        &mut self,
        interface: &str,
        member: &str,
        signature: &str,
        body: Vec<u8>,
    ) -> Result<std::result::Result<Message, Refused>> {
        let destination = match self.systemd.is_empty() {
            true => SYSTEMD.to_string(),
            false => self.systemd.clone(),
        };
        self.call(&Call {
            destination: &destination,
            path: OBJECT,
            interface,
            member,
            signature,
            body,
        })
    }

    /// A property of the manager that is a text.
    pub(super) fn property(&mut self, name: &str) -> Result<String> {
        let body = Writer::default().text(MANAGER).text(name).finish();
        let interface = "org.freedesktop.DBus.Properties";
        let reply = self
            .systemd_call(interface, "Get", "ss", body)?
            .map_err(|refused| refused.error(&format!("read systemd's property {name}")))?;
        let text = Reader::new(&reply.body).text_variant().map_err(malformed)?;
        Ok(text.to_string())
    }

    /// Asks to be told of the ends of jobs. Before the job is asked for, or its end may be missed.
    pub(super) fn watch_jobs(&mut self) -> Result<()> {
        if self.systemd.is_empty() {
            // On its own socket systemd tells everybody everything.
            return Ok(());
        }
        let rule = format!(
            "type='signal',sender='{SYSTEMD}',path='{OBJECT}',interface='{MANAGER}',\
             member='JobRemoved'"
        );
        self.of_driver("AddMatch", &[&rule]).map(drop)
    }

    /// Waits for the end of the job that a call of [`Bus::manager`] has started: its result, `done` if
    /// all is well.
    pub(super) fn job(&mut self, started: &Message) -> Result<String> {
        let object = Reader::new(&started.body).text().map_err(malformed)?;
        loop {
            let found = self.ended.iter().find(|(job, _)| job == object);
            if let Some((_, result)) = found {
                return Ok(result.clone());
            }
            self.ended.clear();
            let message = self.message()?;
            self.note(message);
        }
    }
}

/// `s` or `ssa(sv)` and the like: the beginning of a call's body.
pub(super) fn body(texts: &[&str]) -> Writer {
    let mut writer = Writer::default();
    for text in texts {
        writer.text(text);
    }
    writer
}

/// The body of StartTransientUnit, `ssa(sv)a(sa(sv))`: in place of what is there, no other units.
pub(super) fn transient(unit: &str, properties: &[(String, Value)]) -> Vec<u8> {
    let mut writer = body(&[unit, "replace"]);
    writer.properties(properties).nothing(8).finish()
}

fn broken(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => late(),
        _ => Error::io("talk to", "systemd over its bus", error),
    }
}

fn late() -> Error {
    Error::new(
        Kind::System,
        format!("systemd has not answered in {} seconds", LIMIT.as_secs()),
    )
    .remedy("look at systemctl list-jobs and its journal")
}

fn malformed(Malformed(what): Malformed) -> Error {
    Error::new(
        Kind::System,
        format!("the bus of systemd sent what is no D-Bus message: {what}"),
    )
}

/// Where a bus may be.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    path: PathBuf,
    /// A name without a file, unix(7).
    is_abstract: bool,
    /// systemd's own socket.
    direct: bool,
}

impl Address {
    fn file(path: impl Into<PathBuf>, direct: bool) -> Self {
        Self {
            path: path.into(),
            is_abstract: false,
            direct,
        }
    }
}

fn system_addresses() -> Vec<Address> {
    match std::env::var("DBUS_SYSTEM_BUS_ADDRESS") {
        Ok(list) if !list.is_empty() => parse(&list),
        // Without a bus systemd has a socket of its own for root.
        _ => vec![
            Address::file("/run/dbus/system_bus_socket", false),
            Address::file("/run/systemd/private", true),
        ],
    }
}

fn user_addresses() -> Result<Vec<Address>> {
    if let Ok(list) = std::env::var("DBUS_SESSION_BUS_ADDRESS")
        && !list.is_empty()
    {
        return Ok(parse(&list));
    }
    let mut found = Vec::new();
    if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        found.push(Address::file(Path::new(&dir).join("bus"), false));
    }
    let uid = nix::unistd::geteuid().as_raw();
    let map = std::fs::read_to_string("/proc/self/uid_map")
        .map_err(|error| Error::io("read", "/proc/self/uid_map", &error))?;
    let uid = outside(&map, uid).unwrap_or(uid);
    found.push(Address::file(format!("/run/user/{uid}/bus"), false));
    Ok(found)
}

/// The number outside of the user namespace of an id inside, by user_namespaces(7)'s map.
fn outside(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().map(str::parse::<u32>);
        let mut next = || words.next()?.ok();
        let (inside, outside, count) = (next()?, next()?, next()?);
        let offset = id.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    })
}

/// The Unix sockets in a list of addresses, D-Bus specification, "Server Addresses".
fn parse(list: &str) -> Vec<Address> {
    let one = |address: &str| {
        let pairs = address.strip_prefix("unix:")?;
        pairs.split(',').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let path = PathBuf::from(unescape(value)?);
            match key {
                "path" => Some(Address::file(path, false)),
                "abstract" => Some(Address {
                    path,
                    is_abstract: true,
                    direct: false,
                }),
                _ => None,
            }
        })
    };
    list.split(';').filter_map(one).collect()
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

/// Connects; a bus that takes nobody in any more does not hold us up for ever.
fn dial(address: &Address) -> nix::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    let to = match address.is_abstract {
        true => UnixAddr::new_abstract(address.path.as_os_str().as_bytes())?,
        false => UnixAddr::new(&address.path)?,
    };
    let fd: OwnedFd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(
        &fd,
        sockopt::SendTimeout,
        &TimeVal::new(LIMIT.as_secs() as i64, 0),
    )?;
    loop {
        match connect(fd.as_raw_fd(), &to) {
            Ok(()) => return Ok(UnixStream::from(fd)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(
            parse("tcp:host=x;unix:path=/run/a%20b,guid=12;unix:abstract=/tmp/x;unix:dir=/tmp"),
            [
                Address::file("/run/a b", false),
                Address {
                    path: "/tmp/x".into(),
                    is_abstract: true,
                    direct: false
                }
            ]
        );
        assert_eq!(unescape("%2"), None);
        assert_eq!(unescape("%zz"), None);
    }

    #[test]
    fn the_owner_outside_of_a_user_namespace() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(outside(map, 0), Some(1000));
        assert_eq!(outside(map, 2), Some(100_001));
        assert_eq!(outside(map, 65_537), None);
        assert_eq!(outside("", 0), None);
    }
}
