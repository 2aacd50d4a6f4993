//! The tensor channels of a container: joined before it is born, left when it is deleted.

use std::path::Path;

use crate::channel::{Key, Member, Pids, Place};
use crate::error::{Error, Result};
use crate::plan::{Degradation, Plan, without_tmpfs};
use crate::state::{Channels, Dir, Record};

/// What the record says of the plan's channels.
pub fn recorded(plan: &Plan) -> Option<Channels> {
    plan.channels.as_ref().map(|channels| Channels {
        root: channels.root.clone(),
        rootless: channels.rootless,
        keys: channels
            .join
            .iter()
            .map(|one| one.key.to_string())
            .collect(),
        pids: None,
        init: channels.init,
    })
}

/// Joins the plan's channels, which the container's record has to name already. Gives what was lost, and
/// the process ids that the container has for itself.
///
/// # Errors
/// The first that cannot be joined; then none is. No process ids are left, where the level does not allow
/// to do without; then it has joined, and is to leave.
pub fn join(plan: &Plan, dir: &Dir) -> Result<(Vec<Degradation>, Option<Pids>)> {
    let Some(channels) = &plan.channels else {
        return Ok(Default::default());
    };
    let place = Place::at(&channels.root, channels.rootless);
    let member = member(dir.id(), dir.path())?;
    let below = channels.init.then(super::pids::limit);
    let how = (channels.or_directory, below);
    let joined = place.join(&channels.join, &member, channels.uid, how)?;
    let mut lost: Vec<Degradation> = joined
        .lost
        .iter()
        .map(|(key, error)| without_tmpfs(key, error))
        .collect();
    if let Some(error) = joined.used_up {
        lost.push(crate::plan::used_up(error, plan.level)?);
    }
    Ok((lost, joined.pids))
}

/// Leaves the channels that the record of the container in the state directory `dir` names.
///
/// # Errors
/// What could not be removed of a channel that nobody uses any more.
pub fn leave(channels: Option<&Channels>, id: &str, dir: &Path) -> Result<()> {
    let Some(channels) = channels else {
        return Ok(());
    };
    let place = Place::at(&channels.root, channels.rootless);
    // What is no key was never joined.
    let keys: Vec<Key> = channels
        .keys
        .iter()
        .filter_map(|key| key.parse().ok())
        .collect();
    place.leave(&keys, &member(id, dir)?)
}

/// The same for a container that is deleted.
///
/// # Errors
/// As [`leave`].
pub fn leave_all(record: &Record, dir: &Dir) -> Result<()> {
    leave(record.channels.as_ref(), dir.id(), dir.path())
}

fn member(id: &str, dir: &Path) -> Result<Member> {
    let dir = std::path::absolute(dir)
        .map_err(|error| Error::io("resolve", dir.display().to_string(), &error))?;
    Ok(Member::of_state(id, &dir))
}
