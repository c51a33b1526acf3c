//! VolumeSnapshotContents: what is made for a snapshot of a volume, and their protection.

use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, ObjectReference, PersistentVolume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use resources::annotations::{SNAPSHOT_SECRET_NAME, SNAPSHOT_SECRET_NAMESPACE};
use resources::finalizers::SNAPSHOT_CONTENT;
use resources::labels::SNAPSHOT_MANAGED_BY;
use resources::snapshot::{
    VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent, VolumeSnapshotContentSource,
    VolumeSnapshotContentSpec, content_name, is_taken,
};
use resources::{reference, volume};

use super::secret;
use super::writes::{Event, Step, Write};

/// The content for a snapshot of a volume: protected and bound from its first moment on.
///
/// # Errors
/// What is wrong with the class's parameters.
pub(super) fn of_volume(
    snapshot: &VolumeSnapshot,
    class: &VolumeSnapshotClass,
    of: &PersistentVolume,
    csi: &CSIPersistentVolumeSource,
    only_node: Option<&str>,
) -> Result<VolumeSnapshotContent, String> {
    let name = content_name(&snapshot.uid().unwrap_or_default());
    let namespace = snapshot.namespace().unwrap_or_default();
    let secret = secret::reference(
        &class.parameters,
        "snapshotter",
        &[("volumesnapshotcontent.name", &name), ("volumesnapshot.namespace", &namespace)],
        &[("volumesnapshot.name", &snapshot.name_any())],
    )?;
    let annotations = secret.map(|(secret, namespace)| {
        [(SNAPSHOT_SECRET_NAME.to_owned(), secret), (SNAPSHOT_SECRET_NAMESPACE.to_owned(), namespace)].into()
    });
    Ok(VolumeSnapshotContent {
        metadata: ObjectMeta {
            name: Some(name),
            finalizers: Some(vec![SNAPSHOT_CONTENT.to_owned()]),
            labels: only_node.map(|node| [(SNAPSHOT_MANAGED_BY.to_owned(), node.to_owned())].into()),
            annotations,
            ..ObjectMeta::default()
        },
        spec: VolumeSnapshotContentSpec {
            volume_snapshot_ref: ObjectReference { resource_version: None, ..reference(snapshot) },
            deletion_policy: class.deletion_policy,
            driver: csi.driver.clone(),
            volume_snapshot_class_name: Some(class.name_any()),
            source: VolumeSnapshotContentSource {
                volume_handle: Some(csi.volume_handle.clone()),
                snapshot_handle: None,
            },
            source_volume_mode: Some(volume::volume_mode(of).to_owned()),
        },
        status: None,
    })
}

/// What a content itself needs: its finalizer, once a snapshot has taken it.
pub(super) fn step(content: &VolumeSnapshotContent) -> Step {
    let source = &content.spec.source;
    if source.volume_handle.is_some() == source.snapshot_handle.is_some() {
        let message = "Exactly one of VolumeHandle and SnapshotHandle should be specified";
        return Step::nothing().and(Event::warning(
            reference(content),
            "ContentValidationError",
            message.to_owned(),
        ));
    }
    let is_kept = content.finalizers().iter().any(|name| name == SNAPSHOT_CONTENT);
    if !is_taken(content) || is_kept || content.metadata.deletion_timestamp.is_some() {
        return Step::nothing();
    }
    let mut kept = content.clone();
    kept.finalizers_mut().push(SNAPSHOT_CONTENT.to_owned());
    Step::write(Write::Content(Box::new(kept)))
}
