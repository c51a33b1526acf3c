//! The executor: files pods and revisions by their sets, and writes what a look at a set decides.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::Mutex;
use resources::reference;
use runtime::{Change, Context, Informer, Key, Next, Queue, Recorder};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::seen::{Kind, Seen};
use super::set::{controller, origins, parent_and_ordinal};
use super::step::{Plan, View, Write, step};

/// Sets looked at side by side.
const CONCURRENCY: usize = 16;

/// A write that failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
struct Failure {
    what: String,
    source: kube::Error,
}

/// Names of objects by the set that they belong to, or would belong to by their names.
type BySet = Arc<Mutex<HashMap<Key, BTreeSet<String>>>>;

/// Keeps sets' pods and claims until the context is shut down.
pub async fn run(context: Context) {
    let it = Controller {
        queue: Queue::new("stateful-sets", &context.metrics),
        sets: context.informers.of(),
        pods: context.informers.pods(),
        claims: context.informers.claims(),
        revisions: context.informers.of(),
        pods_by_set: BySet::default(),
        revisions_by_set: BySet::default(),
        seen: Seen::default(),
        recorder: context.recorder("statefulset-controller", ""),
        client: context.client.clone(),
    };
    it.subscribe();
    let synced = async {
        tokio::join!(it.sets.synced(), it.pods.synced(), it.claims.synced(), it.revisions.synced());
    };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    runtime::work(it.queue.clone(), CONCURRENCY, context.shutdown.clone(), |key| it.look(key)).await;
}

struct Controller {
    queue: Queue<Key>,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
    pods_by_set: BySet,
    revisions_by_set: BySet,
    seen: Seen,
    recorder: Recorder,
    client: Client,
}

impl Controller {
    fn subscribe(&self) {
        let (queue, seen) = (self.queue.clone(), self.seen.clone());
        self.sets.subscribe(move |change| {
            let key = Key::of(&**change.object());
            seen.shown(Kind::Set, &**change.object());
            if matches!(change, Change::Deleted(_)) {
                seen.forget(&key);
            }
            queue.add(key);
        });
        let (queue, seen) = (self.queue.clone(), self.seen.clone());
        let (sets, filed) = (self.sets.clone(), Arc::clone(&self.pods_by_set));
        self.pods.subscribe(move |change| {
            let pod = change.object();
            let by_name = parent_and_ordinal(pod.metadata.name.as_deref().unwrap_or_default());
            let by_name = by_name.map(|(set, _)| set);
            let touched = file(&filed, change, by_name);
            seen.shown(Kind::Pod, &**pod);
            touched.into_iter().for_each(|key| queue.add(key));
            // One that bears a set's name without being the set's is in its way.
            let namespace = pod.namespace().unwrap_or_default();
            if let Some(name) = by_name.filter(|name| sets.get(&namespace, name).is_some()) {
                queue.add(Key { namespace, name: name.to_owned() });
            }
        });
        let (queue, seen) = (self.queue.clone(), self.seen.clone());
        let filed = Arc::clone(&self.revisions_by_set);
        self.revisions.subscribe(move |change| {
            let revision = change.object();
            let name = revision.metadata.name.as_deref().unwrap_or_default();
            let touched = file(&filed, change, name.rsplit_once('-').map(|(set, _)| set));
            seen.shown(Kind::Revision, &**revision);
            touched.into_iter().for_each(|key| queue.add(key));
        });
        let (queue, seen, sets) = (self.queue.clone(), self.seen.clone(), self.sets.clone());
        self.claims.subscribe(move |change| {
            let claim = change.object();
            seen.shown(Kind::Claim, &**claim);
            let namespace = claim.namespace().unwrap_or_default();
            for (set, template) in origins(claim.metadata.name.as_deref().unwrap_or_default()) {
                let set = sets.get(&namespace, set);
                let templates =
                    set.as_ref().and_then(|set| set.spec.as_ref()?.volume_claim_templates.as_ref());
                if templates.into_iter().flatten().any(|one| one.metadata.name.as_deref() == Some(template)) {
                    queue.add(Key {
                        namespace: namespace.clone(),
                        name: set.map_or_else(String::new, |set| set.name_any()),
                    });
                }
            }
        });
    }

    async fn look(&self, key: Key) -> Result<Next, Failure> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else { return Ok(Next::Done) };
        if self.seen.is_gone(&key, set.metadata.uid.as_deref()) {
            return Ok(Next::Done);
        }
        if let Some(wait) = self.seen.wait(&key) {
            return Ok(Next::After(wait));
        }
        let plan = step(&View {
            set: &set,
            pods: filed(&self.pods_by_set, &key, &self.pods),
            revisions: filed(&self.revisions_by_set, &key, &self.revisions),
            pod: &|name| self.pods.get(&key.namespace, name),
            claim: &|name| self.claims.get(&key.namespace, name),
            now: clock::now(),
        });
        self.carry_out(&key, &set, plan).await
    }

    async fn carry_out(&self, key: &Key, set: &Arc<StatefulSet>, plan: Plan) -> Result<Next, Failure> {
        for notice in plan.notices {
            self.recorder.warning(&reference(&**set), notice.reason, notice.message);
        }
        let mut outcome = Ok(());
        for write in &plan.writes {
            outcome = self.write(key, set, write).await;
            if outcome.is_err() {
                break;
            }
        }
        if let Some(status) = plan.status {
            outcome = outcome.and(self.write_status(key, set, status).await);
        }
        match outcome {
            Ok(()) => Ok(plan.again.map_or(Next::Done, Next::After)),
            Err(Failure { source: kube::Error::Api(status), .. })
                if status.is_conflict() || status.is_not_found() || status.is_already_exists() =>
            {
                Ok(Next::Overtaken)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn write(&self, key: &Key, set: &StatefulSet, write: &Write) -> Result<(), Failure> {
        let namespace = &key.namespace;
        let done = match write {
            Write::AdoptPod(pod) => match self.confirm(set).await {
                Ok(()) => self.replace(key, Kind::Pod, &**pod).await,
                Err(error) => Err(error),
            },
            Write::AdoptRevision(revision) => match self.confirm(set).await {
                Ok(()) => self.replace(key, Kind::Revision, &**revision).await,
                Err(error) => Err(error),
            },
            Write::ReleasePod(pod) | Write::UpdatePod(pod) => self.replace(key, Kind::Pod, &**pod).await,
            Write::UpdateClaim(claim, _) => self.replace(key, Kind::Claim, &**claim).await,
            Write::UpdateRevision(revision) => self.replace(key, Kind::Revision, &**revision).await,
            Write::CreatePod(pod) => self.create(key, Kind::Pod, &**pod).await,
            Write::CreateClaim(claim, _) => self.create(key, Kind::Claim, &**claim).await,
            Write::CreateRevision(revision) => self.create_revision(key, set, revision).await,
            Write::DeletePod(pod) => self.delete(key, Kind::Pod, &**pod).await,
            Write::DeleteRevision(revision) => self.delete(key, Kind::Revision, &**revision).await,
        };
        self.tell(set, write, done.as_ref().err());
        let what = || format!("{namespace}/{}: {}", set.name_any(), write);
        done.map_err(|source| Failure { what: what(), source })
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Confirms that a set is there and stays: nothing is adopted by one that is going.
    async fn confirm(&self, set: &StatefulSet) -> Result<(), kube::Error> {
        let live = self.api::<StatefulSet>(&set.namespace().unwrap_or_default()).get(&set.name_any()).await?;
        if live.uid() == set.uid() && live.metadata.deletion_timestamp.is_none() {
            return Ok(());
        }
        let status = kube::core::Status::failure("the set is gone or going", "Conflict").with_code(409);
        Err(kube::Error::Api(Box::new(status)))
    }

    async fn create<K>(&self, key: &Key, kind: Kind, object: &K) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug,
    {
        let made = self.api::<K>(&key.namespace).create(&PostParams::default(), object).await?;
        self.seen.wrote(key, kind, &made);
        Ok(())
    }

    async fn replace<K>(&self, key: &Key, kind: Kind, object: &K) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug,
    {
        let api = self.api::<K>(&key.namespace);
        let written = api.replace(&object.name_any(), &PostParams::default(), object).await?;
        self.seen.wrote(key, kind, &written);
        Ok(())
    }

    async fn delete<K>(&self, key: &Key, kind: Kind, object: &K) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let preconditions = Preconditions { uid: object.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.api::<K>(&key.namespace).delete(&object.name_any(), &params).await {
            Ok(either) => {
                if let Some(last) = either.left() {
                    self.seen.wrote(key, kind, &last);
                }
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes a revision. Its name is a hash: if another one has it, the set counts a collision, and with that number the
    /// next look finds another name.
    async fn create_revision(
        &self,
        key: &Key,
        set: &StatefulSet,
        revision: &ControllerRevision,
    ) -> Result<(), kube::Error> {
        let api = self.api::<ControllerRevision>(&key.namespace);
        match self.create(key, Kind::Revision, revision).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let present = api.get(&revision.name_any()).await?;
                if present.data == revision.data
                    && controller(&present).is_none_or(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
                {
                    return Err(kube::Error::Api(status));
                }
                let mut counted = set.status.clone().unwrap_or_default();
                counted.collision_count = Some(counted.collision_count.unwrap_or(0) + 1);
                self.put_status(key, set, counted).await
            }
            result => result,
        }
    }

    async fn write_status(
        &self,
        key: &Key,
        set: &StatefulSet,
        status: StatefulSetStatus,
    ) -> Result<(), Failure> {
        let what = || format!("{key}: writing its status");
        self.put_status(key, set, status).await.map_err(|source| Failure { what: what(), source })
    }

    async fn put_status(
        &self,
        key: &Key,
        set: &StatefulSet,
        status: StatefulSetStatus,
    ) -> Result<(), kube::Error> {
        let mut set = set.clone();
        set.status = Some(status);
        let api = self.api::<StatefulSet>(&key.namespace);
        match api.replace_status(&key.name, &PostParams::default(), &set).await {
            Ok(written) => {
                self.seen.wrote(key, Kind::Set, &written);
                Ok(())
            }
            Err(error) => {
                if matches!(&error, kube::Error::Api(status) if status.is_not_found()) {
                    self.seen.found_gone(key, set.uid());
                }
                Err(error)
            }
        }
    }

    /// Says on the set what became of a write.
    fn tell(&self, set: &StatefulSet, write: &Write, failure: Option<&kube::Error>) {
        let (verb, object) = match write {
            Write::CreatePod(pod) => ("Create", format!("Pod {}", pod.name_any())),
            Write::UpdatePod(pod) => ("Update", format!("Pod {}", pod.name_any())),
            Write::DeletePod(pod) => ("Delete", format!("Pod {}", pod.name_any())),
            Write::CreateClaim(claim, pod) => ("Create", format!("Claim {} Pod {pod}", claim.name_any())),
            Write::UpdateClaim(claim, pod) if failure.is_some() => {
                ("Update", format!("Claim {} Pod {pod}", claim.name_any()))
            }
            _ => return,
        };
        let (about, set) = (reference(set), set.name_any());
        match failure {
            None => {
                let message = format!("{verb} {object} in StatefulSet {set} successful");
                self.recorder.normal(&about, &format!("Successful{verb}"), message);
            }
            // Somebody else's write came first; the next look sees it.
            Some(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {}
            Some(error) => {
                let error = runtime::explain(error);
                let message = format!("{verb} {object} in StatefulSet {set} failed error: {error}");
                self.recorder.warning(&about, &format!("Failed{verb}"), message);
            }
        }
    }
}

/// The set that an object belongs to: its controller's, or the one of that name if it has no controller.
fn home<K: Resource>(object: &K, by_name: Option<&str>) -> Option<Key> {
    let name = match controller(object) {
        Some(owner) if owner.kind == "StatefulSet" => &owner.name,
        Some(_) => return None,
        None => by_name?,
    };
    Some(Key { namespace: object.namespace().unwrap_or_default(), name: name.to_owned() })
}

/// Files an object under its set; the sets that are to be looked at.
fn file<K: Resource>(by_set: &BySet, change: &Change<K>, by_name: Option<&str>) -> Vec<Key> {
    let (old, new) = match change {
        Change::Applied { old, new } => (old.as_ref(), Some(new)),
        Change::Deleted(last) => (Some(last), None),
    };
    let old = old.and_then(|object| home(&**object, by_name));
    let new = new.and_then(|object| home(&**object, by_name));
    let name = change.object().name_any();
    let mut by_set = by_set.lock();
    if let Some(key) = old.as_ref().filter(|key| Some(*key) != new.as_ref())
        && let Some(names) = by_set.get_mut(key)
    {
        names.remove(&name);
        if names.is_empty() {
            by_set.remove(key);
        }
    }
    if let Some(key) = &new {
        by_set.entry(key.clone()).or_default().insert(name);
    }
    let same = old == new;
    old.into_iter().chain(new.filter(|_| !same)).collect()
}

fn filed<K>(by_set: &BySet, key: &Key, informer: &Informer<K>) -> Vec<Arc<K>> {
    let names: Vec<String> = by_set.lock().get(key).into_iter().flatten().cloned().collect();
    names.iter().filter_map(|name| informer.get(&key.namespace, name)).collect()
}
