//! The file that `--pid-file` names.

use std::io::Write;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{Error, Result};

/// Writes the pid as text, by a rename: a reader sees all of it or nothing.
///
/// # Errors
/// A sentence with the path and the errno.
pub fn write(path: &Path, pid: Pid) -> Result<()> {
    let fail =
        |error: &std::io::Error| Error::io("write the pid file", path.display().to_string(), error);
    let name = path.file_name().ok_or_else(|| {
        Error::os(
            "write the pid file",
            path.display().to_string(),
            Errno::EISDIR,
        )
    })?;
    let temporary = path.with_file_name(format!(".{}", name.to_string_lossy()));
    // One that is there may be left over, or a link that somebody planted in a directory that others
    // may write to: it goes, and is never written through.
    let _ = std::fs::remove_file(&temporary);
    std::fs::File::create_new(&temporary)
        .and_then(|mut file| file.write_all(pid.to_string().as_bytes()))
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            fail(&error)
        })
}
