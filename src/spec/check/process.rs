//! process: what runs, as whom, with which rights.

use oci_spec::runtime::{Linux, LinuxIdMapping, Process};

use super::{no_null, schedule};
use crate::error::{Error, Result};
use crate::spec::names;

/// The range of /proc/PID/oom_score_adj; see proc_pid_oom_score_adj(5).
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i32> = -1000..=1000;

/// Checks a process; `linux` is there for the ids, which must be mapped in a user namespace.
///
/// # Errors
///
/// The path of the first field that breaks a rule.
pub(super) fn check(
    process: &Process,
    linux: Option<&Linux>,
    notes: &mut Vec<String>,
) -> Result<()> {
    terminal(process, notes)?;
    command(process)?;
    environment(process)?;
    limits(process)?;
    user(process, linux, notes)?;
    for (name, label) in [
        ("apparmorProfile", process.apparmor_profile()),
        ("selinuxLabel", process.selinux_label()),
    ] {
        super::label(&format!("process.{name}"), label.as_deref())?;
    }
    schedule::check(process)?;
    if process
        .command_line()
        .as_ref()
        .is_some_and(|line| !line.is_empty())
    {
        notes.push("process.commandLine: ignored, it is for Windows".into());
    }
    Ok(())
}

fn terminal(process: &Process, notes: &mut Vec<String>) -> Result<()> {
    let Some(size) = process.console_size() else {
        return Ok(());
    };
    if process.terminal() != Some(true) {
        if size.height() != 0 || size.width() != 0 {
            notes.push("process.consoleSize: ignored, process.terminal is not set".into());
        }
        return Ok(());
    }
    for (name, number) in [("height", size.height()), ("width", size.width())] {
        if u16::try_from(number).is_err() {
            return Err(Error::spec(
                format!("process.consoleSize.{name}"),
                format!("{number} is over 65535, the most that a terminal can have"),
            ));
        }
    }
    if (size.height() == 0) != (size.width() == 0) {
        notes.push("process.consoleSize: ignored, one of height and width is 0".into());
    }
    Ok(())
}

fn command(process: &Process) -> Result<()> {
    let args = process.args().as_deref().unwrap_or_default();
    match args.first() {
        None => return Err(Error::spec("process.args", "missing: it says what to run")),
        Some(program) if program.is_empty() => {
            return Err(Error::spec(
                "process.args[0]",
                "it is empty: it says what to run",
            ));
        }
        Some(_) => {}
    }
    for (index, argument) in args.iter().enumerate() {
        no_null(format_args!("process.args[{index}]"), argument)?;
    }
    let cwd = process.cwd();
    no_null("process.cwd", cwd.as_os_str().as_encoded_bytes())?;
    match cwd.is_absolute() {
        true => Ok(()),
        false if cwd.as_os_str().is_empty() => Err(Error::spec(
            "process.cwd",
            "missing: it is the directory to start in",
        )),
        false => {
            let cwd = cwd.display();
            Err(Error::spec(
                "process.cwd",
                format!("{cwd:?} is not an absolute path"),
            ))
        }
    }
}

fn environment(process: &Process) -> Result<()> {
    for (index, variable) in process.env().iter().flatten().enumerate() {
        let field = format_args!("process.env[{index}]");
        no_null(field, variable)?;
        match variable.split_once('=') {
            // The value may be a secret: it stays out of the sentence.
            Some(("", _)) => {
                return Err(Error::spec(
                    field.to_string(),
                    "there is no name before the \"=\"",
                ));
            }
            Some(_) => {}
            None => {
                return Err(Error::spec(
                    field.to_string(),
                    format!("{variable:?} is not NAME=VALUE: there is no \"=\""),
                ));
            }
        }
    }
    Ok(())
}

fn limits(process: &Process) -> Result<()> {
    let mut seen = 0_u64;
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let (number, name) = names::rlimit(limit.typ());
        if limit.soft() > limit.hard() {
            let (soft, hard) = (limit.soft(), limit.hard());
            return Err(Error::spec(
                format!("process.rlimits[{index}].soft"),
                format!("{name}: the soft limit {soft} is above the hard limit {hard}"),
            ));
        }
        if seen & 1 << number != 0 {
            return Err(Error::spec(
                format!("process.rlimits[{index}].type"),
                format!("{name} is there twice"),
            ));
        }
        seen |= 1 << number;
    }
    match process.oom_score_adj() {
        Some(score) if !OOM_SCORE_ADJ.contains(&score) => Err(Error::spec(
            "process.oomScoreAdj",
            format!("{score} is outside -1000 to 1000"),
        )),
        _ => Ok(()),
    }
}

fn user(process: &Process, linux: Option<&Linux>, notes: &mut Vec<String>) -> Result<()> {
    let user = process.user();
    if user
        .username()
        .as_ref()
        .is_some_and(|name| !name.is_empty())
    {
        notes.push("process.user.username: ignored, it is for Windows; uid and gid count".into());
    }
    for (name, id) in [("uid", user.uid()), ("gid", user.gid())] {
        if id == u32::MAX {
            return Err(Error::spec(
                format!("process.user.{name}"),
                format!("{id} is the kernel's \"no id\""),
            ));
        }
    }
    let Some(linux) = linux else { return Ok(()) };
    for (name, id, map) in [
        ("uid", user.uid(), linux.uid_mappings()),
        ("gid", user.gid(), linux.gid_mappings()),
    ] {
        let map = map.as_deref().unwrap_or_default();
        if !map.is_empty() && !mapped(id, map) {
            return Err(Error::spec(
                format!("process.user.{name}"),
                format!("{id} is not mapped in the user namespace"),
            )
            .remedy(format!("add it to linux.{name}Mappings")));
        }
    }
    Ok(())
}

/// Whether an id of the container has an id on the host.
pub(super) fn mapped(id: u32, map: &[LinuxIdMapping]) -> bool {
    map.iter().any(|range| {
        let (first, id) = (u64::from(range.container_id()), u64::from(id));
        (first..first + u64::from(range.size())).contains(&id)
    })
}
