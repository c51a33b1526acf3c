//! What was written to a device, in the order in which it became durable: the log of the device mapper's `log-writes`,
//! and a device as it was at any moment of it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// The mark that the kernel puts there when the device goes.
const END: &str = "dm-log-writes-end";

/// One entry. Places and lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Write {
        at: u64,
        length: u64,
        /// Where in the log the bytes are.
        bytes: u64,
        /// Whether all that was noted before it was durable when it was answered, and it too.
        durable: bool,
    },
    Discard {
        at: u64,
        length: u64,
    },
    Mark(String),
}

/// A log.
pub(crate) struct WriteLog<F> {
    file: F,
    pub(crate) entries: Vec<Entry>,
    /// Where in the file each entry ends, as it was read.
    ends: Vec<u64>,
}

impl<F: Read + Seek> WriteLog<F> {
    pub(crate) fn read(mut file: F) -> io::Result<Self> {
        let head = block(&mut file, 0, 512)?;
        let [magic, version, count] = [0, 8, 16].map(|at| number(&head, at));
        let sector = number(&head, 24) & u64::from(u32::MAX);
        assert_eq!((magic, version), (MAGIC, VERSION), "a log of writes");
        let (mut entries, mut ends, mut at) = (Vec::new(), Vec::new(), sector);
        for _ in 0..count {
            let head = block(&mut file, at, sector as usize)?;
            let [place, count, flags, length] = [0, 8, 16, 24].map(|at| number(&head, at));
            at += sector;
            let (place, bytes) = (place * sector, count * sector);
            let entry = match flags {
                flags if flags & MARK != 0 => {
                    let text = String::from_utf8_lossy(&head[32..32 + length as usize]);
                    match text.trim_end_matches('\0') {
                        END => break,
                        text => Entry::Mark(text.to_owned()),
                    }
                }
                flags if flags & DISCARD != 0 => Entry::Discard { at: place, length: bytes },
                flags => {
                    let durable = flags & (FLUSH | FUA) != 0;
                    let write = Entry::Write { at: place, length: bytes, bytes: at, durable };
                    at += bytes;
                    write
                }
            };
            entries.push(entry);
            ends.push(at);
        }
        Ok(Self { file, entries, ends })
    }

    /// Puts marks in where the log was this long, of a log that has none.
    pub(crate) fn mark(&mut self, marks: Vec<(u64, String)>) {
        // From behind, so that places stay what they are.
        for (length, text) in marks.into_iter().rev() {
            let at = self.ends.partition_point(|end| *end <= length);
            self.entries.insert(at, Entry::Mark(text));
        }
    }

    /// Of a log in the order in which it was written: lets what was not flushed yet wait for its flush.
    pub(crate) fn order_by_durability(&mut self) {
        let (mut waiting, mut ordered) = (Vec::new(), Vec::new());
        for entry in std::mem::take(&mut self.entries) {
            match entry {
                Entry::Write { durable: false, .. } | Entry::Discard { .. } => waiting.push(entry),
                Entry::Write { length: 0, .. } => ordered.extend(waiting.drain(..).chain([entry])),
                Entry::Write { .. } | Entry::Mark(_) => ordered.push(entry),
            }
        }
        self.entries = ordered;
    }

    /// The bytes that an entry wrote.
    fn bytes(&mut self, at: u64, length: u64) -> io::Result<Vec<u8>> {
        block(&mut self.file, at, length as usize)
    }

    /// Lets a device become what it was when an entry was answered.
    pub(crate) fn apply(&mut self, entry: usize, image: &mut Image) -> io::Result<()> {
        match self.entries[entry] {
            Entry::Write { at, length, bytes, .. } => {
                let written = self.bytes(bytes, length)?;
                image.write(at, &written);
            }
            Entry::Discard { at, length } => image.discard(at, length),
            Entry::Mark(_) => {}
        }
        Ok(())
    }
}

fn block(file: &mut (impl Read + Seek), at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

const PAGE: u64 = 4096;

/// The bytes of a device, mostly zeros. What lies before `begins` is left out.
pub(crate) struct Image {
    begins: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Image {
    pub(crate) fn new(begins: u64) -> Self {
        Self { begins, pages: BTreeMap::new() }
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        let (mut at, mut bytes) = match at.checked_sub(self.begins) {
            Some(at) => (at, bytes),
            None => return,
        };
        while !bytes.is_empty() {
            let within = (at % PAGE) as usize;
            let (now, rest) = bytes.split_at(bytes.len().min(PAGE as usize - within));
            let page = self.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
            page[within..within + now.len()].copy_from_slice(now);
            if now.iter().all(|byte| *byte == 0) && page.iter().all(|byte| *byte == 0) {
                self.pages.remove(&(at / PAGE));
            }
            (at, bytes) = (at + now.len() as u64, rest);
        }
    }

    pub(crate) fn discard(&mut self, at: u64, length: u64) {
        let Some(at) = at.checked_sub(self.begins) else { return };
        let (first, end) = (at.div_ceil(PAGE), (at + length) / PAGE);
        if first < end {
            let mut gone = self.pages.split_off(&first);
            self.pages.append(&mut gone.split_off(&end));
        }
    }

    /// Writes it to a sparse file of this size.
    pub(crate) fn save(&self, file: &Path, size: u64) -> io::Result<()> {
        let mut open = File::create(file)?;
        open.set_len(size)?;
        let mut next = 0;
        for (number, page) in &self.pages {
            if *number != next {
                open.seek(SeekFrom::Start(number * PAGE))?;
            }
            open.write_all(page)?;
            next = number + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(numbers: &[u64], rest: &[u8]) -> Vec<u8> {
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        bytes.extend(rest);
        bytes.resize(512, 0);
        bytes
    }

    #[test]
    fn a_log_is_read_and_played_again() {
        let log = [
            sector(&[MAGIC, VERSION, 5, 512], b""),
            sector(&[16, 1, 0, 0], b""),
            vec![1; 512],
            sector(&[0, 0, FLUSH, 0], b""),
            sector(&[0, 0, MARK, 7], b"created\0"),
            sector(&[17, 2, FUA, 0], b""),
            vec![2; 1024],
            sector(&[16, 8, DISCARD, 0], b""),
        ];
        let mut log = WriteLog::read(io::Cursor::new(log.concat())).expect("a log");
        let expected = [
            Entry::Write { at: 8192, length: 512, bytes: 1024, durable: false },
            Entry::Write { at: 0, length: 0, bytes: 2048, durable: true },
            Entry::Mark("created".to_owned()),
            Entry::Write { at: 8704, length: 1024, bytes: 3072, durable: true },
            Entry::Discard { at: 8192, length: 4096 },
        ];
        assert_eq!(log.entries, expected);
        assert_eq!(log.ends, [1536, 2048, 2560, 4096, 4608]);
        let mut image = Image::new(4096);
        for entry in 0..4 {
            log.apply(entry, &mut image).expect("in memory");
        }
        log.mark(vec![(2048, "early".to_owned()), (2048, "late".to_owned())]);
        log.order_by_durability();
        let mark = |text: &str| Entry::Mark(text.to_owned());
        let [write, flush, created, forced, _] = expected;
        assert_eq!(
            log.entries,
            [write, flush, mark("early"), mark("late"), created, forced],
            "the discard never was flushed"
        );
        log.entries = vec![Entry::Discard { at: 8192, length: 4096 }];
        let file = tempfile::NamedTempFile::new().expect("file");
        image.save(file.path(), 16384).expect("saved");
        let saved = std::fs::read(file.path()).expect("read");
        assert_eq!((saved.len(), saved[4095], saved[4096], saved[4608], saved[5632]), (16384, 0, 1, 2, 0));
        log.apply(0, &mut image).expect("in memory");
        assert!(image.pages.is_empty(), "what is discarded is zero");
    }
}
