//! A terminal as a person or an engine has it, and the sockets through which descriptors come.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use isorun::sys::socket::recv_with_fds;
use isorun::sys::terminal::{Size, resize};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{Winsize, openpty};

use super::{Bundle, Running, busybox, runtime, wait_for};

/// The master of a pseudoterminal, and what it has said so far.
pub struct Terminal {
    /// The master, not blocking.
    pub master: File,
    seen: Vec<u8>,
}

impl Terminal {
    /// Takes a master.
    pub fn new(master: OwnedFd) -> Self {
        fcntl(
            &master,
            FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK),
        )
        .unwrap();
        Self {
            master: File::from(master),
            seen: Vec::new(),
        }
    }

    /// Types.
    pub fn write(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Everything that came so far.
    pub fn text(&mut self) -> String {
        let mut buffer = [0; 4096];
        loop {
            match nix::unistd::read(&self.master, &mut buffer) {
                // EIO: nobody has the other end open now.
                Ok(0) | Err(Errno::EAGAIN | Errno::EIO) => break,
                Ok(n) => self.seen.extend_from_slice(&buffer[..n]),
                Err(errno) => panic!("read the terminal: {errno}"),
            }
        }
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Waits until this text has come.
    #[track_caller]
    pub fn wait(&mut self, text: &str) {
        let mut last = String::new();
        let start = std::time::Instant::now();
        while !last.contains(text) {
            assert!(
                start.elapsed().as_secs() < 40,
                "waited in vain for {text:?}; the terminal said {last:?}"
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
            last = self.text();
        }
    }

    /// Changes the size, as a window does.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Size { rows, columns };
        resize(self.master.as_fd(), size).unwrap();
    }
}

/// A terminal of 24 lines and 80 columns, and its other end.
pub fn terminal() -> (Terminal, File) {
    let size = Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pair = openpty(&size, None).unwrap();
    for fd in [&pair.master, &pair.slave] {
        fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).unwrap();
    }
    (Terminal::new(pair.master), File::from(pair.slave))
}

/// A socket at which a test waits for a descriptor.
pub struct Socket {
    listener: UnixListener,
    /// Where it is.
    pub path: PathBuf,
}

impl Socket {
    /// Listens below the bundle's `host` directory.
    pub fn listen(bundle: &Bundle, name: &str) -> Self {
        let path = bundle.host(name);
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener, path }
    }

    /// The path as an argument.
    pub fn arg(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// The message that came, and its one descriptor.
    pub fn receive(&self) -> (String, OwnedFd) {
        let mut stream = None;
        wait_for("somebody to connect to the socket", || {
            match self.listener.accept() {
                Ok((accepted, _)) => stream = Some(accepted),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("accept: {error}"),
            }
            stream.is_some()
        });
        let stream = stream.unwrap();
        let limit = Some(std::time::Duration::from_secs(40));
        stream.set_read_timeout(limit).unwrap();
        let mut buffer = [0; 4096];
        let (length, fds) = recv_with_fds(stream.as_fd(), &mut buffer).unwrap();
        let [fd] = fds.try_into().expect("one descriptor with the message");
        (String::from_utf8_lossy(&buffer[..length]).into_owned(), fd)
    }
}

impl Bundle {
    /// `run` in the foreground on the terminal whose other end this is, by a shell that leads a session
    /// there; `redirect` is for it: `<file`, `>file`.
    pub fn spawn_on_terminal(&self, slave: &File, redirect: &str) -> Running {
        self.spawn_in_shell(slave, &format!("exec \"$@\" {redirect}"))
    }

    /// The same with a script of its own, in which `"$@"` is the `run`.
    pub fn spawn_in_shell(&self, slave: &File, script: &str) -> Running {
        self.write();
        let dir = self.bundle_dir();
        let args = ["run", "--bundle", dir.to_str().unwrap(), &self.id];
        self.spawn_script(slave, script, &args)
    }

    /// The same as [`Bundle::spawn_on_terminal`] with another command than `run`.
    pub fn spawn_on_terminal_with(&self, slave: &File, redirect: &str, args: &[&str]) -> Running {
        self.spawn_script(slave, &format!("exec \"$@\" {redirect}"), args)
    }

    fn spawn_script(&self, slave: &File, script: &str, args: &[&str]) -> Running {
        let tagged = self.command(&[]);
        let mut command = Command::new(busybox());
        command.args(["setsid", "-c", "sh", "-c", script, "sh"]);
        command
            .arg(&runtime().path)
            .arg("--root")
            .arg(self.state_root());
        command.args(args);
        for (name, value) in tagged.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.current_dir(&self.dir);
        let end = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(end());
        Running::start_with(command, &self.dir.join("io"), Some((end(), end())))
    }
}
