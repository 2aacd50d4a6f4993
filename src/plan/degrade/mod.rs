//! The degrader: what takes the place of a step that the host refuses, by one table, as far as the
//! level allows it.
//!
//! ```text
//! TABLE     one row for each thing that may be lost: when, what comes in its place, from which level
//!           on, what makes up for it, what repairs it. docs/degradation.md is generated from it.
//! arm       gives every step of a plan the alternatives that its rows have: those that the level
//!           allows, and those that it refuses, so that the error can name the row and the repair
//! planned   the same for what is known before anything is done, such as a controller that is missing
//! reborn    the same for a birth that failed (cgroup, clone, maps): the container is planned again
//!           without what was lost, and made again as a whole; so it is where a step shows, before anybody
//!           could see it, that what was born is of no use ([`Otherwise::again`])
//! ```
//!
//! What is not in the table never passes. A fallback that loses nothing (mount(2) in the place of
//! fsopen, clone in the place of clone3) is no degradation and is not here.
//!
//! To add what makes up for a row whose compensation is [`Compensation::Missing`]: give the row's
//! `instead` (a step) or the planner (a birth: [`super::Asked::without`] names the feature) the steps
//! that compensate, and turn the row's compensation into [`Compensation::By`].

mod table;
mod ways;

use serde::{Deserialize, Serialize};

pub use table::TABLE;
pub(super) use ways::NETWORK;

use super::confine;
use super::step::{Action, Degradation, Otherwise, Refused, Step};
use crate::cgroup::CgroupPlan;
use crate::error::{Error, Result};
use crate::policy::Level;

/// What may be lost; the name of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "each one is told by its row")]
pub enum Feature {
    Mknod,
    SysfsUserns,
    Mqueue,
    CgroupMount,
    DevptsGid,
    OomScoreAdj,
    Rlimit,
    SeccompFlags,
    Keyring,
    Affinity,
    Capabilities,
    KeyringQuota,
    Shm,
    ChannelQuota,
    /// A channel's mount that shows owners as the container's.
    ChannelIdmap,
    CudaIpc,
    Sysfs,
    Procfs,
    Limits,
    DeviceRules,
    Apparmor,
    Network,
    UsernsRoot,
    UsernsUser,
    Essential,
}

impl Feature {
    /// Its row.
    pub fn row(self) -> &'static Row {
        // A test holds that every feature has one; the last row is the one that nothing passes.
        let found = TABLE.iter().find(|row| row.feature == self);
        found.unwrap_or(&TABLE[TABLE.len() - 1])
    }

    /// Whether processes without it are confined by other means, in `exec` as well.
    pub fn is_confined(self) -> bool {
        confine::least_abi(self).is_some()
    }

    /// Its name, as in JSON.
    pub fn name(self) -> String {
        let json = serde_json::to_string(&self).unwrap_or_default();
        json.trim_matches('"').to_string()
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub feature: Feature,
    /// What failed, and where.
    pub what: &'static str,
    /// The errnos that call for the fallback; none: it is known before anything is done.
    pub on: &'static [i32],
    /// What takes its place.
    pub fallback: &'static str,
    /// The strictest level that allows it; none: it never passes.
    pub level: Option<Level>,
    /// What makes up for the loss.
    pub compensation: Compensation,
    /// How the host can be made to allow it.
    pub remedy: &'static str,
    /// The alternative for a step, where the row is about it on this host.
    instead: fn(&Facts, &Action) -> Option<Way>,
    /// Whether the row is about a birth that failed at this stage.
    birth: fn(Stage, &Facts, &CgroupPlan) -> bool,
}

/// What makes up for a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compensation {
    /// Nothing has to: the reason.
    NotNeeded(&'static str),
    /// What isorun does.
    By(&'static str),
    /// What isorun would have to do and does not do yet: refused at every level.
    Missing(&'static str),
}

impl Row {
    /// Why `level` does not allow it; nothing: it does.
    pub fn refusal(&self, level: Level) -> Option<String> {
        let name = self.feature.name();
        match (self.level, self.compensation) {
            (None, _) => Some(format!("the degradation {name:?} is allowed at no level")),
            (_, Compensation::Missing(what)) => Some(format!(
                "the degradation {name:?} is allowed at no level yet, because this isorun has not what \
                 would make up for it: {what}"
            )),
            (Some(least), _) if level < least => Some(format!(
                "the level {level} does not allow the degradation {name:?} (--degrade={least} does: {})",
                self.fallback
            )),
            _ => None,
        }
    }

    /// The same on a host with this version of Landlock (0: none), which some rows need.
    pub fn refusal_on(&self, level: Level, landlock: u32) -> Option<String> {
        self.refusal(level)
            .or_else(|| confine::impossible(self.feature, landlock))
    }

    /// What is told of the compensation in a report, on a host with this version of Landlock.
    fn told(&self, landlock: u32) -> String {
        match self.compensation {
            Compensation::By(what) if confine::least_abi(self.feature).is_some() => {
                let abi = landlock.min(confine::NEWEST_ABI);
                format!("{what}; the ABI of Landlock is {abi}")
            }
            Compensation::By(what) => what.into(),
            Compensation::NotNeeded(_) | Compensation::Missing(_) => String::new(),
        }
    }
}

/// What the rows look at: facts about the host and about the container that is planned.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Facts {
    /// CLONE_NEW* bits of the namespaces that are made.
    pub made: u64,
    /// CLONE_NEW* bits of those that are joined.
    pub joined: u64,
    /// The runtime is in a user namespace that is not the initial one.
    pub nested: bool,
    /// The runtime's effective user id is 0.
    pub root: bool,
    /// The flags of the system call filter.
    pub filter_flags: u32,
}

impl Facts {
    /// Whether a new namespace of this kind is made.
    fn makes(&self, flag: i32) -> bool {
        self.made & flag as u64 != 0
    }

    /// Whether the container is in a user namespace: its own, a joined one or the runtime's.
    fn userns(&self) -> bool {
        self.nested || (self.made | self.joined) & libc::CLONE_NEWUSER as u64 != 0
    }
}

/// An alternative for a step.
#[derive(Debug, Default)]
struct Way {
    /// What to do in its place; nothing: it is left out.
    action: Option<Action>,
    /// What is lost, with names.
    feature: String,
    /// Where it says more than the row's.
    fallback: Option<String>,
    /// Likewise.
    remedy: Option<String>,
    /// The errnos that call for it, where they are fewer than the row's.
    on: Option<&'static [i32]>,
    /// The container is planned again without it.
    again: bool,
}

/// Where a birth failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The cgroup could not be made, or not with these limits.
    Cgroup,
    /// The clone into new namespaces.
    Clone,
    /// The id maps of the new user namespace.
    Maps,
}

/// Something that the host does not give, found when a container was born: it is planned again
/// without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The row.
    pub feature: Feature,
    /// What failed, as a sentence.
    pub reason: String,
    /// Its errno.
    pub errno: i32,
}

impl From<&Degradation> for Lost {
    fn from(known: &Degradation) -> Self {
        Self {
            feature: known.row,
            reason: known.reason.clone(),
            errno: known.errno,
        }
    }
}

/// Gives steps their alternatives.
pub(super) fn arm<'a>(steps: impl Iterator<Item = &'a mut Step>, facts: &Facts, level: Level) {
    for step in steps {
        for row in TABLE {
            let Some(way) = (row.instead)(facts, &step.action) else {
                continue;
            };
            let on = way.on.unwrap_or(row.on).to_vec();
            match row.refusal(level) {
                None => step.otherwise.push(Otherwise {
                    row: row.feature,
                    on,
                    action: way.action,
                    feature: way.feature,
                    fallback: way.fallback.unwrap_or_else(|| row.fallback.into()),
                    remedy: way.remedy.unwrap_or_else(|| row.remedy.into()),
                    again: way.again,
                }),
                Some(_) => step.refused.push(Refused {
                    row: row.feature,
                    on,
                    remedy: way.remedy.unwrap_or_else(|| row.remedy.into()),
                }),
            }
        }
    }
}

/// A loss that is known before anything is done: `what` cannot be had, as `error` says, on a host with
/// this version of Landlock (0: none).
///
/// # Errors
/// `error` with the row and the repair, where the level does not allow it.
pub(super) fn planned(
    feature: Feature,
    level: Level,
    what: String,
    error: Error,
    landlock: u32,
) -> Result<Degradation> {
    let row = feature.row();
    match row.refusal_on(level, landlock) {
        Some(refusal) => Err(error.also(&refusal)),
        None => Ok(Degradation {
            row: feature,
            feature: what,
            errno: error.errno().map_or(0, |errno| errno as i32),
            reason: error.to_string(),
            fallback: row.fallback.into(),
            compensation: row.told(landlock),
            remedy: row.remedy.into(),
        }),
    }
}

/// What the plan does without after births that failed, on a host with this version of Landlock.
pub(super) fn lost(lost: &Lost, what: String, landlock: u32) -> Degradation {
    let row = lost.feature.row();
    Degradation {
        row: lost.feature,
        feature: what,
        reason: lost.reason.clone(),
        errno: lost.errno,
        fallback: row.fallback.into(),
        compensation: row.told(landlock),
        remedy: row.remedy.into(),
    }
}

/// What is to be given up after a birth failed at `stage`, on a host with this version of Landlock (0:
/// none); the next plan is made without it ([`super::Asked::without`]).
///
/// # Errors
/// The failure itself where no row is about it; with the row and the repair where the level does not
/// allow it.
pub fn reborn(
    stage: Stage,
    error: Error,
    plan: &super::Plan,
    root: bool,
    landlock: u32,
) -> Result<Lost> {
    let facts = Facts {
        made: plan.birth.clone_flags,
        root,
        ..Facts::default()
    };
    let Some(errno) = error.errno().map(|errno| errno as i32) else {
        return Err(error);
    };
    if stage == Stage::Maps && errno == libc::EINVAL {
        // The kernel's word for maps that it cannot take: the mistake is config.json's, and nothing is denied.
        return Err(error);
    }
    let about = |row: &&Row| row.on.contains(&errno) && (row.birth)(stage, &facts, &plan.cgroup);
    match TABLE.iter().find(about) {
        Some(row) => given_up(row.feature, error, plan.level, landlock),
        None => Err(error),
    }
}

/// The loss of `feature` by the failure `error`, on a host with this version of Landlock (0: none).
///
/// # Errors
/// The failure with the row and the repair, where the level does not allow it or nothing can make up for
/// it.
pub fn given_up(feature: Feature, error: Error, level: Level, landlock: u32) -> Result<Lost> {
    let row = feature.row();
    match row.refusal_on(level, landlock) {
        Some(refusal) => Err(error.also(&refusal).also(row.remedy)),
        None => Ok(Lost {
            feature,
            reason: error.to_string(),
            errno: error.errno().map_or(0, |errno| errno as i32),
        }),
    }
}

impl Otherwise {
    /// The report of this way being taken after the failure `error`, with what is to be said of the
    /// difference.
    pub fn taken(&self, error: &Error, note: Option<String>) -> Degradation {
        let fallback = match note {
            Some(note) => format!("{}: {note}", self.fallback),
            None => self.fallback.clone(),
        };
        Degradation {
            row: self.row,
            feature: self.feature.clone(),
            reason: error.to_string(),
            errno: error.errno().map_or(0, |errno| errno as i32),
            fallback,
            compensation: self.row.row().told(0),
            remedy: self.remedy.clone(),
        }
    }
}

impl Step {
    /// A step with the alternatives that the level allows.
    pub(super) fn armed(action: Action, facts: &Facts, level: Level) -> Self {
        let mut step = Self::from(action);
        arm(std::iter::once(&mut step), facts, level);
        step
    }

    /// What the container is to be made again without after this failure of the step.
    pub fn again(&self, error: &Error) -> Option<Feature> {
        let errno = error.errno()? as i32;
        let mut ways = self.otherwise.iter();
        let way = ways.find(|way| way.again && way.on.contains(&errno))?;
        Some(way.row)
    }

    /// Does the step by `act`, else the alternatives in their order: each is tried when its errnos hold
    /// that of the failure before it. Gives what was lost on the way.
    ///
    /// # Errors
    /// All failures in a row, with the rows that the level refused and the repair.
    pub fn perform(
        &self,
        level: Level,
        mut act: impl FnMut(&Action) -> Result<Option<String>>,
    ) -> Result<Option<Degradation>> {
        let Err(first) = act(&self.action) else {
            return Ok(None);
        };
        let code = |error: &Error| error.errno().map_or(0, |errno| errno as i32);
        let (mut all, mut last) = (first.clone(), code(&first));
        let mut ways = self.otherwise.iter().filter(|way| !way.again);
        while let Some(way) = ways.find(|way| way.on.contains(&last)) {
            let Some(action) = &way.action else {
                return Ok(Some(way.taken(&all, None)));
            };
            match act(action) {
                Ok(note) => return Ok(Some(way.taken(&all, note))),
                Err(error) => {
                    last = code(&error);
                    all = all.also(&format!("in its place, {}: {error}", way.fallback));
                }
            }
        }
        for refused in self
            .refused
            .iter()
            .filter(|refused| refused.on.contains(&last))
        {
            if let Some(refusal) = refused.row.row().refusal(level) {
                all = all.also(&refusal).also(&refused.remedy);
            }
        }
        Err(all)
    }
}

#[cfg(test)]
mod tests;
