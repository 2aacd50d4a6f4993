//! Network devices of the host that the container gets: linux.netDevices.
//!
//! The child asks when it is in its network namespace, before anything in it is set, and hands a
//! descriptor of that over. The parent, which joins no namespace, has a helper open a socket of
//! rtnetlink there, and does all of it through two sockets: one here, one there.
//!
//! What is moved is taken back when the container cannot be made. Once it is made the devices are the
//! namespace's: the specification forbids to take them out again before that ends. Then the kernel
//! brings physical devices back, under the name they have, and removes virtual ones
//! (docs/decisions/0011-kernel-devices.md).

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;

use super::sources::helped;
use super::sync::{End, FromChild};
use crate::error::{Error, Result};
use crate::log;
use crate::plan::NetDevice;
use crate::sys::netlink::{Address, Device, MAX_NAME, Netlink};

/// How many names a template like `eth%d` is tried with; the kernel's own limit is higher.
const MOST: u32 = 4096;

fn own_namespace() -> Result<OwnedFd> {
    const PATH: &str = "/proc/self/ns/net";
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    nix::fcntl::open(PATH, flags, Mode::empty()).map_err(|errno| Error::os("open", PATH, errno))
}

/// The child hands its network namespace over, and waits until the devices are there.
///
/// # Errors
/// EPIPE when the parent is gone.
pub fn ask(sync: &End) -> Result<()> {
    let namespace = own_namespace()?;
    sync.tell_with(&FromChild::NetDevices, &[namespace.as_fd()])
        .and_then(|()| sync.wait())
        .map_err(|errno| Error::os("wait for", "the network devices of the host", errno))
}

/// A device that was moved.
struct Moved {
    /// Its name there.
    inside: String,
    /// What it was like.
    before: Device,
    addresses: Vec<Address>,
}

/// Devices on their way to a namespace, to be taken back when something fails.
pub struct Moving {
    here: Netlink,
    there: Netlink,
    home: OwnedFd,
    namespace: OwnedFd,
    moved: Vec<Moved>,
}

fn failed(device: &NetDevice, what: &str, subject: &str, errno: Errno) -> Error {
    let field = format!("linux.netDevices.{}", device.name.escape_debug());
    Error::os(format!("{field}: {what}"), subject, errno)
}

impl Moving {
    /// Opens the two sockets; `from_child` is the namespace that the child handed over.
    ///
    /// # Errors
    /// EPERM without the rights over that namespace.
    pub fn prepare(from_child: Vec<OwnedFd>) -> Result<Self> {
        let fail = |what: &'static str| move |errno| Error::os("linux.netDevices:", what, errno);
        let [namespace] = <[OwnedFd; 1]>::try_from(from_child)
            .map_err(|_| fail("hear of the container's network namespace")(Errno::EBADMSG))?;
        let here = Netlink::open().map_err(fail("open a netlink socket"))?;
        let there = helped(&namespace, CloneFlags::CLONE_NEWNET, || {
            let socket = Netlink::open()?;
            socket
                .as_fd()
                .try_clone_to_owned()
                .map(|fd| vec![fd])
                .map_err(|_| Errno::EMFILE)
        })
        .and_then(|mut opened| opened.pop().ok_or(Errno::EBADMSG))
        .map_err(|errno| {
            let error = fail("open a netlink socket in the container's network namespace")(errno);
            match errno {
                Errno::EPERM => error.remedy("it needs CAP_SYS_ADMIN over that namespace"),
                _ => error,
            }
        })?;
        Ok(Self {
            here,
            there: there.into(),
            home: own_namespace()?,
            namespace,
            moved: Vec::new(),
        })
    }

    /// Moves all of `devices`. What is wrong with one of them is found before any is moved, where it
    /// can be seen at all.
    ///
    /// # Errors
    /// A sentence with the device's entry, its name and the errno. [`Moving::back`] is due then.
    pub fn all(&mut self, devices: &[NetDevice]) -> Result<()> {
        for device in devices {
            self.find(device)?;
            if !device.inside.contains("%d") {
                self.check_free(device, &device.inside)?;
            }
        }
        devices.iter().try_for_each(|device| self.one(device))
    }

    fn find(&self, device: &NetDevice) -> Result<Device> {
        self.here.device(&device.name).map_err(|errno| {
            let error = failed(device, "find the network device", &device.name, errno);
            match errno {
                Errno::ENODEV => error.remedy("isorun's network namespace has no such device"),
                _ => error,
            }
        })
    }

    fn check_free(&self, device: &NetDevice, inside: &str) -> Result<()> {
        match self.there.device(inside) {
            Err(Errno::ENODEV) => Ok(()),
            Ok(_) => Err(taken(device, inside)),
            Err(errno) => Err(failed(device, "look for", inside, errno)),
        }
    }

    fn one(&mut self, device: &NetDevice) -> Result<()> {
        let found = self.find(device)?;
        // Before it goes down, when the kernel takes the IPv6 ones.
        let addresses = self
            .here
            .addresses(found.index)
            .map_err(|errno| failed(device, "list the addresses of", &device.name, errno))?;
        let inside = self.move_out(device, found, addresses)?;
        let fail = |what: &str, errno| failed(device, what, &inside, errno);
        let index = self
            .there
            .device(&inside)
            .map_err(|errno| fail("find in the container", errno))?
            .index;
        let Some(moved) = self.moved.last() else {
            return Ok(());
        };
        let kept = moved.addresses.iter();
        for address in kept.filter(|one| one.is_permanent() && one.is_global()) {
            let address = renamed(address, &moved.before.name, &inside);
            self.there.add_address(index, &address).map_err(|errno| {
                let error = fail(&format!("give the address {address} to"), errno);
                match errno {
                    Errno::EACCES | Errno::EPERM => {
                        error.remedy("the container's network namespace may have IPv6 off")
                    }
                    _ => error,
                }
            })?;
        }
        self.there
            .bring_up(index)
            .map_err(|errno| fail("bring up", errno))
    }

    /// Moves one device, and remembers it: its name there.
    fn move_out(
        &mut self,
        device: &NetDevice,
        found: Device,
        addresses: Vec<Address>,
    ) -> Result<String> {
        let several = device.inside.contains("%d");
        for inside in names(&device.inside) {
            match self.check_free(device, &inside) {
                Err(error) if error.errno() == Some(Errno::EEXIST) && several => continue,
                other => other?,
            }
            let result = self
                .here
                .move_to(found.index, &inside, self.namespace.as_fd());
            // The kernel moves first and gives the name afterwards: either may have failed.
            let stayed = result.is_err() && self.here.device_at(found.index).is_ok();
            if !stayed {
                let named = result.is_ok();
                self.moved.push(Moved {
                    inside: match named {
                        true => inside.clone(),
                        false => found.name.clone(),
                    },
                    before: found,
                    addresses,
                });
                return match result {
                    Ok(()) => Ok(inside),
                    Err(errno) => Err(not_moved(device, &inside, errno)),
                };
            }
            match result {
                // Somebody else was quicker: a joined namespace.
                Err(Errno::EEXIST) if several => {}
                Err(errno) => return Err(not_moved(device, &inside, errno)),
                Ok(()) => {}
            }
        }
        Err(taken(device, &device.inside))
    }

    /// Takes back what was moved, as it was: name, addresses, up or down. What cannot be is told. Routes
    /// that somebody added by hand are not known here.
    pub fn back(self) {
        for moved in self.moved.iter().rev() {
            if let Err(error) = self.one_back(moved) {
                log::warning(&format!("after a failure: {error}"));
            }
        }
    }

    fn one_back(&self, moved: &Moved) -> Result<()> {
        let name = &moved.before.name;
        let fail = |what| move |errno| Error::os(what, name, errno);
        let inside = self
            .there
            .device(&moved.inside)
            .map_err(fail("find again, to take it back, the network device"))?;
        self.there
            .move_to(inside.index, name, self.home.as_fd())
            .map_err(fail("take back the network device"))?;
        let index = self
            .here
            .device(name)
            .map_err(fail("find again the network device"))?
            .index;
        // One that cannot be given back must not leave the others out, nor the device down.
        let mut lost = Ok(());
        let kept = moved.addresses.iter();
        for address in kept.filter(|one| !one.is_made_by_kernel()) {
            match self.here.add_address(index, address) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => {
                    let what = format!("give the address {address} back to");
                    lost = lost.and(Err(Error::os(what, name, errno)));
                }
            }
        }
        if moved.before.up {
            self.here.bring_up(index).map_err(fail("bring up again"))?;
        }
        lost
    }
}

/// The names that a device may get: one, or for a template all that are no longer than the kernel's are.
fn names(template: &str) -> impl Iterator<Item = String> {
    let numbers = match template.contains("%d") {
        true => MOST,
        false => 1,
    };
    (0..numbers)
        .map(move |number| template.replacen("%d", &number.to_string(), 1))
        .take_while(|name| name.len() <= MAX_NAME)
}

fn taken(device: &NetDevice, inside: &str) -> Error {
    failed(device, "move the network device to", inside, Errno::EEXIST)
        .remedy("the container's network namespace has a device of this name")
}

fn not_moved(device: &NetDevice, inside: &str, errno: Errno) -> Error {
    match errno {
        Errno::EEXIST => taken(device, inside),
        Errno::EINVAL | Errno::EOPNOTSUPP => {
            failed(device, "move the network device to", inside, errno)
                .remedy("the kernel lets no device of this kind be moved")
        }
        Errno::EPERM => failed(device, "move the network device to", inside, errno)
            .remedy("it needs CAP_NET_ADMIN here and over the container's network namespace"),
        errno => failed(device, "move the network device to", inside, errno),
    }
}

/// The address with a label as the kernel has it once the device has its new name.
fn renamed(address: &Address, name: &str, inside: &str) -> Address {
    let mut address = address.clone();
    let suffix = |label: &String| label.strip_prefix(name).map(str::to_string);
    // A label has as much room as a name.
    let label = address.label.as_ref().and_then(suffix);
    let label = label.map(|suffix| format!("{inside}{suffix}"));
    address.label = Some(
        label
            .filter(|label| label.len() <= crate::sys::netlink::MAX_NAME)
            .unwrap_or_else(|| inside.to_string()),
    )
    .filter(|_| address.label.is_some());
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_template_make_no_name_too_long() {
        assert_eq!(names("eth0").collect::<Vec<_>>(), ["eth0"]);
        assert_eq!(names("eth%d").nth(11).as_deref(), Some("eth11"));
        let long: Vec<String> = names("abcdefghijklm%d").collect();
        assert_eq!((long.len(), long[99].as_str()), (100, "abcdefghijklm99"));
    }
}
