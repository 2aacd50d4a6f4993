//! The suite that runs real bundles, on isorun or on a reference.
//!
//! `RUNTIME=runc` (or a path) runs the same tests on another runtime: a test that only isorun
//! passes may be a wrong test. What a reference lacks is skipped there with the reason. Under
//! `tests/in-v2-view` the same tests see a pure cgroup v2 tree. Every test takes its own directory,
//! state directory, container id and cgroup, and fails when any of them is left behind.

// The lint that forbids unwrap is for the runtime; a test that unwraps wrongly fails, as it should.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[macro_use]
mod harness;

mod bad_cases;
mod bad_input;
mod capabilities;
mod captured;
mod cgroups;
mod channels;
mod channels_hook;
mod channels_kubernetes;
mod channels_refused;
mod channels_rootless;
mod cuda;
mod cuda_init;
#[macro_use]
mod compensation;
mod compensation_devices;
mod concurrency;
mod degrade;
mod degrade_levels;
mod denied;
mod descriptors;
mod devices;
mod doctor;
mod doctor_nested;
mod events;
mod exec;
mod exec_cgroup;
mod exec_safety;
mod exec_terminal;
mod faults;
mod features;
mod hooks;
mod hooks_corners;
mod install;
mod isorun_only;
mod join;
mod labels;
mod lifecycle;
mod list;
mod mounts;
mod mounts_cgroup;
mod mounts_denied;
mod mounts_flags;
mod mounts_idmap;
mod mounts_root;
mod mounts_targets;
mod namespaces;
mod net_devices;
mod pause;
mod process;
mod ps;
mod rdt;
mod relay;
mod resources;
mod rootfs;
mod rootless;
mod safety;
mod safety_proc;
mod sandbox;
mod scheduling;
mod seccomp;
mod seccomp_notify;
mod shared_mounts;
mod signals;
mod systemd;
mod systemd_real;
mod terminal;
mod update;
mod update_devices;
mod userns;
