//! Running programs: say what runs, fail with what failed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

/// Makes the repository's root the working directory, from wherever the task was called.
pub(crate) fn enter_root() -> anyhow::Result<()> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.parent().context("xtask lies below the root of the repository")?;
    std::env::set_current_dir(root).with_context(|| format!("entering {}", root.display()))
}

/// Where slow builds of third-party tools are kept, by version, outside the checkout.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    Ok(base.context("neither $XDG_CACHE_HOME nor $HOME is set; set one")?.join("orlop"))
}

/// One program to run.
pub(crate) struct Run(Command);

/// The program with its arguments.
pub(crate) fn program<S: AsRef<OsStr>>(name: impl AsRef<OsStr>, arguments: &[S]) -> Run {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null());
    Run(command)
}

/// The cargo that runs this task. CI builds once: what would make its next build faster is half of all that is written.
pub(crate) fn cargo<S: AsRef<OsStr>>(arguments: &[S]) -> Run {
    let run = program(env!("CARGO"), arguments);
    if std::env::var_os("CI").is_some() { run.env("CARGO_INCREMENTAL", "0") } else { run }
}

impl Run {
    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Run {
        self.0.env(key, value);
        self
    }

    pub(crate) fn arguments<S: AsRef<OsStr>>(mut self, more: &[S]) -> Run {
        self.0.args(more);
        self
    }

    pub(crate) fn dir(mut self, dir: &Path) -> Run {
        self.0.current_dir(dir);
        self
    }

    fn line(&self) -> String {
        let words = std::iter::once(self.0.get_program()).chain(self.0.get_args());
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    /// Runs with the terminal's output; an unsuccessful exit is an error.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        let line = self.line();
        eprintln!("\n» {line}");
        let status = self.0.status().with_context(|| format!("starting `{line}`"))?;
        if !status.success() {
            bail!("`{line}` failed: {status}");
        }
        Ok(())
    }

    /// Runs quietly and gives standard output; an unsuccessful exit is an error with standard error.
    pub(crate) fn read(mut self) -> anyhow::Result<String> {
        let line = self.line();
        let output = self.0.output().with_context(|| format!("starting `{line}`"))?;
        if !output.status.success() {
            bail!("`{line}` failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs quietly and gives success and both outputs, for commands that are meant to fail.
    pub(crate) fn attempt(mut self) -> anyhow::Result<(bool, String)> {
        let line = self.line();
        let output = self.0.output().with_context(|| format!("starting `{line}`"))?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }
}

/// Better now than as a bus error of the linker or an I/O error in a guest.
pub(crate) fn enough_space(directory: &Path, for_what: &str, bytes: u64) -> anyhow::Result<()> {
    let space = rustix::fs::statvfs(directory).context("looking for free space")?;
    let free = space.f_bavail * space.f_frsize;
    let at = directory.display();
    ensure!(
        free >= bytes,
        "{} MiB are free at {at}, and {for_what} needs {}: make room",
        free >> 20,
        bytes >> 20
    );
    Ok(())
}
