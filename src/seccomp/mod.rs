//! A container's seccomp profile as a program for the kernel.
//!
//! [`compile`] turns `linux.seccomp` of config.json into a [`Program`]: classic BPF, the flags for
//! seccomp(2), and what the listener needs. It is pure and makes no system call;
//! [`crate::sys::seccomp::load`] loads the result in the child.
//!
//! # What a profile means
//!
//! The same as with runc 1.3 on libseccomp 2.6; where they do not agree with the specification, or
//! libseccomp with itself, it says so here.
//!
//! - Architectures: the native one is always in, listed or not. A call of any other one is killed
//!   (`KILL_THREAD`, libseccomp's default), and so are numbers with bit 30 on x86_64 where x32 is
//!   not listed. x86_64, x86, x32, aarch64 and arm have tables; another one is an error.
//! - Rules: the private module `rules` tells which one wins. A rule with the default action is skipped. If a rule
//!   has two conditions on one argument, each of its conditions becomes a rule of its own (runc):
//!   they are alternatives then, else all have to hold. 32-bit interfaces, x32 too, compare the
//!   lower 32 bits (libseccomp). For MASKED_EQ `value` is the mask and `valueTwo` the value.
//! - Names that no table has are left out, and are listed in [`Program::unknown`]. Names that an
//!   architecture lacks do nothing there.
//! - Newer calls: unless the default action lets calls pass (ALLOW, LOG, TRACE), a number above the
//!   greatest one that the profile names gets ENOSYS, so that a C library falls back to an older
//!   call; holes below it get the default action (runc's stub). Rules that are skipped count. An
//!   architecture of which only number 0 or nothing is named has no such limit.
//! - x86's socketcall(2) and ipc(2): a rule on `socket` is also one on `socketcall` with 1 as its
//!   first argument, and so on for all calls that are multiplexed there, those that exist only so
//!   (`accept`, `send`, `semop`) included. Its other conditions stay as they are, although the
//!   argument of a multiplexer is a pointer that no filter can follow: name `socketcall` itself in
//!   a profile to decide on it as a whole. Two differences: if such derived rules contradict each
//!   other (libseccomp: EEXIST), the sterner action stays; and numbers of multiplexed calls count
//!   for the ENOSYS limit (runc leaves them out, and a profile of few names can lose them).
//! - Errors: `errnoRet` with an action that takes none (the specification and crun; runc ignores
//!   it), errno values that the kernel would cut (ERRNO above 4095, TRACE above 65535), NOTIFY as
//!   the default action or on write(2) (runc), NOTIFY without `listenerPath`, `listenerMetadata`
//!   without it, contradicting rules, an argument index above 5, empty `names`. A `listenerPath`
//!   without NOTIFY is ignored, as the specification has it.
//! - libseccomp contradicts its own order in some profiles with several conditional rules on one
//!   call. Rules with comparisons of one argument share the test of its upper half, so a longer one
//!   is lost or refused (EEXIST) there if the actions differ; and after a rule with more conditions
//!   the next one can be asked about the wrong argument: with `kcmp: 0 != 1 -> ALLOW` and
//!   `kcmp: 0 != 3, 1 == 3 -> ERRNO`, kcmp(2, 1) gets the default action (2.5.4 and 2.6.1). Here the
//!   stated order holds on every interface, so such profiles compile, and do what they say. Of 2000
//!   random profiles of a kind, whose rules were made to collide, libseccomp refuses 160 to 280 that
//!   are right here; of the rest none differ without conditions and 20 to 85 with them, most of those
//!   in that libseccomp does what no matching rule says (tests/oracle.rs).
//!   The captured profiles of Podman and Docker agree on every number.
//! - Flags: SPEC_ALLOW if `flags` is absent, as runc does; none if it is an empty list.

mod abi;
mod assemble;
mod check;
mod generate;
mod rules;
mod table;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

use crate::error::Result;
pub use crate::sys::seccomp::Insn;
use crate::sys::seccomp::{self as kernel, flags_available};

/// The actions that isorun knows, for `features`.
pub const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

/// The operators that isorun knows, for `features`.
pub const OPERATORS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// The architectures that isorun knows, for `features`.
pub const ARCHS: &[&str] = &[
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

/// The filter flags that isorun knows, for `features`.
pub const FLAGS: &[&str] = &[
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// Those of [`FLAGS`] that the running kernel has too, for `features`. Asks the kernel.
pub fn supported_flags() -> Vec<&'static str> {
    let bits = [
        kernel::FLAG_TSYNC,
        kernel::FLAG_SPEC_ALLOW,
        kernel::FLAG_LOG,
        // The kernel refuses it without a listener.
        kernel::FLAG_WAIT_KILLABLE_RECV | kernel::FLAG_NEW_LISTENER,
    ];
    FLAGS
        .iter()
        .zip(bits)
        .filter(|(_, bits)| flags_available(*bits))
        .map(|(name, _)| *name)
        .collect()
}

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// What the kernel runs before each system call; at most 4096 instructions.
    pub instructions: Vec<Insn>,
    /// Flags for seccomp(2), `SECCOMP_FILTER_FLAG_*`. An older kernel may lack LOG and SPEC_ALLOW,
    /// which can be left out; NEW_LISTENER is set exactly if a rule says NOTIFY.
    pub flags: u32,
    /// The socket that gets the listener; set exactly if NEW_LISTENER is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_path: Option<PathBuf>,
    /// `listenerMetadata`, for the state that goes with the listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_metadata: Option<String>,
    /// Names of calls that no table has, in the order of the profile; they were left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// Compiles a profile for the machine that this binary is built for.
///
/// # Errors
///
/// An impossible rule, with its path in config.json; see the module documentation.
pub fn compile(spec: &LinuxSeccomp) -> Result<Program> {
    compile_for(spec, abi::Abi::NATIVE)
}

/// The same with another native architecture, which tests need.
fn compile_for(spec: &LinuxSeccomp, native: abi::Abi) -> Result<Program> {
    let checked = check::check(spec, native)?;
    let notify = checked.flags & kernel::FLAG_NEW_LISTENER != 0;
    Ok(Program {
        instructions: generate::generate(&checked.filter)?,
        flags: checked.flags,
        listener_path: spec.listener_path().clone().filter(|_| notify),
        listener_metadata: spec.listener_metadata().clone().filter(|_| notify),
        unknown: checked.unknown,
    })
}
