//! Limits in the files of the v1 controllers (Linux Documentation/admin-guide/cgroup-v1).

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::limits::Table;
use super::plan::{Ignored, Write};
use super::readback::Check;
use crate::error::{Error, Result};

/// The writes for the limits of one controller.
pub(super) fn table(controller: &str, resources: &LinuxResources) -> Result<Table> {
    let mut ignored = Vec::new();
    let writes = match controller {
        "cpuset" => resources.cpu().as_ref().map(|cpu| cpuset(cpu, "cpuset")),
        "cpu" => resources
            .cpu()
            .as_ref()
            .map(|cpu| self::cpu(cpu, &mut ignored)),
        "memory" => match resources.memory() {
            Some(memory) => Some(self::memory(memory, &mut ignored)?),
            None => None,
        },
        "pids" => resources
            .pids()
            .as_ref()
            .map(|pids| self::pids(pids.limit())),
        "blkio" => resources.block_io().as_ref().map(block_io),
        "hugetlb" => match resources.hugepage_limits() {
            Some(limits) => Some(hugetlb(limits, "limit_in_bytes")?),
            None => None,
        },
        "rdma" => resources.rdma().as_ref().map(rdma),
        "net_cls" => resources.network().as_ref().and_then(|network| {
            let class = network.class_id().filter(|class| *class != 0)?;
            let field = "linux.resources.network.classID";
            Some(vec![Write::new(
                "net_cls",
                "net_cls.classid",
                class,
                field,
                Check::Exact,
            )])
        }),
        "net_prio" => resources
            .network()
            .as_ref()
            .and_then(|network| network.priorities().as_ref())
            .map(|priorities| {
                let field = |index| format!("linux.resources.network.priorities[{index}]");
                let line = |index: usize| {
                    let priority = &priorities[index];
                    let value = format!("{} {}", priority.name(), priority.priority());
                    let check = Check::line(value.clone());
                    Write::new("net_prio", "net_prio.ifpriomap", value, field(index), check)
                };
                (0..priorities.len()).map(line).collect()
            }),
        _ => None,
    };
    Ok((writes.unwrap_or_default(), ignored))
}

/// CPUs and memory nodes: the same two files on v1 and v2.
pub(super) fn cpuset(cpu: &LinuxCpu, controller: &str) -> Vec<Write> {
    [("cpus", cpu.cpus()), ("mems", cpu.mems())]
        .into_iter()
        .filter_map(|(name, value)| {
            let value = value.as_ref().filter(|value| !value.is_empty())?;
            let field = format!("linux.resources.cpu.{name}");
            Some(Write::new(
                controller,
                format!("cpuset.{name}"),
                value,
                field,
                Check::Set,
            ))
        })
        .collect()
}

fn cpu(cpu: &LinuxCpu, ignored: &mut Vec<Ignored>) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut add = |file: &str, value: Option<String>, field: &str, unlimited: bool| {
        if let Some(value) = value {
            let field = format!("linux.resources.cpu.{field}");
            let write = Write::new("cpu", file, value, field, Check::Exact);
            writes.push(write.unlimited_if(unlimited));
        }
    };
    let some = |value: Option<i64>| {
        value
            .filter(|value| *value != 0)
            .map(|value| value.to_string())
    };
    let unsigned = |value: Option<u64>| value.filter(|value| *value != 0).map(|v| v.to_string());
    // Real time first: once a process is in, its bandwidth cannot be taken away.
    add(
        "cpu.rt_period_us",
        unsigned(cpu.realtime_period()),
        "realtimePeriod",
        false,
    );
    add(
        "cpu.rt_runtime_us",
        some(cpu.realtime_runtime()),
        "realtimeRuntime",
        false,
    );
    let idle = cpu.idle();
    add(
        "cpu.idle",
        idle.map(|idle| idle.to_string()),
        "idle",
        idle == Some(0),
    );
    if idle == Some(1) {
        idle_hides_shares(cpu, ignored);
    } else {
        add("cpu.shares", unsigned(cpu.shares()), "shares", false);
    }
    add("cpu.cfs_period_us", unsigned(cpu.period()), "period", false);
    let quota = cpu.quota().map(|quota| if quota < 0 { -1 } else { quota });
    add("cpu.cfs_quota_us", some(quota), "quota", quota == Some(-1));
    add(
        "cpu.cfs_burst_us",
        cpu.burst().map(|burst| burst.to_string()),
        "burst",
        cpu.burst() == Some(0),
    );
    writes
}

/// The kernel refuses a weight for an idle group.
pub(super) fn idle_hides_shares(cpu: &LinuxCpu, ignored: &mut Vec<Ignored>) {
    if cpu.shares().is_some_and(|shares| shares != 0) {
        ignored.push(Ignored {
            field: "linux.resources.cpu.shares".into(),
            reason: "linux.resources.cpu.idle is 1, and an idle group has no weight".into(),
        });
    }
}

fn memory(memory: &LinuxMemory, ignored: &mut Vec<Ignored>) -> Result<Vec<Write>> {
    let mut writes = Vec::new();
    let set = |value: Option<i64>| value.filter(|value| *value != 0);
    let mut add = |file: &str, value: i64, name: &str, optional: bool| {
        let field = format!("linux.resources.memory.{name}");
        let write = Write::new("memory", file, value, field, Check::pages());
        writes.push(write.unlimited_if(value == -1).optional_if(optional));
    };
    let (limit, mut swap) = (set(memory.limit()), set(memory.swap()));
    // No limit for memory takes the one for memory and swap away as well, as under runc.
    if limit == Some(-1) && swap.is_none() {
        swap = Some(-1);
    }
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap != -1
        && (limit == -1 || swap < limit)
    {
        return Err(Error::spec(
            "linux.resources.memory.swap",
            below_memory(swap, limit),
        ));
    }
    // The limit of both is never below that of memory: in this order neither write is refused.
    if let Some(limit) = limit {
        add("memory.limit_in_bytes", limit, "limit", false);
    }
    if let Some(swap) = swap {
        // Without swap accounting there is no file; "no limit" holds without it.
        add("memory.memsw.limit_in_bytes", swap, "swap", swap == -1);
    }
    if let Some(reservation) = set(memory.reservation()) {
        add(
            "memory.soft_limit_in_bytes",
            reservation,
            "reservation",
            false,
        );
    }
    if let Some(swappiness) = memory.swappiness().filter(|value| *value != u64::MAX) {
        let field = "linux.resources.memory.swappiness";
        if swappiness > 100 {
            let detail =
                format!("invalid memory swappiness value: {swappiness} (valid range is 0-100)");
            return Err(Error::spec(field, detail));
        }
        writes.push(Write::new(
            "memory",
            "memory.swappiness",
            swappiness,
            field,
            Check::Exact,
        ));
    }
    if memory.disable_oom_killer() == Some(true) {
        let field = "linux.resources.memory.disableOOMKiller";
        let check = Check::line("oom_kill_disable 1");
        writes.push(Write::new("memory", "memory.oom_control", 1, field, check));
    }
    kernel_memory(memory, ignored);
    Ok(writes)
}

/// runc's words for a limit of memory and swap that is below the one of memory.
pub(super) fn below_memory(both: i64, limit: i64) -> String {
    format!("memory+swap limit should be >= memory limit: it is {both}, and that is {limit}")
}

/// Limits for kernel memory are gone from Linux (5.4 deprecated, 5.16 without effect): not set, as
/// under runc.
pub(super) fn kernel_memory(memory: &LinuxMemory, ignored: &mut Vec<Ignored>) {
    #[allow(deprecated)]
    let kernel = memory.kernel();
    for (name, value) in [("kernel", kernel), ("kernelTCP", memory.kernel_tcp())] {
        if value.is_some_and(|value| value != 0 && value != -1) {
            ignored.push(Ignored {
                field: format!("linux.resources.memory.{name}"),
                reason: "Linux has no limit for kernel memory of its own any more".into(),
            });
        }
    }
}

/// The number of processes: the same file on v1 and v2. 0 is "not set", negative "no limit".
pub(super) fn pids(limit: i64) -> Vec<Write> {
    if limit == 0 {
        return Vec::new();
    }
    let value = if limit < 0 {
        "max".to_string()
    } else {
        limit.to_string()
    };
    let write = Write::new(
        "pids",
        "pids.max",
        value,
        "linux.resources.pids.limit",
        Check::Exact,
    );
    vec![write.unlimited_if(limit < 0)]
}

fn block_io(io: &LinuxBlockIo) -> Vec<Write> {
    let mut writes = Vec::new();
    let base = "linux.resources.blockIO";
    // The bfq scheduler's names where cfq's are gone (Linux 5.0 on).
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        let write = Write::new(
            "blkio",
            "blkio.weight",
            weight,
            format!("{base}.weight"),
            Check::Exact,
        );
        writes.push(write.or("blkio.bfq.weight", weight, Check::Exact));
    }
    if let Some(weight) = io.leaf_weight().filter(|weight| *weight != 0) {
        let field = format!("{base}.leafWeight");
        writes.push(Write::new(
            "blkio",
            "blkio.leaf_weight",
            weight,
            field,
            Check::Exact,
        ));
    }
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        let field = format!("{base}.weightDevice[{index}]");
        for (weight, file, instead) in [
            (
                device.weight(),
                "blkio.weight_device",
                Some("blkio.bfq.weight_device"),
            ),
            (device.leaf_weight(), "blkio.leaf_weight_device", None),
        ] {
            let Some(weight) = weight.filter(|weight| *weight != 0) else {
                continue;
            };
            let line = format!("{}:{} {weight}", device.major(), device.minor());
            let check = Check::line(line.clone());
            let write = Write::new("blkio", file, &line, field.clone(), check.clone());
            writes.push(match instead {
                Some(instead) => write.or(instead, &line, check),
                None => write,
            });
        }
    }
    for (name, file, devices) in throttles(io) {
        for (index, device) in devices.iter().enumerate() {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            let field = format!("{base}.{name}[{index}]");
            // A rate of 0 takes the line away.
            let check = if device.rate() == 0 {
                Check::Nothing
            } else {
                Check::line(line.clone())
            };
            let write = Write::new(
                "blkio",
                format!("blkio.throttle.{file}"),
                line,
                field,
                check,
            );
            writes.push(write.unlimited_if(device.rate() == 0));
        }
    }
    writes
}

/// The four lists of rates: name of the field, v1 file, entries.
pub(super) fn throttles(io: &LinuxBlockIo) -> [(&str, &str, &[LinuxThrottleDevice]); 4] {
    fn list(list: &Option<Vec<LinuxThrottleDevice>>) -> &[LinuxThrottleDevice] {
        list.as_deref().unwrap_or_default()
    }
    [
        (
            "throttleReadBpsDevice",
            "read_bps_device",
            list(io.throttle_read_bps_device()),
        ),
        (
            "throttleWriteBpsDevice",
            "write_bps_device",
            list(io.throttle_write_bps_device()),
        ),
        (
            "throttleReadIOPSDevice",
            "read_iops_device",
            list(io.throttle_read_iops_device()),
        ),
        (
            "throttleWriteIOPSDevice",
            "write_iops_device",
            list(io.throttle_write_iops_device()),
        ),
    ]
}

/// Huge pages, used and reserved; `suffix` is `limit_in_bytes` on v1 and `max` on v2.
pub(super) fn hugetlb(
    limits: &[oci_spec::runtime::LinuxHugepageLimit],
    suffix: &str,
) -> Result<Vec<Write>> {
    let mut writes = Vec::new();
    for (index, limit) in limits.iter().enumerate() {
        let base = format!("linux.resources.hugepageLimits[{index}]");
        let size = limit.page_size();
        let granule = page_size(size).ok_or_else(|| {
            let detail = format!("{size:?} is no page size like 64KB, 2MB or 1GB");
            Error::spec(format!("{base}.pageSize"), detail)
        })?;
        let field = format!("{base}.limit");
        let check = Check::Bytes { granule };
        let name = format!("hugetlb.{size}.{suffix}");
        writes.push(Write::new(
            "hugetlb",
            name,
            limit.limit(),
            &field,
            check.clone(),
        ));
        // Reservations have a limit of their own from Linux 5.7 on.
        let name = format!("hugetlb.{size}.rsvd.{suffix}");
        writes.push(Write::new("hugetlb", name, limit.limit(), &field, check).optional_if(true));
    }
    Ok(writes)
}

fn page_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.split_at_checked(text.len().checked_sub(2)?)? {
        (digits, "KB") => (digits, 10),
        (digits, "MB") => (digits, 20),
        (digits, "GB") => (digits, 30),
        _ => return None,
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .parse::<u64>()
        .ok()
        .filter(|size| plain && *size != 0)?
        .checked_mul(1 << shift)
}

/// RDMA handles and objects: the same file on v1 and v2.
pub(super) fn rdma(
    limits: &std::collections::HashMap<String, oci_spec::runtime::LinuxRdma>,
) -> Vec<Write> {
    let mut devices: Vec<_> = limits.iter().collect();
    devices.sort_by_key(|(name, _)| name.as_str());
    let mut writes = Vec::new();
    for (name, limit) in devices {
        let mut line = name.clone();
        for (key, value) in [
            ("hca_handle", limit.hca_handles()),
            ("hca_object", limit.hca_objects()),
        ] {
            if let Some(value) = value {
                line.push_str(&format!(" {key}={value}"));
            }
        }
        if line.len() > name.len() {
            let field = format!("linux.resources.rdma[{name:?}]");
            let check = Check::line(line.clone());
            writes.push(Write::new("rdma", "rdma.max", line, field, check));
        }
    }
    writes
}
