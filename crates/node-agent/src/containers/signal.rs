//! Signals to containers, and notice of their end.

use std::{fs, future::Future, io, path::PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::attempt::{self, Started, Stopping};
use crate::records;

/// Sends SIGTERM and notes when, once: the time to SIGKILL counts from the first.
pub(crate) fn terminate(directory: &std::path::Path, monitor: i32, started: &Started) -> io::Result<()> {
    let stopping = directory.join("stopping.json");
    if !stopping.exists() {
        records::write_volatile(&stopping, &Stopping { at: clock::now() })?;
    }
    send(monitor, started.pid, Signal::TERM)
}

/// Sends SIGKILL.
pub(crate) fn kill(monitor: i32, started: &Started) -> io::Result<()> {
    send(monitor, started.pid, Signal::KILL)
}

/// Sends a signal to a container's first process, if it still is that: a child of its monitor. The descriptor keeps
/// the number from being reused between the check and the signal.
fn send(monitor: i32, pid: i32, signal: Signal) -> io::Result<()> {
    let Some(process) = Pid::from_raw(pid) else { return Ok(()) };
    let descriptor = match pidfd_open(process, PidfdFlags::empty()) {
        Ok(descriptor) => descriptor,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if parent(pid) != Some(monitor) {
        return Ok(());
    }
    match pidfd_send_signal(descriptor, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// Resolves when the monitor of an attempt is gone.
pub(crate) fn monitor_end(directory: PathBuf, monitor: i32) -> io::Result<impl Future<Output = ()>> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let process = Pid::from_raw(monitor).ok_or_else(gone)?;
    let descriptor = crate::descriptor::register(pidfd_open(process, PidfdFlags::NONBLOCK)?)?;
    // The number could have been reused before it was opened; the lock tells.
    if attempt::monitor_of(&directory)? != Some(monitor) {
        return Err(gone());
    }
    Ok(async move {
        let _ = descriptor.readable().await;
    })
}
