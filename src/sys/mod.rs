//! Raw Linux calls: the only place for `unsafe`.
pub mod seccomp;
