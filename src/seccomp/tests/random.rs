//! Random profiles and calls from a fixed seed.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator as Op, LinuxSyscall, LinuxSyscallBuilder,
};

use crate::seccomp::table::TABLE;

/// A xorshift generator: no test needs a better one.
pub(super) struct Random {
    state: u64,
    /// Whether values may have an upper half that is not zero.
    pub(super) wide: bool,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: seed,
            wide: true,
        }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end
    }

    pub(super) fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// Values around those that conditions have, with interesting upper halves.
    pub(super) fn value(&mut self) -> u64 {
        let high = if self.wide {
            self.pick(&[0, 0, 0, 1, 0xffff_ffff])
        } else {
            0
        };
        let low = self.pick(&[
            0,
            1,
            2,
            3,
            4,
            5,
            0x10,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
        ]);
        high << 32 | low
    }

    pub(super) fn args(&mut self) -> [u64; 6] {
        std::array::from_fn(|_| self.value())
    }

    fn condition(&mut self, ops: &[Op]) -> LinuxSeccompArg {
        LinuxSeccompArgBuilder::default()
            .index(self.below(3))
            .op(self.pick(ops))
            .value(self.value())
            .value_two(self.value())
            .build()
            .unwrap()
    }

    /// A rule on up to four of `names`, with conditions by `ops` (none of them: no conditions).
    pub(super) fn rule(&mut self, names: &[&str], ops: &[Op]) -> LinuxSyscall {
        let action = self.pick(&[
            Action::ScmpActAllow,
            Action::ScmpActErrno,
            Action::ScmpActErrno,
            Action::ScmpActTrace,
            Action::ScmpActLog,
            Action::ScmpActTrap,
            Action::ScmpActKillProcess,
        ]);
        let count = 1 + self.below(4);
        let mut rule = LinuxSyscallBuilder::default()
            .names(
                (0..count)
                    .map(|_| self.pick(names).to_string())
                    .collect::<Vec<_>>(),
            )
            .action(action);
        if action == Action::ScmpActErrno {
            rule = rule.errno_ret(1 + self.below(3) as u32);
        }
        let conditions = if ops.is_empty() { 0 } else { self.below(4) };
        if conditions > 0 {
            rule = rule.args(
                (0..conditions)
                    .map(|_| self.condition(ops))
                    .collect::<Vec<_>>(),
            );
        }
        rule.build().unwrap()
    }

    /// A profile; `names` narrows it to a few calls so that rules meet.
    pub(super) fn profile(&mut self, rules: usize, names: &[&str], ops: &[Op]) -> LinuxSeccomp {
        let archs = [
            Arch::ScmpArchX86_64,
            Arch::ScmpArchX86,
            Arch::ScmpArchX32,
            Arch::ScmpArchAarch64,
            Arch::ScmpArchArm,
        ];
        let count = self.below(5);
        let rules: Vec<_> = (0..rules).map(|_| self.rule(names, ops)).collect();
        let default = self.pick(&[
            Action::ScmpActErrno,
            Action::ScmpActErrno,
            Action::ScmpActKillProcess,
            Action::ScmpActAllow,
            Action::ScmpActTrace,
        ]);
        LinuxSeccompBuilder::default()
            .default_action(default)
            .architectures((0..count).map(|_| self.pick(&archs)).collect::<Vec<_>>())
            .syscalls(rules)
            .build()
            .unwrap()
    }
}

/// All names of the table.
pub(super) fn all_names() -> Vec<&'static str> {
    TABLE.iter().map(|(name, _)| *name).collect()
}
