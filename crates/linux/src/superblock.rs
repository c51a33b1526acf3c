//! What is on a device: signatures of file systems, partition tables and other owners.

use std::fmt;

/// A recognised owner of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// `xfs`, `ext4`, `btrfs`, `LVM2`, `MD RAID`, `LUKS`, `GPT`, `MBR`, `swap`, `ZFS`, …
    pub kind: &'static str,
    /// UUID of the file system, where it has one.
    pub uuid: Option<String>,
    /// Label of the file system, where it has one.
    pub label: Option<String>,
}

impl fmt::Display for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.kind)?;
        if let Some(label) = &self.label {
            write!(formatter, " \"{label}\"")?;
        }
        if let Some(uuid) = &self.uuid {
            write!(formatter, " {uuid}")?;
        }
        Ok(())
    }
}

/// Recognises what is on a device from its first and last mebibyte (or all of a smaller one). Owners of whole devices
/// come before file systems, and file systems before partition tables.
pub fn probe_superblock(first: &[u8], last: &[u8]) -> Option<Signature> {
    let first = Bytes(first);
    let last = Bytes(last);
    PROBES.iter().find_map(|probe| probe(first, last))
}

/// Bytes that a file system (ext4, XFS or btrfs) takes of its device, from the device's first mebibyte.
pub fn filesystem_size(first: &[u8]) -> Option<u64> {
    let bytes = Bytes(first);
    match probe_superblock(first, &[])?.kind {
        "xfs" => {
            let block = u32::from_be_bytes(bytes.at(4, 4)?.try_into().ok()?);
            u64::from_be_bytes(bytes.at(8, 8)?.try_into().ok()?).checked_mul(block.into())
        }
        "btrfs" => Some(u64::from_le_bytes(bytes.at((64 << 10) + 0x70, 8)?.try_into().ok()?)),
        "ext4" => {
            let blocks = u64::from(bytes.u32(1024 + 0x150)?) << 32 | u64::from(bytes.u32(1024 + 4)?);
            blocks.checked_mul(1024_u64.checked_shl(bytes.u32(1024 + 24)?)?)
        }
        _ => None,
    }
}

/// Text of a UUID.
pub(crate) fn uuid(bytes: &[u8; 16]) -> String {
    let number = u128::from_be_bytes(*bytes);
    let digits = format!("{number:032x}");
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

type Probe = fn(Bytes<'_>, Bytes<'_>) -> Option<Signature>;

const PROBES: &[Probe] =
    &[luks, lvm, md, zfs, bcache, ceph, xfs, btrfs, ext, f2fs, swap, iso, dos_file_systems, gpt, mbr];

fn found(kind: &'static str) -> Option<Signature> {
    Some(Signature { kind, uuid: None, label: None })
}

/// Bytes that may be fewer than hoped for.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn at(self, offset: usize, length: usize) -> Option<&'a [u8]> {
        self.0.get(offset..offset.checked_add(length)?)
    }

    fn has(self, offset: usize, magic: &[u8]) -> bool {
        self.at(offset, magic.len()) == Some(magic)
    }

    fn u32(self, offset: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.at(offset, 4)?.try_into().ok()?))
    }

    fn uuid(self, offset: usize) -> Option<String> {
        self.at(offset, 16)?.try_into().ok().map(uuid)
    }

    /// Text up to the first zero byte, with what can't be printed replaced.
    fn text(self, offset: usize, length: usize) -> Option<String> {
        let bytes = self.at(offset, length)?.split(|byte| *byte == 0).next()?;
        let text: String = String::from_utf8_lossy(bytes)
            .trim()
            .chars()
            .map(|letter| if letter.is_control() { '?' } else { letter })
            .collect();
        Some(text).filter(|text| !text.is_empty())
    }
}

fn luks(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    first.has(0, b"LUKS\xba\xbe").then(|| Signature { kind: "LUKS", uuid: first.text(168, 40), label: None })
}

fn lvm(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    (0..4)
        .map(|sector| sector * 512)
        .find(|at| first.has(*at, b"LABELONE") && first.has(at + 24, b"LVM2 001"))
        .and_then(|_| found("LVM2"))
}

fn md(first: Bytes<'_>, last: Bytes<'_>) -> Option<Signature> {
    const MAGIC: u32 = 0xa92b_4efc;
    // Version 1.1 at the start, 1.2 at 4 KiB; 1.0 and 0.90 in the last 128 KiB, aligned to the device's own size.
    let at_start = [0, 4096].into_iter().any(|at| first.u32(at) == Some(MAGIC));
    let tail = last.0.len().saturating_sub(128 << 10);
    let at_end = (tail..last.0.len()).rev().filter(|at| (last.0.len() - at).is_multiple_of(512));
    (at_start || at_end.into_iter().any(|at| last.u32(at) == Some(MAGIC))).then(|| found("MD RAID"))?
}

fn zfs(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    const MAGIC: u64 = 0x00ba_b10c;
    // The ring of uberblocks of the first label.
    (128 << 10..256 << 10).step_by(1024).find(|at| {
        let number = first.at(*at, 8).and_then(|bytes| bytes.try_into().ok());
        number.is_some_and(|bytes| u64::from_le_bytes(bytes) == MAGIC || u64::from_be_bytes(bytes) == MAGIC)
    })?;
    found("ZFS")
}

fn bcache(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    let caching = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";
    let whole = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
    if first.has(4096 + 24, whole) {
        return found("bcachefs");
    }
    first.has(4096 + 24, caching).then(|| found("bcache"))?
}

fn ceph(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    first.has(0, b"bluestore block device").then(|| found("Ceph BlueStore"))?
}

fn xfs(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    first.has(0, b"XFSB").then(|| Signature { kind: "xfs", uuid: first.uuid(32), label: first.text(108, 12) })
}

fn btrfs(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    const AT: usize = 64 << 10;
    first.has(AT + 0x40, b"_BHRfS_M").then(|| Signature {
        kind: "btrfs",
        uuid: first.uuid(AT + 0x20),
        label: first.text(AT + 0x12b, 256),
    })
}

fn ext(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    const AT: usize = 1024;
    if !first.has(AT + 0x38, &[0x53, 0xef]) {
        return None;
    }
    let (compatible, incompatible, read_only) =
        (first.u32(AT + 0x5c)?, first.u32(AT + 0x60)?, first.u32(AT + 0x64)?);
    let kind = if incompatible & 0x8 != 0 {
        "ext journal"
    } else if incompatible & !0x16 != 0 || read_only & !0x7 != 0 {
        "ext4"
    } else if compatible & 0x4 != 0 {
        "ext3"
    } else {
        "ext2"
    };
    Some(Signature { kind, uuid: first.uuid(AT + 0x68), label: first.text(AT + 0x78, 16) })
}

fn f2fs(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    (first.u32(1024) == Some(0xf2f5_2010)).then(|| found("f2fs"))?
}

fn swap(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    // At the end of the first page, whatever size pages have on the machine that made it.
    [4, 8, 16, 32, 64]
        .into_iter()
        .map(|kib| (kib << 10) - 10)
        .any(|at| first.has(at, b"SWAPSPACE2") || first.has(at, b"SWAP-SPACE"))
        .then(|| Signature { kind: "swap", uuid: first.uuid(0x40c), label: first.text(0x41c, 16) })
}

fn iso(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    first.has(0x8001, b"CD001").then(|| Signature {
        kind: "ISO 9660",
        uuid: None,
        label: first.text(0x8028, 32),
    })
}

fn dos_file_systems(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    let label = |at| first.text(at, 11).filter(|label| label != "NO NAME");
    if first.has(3, b"NTFS    ") {
        found("NTFS")
    } else if first.has(3, b"EXFAT   ") {
        found("exFAT")
    } else if first.has(82, b"FAT32   ") {
        Some(Signature { kind: "FAT", uuid: None, label: label(71) })
    } else if first.has(54, b"FAT12   ") || first.has(54, b"FAT16   ") {
        Some(Signature { kind: "FAT", uuid: None, label: label(43) })
    } else {
        None
    }
}

fn gpt(first: Bytes<'_>, last: Bytes<'_>) -> Option<Signature> {
    let backup = |sector| last.0.len().checked_sub(sector).is_some_and(|at| last.has(at, b"EFI PART"));
    let found_one = [512, 4096].into_iter().any(|sector| first.has(sector, b"EFI PART") || backup(sector));
    found_one.then(|| found("GPT partition table"))?
}

fn mbr(first: Bytes<'_>, _: Bytes<'_>) -> Option<Signature> {
    if !first.has(510, &[0x55, 0xaa]) {
        return None;
    }
    let entries = (0..4).filter_map(|entry| first.at(446 + entry * 16, 16));
    let (mut used, mut sane) = (0, true);
    for entry in entries {
        sane &= matches!(entry[0], 0 | 0x80);
        used += usize::from(entry[4] != 0);
    }
    (sane && used > 0).then(|| found("MBR partition table"))?
}

/// The start of a device of each kind, for tests.
#[cfg(test)]
pub(crate) fn samples() -> Vec<Vec<u8>> {
    // As far as anything is looked for.
    const FAR: usize = 133 << 10;
    tests::owners().into_iter().map(|(_, _, image)| image[..FAR].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut image = vec![0; 1 << 20];
        for (at, bytes) in parts {
            image[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        image
    }

    /// What is recognised, its identity, and an image of it.
    pub(super) fn owners() -> Vec<(&'static str, Option<&'static str>, Vec<u8>)> {
        let id: [u8; 16] = std::array::from_fn(|byte| byte as u8);
        let text = "00010203-0405-0607-0809-0a0b0c0d0e0f";
        let ext = |compatible: u8, incompatible: u8| {
            image(&[(0x438, &[0x53, 0xef]), (0x45c, &[compatible]), (0x460, &[incompatible]), (0x468, &id)])
        };
        vec![
            ("xfs", Some(text), image(&[(0, b"XFSB"), (32, &id), (108, b"DIRECTPV")])),
            ("btrfs", Some(text), image(&[(0x10040, b"_BHRfS_M"), (0x10020, &id)])),
            ("ext2", Some(text), ext(0, 2)),
            ("ext3", Some(text), ext(4, 2)),
            ("ext4", Some(text), ext(4, 0x42)),
            ("LVM2", None, image(&[(512, b"LABELONE"), (536, b"LVM2 001")])),
            ("MD RAID", None, image(&[(4096, &0xa92b_4efc_u32.to_le_bytes())])),
            ("MD RAID", None, image(&[((1 << 20) - 8192, &0xa92b_4efc_u32.to_le_bytes())])),
            ("LUKS", Some("abc"), image(&[(0, b"LUKS\xba\xbe"), (168, b"abc")])),
            ("GPT partition table", None, image(&[(512, b"EFI PART"), (510, &[0x55, 0xaa])])),
            ("GPT partition table", None, image(&[((1 << 20) - 512, b"EFI PART")])),
            ("MBR partition table", None, image(&[(450, &[0x83]), (510, &[0x55, 0xaa])])),
            ("FAT", None, image(&[(82, b"FAT32   "), (510, &[0x55, 0xaa])])),
            ("swap", Some(text), image(&[(4086, b"SWAPSPACE2"), (0x40c, &id)])),
            ("ZFS", None, image(&[(132 << 10, &0x00ba_b10c_u64.to_le_bytes())])),
        ]
    }

    #[test]
    fn each_owner_is_recognised() {
        for (kind, uuid, image) in owners() {
            let signature =
                probe_superblock(&image, &image).unwrap_or_else(|| panic!("{kind} was not recognised"));
            assert_eq!((signature.kind, signature.uuid.as_deref()), (kind, uuid));
        }
    }

    #[test]
    fn nothing_is_seen_in_zeroes_or_in_no_bytes() {
        assert_eq!(probe_superblock(&image(&[]), &image(&[])), None);
        assert_eq!(probe_superblock(&[], &[]), None);
    }

    #[test]
    fn the_size_of_a_file_system_is_read() {
        let size = 300_u64 << 20;
        let xfs = image(&[(0, b"XFSB"), (4, &4096_u32.to_be_bytes()), (8, &(size / 4096).to_be_bytes())]);
        let btrfs = image(&[(0x10040, b"_BHRfS_M"), (0x10070, &size.to_le_bytes())]);
        let blocks = ((size / 1024) as u32).to_le_bytes();
        let ext4 = image(&[(0x438, &[0x53, 0xef]), (0x45c, &[4]), (0x460, &[0x42]), (0x404, &blocks)]);
        for image in [xfs, btrfs, ext4] {
            assert_eq!(filesystem_size(&image), Some(size));
        }
        assert_eq!(filesystem_size(&image(&[])), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(start in 0_usize..70_000, bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut image = vec![0; start];
            image.extend(&bytes);
            probe_superblock(&image, &bytes);
            filesystem_size(&image);
            probe_superblock(&bytes, &image);
        }
    }
}
