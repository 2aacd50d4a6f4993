//! Exit codes of the `isorun` command.
//!
//! They follow runc, because engines read them: 0 for success, 1 for every failure of isorun
//! itself, and for a foreground `run` (later `exec`) the exit status of the container's process,
//! where a process that a signal ended counts as 128 + signal.

use std::process::ExitCode;

/// How the `isorun` command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command did what was asked.
    Success,
    /// The command failed; one sentence on stderr and in `--log` says why.
    Failure,
    /// There is no such command: 3, as with runc.
    NoCommand,
    /// The status of the container's process, passed on: 0 to 255.
    Container(u8),
    /// A signal ended isorun's own work early (demo): 128 + signal.
    Signal(i32),
}

impl Exit {
    /// A container's exit status as `run` got it: its exit code, or 128 + signal. What does not
    /// fit into a byte cannot come from a process, and counts as a failure.
    pub fn of_container(status: i32) -> Self {
        match u8::try_from(status) {
            Ok(0) => Exit::Success,
            Ok(status) => Exit::Container(status),
            Err(_) => Exit::Failure,
        }
    }

    /// The number that the parent process sees.
    pub fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::NoCommand => 3,
            Exit::Container(status) => status,
            Exit::Signal(signal) => u8::try_from(128 + signal).unwrap_or(1),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        assert_eq!(Exit::Success.code(), 0);
        assert_eq!(Exit::Failure.code(), 1);
        assert_eq!(Exit::NoCommand.code(), 3);
        assert_eq!(Exit::Signal(2).code(), 130);
        for (status, code) in [
            (0, 0),
            (1, 1),
            (7, 7),
            (137, 137),
            (255, 255),
            (256, 1),
            (-1, 1),
        ] {
            assert_eq!(Exit::of_container(status).code(), code, "{status}");
        }
    }
}
