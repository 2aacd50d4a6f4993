//! `isorun doctor`: what this machine lets a container have, found out by doing the very steps.
//!
//! ```text
//! host::Facts     what files tell
//! run             groups of probes, each in a process of its own, side by side
//!   chain           namespaces, maps, mounts, pivot_root … as root and in a user namespace
//!   calls           filters, Landlock, limits, keys, /dev/shm
//!   cgroups         a cgroup with limits
//! verdict         pure: mode, restrictions and what each refusal means, with its remedy
//! gpu             what files tell of sharing GPU memory
//! report          the table, and JSON
//! ```
//!
//! Nothing here is on the way of `run`.

mod apparmor;
mod calls;
mod cgroups;
mod chain;
mod gpu;
mod maps;
mod remedy;
mod report;
mod run;
mod table;
mod verdict;

#[cfg(test)]
mod tests;

use crate::error::{Error, Kind, Result};
use crate::host::{Facts, Host, Outcome, Probed, Sandboxing};
use run::{Answers, Group};

pub use apparmor::profile as apparmor_profile;
pub use remedy::Remedy;
pub use report::Colour;

/// Looks at this machine and tries everything.
///
/// # Errors
/// /proc or the cgroup mounts cannot be read; no process can be made.
pub fn examine() -> Result<Host> {
    let mut host = Host::detect(None)?;
    host.cgroups = cgroups::hierarchies()?;
    host.landlock = crate::host::landlock();
    let facts = Facts::read();
    let mut answers = probe(&host, &facts)?;
    if let Some(controllers) = cgroups::delegated(&host) {
        answers.insert(
            "cgroup.delegated".into(),
            Outcome::ok(controllers.join(" ")),
        );
    }
    host.lsm.apparmor = facts.apparmor.is_some();
    host.lsm.selinux = facts.selinux_enforcing.is_some();
    let mut probed = Probed {
        mode: Sandboxing::Disabled,
        restrictions: Vec::new(),
        facts,
        probes: answers,
    };
    let verdict = verdict::judge(&host, &probed);
    (probed.mode, probed.restrictions) = (verdict.mode, verdict.restrictions);
    host.probed = Some(Box::new(probed));
    Ok(host)
}

/// What [`examine`] found, for people.
///
/// # Errors
/// A host that was not examined.
pub fn text(host: &Host, colour: Colour) -> Result<String> {
    let probed = probed(host)?;
    let verdict = verdict::judge(host, probed);
    Ok(report::text(host, probed, &verdict, colour))
}

/// The same for programs: docs/doctor.md.
///
/// # Errors
/// A host that was not examined.
pub fn json(host: &Host) -> Result<serde_json::Value> {
    let probed = probed(host)?;
    let verdict = verdict::judge(host, probed);
    report::json(host, probed, &verdict)
        .map_err(|error| Error::new(Kind::System, format!("write JSON: {error}")))
}

fn probed(host: &Host) -> Result<&Probed> {
    host.probed
        .as_deref()
        .ok_or_else(|| Error::new(Kind::Usage, "this host was captured without its probes"))
}

fn probe(host: &Host, facts: &Facts) -> Result<Answers> {
    let doctor = std::process::id();
    let cgroup = |tell: &run::Teller| cgroups::probe(tell, host, doctor);
    let group = |name, work| Group { name, work };
    let mut groups = vec![
        group("user", &chain::user as &dyn Fn(&run::Teller)),
        group("cgroup", &cgroup),
        group("seccomp", &calls::filters),
        group("landlock", &calls::landlock),
        group("limit", &calls::limits),
        group("keyring", &calls::keyring),
        group("new", &calls::newer),
        group("shm", &calls::shm),
    ];
    if host.euid == 0 {
        groups.push(group("root", &chain::root));
    }
    if facts.apparmor.is_some() {
        groups.push(group("apparmor.load", &calls::apparmor_load));
    }
    if facts.seccomp != 0 {
        groups.push(group(calls::ASKED, &calls::asked));
    }
    let answers = run::groups(&groups);
    cgroups::sweep(host, doctor);
    answers
}
