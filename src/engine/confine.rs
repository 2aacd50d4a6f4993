//! What makes up for a protection that the host does not give, in the child: the Landlock domain and the
//! supplementary filter.

use std::os::fd::AsFd;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope as KernelScope, make_bitflags,
};
use nix::errno::Errno;
use nix::sys::stat::fstat;

use crate::error::{Error, Kind, Result};
use crate::plan::confine::{Landlock, May, Rule, Scope, Supplement};
use crate::sys::mount::is_mount_root;

/// Enters the domain, for good. The process has no_new_privs.
///
/// # Errors
/// A sentence with the path and the errno; also when the kernel has not enforced all of it: what is said
/// to make up for a loss has to be there.
pub fn enter(landlock: &Landlock) -> Result<()> {
    let fail = |what: &str| {
        let what = what.to_string();
        move |error: &dyn std::error::Error| {
            Error::new(Kind::System, format!("Landlock: {what}: {error}"))
        }
    };
    let abi = version(landlock.abi);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))
        .map_err(|error| fail("handle accesses to files")(&error))?;
    for scope in &landlock.scope {
        let scope = match scope {
            Scope::AbstractSockets => KernelScope::AbstractUnixSocket,
            Scope::Signals => KernelScope::Signal,
        };
        ruleset = ruleset
            .scope(scope)
            .map_err(|error| fail("draw the border")(&error))?;
    }
    let mut created = ruleset
        .create()
        .map_err(|error| fail("make a ruleset")(&error))?;
    for rule in &landlock.rules {
        let Some((file, allowed)) = opened(rule, abi)? else {
            continue;
        };
        created = created
            .add_rule(PathBeneath::new(file, allowed))
            .map_err(|error| fail(&format!("allow {}", rule.path))(&error))?;
    }
    let status = created
        .no_new_privs(false)
        .restrict_self()
        .map_err(|error| fail("restrict this process")(&error))?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        _ => Err(Error::new(
            Kind::System,
            "Landlock: the kernel does not enforce all of the rules",
        )),
    }
}

/// The crate's name for a version; the plan names none that it does not know.
fn version(abi: u32) -> ABI {
    match abi {
        0 | 1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        6 => ABI::V6,
        _ => ABI::V7,
    }
}

/// What a rule is about, and what it allows there; nothing where that is not there, or is no longer what
/// the plan made it: a path that the container has changed since gets nothing.
fn opened(rule: &Rule, abi: ABI) -> Result<Option<(PathFd, BitFlags<AccessFs>)>> {
    let fail = |errno| Error::os("Landlock: open", &rule.path, errno);
    let Ok(file) = PathFd::new(&rule.path) else {
        return Ok(None);
    };
    let kind = fstat(file.as_fd()).map_err(fail)?.st_mode & libc::S_IFMT;
    let device = matches!(kind, libc::S_IFCHR | libc::S_IFBLK);
    if rule.path != "/" && !device && !is_mount_root(file.as_fd()).map_err(fail)? {
        return Ok(None);
    }
    let mut allowed = BitFlags::EMPTY;
    for may in &rule.may {
        allowed |= bits(*may);
    }
    allowed &= AccessFs::from_all(abi);
    if kind != libc::S_IFDIR {
        allowed &= AccessFs::from_file(abi);
    }
    Ok((!allowed.is_empty()).then_some((file, allowed)))
}

fn bits(may: May) -> BitFlags<AccessFs> {
    match may {
        May::Read => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
        May::Execute => AccessFs::Execute.into(),
        May::Change => make_bitflags!(AccessFs::{
            WriteFile | Truncate | Refer | RemoveDir | RemoveFile | MakeDir | MakeReg | MakeSock
                | MakeFifo | MakeSym
        }),
        May::Nodes => make_bitflags!(AccessFs::{MakeChar | MakeBlock}),
        May::Ioctl => AccessFs::IoctlDev.into(),
    }
}

/// Loads the supplementary filter, for good. The process has no_new_privs.
///
/// # Errors
/// A sentence with the errno.
pub fn filter(supplement: Option<&Supplement>) -> Result<()> {
    let missing = || Error::os("load", "the supplementary filter", Errno::EINVAL);
    let program = &supplement.ok_or_else(missing)?.program;
    crate::sys::seccomp::load(&program.instructions, program.flags)
        .map(drop)
        .map_err(|errno| Error::os("load", "the supplementary filter", errno))
}
