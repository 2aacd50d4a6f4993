//! The part of the plan that does without what a birth has shown not to be there: which namespaces are not
//! made, and what of the specification cannot hold then.

use oci_spec::runtime::Linux;

use super::Asked;
use super::degrade::{self, Feature, Lost, NETWORK};
use super::step::Degradation;
use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::policy::Level;
use crate::spec::names;

/// CLONE_NEW* bits of the namespaces that are lost.
pub(super) fn namespaces(without: &[Lost]) -> u64 {
    let bit = |lost: &Lost| match lost.feature {
        Feature::Network => libc::CLONE_NEWNET as u64,
        _ => 0,
    };
    without.iter().fold(0, |all, lost| all | bit(lost))
}

/// What is lost by births that failed, as far as it is namespaces; limits are the business of
/// [`super::limits`].
///
/// # Errors
/// A field of the specification that needs the namespace; a loss that the level does not allow, or that cannot be made up for on this host.
pub(super) fn plan(
    linux: &Linux,
    host: &Host,
    asked: &Asked,
    level: Level,
) -> Result<Vec<Degradation>> {
    let mut found = Vec::new();
    for lost in &asked.without {
        let what = match lost.feature {
            Feature::Network => NETWORK,
            Feature::UsernsRoot => "a user namespace of its own",
            Feature::UsernsUser => "namespaces and mounts of its own",
            _ => continue,
        };
        let field = match lost.feature {
            Feature::Network => of_network(linux),
            _ => None,
        };
        let refusal = lost.feature.row().refusal_on(level, host.landlock);
        let refusal = refusal.or_else(|| {
            let row = lost.feature.name();
            field.map(|field| format!("the degradation {row:?} cannot be had with {field}"))
        });
        if let Some(refusal) = refusal {
            return Err(Error::new(Kind::System, lost.reason.clone())
                .also(&refusal)
                .also(lost.feature.row().remedy));
        }
        let mut told = degrade::lost(lost, what.into(), host.landlock);
        let kept = sysctls(linux, &asked.without).1;
        if lost.feature == Feature::Network && !kept.is_empty() {
            let names = kept.join(", ");
            told.fallback +=
                &format!("; linux.sysctl is left out where it would be the host's: {names}");
        }
        found.push(told);
    }
    Ok(found)
}

/// Kernel parameters that are set, by name, and the names of those that are left out, because they would be
/// the host's.
pub(super) fn sysctls<'a>(
    linux: &'a Linux,
    without: &[Lost],
) -> (Vec<(&'a String, &'a String)>, Vec<&'a str>) {
    let mut all: Vec<_> = linux.sysctl().iter().flatten().collect();
    all.sort();
    let network = namespaces(without) & libc::CLONE_NEWNET as u64 != 0;
    let of_host = |key: &str| network && names::sysctl_dotted(key).starts_with("net.");
    let (left, set): (Vec<_>, Vec<_>) = all.into_iter().partition(|(key, _)| of_host(key));
    (set, left.into_iter().map(|(key, _)| key.as_str()).collect())
}

/// What needs a network namespace of the container's own.
fn of_network(linux: &Linux) -> Option<String> {
    let devices = linux.net_devices().iter().flatten().count();
    (devices != 0).then(|| "linux.netDevices, which are to be moved there".to_string())
}
