//! The same profiles compiled by libseccomp (oracle.c), and both programs run on the same calls.
//!
//! Seen with 2.5.4 and 2.6.1. It needs a C compiler and libseccomp's headers, so it is not part of
//! the usual run:
//! `apt-get install libseccomp-dev`, then `cargo test --lib seccomp::tests::oracle -- --ignored`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;
use crate::seccomp::check::check;

/// A profile in the form that oracle.c reads.
pub(super) fn text(spec: &LinuxSeccomp) -> String {
    let value = |action, errno| reference::action(action, errno);
    let mut text = format!(
        "default {}\n",
        value(spec.default_action(), spec.default_errno_ret())
    );
    for arch in spec.architectures().iter().flatten() {
        let name = arch
            .to_string()
            .trim_start_matches("SCMP_ARCH_")
            .to_lowercase();
        writeln!(text, "arch {name}").unwrap();
    }
    for rule in spec.syscalls().iter().flatten() {
        for name in rule.names() {
            write!(
                text,
                "rule {} {name}",
                value(rule.action(), rule.errno_ret())
            )
            .unwrap();
            for arg in rule.args().iter().flatten() {
                let two = arg.value_two().unwrap_or(0);
                write!(
                    text,
                    " {} {} {} {two}",
                    arg.index(),
                    arg.op() as u32,
                    arg.value()
                )
                .unwrap();
            }
            text.push('\n');
        }
    }
    text + "end\n"
}

/// libseccomp's program for each profile, or its errno.
fn compile_all(specs: &[LinuxSeccomp]) -> Vec<std::result::Result<Vec<Insn>, i32>> {
    let path = std::env::temp_dir().join(format!("isorun-oracle-{}", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/seccomp/tests/oracle.c");
    let built = Command::new("cc")
        .args(["-D_GNU_SOURCE", "-o"])
        .arg(&path)
        .args([source, "-lseccomp"])
        .status();
    assert!(built.unwrap().success());
    let mut child = Command::new(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input: String = specs.iter().map(text).collect();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    std::fs::remove_file(path).unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let mut lines = output.lines();
    let mut programs = Vec::new();
    while let Some(line) = lines.next() {
        if let Some(errno) = line.strip_prefix("error ") {
            programs.push(Err(errno.parse().unwrap()));
            continue;
        }
        let mut insn = || {
            let line = lines.next().unwrap();
            let words: Vec<u32> = line.split(' ').map(|word| word.parse().unwrap()).collect();
            Insn::from((words[0] as u16, words[1] as u8, words[2] as u8, words[3]))
        };
        programs.push(Ok((0..line.parse().unwrap()).map(|_| insn()).collect()));
    }
    assert_eq!(programs.len(), specs.len());
    programs
}

/// isorun's program without runc's stub, which is not libseccomp's.
fn without_stub(spec: &LinuxSeccomp) -> Result<Vec<Insn>> {
    let mut checked = check(spec, Abi::NATIVE)?;
    checked.filter.stub = false;
    crate::seccomp::generate::generate(&checked.filter)
}

#[test]
#[ignore = "needs cc and libseccomp-dev"]
fn captured_profiles_are_libseccomps() {
    let specs = ["podman", "docker"].map(captured);
    for (spec, theirs) in specs.iter().zip(compile_all(&specs)) {
        let (ours, theirs) = (without_stub(spec).unwrap(), theirs.unwrap());
        let mut random = Random::new(11);
        // Younger calls have no name in older releases of the library.
        let young = 440..512;
        for call in numbers().filter(|call| !young.contains(&(call.nr & 0x3fff_ffff))) {
            for _ in 0..20 {
                let call = Call {
                    args: random.args(),
                    ..call
                };
                assert_eq!(run(&ours, &call).0, run(&theirs, &call).0, "{call:x?}");
            }
        }
        println!("{} instructions, libseccomp {}", ours.len(), theirs.len());
    }
}

/// How random profiles end with both compilers.
#[derive(Debug, Default)]
struct Tally {
    /// Both programs say the same for all calls that were tried, or both compilers refuse.
    same: usize,
    /// libseccomp's program does what no rule that matches says: its own mistake.
    mistaken: usize,
    /// Both programs follow a rule that matches, but not the same one.
    ordered: usize,
    /// Only libseccomp refuses: contradictions that it sees in what rules have in common.
    refused: usize,
    /// Only isorun refuses.
    missed: usize,
}

impl Tally {
    fn add(&mut self, spec: &LinuxSeccomp, theirs: &[Insn], random: &mut Random) {
        let Ok(ours) = without_stub(spec) else {
            self.missed += 1;
            return;
        };
        let reference = Reference::new(spec, Abi::NATIVE).without_stub();
        let (mut mistaken, mut ordered) = (false, false);
        for _ in 0..200 {
            let abi = random.pick(&Abi::ALL);
            let row = crate::seccomp::abi::row(random.pick(&NAMES));
            let Some(nr) = row.and_then(|row| abi.number(row)) else {
                continue;
            };
            let args = random.args();
            let call = Call {
                arch: abi.audit(),
                nr,
                args,
            };
            let other = run(theirs, &call).0;
            if run(&ours, &call).0 != other {
                match reference.justified(&call).contains(&other) {
                    true => ordered = true,
                    false => mistaken = true,
                }
            }
        }
        match (ordered, mistaken) {
            (false, false) => self.same += 1,
            (true, _) => self.ordered += 1,
            (false, true) => self.mistaken += 1,
        }
    }
}

const NAMES: [&str; 6] = ["ioctl", "socket", "sendto", "semop", "read", "accept"];

#[test]
#[ignore = "needs cc and libseccomp-dev"]
fn random_profiles_are_libseccomps() {
    let kinds: [&[Op]; 4] = [
        &[],
        &[Op::ScmpCmpEq, Op::ScmpCmpNe],
        &[Op::ScmpCmpEq, Op::ScmpCmpMaskedEq],
        &OPS,
    ];
    for (wide, ops) in kinds.iter().flat_map(|ops| [(false, ops), (true, ops)]) {
        let mut random = Random::new(0xacc1e);
        random.wide = wide;
        let mut make = || {
            let rules = 1 + random.below(4);
            random.profile(rules, &NAMES, ops)
        };
        let specs: Vec<_> = (0..2000).map(|_| make()).collect();
        let mut tally = Tally::default();
        for (spec, theirs) in specs.iter().zip(compile_all(&specs)) {
            match theirs {
                Ok(theirs) => tally.add(spec, &theirs, &mut random),
                Err(_) if without_stub(spec).is_err() => tally.same += 1,
                Err(_) => tally.refused += 1,
            }
        }
        println!("{ops:?}, upper halves {wide}: {tally:?}");
        assert!(tally.ordered + tally.missed < 40, "{tally:?}");
        assert!(tally.same > 1500, "{tally:?}");
    }
}
