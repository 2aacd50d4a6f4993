//! Calls that a kernel lacks or a filter answers, and what is no loss.

use super::*;

/// ENOSYS of a call that is newer than the kernel is the kernel's own answer; of an older one, a filter's.
#[test]
fn a_call_that_the_kernel_lacks() {
    let why = |kernel: &str| {
        let mut machine = Machine::root();
        machine.probed.facts.kernel = kernel.into();
        machine.probed.facts.seccomp = 2;
        machine.fails("call.clone3", libc::ENOSYS);
        machine.fails("new.clone3", libc::ENOSYS);
        let verdict = judge(&machine.host, &machine.probed);
        let found = verdict.findings.iter().find(|one| one.name == "new.clone3");
        found.unwrap().why.clone()
    };
    let filtered = "a filter for system calls is in force, and clone3 answers ENOSYS";
    assert_eq!(why("4.18.0-553.el8"), "the kernel 4.18.0-553.el8 lacks it");
    assert_eq!(why("5.2.21"), "the kernel 5.2.21 lacks it");
    assert_eq!(why("5.3.0-76-generic"), filtered);
    assert_eq!(why("6.18.5"), filtered);
    assert_eq!(why("unknown"), filtered);
}

#[test]
fn what_is_no_loss() {
    let mut machine = Machine::root();
    for extra in [
        "landlock",
        "new.clone3",
        "root.time",
        "seccomp.listener",
        "user.mknod",
    ] {
        machine.fails(extra, libc::ENOSYS);
    }
    check("extras", &machine, Full, &[], "", &[]);
    let verdict = judge(&machine.host, &machine.probed);
    let told = verdict
        .findings
        .iter()
        .filter(|one| one.meaning == Meaning::Without);
    assert_eq!(told.count(), 5, "they are told nevertheless");
    // Where root makes no device nodes, something is lost.
    machine.fails("root.mknod", EPERM);
    let (mode, restrictions, first, _) = machine.judged();
    assert_eq!((mode, first.as_str()), (Degraded, "root.mknod"));
    assert_eq!(restrictions, [Unknown]);
}
