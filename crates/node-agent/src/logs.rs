//! Reading containers' logs, for `kubectl logs`.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use futures::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::{io::unix::AsyncFd, sync::mpsc};

use crate::{containers::log_file::rotated, descriptor, layout::Layout};

/// Bytes that are read before they are passed on.
const CHUNK: usize = 64 * 1024;
/// Chunks that wait for a slow reader.
const AHEAD: usize = 4;

/// What of a log is wanted.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// To go on until the container ends.
    pub follow: bool,
    /// The log of the attempt before the last.
    pub previous: bool,
    /// Only lines from then on.
    pub since: Option<Timestamp>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Only so many lines from the end.
    pub tail: Option<usize>,
    /// At most so many bytes.
    pub limit: Option<u64>,
}

/// Why a log can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The container has not been started.
    #[error("container \"{container}\" in pod \"{pod}\" is waiting to start")]
    NotStarted {
        /// The container.
        container: String,
        /// Its pod.
        pod: String,
    },
    /// There was no attempt before the last.
    #[error("previous terminated container \"{container}\" in pod \"{pod}\" not found")]
    NoPrevious {
        /// The container.
        container: String,
        /// Its pod.
        pod: String,
    },
    /// The log can't be read.
    #[error("cannot read the log of container \"{container}\": {}", linux::in_words(source))]
    Read {
        /// The container.
        container: String,
        /// Why.
        source: io::Error,
    },
}

/// Opens the log of a container of a pod of this node. Chunks end at line ends, but for the last one of a limit.
///
/// # Errors
/// When there is no such log, or it can't be read.
pub async fn open(
    layout: &Layout,
    namespace: &str,
    pod: &str,
    uid: &str,
    container: &str,
    query: Query,
) -> Result<BoxStream<'static, Vec<u8>>, LogsError> {
    let directory = layout.pod_logs(namespace, pod, uid).join(container);
    let numbers = numbers(&directory);
    let (names, previous) = ((container.to_owned(), pod.to_owned()), query.previous);
    let number = match (numbers.len(), previous) {
        (0, _) => return Err(LogsError::NotStarted { container: names.0, pod: names.1 }),
        (1, true) => return Err(LogsError::NoPrevious { container: names.0, pod: names.1 }),
        (count, true) => numbers[count - 2],
        (count, false) => numbers[count - 1],
    };
    let read = |source| LogsError::Read { container: names.0.clone(), source };
    let attempt = layout.attempt(uid, container, number);
    let path = directory.join(format!("{number}.log"));
    // Watching begins before reading: nothing is missed in between.
    let changes = match query.follow {
        true => Some(watch(&[&directory, &attempt]).map_err(read)?),
        false => None,
    };
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        if let Err(error) = pump(path, attempt, query, changes, &sender).await {
            tracing::debug!(%error, "log reading ended");
        }
    });
    Ok(stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
        .boxed())
}

/// Numbers of the attempts that have a log, in order.
fn numbers(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

async fn pump(
    path: PathBuf,
    attempt: PathBuf,
    query: Query,
    changes: Option<AsyncFd<OwnedFd>>,
    sender: &mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let mut reader = blocking(move || LogReader::open(path, query)).await?;
    loop {
        // Whether it has ended is looked at before the end of the file is reached: all was written by then.
        let ended = !attempt.exists() || attempt.join("exit.json").exists();
        loop {
            let chunk;
            (reader, chunk) = blocking(move || {
                let chunk = reader.chunk()?;
                Ok((reader, chunk))
            })
            .await?;
            if chunk.is_empty() {
                break;
            }
            if sender.send(chunk).await.is_err() {
                return Ok(());
            }
        }
        let Some(changes) = changes.as_ref().filter(|_| !ended && !reader.exhausted()) else { return Ok(()) };
        tokio::select! {
            () = sender.closed() => return Ok(()),
            ready = changes.readable() => {
                let mut ready = ready?;
                drain(changes.get_ref());
                ready.clear_ready();
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn watch(directories: &[&PathBuf]) -> io::Result<AsyncFd<OwnedFd>> {
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    for directory in directories {
        let events = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF;
        inotify::add_watch(&watch, directory.as_path(), events)?;
    }
    descriptor::register(watch)
}

fn drain(watch: &OwnedFd) {
    let mut buffer = [const { MaybeUninit::uninit() }; 4096];
    let mut reader = inotify::Reader::new(watch, &mut buffer);
    while reader.next().is_ok() {}
}

/// Reads the files of one log, oldest first, and goes on with what is appended.
struct LogReader {
    path: PathBuf,
    /// Rotated files that are still to be read.
    older: std::vec::IntoIter<PathBuf>,
    file: BufReader<File>,
    is_current: bool,
    query: Query,
    /// Bytes that may still be passed on.
    left: u64,
    /// The last line was a part of a longer one.
    within_line: bool,
}

impl LogReader {
    fn open(path: PathBuf, query: Query) -> io::Result<LogReader> {
        let mut files = rotated(&path)?;
        files.push(path.clone());
        let mut start = 0;
        if let Some(tail) = query.tail {
            let skip;
            (skip, start) = tail_start(&files, tail)?;
            files.drain(..skip);
        }
        let mut older = files.into_iter();
        let first = older.next().unwrap_or_else(|| path.clone());
        let mut file = File::open(&first)?;
        file.seek(SeekFrom::Start(start))?;
        let left = query.limit.unwrap_or(u64::MAX);
        let is_current = first == path;
        Ok(LogReader { path, older, file: BufReader::new(file), is_current, query, left, within_line: false })
    }

    fn exhausted(&self) -> bool {
        self.left == 0
    }

    /// What can be read now, in lines; empty at the end.
    fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut line = Vec::new();
        while out.len() < CHUNK && self.left > 0 {
            line.clear();
            let count = self.file.read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                // Half a line: it will be whole at the next look.
                self.file.seek_relative(-(count as i64))?;
                if !self.next_file()? {
                    break;
                }
                continue;
            }
            self.show(&line, &mut out);
        }
        Ok(out)
    }

    fn next_file(&mut self) -> io::Result<bool> {
        if !self.is_current {
            let next = self.older.next().unwrap_or_else(|| self.path.clone());
            self.is_current = next == self.path;
            self.file = BufReader::new(File::open(next)?);
            return Ok(true);
        }
        // It was rotated meanwhile when its name leads to another file.
        let open = self.file.get_ref().metadata()?.ino();
        match fs::metadata(&self.path) {
            Ok(metadata) if metadata.ino() != open => {
                self.file = BufReader::new(File::open(&self.path)?);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn show(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some((time, complete, text)) = parse(line) else { return };
        if self.query.since.is_some_and(|since| time.parse::<Timestamp>().is_ok_and(|time| time < since)) {
            return;
        }
        let begin = out.len();
        if self.query.timestamps && !self.within_line {
            out.extend_from_slice(time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(text);
        if complete {
            out.push(b'\n');
        }
        self.within_line = !complete;
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        out.truncate(begin.saturating_add(room));
        self.left -= (out.len() - begin) as u64;
    }
}

/// Time, completeness and text of a line in the CRI format.
fn parse(line: &[u8]) -> Option<(&str, bool, &[u8])> {
    let mut fields = line.strip_suffix(b"\n")?.splitn(4, |&byte| byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let (_stream, tag) = (fields.next()?, fields.next()?);
    Some((time, tag == b"F", fields.next()?))
}

/// Where the last `tail` lines begin: how many files to skip, and the offset in the next.
fn tail_start(files: &[PathBuf], tail: usize) -> io::Result<(usize, u64)> {
    let mut missing = tail;
    for (index, path) in files.iter().enumerate().rev() {
        // Ends of complete lines in this file.
        let mut ends = Vec::new();
        let mut offset = 0;
        let mut file = BufReader::new(File::open(path)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = file.read_until(b'\n', &mut line)?;
            if count == 0 {
                break;
            }
            offset += count as u64;
            if parse(&line).is_some_and(|(_, complete, _)| complete) {
                ends.push(offset);
            }
        }
        if missing == 0 {
            return Ok((index, offset));
        }
        if ends.len() > missing {
            return Ok((index, ends[ends.len() - missing - 1]));
        }
        missing -= ends.len();
        if missing == 0 {
            return Ok((index, 0));
        }
    }
    Ok((0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::log_file::{LogFile, Stream};

    async fn read(layout: &Layout, query: Query) -> String {
        let chunks = open(layout, "ns", "pod", "uid", "app", query).await.unwrap();
        let bytes: Vec<Vec<u8>> = chunks.collect().await;
        String::from_utf8(bytes.concat()).unwrap()
    }

    fn write(layout: &Layout, number: u32, lines: std::ops::Range<u32>, limit: u64) -> LogFile {
        let path = layout.pod_logs("ns", "pod", "uid").join("app").join(format!("{number}.log"));
        let mut log = LogFile::open(&path, limit, 10).unwrap();
        for line in lines {
            log.write(Stream::Stdout, format!("line {line}").as_bytes(), true).unwrap();
        }
        log
    }

    #[tokio::test]
    async fn logs_are_cut_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        assert!(matches!(
            open(&layout, "ns", "pod", "uid", "app", Query::default()).await,
            Err(LogsError::NotStarted { .. })
        ));
        write(&layout, 0, 0..2, 1 << 20);
        let previous = Query { previous: true, ..Query::default() };
        assert!(matches!(
            open(&layout, "ns", "pod", "uid", "app", previous.clone()).await,
            Err(LogsError::NoPrevious { .. })
        ));
        // Rotated every few lines: the reader sees one log.
        write(&layout, 1, 10..30, 150);
        let all = read(&layout, Query::default()).await;
        assert_eq!(all.lines().count(), 20);
        assert!(all.starts_with("line 10\n") && all.ends_with("line 29\n"), "{all}");
        for tail in [0, 1, 2, 3, 5, 19, 20, 100] {
            let text = read(&layout, Query { tail: Some(tail), ..Query::default() }).await;
            assert_eq!(text.lines().count(), tail.min(20), "{text}");
            assert!(tail == 0 || text.ends_with("line 29\n"));
        }
        assert_eq!(read(&layout, Query { limit: Some(10), ..Query::default() }).await, "line 10\nli");
        assert_eq!(read(&layout, previous).await, "line 0\nline 1\n");
        let later = clock::now() + jiff::SignedDuration::from_secs(60);
        assert_eq!(read(&layout, Query { since: Some(later), ..Query::default() }).await, "");
        let timed = read(&layout, Query { timestamps: true, tail: Some(1), ..Query::default() }).await;
        assert!(timed.split_once(' ').unwrap().0.parse::<Timestamp>().is_ok());
    }

    #[tokio::test]
    async fn following_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let attempt = layout.attempt("uid", "app", 0);
        fs::create_dir_all(&attempt).unwrap();
        let mut log = write(&layout, 0, 0..1, 100);
        let query = Query { follow: true, ..Query::default() };
        let mut chunks = open(&layout, "ns", "pod", "uid", "app", query).await.unwrap();
        assert_eq!(chunks.next().await.unwrap(), b"line 0\n");
        let mut seen = Vec::new();
        for line in 1..6 {
            log.write(Stream::Stdout, format!("line {line}").as_bytes(), true).unwrap();
            let wanted = format!("line {line}\n").into_bytes();
            seen.extend(
                tokio::time::timeout(std::time::Duration::from_secs(10), chunks.next())
                    .await
                    .unwrap()
                    .unwrap(),
            );
            assert!(seen.ends_with(&wanted));
        }
        fs::write(attempt.join("new"), "{}").unwrap();
        fs::rename(attempt.join("new"), attempt.join("exit.json")).unwrap();
        let end = tokio::time::timeout(std::time::Duration::from_secs(10), chunks.next()).await;
        assert_eq!(end.unwrap(), None);
    }
}
