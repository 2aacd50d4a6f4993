//! Tests of the rules and of the filter.

use super::*;
use crate::seccomp::Insn;

fn spec(readonly: bool) -> Spec {
    serde_json::from_value(serde_json::json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": readonly},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/d", "options": ["bind", "rw"]},
            {"destination": "/data/old", "type": "bind", "source": "/o", "options": ["bind", "ro"]},
            {"destination": "/all", "type": "bind", "source": "/a", "options": ["rbind", "rro"]},
            {"destination": "tmp/", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/late", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/late", "source": "x", "options": ["remount", "bind", "ro"]}
        ],
        "linux": {"devices": [{"path": "/opt/disk", "type": "b", "major": 8, "minor": 0}]}
    }))
    .unwrap()
}

fn changed(spec: &Spec) -> Vec<String> {
    let linux = spec.linux().clone().unwrap();
    let rules = rules(spec, &linux, true).unwrap();
    let may = |rule: &&Rule| rule.may.contains(&May::Change);
    rules
        .iter()
        .filter(may)
        .map(|rule| rule.path.clone())
        .collect()
}

#[test]
fn rules_mirror_the_mounts() {
    assert_eq!(changed(&spec(false)), ["/"]);
    let paths = changed(&spec(true));
    for writable in ["/proc", "/data", "/tmp", "/dev/null", "/opt/disk"] {
        assert!(
            paths.iter().any(|path| path == writable),
            "{writable}: {paths:?}"
        );
    }
    for readonly in ["/", "/data/old", "/all", "/late"] {
        assert!(
            !paths.iter().any(|path| path == readonly),
            "{readonly}: {paths:?}"
        );
    }
}

#[test]
fn nothing_is_made_up_for_that_is_not_lost() {
    let spec = spec(true);
    let linux = spec.linux().clone().unwrap();
    for rows in [&[][..], &[Feature::Rlimit, Feature::Procfs]] {
        assert_eq!(plan(rows, &spec, &linux, 7).unwrap(), None);
    }
    let found = plan(&[Feature::Apparmor], &spec, &linux, 99)
        .unwrap()
        .unwrap();
    assert_eq!(found.landlock.abi, NEWEST_ABI);
    assert_eq!(impossible(Feature::Apparmor, 1), None);
    assert!(impossible(Feature::Apparmor, 0).unwrap().contains("lsm="));
    let old = impossible(Feature::Network, 5).unwrap();
    assert!(old.contains("ABI 6") && old.contains("ABI 5"), "{old}");
}

/// What the filter says to a call of x86_64 with these arguments.
fn verdict(program: &[Insn], call: i64, args: [u64; 2]) -> u32 {
    const X86_64: u32 = 0xc000_003e;
    let word = |offset: u32| match offset {
        0 => call as u32,
        4 => X86_64,
        16 => args[0] as u32,
        20 => (args[0] >> 32) as u32,
        24 => args[1] as u32,
        28 => (args[1] >> 32) as u32,
        _ => 0,
    };
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let Insn { code, jt, jf, k } = program[at];
        let jump = |yes: bool| usize::from(if yes { jt } else { jf });
        at += 1;
        match code {
            0x20 => accumulator = word(k),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x45 => at += jump(accumulator & k != 0),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_filter_refuses_what_it_says() {
    let errno = |errno: i32| libc::SECCOMP_RET_ERRNO | errno as u32;
    let allow = libc::SECCOMP_RET_ALLOW;
    let network = filter::supplement(&[Feature::Network], &Linux::default())
        .unwrap()
        .program;
    let apparmor = filter::supplement(&[Feature::Apparmor], &Linux::default())
        .unwrap()
        .program;
    let socket = |family: i32, kind: i32| {
        let args = [family as u64, (kind | libc::SOCK_CLOEXEC) as u64];
        verdict(&network.instructions, libc::SYS_socket, args)
    };
    for (family, kind, said) in [
        (libc::AF_INET, libc::SOCK_RAW, errno(libc::EPERM)),
        (libc::AF_INET6, libc::SOCK_RAW, errno(libc::EPERM)),
        (libc::AF_INET, 10, errno(libc::EPERM)),
        (libc::AF_PACKET, libc::SOCK_DGRAM, errno(libc::EPERM)),
        (libc::AF_VSOCK, libc::SOCK_STREAM, errno(libc::EPERM)),
        (libc::AF_X25, libc::SOCK_STREAM, errno(libc::EPERM)),
        (libc::AF_INET, libc::SOCK_STREAM, allow),
        (libc::AF_INET6, libc::SOCK_DGRAM, allow),
        (libc::AF_NETLINK, libc::SOCK_RAW, allow),
        (libc::AF_UNIX, libc::SOCK_SEQPACKET, allow),
    ] {
        assert_eq!(socket(family, kind), said, "{family} {kind}");
    }
    for (call, in_network, in_apparmor) in [
        (libc::SYS_mount, errno(libc::EPERM), errno(libc::EPERM)),
        (libc::SYS_move_mount, errno(libc::EPERM), errno(libc::EPERM)),
        (
            libc::SYS_init_module,
            errno(libc::EPERM),
            errno(libc::EPERM),
        ),
        (libc::SYS_io_uring_setup, errno(libc::ENOSYS), allow),
        (libc::SYS_socket, allow, allow),
        (libc::SYS_seccomp, allow, allow),
        (libc::SYS_execve, allow, allow),
        (libc::SYS_landlock_restrict_self, allow, allow),
    ] {
        for (program, said) in [(&network, in_network), (&apparmor, in_apparmor)] {
            assert_eq!(verdict(&program.instructions, call, [1, 1]), said, "{call}");
            assert_eq!(program.listener_path, None);
            assert!(program.unknown.is_empty(), "{:?}", program.unknown);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn keys_are_for_nobody_without_a_user_namespace() {
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let filter = |row| {
        let made = filter::supplement(&[row], &Linux::default()).unwrap();
        made.program.instructions
    };
    let root = filter(Feature::UsernsRoot);
    let apparmor = filter(Feature::Apparmor);
    for call in [libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key] {
        assert_eq!(verdict(&root, call, [0, 0]), refused, "{call}");
        let said = verdict(&apparmor, call, [0, 0]);
        assert_eq!(said, libc::SECCOMP_RET_ALLOW, "{call}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_filter_of_the_sandbox() {
    const CLOEXEC: u64 = libc::SOCK_CLOEXEC as u64;
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let allow = libc::SECCOMP_RET_ALLOW;
    let linux = |kinds: &[&str]| -> Linux {
        let listed: Vec<_> = kinds
            .iter()
            .map(|kind| serde_json::json!({"type": kind}))
            .collect();
        serde_json::from_value(serde_json::json!({"namespaces": listed})).unwrap()
    };
    let filter = |kinds: &[&str]| {
        let program = filter::supplement(&[Feature::UsernsUser], &linux(kinds)).unwrap();
        program.program.instructions
    };
    let (all, none) = (filter(&["network", "ipc"]), filter(&[]));
    for (call, args, said) in [
        (libc::SYS_ioctl, [0, 0x5401], allow),
        (libc::SYS_ioctl, [0, 0x541b], allow),
        (libc::SYS_ioctl, [0, 0x5412], refused),
        (libc::SYS_ioctl, [0, 0x1_0000_5412], refused),
        (libc::SYS_ioctl, [0, 0x9409], refused),
        (libc::SYS_ioctl, [0, 0x40], refused),
        (libc::SYS_ioctl, [0, 0x4008_6602], refused),
        (libc::SYS_prlimit64, [0, 7], allow),
        (libc::SYS_prlimit64, [5, 7], refused),
        (libc::SYS_ptrace, [0, 0], refused),
        (libc::SYS_fchmod, [0, 0], refused),
        (libc::SYS_utimensat, [0, 0], refused),
        (libc::SYS_keyctl, [0, 0], refused),
        (libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0], refused),
        (libc::SYS_socketpair, [1, 1], allow),
        (libc::SYS_socketpair, [1, 5 | CLOEXEC], allow),
        (libc::SYS_socketpair, [1, 2], refused),
        (libc::SYS_socketpair, [1, 2 | CLOEXEC], refused),
        (libc::SYS_socketpair, [1, 3], refused),
        (libc::SYS_socketpair, [0x1_0000_0000, 1], refused),
        (libc::SYS_socketpair, [libc::AF_TIPC as u64, 1], refused),
        (libc::SYS_socket, [libc::AF_UNIX as u64, 1], refused),
        (libc::SYS_seccomp, [1, 0], allow),
    ] {
        for program in [&all, &none] {
            assert_eq!(verdict(program, call, args), said, "{call} {args:x?}");
        }
    }
    for (call, args) in [
        (libc::SYS_socket, [libc::AF_INET as u64, 1]),
        (libc::SYS_shmget, [0, 0]),
        (libc::SYS_mq_open, [0, 0]),
    ] {
        assert_eq!(verdict(&all, call, args), refused, "{call}");
        assert_eq!(verdict(&none, call, args), allow, "{call}");
    }
}
