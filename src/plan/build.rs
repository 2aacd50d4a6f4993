//! From a checked specification to the steps, in the one order in which they work.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::{
    Hook, Linux, LinuxIdMapping, LinuxNamespaceType, LinuxTimeOffset, Process as SpecProcess, Spec,
};

use super::channels::{self, Planned};
use super::confine;
use super::degrade::{self, Facts, Feature};
use super::labels;
use super::limits;
use super::lost;
use super::mounts;
use super::net;
use super::program::to_the_program;
use super::schedule;
use super::step::{Action, Birth, Degradation, Existing, HostHooks, IdMap, Process, Step};
use super::{Asked, Plan, sandbox, unmapped};
use crate::cgroup::CgroupPlan;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::policy::{self, Level};
use crate::seccomp::Program;
use crate::spec::{Loaded, names};

/// What the planner reads, at hand.
pub(super) struct Context<'a> {
    pub(super) loaded: &'a Loaded,
    pub(super) spec: &'a Spec,
    pub(super) linux: &'a Linux,
    pub(super) host: &'a Host,
    pub(super) asked: &'a Asked,
    pub(super) cgroup: &'a CgroupPlan,
    pub(super) channels: &'a Planned,
    /// CLONE_NEW* bits of all new namespaces, those of clone3 and those that come later.
    pub(super) namespaces: u64,
    /// CLONE_NEW* bits of the namespaces that are joined.
    pub(super) joined: u64,
    /// The AppArmor profile that is asked for can be had.
    pub(super) profile: bool,
    /// The rules for devices can be had, or are nobody's to set.
    pub(super) rules: bool,
}

impl Context<'_> {
    /// Whether a new namespace of this kind is made.
    pub(super) fn has(&self, flag: i32) -> bool {
        self.namespaces & flag as u64 != 0
    }

    /// Whether the container's root has no rights over the host: it is in a user namespace, its own or
    /// the runtime's.
    pub(super) fn without_host_root(&self) -> bool {
        let lost = unmapped::is_lost(&self.asked.without);
        self.in_user_namespace() || self.host.user_namespace || lost
    }

    /// Whether the container's mounts are its caller's: it has no mount namespace.
    pub(super) fn shares_mounts(&self) -> bool {
        (self.namespaces | self.joined) & libc::CLONE_NEWNS as u64 == 0
    }

    /// What the table of degradations looks at.
    fn facts(&self, filter: Option<&Program>) -> Facts {
        Facts {
            made: self.namespaces,
            joined: self.joined,
            nested: self.host.user_namespace,
            root: self.host.euid == 0,
            filter_flags: filter.map_or(0, |program| program.flags),
        }
    }

    /// Whether the container is in a user namespace that is not the runtime's, new or joined.
    pub(super) fn in_user_namespace(&self) -> bool {
        (self.namespaces | self.joined) & libc::CLONE_NEWUSER as u64 != 0
    }
}

/// Plans a container.
///
/// # Errors
/// [`crate::error::Kind::Spec`], naming the field that cannot be planned.
pub fn build(loaded: &Loaded, host: &Host, asked: &Asked) -> Result<Plan> {
    let spec = &loaded.spec;
    let linux = linux_of(spec)?;
    let nothing = nothing();
    let process = spec.process().as_ref().unwrap_or(&nothing);
    let level = policy::of_container(asked.degrade, spec.annotations().as_ref())?;
    let mut degradations = Vec::new();
    degradations.extend(labels::check(
        linux,
        process,
        &host.lsm,
        level,
        host.landlock,
    )?);
    degradations.extend(lost::plan(linux, host, asked, level)?);
    check_privilege(linux, host)?;
    if sandbox::is_all(&asked.without) {
        let loaded = &Loaded {
            spec: sandbox::specification(spec, &loaded.rootfs, host.euid)?,
            ..loaded.clone()
        };
        let mut plan = planned(loaded, host, asked, level, (degradations, Some(linux)))?;
        sandbox::settle(&mut plan, process.user().uid());
        return Ok(plan);
    }
    if unmapped::is_lost(&asked.without) {
        let loaded = &Loaded {
            spec: unmapped::specification(spec)?,
            ..loaded.clone()
        };
        let mut plan = planned(loaded, host, asked, level, (degradations, None))?;
        unmapped::known_as(&mut plan, process.user().uid());
        return Ok(plan);
    }
    planned(loaded, host, asked, level, (degradations, None))
}

/// Plans what is left of the specification after what births have shown not to be there; in a process
/// sandbox with what was asked for before.
fn planned(
    loaded: &Loaded,
    host: &Host,
    asked: &Asked,
    level: Level,
    (mut degradations, sandboxed): (Vec<Degradation>, Option<&Linux>),
) -> Result<Plan> {
    let spec = &loaded.spec;
    let linux = linux_of(spec)?;
    let nothing = nothing();
    let process = spec.process().as_ref().unwrap_or(&nothing);
    let (cgroup, unlimited) = limits::plan(spec, linux, host, asked, level)?;
    degradations.extend(unlimited);
    let mut channels = channels::plan(spec, linux, host, level)?;
    if sandboxed.is_some() && channels.request.is_some() {
        return Err(Error::spec(
            "annotations",
            "tensor channels and /dev/shm are mounts, which a process sandbox has not",
        ));
    }
    degradations.append(&mut channels.degradations);
    let seccomp = linux
        .seccomp()
        .as_ref()
        .map(crate::seccomp::compile)
        .transpose()?;
    let rows: Vec<Feature> = degradations.iter().map(|lost| lost.row).collect();
    let context = Context {
        loaded,
        spec,
        linux,
        host,
        asked,
        cgroup: &cgroup,
        channels: &channels,
        namespaces: new_namespaces(linux) & !lost::namespaces(&asked.without),
        joined: joins(linux).iter().fold(0, |all, join| all | join.flag),
        profile: !rows.contains(&Feature::Apparmor),
        rules: !rows.contains(&Feature::DeviceRules),
    };
    let confinement = confine::plan(&rows, spec, sandboxed.unwrap_or(linux), host.landlock)?;
    let hooks = Stages::of(spec);
    let steps = begin(&context, process)?;
    let mut steps = match sandboxed {
        Some(_) => [steps, sandbox::root()].concat(),
        None => with_mounts(&context, steps)?,
    };
    steps.extend(around_hooks(&hooks));
    steps.extend(match sandboxed {
        Some(_) => sandbox::finish(process, context.profile),
        None => mounts::finish(&context, process, &steps, confinement.as_ref()),
    });
    steps.extend(to_the_program(
        asked.listen_fds + asked.preserve_fds,
        (linux, process),
        host.privilege(),
        &hooks.start_container,
        seccomp.as_ref(),
        confinement.as_ref(),
    )?);
    let rdt = super::rdt::plan(linux, &asked.id);
    let facts = context.facts(seccomp.as_ref());
    let mut birth = birth(&context, process);
    // It has to be in its group before it forks a hook or executes the program.
    birth.child_waits |= rdt.is_some();
    degrade::arm(
        steps.iter_mut().chain(&mut birth.oom_score_adj),
        &facts,
        level,
    );
    let mut env = environment(process, asked.listen_fds);
    channels::environment(channels.request.as_ref(), &mut env);
    Ok(Plan {
        rdt,
        channels: channels.channels.clone(),
        oci_version: spec.version().clone(),
        id: asked.id.clone(),
        bundle: loaded.bundle.clone(),
        rootfs: loaded.rootfs.clone(),
        annotations: spec.annotations().iter().flatten().map(pair).collect(),
        level,
        degradations,
        birth,
        shares_mounts: context.shares_mounts(),
        sandbox: false,
        steps,
        process: Process {
            args: process.args().clone().unwrap_or_default(),
            env,
            cwd: process.cwd().to_string_lossy().into_owned(),
        },
        seccomp,
        supplement: confinement.map(|confinement| confinement.supplement),
        preserve_fds: asked.listen_fds + asked.preserve_fds,
        host_hooks: hooks.host,
        cgroup,
    })
}

/// The steps before the file system, with those that make it. Before anything is mounted, its propagation
/// keeps that from the host; as the first step of all in a new user namespace, it shows whether that gives
/// rights over anything: where it does not, the container is made again without, and no other step is to
/// take the refusal for its own.
fn with_mounts(context: &Context<'_>, before: Vec<Step>) -> Result<Vec<Step>> {
    let propagation = mounts::propagation_of_all(context)?.into_iter().collect();
    let first = match context.has(libc::CLONE_NEWUSER) {
        true => [propagation, before],
        false => [before, propagation],
    };
    let mut steps = first.concat();
    steps.extend(mounts::root(context)?);
    Ok(steps)
}

/// The part of a specification that is about Linux.
///
/// # Errors
/// It is missing.
pub(super) fn linux_of(spec: &Spec) -> Result<&Linux> {
    spec.linux()
        .as_ref()
        .ok_or_else(|| Error::spec("linux", "it is missing; a Linux container needs it"))
}

/// What stands for the process of a container that has none: it is made, and cannot be started.
fn nothing() -> SpecProcess {
    let mut process = SpecProcess::default();
    process
        .set_args(None)
        .set_env(None)
        .set_capabilities(None)
        .set_rlimits(None)
        .set_no_new_privileges(None);
    process
}

/// With sockets to listen on, the program is told of them as by systemd; that it is process 1 is what
/// runc says, too.
fn environment(process: &SpecProcess, listen_fds: u32) -> Vec<String> {
    let mut env = last_values(process.env().as_deref().unwrap_or_default());
    if listen_fds > 0 {
        env.retain(|pair| !pair.starts_with("LISTEN_FDS=") && !pair.starts_with("LISTEN_PID="));
        env.push(format!("LISTEN_FDS={listen_fds}"));
        env.push("LISTEN_PID=1".into());
    }
    env
}

/// An environment with each name once: the last value counts, and its place, as in runc and crun.
pub(super) fn last_values(env: &[String]) -> Vec<String> {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_string();
    let mut seen = std::collections::BTreeSet::new();
    let mut kept: Vec<String> = env
        .iter()
        .rev()
        .filter(|pair| seen.insert(name(pair)))
        .cloned()
        .collect();
    kept.reverse();
    kept
}

pub(super) fn pair((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

/// CLONE_NEW* bits of all listed namespaces, new and joined.
pub(super) fn namespaces(linux: &Linux) -> u64 {
    let listed = linux.namespaces().iter().flatten();
    listed.fold(0, |all, ns| all | names::namespace_of(ns.typ()).flag)
}

/// CLONE_NEW* bits of the namespaces that are made.
pub(super) fn new_namespaces(linux: &Linux) -> u64 {
    let listed = linux.namespaces().iter().flatten();
    let made = listed.filter(|ns| names::joined(ns).is_none());
    made.fold(0, |all, ns| all | names::namespace_of(ns.typ()).flag)
}

/// The namespaces that are joined, in the order of the table of names.
fn joins(linux: &Linux) -> Vec<Existing> {
    let listed = linux.namespaces().iter().flatten();
    let join = |ns| {
        let path = names::joined(ns)?.to_path_buf();
        let kind = names::namespace_of(ns.typ());
        Some(Existing {
            kind: kind.name.to_string(),
            flag: kind.flag,
            path,
        })
    };
    let mut found: Vec<Existing> = listed.filter_map(join).collect();
    found.sort_by(|a, b| a.kind.cmp(&b.kind));
    found
}

/// Without privileges every other namespace needs a user namespace.
fn check_privilege(linux: &Linux, host: &Host) -> Result<()> {
    let mut listed = linux.namespaces().iter().flatten();
    if host.euid == 0 || listed.any(|ns| ns.typ() == LinuxNamespaceType::User) {
        return Ok(());
    }
    Err(
        Error::spec("linux.namespaces", "rootless container requires user namespaces")
            .remedy("add {\"type\": \"user\"} with mappings (isorun spec --rootless shows it), or run isorun as root"),
    )
}

fn flag_of(kind: LinuxNamespaceType) -> u64 {
    names::namespace_of(kind).flag
}

/// Hooks, sorted by who runs them.
struct Stages {
    host: HostHooks,
    create_container: Vec<Hook>,
    start_container: Vec<Hook>,
}

impl Stages {
    fn of(spec: &Spec) -> Self {
        let Some(hooks) = spec.hooks() else {
            return Self {
                host: BTreeMap::new(),
                create_container: Vec::new(),
                start_container: Vec::new(),
            };
        };
        let prestart = hooks.prestart();
        let stages = [
            ("prestart", prestart),
            ("createRuntime", hooks.create_runtime()),
            ("poststart", hooks.poststart()),
            ("poststop", hooks.poststop()),
        ];
        let host = stages
            .into_iter()
            .filter_map(|(stage, hooks)| Some((stage.to_string(), hooks.clone()?)))
            .filter(|(_, hooks)| !hooks.is_empty())
            .collect();
        Self {
            host,
            create_container: hooks.create_container().clone().unwrap_or_default(),
            start_container: hooks.start_container().clone().unwrap_or_default(),
        }
    }
}

pub(super) fn id_map(mappings: &Option<Vec<LinuxIdMapping>>) -> Vec<IdMap> {
    let line = |map: &LinuxIdMapping| IdMap {
        inside: map.container_id(),
        outside: map.host_id(),
        count: map.size(),
    };
    mappings.iter().flatten().map(line).collect()
}

/// The child makes its network namespace by itself: that is half of the time of a birth, and the
/// parent has something else to do meanwhile (docs/decisions/0001-engine.md has the figures). The time
/// namespace with offsets is entered by unshare and exec, and the cgroup namespace by unshare
/// once the child is in its cgroup: its root is the cgroup of the process that makes it. In a user
/// namespace the child also makes its IPC namespace, once it is root there: the directory of message
/// queues belongs to whoever makes it.
fn birth(context: &Context<'_>, process: &SpecProcess) -> Birth {
    let user = context.in_user_namespace();
    let made = context.has(libc::CLONE_NEWUSER);
    let joins = joins(context.linux);
    let only_by_children = (libc::CLONE_NEWUSER | libc::CLONE_NEWPID) as u64;
    let between = context.joined & only_by_children != 0 || made && !joins.is_empty();
    let mut later = flag_of(LinuxNamespaceType::Cgroup) | flag_of(LinuxNamespaceType::Network);
    if user {
        later |= flag_of(LinuxNamespaceType::Ipc);
    }
    if offsets(context.linux).is_some() {
        later |= flag_of(LinuxNamespaceType::Time);
    }
    let clone_flags = context.namespaces & !later;
    let kinds = names::NAMESPACES
        .iter()
        .filter(|kind| clone_flags & kind.flag != 0);
    let limits = process.rlimits().iter().flatten();
    let raise =
        |limit: &oci_spec::runtime::PosixRlimit| (names::rlimit(limit.typ()).0, limit.hard());
    let maps = |mappings| if made { id_map(mappings) } else { Vec::new() };
    let gid_map = maps(context.linux.gid_mappings());
    Birth {
        joins,
        between,
        stated_maps: (user && !made)
            .then(|| {
                let (uids, gids) = (context.linux.uid_mappings(), context.linux.gid_mappings());
                (id_map(uids), id_map(gids))
            })
            .filter(|(uids, gids)| !(uids.is_empty() && gids.is_empty())),
        deny_setgroups: context.host.euid != 0 && single(&gid_map),
        namespaces: kinds.map(|kind| kind.name.to_string()).collect(),
        clone_flags,
        uid_map: maps(context.linux.uid_mappings()),
        gid_map,
        child_waits: user,
        raise_limits: if user {
            limits.map(raise).collect()
        } else {
            Vec::new()
        },
        oom_score_adj: process
            .oom_score_adj()
            .filter(|_| user)
            .map(|value| Action::OomScoreAdj { value }.into()),
    }
}

/// Whether a map is of one id: then a user without privileges may write it for its own id.
pub(super) fn single(map: &[IdMap]) -> bool {
    matches!(map, [line] if line.count == 1)
}

fn offsets(linux: &Linux) -> Option<Vec<String>> {
    let line = |(clock, offset): (&String, &LinuxTimeOffset)| {
        let (secs, nanosecs) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        format!("{clock} {secs} {nanosecs}")
    };
    let map = linux
        .time_offsets()
        .as_ref()
        .filter(|map| !map.is_empty())?;
    let mut lines: Vec<String> = map.iter().map(line).collect();
    lines.sort();
    Some(lines)
}

/// Steps that come before the file system.
fn begin(context: &Context<'_>, process: &SpecProcess) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = vec![Action::NewSession.into()];
    let channels = context.channels.channels.as_ref();
    if channels.is_some_and(|channels| channels.init) {
        steps.push(Action::PidRange.into());
    }
    steps.push(schedule::all_cpus());
    if !context.asked.no_new_keyring {
        steps.push(keyring(
            &context.asked.id,
            context.in_user_namespace(),
            labels::keyring(process),
        ));
    }
    if context.has(libc::CLONE_NEWCGROUP) {
        steps.push(Action::CgroupNamespace.into());
    }
    if context.namespaces & flag_of(LinuxNamespaceType::Time) != 0
        && let Some(offsets) = offsets(context.linux)
    {
        steps.push(Action::TimeNamespace { offsets }.into());
    }
    if context.in_user_namespace() && context.has(libc::CLONE_NEWIPC) {
        steps.push(Action::IpcNamespace.into());
    }
    if context.has(libc::CLONE_NEWNET) {
        steps.push(Action::NetworkNamespace.into());
        steps.push(Action::LoopbackUp.into());
    }
    steps.extend(net::step(context.linux, context.host)?);
    if !context.in_user_namespace()
        && let Some(value) = process.oom_score_adj()
    {
        steps.push(Action::OomScoreAdj { value }.into());
    }
    if let Some(name) = context
        .spec
        .hostname()
        .clone()
        .filter(|name| !name.is_empty())
    {
        steps.push(Action::Hostname { name }.into());
    }
    if let Some(name) = context
        .spec
        .domainname()
        .clone()
        .filter(|name| !name.is_empty())
    {
        steps.push(Action::Domainname { name }.into());
    }
    let (sysctls, _) = lost::sysctls(context.linux, &context.asked.without);
    let sysctl = |(key, value): (&String, &String)| Action::Sysctl {
        key: key.clone(),
        value: value.clone(),
    };
    steps.extend(sysctls.into_iter().map(|entry| sysctl(entry).into()));
    Ok(steps)
}

/// Who makes the keyring is its possessor and may do all; whoever has the container's user id, which
/// is how an exec'd process is related to it, has to be able to search it. In a user namespace that is
/// "other" (runc's getSessionRingParams).
pub(super) fn keyring(id: &str, user_namespace: bool, label: Option<String>) -> Step {
    const OTHER_SEARCH: u32 = 0x08;
    const USER_SEARCH: u32 = 0x08_0000;
    Action::SessionKeyring {
        name: format!("_ses.{id}"),
        search: match user_namespace {
            true => OTHER_SEARCH,
            false => USER_SEARCH,
        },
        label,
    }
    .into()
}

fn around_hooks(hooks: &Stages) -> Vec<Step> {
    let mut steps = Vec::new();
    if hooks.host.contains_key("prestart") || hooks.host.contains_key("createRuntime") {
        steps.push(Action::HostHooks.into());
    }
    if !hooks.create_container.is_empty() {
        let stage = "createContainer".to_string();
        steps.push(
            Action::Hooks {
                stage,
                hooks: hooks.create_container.clone(),
            }
            .into(),
        );
    }
    steps
}

/// A path of config.json that is relative to the bundle, made absolute.
pub(super) fn below(bundle: &Path, path: &Path) -> std::path::PathBuf {
    bundle.join(path)
}
