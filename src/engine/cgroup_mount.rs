//! The mount of type cgroup: what the container sees of its cgroups.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::MntFlags;

use super::mounts;
use super::mounts_old::fd_path;
use super::root::{Make, Root};
use crate::cgroup::{MountView, ViewEntry};
use crate::error::{Error, Result};
use crate::plan::{Mount, MountKind};
use crate::sys::mount::attr;

/// Mounts what `view` says at the target of `mount`, with that mount's flags. A hierarchy that the kernel
/// refuses to mount is bound from the host's directory where `or_bind` says so.
///
/// # Errors
/// A sentence with the target and the errno; nothing is mounted then.
pub fn mount(root: &Root, mount: &Mount, view: &MountView, or_bind: bool) -> Result<()> {
    match view {
        MountView::None => Err(Error::os(
            format!("{}: mount cgroup on", mount.field),
            &mount.target,
            Errno::ENODEV,
        )
        .remedy("the host has no cgroups mounted; leave the mount out")),
        MountView::V2 { bind, own } => one(
            root,
            mount,
            mount.target.clone(),
            Some(("cgroup2", "")),
            (bind, own.as_deref()),
            or_bind,
        ),
        MountView::V1 { entries, links } => {
            let base = base(root, mount)?;
            let filled = fill(root, mount, entries, links, or_bind);
            filled.and_then(|()| finish(root, mount)).inspect_err(|_| {
                // From a clean slate: what comes in its place is not to be mounted over a half one.
                let _ = nix::mount::umount2(fd_path(base.as_fd()).as_str(), MntFlags::MNT_DETACH);
            })
        }
    }
}

/// One hierarchy at `target`: a mount of its own, or a bind of the host's directory where the kernel
/// refuses that.
fn one(
    root: &Root,
    mount: &Mount,
    target: String,
    fresh: Option<(&str, &str)>,
    (bind, own): (&Path, Option<&Path>),
    or_bind: bool,
) -> Result<()> {
    let mut made = Mount {
        target,
        ..mount.clone()
    };
    if let Some((fstype, data)) = fresh {
        made.what = MountKind::Fresh {
            fstype: fstype.to_string(),
            // A name that only the mount table shows: the configured one, as under runc.
            source: match &mount.what {
                MountKind::Fresh { source, .. } if !source.is_empty() => source.clone(),
                _ => "cgroup".to_string(),
            },
            data: data
                .split(',')
                .filter(|d| !d.is_empty())
                .map(parameter)
                .collect(),
        };
        match mounts::mount(root, &made, &nothing) {
            Err(error) if or_bind && matches!(error.errno(), Some(Errno::EPERM | Errno::EBUSY)) => {
            }
            other => return other.map(drop),
        }
    }
    let mut from = |source: &Path| {
        made.what = MountKind::Bind {
            source: source.to_path_buf(),
            recursive: false,
        };
        mounts::mount(root, &made, &nothing).map(drop)
    };
    match (from(bind), own) {
        (Err(error), Some(own)) if error.errno() == Some(Errno::ENOENT) => from(own),
        (other, _) => other,
    }
}

/// The directories of cgroups are open to everybody: nothing to ask the parent for.
fn nothing(_plain: bool) -> Result<Vec<OwnedFd>> {
    Err(Error::os("open", "the cgroup's directory", Errno::EACCES))
}

fn parameter(text: &str) -> (String, Option<String>) {
    match text.split_once('=') {
        Some((key, value)) => (key.to_string(), Some(value.to_string())),
        None => (text.to_string(), None),
    }
}

/// The tmpfs that holds a directory for each hierarchy of v1: its top.
fn base(root: &Root, mount: &Mount) -> Result<OwnedFd> {
    let mut data = vec![("mode".to_string(), Some("755".to_string()))];
    if let MountKind::Fresh { data: asked, .. } = &mount.what {
        // linux.mountLabel is for the tmpfs; cgroup file systems take none.
        data.extend(asked.iter().filter(|(key, _)| key == "context").cloned());
    }
    let base = Mount {
        what: MountKind::Fresh {
            fstype: "tmpfs".to_string(),
            source: "tmpfs".to_string(),
            data,
        },
        // It has to be filled first; finish() makes it read-only.
        set: mount.set & !attr::RDONLY,
        recursive_set: 0,
        recursive_clear: 0,
        ..mount.clone()
    };
    mounts::mount(root, &base, &nothing)?;
    root.open(&mount.target)
        .map_err(|errno| Error::os("look at the mount on", &mount.target, errno))
}

fn fill(
    root: &Root,
    mount: &Mount,
    entries: &[ViewEntry],
    links: &[(String, String)],
    or_bind: bool,
) -> Result<()> {
    for entry in entries {
        let target = format!("{}/{}", mount.target, entry.name);
        root.open_or_make(&target, Make::Directory)
            .map_err(|errno| Error::os("make the mount point", &target, errno))?;
        let fresh = entry.fs.as_deref().map(|fs| (fs, entry.data.as_str()));
        let binds = (entry.bind.as_path(), entry.own.as_deref());
        one(root, mount, target, fresh, binds, or_bind)?;
    }
    for (name, target) in links {
        super::devices::link(root, &format!("{}/{name}", mount.target), target)?;
    }
    Ok(())
}

fn finish(root: &Root, mount: &Mount) -> Result<()> {
    if mount.set & attr::RDONLY == 0 {
        return Ok(());
    }
    let fail = |errno| {
        Error::os(
            format!("{}: make read-only", mount.field),
            &mount.target,
            errno,
        )
    };
    let top = root.open(&mount.target).map_err(fail)?;
    mounts::make_readonly(&top).map_err(fail)
}
