//! How a process is scheduled: sched_setattr(2), sched_setaffinity(2), ioprio_set(2), set_mempolicy(2),
//! personality(2).

/// `struct sched_attr` of linux/sched/types.h, as Linux 5.3 has it. Older kernels know the first 48
/// bytes, and take the rest as long as it is zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SchedAttr {
    /// The size of this struct, bytes; [`set_attr`] fills it in.
    pub size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// -20 to 19, for SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// 1 to 99, for SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// For SCHED_DEADLINE, nanoseconds.
    pub runtime: u64,
    /// For SCHED_DEADLINE, nanoseconds.
    pub deadline: u64,
    /// For SCHED_DEADLINE, nanoseconds.
    pub period: u64,
    /// 0 to 1024, with SCHED_FLAG_UTIL_CLAMP_MIN.
    pub util_min: u32,
    /// 0 to 1024, with SCHED_FLAG_UTIL_CLAMP_MAX.
    pub util_max: u32,
}

/// Sets policy and parameters of this thread (sched_setattr(2)).
///
/// # Errors
/// EPERM without CAP_SYS_NICE, for real-time policies in a v1 cgroup without cpu.rt_runtime_us, and for
/// SCHED_DEADLINE where the CPU affinity leaves CPUs out; EINVAL; EBUSY when deadlines are
/// oversubscribed.
pub fn set_attr(mut attr: SchedAttr) -> nix::Result<()> {
    attr.size = std::mem::size_of::<SchedAttr>() as u32;
    // SAFETY: a struct of the size that its first field says, which the kernel reads, and writes its
    // own size to where it knows a smaller one.
    super::checked(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attr, 0) }).map(drop)
}

/// How many CPUs an affinity mask of ours has room for: the kernel's highest CONFIG_NR_CPUS.
pub const MAX_CPUS: usize = 8192;

/// A CPU affinity mask: bit n of word n / 64 is CPU n.
pub type CpuMask = [u64; MAX_CPUS / 64];

/// Sets the CPUs that the thread `pid` (0: this one) may run on; the kernel leaves out those that are
/// not there and those that its cpuset does not have (sched_setaffinity(2)).
///
/// # Errors
/// EINVAL when no CPU is left; EPERM for another user's process; ESRCH.
pub fn set_affinity(pid: i32, mask: &CpuMask) -> nix::Result<()> {
    // SAFETY: a pointer to as many bytes as are said, which the kernel only reads.
    super::checked(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            pid,
            std::mem::size_of::<CpuMask>(),
            mask.as_ptr(),
        )
    })
    .map(drop)
}

/// Sets the I/O priority of this thread: the class (1 real-time, 2 best effort, 3 idle) and the level in
/// it, 0 to 7 (ioprio_set(2)).
///
/// # Errors
/// EPERM for the real-time class without CAP_SYS_NICE or CAP_SYS_ADMIN; EINVAL.
pub fn set_io_priority(class: u32, level: u32) -> nix::Result<()> {
    const IOPRIO_WHO_PROCESS: u32 = 1;
    const IOPRIO_CLASS_SHIFT: u32 = 13;
    let value = class << IOPRIO_CLASS_SHIFT | level;
    // SAFETY: plain numbers.
    super::checked(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) })
        .map(drop)
}

/// Sets the NUMA memory policy of this thread, which its children and the programs that they execute
/// inherit: `mode` is MPOL_* with MPOL_F_* bits, `nodes` a mask, 64 in a word (set_mempolicy(2)).
///
/// # Errors
/// EINVAL for a mode, a flag or nodes that the kernel or the cpuset does not have; ENOSYS without NUMA.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> nix::Result<()> {
    // The kernel takes one bit less than it is told of; none at all for no mask.
    let (mask, bits) = match nodes.len() {
        0 => (std::ptr::null(), 0),
        words => (nodes.as_ptr(), words * 64 + 1),
    };
    // SAFETY: a pointer to as many bits as are said but one, which the kernel only reads, or none.
    super::checked(unsafe {
        libc::syscall(libc::SYS_set_mempolicy, mode as libc::c_int, mask, bits)
    })
    .map(drop)
}

/// Sets the execution domain of this process, PER_* of linux/personality.h (personality(2)).
///
/// # Errors
/// EPERM or ENOSYS where a filter denies it.
pub fn set_personality(domain: u32) -> nix::Result<()> {
    // SAFETY: plain numbers; the layout of this process's memory stays as it is.
    super::checked(unsafe { libc::syscall(libc::SYS_personality, libc::c_ulong::from(domain)) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn bad_values_are_refused_by_the_kernel() {
        let bad = SchedAttr {
            policy: 77,
            ..SchedAttr::default()
        };
        assert_eq!(set_attr(bad), Err(Errno::EINVAL));
        assert_eq!(set_affinity(0, &[0; MAX_CPUS / 64]), Err(Errno::EINVAL));
        assert_eq!(set_io_priority(7, 9), Err(Errno::EINVAL));
        if std::path::Path::new("/proc/self/numa_maps").exists() {
            assert_eq!(set_memory_policy(77, &[1]), Err(Errno::EINVAL));
            assert_eq!(set_memory_policy(0, &[]), Ok(()));
        }
    }

    #[test]
    fn all_cpus_are_cut_to_those_that_are_there() {
        set_affinity(0, &[u64::MAX; MAX_CPUS / 64]).unwrap();
    }
}
