//! Single steps: filters, Landlock, limits, keys, newer system calls, /dev/shm, security modules.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::resource::Resource;
use nix::sys::stat::Mode;

use super::run::{Teller, Tried};
use crate::host::{Answer, Caps, Outcome};
use crate::sys::clone::{Born, clone3};
use crate::sys::{ask, fs, landlock, process, seccomp};

fn at(step: impl Into<String>) -> impl FnOnce(Errno) -> (Errno, String) {
    let step = step.into();
    move |errno| (errno, step)
}

fn io(step: impl Into<String>) -> impl FnOnce(std::io::Error) -> (Errno, String) {
    let step = step.into();
    move |error| {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        (errno, step)
    }
}

/// A filter that allows everything.
const ALLOW: [seccomp::Insn; 1] = [seccomp::Insn {
    code: 0x06,
    jt: 0,
    jf: 0,
    k: libc::SECCOMP_RET_ALLOW,
}];

/// A filter that refuses chdir(2) with EPROTO, which the kernel never gives for it.
const REFUSE: [seccomp::Insn; 4] = {
    const fn insn(code: u16, jt: u8, jf: u8, k: u32) -> seccomp::Insn {
        seccomp::Insn { code, jt, jf, k }
    }
    [
        // The number of the call, at offset 0 of struct seccomp_data.
        insn(0x20, 0, 0, 0),
        insn(0x15, 0, 1, libc::SYS_chdir as u32),
        insn(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPROTO as u32),
        insn(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
};

/// no_new_privs, then filters: one that refuses something and is seen to, then each flag.
pub fn filters(tell: &Teller) {
    let nnp = tell.try_it("no_new_privs", || {
        process::no_new_privs()
            .map(|()| String::new())
            .map_err(at("prctl(PR_SET_NO_NEW_PRIVS)"))
    });
    if !nnp {
        let rest = ["filter", "log", "spec_allow", "tsync", "listener"];
        tell.skip(&rest, "no_new_privs");
        return;
    }
    tell.try_it("filter", || {
        seccomp::load(&REFUSE, 0).map_err(at("load a filter"))?;
        match nix::unistd::chdir("/") {
            Err(Errno::EPROTO) => Ok("a call was refused by it".into()),
            _ => Err((Errno::EIO, "load a filter: it has no effect".into())),
        }
    });
    for (name, flag) in [
        ("log", seccomp::FLAG_LOG),
        ("spec_allow", seccomp::FLAG_SPEC_ALLOW),
        ("tsync", seccomp::FLAG_TSYNC),
        ("listener", seccomp::FLAG_NEW_LISTENER),
    ] {
        tell.try_it(name, || {
            seccomp::load(&ALLOW, flag)
                .map(|_| String::new())
                .map_err(at(format!("load a filter with the flag {name}")))
        });
    }
}

/// Landlock: the version, and a ruleset that is seen to confine.
pub fn landlock(tell: &Teller) {
    tell.begin("");
    let version = match landlock::abi() {
        Ok(version) => version,
        Err(errno @ (Errno::ENOSYS | Errno::EOPNOTSUPP)) => {
            let why = match errno {
                Errno::ENOSYS => "the kernel lacks it",
                _ => "it is not among the security modules that were chosen at boot (lsm=)",
            };
            let outcome = Outcome {
                errno: Some(errno as i32),
                ..Outcome::other(Answer::Absent, why)
            };
            tell.end("", outcome);
            return;
        }
        Err(errno) => {
            let step = "landlock_create_ruleset";
            tell.end("", Outcome::failed(errno as i32, step));
            return;
        }
    };
    tell.try_it("", || {
        process::no_new_privs().map_err(at("prctl(PR_SET_NO_NEW_PRIVS)"))?;
        landlock::deny(landlock::WRITE_FILE).map_err(at("restrict this process"))?;
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        match nix::fcntl::open("/dev/null", flags, Mode::empty()) {
            Err(Errno::EACCES) => Ok(format!("version {version}, and it confines")),
            _ => Err((Errno::EIO, "restrict this process: it has no effect".into())),
        }
    });
}

/// Limits that are higher than the caller's, and a lower chance to be killed for memory.
pub fn limits(tell: &Teller) {
    tell.try_it("rlimit", || {
        // Files: the one that engines raise; not beyond what the kernel allows to anybody.
        let nofile = Resource::RLIMIT_NOFILE as u32;
        let step = |hard| format!("raise RLIMIT_NOFILE from {hard} to {}", hard + 1);
        let (soft, hard) = process::get_rlimit(nofile).map_err(at("read RLIMIT_NOFILE"))?;
        let most = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap_or_default();
        if hard == u64::MAX || hard >= most.trim().parse().unwrap_or(1 << 20) {
            // The highest already: whether others can be raised shows another that is not.
            return other_limit();
        }
        process::prlimit(0, nofile, soft, hard + 1).map_err(at(step(hard)))?;
        Ok(step(hard))
    });
    tell.try_it("oom_score_adj", || {
        let path = "/proc/self/oom_score_adj";
        let now = std::fs::read_to_string(path).map_err(io(format!("read {path}")))?;
        let now: i32 = now.trim().parse().unwrap_or(0);
        let step = format!("lower oom_score_adj from {now} to -1000");
        std::fs::write(path, "-1000").map_err(io(step.clone()))?;
        Ok(step)
    });
}

fn other_limit() -> Tried {
    for (name, number) in [
        ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
        ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
        ("RLIMIT_NICE", Resource::RLIMIT_NICE),
        ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
        ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
    ] {
        let number = number as u32;
        let Ok((soft, hard)) = process::get_rlimit(number) else {
            continue;
        };
        if hard != u64::MAX {
            let step = format!("raise {name} from {hard} to {}", hard + 1);
            process::prlimit(0, number, soft, hard + 1).map_err(at(step.clone()))?;
            return Ok(step);
        }
    }
    Ok("all are the highest already".into())
}

/// A session keyring of its own.
pub fn keyring(tell: &Teller) {
    tell.try_it("", || {
        process::join_session_keyring(Some(c"isorun-doctor"))
            .map(|_| String::new())
            .map_err(at("keyctl(KEYCTL_JOIN_SESSION_KEYRING)"))
    });
}

/// Newer system calls that have older ones in their place, and memfds.
pub fn newer(tell: &Teller) {
    tell.begin("clone3");
    match clone3(0, None) {
        Ok(Born::Child) => process::exit_now(0),
        Ok(Born::Parent(pid, _)) => {
            let _ = nix::sys::wait::waitpid(pid, None);
            tell.end("clone3", Outcome::ok(""));
        }
        Err(errno) => tell.end("clone3", Outcome::failed(errno as i32, "clone3")),
    }
    tell.try_it("openat2", || {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open("/", flags, Mode::empty()).map_err(at("open /"))?;
        let resolve = fs::resolve::IN_ROOT;
        fs::openat2(root.as_fd(), c"proc", libc::O_PATH, 0, resolve).map_err(at("openat2"))?;
        Ok(String::new())
    });
    tell.try_it("pidfd", || {
        let own = process::pidfd_open(std::process::id() as i32).map_err(at("pidfd_open"))?;
        process::pidfd_signal(own.as_fd(), 0).map_err(at("pidfd_send_signal"))?;
        Ok(String::new())
    });
    tell.try_it("memfd", || {
        let file = fs::memfd(c"isorun-doctor").map_err(at("memfd_create"))?;
        nix::unistd::write(&file, b"x").map_err(at("write to a memfd"))?;
        fs::seal(file.as_fd()).map_err(at("seal a memfd"))?;
        match nix::unistd::write(&file, b"x") {
            Err(Errno::EPERM) => {}
            _ => return Err((Errno::EIO, "seal a memfd: it can be written to".into())),
        }
        match fs::maps_executable(file.as_fd()) {
            Ok(()) => Ok("sealed; its contents can be executed".into()),
            Err(_) => Ok("sealed; its contents cannot be executed".into()),
        }
    });
    // Last: it closes what is open, but for the pipe.
    tell.try_it("close_range", || {
        const FAR: u32 = 1 << 30;
        fs::close_range(FAR, FAR).map_err(at("close_range"))?;
        Ok(String::new())
    });
}

/// /dev/shm: what it is, its size, whether what is in it can be executed.
pub fn shm(tell: &Teller) {
    let path = "/dev/shm";
    tell.try_it("", || {
        let stat = nix::sys::statfs::statfs(path).map_err(at(format!("look at {path}")))?;
        let tmpfs = stat.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC;
        let bytes = stat.blocks() * stat.block_size() as u64;
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        let file = nix::fcntl::open(path, flags, Mode::from_bits_truncate(0o600))
            .map_err(at(format!("make a file in {path}")))?;
        nix::unistd::write(&file, b"x").map_err(at(format!("write to a file in {path}")))?;
        let exec = match fs::maps_executable(file.as_fd()) {
            Ok(()) => "exec",
            Err(_) => "noexec",
        };
        let kind = if tmpfs { "tmpfs" } else { "no tmpfs" };
        Ok(format!("{kind}, {} MiB, {exec}", bytes >> 20))
    });
}

/// Whether an AppArmor profile can be loaded: a text that is none is refused for what it is, or for who
/// wants to load it. Nothing is loaded.
pub fn apparmor_load(tell: &Teller) {
    let path = "/sys/kernel/security/apparmor/.replace";
    tell.try_it("", || {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file =
            nix::fcntl::open(path, flags, Mode::empty()).map_err(at(format!("open {path}")))?;
        match nix::unistd::write(&file, b"isorun doctor") {
            Err(errno @ (Errno::EACCES | Errno::EPERM)) => Err((errno, "load a profile".into())),
            _ => Ok(String::new()),
        }
    });
}

/// The system calls that somebody answers in the kernel's place: each asked by a process of its own, as
/// a filter may kill for it.
pub fn asked(tell: &Teller) {
    let caps = Caps::effective();
    for call in &ask::CALLS {
        if call.needs.is_some_and(|cap| !caps.has(cap)) {
            continue;
        }
        tell.begin(call.name);
        let work = || match call.refused() {
            None => tell.end(call.name, Outcome::ok("")),
            Some(errno) => {
                let what = format!("{} with arguments that do nothing", call.name);
                tell.end(call.name, Outcome::failed(errno as i32, what));
            }
        };
        if let Err(errno) = tell.forked(work) {
            tell.end(call.name, Outcome::failed(errno as i32, "fork"));
        }
    }
}

/// Answers of [`asked`] are told apart from others by this prefix.
pub const ASKED: &str = "call";
