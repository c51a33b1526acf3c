//! Programs, for what has no system call: `mkfs.xfs`, `mkfs.btrfs`, `xfs_growfs`.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Kernel, Result, error::Context};

/// What is kept of each stream of a program.
const LONGEST_OUTPUT: u64 = 64 << 10;

/// What a program said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output, at most 64 KiB of it.
    pub stdout: String,
    /// Standard error, at most 64 KiB of it.
    pub stderr: String,
}

/// Running programs.
pub trait Programs {
    /// Runs a program to its end and returns what it printed.
    ///
    /// # Errors
    /// When it can't be started (`NotFound`: not installed), fails (the message ends with what it wrote to standard
    /// error), or is not done by the deadline (`TimedOut`; it is killed).
    fn run(&self, program: &str, arguments: &[&OsStr], deadline: Duration) -> Result<Output>;
}

impl Programs for Kernel {
    fn run(&self, program: &str, arguments: &[&OsStr], deadline: Duration) -> Result<Output> {
        let until = Instant::now() + deadline;
        let mut child = Command::new(program)
            .args(arguments)
            .env("PATH", search_path())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // An interrupt from the terminal is for us, not for a half-done mkfs.
            .process_group(0)
            .spawn()
            .context("run", program)?;
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        let streams = receive(&stdout, until).zip(receive(&stderr, until));
        let Some((stdout, stderr)) = streams else {
            // It may have ended just now; either way it is gone after this.
            let _ = child.kill();
            child.wait().context("wait for", program)?;
            return Err(Error::new("run", program, io::Error::from(io::ErrorKind::TimedOut)));
        };
        let status = child.wait().context("wait for", program)?;
        if status.success() {
            return Ok(Output { stdout, stderr });
        }
        let words = if stderr.trim().is_empty() { stdout } else { stderr };
        Err(Error::because("run", program, format!("{status}: {}", words.trim())))
    }
}

/// Where administrators' programs are, even if the caller's own path leaves them out.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// Reads a stream to its end on a thread of its own, so that a talkative program never blocks.
fn collect(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut stream) = stream {
            // An unreadable stream is an ended one.
            let _ = stream.by_ref().take(LONGEST_OUTPUT).read_to_end(&mut text);
            let _ = io::copy(&mut stream, &mut io::sink());
        }
        // Nobody listens any more once the deadline has passed.
        let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
    });
    receiver
}

fn receive(stream: &mpsc::Receiver<String>, until: Instant) -> Option<String> {
    stream.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
}
