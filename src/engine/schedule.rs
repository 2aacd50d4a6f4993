//! How the process is scheduled: CPU affinity, scheduler, I/O priority, memory policy, personality.

use nix::errno::Errno;

use crate::error::{Error, Kind, Result};
use crate::plan::{Action, MemoryPolicy, Scheduling};
use crate::sys::sched::{self, MAX_CPUS, SchedAttr};

/// Does one step of this part to the calling process.
///
/// # Errors
/// A sentence with the field, the value and the errno.
pub fn act(action: &Action) -> Result<()> {
    match action {
        Action::AllCpus => sched::set_affinity(0, &[u64::MAX; MAX_CPUS / 64])
            .map_err(|errno| Error::os("set the CPU affinity to", "all CPUs", errno)),
        Action::Scheduler(scheduling) => scheduler(scheduling),
        Action::IoPriority {
            class,
            number,
            level,
        } => sched::set_io_priority(*number, *level).map_err(|errno| {
            let error = Error::os("process.ioPriority: set", format!("{class} {level}"), errno);
            match errno {
                Errno::EPERM => error.remedy("the real-time class needs CAP_SYS_NICE on the host"),
                _ => error,
            }
        }),
        Action::MemoryPolicy(policy) => memory_policy(policy),
        Action::Personality { name, domain } => sched::set_personality(*domain)
            .map_err(|errno| Error::os("linux.personality: set", name, errno)),
        other => Err(Error::new(
            Kind::System,
            format!("no way to do the step {other:?}"),
        )),
    }
}

fn scheduler(wanted: &Scheduling) -> Result<()> {
    let attr = SchedAttr {
        policy: wanted.number,
        flags: wanted.flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
        ..SchedAttr::default()
    };
    sched::set_attr(attr).map_err(|errno| {
        let error = Error::os("process.scheduler: set", &wanted.policy, errno);
        match (errno, wanted.policy.as_str()) {
            (Errno::EPERM, "SCHED_DEADLINE") => error.remedy(
                "it needs CAP_SYS_NICE on the host, and all CPUs: it can't be used together with \
                 linux.resources.cpu.cpus",
            ),
            (Errno::EPERM, "SCHED_FIFO" | "SCHED_RR") => error.remedy(
                "it needs CAP_SYS_NICE on the host, and in a v1 cgroup \
                 linux.resources.cpu.realtimeRuntime",
            ),
            (Errno::EPERM, _) => error.remedy("it needs CAP_SYS_NICE on the host"),
            (Errno::EINVAL, "SCHED_DEADLINE") => {
                error.remedy("the kernel wants 1024 <= runtime <= deadline <= period")
            }
            (Errno::EBUSY, "SCHED_DEADLINE") => {
                error.remedy("the CPUs have not that much time left for deadlines")
            }
            (Errno::EINVAL, _) => error.remedy("the kernel lacks this policy or one of its flags"),
            _ => error,
        }
    })
}

fn memory_policy(wanted: &MemoryPolicy) -> Result<()> {
    sched::set_memory_policy(wanted.mode, &wanted.nodes).map_err(|errno| {
        let error = Error::os("linux.memoryPolicy: set", &wanted.policy, errno);
        match errno {
            Errno::ENOSYS => error.remedy("the kernel has no NUMA support (CONFIG_NUMA), or a filter denies it"),
            Errno::EPERM => error.remedy("a filter denies set_mempolicy(2) to isorun itself"),
            Errno::EINVAL if wanted.nodes.is_empty() => {
                error.remedy("the kernel lacks this mode or one of its flags")
            }
            Errno::EINVAL => error.remedy(
                "none of these nodes is there or in linux.resources.cpu.mems, or the kernel lacks this \
                 mode or one of its flags",
            ),
            _ => error,
        }
    })
}
