//! What to do about a content: pure.

use resources::snapshot::DeletionPolicy;

use super::kind::Content;

/// What a snapshotter does about a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing: it is done, or not its time.
    Nothing,
    /// Ask the driver for the snapshot, first or again.
    Create,
    /// Ask the driver about a snapshot that was made by other means.
    Check,
    /// Delete the driver's snapshot, then let the object go.
    Delete(String),
    /// Let the object go: the snapshot is to be retained, or there is none.
    Release,
    /// The driver has answered: forget that it was asked.
    Settle,
}

/// Decides about a content.
pub(super) fn plan<C: Content>(content: &C) -> Plan {
    let has = |key: &str| content.annotations().contains_key(key);
    let was_asked = has(C::BEING_CREATED);
    if content.meta().deletion_timestamp.is_some() {
        let may_go = has(C::BEING_DELETED) || (content.is_given() && !content.is_taken());
        let is_kept = content.finalizers().iter().any(|name| name == C::FINALIZER);
        return match content.handle() {
            _ if !may_go || !is_kept => Plan::Nothing,
            // There may be a snapshot that nobody knows the id of.
            None if was_asked => Plan::Create,
            Some(handle) if content.policy() == DeletionPolicy::Delete && !content.is_member() => {
                Plan::Delete(handle.to_owned())
            }
            _ => Plan::Release,
        };
    }
    match (content.is_ready(), was_asked) {
        _ if content.is_member() => Plan::Nothing,
        (true, true) => Plan::Settle,
        (true, false) => Plan::Nothing,
        (false, _) if content.is_given() => Plan::Check,
        (false, _) => Plan::Create,
    }
}

/// What the plan depends on, except what the snapshotter itself writes on its way: that must not bring a content back
/// before its backoff.
pub(super) fn decides<C: Content>(content: &C) -> impl PartialEq + use<C> {
    (
        content.meta().uid.clone(),
        content.meta().deletion_timestamp.is_some(),
        content.annotations().contains_key(C::BEING_DELETED),
        content.handle().is_some() && content.told_handle().is_some(),
        content.is_taken(),
        content.policy(),
        content.labels().get(resources::labels::SNAPSHOT_MANAGED_BY).cloned(),
        content.finalizers().iter().any(|name| name == C::FINALIZER),
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use kube::ResourceExt;
    use resources::annotations::{GROUP_HANDLE, SNAPSHOT_BEING_CREATED, SNAPSHOT_BEING_DELETED};
    use resources::finalizers::SNAPSHOT_CONTENT;
    use resources::snapshot::{
        VolumeSnapshotContent, VolumeSnapshotContentSource, VolumeSnapshotContentSpec,
        VolumeSnapshotContentStatus,
    };

    use super::*;

    const HANDLE: &str = "id-s";

    /// A content by letters: `p`re-provisioned, `t`aken by a snapshot, has a `h`andle, is `r`eady, driver was `a`sked,
    /// is being deleted (`x`) and may go (`g`), policy Re`t`ain as `R`, of a group as `m`.
    fn content(traits: &str) -> VolumeSnapshotContent {
        let has = |letter: char| traits.contains(letter);
        let source = VolumeSnapshotContentSource {
            volume_handle: (!has('p')).then(|| "id-v".to_owned()),
            snapshot_handle: has('p').then(|| HANDLE.to_owned()),
        };
        let spec = VolumeSnapshotContentSpec {
            volume_snapshot_ref: ObjectReference {
                uid: has('t').then(|| "7".to_owned()),
                ..ObjectReference::default()
            },
            deletion_policy: if has('R') { DeletionPolicy::Retain } else { DeletionPolicy::Delete },
            driver: "fake".to_owned(),
            volume_snapshot_class_name: None,
            source,
            source_volume_mode: None,
        };
        let mut content = VolumeSnapshotContent::new("c", spec);
        content.metadata.finalizers = Some(vec![SNAPSHOT_CONTENT.to_owned()]);
        content.metadata.deletion_timestamp = has('x').then_some(Time(Timestamp::UNIX_EPOCH));
        for (letter, key) in
            [('a', SNAPSHOT_BEING_CREATED), ('g', SNAPSHOT_BEING_DELETED), ('m', GROUP_HANDLE)]
        {
            if has(letter) {
                content.annotations_mut().insert(key.to_owned(), "yes".to_owned());
            }
        }
        content.status = (has('h') || has('r')).then(|| VolumeSnapshotContentStatus {
            snapshot_handle: has('h').then(|| HANDLE.to_owned()),
            ready_to_use: Some(has('r')),
            ..VolumeSnapshotContentStatus::default()
        });
        content
    }

    #[test]
    fn plans() {
        let delete = || Plan::Delete(HANDLE.to_owned());
        for (traits, expected) in [
            ("t", Plan::Create),
            ("ta", Plan::Create),
            ("th", Plan::Create),
            ("thra", Plan::Settle),
            ("thr", Plan::Nothing),
            ("tm", Plan::Nothing),
            ("p", Plan::Check),
            ("pt", Plan::Check),
            ("pthr", Plan::Nothing),
            // Deleted by somebody who was not to.
            ("thrx", Plan::Nothing),
            ("txg", Plan::Release),
            ("taxg", Plan::Create),
            ("thrxg", delete()),
            ("thraxg", delete()),
            ("thrxgR", Plan::Release),
            ("thrxgm", Plan::Release),
            ("px", delete()),
            ("pxR", Plan::Release),
            ("ptx", Plan::Nothing),
            ("ptxg", delete()),
        ] {
            assert_eq!(plan(&content(traits)), expected, "{traits}");
        }
    }
}
