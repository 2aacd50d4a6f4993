//! What a profile means, evaluated call by call straight from the profile: slow and plain.

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Op,
};

use super::bpf::Call;
use crate::seccomp::abi::{Abi, Width, multiplexer};
use crate::seccomp::table::{NONE, TABLE};

const X86_64: u32 = 0xc000_003e;
const BIT_30: u32 = 1 << 30;

/// A conditional rule on the way to a decision.
struct Candidate {
    /// Sorts the one first that decides.
    key: Vec<(u8, u8, u32)>,
    action: u32,
}

/// The return value for a call.
pub(super) fn expected(spec: &LinuxSeccomp, native: Abi, call: &Call) -> u32 {
    let mut abis = vec![native];
    abis.extend(
        spec.architectures()
            .iter()
            .flatten()
            .map(|a| Abi::from_spec(*a, native).unwrap()),
    );
    let default = action(spec.default_action(), spec.default_errno_ret());
    let kill = 0;
    let enosys = 0x0005_0026;

    let here: Vec<Abi> = abis
        .iter()
        .copied()
        .filter(|abi| abi.audit() == call.arch)
        .collect();
    if here.is_empty() {
        return kill;
    }
    // runc's stub: for x86_64 it tells x32 by bit 30.
    let stub_abi = match call.arch {
        X86_64 if call.nr & BIT_30 != 0 => Abi::X32,
        X86_64 => Abi::X86_64,
        _ => here[0],
    };
    let passes = [
        Action::ScmpActAllow,
        Action::ScmpActLog,
        Action::ScmpActTrace,
    ];
    if here.contains(&stub_abi) && !passes.contains(&spec.default_action()) {
        let greatest = greatest(spec, stub_abi);
        if greatest != 0 && call.nr > greatest {
            return enosys;
        }
    }
    // libseccomp: x32 is all from 2^30 on, but for -1 where x32 is not listed.
    let abi = match call.arch {
        X86_64 if here.contains(&Abi::X32) => {
            if call.nr >= BIT_30 {
                Abi::X32
            } else {
                Abi::X86_64
            }
        }
        X86_64 if call.nr == u32::MAX => return default,
        X86_64 if call.nr >= BIT_30 => return kill,
        _ => here[0],
    };
    if !here.contains(&abi) {
        return kill;
    }
    let number = if abi == Abi::X32 {
        call.nr ^ BIT_30
    } else {
        call.nr
    };
    let row = TABLE
        .iter()
        .find(|(_, n)| n[abi as usize] == number && number != NONE);
    match row {
        Some((name, _)) => decide(spec, abi, name, call, default),
        None => default,
    }
}

fn greatest(spec: &LinuxSeccomp, abi: Abi) -> u32 {
    let base = if abi == Abi::X32 { BIT_30 } else { 0 };
    let number = |name: &str| {
        let row = TABLE.iter().find(|(known, _)| *known == name)?;
        Some(row.1[abi as usize])
            .filter(|n| *n != NONE)
            .map(|n| n | base)
    };
    let mut greatest = 0;
    for name in spec
        .syscalls()
        .iter()
        .flatten()
        .flat_map(|call| call.names())
    {
        greatest = greatest.max(number(name).unwrap_or(0));
        if let (Abi::X86, Some((through, _))) = (abi, multiplexer(name)) {
            greatest = greatest.max(number(through).unwrap_or(0));
        }
    }
    greatest
}

fn decide(spec: &LinuxSeccomp, abi: Abi, name: &str, call: &Call, default: u32) -> u32 {
    let mut always = None;
    let mut matching: Vec<Candidate> = Vec::new();
    for rule in spec.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret());
        if action == default {
            continue;
        }
        for named in rule.names() {
            let mut args = rule.args().clone().unwrap_or_default();
            let double = args
                .iter()
                .any(|a| args.iter().filter(|b| b.index() == a.index()).count() > 1);
            args.sort_by_key(|arg| arg.index());
            let mut lists: Vec<Vec<LinuxSeccompArg>> = match double {
                true => rule.args().iter().flatten().map(|arg| vec![*arg]).collect(),
                false => vec![args],
            };
            match multiplexer(named) {
                Some((through, value)) if abi == Abi::X86 && through == name => {
                    for list in &mut lists {
                        list.retain(|arg| arg.index() != 0);
                        let mut first = LinuxSeccompArg::default();
                        first.set_value(u64::from(value)).set_op(Op::ScmpCmpEq);
                        list.insert(0, first);
                    }
                }
                _ if named == name => {}
                _ => continue,
            }
            for list in lists {
                let tests: Vec<_> = list
                    .into_iter()
                    .filter(|arg| !vacuous(arg, abi.width()))
                    .collect();
                if tests.is_empty() {
                    always.get_or_insert(action);
                } else if tests.iter().all(|arg| holds(arg, abi.width(), &call.args)) {
                    matching.push(Candidate {
                        key: key(&tests, abi.width()),
                        action,
                    });
                }
            }
        }
    }
    matching.sort_by(|a, b| b.key.cmp(&a.key));
    always
        .or(matching.first().map(|candidate| candidate.action))
        .unwrap_or(default)
}

fn vacuous(arg: &LinuxSeccompArg, width: Width) -> bool {
    let mask = if width == Width::Wide {
        arg.value()
    } else {
        u64::from(arg.value() as u32)
    };
    arg.op() == Op::ScmpCmpMaskedEq && mask == 0
}

fn holds(arg: &LinuxSeccompArg, width: Width, args: &[u64; 6]) -> bool {
    let cut = |value: u64| {
        if width == Width::Wide {
            value
        } else {
            u64::from(value as u32)
        }
    };
    let (have, value) = (cut(args[arg.index()]), cut(arg.value()));
    match arg.op() {
        Op::ScmpCmpNe => have != value,
        Op::ScmpCmpLt => have < value,
        Op::ScmpCmpLe => have <= value,
        Op::ScmpCmpEq => have == value,
        Op::ScmpCmpGe => have >= value,
        Op::ScmpCmpGt => have > value,
        Op::ScmpCmpMaskedEq => have & value == cut(arg.value_two().unwrap_or(0)) & value,
    }
}

fn key(tests: &[LinuxSeccompArg], width: Width) -> Vec<(u8, u8, u32)> {
    let mut key = Vec::new();
    for arg in tests {
        let (rank, value) = match arg.op() {
            Op::ScmpCmpEq | Op::ScmpCmpNe => (3, arg.value()),
            Op::ScmpCmpMaskedEq => (3, arg.value() & arg.value_two().unwrap_or(0)),
            Op::ScmpCmpLt | Op::ScmpCmpLe => (2, !arg.value()),
            Op::ScmpCmpGt | Op::ScmpCmpGe => (1, arg.value()),
        };
        let place = arg.index() as u8 * 2;
        if width == Width::Wide {
            key.push((place + 1, rank, (value >> 32) as u32));
        }
        key.push((place, rank, value as u32));
    }
    // The shorter one of two that start alike comes first.
    key.push((u8::MAX, 0, 0));
    key
}

pub(super) fn action(action: Action, errno: Option<u32>) -> u32 {
    let errno = errno.unwrap_or(1);
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => 0,
        Action::ScmpActKillProcess => 0x8000_0000,
        Action::ScmpActTrap => 0x0003_0000,
        Action::ScmpActErrno => 0x0005_0000 | errno,
        Action::ScmpActNotify => 0x7fc0_0000,
        Action::ScmpActTrace => 0x7ff0_0000 | errno,
        Action::ScmpActLog => 0x7ffc_0000,
        Action::ScmpActAllow => 0x7fff_0000,
    }
}
