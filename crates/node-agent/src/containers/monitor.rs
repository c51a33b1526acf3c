//! The process that stands beside each container: it starts it, keeps its log, and writes down how it ended.
//!
//! It leads its own session and outlives the agent, so that a container keeps running with its log when the agent
//! is stopped or killed. It is single-purpose and blocking: a wait for the container and a reader per pipe.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use linux::{Kernel, Mounts, Unmount};
use parking_lot::Mutex;
use rustix::process::{Pid, WaitOptions, WaitStatus, set_child_subreaper, setsid, waitpid};

use super::{
    attempt::{self, AttemptRecord, Exit, ExitReason, Started},
    cgroup,
    log_file::{self, LogFile, Stream},
};
use crate::{records, status::bounded};

/// How long output of a container that has ended is waited for: someone outside may hold its pipe.
const DRAIN: Duration = Duration::from_secs(1);
/// kubelet's bound on a termination message.
const TERMINATION_MESSAGE: usize = 4096;

/// Runs the container whose attempt directory is `dir`, and returns when it has ended and its end is written down.
///
/// This is the whole of a hidden subcommand of the binary. It tells its parent on standard output: one line,
/// `started` or `failed`. Called again for an attempt that has a living monitor or has ended, it does nothing.
pub fn main(dir: &Path) -> ExitCode {
    match run(dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("container monitor of {}: {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}

fn run(dir: &Path) -> io::Result<()> {
    let _ = setsid();
    // What is under the lock stays: who removes an attempt takes its record away first, with the lock in hand.
    let Some(_lock) = attempt::lock(dir)? else { return Ok(()) };
    let record: AttemptRecord = records::read(&dir.join("attempt.json"))
        .map_err(io::Error::other)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "attempt.json is missing"))?;
    if dir.join("exit.json").exists() {
        return Ok(());
    }
    // Whatever keeps the container from starting or from being watched is its end: who started it waits for that.
    let outcome = supervise(dir, &record).unwrap_or_else(|error| start_error(linux::in_words(&error)));
    let message = outcome.message.clone().or_else(|| termination_message(dir));
    let from_log =
        || (record.logs_as_message && outcome.code != 0).then(|| log_file::end(&record.log)).flatten();
    let exit = Exit { message: message.or_else(from_log), ..outcome };
    records::write_durably(&dir.join("exit.json"), &exit)?;
    if exit.reason == ExitReason::StartError {
        tell("failed");
    }
    release(dir, &record)
}

fn start_error(message: String) -> Exit {
    Exit {
        code: 128,
        signal: None,
        reason: ExitReason::StartError,
        message: Some(bounded(&message, TERMINATION_MESSAGE)),
        started: None,
        finished: clock::now(),
    }
}

/// Runs the container to its end.
fn supervise(dir: &Path, record: &AttemptRecord) -> io::Result<Exit> {
    set_child_subreaper(Pid::from_raw(1))?;
    let opened = LogFile::open(&record.log, record.log_size, record.log_files).map_err(|error| {
        let (log, why) = (record.log.display(), linux::in_words(&error));
        io::Error::other(format!("cannot open the container's log {log}: {why}"))
    })?;
    let log = Arc::new(Mutex::new(opened));
    let (out_reader, out_writer) = io::pipe()?;
    let (err_reader, err_writer) = io::pipe()?;
    let (done, drained) = mpsc::channel();
    for (reader, stream) in [(out_reader, Stream::Stdout), (err_reader, Stream::Stderr)] {
        let (log, done) = (log.clone(), done.clone());
        thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            super::log_file::copy(reader, stream, &log);
            let _ = done.send(());
        })?;
    }
    drop(done);

    let exit = match start(dir, record, out_writer.into(), err_writer.into())? {
        Ok(started) => {
            records::write_volatile(&dir.join("started.json"), &started)?;
            tell("started");
            wait(record, &started)?
        }
        Err(message) => start_error(message),
    };
    while drained.recv_timeout(DRAIN).is_ok() {}
    Ok(exit)
}

/// Removes what an ended container leaves: its processes, the runtime's state, cgroups, and its root mount.
/// Repeating it does no harm.
pub(crate) fn release(dir: &Path, record: &AttemptRecord) -> io::Result<()> {
    cgroup::kill(&record.cgroup)?;
    if record.state.join(record.id()).exists() {
        let output = Command::new(&record.runtime)
            .arg("--root")
            .arg(&record.state)
            .args(["delete", "--force", &record.id()])
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() && record.state.join(record.id()).exists() {
            return Err(io::Error::other(format!(
                "{} delete: {}",
                record.runtime.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
    }
    cgroup::remove(&record.cgroup);
    // The mount on the root file system is ours alone, and its processes are gone.
    if dir.join("rootfs").exists() {
        Kernel.unmount(&dir.join("rootfs"), Unmount::Detach).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Starts the container; the inner error is the runtime's own explanation.
fn start(
    dir: &Path,
    record: &AttemptRecord,
    out: OwnedFd,
    err: OwnedFd,
) -> io::Result<Result<Started, String>> {
    fs::create_dir_all(&record.state)?;
    let log = dir.join("runtime.log");
    let pid_file = dir.join("pid");
    let status = Command::new(&record.runtime)
        .arg("--root")
        .arg(&record.state)
        .arg("--log")
        .arg(&log)
        .args(["--log-format", "json", "run", "--detach", "--bundle"])
        .arg(dir)
        .arg("--pid-file")
        .arg(&pid_file)
        .arg(record.id())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .status()?;
    if !status.success() {
        return Ok(Err(last_error(&log).unwrap_or_else(|| format!("{} {status}", record.runtime.display()))));
    }
    let pid = fs::read_to_string(&pid_file)?.trim().parse().map_err(io::Error::other)?;
    Ok(Ok(Started { pid, at: clock::now() }))
}

fn wait(record: &AttemptRecord, started: &Started) -> io::Result<Exit> {
    let pid = Pid::from_raw(started.pid).ok_or_else(|| io::Error::other("the runtime gave no process id"))?;
    let status = loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => break status,
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let finished = clock::now();
    let (code, signal) = code_of(status);
    let reason = match code {
        0 => ExitReason::Completed,
        137 if cgroup::out_of_memory(&record.cgroup) => ExitReason::OOMKilled,
        _ => ExitReason::Error,
    };
    Ok(Exit { code, signal, reason, message: None, started: Some(started.at), finished })
}

fn code_of(status: WaitStatus) -> (i32, Option<i32>) {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code, None),
        (None, Some(signal)) => (128 + signal, Some(signal)),
        (None, None) => (255, None),
    }
}

/// The last message of level error in the runtime's log.
fn last_error(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    text.lines().rev().find_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        (entry["level"] == "error").then(|| entry["msg"].as_str().map(str::to_owned))?
    })
}

fn termination_message(dir: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = Vec::new();
    File::open(dir.join("termination-log"))
        .ok()?
        .take(TERMINATION_MESSAGE as u64)
        .read_to_end(&mut text)
        .ok()?;
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}

/// Tells the agent, if there still is one.
fn tell(word: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{word}").and_then(|()| out.flush());
}
