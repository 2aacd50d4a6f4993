//! isorun: an OCI container runtime.
//!
//! Data flows one way:
//!
//! ```text
//! argv + config.json + annotations
//!    -> cli      parse, nothing else
//!    -> spec     load, check: an OCI Spec that is known to be valid, or an error naming the field
//!    -> policy   how much may be lost on this host: config.toml, flag, environment, annotation
//!    -> channel  which tensor channels it may join: annotations and the administrator's rules
//!    -> plan     pure: (Spec, Host, Request) -> Plan { steps, degradations }   no system calls
//!    -> engine   execute the plan: parent part, child part, one sync channel; a step carries the
//!                alternatives that the policy allows
//!    -> state    what is on disk about a container; every other command reads it
//!    -> output   JSON on stdout, errors on stderr and in --log
//! ```

#[forbid(unsafe_code)]
pub mod cgroup;
#[forbid(unsafe_code)]
pub mod channel;
#[forbid(unsafe_code)]
pub mod cli;
#[forbid(unsafe_code)]
pub mod doctor;
#[forbid(unsafe_code)]
pub mod engine;
#[forbid(unsafe_code)]
pub mod error;
#[forbid(unsafe_code)]
pub mod exit;
#[forbid(unsafe_code)]
pub mod host;
#[forbid(unsafe_code)]
pub mod install;
#[forbid(unsafe_code)]
pub mod log;
#[forbid(unsafe_code)]
pub mod plan;
#[forbid(unsafe_code)]
pub mod policy;
#[forbid(unsafe_code)]
pub mod seccomp;
#[forbid(unsafe_code)]
pub mod spec;
#[forbid(unsafe_code)]
pub mod state;
pub mod sys;
#[forbid(unsafe_code)]
pub mod time;
