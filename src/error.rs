//! One error type for the whole runtime, and the sentence that people read.
//!
//! An error is `{kind, operation, subject, cause, remedy}`. `Display` joins the parts to one
//! sentence: `mount proc on /proc: EPERM: Operation not permitted; see isorun doctor`. The kind is
//! for code (exit codes, "does not exist" and the like), the sentence is for people and for the
//! engines that match phrases in it.

use std::fmt;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// What sort of failure it is, as far as callers must tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The command line is wrong.
    Usage,
    /// config.json is missing, malformed, or asks for what is not valid or not supported.
    Spec,
    /// There is no such container.
    NotFound,
    /// A container with this id is there already.
    Exists,
    /// The container is in a state that does not allow the command.
    State,
    /// The kernel or the file system refused a step.
    System,
    /// A hook failed, hung or was not there.
    Hook,
}

/// An error as one readable sentence; see the module documentation.
#[derive(Clone, Serialize, Deserialize)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Inner {
    kind: Kind,
    operation: String,
    subject: String,
    errno: Option<i32>,
    detail: String,
    remedy: String,
}

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` told by a whole sentence of its own.
    pub fn new(kind: Kind, sentence: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            operation: String::new(),
            subject: String::new(),
            errno: None,
            detail: sentence.into(),
            remedy: String::new(),
        }))
    }

    /// A step that the system refused: `operation` (a verb), `subject` (the object: path, id), errno.
    pub fn os(operation: impl Into<String>, subject: impl Into<String>, errno: Errno) -> Self {
        let mut error = Self::new(Kind::System, "");
        error.0.operation = operation.into();
        error.0.subject = subject.into();
        error.0.errno = Some(errno as i32);
        error
    }

    /// The same from an [`std::io::Error`], whose errno is kept where it has one.
    pub fn io(
        operation: impl Into<String>,
        subject: impl Into<String>,
        error: &std::io::Error,
    ) -> Self {
        match error.raw_os_error() {
            Some(code) => Self::os(operation, subject, Errno::from_raw(code)),
            None => {
                let mut made = Self::new(Kind::System, error.to_string());
                made.0.operation = operation.into();
                made.0.subject = subject.into();
                made
            }
        }
    }

    /// config.json is wrong at `field`, a JSON path like `linux.namespaces[2].type`.
    pub fn spec(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let mut error = Self::new(Kind::Spec, detail);
        error.0.operation = "config.json".into();
        error.0.subject = field.into();
        error
    }

    /// Adds what to do about it, the last part of the sentence.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = remedy.into();
        self
    }

    /// Adds something more to the end of the sentence, after the remedy.
    #[must_use]
    pub fn also(mut self, more: &str) -> Self {
        let remedy = &mut self.0.remedy;
        if !more.is_empty() {
            if !remedy.is_empty() {
                remedy.push_str("; ");
            }
            remedy.push_str(more);
        }
        self
    }

    /// Adds what is wrong to an error that has an errno.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = detail.into();
        self
    }

    /// Puts what was being done in front: `context: sentence`.
    #[must_use]
    pub fn context(mut self, context: &str) -> Self {
        self.0.operation = match self.0.operation.is_empty() {
            true => context.to_string(),
            false => format!("{context}: {}", self.0.operation),
        };
        self
    }

    /// Names the file that an error of [`Error::spec`] is about, where it is not config.json.
    #[must_use]
    pub fn in_file(mut self, file: &str) -> Self {
        if self.0.operation == "config.json" {
            self.0.operation = file.into();
        }
        self
    }

    /// The same with no part longer than `most` bytes, for a message that has room for no more.
    #[must_use]
    pub fn cut(mut self, most: usize) -> Self {
        let inner = &mut *self.0;
        for part in [
            &mut inner.operation,
            &mut inner.subject,
            &mut inner.detail,
            &mut inner.remedy,
        ] {
            if part.len() > most {
                // The end often says why; the middle is what was too long.
                let head = part.floor_char_boundary(most / 2);
                let tail = part.ceil_char_boundary(part.len() - most / 2);
                *part = format!("{}[...]{}", &part[..head], &part[tail..]);
            }
        }
        self
    }

    /// The kind, for exit codes and for callers that treat one kind apart.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The errno behind it, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        self.0.errno.map(Errno::from_raw)
    }
}

/// `EPERM: Operation not permitted`: the name for those who search, the words for those who read.
pub fn errno_words(errno: Errno) -> String {
    format!("{errno:?}: {}", errno.desc())
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        let mut head = String::new();
        for part in [&inner.operation, &inner.subject] {
            if !part.is_empty() {
                if !head.is_empty() {
                    // "config.json: linux.x" reads better than "config.json linux.x".
                    head.push_str(if inner.kind == Kind::Spec { ": " } else { " " });
                }
                head.push_str(part);
            }
        }
        let cause = match self.errno() {
            Some(errno) if inner.detail.is_empty() => errno_words(errno),
            Some(errno) => format!("{} ({})", inner.detail, errno_words(errno)),
            None => inner.detail.clone(),
        };
        for part in [&head, &cause]
            .into_iter()
            .filter(|part| !part.is_empty())
            .enumerate()
        {
            if part.0 > 0 {
                f.write_str(": ")?;
            }
            f.write_str(part.1)?;
        }
        if !inner.remedy.is_empty() {
            write!(f, "; {}", inner.remedy)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Error")
            .field(&self.0.kind)
            .field(&self.to_string())
            .finish()
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences() {
        let mount = Error::os("mount proc on", "/proc", Errno::EPERM).remedy("see isorun doctor");
        assert_eq!(
            mount.to_string(),
            "mount proc on /proc: EPERM: Operation not permitted; see isorun doctor"
        );
        assert_eq!(
            Error::spec("linux.namespaces[2].type", "unknown namespace \"pidd\"").to_string(),
            "config.json: linux.namespaces[2].type: unknown namespace \"pidd\""
        );
        assert_eq!(
            Error::new(Kind::NotFound, "container \"x\" does not exist").to_string(),
            "container \"x\" does not exist"
        );
        let long = Error::new(
            Kind::System,
            format!("exec: {}: gone", "\u{e9}".repeat(500)),
        );
        let cut = long.cut(101).to_string();
        assert!(
            cut.len() <= 110 && cut.starts_with("exec: ") && cut.ends_with(": gone"),
            "{cut}"
        );
        assert_eq!(
            mount.context("create").to_string().split(' ').next(),
            Some("create:")
        );
    }
}
