//! Engines that read a directory of drop-ins: one file of ours, and nobody else's is touched.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::files::Base;
use super::{Change, Changes, Request, header, quoted, refuse};
use crate::error::Result;

const MADE: &str = "# Made for it: ";

/// containers.conf(5): `[engine.runtimes]` is merged key by key over all files.
pub fn podman(base: &Base, request: &Request) -> Result<Changes> {
    let mut body = String::new();
    if request.default {
        body += "[engine]\nruntime = \"isorun\"\n\n";
    }
    let binary = quoted(&request.binary);
    let _ = writeln!(body, "[engine.runtimes]\nisorun = [{binary}]");
    whole(
        base,
        request,
        "containers/containers.conf.d/90-isorun.conf",
        &body,
    )
}

/// crio.conf(5). No allowed_annotations: CRI-O knows a fixed list of them and fails over others,
/// while annotations that it does not know, such as io.isorun.*, are passed on anyway.
pub fn crio(base: &Base, request: &Request) -> Result<Changes> {
    let mut body = String::new();
    if request.default {
        body += "[crio.runtime]\ndefault_runtime = \"isorun\"\n\n";
    }
    let binary = quoted(&request.binary);
    let _ = writeln!(
        body,
        "[crio.runtime.runtimes.isorun]\nruntime_path = {binary}\nruntime_type = \"oci\"\n\
         runtime_root = \"/run/isorun\""
    );
    whole(base, request, "crio/crio.conf.d/90-isorun.conf", &body)
}

/// A file that is ours as a whole.
fn whole(base: &Base, request: &Request, path: &str, body: &str) -> Result<Changes> {
    let path = Path::new(path);
    let head = header(request.engine);
    let before = base.read(path)?;
    if let Some(text) = &before
        && !text.starts_with(&head)
    {
        return Err(refuse(base, path, "isorun install did not write it"));
    }
    let mut changes = Changes::default();
    let mut change = Change {
        path: path.to_path_buf(),
        before,
        after: None,
        directories: Vec::new(),
        like: None,
    };
    if request.uninstall {
        change.directories = made(change.before.as_deref().unwrap_or_default(), path);
        if change.before.is_some() {
            changes.changes.push(change);
        }
        return Ok(changes);
    }
    // Which directories are ours is kept in the file, for the day when it goes.
    let missing = match &change.before {
        Some(text) => made(text, path),
        None => base.missing_directories(path)?,
    };
    let mut text = head;
    for directory in &missing {
        let _ = writeln!(text, "{MADE}{}", directory.display());
    }
    text += body;
    if change.before.as_deref() != Some(&text) {
        change.after = Some(text);
        changes.changes.push(change);
    }
    Ok(changes)
}

/// The directories that were made for the file, from its text: only those above it count.
fn made(text: &str, path: &Path) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.strip_prefix(MADE))
        .map(PathBuf::from)
        .filter(|directory| path.starts_with(directory) && !directory.as_os_str().is_empty())
        .collect()
}
