//! Ranges of process ids, so that no two members of a channel have a process of the same number.
//!
//! CUDA takes a handle that carries the importer's own process id for one of that process itself, and the
//! first process of every container is number 1. So each member of a channel with GPU memory begins at
//! another number (`/proc/sys/kernel/ns_last_pid` in its pid namespace). A range is kept in the member's
//! files, and is free again when the member is no more: nothing is counted, and a SIGKILL leaves nothing.

use serde::{Deserialize, Serialize};

/// The fewest and the most numbers of a range. The most: a container may start that many processes before
/// it comes round.
const FEWEST: u32 = 1024;
const MOST: u32 = 65_536;

/// A range of process ids, of which no other member of the same channels has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
}

impl Pids {
    /// Whether `pid` is in it.
    pub fn holds(&self, pid: u32) -> bool {
        (self.first..=self.last).contains(&pid)
    }

    /// Whether the two have a number in common.
    fn meets(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The lowest range below `limit` (the kernel's pid_max of such a namespace) that meets none of these;
    /// none: all are used. The numbers below the first range belong to nobody: a namespace that comes round
    /// goes on at 300.
    pub(super) fn free(limit: u32, used: &[Self]) -> Option<Self> {
        // 31 ranges of 1,024 below 32,768, and 255 of 16,384 below 4,194,304.
        let wanted = (limit / 256).max(1);
        let size = (1 << wanted.ilog2()).clamp(FEWEST, MOST);
        let ranges = (1..limit / size).map(|number| Self {
            first: number * size,
            last: number * size + size - 1,
        });
        let mut free = ranges.filter(|range| used.iter().all(|other| !range.meets(other)));
        free.next()
    }
}

impl std::fmt::Display for Pids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All ranges below `limit`, taken one after the other.
    fn all(limit: u32) -> Vec<Pids> {
        let mut used = Vec::new();
        while let Some(range) = Pids::free(limit, &used) {
            used.push(range);
        }
        used
    }

    #[test]
    fn ranges_fill_what_the_kernel_has_and_do_not_meet() {
        for (limit, count, size) in [
            (32_768, 31, 1024),
            (4_194_304, 255, 16_384),
            (65_536, 63, 1024),
        ] {
            let ranges = all(limit);
            assert_eq!(ranges.len(), count, "{limit}");
            for (at, range) in ranges.iter().enumerate() {
                assert_eq!(range.last - range.first + 1, size, "{range}");
                assert!(range.first > 300 && range.last < limit, "{range}");
                assert!(ranges[..at].iter().all(|other| !range.meets(other)));
            }
        }
        // The lowest that the kernel allows, and nonsense.
        assert_eq!(all(301), []);
        assert_eq!(all(0), []);
    }

    #[test]
    fn what_is_free_again_is_given_again() {
        let mut ranges = all(32_768);
        let gone = ranges.remove(3);
        assert_eq!(Pids::free(32_768, &ranges), Some(gone));
        // One that was made where the limit was another one.
        let wide = Pids {
            first: 1024,
            last: 17_407,
        };
        let next = Pids::free(32_768, &[wide]).unwrap();
        assert_eq!(next.first, 17_408);
        assert!(next.holds(17_408) && !next.holds(17_407));
        assert_eq!(next.to_string(), "17408-18431");
    }
}
