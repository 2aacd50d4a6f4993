//! The compiler against a plain evaluator of profiles, against libseccomp and against the kernel.

mod bpf;
mod errors;
mod loaded;
mod oracle;
mod random;
mod reference;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompOperator as Op};

use self::bpf::{Call, run};
use self::random::{Random, all_names};
use self::reference::Reference;
use super::abi::Abi;
use super::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const ARM: u32 = 0x4000_0028;
const KILL: u32 = 0;
const ALLOW: u32 = 0x7fff_0000;
const ENOSYS: u32 = 0x0005_0026;
const EPERM: u32 = 0x0005_0001;
const OPS: [Op; 7] = [
    Op::ScmpCmpNe,
    Op::ScmpCmpLt,
    Op::ScmpCmpLe,
    Op::ScmpCmpEq,
    Op::ScmpCmpGe,
    Op::ScmpCmpGt,
    Op::ScmpCmpMaskedEq,
];

/// Numbers that no table has, and the edges of the ranges that the compiler makes.
const ODD_NUMBERS: [u32; 22] = [
    0x3fff_fffe,
    0x3fff_ffff,
    0x4000_0000,
    0x4000_0001,
    0x4000_0208,
    0x4000_0300,
    0x7fff_fffe,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xbfff_ffff,
    0xc000_0000,
    0xc000_0001,
    0xffff_fffe,
    0xffff_ffff,
    0xf_0000,
    0xf_0001,
    0xf_0005,
    0xf_0006,
    0xf_0007,
    0xf_0100,
    1000,
];

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

fn captured(name: &str) -> LinuxSeccomp {
    let text = match name {
        "podman" => include_str!("../../../tests/data/captured/podman.json"),
        _ => include_str!("../../../tests/data/captured/docker.json"),
    };
    let config: serde_json::Value = serde_json::from_str(text).unwrap();
    serde_json::from_value(config["linux"]["seccomp"].clone()).unwrap()
}

fn native(spec: &LinuxSeccomp) -> Vec<Insn> {
    compile_for(spec, Abi::X86_64).unwrap().instructions
}

/// Each call that is worth a look, on each architecture and two that no profile has.
fn numbers() -> impl Iterator<Item = Call> {
    let near = (0..700)
        .chain((0..700).map(|nr| nr | 0x4000_0000))
        .chain(ODD_NUMBERS);
    near.flat_map(|nr| {
        [X86_64, X86, AARCH64, ARM, 0xc000_00f3, 0].map(|arch| Call::plain(arch, nr))
    })
}

/// Compares a program with the evaluator on all numbers, with `rounds` lists of arguments each.
fn compare(spec: &LinuxSeccomp, native: Abi, rounds: usize, random: &mut Random) {
    let program = compile_for(spec, native).unwrap().instructions;
    let reference = Reference::new(spec, native);
    for call in numbers() {
        for round in 0..rounds {
            let args = if round == 0 { [0; 6] } else { random.args() };
            let call = Call { args, ..call };
            let (value, _) = run(&program, &call);
            let want = reference.expected(&call);
            assert_eq!(
                value,
                want,
                "{value:#x}, not {want:#x} for {call:x?} with\n{}",
                oracle::text(spec)
            );
        }
    }
}

#[test]
fn captured_profiles_do_what_they_say_for_all_numbers() {
    for name in ["podman", "docker"] {
        compare(&captured(name), Abi::X86_64, 4, &mut Random::new(7));
        compare(&captured(name), Abi::Aarch64, 1, &mut Random::new(8));
    }
}

#[test]
fn captured_profiles_are_small_and_shallow() {
    for (name, most) in [("podman", 400), ("docker", 400)] {
        let program = native(&captured(name));
        assert!(
            program.len() < most,
            "{name}: {} instructions",
            program.len()
        );
        let deepest = numbers().map(|call| run(&program, &call).1).max().unwrap();
        assert!(deepest < 40, "{name}: {deepest} steps");
    }
}

#[test]
fn conditions_of_captured_profiles() {
    let program = native(&captured("podman"));
    let socket = |family, protocol| {
        let args = [family, 3, protocol, 0, 0, 0];
        run(
            &program,
            &Call {
                arch: X86_64,
                nr: 41,
                args,
            },
        )
        .0
    };
    assert_eq!(socket(2, 0), ALLOW);
    assert_eq!(socket(16, 0), ALLOW);
    // NETLINK_AUDIT is EINVAL, and AF_VSOCK is EPERM: both overlap with what allows the rest.
    assert_eq!(socket(16, 9), 0x0005_0016);
    assert_eq!(socket(40, 0), EPERM);
    assert_eq!(socket(16 | 1 << 32, 9), ALLOW);
    let personality = |persona| {
        run(
            &program,
            &Call {
                arch: X86_64,
                nr: 135,
                args: [persona, 0, 0, 0, 0, 0],
            },
        )
        .0
    };
    assert_eq!(personality(0x2_0008), ALLOW);
    assert_eq!(personality(0xffff_ffff), ALLOW);
    assert_eq!(personality(u64::MAX), ENOSYS);
    let program = native(&captured("docker"));
    let clone = |arch, nr, flags| {
        run(
            &program,
            &Call {
                arch,
                nr,
                args: [flags, 0, 0, 0, 0, 0],
            },
        )
        .0
    };
    assert_eq!(clone(X86_64, 56, 0x11), ALLOW);
    // CLONE_NEWUSER.
    assert_eq!(clone(X86_64, 56, 0x1000_0000), EPERM);
    assert_eq!(clone(X86, 120, 0x1000_0011), EPERM);
    assert_eq!(clone(X86_64, 0x4000_0000 | 56, 0x1000_0011), EPERM);
}

#[test]
fn what_is_not_listed_is_killed() {
    let allow_all = |archs: &str| {
        let json = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","architectures":[{archs}]}}"#);
        native(&profile(&json))
    };
    let result = |program: &[Insn], arch, nr| run(program, &Call::plain(arch, nr)).0;
    for archs in [
        "",
        r#""SCMP_ARCH_X86_64""#,
        r#""SCMP_ARCH_NATIVE","SCMP_ARCH_ARM""#,
    ] {
        let program = allow_all(archs);
        assert_eq!(result(&program, X86_64, 0), ALLOW);
        assert_eq!(result(&program, X86_64, 0x3fff_ffff), ALLOW);
        for nr in [
            0x4000_0000,
            0x4000_0208,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_fffe,
        ] {
            assert_eq!(result(&program, X86_64, nr), KILL, "{nr:#x}");
        }
        // A tracer that skips the call.
        assert_eq!(result(&program, X86_64, 0xffff_ffff), ALLOW);
        for arch in [X86, AARCH64, 0, 0xc000_00f3] {
            assert_eq!(result(&program, arch, 1), KILL, "{arch:#x}");
        }
    }
    // The native one is in, listed or not.
    let program = allow_all(r#""SCMP_ARCH_X32","SCMP_ARCH_X86""#);
    for (arch, nr) in [(X86_64, 1), (X86_64, 0x4000_0001), (X86, 1)] {
        assert_eq!(result(&program, arch, nr), ALLOW);
    }
    assert_eq!(result(&program, ARM, 1), KILL);
    // x32 alone does not open x86_64.
    let spec = profile(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X32"]}"#);
    let program = compile_for(&spec, Abi::Aarch64).unwrap().instructions;
    assert_eq!(result(&program, X86_64, 1), KILL);
    assert_eq!(result(&program, X86_64, 0x4000_0001), ALLOW);
}

#[test]
fn x32_has_its_own_table() {
    let program = native(&profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X32"],
            "syscalls":[{"names":["execve"],"action":"SCMP_ACT_ERRNO"}]}"#,
    ));
    let result = |nr| run(&program, &Call::plain(X86_64, nr)).0;
    assert_eq!(result(59), EPERM);
    assert_eq!(result(0x4000_0000 + 520), EPERM);
    // The kernel runs x86_64's number with bit 30 as nothing, but the filter is not to know.
    assert_eq!(result(0x4000_0000 + 59), ALLOW);
}

#[test]
fn newer_calls_get_enosys() {
    let with = |default: &str, names: &str| {
        native(&profile(&format!(
            r#"{{"defaultAction":"{default}","architectures":["SCMP_ARCH_X86"],
                "syscalls":[{{"names":[{names}],"action":"SCMP_ACT_TRAP"}}]}}"#
        )))
    };
    let result = |program: &[Insn], nr| run(program, &Call::plain(X86_64, nr)).0;
    for default in ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let program = with(default, r#""read","openat2""#);
        let fallback = result(&program, 436);
        assert_ne!(fallback, ENOSYS);
        assert_eq!(result(&program, 438), ENOSYS);
        assert_eq!(result(&program, 0x3fff_ffff), ENOSYS);
        // x86 has only its own limit: x32 is not listed, and is killed.
        assert_eq!(result(&program, 0x4000_0000 + 600), KILL);
        assert_eq!(run(&program, &Call::plain(X86, 438)).0, ENOSYS);
    }
    for default in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"] {
        assert_ne!(
            result(&with(default, r#""openat2""#), 438),
            ENOSYS,
            "{default}"
        );
    }
    // Only number 0 is named on x86_64: no limit there, but one on x86.
    let program = with("SCMP_ACT_ERRNO", r#""read""#);
    assert_eq!(result(&program, 438), EPERM);
    assert_eq!(run(&program, &Call::plain(X86, 4)).0, ENOSYS);
}

#[test]
fn multiplexed_calls_of_x86() {
    let program = native(&profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],"syscalls":[
            {"names":["socket","accept","semop"],"action":"SCMP_ACT_ALLOW"},
            {"names":["shmat"],"action":"SCMP_ACT_TRAP",
             "args":[{"index":2,"value":4096,"op":"SCMP_CMP_MASKED_EQ","valueTwo":4096}]}]}"#,
    ));
    let through = |nr, first, third| {
        run(
            &program,
            &Call {
                arch: X86,
                nr,
                args: [first, 0, third, 0, 0, 0],
            },
        )
        .0
    };
    assert_eq!([through(102, 1, 0), through(102, 5, 0)], [ALLOW; 2]);
    assert_eq!([through(102, 2, 0), through(102, 0, 0)], [EPERM; 2]);
    assert_eq!([through(117, 1, 0), through(117, 2, 0)], [ALLOW, EPERM]);
    assert_eq!(
        [through(117, 21, 4096), through(117, 21, 0)],
        [0x0003_0000, EPERM]
    );
    assert_eq!(through(359, 1, 0), ALLOW);
    // Nothing of that on x86_64.
    assert_eq!(run(&program, &Call::plain(X86_64, 60)).0, EPERM);
}

#[test]
fn sixty_four_bits_are_compared() {
    let edges = [
        0,
        1,
        0xffff_ffff,
        1 << 32,
        (1 << 32) + 1,
        2 << 32,
        u64::MAX - 1,
        u64::MAX,
    ];
    for op in ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"] {
        for value in edges {
            for two in [0, 1, 1 << 32, u64::MAX] {
                let spec = profile(&format!(
                    r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],
                        "syscalls":[{{"names":["getpid","kcmp"],"action":"SCMP_ACT_ALLOW","args":[
                        {{"index":5,"value":{value},"valueTwo":{two},"op":"SCMP_CMP_{op}"}}]}}]}}"#
                ));
                let program = native(&spec);
                let reference = Reference::new(&spec, Abi::X86_64);
                for argument in edges {
                    for (arch, nr) in [(X86_64, 39), (X86, 20)] {
                        let call = Call {
                            arch,
                            nr,
                            args: [9, 9, 9, 9, 9, argument],
                        };
                        let want = reference.expected(&call);
                        assert_eq!(
                            run(&program, &call).0,
                            want,
                            "{op} {value:x} {two:x} {call:x?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn two_conditions_on_one_argument_are_alternatives() {
    let args = |second| {
        native(&profile(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["ioctl"],
                "action":"SCMP_ACT_ALLOW","args":[
                {{"index":1,"value":5,"op":"SCMP_CMP_EQ"}},
                {{"index":{second},"value":7,"op":"SCMP_CMP_EQ"}}]}}]}}"#
        )))
    };
    let result = |program: &[Insn], first, second| {
        run(
            program,
            &Call {
                arch: X86_64,
                nr: 16,
                args: [0, first, second, 0, 0, 0],
            },
        )
        .0
    };
    let either = args(1);
    assert_eq!(
        [5, 7, 6].map(|value| result(&either, value, 7)),
        [ALLOW, ALLOW, EPERM]
    );
    let both = args(2);
    assert_eq!(
        [5, 7, 6].map(|value| result(&both, value, 7)),
        [ALLOW, EPERM, EPERM]
    );
    assert_eq!(result(&both, 5, 5), EPERM);
}

#[test]
fn random_profiles_without_conditions() {
    let names = all_names();
    let mut random = Random::new(0x5eed);
    for round in 0..60 {
        let rules = 1 + random.below(if round % 3 == 0 { 600 } else { 40 });
        let spec = random.profile(rules, &names, &[]);
        let native = random.pick(&Abi::ALL);
        compare(&spec, native, 1, &mut random);
    }
}

#[test]
fn random_profiles_with_conditions() {
    let mut random = Random::new(0xc0de);
    let names = all_names();
    let (mut compiled, mut refused) = (0, 0);
    for round in 0..3000 {
        let few = ["ioctl", "socket", "sendto", "semop", "socketcall"];
        let names = if round % 10 == 0 {
            &names[..]
        } else {
            &few[..]
        };
        let rules = 1 + random.below(5);
        // Of two tests of one kind and value (GT and GE, different masks) the one that was added
        // first is tried first. The evaluator does not know that, so it is not asked for it.
        let exact = round % 2 == 0;
        let untied = [Op::ScmpCmpEq, Op::ScmpCmpNe, Op::ScmpCmpLt, Op::ScmpCmpGt];
        let ops = if exact { &untied[..] } else { &OPS[..] };
        let spec = random.profile(rules, names, ops);
        let native = random.pick(&Abi::ALL);
        let Ok(program) = compile_for(&spec, native) else {
            refused += 1;
            continue;
        };
        compiled += 1;
        let reference = Reference::new(&spec, native);
        for _ in 0..40 {
            let name = names[random.below(names.len())];
            let abi = random.pick(&Abi::ALL);
            let Some(nr) = super::abi::row(name).and_then(|row| abi.number(row)) else {
                continue;
            };
            if abi == Abi::X86 && name == "socketcall" {
                // The evaluator does not know how derived rules that contradict each other end.
                continue;
            }
            let call = Call {
                arch: abi.audit(),
                nr,
                args: random.args(),
            };
            let mut want = reference.justified(&call);
            want.truncate(if exact { 1 } else { want.len() });
            let (value, _) = run(&program.instructions, &call);
            assert!(
                want.contains(&value),
                "{value:#x}, not {want:x?} for {call:x?} with\n{}",
                oracle::text(&spec)
            );
        }
    }
    assert!(
        compiled > 20 * refused,
        "{compiled} compiled, {refused} refused"
    );
}

#[test]
fn thousands_of_rules_need_far_jumps() {
    let mut random = Random::new(0xfa5);
    let names = all_names();
    // One condition for each call on each of three kinds of interfaces: blocks far from the tree.
    let rules: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let action = if name == &"write" { "TRAP" } else { "ALLOW" };
            format!(
                r#"{{"names":["{name}"],"action":"SCMP_ACT_{action}","args":[
                    {{"index":{},"value":{index},"op":"SCMP_CMP_EQ"}}]}}"#,
                index % 6
            )
        })
        .collect();
    let spec = profile(&format!(
        r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{}]}}"#,
        rules.join(",")
    ));
    let program = native(&spec);
    assert!(program.len() > 2500, "{}", program.len());
    compare(&spec, Abi::X86_64, 3, &mut random);
    let reference = Reference::new(&spec, Abi::X86_64);
    for (index, name) in names.iter().enumerate() {
        let Some(nr) = super::abi::row(name).and_then(|row| Abi::X86_64.number(row)) else {
            continue;
        };
        let mut call = Call::plain(X86_64, nr);
        call.args[index % 6] = index as u64;
        assert_eq!(run(&program, &call).0, reference.expected(&call));
    }
    // The same for five interfaces does not fit, and says so.
    let mut spec = spec;
    spec.set_architectures(Some(vec![oci_spec::runtime::Arch::ScmpArchX86]));
    let error = compile_for(&spec, Abi::X86_64).unwrap_err().to_string();
    assert!(error.contains("the kernel takes 4096"), "{error}");
}

#[test]
fn thousands_of_rules_for_one_call() {
    let rules: Vec<String> = (0..780)
        .map(|value| {
            let errno = 1 + value % 90;
            format!(
                r#"{{"names":["ioctl"],"action":"SCMP_ACT_ERRNO","errnoRet":{errno},"args":[
                    {{"index":1,"value":{value},"op":"SCMP_CMP_EQ"}}]}}"#
            )
        })
        .collect();
    let spec = profile(&format!(
        r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#,
        rules.join(",")
    ));
    let program = native(&spec);
    for value in 0..800u64 {
        let call = Call {
            arch: X86_64,
            nr: 16,
            args: [0, value, 0, 0, 0, 0],
        };
        let want = if value < 780 {
            0x0005_0001 + value as u32 % 90
        } else {
            ALLOW
        };
        assert_eq!(run(&program, &call).0, want);
    }
}

#[test]
fn a_program_is_plain_data() {
    let program = compile(&captured("podman")).unwrap();
    let json = serde_json::to_string(&program).unwrap();
    assert_eq!(serde_json::from_str::<Program>(&json).unwrap(), program);
    assert!(json.contains("\"instructions\":[[32,0,0,4],"), "{json}");
    // Calls of architectures that isorun has no tables for, or that never got into a kernel.
    assert!(
        program
            .unknown
            .iter()
            .all(|name| !all_names().contains(&name.as_str()))
    );
}

/// Prints the figure of the design: `cargo test --release --lib seccomp -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement: run it in a release build"]
fn how_long_podmans_profile_takes() {
    for name in ["podman", "docker"] {
        let spec = captured(name);
        let mut times: Vec<_> = (0..500)
            .map(|_| {
                let start = std::time::Instant::now();
                std::hint::black_box(compile(std::hint::black_box(&spec)).unwrap());
                start.elapsed()
            })
            .collect();
        let first = times[0];
        times.sort_unstable();
        let len = compile(&spec).unwrap().instructions.len();
        println!(
            "{name}: first {first:?}, median {:?}, {len} instructions",
            times[250]
        );
    }
}
