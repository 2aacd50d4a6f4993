//! update: new limits for a container that runs.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::rdt::{self, Schemata};
use crate::cgroup::Devices;
use crate::error::{Error, Kind, Result};
use crate::log;
use crate::state::{Record, Status, Store};

/// Puts `asked` and `schemata` in force; what they do not name stays as it is.
///
/// # Errors
/// `container not running`; the limit that is refused: the old ones are in force then.
pub fn update(store: &Store, id: &str, asked: LinuxResources, schemata: &Schemata) -> Result<()> {
    let dir = store.open(id)?;
    let mut record = store.peek(id)?;
    if record.status(dir.path()) == Status::Stopped {
        return Err(Error::new(Kind::State, "container not running"));
    }
    let placed = record.placed().ok_or_else(|| {
        let sentence = format!("container {id:?} has no cgroup to limit");
        Error::new(Kind::State, sentence)
    })?;
    let mut base = base(store, &record)?;
    let mut merged = merge(&base, asked);
    if merged.devices().is_some() && !real_root() {
        log::warning(
            "linux.resources.devices is ignored: only the machine's root sets device rules",
        );
        merged.set_devices(None);
    }
    if takes_away(store, id, &merged, &base)? {
        merged.set_devices(None);
    }
    let changed = rdt::change(schemata, &record)?;
    placed.update(merged.clone(), &base).inspect_err(|_| {
        let back = changed.as_ref().map_or(Ok(()), rdt::Changed::back);
        back.unwrap_or_else(|error| log::warning(&format!("after a refused limit: {error}")));
    })?;
    // What a later update may depend on.
    if merged.memory().is_some() {
        base.set_memory(*merged.memory());
    }
    if let Some(cpu) = merged.cpu()
        && (cpu.quota().is_some() || cpu.period().is_some())
    {
        let mut kept = base.cpu().clone().unwrap_or_default();
        kept.set_quota(cpu.quota());
        kept.set_period(cpu.period());
        base.set_cpu(Some(kept));
    }
    if merged.devices().is_some() {
        base.set_devices(merged.devices().clone());
    }
    let value = serde_json::to_value(base)
        .map_err(|error| Error::new(Kind::System, format!("record the limits: {error}")))?;
    record.resources = Some(value);
    dir.save(&record)
}

/// Whether device rules that are asked for would take away a device that config.json gives. An engine whose
/// config.json somebody else has added devices to (a hook for GPUs, CDI) hands on the list that it knows
/// with every update of any limit; runc leaves device rules alone at updates because of that.
fn takes_away(
    store: &Store,
    id: &str,
    asked: &LinuxResources,
    base: &LinuxResources,
) -> Result<bool> {
    let list = |resources: &LinuxResources| resources.devices().clone().unwrap_or_default();
    if list(asked).is_empty() || list(asked) == list(base) {
        return Ok(false);
    }
    let rules = Devices::from_spec(&list(asked))?;
    let spec = crate::spec::parse::parse(&store.config(id)?)?.spec;
    let linux = spec.linux().as_ref();
    let given = linux.and_then(|linux| linux.resources().as_ref());
    let given = Devices::from_spec(&given.map(list).unwrap_or_default())?;
    let Some(device) = rules.lacks(&given) else {
        return Ok(false);
    };
    log::warning(&format!(
        "linux.resources.devices: the device rules stay as they are: the list of this update takes away \
         {device}, which config.json gives"
    ));
    Ok(true)
}

/// The kernel takes device rules from nobody else; see [`crate::cgroup::CgroupPlan::adapt`].
fn real_root() -> bool {
    nix::unistd::geteuid().is_root() && !crate::host::in_user_namespace()
}

/// The limits that the container has: of its last update, else of its config.json.
fn base(store: &Store, record: &Record) -> Result<LinuxResources> {
    if let Some(value) = &record.resources {
        return serde_json::from_value(value.clone()).map_err(|error| {
            Error::new(Kind::State, format!("the record of the limits: {error}"))
        });
    }
    let spec = crate::spec::parse::parse(&store.config(&record.id)?)?.spec;
    let linux = spec.linux().as_ref();
    Ok(linux
        .and_then(|linux| linux.resources().clone())
        .unwrap_or_default())
}

/// What is asked for, with what it depends on from `base`: swap counts memory too, and on v2 quota and
/// period are one file. No list of devices, or an empty one, says nothing.
fn merge(base: &LinuxResources, mut asked: LinuxResources) -> LinuxResources {
    if asked.devices().as_ref().is_some_and(Vec::is_empty) {
        asked.set_devices(None);
    }
    if let Some(memory) = asked.memory() {
        let mut memory: LinuxMemory = *memory;
        let old = base.memory().as_ref();
        // "All memory" without a word on swap means all swap as well.
        if memory.limit() == Some(-1) && memory.swap().is_none() {
            memory.set_swap(Some(-1));
        }
        if memory.limit().is_none() {
            memory.set_limit(old.and_then(LinuxMemory::limit));
        }
        if memory.swap().is_none() {
            memory.set_swap(old.and_then(LinuxMemory::swap));
        }
        asked.set_memory(Some(memory));
    }
    if let Some(cpu) = asked.cpu() {
        let mut cpu = cpu.clone();
        let old = base.cpu().as_ref();
        if cpu.quota().is_some() || cpu.period().is_some() {
            if cpu.quota().is_none() {
                cpu.set_quota(old.and_then(LinuxCpu::quota));
            }
            if cpu.period().is_none() {
                cpu.set_period(old.and_then(LinuxCpu::period));
            }
        }
        asked.set_cpu(Some(cpu));
    }
    asked
}
