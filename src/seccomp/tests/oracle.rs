//! The same profiles compiled by libseccomp (oracle.c), and both programs run on the same calls.
//!
//! It needs a C compiler and libseccomp's headers, so it is not part of the usual run:
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
        for call in numbers() {
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

#[test]
#[ignore = "needs cc and libseccomp-dev"]
fn random_profiles_are_libseccomps() {
    let mut random = Random::new(0x0a_c1e);
    random.wide = std::env::var_os("NARROW").is_none();
    let names = ["ioctl", "socket", "sendto", "semop", "read", "accept"];
    let specs: Vec<_> = (0..4000)
        .map(|round| {
            let rules = 1 + random.below(4);
            let ops: &[Op] = match round % 4 {
                0 => &OPS,
                1 => &[Op::ScmpCmpEq, Op::ScmpCmpNe],
                2 => &[Op::ScmpCmpEq, Op::ScmpCmpMaskedEq],
                _ => &[Op::ScmpCmpGt, Op::ScmpCmpGe, Op::ScmpCmpLt],
            };
            let mut spec = random.profile(rules, &names, ops);
            if std::env::var_os("NOX86").is_some() {
                let keep = spec.architectures().clone().unwrap();
                spec.set_architectures(Some(
                    keep.into_iter()
                        .filter(|a| *a != oci_spec::runtime::Arch::ScmpArchX86)
                        .collect(),
                ));
            }
            spec
        })
        .collect();
    let (mut same, mut refused, mut only) = (0, 0, [0, 0]);
    let mut different = Vec::new();
    let mut mistakes = 0;
    for (spec, theirs) in specs.iter().zip(compile_all(&specs)) {
        let (ours, theirs) = match (without_stub(spec), theirs) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            (Err(_), Err(_)) => {
                refused += 1;
                continue;
            }
            (ours, _) => {
                only[usize::from(ours.is_ok())] += 1;
                if only[usize::from(ours.is_ok())] < 4 {
                    println!("ours is ok: {}:\n{}", ours.is_ok(), text(spec));
                }
                continue;
            }
        };
        let mut wrong = None;
        let reference = reference::Reference::new(spec, Abi::NATIVE);
        for _ in 0..200 {
            let abi = random.pick(&Abi::ALL);
            let row = super::super::abi::row(random.pick(&names));
            let Some(nr) = row.and_then(|row| abi.number(row)) else {
                continue;
            };
            let call = Call {
                arch: abi.audit(),
                nr,
                args: random.args(),
            };
            let (mine, other) = (run(&ours, &call).0, run(&theirs, &call).0);
            if mine == other {
                continue;
            }
            // What no rule that matches says is no matter of order: libseccomp's own mistake.
            if reference.justified(&call).contains(&other) {
                wrong = Some((call, mine, other));
            } else {
                mistakes += 1;
            }
        }
        match wrong {
            None => same += 1,
            Some((call, ours, theirs)) => {
                different.push(format!("{}{call:x?} {ours:x} {theirs:x}", text(spec)));
            }
        }
    }
    for text in different.iter().take(12) {
        println!("{text}\n");
    }
    println!(
        "{same} same, {refused} refused by both, {only:?} by one, {} different, {mistakes} mistakes",
        different.len()
    );
    assert!(same > 3000);
}
