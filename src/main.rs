//! The binary: parse, dispatch, exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    isorun::cli::main(std::env::args_os().collect()).into()
}
