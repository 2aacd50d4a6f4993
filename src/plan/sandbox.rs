//! A process sandbox in the place of a container, for who is not root and gets no user namespace: no
//! namespaces and no mounts, only Landlock and a system call filter around the process.
//!
//! Only what these two can hold is planned, and everything else of the specification is refused or told:
//! the root is the host's `/`, and read-only; bind mounts are of a path onto itself, and say what may be
//! changed; masked paths and those that a new file system would cover are left out of what may be read.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, Process as SpecProcess, Spec};

use super::Plan;
use super::build::id_map;
use super::confine::{May, Rule};
use super::degrade::{Feature, Lost};
use super::labels;
use super::step::{Action, IdMap, Step};
use crate::error::{Error, Result};
use crate::spec::mounts::parse_mount;
use crate::spec::names;
use crate::sys::mount::attr;

/// File systems whose host's instance is looked at in the place of a new one.
const SEEN: [&str; 4] = ["proc", "sysfs", "cgroup", "cgroup2"];

/// Whether there is nothing but the sandbox.
pub(super) fn is_all(without: &[Lost]) -> bool {
    without
        .iter()
        .any(|lost| lost.feature == Feature::UsernsUser)
}

/// What is left of a specification for the sandbox.
///
/// # Errors
/// What a sandbox cannot hold, by its field.
pub(super) fn specification(spec: &Spec, rootfs: &Path, euid: u32) -> Result<Spec> {
    let mut new = spec.clone();
    let Some(linux) = spec.linux() else {
        return Ok(new);
    };
    check(spec, linux, rootfs)?;
    rules(spec)?;
    if let Some(done) = spec.process() {
        new.set_process(Some(process(linux, done, euid)?));
    }
    let mut linux = linux.clone();
    linux
        .set_namespaces(Some(Vec::new()))
        .set_uid_mappings(None)
        .set_gid_mappings(None)
        .set_sysctl(None);
    new.set_linux(Some(linux))
        .set_hostname(None)
        .set_domainname(None);
    Ok(new)
}

fn refuse(field: &str, why: &str) -> Error {
    let name = Feature::UsernsUser.name();
    Error::spec(
        field,
        format!("the degradation {name:?} cannot be had with it: {why}"),
    )
    .remedy(Feature::UsernsUser.row().remedy)
}

fn check(spec: &Spec, linux: &Linux, rootfs: &Path) -> Result<()> {
    let root = spec.root().as_ref();
    if rootfs != Path::new("/") {
        return Err(refuse(
            "root.path",
            "a process sandbox has the host's / as its root",
        ));
    }
    if !root.and_then(|root| root.readonly()).unwrap_or(false) {
        return Err(refuse(
            "root.readonly",
            "false, and the host's / is only read",
        ));
    }
    let listed = linux.namespaces().iter().flatten();
    for (index, namespace) in listed.enumerate() {
        if names::joined(namespace).is_some() {
            let field = format!("linux.namespaces[{index}].path");
            return Err(refuse(&field, "no namespace is joined"));
        }
    }
    let some = |list: Option<usize>| list.unwrap_or(0) != 0;
    for (field, asked) in [
        (
            "linux.devices",
            some(linux.devices().as_ref().map(Vec::len)),
        ),
        (
            "linux.sysctl",
            some(linux.sysctl().as_ref().map(|all| all.len())),
        ),
        (
            "linux.rootfsPropagation",
            some(linux.rootfs_propagation().as_ref().map(String::len)),
        ),
        (
            "linux.timeOffsets",
            some(linux.time_offsets().as_ref().map(|all| all.len())),
        ),
    ] {
        if asked {
            return Err(refuse(
                field,
                "it is made in namespaces of the container's own",
            ));
        }
    }
    let terminal = spec.process().as_ref().and_then(SpecProcess::terminal);
    if terminal.unwrap_or(false) {
        return Err(refuse(
            "process.terminal",
            "it is made in a devpts of the container's own",
        ));
    }
    Ok(())
}

/// A process of the sandbox, which has the caller's ids.
///
/// # Errors
/// An id that is not mapped to the caller's; groups.
pub(super) fn process(linux: &Linux, process: &SpecProcess, euid: u32) -> Result<SpecProcess> {
    let mut new = process.clone();
    let mut user = process.user().clone();
    let outside = |map: Vec<IdMap>, id: u32| {
        let mut lines = map.into_iter();
        lines.find_map(|line| {
            let offset = id.checked_sub(line.inside)?;
            (offset < line.count).then(|| line.outside.checked_add(offset))?
        })
    };
    let (uid, gid) = (user.uid(), user.gid());
    let uid = outside(id_map(linux.uid_mappings()), uid).filter(|uid| *uid == euid);
    let uid =
        uid.ok_or_else(|| refuse("process.user.uid", "it is not mapped to the caller's own"))?;
    let gid = outside(id_map(linux.gid_mappings()), gid)
        .ok_or_else(|| refuse("process.user.gid", "it is not mapped"))?;
    if process
        .user()
        .additional_gids()
        .iter()
        .flatten()
        .next()
        .is_some()
    {
        return Err(refuse(
            "process.user.additionalGids",
            "only root sets groups",
        ));
    }
    user.set_uid(uid).set_gid(gid);
    new.set_user(user);
    new.set_capabilities(None).set_no_new_privileges(Some(true));
    Ok(new)
}

/// Whether the specification asks for a namespace of this kind.
pub(super) fn asks(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    let mut listed = linux.namespaces().iter().flatten();
    listed.any(|namespace| namespace.typ() == kind)
}

/// A path by its name, and without the links on the way to it.
struct Known {
    name: String,
    real: PathBuf,
}

impl Known {
    /// What is not there yet is where the last directory on the way to it is.
    fn of(path: &str) -> Self {
        let name = format!("/{}", names::clean(path));
        let whole = Path::new(&name);
        let there = whole.ancestors().find_map(|ancestor| {
            let real = ancestor.canonicalize().ok()?;
            Some(real.join(whole.strip_prefix(ancestor).ok()?))
        });
        let real = there.unwrap_or_else(|| whole.to_path_buf());
        Self { name, real }
    }

    /// Whether it is `other` or below it, by one of its names.
    fn is_in(&self, other: &Self) -> bool {
        let other = [Path::new(&other.name), &other.real];
        let own = [Path::new(&self.name), &self.real];
        own.iter()
            .any(|own| other.iter().any(|other| own.starts_with(other)))
    }
}

/// What the mounts say of paths of the host.
#[derive(Default)]
struct Mounted {
    writable: Vec<Known>,
    /// Those that are read-only by an option of theirs.
    readonly: Vec<Known>,
    /// In the order of the mounts.
    rules: Vec<Rule>,
    hidden: Vec<String>,
}

impl Mounted {
    /// Something else is mounted over `target`.
    fn cover(&mut self, target: &Known) {
        for list in [&mut self.writable, &mut self.readonly] {
            list.retain(|one| !one.is_in(target));
        }
        self.rules
            .retain(|rule| !Known::of(&rule.path).is_in(target));
    }

    /// Notes a mount that is read-only, or one that may be changed.
    ///
    /// # Errors
    /// A read-only one in, or over, one that may be changed: Landlock adds up what is allowed on the way to
    /// a file, so that it could be changed, too.
    fn note(&mut self, field: &str, target: Known, readonly: bool) -> Result<()> {
        let both = |readonly: &Known, writable: &Known| {
            let (readonly, writable) = (&readonly.name, &writable.name);
            let why = format!("{readonly} is to be read-only, and {writable} may be changed");
            refuse(field, &why)
        };
        match readonly {
            true => {
                let mut others = self.writable.iter();
                let other = others.find(|other| target.is_in(other) || other.is_in(&target));
                if let Some(other) = other {
                    return Err(both(&target, other));
                }
                self.readonly.push(target);
            }
            false => {
                if let Some(other) = self.readonly.iter().find(|other| other.is_in(&target)) {
                    return Err(both(other, &target));
                }
                self.writable.push(target);
            }
        }
        Ok(())
    }
}

/// What is allowed by the mounts.
fn mounted(spec: &Spec, readonly: &[Known]) -> Result<Mounted> {
    let mut all = Mounted::default();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let field = format!("mounts[{index}]");
        let options = parse_mount(index, mount)?;
        let target = Known::of(&mount.destination().to_string_lossy());
        let kind = mount.typ().clone().unwrap_or_default();
        if options.remount {
            return Err(refuse(&field, "nothing is mounted that could be changed"));
        }
        let set = options.set | options.recursive_set;
        if !options.bind {
            all.cover(&target);
            if !SEEN.contains(&kind.as_str()) {
                all.hidden.push(target.name);
            } else if set & attr::RDONLY != 0 {
                all.note(&field, target, true)?;
            }
            continue;
        }
        let source = mount.source().clone().unwrap_or_default();
        if source != Path::new(&target.name)
            || options.idmap.is_some()
            || mount.uid_mappings().is_some()
        {
            return Err(refuse(
                &field,
                "a path is only shown where it is, with its owners",
            ));
        }
        // The kernel executes nothing in its own file systems (SB_I_NOEXEC), whatever their mounts say.
        let mut kernels = ["/proc", "/sys"].iter();
        let kernels = kernels.any(|own| target.real.starts_with(own));
        for (flag, option, held) in [
            (attr::NOEXEC, "noexec", kernels),
            (attr::NOSYMFOLLOW, "nosymfollow", false),
        ] {
            if set & flag != 0 && !held {
                let why = format!("nothing is mounted that {option} could be a flag of");
                return Err(refuse(&format!("{field}.options"), &why));
            }
        }
        let mut may = vec![May::Read, May::Execute];
        let writable = set & attr::RDONLY == 0;
        if writable {
            if target.name == "/" {
                return Err(refuse(&field, "the host's / is only read"));
            }
            if let Some(path) = readonly.iter().find(|path| path.is_in(&target)) {
                let why = format!("{} below it is to be read-only", path.name);
                return Err(refuse(&field, &why));
            }
            may.push(May::Change);
        }
        all.rules.push(rule(&target.name, &may));
        all.note(&field, target, !writable)?;
    }
    Ok(all)
}

fn rule(path: &str, may: &[May]) -> Rule {
    Rule {
        path: path.to_string(),
        may: may.to_vec(),
    }
}

/// What Landlock allows, and the paths that nothing is allowed on.
///
/// # Errors
/// A bind mount from one path to another, or with a flag that there would have to be a mount for; a path that
/// is to be read-only in one that may be changed, or over it.
pub(super) fn rules(spec: &Spec) -> Result<(Vec<Rule>, Vec<String>)> {
    let linux = spec.linux().as_ref();
    let known = |list: Option<&Vec<String>>| -> Vec<Known> {
        list.into_iter()
            .flatten()
            .map(|path| Known::of(path))
            .collect()
    };
    let masked = known(linux.and_then(|linux| linux.masked_paths().as_ref()));
    let readonly = known(linux.and_then(|linux| linux.readonly_paths().as_ref()));
    let Mounted {
        rules: own,
        mut hidden,
        ..
    } = mounted(spec, &readonly)?;
    let mut rules = vec![rule("/", &[May::Read, May::Execute])];
    rules.extend(own);
    let devices = super::mounts::DEFAULT_DEVICES
        .iter()
        .filter(|(name, ..)| *name != "tty");
    rules.extend(devices.map(|(name, ..)| {
        rule(
            &format!("/dev/{name}"),
            &[May::Read, May::Change, May::Ioctl],
        )
    }));
    // Masks come last, over all that is mounted below them.
    rules.retain(|rule| {
        let path = Known::of(&rule.path);
        !masked.iter().any(|masked| path.is_in(masked))
    });
    hidden.extend(masked.into_iter().map(|path| path.name));
    hidden.sort();
    hidden.dedup();
    Ok((rules, hidden))
}

/// Steps in the place of those that make a file system.
pub(super) fn root() -> Vec<Step> {
    vec![Action::OpenRoot { path: "/".into() }.into()]
}

/// Steps in the place of those that close it.
pub(super) fn finish(process: &SpecProcess, apparmor: bool) -> Vec<Step> {
    labels::process(process, apparmor)
}

/// Notes what only the sandbox's process has: the caller's groups, and a bounding set that no_new_privs
/// makes void.
pub(super) fn settle(plan: &mut Plan, uid: u32) {
    plan.sandbox = true;
    plan.shares_mounts = false;
    for step in &mut plan.steps {
        if let Action::Identity(identity) = &mut step.action {
            identity.inside = Some(uid);
            identity.groups = None;
            identity.caps.bounding = u64::MAX;
        }
    }
}

#[cfg(test)]
mod tests;
