//! The alternatives of the rows: from a step to what is done in its place, where the row is about it.

use super::{Facts, Way};
use crate::plan::step::{Action, Mount, MountKind};
use crate::sys::mount::attr;
use crate::sys::seccomp::{FLAG_LOG, FLAG_SPEC_ALLOW};

/// Trees of the host's sysfs that a container does not see where it is bound.
const HIDDEN_IN_SYS: [&str; 4] = ["fs/cgroup", "kernel/debug", "kernel/security", "firmware"];

/// The flags of what is bound from the host in the place of a file system of the container's own.
const HARMLESS: u64 = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;

/// A mount of a new file system of this type.
fn fresh<'a>(action: &'a Action, wanted: &str) -> Option<&'a Mount> {
    match action {
        Action::Mount(mount) => match &mount.what {
            MountKind::Fresh { fstype, .. } if fstype == wanted => Some(mount),
            _ => None,
        },
        _ => None,
    }
}

/// The host's tree at `source` in the place of what `mount` wanted, with everything below it, read-only.
fn bound(mount: &Mount, source: &str) -> Mount {
    Mount {
        what: MountKind::Bind {
            source: source.into(),
            recursive: true,
        },
        set: 0,
        clear: 0,
        recursive_set: mount.set | HARMLESS,
        recursive_clear: mount.clear & !HARMLESS,
        ..mount.clone()
    }
}

pub(super) fn mknod(_: &Facts, action: &Action) -> Option<Way> {
    let device = match action {
        Action::Device(device) => device,
        Action::BindDevice {
            device,
            exact: Some(asked),
        } if !asked.is_empty() => device,
        _ => return None,
    };
    Some(Way {
        action: Some(Action::BindDevice {
            device: device.clone(),
            exact: None,
        }),
        feature: format!("the device node {}", device.path),
        ..Way::default()
    })
}

pub(super) fn pid_range(_: &Facts, action: &Action) -> Option<Way> {
    matches!(action, Action::PidRange).then(|| Way {
        feature: "process ids of its own for GPU memory in channels".into(),
        remedy: Some(
            "let isorun write /proc/sys/kernel/ns_last_pid: /proc/sys must not be read-only".into(),
        ),
        ..Way::default()
    })
}

/// A sysfs shows a network namespace, and only who has rights over that may mount one.
fn bound_sys(mount: &Mount) -> Way {
    let hidden = HIDDEN_IN_SYS.map(|tree| format!("{}/{tree}", mount.target));
    Way {
        action: Some(Action::BindSys {
            mount: bound(mount, "/sys"),
            hidden: hidden.to_vec(),
        }),
        feature: format!("a sysfs of its own on {}", mount.target),
        ..Way::default()
    }
}

fn is_foreign_network(facts: &Facts) -> bool {
    facts.userns() && !facts.makes(libc::CLONE_NEWNET)
}

pub(super) fn sysfs_userns(facts: &Facts, action: &Action) -> Option<Way> {
    let mount = fresh(action, "sysfs").filter(|_| is_foreign_network(facts))?;
    Some(bound_sys(mount))
}

pub(super) fn sysfs(facts: &Facts, action: &Action) -> Option<Way> {
    let mount = fresh(action, "sysfs").filter(|_| !is_foreign_network(facts))?;
    Some(bound_sys(mount))
}

pub(super) fn mqueue(facts: &Facts, action: &Action) -> Option<Way> {
    let mount = fresh(action, "mqueue").filter(|_| !facts.makes(libc::CLONE_NEWIPC))?;
    Some(Way {
        feature: format!("the mqueue mount on {}", mount.target),
        ..Way::default()
    })
}

pub(super) fn cgroup_mount(_: &Facts, action: &Action) -> Option<Way> {
    let Action::MountCgroup {
        mount,
        view,
        or_bind: false,
    } = action
    else {
        return None;
    };
    Some(Way {
        action: Some(Action::MountCgroup {
            mount: mount.clone(),
            view: view.clone(),
            or_bind: true,
        }),
        feature: format!("a cgroup file system of its own on {}", mount.target),
        ..Way::default()
    })
}

/// The group of terminals (`gid=5`) has to be mapped in the user namespace.
pub(super) fn devpts_gid(facts: &Facts, action: &Action) -> Option<Way> {
    let mount = fresh(action, "devpts").filter(|_| facts.userns())?;
    let MountKind::Fresh {
        fstype,
        source,
        data,
    } = &mount.what
    else {
        return None;
    };
    let gid = data.iter().find(|(key, _)| key == "gid")?;
    let rest = data.iter().filter(|(key, _)| key != "gid");
    let without = MountKind::Fresh {
        fstype: fstype.clone(),
        source: source.clone(),
        data: rest.cloned().collect(),
    };
    let number = gid.1.as_deref().unwrap_or_default();
    Some(Way {
        action: Some(Action::Mount(Mount {
            what: without,
            ..mount.clone()
        })),
        feature: format!("gid={number} of the devpts mount on {}", mount.target),
        remedy: Some(format!(
            "map group {number} in linux.gidMappings, or leave the option out"
        )),
        ..Way::default()
    })
}

pub(super) fn oom_score_adj(_: &Facts, action: &Action) -> Option<Way> {
    let Action::OomScoreAdj { value } = action else {
        return None;
    };
    Some(Way {
        feature: format!("process.oomScoreAdj {value}"),
        ..Way::default()
    })
}

pub(super) fn rlimit(_: &Facts, action: &Action) -> Option<Way> {
    let Action::Rlimit {
        name,
        resource,
        soft,
        hard,
    } = action
    else {
        return None;
    };
    Some(Way {
        action: Some(Action::ClampedRlimit {
            name: name.clone(),
            resource: *resource,
            soft: *soft,
            hard: *hard,
        }),
        feature: format!("{name} {soft}:{hard}"),
        ..Way::default()
    })
}

/// LOG only tells, and SPEC_ALLOW only asks for speed: a kernel that lacks them filters all the same.
pub(super) fn seccomp_flags(facts: &Facts, action: &Action) -> Option<Way> {
    let has = facts.filter_flags & (FLAG_LOG | FLAG_SPEC_ALLOW) != 0;
    (has && matches!(action, Action::Seccomp)).then(|| Way {
        action: Some(Action::SeccompWithoutFlags),
        feature: "the seccomp flags LOG and SPEC_ALLOW".into(),
        ..Way::default()
    })
}

pub(super) fn keyring(_: &Facts, action: &Action) -> Option<Way> {
    matches!(action, Action::SessionKeyring { .. }).then(|| Way {
        feature: "a session keyring of its own".into(),
        ..Way::default()
    })
}

pub(super) fn affinity(_: &Facts, action: &Action) -> Option<Way> {
    matches!(action, Action::AllCpus).then(|| Way {
        feature: "a CPU affinity of its own".into(),
        ..Way::default()
    })
}

pub(super) fn capabilities(_: &Facts, action: &Action) -> Option<Way> {
    matches!(action, Action::Capabilities { .. }).then(|| Way {
        feature: "capabilities".into(),
        ..Way::default()
    })
}

pub(super) fn shm(_: &Facts, action: &Action) -> Option<Way> {
    let mount = fresh(action, "tmpfs").filter(|mount| mount.target == "/dev/shm")?;
    Some(Way {
        action: Some(Action::ShmDirectory {
            mount: mount.clone(),
        }),
        feature: "a tmpfs on /dev/shm".into(),
        ..Way::default()
    })
}

pub(super) fn channel_idmap(_: &Facts, action: &Action) -> Option<Way> {
    let Action::Mount(mount) = action else {
        return None;
    };
    // Those of config.json ask for it themselves.
    let ours = mount.field.starts_with("annotations[") && mount.idmap.is_some();
    ours.then(|| Way {
        action: Some(Action::Mount(Mount {
            idmap: None,
            ..mount.clone()
        })),
        feature: format!("the container's ids in {}", mount.target),
        ..Way::default()
    })
}

pub(super) fn procfs(_: &Facts, action: &Action) -> Option<Way> {
    let mount = fresh(action, "proc").filter(|mount| mount.target == "/proc")?;
    Some(Way {
        action: Some(Action::BindProc {
            mount: bound(mount, "/proc"),
        }),
        feature: "a procfs of its own on /proc".into(),
        ..Way::default()
    })
}

/// What is lost by row `network`.
pub(in crate::plan) const NETWORK: &str = "a network namespace of its own";

pub(super) fn network(_: &Facts, action: &Action) -> Option<Way> {
    matches!(action, Action::NetworkNamespace).then(|| Way {
        feature: NETWORK.into(),
        again: true,
        ..Way::default()
    })
}

/// Errnos by which the first mount says that the user namespace gives no rights over what is in it: of
/// mount(2) itself without CAP_SYS_ADMIN, and of AppArmor.
const NO_RIGHTS: &[i32] = &[libc::EPERM, libc::EACCES];

/// A user namespace that the host lets everybody make, and nobody use: Ubuntu moves who makes one to a
/// profile that denies all capabilities.
fn no_rights(facts: &Facts, action: &Action) -> Option<Way> {
    let first = matches!(action, Action::RootPropagation { .. });
    let own = facts.makes(libc::CLONE_NEWUSER) && facts.makes(libc::CLONE_NEWNS);
    (first && own).then(|| Way {
        feature: "a user namespace with rights over its mounts".into(),
        on: Some(NO_RIGHTS),
        again: true,
        ..Way::default()
    })
}

pub(super) fn userns_root(facts: &Facts, action: &Action) -> Option<Way> {
    no_rights(facts, action).filter(|_| facts.root)
}

pub(super) fn userns_user(facts: &Facts, action: &Action) -> Option<Way> {
    no_rights(facts, action).filter(|_| !facts.root)
}
