//! The administrator's file: /etc/isorun/config.toml.

use std::path::Path;

use serde::Deserialize;

use super::Level;
use crate::error::{Error, Kind, Result};

/// Where it is, for root and for everybody else: it is the administrator's.
const FILE: &str = "/etc/isorun/config.toml";

/// What the administrator of this host allows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The loosest level that anybody may ask for, and the one that holds where nobody asks.
    pub degrade: Option<Level>,
}

impl Config {
    /// Reads the file; without one nothing is set. Costs one open that fails where there is none.
    ///
    /// # Errors
    /// A file that cannot be read, or is not understood: then nobody knows what the administrator
    /// wanted, and nothing is started.
    pub fn read() -> Result<Self> {
        Self::read_from(Path::new(FILE))
    }

    fn read_from(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &name),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Error::io("read the configuration", name, &error).remedy(
                "every user of isorun has to be able to read it: without it, nothing is started",
            )),
        }
    }

    /// Reads the text of a file that is called `name` in errors.
    pub(super) fn parse(text: &str, name: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let before = error
                .span()
                .map_or("", |span| text.get(..span.start).unwrap_or(""));
            let line = before.matches('\n').count() + 1;
            let why = error.message().trim().replace('\n', " ");
            Error::new(Kind::Spec, format!("{name}, line {line}: {why}"))
        })
    }

    /// Its name, for sentences.
    pub(super) fn file(&self) -> &'static str {
        FILE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_told_with_its_line() {
        for (text, says) in [
            ("degrade = \"maybe\"\n", "line 1: unknown variant `maybe`"),
            ("# x\n\ndegrade = 1\n", "line 3: "),
            (
                "# x\ndegarde = \"safe\"\n",
                "line 2: unknown field `degarde`",
            ),
            ("degrade = \"safe\"\n[log\n", "line 2: "),
            (
                "degrade = \"safe\"\ndegrade = \"any\"\n",
                "line 2: duplicate key",
            ),
        ] {
            let error = Config::parse(text, "/c.toml").unwrap_err().to_string();
            assert!(
                error.starts_with("/c.toml, ") && error.contains(says),
                "{text}: {error}"
            );
            assert!(!error.contains('\n'), "{error}");
        }
        let safe = Config::parse("degrade = \"safe\"", "").unwrap();
        assert_eq!(safe.degrade, Some(Level::Safe));
    }

    #[test]
    fn a_file_that_is_not_there_says_nothing_and_one_that_cannot_be_read_is_an_error() {
        let dir = std::env::temp_dir().join(format!("isorun-config-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let read = Config::read_from(&dir.join("none"));
        assert_eq!(read.unwrap(), Config::default());
        let error = Config::read_from(&dir).unwrap_err().to_string();
        assert!(
            error.starts_with("read the configuration /") && error.contains("EISDIR"),
            "{error}"
        );
        std::fs::write(dir.join("bytes"), [0xff, 0xfe]).unwrap();
        assert!(Config::read_from(&dir.join("bytes")).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
