//! Limits in the files of the v2 controllers (Linux Documentation/admin-guide/cgroup-v2.rst).

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::limits::Table;
use super::plan::{Ignored, Write};
use super::readback::Check;
use super::v1;
use crate::error::{Error, Result};

/// The writes for the limits of one controller, by its v1 name.
pub(super) fn table(controller: &str, resources: &LinuxResources) -> Result<Table> {
    let mut ignored = Vec::new();
    let writes = match controller {
        "cpuset" => resources
            .cpu()
            .as_ref()
            .map(|cpu| v1::cpuset(cpu, "cpuset")),
        "cpu" => match resources.cpu() {
            Some(cpu) => Some(self::cpu(cpu, &mut ignored)?),
            None => None,
        },
        "memory" => match resources.memory() {
            Some(memory) => Some(self::memory(memory, &mut ignored)?),
            None => None,
        },
        "pids" => resources.pids().as_ref().map(|pids| v1::pids(pids.limit())),
        "blkio" => match resources.block_io() {
            Some(io) => Some(block_io(io)?),
            None => None,
        },
        "hugetlb" => match resources.hugepage_limits() {
            Some(limits) => Some(v1::hugetlb(limits, "max")?),
            None => None,
        },
        "rdma" => resources.rdma().as_ref().map(v1::rdma),
        // v2 has no network controllers: what v1 would write is what is missing.
        "net_cls" | "net_prio" => return v1::table(controller, resources),
        _ => None,
    };
    Ok((writes.unwrap_or_default(), ignored))
}

/// The v2 weight (1 to 10000) for v1 shares (2 to 262144), by the formula that runc has used since
/// 1.3.2 and crun since 1.23: a quadratic in log2 that maps least, default (1024 to 100) and most to
/// each other. Earlier runc maps 1024 to 39. 0 stays 0, "not set".
pub(super) fn weight(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1 | 2 => 1,
        262_144.. => 10_000,
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

fn cpu(cpu: &LinuxCpu, ignored: &mut Vec<Ignored>) -> Result<Vec<Write>> {
    let base = "linux.resources.cpu";
    let mut writes = Vec::new();
    let period = cpu.realtime_period().map(|period| period as i64);
    for (name, value) in [
        ("realtimeRuntime", cpu.realtime_runtime()),
        ("realtimePeriod", period),
    ] {
        if value.is_some_and(|value| value != 0) {
            return Err(Error::spec(
                format!("{base}.{name}"),
                "cgroup v2 has no control of real-time bandwidth",
            )
            .remedy("remove it"));
        }
    }
    if let Some(idle) = cpu.idle() {
        let write = Write::new(
            "cpu",
            "cpu.idle",
            idle,
            format!("{base}.idle"),
            Check::Exact,
        );
        writes.push(write.unlimited_if(idle == 0));
    }
    let shares = cpu.shares().unwrap_or(0);
    if cpu.idle() == Some(1) {
        v1::idle_hides_shares(cpu, ignored);
    } else if shares != 0 {
        let field = format!("{base}.shares");
        writes.push(Write::new(
            "cpu",
            "cpu.weight",
            weight(shares),
            field,
            Check::Exact,
        ));
    }
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    if quota != 0 || period != 0 {
        let most = if quota > 0 {
            quota.to_string()
        } else {
            "max".into()
        };
        let period = if period == 0 { 100_000 } else { period };
        let name = if quota != 0 { "quota" } else { "period" };
        let value = format!("{most} {period}");
        let write = Write::new(
            "cpu",
            "cpu.max",
            value,
            format!("{base}.{name}"),
            Check::Exact,
        );
        writes.push(write.unlimited_if(quota <= 0));
    }
    if let Some(burst) = cpu.burst() {
        let field = format!("{base}.burst");
        let write = Write::new("cpu", "cpu.max.burst", burst, field, Check::Exact);
        writes.push(write.unlimited_if(burst == 0));
    }
    Ok(writes)
}

fn memory(memory: &LinuxMemory, ignored: &mut Vec<Ignored>) -> Result<Vec<Write>> {
    let base = "linux.resources.memory";
    let spell = |value: i64| {
        if value == -1 {
            "max".to_string()
        } else {
            value.to_string()
        }
    };
    let set = |value: Option<i64>| value.filter(|value| *value != 0);
    let mut writes = Vec::new();
    if let Some((swap, field)) = swap(set(memory.limit()), set(memory.swap()))? {
        // Without swap accounting there is no file, and neither no swap nor all of it needs one.
        let plain = swap == -1 || swap == 0;
        let write = Write::new(
            "memory",
            "memory.swap.max",
            spell(swap),
            format!("{base}.{field}"),
            Check::pages(),
        );
        writes.push(write.optional_if(plain).unlimited_if(swap == -1));
    }
    for (name, file, value) in [
        ("limit", "memory.max", memory.limit()),
        ("reservation", "memory.low", memory.reservation()),
    ] {
        if let Some(value) = set(value) {
            let field = format!("{base}.{name}");
            let write = Write::new("memory", file, spell(value), field, Check::pages());
            writes.push(write.unlimited_if(value == -1));
        }
    }
    let mut v1_only = |name: &str| {
        ignored.push(Ignored {
            field: format!("{base}.{name}"),
            reason: "cgroup v2 has nothing like it".into(),
        });
    };
    if memory.swappiness().is_some_and(|value| value != u64::MAX) {
        v1_only("swappiness");
    }
    if memory.disable_oom_killer() == Some(true) {
        v1_only("disableOOMKiller");
    }
    v1::kernel_memory(memory, ignored);
    Ok(writes)
}

/// The v2 limit for swap alone, from v1's for memory and swap together, and the field behind it.
fn swap(limit: Option<i64>, both: Option<i64>) -> Result<Option<(i64, &'static str)>> {
    let field = "linux.resources.memory.swap";
    match (limit, both) {
        // "All memory" without a word on swap means all swap as well, as it does on v1.
        (Some(-1), None) => Ok(Some((-1, "limit"))),
        (_, None) => Ok(None),
        (_, Some(-1)) => Ok(Some((-1, "swap"))),
        // Nothing to take off: it is what there may be of swap, as under runc since 1.3.
        (Some(-1), Some(swap)) => Ok(Some((swap, "swap"))),
        (None, Some(_)) => Err(Error::spec(
            field,
            "unable to set swap limit without memory limit: it counts both",
        )),
        (Some(limit), Some(both)) if both < limit => {
            Err(Error::spec(field, v1::below_memory(both, limit)))
        }
        (Some(limit), Some(both)) => Ok(Some((both - limit, "swap"))),
    }
}

fn block_io(io: &LinuxBlockIo) -> Result<Vec<Write>> {
    let base = "linux.resources.blockIO";
    let mut writes = Vec::new();
    // v1 weights are 10 to 1000; io.weight takes 1 to 10000, and bfq's own file 1 to 1000.
    let convert = |weight: u16| 1 + (u32::from(weight).saturating_sub(10)) * 9_999 / 990;
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        let (bfq, general) = (
            format!("default {weight}"),
            format!("default {}", convert(weight)),
        );
        let write = Write::new(
            "io",
            "io.bfq.weight",
            &bfq,
            format!("{base}.weight"),
            Check::line(&bfq),
        );
        writes.push(write.or("io.weight", &general, Check::line(&general)));
    }
    if io.leaf_weight().is_some_and(|weight| weight != 0) {
        let field = format!("{base}.leafWeight");
        return Err(Error::spec(field, "cgroup v2 has no leaf weight").remedy("remove it"));
    }
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        let field = format!("{base}.weightDevice[{index}]");
        if device.leaf_weight().is_some_and(|weight| weight != 0) {
            let field = format!("{field}.leafWeight");
            return Err(Error::spec(field, "cgroup v2 has no leaf weight").remedy("remove it"));
        }
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let key = format!("{}:{}", device.major(), device.minor());
            let bfq = format!("{key} {weight}");
            let general = format!("{key} {}", convert(weight));
            let write = Write::new("io", "io.bfq.weight", &bfq, field, Check::line(&bfq));
            writes.push(write.or("io.weight", &general, Check::line(&general)));
        }
    }
    let keys = ["rbps", "wbps", "riops", "wiops"];
    for ((name, _, devices), key) in v1::throttles(io).into_iter().zip(keys) {
        for (index, device) in devices.iter().enumerate() {
            let unlimited = device.rate() == 0;
            let rate = if unlimited {
                "max".to_string()
            } else {
                device.rate().to_string()
            };
            let line = format!("{}:{} {key}={rate}", device.major(), device.minor());
            // A line that says nothing but max is not shown.
            let check = if unlimited {
                Check::Nothing
            } else {
                Check::line(line.clone())
            };
            let field = format!("{base}.{name}[{index}]");
            writes.push(Write::new("io", "io.max", line, field, check).unlimited_if(unlimited));
        }
    }
    Ok(writes)
}

/// One entry of `linux.resources.unified`.
pub(super) fn unified(file: &str, value: &str, field: &str) -> Result<Write> {
    let controller = file.split('.').next().unwrap_or_default();
    if file.contains('/') {
        return Err(Error::spec(field, "must be a file name (no slashes)"));
    }
    if !file.contains('.') || controller.is_empty() {
        let detail = "must be in the form CONTROLLER.PARAMETER";
        return Err(Error::spec(field, detail).remedy("as in memory.high"));
    }
    if [
        "cgroup.procs",
        "cgroup.threads",
        "cgroup.kill",
        "cgroup.subtree_control",
    ]
    .contains(&file)
    {
        return Err(Error::spec(
            field,
            "is no limit: the runtime alone writes this file",
        ));
    }
    let check = match file {
        "memory.min" | "memory.low" | "memory.high" | "memory.max" | "memory.swap.max"
        | "memory.swap.high" | "memory.zswap.max" => Check::pages(),
        "pids.max"
        | "cpu.weight"
        | "cpu.weight.nice"
        | "cpu.idle"
        | "cpu.max.burst"
        | "memory.oom.group"
        | "cgroup.max.depth"
        | "cgroup.max.descendants" => Check::Exact,
        "cpuset.cpus" | "cpuset.mems" => Check::Set,
        // `cpu.max` takes the quota alone as well, and keeps the period.
        "cpu.max" => match value.split_whitespace().count() {
            2 => Check::Exact,
            _ => Check::line(value),
        },
        _ => Check::Nothing,
    };
    Ok(Write::new(controller, file, value, field, check))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_as_runc_has_them() {
        // Computed from the formula apart from this code, with Python's floating point.
        for (shares, want) in [
            (0, 0),
            (1, 1),
            (2, 1),
            (4, 2),
            (8, 3),
            (100, 17),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (4096, 303),
            (262_143, 10_000),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), want, "{shares}");
        }
    }

    #[test]
    fn swap_is_what_is_above_memory() {
        assert_eq!(swap(Some(100), Some(300)).unwrap(), Some((200, "swap")));
        assert_eq!(swap(Some(100), Some(100)).unwrap(), Some((0, "swap")));
        assert_eq!(swap(Some(100), None).unwrap(), None);
        assert_eq!(swap(Some(-1), None).unwrap(), Some((-1, "limit")));
        assert_eq!(swap(None, Some(-1)).unwrap(), Some((-1, "swap")));
        assert_eq!(swap(Some(-1), Some(5)).unwrap(), Some((5, "swap")));
        for (limit, both, sentence) in [
            (None, 5, "unable to set swap limit without memory limit"),
            (Some(10), 5, "memory+swap limit should be >= memory limit"),
        ] {
            let error = swap(limit, Some(both)).unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
        }
    }
}
