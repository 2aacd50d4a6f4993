//! The AppArmor profile for Ubuntu 24.04 and newer, where only programs with a profile that allows it have
//! capabilities in user namespaces that they make.

use std::path::Path;

use crate::error::{Error, Kind, Result};

/// The profile for the program at `path`.
///
/// # Errors
/// A path that cannot stand in a profile: not absolute, or with characters that AppArmor gives a meaning.
pub fn profile(path: &Path) -> Result<String> {
    let refuse = |why: &str| {
        let sentence = format!("AppArmor profile for {}: {why}", path.display());
        Error::new(Kind::Usage, sentence)
            .remedy("copy isorun to a path such as /usr/local/bin/isorun, and call it there")
    };
    let text = path
        .to_str()
        .ok_or_else(|| refuse("the path is not UTF-8"))?;
    if !path.is_absolute() {
        return Err(refuse("the path is not absolute"));
    }
    // Patterns, variables, quotes and blanks of apparmor.d(5).
    if let Some(bad) = text.chars().find(|c| "*?[]{}^@\"\\,# \t\n".contains(*c)) {
        return Err(refuse(&format!(
            "the path has {bad:?}, which has a meaning there"
        )));
    }
    Ok(text_for(text))
}

/// The profile for a path, which may be a pattern of apparmor.d(5).
fn text_for(path: &str) -> String {
    format!(
        "\
# isorun may make user namespaces and have capabilities in them. Everything else is as without a profile:
# it confines nothing, and only gives isorun a name, as AppArmor's own profiles for crun, runc and podman do.
#
# Mind the name. The profiles of containers (docker-default, containers-default) take signals from senders
# that are unconfined, or called runc or crun, and refuse them from others. isorun leaves this profile
# where a signal is refused for it, so `docker stop` and `podman stop` work. A profile of another kind
# under which isorun runs (one that confines it) needs a line in the containers' profiles:
#   signal (receive) peer=NAME,
#
# Two profiles that name the same path attach neither: this one alone may name isorun's.
abi <abi/4.0>,
include <tunables/global>

profile isorun {path} flags=(unconfined) {{
  userns,

  # What this machine adds.
  include if exists <local/isorun>
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// packaging/apparmor/isorun is the same text, for the places where packages put programs.
    #[test]
    fn the_packaged_profile_is_the_printed_one() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/apparmor/isorun");
        let text = text_for("/usr/{,local/}{,s}bin/isorun");
        if std::env::var_os("ISORUN_UPDATE_GOLDEN").is_some() {
            std::fs::write(file, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), text);
    }

    #[test]
    fn the_path_is_named_or_refused() {
        let text = profile(Path::new("/opt/isorun/bin/isorun")).unwrap();
        assert!(
            text.contains(
                "\nprofile isorun /opt/isorun/bin/isorun flags=(unconfined) {\n  userns,\n"
            )
        );
        for (path, why) in [
            ("isorun", "not absolute"),
            ("/a b/isorun", "' '"),
            ("/a*/isorun", "'*'"),
            ("/a}/isorun", "'}'"),
        ] {
            let error = profile(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(why), "{path}: {error}");
        }
    }
}
