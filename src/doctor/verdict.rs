//! Pure: from facts and answers to mode, restrictions, and what each refusal means.

use super::calls::ASKED;
use super::remedy::{self, Remedy};
use super::table::{self, Chain, Probe, Weight};
use crate::host::facts::SandboxKind;
use crate::host::{Answer, Caps, Facts, Host, Outcome, Probed, Restriction, Sandboxing};

/// What a probe's answer means for containers on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It works.
    Works,
    /// It is lost, and containers ask for it.
    Lost,
    /// It is not to be had, and a container of this kind does without it or has a full replacement.
    Without,
    /// It was not tried, or there is nothing to try.
    Nothing,
}

/// One line of the report.
#[derive(Debug)]
pub struct Finding<'a> {
    /// The probe's whole name.
    pub name: String,
    /// Its row in the table.
    pub probe: &'static Probe,
    /// The chain that it is a step of.
    pub chain: Chain,
    /// What was answered.
    pub outcome: &'a Outcome,
    /// What that means.
    pub meaning: Meaning,
    /// What refuses it, where a name is known for that.
    pub restriction: Option<Restriction>,
    /// Why, in words.
    pub why: String,
    /// What repairs it.
    pub remedy: Option<Remedy>,
}

/// What is made of facts and answers.
#[derive(Debug)]
pub struct Verdict<'a> {
    /// How much of a sandbox can be had.
    pub mode: Sandboxing,
    /// What is in the way, in the order of the steps.
    pub restrictions: Vec<Restriction>,
    /// Every answer, in the order of the table.
    pub findings: Vec<Finding<'a>>,
}

impl Verdict<'_> {
    /// The first step that is lost: of the kind of container that the caller makes, an essential one first.
    pub fn first(&self) -> Option<&Finding<'_>> {
        let lost = |weight: fn(Weight) -> bool| {
            self.findings.iter().find(move |finding| {
                finding.meaning == Meaning::Lost && weight(finding.probe.weight)
            })
        };
        match self.mode {
            Sandboxing::Disabled => lost(|weight| weight == Weight::Essential),
            _ => lost(|_| true),
        }
    }
}

/// Judges what was found on `host`.
pub fn judge<'a>(host: &Host, probed: &'a Probed) -> Verdict<'a> {
    let judge = Judge {
        host,
        facts: &probed.facts,
        probed,
    };
    let mut findings = Vec::new();
    for name in table::names() {
        if let Some(outcome) = probed.probes.get(&name)
            && let Some((chain, probe)) = table::find(&name)
        {
            findings.push(judge.finding(name, chain, probe, outcome));
        }
    }
    let possible = |chain: Chain| {
        let mut steps = findings.iter().filter(|finding| finding.chain == chain);
        let essential = |finding: &Finding<'_>| {
            finding.probe.weight != Weight::Essential || finding.outcome.is_ok()
        };
        let tried = findings.iter().any(|finding| finding.chain == chain);
        tried && steps.all(essential)
    };
    // The filter and no_new_privs belong to every container: there is no level that does without.
    let container = possible(Chain::Common) && (possible(Chain::Root) || possible(Chain::User));
    let wsl1 = probed.facts.surroundings.wsl == Some(1);
    let lost = findings
        .iter()
        .any(|finding| finding.meaning == Meaning::Lost);
    let mode = match (container && !wsl1, lost) {
        (false, _) => Sandboxing::Disabled,
        (true, true) => Sandboxing::Degraded,
        (true, false) => Sandboxing::Full,
    };
    let mut restrictions = Vec::new();
    let lost = findings
        .iter()
        .filter(|finding| finding.meaning == Meaning::Lost);
    // What makes containers impossible is named before what takes something away.
    let (first, then): (Vec<_>, Vec<_>) =
        lost.partition(|finding| finding.probe.weight == Weight::Essential);
    for restriction in first
        .iter()
        .chain(&then)
        .filter_map(|found| found.restriction)
    {
        if !restrictions.contains(&restriction) {
            restrictions.push(restriction);
        }
    }
    Verdict {
        mode,
        restrictions,
        findings,
    }
}

struct Judge<'a> {
    host: &'a Host,
    facts: &'a Facts,
    probed: &'a Probed,
}

impl Judge<'_> {
    fn finding<'o>(
        &self,
        name: String,
        chain: Chain,
        probe: &'static Probe,
        outcome: &'o Outcome,
    ) -> Finding<'o> {
        let meaning = match outcome.result {
            Answer::Ok => Meaning::Works,
            Answer::Skipped | Answer::Absent => Meaning::Nothing,
            _ if self.does_without(chain, probe) => Meaning::Without,
            _ => Meaning::Lost,
        };
        let (restriction, why) = match (meaning, self.normal(chain, probe)) {
            (Meaning::Works | Meaning::Nothing, _) => (None, String::new()),
            (Meaning::Without, Some(why)) => (None, why.to_string()),
            _ => self.cause(chain, probe, outcome),
        };
        let remedy = match meaning {
            Meaning::Lost => remedy::of(self.host, self.facts, probe, restriction),
            _ => None,
        };
        Finding {
            name,
            probe,
            chain,
            outcome,
            meaning,
            restriction,
            why,
            remedy,
        }
    }

    /// Whether a container of this kind does without this step.
    fn does_without(&self, chain: Chain, probe: &Probe) -> bool {
        if probe.weight == Weight::Extra {
            return true;
        }
        let in_user_namespace = chain == Chain::User || self.host.user_namespace;
        match probe.id {
            // Bound nodes are the rule there.
            "mknod" => in_user_namespace,
            // Without privileges nobody expects more than one has.
            "limit.rlimit" | "limit.oom_score_adj" => !self.host.is_real_root(),
            // The user's systemd makes the cgroup (--systemd-cgroup).
            "cgroup.create" => self.delegates(&["memory", "pids", "cpu"]),
            _ => false,
        }
    }

    /// Why it is refused wherever a container of this kind is made.
    fn normal(&self, chain: Chain, probe: &Probe) -> Option<&'static str> {
        let in_user_namespace = chain == Chain::User || self.host.user_namespace;
        match probe.id {
            "mknod" if in_user_namespace => {
                Some("a user namespace makes none; the host's are bound")
            }
            "idmap-root" if in_user_namespace => {
                Some("the file system of / belongs to another user namespace")
            }
            "limit.rlimit" | "limit.oom_score_adj" if !self.host.is_real_root() => {
                Some("that takes CAP_SYS_RESOURCE in the initial user namespace")
            }
            "cgroup.create" => Some("the user's systemd makes it (--systemd-cgroup)"),
            _ => None,
        }
    }

    fn delegates(&self, wanted: &[&str]) -> bool {
        let outcome = self.probed.probes.get("cgroup.delegated");
        outcome.is_some_and(|outcome| {
            let has: Vec<&str> = outcome.detail.split_whitespace().collect();
            wanted.iter().all(|name| has.contains(name))
        })
    }

    /// What refuses a step, and why, from what is known.
    fn cause(
        &self,
        chain: Chain,
        probe: &Probe,
        outcome: &Outcome,
    ) -> (Option<Restriction>, String) {
        if outcome.result == Answer::Crashed {
            return self.crash(outcome);
        }
        let errno = outcome.errno.unwrap_or(0);
        match probe.id {
            "map-range" => return (None, self.no_range(outcome)),
            "landlock" => return (None, outcome.detail.clone()),
            // A program for the kernel or a file of v1: refused as other calls are.
            "cgroup.devices" => {}
            id if id.starts_with("cgroup.") => return (None, self.no_cgroup(probe)),
            "shm" if errno == libc::ENOENT => return (None, "there is no /dev/shm".into()),
            "proc" | "sysfs" if [libc::EPERM, libc::EACCES].contains(&errno) => {
                if let Some(why) = self.masked(chain, probe) {
                    return (Some(Restriction::MaskedProc), why);
                }
            }
            _ => {}
        }
        match errno {
            libc::ENOSPC | libc::EUSERS | libc::EDQUOT => self.used_up(probe),
            libc::EPERM | libc::EACCES => self.denied(chain, probe, errno),
            libc::ENOSYS | libc::EINVAL | libc::ENODEV | libc::EOPNOTSUPP => self.lacking(probe),
            _ => (Some(Restriction::Unknown), String::new()),
        }
    }

    fn crash(&self, outcome: &Outcome) -> (Option<Restriction>, String) {
        match outcome.detail.contains("SIGSYS") {
            true => (
                Some(Restriction::Seccomp),
                "a filter for system calls kills whoever tries it".into(),
            ),
            false => (
                Some(Restriction::Unknown),
                format!("the process that tried it was {}", outcome.detail),
            ),
        }
    }

    /// ENOSPC and the like: a number that is used up, or 0.
    fn used_up(&self, probe: &Probe) -> (Option<Restriction>, String) {
        let Some(name) = probe.sysctl else {
            return (Some(Restriction::Unknown), String::new());
        };
        let why = match self.facts.sysctl(name) {
            Some("0") => format!("{name} is 0"),
            Some(value) => format!(
                "the limit is reached: {name} is {value} here, and may be lower in a user namespace \
                 above; user namespaces nest 32 deep"
            ),
            None => format!("{name} is reached"),
        };
        (Some(Restriction::Sysctl), why)
    }

    /// EPERM and EACCES: whoever can be shown to refuse it, the surest first.
    fn denied(&self, chain: Chain, probe: &Probe, errno: i32) -> (Option<Restriction>, String) {
        let facts = self.facts;
        let privileged = self.host.is_real_root() && facts.effective.has(Caps::SYS_ADMIN);
        let userns = chain == Chain::User;
        if probe.id == "create"
            && facts.sysctl("kernel.unprivileged_userns_clone") == Some("0")
            && !privileged
        {
            let why = "kernel.unprivileged_userns_clone is 0: only root makes user namespaces";
            return (Some(Restriction::Sysctl), why.into());
        }
        // Without the capability the kernel itself refuses, whatever a filter would say. In a new user
        // namespace all are there; its map is written from outside.
        let needs = !userns || probe.id == "map" && self.host.euid == 0;
        if needs && let Some(cap) = probe.cap.filter(|cap| !facts.effective.has(*cap)) {
            let why = format!("isorun runs without {}", Caps::name(cap));
            return (Some(Restriction::NoCaps), why);
        }
        if let Some((call, answer)) = self.filtered(probe) {
            let why = format!(
                "a filter for system calls is in force, and {call} answers {answer} where the kernel would not"
            );
            return (Some(Restriction::Seccomp), why);
        }
        if userns && facts.apparmor_restricts() && !privileged {
            let why = "kernel.apparmor_restrict_unprivileged_userns is 1: whoever makes a user namespace \
                       without a profile that allows it has no capabilities in it";
            return (Some(Restriction::Apparmor), why.into());
        }
        if facts.apparmor_confines() {
            let label = facts.apparmor.as_deref().unwrap_or_default();
            let why = format!("isorun runs under the AppArmor profile {label}");
            return (Some(Restriction::Apparmor), why);
        }
        if errno == libc::EACCES && facts.selinux_enforcing == Some(true) {
            let why = "SELinux is enforcing: see ausearch -m avc -ts recent";
            return (Some(Restriction::Selinux), why.into());
        }
        if facts.kernel.contains("hardened") || facts.kernel.contains("grsec") {
            let why = format!("the kernel {} is a hardened one", facts.kernel);
            return (Some(Restriction::Hardened), why);
        }
        if facts.seccomp == 2 {
            let why =
                "a filter for system calls is in force, and nothing else is known to refuse it";
            return (Some(Restriction::Seccomp), why.into());
        }
        let why = match probe.id {
            "create" => "the kernel refuses user namespaces in a chroot, too",
            "mknod" => "the device rules of isorun's own cgroup may refuse it",
            _ => "",
        };
        (Some(Restriction::Unknown), why.into())
    }

    /// A call of `probe` that is answered in the kernel's place, with the answer.
    fn filtered(&self, probe: &Probe) -> Option<(&'static str, String)> {
        let said = |call: &&'static str| {
            let outcome = self.probed.probes.get(&format!("{ASKED}.{call}"))?;
            match outcome.result {
                // A kernel that is too old for the call says so itself.
                Answer::Failed if outcome.errno == Some(libc::ENOSYS) && self.is_too_old(call) => {
                    None
                }
                Answer::Failed => Some((*call, errno_name(outcome.errno?))),
                Answer::Crashed => Some((*call, "by a signal".into())),
                _ => None,
            }
        };
        // clone cannot be asked without doing it; whoever denies namespaces to it denies unshare, too.
        probe.calls.iter().find_map(said)
    }

    fn is_too_old(&self, call: &str) -> bool {
        let version = self.facts.version();
        version.is_some_and(|version| version < crate::sys::ask::since(call))
    }

    fn lacking(&self, probe: &Probe) -> (Option<Restriction>, String) {
        match self.filtered(probe) {
            Some((call, answer)) => (
                Some(Restriction::Seccomp),
                format!("a filter for system calls is in force, and {call} answers {answer}"),
            ),
            None => (
                (probe.weight != Weight::Extra).then_some(Restriction::Unknown),
                format!("the kernel {} lacks it", self.facts.kernel),
            ),
        }
    }

    /// Why a user namespace gets no /proc or /sys of its own.
    fn masked(&self, chain: Chain, probe: &Probe) -> Option<String> {
        let covered = match probe.id {
            "proc" => &self.facts.covered_proc,
            _ => &self.facts.covered_sys,
        };
        let in_user_namespace = chain == Chain::User || self.host.user_namespace;
        let first = covered.first().filter(|_| in_user_namespace)?;
        let more = match covered.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        Some(format!(
            "{first}{more} is covered by a mount, and a user namespace gets no new one that would show it"
        ))
    }

    fn no_range(&self, outcome: &Outcome) -> String {
        let ids = self.facts.subids.clone().unwrap_or_default();
        match () {
            () if ids.uids.is_empty() || ids.gids.is_empty() => format!(
                "{} has no range in {}",
                ids.user,
                if ids.uids.is_empty() {
                    "/etc/subuid"
                } else {
                    "/etc/subgid"
                }
            ),
            () if !ids.helpers => "newuidmap and newgidmap are not installed".into(),
            () => outcome.detail.clone(),
        }
    }

    fn no_cgroup(&self, probe: &Probe) -> String {
        match probe.id {
            "cgroup.create" if self.host.is_real_root() => {
                if self.facts.surroundings.kind == SandboxKind::None {
                    "no cgroup can be made".into()
                } else {
                    "cgroups are read-only in this container".into()
                }
            }
            "cgroup.create" => "no cgroup is delegated to this user".into(),
            id => {
                let name = id.trim_start_matches("cgroup.");
                match remedy::lack(self.host, self.facts, name) {
                    remedy::Lack::HeldByV1 => "a v1 hierarchy that is not mounted here holds it",
                    remedy::Lack::Disabled => "the controller was turned off at boot",
                    remedy::Lack::NotEnabled => "the first cgroup does not hand the controller on",
                    remedy::Lack::NotHandedOn => "the controller is not handed on to here",
                }
                .into()
            }
        }
    }
}

/// The name of an errno, as EPERM.
pub fn errno_name(errno: i32) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno))
}
