//! Pure: limits as properties of the unit, systemd.resource-control(5).
//!
//! systemd writes what it knows of whenever it looks at a unit again, so what is written to the cgroup
//! alone would be lost then. It is made from the rows of the plan, so each file has one entry, whichever
//! field of the configuration asks for it. What systemd has no property for is only in the cgroup.

use std::collections::BTreeSet;

use super::wire::Value;
use crate::cgroup::plan::{PlannedDir, Write};
use crate::cgroup::readback;

/// The period of a quota that names none, in microseconds: the kernel's own.
const PERIOD: u64 = 100_000;

/// The properties for the limits and device rules of `dirs`, for a systemd of this version.
pub(super) fn of(dirs: &[PlannedDir], version: u32) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    if let Some(devices) = dirs.iter().find_map(|dir| dir.devices.as_ref()) {
        let (policy, list) = match version {
            // What systemd cannot say is left to our own rules, and allowed by it. Not by "auto": a
            // systemd that has denied something goes on with that (seen with 252).
            240.. => ("strict", devices.allow_list().unwrap_or_else(everything)),
            _ => ("auto", Vec::new()),
        };
        found.push(("DevicePolicy".into(), Value::Text(policy.into())));
        if !list.is_empty() {
            // An empty list takes away what was there before.
            found.push(("DeviceAllow".into(), Value::Pairs(Vec::new())));
        }
        found.push(("DeviceAllow".into(), Value::Pairs(list)));
    }
    let rows: Vec<&Write> = dirs.iter().flat_map(|dir| &dir.writes).collect();
    let idle = rows
        .iter()
        .any(|row| row.file == "cpu.idle" && row.value.trim() == "1");
    for row in &rows {
        if row.file == "cpu.weight" && idle {
            continue;
        }
        if let Some((name, value)) = one(row, version) {
            found.push((name.into(), value));
        }
    }
    quota(&rows, version, &mut found);
    found
}

fn everything() -> Vec<(String, String)> {
    ["block-*", "char-*"]
        .map(|kind| (kind.to_string(), "rwm".to_string()))
        .into()
}

fn one(row: &Write, version: u32) -> Option<(&'static str, Value)> {
    let text = row.value.trim();
    let bytes = |name| Some((name, Value::Uint64(readback::bytes(text)?)));
    let number = |name| Some((name, Value::Uint64(text.parse().ok()?)));
    match row.file.as_str() {
        "memory.max" => bytes("MemoryMax"),
        "memory.low" => bytes("MemoryLow"),
        "memory.min" => bytes("MemoryMin"),
        "memory.high" => bytes("MemoryHigh"),
        "memory.swap.max" => bytes("MemorySwapMax"),
        "memory.limit_in_bytes" => bytes("MemoryLimit"),
        "pids.max" => bytes("TasksMax"),
        "cpu.weight" => number("CPUWeight"),
        "cpu.shares" => number("CPUShares"),
        "blkio.weight" => number("BlockIOWeight"),
        // systemd's word for idle.
        "cpu.idle" if text == "1" && version >= 252 => Some(("CPUWeight", Value::Uint64(0))),
        "cpuset.cpus" if version >= 244 => Some(("AllowedCPUs", Value::Bytes(bits(text)?))),
        "cpuset.mems" if version >= 244 => Some(("AllowedMemoryNodes", Value::Bytes(bits(text)?))),
        // Scopes have it from this version on.
        "memory.oom.group" if version >= 253 => {
            let policy = match text {
                "0" => "continue",
                "1" => "kill",
                _ => return None,
            };
            Some(("OOMPolicy", Value::Text(policy.into())))
        }
        _ => None,
    }
}

/// Quota and period, which are two files on v1 and one on v2.
fn quota(rows: &[&Write], version: u32, found: &mut Vec<(String, Value)>) {
    let last = |file: &str| {
        let row = rows.iter().rev().find(|row| row.file == file);
        row.map(|row| row.value.trim())
    };
    let (quota, period) = match last("cpu.max") {
        Some(both) => {
            let mut words = both.split_ascii_whitespace();
            (words.next(), words.next())
        }
        None => (last("cpu.cfs_quota_us"), last("cpu.cfs_period_us")),
    };
    if quota.is_none() && period.is_none() {
        return;
    }
    let period: Option<u64> = period.and_then(|period| period.parse().ok());
    if let Some(period) = period.filter(|_| version >= 242) {
        found.push(("CPUQuotaPeriodUSec".into(), Value::Uint64(period)));
    }
    let period = period.filter(|period| *period != 0).unwrap_or(PERIOD);
    let per_second = match quota.and_then(|quota| quota.parse::<u64>().ok()) {
        // systemd counts in percent of a CPU: rounded up, so that the exact value fits below.
        Some(quota) => (u128::from(quota) * 1_000_000 / u128::from(period))
            .next_multiple_of(10_000)
            .try_into()
            .unwrap_or(u64::MAX),
        None => u64::MAX,
    };
    found.push(("CPUQuotaPerSecUSec".into(), Value::Uint64(per_second)));
}

/// A list like `0-3,7` as bits, the first of the first byte for number 0.
fn bits(list: &str) -> Option<Vec<u8>> {
    let numbers: BTreeSet<u32> = readback::set(list)?;
    let Some(&last) = numbers.last() else {
        // None at all is systemd's word for no limit.
        return Some(Vec::new());
    };
    let mut bytes = vec![0; last as usize / 8 + 1];
    for number in numbers {
        bytes[number as usize / 8] |= 1 << (number % 8);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Check, Version};

    fn dir(rows: &[(&str, &str)]) -> PlannedDir {
        let write = |(file, value): &(&str, &str)| {
            let controller = file.split('.').next().unwrap();
            Write::new(controller, *file, value, "field", Check::Nothing)
        };
        PlannedDir {
            version: Version::V2,
            controllers: Vec::new(),
            mount: "/m".into(),
            path: "/m/x".into(),
            writes: rows.iter().map(write).collect(),
            devices: None,
        }
    }

    fn told(rows: &[(&str, &str)], version: u32) -> Vec<String> {
        let found = of(&[dir(rows)], version);
        found
            .iter()
            .map(|(name, value)| match value {
                Value::Uint64(u64::MAX) => format!("{name}=infinity"),
                Value::Uint64(number) => format!("{name}={number}"),
                other => format!("{name}={other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_row_is_a_property() {
        let rows = [
            ("memory.max", "1048576"),
            ("memory.swap.max", "0"),
            ("memory.low", "max"),
            ("memory.high", "1M"),
            ("pids.max", "max"),
            ("cpu.weight", "79"),
            ("cpuset.cpus", "0-1,9"),
            ("memory.oom.group", "1"),
            ("hugetlb.2MB.max", "0"),
            ("io.max", "8:0 rbps=1"),
        ];
        assert_eq!(
            told(&rows, 257),
            [
                "MemoryMax=1048576",
                "MemorySwapMax=0",
                "MemoryLow=infinity",
                "MemoryHigh=1048576",
                "TasksMax=infinity",
                "CPUWeight=79",
                "AllowedCPUs=Bytes([3, 2])",
                "OOMPolicy=Text(\"kill\")",
            ]
        );
        let old = told(&rows, 243);
        assert!(!old.iter().any(|one| one.starts_with("AllowedCPUs")));
    }

    #[test]
    fn idle_hides_the_weight() {
        let rows = [("cpu.idle", "1"), ("cpu.weight", "100")];
        assert_eq!(told(&rows, 252), ["CPUWeight=0"]);
        assert_eq!(told(&rows, 251), [""; 0]);
        assert_eq!(told(&[("cpu.idle", "0")], 252), [""; 0]);
    }

    #[test]
    fn quotas_in_percent() {
        for (value, want) in [
            (
                "50000 100000",
                ["CPUQuotaPeriodUSec=100000", "CPUQuotaPerSecUSec=500000"],
            ),
            // 12.345 % become 13 %.
            (
                "12345 100000",
                ["CPUQuotaPeriodUSec=100000", "CPUQuotaPerSecUSec=130000"],
            ),
            (
                "max 50000",
                ["CPUQuotaPeriodUSec=50000", "CPUQuotaPerSecUSec=infinity"],
            ),
        ] {
            assert_eq!(told(&[("cpu.max", value)], 242), want, "{value}");
        }
        assert_eq!(
            told(
                &[
                    ("cpu.cfs_period_us", "200000"),
                    ("cpu.cfs_quota_us", "100000")
                ],
                241
            ),
            ["CPUQuotaPerSecUSec=500000"]
        );
    }
}
