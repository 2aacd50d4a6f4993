//! What `isorun doctor` found out by trying, and what it makes of it: plain data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Facts;

/// How a probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The step works.
    Ok,
    /// The step was refused.
    Failed,
    /// It was not tried, because a step before it failed; the detail names that.
    Skipped,
    /// The process that tried it was killed by a signal, or ended without a word.
    Crashed,
    /// It did not come to an end in time.
    Hung,
    /// What it is about is not there: no file, no kernel feature that a container would miss.
    Absent,
}

/// The answer to one probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub result: Answer,
    /// Why it was refused: the number of the errno.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// What was done, or what was found; of a failure the very call.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Outcome {
    /// It works.
    pub fn ok(detail: impl Into<String>) -> Self {
        Self {
            result: Answer::Ok,
            errno: None,
            detail: detail.into(),
        }
    }

    /// It was refused with `errno` at the step that `detail` names.
    pub fn failed(errno: i32, detail: impl Into<String>) -> Self {
        Self {
            result: Answer::Failed,
            errno: Some(errno),
            detail: detail.into(),
        }
    }

    /// Another answer, without an errno.
    pub fn other(result: Answer, detail: impl Into<String>) -> Self {
        Self {
            result,
            errno: None,
            detail: detail.into(),
        }
    }

    /// Whether the step works.
    pub fn is_ok(&self) -> bool {
        self.result == Answer::Ok
    }
}

/// What keeps a container from being made as it should be. The names are those that people know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Restriction {
    /// Nothing.
    None,
    /// AppArmor: Ubuntu's rule for unprivileged user namespaces, or the profile that isorun runs under.
    Apparmor,
    /// A kernel parameter: user.max_*_namespaces, kernel.unprivileged_userns_clone and the like.
    Sysctl,
    /// A filter for system calls that isorun runs under.
    Seccomp,
    /// SELinux's policy.
    Selinux,
    /// Parts of /proc are covered, so that no user namespace gets a new one.
    MaskedProc,
    /// isorun is root without the capabilities.
    NoCaps,
    /// A kernel that was hardened (linux-hardened, grsecurity).
    Hardened,
    /// Something is refused, and nothing that is known tells why.
    Unknown,
}

impl Restriction {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Apparmor => "APPARMOR",
            Self::Sysctl => "SYSCTL",
            Self::Seccomp => "SECCOMP",
            Self::Selinux => "SELINUX",
            Self::MaskedProc => "MASKED_PROC",
            Self::NoCaps => "NO_CAPS",
            Self::Hardened => "HARDENED",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// How much of a sandbox can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Sandboxing {
    /// All that a container asks for.
    Full,
    /// Containers can be made, and something that they may ask for is lost.
    Degraded,
    /// No container can be made.
    Disabled,
}

impl Sandboxing {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Degraded => "DEGRADED",
            Self::Disabled => "DISABLED",
        }
    }
}

/// The facts that cost something to find out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probed {
    /// How much of a sandbox can be had.
    pub mode: Sandboxing,
    /// What is in the way, that of the first failing step first; empty where nothing is.
    pub restrictions: Vec<Restriction>,
    /// What is known without trying.
    pub facts: Facts,
    /// What was tried: the answer by the probe's name. docs/doctor.md lists them.
    pub probes: BTreeMap<String, Outcome>,
}

impl Probed {
    /// The restriction model: the first one, or NONE.
    pub fn restriction(&self) -> Restriction {
        self.restrictions
            .first()
            .copied()
            .unwrap_or(Restriction::None)
    }

    /// Whether this probe's step works; not known is no.
    pub fn works(&self, probe: &str) -> bool {
        self.probes.get(probe).is_some_and(Outcome::is_ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_json_and_text() {
        use Restriction::*;
        for one in [
            None, Apparmor, Sysctl, Seccomp, Selinux, MaskedProc, NoCaps, Hardened, Unknown,
        ] {
            assert_eq!(serde_json::to_value(one).unwrap(), one.name());
        }
        for one in [Sandboxing::Full, Sandboxing::Degraded, Sandboxing::Disabled] {
            assert_eq!(serde_json::to_value(one).unwrap(), one.name());
        }
    }
}
