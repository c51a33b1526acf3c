//! XFS: a volume is a directory, held to its size by a project quota.

use std::path::Path;

use linux::{Attributes, FilesystemMount, Host, ProjectId, Result};

use super::{Backend, QuotaKey, Usage, foreign};
use crate::{BackendKind, DriveId, initialise::LABEL};

pub(crate) struct Xfs;

impl Backend for Xfs {
    fn kind(&self) -> BackendKind {
        BackendKind::Xfs
    }

    fn format(&self, id: &DriveId, overwrite: bool) -> (&'static str, Vec<String>) {
        let uuid = format!("uuid={id}");
        let mut arguments: Vec<String> =
            ["-q", "-L", LABEL, "-m", &uuid, "-i", "maxpct=50"].map(str::to_owned).into();
        arguments.extend(overwrite.then(|| "-f".to_owned()));
        ("mkfs.xfs", arguments)
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

    /// The log and the allocation groups' own trees: an eighth up to 1 GiB, a hundredth beyond, at least 64 MiB.
    fn usable(&self, size: u64) -> u64 {
        size.saturating_sub((size.min(1 << 30) / 8 + size.saturating_sub(1 << 30) / 100).max(64 << 20))
    }

    fn choose_key(&self, used: &[QuotaKey]) -> Option<QuotaKey> {
        let mut taken: Vec<u32> = used
            .iter()
            .filter_map(|key| match key {
                QuotaKey::Project(project) => Some(*project),
                QuotaKey::Subvolume(_) => None,
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

    fn create(&self, host: &dyn Host, volume: &Path, quota: Option<QuotaKey>) -> Result<()> {
        host.make_directory(volume, 0o755)?;
        match quota {
            Some(quota) => host.set_project(volume, project(quota)?),
            None => {
                Err(linux::Error::because("make volume", volume.display(), "its record names no project"))
            }
        }
    }

    fn quota_key(&self, host: &dyn Host, volume: &Path) -> Result<Option<QuotaKey>> {
        host.project(volume).map(|id| (id.0 != 0).then_some(QuotaKey::Project(id.0)))
    }

    fn limit(&self, host: &dyn Host, mount: &Path, quota: QuotaKey, bytes: u64) -> Result<()> {
        host.limit_project(mount, project(quota)?, Some(bytes))
    }

    fn usage(&self, host: &dyn Host, mount: &Path, quota: QuotaKey) -> Result<Usage> {
        let usage = host.project_usage(mount, project(quota)?)?;
        Ok(Usage { used: usage.used, limit: usage.limit, inodes: Some(usage.inodes) })
    }

    fn destroy(&self, host: &dyn Host, _: &Path, volume: &Path) -> Result<()> {
        host.remove_tree(volume).map(drop)
    }

    fn reclaim(&self, host: &dyn Host, mount: &Path, quota: QuotaKey) -> Result<()> {
        host.limit_project(mount, project(quota)?, None)
    }
}

fn project(quota: QuotaKey) -> Result<ProjectId> {
    match quota {
        QuotaKey::Project(id) => Ok(ProjectId(id)),
        QuotaKey::Subvolume(_) => Err(foreign(quota)),
    }
}
