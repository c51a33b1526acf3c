//! Programs, for what has no system call: `mkfs.xfs`, `mkfs.btrfs`, `xfs_growfs`.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal},
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
        let (output, status) = run_to_end(program, arguments, deadline)?;
        if status.success() {
            return Ok(output);
        }
        let Output { stdout, stderr } = output;
        let words = if stderr.trim().is_empty() { stdout } else { stderr };
        Err(Error::because("run", program, format!("{status}: {}", words.trim())))
    }
}

/// Runs a program to its end, and tells what it printed whether it failed or not.
///
/// # Errors
/// When it can't be started, or is not done by the deadline (`TimedOut`; it is killed with all that it has started).
pub fn run_to_end(program: &str, arguments: &[&OsStr], deadline: Duration) -> Result<(Output, ExitStatus)> {
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
    // One that has closed its streams may still go on.
    let ended = streams.is_some() && has_ended(&child, until).context("wait for", program)?;
    let Some((stdout, stderr)) = streams.filter(|_| ended) else {
        kill(child);
        return Err(Error::new("run", program, io::Error::from(io::ErrorKind::TimedOut)));
    };
    let status = child.wait().context("wait for", program)?;
    Ok((Output { stdout, stderr }, status))
}

/// Whether the child has ended, by the deadline at the latest.
fn has_ended(child: &Child, until: Instant) -> io::Result<bool> {
    let pidfd = rustix::process::pidfd_open(pid(child), PidfdFlags::empty())?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ended => return Ok(ended? > 0),
        }
    }
}

/// Kills a child with all that it has started. One that sits in the kernel goes when that lets it go: a thread of its own
/// waits for that, and nobody else.
fn kill(mut child: Child) {
    // It may have ended just now.
    let _ = rustix::process::kill_process_group(pid(&child), Signal::KILL);
    thread::spawn(move || child.wait());
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_killed_with_what_it_started() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("pid");
        let mut script = OsString::from("exec >/dev/null 2>&1; sleep 600 & echo $! > ");
        script.push(&file);
        script.push("; wait");
        let begun = Instant::now();
        let deadline = Duration::from_millis(500);
        let error = Kernel.run("sh", &["-c".as_ref(), &script], deadline).expect_err("it does not end");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(30), "though its streams are closed");
        let sleeping = std::fs::read_to_string(&file).expect("it began");
        let stat = format!("/proc/{}/stat", sleeping.trim());
        let until = Instant::now() + Duration::from_secs(10);
        // A zombie is gone, too, whoever has to see it off.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z")) {
            assert!(Instant::now() < until, "what it started is gone");
            thread::yield_now();
        }
    }
}
