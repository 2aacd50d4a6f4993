//! The plan of a further process in a container that runs: exec.

use std::path::Path;

use oci_spec::runtime::{Linux, Process as SpecProcess, Spec};

use super::build::{id_map, keyring, linux_of, namespaces, new_namespaces, pair};
use super::confine;
use super::degrade::{self, Facts, Feature};
use super::program::to_the_program;
use super::step::{Action, Birth, IdMap, Process, Step};
use super::{Asked, LabelKind, Plan, labels, sandbox, unmapped};
use crate::cgroup::{CgroupPlan, Mode};
use crate::error::{Error, Kind, Result};
use crate::host::Privilege;
use crate::spec::{cpus, names};
use crate::sys::sched::CpuMask;

/// How a further process comes into the container.
#[derive(Debug, Clone, PartialEq)]
pub struct Join {
    /// CLONE_NEW* bits of the namespaces that the container has for itself.
    pub namespaces: u64,
    /// There is a user namespace among them, and id 0 is mapped in it for users and groups, as far as
    /// config.json tells: of a joined one it need not.
    pub becomes_root: bool,
    /// Hard limits to be raised before the user namespace is joined: afterwards none can be.
    pub raise_limits: Vec<(u32, u64)>,
    /// The OOM badness, set before that for the same reason.
    pub oom_score_adj: Option<Step>,
    /// Labels of the program, given while /proc is the host's.
    pub labels: Vec<(LabelKind, String)>,
    /// The label of the session keyring, if one is made.
    pub key_label: Option<String>,
    /// The CPUs to run on until the cgroup is entered.
    pub initial_cpus: Option<CpuMask>,
    /// And those from then on.
    pub final_cpus: Option<CpuMask>,
}

/// The plan and the way in.
#[derive(Debug, Clone, PartialEq)]
pub struct Joined {
    /// The steps in the container; the rest is the container's.
    pub plan: Plan,
    /// How to get there.
    pub join: Join,
}

/// Plans `process` in the container that was made from `spec`. What `process` leaves open, and runc
/// takes from the container, is the container's: capabilities, limits, labels, OOM badness, umask.
/// The system call filter is always the container's. What the container does without
/// ([`Asked::without`]) is made up for here as it was there, on a host with this version of Landlock (0:
/// none).
///
/// # Errors
/// A filter that cannot be compiled, which the container would not have started with either; a loss of the
/// container that the level does not allow, or that cannot be made up for any more.
pub fn exec(
    spec: &Spec,
    process: &SpecProcess,
    asked: &Asked,
    privilege: Privilege,
    landlock: u32,
) -> Result<Joined> {
    let linux = linux_of(spec)?;
    let process = complete(process.clone(), spec.process().as_ref());
    if unmapped::is_lost(&asked.without) {
        let uid = process.user().uid();
        let process = unmapped::process(linux, &process)?;
        let spec = unmapped::specification(spec)?;
        let mut joined = planned(&spec, process, asked, (privilege, landlock), None)?;
        unmapped::known_as(&mut joined.plan, uid);
        return Ok(joined);
    }
    if sandbox::is_all(&asked.without) {
        let uid = process.user().uid();
        let process = sandbox::process(linux, &process, privilege.euid)?;
        let new = sandbox::specification(spec, Path::new("/"), privilege.euid)?;
        let given = (privilege, landlock);
        let mut joined = planned(&new, process, asked, given, Some(linux))?;
        sandbox::settle(&mut joined.plan, uid);
        return Ok(joined);
    }
    planned(spec, process, asked, (privilege, landlock), None)
}

/// Plans a complete process in what is left of the container's specification.
fn planned(
    spec: &Spec,
    process: SpecProcess,
    asked: &Asked,
    (privilege, landlock): (Privilege, u32),
    sandboxed: Option<&Linux>,
) -> Result<Joined> {
    let linux = linux_of(spec)?;
    let seccomp = linux
        .seccomp()
        .as_ref()
        .map(crate::seccomp::compile)
        .transpose()?;
    let rows = lost_rows(asked, landlock)?;
    let confinement = confine::plan(&rows, spec, sandboxed.unwrap_or(linux), landlock)?;
    let profile = !rows.contains(&Feature::Apparmor);
    let mut steps: Vec<Step> = vec![Action::NewSession.into()];
    if !asked.no_new_keyring {
        let user = namespaces(linux) & libc::CLONE_NEWUSER as u64 != 0;
        // Its label is set before the namespaces are joined, while /proc is the host's.
        steps.push(keyring(&asked.id, user, None));
    }
    steps.extend(super::mounts::terminal(&process));
    let (initial_cpus, final_cpus) = affinity(&process)?;
    if initial_cpus.is_none() && final_cpus.is_none() {
        steps.push(super::schedule::all_cpus());
    }
    steps.extend(to_the_program(
        asked.preserve_fds,
        (linux, &process),
        privilege,
        &[],
        seccomp.as_ref(),
        confinement.as_ref(),
    )?);
    let kinds = namespaces(linux) & !super::lost::namespaces(&asked.without);
    let facts = Facts {
        made: kinds & new_namespaces(linux),
        joined: kinds & !new_namespaces(linux),
        nested: privilege.user_namespace,
        root: privilege.euid == 0,
        filter_flags: seccomp.as_ref().map_or(0, |program| program.flags),
    };
    // Asked for already by who has looked at the container's record.
    let level = asked.degrade;
    degrade::arm(steps.iter_mut(), &facts, level);
    let join = Join {
        initial_cpus,
        final_cpus,
        ..joining(linux, &process, asked, &facts, profile)
    };
    let mut env = super::build::last_values(process.env().as_deref().unwrap_or_default());
    super::channels::environment_of(spec, &mut env);
    let plan = Plan {
        oci_version: spec.version().clone(),
        id: asked.id.clone(),
        bundle: Default::default(),
        rootfs: Default::default(),
        annotations: spec.annotations().iter().flatten().map(pair).collect(),
        cgroup: CgroupPlan {
            mode: Mode::None,
            dirs: Vec::new(),
            clone_into: false,
            scope: None,
            rootless: false,
            lenient: false,
            ignored: Vec::new(),
        },
        rdt: None,
        channels: None,
        level,
        degradations: Vec::new(),
        birth: Birth::default(),
        shares_mounts: false,
        sandbox: false,
        steps,
        process: Process {
            args: process.args().clone().unwrap_or_default(),
            env,
            cwd: process.cwd().to_string_lossy().into_owned(),
        },
        seccomp,
        supplement: confinement.map(|confinement| confinement.supplement),
        preserve_fds: asked.preserve_fds,
        host_hooks: Default::default(),
    };
    Ok(Joined { plan, join })
}

/// What the container was made without; each row may still be missing, and made up for.
fn lost_rows(asked: &Asked, landlock: u32) -> Result<Vec<Feature>> {
    let rows = asked.without.iter().map(|lost| {
        match lost.feature.row().refusal_on(asked.degrade, landlock) {
            Some(refusal) => Err(Error::new(Kind::State, lost.reason.clone()).also(&refusal)),
            None => Ok(lost.feature),
        }
    });
    rows.collect()
}

/// What is done before the container's namespaces are joined, and which those are; without CPUs.
/// `profile`: with the AppArmor profile.
fn joining(
    linux: &Linux,
    process: &SpecProcess,
    asked: &Asked,
    facts: &Facts,
    profile: bool,
) -> Join {
    let namespaces = facts.made | facts.joined;
    let user = namespaces & libc::CLONE_NEWUSER as u64 != 0;
    let has_root = |map: &[IdMap]| map.iter().any(|line| line.inside == 0);
    let limits = process.rlimits().iter().flatten().filter(|_| user);
    let raise =
        |limit: &oci_spec::runtime::PosixRlimit| (names::rlimit(limit.typ()).0, limit.hard());
    Join {
        namespaces,
        becomes_root: user
            && [linux.uid_mappings(), linux.gid_mappings()]
                .iter()
                .all(|map| map.is_none() || has_root(&id_map(map))),
        raise_limits: limits.map(raise).collect(),
        oom_score_adj: process
            .oom_score_adj()
            .map(|value| Step::armed(Action::OomScoreAdj { value }, facts, asked.degrade)),
        labels: labels::process(process, profile)
            .into_iter()
            .filter_map(|step| match step.action {
                Action::ExecLabel { kind, label } => Some((kind, label)),
                _ => None,
            })
            .collect(),
        key_label: labels::keyring(process).filter(|_| !asked.no_new_keyring),
        initial_cpus: None,
        final_cpus: None,
    }
}

/// The CPUs of `execCPUAffinity`: before and after the cgroup is entered.
fn affinity(process: &SpecProcess) -> Result<(Option<CpuMask>, Option<CpuMask>)> {
    let Some(affinity) = process.exec_cpu_affinity() else {
        return Ok((None, None));
    };
    let mask = |name: &str, list: &Option<String>| match list {
        Some(list) => cpus::parse(list)
            .map_err(|why| Error::spec(format!("process.execCPUAffinity.{name}"), why)),
        None => Ok(None),
    };
    Ok((
        mask("initial", affinity.initial())?,
        mask("final", affinity.cpu_affinity_final())?,
    ))
}

/// Fills in what a process file may leave to the container. An OOM badness of its own it has none:
/// runc gives the container's to all processes.
fn complete(mut process: SpecProcess, of_container: Option<&SpecProcess>) -> SpecProcess {
    let Some(container) = of_container else {
        return process;
    };
    let empty = |label: &Option<String>| label.as_ref().is_none_or(String::is_empty);
    if process.capabilities().is_none() {
        process.set_capabilities(container.capabilities().clone());
    }
    if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
        process.set_rlimits(container.rlimits().clone());
    }
    if empty(process.apparmor_profile()) {
        process.set_apparmor_profile(container.apparmor_profile().clone());
    }
    if empty(process.selinux_label()) {
        process.set_selinux_label(container.selinux_label().clone());
    }
    process.set_oom_score_adj(container.oom_score_adj());
    if process.user().umask().is_none() {
        let mut user = process.user().clone();
        user.set_umask(container.user().umask());
        process.set_user(user);
    }
    process
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {
                "user": {"uid": 0, "gid": 0, "umask": 63}, "args": ["init"], "cwd": "/",
                "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"]},
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}],
                "oomScoreAdj": 500, "noNewPrivileges": true
            },
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "user"}],
                "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 10}],
                "gidMappings": [{"containerID": 1, "hostID": 100_000, "size": 10}]
            }
        }))
        .unwrap()
    }

    fn process(json: serde_json::Value) -> SpecProcess {
        serde_json::from_value(json).unwrap()
    }

    fn actions(joined: &Joined) -> Vec<Action> {
        let steps = joined.plan.steps.iter();
        steps.map(|step| step.action.clone()).collect()
    }

    #[test]
    fn what_a_process_leaves_open_is_the_containers() {
        let bare = process(serde_json::json!({
            "user": {"uid": 5, "gid": 6}, "args": ["true"], "cwd": "/tmp"}));
        let joined = exec(&spec(), &bare, &Asked::default(), Privilege::default(), 0).unwrap();
        let all = actions(&joined);
        assert!(all.contains(&Action::Umask { mask: 63 }), "{all:?}");
        assert!(all.contains(&Action::Chdir {
            path: "/tmp".into()
        }));
        let kill = 1 << 5;
        let found = all.iter().find_map(|action| match action {
            Action::Identity(identity) => {
                Some((identity.uid, identity.gid, identity.caps.bounding))
            }
            _ => None,
        });
        assert_eq!(found, Some((5, 6, kill)));
        assert!(all.iter().any(
            |action| matches!(action, Action::Rlimit { soft, hard, .. } if (*soft, *hard) == (100, 200))
        ));
        // As under runc: it is the process's own, and a file that is silent says no.
        assert!(!all.contains(&Action::NoNewPrivs));
        let oom = joined.join.oom_score_adj.map(|step| step.action);
        assert_eq!(oom, Some(Action::OomScoreAdj { value: 500 }));
        assert!(!joined.join.becomes_root, "gid 0 is not mapped");
        assert_eq!(joined.join.raise_limits.len(), 1);
        let user = libc::CLONE_NEWUSER as u64;
        assert_ne!(joined.join.namespaces & user, 0);
    }

    #[test]
    fn what_a_process_says_counts() {
        let own = process(serde_json::json!({
            "user": {"uid": 0, "gid": 0, "umask": 7}, "args": ["true"], "cwd": "/",
            "capabilities": {"bounding": []}, "noNewPrivileges": true,
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}]}));
        let asked = Asked {
            no_new_keyring: true,
            ..Asked::default()
        };
        let all = actions(&exec(&spec(), &own, &asked, Privilege::default(), 0).unwrap());
        assert!(all.contains(&Action::NoNewPrivs));
        assert!(all.contains(&Action::Umask { mask: 7 }));
        assert!(
            !all.iter()
                .any(|a| matches!(a, Action::SessionKeyring { .. }))
        );
        let caps = all.iter().find_map(|action| match action {
            Action::Identity(identity) => Some(identity.caps.bounding),
            _ => None,
        });
        assert_eq!(caps, Some(0));
    }
}
