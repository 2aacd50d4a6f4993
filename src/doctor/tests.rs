//! The verdict on platforms that are not this machine: facts and answers by hand, from what is published
//! about each (docs/doctor.md has the sources).

mod calls;
mod gpu;
mod user;

use std::collections::BTreeMap;

use super::verdict::{Meaning, judge};
use super::{report, table};
use crate::cgroup::{Hierarchies, V2Hierarchy};
use crate::host::facts::{Distro, SandboxKind, SubIds, Surroundings};
use crate::host::{Answer, Caps, Facts, Host, Outcome, Probed, Restriction, Sandboxing};

const ALL: Caps = Caps(0x1ff_ffff_ffff);
/// Docker's default set: no CAP_SYS_ADMIN, but CAP_MKNOD.
const DOCKER: Caps = Caps(0xa804_25fb);

const EPERM: i32 = libc::EPERM;
const EACCES: i32 = libc::EACCES;
const ENOSPC: i32 = libc::ENOSPC;

/// A machine where everything works, and what a platform changes.
struct Machine {
    host: Host,
    probed: Probed,
}

impl Machine {
    fn root() -> Self {
        let host = Host {
            version: crate::host::FORM,
            euid: 0,
            caps: Some(ALL),
            user_namespace: false,
            setgroups_denied: false,
            uid_map: Vec::new(),
            gid_map: Vec::new(),
            cgroups: Hierarchies::none(),
            systemd: None,
            lsm: crate::host::Lsm::default(),
            landlock: 0,
            channels: None,
            gpu: None,
            probed: None,
        };
        let facts = Facts {
            kernel: "6.8.0-51-generic".into(),
            distro: Distro {
                id: "ubuntu".into(),
                version: "24.04".into(),
                name: "Ubuntu 24.04".into(),
            },
            effective: ALL,
            bounding: ALL,
            sysctls: BTreeMap::from([("user.max_user_namespaces".to_string(), "63000".into())]),
            ..Facts::default()
        };
        let ok = |name: String| (name, Outcome::ok(""));
        Self {
            host,
            probed: Probed {
                mode: Sandboxing::Full,
                restrictions: Vec::new(),
                facts,
                probes: table::names().map(ok).collect(),
            },
        }
    }

    fn user() -> Self {
        let mut machine = Self::root();
        machine.host.euid = 1000;
        machine
            .probed
            .probes
            .retain(|name, _| !name.starts_with("root."));
        machine.probed.facts.effective = Caps(0);
        machine.probed.facts.subids = Some(SubIds {
            user: "ann".into(),
            uids: vec![(100_000, 65536)],
            gids: vec![(100_000, 65536)],
            free: 165_536,
            helpers: true,
        });
        for normal in ["limit.rlimit", "limit.oom_score_adj", "user.mknod"] {
            machine.fails(normal, EPERM);
        }
        machine
    }

    fn inside(mut self, kind: SandboxKind) -> Self {
        self.probed.facts.surroundings = Surroundings {
            kind,
            evidence: vec!["by hand".into()],
            wsl: None,
        };
        self
    }

    fn fails(&mut self, name: &str, errno: i32) -> &mut Self {
        let outcome = Outcome::failed(errno, format!("step of {name}"));
        self.probed.probes.insert(name.into(), outcome);
        self
    }

    /// A step that fails, and those after it that are not tried.
    fn breaks(&mut self, chain: &str, name: &str, errno: i32) -> &mut Self {
        self.fails(&format!("{chain}.{name}"), errno);
        let steps: Vec<_> = table::STEPS.iter().map(|step| step.id).collect();
        let at = steps.iter().position(|step| *step == name).unwrap();
        for later in steps[at + 1..].iter().chain([&"time"]) {
            let skipped = Outcome::other(Answer::Skipped, format!("needs {chain}.{name}"));
            self.probed
                .probes
                .insert(format!("{chain}.{later}"), skipped);
        }
        self
    }

    fn sysctl(&mut self, name: &str, value: &str) -> &mut Self {
        self.probed.facts.sysctls.insert(name.into(), value.into());
        self
    }

    /// mode, restrictions, first failing step, all remedies in one text.
    fn judged(&self) -> (Sandboxing, Vec<Restriction>, String, String) {
        let verdict = judge(&self.host, &self.probed);
        let first = verdict
            .first()
            .map(|one| one.name.clone())
            .unwrap_or_default();
        let remedies: Vec<String> = verdict
            .findings
            .iter()
            .filter_map(|finding| finding.remedy.as_ref())
            .map(|remedy| format!("{}: {}", remedy.text, remedy.commands.join("; ")))
            .collect();
        (
            verdict.mode,
            verdict.restrictions,
            first,
            remedies.join("\n"),
        )
    }
}

fn check(
    platform: &str,
    machine: &Machine,
    mode: Sandboxing,
    restrictions: &[Restriction],
    first: &str,
    remedies: &[&str],
) {
    let (got_mode, got, got_first, text) = machine.judged();
    assert_eq!(got_mode, mode, "{platform}");
    assert_eq!(got, restrictions, "{platform}");
    assert_eq!(got_first, first, "{platform}");
    for remedy in remedies {
        assert!(
            text.contains(remedy),
            "{platform}: {remedy} is not in\n{text}"
        );
    }
}

use Restriction::{Apparmor, Hardened, MaskedProc, NoCaps, Seccomp, Selinux, Sysctl, Unknown};
use Sandboxing::{Degraded, Disabled, Full};

#[test]
fn machines_without_a_restriction() {
    check("root", &Machine::root(), Full, &[], "", &[]);
    check("user", &Machine::user(), Full, &[], "", &[]);
}

#[test]
fn ubuntu_24_04_as_a_user() {
    let mut machine = Machine::user();
    machine
        .sysctl("kernel.apparmor_restrict_unprivileged_userns", "1")
        .breaks("user", "private", EACCES);
    machine.probed.facts.apparmor = Some("unconfined".into());
    let remedies = [
        "isorun doctor --apparmor-profile | sudo tee /etc/apparmor.d/isorun",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ];
    check(
        "mount denied",
        &machine,
        Disabled,
        &[Apparmor],
        "user.private",
        &remedies,
    );

    // Without the profile unprivileged_userns, the namespace itself is denied.
    let mut machine = Machine::user();
    machine
        .sysctl("kernel.apparmor_restrict_unprivileged_userns", "1")
        .breaks("user", "create", EACCES);
    check(
        "create denied",
        &machine,
        Disabled,
        &[Apparmor],
        "user.create",
        &remedies,
    );

    // Root is not restricted, and a profile with userns makes it as before.
    let mut machine = Machine::root();
    machine.sysctl("kernel.apparmor_restrict_unprivileged_userns", "1");
    check("root", &machine, Full, &[], "", &[]);
}

#[test]
fn parameters_of_the_kernel() {
    let mut debian = Machine::user();
    debian
        .sysctl("kernel.unprivileged_userns_clone", "0")
        .breaks("user", "create", EPERM);
    let remedy = "sudo sysctl -w kernel.unprivileged_userns_clone=1";
    check(
        "Debian",
        &debian,
        Disabled,
        &[Sysctl],
        "user.create",
        &[remedy],
    );

    let mut rhel = Machine::user();
    rhel.sysctl("user.max_user_namespaces", "0")
        .breaks("user", "create", ENOSPC);
    let remedies = [
        "sudo sysctl -w user.max_user_namespaces=15000",
        "tee /etc/sysctl.d/90-isorun.conf",
    ];
    check(
        "RHEL, user",
        &rhel,
        Disabled,
        &[Sysctl],
        "user.create",
        &remedies,
    );

    let mut rhel = Machine::root();
    rhel.sysctl("user.max_user_namespaces", "0")
        .breaks("user", "create", ENOSPC);
    check(
        "RHEL, root",
        &rhel,
        Degraded,
        &[Sysctl],
        "user.create",
        &remedies,
    );

    let mut keys = Machine::root();
    keys.fails("keyring", libc::EDQUOT);
    let remedy = "kernel.keys.maxkeys=20000";
    check("keys", &keys, Degraded, &[Sysctl], "keyring", &[remedy]);
}

#[test]
fn inside_dockers_default_container() {
    let mut machine = Machine::root().inside(SandboxKind::Docker);
    machine.probed.facts.effective = DOCKER;
    machine.probed.facts.seccomp = 2;
    machine.probed.facts.apparmor = Some("docker-default (enforce)".into());
    machine
        .fails("call.unshare", EPERM)
        .fails("call.mount", EPERM);
    machine
        .breaks("root", "mount", EPERM)
        .breaks("user", "create", EPERM);
    machine.fails("limit.rlimit", EPERM);
    let remedies = [
        "docker run --cap-add SYS_ADMIN --security-opt apparmor=unconfined --security-opt seccomp=unconfined",
        "docker run --security-opt seccomp=unconfined",
        "docker run --cap-add SYS_RESOURCE",
    ];
    check(
        "default",
        &machine,
        Disabled,
        &[NoCaps, Seccomp],
        "root.mount",
        &remedies,
    );

    // --cap-add SYS_ADMIN: docker-default still denies mount, and the filter pivot_root.
    let mut machine = Machine::root().inside(SandboxKind::Docker);
    machine.probed.facts.effective = Caps(DOCKER.0 | 1 << Caps::SYS_ADMIN);
    machine.probed.facts.seccomp = 2;
    machine.probed.facts.apparmor = Some("docker-default (enforce)".into());
    machine
        .fails("call.pivot_root", EPERM)
        .fails("root.private", EACCES)
        .fails("root.tmpfs", EACCES)
        .fails("root.bind", EACCES)
        .fails("root.pivot_root", EPERM);
    let remedies = [
        "--security-opt apparmor=unconfined",
        "--security-opt seccomp=unconfined",
    ];
    machine
        .probed
        .probes
        .retain(|name, _| !name.starts_with("user."));
    check(
        "SYS_ADMIN",
        &machine,
        Disabled,
        &[Apparmor, Seccomp],
        "root.private",
        &remedies,
    );
}

#[test]
fn masked_proc() {
    for (kind, remedy) in [
        (
            SandboxKind::Docker,
            "docker run --security-opt systempaths=unconfined",
        ),
        (SandboxKind::Podman, "podman run --security-opt unmask=ALL"),
        (SandboxKind::Kubernetes, "procMount: Unmasked"),
        (SandboxKind::Container, "linux.maskedPaths: []"),
    ] {
        let mut machine = Machine::root().inside(kind);
        machine.probed.facts.covered_proc = vec!["/proc/kcore".into(), "/proc/keys".into()];
        machine.probed.facts.covered_sys = vec!["/sys/firmware".into()];
        machine.fails("user.proc", EPERM).fails("user.sysfs", EPERM);
        check(
            "masked",
            &machine,
            Degraded,
            &[MaskedProc],
            "user.proc",
            &[remedy],
        );
        let verdict = judge(&machine.host, &machine.probed);
        let proc = verdict
            .findings
            .iter()
            .find(|one| one.name == "user.proc")
            .unwrap();
        assert!(
            proc.why.starts_with("/proc/kcore and 1 more is covered"),
            "{}",
            proc.why
        );
    }
}

#[test]
fn security_modules_and_kernels() {
    let mut fedora = Machine::user();
    fedora.probed.facts.selinux_enforcing = Some(true);
    fedora.breaks("user", "create", EACCES);
    check(
        "SELinux",
        &fedora,
        Disabled,
        &[Selinux],
        "user.create",
        &["audit2allow"],
    );

    let mut arch = Machine::user();
    arch.probed.facts.kernel = "6.9.7-hardened1-1-hardened".into();
    arch.breaks("user", "create", EPERM);
    check(
        "Arch",
        &arch,
        Disabled,
        &[Hardened],
        "user.create",
        &["linux-hardened"],
    );

    let mut strange = Machine::user();
    strange.breaks("user", "create", EPERM);
    check(
        "nothing known",
        &strange,
        Disabled,
        &[Unknown],
        "user.create",
        &[],
    );
}

#[test]
fn root_without_the_right_to_map_itself() {
    let mut machine = Machine::root().inside(SandboxKind::Container);
    machine.probed.facts.effective = Caps(0);
    machine
        .breaks("root", "mount", EPERM)
        .breaks("user", "map", EPERM);
    let remedies = ["\"CAP_SYS_ADMIN\"", "\"CAP_SETFCAP\""];
    check(
        "no capability",
        &machine,
        Disabled,
        &[NoCaps],
        "root.mount",
        &remedies,
    );
}

#[test]
fn windows() {
    let mut one = Machine::user();
    one.probed.facts.surroundings.wsl = Some(1);
    one.breaks("user", "create", libc::EINVAL);
    let remedy = "wsl --set-version <distribution> 2";
    check("WSL1", &one, Disabled, &[Unknown], "user.create", &[remedy]);
    let mut two = Machine::user();
    two.probed.facts.surroundings.wsl = Some(2);
    check("WSL2", &two, Full, &[], "", &[]);
}

#[test]
fn a_filter_that_kills() {
    let mut machine = Machine::root().inside(SandboxKind::Kubernetes);
    machine.probed.facts.seccomp = 2;
    let killed = Outcome::other(Answer::Crashed, "ended by SIGSYS");
    machine
        .probed
        .probes
        .insert("root.pivot_root".into(), killed.clone());
    machine
        .probed
        .probes
        .insert("user.pivot_root".into(), killed);
    let remedy = "seccompProfile: {type: Unconfined}";
    check(
        "SIGSYS",
        &machine,
        Disabled,
        &[Seccomp],
        "root.pivot_root",
        &[remedy],
    );
}

#[test]
fn a_container_in_a_user_namespace_is_a_container() {
    // Root without capabilities, where user namespaces are allowed: as in Podman's default container.
    let mut machine = Machine::root().inside(SandboxKind::Podman);
    machine.probed.facts.effective = Caps(0);
    machine.breaks("root", "mount", EPERM);
    let remedy = "podman run --cap-add SYS_ADMIN";
    check(
        "Podman",
        &machine,
        Degraded,
        &[NoCaps],
        "root.mount",
        &[remedy],
    );
}

#[test]
fn controllers() {
    type Change = fn(&mut Machine);
    let rows: [(Change, &str); 4] = [
        (
            |machine| machine.probed.facts.held_by_v1 = vec!["memory".into()],
            "cgroup_no_v1=all",
        ),
        (
            |machine| machine.probed.facts.disabled_controllers = vec!["memory".into()],
            "cgroup_enable=memory",
        ),
        (
            |machine| {
                machine.host.cgroups.v2 = Some(V2Hierarchy {
                    mount: "/sys/fs/cgroup".into(),
                    own: "/".into(),
                    controllers: Some(vec!["cpu".into(), "memory".into()]),
                });
            },
            "echo +memory | sudo tee /sys/fs/cgroup/cgroup.subtree_control",
        ),
        (|_| {}, "CONFIG_(MEMCG|"),
    ];
    for (change, remedy) in rows {
        let mut machine = Machine::root();
        machine.fails("cgroup.memory", libc::ENOENT);
        change(&mut machine);
        check(
            "memory",
            &machine,
            Degraded,
            &[],
            "cgroup.memory",
            &[remedy],
        );
    }
    let mut machine = Machine::root().inside(SandboxKind::Docker);
    machine.fails("cgroup.create", libc::EROFS);
    let remedy = "docker run --privileged";
    check(
        "read-only",
        &machine,
        Degraded,
        &[],
        "cgroup.create",
        &[remedy],
    );
}

#[test]
fn the_filter_itself_is_essential() {
    let mut machine = Machine::root();
    machine.fails("seccomp.filter", libc::EINVAL);
    let (mode, _, first, _) = machine.judged();
    assert_eq!((mode, first.as_str()), (Disabled, "seccomp.filter"));
}

#[test]
fn table_and_json_say_the_same() {
    let mut machine = Machine::user();
    machine
        .sysctl("user.max_user_namespaces", "0")
        .breaks("user", "create", ENOSPC);
    let verdict = judge(&machine.host, &machine.probed);
    let text = report::text(
        &machine.host,
        &machine.probed,
        &verdict,
        report::Colour::Never,
    );
    for words in [
        "DISABLED: no container can be made. Restriction: SYSCTL",
        "LOST  user namespace: ENOSPC; step of user.create; user.max_user_namespaces is 0 [SYSCTL]",
        "First failing step: user namespace (user.create): ENOSPC; ",
        "sudo sysctl -w user.max_user_namespaces=15000",
        "as user 1000",
    ] {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
    assert!(!text.contains('\x1b'));
    let colours = report::text(
        &machine.host,
        &machine.probed,
        &verdict,
        report::Colour::Always,
    );
    assert!(colours.contains("\x1b[31mDISABLED\x1b[0m"));
    let json = report::json(&machine.host, &machine.probed, &verdict).unwrap();
    assert_eq!(json["mode"], "DISABLED");
    assert_eq!(json["restriction"], "SYSCTL");
    assert_eq!(json["firstFailure"]["name"], "user.create");
    assert_eq!(json["firstFailure"]["errno"], "ENOSPC");
    let commands = &json["firstFailure"]["remedy"]["commands"];
    assert_eq!(commands[0], "sudo sysctl -w user.max_user_namespaces=15000");
    assert_eq!(json["version"], 1);
    assert_eq!(json["host"]["euid"], 1000);
}
