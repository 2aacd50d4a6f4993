//! linux.netDevices: names that the kernel takes, and a network namespace to move the devices to.

use std::collections::BTreeMap;

use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};

use super::has_namespace;
use crate::error::{Error, Result};
use crate::sys::netlink::MAX_NAME;

/// Checks the devices that are to be moved.
///
/// # Errors
/// The first device with a name that cannot be one; two devices with one name in the container; no
/// network namespace.
pub(super) fn check(spec: &Spec, linux: &Linux) -> Result<()> {
    let devices: BTreeMap<_, _> = linux.net_devices().iter().flatten().collect();
    if devices.is_empty() {
        return Ok(());
    }
    if !has_namespace(spec, LinuxNamespaceType::Network) {
        return Err(Error::spec(
            "linux.netDevices",
            "unable to move network devices without a private NET namespace",
        )
        .remedy("add {\"type\": \"network\"} to linux.namespaces"));
    }
    let mut seen = BTreeMap::new();
    for (name, device) in devices {
        let shown = name.escape_debug();
        let field = format!("linux.netDevices.{shown}");
        if let Err(why) = valid(name, false) {
            return Err(Error::spec(field, format!("\"{shown}\" {why}")));
        }
        let inside = device.name().as_deref().filter(|inside| !inside.is_empty());
        if let Some(inside) = inside
            && let Err(why) = valid(inside, true)
        {
            return Err(Error::spec(
                format!("{field}.name"),
                format!("{inside:?} {why}"),
            ));
        }
        let inside = inside.unwrap_or(name);
        if let Some(other) = seen.insert(inside, name)
            && !inside.contains("%d")
        {
            return Err(Error::spec(
                format!("{field}.name"),
                format!("{inside:?} is the name of {other:?} in the container, too"),
            ));
        }
    }
    Ok(())
}

/// The kernel's rules for the name of a device (dev_valid_name in net/core/dev.c); one that is to be
/// given may have `%d` in it, once, and no other sign of that kind.
fn valid(name: &str, template: bool) -> std::result::Result<(), String> {
    let rest = match template {
        true => name.replacen("%d", "", 1),
        false => name.to_string(),
    };
    let why = if name.is_empty() {
        "is no name".into()
    } else if name.len() > MAX_NAME {
        format!(
            "has {} bytes; the kernel takes at most {MAX_NAME}",
            name.len()
        )
    } else if matches!(name, "." | "..") {
        "is no name that the kernel takes".into()
    } else if let Some(bad) = rest
        .chars()
        .find(|c| "/:%".contains(*c) || c.is_whitespace() || c.is_control())
    {
        format!("has {bad:?} in it, which no name of a device has")
    } else {
        return Ok(());
    };
    Err(why)
}
