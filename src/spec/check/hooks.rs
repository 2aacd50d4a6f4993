//! hooks: the six stages.

use oci_spec::runtime::{Hook, Hooks};

use super::no_null;
use crate::error::{Error, Result};
use crate::spec::names::HOOKS;

/// Checks every hook: an absolute path, a timeout above zero, strings that a process can be given.
///
/// # Errors
///
/// The path of the field, such as `hooks.prestart[0].timeout`.
pub(super) fn check(hooks: &Hooks) -> Result<()> {
    // prestart is deprecated, and what Docker and Podman still use.
    #[allow(deprecated)]
    let prestart = hooks.prestart();
    let lists = [
        prestart,
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    for (stage, list) in HOOKS.iter().zip(lists) {
        for (index, hook) in list.iter().flatten().enumerate() {
            one(&format!("hooks.{stage}[{index}]"), hook)?;
        }
    }
    Ok(())
}

fn one(field: &str, hook: &Hook) -> Result<()> {
    let path = hook.path();
    no_null(
        format_args!("{field}.path"),
        path.as_os_str().as_encoded_bytes(),
    )?;
    if !path.is_absolute() {
        let path = path.display();
        return Err(Error::spec(
            format!("{field}.path"),
            format!("{path:?} is not an absolute path"),
        ));
    }
    for (name, list) in [("args", hook.args()), ("env", hook.env())] {
        for (index, text) in list.iter().flatten().enumerate() {
            no_null(format_args!("{field}.{name}[{index}]"), text)?;
        }
    }
    match hook.timeout() {
        Some(seconds) if seconds <= 0 => Err(Error::spec(
            format!("{field}.timeout"),
            format!("{seconds} seconds: it must be greater than zero"),
        )),
        _ => Ok(()),
    }
}
