//! process.scheduler, process.ioPriority and process.execCPUAffinity.

use oci_spec::runtime::{LinuxSchedulerPolicy, Process, Scheduler};

use crate::error::{Error, Result};
use crate::spec::cpus;

/// Checks how the process is to be scheduled; the rules are runc's, and those that the kernel would
/// refuse without a word.
///
/// # Errors
///
/// The path of the first field that breaks a rule.
pub(super) fn check(process: &Process) -> Result<()> {
    if let Some(scheduler) = process.scheduler() {
        self::scheduler(scheduler)?;
    }
    if let Some(priority) = process.io_priority() {
        let level = priority.priority();
        if !(0..=7).contains(&level) {
            return Err(Error::spec(
                "process.ioPriority.priority",
                format!("{level} is outside 0 to 7"),
            ));
        }
    }
    let Some(affinity) = process.exec_cpu_affinity() else {
        return Ok(());
    };
    for (name, list) in [
        ("initial", affinity.initial()),
        ("final", affinity.cpu_affinity_final()),
    ] {
        if let Some(list) = list {
            cpus::parse(list)
                .map_err(|why| Error::spec(format!("process.execCPUAffinity.{name}"), why))?;
        }
    }
    Ok(())
}

fn scheduler(scheduler: &Scheduler) -> Result<()> {
    let wrong =
        |name: &str, why: String| Err(Error::spec(format!("process.scheduler.{name}"), why));
    let policy = *scheduler.policy();
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return wrong("nice", format!("{nice} is outside -20 to 19"));
    }
    let realtime = matches!(
        policy,
        LinuxSchedulerPolicy::SchedFifo | LinuxSchedulerPolicy::SchedRr
    );
    let priority = scheduler.priority().unwrap_or(0);
    if !realtime && priority != 0 {
        return wrong("priority", "it is for SCHED_FIFO and SCHED_RR only".into());
    }
    if realtime && !(1..=99).contains(&priority) {
        return wrong(
            "priority",
            format!("{priority} is outside 1 to 99, which SCHED_FIFO and SCHED_RR need"),
        );
    }
    for (name, value) in [
        ("runtime", scheduler.runtime()),
        ("deadline", scheduler.deadline()),
        ("period", scheduler.period()),
    ] {
        if policy != LinuxSchedulerPolicy::SchedDeadline && value.unwrap_or(0) != 0 {
            return wrong(name, "it is for SCHED_DEADLINE only".into());
        }
    }
    Ok(())
}
