//! What others wrote, mangled: nothing makes the parsers panic, and what they say of it can be trusted.

use proptest::prelude::*;

use crate::{MountTable, probe_superblock, superblock};

const MOUNTINFO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/mountinfo");

/// Lines that a good table has.
fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect()
}

proptest! {
    // Images are large.
    #![proptest_config(corpus::cases(100))]

    #[test]
    fn superblocks(first in corpus::near(superblock::samples()), last in corpus::near(superblock::samples())) {
        for found in [probe_superblock(&first, &last), probe_superblock(&first, &[])].into_iter().flatten() {
            // It becomes the name of a directory.
            let id = found.uuid.unwrap_or_default();
            let plain = id.chars().all(|letter| letter.is_ascii_hexdigit() || letter == '-');
            prop_assert!(plain || !["xfs", "btrfs"].contains(&found.kind), "{id:?}");
            prop_assert!(!found.label.unwrap_or_default().chars().any(char::is_control));
        }
    }

}

proptest! {
    #![proptest_config(corpus::cases(1_000))]

    #[test]
    fn mountinfo(odd in corpus::near(corpus::files(MOUNTINFO))) {
        let table = MountTable::parse(&odd);
        prop_assert!(table.iter().count() <= lines(&odd).len());
        for mount in table.iter() {
            let top = table.at(&mount.target).expect("a mount is at its target");
            prop_assert!(table.below(&mount.target).contains(&top));
        }
    }

    #[test]
    fn an_odd_line_hides_no_other(odd in corpus::near(corpus::files(MOUNTINFO)), at in any::<prop::sample::Index>()) {
        let good = corpus::files(MOUNTINFO).concat();
        let before: Vec<_> = MountTable::parse(&good).iter().cloned().collect();
        let mut lines = lines(&good);
        let odd: Vec<u8> = odd.into_iter().filter(|byte| *byte != b'\n').collect();
        lines.insert(at.index(lines.len()), &odd);
        let after: Vec<_> = MountTable::parse(&lines.join(&b'\n')).iter().cloned().collect();
        prop_assert!(before.iter().all(|mount| after.contains(mount)));
    }
}
