//! Docker: two keys of daemon.json. Every other key keeps its place and the text of its value.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::files::Base;
use super::{Change, Changes, Request, quoted, refuse};
use crate::error::{Error, Result};

const FILE: &str = "docker/daemon.json";
/// What was there before; empty where nothing was.
const BACKUP: &str = "docker/daemon.json.before-isorun";
const RUNTIMES: &str = "runtimes";
const DEFAULT: &str = "default-runtime";

/// An object with the order of its keys and the text of its values.
#[derive(Debug, Default)]
struct Object(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Object, A::Error> {
                let mut object = Object::default();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if object.get(&key).is_some() {
                        let twice = format!("key {key:?} is there twice");
                        return Err(serde::de::Error::custom(twice));
                    }
                    object.0.push((key, value.get().to_string()));
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

impl Object {
    fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    fn set(&mut self, key: &str, value: String) {
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key.to_string(), value)),
        }
    }

    fn remove(&mut self, key: &str) {
        self.0.retain(|(name, _)| name != key);
    }

    /// One key a line; `indent` before each, `outer` before the closing brace.
    fn text(&self, indent: &str, outer: &str) -> String {
        if self.0.is_empty() {
            return "{}".to_string();
        }
        let lines: Vec<_> = self
            .0
            .iter()
            .map(|(key, value)| format!("{indent}{}: {value}", quoted(key)))
            .collect();
        format!("{{\n{}\n{outer}}}", lines.join(",\n"))
    }
}

/// The change to daemon.json, and its backup.
pub fn docker(base: &Base, request: &Request) -> Result<Changes> {
    let (path, backup_path) = (Path::new(FILE), Path::new(BACKUP));
    let now = base.read(path)?;
    let backup = base.read(backup_path)?;
    if request.uninstall {
        return take_back(base, request, now, backup);
    }
    let object = parse(base, path, now.as_deref())?;
    let runtimes = parse(base, path, object.get(RUNTIMES))?;
    if backup.is_none() && runtimes.get("isorun").is_some() {
        let why = "it has a runtime isorun that isorun install did not write";
        return Err(refuse(base, path, why).remedy("take it out first"));
    }
    // A second call starts from what was there before the first, where nobody changed it since: so
    // --default can be left out again.
    let mut changes = Changes::default();
    let after = with_isorun(base, request, now.as_deref())?;
    if backup.is_none() {
        changes.changes.push(Change {
            path: backup_path.to_path_buf(),
            before: None,
            after: Some(now.clone().unwrap_or_default()),
            directories: Vec::new(),
            like: Some(path.to_path_buf()),
        });
    }
    if now.as_deref() == Some(&after) {
        return Ok(changes);
    }
    changes.changes.push(Change {
        path: path.to_path_buf(),
        before: now,
        after: Some(after),
        directories: Vec::new(),
        like: None,
    });
    Ok(changes)
}

/// The text with isorun in it.
fn with_isorun(base: &Base, request: &Request, text: Option<&str>) -> Result<String> {
    let path = Path::new(FILE);
    let mut object = parse(base, path, text)?;
    let mut runtimes = parse(base, path, object.get(RUNTIMES))?;
    let unit = indent_of(text.unwrap_or_default());
    let value = format!("{{ \"path\": {} }}", quoted(&request.binary));
    runtimes.set("isorun", value);
    object.set(RUNTIMES, runtimes.text(&unit.repeat(2), &unit));
    if request.default {
        object.set(DEFAULT, quoted("isorun"));
    }
    Ok(object.text(&unit, "") + "\n")
}

fn take_back(
    base: &Base,
    request: &Request,
    now: Option<String>,
    backup: Option<String>,
) -> Result<Changes> {
    let mut changes = Changes::default();
    let Some(old) = backup else {
        let object = parse(base, Path::new(FILE), now.as_deref())?;
        if parse(base, Path::new(FILE), object.get(RUNTIMES))?
            .get("isorun")
            .is_some()
        {
            let why = format!(
                "{} is not there, so it is not known what was before",
                base.display(Path::new(BACKUP))
            );
            return Err(
                refuse(base, Path::new(FILE), &why).remedy("take the runtime isorun out by hand")
            );
        }
        return Ok(changes);
    };
    let original = Some(old.clone()).filter(|text| !text.is_empty());
    // Nobody changed it since: what was before, byte by byte, whatever path and --default were.
    let ours = |text: &str, default: bool| -> Result<bool> {
        let binary = isorun_path(text);
        let same = Request {
            default,
            binary: binary.unwrap_or_else(|| request.binary.clone()),
            ..request.clone()
        };
        Ok(with_isorun(base, &same, original.as_deref())? == text)
    };
    let untouched = match &now {
        Some(text) => ours(text, false)? || ours(text, true)?,
        None => true,
    };
    let after = match &now {
        Some(text) if !untouched => Some(without_isorun(base, text, original.as_deref())?),
        Some(_) => original,
        None => None,
    };
    if after != now {
        changes.changes.push(Change {
            path: FILE.into(),
            before: now,
            after,
            directories: Vec::new(),
            like: None,
        });
    }
    changes.changes.push(Change {
        path: BACKUP.into(),
        before: Some(old),
        after: None,
        directories: vec!["docker".into()],
        like: None,
    });
    Ok(changes)
}

/// For a file that was changed since: only our keys go.
fn without_isorun(base: &Base, text: &str, original: Option<&str>) -> Result<String> {
    let path = Path::new(FILE);
    let mut object = parse(base, path, Some(text))?;
    let before = parse(base, path, original)?;
    let unit = indent_of(text);
    let mut runtimes = parse(base, path, object.get(RUNTIMES))?;
    runtimes.remove("isorun");
    if runtimes.0.is_empty() && before.get(RUNTIMES).is_none() {
        object.remove(RUNTIMES);
    } else {
        object.set(RUNTIMES, runtimes.text(&unit.repeat(2), &unit));
    }
    if object.get(DEFAULT) == Some("\"isorun\"") {
        match before.get(DEFAULT) {
            Some(value) => object.set(DEFAULT, value.to_string()),
            None => object.remove(DEFAULT),
        }
    }
    Ok(object.text(&unit, "") + "\n")
}

/// The path that daemon.json gives for isorun.
fn isorun_path(text: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(
        value
            .get(RUNTIMES)?
            .get("isorun")?
            .get("path")?
            .as_str()?
            .to_string(),
    )
}

fn parse(base: &Base, path: &Path, text: Option<&str>) -> Result<Object> {
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
        return Ok(Object::default());
    };
    serde_json::from_str(text).map_err(|error| -> Error {
        refuse(base, path, &format!("it cannot be parsed: {error}"))
            .remedy("mend it first: Docker does not start with it either")
    })
}

/// The white space before the first key; four blanks where it cannot be seen.
fn indent_of(text: &str) -> String {
    let second = text.lines().nth(1).unwrap_or_default();
    let blank: String = second.chars().take_while(|c| c.is_whitespace()).collect();
    match blank.is_empty() || second.trim().is_empty() {
        true => "    ".to_string(),
        false => blank,
    }
}
