//! Tensor channels: directories in memory that containers and the host share by name.
//!
//! ```text
//! <root>/                    0711  /run/isorun/channels, or $XDG_RUNTIME_DIR/isorun/channels
//!   .lock                          whoever changes a channel or its members holds it (flock)
//!   <name>/                        the channel: a tmpfs of its own; without privileges a directory
//!   .<name>.json             0600  its metadata, replaced by rename: a reader needs no lock
//!   .<name>.members/         0700  a file for each container that has joined: member.rs
//! ```
//!
//! A channel of Kubernetes is `<pod namespace>/<name>`, its directory `<pod namespace>@<name>`.
//!
//! ```text
//! request   annotations -> what a container asks for                                    pure
//! rules     /etc/isorun/channels.d -> who may join what
//! cuda      what asks for GPU memory, and which channel is /dev/shm then
//! pids      ranges of process ids that no two members share
//! grant     request + rules + channels that are there -> what it gets, or a refusal     pure
//! place     the directory: join, leave, create, remove, gc
//! tensors   what is in a channel: safetensors files and endpoints
//! ```
//!
//! Nothing counts members: who is one follows from the containers' records and processes each time it
//! is asked, so that a SIGKILL at any step leaves nothing that [`Place::gc`] does not see.

mod cuda;
mod grant;
mod locked;
mod member;
mod metadata;
mod pids;
mod place;
mod request;
mod rules;
mod size;
mod tensors;
mod usage;

#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use cuda::{CUDA, Cuda, ENVIRONMENT};
pub use grant::{Channel, Facts, Made, grant, shared_label};
pub use member::Member;
pub use metadata::{DEFAULT_INODES, Metadata};
pub use pids::Pids;
pub use place::{Collected, Joined, MODE, New, Place};
pub use request::{
    CHANNELS, JOINED, Request, SHM, SHM_SIZE, Shm, Wanted, asks, request, size_annotation,
};
pub use rules::{Access, Rule, Rules};
pub use size::Size;
pub use tensors::{Contents, Tensor, contents};
pub use usage::Usage;

/// Where channels are in a container.
pub const INSIDE: &str = "/run/isorun/channels";

/// The longest name of a channel, in bytes.
const LONGEST: usize = 64;

/// The name of a channel on this host: its own, and in Kubernetes the pod's namespace before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key {
    namespace: Option<String>,
    name: String,
}

impl Key {
    /// A key of these parts.
    ///
    /// # Errors
    /// What is wrong with one of them, in words.
    pub fn new(namespace: Option<&str>, name: &str) -> Result<Self, String> {
        namespace.map(check).transpose()?;
        check(name)?;
        Ok(Self {
            namespace: namespace.map(str::to_string),
            name: name.to_string(),
        })
    }

    /// The channel's name, as in the container.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pod's namespace, where there is one.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The name of its directory on the host.
    pub fn directory(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}@{}", self.name),
            None => self.name.clone(),
        }
    }

    /// The key of a directory on the host; none where it is no channel's.
    fn of_directory(directory: &str) -> Option<Self> {
        match directory.split_once('@') {
            Some((namespace, name)) => Self::new(Some(namespace), name).ok(),
            None => Self::new(None, directory).ok(),
        }
    }

    /// Where the channel is in a container.
    pub fn inside(&self) -> String {
        format!("{INSIDE}/{}", self.name)
    }

    /// The variable that names the channel's directory to the program.
    pub fn variable(&self) -> String {
        let upper = self.name.to_ascii_uppercase().replace(['-', '.'], "_");
        format!("ISORUN_CHANNEL_{upper}")
    }
}

/// Checks a channel's name.
fn check(name: &str) -> Result<(), String> {
    let allowed =
        |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-');
    let wrong = |why: &str| Err(format!("{name:?} is no name of a channel: {why}"));
    if name.is_empty() {
        wrong("it is empty")
    } else if name.len() > LONGEST {
        wrong(&format!("it is longer than {LONGEST} bytes"))
    } else if name.starts_with('.') {
        wrong("it starts with a dot")
    } else if !name.bytes().all(allowed) {
        wrong("it may have only a-z, 0-9 and . _ -")
    } else {
        Ok(())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) => Self::new(Some(namespace), name),
            None => Self::new(None, text),
        }
    }
}

impl TryFrom<String> for Key {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}
