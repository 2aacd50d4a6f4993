//! `isorun state`: a container's state as JSON, in the form and order that runc prints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use serde::Serialize;

use super::{Entry, Global, container_id, id_of, passwd, print_json};
use crate::error::Result;
use crate::exit::Exit;
use crate::state::{Record, Status};

pub const ENTRY: Entry = Entry {
    name: "state",
    about: "Print a container's state as JSON",
    arguments: |command| command.arg(container_id()),
    run,
};

/// The annotation that tells, as JSON, what the container does without.
const DEGRADED: &str = "io.isorun.degraded";

/// What `state` and `list --format json` tell about a container.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    oci_version: String,
    /// The container's id.
    pub id: String,
    /// Its first process, 0 where that has ended.
    pub pid: i32,
    /// The status in the specification's words.
    pub status: &'static str,
    /// The bundle's directory.
    pub bundle: PathBuf,
    rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    /// Name of the user who created it.
    pub owner: String,
    /// How many things it does without, where that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<usize>,
}

impl View {
    /// What is told of a container with this record, where `dir` is its state directory.
    pub fn of(mut record: Record, dir: &Path, names: &passwd::Names) -> Self {
        let degraded = Some(record.degraded.len());
        if !record.degraded.is_empty() {
            let list = serde_json::Value::from(std::mem::take(&mut record.degraded));
            record.annotations.insert(DEGRADED.into(), list.to_string());
        }
        let status = record.status(dir);
        let pid = match status {
            Status::Stopped => 0,
            _ => record.pid.unwrap_or(0),
        };
        Self {
            oci_version: record.oci_version,
            id: record.id,
            pid,
            status: status.as_str(),
            bundle: record.bundle,
            rootfs: record.rootfs,
            created: record.created,
            annotations: record.annotations,
            owner: names.of(record.owner),
            degraded,
        }
    }

    /// What can be told of a container without a record.
    pub fn broken(id: String, status: Status, owner: String) -> Self {
        Self {
            oci_version: String::new(),
            id,
            pid: 0,
            status: status.as_str(),
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            created: String::new(),
            annotations: BTreeMap::new(),
            owner,
            degraded: Some(0),
        }
    }
}

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    let id = id_of(matches)?;
    let record = global.store.peek(id)?;
    let view = View::of(record, &global.store.path(id), &passwd::Names::load());
    // runc's `state` has the field and leaves it empty; `list` fills it.
    print_json(&View {
        owner: String::new(),
        degraded: None,
        ..view
    })?;
    Ok(Exit::Success)
}
