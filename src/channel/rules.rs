//! The administrator's rules: who may join which channel, and how.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Key, Size};
use crate::error::{Error, Kind, Result};

/// Where they are: files that end in `.toml`, read in the order of their names.
pub const DIRECTORY: &str = "/etc/isorun/channels.d";

/// How a channel may be joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Not at all.
    None,
    /// Read-only.
    #[default]
    Ro,
    /// Read-only and read-write.
    Rw,
}

/// One rule. The first one that is about a channel and about who asks decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name, which a refusal tells.
    pub name: String,
    /// The channels: names, in Kubernetes `<namespace>/<name>`, in which `*` stands for anything but `/`.
    pub channels: Vec<String>,
    /// The user ids of isorun's caller, as the host has them; nothing: everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uids: Option<Vec<u32>>,
    /// Likewise its group ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gids: Option<Vec<u32>>,
    /// Annotations that the container has to have, with these values, in which `*` stands for anything.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How it may be joined.
    #[serde(default)]
    pub access: Access,
    /// A container may make the channel where it is not there.
    #[serde(default = "yes")]
    pub create: bool,
    /// The most that a container may ask for as the channel's size, and the size of one that it makes
    /// without asking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// How many files a channel may hold that a container makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// GPU memory may be shared in it.
    #[serde(default, rename = "cuda-ipc")]
    pub cuda: bool,
    /// The file that it is from, which the file itself does not say.
    #[serde(default)]
    pub file: PathBuf,
}

fn yes() -> bool {
    true
}

/// All rules.
pub type Rules = Vec<Rule>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Rule>,
}

/// Reads the rules of this host; without the directory there are none.
///
/// # Errors
/// What cannot be read or is not understood: then nobody knows what the administrator wanted, and no
/// channel is joined. A file that others than its owner may write.
pub fn read() -> Result<Rules> {
    read_from(Path::new(DIRECTORY))
}

pub(super) fn read_from(directory: &Path) -> Result<Rules> {
    let fail = |path: &Path, error: &std::io::Error| {
        Error::io(
            "read the rules of channels",
            path.display().to_string(),
            error,
        )
        .remedy("every user of isorun has to be able to read them")
    };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| fail(directory, &error))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| fail(directory, &error))?.path();
        if path.extension().is_some_and(|end| end == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut rules = Vec::new();
    for path in paths {
        let mode = std::fs::metadata(&path).map_err(|error| fail(&path, &error))?;
        if mode.permissions().mode() & 0o022 != 0 {
            let sentence = format!(
                "{}: others than its owner may write this file, so its rules do not hold",
                path.display()
            );
            let remedy = format!("chmod go-w {}", path.display());
            return Err(Error::new(Kind::Spec, sentence).remedy(remedy));
        }
        let text = std::fs::read_to_string(&path).map_err(|error| fail(&path, &error))?;
        rules.extend(parse(&text, &path)?);
    }
    Ok(rules)
}

/// Reads the text of a file.
pub(super) fn parse(text: &str, path: &Path) -> Result<Rules> {
    let shown = path.display();
    let File { rule: mut rules } = toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = error
            .span()
            .map_or("", |span| text.get(..span.start).unwrap_or(""));
        let line = before.matches('\n').count() + 1;
        let why = error.message().trim().replace('\n', " ");
        Error::new(Kind::Spec, format!("{shown}, line {line}: {why}"))
    })?;
    for rule in &mut rules {
        let wrong = |why: &str| {
            let sentence = format!("{shown}: rule {:?}: {why}", rule.name);
            Err(Error::new(Kind::Spec, sentence))
        };
        if rule.name.is_empty() {
            return wrong("it needs a name");
        }
        if !rule.file.as_os_str().is_empty() {
            return wrong("there is no field \"file\"");
        }
        if rule.channels.is_empty() {
            return wrong("it names no channels");
        }
        // To a tmpfs 0 means that there is no limit, and 1 is its own directory.
        if rule.inodes.is_some_and(|inodes| inodes < 2) {
            return wrong("inodes: a channel holds at least 2, its own directory among them");
        }
        let odd = |c: char| !(c.is_ascii_alphanumeric() || "*._-/".contains(c));
        if let Some(pattern) = rule
            .channels
            .iter()
            .find(|pattern| pattern.is_empty() || pattern.contains(odd))
        {
            return wrong(&format!("{pattern:?} is no channel's name"));
        }
        rule.file = path.to_path_buf();
    }
    Ok(rules)
}

impl Rule {
    /// Whether the rule is about this channel and this caller's container.
    pub(super) fn is_about<'a>(
        &self,
        key: &Key,
        (uid, gid): (u32, u32),
        annotation: impl Fn(&str) -> Option<&'a String>,
    ) -> bool {
        let of = |ids: &Option<Vec<u32>>, id| ids.as_ref().is_none_or(|ids| ids.contains(&id));
        let named = |pattern: &String| match (pattern.split_once('/'), key.namespace()) {
            (None, None) => matches(pattern, key.name()),
            (Some((namespace, name)), Some(of)) => {
                matches(namespace, of) && matches(name, key.name())
            }
            _ => false,
        };
        of(&self.uids, uid)
            && of(&self.gids, gid)
            && self.channels.iter().any(named)
            && self
                .annotations
                .iter()
                .all(|(key, wanted)| annotation(key).is_some_and(|value| matches(wanted, value)))
    }

    /// The rule's name and where it is, for sentences.
    pub(super) fn told(&self) -> String {
        format!("rule {:?} ({})", self.name, self.file.display())
    }
}

/// Whether `text` is as `pattern` says, in which `*` stands for anything.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    // split gives at least one part.
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}
