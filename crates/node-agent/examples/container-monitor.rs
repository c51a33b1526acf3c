//! The hidden subcommand of the binary, for this crate's tests.

use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    match std::env::args_os().nth(1).map(PathBuf::from) {
        Some(directory) => node_agent::container_monitor(&directory),
        None => ExitCode::FAILURE,
    }
}
