//! The part of the plan that makes the container's file system.

use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount as SpecMount, Process as SpecProcess};

use super::build::{Context, below, id_map};
use super::channels;
use super::confine::Confinement;
use super::labels;
use super::nodev;
use super::step::{Action, Device, IdMapping, Mount, MountKind, NodeAsked, Step};
use super::unmapped;
use crate::cgroup;
use crate::error::{Error, Result};
use crate::spec::mounts::{
    IdMap, MountOptions, Propagation, PropagationKind, parse_mount, propagation,
};
use crate::spec::names;
use crate::sys::mount::attr;

/// The devices that every container has (config-linux.md, "Default Devices"): name and number.
pub(super) const DEFAULT_DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// The links of /dev: the specification's, and /dev/core as every engine expects it.
const DEV_LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// The first step on mounts, which keeps what is done in the new namespace from the host; none where the
/// mounts are the caller's.
///
/// # Errors
/// A propagation that is not safe with --no-pivot.
pub(super) fn propagation_of_all(context: &Context<'_>) -> Result<Option<Step>> {
    if context.shares_mounts() {
        return Ok(None);
    }
    let asked = context
        .linux
        .rootfs_propagation()
        .as_deref()
        .filter(|name| !name.is_empty());
    let flags = match asked.and_then(propagation) {
        // Not below it, where mounts may be asked to be slaves of the host's: what is private could not.
        Some(asked) if asked.kind == PropagationKind::Private && !asked.recursive => libc::MS_SLAVE,
        // What is unbindable could not become the root file system; a slave passes nothing on either.
        Some(asked) if asked.kind != PropagationKind::Unbindable => asked.ms_flags(),
        _ => libc::MS_SLAVE,
    };
    // A root that is to be shared is so alone: what is private on the host is private when it is bound.
    let alone = asked
        .and_then(propagation)
        .is_some_and(|asked| asked.kind == PropagationKind::Shared && !asked.recursive);
    let private = asked.is_some_and(|name| matches!(name, "private" | "rprivate"));
    if context.asked.no_pivot && private {
        return Err(Error::spec(
            "linux.rootfsPropagation",
            "rootfsPropagation of [r]private is not safe without pivot_root",
        ));
    }
    let flags = match alone {
        true => flags,
        false => flags | libc::MS_REC,
    };
    Ok(Some(Action::RootPropagation { flags }.into()))
}

/// Steps from the host's mounts, as [`propagation_of_all`] leaves them, to a filled root file system.
pub(super) fn root(context: &Context<'_>) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = vec![
        Action::OpenRoot {
            path: context.loaded.rootfs.clone(),
        }
        .into(),
    ];
    if !context.rules {
        // Before anything of the container's own is mounted in it, whose devices are wanted.
        steps.push(Action::NodevRoot.into());
    }
    let shm = channels::shm(context)?;
    let mut shm_is_due = shm.is_some();
    for (index, mount) in context.spec.mounts().iter().flatten().enumerate() {
        if let Some(shm) = &shm
            && resolved(&mount.destination().to_string_lossy()) == shm.target
        {
            // In its place among the others: what is mounted below it comes later.
            if std::mem::take(&mut shm_is_due) {
                steps.push(Action::Mount(shm.clone()).into());
            }
            continue;
        }
        let step = one(context, index, mount)?;
        let labelled = match &step.action {
            Action::Mount(mount) => labels::after_mount(context.linux, mount),
            _ => None,
        };
        steps.push(step);
        steps.extend(labelled);
    }
    if !context.rules && !own_dev(&steps) {
        return Err(Error::spec(
            "mounts",
            "the degradation \"device-rules\" cannot be had without a file system of the container's own on \
             /dev: the others have no devices then",
        ));
    }
    if shm_is_due {
        steps.extend(shm.map(|shm| Action::Mount(shm).into()));
    }
    // After those of config.json: /run is often one.
    steps.extend(channels::mounts(context));
    if !host_dev(context) {
        steps.extend(devices(context)?);
        let links = DEV_LINKS.map(|(path, target)| (path.to_string(), target.to_string()));
        steps.push(
            Action::DevLinks {
                links: links.to_vec(),
            }
            .into(),
        );
    }
    Ok(steps)
}

/// Whether /dev is a bind mount of somebody else's: then nothing is made in it.
fn host_dev(context: &Context<'_>) -> bool {
    let dev = |mount: &SpecMount| {
        let bind = mount.typ().as_deref() == Some("bind")
            || mount
                .options()
                .iter()
                .flatten()
                .any(|o| o == "bind" || o == "rbind");
        bind && resolved(&mount.destination().to_string_lossy()) == "/dev"
    };
    context.spec.mounts().iter().flatten().any(dev)
}

/// Whether /dev is a new file system.
fn own_dev(steps: &[Step]) -> bool {
    steps.iter().any(|step| match &step.action {
        Action::Mount(mount) => {
            mount.target == "/dev" && matches!(mount.what, MountKind::Fresh { .. })
        }
        _ => false,
    })
}

/// Options of a cgroup mount that are no flags: they are the hierarchy's, not the mount's, and a
/// container cannot change them; what is none of cgroup2's (Documentation/admin-guide/cgroup-v2) is a
/// mistake.
fn cgroup_options(field: &str, options: &MountOptions) -> Result<()> {
    const KNOWN: [&str; 7] = [
        "favordynmods",
        "memory_hugetlb_accounting",
        "memory_localevents",
        "memory_recursiveprot",
        "nofavordynmods",
        "nsdelegate",
        "pids_localevents",
    ];
    match options
        .data
        .iter()
        .find(|(name, _)| !KNOWN.contains(&name.as_str()))
    {
        Some((name, _)) => Err(Error::spec(
            format!("{field}.options"),
            format!("{name:?} is no option of a cgroup mount"),
        )),
        None => Ok(()),
    }
}

fn one(context: &Context<'_>, index: usize, mount: &SpecMount) -> Result<Step> {
    let field = format!("mounts[{index}]");
    let options = parse_mount(index, mount)?;
    check_over_proc(&field, mount, &options)?;
    let fstype = mount.typ().clone().unwrap_or_default();
    let data = |options: &MountOptions| {
        let flags = options
            .superblock_names()
            .into_iter()
            .map(|name| (name.to_string(), None));
        let mut data = flags.chain(options.data.iter().cloned()).collect();
        labels::label_data(context.linux, &fstype, &mut data);
        data
    };
    let source = mount.source().clone().unwrap_or_default();
    let what = if options.remount {
        MountKind::Remount {
            bind: options.bind,
            data: data(&options),
        }
    } else if options.bind {
        if source.as_os_str().is_empty() {
            return Err(Error::spec(
                format!("{field}.source"),
                "a bind mount needs a source",
            ));
        }
        MountKind::Bind {
            source: below(&context.loaded.bundle, &source),
            recursive: options.recursive_bind,
        }
    } else {
        MountKind::Fresh {
            source: shown_source(&source, &fstype),
            data: data(&options),
            fstype: fstype.clone(),
        }
    };
    // In one form, so that the engine knows /proc by its name however it is written.
    let target = resolved(&mount.destination().to_string_lossy());
    let mut options = options;
    if !options.bind {
        // There is nothing below a new file system: its own flags are all.
        options.set = options.set & !options.recursive_clear | options.recursive_set;
        options.clear |= options.recursive_clear;
        (options.recursive_set, options.recursive_clear) = (0, 0);
    }
    let mut propagation: Vec<u64> = options.propagation.iter().map(|p| p.ms_flags()).collect();
    let copies = options.bind || matches!(fstype.as_str(), "sysfs" | "cgroup" | "cgroup2");
    if context.shares_mounts() && copies && !options.remount {
        // Binds, and what binds may take the place of. A copy of a shared mount is a peer of it: what is mounted in the copy would show in it. With a
        // mount namespace of its own all that the container sees is a slave before it is copied.
        propagation.insert(0, libc::MS_SLAVE | libc::MS_REC);
    }
    let late = !options.bind && (fstype == "tmpfs" || target == "/dev");
    if !context.rules {
        nodev::apply((&field, &fstype, &target), &mut options, &mut propagation)?;
    }
    if unmapped::is_lost(&context.asked.without) && options.bind {
        // Only the choice of access times takes flags off.
        options.clear &= attr::ATIME | attr::NODIRATIME;
        options.recursive_clear &= attr::ATIME | attr::NODIRATIME;
    }
    let planned = Mount {
        field,
        target,
        what,
        set: options.set,
        clear: options.clear,
        recursive_set: options.recursive_set,
        recursive_clear: options.recursive_clear,
        late_readonly: late && options.set & attr::RDONLY != 0,
        copyup: options.tmpcopyup && fstype == "tmpfs",
        propagation,
        keeps: options.bind && unmapped::is_lost(&context.asked.without),
        idmap: id_mapping(context, index, mount, &options)?,
    };
    // Where v2 is all that there is, both types say the same.
    let v2 = fstype == "cgroup2" && context.host.cgroups.mode == cgroup::Mode::V2;
    if (fstype == "cgroup" || v2) && !options.bind && !options.remount {
        cgroup_options(&planned.field, &options)?;
        let namespace = context.has(libc::CLONE_NEWCGROUP);
        let joined = context.joined & libc::CLONE_NEWCGROUP as u64 != 0;
        let seen = match (namespace, joined) {
            (true, _) => cgroup::Seen::Own,
            (false, true) => cgroup::Seen::Joined,
            (false, false) => cgroup::Seen::Host,
        };
        let view = cgroup::mount_view(&context.host.cgroups, context.cgroup, seen);
        return Ok(Action::MountCgroup {
            mount: planned,
            view,
            // Without a namespace of its own it sees the host's tree either way.
            or_bind: !namespace,
        }
        .into());
    }
    Ok(Action::Mount(planned).into())
}

/// The maps that a mount shows owners through: its own, or the container's where an option asks for
/// maps and there are none.
fn id_mapping(
    context: &Context<'_>,
    index: usize,
    mount: &SpecMount,
    options: &MountOptions,
) -> Result<Option<IdMapping>> {
    let mapping = IdMapping {
        recursive: options.idmap == Some(IdMap::Ridmap),
        uid_map: id_map(mount.uid_mappings()),
        gid_map: id_map(mount.gid_mappings()),
    };
    if options.idmap.is_none() && mapping.uid_map.is_empty() {
        return Ok(None);
    }
    if context.host.euid != 0 {
        return Err(Error::spec(
            format!("mounts[{index}]"),
            "id-mapped mounts are not supported for rootless containers",
        ));
    }
    Ok(Some(mapping))
}

/// What may be mounted over files of /proc: what lxcfs replaces, as runc has it.
pub const OVER_PROC: [&str; 11] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

/// Refuses mounts that would put something else in the place of /proc or a part of it: what is
/// written and read there later must be the kernel's (CVE-2019-16884, CVE-2019-19921). The engine looks
/// again at where the path really leads.
fn check_over_proc(field: &str, mount: &SpecMount, options: &MountOptions) -> Result<()> {
    let target = resolved(&mount.destination().to_string_lossy());
    let refuse = |why: &str| {
        Err(Error::spec(
            format!("{field}.destination"),
            format!("{target} {why}"),
        ))
    };
    if target == "/" {
        return refuse("is the root file system, which root.path names");
    }
    match target.strip_prefix("/proc") {
        // A bind mount over /proc itself may be of a procfs: the engine looks at it.
        Some("") if mount.typ().as_deref() == Some("proc") || options.bind => Ok(()),
        Some("") => refuse("can only be a proc mount"),
        Some(rest) if rest.starts_with('/') && !OVER_PROC.contains(&&rest[1..]) => {
            refuse("is inside /proc, where nothing but lxcfs' files may be mounted")
        }
        _ => Ok(()),
    }
}

/// A path of config.json as an absolute one without `.`, `..` and double slashes, as runc takes it.
fn resolved(path: &str) -> String {
    format!("/{}", names::clean(path))
}

fn shown_source(source: &Path, fstype: &str) -> String {
    if source.as_os_str().is_empty() {
        fstype.to_string()
    } else {
        source.to_string_lossy().into_owned()
    }
}

fn devices(context: &Context<'_>) -> Result<Vec<Step>> {
    let default = |(name, major, minor): (&str, u64, u64)| Device {
        path: format!("/dev/{name}"),
        kind: libc::S_IFCHR,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    let listed: Vec<(Device, NodeAsked)> = context
        .linux
        .devices()
        .iter()
        .flatten()
        .map(|listed| (device(listed), asked(listed)))
        // The container's ptmx is that of its devpts, a link: a node would open the host's.
        .filter(|(device, _)| resolved(&device.path) != "/dev/ptmx")
        .collect();
    let named = |path: &str| {
        listed
            .iter()
            .any(|(device, _)| resolved(&device.path) == path)
    };
    let defaults = DEFAULT_DEVICES.map(|entry| (default(entry), NodeAsked::default()));
    let all = defaults
        .into_iter()
        .filter(|(device, _)| !named(&device.path));
    let no_nodes = context.without_host_root();
    let resources = context.linux.resources().as_ref();
    let asked = resources.and_then(|resources| resources.devices().as_ref());
    let rules = cgroup::Devices::from_spec(asked.map_or(&[], Vec::as_slice))?;
    let usable = |device: &Device| {
        // Rules refuse what is listed, too; without them it is not there.
        let kind = match device.kind {
            libc::S_IFBLK => cgroup::DeviceKind::Block,
            libc::S_IFCHR => cgroup::DeviceKind::Char,
            _ => return true,
        };
        let numbers = u32::try_from(device.major)
            .ok()
            .zip(u32::try_from(device.minor).ok());
        context.rules || numbers.is_some_and(|(major, minor)| rules.permit(kind, major, minor))
    };
    let steps = all
        .chain(listed.iter().cloned())
        .filter(|(device, _)| usable(device))
        .map(|(device, asked)| match no_nodes {
            // The kernel makes no nodes in a user namespace, so there is nothing to try; and the
            // specification leaves it to the runtime how devices get there, so that nothing is lost
            // unless the host's node is another than the one that is asked for.
            true => Action::BindDevice {
                device,
                exact: Some(asked),
            }
            .into(),
            false => Action::Device(device).into(),
        })
        .collect();
    Ok(steps)
}

fn asked(device: &LinuxDevice) -> NodeAsked {
    NodeAsked {
        mode: device.file_mode().map(|mode| mode & 0o7777),
        uid: device.uid(),
        gid: device.gid(),
    }
}

fn device(device: &LinuxDevice) -> Device {
    let (kind, mode) = match device.typ() {
        LinuxDeviceType::B => (libc::S_IFBLK, 0o666),
        LinuxDeviceType::P => (libc::S_IFIFO, 0o666),
        _ => (libc::S_IFCHR, 0o666),
    };
    Device {
        path: device.path().to_string_lossy().into_owned(),
        kind,
        major: u64::try_from(device.major()).unwrap_or(0),
        minor: u64::try_from(device.minor()).unwrap_or(0),
        mode: device.file_mode().unwrap_or(mode) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    }
}

fn mask(context: &Context<'_>, path: &str) -> Step {
    let label = labels::mounts(context.linux);
    let path = path.to_string();
    Action::MaskPath { path, label }.into()
}

/// The terminal, where the process has one.
pub(super) fn terminal(process: &SpecProcess) -> Option<Step> {
    let size = size(process);
    process
        .terminal()
        .unwrap_or(false)
        .then(|| Action::Terminal { size }.into())
}

/// process.consoleSize, where it says something; the check has seen that the numbers fit.
fn size(process: &SpecProcess) -> Option<(u16, u16)> {
    let size = process.console_size()?;
    let (rows, columns) = (
        size.height().try_into().ok()?,
        size.width().try_into().ok()?,
    );
    (rows != 0 && columns != 0).then_some((rows, columns))
}

/// Steps that close the file system, with the host's mounts still there, and change the root; `before`
/// are those that filled it.
pub(super) fn finish(
    context: &Context<'_>,
    process: &SpecProcess,
    before: &[Step],
    confinement: Option<&Confinement>,
) -> Vec<Step> {
    let cwd = process.cwd().to_string_lossy().into_owned();
    let mut steps: Vec<Step> = Vec::new();
    if !cwd.trim_matches('/').is_empty() {
        steps.push(Action::CreateCwd { path: cwd }.into());
    }
    // A mount on / itself would not be seen from inside: the root is made read-only in its place, at the end.
    let (whole, readonly): (Vec<&String>, Vec<&String>) = context
        .linux
        .readonly_paths()
        .iter()
        .flatten()
        .partition(|path| resolved(path) == "/");
    steps.extend(
        readonly
            .into_iter()
            .map(|path| Action::ReadonlyPath { path: path.clone() }.into()),
    );
    let listed = |list: &Option<Vec<String>>, path: &str| {
        let mut listed = list.iter().flatten();
        listed.any(|known| known == path)
    };
    for path in confinement.iter().flat_map(|more| &more.readonly) {
        if !listed(context.linux.readonly_paths(), path) {
            let path = (*path).to_string();
            steps.push(Action::ReadonlyPath { path }.into());
        }
    }
    let mut masked: Vec<&str> = Vec::new();
    let also = confinement
        .iter()
        .flat_map(|more| more.masked.iter().copied());
    let asked = context.linux.masked_paths().iter().flatten();
    for path in asked.map(String::as_str).chain(also) {
        // Engines list some twice; hiding what is hidden only costs.
        if !masked.contains(&path) {
            masked.push(path);
        }
    }
    steps.extend(masked.into_iter().map(|path| mask(context, path)));
    steps.extend(terminal(process));
    let late = |step: &Step| matches!(&step.action, Action::Mount(mount) if mount.late_readonly);
    if before.iter().any(late) {
        steps.push(Action::ReadonlyMounts.into());
    }
    steps.extend(labels::process(process, context.profile));
    steps.push(match (context.shares_mounts(), context.asked.no_pivot) {
        (true, _) => Action::ChangeRoot.into(),
        (false, true) => Action::MoveRoot.into(),
        (false, false) => Action::PivotRoot.into(),
    });
    let asked = context
        .linux
        .rootfs_propagation()
        .as_deref()
        .filter(|name| !name.is_empty());
    // The root is private by then, and what is mounted in it is what its options say, as under runc.
    let private = |asked: &Propagation| asked.kind == PropagationKind::Private;
    if let Some(propagation) = asked.and_then(propagation).filter(|asked| !private(asked)) {
        steps.push(
            Action::FinalPropagation {
                flags: propagation.ms_flags(),
            }
            .into(),
        );
    }
    if context
        .spec
        .root()
        .as_ref()
        .and_then(|root| root.readonly())
        .unwrap_or(false)
        || !whole.is_empty()
    {
        steps.push(Action::ReadonlyRoot.into());
    }
    steps
}
