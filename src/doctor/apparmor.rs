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
    Ok(format!(
        "\
# isorun may make user namespaces and have capabilities in them. Everything else is as without a profile.
#
# Only for calling isorun directly, without root. What it changes otherwise: processes of isorun are
# known to AppArmor by the name of this profile then, and no longer as unconfined. The profiles
# docker-default and containers-default take signals from unconfined, runc and crun, and refuse them from
# others: `docker stop` and `podman stop` fail for containers that this binary started. So engines should
# call another copy of it, at a path that this profile does not name. Podman and Docker without root
# need none: they have profiles of their own, which hold for the isorun that they start.
abi <abi/4.0>,
include <tunables/global>

profile isorun {text} flags=(unconfined) {{
  userns,

  # What this machine adds.
  include if exists <local/isorun>
}}
"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

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
