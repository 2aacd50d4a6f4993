//! What `isorun features` prints: the specification's features.md, true for this version.

use serde_json::{Value, json};

use super::{mounts, names};

/// The seccomp part of the document; the lists are those of the seccomp module.
#[derive(Debug, Clone, Copy, Default)]
pub struct SeccompLists<'a> {
    /// Actions, such as `SCMP_ACT_ALLOW`.
    pub actions: &'a [&'a str],
    /// Operators of argument conditions, such as `SCMP_CMP_EQ`.
    pub operators: &'a [&'a str],
    /// Architectures, such as `SCMP_ARCH_X86_64`.
    pub archs: &'a [&'a str],
    /// Filter flags that isorun knows by name.
    pub known_flags: &'a [&'a str],
    /// Filter flags that can be used: the known ones that this kernel has.
    pub supported_flags: &'a [&'a str],
}

/// The features document (features.md of specification 1.3). With `None` for `seccomp` it says that
/// there is no seccomp. `unsafe_annotations` are the annotations, or with a dot at their end the beginnings
/// of annotations, of config.json that change what isorun does. Members are sorted by name.
pub fn features(seccomp: Option<SeccompLists<'_>>, unsafe_annotations: &[&str]) -> Value {
    let sorted = |list: &[&str]| {
        let mut list = list.to_vec();
        list.sort_unstable();
        list.into_iter().map(Value::from).collect::<Vec<Value>>()
    };
    let seccomp = match seccomp {
        None => json!({ "enabled": false }),
        Some(lists) => json!({
            "enabled": true,
            "actions": sorted(lists.actions),
            "operators": sorted(lists.operators),
            "archs": sorted(lists.archs),
            "knownFlags": sorted(lists.known_flags),
            "supportedFlags": sorted(lists.supported_flags),
        }),
    };
    json!({
        "ociVersionMin": super::VERSION_MIN,
        "ociVersionMax": super::VERSION_MAX,
        "hooks": names::HOOKS,
        "mountOptions": mounts::option_names().collect::<Vec<_>>(),
        "linux": {
            "namespaces": names::NAMESPACES.map(|namespace| namespace.name),
            "capabilities": names::CAPABILITIES.map(|(_, name)| name).as_slice(),
            "cgroup": {
                "v1": true,
                "v2": true,
                "systemd": true,
                "systemdUser": true,
                "rdma": true,
            },
            "seccomp": seccomp,
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
            "memoryPolicy": {
                "modes": sorted(&names::MEMORY_POLICIES.map(|(_, name, _)| name)),
                "flags": sorted(&names::MEMORY_POLICY_FLAGS.map(|(_, name, _)| name)),
            },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": true },
        },
        "annotations": { "io.isorun.version": env!("CARGO_PKG_VERSION") },
        // What they change is config-linux.md's affair, and that of docs/decisions/0009.
        "potentiallyUnsafeConfigAnnotations": unsafe_annotations,
    })
}
