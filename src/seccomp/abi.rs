//! The system call interfaces that a filter can be for, and the names of their calls.

use oci_spec::runtime::Arch;

use super::table::{NONE, TABLE};

/// The bit of a number that says "this is an x32 call" where the kernel says x86_64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// An interface with its own numbers; the discriminant is its column in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abi {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

/// How much of an argument is compared: libseccomp takes all but the two 64-bit interfaces as
/// having arguments of 32 bits, x32 too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Wide,
    Narrow,
}

impl Abi {
    /// All of them.
    #[cfg(test)]
    pub(super) const ALL: [Abi; 5] = [Abi::X86_64, Abi::X86, Abi::X32, Abi::Aarch64, Abi::Arm];

    /// What this binary runs on. libseccomp puts it into each filter, listed or not.
    #[cfg(target_arch = "x86_64")]
    pub(super) const NATIVE: Abi = Abi::X86_64;
    #[cfg(target_arch = "aarch64")]
    pub(super) const NATIVE: Abi = Abi::Aarch64;
    #[cfg(target_arch = "x86")]
    pub(super) const NATIVE: Abi = Abi::X86;
    #[cfg(target_arch = "arm")]
    pub(super) const NATIVE: Abi = Abi::Arm;

    /// The interface of an architecture of the specification, if there is a table for it.
    pub(super) fn from_spec(arch: Arch, native: Abi) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative => Some(native),
            Arch::ScmpArchX86_64 => Some(Abi::X86_64),
            Arch::ScmpArchX86 => Some(Abi::X86),
            Arch::ScmpArchX32 => Some(Abi::X32),
            Arch::ScmpArchAarch64 => Some(Abi::Aarch64),
            Arch::ScmpArchArm => Some(Abi::Arm),
            _ => None,
        }
    }

    /// `AUDIT_ARCH_*`: what the kernel puts into `seccomp_data.arch`. x32 has that of x86_64.
    pub(super) fn audit(self) -> u32 {
        match self {
            Abi::X86_64 | Abi::X32 => 0xc000_003e,
            Abi::X86 => 0x4000_0003,
            Abi::Aarch64 => 0xc000_00b7,
            Abi::Arm => 0x4000_0028,
        }
    }

    /// How arguments are compared.
    pub(super) fn width(self) -> Width {
        match self {
            Abi::X86_64 | Abi::Aarch64 => Width::Wide,
            Abi::X86 | Abi::X32 | Abi::Arm => Width::Narrow,
        }
    }

    /// The number of the call in `row`, with bit 30 on x32.
    pub(super) fn number(self, row: usize) -> Option<u32> {
        let number = TABLE[row].1[self as usize];
        let base = if self == Abi::X32 { X32_BIT } else { 0 };
        (number != NONE).then_some(number | base)
    }
}

/// The first eight bytes of each name in the table, as numbers in the same order: most of a search
/// needs one comparison of numbers a step then, and a profile names hundreds of calls.
static PREFIXES: [u64; TABLE.len()] = {
    let mut prefixes = [0; TABLE.len()];
    let mut row = 0;
    while row < TABLE.len() {
        prefixes[row] = prefix(TABLE[row].0);
        row += 1;
    }
    prefixes
};

const fn prefix(name: &str) -> u64 {
    let (name, mut prefix, mut at) = (name.as_bytes(), 0, 0);
    while at < 8 {
        prefix = prefix << 8 | if at < name.len() { name[at] as u64 } else { 0 };
        at += 1;
    }
    prefix
}

/// The row of the table with a call's name.
pub(super) fn row(name: &str) -> Option<usize> {
    let prefix = prefix(name);
    let first = PREFIXES.partition_point(|known| *known < prefix);
    let alike = PREFIXES[first..]
        .iter()
        .take_while(|known| **known == prefix)
        .count();
    (first..first + alike).find(|row| TABLE[*row].0 == name)
}

/// What a call of 32-bit x86 can also be made through, for each row of the table: the row of the
/// multiplexer, and the value of its first argument (socketcall(2), ipc(2)).
pub(super) fn multiplexed() -> Vec<Option<(usize, u32)>> {
    let mut rows = vec![None; TABLE.len()];
    for (name, through, value) in MULTIPLEXED {
        if let (Some(row), Some(through)) = (row(name), row(through)) {
            rows[row] = Some((through, value));
        }
    }
    rows
}

/// The same for one name, as the tests look it up.
#[cfg(test)]
pub(super) fn multiplexer(name: &str) -> Option<(&'static str, u32)> {
    let found = MULTIPLEXED
        .binary_search_by(|(known, ..)| (*known).cmp(name))
        .ok()?;
    let (_, through, value) = MULTIPLEXED[found];
    Some((through, value))
}

/// `(call, multiplexer, its first argument)`, sorted by name; linux/net.h and linux/ipc.h.
#[rustfmt::skip]
static MULTIPLEXED: [(&str, &str, u32); 32] = [
    ("accept", "socketcall", 5),
    ("accept4", "socketcall", 18),
    ("bind", "socketcall", 2),
    ("connect", "socketcall", 3),
    ("getpeername", "socketcall", 7),
    ("getsockname", "socketcall", 6),
    ("getsockopt", "socketcall", 15),
    ("listen", "socketcall", 4),
    ("msgctl", "ipc", 14),
    ("msgget", "ipc", 13),
    ("msgrcv", "ipc", 12),
    ("msgsnd", "ipc", 11),
    ("recv", "socketcall", 10),
    ("recvfrom", "socketcall", 12),
    ("recvmmsg", "socketcall", 19),
    ("recvmsg", "socketcall", 17),
    ("semctl", "ipc", 3),
    ("semget", "ipc", 2),
    ("semop", "ipc", 1),
    ("semtimedop", "ipc", 4),
    ("send", "socketcall", 9),
    ("sendmmsg", "socketcall", 20),
    ("sendmsg", "socketcall", 16),
    ("sendto", "socketcall", 11),
    ("setsockopt", "socketcall", 14),
    ("shmat", "ipc", 21),
    ("shmctl", "ipc", 24),
    ("shmdt", "ipc", 22),
    ("shmget", "ipc", 23),
    ("shutdown", "socketcall", 13),
    ("socket", "socketcall", 1),
    ("socketpair", "socketcall", 8),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_right() {
        assert!(TABLE.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let number = |abi: Abi, name: &str| row(name).and_then(|row| abi.number(row));
        assert_eq!(number(Abi::X86_64, "read"), Some(0));
        assert_eq!(number(Abi::X86, "read"), Some(3));
        assert_eq!(number(Abi::X32, "read"), Some(X32_BIT));
        assert_eq!(number(Abi::X32, "execve"), Some(X32_BIT + 520));
        assert_eq!(number(Abi::Aarch64, "read"), Some(63));
        assert_eq!(number(Abi::Arm, "set_tls"), Some(0xf0005));
        assert_eq!(number(Abi::Aarch64, "open"), None);
        for (index, (name, _)) in TABLE.iter().enumerate() {
            assert_eq!(row(name), Some(index), "{name}");
        }
        for name in ["no_such_call", "", "a", "zzz", "sched_getx", "read\0"] {
            assert_eq!(row(name), None, "{name:?}");
        }
        // The C library's headers are another source of the same numbers.
        assert_eq!(number(Abi::NATIVE, "clone3"), Some(libc::SYS_clone3 as u32));
        assert_eq!(number(Abi::NATIVE, "ptrace"), Some(libc::SYS_ptrace as u32));
        assert_eq!(number(Abi::NATIVE, "mseal"), Some(libc::SYS_mseal as u32));
    }

    #[test]
    fn an_abi_gives_a_number_to_one_name() {
        for abi in Abi::ALL {
            let mut numbers: Vec<_> = (0..TABLE.len()).filter_map(|row| abi.number(row)).collect();
            let all = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), all, "{abi:?}");
        }
    }

    #[test]
    fn multiplexed_calls_are_in_the_table() {
        assert!(MULTIPLEXED.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(multiplexer("socket"), Some(("socketcall", 1)));
        assert_eq!(multiplexer("sendmmsg"), Some(("socketcall", 20)));
        assert_eq!(multiplexer("shmctl"), Some(("ipc", 24)));
        assert_eq!(multiplexer("read"), None);
        assert_eq!(multiplexed().iter().flatten().count(), MULTIPLEXED.len());
        for name in ["socketcall", "ipc"] {
            assert!(row(name).and_then(|row| Abi::X86.number(row)).is_some());
        }
    }
}
