//! Letting a volume grow on this node after the controller has: while it is mounted, and when it gets mounted.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{Api, ResourceExt};
use resources::expansion::{self, Stage};
use resources::reference;
use runtime::{Change, Key, Next, update_status_if_changed};
use values::Quantity;

use crate::{
    agent::Agent,
    blocking::blocking,
    volumes::{
        self, Source, VolumeError,
        claim::{self, Claimed, ClaimedVolume},
        csi::Growth,
        growth::{self, Failure},
        places::Places,
        stages,
    },
};

impl Agent {
    /// Takes notice of a claim whose volume the node has to let grow.
    pub(crate) fn notice_claim(&self, change: &Change<PersistentVolumeClaim>) {
        let Change::Applied { old, new } = change else { return };
        let is_new = match expansion::stage(new) {
            Some(Stage::NodePending) => {
                old.as_ref().is_none_or(|old| expansion::stage(old) != Some(Stage::NodePending))
            }
            // Begun by an agent that is gone.
            Some(Stage::NodeInProgress) => old.is_none(),
            _ => false,
        };
        let key = Key::of(new.as_ref());
        // A pod that comes later reads the claim when it is mounted.
        if is_new && !self.users_of(&key).is_empty() {
            self.growing.add(key);
        }
    }

    /// Lets the volume of a claim grow if a pod of this node has it mounted.
    pub(crate) async fn grow(&self, key: Key) -> Result<Next, VolumeError> {
        // A pod that gets it mounted meanwhile brings the claim back.
        self.awaited.lock().insert(key.clone());
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &key.namespace);
        let Some(claim) = claims.get_opt(&key.name).await? else {
            self.awaited.lock().remove(&key);
            return Ok(Next::Done);
        };
        let name = resources::claim::volume_name(&claim).to_owned();
        let Some(pod) = self.user_of(&key, &name).await? else { return Ok(Next::Done) };
        self.awaited.lock().remove(&key);
        let Some(object) = Api::<PersistentVolume>::all(self.client.clone()).get_opt(&name).await? else {
            return Ok(Next::Done);
        };
        let node = Api::<Node>::all(self.client.clone()).get(&self.facts.name).await?;
        let labels = node.metadata.labels.unwrap_or_default();
        let Claimed::Csi(volume) = claim::resolve(&claim, Some(&object), &name, &self.facts.name, &labels)?
        else {
            return Ok(Next::Done);
        };
        let Some((claim, size, growth)) = self.begin_growth(claim, &object, &volume).await? else {
            return Ok(Next::Done);
        };
        let uid = pod.uid().unwrap_or_default();
        let outcome = self.csi.expand(&volume, &uid, &growth).await;
        self.end_growth(&claim, &pod, &volume, &size, outcome.as_ref().err()).await?;
        match outcome {
            Err(error) if matches!(Failure::of(&error), Failure::Open | Failure::Ended) => Err(error),
            _ => Ok(Next::Done),
        }
    }

    /// Records that the driver is about to be asked; nothing if there is nothing to ask it for.
    pub(crate) async fn begin_growth(
        &self,
        claim: PersistentVolumeClaim,
        object: &PersistentVolume,
        volume: &ClaimedVolume,
    ) -> Result<Option<(PersistentVolumeClaim, Quantity, Growth)>, VolumeError> {
        let Some(size) = growth::due(&claim, object).filter(|_| !volume.read_only) else { return Ok(None) };
        let Some(bytes) = size.ceil() else { return Ok(None) };
        if !self.csi.expands(&volume.driver).await? {
            return Ok(None);
        }
        let secrets = self.secret(volume.expand_secret.as_ref()).await?;
        let claims = self.claims_of(&claim);
        let begun = update_status_if_changed(&claims, &claim, expansion::begin_on_node).await?;
        Ok(Some((begun.unwrap_or(claim), size, Growth { bytes, secrets })))
    }

    /// Records what the driver has answered.
    pub(crate) async fn end_growth(
        &self,
        claim: &PersistentVolumeClaim,
        pod: &Pod,
        volume: &ClaimedVolume,
        size: &Quantity,
        error: Option<&VolumeError>,
    ) -> Result<(), VolumeError> {
        let change = |live: &mut PersistentVolumeClaim| match error.map(|error| (error, Failure::of(error))) {
            None => expansion::finish(live, size),
            Some((_, Failure::Open)) => {}
            Some((error, failure)) => {
                expansion::fail_on_node(live, &error.to_string(), failure == Failure::Infeasible);
            }
        };
        let claims = self.claims_of(claim);
        match update_status_if_changed(&claims, claim, change).await {
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                let live = claims.get(&claim.name_any()).await?;
                if live.metadata.uid == claim.metadata.uid {
                    update_status_if_changed(&claims, &live, change).await?;
                }
            }
            result => drop(result?),
        }
        for object in [reference(pod), reference(claim)] {
            match error {
                None => self.recorder.normal(
                    &object,
                    "FileSystemResizeSuccessful",
                    format!(
                        "MountVolume.NodeExpandVolume succeeded for volume \"{}\" {}",
                        volume.name, self.facts.name
                    ),
                ),
                Some(error) => self.recorder.warning(
                    &object,
                    "VolumeResizeFailed",
                    format!(
                        "NodeExpandVolume.NodeExpandVolume failed for volume \"{}\" : {error}",
                        volume.name
                    ),
                ),
            }
        }
        Ok(())
    }

    fn claims_of(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default())
    }

    /// The pods of this node that use a claim, and not for reading alone.
    fn users_of(&self, key: &Key) -> Vec<Arc<Pod>> {
        let mut pods = self.pods_of(&key.namespace);
        pods.retain(|pod| {
            volumes::used(pod).into_iter().any(|one| {
                let reads = matches!(Source::of(one), Source::Claim { read_only: true, .. });
                resources::claim::of_volume(pod, one).is_some_and(|name| name == key.name) && !reads
            })
        });
        pods
    }

    /// One of them that has the claim's volume mounted.
    async fn user_of(&self, key: &Key, volume: &str) -> Result<Option<Arc<Pod>>, VolumeError> {
        for pod in self.users_of(key) {
            let (layout, uid, name) = (self.layout.clone(), pod.uid().unwrap_or_default(), volume.to_owned());
            let record = blocking("reading a volume's record", move || {
                for block in [false, true] {
                    let places = Places { layout: &layout, block };
                    // One that can't be read is told of, and written anew, when its pod is looked at.
                    if let Ok(Some(record)) = stages::publish_record(places, &uid, &name) {
                        return Ok(Some(record));
                    }
                }
                Ok(None)
            });
            if record.await?.is_some_and(|record| record.own.ready && record.own.boot_id == self.boot_id) {
                return Ok(Some(pod));
            }
        }
        Ok(None)
    }
}
