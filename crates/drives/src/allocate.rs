//! Which drive a volume goes to, and how large it is: pure.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use values::{Bytes, LabelSelector};

use crate::{BackendKind, CreateError, DriveId, Excluded, FILESYSTEM, OVERCOMMIT};

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
    /// Its device failed when something was last changed on it: it is tried when no other drive fits.
    pub(crate) failing: bool,
    pub(crate) labels: BTreeMap<String, String>,
    /// It holds a volume of the group that the new one belongs to.
    pub(crate) taken: bool,
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
            "at least {} and at most {} can't both be; raise the limit",
            Bytes(required),
            Bytes(limit)
        ));
    }
    let size = whole(required)
        .ok_or_else(|| format!("{} is more than any file system holds; ask for less", Bytes(required)))?
        .max(SMALLEST);
    match limit {
        Some(limit) if size > limit => Err(format!(
            "at most {} were asked for, but volumes have at least {} and multiples of {}; raise the limit to {}",
            Bytes(limit),
            Bytes(SMALLEST),
            Bytes(GRAIN),
            Bytes(size)
        )),
        _ => Ok(size),
    }
}

/// Rounded up to whole blocks; none if no file system could hold that much.
pub(crate) fn whole(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(GRAIN).filter(|size| *size <= i64::MAX as u64)
}

/// The label of a drive that says how fast or how near it is, such as `hot`.
pub const ACCESS_TIER: &str = "orlop.dev/access-tier";
/// The access tier of a drive that has no such label.
const DEFAULT_TIER: &str = "default";

/// Which drives are good enough for a volume, by their labels. Without any condition, all are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriveSelector {
    /// What the labels must be.
    pub labels: LabelSelector,
    /// What [`ACCESS_TIER`] must be, in whatever case; a drive without that label is of the tier `default`.
    pub tier: Option<String>,
}

impl DriveSelector {
    /// What speaks against a drive with these labels.
    pub(crate) fn objection(&self, labels: &BTreeMap<String, String>) -> Option<String> {
        let tier = labels.get(ACCESS_TIER).map_or(DEFAULT_TIER, String::as_str);
        if let Some(asked) = self.tier.as_deref().filter(|asked| !asked.eq_ignore_ascii_case(tier)) {
            return Some(format!("its access tier is {tier}, not {asked}"));
        }
        let label = |key: &str| labels.get(key).map(String::as_str);
        let unmet = self.labels.requirements().iter().find(|one| !one.matches(label(one.key())))?;
        Some(match label(unmet.key()) {
            Some(value) => format!("its label {} is {value}", unmet.key()),
            None => format!("it has no label {}", unmet.key()),
        })
    }
}

/// Why no volume with such parameters can be on drives of a backend.
pub(crate) fn unable(
    backend: Option<BackendKind>,
    parameters: &BTreeMap<String, String>,
) -> Option<&'static str> {
    if parameters.contains_key(FILESYSTEM) && !backend.is_some_and(BackendKind::has_filesystems) {
        return Some("its volumes have no file systems of their own");
    }
    (parameters.contains_key(OVERCOMMIT) && backend != Some(BackendKind::LvmThin))
        .then_some("it can't promise more than it has")
}

/// A volume, as far as allocation cares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    pub(crate) size: u64,
    pub(crate) backend: Option<BackendKind>,
    pub(crate) drives: &'a DriveSelector,
    pub(crate) spread: Option<&'a str>,
}

impl Wanted<'_> {
    /// Why a drive is not for this volume, or else the drive.
    fn suits<'a>(&self, candidate: &'a Candidate) -> Result<&'a DriveId, String> {
        if let Some(reason) = &candidate.failed {
            return Err(reason.clone());
        }
        let drive = candidate.drive.as_ref().ok_or("it is not identified")?;
        if self.backend.is_some() && candidate.backend != self.backend {
            let name = candidate.backend.map_or("unknown", BackendKind::name);
            return Err(format!("its backend is {name}"));
        }
        if let Some(objection) = self.drives.objection(&candidate.labels) {
            return Err(objection);
        }
        if let Some(group) = self.spread.filter(|_| candidate.taken) {
            return Err(format!("it holds a volume of the group {group}"));
        }
        match candidate.free >= self.size {
            true => Ok(drive),
            false => Err(format!("{} free", Bytes(candidate.free))),
        }
    }

    /// The order among drives that are equally empty: another one for every name, and the same at every try.
    fn turn(&self, drive: &DriveId) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.name, drive).hash(&mut hasher);
        hasher.finish()
    }
}

/// The drive with the most free space among those that suit and fit, and work. Among equals each has its turn.
///
/// # Errors
/// [`CreateError::NoSpace`] with every drive and why it was passed over.
pub(crate) fn choose(candidates: &[Candidate], wanted: &Wanted<'_>) -> Result<DriveId, CreateError> {
    let mut excluded = Vec::new();
    let mut best: Option<(bool, u64, u64, &DriveId)> = None;
    for candidate in candidates {
        match wanted.suits(candidate) {
            Ok(drive) => {
                let this = (!candidate.failing, candidate.free, wanted.turn(drive), drive);
                best = best.max(Some(this));
            }
            Err(why) => excluded.push(Excluded { drive: candidate.label.clone(), why }),
        }
    }
    if let Some((.., drive)) = best {
        return Ok(drive.clone());
    }
    let serving = candidates.iter().filter(|candidate| candidate.failed.is_none());
    let emptiest = serving.max_by_key(|candidate| candidate.free);
    Err(CreateError::NoSpace {
        asked: wanted.size,
        largest_free: emptiest.map_or(0, |drive| drive.free),
        largest_drive: emptiest.map(|drive| drive.label.clone()),
        drives: excluded,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

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
            (0, Some(GRAIN), Err("at least 1Mi")),
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
            failing: false,
            labels: BTreeMap::new(),
            taken: false,
        }
    }

    fn labelled(name: &str, free: u64, labels: &[(&str, &str)]) -> Candidate {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Candidate { labels, ..drive(name, free) }
    }

    fn broken(name: &str) -> Candidate {
        Candidate { failed: Some("it is gone".to_owned()), ..drive(name, 900) }
    }

    static ANY: LazyLock<DriveSelector> = LazyLock::new(DriveSelector::default);

    fn wanted(size: u64) -> Wanted<'static> {
        Wanted { name: "pvc-1", size, backend: None, drives: &ANY, spread: None }
    }

    #[test]
    fn the_emptiest_drive_that_fits_is_taken() {
        let drives = [drive("a", 10), drive("b", 30), drive("c", 29), broken("d")];
        assert_eq!(choose(&drives, &wanted(20)).expect("fits").as_str(), "b");
        let btrfs = Wanted { backend: Some(BackendKind::Btrfs), ..wanted(30) };
        assert_eq!(choose(&drives, &btrfs).expect("fits").as_str(), "b");
    }

    #[test]
    fn equally_empty_drives_have_their_turns() {
        let drives = ["a", "b", "c", "d"].map(|name| drive(name, 30));
        let mut turns = BTreeMap::<String, usize>::new();
        for number in 0..400 {
            let name = format!("pvc-{number}");
            let wanted = Wanted { name: &name, ..wanted(20) };
            let chosen = choose(&drives, &wanted).expect("fits");
            assert_eq!(chosen, choose(&drives, &wanted).expect("fits"), "the same at every try");
            *turns.entry(chosen.to_string()).or_default() += 1;
        }
        assert!(turns.len() == 4 && turns.values().all(|times| (60..140).contains(times)), "{turns:?}");
    }

    #[test]
    fn a_refusal_names_size_space_and_every_drive() {
        let message = choose(&[drive("a", 10 << 20), broken("d")], &wanted(20 << 20))
            .expect_err("too large")
            .to_string();
        for part in ["for 20Mi", "is 10Mi on a", "a: 10Mi free", "d: it is gone", "add a drive"] {
            assert!(message.contains(part), "{message} lacks {part}");
        }
        let xfs = Wanted { backend: Some(BackendKind::Xfs), ..wanted(20) };
        let message = choose(&[drive("a", 100)], &xfs).expect_err("no such").to_string();
        assert!(message.contains("a: its backend is btrfs"), "{message}");
        assert!(choose(&[], &wanted(20)).expect_err("none").to_string().contains("there is no drive"));
    }

    #[test]
    fn labels_tiers_and_groups_exclude_drives() {
        let drives = [
            labelled("nvme", 30, &[("medium", "nvme"), (ACCESS_TIER, "hot")]),
            labelled("disk", 90, &[("medium", "disk")]),
            Candidate { taken: true, ..labelled("full", 95, &[("medium", "nvme")]) },
        ];
        let selector = |labels: &str, tier: Option<&str>| DriveSelector {
            labels: LabelSelector::parse(labels).expect("a selector"),
            tier: tier.map(str::to_owned),
        };
        let cases = [
            ("", None, None, Ok("full")),
            ("", None, Some("g"), Ok("disk")),
            ("medium=nvme", None, Some("g"), Ok("nvme")),
            ("medium in (disk,tape)", None, None, Ok("disk")),
            ("", Some("Hot"), None, Ok("nvme")),
            ("medium!=nvme", Some("default"), None, Ok("disk")),
            ("medium=tape", None, None, Err("disk: its label medium is disk")),
            ("rack", None, None, Err("nvme: it has no label rack")),
            ("", Some("cold"), None, Err("disk: its access tier is default, not cold")),
            (
                "medium!=disk,rack!=1",
                Some("default"),
                Some("g"),
                Err("full: it holds a volume of the group g"),
            ),
        ];
        for (labels, tier, spread, expected) in cases {
            let selector = selector(labels, tier);
            let chosen = choose(&drives, &Wanted { drives: &selector, spread, ..wanted(20) });
            match (chosen, expected) {
                (Ok(drive), Ok(expected)) => assert_eq!(drive.as_str(), expected, "{labels} {tier:?}"),
                (Err(refused), Err(words)) => assert!(refused.to_string().contains(words), "{refused}"),
                (got, expected) => panic!("{labels} {tier:?}: {got:?}, expected {expected:?}"),
            }
        }
    }
}
