//! systemd as the manager of a container's cgroup: with `--systemd-cgroup` alone.
//!
//! ```text
//! Systemd::detect   which systemd, and where its own cgroup is      (facts)
//! scope             pure: unit, slice and properties                 -> Scope, in the plan
//! Scope::start      StartTransientUnit with the child's pid, and waits for the job
//! Unit              in the record: stop at the end, set at an update
//! ```
//!
//! What systemd has no property for, and exact values where it rounds, are written to the cgroup by the
//! manager for plain files afterwards, which also reads everything back: the scope is delegated.

mod annotations;
mod bus;
mod properties;
mod unit;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::Linux;
use serde::{Deserialize, Serialize};

pub use self::annotations::PREFIX as PROPERTY_ANNOTATIONS;
use self::bus::{Bus, Refused};
pub use self::wire::Value;
use super::hierarchies::Mode;
use super::plan::PlannedDir;
use crate::error::{Error, Kind, Result};
use crate::log;

/// Which systemd manages cgroups: facts for the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Systemd {
    /// Its version, as 257.
    pub version: u32,
    /// It is the user's, and not the system's.
    pub user: bool,
    /// The user's manager: its own cgroup, below which its units are.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub control_group: String,
}

impl Systemd {
    /// Asks the system's or the user's systemd.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn detect(user: bool) -> Result<Self> {
        Self::ask(&mut Bus::connect(user)?, user)
    }

    fn ask(bus: &mut Bus, user: bool) -> Result<Self> {
        let version = bus.property("Version")?;
        let control_group = match user {
            true => bus.property("ControlGroup")?,
            false => String::new(),
        };
        Ok(Self {
            version: number(&version).ok_or_else(|| {
                Error::new(
                    Kind::System,
                    format!("systemd says that its version is {version:?}, which is no number"),
                )
            })?,
            user,
            control_group,
        })
    }
}

/// The number in `v245.4-1.fc32`, `257` and the like.
fn number(version: &str) -> Option<u32> {
    let digits = version.trim_start_matches(['"', 'v']);
    let end = digits
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// The transient unit that holds a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scope {
    /// Its name.
    pub unit: String,
    /// The slice that it is in.
    pub slice: String,
    /// The version of systemd.
    pub version: u32,
    /// The user's systemd has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user: bool,
    /// Its properties with their values, in the order in which they are set; a later one of the same
    /// name wins.
    pub properties: Vec<(String, Value)>,
}

/// Plans the scope of container `id`, without its limits: [`Scope::limit`]. With it comes its cgroup
/// below the mount point.
///
/// # Errors
/// A `linux.cgroupsPath` or an annotation that is not valid, by name; a user's systemd without
/// cgroup v2.
pub(super) fn scope(
    linux: Option<&Linux>,
    annotations: Option<&HashMap<String, String>>,
    id: &str,
    mode: Mode,
    systemd: &Systemd,
) -> Result<(Scope, PathBuf)> {
    if systemd.user && mode != Mode::V2 {
        return Err(Error::new(
            Kind::System,
            "cannot use rootless systemd cgroups manager on cgroup v1",
        )
        .remedy("use cgroup v2, or do without --systemd-cgroup"));
    }
    let path = linux.and_then(|linux| linux.cgroups_path().as_ref());
    let path = path.map_or(Some(""), |path| path.to_str());
    let path = path.ok_or_else(|| Error::spec("linux.cgroupsPath", "is not UTF-8"))?;
    let names = unit::names(path, id, systemd.user)?;
    let io = match mode {
        Mode::V2 => "IOAccounting",
        _ => "BlockIOAccounting",
    };
    let mut properties = vec![
        (
            "Description".to_string(),
            Value::Text(format!("isorun container {id}")),
        ),
        ("Slice".into(), Value::Text(names.slice.clone())),
    ];
    // Accounting is always on, as without systemd: a memory controller that comes later does not count
    // what was used before.
    let switches = [
        ("Delegate", true),
        ("MemoryAccounting", true),
        ("CPUAccounting", true),
        (io, true),
        ("TasksAccounting", true),
        ("DefaultDependencies", false),
    ];
    properties.extend(switches.map(|(name, on)| (name.to_string(), Value::Bool(on))));
    let pairs = annotations.into_iter().flatten();
    let pairs = pairs.map(|(key, value)| (key.as_str(), value.as_str()));
    properties.extend(annotations::properties(pairs)?);
    let scope = Scope {
        unit: names.unit,
        slice: names.slice,
        version: systemd.version,
        user: systemd.user,
        properties,
    };
    let own = crate::spec::names::clean(&systemd.control_group);
    Ok((scope, PathBuf::from(own).join(names.inside)))
}

impl Scope {
    /// Adds the limits of `dirs`.
    pub(super) fn limit(&mut self, dirs: &[PlannedDir]) {
        self.properties.extend(properties::of(dirs, self.version));
    }

    /// The unit, for the record.
    pub fn unit(&self) -> Unit {
        Unit {
            name: self.unit.clone(),
            user: self.user,
        }
    }

    /// Makes the unit, with process `pid` in it, and waits until it is there.
    ///
    /// # Errors
    /// What systemd says; a job that does not end well, or in time. There is no unit then, or it ends
    /// with the process.
    pub(super) fn start(&self, pid: i32) -> Result<()> {
        self.start_over(&mut Bus::connect(self.user)?, pid)
    }

    fn start_over(&self, bus: &mut Bus, pid: i32) -> Result<()> {
        let mut properties = self.properties.clone();
        properties.push(("PIDs".into(), Value::Uint32s(vec![pid as u32])));
        let body = bus::transient(&self.unit, &properties);
        bus.watch_jobs()?;
        let signature = "ssa(sv)a(sa(sv))";
        let mut reply = bus.manager("StartTransientUnit", signature, body.clone())?;
        if reply.as_ref().is_err_and(|no| no.is("UnitExists")) {
            // What failed earlier is kept by systemd until somebody takes note.
            let _ = reset(bus, &self.unit)?;
            reply = bus.manager("StartTransientUnit", signature, body)?;
        }
        let doing = format!("unable to start unit {:?}", self.unit);
        let reply = reply.map_err(|no| no.error(&doing).remedy(remedy(&no)))?;
        match bus.job(&reply)?.as_str() {
            "done" => Ok(()),
            result => {
                let _ = reset(bus, &self.unit)?;
                let sentence = format!(
                    "error creating systemd unit `{}`: got `{result}`",
                    self.unit
                );
                Err(Error::new(Kind::System, sentence)
                    .remedy("the journal says more: journalctl --unit with its name"))
            }
        }
    }
}

fn remedy(refused: &Refused) -> &'static str {
    match refused.name.as_str() {
        "org.freedesktop.systemd1.UnitExists" => {
            "end what is in it, or use another linux.cgroupsPath"
        }
        "org.freedesktop.DBus.Error.AccessDenied"
        | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => {
            "run as root, or with --rootless=true for the user's own systemd"
        }
        "org.freedesktop.DBus.Error.PropertyReadOnly"
        | "org.freedesktop.DBus.Error.UnknownProperty"
        | "org.freedesktop.DBus.Error.InvalidArgs" => {
            "an annotation org.systemd.property.* may not be of its type, or not of this systemd"
        }
        _ => "see systemd's journal",
    }
}

fn reset(bus: &mut Bus, unit: &str) -> Result<std::result::Result<wire::Message, Refused>> {
    let body = bus::body(&[unit]).finish();
    bus.manager("ResetFailedUnit", "s", body)
}

/// A container's unit, as it is in the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// The user's systemd has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user: bool,
}

impl Unit {
    /// Ends the unit, waits for that, and lets systemd forget it. One that is gone is fine.
    ///
    /// # Errors
    /// systemd cannot be reached, or does not do it in time.
    pub(super) fn stop(&self) -> Result<()> {
        self.stop_over(&mut Bus::connect(self.user)?)
    }

    fn stop_over(&self, bus: &mut Bus) -> Result<()> {
        bus.watch_jobs()?;
        let body = bus::body(&[&self.name, "replace"]).finish();
        match bus.manager("StopUnit", "ss", body)? {
            Ok(started) => {
                let result = bus.job(&started)?;
                if result != "done" {
                    log::debug(|| format!("stop unit {}: {result}", self.name));
                }
            }
            Err(refused) if refused.is("NoSuchUnit") => {}
            Err(refused) => log::debug(|| format!("stop unit {}: {}", self.name, refused.text)),
        }
        // One that did not fail cannot be reset, which is as well.
        let _ = reset(bus, &self.name)?;
        Ok(())
    }

    /// Sets the properties for the limits and device rules of `dirs`, for as long as the unit lives;
    /// what they do not name stays. The files of the cgroup are to be written after it: systemd writes
    /// its own idea of them now.
    ///
    /// # Errors
    /// What systemd says; nothing is changed then.
    pub fn set(&self, dirs: &[PlannedDir]) -> Result<()> {
        self.set_over(&mut Bus::connect(self.user)?, dirs)
    }

    fn set_over(&self, bus: &mut Bus, dirs: &[PlannedDir]) -> Result<()> {
        let systemd = Systemd::ask(bus, self.user)?;
        let properties = properties::of(dirs, systemd.version);
        if properties.is_empty() {
            return Ok(());
        }
        // The number is the truth of "runtime": nothing of it outlives the next start.
        let mut body = bus::body(&[&self.name]);
        let body = body.u32(1).properties(&properties).finish();
        let reply = bus.manager("SetUnitProperties", "sba(sv)", body)?;
        let doing = format!("unable to set unit properties of {:?}", self.name);
        reply.map(drop).map_err(|refused| refused.error(&doing))
    }

    /// Waits until systemd has written to the cgroup what [`Unit::set`] has asked for, which it does after
    /// its answer: before it takes the next message it goes through the queue of cgroups that changed
    /// (manager_loop in systemd's src/core/manager.c). So it is done when it answers anything at all.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn settle(&self) -> Result<()> {
        Systemd::detect(self.user).map(drop)
    }

    /// Lets systemd move process `pid` into the unit's cgroup, or the one below it of this name (with a
    /// slash before it): where this process may not do it, because the two are not below one cgroup
    /// that is its own.
    ///
    /// # Errors
    /// What systemd says.
    pub fn attach(&self, below: &str, pid: i32) -> Result<()> {
        self.attach_over(&mut Bus::connect(self.user)?, below, pid)
    }

    fn attach_over(&self, bus: &mut Bus, below: &str, pid: i32) -> Result<()> {
        let mut body = bus::body(&[&self.name, below]);
        let body = body
            .array(4, [pid as u32], |writer, pid| {
                writer.u32(pid);
            })
            .finish();
        let reply = bus.manager("AttachProcessesToUnit", "ssau", body)?;
        let doing = format!("move process {pid} into unit {:?}", self.name);
        reply.map(drop).map_err(|refused| refused.error(&doing))
    }
}
