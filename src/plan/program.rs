//! The part of the plan that leads from the finished surroundings to the program.

use oci_spec::runtime::{Hook, Linux, Process as SpecProcess};

use super::build::{id_map, namespaces, new_namespaces, single};
use super::confine::Confinement;
use super::schedule;
use super::step::{Action, CapSets, Identity, Step};
use crate::error::{Error, Result};
use crate::host::Privilege;
use crate::seccomp::Program;
use crate::spec::names;

/// Steps from the finished surroundings to the program. Without no_new_privs the filter needs
/// CAP_SYS_ADMIN, so it comes before the capabilities go; with it, as late as can be.
pub(super) fn to_the_program(
    preserve_fds: u32,
    (linux, process): (&Linux, &SpecProcess),
    privilege: Privilege,
    start_container: &[Hook],
    filter: Option<&Program>,
    confinement: Option<&Confinement>,
) -> Result<Vec<Step>> {
    // What makes up for a loss needs it, and is not to be undone by a program that is executed.
    let no_new_privs = process.no_new_privileges().unwrap_or(false) || confinement.is_some();
    let mut steps: Vec<Step> = vec![
        Action::Umask {
            mask: process.user().umask().unwrap_or(0o022),
        }
        .into(),
    ];
    // Without a process there is nothing to find; Exec says so, after the start.
    if process.args().as_ref().is_some_and(|args| !args.is_empty()) {
        steps.push(Action::FindProgram.into());
    }
    steps.push(
        Action::CloseFrom {
            first: 3 + preserve_fds,
        }
        .into(),
    );
    let limits = process.rlimits().iter().flatten();
    steps.extend(limits.map(rlimit));
    steps.extend(schedule::steps(linux, process));
    if no_new_privs {
        steps.push(Action::NoNewPrivs.into());
    }
    let cwd = process.cwd().to_string_lossy().into_owned();
    // Entered while still root, who may enter more; where root may not (network file systems), the
    // child tries again as the user. Before the filter, which may deny chdir and getcwd: what was seen to
    // be inside the root stays so, for nothing enters another directory after it.
    steps.push(Action::Chdir { path: cwd }.into());
    let mut identity = identity(linux, process, privilege)?;
    if let Some(confinement) = confinement {
        identity.caps.remove(confinement.without_caps);
    }
    let caps = &identity.caps;
    let asked = caps.effective | caps.permitted | caps.inheritable;
    if asked != 0 {
        steps.push(Action::Capabilities { asked }.into());
    }
    if !no_new_privs && filter.is_some() {
        steps.push(Action::Seccomp.into());
    }
    if let Some(confinement) = confinement {
        // While root, who can open every path that a rule is about.
        steps.push(Action::Landlock(confinement.landlock.clone()).into());
    }
    steps.push(Action::Identity(identity).into());
    if confinement.is_some() {
        steps.push(Action::Supplement.into());
    }
    if no_new_privs && filter.is_some() {
        steps.push(Action::Seccomp.into());
    }
    steps.push(Action::AwaitStart.into());
    if !start_container.is_empty() {
        let stage = "startContainer".to_string();
        steps.push(
            Action::Hooks {
                stage,
                hooks: start_container.to_vec(),
            }
            .into(),
        );
    }
    steps.push(Action::Exec.into());
    Ok(steps)
}

fn rlimit(limit: &oci_spec::runtime::PosixRlimit) -> Step {
    let (resource, name) = names::rlimit(limit.typ());
    Action::Rlimit {
        name: name.to_string(),
        resource,
        soft: limit.soft(),
        hard: limit.hard(),
    }
    .into()
}

fn identity(linux: &Linux, process: &SpecProcess, privilege: Privilege) -> Result<Identity> {
    let caps = process.capabilities().as_ref();
    let mask = |set: Option<&Option<oci_spec::runtime::Capabilities>>| {
        names::capability_mask(set.and_then(Option::as_ref))
    };
    let groups = process.user().additional_gids().clone().unwrap_or_default();
    let unprivileged = privilege.euid != 0;
    let denied =
        privilege.setgroups_denied || unprivileged && single(&id_map(linux.gid_mappings()));
    // Whether a joined namespace allows it is not known; without groups nothing has to be set there, as
    // this user's own cannot be dropped anyway.
    let user = libc::CLONE_NEWUSER as u64;
    let joined = namespaces(linux) & !new_namespaces(linux) & user != 0;
    let left = denied || unprivileged && joined && groups.is_empty();
    if denied && !groups.is_empty() {
        return Err(Error::spec(
            "process.user.additionalGids",
            "cannot set any additional groups in a rootless container without a range of groups",
        )
        .remedy("map a range of linux.gidMappings from /etc/subgid, or leave the groups out"));
    }
    Ok(Identity {
        uid: process.user().uid(),
        inside: None,
        gid: process.user().gid(),
        groups: (!left).then_some(groups),
        caps: CapSets {
            bounding: mask(caps.map(|c| c.bounding())),
            effective: mask(caps.map(|c| c.effective())),
            inheritable: mask(caps.map(|c| c.inheritable())),
            permitted: mask(caps.map(|c| c.permitted())),
            ambient: mask(caps.map(|c| c.ambient())),
        },
    })
}

impl CapSets {
    /// Takes the capabilities of this mask out of all sets.
    fn remove(&mut self, mask: u64) {
        for set in [
            &mut self.bounding,
            &mut self.effective,
            &mut self.inheritable,
            &mut self.permitted,
            &mut self.ambient,
        ] {
            *set &= !mask;
        }
    }
}
