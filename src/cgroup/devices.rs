//! Device rules: from the ordered list of the configuration to the exceptions of v1's controller,
//! or to an eBPF program on v2.
//!
//! The rules are read bit by bit: for each of read, write and mknod, the last rule that matches the
//! device decides; without one, access is denied.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys::bpf::{self, Insn};

/// Read, write and mknod, in the kernel's bits (`BPF_DEVCG_ACC_*`); written as `rwm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Access(u8);

const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;

impl Access {
    /// All three.
    pub const ALL: Self = Self(MKNOD | READ | WRITE);

    /// The kernel's bits.
    pub(super) fn bits(self) -> u8 {
        self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let mut bits = 0;
        for letter in text.chars() {
            bits |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return None,
            };
        }
        (bits != 0).then_some(Self(bits))
    }
}

impl From<Access> for String {
    fn from(access: Access) -> Self {
        [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .into_iter()
            .filter(|(bit, _)| access.0 & bit != 0)
            .map(|(_, letter)| letter)
            .collect()
    }
}

impl TryFrom<String> for Access {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is no device access like rwm"))
    }
}

/// Block or character device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DeviceKind {
    /// A block device.
    #[serde(rename = "b")]
    Block,
    /// A character device.
    #[serde(rename = "c")]
    Char,
}

/// One rule. `a` in the configuration is two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// Which kind of device.
    #[serde(rename = "type")]
    pub kind: DeviceKind,
    /// The major number; `None` is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<u32>,
    /// The minor number; `None` is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
    /// What it is about.
    pub access: Access,
}

/// The rules of one container, in their order, with runc's default ones at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Devices {
    /// The rules; later ones win.
    pub rules: Vec<DeviceRule>,
}

/// What v1's controller is told, as (file, line).
type V1Rules = Vec<(&'static str, String)>;

/// A device as v1's controller names it: kind, major, minor.
pub(super) type Name = (DeviceKind, Option<u32>, Option<u32>);

/// Rules as v1's controller has them: whether all is allowed, and the accesses that are exceptions.
pub(super) type Folded = (bool, BTreeMap<Name, u8>);

/// An entry of a table, as v1's controller writes it.
pub(super) fn line((kind, major, minor): &Name, bits: u8) -> String {
    let kind = if *kind == DeviceKind::Block { 'b' } else { 'c' };
    let number = |number: &Option<u32>| number.map_or("*".into(), |n| n.to_string());
    format!(
        "{kind} {}:{} {}",
        number(major),
        number(minor),
        String::from(Access(bits))
    )
}

/// What runc (1.3, and crun) always allows, whatever the configuration says: mknod of anything, and
/// null, zero, full, tty, random, urandom, pts, ptmx and net/tun.
const DEFAULTS: [(DeviceKind, Option<u32>, Option<u32>, Access); 11] = [
    (DeviceKind::Char, None, None, Access(MKNOD)),
    (DeviceKind::Block, None, None, Access(MKNOD)),
    (DeviceKind::Char, Some(1), Some(3), Access::ALL),
    (DeviceKind::Char, Some(1), Some(8), Access::ALL),
    (DeviceKind::Char, Some(1), Some(7), Access::ALL),
    (DeviceKind::Char, Some(5), Some(0), Access::ALL),
    (DeviceKind::Char, Some(1), Some(5), Access::ALL),
    (DeviceKind::Char, Some(1), Some(9), Access::ALL),
    (DeviceKind::Char, Some(136), None, Access::ALL),
    (DeviceKind::Char, Some(5), Some(2), Access::ALL),
    (DeviceKind::Char, Some(10), Some(200), Access::ALL),
];

impl DeviceRule {
    fn is_total(&self) -> bool {
        self.major.is_none() && self.minor.is_none() && self.access == Access::ALL
    }
}

impl Devices {
    /// The rules of `linux.resources.devices`, and the default ones.
    ///
    /// # Errors
    /// A rule with an unknown type or access, or a number that is no device number.
    pub fn from_spec(asked: &[LinuxDeviceCgroup]) -> Result<Self> {
        let mut rules = Vec::with_capacity(asked.len() + DEFAULTS.len());
        for (index, rule) in asked.iter().enumerate() {
            let field = |name: &str| format!("linux.resources.devices[{index}].{name}");
            let kinds: &[DeviceKind] = match rule.typ().unwrap_or_default() {
                LinuxDeviceType::A => &[DeviceKind::Block, DeviceKind::Char],
                LinuxDeviceType::B => &[DeviceKind::Block],
                LinuxDeviceType::C => &[DeviceKind::Char],
                other => {
                    let detail = format!("is {:?}, not one of a, b, c", other.as_str());
                    return Err(Error::spec(field("type"), detail));
                }
            };
            let text = rule.access().as_deref().unwrap_or_default();
            let access = Access::parse(text).ok_or_else(|| {
                Error::spec(
                    field("access"),
                    format!("is {text:?}, not some of the letters rwm"),
                )
            })?;
            let number = |name: &str, number: Option<i64>| match number {
                None | Some(-1) => Ok(None),
                Some(number) => u32::try_from(number).map(Some).map_err(|_| {
                    Error::spec(
                        field(name),
                        format!("is {number}, which is no device number"),
                    )
                }),
            };
            let (major, minor) = (
                number("major", rule.major())?,
                number("minor", rule.minor())?,
            );
            let allow = rule.allow();
            rules.extend(kinds.iter().map(|&kind| DeviceRule {
                allow,
                kind,
                major,
                minor,
                access,
            }));
        }
        let default = |(kind, major, minor, access)| DeviceRule {
            allow: true,
            kind,
            major,
            minor,
            access,
        };
        rules.extend(DEFAULTS.into_iter().map(default));
        Ok(Self { rules })
    }

    /// True if the rules deny nothing at all: there is nothing to enforce.
    pub fn allow_all(&self) -> bool {
        [DeviceKind::Block, DeviceKind::Char]
            .into_iter()
            .all(|kind| {
                self.lookup(kind).is_ok_and(|(tests, rest)| {
                    rest == Access::ALL.0 && tests.iter().all(|(.., mask)| *mask == Access::ALL.0)
                })
            })
    }

    /// Whether a device may be read and written.
    pub fn permit(&self, kind: DeviceKind, major: u32, minor: u32) -> bool {
        let about = |rule: &&DeviceRule| {
            let is = |asked: Option<u32>, number| asked.is_none_or(|asked| asked == number);
            rule.kind == kind && is(rule.major, major) && is(rule.minor, minor)
        };
        let may = |bit: u8| {
            let mut latest = self.rules.iter().rev().filter(about);
            let decides = latest.find(|rule| rule.access.0 & bit != 0);
            decides.is_some_and(|rule| rule.allow)
        };
        may(READ) && may(WRITE)
    }

    /// What v1's controller is told, as (file, line), and the table that it has after it.
    ///
    /// That controller keeps "all" or "nothing" and a list of exceptions to it, so the rules are
    /// first folded into that form, and then written whatever the inherited state is.
    ///
    /// # Errors
    /// A rule that denies a part of what another rule allows by a wildcard, or the reverse, has no
    /// such form.
    pub(super) fn v1_writes(&self) -> Result<(V1Rules, Folded)> {
        let folded = self.fold()?;
        let (all, one) = match folded.0 {
            true => ("devices.allow", "devices.deny"),
            false => ("devices.deny", "devices.allow"),
        };
        let mut writes = vec![(all, "a".to_string())];
        let entries = folded.1.iter();
        writes.extend(entries.map(|(name, bits)| (one, line(name, *bits))));
        Ok((writes, folded))
    }

    /// The rules as systemd's DeviceAllow has them, (device, access), where it can say the same: all
    /// is denied but a list.
    pub(super) fn allow_list(&self) -> Option<Vec<(String, String)>> {
        let (allow, exceptions) = self.fold().ok()?;
        if allow {
            return None;
        }
        let entry = |((kind, major, minor), bits): (&Name, &u8)| {
            let kind = if *kind == DeviceKind::Block {
                "block"
            } else {
                "char"
            };
            let device = match (major, minor) {
                (None, None) => format!("{kind}-*"),
                (Some(major), None) => format!("{kind}-{major}"),
                (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
                (None, Some(_)) => return None,
            };
            Some((device, String::from(Access(*bits))))
        };
        exceptions.iter().map(entry).collect()
    }

    /// The rules as a base (allow or deny all) and exceptions from it.
    ///
    /// # Errors
    /// As [`Devices::v1_writes`].
    pub(super) fn fold(&self) -> Result<Folded> {
        let total = |kind| {
            let mut of_kind = self
                .rules
                .iter()
                .enumerate()
                .filter(move |(_, rule)| rule.kind == kind);
            of_kind
                .rfind(|(_, rule)| rule.is_total())
                .map(|(index, rule)| (index, rule.allow))
        };
        let (block, char) = (total(DeviceKind::Block), total(DeviceKind::Char));
        // Both kinds allowed is the one case that starts from "all".
        let base = matches!((block, char), (Some((_, true)), Some((_, true))));
        let mut exceptions: BTreeMap<Name, u8> = BTreeMap::new();
        for (index, rule) in self.rules.iter().enumerate() {
            // What a later rule decides for all devices of this one says nothing.
            let name = (rule.kind, rule.major, rule.minor);
            let later = self.rules[index + 1..].iter();
            let hidden = later
                .filter(|later| covers(&(later.kind, later.major, later.minor), &name))
                .fold(0, |bits, later| bits | later.access.0);
            let access = rule.access.0 & !hidden;
            if access == 0 {
                continue;
            }
            if rule.allow != base {
                *exceptions.entry(name).or_default() |= access;
                continue;
            }
            let mut clash = false;
            exceptions.retain(|known, bits| {
                if *bits & access != 0 {
                    if covers(&name, known) {
                        *bits &= !access;
                    } else if overlap(&name, known) {
                        clash = true;
                    }
                }
                *bits != 0
            });
            if clash {
                let rule = if base { "allows" } else { "denies" };
                return Err(Error::spec(
                    "linux.resources.devices",
                    format!(
                        "an entry {rule} a part of what an earlier one with a wildcard decides, \
                         which the devices controller of cgroup v1 cannot do"
                    ),
                )
                .remedy("list the devices one by one, or use cgroup v2"));
            }
        }
        Ok((base, exceptions))
    }

    /// The accesses that the rules allow to every device that `name` names and that no rule names
    /// more exactly.
    fn allowed(&self, name: Name) -> u8 {
        let rules = self.rules.iter();
        rules
            .filter(|rule| covers(&(rule.kind, rule.major, rule.minor), &name))
            .fold(0, |bits, rule| match rule.allow {
                true => bits | rule.access.0,
                false => bits & !rule.access.0,
            })
    }

    /// A device with the accesses to it that `other` allows and these rules do not, as `c 1:11 rw`; none if
    /// they allow at least as much.
    pub fn lacks(&self, other: &Self) -> Option<String> {
        // Rules tell devices apart by the numbers that they name, so each combination of those, and one
        // for all other numbers, stands for all devices.
        let both = || self.rules.iter().chain(&other.rules);
        let mut names: BTreeSet<Name> = BTreeSet::new();
        for kind in [DeviceKind::Block, DeviceKind::Char] {
            let of_kind = || both().filter(move |rule| rule.kind == kind);
            let whole = |rule: &&DeviceRule| rule.minor.is_none();
            let majors: BTreeSet<_> = of_kind().filter(whole).map(|rule| rule.major).collect();
            let any = |rule: &&DeviceRule| rule.major.is_none();
            let minors: BTreeSet<_> = of_kind().filter(any).map(|rule| rule.minor).collect();
            if majors.len() * minors.len() > MOST_TESTS {
                return Some("something among too many entries with wildcards".into());
            }
            for major in majors.iter().chain([&None]) {
                names.insert((kind, *major, None));
                names.extend(minors.iter().map(|minor| (kind, *major, *minor)));
            }
            names.extend(of_kind().map(|rule| (kind, rule.major, rule.minor)));
        }
        let lost = |name: &Name| other.allowed(*name) & !self.allowed(*name);
        let found = names.into_iter().find(|name| lost(name) != 0)?;
        Some(line(&found, lost(&found)))
    }

    /// The eBPF program (type CGROUP_DEVICE) that enforces the rules: 1 allows, 0 denies with EPERM.
    ///
    /// What is allowed is worked out here for each device that a rule names, so the program only
    /// looks the device up and tests one mask. Every test leads straight to an end: the verifier
    /// walks each path, and its time would grow with the square of the rules if they went on.
    ///
    /// # Errors
    /// More rules than jumps can span.
    pub fn program(&self) -> Result<Vec<Insn>> {
        use bpf::{R1, R2, R3, R4, R5, R6};
        const TYPE: i16 = 0;
        const MAJOR: i16 = 4;
        const MINOR: i16 = 8;
        const BLOCK: i32 = 1;
        // struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor }; access_type holds
        // the kind of device in the lower half and the accesses in the upper one.
        let mut code = vec![
            bpf::load_u32(R2, R1, TYPE),
            bpf::copy(R3, R2),
            bpf::and(R2, 0xffff),
            bpf::shift_right(R3, 16),
            bpf::load_u32(R4, R1, MAJOR),
            bpf::load_u32(R5, R1, MINOR),
            bpf::copy(R6, R4),
            bpf::shift_left(R6, MINOR_BITS as i32),
            bpf::or(R6, R5),
        ];
        let (block, char) = (
            self.section(DeviceKind::Block)?,
            self.section(DeviceKind::Char)?,
        );
        code.push(bpf::jump_unless_equal(R2, BLOCK, block.len() as i16));
        code.extend(block);
        code.extend(char);
        Ok(code)
    }

    /// The part of the program for one kind of device: tests, then one end for each mask.
    fn section(&self, kind: DeviceKind) -> Result<Vec<Insn>> {
        use bpf::{R0, R3};
        let (tests, rest) = self.lookup(kind)?;
        // The end for what no test finds comes first: it is fallen into.
        let mut ends = vec![rest];
        for (.., mask) in &tests {
            if !ends.contains(mask) {
                ends.push(*mask);
            }
        }
        const END: usize = 5;
        let mut code = Vec::with_capacity(tests.len() + ends.len() * END);
        for (index, (register, value, mask)) in tests.iter().enumerate() {
            let end = ends.iter().position(|end| end == mask).unwrap_or(0);
            let over = tests.len() - index - 1 + end * END;
            code.push(bpf::jump_if_equal(*register, *value, over as i16));
        }
        for mask in ends {
            code.extend([
                bpf::jump_if_any(R3, i32::from(Access::ALL.0 & !mask), 2),
                bpf::set(R0, 1),
                bpf::exit(),
                bpf::set(R0, 0),
                bpf::exit(),
            ]);
        }
        Ok(code)
    }

    /// The tests for one kind of device, the most exact first: register, value, what is allowed;
    /// and what is allowed where none holds.
    fn lookup(&self, kind: DeviceKind) -> Result<(Vec<Test>, u8)> {
        let of_kind = || {
            let real = |rule: &&DeviceRule| {
                rule.major.is_none_or(|number| number < 1 << MAJOR_BITS)
                    && rule.minor.is_none_or(|number| number < 1 << MINOR_BITS)
            };
            self.rules
                .iter()
                .filter(move |rule| rule.kind == kind)
                .filter(real)
        };
        let only = |rule: &DeviceRule| (rule.major, rule.minor);
        let majors: BTreeSet<u32> = of_kind()
            .filter(|rule| rule.minor.is_none())
            .filter_map(|rule| rule.major)
            .collect();
        let minors: BTreeSet<u32> = of_kind()
            .filter(|rule| rule.major.is_none())
            .filter_map(|rule| rule.minor)
            .collect();
        let mut exact: BTreeSet<(u32, u32)> = of_kind()
            .map(only)
            .filter_map(|(major, minor)| major.zip(minor))
            .collect();
        if exact.len() + majors.len() * minors.len() > MOST_TESTS {
            return Err(Error::spec(
                "linux.resources.devices",
                "has too many entries",
            ));
        }
        // Where a whole major meets a whole minor, rules of both have a say.
        exact.extend(
            majors
                .iter()
                .flat_map(|major| minors.iter().map(|minor| (*major, *minor))),
        );
        let mut tests: Vec<Test> = Vec::with_capacity(exact.len() + majors.len() + minors.len());
        for (major, minor) in exact {
            let number = (major << MINOR_BITS | minor) as i32;
            tests.push((
                bpf::R6,
                number,
                self.allowed((kind, Some(major), Some(minor))),
            ));
        }
        let of_major = |major| {
            (
                bpf::R4,
                major as i32,
                self.allowed((kind, Some(major), None)),
            )
        };
        tests.extend(majors.into_iter().map(of_major));
        let of_minor = |minor| {
            (
                bpf::R5,
                minor as i32,
                self.allowed((kind, None, Some(minor))),
            )
        };
        tests.extend(minors.into_iter().map(of_minor));
        Ok((tests, self.allowed((kind, None, None))))
    }
}

/// One test of the program: if the register holds the value, this is what is allowed.
type Test = (bpf::Register, i32, u8);

/// How Linux splits the 32 bits of a device number in the kernel (linux/kdev_t.h).
const MAJOR_BITS: u32 = 12;
const MINOR_BITS: u32 = 20;

/// So many tests are within the reach of a jump, whose distance has 16 bits.
const MOST_TESTS: usize = 8_000;

/// True if every device that `inner` names is one of `outer`.
fn covers(outer: &Name, inner: &Name) -> bool {
    let within = |outer: Option<u32>, inner: Option<u32>| outer.is_none() || outer == inner;
    outer.0 == inner.0 && within(outer.1, inner.1) && within(outer.2, inner.2)
}

/// True if some device is named by both.
fn overlap(one: &Name, other: &Name) -> bool {
    let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
    one.0 == other.0 && meet(one.1, other.1) && meet(one.2, other.2)
}
