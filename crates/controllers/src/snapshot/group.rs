//! What to do about a VolumeGroupSnapshot: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use resources::annotations::{
    GROUP_BEING_DELETED, GROUP_HANDLE, GROUP_SECRET_NAME, GROUP_SECRET_NAMESPACE, IS_DEFAULT_GROUP_CLASS,
    SNAPSHOT_SECRET_NAME, SNAPSHOT_SECRET_NAMESPACE,
};
use resources::finalizers::{GROUP_BOUND, GROUP_CONTENT, SNAPSHOT_CONTENT, SNAPSHOT_IN_GROUP};
use resources::group_snapshot::{
    VolumeGroupSnapshot, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent,
    VolumeGroupSnapshotContentSource, VolumeGroupSnapshotContentSpec, VolumeSnapshotInfo, bound_content,
    content_name, handle, is_bound_to, is_meant_for, is_taken,
};
use resources::labels::SNAPSHOT_MANAGED_BY;
use resources::snapshot::{
    DeletionPolicy, SnapshotError, VolumeSnapshot, VolumeSnapshotContent, VolumeSnapshotContentSource,
    VolumeSnapshotContentSpec, VolumeSnapshotContentStatus, VolumeSnapshotSource, VolumeSnapshotSpec,
};
use resources::{claim, owner, reference, volume};
use sha2::{Digest, Sha256};

use super::secret;
use super::step::is_restored;
use super::writes::{Event, Step, Write};

/// All that a group's fate depends on.
pub(super) struct Facts {
    pub(super) group: Arc<VolumeGroupSnapshot>,
    pub(super) content: Option<Arc<VolumeGroupSnapshotContent>>,
    pub(super) classes: Vec<Arc<VolumeGroupSnapshotClass>>,
    /// The claims that the selector chooses, and their volumes; looked up only while there is no content.
    pub(super) selected: Vec<(Arc<PersistentVolumeClaim>, Option<Arc<PersistentVolume>>)>,
    /// The nodes that alone can use some of these volumes.
    pub(super) only_nodes: BTreeSet<String>,
    pub(super) members: Vec<Member>,
}

/// A snapshot of the group, as far as it has its objects.
pub(super) struct Member {
    pub(super) info: VolumeSnapshotInfo,
    pub(super) snapshot: Option<Arc<VolumeSnapshot>>,
    pub(super) content: Option<Arc<VolumeSnapshotContent>>,
    pub(super) volume: Option<Arc<PersistentVolume>>,
    pub(super) only_node: Option<String>,
}

type Refusal = (&'static str, String);

/// The next thing to do; the change that it makes brings the group back.
pub(super) fn step(of: &Facts) -> Step {
    let group = &*of.group;
    if group.metadata.deletion_timestamp.is_some() {
        return going(of);
    }
    let source = &group.spec.source;
    let next = match (&source.selector, &source.volume_group_snapshot_content_name) {
        (Some(_), None) => of_claims(of),
        (None, Some(content)) => of_content(of, content),
        _ => Err((
            "GroupSnapshotValidationError",
            "Exactly one of Selector and VolumeGroupSnapshotContentName should be specified".to_owned(),
        )),
    };
    next.unwrap_or_else(|(reason, message)| refuse(group, reason, message))
}

fn refuse(group: &VolumeGroupSnapshot, reason: &'static str, message: String) -> Step {
    let told = group.status.as_ref().and_then(|status| status.error.as_ref()?.message.as_deref());
    if told == Some(&message) {
        return Step::nothing();
    }
    let mut new = group.clone();
    let status = new.status.get_or_insert_default();
    status.error = Some(SnapshotError::now(&message));
    status.ready_to_use = Some(false);
    Step::write(Write::GroupStatus(Box::new(new))).and(Event::warning(reference(group), reason, message))
}

/// A snapshot of all claims that a selector chooses.
fn of_claims(of: &Facts) -> Result<Step, Refusal> {
    let group = &*of.group;
    if let Some(content) = &of.content {
        if !is_bound_to(content, group) {
            return Err(misbound(content));
        }
        if content.spec.source.group_snapshot_handles.is_some() {
            let message = format!(
                "VolumeGroupSnapshotContent {} is pre-provisioned while expecting a dynamically provisioned one",
                content.name_any()
            );
            return Err(("GroupSnapshotContentMismatch", message));
        }
        return Ok(follow(of, content));
    }
    // One that had a content is never taken anew: it would be of another moment.
    if bound_content(group).is_some() {
        return Err(("GroupSnapshotContentMissing", "VolumeGroupSnapshotContent is missing".to_owned()));
    }
    let failed = |why: String| {
        (
            "GroupSnapshotContentCreationFailed",
            format!("failed to create group snapshot content with error {why}"),
        )
    };
    if of.selected.is_empty() {
        return Err(failed(
            "the selector chooses no claim; label the claims, then create the group".to_owned(),
        ));
    }
    let mut handles = Vec::new();
    let mut driver: Option<&str> = None;
    for (claim, volume) in &of.selected {
        let name = claim.name_any();
        let volume = volume.as_ref().filter(|_| claim::phase(claim) == "Bound").ok_or_else(|| {
            failed(format!(
                "the PVC {name} is not yet bound to a PV, will not attempt to take a group snapshot"
            ))
        })?;
        let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
        let csi = csi.ok_or_else(|| failed(format!("the volume of claim {name} is no CSI volume")))?;
        if *driver.get_or_insert(&csi.driver) != csi.driver {
            return Err(failed(format!(
                "claim {name} is of driver {}, others are not; a group is of one",
                csi.driver
            )));
        }
        handles.push(csi.volume_handle.clone());
    }
    let class = class(group, &of.classes, driver.unwrap_or_default())?;
    if Some(class.driver.as_str()) != driver {
        return Err(failed(format!(
            "the class {} is of driver {}; name one of the claims' driver",
            class.name_any(),
            class.driver
        )));
    }
    let mut prepared = group.clone();
    prepared.spec.volume_group_snapshot_class_name = Some(class.name_any());
    if !prepared.finalizers().iter().any(|name| name == GROUP_BOUND) {
        prepared.finalizers_mut().push(GROUP_BOUND.to_owned());
    }
    if prepared != *group {
        return Ok(Step::write(Write::Group(Box::new(prepared))));
    }
    // Volumes of several nodes are nobody's in particular: the driver says that it does not have them all.
    let mut only_nodes = of.only_nodes.iter();
    let node = only_nodes.next().filter(|_| only_nodes.next().is_none());
    let wanted = content(group, class, handles, node).map_err(failed)?;
    let message = format!("Waiting for a group snapshot {} to be created by the CSI driver.", key(group));
    Ok(Step::write(Write::CreateGroupContent(Box::new(wanted))).and(Event::normal(
        reference(group),
        "CreatingGroupSnapshot",
        message,
    )))
}

fn class<'a>(
    group: &VolumeGroupSnapshot,
    classes: &'a [Arc<VolumeGroupSnapshotClass>],
    driver: &str,
) -> Result<&'a VolumeGroupSnapshotClass, Refusal> {
    if let Some(name) = &group.spec.volume_group_snapshot_class_name {
        return classes.iter().find(|class| class.name_any() == *name).map(AsRef::as_ref).ok_or_else(|| {
            let why = format!("volumegroupsnapshotclass {name} not found; create it, or name another one");
            ("GetGroupSnapshotClassFailed", format!("failed to get group snapshot class with error {why}"))
        });
    }
    let mut found = classes.iter().filter(|class| {
        class.driver == driver
            && class.annotations().get(IS_DEFAULT_GROUP_CLASS).is_some_and(|value| value == "true")
    });
    let why = match (found.next(), found.next()) {
        (Some(class), None) => return Ok(class),
        (None, _) => format!("cannot find default group snapshot class for driver {driver}; name a class"),
        (Some(_), Some(_)) => {
            format!("driver {driver} has more than one default group snapshot class; name a class")
        }
    };
    let message = format!("Failed to set default group snapshot class with error {why}");
    Err(("SetDefaultGroupSnapshotClassFailed", message))
}

/// The content for a group: protected and bound from its first moment on.
fn content(
    group: &VolumeGroupSnapshot,
    class: &VolumeGroupSnapshotClass,
    handles: Vec<String>,
    node: Option<&String>,
) -> Result<VolumeGroupSnapshotContent, String> {
    let name = content_name(&group.uid().unwrap_or_default());
    let namespace = group.namespace().unwrap_or_default();
    let secret = secret::reference(
        &class.parameters,
        "group-snapshotter",
        &[("volumegroupsnapshotcontent.name", &name), ("volumegroupsnapshot.namespace", &namespace)],
        &[("volumegroupsnapshot.name", &group.name_any())],
    )?;
    let annotations = secret.map(|(secret, namespace)| {
        [(GROUP_SECRET_NAME.to_owned(), secret), (GROUP_SECRET_NAMESPACE.to_owned(), namespace)].into()
    });
    Ok(VolumeGroupSnapshotContent {
        metadata: ObjectMeta {
            name: Some(name),
            finalizers: Some(vec![GROUP_CONTENT.to_owned()]),
            labels: node.map(|node| [(SNAPSHOT_MANAGED_BY.to_owned(), node.clone())].into()),
            annotations,
            ..ObjectMeta::default()
        },
        spec: VolumeGroupSnapshotContentSpec {
            volume_group_snapshot_ref: ObjectReference { resource_version: None, ..reference(group) },
            deletion_policy: class.deletion_policy,
            driver: class.driver.clone(),
            volume_group_snapshot_class_name: Some(class.name_any()),
            source: VolumeGroupSnapshotContentSource {
                volume_handles: Some(handles),
                group_snapshot_handles: None,
            },
        },
        status: None,
    })
}

/// A group that exists, which a content stands for.
fn of_content(of: &Facts, name: &str) -> Result<Step, Refusal> {
    let group = &*of.group;
    let content =
        of.content.as_ref().filter(|content| content.name_any() == name).ok_or_else(|| {
            ("GroupSnapshotContentMissing", "VolumeGroupSnapshotContent is missing".to_owned())
        })?;
    if content.spec.source.group_snapshot_handles.is_none() {
        let message =
            "VolumeGroupSnapshotContent is dynamically provisioned while expecting a pre-provisioned one";
        return Err(("GroupSnapshotContentMismatch", message.to_owned()));
    }
    if !is_meant_for(content, group) {
        return Err(misbound(content));
    }
    if !is_taken(content) {
        let mut bound = VolumeGroupSnapshotContent::clone(content);
        bound.spec.volume_group_snapshot_ref.uid = group.uid();
        if bound.spec.volume_group_snapshot_class_name.is_none() {
            bound
                .spec
                .volume_group_snapshot_class_name
                .clone_from(&group.spec.volume_group_snapshot_class_name);
        }
        return Ok(Step::write(Write::GroupContent(Box::new(bound))));
    }
    Ok(follow(of, content))
}

fn misbound(content: &VolumeGroupSnapshotContent) -> Refusal {
    let message =
        format!("VolumeGroupSnapshotContent [{}] is bound to a different group snapshot", content.name_any());
    ("GroupSnapshotContentMisbound", message)
}

/// Gives each snapshot of a bound group its objects, then shows on the group what its content says.
fn follow(of: &Facts, content: &VolumeGroupSnapshotContent) -> Step {
    let group = &*of.group;
    if !group.finalizers().iter().any(|name| name == GROUP_BOUND) {
        let mut kept = group.clone();
        kept.finalizers_mut().push(GROUP_BOUND.to_owned());
        return Step::write(Write::Group(Box::new(kept)));
    }
    if let Some(id) = handle(content).filter(|_| content.status.is_some()) {
        for member in &of.members {
            if let Some(step) = member_step(group, content, id, member) {
                return step;
            }
        }
    }
    let mut new = group.clone();
    let told = content.status.clone().unwrap_or_default();
    let status = new.status.get_or_insert_default();
    let (was_made, was_ready) = (status.creation_time.is_some(), status.ready_to_use == Some(true));
    status.bound_volume_group_snapshot_content_name = Some(content.name_any());
    status.creation_time = told.creation_time.or(status.creation_time.take());
    status.ready_to_use = Some(told.ready_to_use.unwrap_or_default());
    status.error = told.error;
    let (is_made, is_now_ready) = (status.creation_time.is_some(), status.ready_to_use == Some(true));
    if new.status == group.status {
        return Step::nothing();
    }
    let (about, key) = (reference(group), key(group));
    let mut step = Step::write(Write::GroupStatus(Box::new(new)));
    if is_made && !was_made {
        let message = format!("GroupSnapshot {key} was successfully created by the CSI driver.");
        step = step.and(Event::normal(about.clone(), "GroupSnapshotCreated", message));
    }
    if is_now_ready && !was_ready {
        let message = format!("GroupSnapshot {key} is ready to use.");
        step = step.and(Event::normal(about, "GroupSnapshotReady", message));
    }
    step
}

/// The next thing that one snapshot of a group lacks: its VolumeSnapshot, its content, the word of both.
fn member_step(
    group: &VolumeGroupSnapshot,
    of: &VolumeGroupSnapshotContent,
    id: &str,
    member: &Member,
) -> Option<Step> {
    let namespace = group.namespace();
    let content_name = member_content_name(group, &member.info);
    let Some(snapshot) = &member.snapshot else {
        let claim = member.volume.as_ref().and_then(|volume| volume.spec.as_ref()?.claim_ref.clone());
        let claim = claim.and_then(|claim| claim.name).unwrap_or_default();
        let controller = OwnerReference { controller: Some(true), ..owner(group) };
        return Some(Step::write(Write::CreateSnapshot(Box::new(VolumeSnapshot {
            metadata: ObjectMeta {
                name: Some(member_name(group, &member.info)),
                namespace,
                owner_references: Some(vec![controller]),
                finalizers: Some(vec![SNAPSHOT_IN_GROUP.to_owned()]),
                ..ObjectMeta::default()
            },
            spec: VolumeSnapshotSpec {
                source: VolumeSnapshotSource {
                    persistent_volume_claim_name: Some(claim),
                    volume_snapshot_content_name: None,
                },
                volume_snapshot_class_name: None,
            },
            status: None,
        }))));
    };
    if snapshot.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let Some(content) = &member.content else {
        let mode = member.volume.as_ref().map(|volume| volume::volume_mode(volume).to_owned());
        let mut annotations = BTreeMap::from([(GROUP_HANDLE.to_owned(), id.to_owned())]);
        for (from, to) in
            [(GROUP_SECRET_NAME, SNAPSHOT_SECRET_NAME), (GROUP_SECRET_NAMESPACE, SNAPSHOT_SECRET_NAMESPACE)]
        {
            annotations.extend(of.annotations().get(from).map(|value| (to.to_owned(), value.clone())));
        }
        let node = member.only_node.as_ref();
        return Some(Step::write(Write::CreateContent(Box::new(VolumeSnapshotContent {
            metadata: ObjectMeta {
                name: Some(content_name),
                annotations: Some(annotations),
                labels: node.map(|node| [(SNAPSHOT_MANAGED_BY.to_owned(), node.clone())].into()),
                finalizers: Some(vec![SNAPSHOT_CONTENT.to_owned()]),
                ..ObjectMeta::default()
            },
            spec: VolumeSnapshotContentSpec {
                volume_snapshot_ref: ObjectReference { resource_version: None, ..reference(&**snapshot) },
                deletion_policy: of.spec.deletion_policy,
                driver: of.spec.driver.clone(),
                volume_snapshot_class_name: None,
                source: VolumeSnapshotContentSource {
                    volume_handle: member.info.volume_handle.clone(),
                    snapshot_handle: None,
                },
                source_volume_mode: mode,
            },
            status: None,
        }))));
    };
    let told = VolumeSnapshotContentStatus {
        snapshot_handle: member.info.snapshot_handle.clone(),
        creation_time: member.info.creation_time,
        restore_size: member.info.restore_size,
        ready_to_use: member.info.ready_to_use,
        error: None,
        volume_group_snapshot_handle: Some(id.to_owned()),
    };
    if content.status.as_ref() != Some(&told) {
        let mut new = VolumeSnapshotContent::clone(content);
        new.status = Some(told);
        return Some(Step::write(Write::ContentStatus(Box::new(new))));
    }
    let mut named = VolumeSnapshot::clone(snapshot);
    let status = named.status.get_or_insert_default();
    status.bound_volume_snapshot_content_name = Some(content_name);
    status.volume_group_snapshot_name = Some(group.name_any());
    (named.status != snapshot.status).then(|| Step::write(Write::SnapshotStatus(Box::new(named))))
}

/// A group that is being deleted: its content goes first, if it goes. Its snapshots' objects go with it, as what it
/// owns.
fn going(of: &Facts) -> Step {
    let group = &*of.group;
    if !group.finalizers().iter().any(|name| name == GROUP_BOUND) {
        return Step::nothing();
    }
    let snapshots = of.members.iter().filter_map(|member| member.snapshot.as_ref());
    if let Some(snapshot) = snapshots.into_iter().find(|snapshot| is_restored(snapshot)) {
        let message = format!("Snapshot {} of the group is being used to restore a PVC", snapshot.name_any());
        return Step::nothing().and(Event::warning(reference(group), "SnapshotDeletePending", message));
    }
    if let Some(content) = of.content.as_ref().filter(|content| is_bound_to(content, group)) {
        if !content.annotations().contains_key(GROUP_BEING_DELETED) {
            let mut marked = VolumeGroupSnapshotContent::clone(content);
            marked.annotations_mut().insert(GROUP_BEING_DELETED.to_owned(), "yes".to_owned());
            return Step::write(Write::GroupContent(Box::new(marked)));
        }
        if content.spec.deletion_policy == DeletionPolicy::Delete {
            return match content.metadata.deletion_timestamp {
                Some(_) => Step::nothing(),
                None => Step::write(Write::DeleteGroupContent(Box::new(VolumeGroupSnapshotContent::clone(
                    content,
                )))),
            };
        }
    }
    let mut released = group.clone();
    released.finalizers_mut().retain(|name| name != GROUP_BOUND);
    let released = Box::new(released);
    Step::write(match of.content {
        Some(_) => Write::Group(released),
        None => Write::ReleaseGroup { group: released, without: content_of(group) },
    })
}

/// What a group's content itself needs: its finalizer, once a group has taken it.
pub(super) fn content_step(content: &VolumeGroupSnapshotContent) -> Step {
    let is_kept = content.finalizers().iter().any(|name| name == GROUP_CONTENT);
    if !is_taken(content) || is_kept || content.metadata.deletion_timestamp.is_some() {
        return Step::nothing();
    }
    let mut kept = content.clone();
    kept.finalizers_mut().push(GROUP_CONTENT.to_owned());
    Step::write(Write::GroupContent(Box::new(kept)))
}

/// The content that a group is bound to, asks for, or would get.
pub(super) fn content_of(group: &VolumeGroupSnapshot) -> String {
    let asked = group.spec.source.volume_group_snapshot_content_name.as_deref();
    match bound_content(group).or(asked) {
        Some(name) => name.to_owned(),
        None => content_name(&group.uid().unwrap_or_default()),
    }
}

/// The group that a snapshot was taken with.
pub(super) fn name_of(snapshot: &VolumeSnapshot) -> Option<String> {
    let told = snapshot.status.as_ref().and_then(|status| status.volume_group_snapshot_name.clone());
    let owners = snapshot.owner_references().iter();
    told.or_else(|| {
        owners.filter(|owner| owner.kind == "VolumeGroupSnapshot").map(|owner| owner.name.clone()).next()
    })
}

/// Whether a group of the name that a snapshot tells is the one that it was taken with, and not a later one.
pub(super) fn has_member(group: &VolumeGroupSnapshot, snapshot: &VolumeSnapshot) -> bool {
    let mut owners = snapshot.owner_references().iter().filter(|owner| owner.kind == "VolumeGroupSnapshot");
    owners.next().is_none_or(|owner| Some(&owner.uid) == group.metadata.uid.as_ref())
}

/// The name of a member's VolumeSnapshot: the same whoever makes it.
pub(super) fn member_name(group: &VolumeGroupSnapshot, info: &VolumeSnapshotInfo) -> String {
    format!("snapshot-{}", digest(group, info))
}

/// The name of a member's content.
pub(super) fn member_content_name(group: &VolumeGroupSnapshot, info: &VolumeSnapshotInfo) -> String {
    content_of_member(&member_name(group, info))
}

/// The name of the content of the member of a name.
pub(super) fn content_of_member(name: &str) -> String {
    format!("snapcontent-{}", name.strip_prefix("snapshot-").unwrap_or(name))
}

fn digest(group: &VolumeGroupSnapshot, info: &VolumeSnapshotInfo) -> String {
    let id = info.volume_handle.as_deref().unwrap_or_default();
    let digest = Sha256::new().chain_update(group.uid().unwrap_or_default()).chain_update(id).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key(group: &VolumeGroupSnapshot) -> String {
    format!("{}/{}", group.namespace().unwrap_or_default(), group.name_any())
}

#[cfg(test)]
mod tests;
