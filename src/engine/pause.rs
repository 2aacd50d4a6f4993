//! Commands on the processes of a container as a whole: which there are, standing still, going on.

use crate::cgroup::Placed;
use crate::error::{Error, Kind, Result};
use crate::state::{Record, Status, Store};

/// The processes in the container's cgroup, as the host numbers them; none when it has stopped.
///
/// # Errors
/// A container that does not exist, or whose cgroup cannot be read.
pub fn processes(store: &Store, id: &str) -> Result<Vec<i32>> {
    match store.peek(id)?.placed() {
        Some(placed) => placed.processes(),
        None => Ok(Vec::new()),
    }
}

fn of(record: &Record) -> Result<Placed> {
    record.placed().ok_or_else(|| {
        Error::new(
            Kind::State,
            format!("container {:?} has no cgroup", record.id),
        )
    })
}

/// Lets all processes of a container stand still.
///
/// # Errors
/// `container not running`; what [`Placed::pause`] says.
pub fn pause(store: &Store, id: &str) -> Result<()> {
    let dir = store.open(id)?;
    let record = store.peek(id)?;
    match record.status(dir.path()) {
        Status::Running | Status::Created => of(&record)?.pause(),
        _ => Err(Error::new(Kind::State, "container not running")),
    }
}

/// Lets a paused container go on.
///
/// # Errors
/// `container not paused`; what [`Placed::resume`] says.
pub fn resume(store: &Store, id: &str) -> Result<()> {
    let dir = store.open(id)?;
    let record = store.peek(id)?;
    match record.status(dir.path()) {
        Status::Paused => of(&record)?.resume(),
        _ => Err(Error::new(Kind::State, "container not paused")),
    }
}
