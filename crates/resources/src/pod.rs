//! Pods: how they rank, and how they are told that they must go.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The condition of pods that are about to be deleted for somebody else's sake.
const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// A pod's priority, which admission gave it.
pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default()
}

/// Says on a pod why it is going to be deleted, unless that was said before.
pub fn target_of_disruption(pod: &mut Pod, reason: &str, message: &str, now: Time) {
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    if conditions.iter().any(|condition| condition.type_ == DISRUPTION_TARGET) {
        return;
    }
    conditions.push(PodCondition {
        type_: DISRUPTION_TARGET.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(now),
        ..PodCondition::default()
    });
}
