//! Hooks: programs of the administrator that run at the six stages of a container's life.
//!
//! A hook gets the container's state on its stdin, exactly the environment that the specification
//! gives it (none, if none is given: CVE-2025-23266 was an inherited one), and as its working
//! directory the bundle, or `/` once the container's root is `/`: never a directory that an image
//! fills before that.

use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use oci_spec::runtime::Hook;
use serde::Serialize;

use super::hook_wait::{Feed, Waiting};
use crate::channel;
use crate::error::{Error, Kind, Result};

/// What is on a hook's stdin: the specification's state (runtime.md, "State").
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState<'a> {
    /// The version of the specification that config.json names.
    pub oci_version: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// creating, created, running or stopped.
    pub status: &'a str,
    /// The first process, as the host numbers it.
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: i32,
    /// The bundle's absolute path.
    pub bundle: &'a Path,
    /// The annotations of config.json.
    pub annotations: &'a std::collections::BTreeMap<String, String>,
}

fn is_zero(pid: &i32) -> bool {
    *pid == 0
}

/// Runs the hooks of one stage in order; the first failure ends it.
///
/// # Errors
/// [`Kind::Hook`], with the stage, the hook's number and path, and what it printed.
pub fn run_all(stage: &str, hooks: &[Hook], state: &HookState<'_>, cwd: &Path) -> Result<()> {
    run_all_for(stage, hooks, state, cwd, None)
}

/// The same for a container whose first process `init` (a pidfd) waits for the hooks: when it ends,
/// because somebody deletes the container for one, they have nothing to work for any more, and are
/// killed after a moment.
///
/// # Errors
/// As [`run_all`].
pub fn run_all_for(
    stage: &str,
    hooks: &[Hook],
    state: &HookState<'_>,
    cwd: &Path,
    init: Option<BorrowedFd<'_>>,
) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let mut annotations = state.annotations.clone();
    if channel::asks(annotations.keys()) {
        annotations.insert(channel::JOINED.to_string(), "isorun".to_string());
    }
    let state = HookState {
        annotations: &annotations,
        ..state.clone()
    };
    let input = serde_json::to_vec(&state).map_err(|e| {
        Error::new(
            Kind::Hook,
            format!("write the state for {stage} hooks: {e}"),
        )
    })?;
    for (number, hook) in hooks.iter().enumerate() {
        run_one(hook, &input, cwd, init).map_err(|cause| {
            let path = hook.path().display();
            Error::new(
                Kind::Hook,
                format!("run {stage} hook #{number} ({path}): {cause}"),
            )
        })?;
    }
    Ok(())
}

fn run_one(
    hook: &Hook,
    input: &[u8],
    cwd: &Path,
    init: Option<BorrowedFd<'_>>,
) -> std::result::Result<(), String> {
    let (output, writer) =
        std::io::pipe().map_err(|e| format!("make a pipe for its output: {e}"))?;
    let writer_again = writer
        .try_clone()
        .map_err(|e| format!("share the pipe: {e}"))?;
    let mut command = Command::new(hook.path());
    command
        .env_clear()
        .current_dir(cwd)
        .stdout(writer)
        .stderr(writer_again);
    // A group of its own: what a hook started dies with it when its time is up.
    command.process_group(0);
    // And it dies with this process: a runtime that was killed leaves no hook at work.
    crate::sys::process::die_with_parent(&mut command);
    if let Some((name, args)) = hook.args().as_deref().and_then(|args| args.split_first()) {
        command.arg0(name).args(args);
    }
    for (name, value) in hook
        .env()
        .iter()
        .flatten()
        .filter_map(|pair| pair.split_once('='))
    {
        command.env(name, value);
    }
    let (stdin, feed) = Feed::new(input).map_err(|e| format!("hand over the state: {e}"))?;
    command.stdin(stdin);
    // A foreground run holds all signals back; a hook must not inherit that.
    crate::sys::process::unblock_signals_in(&mut command);
    let mut child = command.spawn().map_err(|e| match e.raw_os_error() {
        Some(code) => format!(
            "execute it: {}",
            crate::error::errno_words(Errno::from_raw(code))
        ),
        None => format!("execute it: {e}"),
    })?;
    // The copies of the pipe's writing end go, so that its end can be seen.
    drop(command);
    let limit = hook
        .timeout()
        .and_then(|s| u64::try_from(s).ok())
        .map(Duration::from_secs);
    let (status, printed) = Waiting::new(&mut child, feed, output.into(), limit, init).wait()?;
    if status.success() {
        return Ok(());
    }
    let printed = String::from_utf8_lossy(&printed);
    let printed = printed.trim();
    Err(if printed.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {printed}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    use oci_spec::runtime::HookBuilder;

    fn hook(script: &str, timeout: Option<i64>) -> Hook {
        let mut builder = HookBuilder::default()
            .path("/bin/sh")
            .args(["sh", "-c", script].map(String::from).to_vec())
            .env(vec!["ONLY=this".to_string()]);
        if let Some(timeout) = timeout {
            builder = builder.timeout(timeout);
        }
        builder.build().unwrap()
    }

    fn run(script: &str, timeout: Option<i64>, annotation: &str) -> Result<()> {
        let annotations = [("key".to_string(), annotation.to_string())].into();
        let state = HookState {
            oci_version: "1.3.0",
            id: "c",
            status: "creating",
            pid: 7,
            bundle: Path::new("/"),
            annotations: &annotations,
        };
        run_all("prestart", &[hook(script, timeout)], &state, Path::new("/"))
    }

    #[test]
    fn gets_state_environment_and_directory() {
        run(
            "read -r state; case $state in *'\"pid\":7'*) ;; *) exit 3;; esac
             test \"$PWD\" = / && test \"$(env | grep -v -e ^PWD= -e ^_= -e ^SHLVL=)\" = ONLY=this",
            None,
            "v",
        )
        .unwrap();
    }

    #[test]
    fn failure_tells_what_was_printed() {
        let error = run("echo out; echo wrong >&2; exit 4", None, "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "run prestart hook #0 (/bin/sh): exit status: 4: out\nwrong"
        );
        assert_eq!(error.kind(), Kind::Hook);
    }

    #[test]
    fn timeout_kills_the_whole_group() {
        let begin = Instant::now();
        let error = run("sleep 60 & sleep 60", Some(1), "").unwrap_err();
        assert!(
            error.to_string().contains("longer than its timeout of 1 s"),
            "{error}"
        );
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn large_input_and_output_do_not_block() {
        run(
            "head -c 3000000 /dev/zero | tr '\\0' x",
            Some(20),
            &"a".repeat(300_000),
        )
        .unwrap();
        run("sleep 30 & exit 0", Some(10), "").unwrap();
    }
}
