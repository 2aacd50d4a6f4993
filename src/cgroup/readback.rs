//! Whether a file of a controller holds what was asked for, in the kernel's own spelling.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// From here on a byte count is "no limit": v1 reports the highest page-aligned i64 for -1.
const UNLIMITED: u64 = i64::MAX as u64 - 65_536;

/// How to compare what was written with what is read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Check {
    /// The same text, apart from white space at the ends.
    Exact,
    /// A byte count that the kernel rounds down to a multiple of its page size, which is at most
    /// `granule`; `max` and -1 mean no limit.
    Bytes {
        /// The largest page size in question, in bytes.
        granule: u64,
    },
    /// A set of numbers like `0-3,7`.
    Set,
    /// One of several lines: the first word of `wants` names the line, the other words are in it.
    Line {
        /// The words that the line must hold.
        wants: String,
    },
    /// The file cannot be read, or nobody knows how the kernel spells it.
    Nothing,
}

impl Check {
    /// For byte counts in pages: no architecture has pages of more than 64 KiB.
    pub(super) fn pages() -> Self {
        Self::Bytes { granule: 65_536 }
    }

    /// A [`Check::Line`] for these words.
    pub(super) fn line(wants: impl Into<String>) -> Self {
        Self::Line {
            wants: wants.into(),
        }
    }

    /// True if `got`, which was read, is what the kernel makes of `wanted`, which was written.
    pub fn holds(&self, wanted: &str, got: &str) -> bool {
        let got = got.trim();
        match self {
            Self::Exact => wanted.trim() == got,
            Self::Bytes { granule } => match (bytes(wanted), bytes(got)) {
                (Some(wanted), Some(got)) if wanted >= UNLIMITED => got >= UNLIMITED,
                (Some(wanted), Some(got)) => got <= wanted && wanted - got < *granule,
                _ => false,
            },
            Self::Set => match (set(wanted), set(got)) {
                (Some(wanted), Some(got)) => wanted == got,
                _ => false,
            },
            Self::Line { wants } => {
                let wants: Vec<&str> = wants.split_whitespace().collect();
                got.lines().any(|line| {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    words.first() == wants.first() && wants.iter().all(|want| words.contains(want))
                })
            }
            Self::Nothing => true,
        }
    }

    /// What an error message says was wanted.
    pub(super) fn wanted<'a>(&'a self, value: &'a str) -> &'a str {
        match self {
            Self::Line { wants } => wants,
            _ => value,
        }
    }
}

/// A byte count as the kernel's memparse reads it, with its suffixes; no limit is `u64::MAX`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    if text == "max" || text == "-1" {
        return Some(u64::MAX);
    }
    let shift = match text.bytes().last()? {
        b'k' | b'K' => 10,
        b'm' | b'M' => 20,
        b'g' | b'G' => 30,
        b't' | b'T' => 40,
        _ => 0,
    };
    let digits = if shift == 0 {
        text
    } else {
        &text[..text.len() - 1]
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The numbers of a list like `0-3,7`.
pub(super) fn set(text: &str) -> Option<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for part in text
        .trim()
        .split(',')
        .filter(|part| !part.trim().is_empty())
    {
        let (low, high) = part
            .trim()
            .split_once('-')
            .unwrap_or((part.trim(), part.trim()));
        let (low, high): (u32, u32) = (low.parse().ok()?, high.parse().ok()?);
        // The kernel knows a few thousand CPUs: a longer range is no list of this machine.
        if low > high || high > 65_535 {
            return None;
        }
        numbers.extend(low..=high);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_spelling() {
        let pages = Check::pages();
        for (wanted, got, holds) in [
            ("100000000", "99999744\n", true),
            ("100000000", "99999744000\n", false),
            ("100000000", "max\n", false),
            ("100000000", "104857600", false),
            ("-1", "9223372036854771712\n", true),
            ("max", "max\n", true),
            ("max", "4096\n", false),
            ("0", "0", true),
            ("100M", "104857600", true),
            ("x", "x", false),
        ] {
            assert_eq!(pages.holds(wanted, got), holds, "{wanted} {got}");
        }
        assert!(Check::Set.holds("0,1,2", "0-2\n") && !Check::Set.holds("0-1", "0\n"));
        assert!(!Check::Set.holds("0-4294967295", "0"));
        assert!(Check::Exact.holds("50000 100000", "50000 100000\n"));
        assert!(!Check::Exact.holds("2", "3\n"));
        let line = Check::line("8:0 rbps=1024");
        assert!(line.holds(
            "",
            "7:0 rbps=max\n8:0 rbps=1024 wbps=max riops=max wiops=max\n"
        ));
        assert!(!line.holds("", "8:0 rbps=2048 wbps=1024\n7:0 rbps=1024\n"));
    }
}
