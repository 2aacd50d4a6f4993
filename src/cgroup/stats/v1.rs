//! What the controllers of cgroup v1 tell (Linux Documentation/admin-guide/cgroup-v1).

use super::super::placed::PlacedDir;
use super::{
    Blkio, BlkioEntry, Hugetlb, MemoryEntry, Rdma, Stats, list, map, number, page_sizes, text,
    value,
};
use crate::error::Result;

/// Nanoseconds of one tick of cpuacct.stat: USER_HZ is 100 everywhere.
const TICK: u64 = 10_000_000;

/// Adds what this hierarchy tells: which controllers it has is seen by the files that are there.
pub(super) fn read(dir: &PlacedDir, stats: &mut Stats) -> Result<()> {
    if let Some(total) = text(dir, "cpuacct.usage")? {
        stats.cpu.usage.total = number(&total);
        cpuacct(dir, stats)?;
    }
    if let Some(text) = text(dir, "cpu.stat")? {
        let found = map(&text);
        let get = |key: &str| found.get(key).copied().unwrap_or(0);
        stats.cpu.throttling.periods = get("nr_periods");
        stats.cpu.throttling.throttled_periods = get("nr_throttled");
        stats.cpu.throttling.throttled_time = get("throttled_time");
    }
    if let Some(text) = text(dir, "memory.stat")? {
        stats.memory.raw = map(&text);
        stats.memory.cache = stats.memory.raw.get("cache").copied().unwrap_or(0);
        stats.memory.usage = memory(dir, "memory")?;
        stats.memory.swap = memory(dir, "memory.memsw")?;
        stats.memory.kernel = memory(dir, "memory.kmem")?;
        stats.memory.kernel_tcp = memory(dir, "memory.kmem.tcp")?;
    }
    if let Some(current) = text(dir, "pids.current")? {
        stats.pids.current = number(&current);
        stats.pids.limit = match value(dir, "pids.max")? {
            u64::MAX => 0,
            limit => limit,
        };
    }
    if let Some(cpus) = text(dir, "cpuset.cpus")? {
        stats.cpuset.cpus = list(&cpus);
        cpuset(dir, stats)?;
    }
    // A file that each of its directories has.
    if dir.path.join("blkio.reset_stats").exists() {
        stats.blkio = blkio(dir)?;
    }
    for size in page_sizes(dir, ".usage_in_bytes") {
        let hugetlb = hugetlb(dir, &size)?;
        stats.hugetlb.insert(size, hugetlb);
    }
    if dir.path.join("rdma.current").exists() {
        stats.rdma = Rdma::read(dir)?;
    }
    Ok(())
}

fn cpuacct(dir: &PlacedDir, stats: &mut Stats) -> Result<()> {
    let usage = &mut stats.cpu.usage;
    let ticks = map(&text(dir, "cpuacct.stat")?.unwrap_or_default());
    usage.user = ticks.get("user").copied().unwrap_or(0) * TICK;
    usage.kernel = ticks.get("system").copied().unwrap_or(0) * TICK;
    let percpu = text(dir, "cpuacct.usage_percpu")?.unwrap_or_default();
    usage.percpu = percpu.split_whitespace().map(number).collect();
    let all = text(dir, "cpuacct.usage_all")?.unwrap_or_default();
    // After the heading "cpu user system".
    for line in all.lines().skip(1) {
        if let [_, user, kernel] = line.split_whitespace().collect::<Vec<_>>()[..] {
            usage.percpu_user.push(number(user));
            usage.percpu_kernel.push(number(kernel));
        }
    }
    Ok(())
}

fn memory(dir: &PlacedDir, name: &str) -> Result<MemoryEntry> {
    let file = |end: &str| value(dir, &format!("{name}.{end}"));
    Ok(MemoryEntry {
        limit: file("limit_in_bytes")?,
        usage: file("usage_in_bytes")?,
        max: file("max_usage_in_bytes")?,
        failcnt: file("failcnt")?,
    })
}

fn cpuset(dir: &PlacedDir, stats: &mut Stats) -> Result<()> {
    let set = &mut stats.cpuset;
    set.mems = list(&text(dir, "cpuset.mems")?.unwrap_or_default());
    for (file, field) in [
        ("cpu_exclusive", &mut set.cpu_exclusive),
        ("mem_hardwall", &mut set.mem_hardwall),
        ("mem_exclusive", &mut set.mem_exclusive),
        ("memory_migrate", &mut set.memory_migrate),
        ("memory_spread_page", &mut set.memory_spread_page),
        ("memory_spread_slab", &mut set.memory_spread_slab),
        ("memory_pressure", &mut set.memory_pressure),
        ("sched_load_balance", &mut set.sched_load_balance),
    ] {
        *field = value(dir, &format!("cpuset.{file}"))?;
    }
    let level = text(dir, "cpuset.sched_relax_domain_level")?.unwrap_or_default();
    set.sched_relax_domain_level = level.trim().parse().unwrap_or(0);
    Ok(())
}

/// Where the numbers of one file go.
type Place = fn(&mut Blkio) -> &mut Vec<BlkioEntry>;

/// Files of one scheduler, without prefix, and where their numbers go.
const ALL: [(&str, Place); 8] = [
    ("sectors_recursive", |b| &mut b.sectors_recursive),
    ("io_service_time_recursive", |b| {
        &mut b.io_service_time_recursive
    }),
    ("io_wait_time_recursive", |b| &mut b.io_wait_time_recursive),
    ("io_merged_recursive", |b| &mut b.io_merged_recursive),
    ("io_queued_recursive", |b| &mut b.io_queued_recursive),
    ("time_recursive", |b| &mut b.io_time_recursive),
    ("io_serviced_recursive", |b| &mut b.io_serviced_recursive),
    ("io_service_bytes_recursive", |b| {
        &mut b.io_service_bytes_recursive
    }),
];
const TWO: [(&str, Place); 2] = [ALL[6], ALL[7]];
const FLAT: [(&str, Place); 2] = [
    ("io_serviced", |b| &mut b.io_serviced_recursive),
    ("io_service_bytes", |b| &mut b.io_service_bytes_recursive),
];

/// The first of the schedulers that tells something: bfq with and without its debug files, the old
/// cfq, then what the throttling layer counts; runc's order.
fn blkio(dir: &PlacedDir) -> Result<Blkio> {
    let groups: [(&str, &[(&str, Place)]); 5] = [
        ("blkio.bfq.", &ALL),
        ("blkio.bfq.", &TWO),
        ("blkio.", &ALL),
        ("blkio.throttle.", &TWO),
        ("blkio.throttle.", &FLAT),
    ];
    for (prefix, files) in groups {
        let mut found = Blkio::default();
        for (index, (file, place)) in files.iter().enumerate() {
            let text = text(dir, &format!("{prefix}{file}"))?.unwrap_or_default();
            let entries: Vec<BlkioEntry> = text.lines().filter_map(entry).collect();
            if index == 0 && entries.is_empty() {
                break;
            }
            *place(&mut found) = entries;
        }
        if found != Blkio::default() {
            return Ok(found);
        }
    }
    Ok(Blkio::default())
}

/// `8:0 Read 4096`, or without the operation; the line of totals is none.
fn entry(line: &str) -> Option<BlkioEntry> {
    let words: Vec<&str> = line
        .split([' ', ':'])
        .filter(|word| !word.is_empty())
        .collect();
    let (major, minor, op, value) = match words[..] {
        [major, minor, value] => (major, minor, "", value),
        [major, minor, op, value] => (major, minor, op, value),
        _ => return None,
    };
    Some(BlkioEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        op: op.to_string(),
        value: value.parse().ok()?,
    })
}

/// The counters of reservations where the kernel has them (Linux 5.7): they are what is used up first.
fn hugetlb(dir: &PlacedDir, size: &str) -> Result<Hugetlb> {
    let reserved = format!("hugetlb.{size}.rsvd");
    let has = dir.path.join(format!("{reserved}.usage_in_bytes")).exists();
    let name = if has {
        reserved
    } else {
        format!("hugetlb.{size}")
    };
    Ok(Hugetlb {
        usage: value(dir, &format!("{name}.usage_in_bytes"))?,
        max: value(dir, &format!("{name}.max_usage_in_bytes"))?,
        failcnt: value(dir, &format!("{name}.failcnt"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::plan::Version;
    use super::*;

    #[test]
    fn lines_of_devices() {
        let read = entry("8:16 Read 4096").unwrap();
        assert_eq!(
            (read.major, read.minor, read.op.as_str(), read.value),
            (8, 16, "Read", 4096)
        );
        assert_eq!(entry("8:0 77").unwrap().value, 77);
        assert_eq!(entry("Total 0"), None);
        assert_eq!(entry(""), None);
    }

    /// Files as a kernel with cfq and with huge pages writes them, which this machine need not be.
    #[test]
    fn files_of_controllers_that_are_rare() {
        let path = std::env::temp_dir().join(format!("isorun-stats-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let write = |name: &str, text: &str| std::fs::write(path.join(name), text).unwrap();
        write("blkio.reset_stats", "");
        write("blkio.sectors_recursive", "8:0 16\n");
        write(
            "blkio.io_serviced_recursive",
            "8:0 Read 2\n8:0 Write 0\nTotal 2\n",
        );
        write("blkio.throttle.io_serviced_recursive", "9:0 Read 5\n");
        write("hugetlb.2MB.usage_in_bytes", "1\n");
        write("hugetlb.2MB.rsvd.usage_in_bytes", "4194304\n");
        write("hugetlb.2MB.rsvd.max_usage_in_bytes", "6291456\n");
        write("hugetlb.2MB.rsvd.failcnt", "3\n");
        let dir = PlacedDir {
            version: Version::V1,
            freezer: false,
            path: path.clone(),
            made: false,
            parents: Vec::new(),
            others: false,
        };
        let mut stats = Stats::default();
        read(&dir, &mut stats).unwrap();
        std::fs::remove_dir_all(&path).unwrap();
        assert_eq!(stats.blkio.sectors_recursive[0].value, 16);
        assert_eq!(stats.blkio.io_serviced_recursive.len(), 2);
        assert_eq!(
            stats.blkio.io_serviced_recursive[0].major, 8,
            "the first that tells"
        );
        let pages = &stats.hugetlb["2MB"];
        assert_eq!(
            (pages.usage, pages.max, pages.failcnt),
            (4_194_304, 6_291_456, 3)
        );
    }
}
