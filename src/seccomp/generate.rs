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
    /// The interfaces that it is for, without repetition.
    pub(super) abis: Vec<Abi>,
    /// The return value where no rule matches.
    pub(super) default: u32,
    /// Whether numbers beyond the greatest one that the profile names get ENOSYS.
    pub(super) stub: bool,
    /// The greatest number that the profile names, for each of `abis`.
    pub(super) greatest: Vec<Option<u32>>,
    /// The rules for wide interfaces.
    pub(super) wide: Vec<Slot>,
    /// The rules for narrow interfaces.
    pub(super) narrow: Vec<Slot>,
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
    let mut program = Assembler::default();
    let mut entry = program.fresh_ret(BAD_ARCH);
    let mut blocks: Vec<(Width, &[Rule], Label)> = Vec::new();
    let mut sections: Vec<(u32, Label)> = Vec::new();
    for abi in &filter.abis {
        if sections.iter().any(|(audit, _)| *audit == abi.audit()) {
            continue;
        }
        let ranges = match abi {
            Abi::X86_64 | Abi::X32 => x86_64_ranges(filter, &mut program, &mut blocks)?,
            abi => {
                let mut ranges = Ranges::default();
                let target = Target::Return(filter.default);
                ranges.from(0, target);
                listed(filter, *abi, target, &mut ranges, &mut program, &mut blocks)?;
                ranges
            }
        };
        let tree = tree(&leaves(&ranges.0), &mut program);
        sections.push((abi.audit(), program.load(OFFSET_NUMBER, tree)));
    }
    // Written backwards: the first one, which is the native one, comes to be asked first.
    for (audit, section) in sections.into_iter().rev() {
        entry = program.branch(JUMP_EQUAL, audit, section, entry);
    }
    program.load(OFFSET_ARCH, entry);
    program.finish()
}

/// Puts the numbers of `abi` into `ranges`, the gaps between them with `gap`, and from the greatest
/// one that the profile names on ENOSYS, where that is asked for.
fn listed<'a>(
    filter: &'a Filter,
    abi: Abi,
    gap: Target,
    ranges: &mut Ranges,
    program: &mut Assembler,
    blocks: &mut Vec<(Width, &'a [Rule], Label)>,
) -> Result<()> {
    let slots = match abi.width() {
        Width::Wide => &filter.wide,
        Width::Narrow => &filter.narrow,
    };
    let mut numbered: Vec<(u32, &Slot)> = slots
        .iter()
        .enumerate()
        .filter(|(_, slot)| **slot != Slot::Unset)
        .filter_map(|(row, slot)| abi.number(row).map(|number| (number, slot)))
        .collect();
    numbered.sort_unstable_by_key(|(number, _)| *number);
    for (number, slot) in numbered {
        let target = match slot {
            Slot::Unset => continue,
            Slot::Always(action) => Target::Return(*action),
            Slot::When(rules) => {
                Target::Block(block(rules, abi.width(), filter.default, program, blocks)?)
            }
        };
        ranges.from(number, target);
        ranges.from(number + 1, gap);
    }
    if let Some(greatest) = filter.stub.then(|| filter.greatest(abi)).flatten() {
        ranges.from(greatest + 1, Target::Return(ENOSYS));
    }
    Ok(())
}

/// The ranges of x86_64, where bit 30 of the number says that the call is one of x32.
///
/// libseccomp takes all numbers from 2^30 on as x32, but for -1: a tracer sets that to skip a call,
/// and since Linux 4.8 the filter sees it. runc's stub, which comes before, looks at bit 30 only.
fn x86_64_ranges<'a>(
    filter: &'a Filter,
    program: &mut Assembler,
    blocks: &mut Vec<(Width, &'a [Rule], Label)>,
) -> Result<Ranges> {
    let (default, bad) = (Target::Return(filter.default), Target::Return(BAD_ARCH));
    let has = |abi| filter.abis.contains(&abi);
    let stubbed = |abi, otherwise| match filter.stub.then(|| filter.greatest(abi)).flatten() {
        Some(_) => Target::Return(ENOSYS),
        None => otherwise,
    };
    let mut ranges = Ranges::default();
    if has(Abi::X86_64) {
        ranges.from(0, default);
        listed(filter, Abi::X86_64, default, &mut ranges, program, blocks)?;
    } else {
        ranges.from(0, bad);
    }
    let beyond = if has(Abi::X32) { default } else { bad };
    ranges.from(X32_BIT, beyond);
    if has(Abi::X32) {
        listed(filter, Abi::X32, default, &mut ranges, program, blocks)?;
    }
    ranges.from(0x8000_0000, stubbed(Abi::X86_64, beyond));
    ranges.from(0xc000_0000, stubbed(Abi::X32, beyond));
    ranges.from(u32::MAX, stubbed(Abi::X32, default));
    Ok(ranges)
}

impl Filter {
    fn greatest(&self, abi: Abi) -> Option<u32> {
        let index = self.abis.iter().position(|listed| *listed == abi)?;
        self.greatest[index]
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

/// The conditional rules of one call, the default action behind them; one block for all calls and
/// interfaces that have the same ones.
fn block<'a>(
    rules: &'a [Rule],
    width: Width,
    default: u32,
    program: &mut Assembler,
    blocks: &mut Vec<(Width, &'a [Rule], Label)>,
) -> Result<Label> {
    let same = |other: &[Rule]| {
        other.len() == rules.len()
            && other
                .iter()
                .zip(rules)
                .all(|(a, b)| a.action == b.action && a.conditions == b.conditions)
    };
    if let Some((.., label)) = blocks
        .iter()
        .find(|(w, other, _)| *w == width && same(other))
    {
        return Ok(*label);
    }
    let mut label = program.fresh_ret(default);
    for rule in rules.iter().rev() {
        label = program.fresh_ret(rule.action);
        for insn in conditions(&rule.conditions, width)?.into_iter().rev() {
            label = program.push(insn);
        }
    }
    blocks.push((width, rules, label));
    Ok(label)
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
