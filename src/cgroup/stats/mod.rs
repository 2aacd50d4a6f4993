//! What a container has used, in the form of `runc events`: names, order and omissions are those of
//! runc's types/events.go, which containerd's shim and Docker's stats read.

mod rdt;
mod v1;
mod v2;

use std::collections::BTreeMap;

use nix::errno::Errno;
use serde::{Serialize, Serializer};

pub use rdt::{CmtStats, IntelRdt, L3CacheInfo, MbmStats, MemBwInfo};

use super::fs;
use super::hierarchies::Mode;
use super::placed::{Placed, PlacedDir};
use super::plan::Version;
use crate::error::{Error, Result};

fn zero(n: &u64) -> bool {
    *n == 0
}

/// All that is known of a container's use of the machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: Cpu,
    /// CPUs and memory nodes; v1 only, as in runc.
    pub cpuset: Cpuset,
    /// Memory.
    pub memory: Memory,
    /// Processes.
    pub pids: Pids,
    /// Block devices.
    pub blkio: Blkio,
    /// Huge pages, by their size.
    pub hugetlb: BTreeMap<String, Hugetlb>,
    /// RDMA devices; left out where there are none. runc's events have none at all.
    #[serde(skip_serializing_if = "Rdma::is_empty")]
    pub rdma: Rdma,
    /// Empty for a container without a group of resctrl.
    pub intel_rdt: IntelRdt,
    /// Always null, as in runc: networks are the engine's.
    pub network_interfaces: Option<()>,
}

/// Processor time.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// Used.
    pub usage: CpuUsage,
    /// Held back.
    pub throttling: Throttling,
    /// Waited for; v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Processor time used, nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CpuUsage {
    /// All.
    #[serde(skip_serializing_if = "zero")]
    pub total: u64,
    /// By CPU; v1 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// In the kernel, by CPU; v1 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// In the programs, by CPU; v1 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// In the programs.
    pub user: u64,
}

/// How often the CPU quota was used up.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods that have passed.
    #[serde(skip_serializing_if = "zero")]
    pub periods: u64,
    /// Those in which the quota was used up.
    #[serde(skip_serializing_if = "zero")]
    pub throttled_periods: u64,
    /// The time held back, nanoseconds.
    #[serde(skip_serializing_if = "zero")]
    pub throttled_time: u64,
}

/// The files of v1's cpuset.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Cpuset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u64>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u64>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

/// Memory, bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Of files.
    #[serde(skip_serializing_if = "zero")]
    pub cache: u64,
    /// Memory.
    pub usage: MemoryEntry,
    /// Memory and swap together.
    pub swap: MemoryEntry,
    /// Of the kernel; v1 only.
    pub kernel: MemoryEntry,
    /// Of the kernel's TCP buffers; v1 only.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// The file memory.stat.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// Waited for; v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// One kind of memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct MemoryEntry {
    /// The limit; u64::MAX without one on v2.
    pub limit: u64,
    /// In use.
    #[serde(skip_serializing_if = "zero")]
    pub usage: u64,
    /// The most that was in use.
    #[serde(skip_serializing_if = "zero")]
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Processes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pids {
    /// How many there are.
    #[serde(skip_serializing_if = "zero")]
    pub current: u64,
    /// How many there may be; 0 without a limit.
    #[serde(skip_serializing_if = "zero")]
    pub limit: u64,
}

/// Block devices.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blkio {
    /// Bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    /// Operations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    /// Waiting operations.
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    pub io_queued_recursive: Vec<BlkioEntry>,
    /// Nanoseconds of service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_time_recursive: Vec<BlkioEntry>,
    /// Nanoseconds of waiting.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_wait_time_recursive: Vec<BlkioEntry>,
    /// Merged operations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_merged_recursive: Vec<BlkioEntry>,
    /// Time of the devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_time_recursive: Vec<BlkioEntry>,
    /// Sectors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sectors_recursive: Vec<BlkioEntry>,
    /// Waited for; v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// One number of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BlkioEntry {
    /// Major number.
    #[serde(skip_serializing_if = "zero")]
    pub major: u64,
    /// Minor number.
    #[serde(skip_serializing_if = "zero")]
    pub minor: u64,
    /// Read, Write and the like.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// The number.
    #[serde(skip_serializing_if = "zero")]
    pub value: u64,
}

/// Huge pages of one size, bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Hugetlb {
    /// In use.
    #[serde(skip_serializing_if = "zero")]
    pub usage: u64,
    /// The most that was in use.
    #[serde(skip_serializing_if = "zero")]
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// RDMA devices, with the names of libcontainer's RdmaStats.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Rdma {
    /// What may be used.
    #[serde(rename = "rdma_limit", skip_serializing_if = "Vec::is_empty")]
    pub limit: Vec<RdmaEntry>,
    /// What is in use.
    #[serde(rename = "rdma_current", skip_serializing_if = "Vec::is_empty")]
    pub current: Vec<RdmaEntry>,
}

/// One RDMA device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RdmaEntry {
    /// Its name.
    pub device: String,
    /// Handles; u32::MAX without a limit.
    #[serde(skip_serializing_if = "zero32")]
    pub hca_handles: u32,
    /// Objects; u32::MAX without a limit.
    #[serde(skip_serializing_if = "zero32")]
    pub hca_objects: u32,
}

fn zero32(n: &u32) -> bool {
    *n == 0
}

impl Rdma {
    fn is_empty(&self) -> bool {
        self.limit.is_empty() && self.current.is_empty()
    }

    /// The files rdma.max and rdma.current, which v1 and v2 have alike (Linux
    /// Documentation/admin-guide/cgroup-v1/rdma.rst): `mlx4_0 hca_handle=2 hca_object=max`.
    fn read(dir: &PlacedDir) -> Result<Self> {
        let list = |file: &str| {
            let text = text(dir, file)?.unwrap_or_default();
            Ok::<_, Error>(text.lines().filter_map(RdmaEntry::parse).collect())
        };
        Ok(Self {
            limit: list("rdma.max")?,
            current: list("rdma.current")?,
        })
    }
}

impl RdmaEntry {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mut entry = Self {
            device: words.next()?.to_string(),
            ..Self::default()
        };
        for (key, number) in words.filter_map(|word| word.split_once('=')) {
            let number = match number {
                "max" => u32::MAX,
                number => number.parse().ok()?,
            };
            match key {
                "hca_handle" => entry.hca_handles = number,
                "hca_object" => entry.hca_objects = number,
                _ => {}
            }
        }
        Some(entry)
    }
}

/// Pressure stall information: Linux Documentation/accounting/psi.rst.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Psi {
    /// At least one process waited.
    pub some: PsiLine,
    /// All of them did.
    pub full: PsiLine,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PsiLine {
    /// Percent of the last 10 s.
    #[serde(serialize_with = "as_go")]
    pub avg10: f64,
    /// Percent of the last minute.
    #[serde(serialize_with = "as_go")]
    pub avg60: f64,
    /// Percent of the last five minutes.
    #[serde(serialize_with = "as_go")]
    pub avg300: f64,
    /// Microseconds in all.
    pub total: u64,
}

/// A whole number without the `.0` that Go does not write.
// serde asks for a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn as_go<S: Serializer>(number: &f64, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match number.fract() == 0.0 && (0.0..1e9).contains(number) {
        true => serializer.serialize_u64(*number as u64),
        false => serializer.serialize_f64(*number),
    }
}

impl Placed {
    /// What the container has used until now. What a controller that is not there would tell is zero.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        for dir in self.dirs.iter().filter(|dir| !dir.others) {
            match dir.version {
                Version::V1 => v1::read(dir, &mut stats)?,
                // Beside v1 the v2 side has no controllers that runc would ask.
                Version::V2 if self.mode == Mode::V2 => v2::read(dir, &mut stats)?,
                Version::V2 => {}
            }
        }
        Ok(stats)
    }
}

/// A file of the cgroup; nothing where it is not there, or has nothing to tell.
fn text(dir: &PlacedDir, file: &str) -> Result<Option<String>> {
    let path = dir.path.join(file);
    match fs::read_path(&path) {
        Ok(text) => Ok(Some(text)),
        // EOPNOTSUPP: pressure that is turned off (psi=0). ENODEV: the cgroup has just gone.
        Err(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::ENODEV) => Ok(None),
        Err(errno) => Err(Error::os("read", path.display().to_string(), errno)),
    }
}

/// A number; `max` is u64::MAX, and what v1 shows as a negative one is 0.
fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// A file that holds one number; 0 where it is not there.
fn value(dir: &PlacedDir, file: &str) -> Result<u64> {
    Ok(text(dir, file)?.map_or(0, |text| number(&text)))
}

/// A file of lines `key number`.
fn map(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_string(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// The numbers of a list like `0-3,7`.
fn list(text: &str) -> Vec<u64> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(low), Ok(high)) = (low.parse::<u16>(), high.parse::<u16>()) {
            numbers.extend((low..=high).map(u64::from));
        }
    }
    numbers
}

/// The page sizes that the cgroup has files of, by the end of one of them.
fn page_sizes(dir: &PlacedDir, suffix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(&dir.path).into_iter().flatten().flatten();
    let size = |name: &str| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
        (!size.contains('.')).then(|| size.to_string())
    };
    entries
        .filter_map(|entry| size(entry.file_name().to_str()?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_go() {
        let mut stats = Stats::default();
        stats.cpu.psi = Some(Psi {
            some: PsiLine {
                avg10: 1.25,
                avg60: 3.0,
                avg300: 0.0,
                total: 7,
            },
            full: PsiLine::default(),
        });
        stats.hugetlb.insert("2MB".into(), Hugetlb::default());
        stats.blkio.io_queued_recursive.push(BlkioEntry {
            major: 8,
            minor: 0,
            op: "Read".into(),
            value: 3,
        });
        stats.memory.raw.insert("anon".into(), 1);
        // As runc 1.3.6 writes it, but for the numbers.
        let expected = concat!(
            r#"{"cpu":{"usage":{"kernel":0,"user":0},"throttling":{},"psi":{"some":{"avg10":1.25,"#,
            r#""avg60":3,"avg300":0,"total":7},"full":{"avg10":0,"avg60":0,"avg300":0,"total":0}}},"#,
            r#""cpuset":{"cpu_exclusive":0,"mem_hardwall":0,"mem_exclusive":0,"memory_migrate":0,"#,
            r#""memory_spread_page":0,"memory_spread_slab":0,"memory_pressure":0,"#,
            r#""sched_load_balance":0,"sched_relax_domain_level":0},"memory":{"usage":{"limit":0,"#,
            r#""failcnt":0},"swap":{"limit":0,"failcnt":0},"kernel":{"limit":0,"failcnt":0},"#,
            r#""kernelTCP":{"limit":0,"failcnt":0},"raw":{"anon":1}},"pids":{},"blkio":"#,
            r#"{"ioQueueRecursive":[{"major":8,"op":"Read","value":3}]},"hugetlb":{"2MB":"#,
            r#"{"failcnt":0}},"intel_rdt":{},"network_interfaces":null}"#
        );
        assert_eq!(serde_json::to_string(&stats).unwrap(), expected);
    }

    #[test]
    fn files() {
        assert_eq!(list("0-2,7\n"), [0, 1, 2, 7]);
        assert_eq!(list("\n"), [0u64; 0]);
        assert_eq!(
            (number("max\n"), number("12\n"), number("-1")),
            (u64::MAX, 12, 0)
        );
        let found = map("a 1\nb x\nc 3 4\nd 5\n");
        assert_eq!(found.len(), 2);
        assert_eq!(found["d"], 5);
    }
}
