//! Data sources of claims: a volume that is filled from a snapshot or another volume is made where that is.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use resources::labels::SNAPSHOT_MANAGED_BY;
use resources::source::{self, Source, SourceKind};
use resources::{claim, snapshot, volume};
use runtime::Key;

use crate::world::{Labels, World};

/// Where a claim's volume can be made as far as its data source decides.
pub(crate) enum Place<'a> {
    Anywhere,
    Node(&'a str),
    With(&'a PersistentVolume),
}

impl Place<'_> {
    pub(crate) fn admits(&self, node: &str, labels: &Labels) -> bool {
        match self {
            Place::Anywhere => true,
            Place::Node(only) => *only == node,
            Place::With(volume) => volume::admits_node(volume, node, labels),
        }
    }
}

/// Where the source of a claim is.
///
/// # Errors
/// Why no volume can be made from it yet.
pub(crate) fn place<'a>(world: &'a World, of: &PersistentVolumeClaim) -> Result<Place<'a>, String> {
    let Some(source) = source::of(of) else { return Ok(Place::Anywhere) };
    let waits = |why: &str| {
        Err(format!(
            "persistentvolumeclaim {:?} waits for its data source {source}, which {why}",
            of.name_any()
        ))
    };
    let key = Key { namespace: source.namespace.clone(), name: source.name.clone() };
    match source.kind {
        SourceKind::Other { .. } => Ok(Place::Anywhere),
        SourceKind::Snapshot => {
            let Some(found) = world.snapshots.get(&key) else { return waits("does not exist") };
            if !snapshot::is_ready(found) {
                return waits("is not ready to use yet");
            }
            let content = snapshot::bound_content(found).and_then(|name| world.contents.get(name));
            let Some(content) = content.filter(|content| snapshot::is_bound_to(content, found)) else {
                return waits("is not bound to a snapshot of its own");
            };
            let labels = content.metadata.labels.as_ref();
            let node = labels.and_then(|labels| labels.get(SNAPSHOT_MANAGED_BY));
            Ok(node.map_or(Place::Anywhere, |node| Place::Node(node)))
        }
        SourceKind::Claim => {
            let Some(found) = world.claim(&key) else { return waits("does not exist") };
            let volume = world.volume(claim::volume_name(found));
            match volume.filter(|volume| volume::is_bound_to(volume, found)) {
                Some(volume) => Ok(Place::With(volume)),
                None => waits("has no volume yet"),
            }
        }
    }
}

/// The source that a claim waits for, for which a change may give its pods their chance.
pub(crate) fn awaited(of: &PersistentVolumeClaim) -> Option<Source> {
    source::of(of).filter(|source| !matches!(source.kind, SourceKind::Other { .. }))
}

/// A snapshot as a source.
pub(crate) fn of_snapshot(namespace: &str, name: &str) -> Source {
    Source { kind: SourceKind::Snapshot, namespace: namespace.to_owned(), name: name.to_owned() }
}
