//! Drives that DirectPV v4 formatted, or DirectCSI before it: XFS, with a directory in its root for each volume, whose
//! size is the limit of the directory's project. Nothing else on the drive tells of volumes, so directories are the
//! record of those that DirectPV made, until a change of ours writes one.

use std::ffi::OsStr;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::{
    DriveId, VolumeId,
    backend::Place,
    backend::QuotaKey,
    execute::Site,
    record::{Phase, VolumeRecord},
    state::Entry,
};

/// Labels of the file systems that DirectPV and DirectCSI make.
pub(crate) const LABELS: [&str; 2] = ["DIRECTPV", "DIRECTCSI"];

/// The file that DirectPV leaves on a drive (DirectCSI none) and never reads.
const META: &str = ".directpv/meta.info";

/// How DirectPV marks a directory that it began to delete.
const DELETED: &str = ".deleted";

/// The project that DirectPV gives to a volume: the first four bytes of its name's SHA-256, the lowest first.
fn project_of(name: &str) -> u32 {
    let digest = Sha256::digest(name.as_bytes());
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// Whether what DirectPV noted on a drive is about this one.
///
/// # Errors
/// In words, when it is about another.
pub(crate) fn check_meta(meta: &[u8], drive: &DriveId) -> Result<(), String> {
    let text = String::from_utf8_lossy(meta);
    match text.lines().find_map(|line| line.strip_prefix("FSUUID=")) {
        Some(noted) if !noted.trim().eq_ignore_ascii_case(drive.as_str()) => Err(format!(
            "it is about the drive {}, and the file system is {drive}; the drive was changed by hand",
            noted.trim()
        )),
        _ => Ok(()),
    }
}

/// The name of a volume, if a directory in the root could be one's. DirectPV's own begin with a dot or are leftovers
/// of deletions.
pub(crate) fn volume_name(directory: &OsStr) -> Option<&str> {
    let name = directory.to_str()?;
    let plain = format!("drive/{name}").parse::<VolumeId>().is_ok();
    (plain && !name.ends_with(DELETED)).then_some(name)
}

/// What the kernel knows of a directory in the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    /// Its project; 0 for none.
    project: u32,
    /// That project's limit.
    limit: Option<u64>,
}

/// The record that a directory stands for; none when no limit holds it.
fn record_of(name: &str, counted: Counted) -> Option<VolumeRecord> {
    let size = counted.limit.filter(|_| counted.project != 0)?;
    Some(VolumeRecord {
        phase: Phase::Ready,
        // DirectPV keeps that in the cluster only.
        created: Timestamp::UNIX_EPOCH,
        quota: Some(QuotaKey::Project(counted.project)),
        ..VolumeRecord::intended(name.to_owned(), name, size)
    })
}

/// Whether a mounted drive is what its superblock says.
pub(crate) fn verify(site: &Site, drive: &DriveId) -> linux::Result<()> {
    let file = site.layout.mount().join(META);
    match site.host.read(&file)? {
        Some(meta) => {
            check_meta(&meta, drive).map_err(|why| linux::Error::because("use", file.display(), why))
        }
        None => Ok(()),
    }
}

/// A volume that DirectPV made, by its directory; none if the directory is no volume. Only looks.
pub(crate) fn volume(site: &Site, directory: &OsStr) -> linux::Result<Option<Entry>> {
    let Some(name) = volume_name(directory) else { return Ok(None) };
    let (host, path) = (site.host.as_ref(), site.layout.volume(name));
    let place = Place { mount: site.layout.mount(), volume: &path };
    let Ok(quota) = site.backend.quota_key(host, place) else {
        // A file or a link.
        return Ok(None);
    };
    let usage = |quota| site.backend.usage(host, place, quota);
    let counted = match quota {
        Some(quota @ QuotaKey::Project(project)) => Counted { project, limit: usage(quota)?.limit },
        _ => Counted { project: 0, limit: None },
    };
    match record_of(name, counted) {
        Some(record) => Ok(Some(Entry::new(record))),
        None => {
            let project = project_of(name);
            tracing::error!(
                directory = %path.display(),
                limit = usage(QuotaKey::Project(project))?.limit,
                "no size is enforced on this directory, so it is no volume; if it should be one, run \
                 `xfs_quota -x -c 'project -s -p {directory} {project}' -c 'limit -p bsoft=SIZE bhard=SIZE {project}' \
                 {mount}` and restart",
                directory = path.display(),
                mount = site.layout.mount().display(),
            );
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projects_follow_from_names() {
        assert_eq!(project_of("pvc-1b94751e-f97a-4cd0-89b6-af2c7657a8e7"), 578_818_258);
        assert_eq!(project_of("test"), 2_177_926_815);
    }

    #[test]
    fn directpv_s_own_files_are_no_volumes() {
        for no in [".directpv", ".FSUUID.0a1b", ".orlop", "pvc-1.deleted", "a b", "", ".", "..", "lost+found"]
        {
            assert_eq!(volume_name(OsStr::new(no)), None, "{no}");
        }
        for yes in ["pvc-1", "pvc-1b94751e-f97a-4cd0-89b6-af2c7657a8e7", "data_1.x"] {
            assert_eq!(volume_name(OsStr::new(yes)), Some(yes));
        }
    }

    #[test]
    fn a_directory_with_a_limit_is_a_volume_of_that_size() {
        let record = record_of("pvc-1", Counted { project: 7, limit: Some(4096) }).expect("a volume");
        assert_eq!((record.size, record.quota), (4096, Some(QuotaKey::Project(7))));
        for none in [Counted { project: 0, limit: Some(4096) }, Counted { project: 7, limit: None }] {
            assert_eq!(record_of("pvc-1", none), None, "{none:?}");
        }
    }

    #[test]
    fn what_is_noted_on_a_drive_is_about_that_drive() {
        let id = DriveId("0a1b".to_owned());
        let meta = |id: &str| format!("APP_NAME=directpv\nAPP_VERSION=v1beta1\nFSUUID={id}\n");
        assert_eq!(check_meta(meta("0A1B").as_bytes(), &id), Ok(()));
        assert_eq!(check_meta(b"", &id), Ok(()), "never read by DirectPV, so not needed");
        let other = check_meta(meta("ffff").as_bytes(), &id).expect_err("another drive");
        assert!(other.contains("ffff") && other.contains("0a1b"), "{other}");
    }
}
