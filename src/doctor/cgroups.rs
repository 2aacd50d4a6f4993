//! A cgroup as a container gets one, with limits that are read back, made by the manager itself and
//! removed again.

use std::path::Path;

use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxMemoryBuilder,
    LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
};

use super::run::Teller;
use crate::cgroup::{self, Cgroup, CgroupPlan, Hierarchies, Placed};
use crate::error::{Error, Kind, Result};
use crate::host::{Answer, Host, Outcome};

/// The limits that are tried.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

fn resources(wanted: &[&str]) -> Result<LinuxResources> {
    let has = |name| wanted.contains(&name);
    let fail = |error: oci_spec::OciSpecError| Error::new(Kind::System, error.to_string());
    let mut resources = LinuxResourcesBuilder::default();
    if has("memory") {
        let memory = LinuxMemoryBuilder::default().limit(64 << 20);
        resources = resources.memory(memory.build().map_err(fail)?);
    }
    if has("cpu") {
        let cpu = LinuxCpuBuilder::default().quota(50_000).period(100_000u64);
        resources = resources.cpu(cpu.build().map_err(fail)?);
    }
    if has("pids") {
        let pids = LinuxPidsBuilder::default().limit(32);
        resources = resources.pids(pids.build().map_err(fail)?);
    }
    if has("devices") {
        let none = LinuxDeviceCgroupBuilder::default()
            .allow(false)
            .access("rwm")
            .build()
            .map_err(fail)?;
        resources = resources.devices(vec![none]);
    }
    resources.build().map_err(fail)
}

fn linux(wanted: &[&str]) -> Result<Linux> {
    LinuxBuilder::default()
        .resources(resources(wanted)?)
        .build()
        .map_err(|error| Error::new(Kind::System, error.to_string()))
}

/// The hierarchies with what only limits need to know, such as v2's list of controllers.
///
/// # Errors
/// As [`cgroup::detect`].
pub fn hierarchies() -> Result<Hierarchies> {
    cgroup::detect(Some(&linux(&CONTROLLERS)?))
}

fn plan(host: &Host, id: &str, wanted: &[&str]) -> Result<CgroupPlan> {
    let linux = linux(wanted)?;
    let hierarchies = cgroup::detect(Some(&linux))?;
    let mut plan = cgroup::plan(Some(&linux), id, &hierarchies)?;
    // Nothing is left out silently, as it may be for a container: that is what is asked here.
    plan.adapt(false, true, host.is_real_root());
    Ok(plan)
}

/// The name of the cgroup that doctor's process `pid` makes.
fn id(pid: u32) -> String {
    format!("isorun-doctor-{pid}")
}

/// Tries all limits at once, and where that fails one by one.
pub fn probe(tell: &Teller, host: &Host, pid: u32) {
    if host.cgroups == Hierarchies::none() {
        let why = "no cgroup file system is mounted";
        for probe in ["create", "memory", "cpu", "pids", "devices"] {
            tell.end(probe, Outcome::other(Answer::Failed, why));
        }
        return;
    }
    let id = id(pid);
    limits(tell, host, &id);
    devices(tell, host, &id);
}

/// Rules for devices, which every container of the machine's root has.
fn devices(tell: &Teller, host: &Host, id: &str) {
    if !host.is_real_root() {
        let why = "nobody but the machine's root has rules for devices";
        tell.end("devices", Outcome::other(Answer::Absent, why));
        return;
    }
    if made(host, id, &[]).is_err() {
        tell.skip(&["devices"], "create");
        return;
    }
    tell.begin("devices");
    tell.end("devices", outcome(made(host, id, &["devices"])));
}

/// The cgroup itself and the limits.
fn limits(tell: &Teller, host: &Host, id: &str) {
    if made(host, id, &CONTROLLERS).is_ok() {
        tell.end("create", Outcome::ok(""));
        for controller in CONTROLLERS {
            tell.end(controller, Outcome::ok("a limit was set and read back"));
        }
        return;
    }
    tell.begin("create");
    let created = made(host, id, &[]);
    let works = created.is_ok();
    tell.end("create", outcome(created));
    if !works {
        tell.skip(&CONTROLLERS, "create");
        return;
    }
    for controller in CONTROLLERS {
        tell.begin(controller);
        tell.end(controller, outcome(made(host, id, &[controller])));
    }
}

fn made(host: &Host, id: &str, wanted: &[&str]) -> Result<()> {
    let cgroup = Cgroup::create(&plan(host, id, wanted)?)?;
    cgroup.placed().remove()
}

fn outcome(made: Result<()>) -> Outcome {
    match made {
        Ok(()) => Outcome::ok(""),
        Err(error) => Outcome {
            result: Answer::Failed,
            errno: error.errno().map(|errno| errno as i32),
            detail: error.to_string(),
        },
    }
}

/// Removes what a probe left that did not come to its end.
pub fn sweep(host: &Host, pid: u32) {
    if let Ok(plan) = plan(host, &id(pid), &[])
        && plan.dirs.iter().any(|dir| dir.path.exists())
    {
        let mut placed = Placed::planned(&plan);
        for dir in &mut placed.dirs {
            // It has our name with our pid: nobody else made it.
            dir.made = dir.path.ends_with(id(pid));
        }
        let _ = placed.remove();
    }
}

/// The controllers that a user's systemd may hand on to containers (`--systemd-cgroup`): nothing where
/// there is no such systemd, or the machine has no cgroup v2.
pub fn delegated(host: &Host) -> Option<Vec<String>> {
    let mount = &host.cgroups.v2.as_ref()?.mount;
    let service = format!("user.slice/user-{0}.slice/user@{0}.service", host.euid);
    let file = mount.join(Path::new(&service)).join("cgroup.controllers");
    let text = std::fs::read_to_string(file).ok()?;
    Some(text.split_whitespace().map(str::to_string).collect())
}
