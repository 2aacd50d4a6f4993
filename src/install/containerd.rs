//! containerd: a runtime handler of the CRI plug-in, as a marked block at the end of a file.
//!
//! Not as a file of its own: up to 1.7, containerd takes a plug-in's section from the last imported
//! file that has one, as a whole, so a drop-in with a handler would drop every other setting of the
//! plug-in. The block goes where that section is.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::files::Base;
use super::{Change, Changes, Request, quoted, refuse};
use crate::error::Result;

const FILE: &str = "containerd/config.toml";
const BEGIN: &str =
    "# >>> isorun install containerd >>> taken back by: isorun install containerd --uninstall\n";
const END: &str = "# <<< isorun install containerd <<<\n";
/// Says that the file is ours altogether.
const WHOLE: &str = "# The file was made for it.\n";
/// Says that a line end was added before the block.
const NEWLINE: &str = "# The line before it had no end.\n";

/// A file that may hold the plug-in's section.
struct Candidate {
    path: PathBuf,
    text: Option<String>,
}

/// The change to config.toml or to the file that it imports the plug-in's section from.
pub fn containerd(base: &Base, request: &Request) -> Result<Changes> {
    let main = Candidate {
        path: FILE.into(),
        text: base.read(Path::new(FILE))?,
    };
    let table = parse(base, &main)?;
    let imported = imports(base, &table)?;
    let mut changes = Changes::default();
    if request.uninstall {
        for file in std::iter::once(main).chain(imported) {
            changes.changes.extend(take_back(file));
        }
        return Ok(changes);
    }
    let version = version(base, &main, &table)?;
    let plugin = match version {
        2 => "io.containerd.grpc.v1.cri",
        _ => "io.containerd.cri.v1.runtime",
    };
    let mut target = main;
    for file in imported {
        if parse(base, &file)?
            .get("plugins")
            .and_then(|all| all.get(plugin))
            .is_some()
        {
            target = file;
        }
    }
    let disabled = table.get("disabled_plugins").and_then(Value::as_array);
    if disabled.is_some_and(|list| {
        list.iter()
            .any(|name| matches!(name.as_str(), Some(name) if name == "cri" || name == plugin))
    }) {
        changes.warnings.push(format!(
            "{} has the CRI plug-in among disabled_plugins: Kubernetes cannot use containerd so",
            base.display(Path::new(FILE))
        ));
    }
    let after = with_block(base, request, &target, plugin, version)?;
    if target.text.as_deref() != Some(&after) {
        changes.changes.push(Change {
            path: target.path,
            before: target.text,
            after: Some(after),
            directories: Vec::new(),
            like: None,
        });
    }
    Ok(changes)
}

/// The version of the file's form: 2 for a new file, which containerd 1.3 and later read.
fn version(base: &Base, main: &Candidate, table: &Table) -> Result<i64> {
    match table.get("version").map(|value| value.as_integer()) {
        Some(Some(version @ (2 | 3))) => Ok(version),
        None if table.is_empty() => Ok(2),
        // A configuration without a version is one of version 1.
        None | Some(Some(1)) => Err(refuse(base, &main.path, "its version is 1")
            .remedy("\"containerd config migrate\" prints it in a newer one")),
        _ => Err(refuse(base, &main.path, "its version is neither 2 nor 3")),
    }
}

fn with_block(
    base: &Base,
    request: &Request,
    target: &Candidate,
    plugin: &str,
    version: i64,
) -> Result<String> {
    let (outside, notes) = match target.text.as_deref() {
        Some(text) => without_block(text),
        None => (String::new(), WHOLE.to_string()),
    };
    let old: Table = parse_text(base, &target.path, &outside)?;
    if handler(&old, plugin).is_some() {
        let why = "it has a runtime isorun that isorun install did not write";
        return Err(refuse(base, &target.path, why).remedy("take it out first"));
    }
    let mut text = outside.clone();
    let mut notes = notes;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
        notes = NEWLINE.to_string();
    }
    text += BEGIN;
    text += &notes;
    if old.is_empty() {
        let _ = writeln!(text, "version = {version}");
    }
    let binary = quoted(&request.binary);
    let runtimes = format!("plugins.{}.containerd.runtimes", quoted(plugin));
    // Runtimes that are written take the place of the built-in ones, runc among them, and without
    // its default runtime the plug-in does not start.
    let built_in = runtimes_of(&old, plugin).is_none();
    if built_in {
        let _ = writeln!(
            text,
            "[{runtimes}.runc]\nruntime_type = \"io.containerd.runc.v2\""
        );
    }
    let _ = write!(
        text,
        "[{runtimes}.isorun]\nruntime_type = \"io.containerd.runc.v2\"\n\
         pod_annotations = [\"io.isorun.*\"]\ncontainer_annotations = [\"io.isorun.*\"]\n\
         [{runtimes}.isorun.options]\nBinaryName = {binary}\n{END}"
    );
    // A table that is written inline cannot be added to; what comes out must be what was, and this.
    let failed = || {
        let why = "a runtime cannot be added at its end: its tables are written inline, or end in our mark";
        refuse(base, &target.path, why)
    };
    let mut new: Table = text.parse().map_err(|_| failed())?;
    let path = ["plugins", plugin, "containerd", "runtimes"];
    let mut inner = Some(&mut new);
    for key in path {
        inner = inner
            .and_then(|table| table.get_mut(key))
            .and_then(Value::as_table_mut);
    }
    let Some(inner) = inner.filter(|table| table.contains_key("isorun")) else {
        return Err(failed());
    };
    inner.remove("isorun");
    if built_in {
        inner.remove("runc");
    }
    if old.is_empty() {
        new.remove("version");
    }
    let mut old = old;
    prune(&mut old);
    prune(&mut new);
    if old != new {
        return Err(failed());
    }
    Ok(text)
}

/// The runtimes that a file has for the plug-in.
fn runtimes_of<'a>(table: &'a Table, plugin: &str) -> Option<&'a Value> {
    let containerd = table.get("plugins")?.get(plugin)?.get("containerd")?;
    containerd.get("runtimes")
}

/// The handler of our name.
fn handler<'a>(table: &'a Table, plugin: &str) -> Option<&'a Value> {
    runtimes_of(table, plugin)?.get("isorun")
}

/// Takes tables out that hold nothing.
fn prune(table: &mut Table) {
    table.retain(|_, value| match value {
        Value::Table(inner) => {
            prune(inner);
            !inner.is_empty()
        }
        _ => true,
    });
}

/// A text without our block, and the notes that the block had.
fn without_block(text: &str) -> (String, String) {
    let found = text.find(BEGIN).and_then(|begin| {
        let end = text[begin..].find(END)? + begin + END.len();
        Some((begin, end))
    });
    let Some((begin, end)) = found else {
        return (text.to_string(), String::new());
    };
    let block = &text[begin..end];
    let mut before = &text[..begin];
    let mut notes = String::new();
    if block.contains(NEWLINE) {
        notes += NEWLINE;
        before = before.strip_suffix('\n').unwrap_or(before);
    }
    if block.contains(WHOLE) {
        notes += WHOLE;
    }
    (before.to_string() + &text[end..], notes)
}

fn take_back(file: Candidate) -> Option<Change> {
    let text = file.text?;
    let (outside, notes) = without_block(&text);
    if outside == text {
        return None;
    }
    let whole = notes.contains(WHOLE) && outside.is_empty();
    Some(Change {
        path: file.path,
        before: Some(text),
        after: (!whole).then_some(outside),
        directories: if whole {
            vec!["containerd".into()]
        } else {
            Vec::new()
        },
        like: None,
    })
}

fn parse(base: &Base, file: &Candidate) -> Result<Table> {
    let (outside, _) = without_block(file.text.as_deref().unwrap_or_default());
    parse_text(base, &file.path, &outside)
}

fn parse_text(base: &Base, path: &Path, text: &str) -> Result<Table> {
    text.parse().map_err(|error: toml::de::Error| {
        let line = error
            .span()
            .map_or(0, |span| text[..span.start].lines().count().max(1));
        let why = format!("it cannot be parsed: line {line}: {}", error.message());
        refuse(base, path, &why).remedy("mend it first: containerd does not start with it either")
    })
}

/// The files below /etc that config.toml imports, in containerd's order. A `*` may stand in the last
/// name, as containerd's documentation has it.
fn imports(base: &Base, table: &Table) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    let list = table.get("imports").and_then(Value::as_array);
    for pattern in list.into_iter().flatten().filter_map(Value::as_str) {
        let pattern = Path::new(pattern);
        // Relative ones are relative to config.toml; what is not below /etc cannot be ours.
        let below = match pattern.strip_prefix("/etc") {
            Ok(below) => below.to_path_buf(),
            Err(_) if pattern.is_relative() => Path::new("containerd").join(pattern),
            Err(_) => continue,
        };
        let (Some(directory), Some(name)) = (below.parent(), below.file_name()) else {
            continue;
        };
        if below
            .components()
            .any(|part| !matches!(part, std::path::Component::Normal(_)))
        {
            continue;
        }
        let name = name.to_string_lossy();
        let names = match name.split_once('*') {
            None => vec![name.to_string()],
            Some((start, end)) => base
                .names(directory)?
                .into_iter()
                .filter(|name| {
                    name.len() >= start.len() + end.len()
                        && name.starts_with(start)
                        && name.ends_with(end)
                        && !name.starts_with('.')
                })
                .collect(),
        };
        for name in names {
            let path = directory.join(name);
            let text = base.read(&path)?;
            found.push(Candidate { path, text });
        }
    }
    Ok(found)
}
