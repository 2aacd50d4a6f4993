//! How much isorun may do without: the levels, and who says which one holds.
//!
//! ```text
//! /etc/isorun/config.toml   the administrator: the ceiling for all others, and the level where
//!                           nobody says anything
//! --degrade, ISORUN_DEGRADE who calls isorun; the flag comes first
//! io.isorun.degrade         the container's annotation: makes it stricter, never looser
//! ```
//!
//! Whoever asks for more than is allowed is refused, not silently cut: a person who wrote `any` is to
//! know that it does not hold.

mod config;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use config::Config;

use crate::error::{Error, Kind, Result};

/// The annotation by which a container makes the level stricter.
pub const ANNOTATION: &str = "io.isorun.degrade";

/// The environment variable of who calls isorun.
pub const VARIABLE: &str = "ISORUN_DEGRADE";

/// How much may be lost; a stricter level is less than a looser one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing: what the host refuses is an error.
    Never,
    /// What takes no protection away from the host or from others.
    #[default]
    Safe,
    /// Everything that the table of degradations knows how to replace.
    Any,
}

impl Level {
    /// All of them, the strictest first.
    pub const ALL: [Self; 3] = [Self::Never, Self::Safe, Self::Any];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Safe => "safe",
            Self::Any => "any",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|level| level.as_str() == word);
        found.ok_or_else(|| format!("unknown level {word:?}: it is never, safe or any"))
    }
}

/// What the caller of isorun asks for: by the flag `--degrade`, else by [`VARIABLE`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    flag: Option<Level>,
    /// Not looked at before a command needs the level: a wrong one must not keep `kill` from working.
    variable: Option<OsString>,
}

impl Wish {
    /// From the flag's word and the variable's value; an empty variable counts as none.
    ///
    /// # Errors
    /// A flag that is no level.
    pub fn new(flag: Option<&str>, variable: Option<OsString>) -> Result<Self> {
        let parse = |word: &str| {
            word.parse()
                .map_err(|why| Error::new(Kind::Usage, format!("--degrade: {why}")))
        };
        Ok(Self {
            flag: flag.map(parse).transpose()?,
            variable: variable.filter(|value| !value.is_empty()),
        })
    }

    /// The wish and who has it.
    fn asked(&self) -> Result<Option<(Level, &'static str)>> {
        if let Some(level) = self.flag {
            return Ok(Some((level, "--degrade")));
        }
        let parse = |value: &OsStr| {
            let level = value.to_string_lossy().parse::<Level>();
            level.map_err(|why| Error::new(Kind::Usage, format!("{VARIABLE}: {why}")))
        };
        let level = self.variable.as_deref().map(parse).transpose()?;
        Ok(level.map(|level| (level, VARIABLE)))
    }

    /// The level that holds below the administrator's configuration.
    ///
    /// # Errors
    /// A variable that is no level; a wish that is looser than the configuration allows.
    pub fn level(&self, config: &Config) -> Result<Level> {
        self.within(config, None)
    }

    /// The same for a further process in a container that was made with `container`: never looser than
    /// that, and the same where nobody asks for another.
    ///
    /// # Errors
    /// As [`Wish::level`].
    pub fn level_in(&self, config: &Config, container: Level) -> Result<Level> {
        Ok(self.within(config, Some(container))?.min(container))
    }

    fn within(&self, config: &Config, container: Option<Level>) -> Result<Level> {
        match (self.asked()?, config.degrade) {
            (Some((level, who)), Some(ceiling)) if level > ceiling => Err(Error::new(
                Kind::Usage,
                format!(
                    "{who} asks for the level {level}, and {} allows at most {ceiling}",
                    config.file()
                ),
            )
            .remedy("ask for less, or let the administrator change that file")),
            (Some((level, _)), _) => Ok(level),
            (None, Some(ceiling)) => Ok(ceiling),
            (None, None) => Ok(container.unwrap_or_default()),
        }
    }
}

/// The level of one container: `base`, or what its annotation makes of it. Annotations are written by
/// whoever starts a container, so they can only ask for less.
///
/// # Errors
/// An annotation that is no level, or looser than `base`.
pub fn of_container(base: Level, annotations: Option<&HashMap<String, String>>) -> Result<Level> {
    let Some(word) = annotations.and_then(|all| all.get(ANNOTATION)) else {
        return Ok(base);
    };
    let field = || format!("annotations[{ANNOTATION:?}]");
    let level: Level = word
        .parse()
        .map_err(|why: String| Error::spec(field(), why))?;
    if level > base {
        return Err(Error::spec(
            field(),
            format!("{level} is looser than {base}, which holds on this host: an annotation can only make it stricter"),
        )
        .remedy(format!(
            "leave the annotation out, or run isorun with --degrade={level}"
        )));
    }
    Ok(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, "/etc/isorun/config.toml").unwrap()
    }

    fn wish(flag: Option<&str>, variable: Option<&str>) -> Wish {
        Wish::new(flag, variable.map(OsString::from)).unwrap()
    }

    #[test]
    fn who_decides() {
        let (none, any, safe) = (
            config(""),
            config("degrade = \"any\""),
            config("degrade = \"safe\""),
        );
        let never = config("degrade = \"never\"");
        for (flag, variable, config, level) in [
            (None, None, &none, Level::Safe),
            (None, Some(""), &none, Level::Safe),
            (Some("any"), None, &none, Level::Any),
            (None, Some("any"), &none, Level::Any),
            (Some("never"), Some("any"), &none, Level::Never),
            (Some("any"), Some("never"), &none, Level::Any),
            (None, None, &any, Level::Any),
            (None, None, &never, Level::Never),
            (Some("never"), None, &any, Level::Never),
            (None, Some("safe"), &safe, Level::Safe),
        ] {
            let wish = wish(flag, variable);
            assert_eq!(wish.level(config).unwrap(), level, "{wish:?} {config:?}");
        }
        for (flag, variable, who) in [
            (Some("any"), None, "--degrade asks"),
            (None, Some("any"), "ISORUN_DEGRADE asks"),
        ] {
            let error = wish(flag, variable).level(&safe).unwrap_err().to_string();
            assert!(
                error.starts_with(who) && error.contains("config.toml allows at most safe"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_further_process_is_never_looser() {
        let (none, never) = (config(""), config("degrade = \"never\""));
        let level = |flag, config: &Config, container| {
            wish(flag, None).level_in(config, container).unwrap()
        };
        assert_eq!(level(None, &none, Level::Any), Level::Any);
        assert_eq!(level(Some("any"), &none, Level::Never), Level::Never);
        assert_eq!(level(Some("never"), &none, Level::Any), Level::Never);
        assert_eq!(level(None, &never, Level::Any), Level::Never);
    }

    #[test]
    fn an_annotation_only_makes_it_stricter() {
        let with = |word: &str| HashMap::from([(ANNOTATION.to_string(), word.to_string())]);
        for (base, word, level) in [
            (Level::Safe, "never", Level::Never),
            (Level::Any, "safe", Level::Safe),
            (Level::Any, "any", Level::Any),
        ] {
            assert_eq!(of_container(base, Some(&with(word))).unwrap(), level);
        }
        assert_eq!(of_container(Level::Any, None).unwrap(), Level::Any);
        let looser = of_container(Level::Safe, Some(&with("any"))).unwrap_err();
        assert_eq!(looser.kind(), Kind::Spec);
        let looser = looser.to_string();
        assert!(
            looser.contains("io.isorun.degrade") && looser.contains("any is looser than safe"),
            "{looser}"
        );
        let unknown = of_container(Level::Safe, Some(&with("Any"))).unwrap_err();
        assert!(
            unknown.to_string().contains("unknown level \"Any\""),
            "{unknown}"
        );
    }

    #[test]
    fn unknown_words() {
        let flag = Wish::new(Some("maybe"), None).unwrap_err().to_string();
        assert_eq!(
            flag,
            "--degrade: unknown level \"maybe\": it is never, safe or any"
        );
        // Only who needs the level is told.
        let variable = wish(None, Some("SAFE"));
        let error = variable.level(&config("")).unwrap_err().to_string();
        assert!(
            error.starts_with("ISORUN_DEGRADE: unknown level \"SAFE\""),
            "{error}"
        );
    }
}
