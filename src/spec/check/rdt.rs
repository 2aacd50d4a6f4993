//! linux.intelRdt: a group that is one directory, and lines that are one line.

use oci_spec::runtime::LinuxIntelRdt;

use super::no_null;
use crate::error::{Error, Result};

/// Directories that resctrl has in a group by itself.
const RESERVED: [&str; 3] = ["info", "mon_groups", "mon_data"];

/// Checks the two schemata that have a field of their own, each with what it is called.
///
/// # Errors
/// The first that breaks a rule.
pub fn schemata(l3_cache: (&str, Option<&str>), mem_bw: (&str, Option<&str>)) -> Result<()> {
    if let (field, Some(schema)) = l3_cache {
        no_null(field, schema)?;
    }
    if let (field, Some(schema)) = mem_bw
        && !schema.is_empty()
    {
        one_line(field, schema)?;
        if !schema.starts_with("MB:") {
            return Err(Error::spec(
                field,
                format!("{schema:?} does not begin with \"MB:\""),
            ));
        }
    }
    Ok(())
}

fn one_line(field: &str, line: &str) -> Result<()> {
    no_null(field, line)?;
    match line.contains('\n') {
        true => Err(Error::spec(field, "it has more than one line")),
        false => Ok(()),
    }
}

/// Checks the group's name and the schemata; what the values may be, the kernel tells.
///
/// # Errors
/// The first field that breaks a rule.
pub(super) fn check(rdt: &LinuxIntelRdt, notes: &mut Vec<String>) -> Result<()> {
    if let Some(name) = rdt.clos_id().as_deref()
        && name != "/"
    {
        const FIELD: &str = "linux.intelRdt.closID";
        no_null(FIELD, name)?;
        // runc's rule; a name with a slash would be a directory somewhere else.
        if name.contains('/') || [".", ".."].contains(&name) || name.len() > 255 {
            return Err(Error::spec(
                FIELD,
                format!("{name:?} is not the name of a directory of resctrl"),
            ));
        }
        if RESERVED.contains(&name) {
            return Err(Error::spec(FIELD, format!("{name:?} is resctrl's own")));
        }
    }
    schemata(
        (
            "linux.intelRdt.l3CacheSchema",
            rdt.l3_cache_schema().as_deref(),
        ),
        ("linux.intelRdt.memBwSchema", rdt.mem_bw_schema().as_deref()),
    )?;
    for (index, line) in rdt.schemata().iter().flatten().enumerate() {
        one_line(&format!("linux.intelRdt.schemata[{index}]"), line)?;
    }
    #[allow(deprecated, reason = "read by oci-spec under names that nobody writes")]
    let misspelt = [
        ("enableCmt", "enableCMT", rdt.enable_cmt()),
        ("enableMbm", "enableMBM", rdt.enable_mbm()),
    ];
    for (written, right, value) in misspelt {
        if value.is_some() {
            notes.push(format!(
                "linux.intelRdt.{written}: ignored, names are case-sensitive: the specification's was \
                 \"{right}\"; enableMonitoring takes its place"
            ));
        }
    }
    Ok(())
}
