//! Pure: from `linux.cgroupsPath` and `linux.resources` to directories, writes and device rules.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Linux;
use serde::{Deserialize, Serialize};

use super::devices::Devices;
use super::hierarchies::{Hierarchies, Mode};
use super::limits::{self, Missing};
use super::readback::Check;
use super::systemd::{self, Scope, Systemd};
use crate::error::{Error, Result};
use crate::spec::names;

/// Which kind of hierarchy a directory is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// A v1 hierarchy.
    V1,
    /// The v2 hierarchy.
    V2,
}

/// What will be made for one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CgroupPlan {
    /// How cgroups are mounted.
    pub mode: Mode,
    /// One directory for each hierarchy, in the order in which they are made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dirs: Vec<PlannedDir>,
    /// The child can be cloned into its cgroup: everything it needs is on v2.
    pub clone_into: bool,
    /// systemd makes it, as a unit with the child in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Made without privileges over cgroups: see [`CgroupPlan::adapt`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub rootless: bool,
    /// A directory that may not be made is left out, where no limit needs it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lenient: bool,
    /// Fields that have no effect here, with the reason; as under runc, but told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<Ignored>,
}

/// A field of the configuration that has no effect on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ignored {
    /// Its JSON path.
    pub field: String,
    /// Why.
    pub reason: String,
}

/// The container's cgroup in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedDir {
    /// v1 or v2.
    pub version: Version,
    /// v1: the controllers of the hierarchy. v2: those that must be enabled for the limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<String>,
    /// Where the hierarchy is mounted.
    pub mount: PathBuf,
    /// The container's directory, absolute.
    pub path: PathBuf,
    /// The limits, in the order in which they are written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writes: Vec<Write>,
    /// The device rules, where this hierarchy is the one that enforces them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Devices>,
}

/// One value for one file of a controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Write {
    /// The controller that owns the file.
    pub controller: String,
    /// The file's name.
    pub file: String,
    /// What is written.
    pub value: String,
    /// The JSON path of the field that asks for it.
    pub field: String,
    /// How it is compared with what is read back.
    pub check: Check,
    /// A kernel without this file does no harm: the value is what it does without.
    #[serde(default, skip_serializing_if = "is_false")]
    pub optional: bool,
    /// The value is "no limit", which holds where the controller is not there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unlimited: bool,
    /// File, value and check to use where `file` is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<(String, String, Check)>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Write {
    /// A value that must read back as `check` says.
    pub(super) fn new(
        controller: &str,
        file: impl Into<String>,
        value: impl ToString,
        field: impl Into<String>,
        check: Check,
    ) -> Self {
        Self {
            controller: controller.into(),
            file: file.into(),
            value: value.to_string(),
            field: field.into(),
            check,
            optional: false,
            unlimited: false,
            instead: None,
        }
    }

    pub(super) fn optional_if(mut self, optional: bool) -> Self {
        self.optional = optional;
        self
    }

    pub(super) fn unlimited_if(mut self, unlimited: bool) -> Self {
        self.unlimited = unlimited;
        self
    }

    pub(super) fn or(mut self, file: &str, value: impl ToString, check: Check) -> Self {
        self.instead = Some((file.into(), value.to_string(), check));
        self
    }
}

impl PlannedDir {
    /// It can freeze its processes: v2, or v1's freezer.
    pub(super) fn freezes(&self) -> bool {
        self.version == Version::V2 || self.controllers.iter().any(|name| name == "freezer")
    }

    /// The cgroup as a path below the mount point.
    pub fn inside(&self) -> &Path {
        self.path.strip_prefix(&self.mount).unwrap_or(Path::new(""))
    }
}

impl CgroupPlan {
    /// Adapts the plan to a runtime that is not the machine's root. `rootless`: a directory that may not
    /// be made is left out if no limit needs it, and none was asked for by `linux.cgroupsPath`
    /// (`explicit`), as under runc. `root`: the runtime is the machine's root, so device rules can be
    /// had: the kernel takes none from anybody else, who cannot make device nodes either.
    pub fn adapt(&mut self, rootless: bool, explicit: bool, root: bool) {
        self.rootless = rootless;
        // A unit is asked for, so it is made.
        self.lenient = rootless && !explicit && self.scope.is_none();
        if !root {
            self.without_devices();
        }
        if let Some(scope) = &mut self.scope {
            scope.limit(&self.dirs);
        }
    }

    fn without_devices(&mut self) {
        let had = self.dirs.iter_mut().filter_map(|dir| dir.devices.take());
        if had.count() > 0 {
            self.ignored.push(Ignored {
                field: "linux.resources.devices".into(),
                reason: "only the machine's root sets device rules; who is not can make no device \
                         nodes either"
                    .into(),
            });
        }
    }

    /// Gives the device rules up.
    pub fn without_rules(&mut self) {
        for dir in &mut self.dirs {
            dir.devices = None;
        }
    }

    /// Gives all limits up, where the cgroup may not be made that they need: then it may be missing,
    /// too. What was asked for, by field.
    pub fn without_limits(&mut self) -> Vec<String> {
        let mut fields: Vec<String> = Vec::new();
        for dir in &mut self.dirs {
            for write in dir.writes.drain(..).filter(|write| !write.unlimited) {
                if !fields.contains(&write.field) {
                    fields.push(write.field);
                }
            }
            if dir.version == Version::V2 {
                dir.controllers.clear();
            }
        }
        self.lenient = true;
        fields
    }

    /// The directory on v2, if there is one.
    pub fn v2(&self) -> Option<&PlannedDir> {
        self.dirs.iter().find(|dir| dir.version == Version::V2)
    }
}

/// Plans the cgroup of container `id`: paths as runc's cgroupfs driver chooses them, limits as
/// writes in their order, device rules.
///
/// `cgroupsPath` absolute: below the mount point of each hierarchy. Relative: below this process's
/// own cgroup on v1, below the parent of its own cgroup on v2 (which has processes, so it could
/// hand on no controllers). Missing: as if it were `id`. It never leads above those.
///
/// # Errors
/// An error of kind Spec names a field that is not valid. One of kind System names a limit whose
/// controller this host lacks.
pub fn plan(linux: Option<&Linux>, id: &str, host: &Hierarchies) -> Result<CgroupPlan> {
    let (plan, missing) = plan_possible(linux, id, host)?;
    match missing.into_iter().next() {
        Some(missing) => Err(missing.error),
        None => Ok(plan),
    }
}

/// The same as far as this host has the controllers, and the limits that it cannot enforce.
///
/// # Errors
/// An error of kind Spec names a field that is not valid.
pub fn plan_possible(
    linux: Option<&Linux>,
    id: &str,
    host: &Hierarchies,
) -> Result<(CgroupPlan, Vec<Missing>)> {
    let asked = match linux.and_then(|linux| linux.cgroups_path().as_ref()) {
        Some(path) => path.to_str().ok_or_else(|| {
            Error::spec("linux.cgroupsPath", "is not UTF-8").remedy("use a plain path")
        })?,
        None => "",
    };
    if asked.contains('\0') {
        return Err(Error::spec("linux.cgroupsPath", "holds a NUL character"));
    }
    let asked = if names::clean(asked).is_empty() {
        id
    } else {
        asked
    };
    let inner = names::clean(asked);
    let absolute = asked.starts_with('/');
    let place = |version, mount: &Path, own: &str| {
        let base = match (absolute, version, host.mode) {
            (true, ..) => "",
            (false, Version::V2, Mode::V2) => own.rsplit_once('/').map_or("", |(parent, _)| parent),
            // On a hybrid host v2 hands on no controllers, so the place is as on v1.
            (false, ..) => own,
        };
        join(mount, base, &inner)
    };
    finish(linux, host, place)
}

/// Plans the cgroup of container `id` as a unit of systemd: `cgroupsPath` is `slice:prefix:name`, and
/// the place is the same in every hierarchy. With the limits that this host cannot enforce.
///
/// # Errors
/// As [`plan_possible`]; an annotation that is no property of a unit.
pub fn plan_scope(
    linux: Option<&Linux>,
    annotations: Option<&HashMap<String, String>>,
    id: &str,
    host: &Hierarchies,
    systemd: &Systemd,
) -> Result<(CgroupPlan, Vec<Missing>)> {
    let (scope, inside) = systemd::scope(linux, annotations, id, host.mode, systemd)?;
    let (mut plan, missing) = finish(linux, host, |_, mount, _| mount.join(&inside))?;
    // The unit is made for a process that is there.
    plan.clone_into = false;
    plan.scope = Some(scope);
    Ok((plan, missing))
}

/// The plan with one directory in each hierarchy, where `place` says: from its version, its mount point
/// and this process's own cgroup.
fn finish(
    linux: Option<&Linux>,
    host: &Hierarchies,
    place: impl Fn(Version, &Path, &str) -> PathBuf,
) -> Result<(CgroupPlan, Vec<Missing>)> {
    let dir = |version, controllers, mount: &Path, own: &str| PlannedDir {
        version,
        controllers,
        path: place(version, mount, own),
        mount: mount.to_path_buf(),
        writes: Vec::new(),
        devices: None,
    };
    let v1 = host.v1.iter();
    let v1 = v1.map(|v1| dir(Version::V1, v1.controllers.clone(), &v1.mount, &v1.own));
    let v2 = host.v2.iter();
    let v2 = v2.map(|v2| dir(Version::V2, Vec::new(), &v2.mount, &v2.own));
    let mut plan = CgroupPlan {
        mode: host.mode,
        dirs: v1.chain(v2).collect(),
        clone_into: host.mode == Mode::V2,
        scope: None,
        rootless: false,
        lenient: false,
        ignored: Vec::new(),
    };
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let mut missing = Vec::new();
    limits::apply(&mut plan, host, resources, &mut missing)?;
    limits::devices(&mut plan, resources, &mut missing)?;
    Ok((plan, missing))
}

fn join(mount: &Path, base: &str, inner: &str) -> PathBuf {
    let mut path = mount.to_path_buf();
    for part in [names::clean(base).as_str(), inner] {
        if !part.is_empty() {
            path.push(part);
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaned() {
        for (path, want) in [
            ("", ""),
            ("/", ""),
            ("/a//b/./c/", "a/b/c"),
            ("../../x", "x"),
            ("a/../../x", "x"),
            ("/../../../..", ""),
            ("system.slice:foo:bar", "system.slice:foo:bar"),
        ] {
            assert_eq!(names::clean(path), want, "{path}");
        }
    }
}
