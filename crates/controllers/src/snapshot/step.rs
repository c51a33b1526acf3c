//! What to do about a VolumeSnapshot: pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use resources::annotations::{IS_DEFAULT_SNAPSHOT_CLASS, SNAPSHOT_BEING_CREATED, SNAPSHOT_BEING_DELETED};
use resources::finalizers::{
    CLAIM_AS_SNAPSHOT_SOURCE, SNAPSHOT_AS_SOURCE, SNAPSHOT_BOUND, SNAPSHOT_CONTENT, SNAPSHOT_IN_GROUP,
    SNAPSHOT_SOURCE,
};
use resources::snapshot::{
    DeletionPolicy, SnapshotError, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent, bound_content,
    is_bound_to, is_meant_for, is_ready, is_taken,
};
use resources::{claim, reference};

use super::writes::{Event, Step, Write};
use super::{content, group};

/// All that a VolumeSnapshot's fate depends on.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) snapshot: Arc<VolumeSnapshot>,
    /// The content that it is bound to, asks for, or would get.
    pub(super) content: Option<Arc<VolumeSnapshotContent>>,
    pub(super) classes: Vec<Arc<VolumeSnapshotClass>>,
    pub(super) claim: Option<Arc<PersistentVolumeClaim>>,
    pub(super) volume: Option<Arc<PersistentVolume>>,
    /// The one node that can use the volume.
    pub(super) only_node: Option<String>,
    /// Whether the VolumeGroupSnapshot that it was taken with is there.
    pub(super) in_group: bool,
}

/// Why a snapshot can't be taken: the event's reason, and the message.
type Refusal = (&'static str, String);

/// The next thing to do; the change that it makes brings the snapshot back.
pub(super) fn step(of: &Facts) -> Step {
    let snapshot = &*of.snapshot;
    if snapshot.metadata.deletion_timestamp.is_some() {
        return going(of);
    }
    let source = &snapshot.spec.source;
    let next = match (&source.persistent_volume_claim_name, &source.volume_snapshot_content_name) {
        (Some(claim), None) => of_claim(of, claim),
        (None, Some(content)) => of_content(of, content),
        _ => Err((
            "SnapshotValidationError",
            "Exactly one of PersistentVolumeClaimName and VolumeSnapshotContentName should be specified"
                .to_owned(),
        )),
    };
    next.unwrap_or_else(|(reason, message)| refuse(snapshot, reason, message))
}

/// Tells a failure once: in the status, and by an event.
fn refuse(snapshot: &VolumeSnapshot, reason: &'static str, message: String) -> Step {
    let told = snapshot.status.as_ref().and_then(|status| status.error.as_ref()?.message.as_deref());
    if told == Some(&message) {
        return Step::nothing();
    }
    let mut new = snapshot.clone();
    let status = new.status.get_or_insert_default();
    status.error = Some(SnapshotError::now(&message));
    status.ready_to_use = Some(false);
    Step::write(Write::SnapshotStatus(Box::new(new))).and(Event::warning(
        reference(snapshot),
        reason,
        message,
    ))
}

/// A snapshot of a claim.
fn of_claim(of: &Facts, claim: &str) -> Result<Step, Refusal> {
    let snapshot = &*of.snapshot;
    let key = key(snapshot);
    if is_member(snapshot) && bound_content(snapshot).is_none() {
        // Its group makes its content, and ties the two.
        return Ok(Step::nothing());
    }
    if let Some(content) = &of.content {
        if !is_bound_to(content, snapshot) {
            return Err(misbound(snapshot, content));
        }
        if content.spec.source.snapshot_handle.is_some() {
            let name = content.name_any();
            let message = format!(
                "VolumeSnapshotContent {name} is pre-provisioned while expecting a dynamically provisioned one"
            );
            return Err(("SnapshotContentMismatch", message));
        }
        return Ok(protect(snapshot, Some(content)).unwrap_or_else(|| mirror(snapshot, content)));
    }
    // One that had a content is never taken anew: it would be of another moment.
    if bound_content(snapshot).is_some() {
        return Err(("SnapshotContentMissing", "VolumeSnapshotContent is missing".to_owned()));
    }
    let failed = |why: String| {
        ("SnapshotContentCreationFailed", format!("Failed to create snapshot content with error {why}"))
    };
    let source = of
        .claim
        .as_ref()
        .ok_or_else(|| failed(format!("claim {claim} not found; create it, or delete the snapshot")))?;
    let volume = of.volume.as_ref().filter(|_| claim::phase(source) == "Bound").ok_or_else(|| {
        failed(format!("the PVC {claim} is not yet bound to a PV, will not attempt to take a snapshot"))
    })?;
    let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).ok_or_else(|| {
        failed(format!(
            "the volume {} of claim {claim} is no CSI volume; it has no snapshots",
            volume.name_any()
        ))
    })?;
    let class = class(snapshot, &of.classes, &csi.driver)?;
    if class.driver != csi.driver {
        return Err(failed(format!(
            "the class {} is of driver {}, and claim {claim} of {}; name a class of that driver",
            class.name_any(),
            class.driver,
            csi.driver
        )));
    }
    if let Some(prepared) = prepare(snapshot, class) {
        return Ok(prepared);
    }
    if source.metadata.deletion_timestamp.is_some() {
        return Err(failed(format!("claim {claim} is being deleted, will not attempt to take a snapshot")));
    }
    if !source.finalizers().iter().any(|name| name == CLAIM_AS_SNAPSHOT_SOURCE) {
        let mut kept = PersistentVolumeClaim::clone(source);
        kept.finalizers_mut().push(CLAIM_AS_SNAPSHOT_SOURCE.to_owned());
        return Ok(Step::write(Write::Claim(Box::new(kept))));
    }
    let wanted = content::of_volume(snapshot, class, volume, csi, of.only_node.as_deref()).map_err(failed)?;
    let message = format!("Waiting for a snapshot {key} to be created by the CSI driver.");
    Ok(Step::write(Write::CreateContent(Box::new(wanted))).and(Event::normal(
        reference(snapshot),
        "CreatingSnapshot",
        message,
    )))
}

/// The class that a snapshot names, or the default one of the driver.
fn class<'a>(
    snapshot: &VolumeSnapshot,
    classes: &'a [Arc<VolumeSnapshotClass>],
    driver: &str,
) -> Result<&'a VolumeSnapshotClass, Refusal> {
    if let Some(name) = &snapshot.spec.volume_snapshot_class_name {
        return classes.iter().find(|class| class.name_any() == *name).map(AsRef::as_ref).ok_or_else(|| {
            let why = format!("volumesnapshotclass {name} not found; create it, or name another one");
            ("GetSnapshotClassFailed", format!("Failed to get snapshot class with error {why}"))
        });
    }
    let is_default = |class: &&Arc<VolumeSnapshotClass>| {
        class.driver == driver
            && class.annotations().get(IS_DEFAULT_SNAPSHOT_CLASS).is_some_and(|value| value == "true")
    };
    let mut found = classes.iter().filter(is_default);
    let why = match (found.next(), found.next()) {
        (Some(class), None) => return Ok(class),
        (None, _) => format!("cannot find default snapshot class for driver {driver}; name a class"),
        (Some(_), Some(_)) => {
            format!(
                "driver {driver} has more than one default snapshot class; name a class, or keep one default"
            )
        }
    };
    Err(("SetDefaultSnapshotClassFailed", format!("Failed to set default snapshot class with error {why}")))
}

/// Names the class in the snapshot, and puts on the finalizers that it will need; all in one write.
fn prepare(snapshot: &VolumeSnapshot, class: &VolumeSnapshotClass) -> Option<Step> {
    let mut new = snapshot.clone();
    new.spec.volume_snapshot_class_name = Some(class.name_any());
    keep(&mut new, SNAPSHOT_AS_SOURCE);
    if class.deletion_policy == DeletionPolicy::Delete {
        keep(&mut new, SNAPSHOT_BOUND);
    }
    (new != *snapshot).then(|| Step::write(Write::Snapshot(Box::new(new))))
}

/// Puts on the finalizers that a snapshot with this content needs.
fn protect(snapshot: &VolumeSnapshot, content: Option<&VolumeSnapshotContent>) -> Option<Step> {
    let mut new = snapshot.clone();
    keep(&mut new, SNAPSHOT_AS_SOURCE);
    if content.is_some_and(|content| content.spec.deletion_policy == DeletionPolicy::Delete) {
        keep(&mut new, SNAPSHOT_BOUND);
    }
    (new != *snapshot).then(|| Step::write(Write::Snapshot(Box::new(new))))
}

fn keep(object: &mut impl Resource, finalizer: &str) {
    if !object.finalizers().iter().any(|name| name == finalizer) {
        object.finalizers_mut().push(finalizer.to_owned());
    }
}

/// A snapshot that exists, which a content stands for.
fn of_content(of: &Facts, name: &str) -> Result<Step, Refusal> {
    let snapshot = &*of.snapshot;
    let Some(content) = of.content.as_ref().filter(|content| content.name_any() == name) else {
        if let Some(step) = protect(snapshot, None) {
            return Ok(step);
        }
        return Err(("SnapshotContentMissing", "VolumeSnapshotContent is missing".to_owned()));
    };
    if content.spec.source.snapshot_handle.is_none() {
        let message =
            "VolumeSnapshotContent is dynamically provisioned while expecting a pre-provisioned one";
        return Err(("SnapshotContentMismatch", message.to_owned()));
    }
    if !is_meant_for(content, snapshot) {
        return Err(misbound(snapshot, content));
    }
    if !is_taken(content) {
        let mut bound = VolumeSnapshotContent::clone(content);
        bound.spec.volume_snapshot_ref.uid = snapshot.uid();
        if bound.spec.volume_snapshot_class_name.is_none() {
            bound.spec.volume_snapshot_class_name.clone_from(&snapshot.spec.volume_snapshot_class_name);
        }
        if bound.metadata.deletion_timestamp.is_none() {
            keep(&mut bound, SNAPSHOT_CONTENT);
        }
        return Ok(Step::write(Write::Content(Box::new(bound))));
    }
    Ok(protect(snapshot, Some(content)).unwrap_or_else(|| mirror(snapshot, content)))
}

fn misbound(snapshot: &VolumeSnapshot, content: &VolumeSnapshotContent) -> Refusal {
    if is_ready(snapshot) {
        let message = "VolumeSnapshotContent is not bound to the VolumeSnapshot correctly";
        return ("SnapshotMisbound", message.to_owned());
    }
    let ObjectReference { namespace, name, uid, .. } = content.spec.volume_snapshot_ref.clone();
    let message = format!(
        "VolumeSnapshotContent [{}] is bound to a different snapshot, {}/{} with uid {:?}",
        content.name_any(),
        namespace.unwrap_or_default(),
        name.unwrap_or_default(),
        uid.unwrap_or_default(),
    );
    ("SnapshotContentMisbound", message)
}

/// Shows on the snapshot what its content says.
fn mirror(snapshot: &VolumeSnapshot, content: &VolumeSnapshotContent) -> Step {
    let mut new = snapshot.clone();
    let told = content.status.clone().unwrap_or_default();
    let status = new.status.get_or_insert_default();
    let (was_made, was_ready) = (status.creation_time.is_some(), status.ready_to_use == Some(true));
    status.bound_volume_snapshot_content_name = Some(content.name_any());
    status.creation_time = told
        .creation_time
        .and_then(|nanoseconds| Timestamp::from_nanosecond(nanoseconds.into()).ok().map(|at| at.as_second()))
        .and_then(|seconds| Timestamp::from_second(seconds).ok().map(Time))
        .or(status.creation_time.take());
    status.ready_to_use = Some(told.ready_to_use.unwrap_or_default());
    status.restore_size = told
        .restore_size
        .and_then(|bytes| u64::try_from(bytes).ok())
        .map(|bytes| Quantity(values::Quantity::from_bytes(bytes).to_string()))
        .or(status.restore_size.take());
    status.error = told.error;
    let (is_made, is_now_ready) = (status.creation_time.is_some(), status.ready_to_use == Some(true));
    if new.status == snapshot.status {
        return Step::nothing();
    }
    let (about, key) = (reference(snapshot), key(snapshot));
    let mut step = Step::write(Write::SnapshotStatus(Box::new(new)));
    if is_made && !was_made {
        let message = format!("Snapshot {key} was successfully created by the CSI driver.");
        step = step.and(Event::normal(about.clone(), "SnapshotCreated", message));
    }
    if is_now_ready && !was_ready {
        step = step.and(Event::normal(about, "SnapshotReady", format!("Snapshot {key} is ready to use.")));
    }
    step
}

/// A snapshot that is being deleted: its content goes first, if it goes.
fn going(of: &Facts) -> Step {
    let snapshot = &*of.snapshot;
    let ours = [SNAPSHOT_AS_SOURCE, SNAPSHOT_BOUND, SNAPSHOT_IN_GROUP];
    if !snapshot.finalizers().iter().any(|name| ours.contains(&name.as_str())) {
        return Step::nothing();
    }
    let pending =
        |why: String| Step::nothing().and(Event::warning(reference(snapshot), "SnapshotDeletePending", why));
    // One that refers to another snapshot is not touched.
    let content = of.content.as_ref().filter(|content| is_bound_to(content, snapshot));
    // A claim that merely waits for it would wait in vain: nothing is begun from a snapshot that is being deleted.
    if content.is_some() && is_restored(snapshot) {
        return pending("Snapshot is being used to restore a PVC".to_owned());
    }
    if of.in_group {
        return pending(format!(
            "deletion of the individual volume snapshot {} is not allowed as it belongs to a group; it is deleted \
             with its VolumeGroupSnapshot",
            key(snapshot)
        ));
    }
    if let Some(content) = content {
        if !content.annotations().contains_key(SNAPSHOT_BEING_DELETED) {
            let mut marked = VolumeSnapshotContent::clone(content);
            marked.annotations_mut().insert(SNAPSHOT_BEING_DELETED.to_owned(), "yes".to_owned());
            return Step::write(Write::Content(Box::new(marked)));
        }
        if content.spec.deletion_policy == DeletionPolicy::Delete {
            return match content.metadata.deletion_timestamp {
                Some(_) => Step::nothing(),
                None => Step::write(Write::DeleteContent(Box::new(VolumeSnapshotContent::clone(content)))),
            };
        }
    }
    let mut released = snapshot.clone();
    released.finalizers_mut().retain(|name| !ours.contains(&name.as_str()));
    let released = Box::new(released);
    Step::write(match of.content {
        Some(_) => Write::Snapshot(released),
        None => Write::ReleaseSnapshot { snapshot: released, without: content_of(snapshot) },
    })
}

/// Whether a snapshot was taken with others.
fn is_member(snapshot: &VolumeSnapshot) -> bool {
    snapshot.finalizers().iter().any(|name| name == SNAPSHOT_IN_GROUP)
}

/// Whether a volume is being made from a snapshot: its provisioner says so.
pub(super) fn is_restored(snapshot: &VolumeSnapshot) -> bool {
    snapshot.finalizers().iter().any(|name| name == SNAPSHOT_SOURCE)
}

/// Whether a snapshot needs its claim to stay: it is being taken, or will be.
pub(super) fn needs_claim(
    snapshot: &VolumeSnapshot,
    content: Option<&VolumeSnapshotContent>,
    claim_is_going: bool,
) -> bool {
    if snapshot.metadata.deletion_timestamp.is_some() {
        return content.is_some_and(|content| {
            is_bound_to(content, snapshot) && content.annotations().contains_key(SNAPSHOT_BEING_CREATED)
        });
    }
    // No snapshot is begun of a claim that is being deleted.
    !is_ready(snapshot) && (!claim_is_going || content.is_some())
}

/// The content that a snapshot is bound to, asks for, or would get.
pub(super) fn content_of(snapshot: &VolumeSnapshot) -> String {
    let asked = snapshot.spec.source.volume_snapshot_content_name.as_deref();
    match bound_content(snapshot).or(asked) {
        Some(name) => name.to_owned(),
        None if is_member(snapshot) => group::content_of_member(&snapshot.name_any()),
        None => resources::snapshot::content_name(&snapshot.uid().unwrap_or_default()),
    }
}

fn key(snapshot: &VolumeSnapshot) -> String {
    format!("{}/{}", snapshot.namespace().unwrap_or_default(), snapshot.name_any())
}

#[cfg(test)]
mod tests;
