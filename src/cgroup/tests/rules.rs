//! Device rules: the eBPF program and v1's exceptions against a plain model of the rules.

use serde_json::json;

use super::super::devices::{Access, DeviceKind, DeviceRule, Devices, line};
use super::resources;
use crate::sys::bpf::{self, Insn};

fn devices(value: serde_json::Value) -> Devices {
    let linux = resources(json!({ "devices": value }));
    let resources = linux.resources().as_ref().unwrap();
    Devices::from_spec(resources.devices().as_ref().unwrap()).unwrap()
}

/// The bits (mknod 1, read 2, write 4) that the rules allow for one device: the definition.
fn allowed(devices: &Devices, kind: DeviceKind, major: u32, minor: u32) -> u8 {
    let mut bits = 0;
    for rule in &devices.rules {
        let matches = rule.kind == kind
            && rule.major.is_none_or(|number| number == major)
            && rule.minor.is_none_or(|number| number == minor);
        if matches {
            let access = mask(rule.access);
            bits = if rule.allow {
                bits | access
            } else {
                bits & !access
            };
        }
    }
    bits
}

fn mask(access: Access) -> u8 {
    let text = String::from(access);
    [('m', 1), ('r', 2), ('w', 4)]
        .iter()
        .filter(|(c, _)| text.contains(*c))
        .map(|(_, b)| b)
        .sum()
}

/// Runs the instructions that sys::bpf knows how to make.
fn interpret(code: &[Insn], access_type: u32, major: u32, minor: u32) -> u32 {
    let mut registers = [0u32; 11];
    let mut at = 0usize;
    loop {
        let insn = code[at];
        let to = usize::from(insn.registers & 0xf);
        let from = registers[usize::from(insn.registers >> 4)];
        let value = insn.immediate as u32;
        at += 1;
        let jump = match insn.code {
            0x61 => {
                registers[to] = [access_type, major, minor][insn.offset as usize / 4];
                false
            }
            0x54 => {
                registers[to] &= value;
                false
            }
            0x4c => {
                registers[to] |= from;
                false
            }
            0xbc => {
                registers[to] = from;
                false
            }
            0x64 => {
                registers[to] <<= value;
                false
            }
            0x74 => {
                registers[to] >>= value;
                false
            }
            0xb4 => {
                registers[to] = value;
                false
            }
            0x56 => registers[to] != value,
            0x46 => registers[to] & value != 0,
            0x16 => registers[to] == value,
            0x95 => return registers[0],
            other => panic!("instruction {other:#x}"),
        };
        if jump {
            at += insn.offset as usize;
        }
    }
}

/// A small generator of numbers, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }

    fn rules(&mut self, wildcards: bool) -> Devices {
        let number = |random: &mut Self| match wildcards && random.below(3) == 0 {
            true => None,
            false => Some(random.below(3) as u32),
        };
        let rules = (0..self.below(7))
            .map(|_| {
                if self.below(6) == 0 {
                    let (allow, kind) = (self.below(2) == 0, self.kind());
                    return DeviceRule {
                        allow,
                        kind,
                        major: None,
                        minor: None,
                        access: Access::ALL,
                    };
                }
                let access = ["r", "w", "m", "rw", "rm", "wm", "rwm"][self.below(7) as usize];
                DeviceRule {
                    allow: self.below(2) == 0,
                    kind: self.kind(),
                    major: number(self),
                    minor: number(self),
                    access: access.to_string().try_into().unwrap(),
                }
            })
            .collect();
        Devices { rules }
    }

    fn kind(&mut self) -> DeviceKind {
        if self.below(2) == 0 {
            DeviceKind::Block
        } else {
            DeviceKind::Char
        }
    }
}

/// Every device and access that the random rules can tell apart.
fn every(mut look: impl FnMut(DeviceKind, u32, u32)) {
    for kind in [DeviceKind::Block, DeviceKind::Char] {
        for major in 0..4 {
            for minor in 0..4 {
                look(kind, major, minor);
            }
        }
    }
}

#[test]
fn the_program_does_what_the_rules_say() {
    let mut random = Random(7);
    let mut seen = 0;
    for _ in 0..3000 {
        let rules = random.rules(true);
        let code = rules.program().unwrap();
        every(|kind, major, minor| {
            let bits = allowed(&rules, kind, major, minor);
            for access in 1..8u8 {
                let kind_number = if kind == DeviceKind::Block { 1 } else { 2 };
                let got = interpret(&code, u32::from(access) << 16 | kind_number, major, minor);
                let want = u32::from(access & !bits == 0);
                assert_eq!(got, want, "{rules:?} {kind:?} {major}:{minor} {access}");
            }
        });
        let mut everything = true;
        every(|kind, major, minor| everything &= allowed(&rules, kind, major, minor) == 7);
        assert_eq!(rules.allow_all(), everything, "{rules:?}");
        seen += u32::from(rules.allow_all());
    }
    assert!(seen > 10, "{seen}");
}

/// What the v1 controller would allow after these writes, starting from `a *:* rwm`.
fn v1_allows(writes: &[(&str, String)], kind: DeviceKind, major: u32, minor: u32) -> u8 {
    let mut bits = 7;
    for (file, line) in writes {
        let allow = *file == "devices.allow";
        let mut access = 7;
        let matches = line == "a" || {
            let (name, rest) = line.split_at(1);
            let (numbers, letters) = rest.trim().split_once(' ').unwrap();
            let (one, two) = numbers.split_once(':').unwrap();
            access = mask(letters.to_string().try_into().unwrap());
            (name == "b") == (kind == DeviceKind::Block)
                && (one == "*" || one == major.to_string())
                && (two == "*" || two == minor.to_string())
        };
        if matches {
            bits = if allow { bits | access } else { bits & !access };
        }
    }
    bits
}

#[test]
fn the_exceptions_of_v1_are_what_the_rules_say() {
    let mut random = Random(3);
    let (mut folded, mut refused) = (0, 0);
    for round in 0..4000 {
        let rules = random.rules(round % 2 == 0);
        match rules.v1_writes() {
            Ok((writes, _)) => {
                folded += 1;
                every(|kind, major, minor| {
                    let want = allowed(&rules, kind, major, minor);
                    let got = v1_allows(&writes, kind, major, minor);
                    assert_eq!(got, want, "{rules:?} {writes:?} {kind:?} {major}:{minor}");
                });
            }
            Err(error) => {
                refused += 1;
                assert!(
                    error.to_string().contains("linux.resources.devices"),
                    "{error}"
                );
            }
        }
    }
    assert!(folded > 2000 && refused > 20, "{folded} {refused}");
}

#[test]
fn usual_rules() {
    let docker = devices(json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "access": "m"},
        {"allow": true, "type": "b", "access": "m"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
    ]));
    let (writes, (allow, table)) = docker.v1_writes().unwrap();
    let list: Vec<String> = table.iter().map(|(name, bits)| line(name, *bits)).collect();
    assert!(!allow);
    assert_eq!(writes[0], ("devices.deny", "a".into()));
    assert!(list.contains(&"c 1:3 rwm".to_string()) && list.contains(&"c 136:* rwm".to_string()));
    assert!(!list.iter().any(|line| line.contains("10:229")), "{list:?}");
    assert!(list.contains(&"c 10:200 rwm".to_string()), "{list:?}");
    assert!(!docker.allow_all());
    assert_eq!(allowed(&docker, DeviceKind::Char, 1, 3), 7);
    assert_eq!(allowed(&docker, DeviceKind::Char, 1, 11), 1);
    assert!(devices(json!([{"allow": true, "access": "rwm"}])).allow_all());
    // Numbers that no device can have match nothing, and do not run into others.
    let odd = devices(
        json!([{"allow": true, "type": "c", "major": 4097, "minor": 11, "access": "rw"},
        {"allow": true, "type": "c", "major": 0, "minor": (1 << 20) + 11, "access": "rw"}]),
    );
    let ask = |major, minor| interpret(&odd.program().unwrap(), 2 << 16 | 2, major, minor);
    assert_eq!([ask(1, 11), ask(1, 3), ask(0, 11)], [0, 1, 0]);
    let hole = devices(json!([
        {"allow": true, "type": "c", "major": 10, "access": "rw"},
        {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "r"},
    ]));
    assert!(
        hole.v1_writes()
            .unwrap_err()
            .to_string()
            .contains("cgroup v1 cannot do")
    );
}

/// The kernel's verifier takes every program.
#[test]
fn the_kernel_loads_the_programs() {
    match bpf::load_device_program(&devices(json!([])).program().unwrap()) {
        Ok(_) => {}
        Err(errno @ (nix::errno::Errno::EPERM | nix::errno::Errno::ENOSYS)) => {
            return println!("skipped: the kernel refuses bpf(2) here: {errno}");
        }
        Err(errno) => panic!("{errno}"),
    }
    let mut random = Random(11);
    for _ in 0..200 {
        let rules = random.rules(true);
        bpf::load_device_program(&rules.program().unwrap())
            .unwrap_or_else(|e| panic!("{e}: {rules:?}"));
    }
}

#[test]
fn rules_that_take_something_away() {
    let deny = json!({"allow": false, "access": "rwm"});
    let all = json!({"allow": true, "access": "rwm"});
    let gpu = json!({"allow": true, "type": "c", "major": 195, "minor": 0, "access": "rw"});
    let gpus = json!({"allow": true, "type": "c", "major": 195, "access": "rw"});
    let read = json!({"allow": true, "type": "c", "major": 195, "minor": 0, "access": "r"});
    let zeros = json!({"allow": true, "type": "b", "minor": 0, "access": "r"});
    let disks = json!({"allow": false, "type": "b", "major": 8, "access": "rwm"});
    for (asked, given, want) in [
        (json!([deny]), json!([deny]), None),
        (json!([deny, gpu]), json!([deny]), None),
        (json!([deny]), json!([deny, gpu]), Some("c 195:0 rw")),
        (json!([deny, read]), json!([deny, gpu]), Some("c 195:0 w")),
        (json!([deny, gpus]), json!([deny, gpu]), None),
        (json!([deny, gpu]), json!([deny, gpus]), Some("c 195:* rw")),
        (json!([all]), json!([deny, gpus]), None),
        (json!([deny, gpu]), json!([all]), Some("b *:* rw")),
        // The same devices in another order, and by other entries.
        (json!([deny, gpu, read]), json!([deny, read, gpu]), None),
        (json!([deny, gpus, gpu]), json!([deny, gpus]), None),
        // Where a major of the one meets a minor of the other.
        (json!([all, disks]), json!([deny, zeros]), Some("b 8:0 r")),
    ] {
        let got = devices(asked.clone()).lacks(&devices(given.clone()));
        assert_eq!(got.as_deref(), want, "{asked} {given}");
    }
}
