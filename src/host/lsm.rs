//! Which security modules of the kernel give labels to processes.

use std::path::Path;

use nix::sys::statfs::statfs;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

/// SELINUX_MAGIC of linux/magic.h.
const SELINUX_MAGIC: i64 = 0xf97c_ff8c;

/// Security modules that are at work. Looked at only where config.json asks for a label: a container
/// without one pays nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lsm {
    /// AppArmor is enabled.
    #[serde(default)]
    pub apparmor: bool,
    /// SELinux is enabled and has a policy.
    #[serde(default)]
    pub selinux: bool,
}

impl Lsm {
    /// No module, or none that anybody has asked for.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the specification asks for a profile of AppArmor, which is not there.
    pub fn lacks_apparmor(&self, spec: &Spec) -> bool {
        let process = spec.process().as_ref();
        !self.apparmor && asks(process.and_then(|p| p.apparmor_profile().as_ref()))
    }

    /// Looks at this machine, as far as the specification asks for labels.
    pub fn detect(spec: &Spec) -> Self {
        let process = spec.process().as_ref();
        let linux = spec.linux().as_ref();
        let selinux = asks(process.and_then(|p| p.selinux_label().as_ref()))
            || asks(linux.and_then(|l| l.mount_label().as_ref()));
        Self {
            apparmor: asks(process.and_then(|p| p.apparmor_profile().as_ref()))
                && apparmor_at(Path::new("/sys/module/apparmor/parameters/enabled")),
            selinux: selinux && selinux_enabled(),
        }
    }
}

fn asks(label: Option<&String>) -> bool {
    label.is_some_and(|label| !label.is_empty())
}

/// Whether AppArmor is enabled, by the parameter of its module: `Y` or `N`.
fn apparmor_at(parameter: &Path) -> bool {
    std::fs::read(parameter).is_ok_and(|text| text.first() == Some(&b'Y'))
}

/// Whether SELinux is enabled: its file system is mounted, and processes have another label than the
/// one they have before a policy is loaded.
fn selinux_enabled() -> bool {
    let mounted =
        statfs("/sys/fs/selinux").is_ok_and(|stat| stat.filesystem_type().0 == SELINUX_MAGIC);
    mounted
        && std::fs::read("/proc/self/attr/current")
            .is_ok_and(|label| !label.is_empty() && !label.starts_with(b"kernel"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apparmors_parameter() {
        let path = std::env::temp_dir().join(format!("isorun-lsm-{}", std::process::id()));
        for (text, enabled) in [("Y\n", true), ("N\n", false), ("", false)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(apparmor_at(&path), enabled, "{text:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(!apparmor_at(&path));
    }

    #[test]
    fn nothing_is_looked_at_unless_it_is_asked_for() {
        assert!(Lsm::detect(&Spec::default()).is_none());
    }
}
