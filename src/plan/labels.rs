//! The part of the plan that gives labels: AppArmor profile, SELinux labels of process, key ring and
//! mounts.

use oci_spec::runtime::{Linux, Process as SpecProcess};
use serde::{Deserialize, Serialize};

use super::degrade::{self, Feature};
use super::step::{Action, Degradation, Mount, MountKind, Step};
use crate::error::{Error, Result};
use crate::host::Lsm;
use crate::policy::Level;

/// Whose label it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelKind {
    /// process.apparmorProfile.
    Apparmor,
    /// process.selinuxLabel.
    Selinux,
}

fn set(label: &Option<String>) -> Option<&String> {
    label.as_ref().filter(|label| !label.is_empty())
}

/// Whether the host can give the labels that are asked for; what is lost where the level allows it, on a
/// host with this version of Landlock (0: none).
///
/// # Errors
/// The field of the label that needs a security module which is not there, with runc's words.
pub fn check(
    linux: &Linux,
    process: &SpecProcess,
    lsm: &Lsm,
    level: Level,
    landlock: u32,
) -> Result<Option<Degradation>> {
    for (field, label) in [
        ("process.selinuxLabel", process.selinux_label()),
        ("linux.mountLabel", linux.mount_label()),
    ] {
        if set(label).is_some() && !lsm.selinux {
            return Err(Error::spec(
                field,
                "selinux label is specified in config, but selinux is disabled or not supported",
            )
            .remedy("leave it out, or enable SELinux"));
        }
    }
    let Some(profile) = set(process.apparmor_profile()).filter(|_| !lsm.apparmor) else {
        return Ok(None);
    };
    let error = Error::spec(
        "process.apparmorProfile",
        "apparmor: config provided but apparmor not supported by this host",
    );
    let what = format!("the AppArmor profile {profile}");
    let lost = degrade::planned(Feature::Apparmor, level, what, error, landlock);
    lost.map(Some)
        .map_err(|error| error.also(Feature::Apparmor.row().remedy))
}

/// Steps that label the program: what they write holds from the next exec on. They come after the
/// hooks of the host, which are not to run under the container's label, and before pivot_root, while
/// /proc is the host's: the container's own may be anything (CVE-2019-16884, CVE-2019-19921). Without
/// `apparmor` its profile is lost.
pub fn process(process: &SpecProcess, apparmor: bool) -> Vec<Step> {
    let step = |kind, label: &String| {
        Step::from(Action::ExecLabel {
            kind,
            label: label.clone(),
        })
    };
    [
        (LabelKind::Apparmor, process.apparmor_profile()),
        (LabelKind::Selinux, process.selinux_label()),
    ]
    .into_iter()
    .filter(|(kind, _)| apparmor || *kind != LabelKind::Apparmor)
    .filter_map(|(kind, label)| set(label).map(|label| step(kind, label)))
    .collect()
}

/// The label of the session keyring: the process's.
pub(super) fn keyring(process: &SpecProcess) -> Option<String> {
    set(process.selinux_label()).cloned()
}

/// The label of the container's new file systems.
pub(super) fn mounts(linux: &Linux) -> Option<String> {
    set(linux.mount_label()).cloned()
}

/// Mount options that hold an SELinux context.
const CONTEXTS: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

/// Adds the label to the parameters of a new file system, as runc does: procfs, sysfs, mqueue and
/// cgroup file systems take none (the mount of type cgroup passes it to the tmpfs below the hierarchies
/// of v1). An engine's own context stays. Quotes are for mount(2) only, where commas end an option.
pub(super) fn label_data(linux: &Linux, fstype: &str, data: &mut Vec<(String, Option<String>)>) {
    for (name, value) in data.iter_mut() {
        if CONTEXTS.contains(&name.as_str())
            && let Some(text) = value
        {
            *text = text.trim_matches('"').to_string();
        }
    }
    let own = data
        .iter()
        .any(|(name, _)| CONTEXTS.contains(&name.as_str()));
    if let Some(label) = mounts(linux)
        && !own
        && !matches!(fstype, "proc" | "sysfs" | "mqueue" | "cgroup2")
    {
        data.push(("context".into(), Some(label)));
    }
}

/// The step that labels the directory of a mount whose file system takes no label.
pub(super) fn after_mount(linux: &Linux, mount: &Mount) -> Option<Step> {
    let mqueue = matches!(&mount.what, MountKind::Fresh { fstype, .. } if fstype == "mqueue");
    let label = mounts(linux).filter(|_| mqueue)?;
    let path = mount.target.clone();
    Some(Action::FileLabel { path, label }.into())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxBuilder, ProcessBuilder};

    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn linux() -> Linux {
        LinuxBuilder::default().mount_label(LABEL).build().unwrap()
    }

    #[test]
    fn a_label_needs_its_module() {
        let process = |apparmor: &str, selinux: &str| {
            ProcessBuilder::default()
                .apparmor_profile(apparmor)
                .selinux_label(selinux)
                .build()
                .unwrap()
        };
        let none = Lsm::default();
        let apparmor = Lsm {
            apparmor: true,
            selinux: false,
        };
        let selinux = Lsm {
            apparmor: false,
            selinux: true,
        };
        let plain = Linux::default();
        let field = |linux: &Linux, process: &SpecProcess, lsm: &Lsm| {
            check(linux, process, lsm, Level::Any, 0)
                .err()
                .map(|error| {
                    error
                        .to_string()
                        .split(':')
                        .nth(1)
                        .unwrap()
                        .trim()
                        .to_string()
                })
        };
        let named = |name: &str| Some(name.to_string());
        assert_eq!(field(&plain, &process("", ""), &none), None);
        assert_eq!(
            field(&plain, &process("p", ""), &none),
            named("process.apparmorProfile")
        );
        assert_eq!(field(&plain, &process("p", ""), &apparmor), None);
        assert_eq!(
            field(&plain, &process("p", "l"), &apparmor),
            named("process.selinuxLabel")
        );
        assert_eq!(field(&plain, &process("", "l"), &selinux), None);
        assert_eq!(
            field(&linux(), &process("", ""), &apparmor),
            named("linux.mountLabel")
        );
        assert_eq!(field(&linux(), &process("", ""), &selinux), None);
    }

    #[test]
    fn which_file_systems_are_labelled() {
        let with = |fstype: &str, data: &[(&str, &str)]| {
            let mut data: Vec<_> = data
                .iter()
                .map(|(name, value)| (name.to_string(), Some(value.to_string())))
                .collect();
            label_data(&linux(), fstype, &mut data);
            data
        };
        let context = |value: &str| vec![("context".to_string(), Some(value.to_string()))];
        for fstype in ["tmpfs", "devpts", "ext4", "cgroup"] {
            assert_eq!(with(fstype, &[]), context(LABEL), "{fstype}");
        }
        for fstype in ["proc", "sysfs", "mqueue", "cgroup2"] {
            assert_eq!(with(fstype, &[]), vec![], "{fstype}");
        }
        assert_eq!(with("tmpfs", &[("context", "\"a,b\"")]), context("a,b"));
    }
}
