//! Which drive a volume goes to, and how large it is: pure.

use crate::{BackendKind, CreateError, DriveId, Excluded};

/// File systems hand out space in blocks of this size.
pub(crate) const GRAIN: u64 = 4096;

/// Smaller volumes could not hold their own directory tree.
pub(crate) const SMALLEST: u64 = 1 << 20;

/// A drive, as far as allocation cares.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) label: String,
    pub(crate) drive: Option<DriveId>,
    pub(crate) backend: Option<BackendKind>,
    pub(crate) free: u64,
    /// Why it can't serve.
    pub(crate) failed: Option<String>,
}

/// The size for what was asked: at least `required`, rounded up to whole blocks, and never more than `limit`.
///
/// # Errors
/// In words, when no such size exists.
pub(crate) fn size_of(required: u64, limit: Option<u64>) -> Result<u64, String> {
    if let Some(limit) = limit
        && required > limit
    {
        return Err(format!(
            "at least {required} bytes and at most {limit} bytes can't both be; raise the limit"
        ));
    }
    let size = whole(required)
        .ok_or_else(|| format!("{required} bytes is more than any file system holds; ask for less"))?
        .max(SMALLEST);
    match limit {
        Some(limit) if size > limit => Err(format!(
            "at most {limit} bytes were asked for, but volumes have at least {SMALLEST} bytes and multiples of {GRAIN}; \
             raise the limit to {size}"
        )),
        _ => Ok(size),
    }
}

/// Rounded up to whole blocks; none if no file system could hold that much.
pub(crate) fn whole(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(GRAIN).filter(|size| *size <= i64::MAX as u64)
}

/// The drive with the most free space that fits; among equals the first by identity, so that the choice can be
/// foretold.
///
/// # Errors
/// [`CreateError::NoSpace`] with every drive and why it was passed over.
pub(crate) fn choose(
    candidates: &[Candidate],
    size: u64,
    backend: Option<BackendKind>,
) -> Result<DriveId, CreateError> {
    let mut excluded = Vec::new();
    let mut best: Option<(u64, &DriveId)> = None;
    let mut largest_free = 0;
    for candidate in candidates {
        let why = match (&candidate.drive, &candidate.failed) {
            (_, Some(reason)) => reason.clone(),
            (None, None) => "it is not identified".to_owned(),
            (Some(_), None) if backend.is_some() && candidate.backend != backend => {
                format!("its backend is {}", candidate.backend.map_or("unknown", BackendKind::name))
            }
            (Some(drive), None) => {
                largest_free = largest_free.max(candidate.free);
                if candidate.free < size {
                    format!("{} bytes free", candidate.free)
                } else {
                    if best.is_none_or(|(free, first)| (candidate.free, first) > (free, drive)) {
                        best = Some((candidate.free, drive));
                    }
                    continue;
                }
            }
        };
        excluded.push(Excluded { drive: candidate.label.clone(), why });
    }
    match best {
        Some((_, drive)) => Ok(drive.clone()),
        None => Err(CreateError::NoSpace { asked: size, largest_free, drives: excluded }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_within_the_limit() {
        let cases = [
            (0, None, Ok(SMALLEST)),
            (1 << 30, None, Ok(1 << 30)),
            ((1 << 30) + 1, None, Ok((1 << 30) + GRAIN)),
            (1 << 30, Some(1 << 30), Ok(1 << 30)),
            ((1 << 30) + 1, Some((1 << 30) + 1), Err("raise the limit")),
            (1 << 30, Some(1 << 29), Err("can't both be")),
            (0, Some(GRAIN), Err("at least 1048576 bytes")),
            (u64::MAX, None, Err("more than any file system")),
        ];
        for (required, limit, expected) in cases {
            match (size_of(required, limit), expected) {
                (Ok(size), Ok(expected)) => assert_eq!(size, expected, "{required} up to {limit:?}"),
                (Err(message), Err(words)) => assert!(message.contains(words), "{message}"),
                (got, expected) => panic!("{required} up to {limit:?}: {got:?}, expected {expected:?}"),
            }
        }
    }

    fn drive(name: &str, free: u64) -> Candidate {
        Candidate {
            label: name.to_owned(),
            drive: Some(DriveId(name.to_owned())),
            backend: Some(BackendKind::Btrfs),
            free,
            failed: None,
        }
    }

    #[test]
    fn the_emptiest_drive_that_fits_is_taken() {
        let mut broken = drive("d", 900);
        broken.failed = Some("it is gone".to_owned());
        let drives = [drive("a", 10), drive("b", 30), drive("c", 30), broken];
        assert_eq!(choose(&drives, 20, None).expect("fits").as_str(), "b");
        assert_eq!(choose(&drives, 30, Some(BackendKind::Btrfs)).expect("fits").as_str(), "b");
    }

    #[test]
    fn a_refusal_names_size_space_and_every_drive() {
        let mut broken = drive("d", 900);
        broken.failed = Some("it is gone".to_owned());
        let message = choose(&[drive("a", 10), broken], 20, None).expect_err("too large").to_string();
        for part in ["20 bytes", "is 10 bytes", "a: 10 bytes free", "d: it is gone", "add a drive"] {
            assert!(message.contains(part), "{message} lacks {part}");
        }
        let message =
            choose(&[drive("a", 100)], 20, Some(BackendKind::Xfs)).expect_err("no such").to_string();
        assert!(message.contains("a: its backend is btrfs"), "{message}");
        assert!(choose(&[], 20, None).expect_err("none").to_string().contains("there is no drive"));
    }
}
