//! Hooks: programs of the administrator that run at the six stages of a container's life.
//!
//! A hook gets the container's state on its stdin, exactly the environment that the specification
//! gives it (none, if none is given: CVE-2025-23266 was an inherited one), and as its working
//! directory the bundle, or `/` once the container's root is `/`: never a directory that an image
//! fills before that.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::Hook;
use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::sys::process::{kill, pidfd_open};

/// How much of what a hook prints is told when it fails.
const TOLD: usize = 2048;

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
    if hooks.is_empty() {
        return Ok(());
    }
    let input = serde_json::to_vec(state).map_err(|e| {
        Error::new(
            Kind::Hook,
            format!("write the state for {stage} hooks: {e}"),
        )
    })?;
    for (number, hook) in hooks.iter().enumerate() {
        run_one(hook, &input, cwd).map_err(|cause| {
            let path = hook.path().display();
            Error::new(
                Kind::Hook,
                format!("run {stage} hook #{number} ({path}): {cause}"),
            )
        })?;
    }
    Ok(())
}

fn run_one(hook: &Hook, input: &[u8], cwd: &Path) -> std::result::Result<(), String> {
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
    let stdin = stdin_of(input).map_err(|e| format!("hand over the state: {e}"))?;
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
    let (status, printed) = wait(&mut child, output.into(), limit)?;
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

/// The state as a readable descriptor: a pipe when it fits into one, else a file in memory, so that
/// writing never waits for a hook that does not read.
fn stdin_of(input: &[u8]) -> std::io::Result<Stdio> {
    // What a pipe holds even where the user has too many of them: pipe(7), "Pipe capacity".
    const PIPE: usize = 4096;
    if input.len() <= PIPE {
        let (reader, mut writer) = std::io::pipe()?;
        writer.write_all(input)?;
        return Ok(Stdio::from(reader));
    }
    let mut file = std::fs::File::from(crate::sys::fs::memfd(c"isorun-state")?);
    file.write_all(input)?;
    std::io::Seek::rewind(&mut file)?;
    Ok(Stdio::from(file))
}

/// Waits for the hook, reading what it prints so that it never blocks; kills its group when `limit`
/// is over. What its own children still print after its end is not waited for.
fn wait(
    child: &mut Child,
    output: OwnedFd,
    limit: Option<Duration>,
) -> std::result::Result<(ExitStatus, Vec<u8>), String> {
    let fail = |e: std::io::Error| format!("wait for it: {e}");
    // Without pidfds (before Linux 5.3, or denied) its end is looked for every now and then.
    let pidfd = pidfd_open(child.id() as i32).ok();
    let mut output = Some(std::fs::File::from(output));
    let mut printed = Vec::new();
    let begin = Instant::now();
    let mut ended_before = false;
    loop {
        let Some(left) = time_left(limit, begin, pidfd.is_some()) else {
            let _ = kill(-(child.id() as i32), libc::SIGKILL);
            let _ = child.kill();
            let _ = child.wait();
            let limit = limit.unwrap_or_default().as_secs();
            return Err(format!(
                "killed: it ran longer than its timeout of {limit} s"
            ));
        };
        let mut fds: Vec<PollFd> = Vec::with_capacity(2);
        fds.extend(
            output
                .iter()
                .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(
            pidfd
                .iter()
                .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut fds, left) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(format!("wait for it: {errno}")),
        }
        let readable = output.is_some() && fds[0].any().unwrap_or(false);
        drop(fds);
        let status = child.try_wait().map_err(fail)?;
        if readable && !read_some(&mut output, &mut printed) {
            output = None;
        }
        // Children of the hook that go on printing are not waited for.
        let flooded = status.is_some() && std::mem::replace(&mut ended_before, status.is_some());
        if let Some(status) = status
            && (!readable || flooded)
        {
            return Ok((status, printed));
        }
    }
}

/// How long to wait at most; nothing when the time is up. `told`: the end of the hook ends the wait.
fn time_left(limit: Option<Duration>, begin: Instant, told: bool) -> Option<PollTimeout> {
    const LOOK: Duration = Duration::from_millis(20);
    let left = match limit {
        None => None,
        Some(limit) => Some(limit.checked_sub(begin.elapsed())?),
    };
    Some(match (left, told) {
        (None, true) => PollTimeout::NONE,
        (Some(left), true) => PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        (left, false) => {
            PollTimeout::try_from(left.unwrap_or(LOOK).min(LOOK)).unwrap_or(PollTimeout::ZERO)
        }
    })
}

/// Reads once and keeps the last part; false at the end of the output.
fn read_some(output: &mut Option<std::fs::File>, printed: &mut Vec<u8>) -> bool {
    let mut buffer = [0u8; 4096];
    let Some(n) = output.as_mut().and_then(|file| file.read(&mut buffer).ok()) else {
        return false;
    };
    printed.extend_from_slice(&buffer[..n]);
    let excess = printed.len().saturating_sub(TOLD);
    printed.drain(..excess);
    n > 0
}

#[cfg(test)]
mod tests {
    use super::*;
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
