//! Making a volume for a claim, one step at a time. Each step can be repeated, and a crash between any two is found
//! again by the claim's intent.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use csi::v1::{CreateVolumeRequest, DeleteVolumeRequest, Volume};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use resources::{annotations, fit, reference};
use runtime::{Key, Next, explain, update_if_changed};
use tonic::{Code, Status};

use super::claim::{Plan, plan};
use super::owner::{self, Draw};
use super::parameters::{self, Parameters, Subject};
use super::request::{self, Manner, RequestError};
use super::source::{Content, Where};
use super::{ProvisionError, Provisioner, intent, volume};
use crate::driver::{CHANGE, within};

/// What a CreateVolume that failed leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Perhaps a volume: the call must be repeated until it is known.
    Open,
    /// Nothing, and another node may have the room that this one lacks.
    Full,
    /// Nothing.
    Final,
}

/// Sorts the answers of CreateVolume as upstream does. An error without an answer leaves everything open.
pub(super) fn failure(status: &Status) -> Failure {
    match status.code() {
        _ if status.source().is_some() => Failure::Open,
        Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Aborted => Failure::Open,
        Code::ResourceExhausted => Failure::Full,
        _ => Failure::Final,
    }
}

/// A claim whose volume is being made, with all that follows from it.
struct Order<'a> {
    claim: PersistentVolumeClaim,
    class: &'a StorageClass,
    parameters: Parameters,
    request: CreateVolumeRequest,
    bytes: i64,
    source: Option<Content>,
}

impl Provisioner {
    pub(super) async fn reconcile_claim(&self, key: Key) -> Result<Next, ProvisionError> {
        let Some(claim) = self.claims.get(&key.namespace, &key.name) else { return Ok(Next::Done) };
        tracing::Span::current().record("claim", claim.metadata.uid.as_deref());
        let class = self.classes.get("", resources::claim::class(&claim));
        // A class that went since the driver was asked is on record, with all that it takes to ask again.
        let class = class.or_else(|| intent::class(&claim, self.holder()).map(Arc::new));
        let result = match plan(&claim, class.as_deref(), self.has_volume(&claim), self.holder()) {
            Plan::Nothing => return Ok(Next::Done),
            Plan::Refuse(why) => {
                self.tell_failure(&claim, why);
                return Ok(Next::Done);
            }
            Plan::LeaveToPopulator => {
                let message = "Assuming an external populator will provision the volume";
                self.recorder.normal(&reference(&*claim), "Provisioning", message);
                return Ok(Next::Done);
            }
            Plan::Choose(class) => return self.choose(&key, &claim, class).await,
            Plan::Settle => self.settle(&key, &claim, false).await,
            Plan::Stuck => Err(ProvisionError::ClassGone(resources::claim::class(&claim).to_owned())),
            Plan::Provision(class) => Box::pin(self.provision(&key, &claim, class)).await,
            Plan::Undo(class) => Box::pin(self.undo(&key, &claim, class)).await,
        };
        if let Err(error) = &result
            && !matches!(error, ProvisionError::Api { .. })
        {
            self.tell_failure(&claim, &explain(error));
        }
        match result {
            // Looked at again when the source changes, or a class of that name is made: nothing else changes them.
            Err(ProvisionError::Source(_) | ProvisionError::Request(_)) => Ok(Next::Done),
            result => result.map(|()| Next::Done),
        }
    }

    fn tell_failure(&self, claim: &PersistentVolumeClaim, why: &str) {
        let class = resources::claim::class(claim);
        let message = format!("failed to provision volume with StorageClass \"{class}\": {why}");
        self.recorder.warning(&reference(claim), "ProvisioningFailed", message);
    }

    fn has_volume(&self, claim: &PersistentVolumeClaim) -> bool {
        self.volumes.get("", &volume_name(claim)).is_some()
    }

    /// Selects this node for a claim that binds at once, if it wins the draw. The claim's change then brings it back.
    async fn choose(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
    ) -> Result<Next, ProvisionError> {
        let bytes = match request::requested_bytes(claim) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.tell_failure(claim, &error.to_string());
                return Ok(Next::Done);
            }
        };
        // Before the draw: a change of capacities during it must bring the claim back.
        self.lost.lock().insert(key.clone());
        let informers = &self.context.informers;
        let is_drawn = owner::is_ours(
            draw(claim, class, bytes),
            self.driver.name(),
            &self.place,
            &informers.capacities().all(),
        );
        let is_ours = match self.origin(claim).await {
            Ok(Some((_, place @ (Where::Node(_) | Where::With(_))))) => {
                // Capacity elsewhere changes nothing about it.
                self.lost.lock().remove(key);
                self.is_source_here(claim, &place)
            }
            Err(ProvisionError::Source(error)) => {
                self.lost.lock().remove(key);
                if is_drawn {
                    self.tell_failure(claim, &error.to_string());
                }
                return Ok(Next::Done);
            }
            Err(error) => return Err(error),
            Ok(_) => is_drawn,
        };
        if is_ours {
            self.lost.lock().remove(key);
            let node = self.options.node.clone();
            let claims = self.claims_in(key);
            let selected = update_if_changed(&claims, claim, |claim| {
                claim.annotations_mut().insert(annotations::SELECTED_NODE.to_owned(), node);
            });
            match selected.await {
                // What the other one wrote may be nothing that brings the claim back.
                Err(kube::Error::Api(status)) if status.is_conflict() => return Ok(Next::Overtaken),
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                result => drop(result.map_err(api(format!("select the node of the claim {key}")))?),
            }
        }
        Ok(Next::Done)
    }

    async fn provision(
        &self,
        key: &Key,
        seen: &PersistentVolumeClaim,
        class: &StorageClass,
    ) -> Result<(), ProvisionError> {
        let first = !intent::is_held_by(seen, self.holder());
        // What can be refused without a trace is refused before the intent is recorded.
        let source = match first {
            true => self.source(key, seen).await?,
            false => intent::source(seen),
        };
        let order = self.order(seen.clone(), class, source)?;
        let secrets = self.secret(order.parameters.secrets.provisioner.as_ref()).await?;
        if first && order.source.is_some() {
            self.keep_source(seen).await?;
        }
        let Some(claim) = self.record(key, seen, class, order.source.as_ref()).await? else {
            return Ok(());
        };
        let order = Order { claim, ..order };
        if first {
            let message = format!("External provisioner is provisioning volume for claim \"{key}\"");
            self.recorder.normal(&reference(&order.claim), "Provisioning", message);
        }
        let made = match self.create(&order, secrets).await {
            Ok(made) => made,
            Err(error) => return self.give_up(key, &order, error).await,
        };
        if let Err(unfit) = volume::check(&made, order.bytes, order.source.as_ref()) {
            if !made.volume_id.is_empty() {
                self.delete_again(&order, &made).await?;
            }
            self.settle(key, &order.claim, false).await?;
            return Err(unfit.into());
        }
        let now = self.claims.get(&key.namespace, &key.name);
        if now.is_some_and(|now| now.metadata.deletion_timestamp.is_some()) {
            self.delete_again(&order, &made).await?;
            return self.settle(key, &order.claim, false).await;
        }
        self.publish(&order, &made).await?;
        tracing::info!(volume = order.request.name, handle = made.volume_id, "volume made");
        self.signal.raise();
        let message = format!("Successfully provisioned volume {}", order.request.name);
        self.recorder.normal(&reference(&order.claim), "ProvisioningSucceeded", message);
        Ok(())
    }

    /// Finds out whether a volume was made for a claim that does not want it any more, by asking for it once more,
    /// and deletes it.
    async fn undo(
        &self,
        key: &Key,
        seen: &PersistentVolumeClaim,
        class: &StorageClass,
    ) -> Result<(), ProvisionError> {
        // What is known may lag behind. Without its record the matter is settled, and nothing keeps the claim until
        // another volume would be deleted again.
        let action = || format!("read the claim {key}");
        let live = self.claims_in(key).get_opt(&key.name).await.map_err(api(action()))?;
        let is_open = |live: &PersistentVolumeClaim| {
            live.metadata.uid == seen.metadata.uid && intent::is_held_by(live, self.holder())
        };
        if !live.as_ref().is_some_and(is_open) {
            return Ok(());
        }
        // A volume that has an object is not ours to delete.
        if self.live_volume(seen).await?.is_none() {
            let order = self.order(seen.clone(), class, intent::source(seen))?;
            let secret = order.parameters.secrets.provisioner.as_ref();
            let secrets = self.secret_or_none(secret).await?;
            let blind = secret.is_some() && secrets.is_empty();
            match self.create(&order, secrets).await {
                Ok(made) => self.delete_again(&order, &made).await?,
                Err(ProvisionError::Create { volume, status }) if failure(&status) != Failure::Open => {
                    if blind {
                        self.tell_failure(seen, &ProvisionError::Unknown { volume, status }.to_string());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.settle(key, seen, false).await
    }

    /// The content that the claim's volume is to have, if it can be made here. A claim that was given the wrong node
    /// is handed back.
    async fn source(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
    ) -> Result<Option<Content>, ProvisionError> {
        let Some((content, place)) = self.origin(claim).await? else { return Ok(None) };
        if let Err(elsewhere) = self.check_place(claim, &place) {
            let claims = self.claims_in(key);
            let handed_back = update_if_changed(&claims, claim, |claim| {
                claim.annotations_mut().remove(annotations::SELECTED_NODE);
            });
            handed_back.await.map_err(api(format!("take the selected node off the claim {key}")))?;
            return Err(elsewhere.into());
        }
        Ok(Some(content))
    }

    /// Whether this is the one node to make a volume of a source that only some nodes have.
    fn is_source_here(&self, claim: &PersistentVolumeClaim, place: &Where) -> bool {
        if self.check_place(claim, place).is_err() {
            return false;
        }
        let Where::With(volume) = place else { return true };
        self.place.is_drawn(claim.metadata.uid.as_deref(), |node| self.place.admits(volume, node))
    }

    fn order<'a>(
        &self,
        claim: PersistentVolumeClaim,
        class: &'a StorageClass,
        source: Option<Content>,
    ) -> Result<Order<'a>, ProvisionError> {
        if !request::allows(class, &self.place.segments) {
            return Err(RequestError::Topology(self.options.node.clone()).into());
        }
        let name = volume_name(&claim);
        let subject = Subject {
            volume: &name,
            namespace: claim.metadata.namespace.as_deref().unwrap_or_default(),
            claim: claim.metadata.name.as_deref().unwrap_or_default(),
            annotations: claim.annotations(),
        };
        let parameters =
            parameters::interpret(class.parameters.as_ref(), subject).map_err(RequestError::from)?;
        let manner = Manner {
            single_node_multi_writer: self
                .driver
                .can(csi::v1::controller_service_capability::rpc::Type::SingleNodeMultiWriter),
            extra_metadata: self.options.extra_metadata,
            segments: self.place.segments.clone(),
        };
        let attributes = request::attributes(
            &claim,
            self.attributes_classes.get("", fit::attributes_class_of_claim(&claim)).as_deref(),
            self.driver.name(),
            self.driver.can(csi::v1::controller_service_capability::rpc::Type::ModifyVolume),
        )?;
        let request = request::create(&claim, class, &parameters, &manner, source.as_ref())?;
        let request = CreateVolumeRequest { mutable_parameters: attributes, ..request };
        let bytes = request::requested_bytes(&claim)?;
        Ok(Order { claim, class, parameters, request, bytes, source })
    }

    /// Records the intent on the claim as it is now. `None` if the claim turns out to want no volume.
    ///
    /// An intent that was there already may be older than what the informers know: then the volume is looked for live.
    async fn record(
        &self,
        key: &Key,
        seen: &PersistentVolumeClaim,
        class: &StorageClass,
        source: Option<&Content>,
    ) -> Result<Option<PersistentVolumeClaim>, ProvisionError> {
        let claims = self.claims_in(key);
        let action = || format!("record on the claim {key} that its volume is being made");
        for attempt in 1.. {
            let Some(live) = claims.get_opt(&key.name).await.map_err(api(action()))? else { return Ok(None) };
            if live.metadata.uid != seen.metadata.uid {
                return Ok(None);
            }
            let has_volume =
                intent::is_held_by(&live, self.holder()) && self.live_volume(&live).await?.is_some();
            if !matches!(plan(&live, Some(class), has_volume, self.holder()), Plan::Provision(_)) {
                return Ok(None);
            }
            let recorded = update_if_changed(&claims, &live, |claim| {
                intent::record(claim, self.holder(), class, source)
            });
            match recorded.await {
                Ok(written) => return Ok(Some(written.unwrap_or(live))),
                Err(kube::Error::Api(status)) if status.is_conflict() && attempt < 4 => {}
                Err(error) => return Err(api(action())(error)),
            }
        }
        Ok(None)
    }

    async fn create(
        &self,
        order: &Order<'_>,
        secrets: BTreeMap<String, String>,
    ) -> Result<Volume, ProvisionError> {
        let request = CreateVolumeRequest { secrets, ..order.request.clone() };
        let answer = within(CHANGE, self.driver.controller().create_volume(request)).await;
        let answer = answer.map_err(|status| ProvisionError::Create {
            volume: order.request.name.clone(),
            status: Box::new(status),
        })?;
        Ok(answer.volume.unwrap_or_default())
    }

    /// Deletes a volume that was just made. Its storage is free again.
    async fn delete_again(&self, order: &Order<'_>, made: &Volume) -> Result<(), ProvisionError> {
        let secrets = self.secret_or_none(order.parameters.secrets.provisioner.as_ref()).await?;
        self.delete_volume(DeleteVolumeRequest { volume_id: made.volume_id.clone(), secrets }).await
    }

    /// Creates the PersistentVolume. One that exists already was created by an attempt whose answer was lost.
    async fn publish(&self, order: &Order<'_>, made: &Volume) -> Result<(), ProvisionError> {
        let volume = volume::persistent_volume(
            &order.claim,
            order.class,
            &order.parameters,
            made,
            order.bytes,
            self.holder(),
        );
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        match volumes.create(&PostParams::default(), &volume).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                match self.live_volume(&order.claim).await? {
                    Some(found) if resources::volume::is_bound_to(&found, &order.claim) => Ok(()),
                    _ => Err(ProvisionError::NameTaken(volume.name_any())),
                }
            }
            Err(error) => Err(api(format!("create the PersistentVolume {}", volume.name_any()))(error)),
        }
    }

    /// After a CreateVolume that failed: forgets the intent unless a volume may be there.
    async fn give_up(
        &self,
        key: &Key,
        order: &Order<'_>,
        error: ProvisionError,
    ) -> Result<(), ProvisionError> {
        let ProvisionError::Create { status, .. } = &error else { return Err(error) };
        match failure(status) {
            Failure::Open => {}
            Failure::Final => self.settle(key, &order.claim, false).await?,
            Failure::Full => {
                // The published capacity was wrong: have it corrected before anyone chooses by it again.
                self.signal.raise();
                let draw = draw(&order.claim, order.class, order.bytes);
                let capacities = self.context.informers.capacities().all();
                let elsewhere = resources::class::waits_for_consumer(order.class)
                    || owner::fits_elsewhere(draw, self.driver.name(), &self.place.segments, &capacities);
                self.settle(key, &order.claim, elsewhere).await?;
            }
        }
        Err(error)
    }

    /// Removes the intent; with `reschedule` also the selected node, so that it is chosen again.
    async fn settle(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        reschedule: bool,
    ) -> Result<(), ProvisionError> {
        let claims = self.claims_in(key);
        let settled = runtime::edit(&claims, &key.name, |live: &mut PersistentVolumeClaim| {
            if live.metadata.uid == claim.metadata.uid && intent::is_held_by(live, self.holder()) {
                intent::clear(live);
                if reschedule && resources::claim::selected_node(live) == Some(&self.options.node) {
                    live.annotations_mut().remove(annotations::SELECTED_NODE);
                }
            }
        });
        match settled.await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            result => {
                result.map(drop).map_err(api(format!("clear the record of provisioning on the claim {key}")))
            }
        }
    }

    async fn live_volume(
        &self,
        claim: &PersistentVolumeClaim,
    ) -> Result<Option<PersistentVolume>, ProvisionError> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let name = volume_name(claim);
        volumes.get_opt(&name).await.map_err(api(format!("read the PersistentVolume {name}")))
    }

    fn claims_in(&self, key: &Key) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }
}

fn draw<'a>(claim: &'a PersistentVolumeClaim, class: &'a StorageClass, bytes: i64) -> Draw<'a> {
    Draw { uid: claim.metadata.uid.as_deref().unwrap_or_default(), bytes, class }
}

fn volume_name(claim: &PersistentVolumeClaim) -> String {
    resources::volume::name_for(claim.metadata.uid.as_deref().unwrap_or_default())
}

pub(super) fn api(action: String) -> impl FnOnce(kube::Error) -> ProvisionError {
    move |source| ProvisionError::Api { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_leave_it_open_whether_a_volume_exists() {
        for code in (1..=16).map(Code::from) {
            let expected = match code {
                Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Aborted => Failure::Open,
                Code::ResourceExhausted => Failure::Full,
                _ => Failure::Final,
            };
            assert_eq!(failure(&Status::new(code, "")), expected, "{code}");
        }
        let broken = Status::from_error(Box::new(std::io::Error::other("connection lost")));
        assert_eq!(failure(&broken), Failure::Open);
    }
}
