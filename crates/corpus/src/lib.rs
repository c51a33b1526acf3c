//! Dev-only: bytes near known good ones, for tests of what parses what others wrote.
//!
//! A short run is part of `cargo test`; a long one is
//! `PROPTEST_CASES=5000000 cargo test -p linux -p drives -p driver -p api-server fuzz::`. What a run finds becomes a file
//! of the corpus.

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, FileFailurePersistence};

/// So many cases, or as many as `$PROPTEST_CASES` asks for.
pub fn cases(short: u32) -> Config {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let config = Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    if asked { config } else { Config { cases: short, ..config } }
}

/// The files of a directory, by name.
///
/// # Panics
/// When there is none.
pub fn files(directory: impl AsRef<Path>) -> Vec<Vec<u8>> {
    let directory = directory.as_ref();
    let entries =
        fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())).flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no corpus", directory.display());
    paths
        .iter()
        .map(|path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        .collect()
}

/// One of the seeds with up to eight changes, such as a torn write, a bad medium or ill will leave.
pub fn near(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let donors = seeds.clone();
    (select(seeds), vec(edit(donors), 0..8)).prop_map(|(mut bytes, edits)| {
        for edit in edits {
            edit.apply(&mut bytes);
        }
        bytes
    })
}

/// A change of some bytes.
#[derive(Clone, Debug)]
enum Edit {
    /// One bit turns over.
    Flip(Index, u8),
    /// Bytes are put over others.
    Overwrite(Index, Vec<u8>),
    /// Bytes come between.
    Insert(Index, Vec<u8>),
    /// Bytes go missing.
    Remove(Index, usize),
    /// The rest goes missing.
    Cut(Index),
    /// Bytes are there once more, elsewhere.
    Repeat(Index, Index, usize),
    /// The rest is that of another seed.
    Graft(Index, Vec<u8>, Index),
    /// A written number becomes another.
    Number(Index, &'static str),
}

/// Numbers at the edges of what fits, and what is none.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "255",
    "4095",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e300",
    "007",
];

fn edit(donors: Vec<Vec<u8>>) -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        3 => (at(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        2 => (at(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Edit::Overwrite(at, bytes)),
        1 => (at(), vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        1 => (at(), "[\\x00-\\x7f]{1,20}").prop_map(|(at, text)| Edit::Insert(at, text.into_bytes())),
        2 => (at(), 1..40_usize).prop_map(|(at, length)| Edit::Remove(at, length)),
        1 => at().prop_map(Edit::Cut),
        1 => (at(), at(), 1..80_usize).prop_map(|(from, to, length)| Edit::Repeat(from, to, length)),
        1 => (at(), select(donors), at()).prop_map(|(at, donor, from)| Edit::Graft(at, donor, from)),
        3 => (at(), select(&NUMBERS[..])).prop_map(|(at, number)| Edit::Number(at, number)),
    ]
}

/// A place in the bytes. Images are mostly zeroes, and what matters is where they are not.
fn place(bytes: &[u8], at: Index) -> usize {
    let start = at.index(bytes.len() + 1);
    bytes[start..].iter().position(|byte| *byte != 0).map_or(start, |further| start + further)
}

impl Edit {
    fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Flip(at, bit) => {
                let at = place(bytes, at);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
            Self::Overwrite(at, with) => {
                let at = place(bytes, at);
                bytes.iter_mut().skip(at).zip(with).for_each(|(byte, with)| *byte = with);
            }
            Self::Insert(at, more) => {
                let at = place(bytes, at);
                bytes.splice(at..at, more);
            }
            Self::Remove(at, length) => {
                let at = place(bytes, at);
                bytes.drain(at..(at + length).min(bytes.len()));
            }
            Self::Cut(at) => {
                let at = place(bytes, at);
                bytes.truncate(at);
            }
            Self::Repeat(from, to, length) => {
                let (from, to) = (place(bytes, from), place(bytes, to));
                let again = bytes[from..(from + length).min(bytes.len())].to_vec();
                bytes.splice(to..to, again);
            }
            Self::Graft(at, donor, from) => {
                let at = place(bytes, at);
                bytes.truncate(at);
                bytes.extend_from_slice(&donor[place(&donor, from)..]);
            }
            Self::Number(at, number) => {
                let starts: Vec<usize> = (0..bytes.len())
                    .filter(|at| bytes[*at].is_ascii_digit() && (*at == 0 || !bytes[at - 1].is_ascii_digit()))
                    .collect();
                if !starts.is_empty() {
                    let start = starts[at.index(starts.len())];
                    let length = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                    bytes.splice(start..start + length, number.bytes());
                }
            }
        }
    }
}
