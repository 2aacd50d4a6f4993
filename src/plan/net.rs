//! The part of the plan that moves network devices.

use std::collections::BTreeMap;

use oci_spec::runtime::Linux;

use super::step::{Action, NetDevice, Step};
use crate::error::{Error, Result};
use crate::host::Host;

/// The step that moves the devices of linux.netDevices, where there are any. By name, so that the plan
/// is the same each time.
///
/// # Errors
/// Without being root: the host's devices are not its user's to move.
pub(super) fn step(linux: &Linux, host: &Host) -> Result<Option<Step>> {
    let listed: BTreeMap<_, _> = linux.net_devices().iter().flatten().collect();
    if listed.is_empty() {
        return Ok(None);
    }
    if host.euid != 0 {
        return Err(Error::spec(
            "linux.netDevices",
            "network devices are not supported for rootless containers",
        )
        .remedy("only root may move a device of the host: run isorun as root, or leave them out"));
    }
    let devices = listed.into_iter().map(|(name, device)| {
        let inside = device.name().clone().filter(|inside| !inside.is_empty());
        NetDevice {
            name: name.clone(),
            inside: inside.unwrap_or_else(|| name.clone()),
        }
    });
    let devices = devices.collect();
    Ok(Some(Action::NetDevices { devices }.into()))
}
