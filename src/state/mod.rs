//! What is on disk about a container, and what a container's status is.
//!
//! ```text
//! <root>/                 0700  /run/isorun, or $XDG_RUNTIME_DIR/isorun without privileges
//!   <id>/                 0700  its file descriptor carries the container's lock (flock)
//!     state.json          0600  one Record, replaced by rename: a reader needs no lock
//!     config.json         0600  the bundle's, as the container was made from it: for `exec`
//!     exec.fifo                 made by `create`, removed by `start`: there = not started yet
//!   channels/                   no container: tensor channels, see [`crate::channel`]
//! ```
//!
//! Every command that changes a container holds the lock of its directory; every command that only
//! reads takes none. A directory whose creator was killed (no state.json, or a record that never
//! left [`Phase::Creating`]) is shown as stopped and can be deleted by force.

mod process;
mod record;
mod store;

pub use process::{INIT, is_alive, is_ancestor, never_executed, parent_of, start_time};
pub use record::{Channels, Mounted, Phase, Record, Resctrl, Status};
pub use store::{CHANNELS, CHANNELS_LOCK, Dir, Entry, Store, holds_container, unprivileged};

use crate::error::{Error, Kind, Result};

/// Checks a container id by runc's rules: letters, digits and `_ + - .`, not `.` and not `..`.
///
/// # Errors
/// [`Kind::Usage`], in runc's words ("invalid container ID format").
pub fn check_id(id: &str) -> Result<()> {
    if id.is_empty() {
        return Err(Error::new(Kind::Usage, "container ID cannot be empty"));
    }
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'+' | b'-' | b'.');
    if id == "." || id == ".." || !id.bytes().all(allowed) {
        return Err(
            Error::new(Kind::Usage, format!("invalid container ID format: {id:?}"))
                .remedy("an ID has only letters, digits and _ + - ."),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for good in ["a", "A-b_c+d.e", "...", "0", ".hidden", "c0ffee"] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in [
            ".", "..", "a/b", "../a", "a b", "ä", "a\0", "a\n", "a:b", "/",
        ] {
            let error = check_id(bad).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            assert!(
                error.to_string().starts_with("invalid container ID format"),
                "{error}"
            );
        }
        assert_eq!(
            check_id("").unwrap_err().to_string(),
            "container ID cannot be empty"
        );
    }
}
