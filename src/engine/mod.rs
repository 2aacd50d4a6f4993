//! The engine: executes a plan.
//!
//! The parent (this process, one thread) makes the cgroup, clones one child into its new namespaces,
//! runs the hooks that belong to the host, and keeps the record in the state directory. The child
//! ([`child`]) walks the plan's steps and becomes the program. Between them is one channel
//! ([`sync`]).

pub mod channel_hook;
pub mod child;
pub mod seal;
pub mod sync;

mod birth;
mod cgroup_mount;
mod channels;
mod confine;
mod copyup;
mod devices;
mod events;
mod exec;
mod execute;
mod filter;
mod foreground;
mod hook_wait;
mod hooks;
mod identity;
mod inherit;
mod init;
mod instead;
mod join;
mod keyring;
mod labels;
mod lifecycle;
mod make;
mod maps;
mod masks;
mod mountinfo;
mod mounts;
mod mounts_old;
mod namespaces;
mod net_devices;
mod pause;
mod pid_file;
pub mod pids;
mod pivot;
mod proc;
mod rdt;
mod relay;
mod root;
mod schedule;
mod shared_mounts;
mod sources;
mod surroundings;
mod terminal;
mod update;

use std::path::PathBuf;

pub use events::{Event, events, stats};
pub use exec::{ExecProcess, ExecRequest, exec, reachable};
pub use lifecycle::{delete, kill, start};
pub use pause::{pause, processes, resume};
pub use rdt::Schemata;
pub use update::update;

use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::plan::{Asked, Plan};
use crate::policy::Level;
use crate::spec::Loaded;
use crate::state::Store;

/// What `create` and `run` are asked for.
#[derive(Debug)]
pub struct Request {
    /// The container's id.
    pub id: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The state directory.
    pub store: Store,
    /// Where the first process's pid is written to.
    pub pid_file: Option<PathBuf>,
    /// `run`: return when the program has started.
    pub detach: bool,
    /// `run`: keep the container after its end.
    pub keep: bool,
    /// `run`: do not adopt the container's orphans.
    pub no_subreaper: bool,
    /// Leave the session keyring as it is.
    pub no_new_keyring: bool,
    /// How many descriptors from 3 on the program gets, after those of `listen_fds`.
    pub preserve_fds: u32,
    /// How many descriptors from 3 on are sockets to listen on.
    pub listen_fds: u32,
    /// The Unix socket that the terminal's master is sent to.
    pub console_socket: Option<PathBuf>,
    /// The Unix socket that a pidfd of the first process is sent to.
    pub pidfd_socket: Option<PathBuf>,
    /// Do without pivot_root(2).
    pub no_pivot: bool,
    /// `--rootless`: whether cgroups may be missing for want of permission; by default as the host is.
    pub rootless: Option<bool>,
    /// `--systemd-cgroup`: systemd makes the cgroup.
    pub systemd_cgroup: bool,
    /// How much may be lost, as far as this host is concerned.
    pub degrade: Level,
}

/// Loads a bundle and plans it, without doing anything: what `isorun plan` shows.
///
/// # Errors
/// Those of [`crate::spec::load`] and [`crate::plan::build`].
pub fn plan(bundle: &std::path::Path, asked: &Asked) -> Result<(Loaded, Plan)> {
    plan_on(bundle, asked).map(|(loaded, _, plan)| (loaded, plan))
}

/// The same with the host that it was planned for.
fn plan_on(bundle: &std::path::Path, asked: &Asked) -> Result<(Loaded, Host, Plan)> {
    let loaded = crate::spec::load(bundle)?;
    let mut host = Host::detect(loaded.spec.linux().as_ref())?
        .with_lsm(&loaded.spec)
        .with_channels(&loaded.spec)?;
    if asked.degrade == Level::Any && !host.cgroups.rule_devices() {
        host = host.with_landlock();
    }
    if asked.systemd_cgroup {
        host = host.with_systemd(asked.rootless)?;
    }
    let plan = crate::plan::build(&loaded, &host, asked)?;
    Ok((loaded, host, plan))
}

/// Tells what runs otherwise than config.json may have meant it.
fn tell(loaded: &Loaded, plan: &Plan) {
    for sentence in &loaded.warnings {
        crate::log::warning(sentence);
    }
    for sentence in &loaded.ignored {
        crate::log::debug(|| format!("ignored: {sentence}"));
    }
    for ignored in &plan.cgroup.ignored {
        crate::log::debug(|| format!("ignored: {}: {}", ignored.field, ignored.reason));
    }
    if crate::log::debugging() {
        for line in crate::plan::text_for_log(plan).lines().map(str::trim_end) {
            if !line.is_empty() {
                crate::log::debug(|| format!("plan: {line}"));
            }
        }
    }
}

/// A container without a process cannot be started: config.md, "Process".
fn no_process() -> Error {
    Error::spec(
        "process",
        "missing: it says what to run, and is required when the container is started",
    )
}

/// Makes a container and leaves its first process waiting for [`start`].
///
/// # Errors
/// A sentence with the step, the object and the errno; nothing stays behind then.
pub fn create(request: &Request) -> Result<()> {
    make::make(request, make::Mode::Create).map(drop)
}

/// Makes a container and lets its program run at once. In the foreground, passes signals on, waits,
/// and gives the exit status (128 + n for signal n); detached, gives 0.
///
/// # Errors
/// As [`create`].
pub fn run(request: &Request) -> Result<i32> {
    let signals = foreground::Signals::take()?;
    if !request.detach && !request.no_subreaper {
        crate::sys::process::child_subreaper()
            .map_err(|errno| Error::os("become", "the subreaper of the container", errno))?;
    }
    let mut made = make::make(request, make::Mode::Run(signals.before()))?;
    if let Err(error) = made.poststart() {
        // The specification: a failing poststart hook stops the container.
        lifecycle::delete(&request.store, &request.id, true)?;
        return Err(error);
    }
    if request.detach {
        return Ok(0);
    }
    let status = match made.relay.take() {
        Some(mut relay) => relay.run(made.pid),
        None => signals.wait_for(made.pid),
    }
    .inspect_err(|_| {
        // Nobody would watch it, nor its terminal.
        if let Err(second) = lifecycle::delete(&request.store, &request.id, true) {
            crate::log::warning(&format!("after a failure: {second}"));
        }
    })?;
    if request.keep {
        return Ok(status);
    }
    match lifecycle::delete_own(&request.store, &request.id, made.pid.as_raw(), made.start) {
        // Somebody else was quicker.
        Err(error) if error.kind() == Kind::NotFound => Ok(status),
        other => other.map(|()| status),
    }
}
