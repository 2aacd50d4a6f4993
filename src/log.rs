//! What isorun says besides its output: errors, warnings, debug lines, on stderr and in `--log`.
//!
//! Engines read the log file: Docker, containerd and conmon take the last line whose level is
//! "error" and show its message. So a command that fails writes exactly one error line, and the
//! same sentence to stderr. Lines are appended, each by one write, because several commands may
//! share a file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// The form of a line, as `--log-format` names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// `time="…" level=error msg="…"`, as logrus writes for runc.
    #[default]
    Text,
    /// `{"level":"error","msg":"…","time":"…"}`.
    Json,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The command fails.
    Error,
    /// The command goes on, and something is not as it was asked for.
    Warning,
    /// Only told with `--debug`.
    Debug,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Debug => "debug",
        }
    }
}

#[derive(Debug, Default)]
struct Logger {
    file: Option<File>,
    format: Format,
    debug: bool,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Opens the log file, made with mode 0644 where it does not exist, and sets form and debug. To be
/// called once, before anything is logged; without it lines go to stderr only.
///
/// # Errors
/// Where the file cannot be opened for appending.
pub fn init(file: Option<&Path>, format: Format, debug: bool) -> Result<()> {
    let file = file.map(open).transpose()?;
    // A second call changes nothing: the first settings are already in use.
    let _ = LOGGER.set(Logger {
        file,
        format,
        debug,
    });
    Ok(())
}

/// Says why the command fails. To be called once, by who decides on the exit code.
pub fn error(sentence: &str) {
    say(Level::Error, sentence);
}

/// Says what the command does without, or otherwise than it was asked to.
pub fn warning(sentence: &str) {
    say(Level::Warning, sentence);
}

/// Says what goes on, with `--debug`; `sentence` is not called otherwise.
pub fn debug(sentence: impl FnOnce() -> String) {
    if debugging() {
        say(Level::Debug, &sentence());
    }
}

/// Whether what goes on is said: `--debug`.
pub fn debugging() -> bool {
    LOGGER.get().is_some_and(|logger| logger.debug)
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path)
        .map_err(|error| Error::io("open log file", path.display().to_string(), &error))
}

fn say(level: Level, sentence: &str) {
    let standard = Logger::default();
    let logger = LOGGER.get().unwrap_or(&standard);
    let (log, stderr) = logger.lines(level, sentence);
    // Nobody is left to tell when neither can be written.
    if let (Some(mut file), Some(line)) = (logger.file.as_ref(), log) {
        let _ = file.write_all(line.as_bytes());
    }
    let _ = std::io::stderr().write_all(stderr.as_bytes());
}

impl Logger {
    /// The line for the log file, where there is one, and the line for stderr.
    fn lines(&self, level: Level, sentence: &str) -> (Option<String>, String) {
        let line = |format| line(format, level, sentence, &crate::time::now_seconds());
        match self.file {
            // Engines put this text behind the runtime's name themselves.
            Some(_) if level == Level::Error => (Some(line(self.format)), format!("{sentence}\n")),
            Some(_) => (Some(line(self.format)), plain(level, sentence)),
            None if self.format == Format::Json => (None, line(Format::Json)),
            None => (None, plain(level, sentence)),
        }
    }
}

/// The line for people.
fn plain(level: Level, sentence: &str) -> String {
    match level {
        Level::Error => format!("isorun: {sentence}\n"),
        level => format!("isorun: {}: {sentence}\n", level.as_str()),
    }
}

fn line(format: Format, level: Level, sentence: &str, time: &str) -> String {
    let level = level.as_str();
    match format {
        Format::Text => format!(
            "time=\"{time}\" level={level} msg=\"{}\"\n",
            escaped(sentence)
        ),
        // A string as JSON cannot fail, and has no line break.
        Format::Json => {
            let sentence = serde_json::Value::from(sentence);
            format!("{{\"level\":\"{level}\",\"msg\":{sentence},\"time\":\"{time}\"}}\n")
        }
    }
}

/// Quotes as Go's `%q` does, so that a sentence stays on one line and a reader of logfmt gets it
/// back.
fn escaped(sentence: &str) -> String {
    let mut text = String::with_capacity(sentence.len());
    for c in sentence.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            c if (c as u32) < 0x20 || c == '\x7f' => text.push_str(&format!("\\x{:02x}", c as u32)),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const TIME: &str = "2026-11-22T07:40:14Z";

    #[test]
    fn forms() {
        let sentence = "mount \"/a\\b\"\n\x01é";
        assert_eq!(
            line(Format::Text, Level::Error, sentence, TIME),
            "time=\"2026-11-22T07:40:14Z\" level=error msg=\"mount \\\"/a\\\\b\\\"\\n\\x01é\"\n"
        );
        let json = line(Format::Json, Level::Warning, sentence, TIME);
        assert_eq!(json.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"level": "warning", "msg": sentence, "time": "2026-11-22T07:40:14Z"})
        );
    }

    #[test]
    fn where_lines_go() {
        let none = Logger::default();
        assert_eq!(
            none.lines(Level::Error, "no"),
            (None, "isorun: no\n".into())
        );
        assert_eq!(none.lines(Level::Warning, "hm").1, "isorun: warning: hm\n");
        let json = Logger {
            format: Format::Json,
            ..Logger::default()
        };
        assert!(
            json.lines(Level::Error, "no")
                .1
                .starts_with("{\"level\":\"error\",\"msg\":\"no\"")
        );

        let path = std::env::temp_dir().join(format!("isorun-log-{}", std::process::id()));
        std::fs::write(&path, "older\n").unwrap();
        let both = Logger {
            file: Some(open(&path).unwrap()),
            ..json
        };
        let (log, stderr) = both.lines(Level::Error, "no");
        assert_eq!(stderr, "no\n");
        both.file
            .as_ref()
            .unwrap()
            .write_all(log.unwrap().as_bytes())
            .unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("older\n{\"level\":\"error\""), "{text}");
        std::fs::remove_file(&path).unwrap();
        drop(open(&path).unwrap());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(
            mode & 0o7133,
            0,
            "only the umask may take from 0644, nothing adds to it"
        );
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_an_error() {
        let error = open(Path::new("/nonexistent/log")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("open log file /nonexistent/log: ENOENT"),
            "{error}"
        );
    }
}
