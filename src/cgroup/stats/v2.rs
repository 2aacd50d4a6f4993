//! What the controllers of cgroup v2 tell (Linux Documentation/admin-guide/cgroup-v2.rst).

use super::super::placed::PlacedDir;
use super::{
    Blkio, BlkioEntry, Hugetlb, Memory, MemoryEntry, Psi, PsiLine, Rdma, Stats, map, number,
    page_sizes, text, value,
};
use crate::error::Result;

/// Fills in what the cgroup tells.
pub(super) fn read(dir: &PlacedDir, stats: &mut Stats) -> Result<()> {
    let found = map(&text(dir, "cpu.stat")?.unwrap_or_default());
    // Microseconds there, nanoseconds here.
    let nanos = |key: &str| found.get(key).copied().unwrap_or(0).saturating_mul(1000);
    let count = |key: &str| found.get(key).copied().unwrap_or(0);
    stats.cpu.usage.total = nanos("usage_usec");
    stats.cpu.usage.user = nanos("user_usec");
    stats.cpu.usage.kernel = nanos("system_usec");
    stats.cpu.throttling.periods = count("nr_periods");
    stats.cpu.throttling.throttled_periods = count("nr_throttled");
    stats.cpu.throttling.throttled_time = nanos("throttled_usec");
    stats.cpu.psi = psi(dir, "cpu")?;
    stats.memory = memory(dir)?;
    stats.memory.psi = psi(dir, "memory")?;
    stats.pids.current = match text(dir, "pids.current")? {
        Some(text) => number(&text),
        // Without the controller the processes can be counted.
        None => dir.pids()?.len() as u64,
    };
    stats.pids.limit = match value(dir, "pids.max")? {
        u64::MAX => 0,
        limit => limit,
    };
    stats.blkio = io(&text(dir, "io.stat")?.unwrap_or_default());
    stats.blkio.psi = psi(dir, "io")?;
    for size in page_sizes(dir, ".current") {
        let hugetlb = hugetlb(dir, &size)?;
        stats.hugetlb.insert(size, hugetlb);
    }
    stats.rdma = Rdma::read(dir)?;
    Ok(())
}

fn memory(dir: &PlacedDir) -> Result<Memory> {
    let Some(stat) = text(dir, "memory.stat")? else {
        return Ok(Memory::default());
    };
    let raw = map(&stat);
    let entry = |name: &str| {
        Ok::<_, crate::error::Error>(MemoryEntry {
            limit: value(dir, &format!("{name}.max"))?,
            usage: value(dir, &format!("{name}.current"))?,
            max: value(dir, &format!("{name}.peak"))?,
            failcnt: 0,
        })
    };
    let usage = entry("memory")?;
    let mut swap = entry("memory.swap")?;
    // v1 counts memory and swap together, and that is what readers expect; the peak of both is known to
    // nobody.
    swap.usage = swap.usage.saturating_add(usage.usage);
    swap.limit = swap.limit.saturating_add(usage.limit);
    swap.max = 0;
    Ok(Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap,
        raw,
        ..Memory::default()
    })
}

fn hugetlb(dir: &PlacedDir, size: &str) -> Result<Hugetlb> {
    let reserved = format!("hugetlb.{size}.rsvd.current");
    let usage = match text(dir, &reserved)? {
        Some(text) => number(&text),
        None => value(dir, &format!("hugetlb.{size}.current"))?,
    };
    let events = map(&text(dir, &format!("hugetlb.{size}.events"))?.unwrap_or_default());
    Ok(Hugetlb {
        usage,
        max: 0,
        failcnt: events.get("max").copied().unwrap_or(0),
    })
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`: what v1 has names for.
fn io(text: &str) -> Blkio {
    let mut blkio = Blkio::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else {
            continue;
        };
        for (key, number) in words.filter_map(|word| word.split_once('=')) {
            let (op, list) = match key {
                "rbytes" => ("Read", &mut blkio.io_service_bytes_recursive),
                "wbytes" => ("Write", &mut blkio.io_service_bytes_recursive),
                "rios" => ("Read", &mut blkio.io_serviced_recursive),
                "wios" => ("Write", &mut blkio.io_serviced_recursive),
                _ => continue,
            };
            list.push(BlkioEntry {
                major: major.parse().unwrap_or(0),
                minor: minor.parse().unwrap_or(0),
                op: op.to_string(),
                value: number.parse().unwrap_or(0),
            });
        }
    }
    blkio
}

fn psi(dir: &PlacedDir, controller: &str) -> Result<Option<Psi>> {
    Ok(text(dir, &format!("{controller}.pressure"))?.map(|text| pressure(&text)))
}

fn pressure(text: &str) -> Psi {
    let mut psi = Psi::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let into = match words.next() {
            Some("some") => &mut psi.some,
            Some("full") => &mut psi.full,
            _ => continue,
        };
        let mut found = PsiLine::default();
        for (key, number) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => found.avg10 = number.parse().unwrap_or(0.0),
                "avg60" => found.avg60 = number.parse().unwrap_or(0.0),
                "avg300" => found.avg300 = number.parse().unwrap_or(0.0),
                "total" => found.total = number.parse().unwrap_or(0),
                _ => {}
            }
        }
        *into = found;
    }
    psi
}

#[cfg(test)]
mod tests {
    use super::super::super::plan::Version;
    use super::*;

    /// Files as a kernel with all controllers on v2 writes them.
    #[test]
    fn files_of_all_controllers() {
        let path = std::env::temp_dir().join(format!("isorun-stats2-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        for (name, text) in [
            (
                "cpu.stat",
                "usage_usec 9\nuser_usec 4\nsystem_usec 5\nnr_periods 3\nnr_throttled 2\n\
                 throttled_usec 7\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.10 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 \
                 avg300=0.00 total=3\n",
            ),
            ("memory.stat", "anon 100\nfile 200\n"),
            ("memory.current", "300\n"),
            ("memory.max", "1000\n"),
            ("memory.peak", "400\n"),
            ("memory.swap.current", "5\n"),
            ("memory.swap.max", "max\n"),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n252:1 \n",
            ),
            ("hugetlb.2MB.current", "1\n"),
            ("hugetlb.2MB.events", "max 6\n"),
            (
                "rdma.current",
                "mlx4_0 hca_handle=1 hca_object=20\nocrdma1 hca_handle=0 hca_object=23\n",
            ),
            (
                "rdma.max",
                "mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3 hca_object=max\n",
            ),
        ] {
            std::fs::write(path.join(name), text).unwrap();
        }
        let dir = PlacedDir {
            version: Version::V2,
            freezer: true,
            path: path.clone(),
            made: false,
            parents: Vec::new(),
            others: false,
        };
        let mut stats = Stats::default();
        read(&dir, &mut stats).unwrap();
        std::fs::remove_dir_all(&path).unwrap();
        let usage = &stats.cpu.usage;
        assert_eq!((usage.total, usage.user, usage.kernel), (9000, 4000, 5000));
        assert_eq!(stats.cpu.throttling.throttled_time, 7000);
        let psi = stats.cpu.psi.unwrap();
        assert_eq!(
            (psi.some.avg10, psi.some.total, psi.full.total),
            (1.5, 12, 3)
        );
        assert!(stats.memory.psi.is_none());
        let memory = &stats.memory;
        assert_eq!(
            (memory.cache, memory.usage.limit, memory.usage.max),
            (200, 1000, 400)
        );
        assert_eq!((memory.swap.usage, memory.swap.limit), (305, u64::MAX));
        assert_eq!((stats.pids.current, stats.pids.limit), (2, 0));
        assert_eq!(stats.blkio.io_serviced_recursive.len(), 2);
        assert_eq!(stats.blkio.io_service_bytes_recursive[1].value, 2);
        assert_eq!(stats.hugetlb["2MB"].failcnt, 6);
        assert_eq!(
            serde_json::to_string(&stats.rdma).unwrap(),
            concat!(
                r#"{"rdma_limit":[{"device":"mlx4_0","hca_handles":2,"hca_objects":2000},"#,
                r#"{"device":"ocrdma1","hca_handles":3,"hca_objects":4294967295}],"#,
                r#""rdma_current":[{"device":"mlx4_0","hca_handles":1,"hca_objects":20},"#,
                r#"{"device":"ocrdma1","hca_objects":23}]}"#
            )
        );
    }
}
