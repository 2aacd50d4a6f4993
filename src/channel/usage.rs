//! How full a channel is.

use std::os::unix::fs::MetadataExt;

use nix::sys::statvfs::statvfs;
use serde::Serialize;

use super::{Key, Metadata, Place};

/// How many files of a channel without a tmpfs are looked at.
const FILES: usize = 4096;

/// How full a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Bytes in use.
    pub used: u64,
    /// Files and directories in it, as far as the limit counts them.
    pub files: u64,
    /// The most bytes; nothing without a limit of its own.
    pub size: Option<u64>,
    /// The most files; nothing without a limit of its own.
    pub inodes: Option<u64>,
}

impl Place {
    /// How full a channel is; nothing where it is not mounted here. Of one without a tmpfs the files in
    /// the directory itself are counted.
    pub fn usage(&self, key: &Key, metadata: &Metadata) -> Option<Usage> {
        let path = self.path(key);
        if metadata.plain {
            let files = std::fs::read_dir(&path).ok()?.take(FILES);
            let sizes: Vec<u64> = files
                .flatten()
                .filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512))
                .collect();
            return Some(Usage {
                used: sizes.iter().sum(),
                files: sizes.len() as u64,
                size: None,
                inodes: None,
            });
        }
        let here = std::fs::symlink_metadata(&path).ok()?.dev();
        if here != metadata.device {
            return None;
        }
        let told = statvfs(&path).ok()?;
        let bytes = |blocks: u64| blocks * told.fragment_size();
        Some(Usage {
            used: bytes(told.blocks() - told.blocks_free()),
            // The directory itself counts for one.
            files: (told.files() - told.files_free()).saturating_sub(1),
            size: Some(bytes(told.blocks())),
            inodes: Some(told.files()),
        })
    }
}
