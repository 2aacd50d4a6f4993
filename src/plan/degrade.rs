//! What takes the place of a mount that a user namespace or another's namespaces refuse.
//!
//! Each function is a row of the table of degradations (design, section 6).

use super::build::Context;
use super::step::{Action, Mount, MountKind, Otherwise};
use crate::sys::mount::attr;

/// Trees of the host's sysfs that a container does not see where it is bound.
const HIDDEN_IN_SYS: [&str; 4] = ["fs/cgroup", "kernel/debug", "kernel/security", "firmware"];

/// The ways to go on when a fresh mount of `fstype` is refused.
pub(super) fn fresh_mount(context: &Context<'_>, mount: &Mount, fstype: &str) -> Vec<Otherwise> {
    let foreign = |flag: i32| !context.has(flag);
    match fstype {
        "mqueue" if foreign(libc::CLONE_NEWIPC) => vec![mqueue(mount)],
        "sysfs" if foreign(libc::CLONE_NEWNET) && context.without_host_root() => vec![sysfs(mount)],
        "devpts" if context.without_host_root() => devpts(mount).into_iter().collect(),
        _ => Vec::new(),
    }
}

fn mqueue(mount: &Mount) -> Otherwise {
    Otherwise {
        on: vec![libc::EPERM],
        action: None,
        feature: format!("the mqueue mount on {}", mount.target),
        fallback: "left out: the IPC namespace is not the container's own".into(),
        remedy: "give the container an IPC namespace of its own".into(),
    }
}

/// A sysfs shows a network namespace, and only who has rights over that may mount one.
fn sysfs(mount: &Mount) -> Otherwise {
    let bound = Mount {
        what: MountKind::Bind {
            source: "/sys".into(),
            recursive: true,
        },
        set: 0,
        clear: 0,
        recursive_set: mount.set | attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC,
        recursive_clear: mount.clear,
        ..mount.clone()
    };
    let hidden = HIDDEN_IN_SYS.map(|tree| format!("{}/{tree}", mount.target));
    Otherwise {
        on: vec![libc::EPERM],
        action: Some(Action::BindSys {
            mount: bound,
            hidden: hidden.to_vec(),
        }),
        feature: format!("a sysfs of its own on {}", mount.target),
        fallback: "a read-only bind mount of the host's /sys".into(),
        remedy: "give the container a network namespace of its own, or bind /sys in config.json"
            .into(),
    }
}

/// The group of terminals (`gid=5`) has to be mapped in the user namespace.
fn devpts(mount: &Mount) -> Option<Otherwise> {
    let MountKind::Fresh {
        fstype,
        source,
        data,
    } = &mount.what
    else {
        return None;
    };
    let gid = data.iter().find(|(key, _)| key == "gid")?;
    let without = MountKind::Fresh {
        fstype: fstype.clone(),
        source: source.clone(),
        data: data
            .iter()
            .filter(|(key, _)| key != "gid")
            .cloned()
            .collect(),
    };
    let number = gid.1.as_deref().unwrap_or_default();
    Some(Otherwise {
        on: vec![libc::EINVAL],
        action: Some(Action::Mount(Mount {
            what: without,
            ..mount.clone()
        })),
        feature: format!("gid={number} of the devpts mount on {}", mount.target),
        fallback: "mounted without it: terminals belong to the group of who opens them".into(),
        remedy: format!("map group {number} in linux.gidMappings, or leave the option out"),
    })
}
