//! Network devices and their addresses, over a socket of rtnetlink(7).
//!
//! Only what moving a device takes: find one, list and add addresses, move and rename, bring up. Every
//! request waits for the kernel's answer, which comes before send(2) returns; nothing here runs beside.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, send, socket,
};

// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// The type of an attribute; the bits above it are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

// linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_BROADCAST: u16 = 4;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_RT_PRIORITY: u16 = 9;
const IFA_PROTO: u16 = 11;

/// An address that the kernel changes from time to time; for IPv4 the bit means something else.
const IFA_F_TEMPORARY: u32 = 0x01;
/// An address that somebody configured, and that does not expire.
const IFA_F_PERMANENT: u32 = 0x80;
/// What somebody asks for with an address: nodad, home, mngtmpaddr, noprefixroute, autojoin. The other
/// flags are the kernel's to set.
const IFA_F_ASKED: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;

/// RT_SCOPE_UNIVERSE: an address that means the same everywhere.
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;

/// The longest name of a device, bytes: IFNAMSIZ of linux/if.h without its null byte.
pub const MAX_NAME: usize = 15;

/// A device, as far as it is looked at here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name, whichever of its names it was found by.
    pub name: String,
    /// Its number in its network namespace.
    pub index: u32,
    /// It is up: IFF_UP of netdevice(7).
    pub up: bool,
}

/// An address of a device, with all that was configured with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    family: u8,
    prefix: u8,
    scope: u8,
    flags: u32,
    /// The label of an IPv4 address: the device's name, and perhaps a colon and something.
    pub label: Option<String>,
    /// The other attributes, as the kernel gave them.
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// It is configured, and not one that expires or that the kernel made of a router's word.
    pub fn is_permanent(&self) -> bool {
        self.flags & IFA_F_PERMANENT != 0
    }

    /// It means the same everywhere: scope global.
    pub fn is_global(&self) -> bool {
        self.scope == SCOPE_UNIVERSE
    }

    /// An IPv6 address that the kernel makes by itself when the device goes up, or for a while.
    pub fn is_made_by_kernel(&self) -> bool {
        let temporary = self.flags & IFA_F_TEMPORARY != 0;
        i32::from(self.family) == libc::AF_INET6 && (self.scope == SCOPE_LINK || temporary)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let find = |kind| self.attributes.iter().find(|(known, _)| *known == kind);
        let bytes = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS));
        let bytes = bytes.map_or(&[][..], |(_, bytes)| bytes);
        match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
            (Ok(four), _) => write!(f, "{}", std::net::Ipv4Addr::from(four))?,
            (_, Ok(sixteen)) => write!(f, "{}", std::net::Ipv6Addr::from(sixteen))?,
            _ => f.write_str("?")?,
        }
        write!(f, "/{}", self.prefix)
    }
}

/// A request: header, body, attributes.
struct Request(Vec<u8>);

impl Request {
    /// One of `kind` with this body (struct ifinfomsg or ifaddrmsg).
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0u8; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend_from_slice(body);
        Self(bytes)
    }

    /// Adds an attribute.
    ///
    /// # Errors
    /// EMSGSIZE for one that is longer than its 16 bits of length can say: it would be read as another
    /// message (CVE-2021-43784).
    fn with(mut self, kind: u16, value: &[u8]) -> nix::Result<Self> {
        let length = u16::try_from(4 + value.len()).map_err(|_| Errno::EMSGSIZE)?;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        Ok(self)
    }

    /// Adds a name, with its null byte.
    fn named(self, kind: u16, name: &str) -> nix::Result<Self> {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0);
        self.with(kind, &bytes)
    }
}

/// struct ifinfomsg of rtnetlink(7).
fn link_body(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&change.to_ne_bytes());
    body
}

/// A socket of rtnetlink in one network namespace: that of whoever opened it, for good.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

impl From<OwnedFd> for Netlink {
    fn from(socket: OwnedFd) -> Self {
        Self {
            socket,
            sequence: Cell::new(0),
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Netlink {
    /// Opens one in this process's network namespace.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open() -> nix::Result<Self> {
        socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .map(Self::from)
    }

    /// The device of this name; one of its other names (`ip link property add altname`) finds it, too.
    ///
    /// # Errors
    /// ENODEV when there is none.
    pub fn device(&self, name: &str) -> nix::Result<Device> {
        let request = Request::new(RTM_GETLINK, 0, &link_body(0, 0, 0));
        self.ask_for_device(request.named(IFLA_IFNAME, name)?)
    }

    /// The device of this number.
    ///
    /// # Errors
    /// ENODEV when there is none.
    pub fn device_at(&self, index: u32) -> nix::Result<Device> {
        self.ask_for_device(Request::new(RTM_GETLINK, 0, &link_body(index, 0, 0)))
    }

    fn ask_for_device(&self, request: Request) -> nix::Result<Device> {
        let mut found = None;
        self.exchange(request, false, &mut |kind, body| {
            if kind == RTM_NEWLINK {
                found = device(body);
            }
        })?;
        found.ok_or(Errno::ENODEV)
    }

    /// All addresses of the device, in the kernel's order: primary ones before their secondary ones.
    ///
    /// # Errors
    /// Those of the exchange; EAGAIN when they kept changing while they were read.
    pub fn addresses(&self, index: u32) -> nix::Result<Vec<Address>> {
        for _ in 0..10 {
            let request = Request::new(RTM_GETADDR, NLM_F_DUMP, &[0; 8]);
            let mut found = Vec::new();
            let whole = self.exchange(request, true, &mut |kind, body| {
                if kind == RTM_NEWADDR && u32_at(body, 4) == Some(index) {
                    found.extend(address(body));
                }
            })?;
            if whole {
                return Ok(found);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Moves a device of this socket's namespace to another one, where it has the name `name`: in one
    /// request, so that a name that is taken here or there is in nobody's way. It goes down, and its
    /// addresses go.
    ///
    /// # Errors
    /// EEXIST when the name is taken there; EINVAL for a device that the kernel does not let go (`lo`);
    /// EPERM without CAP_NET_ADMIN over both. After an error it may have moved all the same.
    pub fn move_to(&self, index: u32, name: &str, namespace: BorrowedFd<'_>) -> nix::Result<()> {
        let request = Request::new(RTM_NEWLINK, NLM_F_ACK, &link_body(index, 0, 0))
            .with(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes())?
            .named(IFLA_IFNAME, name)?;
        self.exchange(request, false, &mut |_, _| {}).map(drop)
    }

    /// Brings a device up.
    ///
    /// # Errors
    /// Those of the exchange.
    pub fn bring_up(&self, index: u32) -> nix::Result<()> {
        let up = libc::IFF_UP as u32;
        let request = Request::new(RTM_NEWLINK, NLM_F_ACK, &link_body(index, up, up));
        self.exchange(request, false, &mut |_, _| {}).map(drop)
    }

    /// Gives a device an address.
    ///
    /// # Errors
    /// EEXIST when it has it; EACCES and the like where the namespace has IPv6 off.
    pub fn add_address(&self, index: u32, address: &Address) -> nix::Result<()> {
        let mut body = [0; 8];
        body[0] = address.family;
        body[1] = address.prefix;
        body[3] = address.scope;
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let asked = address.flags & IFA_F_ASKED;
        let mut request =
            Request::new(RTM_NEWADDR, flags, &body).with(IFA_FLAGS, &asked.to_ne_bytes())?;
        for (kind, value) in &address.attributes {
            request = request.with(*kind, value)?;
        }
        if let Some(label) = &address.label {
            request = request.named(IFA_LABEL, label)?;
        }
        self.exchange(request, false, &mut |_, _| {}).map(drop)
    }

    /// Sends a request and hears its answers: `each` gets the type and the body of every one. Whether
    /// they are whole: of a list that changed meanwhile they are not.
    fn exchange(
        &self,
        request: Request,
        list: bool,
        each: &mut dyn FnMut(u16, &[u8]),
    ) -> nix::Result<bool> {
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        let mut bytes = request.0;
        let length = u32::try_from(bytes.len()).map_err(|_| Errno::EMSGSIZE)?;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        while let Err(errno) = send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()) {
            if errno != Errno::EINTR {
                return Err(errno);
            }
        }
        let mut buffer = vec![0u8; 64 * 1024];
        let mut whole = true;
        loop {
            let n = self.receive(&mut buffer)?;
            let mut rest = &buffer[..n];
            while let Some((message, after)) = split(rest) {
                rest = after;
                if message.sequence != sequence {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => return Ok(whole),
                    NLMSG_ERROR => {
                        // The errno is negative; 0 is the word that all went well.
                        let code = u32_at(message.body, 0).unwrap_or(0).cast_signed();
                        return match code {
                            0 => Ok(whole),
                            code => Err(Errno::from_raw(-code)),
                        };
                    }
                    kind => each(kind, message.body),
                }
                if !list {
                    return Ok(whole);
                }
            }
            // A message that was cut has no end that one could wait for.
            if !rest.is_empty() {
                return Err(Errno::EMSGSIZE);
            }
        }
    }

    /// One datagram of the kernel's. Who has CAP_NET_ADMIN in the namespace may send to this socket, too.
    fn receive(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        loop {
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), buffer) {
                Ok((n, Some(from))) if from.pid() == 0 => return Ok(n),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// A message of the kernel's.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let found = bytes.get(at..at + 2)?;
    found.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let found = bytes.get(at..at + 4)?;
    found.try_into().ok().map(u32::from_ne_bytes)
}

/// The first message of a datagram, and what comes after it.
fn split(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = u32_at(bytes, 0)? as usize;
    let message = Message {
        kind: u16_at(bytes, 4)?,
        flags: u16_at(bytes, 6)?,
        sequence: u32_at(bytes, 8)?,
        body: bytes.get(16..length)?,
    };
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((message, after))
}

/// The attributes after a body.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (u16_at(bytes, 0), u16_at(bytes, 2)) {
        let length = usize::from(length);
        let Some(value) = bytes.get(4..length) else {
            break;
        };
        found.push((kind & NLA_TYPE_MASK, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn text(value: &[u8]) -> String {
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

/// A device from the body of RTM_NEWLINK.
fn device(body: &[u8]) -> Option<Device> {
    let listed = attributes(body.get(16..)?);
    let (_, name) = listed.iter().find(|(kind, _)| *kind == IFLA_IFNAME)?;
    Some(Device {
        name: text(name),
        index: u32_at(body, 4)?,
        up: u32_at(body, 8)? & libc::IFF_UP as u32 != 0,
    })
}

/// An address from the body of RTM_NEWADDR.
fn address(body: &[u8]) -> Option<Address> {
    const KEPT: [u16; 6] = [
        IFA_ADDRESS,
        IFA_LOCAL,
        IFA_BROADCAST,
        IFA_CACHEINFO,
        IFA_RT_PRIORITY,
        IFA_PROTO,
    ];
    let [family, prefix, flags, scope] = *body.get(..4)? else {
        return None;
    };
    let listed = attributes(body.get(8..)?);
    let find = |wanted| listed.iter().find(|(kind, _)| *kind == wanted);
    let label = find(IFA_LABEL).map(|(_, value)| text(value));
    // The eight bits of the body have no room for the newer flags.
    let all = find(IFA_FLAGS).and_then(|(_, value)| u32_at(value, 0));
    let kept = listed.iter().filter(|(kind, _)| KEPT.contains(kind));
    Some(Address {
        family,
        prefix,
        scope,
        flags: all.unwrap_or(flags.into()),
        label,
        attributes: kept.map(|(kind, value)| (*kind, value.to_vec())).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_and_its_address() {
        let netlink = Netlink::open().unwrap();
        let lo = netlink.device("lo").unwrap();
        assert_eq!(lo.name, "lo");
        assert_eq!(netlink.device_at(lo.index), Ok(lo.clone()));
        assert_eq!(netlink.device("isorun-no-such"), Err(Errno::ENODEV));
        assert_eq!(netlink.device_at(0x7fff_fff0), Err(Errno::ENODEV));
        if lo.up {
            let list = netlink.addresses(lo.index).unwrap();
            let shown: Vec<String> = list.iter().map(ToString::to_string).collect();
            assert!(shown.contains(&"127.0.0.1/8".to_string()), "{shown:?}");
            let own = &list[shown.iter().position(|one| one == "127.0.0.1/8").unwrap()];
            assert!(own.is_permanent() && !own.is_global(), "{own:?}");
            assert_eq!(own.label.as_deref(), Some("lo"));
        }
    }

    #[test]
    fn an_attribute_that_its_length_cannot_say_is_refused() {
        let request = || Request::new(RTM_NEWLINK, 0, &[]);
        assert!(request().with(1, &[0; 65_531]).is_ok());
        assert_eq!(request().with(1, &[0; 65_532]).err(), Some(Errno::EMSGSIZE));
    }

    #[test]
    fn what_the_kernel_never_sends_is_no_message() {
        for bytes in [&[][..], &[1, 2, 3], &[0xff; 20], &[0; 16]] {
            assert!(split(bytes).is_none(), "{bytes:?}");
        }
        for bytes in [&[][..], &[0; 3], &[3, 0, 1, 0], &[9, 0, 1, 0, 5]] {
            assert!(attributes(bytes).is_empty(), "{bytes:?}");
        }
        let two = [5, 0, 1, 0, 7, 0, 0, 0, 4, 0, 2, 0];
        assert_eq!(attributes(&two), [(1, &[7][..]), (2, &[][..])]);
        assert_eq!(address(&[2, 24, 0]), None);
    }
}
