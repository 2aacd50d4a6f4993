//! What can go wrong, each as one sentence that says what to do where there is something to do.

use std::fmt;
use std::io;
use std::time::Duration;

/// Why something with a channel did not work.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A name of a channel, an endpoint or a named tensor that is not allowed: docs/channel-protocol.md, section 1.
    Name(String),
    /// There is no such channel, endpoint or named tensor.
    Missing(String),
    /// The endpoint is served by another process, or a shared tensor is still read by somebody.
    InUse(String),
    /// It took longer than the caller, or the handshake, allows.
    TimedOut {
        /// What was waited for.
        waiting_for: String,
        /// How long.
        after: Duration,
    },
    /// The other side has gone. The text says what it told last, if anything.
    Closed(String),
    /// The other side sent what the protocol does not allow. The connection is closed.
    Malformed(String),
    /// The other side sent a descriptor that is not what it should be: kind, seals, size. The connection is closed.
    Descriptor(String),
    /// Something about a GPU: what was tried, and the driver's name and number of what it said.
    Gpu(String),
    /// Shape, strides, offset or dtype do not fit: each other, the memory, or what was asked for.
    Layout(String),
    /// The other side answered with an error.
    Remote {
        /// As in the protocol: 1 version, 2 malformed, 3 descriptor, 4 busy, 5 refused, 6 no such request, 7 application.
        code: u16,
        /// Its sentence, with control characters replaced.
        text: String,
    },
    /// A safetensors file that is none, or that has a part that is not allowed.
    Safetensors(String),
    /// A call to the system failed.
    Io {
        /// The call, and what it was for.
        operation: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(text)
            | Self::Missing(text)
            | Self::InUse(text)
            | Self::Layout(text)
            | Self::Gpu(text)
            | Self::Safetensors(text) => f.write_str(text),
            Self::TimedOut { waiting_for, after } => {
                write!(f, "{waiting_for}: nothing within {after:?}")
            }
            Self::Closed(text) => write!(f, "the other side has gone: {text}"),
            Self::Malformed(text) => write!(f, "the other side broke the protocol: {text}"),
            Self::Descriptor(text) => write!(f, "refused the other side's memory: {text}"),
            Self::Remote { code, text } => write!(f, "the other side says: {text} (code {code})"),
            Self::Io { operation, source } => write!(f, "{operation}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Makes a closure for `map_err`: the call that failed, with its errno.
pub(crate) fn io<E: Into<io::Error>>(operation: impl Into<String>) -> impl FnOnce(E) -> Error {
    move |source| Error::Io {
        operation: operation.into(),
        source: source.into(),
    }
}
