//! What repairs a refusal: the exact command, for the place where isorun runs.

use serde::Serialize;

use super::table::Probe;
use crate::cgroup::Mode;
use crate::host::facts::SandboxKind;
use crate::host::{Caps, Facts, Host, Restriction};

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// In words.
    pub text: String,
    /// The commands, or the lines of a configuration, one each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
}

fn remedy(text: &str, commands: &[&str]) -> Option<Remedy> {
    Some(Remedy {
        text: text.into(),
        commands: commands.iter().map(|line| (*line).to_string()).collect(),
    })
}

/// What repairs `probe`, which `restriction` refuses; nothing where nobody here can say.
pub fn of(
    host: &Host,
    facts: &Facts,
    probe: &Probe,
    restriction: Option<Restriction>,
) -> Option<Remedy> {
    if facts.surroundings.wsl == Some(1) {
        return remedy(
            "WSL1 has no Linux kernel: turn the distribution into one of WSL2 (in PowerShell)",
            &["wsl --set-version <distribution> 2"],
        );
    }
    match restriction {
        None => without_a_name(host, facts, probe),
        Some(Restriction::Sysctl) => sysctl(facts, probe),
        Some(Restriction::Apparmor) if !facts.surroundings.contained() => apparmor(facts),
        Some(Restriction::None | Restriction::Unknown) => None,
        Some(Restriction::Hardened) => remedy(
            "boot a kernel that lets unprivileged users make user namespaces (Arch: linux instead of \
             linux-hardened), or allow it where it has the parameter",
            &["sysctl -w kernel.unprivileged_userns_clone=1"],
        ),
        Some(restriction) => match facts.surroundings.kind {
            SandboxKind::None => outside(host, probe, restriction),
            SandboxKind::Docker => docker(probe, restriction),
            SandboxKind::Podman => podman(probe, restriction),
            SandboxKind::Kubernetes => kubernetes(restriction),
            SandboxKind::Lxc => remedy(
                "let the container nest others",
                &["incus config set <container> security.nesting=true   # or: lxc config set …"],
            ),
            SandboxKind::Nspawn | SandboxKind::Container => nested(probe, restriction),
        },
    }
}

/// Refusals that are none of the known restrictions.
fn without_a_name(host: &Host, facts: &Facts, probe: &Probe) -> Option<Remedy> {
    let ids = facts.subids.clone().unwrap_or_default();
    match probe.id {
        "map-range" if ids.uids.is_empty() || ids.gids.is_empty() => {
            let range = format!("{}-{}", ids.free, ids.free.saturating_add(65535));
            Some(Remedy {
                text: "give the user a range of ids that nobody else has".into(),
                commands: vec![format!(
                    "sudo usermod --add-subuids {range} --add-subgids {range} {}",
                    ids.user
                )],
            })
        }
        "map-range" if !ids.helpers => Some(Remedy {
            text: "install newuidmap and newgidmap".into(),
            commands: vec![install(facts, "uidmap", "shadow-utils", "shadow-subids")],
        }),
        "cgroup.create" if host.is_real_root() => match facts.surroundings.kind {
            SandboxKind::None => None,
            SandboxKind::Kubernetes => remedy(
                "mount cgroups read-write in the pod: containerd 2.1 and newer can \
                 (cgroup_writable of the runtime's handler), or run it privileged",
                &["securityContext: {privileged: true}"],
            ),
            SandboxKind::Docker => remedy(
                "mount cgroups read-write into the outer container",
                &[
                    "docker run --privileged …   # or: --cgroupns=host --volume /sys/fs/cgroup:/sys/fs/cgroup:rw",
                ],
            ),
            SandboxKind::Podman => remedy(
                "mount cgroups read-write into the outer container",
                &["podman run --cgroupns=private --security-opt unmask=/sys/fs/cgroup …"],
            ),
            _ => remedy(
                "mount cgroups read-write into the outer container (in its config.json)",
                &[
                    r#"mounts: {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}"#,
                ],
            ),
        },
        "cgroup.create" if host.cgroups.mode != Mode::V2 => remedy(
            "only cgroup v2 is delegated to users: boot with it (with systemd, a parameter of the kernel)",
            &["systemd.unified_cgroup_hierarchy=1"],
        ),
        "cgroup.create" if !facts.systemd => Some(Remedy {
            text: "as root, make a cgroup of the user's own, and start isorun in one below it"
                .into(),
            commands: vec![
                "sudo mkdir -p /sys/fs/cgroup/isorun/shell".into(),
                format!("sudo chown -R {} /sys/fs/cgroup/isorun", ids.user),
                "echo +cpu +memory +pids | sudo tee /sys/fs/cgroup/cgroup.subtree_control".into(),
                "echo $$ | sudo tee /sys/fs/cgroup/isorun/shell/cgroup.procs".into(),
            ],
        }),
        "cgroup.create" => remedy(
            "let systemd delegate cgroups to users, log in again, and use --systemd-cgroup, or start \
             isorun in a scope of its own",
            &[
                "sudo mkdir -p /etc/systemd/system/user@.service.d",
                "printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | sudo tee /etc/systemd/system/user@.service.d/delegate.conf",
                "sudo systemctl daemon-reload",
                "systemd-run --user --scope --property=Delegate=yes isorun run …",
            ],
        ),
        "cgroup.memory" | "cgroup.cpu" | "cgroup.pids" => {
            limit(host, facts, probe.id.trim_start_matches("cgroup."))
        }
        "shm" => remedy(
            "mount a tmpfs there",
            &[
                "sudo mkdir -p /dev/shm && sudo mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /dev/shm",
            ],
        ),
        _ => None,
    }
}

/// Why a controller cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// A v1 hierarchy that is not mounted here holds it.
    HeldByV1,
    /// It was turned off at boot.
    Disabled,
    /// The cgroup that this machine or container begins with has it, and does not hand it on.
    NotEnabled,
    /// What is above that does not hand it on.
    NotHandedOn,
}

/// Why `controller` cannot be used here.
pub fn lack(host: &Host, facts: &Facts, controller: &str) -> Lack {
    let has = |list: &[String]| list.iter().any(|name| name == controller);
    let offered = host
        .cgroups
        .v2
        .as_ref()
        .and_then(|v2| v2.controllers.as_ref());
    match () {
        () if has(&facts.disabled_controllers) => Lack::Disabled,
        () if has(&facts.held_by_v1) => Lack::HeldByV1,
        () if offered.is_some_and(|list| has(list)) => Lack::NotEnabled,
        () => Lack::NotHandedOn,
    }
}

fn limit(host: &Host, facts: &Facts, controller: &str) -> Option<Remedy> {
    match lack(host, facts, controller) {
        Lack::Disabled => Some(Remedy {
            text: "turn the controller on, by a parameter of the kernel (Raspberry Pi: in the one line of \
                   /boot/firmware/cmdline.txt), and reboot"
                .into(),
            commands: vec![format!("cgroup_enable={controller}")],
        }),
        Lack::HeldByV1 => remedy(
            "leave v1: boot with these parameters of the kernel",
            &["cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1"],
        ),
        _ if !host.is_real_root() && !facts.surroundings.contained() => remedy(
            "let systemd delegate the controller to users, and log in again",
            &[
                "sudo mkdir -p /etc/systemd/system/user@.service.d",
                "printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | sudo tee /etc/systemd/system/user@.service.d/delegate.conf",
                "sudo systemctl daemon-reload",
            ],
        ),
        Lack::NotEnabled if facts.surroundings.contained() => Some(Remedy {
            text: "in this container, move what runs in its first cgroup to one below, and hand the controller on"
                .into(),
            commands: vec![
                "mkdir -p /sys/fs/cgroup/init".into(),
                "for pid in $(cat /sys/fs/cgroup/cgroup.procs); do echo $pid > /sys/fs/cgroup/init/cgroup.procs; done".into(),
                format!("echo +{controller} > /sys/fs/cgroup/cgroup.subtree_control"),
            ],
        }),
        Lack::NotEnabled => Some(Remedy {
            text: "hand the controller on to the cgroups below the first one; nothing may run in that one \
                   itself unless it is the machine's"
                .into(),
            commands: vec![format!(
                "echo +{controller} | sudo tee /sys/fs/cgroup/cgroup.subtree_control"
            )],
        }),
        Lack::NotHandedOn if facts.surroundings.contained() => Some(Remedy {
            text: "outside, hand the controller on to this container's cgroup; its path is told by".into(),
            commands: vec![
                "cat /proc/<pid of this container outside>/cgroup".into(),
                format!("echo +{controller} | sudo tee /sys/fs/cgroup/<each directory above it>/cgroup.subtree_control"),
            ],
        }),
        Lack::NotHandedOn => Some(Remedy {
            text: "the kernel may have been built without it; what it was built with is told by".into(),
            commands: vec!["grep -E 'CONFIG_(MEMCG|CFS_BANDWIDTH|CGROUP_PIDS)=' /boot/config-$(uname -r)".into()],
        }),
    }
}

/// The command that installs a package, by its names for Debian, Fedora and Alpine.
fn install(facts: &Facts, debian: &str, fedora: &str, alpine: &str) -> String {
    match facts.distro.id.as_str() {
        "fedora" | "rhel" | "centos" | "rocky" | "almalinux" => {
            format!("sudo dnf install {fedora}")
        }
        "alpine" => format!("sudo apk add {alpine}"),
        "arch" | "opensuse-leap" | "opensuse-tumbleweed" => {
            "install the package shadow, which has newuidmap".into()
        }
        _ => format!("sudo apt install {debian}"),
    }
}

fn sysctl(facts: &Facts, probe: &Probe) -> Option<Remedy> {
    let userns_clone = "kernel.unprivileged_userns_clone";
    let (name, value) = match probe.sysctl {
        _ if probe.id == "create" && facts.sysctl(userns_clone) == Some("0") => (userns_clone, "1"),
        Some("kernel.keys.maxkeys") => ("kernel.keys.maxkeys", "20000"),
        // What Red Hat's documentation gives for it; any number of containers fits.
        Some(name) => (name, "15000"),
        None => return None,
    };
    let set = format!("sudo sysctl -w {name}={value}");
    let keep = format!("echo '{name} = {value}' | sudo tee /etc/sysctl.d/90-isorun.conf");
    let text = match facts.surroundings.contained() {
        true => "on the host, outside of this container and its user namespaces",
        false => "set the parameter, now and for later",
    };
    Some(Remedy {
        text: text.into(),
        commands: vec![set, keep],
    })
}

/// Ubuntu 24.04 and newer, on the machine itself.
fn apparmor(facts: &Facts) -> Option<Remedy> {
    if facts.apparmor_restricts() {
        return remedy(
            "load a profile that lets isorun make user namespaces and confines nothing, or allow it to all \
             programs",
            &[
                "isorun doctor --apparmor-profile | sudo tee /etc/apparmor.d/isorun",
                "sudo apparmor_parser --replace /etc/apparmor.d/isorun",
                "# or: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            ],
        );
    }
    let label = facts.apparmor.as_deref().unwrap_or_default();
    let name = label.split(' ').next().unwrap_or_default();
    Some(Remedy {
        text: "start isorun outside of what this profile confines, or let the profile allow it"
            .into(),
        commands: vec![format!("sudo aa-complain {name}")],
    })
}

/// On the machine itself, by whatever started isorun.
fn outside(host: &Host, probe: &Probe, restriction: Restriction) -> Option<Remedy> {
    match restriction {
        Restriction::Seccomp => remedy(
            "start isorun from outside of the program whose filter it inherits; as a service of systemd, \
             without these lines",
            &["SystemCallFilter=", "RestrictNamespaces="],
        ),
        Restriction::NoCaps if host.euid == 0 => {
            let cap = Caps::name(probe.cap.unwrap_or(Caps::SYS_ADMIN));
            Some(Remedy {
                text: format!(
                    "start isorun with {cap}: from a root shell that has it (capsh --print shows), or as \
                     a service of systemd with"
                ),
                commands: vec![format!(
                    "CapabilityBoundingSet=~   # or one that holds {cap}"
                )],
            })
        }
        Restriction::Selinux => remedy(
            "see what was refused, and allow it",
            &[
                "sudo ausearch -m avc -ts recent",
                "sudo ausearch -m avc -ts recent | audit2allow -M isorun && sudo semodule -i isorun.pp",
            ],
        ),
        Restriction::MaskedProc => remedy(
            "take away what is mounted over parts of /proc and /sys, or run isorun as root without a \
             user namespace",
            &[
                "grep -E ' (/proc|/sys)/' /proc/self/mountinfo",
                "sudo umount <each of them>",
            ],
        ),
        _ => None,
    }
}

fn docker(probe: &Probe, restriction: Restriction) -> Option<Remedy> {
    match restriction {
        Restriction::Seccomp => remedy(
            "start the outer container without Docker's filter (it lets nobody pivot_root, and without \
             CAP_SYS_ADMIN nobody make namespaces)",
            &["docker run --security-opt seccomp=unconfined …"],
        ),
        Restriction::Apparmor => remedy(
            "start the outer container without the AppArmor profile docker-default, which denies mount",
            &["docker run --security-opt apparmor=unconfined …"],
        ),
        Restriction::MaskedProc => remedy(
            "start the outer container with all of /proc and /sys",
            &["docker run --security-opt systempaths=unconfined …"],
        ),
        Restriction::Selinux => remedy(
            "start the outer container without SELinux's separation",
            &["docker run --security-opt label=disable …"],
        ),
        Restriction::NoCaps => match probe.cap {
            Some(Caps::SYS_ADMIN) | None => remedy(
                "give the outer container CAP_SYS_ADMIN; the default profile and filter deny mount and \
                 pivot_root even then",
                &[
                    "docker run --cap-add SYS_ADMIN --security-opt apparmor=unconfined --security-opt seccomp=unconfined --security-opt systempaths=unconfined …",
                ],
            ),
            Some(cap) => add(cap),
        },
        _ => None,
    }
}

fn add(cap: u32) -> Option<Remedy> {
    let name = Caps::name(cap).trim_start_matches("CAP_");
    Some(Remedy {
        text: format!("give the outer container CAP_{name}"),
        commands: vec![format!(
            "docker run --cap-add {name} …   # podman run takes the same"
        )],
    })
}

fn podman(probe: &Probe, restriction: Restriction) -> Option<Remedy> {
    match restriction {
        Restriction::MaskedProc => remedy(
            "start the outer container with all of /proc and /sys",
            &["podman run --security-opt unmask=ALL …"],
        ),
        Restriction::NoCaps if matches!(probe.cap, Some(Caps::SYS_ADMIN) | None) => remedy(
            "give the outer container CAP_SYS_ADMIN, and all of /proc",
            &["podman run --cap-add SYS_ADMIN --security-opt unmask=ALL …"],
        ),
        other => {
            let mut found = docker(probe, other)?;
            for command in &mut found.commands {
                *command = command.replace("docker run", "podman run");
            }
            found.text = found.text.replace("Docker's filter", "its filter");
            found.text = found.text.replace("profile docker-default", "profile");
            Some(found)
        }
    }
}

fn kubernetes(restriction: Restriction) -> Option<Remedy> {
    let (text, line) = match restriction {
        Restriction::Seccomp => (
            "give the container no filter, in its securityContext",
            "seccompProfile: {type: Unconfined}",
        ),
        Restriction::Apparmor => (
            "give the container no AppArmor profile, in its securityContext (Kubernetes 1.30)",
            "appArmorProfile: {type: Unconfined}",
        ),
        Restriction::MaskedProc => (
            "show the container all of /proc, in its securityContext; the pod needs hostUsers: false",
            "procMount: Unmasked",
        ),
        Restriction::Selinux => (
            "give the container a type that may, in its securityContext",
            "seLinuxOptions: {type: spc_t}",
        ),
        Restriction::NoCaps => (
            "give the container the capability, in its securityContext; with hostUsers: false it holds in \
             the pod only",
            "capabilities: {add: [SYS_ADMIN]}",
        ),
        _ => return None,
    };
    remedy(text, &[line])
}

/// In a container whose engine nobody knows: by its config.json.
fn nested(probe: &Probe, restriction: Restriction) -> Option<Remedy> {
    let cap = Caps::name(probe.cap.unwrap_or(Caps::SYS_ADMIN));
    match restriction {
        Restriction::Seccomp => Some(Remedy {
            text: "let the outer container's filter allow it (in its config.json)".into(),
            commands: vec![format!(
                "linux.seccomp.syscalls: {{\"names\": [{}], \"action\": \"SCMP_ACT_ALLOW\"}}",
                probe
                    .calls
                    .iter()
                    .map(|call| format!("\"{call}\""))
                    .collect::<Vec<_>>()
                    .join(", ")
            )],
        }),
        Restriction::MaskedProc => remedy(
            "show the outer container all of /proc and /sys (in its config.json)",
            &["linux.maskedPaths: []", "linux.readonlyPaths: []"],
        ),
        Restriction::NoCaps => Some(Remedy {
            text: "give the outer container the capability (in its config.json)".into(),
            commands: vec![format!(
                "process.capabilities.bounding, effective, permitted: \"{cap}\""
            )],
        }),
        Restriction::Apparmor => remedy(
            "give the outer container no AppArmor profile (in its config.json)",
            &["process.apparmorProfile: \"unconfined\""],
        ),
        Restriction::Selinux => remedy(
            "give the outer container a label that may (in its config.json)",
            &["process.selinuxLabel: \"system_u:system_r:spc_t:s0\""],
        ),
        _ => None,
    }
}
