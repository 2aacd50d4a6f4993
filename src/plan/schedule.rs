//! The part of the plan that says how the process is scheduled.

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxMemoryPolicy, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Process as SpecProcess, Scheduler,
};
use serde::{Deserialize, Serialize};

use super::step::{Action, Step};
use crate::spec::{cpus, names};

/// Policy and parameters of sched_setattr(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// The policy's name, for people.
    pub policy: String,
    /// Its number.
    pub number: u32,
    /// SCHED_FLAG_* bits.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flags: u64,
    /// -20 to 19.
    #[serde(default)]
    pub nice: i32,
    /// 1 to 99, for real-time policies.
    #[serde(default)]
    pub priority: u32,
    /// Nanoseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub runtime: u64,
    /// Nanoseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub deadline: u64,
    /// Nanoseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub period: u64,
}

/// Mode and nodes of set_mempolicy(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// The mode and the flags as config.json has them, for people.
    pub policy: String,
    /// MPOL_* with MPOL_F_* bits.
    pub mode: u32,
    /// The nodes as bits, 64 in a word, without words of zeroes at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<u64>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The first process runs on all CPUs of its cpuset, whatever its caller was pinned to: since Linux
/// 6.2 joining a cpuset does not widen an affinity that somebody has set.
pub(super) fn all_cpus() -> Step {
    Action::AllCpus.into()
}

/// Steps for what config.json asks for: scheduler, I/O priority, personality. They come before the
/// system call filter, which may deny their calls, and before capabilities go, which they may need.
pub fn steps(linux: &Linux, process: &SpecProcess) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(scheduler) = process.scheduler() {
        steps.push(Action::Scheduler(scheduling(scheduler)).into());
    }
    if let Some(priority) = process.io_priority() {
        let (class, number) = match priority.class() {
            IOPriorityClass::IoprioClassRt => ("real-time", 1),
            IOPriorityClass::IoprioClassBe => ("best-effort", 2),
            IOPriorityClass::IoprioClassIdle => ("idle", 3),
        };
        steps.push(
            Action::IoPriority {
                class: class.into(),
                number,
                // Checked to be 0 to 7.
                level: u32::try_from(priority.priority()).unwrap_or(0),
            }
            .into(),
        );
    }
    if let Some(policy) = linux.memory_policy() {
        steps.push(Action::MemoryPolicy(memory_policy(policy)).into());
    }
    if let Some(personality) = linux.personality() {
        let (name, domain) = match personality.domain() {
            LinuxPersonalityDomain::PerLinux => ("LINUX", 0),
            LinuxPersonalityDomain::PerLinux32 => ("LINUX32", 8),
        };
        steps.push(
            Action::Personality {
                name: name.into(),
                domain,
            }
            .into(),
        );
    }
    steps
}

fn scheduling(scheduler: &Scheduler) -> Scheduling {
    let (policy, number) = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => ("SCHED_OTHER", 0),
        LinuxSchedulerPolicy::SchedFifo => ("SCHED_FIFO", 1),
        LinuxSchedulerPolicy::SchedRr => ("SCHED_RR", 2),
        LinuxSchedulerPolicy::SchedBatch => ("SCHED_BATCH", 3),
        LinuxSchedulerPolicy::SchedIso => ("SCHED_ISO", 4),
        LinuxSchedulerPolicy::SchedIdle => ("SCHED_IDLE", 5),
        LinuxSchedulerPolicy::SchedDeadline => ("SCHED_DEADLINE", 6),
    };
    let flags = scheduler.flags().iter().flatten();
    Scheduling {
        policy: policy.into(),
        number,
        flags: flags.fold(0, |all, flag| all | flag_bit(*flag)),
        nice: scheduler.nice().unwrap_or(0),
        // Checked to be 1 to 99 where it counts.
        priority: u32::try_from(scheduler.priority().unwrap_or(0)).unwrap_or(0),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    }
}

/// Its nodes have been checked to be a list.
fn memory_policy(policy: &LinuxMemoryPolicy) -> MemoryPolicy {
    let (mode, number) = names::memory_policy(policy.mode());
    let flags = policy.flags().iter().flatten();
    let flags: Vec<(&str, u32)> = flags.map(|flag| names::memory_policy_flag(*flag)).collect();
    let list = policy.nodes().as_deref().unwrap_or_default();
    let mut nodes = cpus::parse(list)
        .ok()
        .flatten()
        .map_or(Vec::new(), Vec::from);
    while nodes.last() == Some(&0) {
        nodes.pop();
    }
    MemoryPolicy {
        policy: std::iter::once(mode)
            .chain(flags.iter().map(|(name, _)| *name))
            .collect::<Vec<_>>()
            .join("|"),
        mode: flags.iter().fold(number, |all, (_, bit)| all | bit),
        nodes,
    }
}

/// SCHED_FLAG_* of linux/sched.h.
fn flag_bit(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

/// A step of this part, for people.
pub(super) fn describe(action: &Action) -> String {
    match action {
        Action::AllCpus => "CPU affinity: all CPUs of the cgroup".into(),
        Action::Scheduler(s) => {
            let mut text = format!("scheduler {} nice {}", s.policy, s.nice);
            for (name, value) in [
                ("priority", u64::from(s.priority)),
                ("flags", s.flags),
                ("runtime", s.runtime),
                ("deadline", s.deadline),
                ("period", s.period),
            ] {
                if value != 0 {
                    text += &format!(" {name} {value}");
                }
            }
            text
        }
        Action::IoPriority { class, level, .. } => format!("I/O priority {class} {level}"),
        Action::MemoryPolicy(policy) => {
            let bits = policy.nodes.iter().enumerate().flat_map(|(word, bits)| {
                let set = (0..64).filter(move |bit| bits >> bit & 1 == 1);
                set.map(move |bit| (word * 64 + bit).to_string())
            });
            let nodes: Vec<String> = bits.collect();
            let nodes = if nodes.is_empty() {
                "none".into()
            } else {
                nodes.join(",")
            };
            format!("memory policy {}, nodes: {nodes}", policy.policy)
        }
        Action::Personality { name, .. } => format!("personality {name}"),
        _ => String::new(),
    }
}
