//! isorun's own init: the first process of a container in whose channels GPU memory is shared.
//!
//! ```text
//! the child, ready for exec: ids, capabilities, limits, filter are the container's already
//!   |- fork --> the program: a session of its own, the terminal, exec
//!   `- init:    no descriptor is left open; passes signals on, reaps orphans, ends with the program's
//!               status
//! ```
//!
//! It is the child that stays, and executes nothing: so nothing has to be found in the image, and no label
//! or filter has to allow it. Of the program's capabilities it keeps none, but has CAP_KILL; nobody without
//! CAP_SYS_PTRACE where isorun runs looks into it (exec joins by the program), and /proc/1/exe is what
//! seal.rs says, which nobody can write.
//! docs/decisions/0014 tells which settings are whose.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::Pid;

use super::child::Inherited;
use super::execute;
use super::foreground::reap;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::state::INIT;
use crate::sys::{clone, process, terminal};

/// The capability that init keeps, whatever config.json gives the program: CAP_KILL, or a program that changes
/// its user would get no signals any more. It reaches the container's own processes only.
pub(super) const KILL: u64 = 1 << 5;

/// Forks the program and stays as its init. Returns in the program's process only, when that could not
/// be executed; or where there is none.
///
/// # Errors
/// A sentence with the step and the errno.
pub(super) fn run(plan: &Plan, env: &[String], program: &str, inherited: &Inherited) -> Result<()> {
    let fail = |what: &'static str| move |errno| Error::os("start the program:", what, errno);
    // Held back from here on: none that comes while the program is forked is lost.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
        .map_err(fail("block signals"))?;
    let with_terminal = plan.terminal();
    let stdin = std::io::stdin();
    if with_terminal {
        give_up(stdin.as_fd()).map_err(fail("give the terminal up"))?;
    }
    match clone::fork_into(0) {
        Ok(0) => {
            // What is init's alone. Where a filter denies it, the exec takes it away.
            if let Some(caps) = plan.identity().map(|identity| &identity.caps) {
                let _ = process::limit_caps(caps.effective, caps.permitted, caps.inheritable);
            }
            nix::unistd::setsid().map_err(fail("make a session"))?;
            if with_terminal {
                terminal::control(stdin.as_fd()).map_err(fail("take the terminal"))?;
            }
            execute::program(plan, &with_own_pid(env), program, &inherited.signals)
        }
        Ok(pid) => stay(Pid::from_raw(pid), inherited),
        Err(errno) => Err(fail("fork")(errno).remedy(match errno {
            Errno::EAGAIN => {
                "init is a process, too: linux.resources.pids.limit or RLIMIT_NPROC allows no second one"
            }
            _ => "",
        })),
    }
}

/// Lets the terminal go. The kernel tells the session's foreground by SIGHUP and SIGCONT: that is this
/// process, and they are not for the program.
fn give_up(stdin: BorrowedFd<'_>) -> nix::Result<()> {
    terminal::disown(stdin)?;
    let mut told = SigSet::empty();
    told.add(Signal::SIGHUP);
    told.add(Signal::SIGCONT);
    while process::take_signal(&told)?.is_some() {}
    Ok(())
}

/// Sockets to listen on are for the process whose number LISTEN_PID says: sd_listen_fds(3).
fn with_own_pid(env: &[String]) -> Vec<String> {
    let mut env = env.to_vec();
    for pair in &mut env {
        if pair == "LISTEN_PID=1" {
            *pair = format!("LISTEN_PID={}", std::process::id());
        }
    }
    env
}

/// What init does until the program has ended.
fn stay(program: Pid, inherited: &Inherited) -> ! {
    process::set_arguments(inherited.arguments, INIT);
    // The environment is that of who called isorun.
    process::set_arguments(inherited.environment, "");
    // A listener of a filter may have been handed over; denied by that filter, it stays as it was then.
    let _ = process::dumpable(false);
    let _ = process::limit_caps(KILL, KILL, 0);
    // The last: the end of the channel says that the program was executed. One by one what somebody waits
    // for the end of, which may have a number above those that are closed where close_range(2) is denied.
    let channel = inherited.sync.fd().as_raw_fd();
    let others = inherited.fifo.iter().chain(&inherited.late);
    let waited = others.map(AsRawFd::as_raw_fd).chain([channel]);
    let _ = crate::sys::fs::close_all(&waited.collect::<Vec<_>>());
    loop {
        match reap(program) {
            Ok(Some(status)) => process::exit_now(status),
            Ok(None) => {}
            // Nobody could say how the program ended.
            Err(_) => process::exit_now(255),
        }
        match process::wait_signal() {
            Ok(signal) if signal == Signal::SIGCHLD as i32 => {}
            // It may have ended just now: then it is reaped.
            Ok(signal) => drop(process::kill(program.as_raw(), signal)),
            Err(Errno::EINTR) => {}
            Err(_) => process::exit_now(255),
        }
    }
}
