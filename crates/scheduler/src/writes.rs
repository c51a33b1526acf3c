//! What is written to the API server once a pod's placement is decided.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use resources::pod::target_of_disruption;
use resources::{annotations, claim, reference};
use runtime::{Key, Next, update_if_changed};

use crate::place::deselect;
use crate::reasons::Refusal;
use crate::scheduler::{Scheduler, version};
use crate::world::{claims_of, node_of};

impl Scheduler {
    /// Writes a claim into a free volume: the binder completes what follows.
    pub(crate) async fn give(
        &self,
        volume: &Arc<PersistentVolume>,
        claim: &PersistentVolumeClaim,
    ) -> Result<Option<Next>, kube::Error> {
        let api = Api::<PersistentVolume>::all(self.context.client.clone());
        let written = update_if_changed(&api, &**volume, |volume| {
            volume.annotations_mut().insert(annotations::BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
            volume.spec.get_or_insert_default().claim_ref = Some(reference(claim));
        });
        let result = written.await;
        let world = &mut self.state.lock().world;
        match result {
            Ok(written) => {
                written.into_iter().for_each(|volume| world.put_volume(&Arc::new(volume)));
                Ok(None)
            }
            Err(error) => {
                world.take_back(&volume.name_any());
                look_again(error)
            }
        }
    }

    /// Writes the chosen node on a claim: its provisioner takes it from there.
    pub(crate) async fn select(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        node: &str,
    ) -> Result<Option<Next>, kube::Error> {
        let key = Key::of(&**claim);
        let api = Api::<PersistentVolumeClaim>::namespaced(self.context.client.clone(), &key.namespace);
        let written = update_if_changed(&api, &**claim, |claim| {
            claim.annotations_mut().insert(annotations::SELECTED_NODE.to_owned(), node.to_owned());
        });
        let result = written.await;
        let world = &mut self.state.lock().world;
        match result {
            Ok(written) => {
                if let Some(claim) = written {
                    world.ledger.written(&key, version(claim.metadata.resource_version.as_deref()));
                    world.put_claim(&Arc::new(claim));
                }
                Ok(None)
            }
            Err(error) => {
                world.ledger.settle(&key);
                look_again(error)
            }
        }
    }

    /// Whether the pod's claims still have the volumes that it was placed by, watches being late. A pod on a node where
    /// its volumes are not stays there for good.
    async fn has_what_was_known(&self, pod: &Pod) -> Result<bool, kube::Error> {
        let has = |claim: &PersistentVolumeClaim| (claim.uid(), claim::volume_name(claim).to_owned());
        for (key, _) in claims_of(pod) {
            let api = Api::<PersistentVolumeClaim>::namespaced(self.context.client.clone(), &key.namespace);
            let now = api.get_opt(&key.name).await?.as_ref().map(has);
            if now.is_none() || now != self.state.lock().world.claim(&key).map(|claim| has(claim)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(crate) async fn bind(&self, pod: &Pod, key: &Key, node: &str) -> Result<Next, kube::Error> {
        match self.has_what_was_known(pod).await {
            Ok(true) => {}
            other => {
                self.state.lock().world.unassume(key);
                return other.map(|_| Next::Overtaken);
            }
        }
        let binding = Binding {
            metadata: kube::core::ObjectMeta {
                name: pod.metadata.name.clone(),
                namespace: pod.metadata.namespace.clone(),
                uid: pod.metadata.uid.clone(),
                ..Default::default()
            },
            target: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &key.namespace);
        let posted: Result<serde_json::Value, _> =
            api.create_subresource("binding", &key.name, &PostParams::default(), &binding).await;
        let mut state = self.state.lock();
        match posted {
            Ok(_) => {
                state.told.remove(key);
                state.contended.remove(key);
                state.avoid.remove(key);
                state.since.remove(key);
                let uid = |claim: &Arc<PersistentVolumeClaim>| claim.uid();
                let claims = claims_of(pod);
                let uids: Vec<_> =
                    claims.iter().filter_map(|(key, _)| state.world.claim(key).and_then(uid)).collect();
                tracing::info!(pod = %key, claim = uids.join(","), node, "pod placed");
                let message = format!("Successfully assigned {key} to {node}");
                self.recorder.normal(&reference(pod), "Scheduled", message);
                Ok(Next::Done)
            }
            Err(error) => {
                state.world.unassume(key);
                look_again(error).map(|next| next.unwrap_or(Next::Done))
            }
        }
    }

    /// Says on the pod why it has no node. What could not be said counts as never said.
    pub(crate) async fn tell(&self, pod: &Pod, refusal: &Refusal) -> Result<Option<Next>, kube::Error> {
        let message = refusal.message();
        if node_of(pod).is_none() {
            match self.write_refusal(pod, &message).await {
                Ok(written) => {
                    let world = &mut self.state.lock().world;
                    written.into_iter().for_each(|pod| world.put_pod(&Arc::new(pod)));
                }
                Err(error) => {
                    self.state.lock().told.remove(&Key::of(pod));
                    return look_again(error);
                }
            }
        }
        self.recorder.warning(&reference(pod), "FailedScheduling", message);
        Ok(None)
    }

    /// The pod's condition.
    async fn write_refusal(&self, pod: &Pod, message: &str) -> Result<Option<Pod>, kube::Error> {
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
        let written = runtime::update_status_if_changed(&api, pod, |pod| {
            let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
            let before = conditions.iter().position(|condition| condition.type_ == "PodScheduled");
            let before = before.map(|at| conditions.remove(at));
            let was_false = before.filter(|condition| condition.status == "False");
            conditions.push(PodCondition {
                type_: "PodScheduled".to_owned(),
                status: "False".to_owned(),
                reason: Some("Unschedulable".to_owned()),
                message: Some(message.to_owned()),
                last_transition_time: was_false
                    .and_then(|condition| condition.last_transition_time)
                    .or_else(|| Some(Time(clock::now()))),
                ..PodCondition::default()
            });
        });
        written.await
    }

    /// Deletes pods so that one of a higher priority finds room on a node. It says on the pod which node that is, first:
    /// what comes after is seen by everybody as being for its sake.
    pub(crate) async fn make_way(
        &self,
        pod: &Pod,
        node: &str,
        victims: &[Key],
    ) -> Result<Option<Next>, kube::Error> {
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
        // What was told of it a moment ago made another version of it.
        let known = self.state.lock().world.pod(&Key::of(pod)).cloned();
        let Some(known) = known.filter(|known| known.uid() == pod.uid()) else { return Ok(None) };
        let nominate = |pod: &mut Pod| {
            pod.status.get_or_insert_default().nominated_node_name = Some(node.to_owned());
        };
        match runtime::update_status_if_changed(&api, &*known, nominate).await {
            Ok(written) => {
                let world = &mut self.state.lock().world;
                written.into_iter().for_each(|pod| world.put_pod(&Arc::new(pod)));
            }
            Err(error) => return look_again(error),
        }
        for key in victims {
            let Some(victim) = self.state.lock().world.pod(key).cloned() else { continue };
            if let Some(next) = self.preempt(&victim, key, pod, node).await? {
                return Ok(Some(next));
            }
        }
        Ok(None)
    }

    async fn preempt(
        &self,
        victim: &Pod,
        key: &Key,
        pod: &Pod,
        node: &str,
    ) -> Result<Option<Next>, kube::Error> {
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &key.namespace);
        let told = runtime::update_status_if_changed(&api, victim, |victim| {
            let message = "default-scheduler: preempting to accommodate a higher priority pod";
            target_of_disruption(victim, "PreemptionByScheduler", message, Time(clock::now()));
        });
        if let Err(error) = told.await {
            return look_again(error);
        }
        // Said before it is done: an answer that is lost hides no reason.
        let (by, uid) = (Key::of(pod), pod.uid().unwrap_or_default());
        tracing::info!(pod = %by, victim = %key, node, "a pod makes way for one of a higher priority");
        self.recorder.normal(
            &reference(victim),
            "Preempted",
            format!("Preempted by pod {uid} on node {node}"),
        );
        let preconditions = Preconditions { uid: victim.uid(), resource_version: None };
        match api.delete(&key.name, &DeleteParams::default().preconditions(preconditions)).await {
            Ok(_) => Ok(None),
            Err(error) => look_again(error),
        }
    }

    /// Takes a vanished node off a claim, so that another one is chosen.
    pub(crate) async fn free_from_lost_node(&self, key: Key) -> Result<Next, kube::Error> {
        let claim = {
            let state = self.state.lock();
            let claim = state.world.claim(&key).filter(|claim| {
                let lost = claim::selected_node(claim).is_some_and(|node| !state.world.nodes.contains(node));
                lost && claim::volume_name(claim).is_empty()
            });
            claim.cloned()
        };
        let Some(claim) = claim else { return Ok(Next::Done) };
        let api = Api::<PersistentVolumeClaim>::namespaced(self.context.client.clone(), &key.namespace);
        match update_if_changed(&api, &*claim, deselect).await {
            Ok(_) => {
                self.state.lock().world.ledger.settle(&key);
                Ok(Next::Done)
            }
            Err(error) => look_again(error).map(|next| next.unwrap_or(Next::Done)),
        }
    }
}

/// Somebody else wrote first, or took the object away: decide again from the news.
fn look_again(error: kube::Error) -> Result<Option<Next>, kube::Error> {
    match error {
        kube::Error::Api(status) if status.is_conflict() || status.is_not_found() => {
            Ok(Some(Next::Overtaken))
        }
        error => Err(error),
    }
}
