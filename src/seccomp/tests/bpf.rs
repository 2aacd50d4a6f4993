//! A small interpreter of what the compiler writes: everything else in a program is a failure.

use crate::sys::seccomp::Insn;

/// What a filter sees of a call: `struct seccomp_data` without the instruction pointer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) arch: u32,
    pub(super) nr: u32,
    pub(super) args: [u64; 6],
}

impl Call {
    /// A call without arguments.
    pub(super) fn plain(arch: u32, nr: u32) -> Self {
        Self {
            arch,
            nr,
            args: [0; 6],
        }
    }

    fn word(&self, offset: u32) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 64, "load at {offset}");
        match offset {
            0 => self.nr,
            4 => self.arch,
            8 | 12 => panic!("a filter has no use for the instruction pointer"),
            _ => (self.args[(offset as usize - 16) / 8] >> (8 * (offset % 8))) as u32,
        }
    }
}

/// Runs a program on a call, and gives its return value and the number of instructions that it took.
pub(super) fn run(program: &[Insn], call: &Call) -> (u32, usize) {
    assert!(program.len() <= 4096);
    let (mut at, mut steps, mut accumulator) = (0, 0, 0);
    loop {
        let Insn { code, jt, jf, k } = program[at];
        steps += 1;
        let compared = |yes: bool| {
            if yes {
                usize::from(jt)
            } else {
                usize::from(jf)
            }
        };
        at += 1 + match code {
            0x20 => {
                accumulator = call.word(k);
                0
            }
            0x54 => {
                accumulator &= k;
                0
            }
            0x05 => k as usize,
            0x15 => compared(accumulator == k),
            0x25 => compared(accumulator > k),
            0x35 => compared(accumulator >= k),
            0x45 => compared(accumulator & k != 0),
            0x06 => return (k, steps),
            code => panic!("instruction {code:#x} at {at}"),
        };
    }
}
