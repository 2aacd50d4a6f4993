//! `isorun --version`, in the form that Docker and containerd parse.

use super::print;
use crate::error::Result;
use crate::exit::Exit;
use crate::spec::VERSION_MAX;

/// Prints version, commit and version of the specification, a line each.
pub fn run() -> Result<Exit> {
    print(&text())?;
    Ok(Exit::Success)
}

/// Docker takes `<name> version <version>`, `commit: …` and `spec: …`.
fn text() -> String {
    let commit = option_env!("ISORUN_COMMIT").unwrap_or("unknown");
    format!(
        "isorun version {}\ncommit: {commit}\nspec: {VERSION_MAX}\n",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn form() {
        let text = super::text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("isorun version 0."), "{text}");
        assert!(
            lines[1].starts_with("commit: ") && lines[2].starts_with("spec: 1."),
            "{text}"
        );
    }
}
