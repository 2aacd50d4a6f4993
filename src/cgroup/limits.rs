//! Which limits are asked for, and which hierarchy they go to.
//!
//! A controller is in a v1 hierarchy or on v2, never in both: on a hybrid host each is looked up.

use oci_spec::runtime::{Linux, LinuxResources};

use super::devices::Devices;
use super::hierarchies::{Hierarchies, Mode};
use super::plan::{CgroupPlan, Ignored, PlannedDir, Version, Write};
use super::{v1, v2};
use crate::error::{Error, Kind, Result};

/// A limit that is asked for and that nothing here can enforce.
#[derive(Debug, Clone)]
pub struct Missing {
    /// The JSON path of the field.
    pub field: String,
    /// What is not there, as a sentence.
    pub error: Error,
}

/// The field of device rules, as [`Missing`] names it.
pub const RULES: &str = "linux.resources.devices";

/// The writes for one group of limits, in the spelling of one version.
pub(super) type Table = (Vec<Write>, Vec<Ignored>);

/// True if something in `linux` can only be told valid by knowing the v2 controllers.
pub(super) fn needs_controllers(linux: Option<&Linux>) -> bool {
    linux
        .and_then(|linux| linux.resources().as_ref())
        .is_some_and(|resources| {
            resources.memory().is_some()
                || resources.cpu().is_some()
                || resources.pids().is_some()
                || resources.block_io().is_some()
                || resources
                    .hugepage_limits()
                    .as_ref()
                    .is_some_and(|limits| !limits.is_empty())
                || resources
                    .rdma()
                    .as_ref()
                    .is_some_and(|limits| !limits.is_empty())
                || resources
                    .unified()
                    .as_ref()
                    .is_some_and(|map| !map.is_empty())
        })
}

/// Adds the writes of all limits to the plan's directories; those whose controller is not there are
/// `lacking`.
pub(super) fn apply(
    plan: &mut CgroupPlan,
    host: &Hierarchies,
    resources: Option<&LinuxResources>,
    lacking: &mut Vec<Missing>,
) -> Result<()> {
    let Some(resources) = resources else {
        return Ok(());
    };
    // cpuset goes first on v1 (a process cannot enter before) and does no harm on v2.
    for group in [
        "cpuset", "cpu", "memory", "pids", "blkio", "hugetlb", "rdma", "net_cls", "net_prio",
    ] {
        let name = if group == "blkio" && host.mode == Mode::V2 {
            "io"
        } else {
            group
        };
        let at = place(plan, host, group);
        let version = match at {
            Some(index) => plan.dirs[index].version,
            None if host.mode == Mode::V2 => Version::V2,
            None => Version::V1,
        };
        let (writes, ignored) = match version {
            Version::V1 => v1::table(group, resources)?,
            Version::V2 => v2::table(group, resources)?,
        };
        plan.ignored.extend(ignored);
        match at {
            Some(index) => add(plan, index, writes),
            None => {
                let limits = writes.into_iter().filter(|write| !write.unlimited);
                lacking.extend(limits.map(|write| missing(host, write.field, name)));
            }
        }
    }
    unified(plan, host, resources, lacking)
}

fn add(plan: &mut CgroupPlan, index: usize, writes: Vec<Write>) {
    let dir = &mut plan.dirs[index];
    for write in writes {
        if dir.version == Version::V2
            && write.controller != "cgroup"
            && !dir.controllers.contains(&write.controller)
        {
            dir.controllers.push(write.controller.clone());
        }
        dir.writes.push(write);
    }
}

/// The directory in whose hierarchy a controller (by its v1 name) is.
fn place(plan: &CgroupPlan, host: &Hierarchies, controller: &str) -> Option<usize> {
    let v1 = plan.dirs.iter().position(|dir| {
        dir.version == Version::V1 && dir.controllers.iter().any(|name| name == controller)
    });
    v1.or_else(|| {
        let name = if controller == "blkio" {
            "io"
        } else {
            controller
        };
        on_v2(host, name)
            .then(|| plan.dirs.iter().position(|dir| dir.version == Version::V2))
            .flatten()
    })
}

/// True if v2 offers the controller, or nobody has looked.
fn on_v2(host: &Hierarchies, controller: &str) -> bool {
    // There are no network controllers on v2.
    !controller.starts_with("net_")
        && host.v2.as_ref().is_some_and(|v2| match &v2.controllers {
            Some(offered) => offered.iter().any(|name| name == controller),
            None => host.mode == Mode::V2,
        })
}

fn missing(host: &Hierarchies, field: String, controller: &str) -> Missing {
    let sentence = format!(
        "{field} needs the cgroup controller {controller}, which this host does not offer \
         (controllers here: {})",
        offered(host)
    );
    let error = Error::new(Kind::System, sentence).remedy(ENABLE);
    Missing { field, error }
}

const ENABLE: &str = "enable the controller (for containers: delegate it), or remove the limit";

/// The names of the controllers that there are.
fn offered(host: &Hierarchies) -> String {
    let offered: Vec<&str> = match (&host.v2, host.mode) {
        (Some(v2), Mode::V2) => v2
            .controllers
            .iter()
            .flatten()
            .map(String::as_str)
            .collect(),
        _ => host
            .v1
            .iter()
            .flat_map(|v1| &v1.controllers)
            .map(String::as_str)
            .collect(),
    };
    match offered.is_empty() {
        true => "none".to_string(),
        false => offered.join(", "),
    }
}

/// `linux.resources.unified`: files of v2 by name.
fn unified(
    plan: &mut CgroupPlan,
    host: &Hierarchies,
    resources: &LinuxResources,
    lacking: &mut Vec<Missing>,
) -> Result<()> {
    let Some(map) = resources.unified().as_ref().filter(|map| !map.is_empty()) else {
        return Ok(());
    };
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort();
    for key in keys {
        let field = format!("linux.resources.unified[{key:?}]");
        // The kernel takes one line of a file at a time: io.max of several devices.
        let lines = map[key].split('\n').filter(|line| !line.trim().is_empty());
        let mut writes = lines
            .map(|line| v2::unified(key, line, &field))
            .collect::<Result<Vec<_>>>()?;
        if writes.is_empty() {
            writes.push(v2::unified(key, &map[key], &field)?);
        }
        let controller = writes[0].controller.clone();
        let index = plan.dirs.iter().position(|dir| dir.version == Version::V2);
        match index.filter(|_| host.mode == Mode::V2) {
            None => {
                return Err(Error::spec(field, "cannot use unified on cgroup v1")
                    .remedy("remove it, or boot with systemd.unified_cgroup_hierarchy=1"));
            }
            Some(_) if controller != "cgroup" && !on_v2(host, &controller) => {
                let sentence = format!(
                    "{field} can't be set: controller {controller:?} not available (controllers \
                     here: {})",
                    offered(host)
                );
                let error = Error::new(Kind::System, sentence).remedy(ENABLE);
                lacking.push(Missing { field, error });
            }
            Some(index) => add(plan, index, writes),
        }
    }
    Ok(())
}

/// Adds the device rules to the directory that enforces them: v1's `devices`, else v2; without either
/// they are `lacking`.
pub(super) fn devices(
    plan: &mut CgroupPlan,
    resources: Option<&LinuxResources>,
    lacking: &mut Vec<Missing>,
) -> Result<()> {
    let asked = resources.and_then(|resources| resources.devices().as_ref());
    let devices = Devices::from_spec(asked.map_or(&[], Vec::as_slice))?;
    if devices.allow_all() {
        return Ok(());
    }
    match devices_at(plan) {
        Some(index) => {
            // What cannot be enforced is told before anything is made.
            match plan.dirs[index].version {
                Version::V1 => drop(devices.v1_writes()?),
                Version::V2 => drop(devices.program()?),
            }
            plan.dirs[index].devices = Some(devices);
            Ok(())
        }
        // Nobody asked for rules: the default ones are ours, and are no more than runc's habit.
        None if asked.is_none_or(Vec::is_empty) => Ok(()),
        None => {
            lacking.push(Missing {
                field: RULES.into(),
                error: no_devices(),
            });
            Ok(())
        }
    }
}

/// The directory that enforces device rules.
pub(super) fn devices_at(plan: &CgroupPlan) -> Option<usize> {
    let has = |dir: &PlannedDir| dir.controllers.iter().any(|name| name == "devices");
    let v1 = plan.dirs.iter().position(has);
    v1.or_else(|| plan.dirs.iter().position(|dir| dir.version == Version::V2))
}

/// The error for device rules that nothing here can enforce.
pub(super) fn no_devices() -> Error {
    Error::new(
        Kind::System,
        "linux.resources.devices needs the cgroup controller devices or cgroup v2, and neither is \
         mounted",
    )
    .remedy("mount cgroup2 on /sys/fs/cgroup, or allow all devices")
}
