//! How fast pods may use a drive: the limits of their volumes, enforced by the kernel on the pods' control groups
//! (`io.max` of cgroup version 2). Limits are recorded with the volumes; here they are only carried out.

use drives::{DriveId, Drives, Throttle, VolumeId};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};
use tonic::Status;

/// How deep pods' control groups lie at most: slices of the service manager, of the kubelet, of the class of service.
const DEPTH: usize = 8;

/// The control groups of this machine.
#[derive(Clone, Debug)]
pub(crate) struct Throttles {
    /// Where version 2 is mounted.
    root: Option<PathBuf>,
}

impl Throttles {
    /// The groups of this machine.
    pub(crate) fn find() -> Self {
        let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let table = linux::MountTable::parse(&mounts);
        let root = table.iter().find(|mount| mount.filesystem == "cgroup2").map(|mount| mount.target.clone());
        Self { root }
    }

    /// Whether limits can be enforced here.
    fn usable(&self) -> Result<&Path, String> {
        let Some(root) = &self.root else {
            return Err("no cgroup version 2 is mounted here".to_owned());
        };
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        match controllers.split_whitespace().any(|name| name == "io") {
            true => Ok(root),
            false => Err(format!("the cgroup hierarchy at {} has no io controller", root.display())),
        }
    }

    /// Refuses limits that nobody would enforce.
    pub(crate) fn check(&self, throttle: Throttle) -> Result<(), Status> {
        match self.usable() {
            Err(why) if !throttle.is_unlimited() => Err(Status::invalid_argument(format!(
                "limits of bandwidth and operations can't be enforced on this node: {why}; boot it with cgroup version 2 \
                 alone (systemd.unified_cgroup_hierarchy=1), or ask for no limits"
            ))),
            _ => Ok(()),
        }
    }

    /// Holds the pod that uses a drive at `target` to the limits of its volumes there.
    pub(crate) async fn apply(&self, drives: &Drives, drive: &DriveId, target: &Path) -> Result<(), Status> {
        match pod_of(target) {
            Some(pod) if drives.throttles(drive) => {
                self.hold(drives, drive, BTreeSet::from([pod.to_owned()])).await
            }
            _ => Ok(()),
        }
    }

    /// Holds all pods that use a volume to the limits as they are now.
    pub(crate) async fn apply_to_users(&self, drives: &Drives, volume: &VolumeId) -> Result<(), Status> {
        let shown = drives.shown(volume.drive()).await.map_err(crate::status::refused)?;
        let users = shown.iter().filter(|(id, _)| id == volume).filter_map(|(_, at)| pod_of(at));
        let users: BTreeSet<String> = users.map(str::to_owned).collect();
        match users.is_empty() {
            true => Ok(()),
            false => self.hold(drives, volume.drive(), users).await,
        }
    }

    async fn hold(&self, drives: &Drives, drive: &DriveId, pods: BTreeSet<String>) -> Result<(), Status> {
        let root = self.usable().map_err(Status::failed_precondition)?.to_owned();
        let shown = drives.shown(drive).await.map_err(crate::status::refused)?;
        let device = drives.drives().into_iter().find(|one| one.id.as_ref() == Some(drive));
        let device = device.and_then(|drive| drive.device).ok_or_else(|| {
            Status::failed_precondition(format!("drive {drive} has no device; bring it back"))
        })?;
        let mut limits = Vec::new();
        for pod in pods {
            let volumes: BTreeSet<&VolumeId> =
                shown.iter().filter(|(_, at)| pod_of(at) == Some(&pod)).map(|(id, _)| id).collect();
            let of_pod = volumes.into_iter().filter_map(|id| drives.volume(id)).map(|volume| volume.throttle);
            limits.push((pod, together(of_pod)));
        }
        let write = move || {
            let disk = disk_of(&device).map_err(|error| format!("{}: {error}", device.display()))?;
            limits.into_iter().try_for_each(|(pod, throttle)| write(&root, &pod, &line(&disk, throttle)))
        };
        tokio::task::spawn_blocking(write)
            .await
            .map_err(|error| Status::internal(format!("limiting broke off: {error}; try again")))?
            .map_err(|why| Status::failed_precondition(format!("limits can't be enforced: {why}")))
    }
}

/// The pod whose directory a path is in.
fn pod_of(target: &Path) -> Option<&str> {
    let mut parts = target.components();
    parts.find(|part| *part == Component::Normal(OsStr::new("pods")))?;
    parts.next()?.as_os_str().to_str()
}

/// What one pod may do on one drive: the sum of what each of its volumes there may, as the kernel can't tell them apart.
/// One without a limit means none.
fn together(throttles: impl Iterator<Item = Throttle>) -> Throttle {
    let sum = |one: Option<u64>, other: Option<u64>| Some(one?.saturating_add(other?));
    let add = |all: Throttle, one: Throttle| Throttle {
        read_bps: sum(all.read_bps, one.read_bps),
        write_bps: sum(all.write_bps, one.write_bps),
        read_iops: sum(all.read_iops, one.read_iops),
        write_iops: sum(all.write_iops, one.write_iops),
    };
    throttles.reduce(add).unwrap_or_default()
}

/// A line of `io.max`.
fn line(disk: &str, throttle: Throttle) -> String {
    let limit = |limit: Option<u64>| limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
    format!(
        "{disk} rbps={} wbps={} riops={} wiops={}",
        limit(throttle.read_bps),
        limit(throttle.write_bps),
        limit(throttle.read_iops),
        limit(throttle.write_iops)
    )
}

/// The number of the whole disk that a device is, or is a partition of: the kernel limits disks only.
fn disk_of(device: &Path) -> io::Result<String> {
    let number = fs::metadata(device)?.rdev();
    let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let entry = fs::canonicalize(format!("/sys/dev/block/{number}"))?;
    match (entry.join("partition").exists(), entry.parent()) {
        (true, Some(disk)) => Ok(fs::read_to_string(disk.join("dev"))?.trim().to_owned()),
        _ => Ok(number),
    }
}

fn write(root: &Path, pod: &str, line: &str) -> Result<(), String> {
    let group = group_of(root, pod).ok_or_else(|| {
        format!(
            "no control group of pod {pod} is below {}; see that the driver sees the host's groups",
            root.display()
        )
    })?;
    enable(root, &group);
    let file = group.join("io.max");
    fs::write(&file, line).map_err(|error| format!("{} refuses {line:?}: {error}", file.display()))
}

/// Lets the groups on the way have the io controller. Where that fails, so does the write that needs it.
fn enable(root: &Path, group: &Path) {
    let ancestors: Vec<&Path> = group.ancestors().skip(1).take_while(|at| at.starts_with(root)).collect();
    for at in ancestors.into_iter().rev() {
        let _ = fs::write(at.join("cgroup.subtree_control"), "+io");
    }
}

/// The control group of a pod: the outermost whose name has the pod's identity, as kubelets (with either way of writing
/// it) and our node agent name them.
fn group_of(root: &Path, pod: &str) -> Option<PathBuf> {
    let written = pod.replace('-', "_");
    let mut level = vec![root.to_owned()];
    for _ in 0..DEPTH {
        let entries = level.iter().filter_map(|group| fs::read_dir(group).ok()).flatten().flatten();
        let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let groups: Vec<PathBuf> = groups.map(|entry| entry.path()).collect();
        let name = |group: &&PathBuf| {
            let name = group.file_name().and_then(OsStr::to_str).unwrap_or_default();
            name.contains(pod) || name.contains(&written)
        };
        if let Some(found) = groups.iter().find(name) {
            return Some(found.clone());
        }
        level = groups;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    #[test]
    fn a_pod_may_what_its_volumes_may_together() {
        let limit = |read_bps, write_iops| Throttle { read_bps, write_iops, ..Throttle::default() };
        for (of, expected) in [
            (vec![], "8:0 rbps=max wbps=max riops=max wiops=max"),
            (vec![limit(Some(10), Some(5))], "8:0 rbps=10 wbps=max riops=max wiops=5"),
            (
                vec![limit(Some(10), None), limit(Some(20), Some(5))],
                "8:0 rbps=30 wbps=max riops=max wiops=max",
            ),
            (
                vec![limit(Some(10), Some(5)), Throttle::default()],
                "8:0 rbps=max wbps=max riops=max wiops=max",
            ),
        ] {
            assert_eq!(line("8:0", together(of.clone().into_iter())), expected, "{of:?}");
        }
    }

    #[test]
    fn pods_are_known_by_their_directories_and_groups() {
        let target = format!("/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~csi/pv/mount");
        assert_eq!(pod_of(Path::new(&target)), Some(POD));
        assert_eq!(pod_of(Path::new("/mnt/target")), None);
        let written = POD.replace('-', "_");
        for path in [
            format!("kubepods/burstable/pod{POD}"),
            format!(
                "kubelet.slice/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{written}.slice"
            ),
            format!("orlop/orlop-0/{POD}"),
        ] {
            let root = tempfile::tempdir().expect("temporary directory");
            let group = root.path().join(path);
            fs::create_dir_all(group.join("container")).expect("made");
            assert_eq!(group_of(root.path(), POD), Some(group));
            assert_eq!(group_of(root.path(), "another"), None);
        }
    }

    #[test]
    fn limits_are_written_where_the_kernel_has_them_and_refused_elsewhere() {
        let root = tempfile::tempdir().expect("temporary directory");
        let throttles = Throttles { root: Some(root.path().to_owned()) };
        let limited = Throttle { write_bps: Some(1 << 20), ..Throttle::default() };
        let refused = throttles.check(limited).expect_err("no controllers at all");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains("no io controller"), "{}", refused.message());
        assert!(Throttles { root: None }.check(limited).is_err());
        assert!(
            Throttles { root: None }.check(Throttle::default()).is_ok(),
            "nothing is asked of the kernel"
        );

        fs::write(root.path().join("cgroup.controllers"), "cpu io memory").expect("written");
        throttles.check(limited).expect("enforced");
        let group = root.path().join(format!("kubepods/pod{POD}"));
        fs::create_dir_all(&group).expect("made");
        write(root.path(), POD, &line("7:1", limited)).expect("written");
        let written = fs::read_to_string(group.join("io.max")).expect("there");
        assert_eq!(written, "7:1 rbps=max wbps=1048576 riops=max wiops=max");
        let missing = write(root.path(), "another", "").expect_err("no such pod");
        assert!(missing.contains("no control group of pod another"), "{missing}");
    }
}
