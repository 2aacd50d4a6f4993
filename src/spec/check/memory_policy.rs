//! linux.memoryPolicy: what set_mempolicy(2) would refuse with nothing but EINVAL.

use oci_spec::runtime::{
    LinuxMemoryPolicy, MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode,
};

use crate::error::{Error, Result};
use crate::spec::{cpus, names};

/// The highest node that a kernel can have: CONFIG_NODES_SHIFT is at most 10.
const MAX_NODES: usize = 1024;

/// Checks nodes and flags against the mode: runc's rules and the kernel's.
///
/// # Errors
/// The field that breaks a rule.
pub(super) fn check(policy: &LinuxMemoryPolicy) -> Result<()> {
    let (mode, _) = names::memory_policy(policy.mode());
    let wrong =
        |field: &str, why: String| Err(Error::spec(format!("linux.memoryPolicy.{field}"), why));
    let list = policy.nodes().as_deref().unwrap_or_default();
    let nodes = match cpus::parse(list) {
        Ok(nodes) => nodes,
        Err(why) => return wrong("nodes", why),
    };
    if nodes.is_some_and(|mask| mask[MAX_NODES / 64..].iter().any(|word| *word != 0)) {
        return wrong(
            "nodes",
            format!("{list:?} has a node over {}", MAX_NODES - 1),
        );
    }
    let none = nodes.is_none();
    match policy.mode() {
        Mode::MpolDefault | Mode::MpolLocal if !none => {
            return wrong("nodes", format!("{mode} takes no nodes"));
        }
        Mode::MpolBind
        | Mode::MpolInterleave
        | Mode::MpolWeightedInterleave
        | Mode::MpolPreferredMany
            if none =>
        {
            return wrong("nodes", format!("missing: {mode} needs at least one node"));
        }
        _ => {}
    }
    let flags = policy.flags().as_deref().unwrap_or_default();
    let has = |flag| flags.contains(&flag);
    let (fixed, relative) = (has(Flag::MpolFStaticNodes), has(Flag::MpolFRelativeNodes));
    if fixed && relative {
        return wrong(
            "flags",
            "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other".into(),
        );
    }
    if (fixed || relative) && none && policy.mode() != Mode::MpolDefault {
        return wrong(
            "flags",
            format!("{mode} without nodes takes none that is about nodes"),
        );
    }
    // MPOL_PREFERRED_MANY from Linux 6.9 on; the kernel tells.
    if has(Flag::MpolFNumaBalancing)
        && !matches!(policy.mode(), Mode::MpolBind | Mode::MpolPreferredMany)
    {
        return wrong(
            "flags",
            format!("MPOL_F_NUMA_BALANCING is not for {mode}: it is for MPOL_BIND"),
        );
    }
    Ok(())
}
