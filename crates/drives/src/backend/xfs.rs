//! XFS: a volume is a directory, held to its size by a project quota.

use std::{
    ffi::OsStr,
    path::Path,
    time::{Duration, Instant},
};

use linux::{Attributes, FilesystemMount, Host, ProjectId, Result};

use super::{Backend, Copies, New, Place, QuotaKey, Usage, foreign};
use crate::{
    BackendKind, DriveId,
    initialise::{self, LABEL},
};

pub(crate) struct Xfs;

impl Backend for Xfs {
    fn kind(&self) -> BackendKind {
        BackendKind::Xfs
    }

    fn format(&self, host: &dyn Host, id: &DriveId, device: &Path, overwrite: bool) -> Result<()> {
        let uuid = format!("uuid={id}");
        let mut arguments: Vec<String> =
            ["-q", "-L", LABEL, "-m", &uuid, "-i", "maxpct=50"].map(str::to_owned).into();
        arguments.extend(overwrite.then(|| "-f".to_owned()));
        arguments.push(device.to_string_lossy().into_owned());
        let arguments: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        host.run("mkfs.xfs", &arguments, initialise::DEADLINE).map(drop)
    }

    fn mounting<'a>(&self, device: &'a str) -> FilesystemMount<'a> {
        FilesystemMount {
            filesystem: "xfs",
            source: device,
            options: vec![("prjquota", None)],
            attributes: Attributes { no_atime: true, ..Attributes::default() },
        }
    }

    fn prepare(&self, host: &dyn Host, mount: &Path) -> Result<()> {
        // A kernel without quotas mounts all the same, silently: asking tells.
        host.project_usage(mount, ProjectId(1)).map(drop)
    }

    /// The log, what the kernel holds back and the allocation groups' own trees: measured, 92 MiB of 512 MiB, 124 MiB of
    /// 4 GiB and three quarters of a hundredth of large drives. As much again is left for inodes, which count against
    /// nobody.
    fn usable(&self, size: u64) -> u64 {
        size.saturating_sub((112 << 20) + size / 64)
    }

    fn choose_key(&self, used: &[QuotaKey]) -> Option<QuotaKey> {
        let mut taken: Vec<u32> = used
            .iter()
            .filter_map(|key| match key {
                QuotaKey::Project(project) => Some(*project),
                QuotaKey::Subvolume(_) | QuotaKey::Device => None,
            })
            .collect();
        taken.sort_unstable();
        // 0 means "no project".
        let mut free = 1;
        for project in taken {
            if project == free {
                free += 1;
            }
        }
        Some(QuotaKey::Project(free))
    }

    fn create(&self, host: &dyn Host, place: Place<'_>, new: &New) -> Result<()> {
        host.make_directory_ordered(place.volume, 0o755)?;
        match new.quota {
            Some(quota) => host.set_project(place.volume, project(quota)?),
            None => Err(linux::Error::because(
                "make volume",
                place.volume.display(),
                "its record names no project",
            )),
        }
    }

    fn quota_key(&self, host: &dyn Host, place: Place<'_>) -> Result<Option<QuotaKey>> {
        host.project(place.volume).map(|id| (id.0 != 0).then_some(QuotaKey::Project(id.0)))
    }

    fn limit(&self, host: &dyn Host, place: Place<'_>, quota: QuotaKey, bytes: u64) -> Result<()> {
        host.limit_project(place.mount, project(quota)?, Some(bytes))
    }

    fn usage(&self, host: &dyn Host, place: Place<'_>, quota: QuotaKey) -> Result<Usage> {
        let usage = host.project_usage(place.mount, project(quota)?)?;
        Ok(Usage { used: usage.used, limit: usage.limit, inodes: Some(usage.inodes) })
    }

    fn copies(&self) -> Copies {
        Copies::Files
    }

    /// XFS freezes as a whole only, and would hold up all other volumes of the drive: writers go on.
    fn freeze(&self, _: &dyn Host, _: &Path, _: &Path) -> Result<()> {
        Ok(())
    }

    fn thaw(&self, _: &dyn Host, _: &Path, _: &Path) -> Result<()> {
        Ok(())
    }

    /// Project quotas count what is shared for each volume in full, so sharing extents takes nothing from anyone.
    fn fill(&self, host: &dyn Host, source: &Path, _: &Path, volume: &Path) -> Result<()> {
        host.clone_tree(source, volume)
    }

    fn restore(&self, host: &dyn Host, mount: &Path, snapshot: &Path, volume: &Path) -> Result<()> {
        match snapshot.starts_with(mount) {
            true => host.clone_tree(snapshot, volume),
            false => host.copy_tree(snapshot, volume),
        }
    }

    fn destroy(&self, host: &dyn Host, _: &Path, volume: &Path) -> Result<()> {
        host.remove_tree(volume).map(drop)
    }

    fn reclaim(
        &self,
        host: &dyn Host,
        mount: &Path,
        quota: QuotaKey,
        _: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let project = project(quota)?;
        // The kernel gives files back in the background; until then they would count for the next volume with this key.
        let until = Instant::now() + CLEANING;
        while host.project_usage(mount, project)?.inodes > 0 {
            if Instant::now() > until {
                tracing::warn!(project = project.0, mount = %mount.display(), "files of a deleted volume are left");
                break;
            }
            std::thread::sleep(PAUSE);
        }
        host.limit_project(mount, project, None)
    }
}

/// How long the kernel may take to give the files of a deleted volume back; nothing tells when it has.
const CLEANING: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

fn project(quota: QuotaKey) -> Result<ProjectId> {
    match quota {
        QuotaKey::Project(id) => Ok(ProjectId(id)),
        QuotaKey::Subvolume(_) | QuotaKey::Device => Err(foreign(quota)),
    }
}
