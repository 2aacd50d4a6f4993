//! An assembler for classic BPF that works from the end of the program to its start.
//!
//! Jumps of classic BPF only go forward, so a program that is written backwards knows the target of
//! each jump when it writes the jump: no second pass, no fix-ups.

use crate::error::{Error, Result};
use crate::sys::seccomp::Insn;

/// The most instructions that the kernel takes (`BPF_MAXINSNS`).
pub(super) const MAX_INSNS: usize = 4096;

/// `BPF_LD | BPF_W | BPF_ABS`: load a word of `seccomp_data`.
pub(super) const LOAD: u16 = 0x20;
/// `BPF_RET | BPF_K`.
pub(super) const RET: u16 = 0x06;
/// `BPF_JMP | BPF_JA`: skip `k` instructions.
pub(super) const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
pub(super) const JUMP_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGE | BPF_K`.
pub(super) const JUMP_GREATER_EQUAL: u16 = 0x35;

/// An instruction that can be jumped to: how many there are from it to the end of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program under construction.
#[derive(Default)]
pub(super) struct Assembler {
    /// The instructions, the last one first.
    reversed: Vec<Insn>,
    /// The nearest return of each value.
    returns: Vec<(u32, Label)>,
}

impl Assembler {
    /// Puts an instruction in front of the program.
    pub(super) fn push(&mut self, insn: Insn) -> Label {
        self.reversed.push(insn);
        Label(self.reversed.len())
    }

    /// How many instructions are skipped by a jump that is put in front now.
    fn distance(&self, target: Label) -> usize {
        self.reversed.len() - target.0
    }

    /// A place that returns `value`: one that is there and near, or a new one.
    pub(super) fn ret(&mut self, value: u32) -> Label {
        let near = |label: Label| self.reversed.len() - label.0 <= usize::from(u8::MAX);
        match self.returns.iter().find(|(known, _)| *known == value) {
            Some((_, label)) if near(*label) => *label,
            _ => self.fresh_ret(value),
        }
    }

    /// A new return of `value` in front of the program.
    pub(super) fn fresh_ret(&mut self, value: u32) -> Label {
        let label = self.push(Insn {
            code: RET,
            jt: 0,
            jf: 0,
            k: value,
        });
        self.returns.retain(|(known, _)| *known != value);
        self.returns.push((value, label));
        label
    }

    /// An unconditional jump, which has no limit of distance, or nothing if `target` is next.
    pub(super) fn goto(&mut self, target: Label) -> Label {
        match self.distance(target) {
            0 => target,
            distance => self.push(Insn {
                code: JUMP,
                jt: 0,
                jf: 0,
                k: distance as u32,
            }),
        }
    }

    /// Compares the accumulator with `k` by `code`. Its offsets have eight bits: what is further
    /// away is reached through an unconditional jump right behind it.
    pub(super) fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        const FAR: usize = u8::MAX as usize;
        // One less, as the jump for `yes` may come in between.
        let no = if self.distance(no) >= FAR {
            self.goto(no)
        } else {
            no
        };
        let yes = if self.distance(yes) > FAR {
            self.goto(yes)
        } else {
            yes
        };
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push(Insn { code, jt, jf, k })
    }

    /// Loads the word of `seccomp_data` at `offset` and goes on at `then`.
    pub(super) fn load(&mut self, offset: u32, then: Label) -> Label {
        self.goto(then);
        self.push(Insn {
            code: LOAD,
            jt: 0,
            jf: 0,
            k: offset,
        })
    }

    /// The program from its start, where `entry` has to be.
    pub(super) fn finish(mut self) -> Result<Vec<Insn>> {
        if self.reversed.len() > MAX_INSNS {
            let detail = format!(
                "the filter has {} BPF instructions, and the kernel takes {MAX_INSNS}",
                self.reversed.len()
            );
            return Err(Error::spec("linux.seccomp.syscalls", detail)
                .remedy("use fewer rules with args, or fewer architectures"));
        }
        self.reversed.reverse();
        Ok(self.reversed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_returns_are_shared_and_far_ones_are_not() {
        let mut program = Assembler::default();
        let first = program.ret(7);
        assert_eq!(program.ret(7), first);
        for _ in 0..256 {
            program.fresh_ret(8);
        }
        assert_ne!(program.ret(7), first);
    }

    #[test]
    fn a_branch_reaches_any_distance() {
        for between in [0, 1, 253, 254, 255, 256, 257, 300, 4000] {
            for swap in [false, true] {
                let mut program = Assembler::default();
                let far = program.fresh_ret(1);
                for _ in 0..between {
                    program.fresh_ret(0);
                }
                let near = program.fresh_ret(2);
                let (yes, no) = if swap { (near, far) } else { (far, near) };
                program.branch(JUMP_EQUAL, 5, yes, no);
                let insns = program.finish().unwrap();
                for (accumulator, target) in [(5, yes), (6, no)] {
                    let mut at = 0;
                    while insns[at].code != RET {
                        at += 1 + match insns[at].code {
                            JUMP => insns[at].k as usize,
                            _ if accumulator == 5 => usize::from(insns[at].jt),
                            _ => usize::from(insns[at].jf),
                        };
                    }
                    assert_eq!(insns.len() - at, target.0, "{between} {swap} {accumulator}");
                }
            }
        }
    }

    #[test]
    fn a_program_that_is_too_long_is_an_error() {
        let mut program = Assembler::default();
        (0..=MAX_INSNS).for_each(|_| _ = program.fresh_ret(0));
        let error = program.finish().unwrap_err().to_string();
        assert!(error.contains("4097 BPF instructions"), "{error}");
    }
}
