//! The figures of one volume.

use csi::v1::{NodeGetVolumeStatsResponse, volume_usage::Unit};
use jiff::Timestamp;
use linux::Space as FileSystem;

/// Bytes and inodes; what is not known is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) capacity: Option<u64>,
    pub(super) available: Option<u64>,
    pub(super) used: Option<u64>,
    pub(super) inodes: Option<u64>,
    pub(super) inodes_free: Option<u64>,
    pub(super) inodes_used: Option<u64>,
}

/// What was counted of a volume, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) at: Timestamp,
    pub(super) space: Space,
    /// Whether the driver tells the volume's condition.
    pub(super) has_condition: bool,
    /// What is wrong with it, by its driver.
    pub(super) abnormal: Option<String>,
    /// The size that `df` shows in its containers, where that is another: of a file system that the volume shares.
    pub(super) shown: Option<u64>,
}

/// Whether `df` shows something else than the volume. A file system keeps some space for itself, so it may show less.
pub(super) fn misleads(shown: u64, size: u64) -> bool {
    shown > size.saturating_add(size / 8)
}

impl Space {
    /// A file system that the volume has for itself.
    pub(super) fn of(space: &FileSystem) -> Space {
        // btrfs has no number of inodes.
        let counted = space.inodes > 0;
        Space {
            capacity: Some(space.size),
            available: Some(space.available),
            used: Some(space.size.saturating_sub(space.available)),
            inodes: counted.then_some(space.inodes),
            inodes_free: counted.then_some(space.inodes_free),
            inodes_used: counted.then_some(space.inodes.saturating_sub(space.inodes_free)),
        }
    }

    /// A directory with so many bytes in it, on a file system that it shares with others.
    pub(super) fn shared(space: &FileSystem, used: u64) -> Space {
        Space { used: Some(used), inodes_used: None, ..Space::of(space) }
    }

    /// A driver's answer. Figures below nothing are none.
    pub(super) fn told(answer: &NodeGetVolumeStatsResponse) -> Space {
        let mut space = Space::default();
        let figure = |value: i64| u64::try_from(value).ok();
        for usage in &answer.usage {
            let (total, available, used) = (figure(usage.total), figure(usage.available), figure(usage.used));
            match usage.unit() {
                Unit::Bytes => (space.capacity, space.available, space.used) = (total, available, used),
                Unit::Inodes => {
                    (space.inodes, space.inodes_free, space.inodes_used) = (total, available, used);
                }
                Unit::Unknown => {}
            }
        }
        space
    }
}

#[cfg(test)]
mod tests {
    use csi::v1::VolumeUsage;

    use super::*;

    #[test]
    fn df_may_show_the_drive() {
        for (shown, size, expected) in
            [(64, 64, false), (60, 64, false), (70, 64, false), (1024, 64, true), (1, 0, true)]
        {
            assert_eq!(misleads(shown, size), expected, "{shown} {size}");
        }
    }

    #[test]
    fn a_drivers_answer_is_taken_by_its_units() {
        let usage =
            |unit: Unit, total, available, used| VolumeUsage { total, available, used, unit: unit.into() };
        let answer = |usage| NodeGetVolumeStatsResponse { usage, volume_condition: None };
        for (told, expected) in [
            (vec![], Space::default()),
            (
                vec![usage(Unit::Inodes, 10, 7, 3), usage(Unit::Bytes, 100, 60, 40)],
                Space {
                    capacity: Some(100),
                    available: Some(60),
                    used: Some(40),
                    inodes: Some(10),
                    inodes_free: Some(7),
                    inodes_used: Some(3),
                },
            ),
            (
                vec![usage(Unit::Bytes, 100, -1, 0), usage(Unit::Unknown, 5, 5, 5)],
                Space { capacity: Some(100), used: Some(0), ..Space::default() },
            ),
        ] {
            assert_eq!(Space::told(&answer(told.clone())), expected, "{told:?}");
        }
    }
}
