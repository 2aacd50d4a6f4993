//! The part of the plan that is about the cgroup and its limits.

use oci_spec::runtime::{Linux, Spec};

use super::Asked;
use super::degrade::{self, Feature};
use super::step::Degradation;
use crate::cgroup::{self, CgroupPlan};
use crate::error::Result;
use crate::host::Host;
use crate::policy::Level;

/// The cgroup, and what it does without: limits whose controllers are not there, or that need a cgroup
/// which could not be made.
///
/// # Errors
/// A field that is not valid; a limit that cannot be had, where the level does not allow to do without.
pub(super) fn plan(
    spec: &Spec,
    linux: &Linux,
    host: &Host,
    asked: &Asked,
    level: Level,
) -> Result<(CgroupPlan, Vec<Degradation>)> {
    let rootless = asked.rootless.unwrap_or(!host.is_real_root());
    let (mut cgroup, missing) = match host.systemd.as_ref().filter(|_| asked.systemd_cgroup) {
        Some(systemd) => {
            let annotations = spec.annotations().as_ref();
            cgroup::plan_scope(Some(linux), annotations, &asked.id, &host.cgroups, systemd)?
        }
        None => cgroup::plan_possible(Some(linux), &asked.id, &host.cgroups)?,
    };
    let mut degradations = Vec::new();
    for missing in missing {
        let feature = match missing.field.as_str() {
            cgroup::RULES => Feature::DeviceRules,
            _ => Feature::Limits,
        };
        let found = degrade::planned(feature, level, missing.field, missing.error, host.landlock)?;
        // A limit may be several writes.
        if !degradations.contains(&found) {
            degradations.push(found);
        }
    }
    let explicit = linux
        .cgroups_path()
        .as_ref()
        .is_some_and(|path| !path.as_os_str().is_empty());
    cgroup.adapt(rootless, explicit, host.is_real_root());
    for lost in asked
        .without
        .iter()
        .filter(|lost| lost.feature == Feature::DeviceRules)
    {
        cgroup.without_rules();
        degradations.push(degrade::lost(lost, cgroup::RULES.into(), host.landlock));
    }
    for lost in asked
        .without
        .iter()
        .filter(|lost| lost.feature == Feature::Limits)
    {
        let mut fields = cgroup.without_limits();
        if fields.is_empty() {
            fields.push("linux.cgroupsPath".into());
        }
        degradations.extend(
            fields
                .into_iter()
                .map(|field| degrade::lost(lost, field, host.landlock)),
        );
    }
    Ok((cgroup, degradations))
}
