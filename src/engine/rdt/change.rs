//! update: other schemata for the group of a container that runs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::log;
use crate::plan::schema_lines;
use crate::spec::check::rdt_schemata;
use crate::state::{Record, Resctrl};

const L3_CACHE: &str = "--l3-cache-schema";
const MEM_BW: &str = "--mem-bw-schema";

/// What is asked for, by runc's flags: the values of l3CacheSchema and memBwSchema. An empty one says
/// nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schemata {
    /// Lines such as `L3:0=ff;1=c0`.
    pub l3_cache: Option<String>,
    /// One line such as `MB:0=20;1=70`.
    pub mem_bw: Option<String>,
}

impl Schemata {
    fn given(&self) -> impl Iterator<Item = &'static str> {
        let there = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let flags = [
            (there(&self.l3_cache), L3_CACHE),
            (there(&self.mem_bw), MEM_BW),
        ];
        flags
            .into_iter()
            .filter(|(there, _)| *there)
            .map(|(_, flag)| flag)
    }
}

/// Schemata that were changed, and can be changed back.
#[derive(Debug)]
#[must_use]
pub struct Changed {
    root: PathBuf,
    file: PathBuf,
    /// The lines that were there for the same resources.
    old: String,
}

impl Changed {
    /// Puts back what was there.
    ///
    /// # Errors
    /// A sentence with the file and the errno.
    pub fn back(&self) -> Result<()> {
        super::write("put back the schemata", &self.file, &self.old)
            .map_err(|error| super::explained(&self.root, error))
    }
}

/// Writes what is asked for into the schemata of the container's group; nothing where nothing is.
///
/// # Errors
/// No resctrl on this host, or nothing of that kind in it; a container without a group; what the kernel
/// refuses, and then the old schemata are in force.
pub fn change(asked: &Schemata, record: &Record) -> Result<Option<Changed>> {
    let Some(flag) = asked.given().next() else {
        return Ok(None);
    };
    // Before the host: it is wrong everywhere.
    rdt_schemata(
        (L3_CACHE, asked.l3_cache.as_deref()),
        (MEM_BW, asked.mem_bw.as_deref()),
    )?;
    let root = super::find(&format!("{flag}: Intel RDT"))?;
    let groups = record.resctrl.as_ref();
    let group = groups.and_then(|groups| Some((groups, groups.tasks.first()?)));
    let (groups, group) = group.ok_or_else(|| {
        let sentence = format!(
            "{flag}: container {:?} has no group of resctrl to change",
            record.id
        );
        Error::new(Kind::State, sentence).remedy(
            "a container gets one when it is made, by linux.intelRdt in its config.json: {} is enough",
        )
    })?;
    below(root, asked, groups, group).map(Some)
}

pub(super) fn below(
    root: PathBuf,
    asked: &Schemata,
    groups: &Resctrl,
    group: &Path,
) -> Result<Changed> {
    for flag in asked.given() {
        let (what, names): (_, &[&str]) = match flag {
            L3_CACHE => ("L3 cache", &["L3", "L3CODE", "L3DATA"]),
            _ => ("memory bandwidth", &["MB"]),
        };
        let info = root.join("info");
        if !names.iter().any(|name| info.join(name).is_dir()) {
            return Err(Error::spec(
                flag,
                format!(
                    "Intel RDT: this host has no allocation of {what}: there is no {}",
                    info.join(names[0]).display()
                ),
            ));
        }
    }
    let file = group.join("schemata");
    let flags = asked.given().collect::<Vec<_>>().join(" and ");
    let there = fs::read_to_string(&file)
        .map_err(|error| Error::io(format!("{flags}: read"), file.display().to_string(), &error))?;
    let lines = schema_lines(asked.l3_cache.as_deref(), asked.mem_bw.as_deref());
    let name = |line: &str| {
        line.split(':')
            .next()
            .unwrap_or_default()
            .trim()
            .to_string()
    };
    let names: Vec<String> = lines.iter().map(|line| name(line)).collect();
    let old = there.lines().filter(|line| names.contains(&name(line)));
    let old: String = old.map(|line| format!("{}\n", line.trim())).collect();
    if !groups.remove.iter().any(|own| own == group) {
        log::warning(&format!(
            "{flags}: the group {} is not the container's alone: what else is in it is limited, too",
            group.display()
        ));
    }
    super::write(&flags, &file, &(lines.join("\n") + "\n"))
        .map_err(|error| super::explained(&root, error))?;
    Ok(Changed { root, file, old })
}
