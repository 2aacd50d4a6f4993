//! The cgroup manager: v1, hybrid and v2, by plain files; with systemd as the maker of the cgroup where
//! that is asked for ([`Scope`]).
//!
//! ```text
//! detect   what is mounted, and where this process is in it    -> Hierarchies   (facts)
//! plan     pure: what the configuration asks for               -> CgroupPlan    (data)
//! create   mkdir, limits in order, each read back, device rules -> Cgroup
//! Placed   the record of it in the state directory: processes, signals, kill, frozen, remove
//! ```
//!
//! Paths follow runc's cgroupfs driver, so that engines that compute them find what they expect.
//! On v2 a container is born in its cgroup ([`Cgroup::clone_fd`]); on v1 the child enters by
//! itself ([`Cgroup::entry`]) or is put there ([`Cgroup::join`]).
//!
//! What delete removes is what create made: [`Placed`] names those directories, and it can be
//! written before they exist ([`Placed::planned`]), so a runtime that was killed in between
//! leaves nothing that `delete --force` does not find.

mod below;
mod create;
mod device_change;
mod devices;
mod freeze;
mod fs;
mod hierarchies;
mod limits;
mod oom;
mod placed;
mod plan;
mod readback;
mod scope;
mod stats;
mod systemd;
mod update;
mod v1;
mod v2;
mod view;
mod walk;

#[cfg(test)]
mod tests;

pub use below::SubCgroups;
pub use create::{Cgroup, Entry, refused_devices};
pub use devices::{Access, DeviceKind, DeviceRule, Devices};
pub use hierarchies::{Hierarchies, Mode, V1Hierarchy, V2Hierarchy, detect};
pub use limits::{Missing, RULES};
pub use oom::OomWatch;
pub use placed::{Placed, PlacedDir};
pub use plan::{CgroupPlan, Ignored, PlannedDir, Version, Write, plan, plan_possible, plan_scope};
pub use readback::Check;
pub use stats::{CmtStats, IntelRdt, L3CacheInfo, MbmStats, MemBwInfo, Stats};
pub use systemd::{PROPERTY_ANNOTATIONS, Scope, Systemd, Unit, Value};
pub use view::{MountView, Seen, ViewEntry, mount_view};
