//! The last step of the child: it becomes the program.

use std::ffi::CString;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::sys::process;

/// Executes `program`, a path, with the plan's arguments, this environment and this signal mask; returns
/// only when that fails.
///
/// # Errors
/// A sentence with the program or the descriptor, and the errno.
pub(super) fn program(plan: &Plan, env: &[String], program: &str, signals: &SigSet) -> Result<()> {
    let fail = |what: &str, errno| Error::os("exec", what, errno);
    let strings = |list: &[String]| {
        list.iter()
            .map(|s| CString::new(s.as_str()))
            .collect::<std::result::Result<Vec<_>, _>>()
    };
    if plan.process.args.is_empty() {
        return Err(super::no_process());
    }
    let (Ok(args), Ok(env), Ok(path)) = (
        strings(&plan.process.args),
        strings(env),
        CString::new(program),
    ) else {
        return Err(fail(program, Errno::EINVAL));
    };
    for fd in 3..3 + plan.preserve_fds as i32 {
        crate::sys::fs::keep_open(fd).map_err(|errno| fail(&format!("descriptor {fd}"), errno))?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(signals), None)
        .map_err(|errno| fail("the signal mask", errno))?;
    process::default_sigpipe();
    let Err(errno) = nix::unistd::execve(&path, &args, &env);
    process::ignore_sigpipe();
    Err(fail(program, errno))
}
