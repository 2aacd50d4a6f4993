//! From the specification's form of a profile to numbers: everything that can be wrong with it is
//! found here, and told with its path in config.json.

use std::borrow::Cow;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Op, LinuxSyscall,
};

use super::abi::{self, Abi, Width};
use super::generate::{Filter, Interface};
use super::rules::{self, Condition, Contradiction, Rule};
use crate::error::{Error, Result};
use crate::sys::seccomp as kernel;

/// The greatest errno that the kernel returns (`MAX_ERRNO`); it cuts what is greater.
const MAX_ERRNO: u32 = 4095;
/// The greatest value that a tracer can get (`SECCOMP_RET_DATA`).
const MAX_TRACE: u32 = 0xffff;

/// A profile that is known to be right.
pub(super) struct Checked {
    pub(super) filter: Filter,
    pub(super) flags: u32,
    pub(super) unknown: Vec<String>,
    /// For each row what x86 multiplexes that call through: a row, and the first argument there.
    /// Empty without x86.
    through: Vec<Option<(usize, u32)>>,
}

/// Checks a profile and resolves its names.
pub(super) fn check(spec: &LinuxSeccomp, native: Abi) -> Result<Checked> {
    let default = action(
        spec.default_action(),
        spec.default_errno_ret(),
        "defaultErrnoRet",
    )?;
    if spec.default_action() == Action::ScmpActNotify {
        return Err(wrong(
            "defaultAction",
            "SCMP_ACT_NOTIFY cannot be the default action",
        )
        .remedy("use it for single system calls"));
    }
    let syscalls = spec.syscalls().as_deref().unwrap_or_default();
    let flags = flags(
        spec,
        syscalls
            .iter()
            .any(|call| call.action() == Action::ScmpActNotify),
    )?;
    let passes = [
        Action::ScmpActAllow,
        Action::ScmpActLog,
        Action::ScmpActTrace,
    ];
    let filter = Filter {
        interfaces: interfaces(spec, native)?,
        default,
        stub: !passes.contains(&spec.default_action()),
        wide: rules::slots(),
        narrow: rules::slots(),
    };
    let through = match filter.has(Abi::X86) {
        true => abi::multiplexed(),
        false => Vec::new(),
    };
    let mut checked = Checked {
        through,
        filter,
        flags,
        unknown: Vec::new(),
    };
    for (index, call) in syscalls.iter().enumerate() {
        checked.add(index, call)?;
    }
    Ok(checked)
}

fn wrong(field: &str, detail: impl Into<String>) -> Error {
    Error::spec(format!("linux.seccomp.{field}"), detail)
}

/// The native interface first, then what is listed.
fn interfaces(spec: &LinuxSeccomp, native: Abi) -> Result<Vec<Interface>> {
    let mut interfaces = vec![Interface {
        abi: native,
        greatest: None,
    }];
    for (index, arch) in spec.architectures().iter().flatten().enumerate() {
        let Some(abi) = Abi::from_spec(*arch, native) else {
            let detail = format!("isorun has no system call table for {arch}");
            let known = format!("it has those for {}", super::ARCHS.join(", "));
            return Err(wrong(&format!("architectures[{index}]"), detail).remedy(known));
        };
        if interfaces.iter().all(|listed| listed.abi != abi) {
            interfaces.push(Interface {
                abi,
                greatest: None,
            });
        }
    }
    Ok(interfaces)
}

/// The filter's return value for an action; `field` is where `errno` comes from.
fn action(action: Action, errno: Option<u32>, field: &str) -> Result<u32> {
    let value = |limit: u32| match errno.unwrap_or(libc::EPERM as u32) {
        errno if errno <= limit => Ok(errno),
        errno => Err(wrong(
            field,
            format!("{errno} is too great: {action} takes at most {limit}"),
        )),
    };
    let fixed = match action {
        Action::ScmpActErrno => return Ok(libc::SECCOMP_RET_ERRNO | value(MAX_ERRNO)?),
        Action::ScmpActTrace => return Ok(libc::SECCOMP_RET_TRACE | value(MAX_TRACE)?),
        Action::ScmpActKill | Action::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        Action::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
        Action::ScmpActLog => libc::SECCOMP_RET_LOG,
        Action::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
    };
    if errno.is_some() {
        return Err(wrong(field, format!("{action} does not return an errno"))
            .remedy("leave it out, or use SCMP_ACT_ERRNO or SCMP_ACT_TRACE"));
    }
    Ok(fixed)
}

/// The flags for seccomp(2), and the rules on the listener.
fn flags(spec: &LinuxSeccomp, notify: bool) -> Result<u32> {
    let mut bits = 0;
    match spec.flags() {
        None => bits |= kernel::FLAG_SPEC_ALLOW,
        Some(flags) => {
            for (index, flag) in flags.iter().enumerate() {
                bits |= match flag {
                    // The container's process has one thread when it loads the filter, so there
                    // is nothing to synchronise, and the kernel refuses TSYNC with a listener.
                    Flag::SeccompFilterFlagTsync if notify => 0,
                    Flag::SeccompFilterFlagTsync => kernel::FLAG_TSYNC,
                    Flag::SeccompFilterFlagLog => kernel::FLAG_LOG,
                    Flag::SeccompFilterFlagSpecAllow => kernel::FLAG_SPEC_ALLOW,
                    Flag::SeccompFilterFlagWaitKillableRecv if notify => {
                        kernel::FLAG_WAIT_KILLABLE_RECV
                    }
                    Flag::SeccompFilterFlagWaitKillableRecv => {
                        let detail = format!("{flag} is for rules with SCMP_ACT_NOTIFY");
                        return Err(wrong(&format!("flags[{index}]"), detail)
                            .remedy("remove the flag, there is no such rule"));
                    }
                };
            }
        }
    }
    if notify {
        bits |= kernel::FLAG_NEW_LISTENER;
    }
    let path = spec
        .listener_path()
        .as_ref()
        .filter(|path| !path.as_os_str().is_empty());
    if path.is_none() && notify {
        let detail = "has to be set, as a rule has the action SCMP_ACT_NOTIFY";
        return Err(wrong("listenerPath", detail).remedy("give the path of the agent's socket"));
    }
    let metadata = spec
        .listener_metadata()
        .as_ref()
        .filter(|data| !data.is_empty());
    if path.is_none() && metadata.is_some() {
        return Err(wrong(
            "listenerMetadata",
            "must not be set without listenerPath",
        ));
    }
    Ok(bits)
}

impl Checked {
    /// Adds what one element of `syscalls` says.
    fn add(&mut self, index: usize, call: &LinuxSyscall) -> Result<()> {
        let field = |name: &str| format!("syscalls[{index}].{name}");
        if call.names().is_empty() {
            return Err(wrong(
                &field("names"),
                "has to name at least one system call",
            ));
        }
        let action = action(call.action(), call.errno_ret(), &field("errnoRet"))?;
        let args = call.args().as_deref().unwrap_or_default();
        if let Some(bad) = args.iter().position(|arg| arg.index() > 5) {
            let detail = format!(
                "{} is not 0 to 5: no system call has more",
                args[bad].index()
            );
            return Err(wrong(&field(&format!("args[{bad}].index")), detail));
        }
        let rules = [Width::Wide, Width::Narrow].map(|width| (width, alternatives(args, width)));
        for (position, name) in call.names().iter().enumerate() {
            let field = || format!("syscalls[{index}].names[{position}]");
            if name.is_empty() {
                return Err(wrong(&field(), "the name of a system call is empty"));
            }
            if call.action() == Action::ScmpActNotify && name == "write" {
                let detail = "SCMP_ACT_NOTIFY cannot be used for write: the container's process \
                              needs it to hand over the listener";
                return Err(wrong(&field(), detail));
            }
            let Some(row) = abi::row(name) else {
                if !self.unknown.contains(name) {
                    self.unknown.push(name.clone());
                }
                continue;
            };
            let through = self.through.get(row).copied().flatten();
            self.count(row);
            if let Some((row, _)) = through {
                self.count(row);
            }
            if action == self.filter.default {
                continue;
            }
            for (width, alternatives) in &rules {
                self.put(*width, row, alternatives, (action, index))
                    .map_err(|Contradiction(other)| {
                        let detail = format!(
                            "the rule for {name} contradicts that of syscalls[{other}]: the same \
                             conditions, or only some of them, and another action"
                        );
                        wrong(&field(), detail).remedy("remove one of them")
                    })?;
                if let (Some(through), Width::Narrow) = (through, width) {
                    self.put_derived(through, alternatives, (action, index));
                }
            }
        }
        Ok(())
    }

    /// Remembers the greatest number of each interface.
    fn count(&mut self, row: usize) {
        for Interface { abi, greatest } in &mut self.filter.interfaces {
            // runc takes 0 as "nothing found".
            let number = abi.number(row).filter(|number| *number != 0);
            *greatest = number.max(*greatest);
        }
    }

    /// Puts the rules for one name into the slots of one width, if an interface of it needs them.
    /// The last parameter is the action and the index in `syscalls`.
    fn put(
        &mut self,
        width: Width,
        row: usize,
        alternatives: &[Vec<Condition>],
        (action, origin): (u32, usize),
    ) -> std::result::Result<(), Contradiction> {
        let needs = |interface: &Interface| {
            interface.abi.width() == width && interface.abi.number(row).is_some()
        };
        if self.filter.interfaces.iter().any(needs) {
            let slot = &mut self.filter.slots(width)[row];
            for conditions in alternatives {
                let conditions = conditions.clone();
                slot.add(
                    Rule {
                        conditions,
                        action,
                        origin,
                    },
                    width,
                )?;
            }
        }
        Ok(())
    }

    /// Puts what the rules for one name say about the multiplexer that x86 has for it.
    fn put_derived(
        &mut self,
        (row, value): (usize, u32),
        alternatives: &[Vec<Condition>],
        (action, origin): (u32, usize),
    ) {
        let width = Width::Narrow;
        for conditions in alternatives {
            let first = Condition::new(0, Op::ScmpCmpEq, u64::from(value), 0, width);
            let rest = conditions
                .iter()
                .copied()
                .filter(|condition| condition.arg != 0);
            let conditions = first.into_iter().chain(rest).collect();
            self.filter.slots(width)[row].add_derived(
                Rule {
                    conditions,
                    action,
                    origin,
                },
                width,
            );
        }
    }
}

/// The lists of conditions of a rule: one, or one for each condition if two are on one argument.
fn alternatives(args: &[LinuxSeccompArg], width: Width) -> Vec<Vec<Condition>> {
    let condition = |arg: &LinuxSeccompArg| {
        let two = arg.value_two().unwrap_or_default();
        // The index is at most 5: it was checked.
        Condition::new(arg.index() as u8, arg.op(), arg.value(), two, width)
    };
    let sorted: Cow<'_, [LinuxSeccompArg]> = if args.len() < 2 {
        Cow::Borrowed(args)
    } else {
        let mut args = args.to_vec();
        args.sort_by_key(LinuxSeccompArg::index);
        Cow::Owned(args)
    };
    if sorted
        .windows(2)
        .any(|pair| pair[0].index() == pair[1].index())
    {
        return args
            .iter()
            .map(|arg| condition(arg).into_iter().collect())
            .collect();
    }
    vec![sorted.iter().filter_map(condition).collect()]
}
