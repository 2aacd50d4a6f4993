//! What makes up for a protection that the host does not give, in the child: the Landlock domain and the
//! supplementary filter.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope as KernelScope, make_bitflags,
};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat};

use crate::error::{Error, Kind, Result};
use crate::plan::confine::{Landlock, May, Rule, Scope, Supplement};
use crate::sys::fs::{openat2, resolve};
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
    let hidden: Vec<PathBuf> = landlock
        .hidden
        .iter()
        .flat_map(|path| named(path))
        .collect();
    for rule in &landlock.rules {
        // What is hidden further up is not hidden by what is allowed in it: a device in /dev.
        let path = Path::new(&rule.path);
        let below = hidden.iter().filter(|hidden| hidden.starts_with(path));
        let below: Vec<&Path> = below.map(PathBuf::as_path).collect();
        for path in all_but(path, &below) {
            let Some((file, allowed)) = opened(&path, rule, landlock.of_host, abi)? else {
                continue;
            };
            created = created
                .add_rule(PathBeneath::new(file, allowed))
                .map_err(|error| fail(&format!("allow {}", path.display()))(&error))?;
        }
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

/// A path by its name, and as it really is.
fn named(path: &str) -> Vec<PathBuf> {
    let mut all = vec![PathBuf::from(path)];
    all.extend(
        std::fs::canonicalize(path)
            .ok()
            .filter(|real| *real != all[0]),
    );
    all
}

/// The path itself where nothing in it is hidden, else all in it that is not on the way to what is.
fn all_but(path: &Path, hidden: &[&Path]) -> Vec<PathBuf> {
    if hidden.iter().any(|hidden| path.starts_with(hidden)) {
        return Vec::new();
    }
    if !hidden.iter().any(|hidden| hidden.starts_with(path)) {
        return vec![path.to_path_buf()];
    }
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    // Directories of processes come and go, and what is allowed on one may be another's later.
    let process = |name: &OsString| {
        let name = name.to_string_lossy();
        path == Path::new("/proc") && name.starts_with(|first: char| first.is_ascii_digit())
    };
    names
        .filter(|name| !process(name))
        .flat_map(|name| all_but(&path.join(name), hidden))
        .collect()
}

/// What a rule is about, and what it allows there; nothing where that is not there, or is no longer what
/// the plan made it: a path that the container has changed since gets nothing.
fn opened(
    path: &Path,
    rule: &Rule,
    of_host: bool,
    abi: ABI,
) -> Result<Option<(OwnedFd, BitFlags<AccessFs>)>> {
    let fail = |errno| Error::os("Landlock: open", path.display().to_string(), errno);
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let file = match (of_host, CString::new(path.as_os_str().as_bytes())) {
        // A link allows nothing on what it leads to: that may be hidden, or chosen by who is inside.
        (true, Ok(path)) => {
            let flags = flags.bits() | libc::O_NOFOLLOW;
            openat2(nix::fcntl::AT_FDCWD, &path, flags, 0, resolve::NO_SYMLINKS)
        }
        _ => nix::fcntl::open(path, flags, Mode::empty()),
    };
    let Ok(file) = file else {
        return Ok(None);
    };
    let kind = fstat(&file).map_err(fail)?.st_mode & libc::S_IFMT;
    let device = matches!(kind, libc::S_IFCHR | libc::S_IFBLK);
    let right = match of_host {
        true => kind != libc::S_IFLNK,
        false => rule.path == "/" || device || is_mount_root(file.as_fd()).map_err(fail)?,
    };
    if !right {
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
