//! Ids and capabilities of this process: user_namespaces(7), capabilities(7).

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};

/// A set of capabilities, a bit for each number; in JSON hexadecimal, as in /proc/PID/status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Caps(pub u64);

impl Caps {
    /// Number of CAP_SYS_ADMIN.
    pub const SYS_ADMIN: u32 = 21;
    /// Number of CAP_SYS_RESOURCE.
    pub const SYS_RESOURCE: u32 = 24;
    /// Number of CAP_MKNOD.
    pub const MKNOD: u32 = 27;
    /// Number of CAP_NET_ADMIN.
    pub const NET_ADMIN: u32 = 12;
    /// Number of CAP_NET_RAW.
    pub const NET_RAW: u32 = 13;
    /// Number of CAP_SETFCAP.
    pub const SETFCAP: u32 = 31;
    /// Number of CAP_MAC_ADMIN.
    pub const MAC_ADMIN: u32 = 33;

    /// The name of one of the numbers above.
    pub fn name(cap: u32) -> &'static str {
        match cap {
            Self::SYS_ADMIN => "CAP_SYS_ADMIN",
            Self::SYS_RESOURCE => "CAP_SYS_RESOURCE",
            Self::MKNOD => "CAP_MKNOD",
            Self::NET_ADMIN => "CAP_NET_ADMIN",
            Self::NET_RAW => "CAP_NET_RAW",
            Self::MAC_ADMIN => "CAP_MAC_ADMIN",
            Self::SETFCAP => "CAP_SETFCAP",
            _ => "a capability",
        }
    }

    /// The effective capabilities of this process; none where they cannot be read.
    pub fn effective() -> Self {
        Self(crate::sys::process::effective_caps().unwrap_or(0))
    }

    /// Whether capability number `cap` is in it.
    pub fn has(self, cap: u32) -> bool {
        self.0 >> cap & 1 == 1
    }
}

impl From<Caps> for String {
    fn from(caps: Caps) -> Self {
        format!("{:016x}", caps.0)
    }
}

impl TryFrom<String> for Caps {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        u64::from_str_radix(&text, 16).map(Self).map_err(|_| {
            Error::new(
                Kind::Spec,
                format!("{text:?} is no set of capabilities in hexadecimal"),
            )
        })
    }
}

/// A line of an id map, of this process or of a container to be made: user_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id in the user namespace.
    pub inside: u32,
    /// The same id in the namespace above, for a container: outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdMap {
    /// All ids, as the initial user namespace maps them.
    pub const ALL: Self = Self {
        inside: 0,
        outside: 0,
        count: u32::MAX,
    };

    /// The lines of such a file; what is no line is left out.
    pub fn parse(text: &str) -> Vec<Self> {
        let line = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().map(str::parse);
            let mut next = || numbers.next()?.ok();
            Some(Self {
                inside: next()?,
                outside: next()?,
                count: next()?,
            })
        };
        text.lines().filter_map(line).collect()
    }

    /// What `id` is outside of the user namespace with this map; without a line for it, or with an empty
    /// map (the initial user namespace), the same.
    pub fn outside(map: &[Self], id: u32) -> u32 {
        let line = map.iter().find(|line| {
            id.checked_sub(line.inside)
                .is_some_and(|at| at < line.count)
        });
        line.map_or(id, |line| line.outside.wrapping_add(id - line.inside))
    }

    /// This process's effective group id as it is outside of its user namespace.
    pub fn own_gid_outside() -> u32 {
        let map = std::fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
        Self::outside(&Self::parse(&map), nix::unistd::getegid().as_raw())
    }

    /// This process's effective user id as it is outside of its user namespace.
    pub fn own_uid_outside() -> u32 {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Self::outside(&Self::parse(&map), nix::unistd::geteuid().as_raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_as_the_kernel_writes_them() {
        let caps: Caps = serde_json::from_str("\"000001fffeffffff\"").unwrap();
        assert!(caps.has(Caps::SYS_ADMIN) && !caps.has(Caps::SYS_RESOURCE));
        assert_eq!(
            serde_json::to_string(&caps).unwrap(),
            "\"000001fffeffffff\""
        );
        let wrong = serde_json::from_str::<Caps>("\"cap_chown\"").unwrap_err();
        assert!(wrong.to_string().contains("hexadecimal"), "{wrong}");
    }

    #[test]
    fn lines_of_a_map() {
        let map = IdMap::parse("         0       1000          1\n 1 100000 65536\nx\n");
        assert_eq!(map.len(), 2);
        assert_eq!(
            (map[1].inside, map[1].outside, map[1].count),
            (1, 100_000, 65536)
        );
        assert_eq!(
            IdMap::parse("         0          0 4294967295\n"),
            [IdMap::ALL]
        );
    }
}
