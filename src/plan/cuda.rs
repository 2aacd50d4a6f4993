//! GPU memory in channels: whether a container gets it, and what of the GPU it lacks.
//!
//! Its first process is isorun's init then, with process ids of its own among the channel's members
//! (docs/decisions/0014). Without a GPU all of that is the same: programs find that out by themselves and
//! copy through host memory, and the loss is told.

use oci_spec::runtime::{Linux, LinuxDeviceType, LinuxSchedulerFlag, LinuxSchedulerPolicy, Spec};

use super::build::{namespaces, new_namespaces};
use super::degrade::{self, Feature};
use super::step::Degradation;
use crate::cgroup::{DeviceKind, Devices};
use crate::channel::{Channel, Cuda, ENVIRONMENT, Request};
use crate::error::{Error, Kind, Result};
use crate::host::{Host, gpu};
use crate::policy::Level;

const PID: u64 = libc::CLONE_NEWPID as u64;
const MOUNT: u64 = libc::CLONE_NEWNS as u64;

/// What the plan has of it.
#[derive(Debug, Default)]
pub(super) struct Planned {
    /// The first process is isorun's init, with process ids of its own.
    pub(super) init: bool,
    pub(super) degradations: Vec<Degradation>,
}

/// Plans GPU memory in the channels `join`, which the container was let into. May make one of them
/// /dev/shm.
///
/// # Errors
/// What the annotation asks for and contradicts itself; a loss that the level does not allow.
pub(super) fn plan(
    (spec, linux): (&Spec, &Linux),
    host: &Host,
    level: Level,
    request: &mut Request,
    join: &mut [Channel],
) -> Result<Planned> {
    let mut planned = Planned::default();
    if request.cuda.channels().is_empty() {
        return Ok(planned);
    }
    let lost = |names: &[String], error: Error| {
        let what = format!("GPU memory in the channels {}", names.join(", "));
        degrade::planned(Feature::CudaIpc, level, what, error, 0)
    };
    let (granted, refused) = by_rule(join);
    if let Cuda::Environment(asked) = &request.cuda {
        if !refused.is_empty() {
            let why = format!("no rule of these channels allows it, and {ENVIRONMENT}=1 only asks");
            planned
                .degradations
                .push(lost(&refused, from_environment(&why))?);
        }
        if granted.is_empty() {
            return Ok(planned);
        }
        let asked = asked.clone();
        if let Err(error) = request.shm_for_cuda(&granted) {
            let why = from_environment(&error.to_string());
            planned.degradations.push(lost(&asked, why)?);
            join.iter_mut().for_each(|channel| channel.cuda = false);
            return Ok(planned);
        }
    }
    let new = new_namespaces(linux);
    let of_others = namespaces(linux) & !new;
    planned.init = new & PID != 0 && of_others & MOUNT == 0;
    if new & PID != 0 && of_others & MOUNT != 0 {
        let why = "linux.namespaces: the mount namespace is one that others have made, through whose /proc \
                   isorun gives no process ids: handles of CUDA's older kind fail between members with the \
                   same ones";
        let remedy = "give the container a mount namespace of its own";
        planned
            .degradations
            .push(lost(&granted, Error::new(Kind::Spec, why).remedy(remedy))?);
    }
    if of_others & PID != 0 {
        let why = "linux.namespaces: the pid namespace is one that others have made, where isorun gives no \
                   process ids: handles of CUDA's older kind fail between members with the same ones";
        let remedy = "give the container a pid namespace of its own";
        planned
            .degradations
            .push(lost(&granted, Error::new(Kind::Spec, why).remedy(remedy))?);
    }
    if planned.init {
        check_scheduler(spec)?;
    }
    let missing = missing(spec, linux, host)?;
    if !missing.is_empty() {
        let error = Error::new(Kind::Spec, missing.join("; "));
        planned.degradations.push(lost(&granted, error)?);
    }
    Ok(planned)
}

/// The names of the channels in which GPU memory is shared, and of the others that are joined.
fn by_rule(join: &[Channel]) -> (Vec<String>, Vec<String>) {
    let (granted, refused): (Vec<&Channel>, Vec<&Channel>) =
        join.iter().partition(|channel| channel.cuda);
    let names = |list: Vec<&Channel>| {
        let names = list.into_iter().map(|one| one.key.name().to_string());
        names.collect()
    };
    (names(granted), names(refused))
}

fn from_environment(why: &str) -> Error {
    Error::new(Kind::Spec, format!("process.env: {why}"))
        .remedy(format!("leave {ENVIRONMENT} out, or set it to 0"))
}

/// The kernel forks no process with a deadline, and init forks the program; a flag takes the scheduler away
/// in the fork.
fn check_scheduler(spec: &Spec) -> Result<()> {
    let process = spec.process().as_ref();
    let scheduler = process.and_then(|process| process.scheduler().as_ref());
    match scheduler {
        Some(one) if *one.policy() == LinuxSchedulerPolicy::SchedDeadline => Err(Error::spec(
            "process.scheduler.policy",
            "SCHED_DEADLINE and GPU memory in channels cannot be had together: isorun's init would have to \
             start a process with a deadline, which the kernel refuses",
        )),
        Some(one)
            if one
                .flags()
                .iter()
                .flatten()
                .any(|flag| *flag == LinuxSchedulerFlag::SchedResetOnFork) =>
        {
            Err(Error::spec(
                "process.scheduler.flags",
                "SCHED_FLAG_RESET_ON_FORK and GPU memory in channels cannot be had together: isorun's init \
                 forks the program, which would lose its scheduler there",
            ))
        }
        _ => Ok(()),
    }
}

/// What of the GPU is not there, or not in the container, as sentences.
fn missing(spec: &Spec, linux: &Linux, host: &Host) -> Result<Vec<String>> {
    let nothing = gpu::Nodes::default();
    let nodes = host.gpu.as_deref().unwrap_or(&nothing);
    if nodes.driver.is_none() {
        return Ok(vec![match nodes.node(gpu::DXG) {
            Some(_) => format!(
                "the GPU is that of WSL2 ({}), where CUDA IPC is taken as not supported",
                gpu::DXG
            ),
            None => {
                "this host has no NVIDIA driver: there is no /proc/driver/nvidia/version".into()
            }
        }]);
    }
    let rules = linux
        .resources()
        .as_ref()
        .and_then(|r| r.devices().as_ref());
    let rules = rules.map(|rules| Devices::from_spec(rules)).transpose()?;
    let mut missing = Vec::new();
    let mut check = |path: &str| match number(spec, linux, nodes, path) {
        None => missing.push(format!("{path} is not among the container's devices")),
        Some((major, minor)) => {
            let permitted = rules
                .as_ref()
                .is_none_or(|rules| rules.permit(DeviceKind::Char, major, minor));
            if !permitted {
                missing.push(format!(
                    "linux.resources.devices does not let the container open {path} ({major}:{minor})"
                ));
            }
        }
    };
    gpu::NEEDED.iter().for_each(|path| check(path));
    let cards: Vec<&str> = gpu_paths(linux, nodes)
        .filter(|path| number(spec, linux, nodes, path).is_some())
        .collect();
    cards.iter().for_each(|path| check(path));
    if cards.is_empty() {
        missing.push("no GPU (/dev/nvidia0 and so on) is among the container's devices".into());
    }
    Ok(missing)
}

/// The paths that GPUs have: those of the host, and those of linux.devices.
fn gpu_paths<'a>(linux: &'a Linux, nodes: &'a gpu::Nodes) -> impl Iterator<Item = &'a str> {
    let listed = linux.devices().iter().flatten();
    let listed = listed.filter_map(|device| device.path().to_str());
    let known = |path: &&str| nodes.node(path).is_none();
    let of_host = nodes.nodes.iter().map(|node| node.path.as_str());
    of_host
        .chain(listed.filter(known))
        .filter(|path| gpu::is_card(path))
}

/// The numbers of the device that the container has at `path`: by linux.devices, or a bind mount of it or of
/// a directory above it.
fn number(spec: &Spec, linux: &Linux, nodes: &gpu::Nodes, path: &str) -> Option<(u32, u32)> {
    let listed = linux.devices().iter().flatten();
    let mut listed = listed.filter(|device| device.path().to_str() == Some(path));
    if let Some(device) = listed.next() {
        let is_char = matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
        let small = |number: i64| u32::try_from(number).ok();
        return small(device.major())
            .zip(small(device.minor()))
            .filter(|_| is_char);
    }
    let mounts = spec.mounts().iter().flatten();
    let bound = mounts.rev().find_map(|mount| {
        let below = std::path::Path::new(path)
            .strip_prefix(mount.destination())
            .ok()?;
        let source = mount.source().as_ref()?;
        let bind = mount.options().iter().flatten();
        let bind = bind.into_iter().any(|o| o == "bind" || o == "rbind");
        bind.then(|| match below.as_os_str().is_empty() {
            true => source.clone(),
            false => source.join(below),
        })
    });
    let node = nodes.node(bound?.to_str()?)?;
    Some((node.major, node.minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> gpu::Nodes {
        serde_json::from_value(serde_json::json!({
            "driver": "595.45.04",
            "nodes": [
                {"path": "/dev/nvidia0", "major": 195, "minor": 0},
                {"path": "/dev/nvidia1", "major": 195, "minor": 1},
                {"path": "/dev/nvidiactl", "major": 195, "minor": 255},
                {"path": "/dev/nvidia-uvm", "major": 509, "minor": 0}
            ]
        }))
        .unwrap()
    }

    fn told(spec: serde_json::Value, nodes: Option<gpu::Nodes>) -> String {
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let mut host = Host::parse(br#"{"euid": 0, "cgroups": {"mode": "none"}}"#).unwrap();
        host.gpu = nodes.map(Box::new);
        let linux = spec.linux().clone().unwrap();
        missing(&spec, &linux, &host).unwrap().join("; ")
    }

    fn spec(devices: serde_json::Value, mounts: serde_json::Value) -> serde_json::Value {
        serde_json::json!({
            "ociVersion": "1.2.0", "root": {"path": "rootfs"}, "mounts": mounts,
            "linux": {"devices": devices, "resources": {"devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 195, "access": "rw"}
            ]}}
        })
    }

    fn device(path: &str, major: i64, minor: i64) -> serde_json::Value {
        serde_json::json!({"path": path, "type": "c", "major": major, "minor": minor})
    }

    #[test]
    fn what_is_missing_of_a_gpu_is_said() {
        use serde_json::json;
        let bare = || spec(json!([]), json!([]));
        assert!(told(bare(), None).contains("no NVIDIA driver"));
        let wsl = gpu::Nodes {
            driver: None,
            nodes: vec![gpu::Node {
                path: gpu::DXG.into(),
                major: 10,
                minor: 125,
            }],
        };
        assert!(told(bare(), Some(wsl)).contains("WSL2"));
        assert_eq!(
            told(bare(), Some(nodes())),
            "/dev/nvidiactl is not among the container's devices; /dev/nvidia-uvm is not among the container's \
             devices; no GPU (/dev/nvidia0 and so on) is among the container's devices"
        );
        let all = json!([
            device("/dev/nvidiactl", 195, 255),
            device("/dev/nvidia-uvm", 509, 0),
            device("/dev/nvidia1", 195, 1)
        ]);
        assert_eq!(
            told(spec(all, json!([])), Some(nodes())),
            "linux.resources.devices does not let the container open /dev/nvidia-uvm (509:0)"
        );
        // As rootless engines do it.
        let bound = |source: &str, target: &str| json!({"destination": target, "source": source, "options": ["bind"]});
        let mounts = json!([
            bound("/dev/nvidiactl", "/dev/nvidiactl"),
            bound("/dev/nvidia0", "/dev/nvidia0")
        ]);
        let mut free = spec(json!([device("/dev/nvidia-uvm", 509, 0)]), mounts);
        free["linux"]["resources"] = json!({});
        assert_eq!(told(free, Some(nodes())), "");
        let mut dev = spec(json!([]), json!([bound("/dev", "/dev")]));
        dev["linux"]["resources"] = json!({});
        assert_eq!(told(dev, Some(nodes())), "");
    }
}
