//! The records of one start of a container: what was asked, whether it runs, how it ended.
//!
//! An attempt's directory is the OCI bundle as well. `attempt.json` is written and synced before the monitor is
//! started, `exit.json` before the container's remains are removed; what is in between is told by the monitor's
//! lock. So whoever reads the directory after a crash knows what has happened.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use linux::{Files, Kernel};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Version of the files in an attempt's directory.
pub(crate) const FORMAT: u32 = 1;

/// What the monitor has to know, and what is needed to clean up when the API is gone.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AttemptRecord {
    pub(crate) format: u32,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) uid: String,
    pub(crate) container: String,
    pub(crate) number: u32,
    /// How many starts in a row have ended soon; the next delay follows from it.
    pub(crate) crashes: u32,
    /// Seconds between SIGTERM and SIGKILL when the pod is gone from the API.
    pub(crate) grace: i64,
    pub(crate) boot_id: String,
    /// Program of the OCI runtime.
    pub(crate) runtime: PathBuf,
    /// Its `--root`.
    pub(crate) state: PathBuf,
    pub(crate) cgroup: String,
    /// The log file; rotated ones lie beside it.
    pub(crate) log: PathBuf,
    pub(crate) log_size: u64,
    pub(crate) log_files: usize,
}

impl AttemptRecord {
    /// The runtime's id of the container: unique on a machine.
    pub(crate) fn id(&self) -> String {
        format!("{}_{}_{}", self.uid, self.container, self.number)
    }
}

/// The container runs: its init process and since when.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Started {
    pub(crate) pid: i32,
    pub(crate) at: Timestamp,
}

/// How a container ended.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Exit {
    pub(crate) format: u32,
    /// Exit code; 128 + n when a signal n ended it.
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) reason: ExitReason,
    pub(crate) message: Option<String>,
    pub(crate) started: Option<Timestamp>,
    pub(crate) finished: Timestamp,
}

impl Exit {
    /// The end of a container that nobody saw.
    pub(crate) fn unknown(at: Timestamp) -> Exit {
        Exit {
            format: FORMAT,
            code: 137,
            signal: None,
            reason: ExitReason::ContainerStatusUnknown,
            message: Some("The container could not be located when its state was looked at".into()),
            started: None,
            finished: at,
        }
    }
}

/// Why a container is not running any more, in the words that kubelet shows.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Any other exit code.
    Error,
    /// The kernel killed it because it reached its memory limit.
    OOMKilled,
    /// The runtime could not start it.
    StartError,
    /// Nobody saw how it ended: its monitor was killed or the machine restarted.
    ContainerStatusUnknown,
}

/// State of an attempt as its directory tells it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AttemptState {
    /// Written down, nothing done yet.
    Prepared,
    /// Its monitor lives.
    Running { started: Option<Started>, stopping: Option<Timestamp> },
    /// Ended, and what it left behind may still have to be removed.
    Exited(Exit),
    /// Its monitor is gone and has not written how the container ended.
    Lost,
}

/// One attempt with its state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attempt {
    pub(crate) record: AttemptRecord,
    pub(crate) state: AttemptState,
    /// Process id of its monitor, which lives; it outlives the exit record by the time it takes to clean up.
    pub(crate) monitor: Option<i32>,
    /// The root file system is still mounted, or the runtime still knows the container, and no monitor cleans up.
    pub(crate) unreleased: bool,
}

impl Attempt {
    pub(crate) fn exit(&self) -> Option<&Exit> {
        match &self.state {
            AttemptState::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    /// Whether something of it still runs, be it the monitor that cleans up.
    pub(crate) fn live(&self) -> bool {
        self.monitor.is_some()
    }

    /// Reads the attempt in `dir`; None if there is no complete record (a crash while it was written).
    pub(crate) fn read(dir: &Path, rootfs_mounted: bool, boot_id: &str) -> io::Result<Option<Attempt>> {
        let Some(record) = read_json::<AttemptRecord>(&dir.join("attempt.json"))? else { return Ok(None) };
        if record.format > FORMAT {
            return Err(io::Error::other(format!(
                "{} has format {}, newer than this version knows ({FORMAT}): use the newer orlop",
                dir.display(),
                record.format
            )));
        }
        // The lock is looked at before the exit record: a monitor that ends in between has written it by then.
        let monitor = monitor_of(dir)?;
        let known = record.state.join(record.id()).exists();
        let exit = read_json::<Exit>(&dir.join("exit.json"))?;
        let state = match (exit, monitor) {
            (Some(exit), _) => AttemptState::Exited(exit),
            (None, Some(_)) => AttemptState::Running {
                started: read_json(&dir.join("started.json"))?,
                stopping: read_json(&dir.join("stopping.json"))?,
            },
            (None, None) if known || dir.join("pid").exists() || record.boot_id != boot_id => {
                AttemptState::Lost
            }
            (None, None) => AttemptState::Prepared,
        };
        // While the monitor lives it is the one that cleans up.
        let unreleased = monitor.is_none() && (rootfs_mounted || known);
        Ok(Some(Attempt { record, state, monitor, unreleased }))
    }
}

/// Takes the lock that says "the monitor of this attempt lives" and writes our process id into it.
pub(crate) fn lock(dir: &Path) -> io::Result<Option<File>> {
    let mut file = open_lock(dir)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            file.set_len(0)?;
            file.write_all(format!("{}\n", std::process::id()).as_bytes())?;
            Ok(Some(file))
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Process id of the monitor that holds the lock; 0 if it has just taken it.
pub(crate) fn monitor_of(dir: &Path) -> io::Result<Option<i32>> {
    let mut file = match File::open(dir.join("lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(Some(text.trim().parse().unwrap_or(0)))
        }
        Err(error) => Err(error.into()),
    }
}

fn open_lock(dir: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join("lock"))
}

/// Reads a record; None when it is absent.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a record so that it is there after a power loss, or not at all.
pub(crate) fn write_durably<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    Kernel.write_durable(path, &serde_json::to_vec(value)?, 0o600).map_err(io::Error::other)
}

/// Writes a record so that a reader sees all of it or nothing; it may be lost in a power loss, where its content
/// (a process, a mount) is lost too.
pub(crate) fn write_volatile<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let new = linux::draft_of(path);
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)?
        .write_all(&serde_json::to_vec(value)?)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_tells_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let state = |boot: &str| {
            Attempt::read(dir.path(), false, boot)
                .unwrap()
                .map(|attempt| (attempt.state, attempt.monitor.is_some()))
        };
        assert_eq!(state("now"), None, "a record that is not there yet");
        let record = AttemptRecord {
            format: FORMAT,
            namespace: "ns".into(),
            pod: "pod".into(),
            uid: "uid".into(),
            container: "app".into(),
            number: 0,
            crashes: 0,
            grace: 30,
            boot_id: "now".into(),
            runtime: "/usr/sbin/runc".into(),
            state: at("state"),
            cgroup: "/orlop/n/uid/app-0".into(),
            log: at("0.log"),
            log_size: 1,
            log_files: 1,
        };
        write_durably(&at("attempt.json"), &record).unwrap();
        assert_eq!(state("now"), Some((AttemptState::Prepared, false)));
        assert_eq!(state("later"), Some((AttemptState::Lost, false)), "whatever ran does not run any more");
        let monitor = lock(dir.path()).unwrap().unwrap();
        assert!(lock(dir.path()).unwrap().is_none(), "one monitor only");
        let running = |started| AttemptState::Running { started, stopping: None };
        assert_eq!(state("now"), Some((running(None), true)));
        let started = Started { pid: 2, at: Timestamp::UNIX_EPOCH };
        write_volatile(&at("started.json"), &started).unwrap();
        assert_eq!(state("now"), Some((running(Some(started)), true)));
        let exit = Exit { code: 3, ..Exit::unknown(Timestamp::UNIX_EPOCH) };
        write_durably(&at("exit.json"), &exit).unwrap();
        assert_eq!(state("now"), Some((AttemptState::Exited(exit.clone()), true)), "it still cleans up");
        drop(monitor);
        assert_eq!(state("now"), Some((AttemptState::Exited(exit), false)));
        fs::remove_file(at("exit.json")).unwrap();
        fs::create_dir_all(at("state/uid_app_0")).unwrap();
        assert_eq!(state("now"), Some((AttemptState::Lost, false)), "its monitor was killed");

        write_durably(&at("attempt.json"), &AttemptRecord { format: FORMAT + 1, ..record }).unwrap();
        assert!(Attempt::read(dir.path(), false, "now").unwrap_err().to_string().contains("newer"));
    }
}
