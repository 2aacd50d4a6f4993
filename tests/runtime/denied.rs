//! Kernels and filters that deny a system call: the older call does the same, or a warning says what
//! is lost. One call at a time, and the sets that real kernels lack.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::harness::Bundle;
use crate::harness::run_command;

const ENOSYS: i32 = 38;
const EPERM: i32 = 1;

/// Name and number (x86_64) of the calls that isorun has a way around.
const CALLS: [(&str, u32); 16] = [
    ("fsopen", 430),
    ("fsconfig", 431),
    ("fsmount", 432),
    ("open_tree", 428),
    ("move_mount", 429),
    ("mount_setattr", 442),
    ("openat2", 437),
    ("faccessat2", 439),
    ("clone3", 435),
    ("close_range", 436),
    ("pidfd_open", 434),
    ("pidfd_send_signal", 424),
    ("memfd_create", 319),
    ("mknodat", 259),
    ("keyctl", 250),
    ("statx", 332),
];

/// The program that denies; none without a C compiler.
pub fn deny() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runtime/deny.c");
            let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("deny");
            let mut gcc = Command::new("gcc");
            gcc.args(["-static", "-O1", "-Wall", "-o"])
                .arg(&made)
                .arg(source);
            gcc.status()
                .ok()
                .filter(std::process::ExitStatus::success)
                .map(|_| made)
        })
        .as_deref()
}

/// What a container prints that is made with these calls denied.
fn run(errno: i32, numbers: &str) -> Option<(String, String)> {
    let mut bundle =
        Bundle::sh("echo made && test -c /dev/null && test -d /proc/self && cat /ro/file");
    std::fs::create_dir(bundle.host("ro")).unwrap();
    std::fs::write(bundle.host("ro").join("file"), "bound\n").unwrap();
    let source = bundle.host("ro").to_str().unwrap().to_string();
    bundle.mount(
        "/ro",
        "bind",
        &source,
        &["bind", "ro", "nosuid", "rprivate"],
    );
    bundle.write();
    let runtime = bundle.command(&["run", "--bundle", bundle.bundle_dir().to_str()?, &bundle.id]);
    let mut command = Command::new(deny()?);
    command
        .arg(errno.to_string())
        .arg(numbers)
        .arg(runtime.get_program());
    command.args(runtime.get_args());
    let out = run_command(command, &bundle.host("")).ok();
    bundle.assert_gone();
    Some((out.text().to_string(), out.stderr))
}

#[test]
fn each_call_alone() {
    isorun_only!("what a reference does without a call is its own business");
    for (name, number) in CALLS {
        for errno in [ENOSYS, EPERM] {
            let Some((text, stderr)) = run(errno, &number.to_string()) else {
                skip!("there is no C compiler");
            };
            assert_eq!(text, "made\nbound", "{name} with {errno}: {stderr}");
            // What has no full replacement is told, and nothing else is.
            let told = matches!(name, "keyctl" | "mknodat");
            assert_eq!(
                stderr.contains("degraded:"),
                told,
                "{name} with {errno}: {stderr}"
            );
        }
    }
}

#[test]
fn what_older_kernels_lack() {
    isorun_only!("what a reference does without a call is its own business");
    let since = |least: u32| {
        let numbers = CALLS
            .iter()
            .filter(|(_, number)| (424..600).contains(number) && *number >= least);
        numbers
            .map(|(_, number)| number.to_string())
            .collect::<Vec<_>>()
            .join(",")
    };
    // Numbers grow with the versions: 5.1 ends before 428, 5.4 before 436, 5.10 before 441.
    for (kernel, least) in [("4.19", 424), ("5.1", 428), ("5.4", 436), ("5.10", 441)] {
        let Some((text, stderr)) = run(ENOSYS, &since(least)) else {
            skip!("there is no C compiler");
        };
        assert_eq!(text, "made\nbound", "as Linux {kernel}: {stderr}");
        assert!(stderr.is_empty(), "as Linux {kernel}: {stderr}");
    }
}
