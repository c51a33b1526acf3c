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
use linux::Host;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::records::{self, Record, RecordError};

/// What the monitor has to know, and what is needed to clean up when the API is gone.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AttemptRecord {
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
    /// The image that was asked for; None in records of version 1.
    #[serde(default)]
    pub(crate) image: Option<String>,
    /// The end of the log is the message of a failure that left none (`terminationMessagePolicy`).
    #[serde(default)]
    pub(crate) logs_as_message: bool,
}

impl Record for AttemptRecord {
    const FORMAT: u64 = 2;
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

impl Record for Started {}

/// The container was asked to end, and when.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) struct Stopping {
    pub(crate) at: Timestamp,
}

impl Record for Stopping {
    /// Version 0 was the time alone.
    fn upgrade(record: &mut Value, _from: u64) {
        *record = json!({"at": record.take()});
    }
}

/// How a container ended.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Exit {
    /// Exit code; 128 + n when a signal n ended it.
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) reason: ExitReason,
    pub(crate) message: Option<String>,
    pub(crate) started: Option<Timestamp>,
    pub(crate) finished: Timestamp,
}

impl Record for Exit {}

impl Exit {
    /// The end of a container that nobody saw.
    pub(crate) fn unknown(at: Timestamp) -> Exit {
        Exit {
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

    /// Reads the attempt in `dir`; None if there is no complete record (a crash while it was written). What can't be
    /// read is added to `faults`, and made up for by what is known without it: `rebuilt` has what the directory's place
    /// tells.
    pub(crate) fn read(
        dir: &Path,
        rebuilt: impl FnOnce() -> AttemptRecord,
        rootfs_mounted: bool,
        boot_id: &str,
        faults: &mut Vec<RecordError>,
    ) -> Option<Attempt> {
        let file = dir.join("attempt.json");
        // The lock is looked at before the exit record: a monitor that ends in between has written it by then.
        let monitor = monitor_of(dir).unwrap_or_else(|source| {
            faults.push(RecordError::Read { path: dir.join("lock"), source });
            None
        });
        let record = match records::read::<AttemptRecord>(&file) {
            Ok(Some(record)) => record,
            Ok(None) if monitor.is_none() && !rootfs_mounted => return None,
            Ok(None) => {
                faults.push(RecordError::Damaged { path: file, why: "it is missing".into() });
                rebuilt()
            }
            Err(error) => {
                let newer = error.is_newer();
                faults.push(error);
                if newer {
                    return None;
                }
                rebuilt()
            }
        };
        let known = record.state.join(record.id()).exists();
        let state = match (exit_of(dir, faults), monitor) {
            (Some(exit), _) => AttemptState::Exited(exit),
            (None, Some(_)) => AttemptState::Running {
                started: read_or(dir, "started.json", faults, started_as_seen),
                stopping: read_or(dir, "stopping.json", faults, |file| Some(Stopping { at: written(file) }))
                    .map(|stopping| stopping.at),
            },
            (None, None) if known || dir.join("pid").exists() || record.boot_id != boot_id => {
                AttemptState::Lost
            }
            (None, None) => AttemptState::Prepared,
        };
        // While the monitor lives it is the one that cleans up.
        let unreleased = monitor.is_none() && (rootfs_mounted || known);
        Some(Attempt { record, state, monitor, unreleased })
    }
}

/// Reads one of an attempt's records; one that can't be read is made up for.
fn read_or<T: Record>(
    dir: &Path,
    name: &str,
    faults: &mut Vec<RecordError>,
    instead: impl FnOnce(&Path) -> Option<T>,
) -> Option<T> {
    let file = dir.join(name);
    records::read(&file).unwrap_or_else(|error| {
        faults.push(error);
        instead(&file)
    })
}

fn exit_of(dir: &Path, faults: &mut Vec<RecordError>) -> Option<Exit> {
    read_or(dir, "exit.json", faults, |file| {
        let message = "The record of how the container ended is damaged".to_owned();
        Some(Exit { message: Some(message), ..Exit::unknown(written(file)) })
    })
}

/// The runtime has written the process id as well.
fn started_as_seen(file: &Path) -> Option<Started> {
    let pid = fs::read_to_string(file.with_file_name("pid")).ok()?.trim().parse().ok()?;
    Some(Started { pid, at: written(file) })
}

/// When a file was written.
fn written(file: &Path) -> Timestamp {
    let time = file.metadata().and_then(|metadata| metadata.modified());
    time.ok().and_then(|time| time.try_into().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The lock that says "the monitor of this attempt lives".
pub(crate) struct Lock(File);

/// A child process that has yet to exec holds the file as well: closing it alone would not free the lock.
impl Drop for Lock {
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Takes the lock and writes our process id into it; `None`: the monitor lives.
pub(crate) fn lock(dir: &Path) -> io::Result<Option<Lock>> {
    let mut file = open_lock(dir)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            file.set_len(0)?;
            file.write_all(format!("{}\n", std::process::id()).as_bytes())?;
            Ok(Some(Lock(file)))
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes the record of an attempt that has not ended away, so that a monitor which is only just starting finds nothing
/// to start. `false`: its monitor lives.
pub(crate) fn disown(dir: &Path) -> io::Result<bool> {
    let Some(_lock) = lock(dir)? else { return Ok(false) };
    if !dir.join("exit.json").exists() {
        fs::remove_file(dir.join("attempt.json")).or_else(absent_is_fine)?;
    }
    Ok(true)
}

/// Removes the directory of an attempt that was disowned, also while a late monitor looks into it.
pub(crate) fn remove(host: &dyn Host, dir: &Path) -> Result<(), linux::Error> {
    /// The lock comes back once, by that monitor's hand.
    const TRIES: usize = 5;
    for _ in 1..TRIES {
        match host.remove_tree(dir) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            removed => return removed.map(drop),
        }
    }
    host.remove_tree(dir).map(drop)
}

/// Removes all attempts below a pod's directory of containers. What else lies there is left to who removes that.
/// `Err` of `ResourceBusy`: a monitor lives.
pub(crate) fn remove_all(host: &dyn Host, containers: &Path) -> io::Result<()> {
    for attempt in
        directories(containers)?.iter().map(|one| directories(one)).collect::<io::Result<Vec<_>>>()?.concat()
    {
        if !disown(&attempt)? {
            let why = format!("the monitor of the container in {} still runs", attempt.display());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        remove(host, &attempt).map_err(io::Error::other)?;
    }
    Ok(())
}

/// The directories in one, if it is there: no links, and nothing else.
fn directories(of: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(of) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn absent_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Process id of the monitor that holds the lock; 0 if it has just taken it.
pub(crate) fn monitor_of(dir: &Path) -> io::Result<Option<i32>> {
    let mut file = match File::open(dir.join("lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            drop(Lock(file));
            Ok(None)
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_that_comes_late_finds_nothing_to_start() {
        let dir = tempfile::tempdir().unwrap();
        let attempt = dir.path().join("0");
        fs::create_dir(&attempt).unwrap();
        let record = attempt.join("attempt.json");
        fs::write(&record, "{}").unwrap();
        let lives = lock(&attempt).unwrap().unwrap();
        // As a child process has it until its exec.
        let _inherited = lives.0.try_clone().unwrap();
        assert!(!disown(&attempt).unwrap() && record.exists(), "its monitor lives");
        drop(lives);
        assert!(disown(&attempt).unwrap() && !record.exists());
        assert!(disown(&attempt).unwrap(), "repeating it does no harm");
        assert_eq!(super::super::monitor::main(&attempt), std::process::ExitCode::FAILURE);
        remove(&linux::Kernel, &attempt).unwrap();
        assert!(!attempt.exists());

        fs::create_dir(&attempt).unwrap();
        for name in ["attempt.json", "exit.json"] {
            fs::write(attempt.join(name), "{}").unwrap();
        }
        assert!(disown(&attempt).unwrap() && record.exists(), "how it ended is kept, and starts nothing");
    }

    #[test]
    fn the_directory_tells_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let read = |boot: &str, faults: &mut Vec<RecordError>| {
            let none = || unreachable!("the record can be read");
            Attempt::read(dir.path(), none, false, boot, faults)
        };
        let state = |boot: &str| {
            let mut faults = Vec::new();
            let attempt = read(boot, &mut faults);
            assert!(faults.is_empty(), "{faults:?}");
            attempt.map(|attempt| (attempt.state, attempt.monitor.is_some()))
        };
        assert_eq!(state("now"), None, "a record that is not there yet");
        let record = rebuilt(&at("state"));
        records::write_durably(&at("attempt.json"), &record).unwrap();
        assert_eq!(state("now"), Some((AttemptState::Prepared, false)));
        assert_eq!(state("later"), Some((AttemptState::Lost, false)), "whatever ran does not run any more");
        let monitor = lock(dir.path()).unwrap().unwrap();
        assert!(lock(dir.path()).unwrap().is_none(), "one monitor only");
        let running = |started| AttemptState::Running { started, stopping: None };
        assert_eq!(state("now"), Some((running(None), true)));
        let started = Started { pid: 2, at: Timestamp::UNIX_EPOCH };
        records::write_volatile(&at("started.json"), &started).unwrap();
        assert_eq!(state("now"), Some((running(Some(started)), true)));
        let exit = Exit { code: 3, ..Exit::unknown(Timestamp::UNIX_EPOCH) };
        records::write_durably(&at("exit.json"), &exit).unwrap();
        assert_eq!(state("now"), Some((AttemptState::Exited(exit.clone()), true)), "it still cleans up");
        drop(monitor);
        assert_eq!(state("now"), Some((AttemptState::Exited(exit), false)));
        fs::remove_file(at("exit.json")).unwrap();
        fs::create_dir_all(at("state/uid_app_0")).unwrap();
        assert_eq!(state("now"), Some((AttemptState::Lost, false)), "its monitor was killed");

        let bytes = String::from_utf8(records::render(&record).unwrap()).unwrap();
        fs::write(at("attempt.json"), bytes.replace(r#""format":2"#, r#""format":3"#)).unwrap();
        let mut faults = Vec::new();
        assert_eq!(read("now", &mut faults), None);
        assert!(faults[0].is_newer(), "{faults:?}");
    }

    /// A record, what else is there, and what is made of it.
    #[test]
    fn a_damaged_record_is_made_up_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let rebuilt = || rebuilt(&at("state"));
        let whole = |name: &str| match name {
            "attempt.json" => records::write_durably(&at(name), &rebuilt()).unwrap(),
            "started.json" => {
                let started = Started { pid: 7, at: Timestamp::UNIX_EPOCH };
                records::write_volatile(&at(name), &started).unwrap();
            }
            "stopping.json" => {
                records::write_volatile(&at(name), &Stopping { at: Timestamp::UNIX_EPOCH }).unwrap();
            }
            _ => records::write_durably(&at(name), &Exit::unknown(Timestamp::UNIX_EPOCH)).unwrap(),
        };
        let names = ["attempt.json", "started.json", "stopping.json", "exit.json"];
        for damage in ["", "{", "[]", "null", "{\"format\":1}"] {
            for (count, damaged) in names.iter().enumerate() {
                let monitor = lock(dir.path()).unwrap();
                fs::write(at("pid"), "7").unwrap();
                names[..count].iter().for_each(|name| whole(name));
                fs::write(at(damaged), damage).unwrap();
                let mut faults = Vec::new();
                let attempt = Attempt::read(dir.path(), rebuilt, false, "now", &mut faults).unwrap();
                assert_eq!(faults.len(), 1, "{damaged} as {damage:?}: {faults:?}");
                match (*damaged, &attempt.state) {
                    ("attempt.json", AttemptState::Running { .. }) => assert_eq!(attempt.record, rebuilt()),
                    ("started.json", AttemptState::Running { started: Some(started), .. }) => {
                        assert_eq!(started.pid, 7);
                    }
                    ("stopping.json", AttemptState::Running { stopping: Some(_), .. }) => {}
                    ("exit.json", AttemptState::Exited(exit)) => assert_eq!(exit.code, 137),
                    (_, state) => panic!("{damaged} as {damage:?} gives {state:?}"),
                }
                drop(monitor);
                names.iter().for_each(|name| drop(fs::remove_file(at(name))));
            }
        }
    }

    fn rebuilt(state: &Path) -> AttemptRecord {
        AttemptRecord {
            namespace: "ns".into(),
            pod: "pod".into(),
            uid: "uid".into(),
            container: "app".into(),
            number: 0,
            crashes: 0,
            grace: 30,
            boot_id: "now".into(),
            runtime: "/usr/sbin/runc".into(),
            state: state.into(),
            cgroup: "/orlop/n/uid/app-0".into(),
            log: "/none/0.log".into(),
            log_size: 1,
            log_files: 1,
            image: None,
            logs_as_message: false,
        }
    }
}
