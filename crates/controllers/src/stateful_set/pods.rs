//! The pods of a set: what they must look like, and how they are doing.

use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::set::{Set, controlled_by};

/// A pod's own name, for services that shall reach one pod.
pub(super) const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// A pod's ordinal.
pub(super) const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// The name of the revision whose template a pod was made from.
pub(super) const REVISION: &str = "controller-revision-hash";

/// A new pod of the set.
pub(super) fn new(set: &Set<'_>, ordinal: i64, template: &PodTemplateSpec, revision: &str) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let name = set.pod_name(ordinal);
    let mut pod = Pod {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            generate_name: Some(format!("{}-", set.name())),
            namespace: set.object.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controlled_by(set.object)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    };
    pod.labels_mut().insert(REVISION.to_owned(), revision.to_owned());
    identify(&mut pod, ordinal);
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain.clone_from(&set.spec.service_name);
    let templates = set.spec.volume_claim_templates.as_deref().unwrap_or_default();
    let mut volumes: Vec<Volume> = templates
        .iter()
        .zip(set.claim_names(ordinal))
        .map(|(template, claim_name)| Volume {
            name: template.name_any(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name, read_only: None }),
            ..Volume::default()
        })
        .collect();
    let others = spec.volumes.take().unwrap_or_default();
    volumes.extend(
        others.into_iter().filter(|volume| !templates.iter().any(|one| one.name_any() == volume.name)),
    );
    spec.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
    pod
}

/// Gives a pod the labels by which it is known.
pub(super) fn identify(pod: &mut Pod, ordinal: i64) {
    let name = pod.name_any();
    pod.labels_mut().insert(POD_NAME.to_owned(), name);
    pod.labels_mut().insert(POD_INDEX.to_owned(), ordinal.to_string());
}

/// The revision that a pod was made from.
pub(super) fn revision(pod: &Pod) -> &str {
    pod.labels().get(REVISION).map(String::as_str).unwrap_or_default()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(super) fn is_pending(pod: &Pod) -> bool {
    phase(pod) == "Pending"
}

/// Whether all containers have ended: the pod must be made anew, whichever way they ended.
pub(super) fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Failed" | "Succeeded")
}

pub(super) fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// How far a pod is on its way to be of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It is not running, or not ready.
    Unready,
    /// It is ready, and counts as available once it has stayed so for this long.
    Ready(SignedDuration),
    /// It has been ready for long enough.
    Available,
}

/// How a pod is doing, given for how many seconds it must have been ready.
pub(super) fn health(pod: &Pod, min_ready_seconds: i64, now: Timestamp) -> Health {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True");
    let Some(ready) = ready.filter(|_| phase(pod) == "Running") else { return Health::Unready };
    if min_ready_seconds == 0 {
        return Health::Available;
    }
    let wanted = SignedDuration::from_secs(min_ready_seconds);
    let Some(since) = &ready.last_transition_time else { return Health::Ready(wanted) };
    let left = wanted - now.duration_since(since.0);
    if left.is_positive() { Health::Ready(left) } else { Health::Available }
}
