//! Mounts of the host that a test needs: made in a mount namespace of their own, so that the machine's
//! table never changes and nothing has to be taken down.

use std::process::Command;

use super::{Bundle, Output, run_command};

/// `run` of the bundle in a mount namespace in which the shell script made mounts first; `$D` is the
/// bundle's `host` directory, `$B` the bundle's.
pub fn run_after(bundle: &Bundle, script: &str) -> Output {
    run_flags_after(bundle, script, &[])
}

/// The same with flags for `run`.
pub fn run_flags_after(bundle: &Bundle, script: &str, flags: &[&str]) -> Output {
    bundle.write();
    let dir = bundle.bundle_dir().to_str().unwrap().to_string();
    let mut arguments = vec!["run"];
    arguments.extend(flags);
    arguments.extend(["--bundle", &dir, &bundle.id]);
    let runtime = bundle.command(&arguments);
    // busybox's, because not every root that this runs in has util-linux.
    let busybox = super::busybox();
    let mut command = Command::new(&busybox);
    command.args(["unshare", "--mount", "--propagation", "private"]);
    command.arg(&busybox).args(["sh", "-euc"]);
    command.arg(format!(
        "mount() {{ $X mount \"$@\"; }}\n{script}\nexec \"$@\""
    ));
    command.arg("sh").env("X", &busybox);
    command.arg(runtime.get_program()).args(runtime.get_args());
    command.env("D", bundle.host("")).env("B", &dir);
    command.env("ISORUN_TEST_ID", &bundle.id);
    command.current_dir(&bundle.dir);
    run_command(command, &bundle.dir.join("io"))
}

/// A shell script in a mount namespace of its own, with `runtime ARGUMENT...` for the runtime with its
/// global flags; `$ID` is the container's id, `$B` the bundle's directory, `$D` its `host` directory.
pub fn script_apart(bundle: &Bundle, script: &str) -> Output {
    let script = format!(
        "program=$1 root=$3; runtime() {{ \"$program\" --root \"$root\" \"$@\"; }}\n\
         ID=$ISORUN_TEST_ID\n{script}\nexit"
    );
    run_after(bundle, &script)
}

/// Gives a tree to this user and group; links themselves, not what they point at.
pub fn chown_tree(path: &std::path::Path, id: u32) {
    std::os::unix::fs::lchown(path, Some(id), Some(id)).unwrap();
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            chown_tree(&entry.unwrap().path(), id);
        }
    }
}
