//! The part of the plan that is about tensor channels and /dev/shm.

use oci_spec::runtime::{Capability, Linux, Spec};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use super::build::Context;
use super::cuda;
use super::degrade::{self, Feature};
use super::labels;
use super::step::{Action, Degradation, IdMapping, Mount, MountKind, Step};
use crate::channel::{self, CHANNELS, Channel, Request, SHM, SHM_SIZE, Shm};
use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::policy::Level;
use crate::sys::mount::attr;

const DEV_SHM: &str = "/dev/shm";

/// The flags of a channel's mount, and of a private /dev/shm.
const FLAGS: u64 = attr::NOSUID | attr::NODEV | attr::NOEXEC;

/// The channels that a container joins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Channels {
    /// Where channels are.
    pub root: PathBuf,
    /// They are those of a user without privileges.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rootless: bool,
    /// The user id of isorun's caller, as the host has it.
    pub uid: u32,
    /// A directory does where no tmpfs can be had: the level allows it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub or_directory: bool,
    /// GPU memory is shared: the container's first process is isorun's init, and its processes have numbers
    /// that no other member has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
    /// The channels.
    pub join: Vec<Channel>,
}

/// What the annotations come to.
#[derive(Debug, Default)]
pub(super) struct Planned {
    pub(super) request: Option<Request>,
    pub(super) channels: Option<Channels>,
    pub(super) degradations: Vec<Degradation>,
}

/// Plans what the annotations ask for.
///
/// # Errors
/// An annotation that cannot be meant; a channel that is refused, with the rule's name; a size that
/// cannot be had, where the level does not allow to do without.
pub(super) fn plan(spec: &Spec, linux: &Linux, host: &Host, level: Level) -> Result<Planned> {
    let Some(annotations) = spec.annotations() else {
        return Ok(Planned::default());
    };
    let Some(request) = channel::request(annotations.iter())? else {
        return Ok(Planned::default());
    };
    let process = spec.process().as_ref();
    let env = process.and_then(|process| process.env().as_deref());
    let mut request = request.with_environment(env.unwrap_or_default());
    let mut planned = Planned::default();
    if !request.channels.is_empty() {
        let nothing = channel::Facts::default();
        let facts = host.channels.as_deref().unwrap_or(&nothing);
        let mut join =
            channel::grant(&request, facts, has_admin(spec), |key| annotations.get(key))?;
        let cuda = cuda::plan((spec, linux), host, level, &mut request, &mut join)?;
        planned.degradations.extend(cuda.degradations);
        let label = labels::mounts(linux).map(|label| channel::shared_label(&label));
        for channel in &mut join {
            channel.label.clone_from(&label);
        }
        // The pages of a channel count for the cgroup of who writes them.
        let bounded = memory_limit(linux);
        let level = match level {
            Level::Safe if bounded => Level::Any,
            other => other,
        };
        let asked = join.iter().filter(|_| facts.rootless);
        for channel in asked.filter(|channel| channel.asked.is_some()) {
            planned.degradations.push(no_quota(channel, level)?);
        }
        planned.channels = Some(Channels {
            root: facts.root.clone(),
            rootless: facts.rootless,
            uid: facts.uid,
            or_directory: Feature::ChannelQuota.row().refusal(level).is_none(),
            init: cuda.init,
            join,
        });
    }
    planned.request = Some(request);
    Ok(planned)
}

/// Whether the container's processes may get CAP_SYS_ADMIN.
fn has_admin(spec: &Spec) -> bool {
    let caps = spec
        .process()
        .as_ref()
        .and_then(|p| p.capabilities().as_ref());
    let bounding = caps.and_then(|caps| caps.bounding().as_ref());
    bounding.is_some_and(|set| set.contains(&Capability::SysAdmin))
}

fn memory_limit(linux: &Linux) -> bool {
    let memory = linux.resources().as_ref().and_then(|r| r.memory().as_ref());
    memory
        .and_then(|memory| memory.limit())
        .is_some_and(|limit| limit > 0)
}

/// The size of a channel of a user without privileges: there is no tmpfs of its own that could have it.
fn no_quota(channel: &Channel, level: Level) -> Result<Degradation> {
    let name = channel.key.name();
    let field = format!("annotations[{:?}]", channel::size_annotation(name));
    let error = Error::spec(
        field,
        "a user without privileges cannot limit a channel's size: it is a directory below $XDG_RUNTIME_DIR",
    );
    degrade::planned(
        Feature::ChannelQuota,
        level,
        format!("the size of the channel {name:?}"),
        error,
        0,
    )
}

/// What is told of a channel whose tmpfs could not be mounted.
pub fn without_tmpfs(key: &channel::Key, error: &Error) -> Degradation {
    let lost = degrade::Lost {
        feature: Feature::ChannelQuota,
        reason: error.to_string(),
        errno: error.errno().map_or(0, |errno| errno as i32),
    };
    // Landlock has no part in it.
    degrade::lost(
        &lost,
        format!("a tmpfs of its own for the channel {key}"),
        0,
    )
}

/// What is told of a member that got no process ids of its own.
///
/// # Errors
/// `error` with the row and the repair, where the level does not allow it.
pub fn used_up(error: Error, level: Level) -> Result<Degradation> {
    let what = "process ids of its own for GPU memory in channels".to_string();
    degrade::planned(Feature::CudaIpc, level, what, error, 0)
}

/// What is told of a process whose number is not among those of its container.
pub fn wrapped(pid: u32, pids: channel::Pids) -> Degradation {
    let lost = degrade::Lost {
        feature: Feature::CudaIpc,
        reason: format!(
            "the process has the number {pid}, and not one of {pids}: the container has started so many \
             processes that it has come round"
        ),
        errno: 0,
    };
    let what = "process ids of its own for GPU memory in channels".to_string();
    degrade::lost(&lost, what, 0)
}

/// Adds what tells the program of its channels to an environment.
pub(super) fn environment(request: Option<&Request>, env: &mut Vec<String>) {
    for (name, value) in request.iter().flat_map(|request| request.environment()) {
        let start = format!("{name}=");
        env.retain(|pair| !pair.starts_with(&start));
        env.push(start + &value);
    }
}

/// The same for a further process of a container, whose annotations were found good when it was made.
pub(super) fn environment_of(spec: &Spec, env: &mut Vec<String>) {
    let annotations = spec.annotations().iter().flatten();
    let request = channel::request(annotations).ok().flatten();
    environment(request.as_ref(), env);
}

/// Where channels are mounted, and what takes the place of /dev/shm; whether they may be written to.
pub(super) fn targets(spec: &Spec) -> Vec<(String, bool)> {
    let annotations = spec.annotations().iter().flatten();
    let Ok(Some(request)) = channel::request(annotations) else {
        return Vec::new();
    };
    let channels = request.channels.iter();
    let mut all: Vec<(String, bool)> = channels
        .map(|wanted| (wanted.key.inside(), !wanted.readonly))
        .collect();
    all.extend(request.shm.map(|_| (DEV_SHM.to_string(), true)));
    all
}

/// The mount of a channel on `target`.
fn bind(context: &Context<'_>, channel: &Channel, annotation: &str, target: String) -> Mount {
    let readonly = if channel.readonly { attr::RDONLY } else { 0 };
    // Each sees its own ids in it: those of the file system are those in the container.
    let mapped = context.in_user_namespace() && context.host.euid == 0;
    let rootless = context
        .channels
        .channels
        .as_ref()
        .is_some_and(|all| all.rootless);
    Mount {
        field: format!("annotations[{annotation:?}]"),
        target,
        what: MountKind::Bind {
            source: channel.source.clone(),
            recursive: false,
        },
        set: FLAGS | readonly,
        clear: 0,
        recursive_set: 0,
        recursive_clear: 0,
        copyup: false,
        // What is mounted in the container does not show on the host, nor the other way round.
        propagation: vec![libc::MS_PRIVATE],
        keeps: super::unmapped::is_lost(&context.asked.without),
        late_readonly: false,
        idmap: (mapped && !rootless).then(IdMapping::default),
    }
}

/// The mounts of the channels.
pub(super) fn mounts(context: &Context<'_>) -> Vec<Step> {
    let channels = context.channels.channels.iter().flat_map(|all| &all.join);
    channels
        .map(|channel| Action::Mount(bind(context, channel, CHANNELS, channel.key.inside())).into())
        .collect()
}

/// What is mounted on /dev/shm in the place of what config.json says.
pub(super) fn shm(context: &Context<'_>) -> Result<Option<Mount>> {
    let request = context.channels.request.as_ref();
    match request.and_then(|request| request.shm.as_ref()) {
        None => Ok(None),
        Some(Shm::Channel(name)) => {
            let mut channels = context.channels.channels.iter().flat_map(|all| &all.join);
            let channel = channels
                .find(|channel| channel.key.name() == name)
                // A request has it among its channels.
                .ok_or_else(|| Error::new(Kind::System, "the channel of /dev/shm is not joined"))?;
            Ok(Some(bind(context, channel, SHM, DEV_SHM.into())))
        }
        Some(Shm::Private(size)) => {
            let mut data = vec![
                ("mode".to_string(), Some("1777".to_string())),
                ("size".to_string(), Some(size.0.to_string())),
            ];
            labels::label_data(context.linux, "tmpfs", &mut data);
            Ok(Some(Mount {
                field: format!("annotations[{SHM_SIZE:?}]"),
                target: DEV_SHM.into(),
                what: MountKind::Fresh {
                    fstype: "tmpfs".into(),
                    source: "shm".into(),
                    data,
                },
                set: FLAGS,
                clear: 0,
                recursive_set: 0,
                recursive_clear: 0,
                copyup: false,
                propagation: Vec::new(),
                keeps: false,
                late_readonly: false,
                idmap: None,
            }))
        }
    }
}
