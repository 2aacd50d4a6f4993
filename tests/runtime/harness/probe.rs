//! The program that looks at the world from inside where busybox cannot: `probe.c`, static.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The built probe, or why it could not be built (no C compiler).
pub fn probe() -> Result<&'static Path, &'static str> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(build)
        .as_ref()
        .map(PathBuf::as_path)
        .map_err(String::as_str)
}

fn build() -> Result<PathBuf, String> {
    // Where there is no compiler (integration/oracles/suite) it is handed over.
    if let Some(built) = std::env::var_os("ISORUN_TEST_PROBE") {
        return Ok(PathBuf::from(built));
    }
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runtime/probe.c");
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probe.{}", std::process::id()));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe");
    let mut gcc = Command::new("gcc");
    gcc.args(["-static", "-O1", "-Wall", "-Werror", "-o"])
        .arg(&made)
        .arg(source);
    match gcc.output() {
        Err(error) => Err(format!("the probe needs gcc: {error}")),
        Ok(out) if !out.status.success() => panic!("{}", String::from_utf8_lossy(&out.stderr)),
        Ok(_) => {
            // Renamed into place: several test programs may build it at once.
            std::fs::rename(&made, &target).expect("rename the probe");
            Ok(target)
        }
    }
}
