//! The supplementary system call filter: what it refuses for which loss.

use oci_spec::runtime::{
    Arch, Linux, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg,
    LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};

use super::Supplement;
use crate::error::{Error, Kind, Result};
use crate::plan::degrade::Feature;
use crate::plan::sandbox;

/// One thing that is refused.
struct Refusal {
    /// For people.
    what: &'static str,
    /// The system calls.
    calls: &'static [&'static str],
    /// Conditions on one argument, any of which is enough; none: every call.
    when: &'static [When],
    /// What the caller sees.
    errno: i32,
}

/// A condition on an argument.
struct When {
    index: usize,
    op: LinuxSeccompOperator,
    value: u64,
    two: Option<u64>,
}

/// All bits of `mask` in argument `index` that are `value`.
const fn masked(index: usize, mask: u64, value: u64) -> When {
    When {
        index,
        op: LinuxSeccompOperator::ScmpCmpMaskedEq,
        value: mask,
        two: Some(value),
    }
}

/// Argument `index` is `value`.
const fn equal(index: usize, value: u64) -> When {
    When {
        index,
        op: LinuxSeccompOperator::ScmpCmpEq,
        value,
        two: None,
    }
}

/// Mounts, which Landlock refuses as well, by every call that there is.
const MOUNTS: Refusal = Refusal {
    what: "mounts",
    calls: &[
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "mount",
        "mount_setattr",
        "move_mount",
        "open_tree",
        "open_tree_attr",
        "pivot_root",
        "umount",
        "umount2",
    ],
    when: &[],
    errno: libc::EPERM,
};

/// What changes the kernel that everybody runs on.
const KERNEL: Refusal = Refusal {
    what: "changes of the kernel",
    calls: &[
        "acct",
        "create_module",
        "delete_module",
        "finit_module",
        "init_module",
        "ioperm",
        "iopl",
        "kexec_file_load",
        "kexec_load",
        "open_by_handle_at",
        "reboot",
        "swapoff",
        "swapon",
    ],
    when: &[],
    errno: libc::EPERM,
};

/// The bit of a new user namespace.
const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;

/// New user namespaces, in which a process would have all capabilities; and other containers'.
const NAMESPACES: [Refusal; 3] = [
    Refusal {
        what: "user namespaces",
        calls: &["clone", "unshare"],
        when: &[masked(0, NEWUSER, NEWUSER)],
        errno: libc::EPERM,
    },
    // Its flags are in memory, where no filter sees them; C libraries fall back to clone.
    Refusal {
        what: "clone3",
        calls: &["clone3"],
        when: &[],
        errno: libc::ENOSYS,
    },
    Refusal {
        what: "other processes' namespaces",
        calls: &["setns"],
        when: &[],
        errno: libc::EPERM,
    },
];

/// Parts of the kernel that only root has much use for, and that have had many faults.
const SURFACE: [Refusal; 2] = [
    BPF,
    Refusal {
        what: "userfaultfd",
        calls: &["userfaultfd"],
        when: &[],
        errno: libc::EPERM,
    },
];

/// Programs in the kernel, with which CAP_SYS_ADMIN alone reads and turns what the host's network carries.
const BPF: Refusal = Refusal {
    what: "bpf and perf_event_open",
    calls: &["bpf", "perf_event_open"],
    when: &[],
    errno: libc::EPERM,
};

/// A type of socket is what is left without these two flags.
const SOCK_TYPE: u64 = 0xf;

/// The old way to AF_PACKET: SOCK_PACKET of linux/net.h.
const SOCK_PACKET: u64 = 10;

/// Raw sockets of IP. Others of this type, of netlink for one, carry no packets.
const RAW: [Refusal; 2] = [
    Refusal {
        what: "raw sockets",
        calls: &["socket"],
        when: &[masked(1, SOCK_TYPE, SOCK_PACKET)],
        errno: libc::EPERM,
    },
    Refusal {
        what: "sockets of other families than UNIX, IP and netlink",
        calls: &["socket"],
        when: &[
            equal(0, 3),
            equal(0, 4),
            equal(0, 5),
            equal(0, 6),
            equal(0, 7),
            equal(0, 8),
            equal(0, 9),
            equal(0, 11),
            equal(0, 12),
            equal(0, 13),
            equal(0, 14),
            equal(0, 15),
            When {
                index: 0,
                op: LinuxSeccompOperator::ScmpCmpGe,
                value: 17,
                two: None,
            },
        ],
        errno: libc::EPERM,
    },
];

/// What can make sockets past the conditions on socket(2): the multiplexer of 32-bit x86, whose arguments
/// a filter cannot see, and io_uring.
const AROUND_SOCKET: [Refusal; 2] = [
    Refusal {
        what: "socketcall",
        calls: &["socketcall"],
        when: &[],
        errno: libc::EPERM,
    },
    IO_URING,
];

/// A way around every filter of system calls.
const IO_URING: Refusal = Refusal {
    what: "io_uring",
    calls: &["io_uring_enter", "io_uring_register", "io_uring_setup"],
    when: &[],
    errno: libc::ENOSYS,
};

/// Keys, which belong to a user, and so to all that the user runs.
const KEYS: Refusal = Refusal {
    what: "keys",
    calls: &["add_key", "keyctl", "request_key"],
    when: &[],
    errno: libc::EPERM,
};

/// What reaches out of a process sandbox, where Landlock does not look: other processes, keys, a terminal's
/// input, and everything about files but their contents and names, which is part of a read-only root.
const SANDBOX: [Refusal; 7] = [
    Refusal {
        what: "tracing",
        calls: &[
            "kcmp",
            "pidfd_getfd",
            "process_madvise",
            "process_mrelease",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
        ],
        when: &[],
        errno: libc::EPERM,
    },
    KEYS,
    Refusal {
        what: "pairs of sockets that can send to others",
        calls: &["socketpair"],
        // A datagram names who it is for, whatever the socket is connected to (the kernel takes SOCK_RAW as
        // one). 0 is no family, and the kernel takes the lower half.
        when: &[
            masked(1, SOCK_TYPE, libc::SOCK_DGRAM as u64),
            masked(1, SOCK_TYPE, libc::SOCK_RAW as u64),
            masked(0, 0xffff_ffff, 0),
            When {
                index: 0,
                op: LinuxSeccompOperator::ScmpCmpGt,
                value: libc::AF_UNIX as u64,
                two: None,
            },
        ],
        errno: libc::EPERM,
    },
    Refusal {
        what: "changes of mode, owner, times and attributes",
        calls: &[
            "chmod",
            "chown",
            "chown32",
            "fchmod",
            "fchmodat",
            "fchmodat2",
            "fchown",
            "fchown32",
            "fchownat",
            "file_setattr",
            "fremovexattr",
            "fsetxattr",
            "futimesat",
            "lchown",
            "lchown32",
            "lremovexattr",
            "lsetxattr",
            "removexattr",
            "removexattrat",
            "setxattr",
            "setxattrat",
            "utime",
            "utimensat",
            "utimensat_time64",
            "utimes",
        ],
        when: &[],
        errno: libc::EPERM,
    },
    Refusal {
        what: "ioctl but on terminals and descriptors, and terminals' input",
        calls: &["ioctl"],
        // File systems have many that change things and are no writing for Landlock: only 0x5400 to 0x547f
        // pass, without TIOCSTI and TIOCLINUX. The kernel takes the lower half.
        when: &[
            When {
                index: 1,
                op: LinuxSeccompOperator::ScmpCmpGe,
                value: 0x5480,
                two: None,
            },
            When {
                index: 1,
                op: LinuxSeccompOperator::ScmpCmpLt,
                value: 0x5400,
                two: None,
            },
            masked(1, 0xffff_ffff, 0x5412),
            masked(1, 0xffff_ffff, 0x541c),
        ],
        errno: libc::EPERM,
    },
    Refusal {
        what: "limits of other processes",
        calls: &["prlimit64"],
        when: &[When {
            index: 0,
            op: LinuxSeccompOperator::ScmpCmpGe,
            value: 1,
            two: None,
        }],
        errno: libc::EPERM,
    },
    Refusal {
        what: "socketcall",
        calls: &["socketcall"],
        when: &[],
        errno: libc::EPERM,
    },
];

/// What an IPC namespace would keep apart.
const IPC: Refusal = Refusal {
    what: "System V IPC and message queues",
    calls: &[
        "ipc",
        "mq_open",
        "mq_unlink",
        "msgctl",
        "msgget",
        "msgrcv",
        "msgsnd",
        "semctl",
        "semget",
        "semop",
        "semtimedop",
        "semtimedop_time64",
        "shmat",
        "shmctl",
        "shmget",
    ],
    when: &[],
    errno: libc::EPERM,
};

/// All sockets, where a network namespace is asked for; connected pairs of them still are to be had.
const SOCKETS: Refusal = Refusal {
    what: "sockets",
    calls: &["socket"],
    when: &[],
    errno: libc::EPERM,
};

/// Sockets with a path, by which services of the user are asked to do what the sandbox may not.
const UNIX: [Refusal; 1] = [Refusal {
    what: "UNIX sockets",
    calls: &["socket"],
    when: &[masked(0, 0xffff_ffff, libc::AF_UNIX as u64)],
    errno: libc::EPERM,
}];

/// IP's raw sockets: two conditions that both have to hold.
const RAW_IP: [[When; 2]; 2] = [
    [
        equal(0, libc::AF_INET as u64),
        masked(1, SOCK_TYPE, libc::SOCK_RAW as u64),
    ],
    [
        equal(0, libc::AF_INET6 as u64),
        masked(1, SOCK_TYPE, libc::SOCK_RAW as u64),
    ],
];

/// The filter for the loss of `rows`.
///
/// # Errors
/// None that is known: the filter is made of constants.
pub(super) fn supplement(rows: &[Feature], linux: &Linux) -> Result<Supplement> {
    let mut refusals: Vec<&Refusal> = vec![&MOUNTS, &KERNEL];
    if rows.contains(&Feature::UsernsRoot) {
        refusals.extend(NAMESPACES.iter().chain(&SURFACE).chain([&IO_URING, &KEYS]));
    }
    if rows.contains(&Feature::UsernsUser) {
        refusals.extend(NAMESPACES.iter().chain(&SURFACE).chain([&IO_URING]));
        refusals.extend(&SANDBOX);
        if sandbox::asks(linux, LinuxNamespaceType::Ipc) {
            refusals.push(&IPC);
        }
        match sandbox::asks(linux, LinuxNamespaceType::Network) {
            true => refusals.push(&SOCKETS),
            false => refusals.extend(&UNIX),
        }
    }
    let network = rows.contains(&Feature::Network);
    if network {
        refusals.extend(RAW.iter().chain(&AROUND_SOCKET).chain([&BPF]));
    }
    let mut seen: Vec<&str> = Vec::new();
    refusals.retain(|one| {
        let new = !seen.contains(&one.what);
        seen.push(one.what);
        new
    });
    let mut rules = Vec::new();
    for refusal in &refusals {
        match refusal.when {
            [] => rules.push(rule(refusal.calls, refusal.errno, &[])?),
            any => {
                for when in any {
                    rules.push(rule(refusal.calls, refusal.errno, &[when])?);
                }
            }
        }
    }
    if network {
        for [family, kind] in &RAW_IP {
            rules.push(rule(&["socket"], libc::EPERM, &[family, kind])?);
        }
    }
    let mut filter = LinuxSeccomp::default();
    filter
        .set_default_action(LinuxSeccompAction::ScmpActAllow)
        .set_architectures(Some(architectures()))
        .set_syscalls(Some(rules));
    let refuses = refusals.iter().map(|one| one.what.to_string()).collect();
    Ok(Supplement {
        refuses,
        program: crate::seccomp::compile(&filter)?,
    })
}

fn rule(calls: &[&str], errno: i32, when: &[&When]) -> Result<LinuxSyscall> {
    let arg = |when: &&When| {
        let arg = LinuxSeccompArgBuilder::default()
            .index(when.index)
            .op(when.op)
            .value(when.value);
        match when.two {
            Some(two) => arg.value_two(two).build(),
            None => arg.build(),
        }
        .map_err(|error| Error::new(Kind::System, format!("the supplementary filter: {error}")))
    };
    let args: Vec<LinuxSeccompArg> = when.iter().map(arg).collect::<Result<_>>()?;
    let mut rule = LinuxSyscall::default();
    rule.set_names(calls.iter().map(|name| (*name).to_string()).collect())
        .set_action(LinuxSeccompAction::ScmpActErrno)
        .set_errno_ret(u32::try_from(errno).ok())
        .set_args((!args.is_empty()).then_some(args));
    Ok(rule)
}

/// Every interface of this machine: a filter kills calls by those that it is not for, and what the
/// container's own filter allows is its own affair.
fn architectures() -> Vec<Arch> {
    match cfg!(any(target_arch = "x86_64", target_arch = "x86")) {
        true => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        false => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
    }
}
