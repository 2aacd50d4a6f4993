//! What is told: a table for people, JSON for programs. docs/doctor.md describes both.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Value, json};

use super::gpu;
use super::table::Chain;
use super::verdict::{Finding, Meaning, Verdict, errno_name};
use crate::cgroup::Mode;
use crate::host::facts::SandboxKind;
use crate::host::{Answer, Facts, Host, Probed, Restriction, Sandboxing};

/// The form of the JSON: it grows when something that is there changes its meaning.
const FORM: u32 = 1;

/// How the table looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Plain text.
    Never,
    /// With the terminal's colours (ECMA-48).
    Always,
}

impl Colour {
    fn paint(self, code: u8, text: &str) -> String {
        match self {
            Self::Never => text.to_string(),
            Self::Always => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

const GREEN: u8 = 32;
const RED: u8 = 31;
const YELLOW: u8 = 33;

/// The table.
pub fn text(host: &Host, probed: &Probed, verdict: &Verdict<'_>, colour: Colour) -> String {
    let mut text = String::new();
    let (code, meaning) = match verdict.mode {
        Sandboxing::Full => (GREEN, "containers can have all that they ask for"),
        Sandboxing::Degraded => (YELLOW, "containers can be made, and something is lost"),
        Sandboxing::Disabled => (RED, "no container can be made"),
    };
    let names: Vec<&str> = verdict.restrictions.iter().map(|one| one.name()).collect();
    let names = match names.is_empty() {
        true => Restriction::None.name().to_string(),
        false => names.join(", "),
    };
    let mode = colour.paint(code, verdict.mode.name());
    let _ = writeln!(text, "{mode}: {meaning}. Restriction: {names}\n");
    for (key, value) in about(host, &probed.facts) {
        let _ = writeln!(text, "{key:<12} {value}");
    }
    let gpu = gpu::lines(probed);
    if !gpu.is_empty() {
        let _ = writeln!(text, "\nGPU memory in channels");
        for line in gpu {
            let _ = writeln!(text, "  {line}");
        }
    }
    for (chain, title) in [
        (Chain::Root, "Containers of root"),
        (Chain::User, "Containers in a user namespace"),
        (Chain::Common, "What every container has"),
    ] {
        let list: Vec<_> = verdict
            .findings
            .iter()
            .filter(|finding| finding.chain == chain)
            .collect();
        if !list.is_empty() {
            let _ = writeln!(text, "\n{title}");
            section(&mut text, &list, colour);
        }
    }
    let lost: Vec<_> = verdict
        .findings
        .iter()
        .filter(|one| one.meaning == Meaning::Lost)
        .collect();
    if let Some(first) = verdict.first() {
        let (title, name) = (first.probe.title, &first.name);
        let _ = writeln!(
            text,
            "\nFirst failing step: {title} ({name}): {}",
            sentence(first)
        );
    }
    repairs(&mut text, &lost);
    text
}

/// The lines above the table.
fn about(host: &Host, facts: &Facts) -> Vec<(&'static str, String)> {
    let distro = match facts.distro.name.as_str() {
        "" => "an unknown distribution",
        name => name,
    };
    let caller = match (host.euid, host.user_namespace) {
        (0, false) => "root".to_string(),
        (0, true) => "root of a user namespace".to_string(),
        (uid, _) => format!("user {uid}"),
    };
    let inside = match facts.surroundings.kind {
        SandboxKind::None => String::new(),
        kind => format!(
            ", in a container ({kind:?}: {})",
            facts.surroundings.evidence.join(", ")
        ),
    };
    let wsl = facts
        .surroundings
        .wsl
        .map_or(String::new(), |version| format!(", WSL{version}"));
    let cgroups = match host.cgroups.mode {
        Mode::V2 => "v2",
        Mode::V1 => "v1",
        Mode::Hybrid => "v1 and v2 (hybrid)",
        Mode::None => "none mounted",
    };
    let mut modules = Vec::new();
    if let Some(label) = &facts.apparmor {
        modules.push(format!("AppArmor ({label})"));
    }
    match facts.selinux_enforcing {
        Some(true) => modules.push("SELinux (enforcing)".into()),
        Some(false) => modules.push("SELinux (permissive)".into()),
        None => {}
    }
    if modules.is_empty() {
        modules.push("no AppArmor, no SELinux".into());
    }
    let mut lines = vec![
        ("kernel", format!("Linux {}{wsl}, {distro}", facts.kernel)),
        ("isorun runs", format!("as {caller}{inside}")),
        ("cgroups", cgroups.into()),
        ("labels", modules.join(", ")),
        ("GPU", of_gpu(facts)),
    ];
    if facts.seccomp != 0 {
        lines.push((
            "filter",
            "isorun itself runs under a filter for system calls".into(),
        ));
    }
    lines
}

fn of_gpu(facts: &Facts) -> String {
    let gpu = &facts.gpu;
    if gpu.is_empty() {
        return "none: no device nodes, no driver, no CDI files".into();
    }
    let mut parts = vec![match gpu.nodes.is_empty() {
        true => "no device nodes".to_string(),
        false => gpu.nodes.join(" "),
    }];
    if let Some(version) = &gpu.nvidia_driver {
        parts.push(format!("NVIDIA's driver {version}"));
    }
    for file in &gpu.cdi {
        parts.push(match file.kind.as_str() {
            "" => format!("{}: cannot be read as CDI", file.path),
            kind => format!("{}: {kind} {}", file.path, file.devices.join(" ")),
        });
    }
    if !gpu.imex_channels.is_empty() {
        parts.push(format!("{} IMEX channels", gpu.imex_channels.len()));
    }
    parts.join("; ")
}

/// Probes of which also what was found is told.
const SAID: [&str; 4] = ["landlock", "shm", "new.memfd", "cgroup.delegated"];

/// The lines of one section: what is lost and what is not to be had each on its own, the rest together.
fn section(text: &mut String, list: &[&Finding<'_>], colour: Colour) {
    let works: Vec<String> = list
        .iter()
        .filter(|one| one.meaning == Meaning::Works)
        .map(|one| match SAID.contains(&one.probe.id) {
            true => format!("{} ({})", one.probe.title, one.outcome.detail),
            false => one.probe.title.to_string(),
        })
        .collect();
    for (number, line) in wrapped(&works.join(", "), 90).iter().enumerate() {
        let mark = match number {
            0 => colour.paint(GREEN, "ok"),
            _ => "  ".into(),
        };
        let _ = writeln!(text, "  {mark}    {line}");
    }
    for finding in list {
        let (mark, code) = match finding.meaning {
            Meaning::Lost => ("LOST", RED),
            Meaning::Without => ("no  ", YELLOW),
            _ => continue,
        };
        let _ = writeln!(
            text,
            "  {}  {}: {}",
            colour.paint(code, mark),
            finding.probe.title,
            sentence(finding)
        );
    }
    let skipped: Vec<&str> = list
        .iter()
        .filter(|one| one.outcome.result == Answer::Skipped)
        .map(|one| one.probe.title)
        .collect();
    if !skipped.is_empty() {
        let line = format!("not tried: {}", skipped.join(", "));
        for (number, line) in wrapped(&line, 90).iter().enumerate() {
            let mark = if number == 0 { '-' } else { ' ' };
            let _ = writeln!(text, "  {mark}     {line}");
        }
    }
}

/// What was refused, with the errno, and why.
fn sentence(finding: &Finding<'_>) -> String {
    let outcome = finding.outcome;
    let mut text = String::new();
    if let Some(name) = outcome.errno.map(errno_name)
        && !outcome.detail.contains(&name)
    {
        text.push_str(&name);
    }
    for part in [outcome.detail.as_str(), finding.why.as_str()] {
        if !part.is_empty() && !text.contains(part) {
            if !text.is_empty() {
                text.push_str("; ");
            }
            text.push_str(part);
        }
    }
    let known = finding
        .restriction
        .filter(|one| finding.meaning == Meaning::Lost || *one != Restriction::Unknown);
    if let Some(restriction) = known {
        let _ = write!(text, " [{}]", restriction.name());
    }
    text
}

/// Each remedy once, with what it repairs.
fn repairs(text: &mut String, lost: &[&Finding<'_>]) {
    let mut told = Vec::new();
    for finding in lost {
        let Some(remedy) = &finding.remedy else {
            continue;
        };
        if told.contains(&remedy) {
            continue;
        }
        if told.is_empty() {
            text.push_str("\nRepair\n");
        }
        let what: Vec<&str> = lost
            .iter()
            .filter(|other| other.remedy.as_ref() == Some(remedy))
            .map(|other| other.probe.title)
            .collect();
        let head = format!("{}: {}", what.join(", "), remedy.text);
        for line in wrapped(&head, 96) {
            let _ = writeln!(text, "  {line}");
        }
        for command in &remedy.commands {
            let _ = writeln!(text, "      {command}");
        }
        told.push(remedy);
    }
}

/// Words in lines of at most `width` characters; none for an empty text.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    name: &'a str,
    title: &'a str,
    result: Answer,
    meaning: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    restriction: Option<Restriction>,
    #[serde(skip_serializing_if = "str::is_empty")]
    why: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a super::Remedy>,
}

fn line<'a>(finding: &'a Finding<'_>) -> Line<'a> {
    Line {
        name: &finding.name,
        title: finding.probe.title,
        result: finding.outcome.result,
        meaning: match finding.meaning {
            Meaning::Works => "works",
            Meaning::Lost => "lost",
            Meaning::Without => "without",
            Meaning::Nothing => "nothing",
        },
        errno: finding.outcome.errno.map(errno_name),
        detail: &finding.outcome.detail,
        restriction: finding.restriction,
        why: &finding.why,
        remedy: finding.remedy.as_ref(),
    }
}

/// The report as JSON.
///
/// # Errors
/// None that can happen: all keys are text.
pub fn json(host: &Host, probed: &Probed, verdict: &Verdict<'_>) -> serde_json::Result<Value> {
    let probes: Vec<_> = verdict.findings.iter().map(line).collect();
    let mut bare = host.clone();
    bare.probed = None;
    Ok(json!({
        "version": FORM,
        "isorun": env!("CARGO_PKG_VERSION"),
        "mode": verdict.mode,
        "restriction": verdict.restrictions.first().copied().unwrap_or(Restriction::None),
        "restrictions": verdict.restrictions,
        "firstFailure": verdict.first().map(line).map(serde_json::to_value).transpose()?,
        "host": bare,
        "facts": probed.facts,
        "probes": probes,
        "cudaIpc": gpu::transports(probed),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_wrapped_between_words() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("", 7), Vec::<String>::new());
        assert_eq!(wrapped("longerthanthis x", 4), ["longerthanthis", "x"]);
    }

    #[test]
    fn colours_are_asked_for() {
        assert_eq!(Colour::Never.paint(RED, "x"), "x");
        assert_eq!(Colour::Always.paint(RED, "x"), "\x1b[31mx\x1b[0m");
    }
}
