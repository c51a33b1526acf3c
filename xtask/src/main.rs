//! What a developer types: `cargo xtask demo`, `cargo xtask test`, and the parts of both.

mod attack;
mod checks;
mod command;
mod conformance;
mod demo;
mod guest;
mod packages;
mod parts;
mod tools;

use std::path::Path;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the Orlop repository")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Watch a claim become a mounted volume on this machine; leaves Orlop running until Ctrl-C.
    Demo {
        /// Tear down at the end, and fail unless every step held.
        #[arg(long)]
        check: bool,
    },
    /// Every check: format, directions, licences, clippy, tests, conformance, and the demo.
    Test,
    /// Only the checks that need no build: format, directions between crates, licences and bans.
    Check,
    /// The CSI project's own tests of the driver.
    Conformance,
    /// XFS quotas, LVM, persistent memory and faults, in an emulated Debian machine.
    Guest {
        /// The cases that take long, too: many power cuts at random moments.
        #[arg(long)]
        all: bool,
        /// Only cases whose name contains this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Attacks on a whole Orlop: hostile input, kills, damaged files, full disks, second holders. Takes minutes.
    Attack {
        /// Only attacks whose name contains this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// The benchmarks, on a release build.
    Bench,
}

fn main() -> anyhow::Result<()> {
    command::enter_root()?;
    match Arguments::parse().task {
        Task::Demo { check } => {
            packages::install()?;
            demo::run(check)
        }
        Task::Test => {
            command::enough_space(Path::new("."), "the test command", checks::SPACE)?;
            let mut parts = parts::Parts::default();
            parts.run("packages", packages::install)?;
            parts.run("format, directions, licences", checks::without_build)?;
            parts.run("clippy", checks::lints)?;
            parts.run("tests", checks::tests)?;
            parts.run("conformance", conformance::run_where_possible)?;
            parts.run("packages for the guest", packages::install_for_guest)?;
            parts.run("guest", || guest::run(false, ""))?;
            parts.run("demo", || demo::run(true))
        }
        Task::Check => checks::without_build(),
        Task::Conformance => {
            packages::install()?;
            conformance::run()
        }
        Task::Guest { all, filter } => {
            packages::install()?;
            packages::install_for_guest()?;
            guest::run(all, &filter)
        }
        Task::Attack { filter } => {
            packages::install()?;
            attack::run(&filter)
        }
        Task::Bench => {
            packages::install()?;
            command::cargo(&["bench", "--workspace"]).run()
        }
    }
}
