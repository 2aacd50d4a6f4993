//! What a profile means, evaluated call by call straight from the profile: slow and plain.

use std::collections::HashMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator as Op, LinuxSyscall,
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

/// The conditions of a rule, sorted by argument, and its action.
type Conditional = (Vec<LinuxSeccompArg>, u32);

/// A profile, with what is looked up in it again and again.
pub(super) struct Reference {
    abis: Vec<Abi>,
    default: u32,
    /// runc's limit for each interface, 0 for none.
    greatest: [u32; 5],
    /// For each interface and number, the rules on that call in the order of the profile.
    rules: [HashMap<u32, Vec<Conditional>>; 5],
}

impl Reference {
    pub(super) fn new(spec: &LinuxSeccomp, native: Abi) -> Self {
        let mut abis = vec![native];
        let listed = spec.architectures().iter().flatten();
        abis.extend(listed.map(|arch| Abi::from_spec(*arch, native).unwrap()));
        let default = action(spec.default_action(), spec.default_errno_ret());
        let mut made = Self {
            abis,
            default,
            greatest: [0; 5],
            rules: Default::default(),
        };
        let numbers: HashMap<_, _> = TABLE.iter().copied().collect();
        for rule in spec.syscalls().iter().flatten() {
            for name in rule.names() {
                let direct = numbers.get(name.as_str()).map(|row| (row, None));
                let through = multiplexer(name).map(|(name, value)| (&numbers[name], Some(value)));
                for (row, first) in direct.into_iter().chain(through) {
                    made.add(rule, row, first);
                }
            }
        }
        let passes = [
            Action::ScmpActAllow,
            Action::ScmpActLog,
            Action::ScmpActTrace,
        ];
        if passes.contains(&spec.default_action()) {
            made.greatest = [0; 5];
        }
        made
    }

    /// The same without runc's stub: what libseccomp itself makes of the profile.
    pub(super) fn without_stub(mut self) -> Self {
        self.greatest = [0; 5];
        self
    }

    /// Adds a rule for the call with the numbers `row`; a multiplexed one has `first` as its first
    /// argument and is there on x86 only.
    fn add(&mut self, rule: &LinuxSyscall, row: &[u32; 5], first: Option<u32>) {
        let action = action(rule.action(), rule.errno_ret());
        let mut args = rule.args().clone().unwrap_or_default();
        let of = |index| args.iter().filter(|arg| arg.index() == index).count();
        let mut lists: Vec<Vec<LinuxSeccompArg>> = if (0..6).any(|index| of(index) > 1) {
            args.iter().map(|arg| vec![*arg]).collect()
        } else {
            args.sort_by_key(LinuxSeccompArg::index);
            vec![args]
        };
        if let Some(value) = first {
            let first = LinuxSeccompArgBuilder::default()
                .index(0_usize)
                .op(Op::ScmpCmpEq)
                .value(u64::from(value))
                .build()
                .unwrap();
            for list in &mut lists {
                list.retain(|arg| arg.index() != 0);
                list.insert(0, first);
            }
        }
        for abi in Abi::ALL {
            let column = abi as usize;
            if row[column] == NONE || (first.is_some() && abi != Abi::X86) {
                continue;
            }
            let base = if abi == Abi::X32 { BIT_30 } else { 0 };
            let number = row[column] | base;
            self.greatest[column] = self.greatest[column].max(number);
            if action != self.default {
                let rules = self.rules[column].entry(number).or_default();
                rules.extend(lists.iter().map(|list| (list.clone(), action)));
            }
        }
    }

    /// The return value for a call.
    pub(super) fn expected(&self, call: &Call) -> u32 {
        self.justified(call)[0]
    }

    /// The return values that a call can have by the rules that match it, the right one first.
    pub(super) fn justified(&self, call: &Call) -> Vec<u32> {
        let (kill, enosys) = (0, 0x0005_0026);
        let here = |abi: &Abi| self.abis.contains(abi) && abi.audit() == call.arch;
        let Some(any) = Abi::ALL.into_iter().find(here) else {
            return vec![kill];
        };
        // runc's stub: for x86_64 it tells x32 by bit 30.
        let stub = match call.arch {
            X86_64 if call.nr & BIT_30 != 0 => Abi::X32,
            X86_64 => Abi::X86_64,
            _ => any,
        };
        let greatest = self.greatest[stub as usize];
        if here(&stub) && greatest != 0 && call.nr > greatest {
            return vec![enosys];
        }
        // libseccomp: x32 is all from 2^30 on, but for -1 where x32 is not listed.
        let abi = match call.arch {
            X86_64 if here(&Abi::X32) && call.nr >= BIT_30 => Abi::X32,
            X86_64 if call.nr == u32::MAX => return vec![self.default],
            X86_64 if call.nr >= BIT_30 => return vec![kill],
            X86_64 => Abi::X86_64,
            _ => any,
        };
        if !here(&abi) {
            return vec![kill];
        }
        let mut matching: Vec<Candidate> = Vec::new();
        for (list, action) in self.rules[abi as usize].get(&call.nr).into_iter().flatten() {
            let tests: Vec<_> = list
                .iter()
                .copied()
                .filter(|arg| !vacuous(arg, abi.width()))
                .collect();
            if tests.is_empty() {
                return vec![*action];
            }
            if tests.iter().all(|arg| holds(arg, abi.width(), &call.args)) {
                matching.push(Candidate {
                    key: key(&tests, abi.width()),
                    action: *action,
                });
            }
        }
        if matching.is_empty() {
            return vec![self.default];
        }
        matching.sort_by(|a, b| b.key.cmp(&a.key));
        matching
            .into_iter()
            .map(|candidate| candidate.action)
            .collect()
    }
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
