//! A container's log in the CRI format, bounded in size.
//!
//! One line is `<time> <stream> <tag> <text>`; tag `F` ends a line of the container, `P` is a part of a longer one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, PipeReader, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

/// Longest part of a line that is kept together.
const PART: usize = 16 * 1024;

/// Which output of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The open log file of one container.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    keep: usize,
}

impl LogFile {
    /// Opens `path` for appending; it is rotated when it exceeds `limit` bytes, and at most `keep` files exist.
    pub(crate) fn open(path: &Path, limit: u64, keep: usize) -> io::Result<LogFile> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file, size, limit, keep })
    }

    /// Writes one line, or part of one when `complete` is false.
    pub(crate) fn write(&mut self, stream: Stream, text: &[u8], complete: bool) -> io::Result<()> {
        let tag = if complete { 'F' } else { 'P' };
        let mut line = format!("{:.9} {} {tag} ", clock::now(), stream.name()).into_bytes();
        line.extend_from_slice(text);
        line.push(b'\n');
        if self.size + line.len() as u64 > self.limit && self.size > 0 {
            self.rotate()?;
        }
        self.file.write_all(&line)?;
        self.size += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{:020}", clock::now().as_microsecond()));
        fs::rename(&self.path, name)?;
        self.file = append(&self.path)?;
        self.size = 0;
        let old = rotated(&self.path)?;
        for path in old.iter().take(old.len().saturating_sub(self.keep.saturating_sub(1))) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// The rotated files of `path`, oldest first.
pub(crate) fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let mut files: Vec<PathBuf> = fs::read_dir(parent)?
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    Ok(files)
}

/// kubelet's bounds of a message that is taken from a log.
const END: u64 = 2048;
const END_LINES: usize = 80;

/// The end of a log without times and streams; None when there is nothing in it.
pub(crate) fn end(path: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // Times and streams are left out later.
    file.seek(SeekFrom::Start(length.saturating_sub(4 * END))).ok()?;
    let mut text = Vec::new();
    file.take(4 * END).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let lines = &lines[lines.len().saturating_sub(END_LINES)..];
    let text = lines.join("\n");
    let begin = (text.len().saturating_sub(END as usize)..).find(|at| text.is_char_boundary(*at))?;
    (!text.is_empty()).then(|| text[begin..].to_owned())
}

/// Copies a container's output into its log until the last writer is gone. A log that can't be written (disk
/// full) must not stop the container: lines are dropped then.
pub(crate) fn copy(reader: PipeReader, stream: Stream, log: &Mutex<LogFile>) {
    let mut reader = BufReader::with_capacity(PART, reader);
    loop {
        let available = match reader.fill_buf() {
            Ok([]) => return,
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        // Without a line end in the buffer wait for more, but never for more than a part.
        match available.iter().position(|&byte| byte == b'\n') {
            Some(end) => {
                let _ = log.lock().write(stream, &available[..end], true);
                reader.consume(end + 1);
            }
            None => {
                let mut part = Vec::new();
                let complete = read_part(&mut reader, &mut part);
                let _ = log.lock().write(stream, &part, complete);
            }
        }
    }
}

/// Reads up to the end of the line or of a part; tells whether the line is complete (at the end of input it is).
fn read_part(reader: &mut impl BufRead, part: &mut Vec<u8>) -> bool {
    loop {
        let (used, ended) = match reader.fill_buf() {
            Ok([]) | Err(_) => return true,
            Ok(bytes) => {
                let room = PART - part.len();
                match bytes.iter().take(room).position(|&byte| byte == b'\n') {
                    Some(end) => {
                        part.extend_from_slice(&bytes[..end]);
                        (end + 1, true)
                    }
                    None => {
                        let taken = bytes.len().min(room);
                        part.extend_from_slice(&bytes[..taken]);
                        (taken, false)
                    }
                }
            }
        };
        reader.consume(used);
        if ended {
            return true;
        }
        if part.len() == PART {
            return false;
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_tagged_and_long_ones_are_parted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = Mutex::new(LogFile::open(&path, 1 << 20, 5).unwrap());
        let (reader, mut writer) = io::pipe().unwrap();
        let long = "x".repeat(PART + 10);
        writer.write_all(format!("one\n{long}\nlast without end").as_bytes()).unwrap();
        drop(writer);
        copy(reader, Stream::Stderr, &log);
        let text = fs::read_to_string(&path).unwrap();
        let tails: Vec<(&str, usize)> = text
            .lines()
            .map(|line| {
                let mut fields = line.splitn(4, ' ');
                assert!(fields.next().unwrap().parse::<jiff::Timestamp>().is_ok());
                assert_eq!(fields.next(), Some("stderr"));
                (fields.next().unwrap(), fields.next().unwrap().len())
            })
            .collect();
        assert_eq!(tails, [("F", 3), ("P", PART), ("F", 10), ("F", 16)]);
    }

    #[test]
    fn the_end_of_a_log_is_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        assert_eq!(end(&path), None);
        let mut log = LogFile::open(&path, 1 << 20, 3).unwrap();
        assert_eq!(end(&path), None);
        log.write(Stream::Stdout, b"it burns", true).unwrap();
        assert_eq!(end(&path).as_deref(), Some("it burns"));
        (0..500).for_each(|number| log.write(Stream::Stdout, format!("{number}").as_bytes(), true).unwrap());
        let text = end(&path).unwrap();
        assert!(text.lines().count() <= END_LINES && text.ends_with("498\n499"), "{text}");
        log.write(Stream::Stdout, "ü".repeat(4000).as_bytes(), true).unwrap();
        assert!(end(&path).is_none_or(|text| text.len() <= END as usize + 4));
    }

    #[test]
    fn rotation_bounds_the_number_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, 200, 3).unwrap();
        for number in 0..50 {
            log.write(Stream::Stdout, format!("line {number}").as_bytes(), true).unwrap();
        }
        assert_eq!(rotated(&path).unwrap().len(), 2);
        assert!(fs::read_to_string(&path).unwrap().contains("line 49"));
        assert!(fs::metadata(&path).unwrap().len() <= 200);
    }
}
