//! The steps of a container, one after another, in namespaces of their own.
//!
//! ```text
//! create, map, map-range        a user namespace and its maps           (chain "user" only)
//! mount                         a mount namespace
//!   private tmpfs bind readonly mount-api devpts mknod bind-node idmap-tmpfs idmap-root pivot_root
//! pid                           and in it: proc, proc-bind, ns_last_pid
//! net                           and in it: loopback, sysfs
//! ipc                           and in it: mqueue
//! uts                           and in it: hostname
//! cgroup                        and in it: cgroup-mount
//! time
//! ```
//!
//! A branch is a process; what fails in one leaves the others as they are. Mounts are made in the
//! branches' mount namespaces and end with them.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount as mount2, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::Pid;

use super::maps;
use super::run::{Teller, Tried};
use crate::host::{Answer, Outcome};
use crate::sys::clone::CLONE_NEWTIME;
use crate::sys::mount as api;
use crate::sys::process;

const NONE: Option<&str> = None;
const USER: u64 = libc::CLONE_NEWUSER as u64;
const MOUNT: u64 = libc::CLONE_NEWNS as u64;

const IN_MOUNT: [&str; 11] = [
    "private",
    "tmpfs",
    "bind",
    "readonly",
    "mount-api",
    "devpts",
    "mknod",
    "bind-node",
    "idmap-tmpfs",
    "idmap-root",
    "pivot_root",
];

/// A kind of namespace with what is done in it.
struct Branch {
    name: &'static str,
    flags: u64,
    inside: &'static [&'static str],
    work: fn(&Teller),
}

const BRANCHES: [Branch; 6] = [
    Branch {
        name: "pid",
        flags: MOUNT | libc::CLONE_NEWPID as u64,
        inside: &["proc", "proc-bind", "ns_last_pid"],
        work: in_pid,
    },
    Branch {
        name: "net",
        flags: MOUNT | libc::CLONE_NEWNET as u64,
        inside: &["loopback", "sysfs"],
        work: in_net,
    },
    Branch {
        name: "ipc",
        flags: MOUNT | libc::CLONE_NEWIPC as u64,
        inside: &["mqueue"],
        work: in_ipc,
    },
    Branch {
        name: "uts",
        flags: libc::CLONE_NEWUTS as u64,
        inside: &["hostname"],
        work: in_uts,
    },
    Branch {
        name: "cgroup",
        flags: MOUNT | libc::CLONE_NEWCGROUP as u64,
        inside: &["cgroup-mount"],
        work: in_cgroup,
    },
    Branch {
        name: "time",
        flags: CLONE_NEWTIME,
        inside: &[],
        work: |_| {},
    },
];

/// The chain of a container without a user namespace of its own.
pub fn root(tell: &Teller) {
    steps(tell);
}

/// The chain of a container in a new user namespace.
pub fn user(tell: &Teller) {
    tell.begin("create");
    let born = tell.born(
        USER,
        |pid| {
            tell.end("create", Outcome::ok("clone3 with CLONE_NEWUSER"));
            tell.try_it("map", || maps::own(pid));
        },
        || {
            // Without a map there is nobody who could do anything. What AppArmor says of the capabilities
            // (Ubuntu: none) is not asked: the steps show it, with the errno.
            match mapped() {
                true => steps(tell),
                false => skip_all(tell, "map"),
            }
        },
    );
    match born {
        Err(errno) => {
            let step = "clone3 with CLONE_NEWUSER".to_string();
            tell.end("create", Outcome::failed(errno as i32, step));
            tell.skip(&["map", "map-range"], "create");
            skip_all(tell, "create");
        }
        Ok(()) => map_range(tell),
    }
}

/// A second user namespace with a range of ids: a process has one chance to have its map written.
fn map_range(tell: &Teller) {
    tell.begin("map-range");
    let born = tell.born(
        USER,
        |pid| match maps::range(pid) {
            None => {
                let why = "this user namespace has no further ids to give away";
                tell.end("map-range", Outcome::other(Answer::Absent, why));
            }
            Some(Ok(found)) => tell.end("map-range", Outcome::ok(found)),
            Some(Err((errno, step))) => {
                tell.end("map-range", Outcome::failed(errno as i32, step));
            }
        },
        || {},
    );
    if let Err(errno) = born {
        let step = "clone3 with CLONE_NEWUSER".to_string();
        tell.end("map-range", Outcome::failed(errno as i32, step));
    }
}

fn mapped() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !map.trim().is_empty())
}

fn skip_all(tell: &Teller, before: &str) {
    tell.skip(&["mount"], before);
    tell.skip(&IN_MOUNT, before);
    for branch in &BRANCHES {
        tell.skip(&[branch.name], before);
        tell.skip(branch.inside, before);
    }
}

fn steps(tell: &Teller) {
    let works = branch(tell, "mount", MOUNT, &IN_MOUNT, in_mount);
    for one in &BRANCHES {
        if one.flags & MOUNT != 0 && !works {
            tell.skip(&[one.name], "mount");
            tell.skip(one.inside, "mount");
        } else {
            branch(tell, one.name, one.flags, one.inside, one.work);
        }
    }
}

/// A child in these namespaces, and in it `work`, where what is mounted stays there. Whether it was born.
fn branch(
    tell: &Teller,
    name: &'static str,
    flags: u64,
    inside: &[&str],
    work: fn(&Teller),
) -> bool {
    tell.begin(name);
    let works = || tell.end(name, Outcome::ok(""));
    let work = || match name != "mount" && flags & MOUNT != 0 && make_private().is_err() {
        // What is mounted here would be mounted for the machine, too (/ is no mount in a chroot, or a
        // filter knows only the older call).
        true => tell.skip(inside, "private"),
        false => work(tell),
    };
    match tell.born(flags, |_| works(), work) {
        Ok(()) => true,
        Err(errno) => {
            let step = format!("make a new {name} namespace");
            tell.end(name, Outcome::failed(errno as i32, step));
            tell.skip(inside, name);
            false
        }
    }
}

/// The errno and what was refused.
fn at(step: impl Into<String>) -> impl FnOnce(Errno) -> (Errno, String) {
    let step = step.into();
    move |errno| (errno, step)
}

/// The newer call is denied where an older one may do: no such call, or a filter.
fn denied(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSYS | Errno::EPERM | Errno::EACCES)
}

fn make_private() -> nix::Result<()> {
    mount2(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
}

/// A directory to mount on, in this mount namespace only.
fn base() -> PathBuf {
    let candidates = ["/tmp", "/run", "/var", "/mnt", "/usr", "/dev"];
    let found = candidates.iter().find(|path| Path::new(path).is_dir());
    found.map_or_else(|| "/".into(), PathBuf::from)
}

fn open_dir(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}

/// A detached mount of a new file system.
fn detached(fstype: &CStr, data: &[(&CStr, &CStr)], readonly: bool) -> nix::Result<OwnedFd> {
    let context = api::fsopen(fstype)?;
    if readonly {
        api::fsconfig_set(context.as_fd(), c"ro", None)?;
    }
    for (key, value) in data {
        api::fsconfig_set(context.as_fd(), key, (!value.is_empty()).then_some(*value))?;
    }
    api::fsconfig_create(context.as_fd())?;
    let set = if readonly { api::attr::RDONLY } else { 0 };
    api::fsmount(context.as_fd(), set)
}

/// Mounts a new file system on `target`, by the newer calls or mount(2), as the engine does.
fn fresh(fstype: &CStr, target: &Path, data: &[(&CStr, &CStr)]) -> Tried {
    mounted(fstype, target, data, false)
}

fn mounted(fstype: &CStr, target: &Path, data: &[(&CStr, &CStr)], readonly: bool) -> Tried {
    let name = fstype.to_string_lossy();
    let how = if readonly { " read-only" } else { "" };
    let step = format!("mount {name}{how} on {}", target.display());
    let by_descriptor = detached(fstype, data, readonly)
        .and_then(|mount| api::move_mount(mount.as_fd(), open_dir(target)?.as_fd()));
    match by_descriptor {
        Ok(()) => Ok(step),
        Err(errno) if denied(errno) => {
            let options: Vec<String> = data
                .iter()
                .map(|(key, value)| match value.is_empty() {
                    true => key.to_string_lossy().into_owned(),
                    false => format!("{}={}", key.to_string_lossy(), value.to_string_lossy()),
                })
                .collect();
            let options = options.join(",");
            let data = (!options.is_empty()).then_some(options.as_str());
            let name = Some(name.as_ref());
            let mut flags = MsFlags::empty();
            flags.set(MsFlags::MS_RDONLY, readonly);
            match mount2(name, target, name, flags, data) {
                Ok(()) => Ok(step),
                // Of the two answers the one that says why: that of a filter says nothing.
                Err(older) => Err((if older == Errno::ENOSYS { errno } else { older }, step)),
            }
        }
        Err(errno) => Err((errno, step)),
    }
}

/// Binds `source` (with what is below it) on `target`.
fn bind(source: &CStr, target: &Path) -> Tried {
    let shown = source.to_string_lossy();
    let step = format!("bind {shown} on {}", target.display());
    // Absolute paths do not look at the directory.
    let tree = open_dir(Path::new("/"))
        .and_then(|root| api::open_tree_clone(root.as_fd(), source, true))
        .and_then(|tree| {
            let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
            let at = nix::fcntl::open(target, flags, Mode::empty())?;
            api::move_mount(tree.as_fd(), at.as_fd())
        });
    match tree {
        Err(errno) if denied(errno) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount2(Some(shown.as_ref()), target, NONE, flags, NONE)
        }
        other => other,
    }
    .map(|()| step.clone())
    .map_err(at(step))
}

fn readonly(target: &Path) -> Tried {
    let step = format!("make {} read-only", target.display());
    let set = nix::fcntl::open(target, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|mount| api::mount_setattr(&mount, false, api::attr::RDONLY, 0, 0));
    match set {
        Err(errno) if denied(errno) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount2(NONE, target, NONE, flags | locked(target), NONE)
        }
        other => other,
    }
    .map_err(at(step.clone()))?;
    // What was asked for is in force.
    match std::fs::write(target.join("isorun-doctor"), "") {
        Err(error) if error.raw_os_error() == Some(libc::EROFS) => Ok(step),
        Err(error) => Err((
            error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
            step,
        )),
        Ok(()) => Err((Errno::EIO, format!("{step}: it can be written to"))),
    }
}

/// The flags of a mount that mount(2) must repeat: in a user namespace they are locked.
fn locked(target: &Path) -> MsFlags {
    use nix::sys::statvfs::{FsFlags, statvfs};
    let mut flags = MsFlags::empty();
    if let Ok(stat) = statvfs(target) {
        for (told, flag) in [
            (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
            (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
            (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        ] {
            flags.set(flag, stat.flags().contains(told));
        }
    }
    flags
}

fn in_mount(tell: &Teller) {
    let base = base();
    let private = tell.try_it("private", || {
        make_private()
            .map(|()| String::new())
            .map_err(at("make / private"))
    });
    if !private {
        tell.skip(&IN_MOUNT[1..], "private");
        return;
    }
    if !tell.try_it("tmpfs", || fresh(c"tmpfs", &base, &[])) {
        tell.skip(&IN_MOUNT[2..], "tmpfs");
        return;
    }
    // By the path anew: the working directory is what lies below the mount.
    let dir = |name: &str| {
        let path = base.join(name);
        let _ = std::fs::create_dir(&path);
        path
    };
    let bound = dir("bound");
    if tell.try_it("bind", || {
        bind(c"/proc", &bound).or_else(|_| bind(c"/", &bound))
    }) {
        let own = dir("readonly");
        tell.try_it("readonly", || {
            fresh(c"tmpfs", &own, &[])?;
            readonly(&own)
        });
    } else {
        tell.skip(&["readonly"], "bind");
    }
    tell.try_it("mount-api", || {
        let mount = detached(c"tmpfs", &[], false).map_err(at("fsopen, fsconfig, fsmount"))?;
        api::mount_setattr(&mount, false, api::attr::NOEXEC, 0, 0).map_err(at("mount_setattr"))?;
        let to = dir("api");
        let to = open_dir(&to).map_err(at("open a directory"))?;
        api::move_mount(mount.as_fd(), to.as_fd()).map_err(at("move_mount"))?;
        Ok("fsopen, fsmount, mount_setattr, move_mount".into())
    });
    let options = [
        (c"newinstance", c""),
        (c"ptmxmode", c"0666"),
        (c"mode", c"0620"),
    ];
    tell.try_it("devpts", || fresh(c"devpts", &dir("pts"), &options));
    nodes(tell, &base);
    idmaps(tell, &dir("idmap"));
    tell.try_it("pivot_root", || pivot(&base));
}

fn nodes(tell: &Teller, base: &Path) {
    let node = base.join("null");
    tell.try_it("mknod", || {
        let device = nix::sys::stat::makedev(1, 3);
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&node, SFlag::S_IFCHR, mode, device)
            .map_err(at("mknod of a character device 1:3"))?;
        usable(&node).map_err(at("open the new device 1:3"))?;
        Ok("character device 1:3".into())
    });
    let file = base.join("bound-null");
    tell.try_it("bind-node", || {
        std::fs::write(&file, "").map_err(|_| (Errno::EIO, "make a file".to_string()))?;
        let bound = bind(c"/dev/null", &file)?;
        usable(&file).map_err(at("open the bound /dev/null"))?;
        Ok(bound)
    });
}

fn usable(device: &Path) -> nix::Result<()> {
    nix::fcntl::open(device, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map(drop)
}

/// Mounts whose owners are shown through another user namespace: of a new tmpfs, and of what / is on.
fn idmaps(tell: &Teller, dir: &Path) {
    let mut userns = None;
    let born = tell.born(
        USER,
        |pid| {
            if maps::own(pid).is_ok() {
                let path = format!("/proc/{pid}/ns/user");
                let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
                userns = nix::fcntl::open(path.as_str(), flags, Mode::empty()).ok();
            }
        },
        || {},
    );
    let Some(userns) = userns.filter(|_| born.is_ok()) else {
        for probe in ["idmap-tmpfs", "idmap-root"] {
            let why = "needs a user namespace whose maps can be used";
            tell.end(probe, Outcome::other(Answer::Skipped, why));
        }
        return;
    };
    tell.try_it("idmap-tmpfs", || {
        let mount = detached(c"tmpfs", &[], false).map_err(at("fsmount of a tmpfs"))?;
        idmap(&mount, userns.as_fd(), dir)
    });
    tell.try_it("idmap-root", || {
        let root = open_dir(Path::new("/")).map_err(at("open /"))?;
        // With all below it: in a user namespace what is mounted there may not be uncovered.
        let tree = api::open_tree_clone(root.as_fd(), c"", true).map_err(at("open_tree of /"))?;
        idmap(&tree, userns.as_fd(), dir)
    });
}

fn idmap(mount: &OwnedFd, userns: BorrowedFd<'_>, dir: &Path) -> Tried {
    api::mount_idmap(mount.as_fd(), false, userns)
        .map_err(at("mount_setattr with MOUNT_ATTR_IDMAP"))?;
    open_dir(dir)
        .and_then(|to| api::move_mount(mount.as_fd(), to.as_fd()))
        .map_err(at("move_mount of an id-mapped mount"))?;
    Ok(String::new())
}

fn pivot(base: &Path) -> Tried {
    nix::unistd::chdir(base).map_err(at("enter the new root"))?;
    nix::unistd::pivot_root(".", ".").map_err(at("pivot_root to a tmpfs"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("unmount the old root"))?;
    Ok(String::new())
}

fn in_pid(tell: &Teller) {
    let base = base();
    // Through the old one still: the new one, once mounted, covers it only where it is mounted.
    if tell.try_it("proc", || {
        let step = fresh(c"proc", &base, &[])?;
        // It is that of the new namespace: this process is its first.
        match std::fs::read_link(base.join("self")) {
            Ok(me) if me == Path::new("1") => Ok(step),
            _ => Err((
                Errno::EIO,
                format!("{step}: it is not that of the new pid namespace"),
            )),
        }
    }) {
        tell.end(
            "proc-bind",
            Outcome::other(Answer::Absent, "not needed: a new procfs can be mounted"),
        );
        tell.try_it("ns_last_pid", || last_pid(&base));
    } else {
        tell.try_it("proc-bind", || bind(c"/proc", &base));
        tell.skip(&["ns_last_pid"], "proc");
    }
}

/// Chooses where the pids of what is forked next begin.
fn last_pid(proc: &Path) -> Tried {
    let step = || "write sys/kernel/ns_last_pid of the new pid namespace".to_string();
    std::fs::write(proc.join("sys/kernel/ns_last_pid"), "8191").map_err(|error| {
        (
            error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
            step(),
        )
    })?;
    match crate::sys::clone::fork_into(0).map_err(at("fork"))? {
        0 => process::exit_now(0),
        pid => {
            let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
            match pid {
                8192 => Ok("the next pid is the chosen one".into()),
                other => Err((Errno::EIO, format!("{}: the next pid was {other}", step()))),
            }
        }
    }
}

fn in_net(tell: &Teller) {
    tell.try_it("loopback", || {
        crate::sys::net::loopback_up()
            .map(|()| String::new())
            .map_err(at("raise lo"))
    });
    // As engines ask for it. Where the one that is there is read-only, as in Docker's containers, a user
    // namespace gets no other that could be written to.
    tell.try_it("sysfs", || mounted(c"sysfs", &base(), &[], true));
}

fn in_ipc(tell: &Teller) {
    tell.try_it("mqueue", || fresh(c"mqueue", &base(), &[]));
}

fn in_uts(tell: &Teller) {
    tell.try_it("hostname", || {
        nix::unistd::sethostname("isorun-doctor")
            .map(|()| String::new())
            .map_err(at("sethostname"))
    });
}

fn in_cgroup(tell: &Teller) {
    let lacks = std::fs::read_to_string("/proc/filesystems")
        .is_ok_and(|list| !list.lines().any(|line| line.ends_with("\tcgroup2")));
    if lacks {
        let why = "the kernel has no cgroup2";
        tell.end("cgroup-mount", Outcome::other(Answer::Absent, why));
        return;
    }
    tell.try_it("cgroup-mount", || fresh(c"cgroup2", &base(), &[]));
}
