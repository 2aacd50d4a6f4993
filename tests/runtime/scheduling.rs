//! How the program is scheduled: policy, nice value, I/O priority, CPU affinity, personality.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{Bundle, View, controller_usable, runtime, view};

/// Fields of proc_pid_stat(5): nice (19), rt_priority (40), policy (41).
const STAT: &str = "awk '{print $19, $40, $41}' /proc/self/stat";

fn scheduled(scheduler: Value) -> Bundle {
    let mut bundle = Bundle::sh(STAT);
    bundle.set("/process/scheduler", scheduler);
    bundle
}

#[test]
fn policies_that_need_no_privilege() {
    since_runc!(1, 2, "process.scheduler");
    for (policy, number, nice) in [("SCHED_OTHER", 0, 5), ("SCHED_BATCH", 3, 19)] {
        let out = scheduled(json!({"policy": policy, "nice": nice}))
            .run()
            .ok();
        assert_eq!(out.text(), format!("{nice} 0 {number}"), "{policy}");
    }
}

/// The nice value of other policies is what it was: the kernel takes it for these two only.
#[test]
fn idle() {
    since_runc!(1, 2, "process.scheduler");
    let out = scheduled(json!({"policy": "SCHED_IDLE"})).run().ok();
    assert!(out.text().ends_with(" 0 5"), "{out:#?}");
}

#[test]
fn a_negative_nice_value() {
    since_runc!(1, 2, "process.scheduler");
    let out = scheduled(json!({"policy": "SCHED_OTHER", "nice": -7}))
        .run()
        .ok();
    assert_eq!(out.text(), "-7 0 0");
}

/// In a v1 cgroup real-time policies need a share of cpu.rt_runtime_us (CONFIG_RT_GROUP_SCHED).
#[test]
fn real_time_policies() {
    since_runc!(1, 2, "process.scheduler");
    for (policy, number) in [("SCHED_FIFO", 1), ("SCHED_RR", 2)] {
        let mut bundle = scheduled(json!({"policy": policy, "priority": 7}));
        if view() == View::Hybrid && controller_usable("cpu") {
            let path = format!("/{}", bundle.id);
            bundle.set("/linux/cgroupsPath", json!(path)).set(
                "/linux/resources/cpu",
                json!({"realtimePeriod": 1_000_000, "realtimeRuntime": 20_000}),
            );
        }
        let out = bundle.run();
        if out.code != 0 && out.stderr.contains("EPERM") {
            skip!("this host gives no real-time share: {}", out.stderr.trim());
        }
        let out = out.ok();
        assert!(
            out.text().ends_with(&format!(" 7 {number}")),
            "{policy}: {out:#?}"
        );
    }
}

#[test]
fn the_flags_of_the_specification() {
    since_runc!(1, 2, "process.scheduler");
    // Reset on fork: what the shell starts does not have its nice value.
    let mut bundle = Bundle::sh(&format!(
        "read -r stat < /proc/self/stat; set -- $stat; shift 18; echo $1; {STAT}; true"
    ));
    bundle.set(
        "/process/scheduler",
        json!({"policy": "SCHED_BATCH", "nice": -3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}),
    );
    assert_eq!(bundle.run().ok().text(), "-3\n0 0 3");
}

#[test]
fn deadlines() {
    since_runc!(1, 2, "process.scheduler");
    let mut bundle = Bundle::sh("read -r stat < /proc/self/stat; set -- $stat; shift 40; echo $1");
    bundle.set(
        "/process/scheduler",
        json!({"policy": "SCHED_DEADLINE", "runtime": 10_000_000, "deadline": 50_000_000,
            "period": 100_000_000}),
    );
    let out = bundle.run();
    if out.code != 0 && (out.stderr.contains("EPERM") || out.stderr.contains("not permitted")) {
        skip!("this host lets no deadlines be set: {}", out.stderr.trim());
    }
    assert_eq!(out.ok().text(), "6");
}

#[test]
fn what_the_kernel_refuses_is_told_with_the_field() {
    since_runc!(1, 2, "process.scheduler");
    let bundle = scheduled(json!({"policy": "SCHED_DEADLINE", "runtime": 10, "deadline": 5}));
    let out = bundle.run().code(1);
    assert!(out.stderr.contains("scheduler"), "{out:#?}");
    if runtime().isorun {
        assert!(
            out.stderr.contains(
                "process.scheduler: set SCHED_DEADLINE: EINVAL: Invalid argument; the kernel wants"
            ),
            "{out:#?}"
        );
    }
    bundle.assert_gone();
}

#[test]
fn bad_values_are_refused_with_the_field() {
    since_runc!(1, 2, "process.scheduler and process.ioPriority");
    for (pointer, value, field) in [
        (
            "/process/scheduler",
            json!({"policy": "SCHED_FROB"}),
            "scheduler",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_OTHER", "nice": 20}),
            "scheduler.nice",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_OTHER", "priority": 1}),
            "scheduler.priority",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH", "runtime": 1}),
            "scheduler",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH", "flags": ["X"]}),
            "scheduler",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
            "ioPriority",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_XX", "priority": 1}),
            "",
        ),
        (
            "/linux/personality",
            json!({"domain": "BSD"}),
            "personality",
        ),
    ] {
        let mut bundle = Bundle::new();
        bundle.set(pointer, value.clone());
        let out = bundle.run().code(1);
        let said = out.stderr.to_lowercase();
        assert!(
            said.contains(&field.to_lowercase()) || !runtime().isorun,
            "{value}: {out:#?}"
        );
        bundle.assert_gone();
    }
}

#[test]
fn io_priority() {
    since_runc!(1, 2, "process.ioPriority");
    for (class, level, value) in [
        ("IOPRIO_CLASS_RT", 1, 1 << 13 | 1),
        ("IOPRIO_CLASS_BE", 6, 2 << 13 | 6),
        ("IOPRIO_CLASS_IDLE", 0, 3 << 13),
    ] {
        let mut bundle = Bundle::new();
        if let Err(why) = bundle.add_probe() {
            skip!("{why}");
        }
        // ioprio_get(IOPRIO_WHO_PROCESS, 0)
        bundle.args(&["/probe", "syscall", "252", "1", "0"]).set(
            "/process/ioPriority",
            json!({"class": class, "priority": level}),
        );
        let out = bundle.run().ok();
        assert_eq!(out.text(), format!("ret {value} errno 0"), "{class}");
    }
}

#[test]
fn personalities() {
    since_runc!(1, 2, "linux.personality");
    if std::env::consts::ARCH != "x86_64" {
        skip!("the name of the machine is x86's");
    }
    for (domain, number, machine) in [
        ("LINUX", "00000000", "x86_64"),
        ("LINUX32", "00000008", "i686"),
    ] {
        // Flags are not defined: named, and no more.
        let mut bundle = Bundle::sh("cat /proc/self/personality; uname -m");
        bundle.set("/linux/personality", json!({"domain": domain, "flags": []}));
        let out = bundle.run().ok();
        assert_eq!(out.text(), format!("{number}\n{machine}"), "{domain}");
    }
}

/// A filter that denies personality(2) is loaded after it was called.
#[test]
fn personality_under_a_filter() {
    since_runc!(1, 2, "linux.personality");
    isorun_only!("runc calls personality(2) under the filter when noNewPrivileges is set");
    let mut bundle = Bundle::sh("uname -m");
    bundle
        .set("/linux/personality", json!({"domain": "LINUX32"}))
        .set("/process/scheduler", json!({"policy": "SCHED_BATCH"}))
        .set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["personality", "sched_setattr", "ioprio_set"],
                    "action": "SCMP_ACT_ERRNO"}]}),
        );
    assert_eq!(bundle.run().ok().text(), "i686");
}

/// Pins this thread, and what it starts, to one CPU while `work` is done.
fn pinned<T>(work: impl FnOnce() -> T) -> T {
    let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| before.is_set(*cpu).unwrap());
    let mut one = CpuSet::new();
    one.set(first.unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    let result = work();
    sched_setaffinity(Pid::from_raw(0), &before).unwrap();
    result
}

#[test]
fn the_callers_affinity_is_not_inherited() {
    since_runc!(1, 3, "resetting the CPU affinity");
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let all = own
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"))
        .unwrap()
        .to_string();
    if !all.contains(['-', ',']) {
        skip!("one CPU is all there is");
    }
    let bundle = Bundle::sh("grep Cpus_allowed_list /proc/self/status");
    let out = pinned(|| bundle.run()).ok();
    assert_eq!(out.field("Cpus_allowed_list"), all);
}

#[test]
fn the_affinity_is_that_of_the_cpuset() {
    if !controller_usable("cpuset") {
        skip!("no cpuset controller in this view");
    }
    let mut bundle = Bundle::sh("grep Cpus_allowed_list /proc/self/status");
    bundle.set("/linux/resources/cpu", json!({"cpus": "0"}));
    let out = bundle.run().ok();
    assert_eq!(out.field("Cpus_allowed_list"), "0");
}

/// For exec only: the first process is not touched by it. The lists are read as runc reads them.
#[test]
fn exec_cpu_affinity_is_checked_and_does_nothing_to_init() {
    since_runc!(1, 3, "process.execCPUAffinity");
    for (name, list) in [("initial", "0"), ("final", " 0 ,, 0-0,"), ("final", "")] {
        let mut bundle = Bundle::sh("echo in");
        bundle.set("/process/execCPUAffinity", json!({ name: list }));
        assert_eq!(bundle.run().ok().text(), "in", "{list:?}");
    }
    for (name, list) in [("initial", "a"), ("final", "3-1"), ("initial", "0-")] {
        let mut bundle = Bundle::new();
        bundle.set("/process/execCPUAffinity", json!({ name: list }));
        let out = bundle.run().code(1);
        if runtime().isorun {
            assert!(out.stderr.contains("process.execCPUAffinity"), "{out:#?}");
        }
        bundle.assert_gone();
    }
}

/// The policies of the memory of a program, as the kernel shows them (numa(7)).
const POLICIES: &str = "awk '{print $2}' /proc/self/numa_maps | sort -u";

#[test]
fn memory_policies() {
    since_runc!(1, 4, "linux.memoryPolicy");
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        skip!("this kernel has no NUMA support");
    }
    for (policy, shown) in [
        (json!({"mode": "MPOL_DEFAULT"}), "default"),
        (json!({"mode": "MPOL_BIND", "nodes": "0"}), "bind:0"),
        (
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}),
            "bind=static:0",
        ),
        (
            json!({"mode": "MPOL_BIND", "nodes": "0-1", "flags": ["MPOL_F_RELATIVE_NODES"]}),
            "bind=relative:0-1",
        ),
        (
            json!({"mode": "MPOL_INTERLEAVE", "nodes": " 0 ,"}),
            "interleave:0",
        ),
        (json!({"mode": "MPOL_PREFERRED", "nodes": "0"}), "prefer:0"),
        (json!({"mode": "MPOL_PREFERRED", "nodes": ""}), "local"),
        (json!({"mode": "MPOL_LOCAL"}), "local"),
    ] {
        let mut bundle = Bundle::sh(POLICIES);
        bundle.set("/linux/memoryPolicy", policy.clone());
        let out = bundle.run().ok();
        let relative = shown.contains("relative") && out.text() == "bind=relative:0";
        assert!(out.text() == shown || relative, "{policy}: {out:#?}");
    }
}

#[test]
fn newer_memory_policies() {
    since_runc!(1, 4, "linux.memoryPolicy");
    for (mode, shown) in [
        ("MPOL_PREFERRED_MANY", "prefer (many):0"),
        ("MPOL_WEIGHTED_INTERLEAVE", "weighted interleave:0"),
    ] {
        let mut bundle = Bundle::sh("cut -d ' ' -f 2-3 /proc/self/numa_maps | sort -u");
        bundle.set("/linux/memoryPolicy", json!({"mode": mode, "nodes": "0"}));
        let out = bundle.run();
        if out.code != 0 && out.stderr.contains("EINVAL") {
            skip!("this kernel is older than {mode}: {}", out.stderr.trim());
        }
        assert!(
            out.ok().text().contains(shown.split(' ').next().unwrap()),
            "{mode}"
        );
    }
}

/// All of the container's processes have it, also where the filter denies the call to them.
#[test]
fn exec_has_the_memory_policy() {
    since_runc!(1, 4, "linux.memoryPolicy");
    let mut bundle = Bundle::new();
    bundle.args(&["sleep", "1000"]).set(
        "/linux/memoryPolicy",
        json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}),
    );
    bundle.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["set_mempolicy"], "action": "SCMP_ACT_ERRNO"}]}),
    );
    bundle.run_detached().ok();
    let out = bundle.call(&["exec", &bundle.id, "sh", "-c", POLICIES]);
    assert_eq!(out.ok().text(), "interleave:0");
}

#[test]
fn a_memory_policy_that_the_kernel_refuses() {
    since_runc!(1, 4, "linux.memoryPolicy");
    let mut bundle = Bundle::new();
    bundle.set(
        "/linux/memoryPolicy",
        json!({"mode": "MPOL_BIND", "nodes": "1000", "flags": ["MPOL_F_STATIC_NODES"]}),
    );
    let out = bundle.run().code(1);
    if runtime().isorun {
        let says = "linux.memoryPolicy: set MPOL_BIND|MPOL_F_STATIC_NODES: EINVAL: Invalid argument; none of these nodes";
        assert!(out.stderr.contains(says), "{out:#?}");
    }
    bundle.assert_gone();
}
