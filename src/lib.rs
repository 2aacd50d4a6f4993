//! isorun: an OCI container runtime.
//!
//! Data flows one way:
//!
//! ```text
//! argv + config.json + annotations
//!    -> cli      parse, nothing else
//!    -> spec     load, check: an OCI Spec that is known to be valid, or an error naming the field
//!    -> plan     pure: (Spec, Host, Request) -> Plan { steps, degradations }   no system calls
//!    -> engine   execute the plan: parent part, child part, one sync channel
//!    -> state    what is on disk about a container; every other command reads it
//!    -> output   JSON on stdout, errors on stderr and in --log
//! ```

pub mod cgroup;
pub mod cli;
pub mod engine;
pub mod error;
pub mod exit;
pub mod host;
pub mod log;
pub mod plan;
pub mod seccomp;
pub mod spec;
pub mod state;
pub mod sys;
pub mod time;
