//! What this host allows of what the demo wants, found out by trying.

use std::process::{Command, Stdio};

use nix::errno::Errno;

use super::limits::Limits;
use super::probe;
use crate::error::{Error, Kind, Result, errno_words};

/// A kind of namespace: its name in config.json, in /proc/PID/ns, and its flag for unshare(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    /// Its name in config.json.
    pub kind: &'static str,
    /// Its name in /proc/PID/ns.
    pub file: &'static str,
    flag: i32,
}

/// All eight kinds.
pub const NAMESPACES: [Namespace; 8] = [
    Namespace {
        kind: "user",
        file: "user",
        flag: libc::CLONE_NEWUSER,
    },
    Namespace {
        kind: "pid",
        file: "pid",
        flag: libc::CLONE_NEWPID,
    },
    Namespace {
        kind: "mount",
        file: "mnt",
        flag: libc::CLONE_NEWNS,
    },
    Namespace {
        kind: "network",
        file: "net",
        flag: libc::CLONE_NEWNET,
    },
    Namespace {
        kind: "ipc",
        file: "ipc",
        flag: libc::CLONE_NEWIPC,
    },
    Namespace {
        kind: "uts",
        file: "uts",
        flag: libc::CLONE_NEWUTS,
    },
    Namespace {
        kind: "cgroup",
        file: "cgroup",
        flag: libc::CLONE_NEWCGROUP,
    },
    Namespace {
        kind: "time",
        file: "time",
        flag: libc::CLONE_NEWTIME,
    },
];

/// The cgroup controllers whose limits the demo sets.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// What is denied, each with the reason.
#[derive(Debug, Default)]
pub struct Denied {
    /// Kinds of namespaces, by their name in config.json.
    pub namespaces: Vec<(&'static str, String)>,
    /// cgroup controllers.
    pub controllers: Vec<(&'static str, String)>,
}

impl Denied {
    /// Tries each namespace in a process of its own, and looks for each controller.
    pub fn find_out() -> Self {
        let namespaces = NAMESPACES
            .iter()
            .filter_map(|namespace| Some((namespace.kind, refusal(namespace.flag)?)))
            .collect();
        let controllers = CONTROLLERS
            .into_iter()
            .filter(|controller| !Limits::can(controller))
            .map(|controller| (controller, format!("no {controller} controller here")))
            .collect();
        Self {
            namespaces,
            controllers,
        }
    }

    /// Counts a kind of namespace or a controller as denied, whatever the host says.
    ///
    /// # Errors
    /// Where there is neither of that name.
    pub fn leave_out(&mut self, name: &str) -> Result<()> {
        let why = || format!("left out by --without {name}");
        if let Some(namespace) = NAMESPACES.iter().find(|namespace| namespace.kind == name) {
            self.namespaces.push((namespace.kind, why()));
        } else if let Some(controller) = CONTROLLERS.iter().find(|known| **known == name) {
            self.controllers.push((controller, why()));
        } else {
            let sentence = format!("--without {name}: no such namespace or controller");
            return Err(Error::new(Kind::Usage, sentence));
        }
        Ok(())
    }

    /// Why namespaces of this kind are denied.
    pub fn namespace(&self, kind: &str) -> Option<&str> {
        find(&self.namespaces, kind)
    }

    /// Why this controller's limits are denied.
    pub fn controller(&self, name: &str) -> Option<&str> {
        find(&self.controllers, name)
    }
}

fn find<'a>(list: &'a [(&'static str, String)], name: &str) -> Option<&'a str> {
    list.iter()
        .find(|(found, _)| *found == name)
        .map(|(_, why)| why.as_str())
}

/// Why this namespace cannot be made; none where it can.
fn refusal(flag: i32) -> Option<String> {
    let output = Command::new("/proc/self/exe")
        .args([probe::NAME, "unshare", &flag.to_string()])
        .stdin(Stdio::null())
        .output();
    let said = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_string(),
        Err(error) => return Some(error.to_string()),
    };
    match said.parse() {
        Ok(0) => None,
        Ok(errno) => Some(errno_words(Errno::from_raw(errno))),
        Err(_) => Some("it could not be tried".to_string()),
    }
}
