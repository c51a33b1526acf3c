//! An API server that is a map, and an in-tree plugin that follows a script.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use controllers::bind::{ClaimKey, Cluster, Plugin, PluginError, World, Write, Written};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::{Error, ResourceExt};
use serde_json::Value;

use super::objects;

#[derive(Default)]
struct State {
    version: u64,
    volumes: BTreeMap<String, PersistentVolume>,
    claims: BTreeMap<String, PersistentVolumeClaim>,
    /// Claims that caches don't know of.
    unseen: Vec<String>,
    create_failures: VecDeque<String>,
}

/// Volumes and claims by name.
pub(super) struct Map(Mutex<State>);

fn failure(code: u16, reason: &str) -> Error {
    let mut status = kube::core::Status::failure("as the case says", reason);
    status.code = code;
    Error::Api(Box::new(status))
}

impl Map {
    pub(super) fn of(given: &Value) -> Self {
        let list = |key: &str| given[key].as_array().cloned().unwrap_or_default();
        let map = Self(Mutex::default());
        list("volumes").iter().for_each(|one| map.add_volume(objects::volume(one)));
        list("claims").iter().for_each(|one| map.add_claim(objects::claim(one)));
        for claim in list("claims_on_api_server_but_not_in_cache") {
            let claim = objects::claim(&claim);
            map.0.lock().unwrap().unseen.push(claim.name_any());
            map.add_claim(claim);
        }
        let failures = list("pv_create_failures_in_order");
        map.0.lock().unwrap().create_failures =
            failures.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect();
        map
    }

    pub(super) fn world(&self, given: &Value) -> World {
        let mut world = World::default();
        let state = self.0.lock().unwrap();
        for volume in state.volumes.values() {
            world.volumes.put(Arc::new(volume.clone()));
        }
        for claim in state.claims.values().filter(|claim| !state.unseen.contains(&claim.name_any())) {
            world.put_claim(Arc::new(claim.clone()));
        }
        for class in given["classes"].as_array().into_iter().flatten() {
            world.put_class(Arc::new(objects::class(class)));
        }
        for pod in given["pods"].as_array().into_iter().flatten() {
            world.put_pod(&Arc::new(objects::pod(pod)));
        }
        world
    }

    pub(super) fn version(&self) -> u64 {
        self.0.lock().unwrap().version
    }

    pub(super) fn claim_names(&self) -> Vec<String> {
        self.0.lock().unwrap().claims.keys().cloned().collect()
    }

    pub(super) fn volume_names(&self) -> Vec<String> {
        self.0.lock().unwrap().volumes.keys().cloned().collect()
    }

    pub(super) fn claims(&self) -> Vec<PersistentVolumeClaim> {
        self.0.lock().unwrap().claims.values().cloned().collect()
    }

    pub(super) fn volumes(&self) -> Vec<PersistentVolume> {
        self.0.lock().unwrap().volumes.values().cloned().collect()
    }

    pub(super) fn claim_named(&self, name: &str) -> Option<PersistentVolumeClaim> {
        self.0.lock().unwrap().claims.get(name).cloned()
    }

    pub(super) fn volume_named(&self, name: &str) -> Option<PersistentVolume> {
        self.0.lock().unwrap().volumes.get(name).cloned()
    }

    pub(super) fn add_volume(&self, mut volume: PersistentVolume) {
        let mut state = self.0.lock().unwrap();
        if !state.volumes.contains_key(&volume.name_any()) {
            volume.metadata.resource_version = Some(state.next());
            state.volumes.insert(volume.name_any(), volume);
        }
    }

    pub(super) fn add_claim(&self, mut claim: PersistentVolumeClaim) {
        let mut state = self.0.lock().unwrap();
        claim.metadata.resource_version = Some(state.next());
        state.claims.insert(claim.name_any(), claim);
    }

    pub(super) fn drop_volume(&self, name: &str) {
        let mut state = self.0.lock().unwrap();
        state.next();
        state.volumes.remove(name);
    }

    pub(super) fn drop_claim(&self, name: &str) {
        let mut state = self.0.lock().unwrap();
        state.next();
        state.claims.remove(name);
    }

    pub(super) fn change_volume(&self, name: &str, change: impl FnOnce(&mut PersistentVolume)) {
        let mut state = self.0.lock().unwrap();
        let version = state.next();
        if let Some(volume) = state.volumes.get_mut(name) {
            change(volume);
            volume.metadata.resource_version = Some(version);
        }
    }
}

impl State {
    fn next(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    /// Replaces a volume, or only its status.
    fn volume(&mut self, mut new: PersistentVolume, status: bool) -> Result<Written, Error> {
        let version = self.next();
        let known = self.volumes.get_mut(&new.name_any()).ok_or_else(|| failure(404, "NotFound"))?;
        if known.metadata.resource_version != new.metadata.resource_version {
            return Err(failure(409, "Conflict"));
        }
        if status {
            known.status = new.status;
        } else {
            new.status = known.status.take();
            *known = new;
        }
        known.metadata.resource_version = Some(version);
        Ok(Written::Volume(Box::new(known.clone())))
    }

    fn claim(&mut self, mut new: PersistentVolumeClaim, status: bool) -> Result<Written, Error> {
        let version = self.next();
        let known = self.claims.get_mut(&new.name_any()).ok_or_else(|| failure(404, "NotFound"))?;
        if known.metadata.resource_version != new.metadata.resource_version {
            return Err(failure(409, "Conflict"));
        }
        if status {
            known.status = new.status;
        } else {
            new.status = known.status.take();
            *known = new;
        }
        known.metadata.resource_version = Some(version);
        Ok(Written::Claim(Box::new(known.clone())))
    }
}

impl Cluster for Map {
    async fn claim(&self, key: &ClaimKey) -> Result<Option<PersistentVolumeClaim>, Error> {
        Ok(self.claim_named(&key.name))
    }

    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, Error> {
        Ok(self.volume_named(name))
    }

    async fn write(&self, write: Write) -> Result<Written, Error> {
        let mut state = self.0.lock().unwrap();
        match write {
            Write::Volume(volume) => state.volume(*volume, false),
            Write::VolumeStatus(volume) => state.volume(*volume, true),
            Write::Claim(claim) => state.claim(*claim, false),
            Write::ClaimStatus(claim) => state.claim(*claim, true),
            Write::CreateVolume(mut volume) => {
                if let Some(reason) = state.create_failures.pop_front() {
                    let code = if reason == "already-exists" { 409 } else { 500 };
                    return Err(failure(code, if code == 409 { "AlreadyExists" } else { "InternalError" }));
                }
                volume.metadata.resource_version = Some(state.next());
                state.volumes.insert(volume.name_any(), (*volume).clone());
                Ok(Written::Volume(volume))
            }
            Write::DeleteVolume(volume) => {
                state.next();
                state.volumes.remove(&volume.name_any());
                Ok(Written::Gone)
            }
        }
    }
}

/// The in-tree plugin of the cases: each operation's results in order.
pub(super) struct Scripted {
    provision: Mutex<VecDeque<String>>,
    delete: Mutex<VecDeque<String>>,
    recycle: Mutex<VecDeque<String>>,
}

impl Scripted {
    pub(super) const NAME: &str = "kubernetes.io/builtin-test";

    pub(super) fn of(script: &Value) -> Option<Self> {
        let list = |key: &str| {
            let results = script[key].as_array().into_iter().flatten();
            Mutex::new(results.filter_map(|one| one.as_str().map(str::to_owned)).collect())
        };
        script.is_object().then(|| Self {
            provision: list("provision"),
            delete: list("delete"),
            recycle: list("recycle"),
        })
    }

    fn next(script: &Mutex<VecDeque<String>>, operation: &str) -> Result<(), PluginError> {
        match script.lock().unwrap().pop_front() {
            Some(result) if result == "ok" => Ok(()),
            Some(error) => Err(PluginError::Failed(error)),
            None => Err(PluginError::Failed(format!("Mock plugin error: no {operation}Calls configured"))),
        }
    }
}

impl Plugin for Scripted {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn supports(&self, volume: &PersistentVolume) -> bool {
        volume.spec.as_ref().is_some_and(|spec| spec.csi.is_none())
    }

    fn takes_mount_options(&self) -> bool {
        false
    }

    fn provision<'a>(
        &'a self,
        claim: &'a PersistentVolumeClaim,
        _class: &'a StorageClass,
    ) -> BoxFuture<'a, Result<PersistentVolume, PluginError>> {
        Box::pin(async move {
            Self::next(&self.provision, "provision")?;
            let mut volume = PersistentVolume::default();
            let spec = volume.spec.get_or_insert_default();
            spec.access_modes = Some(resources::claim::access_modes(claim).to_vec());
            spec.capacity =
                resources::claim::requested(claim).map(|size| [("storage".to_owned(), size.clone())].into());
            Ok(volume)
        })
    }

    fn delete<'a>(&'a self, _volume: &'a PersistentVolume) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async { Self::next(&self.delete, "delete") })
    }

    fn recycle<'a>(&'a self, _volume: &'a PersistentVolume) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async { Self::next(&self.recycle, "recycle") })
    }
}
