//! Tests of the manager: pure ones on captured hosts, and ones on the running kernel.

mod devices;
pub(super) mod kernel;
mod pure;
mod rules;

use oci_spec::runtime::Linux;
use serde_json::{Value, json};

use super::Hierarchies;

/// /proc/self/cgroup and /proc/self/mountinfo of the hybrid machine that this was written on.
const HYBRID_OWN: &str = "9:name=systemd:/\n8:pids:/\n7:blkio:/\n6:freezer:/\n5:devices:/\n\
    4:memory:/process_api/0b74\n3:cpuset:/\n2:cpuacct:/\n1:cpu:/\n0::/\n";

fn hybrid() -> Hierarchies {
    let mut mounts = "20 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
        25 21 0:24 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
        .to_string();
    for (index, name) in [
        "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids",
    ]
    .iter()
    .enumerate()
    {
        let id = 30 + index;
        mounts += &format!(
            "{id} 25 0:{id} / /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n"
        );
    }
    mounts += "40 25 0:40 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
        41 25 0:41 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    super::hierarchies::parse(HYBRID_OWN, &mounts)
}

/// A v1 host as Debian 10 mounts it: controllers together, options in another order, a release
/// agent, and a second mount of one of them.
fn v1() -> Hierarchies {
    super::hierarchies::parse(
        "4:cpu,cpuacct:/user.slice\n3:memory:/user.slice/x\n2:devices:/user.slice\n\
         1:name=systemd:/user.slice/s\n",
        "31 25 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:9 - cgroup cgroup rw,xattr,release_agent=/lib/systemd/a,name=systemd\n\
         32 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n\
         33 25 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
         34 25 0:31 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n\
         99 25 0:30 / /mnt/other\\040place rw - cgroup cgroup rw,memory\n",
    )
}

fn v2(own: &str, controllers: &[&str]) -> Hierarchies {
    let mut host = super::hierarchies::parse(
        &format!("0::{own}\n"),
        "26 22 0:25 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
    );
    if let Some(v2) = &mut host.v2 {
        v2.controllers = Some(controllers.iter().map(|name| name.to_string()).collect());
    }
    host
}

fn linux(value: Value) -> Linux {
    serde_json::from_value(value).unwrap()
}

pub(super) fn resources(value: Value) -> Linux {
    linux(json!({ "resources": value }))
}
