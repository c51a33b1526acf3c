//! A storage system that counts its volumes, and the provisioner of its driver: what external-provisioner does, as
//! briefly as it can be done without losing anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use resources::annotations::{BIND_COMPLETED, PROVISIONED_BY, SELECTED_NODE};
use resources::finalizers::{PROVISIONER, VOLUME_PROTECTION};
use resources::{claim, class, volume};
use runtime::{Change, Context, Key, Next, Queue, edit};
use serde_json::json;

use crate::{Dice, Network};

/// The driver's name.
pub const DRIVER: &str = "storage.example.com";

/// The storage system: volumes by name, with the UID of the claim that each was made for.
#[derive(Clone, Default)]
pub struct Storage {
    volumes: Arc<Mutex<BTreeMap<String, String>>>,
    refusals: Arc<Mutex<(u64, Dice)>>,
}

impl Default for Dice {
    fn default() -> Dice {
        Dice::new(0)
    }
}

/// Why the storage did not do as asked.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the storage is busy")]
    Busy,
    #[error("the API: {0}")]
    Api(#[from] kube::Error),
    #[error("class {0:?} does not exist")]
    NoClass(String),
}

impl Storage {
    /// The volumes that hold data, with the UIDs of their claims.
    pub fn volumes(&self) -> BTreeMap<String, String> {
        self.volumes.lock().clone()
    }

    /// From now on so many calls in a thousand fail, after their effect or without one.
    pub fn refuse(&self, in_a_thousand: u64, seed: u64) {
        *self.refusals.lock() = (in_a_thousand, Dice::new(seed));
    }

    fn call(&self, effect: impl FnOnce(&mut BTreeMap<String, String>)) -> Result<(), Failure> {
        let (fails, done) = {
            let (often, dice) = &mut *self.refusals.lock();
            (dice.in_a_thousand(*often), dice.in_a_thousand(500))
        };
        if !fails || done {
            effect(&mut self.volumes.lock());
        }
        if fails { Err(Failure::Busy) } else { Ok(()) }
    }
}

/// Makes volumes for claims of the driver's classes, and deletes those that are released, until the context is shut
/// down.
pub async fn provision(context: Context, storage: Storage, network: Network) {
    let queue = Queue::<Key>::new("provisioner", &context.metrics);
    let (claims, volumes) = (context.informers.claims(), context.informers.volumes());
    let classes = context.informers.classes();
    classes.subscribe({
        let (queue, claims) = (queue.clone(), claims.clone());
        move |_| claims.all().iter().for_each(|claim| queue.add(Key::of(&**claim)))
    });
    claims.subscribe({
        let queue = queue.clone();
        move |change: &Change<PersistentVolumeClaim>| queue.add(Key::of(&**change.object()))
    });
    volumes.subscribe({
        let queue = queue.clone();
        move |change: &Change<PersistentVolume>| {
            let volume = change.object();
            queue.add(Key::of(&**volume));
            // The claim that it was made for may need another.
            let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            if let (Change::Deleted(_), Some(name)) = (change, claim.and_then(|claim| claim.name.clone())) {
                queue.add(Key { namespace: "default".to_owned(), name });
            }
        }
    });
    let synced = async { tokio::join!(claims.synced(), volumes.synced(), classes.synced()) };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    let worker = Provisioner { context: context.clone(), storage, network };
    runtime::work(queue, 8, context.shutdown.clone(), |key| {
        let worker = &worker;
        Box::pin(async move {
            match key.namespace.is_empty() {
                true => Box::pin(worker.release(&key.name)).await?,
                false => Box::pin(worker.make(&key.name)).await?,
            }
            Ok::<_, Failure>(Next::Done)
        })
    })
    .await;
}

struct Provisioner {
    context: Context,
    storage: Storage,
    network: Network,
}

impl Provisioner {
    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::default_namespaced(self.context.client.clone())
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.context.client.clone())
    }

    async fn make(&self, name: &str) -> Result<(), Failure> {
        self.forget_lost(name).await?;
        let Some(wanted) = self.claims().get_opt(name).await? else { return Ok(()) };
        let is_ours = claim::provisioner(&wanted) == Some(DRIVER) && claim::volume_name(&wanted).is_empty();
        if !is_ours || wanted.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let class_name = claim::class(&wanted).to_owned();
        let classes = Api::<StorageClass>::all(self.context.client.clone());
        let found = classes.get_opt(&class_name).await?;
        let class = found.ok_or(Failure::NoClass(class_name))?;
        let node = claim::selected_node(&wanted).map(str::to_owned);
        if class::waits_for_consumer(&class) && node.is_none() {
            return Ok(());
        }
        if let Some(node) = &node
            && Api::<Node>::all(self.context.client.clone()).get_opt(node).await?.is_none()
        {
            edit(&self.claims(), name, |claim| _ = claim.annotations_mut().remove(SELECTED_NODE)).await?;
            return Ok(());
        }
        let uid = wanted.uid().unwrap_or_default();
        let known = self.storage.volumes().into_iter().find(|(_, owner)| *owner == uid);
        // Named by count, not by UID: names decide what goes wrong, and shall follow from the seed.
        let volume = match known {
            Some((volume, _)) => volume,
            None => {
                (0..).map(|n| format!("made-{name}-{n}")).find(|name| self.is_new(name)).unwrap_or_default()
            }
        };
        self.storage.call(|volumes| _ = volumes.entry(volume.clone()).or_insert_with(|| uid.clone()))?;
        let made = describe(&volume, &wanted, &class, node);
        match self.volumes().create(&PostParams::default(), &made).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn is_new(&self, name: &str) -> bool {
        !self.storage.volumes.lock().contains_key(name)
            && self.network.ledger(|ledger| !ledger.policies.contains_key(name))
    }

    /// Deletes what was made for a claim that went before its volume was announced.
    async fn forget_lost(&self, claim: &str) -> Result<(), Failure> {
        let prefix = format!("made-{claim}-");
        let made = self.storage.volumes().into_iter().filter(|(volume, _)| volume.starts_with(&prefix));
        for (volume, uid) in made {
            let announced = self.network.ledger(|ledger| ledger.policies.contains_key(&volume));
            let found = self.claims().get_opt(claim).await?;
            let wanted = found.is_some_and(|claim| claim.uid().as_deref() == Some(uid.as_str()));
            if !announced && !wanted && self.volumes().get_opt(&volume).await?.is_none() {
                self.storage.call(|volumes| _ = volumes.remove(&volume))?;
            }
        }
        Ok(())
    }

    async fn release(&self, name: &str) -> Result<(), Failure> {
        let Some(found) = self.volumes().get_opt(name).await? else { return Ok(()) };
        if volume::provisioned_by(&found) != Some(DRIVER) {
            return Ok(());
        }
        let (deletes, phase) = (volume::reclaim_policy(&found) == "Delete", volume::phase(&found));
        if !deletes && found.finalizers().iter().any(|finalizer| finalizer == PROVISIONER) {
            edit(&self.volumes(), name, |found| {
                if volume::reclaim_policy(found) != "Delete" {
                    found.finalizers_mut().retain(|name| name != PROVISIONER);
                }
            })
            .await?;
            return Ok(());
        }
        let going = found.metadata.deletion_timestamp.is_some();
        let has = |wanted: &str| found.finalizers().iter().any(|finalizer| finalizer == wanted);
        if deletes && !going && !has(PROVISIONER) {
            edit(&self.volumes(), name, |found| found.finalizers_mut().push(PROVISIONER.to_owned())).await?;
            return Ok(());
        }
        let never_bound = going && phase != "Bound" && has(PROVISIONER) && !has(VOLUME_PROTECTION);
        if !deletes || (phase != "Released" && !never_bound) {
            return Ok(());
        }
        let wrong = self.network.ledger(|ledger| {
            let now = ledger.volumes.get(name)?;
            let (policy, owner) =
                (volume::reclaim_policy(now), ledger.owner_of(now).map(ResourceExt::name_any));
            (policy != "Delete" || owner.is_some())
                .then(|| format!("the data of {name} is deleted under policy {policy}, claim {owner:?}"))
        });
        // What the provisioner read may be old by a moment: the user may have changed the policy just now.
        let changed = self.network.ledger(|ledger| {
            ledger
                .volumes
                .get(name)
                .is_none_or(|now| now.metadata.resource_version != found.metadata.resource_version)
        });
        if let Some(wrong) = wrong {
            if changed {
                return Ok(());
            }
            self.network.ledger(|ledger| ledger.wrong.push(wrong));
        }
        self.storage.call(|volumes| _ = volumes.remove(name))?;
        let volumes = self.volumes();
        let freed = edit(&volumes, name, |found| found.finalizers_mut().retain(|name| name != PROVISIONER));
        match freed.await {
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            result => drop(result?),
        }
        let preconditions = Preconditions { uid: found.uid(), resource_version: None };
        let delete = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match volumes.delete(name, &delete).await {
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            result => {
                result?;
                Ok(())
            }
        }
    }
}

/// The object of a volume that was made.
fn describe(
    name: &str,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: Option<String>,
) -> PersistentVolume {
    let policy = class.reclaim_policy.as_deref().unwrap_or("Delete");
    let affinity = node.map(|node| {
        json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}})
    });
    let spec = claim.spec.as_ref();
    let object = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: DRIVER},
            "finalizers": if policy == "Delete" { vec![PROVISIONER] } else { vec![] }},
        "spec": {
            "capacity": {"storage": claim::requested(claim)}, "accessModes": claim::access_modes(claim),
            "storageClassName": claim::class(claim), "persistentVolumeReclaimPolicy": policy,
            "volumeMode": spec.and_then(|spec| spec.volume_mode.clone()),
            "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default",
                "name": claim.name_any(), "uid": claim.uid()},
            "nodeAffinity": affinity, "csi": {"driver": DRIVER, "volumeHandle": name},
        },
    });
    debug_assert!(!claim.annotations().contains_key(BIND_COMPLETED), "a bound claim needs no volume");
    serde_json::from_value(object).unwrap_or_default()
}
