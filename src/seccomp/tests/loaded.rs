//! The running kernel takes the programs and does what they say. A filter without TSYNC is one
//! thread's, so each test has a thread of its own for it.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::{chdir, getpgid, getppid, getsid};

use super::*;
use crate::sys::seccomp::load;

/// Runs `calls` in a new thread under the compiled profile.
fn under<T: Send + 'static>(
    spec: &LinuxSeccomp,
    calls: impl FnOnce(Option<OwnedFd>) -> T + Send + 'static,
) -> T {
    let program = compile(spec).unwrap();
    let thread = std::thread::spawn(move || {
        set_no_new_privs().unwrap();
        let listener = load(&program.instructions, program.flags).unwrap();
        calls(listener)
    });
    thread.join().unwrap()
}

#[test]
fn the_kernel_takes_captured_profiles() {
    let audit = |name| {
        under(&captured(name), |listener| {
            assert!(listener.is_none());
            assert_eq!(open(AddressFamily::Vsock, None).err(), Some(Errno::EPERM));
            assert!(open(AddressFamily::Netlink, SockProtocol::NetlinkRoute.into()).is_ok());
            open(AddressFamily::Netlink, SockProtocol::NetlinkAudit.into()).err()
        })
    };
    assert_eq!(audit("podman"), Some(Errno::EINVAL));
    assert_eq!(audit("docker"), None);
}

fn open(family: AddressFamily, protocol: Option<SockProtocol>) -> nix::Result<OwnedFd> {
    socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
}

#[test]
fn errno_by_call_and_by_argument() {
    let spec = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[
            {"names":["chdir"],"action":"SCMP_ACT_ERRNO","errnoRet":18},
            {"names":["getsid"],"action":"SCMP_ACT_ERRNO","errnoRet":0},
            {"names":["lseek"],"action":"SCMP_ACT_ERRNO","errnoRet":34,
             "args":[{"index":1,"value":4294967301,"op":"SCMP_CMP_GT"},
                     {"index":2,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let results = under(&spec, |_| {
        let mut file = File::open("/proc/self/exe").unwrap();
        let seeks = [5, (1 << 32) + 5, (1 << 32) + 6, 2 << 32].map(|at| {
            file.seek(SeekFrom::Start(at))
                .map_err(|error| error.raw_os_error())
        });
        let relative = file
            .seek(SeekFrom::Current(1 << 34))
            .map_err(|error| error.raw_os_error());
        (
            chdir("/").err(),
            getsid(None).map(|id| id.as_raw()),
            seeks,
            relative,
            getpgid(None),
        )
    });
    assert_eq!(results.0, Some(Errno::EXDEV));
    // errno 0: the call is not made, and seems to succeed with 0.
    assert_eq!(results.1, Ok(0));
    let refused = Err(Some(Errno::ERANGE as i32));
    assert_eq!(results.2, [Ok(5), Ok((1 << 32) + 5), refused, refused]);
    assert_eq!(results.3, Ok((1 << 32) + 5 + (1 << 34)));
    assert_eq!(results.4, getpgid(None));
}

#[test]
fn a_listener_comes_back() {
    let spec = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/none","syscalls":[
            {"names":["mount"],"action":"SCMP_ACT_NOTIFY"}]}"#,
    );
    let flags = under(&spec, |listener| {
        nix::fcntl::fcntl(listener.unwrap(), nix::fcntl::FcntlArg::F_GETFD).unwrap()
    });
    assert_eq!(flags, libc::FD_CLOEXEC);
}

#[test]
fn the_kernel_takes_random_programs() {
    let mut random = Random::new(0xbee);
    let names: Vec<_> = all_names()
        .into_iter()
        .filter(|name| ["mount", "swapon", "acct"].contains(name))
        .collect();
    for _ in 0..50 {
        let spec = {
            let mut spec = random.profile(6, &names, &OPS);
            spec.set_default_action(oci_spec::runtime::LinuxSeccompAction::ScmpActAllow);
            spec
        };
        if compile(&spec).is_ok() {
            assert_eq!(under(&spec, |_| getppid()), getppid());
        }
    }
}
