//! Where oci-spec reads other names, or fewer forms, than the specification and runc: what is written
//! is turned into what oci-spec reads. On a second pass only, after the first has failed.

use serde_json::Value;

/// Flags of process.scheduler: the specification's name, and oci-spec 0.10's.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// Turns a process object into what oci-spec reads; tells whether anything changed.
pub fn process(process: &mut Value) -> bool {
    let mut changed = false;
    if let Some(flags) = process
        .pointer_mut("/scheduler/flags")
        .and_then(Value::as_array_mut)
    {
        for flag in flags {
            let known = SCHEDULER_FLAGS.iter().find(|(name, _)| flag == name);
            if let Some((_, read)) = known {
                *flag = Value::from(*read);
                changed = true;
            }
        }
    }
    if let Some(affinity) = process
        .get_mut("execCPUAffinity")
        .and_then(Value::as_object_mut)
    {
        for name in ["initial", "final"] {
            let Some(list) = affinity.get(name).and_then(Value::as_str) else {
                continue;
            };
            let elements = list.split(',').map(str::trim).filter(|e| !e.is_empty());
            let plain = elements.collect::<Vec<_>>().join(",");
            if plain.is_empty() {
                affinity.remove(name);
                changed = true;
            } else if plain != list {
                affinity.insert(name.into(), Value::from(plain));
                changed = true;
            }
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxSchedulerFlag, Process};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_specifications_flags_are_read() {
        use LinuxSchedulerFlag as F;
        let mut value = serde_json::to_value(Process::default()).unwrap();
        // config.md, "scheduler": all of them, by their names in the kernel.
        value["scheduler"] = json!({"policy": "SCHED_OTHER", "flags": [
            "SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN",
            "SCHED_FLAG_KEEP_POLICY", "SCHED_FLAG_KEEP_PARAMS", "SCHED_FLAG_UTIL_CLAMP_MIN",
            "SCHED_FLAG_UTIL_CLAMP_MAX"]});
        assert!(process(&mut value));
        let read: Process = serde_json::from_value(value).unwrap();
        let flags = read.scheduler().as_ref().unwrap().flags().clone().unwrap();
        assert_eq!(
            flags,
            [
                F::SchedResetOnFork,
                F::SchedFlagReclaim,
                F::SchedFlagDLOverrun,
                F::SchedFlagKeepPolicy,
                F::SchedFlagKeepParams,
                F::SchedFlagUtilClampMin,
                F::SchedFlagUtilClampMax
            ]
        );
    }

    #[test]
    fn affinity_lists_in_the_forms_that_runc_takes() {
        let mut value = serde_json::to_value(Process::default()).unwrap();
        value["execCPUAffinity"] = json!({"initial": " 0 ,, 1-2,", "final": ""});
        assert!(process(&mut value));
        assert_eq!(value["execCPUAffinity"], json!({"initial": "0,1-2"}));
        assert!(!process(&mut value));
        serde_json::from_value::<Process>(value).unwrap();
    }
}
