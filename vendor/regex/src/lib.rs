//! The part of the crate regex that oci-spec's runtime types use, from regex-lite.

#![forbid(unsafe_code)]

pub use regex_lite::{Captures, Error, Match, Regex, RegexBuilder};
