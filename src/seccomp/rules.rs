//! What a profile says about each system call: the first unconditional action, or conditional
//! rules in the order in which they are tried.
//!
//! A profile is a list without a stated precedence; what it means is what libseccomp makes of it,
//! so that is what this does (src/db.c and src/gen_bpf.c of 2.5 and 2.6 were read, and the result is
//! compared with the library's own programs: oracle.c). For one call:
//!
//! - An unconditional rule beats every conditional one, before or after it; of several, the first.
//! - Of the conditional rules that match, the one wins that libseccomp's tree comes to first. It
//!   sorts by the tests: those on a higher argument first (of one argument: the upper half first);
//!   then equality, then less, then greater; then the greater value first, with "less" the smaller
//!   one. Ties are tried in the order of the profile. The order of the profile decides nothing else.
//! - A rule that starts with all the conditions of an earlier one can never decide and is dropped.
//! - A rule with the conditions of an earlier one (or with only its first ones) and another action
//!   is a contradiction. libseccomp gives EEXIST, and runc does not start the container.

use oci_spec::runtime::LinuxSeccompOperator as Op;

use super::abi::Width;
use super::table::TABLE;

/// One test of one argument. Made by [`Condition::new`], so equal tests are equal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// Which argument, 0 to 5.
    pub(super) arg: u8,
    /// How it is compared.
    pub(super) op: Op,
    /// Which bits are compared: all but for MASKED_EQ.
    pub(super) mask: u64,
    /// What they are compared with.
    pub(super) value: u64,
}

impl Condition {
    /// A test for calls whose arguments are `width` wide, or nothing if every value passes it.
    ///
    /// Narrow ones compare the lower halves only, of the argument and of `value`, as libseccomp
    /// does: `-1` that was widened to 64 bits is meant to be found on 32-bit calls too.
    pub(super) fn new(arg: u8, op: Op, value: u64, two: u64, width: Width) -> Option<Self> {
        let all = if width == Width::Wide {
            u64::MAX
        } else {
            u64::from(u32::MAX)
        };
        let (mask, value) = match op {
            Op::ScmpCmpMaskedEq => (value & all, value & two & all),
            _ => (all, value & all),
        };
        (mask != 0).then_some(Self {
            arg,
            op,
            mask,
            value,
        })
    }

    /// The single tests of 32-bit halves that libseccomp makes of it, in the order of its tree.
    fn nodes(self, width: Width) -> impl Iterator<Item = Node> {
        let rank = match self.op {
            Op::ScmpCmpEq | Op::ScmpCmpNe | Op::ScmpCmpMaskedEq => 3,
            Op::ScmpCmpLt | Op::ScmpCmpLe => 2,
            Op::ScmpCmpGt | Op::ScmpCmpGe => 1,
        };
        // Complements are one test with two ways out, so they have one letter.
        let (high_test, low_test) = match self.op {
            Op::ScmpCmpEq | Op::ScmpCmpNe => ('=', '='),
            Op::ScmpCmpMaskedEq => ('&', '&'),
            Op::ScmpCmpGt | Op::ScmpCmpLe => ('>', '>'),
            Op::ScmpCmpGe | Op::ScmpCmpLt if width == Width::Wide => ('>', '≥'),
            Op::ScmpCmpGe | Op::ScmpCmpLt => ('≥', '≥'),
        };
        let node = |half: u8, test: char| {
            let shift = 32 * u32::from(half);
            let (mask, value) = ((self.mask >> shift) as u32, (self.value >> shift) as u32);
            let order = if rank == 2 { !value } else { value };
            Node {
                key: (self.arg * 2 + half, rank, order),
                test: (test, mask, value),
            }
        };
        let high = (width == Width::Wide).then(|| node(1, high_test));
        high.into_iter().chain([node(0, low_test)])
    }
}

/// A test of one half of an argument.
struct Node {
    /// Greater ones are tried first.
    key: (u8, u8, u32),
    /// With the same place in `key`, equal ones are the same test.
    test: (char, u32, u32),
}

/// A rule of the profile for one call and width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// All of them have to hold; sorted by argument, at most one for each.
    pub(super) conditions: Vec<Condition>,
    /// The filter's return value if they do.
    pub(super) action: u32,
    /// The index in the profile's `syscalls`, for errors.
    pub(super) origin: usize,
}

impl Rule {
    /// Whether libseccomp tries it before `other`, which was added earlier.
    fn precedes(&self, other: &Rule, width: Width) -> bool {
        let nodes = |rule: &Rule| {
            rule.conditions
                .clone()
                .into_iter()
                .flat_map(move |condition| condition.nodes(width))
        };
        let mut theirs = nodes(other);
        for mine in nodes(self) {
            let Some(their) = theirs.next() else {
                return false;
            };
            if mine.key.0 != their.key.0 || mine.test != their.test {
                return mine.key > their.key;
            }
        }
        theirs.next().is_some()
    }
}

/// What is known about one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Slot {
    /// Nothing: the default action.
    #[default]
    Unset,
    /// This return value, whatever the arguments are.
    Always(u32),
    /// The first of these that matches, else the default action.
    When(Vec<Rule>),
}

/// Two rules that contradict each other; holds the index of the earlier one in `syscalls`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contradiction(pub(super) usize);

impl Slot {
    /// Adds a rule of the profile.
    pub(super) fn add(&mut self, rule: Rule, width: Width) -> Result<(), Contradiction> {
        if rule.conditions.is_empty() {
            if !matches!(self, Slot::Always(_)) {
                *self = Slot::Always(rule.action);
            }
            return Ok(());
        }
        let rules = match self {
            Slot::Always(_) => return Ok(()),
            Slot::When(rules) => rules,
            Slot::Unset => {
                *self = Slot::When(vec![rule]);
                return Ok(());
            }
        };
        if rules.iter().any(|old| {
            rule.conditions.starts_with(&old.conditions)
                && (old.conditions.len() < rule.conditions.len() || old.action == rule.action)
        }) {
            return Ok(());
        }
        let covered = |old: &Rule| old.conditions.starts_with(&rule.conditions);
        if let Some(old) = rules
            .iter()
            .find(|old| covered(old) && old.action != rule.action)
        {
            return Err(Contradiction(old.origin));
        }
        rules.retain(|old| !covered(old));
        let place = rules
            .iter()
            .position(|old| rule.precedes(old, width))
            .unwrap_or(rules.len());
        rules.insert(place, rule);
        Ok(())
    }

    /// Adds a rule that isorun derives for a multiplexer.
    ///
    /// The profile does not name that call, so rules that only differ in what a multiplexer hides
    /// (the arguments) contradict each other through no fault of its author: the sterner action
    /// stays, in the kernel's order.
    pub(super) fn add_derived(&mut self, mut rule: Rule, width: Width) {
        let sterner = |a: u32, b: u32| if (a as i32) < (b as i32) { a } else { b };
        while self.add(rule.clone(), width).is_err() {
            let Slot::When(rules) = self else { return };
            for old in rules
                .iter()
                .filter(|old| old.conditions.starts_with(&rule.conditions))
            {
                rule.action = sterner(rule.action, old.action);
            }
            rules.retain(|old| !old.conditions.starts_with(&rule.conditions));
        }
    }
}

/// The slots of all calls, by the row of the table, for one width.
pub(super) fn slots() -> Vec<Slot> {
    vec![Slot::Unset; TABLE.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;

    fn rule(conditions: &[(u8, Op, u64)], action: u32, origin: usize) -> Rule {
        let conditions = conditions
            .iter()
            .map(|(arg, op, value)| Condition::new(*arg, *op, *value, 0, Width::Wide).unwrap())
            .collect();
        Rule {
            conditions,
            action,
            origin,
        }
    }

    fn order(rules: &[Rule]) -> Vec<usize> {
        let mut slot = Slot::default();
        for rule in rules {
            slot.add(rule.clone(), Width::Wide).unwrap();
        }
        let Slot::When(rules) = slot else {
            panic!("conditional rules are gone")
        };
        rules.iter().map(|rule| rule.origin).collect()
    }

    #[test]
    fn the_order_is_libseccomps() {
        use Op::*;
        // Higher arguments first.
        let rules = [
            rule(&[(0, ScmpCmpEq, 1)], 1, 0),
            rule(&[(2, ScmpCmpGt, 1)], 2, 1),
        ];
        assert_eq!(order(&rules), [1, 0]);
        // Equality, less, greater.
        let rules = [
            rule(&[(0, ScmpCmpGt, 1)], 1, 0),
            rule(&[(0, ScmpCmpLt, 9)], 2, 1),
            rule(&[(0, ScmpCmpEq, 5)], 3, 2),
        ];
        assert_eq!(order(&rules), [2, 1, 0]);
        // The narrowest of one kind.
        let rules = [
            rule(&[(0, ScmpCmpGt, 1)], 1, 0),
            rule(&[(0, ScmpCmpGt, 3)], 2, 1),
            rule(&[(0, ScmpCmpLe, 9)], 3, 2),
            rule(&[(0, ScmpCmpLe, 7)], 4, 3),
        ];
        assert_eq!(order(&rules), [3, 2, 1, 0]);
        // Ties: the profile's order.
        let rules = [
            rule(&[(0, ScmpCmpNe, 1)], 1, 0),
            rule(&[(0, ScmpCmpEq, 1)], 2, 1),
        ];
        assert_eq!(order(&rules), [0, 1]);
    }

    #[test]
    fn unconditional_rules_win_and_the_first_of_them() {
        let conditional = rule(&[(0, Op::ScmpCmpEq, 1)], EPERM, 0);
        for order in [[0, 1, 2], [1, 0, 2], [1, 2, 0]] {
            let mut slot = Slot::default();
            let rules = [&conditional, &rule(&[], ALLOW, 1), &rule(&[], EPERM, 2)];
            for index in order {
                slot.add(rules[index].clone(), Width::Wide).unwrap();
            }
            assert_eq!(slot, Slot::Always(ALLOW), "{order:?}");
        }
    }

    #[test]
    fn contradictions_and_repetitions() {
        use Op::*;
        let short = |action, origin| rule(&[(0, ScmpCmpEq, 1)], action, origin);
        let long = |action, origin| rule(&[(0, ScmpCmpEq, 1), (1, ScmpCmpEq, 2)], action, origin);
        let mut slot = Slot::default();
        slot.add(long(EPERM, 3), Width::Wide).unwrap();
        assert_eq!(slot.add(long(ALLOW, 4), Width::Wide), Err(Contradiction(3)));
        assert_eq!(
            slot.add(short(ALLOW, 4), Width::Wide),
            Err(Contradiction(3))
        );
        assert_eq!(slot.add(long(EPERM, 5), Width::Wide), Ok(()));
        // The shorter one has the same action, so it takes the place of the longer one.
        slot.add(short(EPERM, 6), Width::Wide).unwrap();
        assert_eq!(slot, Slot::When(vec![short(EPERM, 6)]));
        // And what starts with it can never decide.
        slot.add(long(ALLOW, 7), Width::Wide).unwrap();
        assert_eq!(slot, Slot::When(vec![short(EPERM, 6)]));
    }

    #[test]
    fn derived_rules_take_the_sterner_action() {
        let short = |action| rule(&[(0, Op::ScmpCmpEq, 1)], action, 0);
        for (first, second) in [(ALLOW, EPERM), (EPERM, ALLOW)] {
            let mut slot = Slot::default();
            slot.add_derived(short(first), Width::Narrow);
            slot.add_derived(short(second), Width::Narrow);
            assert_eq!(slot, Slot::When(vec![short(EPERM)]));
        }
    }

    #[test]
    fn narrow_conditions_see_the_lower_half() {
        let narrow = |op, value, two| Condition::new(0, op, value, two, Width::Narrow);
        let minus_one = narrow(Op::ScmpCmpEq, u64::MAX, 0).unwrap();
        assert_eq!(
            (minus_one.mask, minus_one.value),
            (0xffff_ffff, 0xffff_ffff)
        );
        assert_eq!(narrow(Op::ScmpCmpMaskedEq, 0xf_0000_0000, 0), None);
        let masked = Condition::new(0, Op::ScmpCmpMaskedEq, 0xf0, 0xff, Width::Wide).unwrap();
        assert_eq!((masked.mask, masked.value), (0xf0, 0xf0));
    }
}
