//! Every limit of linux.resources that this machine's kernel has, as the kernel shows it; what it refuses
//! is told by the field's name, and leaves nothing.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Bundle, View, cgroup_dir, controller_usable, view};

/// The text of a file in the container's cgroup of a controller; nothing where the kernel lacks it.
fn file(bundle: &Bundle, controller: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(cgroup_dir(bundle.pid(), controller).join(name)).ok()?;
    Some(text.trim().to_string())
}

fn created(resources: Value) -> Bundle {
    let mut bundle = Bundle::sh("sleep 100");
    for (name, value) in resources.as_object().unwrap() {
        bundle.set(&format!("/linux/resources/{name}"), value.clone());
    }
    bundle.create().ok();
    bundle
}

macro_rules! needs_v1 {
    ($controller:literal) => {
        if view() != View::Hybrid || !controller_usable($controller) {
            skip!("this view has no v1 controller {}", $controller);
        }
    };
}

/// The numbers of a disk of this machine: nothing is read from it or written to it.
fn disk() -> Option<(i64, i64)> {
    fs::read_dir("/sys/block").ok()?.find_map(|disk| {
        let text = fs::read_to_string(disk.ok()?.path().join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

#[test]
fn rates_of_a_disk() {
    needs_v1!("blkio");
    let Some((major, minor)) = disk() else {
        skip!("this machine has no disk");
    };
    let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let bundle = created(json!({"blockIO": {
        "throttleReadBpsDevice": rate(1_048_576),
        "throttleWriteBpsDevice": rate(2_097_152),
        "throttleReadIOPSDevice": rate(300),
        "throttleWriteIOPSDevice": rate(400),
    }}));
    for (name, rate) in [
        ("read_bps", 1_048_576),
        ("write_bps", 2_097_152),
        ("read_iops", 300),
        ("write_iops", 400),
    ] {
        let name = format!("blkio.throttle.{name}_device");
        let want = format!("{major}:{minor} {rate}");
        assert_eq!(file(&bundle, "blkio", &name), Some(want), "{name}");
    }
}

#[test]
fn weight_of_disks() {
    needs_v1!("blkio");
    let bundle = Bundle::sh("sleep 100");
    bundle.create().ok();
    let names = ["blkio.weight", "blkio.bfq.weight"];
    if !names
        .iter()
        .any(|name| file(&bundle, "blkio", name).is_some())
    {
        skip!("this kernel's blkio has no weights");
    }
    let bundle = created(json!({"blockIO": {"weight": 250}}));
    let seen = names.iter().find_map(|name| file(&bundle, "blkio", name));
    assert_eq!(seen.as_deref(), Some("250"));
}

#[test]
fn a_disk_that_is_not_there() {
    isorun_only!("runc names the file, and not the field");
    needs_v1!("blkio");
    let mut bundle = Bundle::sh("true");
    let rate = json!([{"major": 4000, "minor": 77, "rate": 5}]);
    bundle.set(
        "/linux/resources/blockIO",
        json!({"throttleReadBpsDevice": rate}),
    );
    let out = bundle.run().code(1);
    assert!(
        out.stderr
            .contains("linux.resources.blockIO.throttleReadBpsDevice[0]"),
        "{}",
        out.stderr
    );
    bundle.assert_gone();
}

#[test]
fn cpu_burst() {
    since_runc!(1, 2, "burst");
    needs_v1!("cpu");
    let bundle = created(json!({"cpu": {"quota": 20_000, "period": 50_000, "burst": 5_000}}));
    let Some(seen) = file(&bundle, "cpu", "cpu.cfs_burst_us") else {
        skip!("this kernel has no burst");
    };
    assert_eq!(seen, "5000");
}

#[test]
fn cpu_idle() {
    since_runc!(1, 2, "idle groups");
    needs_v1!("cpu");
    if !Path::new("/sys/fs/cgroup/cpu/cpu.idle").exists() {
        let bundle = Bundle::sh("sleep 100");
        bundle.create().ok();
        if file(&bundle, "cpu", "cpu.idle").is_none() {
            skip!("this kernel has no idle groups");
        }
    }
    let bundle = created(json!({"cpu": {"idle": 1}}));
    assert_eq!(file(&bundle, "cpu", "cpu.idle").as_deref(), Some("1"));
}

#[test]
fn shares_beyond_what_there_is() {
    needs_v1!("cpu");
    for (shares, word, limit) in [(1, "minimum", "2"), (300_000, "maximum", "262144")] {
        let mut bundle = Bundle::sh("true");
        bundle.set("/linux/resources/cpu", json!({"shares": shares}));
        let out = bundle.run().code(1);
        let part = format!("the {word} allowed cpu-shares is {limit}");
        assert!(out.stderr.contains(&part), "{}", out.stderr);
        bundle.assert_gone();
    }
}

/// Real-time bandwidth is its parent's to give, which gives none by default.
#[test]
fn real_time_that_nobody_gives() {
    isorun_only!("runc names the file, and not the field");
    needs_v1!("cpu");
    if !Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists() {
        skip!("this kernel has no real-time groups");
    }
    let mut bundle = Bundle::sh("true");
    bundle.set(
        "/linux/resources/cpu",
        json!({"realtimePeriod": 1_000_000, "realtimeRuntime": 999_999}),
    );
    let out = bundle.run().code(1);
    assert!(
        out.stderr.contains("linux.resources.cpu.realtimeRuntime"),
        "{}",
        out.stderr
    );
    bundle.assert_gone();
}

#[test]
fn memory_reservation_and_swap() {
    needs_v1!("memory");
    let bundle = created(json!({"memory": {
        "limit": 33_554_432, "reservation": 16_777_216, "swap": 67_108_864,
    }}));
    let seen = |name| file(&bundle, "memory", name);
    assert_eq!(
        seen("memory.soft_limit_in_bytes").as_deref(),
        Some("16777216")
    );
    if let Some(both) = seen("memory.memsw.limit_in_bytes") {
        assert_eq!(both, "67108864");
    }
}

/// Kernel memory has no limit of its own any more: asking for one does no harm, as under runc.
#[test]
fn kernel_memory_is_not_refused() {
    needs_v1!("memory");
    let bundle = created(json!({"memory": {"kernel": 16_777_216, "kernelTCP": 16_777_216}}));
    assert_eq!(bundle.status(), "created");
}

#[test]
fn huge_pages() {
    // The one controller that this machine has on v2; hybrid hosts keep it there.
    let sizes = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB");
    if view() != View::V2 || !controller_usable("hugetlb") || !sizes.is_dir() {
        skip!("this view has no hugetlb controller for pages of 2 MiB");
    }
    let bundle = created(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]}));
    let seen = |name| file(&bundle, "", name);
    assert_eq!(seen("hugetlb.2MB.max").as_deref(), Some("4194304"));
    assert_eq!(seen("hugetlb.2MB.rsvd.max").as_deref(), Some("4194304"));
}

#[test]
fn words_that_tools_know() {
    let refusals: &[(Value, &str)] = match view() {
        View::V2 => &[
            (
                json!({"memory": {"swap": 1_000_000}}),
                "unable to set swap limit without memory limit",
            ),
            (
                json!({"memory": {"limit": 2_000_000, "swap": 1_000_000}}),
                "memory+swap limit should be >= memory limit",
            ),
            (
                json!({"unified": {"hugetlb/x": "1"}}),
                "must be a file name (no slashes)",
            ),
            (
                json!({"unified": {"hugetlb": "1"}}),
                "must be in the form CONTROLLER.PARAMETER",
            ),
            (json!({"unified": {"nothing.max": "1"}}), "controller"),
        ],
        View::Hybrid => &[
            (
                json!({"unified": {"memory.max": "1"}}),
                "cannot use unified on cgroup v1",
            ),
            (
                json!({"memory": {"swappiness": 101}}),
                "invalid memory swappiness value: 101 (valid range is 0-100)",
            ),
        ],
    };
    for (resources, sentence) in refusals {
        let mut bundle = Bundle::sh("true");
        bundle.set("/linux/resources", resources.clone());
        let out = bundle.run().code(1);
        assert!(out.stderr.contains(sentence), "{resources}: {}", out.stderr);
        bundle.assert_gone();
    }
}
