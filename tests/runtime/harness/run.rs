//! Commands with a time limit: a hang is a failure, never a wait.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Far above what any call takes, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);

/// Waits until `done` says so; a panic that names `what` after the limit.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < LIMIT,
            "waited {LIMIT:?} in vain for: {what}"
        );
        sleep(Duration::from_millis(5));
    }
}

/// What a command left.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit status; 128+n when signal n ended the command itself.
    pub code: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Output {
    /// Fails unless the command ended with 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    /// Fails unless the command ended with this status.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{self:#?}", self.command);
        self
    }

    /// The value of a line `key: value` or `key value` in stdout.
    #[track_caller]
    pub fn field(&self, key: &str) -> String {
        let line = self.stdout.lines().find_map(|line| line.strip_prefix(key));
        let rest = line.unwrap_or_else(|| panic!("no line {key:?} in {self:#?}"));
        rest.trim_start_matches(':').trim().to_string()
    }

    /// stdout without the white space around it.
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }
}

/// A command under way; killed when it is dropped before its end.
pub struct Running {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
    status: Option<ExitStatus>,
}

impl Running {
    /// Starts `command`. Output goes to files in `dir`, not pipes: a container that outlives the
    /// command would keep a pipe open.
    pub fn start(command: Command, dir: &Path) -> Self {
        Self::start_with(command, dir, None)
    }

    /// The same, with stdout and stderr of its own, such as a terminal.
    pub fn start_with(mut command: Command, dir: &Path, to: Option<(Stdio, Stdio)>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let (stdout, stderr) = (dir.join(format!("out.{n}")), dir.join(format!("err.{n}")));
        let name = format!("{command:?}");
        let files = || {
            let made = [&stdout, &stderr].map(|path| Stdio::from(File::create(path).unwrap()));
            made.into()
        };
        let (out, err) = to.unwrap_or_else(files);
        command.stdout(out).stderr(err);
        let started = Instant::now();
        let child = loop {
            match command.spawn() {
                Ok(child) => break child,
                // A program that this test has just written: another thread's child, between fork and
                // exec, still has the descriptor that it was written through.
                Err(error)
                    if error.raw_os_error() == Some(libc::ETXTBSY) && started.elapsed() < LIMIT =>
                {
                    sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("{name}: {error}"),
            }
        };
        Self {
            child,
            name,
            stdout,
            stderr,
            status: None,
        }
    }

    /// The pid of the command.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Sends a signal to the command alone.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Whether it is still under way.
    pub fn alive(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status.is_none()
    }

    /// What it has written so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    /// Waits for its end, at most the limit.
    pub fn finish(mut self) -> Output {
        let start = Instant::now();
        while self.alive() {
            if start.elapsed() > LIMIT {
                let stderr =
                    String::from_utf8_lossy(&std::fs::read(&self.stderr).unwrap_or_default())
                        .into_owned();
                panic!(
                    "hang: {} not done in {LIMIT:?}\n{}\n{stderr}",
                    self.name,
                    self.stdout()
                );
            }
            sleep(Duration::from_millis(2));
        }
        use std::os::unix::process::ExitStatusExt;
        let status = self.status.unwrap();
        let stderr = std::fs::read(&self.stderr).unwrap_or_default();
        Output {
            command: self.name.clone(),
            code: status
                .code()
                .or(status.signal().map(|signal| 128 + signal))
                .unwrap(),
            stdout: self.stdout(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.alive() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end with nothing on stdin.
pub fn run_command(mut command: Command, dir: &Path) -> Output {
    command.stdin(Stdio::null());
    Running::start(command, dir).finish()
}
