//! What ends a pod on its node: the time it may be active, and the local space that it and its containers may use.

use std::{collections::BTreeMap, path::Path};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use values::Quantity;

use crate::{layout::Layout, volumes::Source};

/// How often what a pod uses is counted: kubelet's period.
pub(crate) const PERIOD: SignedDuration = SignedDuration::from_secs(10);
/// Files that are counted of one place; further ones are left out.
const MOST_FILES: usize = 1_000_000;

/// Why a pod ends: reason and message, as kubelet writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// When the pod has been active for as long as it may.
pub(crate) fn deadline(pod: &Pod) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let start = pod.status.as_ref()?.start_time.as_ref()?.0;
    start.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// The end of a pod that was active for too long.
pub(crate) fn deadline_exceeded() -> End {
    let message = "Pod was active on the node longer than the specified deadline".to_owned();
    End { reason: "DeadlineExceeded", message }
}

/// Bytes used: emptyDir volumes by name, and containers (their root and logs).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) volumes: BTreeMap<String, u64>,
    pub(crate) containers: BTreeMap<String, u64>,
}

fn limit(container: &Container) -> Option<(u64, String)> {
    let limit = container.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")?;
    Some((limit.0.parse::<Quantity>().ok()?.ceil_bytes()?, limit.0.clone()))
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

/// The emptyDir volumes on disk, with the limits that they have. Those in memory are limited by their file system.
fn directories(pod: &Pod) -> impl Iterator<Item = (&str, Option<u64>)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| match Source::of(volume) {
        Source::EmptyDir { memory: false, size } => Some((&*volume.name, size)),
        _ => None,
    })
}

/// Whether there is something to be counted.
pub(crate) fn has_limits(pod: &Pod) -> bool {
    directories(pod).any(|(_, limit)| limit.is_some_and(|limit| limit > 0))
        || containers(pod).any(|container| limit(container).is_some())
}

/// Counts what the pod uses. Blocks.
pub(crate) fn measure(layout: &Layout, uid: &str, pod: &Pod) -> Usage {
    let mut usage = Usage::default();
    for (name, _) in directories(pod) {
        let directory = layout.volume(uid, crate::layout::EMPTY_DIR, name);
        usage.volumes.insert(name.to_owned(), used(&directory));
    }
    let metadata = &pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let logs = layout.pod_logs(&text(&metadata.namespace), &text(&metadata.name), uid);
    for container in containers(pod) {
        let attempts = std::fs::read_dir(layout.containers(uid).join(&container.name));
        let roots =
            attempts.into_iter().flatten().flatten().map(|attempt| used(&attempt.path().join("upper")));
        let used = roots.sum::<u64>() + used(&logs.join(&container.name));
        usage.containers.insert(container.name.clone(), used);
    }
    usage
}

/// Bytes that the files below a directory take on its own file system. What is changed meanwhile counts or not.
pub(crate) fn used(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(top) = directory.symlink_metadata() else { return 0 };
    let (mut waiting, mut bytes, mut files) = (vec![directory.to_path_buf()], 0, 0);
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue };
            files += 1;
            if files > MOST_FILES {
                return bytes;
            }
            if found.dev() != top.dev() {
                continue;
            }
            bytes += found.blocks() * 512;
            if found.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    bytes
}

/// The end of a pod that uses more than it may.
pub(crate) fn overuse(pod: &Pod, usage: &Usage) -> Option<End> {
    let evicted = |message| Some(End { reason: "Evicted", message });
    for (name, limit) in directories(pod) {
        let used = usage.volumes.get(name).copied().unwrap_or(0);
        if limit.is_some_and(|limit| limit > 0 && used > limit) {
            let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
            let limit = volumes
                .filter(|volume| volume.name == name)
                .find_map(|volume| Some(volume.empty_dir.as_ref()?.size_limit.as_ref()?.0.clone()));
            let limit = limit.unwrap_or_default();
            return evicted(format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\"."));
        }
    }
    let limits: Vec<_> =
        containers(pod).filter_map(|container| Some((container, limit(container)?))).collect();
    let all_limited = pod.spec.iter().flat_map(|spec| &spec.containers).all(|of| limit(of).is_some());
    let total: u64 = usage.volumes.values().chain(usage.containers.values()).sum();
    let allowed: u64 = limits.iter().map(|(_, (limit, _))| limit).sum();
    if !limits.is_empty() && all_limited && total > allowed {
        let allowed = Quantity::from_bytes(allowed);
        return evicted(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {allowed}."
        ));
    }
    for (container, (limit, text)) in limits {
        if usage.containers.get(&container.name).is_some_and(|used| *used > limit) {
            let name = &container.name;
            return evicted(format!(
                "Container {name} exceeded its local ephemeral storage limit \"{text}\"."
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        let limited = |name: &str, limit: &str| json!({"name": name, "resources": {"limits": {"ephemeral-storage": limit}}});
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {
            "activeDeadlineSeconds": 5, "containers": [limited("a", "4Mi"), limited("b", "6Mi")],
            "volumes": [{"name": "disk", "emptyDir": {"sizeLimit": "2Mi"}}, {"name": "free", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]},
            "status": {"startTime": "2026-01-01T00:00:00Z"}}))
        .unwrap()
    }

    #[test]
    fn who_uses_too_much_is_evicted() {
        const MIB: u64 = 1 << 20;
        for (volumes, containers, expected) in [
            ([("disk", 2 * MIB), ("free", 0)], [("a", 4 * MIB), ("b", 0)], None),
            (
                [("disk", 2 * MIB + 1), ("free", 0)],
                [("a", 0), ("b", 0)],
                Some("Usage of EmptyDir volume \"disk\" exceeds the limit \"2Mi\"."),
            ),
            (
                [("disk", 0), ("free", 0)],
                [("a", 4 * MIB + 1), ("b", 0)],
                Some("Container a exceeded its local ephemeral storage limit \"4Mi\"."),
            ),
            (
                [("disk", 0), ("free", 9 * MIB)],
                [("a", MIB), ("b", 1)],
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 10Mi."),
            ),
        ] {
            let all =
                |of: &[(&str, u64)]| of.iter().map(|(name, used)| ((*name).to_owned(), *used)).collect();
            let usage = Usage { volumes: all(&volumes), containers: all(&containers) };
            let end = overuse(&pod(), &usage).map(|end| end.message);
            assert_eq!(end.as_deref(), expected, "{usage:?}");
        }
        assert!(has_limits(&pod()));
        assert_eq!(deadline(&pod()).unwrap().to_string(), "2026-01-01T00:00:05Z");
    }

    #[test]
    fn what_lies_on_the_disk_is_counted() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let volume = layout.volume("u", crate::layout::EMPTY_DIR, "disk");
        let upper = layout.attempt("u", "a", 3).join("upper/tmp");
        for directory in [&volume, &upper] {
            std::fs::create_dir_all(directory).unwrap();
            std::fs::write(directory.join("file"), vec![1; 1 << 20]).unwrap();
        }
        std::os::unix::fs::symlink("/", volume.join("link")).unwrap();
        let usage = measure(&layout, "u", &pod());
        let mib = |used: u64| (1 << 20..2 << 20).contains(&used);
        assert!(mib(usage.volumes["disk"]) && mib(usage.containers["a"]), "{usage:?}");
        assert_eq!((usage.volumes["free"], usage.containers["b"]), (0, 0));
    }
}
