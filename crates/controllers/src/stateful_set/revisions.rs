//! The history of a set's pod template, kept in ControllerRevisions.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::set::{Set, controlled_by};

/// A revision's hash, as a label of its own.
const HASH: &str = "controller.kubernetes.io/hash";

/// The template that a revision keeps.
pub(super) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Puts revisions in their order: by number, then by age, then by name.
pub(super) fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by(|a, b| {
        let age =
            |revision: &ControllerRevision| revision.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let key = |revision: &ControllerRevision| (revision.revision, age(revision), revision.name_any());
        key(a).cmp(&key(b))
    });
}

/// Which revision the set's template is.
pub(super) enum Update {
    /// This one, the newest.
    Is(Arc<ControllerRevision>),
    /// This older one, which becomes the newest: a roll-back.
    Renumber(ControllerRevision),
    /// None yet: this one is to be made.
    Create(ControllerRevision),
}

/// Finds the revision of the set's template among those that are there, in order.
pub(super) fn update(set: &Set<'_>, revisions: &[Arc<ControllerRevision>]) -> Update {
    let is_equal = |revision: &Arc<ControllerRevision>| template(revision).as_ref() == Some(set.template());
    let next = revisions.last().map_or(1, |last| last.revision + 1);
    match revisions.iter().rposition(is_equal) {
        Some(at) if at + 1 == revisions.len() => Update::Is(Arc::clone(&revisions[at])),
        Some(at) => {
            let mut revision = ControllerRevision::clone(&revisions[at]);
            revision.revision = next;
            Update::Renumber(revision)
        }
        None => Update::Create(new(set, next)),
    }
}

fn new(set: &Set<'_>, number: i64) -> ControllerRevision {
    let mut template = serde_json::to_value(set.template()).unwrap_or_else(|_| json!({}));
    template["$patch"] = "replace".into();
    let data = json!({"spec": {"template": template}});
    let collisions = set.object.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let hash = hash(&data, collisions);
    let meta = set.template().metadata.as_ref();
    let mut labels = meta.and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(HASH.to_owned(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", set.name())),
            namespace: set.object.namespace(),
            labels: Some(labels),
            annotations: set.object.metadata.annotations.clone(),
            owner_references: Some(vec![controlled_by(set.object)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    }
}

/// FNV-1 of the data and the number of collisions so far, spelt so that no words come out.
fn hash(data: &Value, collisions: i32) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let text = format!("{data}{collisions}");
    let number =
        text.bytes().fold(2_166_136_261_u32, |hash, byte| hash.wrapping_mul(16_777_619) ^ u32::from(byte));
    number.to_string().bytes().map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()])).collect()
}

/// The revisions beyond the set's limit that nothing refers to, oldest first.
pub(super) fn surplus(
    set: &Set<'_>,
    revisions: &[Arc<ControllerRevision>],
    live: &[&str],
) -> Vec<Arc<ControllerRevision>> {
    let Ok(limit) = usize::try_from(set.spec.revision_history_limit.unwrap_or(10)) else { return Vec::new() };
    let past: Vec<_> =
        revisions.iter().filter(|revision| !live.contains(&revision.name_any().as_str())).cloned().collect();
    let surplus = past.len().saturating_sub(limit);
    past.into_iter().take(surplus).collect()
}
