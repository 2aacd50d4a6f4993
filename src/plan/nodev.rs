//! Mounts where device rules are lost: what comes from elsewhere has no devices that can be opened.

use crate::error::{Error, Result};
use crate::spec::mounts::{MountOptions, PropagationKind};
use crate::sys::mount::attr;

/// Changes the options and the propagation of the mount at `field`, of a type on a target.
///
/// # Errors
/// What cannot be had without device rules: devices of the image on /dev, and mounts that come later.
pub(super) fn apply(
    (field, fstype, target): (&str, &str, &str),
    options: &mut MountOptions,
    propagation: &mut Vec<u64>,
) -> Result<()> {
    let refuse = |what: &str, why: &str| {
        Err(Error::spec(
            format!("{field}.options"),
            format!("the degradation \"device-rules\" cannot be had with {what}: {why}"),
        ))
    };
    if options.tmpcopyup && fstype == "tmpfs" && target == "/dev" {
        return refuse(
            "tmpcopyup on /dev",
            "the image's devices would be among the container's own",
        );
    }
    if let Some(kind) = comes_later(options) {
        return refuse(
            kind,
            "what the host mounts there later may have devices that can be opened",
        );
    }
    let closed = options.propagation.last().is_some_and(|last| {
        let none = [PropagationKind::Private, PropagationKind::Unbindable];
        last.recursive && none.contains(&last.kind)
    });
    if options.bind && !options.remount && !closed {
        // A copy of what is the host's slave is one, too.
        propagation.push(libc::MS_PRIVATE | libc::MS_REC);
    }
    options.clear &= !attr::NODEV;
    options.recursive_clear &= !attr::NODEV;
    // In these nobody makes a node but the runtime, and devpts has no others than terminals; tmpcopyup
    // makes those that the image has.
    let own = [
        "cgroup", "cgroup2", "devpts", "mqueue", "proc", "sysfs", "tmpfs",
    ];
    if options.recursive_bind {
        options.recursive_set |= attr::NODEV;
    } else if options.bind || options.remount || !own.contains(&fstype) || options.tmpcopyup {
        options.set |= attr::NODEV;
    }
    Ok(())
}

/// The propagation by which mounts that the host makes later come to the container as well.
fn comes_later(options: &MountOptions) -> Option<&'static str> {
    let last = options.propagation.last()?;
    match last.kind {
        PropagationKind::Slave => Some("slave mounts"),
        PropagationKind::Shared => Some("shared mounts"),
        PropagationKind::Private | PropagationKind::Unbindable => None,
    }
}
