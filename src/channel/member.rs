//! Who has joined a channel.
//!
//! A member is a file that names a container: the state directory of one of isorun's, or the first
//! process of another runtime's (by the hook). It is written before the channel is joined. Whether the
//! container really is a member follows from what it names: the record in that state directory has to
//! name the channel, too, and its process has to be alive. So a file that a SIGKILL or a reboot left
//! behind means nothing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Key, Pids};
use crate::error::Kind;
use crate::state::{Status, Store, is_alive};

/// A container that has joined a channel, or did once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// The container's id.
    pub id: String,
    /// Its state directory, where it is one of isorun's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PathBuf>,
    /// Its first process, where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The bundle of a container of another runtime: ids are unique in one of its places only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<PathBuf>,
    /// When that process started, field 22 of /proc/PID/stat.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start: u64,
    /// It only reads.
    #[serde(default)]
    pub readonly: bool,
    /// The boot of the machine in which it joined.
    #[serde(default)]
    pub boot: String,
    /// The process ids that are its own among the members, where GPU memory is shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<Pids>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Member {
    /// A container of isorun's, by its state directory.
    pub fn of_state(id: &str, state: &Path) -> Self {
        Self {
            id: id.to_string(),
            state: Some(state.to_path_buf()),
            pid: None,
            bundle: None,
            start: 0,
            readonly: false,
            boot: String::new(),
            pids: None,
        }
    }

    /// A container of another runtime, by its first process.
    pub fn of_process(id: &str, bundle: &Path, pid: i32, start: u64) -> Self {
        Self {
            id: id.to_string(),
            state: None,
            pid: Some(pid),
            bundle: Some(bundle.to_path_buf()),
            start,
            readonly: false,
            boot: String::new(),
            pids: None,
        }
    }

    /// The name of its file: the same for the same container, whatever its id looks like.
    pub(super) fn file(&self) -> String {
        let what = match &self.state {
            Some(state) => state.display().to_string(),
            None => {
                let bundle = self.bundle.as_deref().unwrap_or(Path::new(""));
                format!("hook {} {}", self.id, bundle.display())
            }
        };
        // FNV-1a, 64 bits.
        let hash = what.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("{hash:016x}")
    }

    /// Whether it is a member of the channel now; its first process, where it has one, is told in `pid`.
    pub(super) fn is_live(&mut self, key: &Key, boot: &str) -> bool {
        if self.boot != boot {
            return false;
        }
        let Some(state) = &self.state else {
            return self.pid.is_some_and(|pid| is_alive(pid, self.start));
        };
        let Some(root) = state.parent() else {
            return false;
        };
        match Store::new(root).peek(&self.id) {
            Ok(record) => {
                let named = record.channels.as_ref().is_some_and(|joined| {
                    joined.keys.iter().any(|known| *known == key.to_string())
                });
                self.pid = record.pid;
                named && record.status(state) != Status::Stopped
            }
            Err(error) if error.kind() == Kind::NotFound => false,
            // Nobody knows: what may be used is not taken away.
            Err(_) => true,
        }
    }
}
