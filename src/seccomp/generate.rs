//! From slots to instructions: which architecture, then a balanced tree over the call's number,
//! then the conditions.

use oci_spec::runtime::LinuxSeccompOperator as Op;
use seccompiler::{BpfProgram, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::abi::{Abi, Width, X32_BIT};
use super::assemble::{Assembler, JUMP_EQUAL, JUMP_GREATER_EQUAL, Label};
use super::rules::{Condition, Rule, Slot};
use crate::error::{Error, Kind, Result};
use crate::sys::seccomp::Insn;

/// Where the number is in `seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
/// Where the architecture is.
const OFFSET_ARCH: u32 = 4;
/// What a call of an interface that the filter does not have comes to, as with libseccomp
/// (`SCMP_ACT_KILL`).
const BAD_ARCH: u32 = libc::SECCOMP_RET_KILL_THREAD;
/// What runc's stub returns.
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// A filter in terms of numbers and return values.
pub(super) struct Filter {
    /// What it is for, without repetition.
    pub(super) interfaces: Vec<Interface>,
    /// The return value where no rule matches.
    pub(super) default: u32,
    /// Whether numbers beyond the greatest one that the profile names get ENOSYS.
    pub(super) stub: bool,
    /// The rules for wide interfaces.
    pub(super) wide: Vec<Slot>,
    /// The rules for narrow interfaces.
    pub(super) narrow: Vec<Slot>,
}

/// An interface that a filter is for.
pub(super) struct Interface {
    pub(super) abi: Abi,
    /// The greatest number that the profile names.
    pub(super) greatest: Option<u32>,
}

impl Filter {
    /// The rules for interfaces of one width.
    pub(super) fn slots(&mut self, width: Width) -> &mut [Slot] {
        match width {
            Width::Wide => &mut self.wide,
            Width::Narrow => &mut self.narrow,
        }
    }

    /// Whether calls of `abi` are decided by the rules at all.
    pub(super) fn has(&self, abi: Abi) -> bool {
        self.interfaces.iter().any(|interface| interface.abi == abi)
    }

    /// The number beyond which calls of `abi` get ENOSYS, if there is one.
    fn limit(&self, abi: Abi) -> Option<u32> {
        let interface = self
            .interfaces
            .iter()
            .find(|interface| interface.abi == abi)?;
        interface.greatest.filter(|_| self.stub)
    }
}

/// A range of numbers, up to the next one's start, that share what happens to them.
#[derive(Clone, Copy)]
struct Range {
    start: u32,
    target: Target,
}

/// What happens to a number: equal targets are interchangeable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Return(u32),
    Block(Label),
}

/// The ranges of one architecture in ascending order, neighbours with one target merged.
#[derive(Default)]
struct Ranges(Vec<Range>);

impl Ranges {
    /// From `start` on it is `target`; `start` never goes down.
    fn from(&mut self, start: u32, target: Target) {
        if self.0.last().is_some_and(|last| last.start == start) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|last| last.target != target) {
            self.0.push(Range { start, target });
        }
    }
}

/// A leaf of the tree: a range, or a single number in the middle of two ranges with one target.
struct Leaf {
    start: u32,
    target: Target,
    except: Option<(u32, Target)>,
}

/// Compiles the whole filter.
pub(super) fn generate(filter: &Filter) -> Result<Vec<Insn>> {
    let mut generator = Generator {
        filter,
        program: Assembler::default(),
        blocks: Vec::new(),
    };
    let mut entry = generator.program.fresh_ret(BAD_ARCH);
    let mut sections: Vec<(u32, Label)> = Vec::new();
    for Interface { abi, .. } in &filter.interfaces {
        // x86_64 and x32 are one architecture for the kernel, so they have one section.
        if sections.iter().all(|(audit, _)| *audit != abi.audit()) {
            sections.push((abi.audit(), generator.section(*abi)?));
        }
    }
    // Written backwards: the first one, which is the native one, comes to be asked first.
    let mut program = generator.program;
    for (audit, section) in sections.into_iter().rev() {
        entry = program.branch(JUMP_EQUAL, audit, section, entry);
    }
    program.load(OFFSET_ARCH, entry);
    program.finish()
}

/// A filter on its way to a program.
struct Generator<'a> {
    filter: &'a Filter,
    program: Assembler,
    /// The conditional rules that are in the program, with their place.
    blocks: Vec<(Width, &'a [Rule], Label)>,
}

impl<'a> Generator<'a> {
    /// All calls of one architecture, with that in the accumulator.
    fn section(&mut self, abi: Abi) -> Result<Label> {
        let mut ranges = Ranges::default();
        match abi {
            Abi::X86_64 | Abi::X32 => self.x86_64(&mut ranges)?,
            abi => self.listed(abi, 0, &mut ranges)?,
        }
        let tree = tree(&leaves(&ranges.0), &mut self.program);
        Ok(self.program.load(OFFSET_NUMBER, tree))
    }

    /// Puts the numbers of `abi` into `ranges`, which begin at `start`, and from the greatest one
    /// that the profile names on ENOSYS, where that is asked for.
    fn listed(&mut self, abi: Abi, start: u32, ranges: &mut Ranges) -> Result<()> {
        let filter = self.filter;
        let slots = match abi.width() {
            Width::Wide => &filter.wide,
            Width::Narrow => &filter.narrow,
        };
        let default = Target::Return(filter.default);
        ranges.from(start, default);
        let mut numbered: Vec<(u32, &Slot)> = slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| **slot != Slot::Unset)
            .filter_map(|(row, slot)| abi.number(row).map(|number| (number, slot)))
            .collect();
        numbered.sort_unstable_by_key(|(number, _)| *number);
        for (number, slot) in numbered {
            let target = match slot {
                Slot::Unset => default,
                Slot::Always(action) => Target::Return(*action),
                Slot::When(rules) => Target::Block(self.block(rules, abi.width())?),
            };
            ranges.from(number, target);
            ranges.from(number + 1, default);
        }
        if let Some(limit) = filter.limit(abi) {
            ranges.from(limit + 1, Target::Return(ENOSYS));
        }
        Ok(())
    }

    /// The ranges of x86_64, where bit 30 of the number says that the call is one of x32.
    ///
    /// libseccomp takes all numbers from 2^30 on as x32, but for -1: a tracer sets that to skip a
    /// call, and since Linux 4.8 the filter sees it. runc's stub, which comes before, looks at bit
    /// 30 only.
    fn x86_64(&mut self, ranges: &mut Ranges) -> Result<()> {
        let (default, bad) = (
            Target::Return(self.filter.default),
            Target::Return(BAD_ARCH),
        );
        if self.filter.has(Abi::X86_64) {
            self.listed(Abi::X86_64, 0, ranges)?;
        } else {
            ranges.from(0, bad);
        }
        let beyond = if self.filter.has(Abi::X32) {
            self.listed(Abi::X32, X32_BIT, ranges)?;
            default
        } else {
            ranges.from(X32_BIT, bad);
            bad
        };
        let stub = |abi, otherwise| match self.filter.limit(abi) {
            Some(_) => Target::Return(ENOSYS),
            None => otherwise,
        };
        ranges.from(0x8000_0000, stub(Abi::X86_64, beyond));
        ranges.from(0xc000_0000, stub(Abi::X32, beyond));
        ranges.from(u32::MAX, stub(Abi::X32, default));
        Ok(())
    }

    /// The conditional rules of one call, the default action behind them; one block for all calls
    /// and interfaces that have the same ones.
    fn block(&mut self, rules: &'a [Rule], width: Width) -> Result<Label> {
        let same = |other: &[Rule]| {
            let same =
                |(a, b): (&Rule, &Rule)| a.action == b.action && a.conditions == b.conditions;
            other.len() == rules.len() && other.iter().zip(rules).all(same)
        };
        let known = self
            .blocks
            .iter()
            .find(|(w, other, _)| *w == width && same(other));
        if let Some((.., label)) = known {
            return Ok(*label);
        }
        let mut label = self.program.fresh_ret(self.filter.default);
        for rule in rules.iter().rev() {
            self.program.fresh_ret(rule.action);
            for insn in conditions(&rule.conditions, width)?.into_iter().rev() {
                label = self.program.push(insn);
            }
        }
        self.blocks.push((width, rules, label));
        Ok(label)
    }
}

/// Takes "range, one number, the same range" as one leaf: one comparison instead of two.
fn leaves(ranges: &[Range]) -> Vec<Leaf> {
    let mut leaves = Vec::with_capacity(ranges.len());
    let mut rest = ranges;
    while let [range, tail @ ..] = rest {
        let mut leaf = Leaf {
            start: range.start,
            target: range.target,
            except: None,
        };
        rest = tail;
        if let [odd, again, tail @ ..] = rest
            && again.target == range.target
            && again.start == odd.start + 1
        {
            leaf.except = Some((odd.start, odd.target));
            rest = tail;
        }
        leaves.push(leaf);
    }
    leaves
}

/// A balanced tree over leaves, with the number in the accumulator.
fn tree(leaves: &[Leaf], program: &mut Assembler) -> Label {
    match leaves {
        // There is a range from 0 on in every section.
        [] => program.ret(BAD_ARCH),
        [leaf] => {
            let outside = place(leaf.target, program);
            match leaf.except {
                None => outside,
                Some((number, target)) => {
                    let inside = place(target, program);
                    program.branch(JUMP_EQUAL, number, inside, outside)
                }
            }
        }
        leaves => {
            let (lower, upper) = leaves.split_at(leaves.len() / 2);
            let yes = tree(upper, program);
            let no = tree(lower, program);
            program.branch(JUMP_GREATER_EQUAL, upper[0].start, yes, no)
        }
    }
}

fn place(target: Target, program: &mut Assembler) -> Label {
    match target {
        Target::Return(value) => program.ret(value),
        Target::Block(label) => label,
    }
}

/// Code that runs into what follows it if all conditions hold, and skips one instruction of that if
/// not: seccompiler's, whose 64-bit comparisons are made of 32-bit ones.
fn conditions(conditions: &[Condition], width: Width) -> Result<Vec<Insn>> {
    let refused = |error: seccompiler::BackendError| {
        Error::new(
            Kind::Spec,
            format!("compile a seccomp rule with args: {error}"),
        )
    };
    let len = match width {
        Width::Wide => SeccompCmpArgLen::Qword,
        Width::Narrow => SeccompCmpArgLen::Dword,
    };
    let mut list = Vec::with_capacity(conditions.len());
    for Condition {
        arg,
        op,
        mask,
        value,
    } in conditions.iter().copied()
    {
        let op = match op {
            Op::ScmpCmpNe => SeccompCmpOp::Ne,
            Op::ScmpCmpLt => SeccompCmpOp::Lt,
            Op::ScmpCmpLe => SeccompCmpOp::Le,
            Op::ScmpCmpEq => SeccompCmpOp::Eq,
            Op::ScmpCmpGe => SeccompCmpOp::Ge,
            Op::ScmpCmpGt => SeccompCmpOp::Gt,
            Op::ScmpCmpMaskedEq => SeccompCmpOp::MaskedEq(mask),
        };
        list.push(SeccompCondition::new(arg, len.clone(), op, value).map_err(refused)?);
    }
    let program = BpfProgram::from(SeccompRule::new(list).map_err(refused)?);
    // The first two instructions are a way in and a way out for a linear chain of rules; the
    // conditions know their own way out, and nothing jumps to those two.
    let insns = program.into_iter().skip(2);
    Ok(insns
        .map(|insn| Insn::from((insn.code, insn.jt, insn.jf, insn.k)))
        .collect())
}
