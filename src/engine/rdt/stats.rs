//! events: what resctrl tells of a container's groups.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::cgroup::{CmtStats, IntelRdt, L3CacheInfo, MbmStats, MemBwInfo};
use crate::error::{Error, Result};
use crate::state::Resctrl;

/// What events calls it.
const FIELD: &str = "intel_rdt";

/// The schemata of the container's group and of the default group, what the CPU can do, and what was
/// measured.
///
/// # Errors
/// No resctrl any more; a sentence with the file that cannot be read.
pub fn stats(groups: &Resctrl) -> Result<IntelRdt> {
    below(&super::find(FIELD)?, groups)
}

pub(super) fn below(root: &Path, groups: &Resctrl) -> Result<IntelRdt> {
    let mut stats = IntelRdt::default();
    let Some(group) = groups.tasks.first() else {
        return Ok(stats);
    };
    let all = needed(&root.join("schemata"))?;
    let own = needed(&group.join("schemata"))?;
    let info = root.join("info");
    // With CDP the kernel has L3CODE and L3DATA instead, which runc does not tell of either.
    let l3 = info.join("L3");
    if l3.is_dir() {
        stats.l3_cache_info = Some(L3CacheInfo {
            cbm_mask: text(&l3.join("cbm_mask"))?.unwrap_or_default(),
            min_cbm_bits: number(&l3.join("min_cbm_bits"))?.unwrap_or(0),
            num_closids: number(&l3.join("num_closids"))?.unwrap_or(0),
        });
        stats.l3_cache_schema_root = line(&all, "L3");
        stats.l3_cache_schema = line(&own, "L3");
    }
    let mb = info.join("MB");
    if mb.is_dir() {
        stats.mem_bw_info = Some(MemBwInfo {
            bandwidth_gran: number(&mb.join("bandwidth_gran"))?.unwrap_or(0),
            delay_linear: number(&mb.join("delay_linear"))?.unwrap_or(0),
            min_bandwidth: number(&mb.join("min_bandwidth"))?.unwrap_or(0),
            num_closids: number(&mb.join("num_closids"))?.unwrap_or(0),
        });
        stats.mem_bw_schema_root = line(&all, "MB");
        stats.mem_bw_schema = line(&own, "MB");
    }
    if let Some(measured) = measured(groups) {
        let features = text(&info.join("L3_MON/mon_features"))?.unwrap_or_default();
        monitor(&measured.join("mon_data"), &features, &mut stats)?;
    }
    Ok(stats)
}

/// The group that measures the container and nobody else: its monitoring group, or the group that was
/// made for it. That of a closID counts what else is in it.
fn measured(groups: &Resctrl) -> Option<&PathBuf> {
    let last = groups.tasks.last()?;
    groups.remove.contains(last).then_some(last)
}

/// `dir` has a directory for each L3 cache, `mon_L3_00`. What is not known of one of them is not told
/// of any: the lists have no numbers for the caches.
fn monitor(dir: &Path, features: &str, stats: &mut IntelRdt) -> Result<()> {
    let has = |feature: &str| features.lines().any(|line| line.trim() == feature);
    let (total, local) = (has("mbm_total_bytes"), has("mbm_local_bytes"));
    let occupancy = has("llc_occupancy");
    if !(total || local || occupancy) {
        return Ok(());
    }
    let fail = |error| Error::io(format!("{FIELD}: read"), dir.display().to_string(), &error);
    let mut caches = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_name().to_string_lossy().starts_with("mon_L3_") {
            caches.push(entry.path());
        }
    }
    caches.sort();
    // Not a number: "Unavailable" and "Error" of the kernel's.
    let read = |cache: &Path, feature: &str, there: bool| match there {
        true => number(&cache.join(feature)),
        false => Ok(Some(0)),
    };
    let mut bandwidth = (total || local).then(Vec::new);
    let mut cache_use = occupancy.then(Vec::new);
    for cache in caches {
        if let Some(list) = &mut bandwidth {
            let total = read(&cache, "mbm_total_bytes", total)?;
            let local = read(&cache, "mbm_local_bytes", local)?;
            match (total, local) {
                (Some(mbm_total_bytes), Some(mbm_local_bytes)) => list.push(MbmStats {
                    mbm_total_bytes,
                    mbm_local_bytes,
                }),
                _ => bandwidth = None,
            }
        }
        if let Some(list) = &mut cache_use {
            match read(&cache, "llc_occupancy", occupancy)? {
                Some(llc_occupancy) => list.push(CmtStats { llc_occupancy }),
                None => cache_use = None,
            }
        }
    }
    stats.mbm_stats = bandwidth;
    stats.cmt_stats = cache_use;
    Ok(())
}

/// The line of a resource; empty where there is none.
fn line(schemata: &str, resource: &str) -> String {
    let lines = schemata.lines().map(str::trim);
    let mut found = lines.filter(|line| {
        line.split_once(':')
            .is_some_and(|(name, _)| name == resource)
    });
    found.next().unwrap_or_default().to_string()
}

fn needed(path: &Path) -> Result<String> {
    fs::read_to_string(path)
        .map_err(|error| Error::io(format!("{FIELD}: read"), path.display().to_string(), &error))
}

/// A file without its end of line; nothing where it is not there.
fn text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_string())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(
            format!("{FIELD}: read"),
            path.display().to_string(),
            &error,
        )),
    }
}

/// A file with one number; nothing where it is not there, or has something else.
fn number(path: &Path) -> Result<Option<u64>> {
    Ok(text(path)?.and_then(|text| text.parse().ok()))
}
