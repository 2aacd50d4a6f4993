//! The plan: everything that will be done for a container, as data, before anything is done.
//!
//! [`build()`] is a pure function of the specification, of what is known about the host and of what was
//! asked for on the command line. The same plan is printed by `isorun plan`, compared with golden
//! files by the tests, and executed by the engine.

mod build;
mod channels;
pub mod confine;
mod cuda;
pub mod degrade;
mod exec;
pub mod labels;
mod limits;
mod lost;
mod mounts;
mod net;
mod nodev;
mod print;
mod program;
mod rdt;
mod sandbox;
pub mod schedule;
mod step;
mod unmapped;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use build::build;
pub use channels::{Channels, used_up, without_tmpfs, wrapped};
pub use degrade::{Feature, Lost};
pub use exec::{Join, Joined, exec};
pub use labels::LabelKind;
pub use mounts::OVER_PROC;
pub use print::{text, text_for_log};
pub use rdt::{Rdt, schema_lines};
pub use schedule::{MemoryPolicy, Scheduling};
pub use step::{
    Action, Birth, CapSets, Degradation, Device, Existing, HostHooks, IdMap, IdMapping, Identity,
    Mount, MountKind, NetDevice, NodeAsked, Otherwise, Process, Refused, Step,
};

use crate::cgroup::CgroupPlan;
use crate::policy::Level;
use crate::seccomp::Program;

/// What the command line asks for beside the bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The container's id.
    pub id: String,
    /// Leave the session keyring as it is.
    pub no_new_keyring: bool,
    /// How many descriptors from 3 on the program gets.
    pub preserve_fds: u32,
    /// How many before these it gets as sockets to listen on: sd_listen_fds(3).
    pub listen_fds: u32,
    /// Do without pivot_root(2), which an initial ramdisk refuses.
    pub no_pivot: bool,
    /// `--rootless`: whether cgroups may be missing for want of permission; by default as the host is.
    pub rootless: Option<bool>,
    /// `--systemd-cgroup`: systemd makes the cgroup.
    pub systemd_cgroup: bool,
    /// How much may be lost, as far as this host is concerned: the container's annotation may make it
    /// stricter.
    pub degrade: Level,
    /// What births that failed have shown not to be there.
    pub without: Vec<Lost>,
}

/// A container, planned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The version of the specification that config.json names.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// Annotations of config.json, for hooks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The cgroup: directories, limits, device rules.
    pub cgroup: CgroupPlan,
    /// The group of resctrl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdt: Option<Rdt>,
    /// The tensor channels that it joins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Channels>,
    /// How much may be lost.
    #[serde(default)]
    pub level: Level,
    /// What is lost already, known before anything is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub degradations: Vec<Degradation>,
    /// How the first process is born.
    pub birth: Birth,
    /// It has no mount namespace: its mounts are its caller's (docs/decisions/0010).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shares_mounts: bool,
    /// A process sandbox on the host's own `/`, without namespaces and mounts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sandbox: bool,
    /// What the child does, in order.
    pub steps: Vec<Step>,
    /// What the child becomes.
    pub process: Process,
    /// The system call filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Program>,
    /// The supplementary filter, where something is to be made up for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supplement: Option<confine::Supplement>,
    /// How many descriptors from 3 on the program gets.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub preserve_fds: u32,
    /// Hooks that the parent runs, by stage.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_hooks: HostHooks,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Plan {
    /// The user id of the program, as the container's /etc/passwd knows it.
    pub fn uid(&self) -> u32 {
        self.identity()
            .map_or(0, |identity| identity.inside.unwrap_or(identity.uid))
    }

    /// Who the program is.
    pub fn identity(&self) -> Option<&Identity> {
        self.steps.iter().find_map(|step| match &step.action {
            Action::Identity(identity) => Some(identity),
            _ => None,
        })
    }

    /// Whether the first process is isorun's init.
    pub fn has_init(&self) -> bool {
        self.channels.as_ref().is_some_and(|channels| channels.init)
    }

    /// Whether the program gets a terminal.
    pub fn terminal(&self) -> bool {
        let mut actions = self.steps.iter().map(|step| &step.action);
        actions.any(|action| matches!(action, Action::Terminal { .. }))
    }

    /// The network devices of the host that the container gets.
    pub fn net_devices(&self) -> &[NetDevice] {
        let mut actions = self.steps.iter().map(|step| &step.action);
        let found = actions.find_map(|action| match action {
            Action::NetDevices { devices } => Some(devices.as_slice()),
            _ => None,
        });
        found.unwrap_or_default()
    }

    /// The hooks of one stage that the parent runs.
    pub fn hooks(&self, stage: &str) -> &[oci_spec::runtime::Hook] {
        self.host_hooks.get(stage).map_or(&[], Vec::as_slice)
    }
}
