//! Data sources and the claims that are made from them: looking up the ones live, waking the others, and keeping a
//! source from being deleted while it is copied.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use csi::v1::controller_service_capability::rpc;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt};
use parking_lot::Mutex;
use resources::finalizers::{CLONE_SOURCE, SNAPSHOT_SOURCE};
use resources::labels::SNAPSHOT_MANAGED_BY;
use resources::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use resources::source::{self, Source, SourceKind};
use resources::{ReferenceGrant, claim};
use runtime::{Change, Context, Key, Next, Queue};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::create::api;
use super::source::{Content, SourceError, Where, of_claim, of_snapshot};
use super::{ProvisionError, Provisioner, intent};

/// Claims whose volumes are still to be made, by what from.
#[derive(Default)]
pub(super) struct Unfinished(Mutex<HashMap<Source, BTreeSet<Key>>>);

impl Unfinished {
    fn file(&self, source: &Source, claim: &Key, is_unfinished: bool) {
        let mut files = self.0.lock();
        if is_unfinished {
            files.entry(source.clone()).or_default().insert(claim.clone());
        } else if let Some(file) = files.get_mut(source) {
            file.remove(claim);
            if file.is_empty() {
                files.remove(source);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    fn waiting_for(&self, source: &Source) -> Vec<Key> {
        self.0.lock().get(source).into_iter().flatten().cloned().collect()
    }

    fn waiting_for_namespace(&self, namespace: &str) -> Vec<Key> {
        let files = self.0.lock();
        let of_namespace = files.iter().filter(|(source, _)| source.namespace == namespace);
        of_namespace.flat_map(|(_, claims)| claims.iter().cloned()).collect()
    }
}

/// How far circles among claims are followed.
const LONGEST_CIRCLE: usize = 64;

impl Provisioner {
    /// Wakes claims when their sources change, and looks at sources when their claims are done.
    pub(super) fn follow_sources(
        self: &Arc<Self>,
        context: &Context,
        claims: &Queue<Key>,
        release: &Queue<Source>,
    ) {
        let (this, queue, sources) = (self.clone(), claims.clone(), release.clone());
        self.claims.subscribe(move |change| {
            let claim = change.object();
            let key = Key::of(claim.as_ref());
            if let Some(source) = source::of(claim).filter(|source| is_ours(&source.kind)) {
                let is_unfinished = matches!(change, Change::Applied { new, .. } if is_unfinished(new));
                this.unfinished.file(&source, &key, is_unfinished);
                if !is_unfinished {
                    sources.add(source);
                }
            }
            let is_kept = has_finalizer(claim.as_ref(), CLONE_SOURCE);
            if !is_kept && this.unfinished.is_empty() {
                return;
            }
            let as_source =
                Source { kind: SourceKind::Claim, namespace: key.namespace.clone(), name: key.name.clone() };
            if is_kept {
                sources.add(as_source.clone());
            }
            let decides = |claim: &PersistentVolumeClaim| {
                (claim::phase(claim).to_owned(), claim.metadata.deletion_timestamp.is_some())
            };
            if !matches!(change, Change::Applied { old: Some(old), new } if decides(old) == decides(new)) {
                this.unfinished.waiting_for(&as_source).into_iter().for_each(|key| queue.add(key));
            }
        });
        let (this, queue, sources) = (self.clone(), claims.clone(), release.clone());
        context.informers.of::<VolumeSnapshot>().subscribe(move |change| {
            let snapshot = change.object();
            let source = Source {
                kind: SourceKind::Snapshot,
                namespace: snapshot.namespace().unwrap_or_default(),
                name: snapshot.name_any(),
            };
            if has_finalizer(snapshot.as_ref(), SNAPSHOT_SOURCE) {
                sources.add(source.clone());
            }
            let decides = |snapshot: &VolumeSnapshot| {
                (snapshot.status.clone(), snapshot.metadata.deletion_timestamp.is_some())
            };
            if !matches!(change, Change::Applied { old: Some(old), new } if decides(old) == decides(new)) {
                this.unfinished.waiting_for(&source).into_iter().for_each(|key| queue.add(key));
            }
        });
        let (this, queue) = (self.clone(), claims.clone());
        context.informers.of::<VolumeSnapshotContent>().subscribe(move |change| {
            // Marks on a content can allow what was refused.
            let Change::Applied { old: Some(old), new } = change else { return };
            let reference = &new.spec.volume_snapshot_ref;
            if let Some((namespace, name)) = reference.namespace.clone().zip(reference.name.clone())
                && old.metadata.annotations != new.metadata.annotations
            {
                let source = Source { kind: SourceKind::Snapshot, namespace, name };
                this.unfinished.waiting_for(&source).into_iter().for_each(|key| queue.add(key));
            }
        });
        let (this, queue) = (self.clone(), claims.clone());
        context.informers.of::<ReferenceGrant>().subscribe(move |change| {
            let Change::Applied { new: grant, .. } = change else { return };
            let namespace = grant.namespace().unwrap_or_default();
            this.unfinished.waiting_for_namespace(&namespace).into_iter().for_each(|key| queue.add(key));
        });
    }

    /// The content that a claim's volume is to have, and where it can be made; read live.
    pub(super) async fn origin(
        &self,
        of: &PersistentVolumeClaim,
    ) -> Result<Option<(Content, Where)>, ProvisionError> {
        let Some(source) = source::of(of) else { return Ok(None) };
        let (capability, kind) = match source.kind {
            SourceKind::Snapshot => (rpc::Type::CreateDeleteSnapshot, "VolumeSnapshot"),
            SourceKind::Claim => (rpc::Type::CloneVolume, "PersistentVolumeClaim"),
            SourceKind::Other { .. } => return Ok(None),
        };
        let driver = self.driver.name();
        if !self.driver.can(capability) {
            return Err(SourceError::Unable { driver: driver.to_owned(), kind }.into());
        }
        self.check_grant(of, &source).await?;
        let Source { namespace, name, .. } = &source;
        let read = || api(format!("read the data source {source}"));
        let found = match source.kind {
            SourceKind::Snapshot => {
                let snapshots: Api<VolumeSnapshot> = Api::namespaced(self.client.clone(), namespace);
                let snapshot = snapshots.get_opt(name).await.map_err(read())?;
                let contents: Api<VolumeSnapshotContent> = Api::all(self.client.clone());
                let content = match snapshot.as_ref().and_then(resources::snapshot::bound_content) {
                    Some(content) => contents.get_opt(content).await.map_err(read())?,
                    None => None,
                };
                of_snapshot(of, &source, snapshot.as_ref(), content.as_ref(), driver)?
            }
            _ => {
                let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
                let found = claims.get_opt(name).await.map_err(read())?;
                let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
                let volume = match found.as_ref().map(claim::volume_name) {
                    Some(volume) if !volume.is_empty() => volumes.get_opt(volume).await.map_err(read())?,
                    _ => None,
                };
                of_claim(of, &source, found.as_ref(), volume.as_ref(), driver).map_err(|error| {
                    match (&error, self.circle(of)) {
                        (SourceError::Unbound(_), Some(circle)) => SourceError::Circle(circle),
                        _ => error,
                    }
                })?
            }
        };
        Ok(Some(found))
    }

    /// Whether a volume of this content can be made on this node.
    pub(super) fn check_place(&self, of: &PersistentVolumeClaim, place: &Where) -> Result<(), SourceError> {
        let elsewhere = |at: String| SourceError::Elsewhere {
            source_name: source::of(of).map(|source| source.to_string()).unwrap_or_default(),
            place: at,
            node: self.options.node.clone(),
        };
        match place {
            Where::Node(node) if *node != self.options.node => Err(elsewhere(format!("node {node}"))),
            Where::With(volume) if !self.place.has(volume) => {
                Err(elsewhere(format!("the node of volume {}", volume.name_any())))
            }
            _ => Ok(()),
        }
    }

    async fn check_grant(&self, of: &PersistentVolumeClaim, source: &Source) -> Result<(), ProvisionError> {
        let own = of.namespace().unwrap_or_default();
        if source.namespace == own {
            return Ok(());
        }
        let (group, kind) = source.kind.group_and_kind();
        let grants: Api<ReferenceGrant> = Api::namespaced(self.client.clone(), &source.namespace);
        let permits = |grant: &ReferenceGrant| grant.permits_claims(&own, group, kind, &source.name);
        match grants.list(&ListParams::default()).await {
            Ok(grants) if grants.iter().any(permits) => Ok(()),
            Err(kube::Error::Api(status)) if !status.is_not_found() => {
                Err(api(format!("list the ReferenceGrants of {}", source.namespace))(kube::Error::Api(
                    status,
                )))
            }
            Err(error) if !matches!(error, kube::Error::Api(_)) => {
                Err(api(format!("list the ReferenceGrants of {}", source.namespace))(error))
            }
            _ => Err(SourceError::NoGrant { source_name: source.to_string(), namespace: own }.into()),
        }
    }

    /// The circle of claims that a claim is in, each made from the next.
    fn circle(&self, of: &PersistentVolumeClaim) -> Option<String> {
        let start = Key::of(of);
        let mut way = vec![start.to_string()];
        let mut next = source::of(of)?;
        for _ in 0..LONGEST_CIRCLE {
            if next.kind != SourceKind::Claim {
                return None;
            }
            way.push(format!("{}/{}", next.namespace, next.name));
            if next.namespace == start.namespace && next.name == start.name {
                return Some(way.join(" from "));
            }
            next = source::of(&*self.claims.get(&next.namespace, &next.name)?)?;
        }
        None
    }

    /// Keeps the source of a claim from being deleted.
    pub(super) async fn keep_source(&self, of: &PersistentVolumeClaim) -> Result<(), ProvisionError> {
        let Some(source) = source::of(of) else { return Ok(()) };
        match source.kind {
            SourceKind::Snapshot => {
                let all: Api<VolumeSnapshot> = Api::namespaced(self.client.clone(), &source.namespace);
                keep(&all, &source, SNAPSHOT_SOURCE).await
            }
            SourceKind::Claim => {
                let all: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &source.namespace);
                keep(&all, &source, CLONE_SOURCE).await
            }
            SourceKind::Other { .. } => Ok(()),
        }
    }

    /// Lets a source go that no claim is made from any more.
    pub(super) async fn release_source(&self, source: Source) -> Result<Next, ProvisionError> {
        let informers = &self.context.informers;
        let Source { kind, namespace, name } = &source;
        // Of a source that is being deleted, nothing new is begun.
        let held = |is_going: bool| -> bool {
            let users = self.unfinished.waiting_for(&source).into_iter();
            let mut users = users.filter_map(|key| self.claims.get(&key.namespace, &key.name));
            users.any(|claim| intent::is_held(&claim) || (!is_going && is_unfinished(&claim)))
        };
        let released = match kind {
            SourceKind::Snapshot => {
                let snapshot = informers.of::<VolumeSnapshot>().get(namespace, name);
                let Some(snapshot) = snapshot.filter(|one| has_finalizer(one.as_ref(), SNAPSHOT_SOURCE))
                else {
                    return Ok(Next::Done);
                };
                let content = resources::snapshot::bound_content(&snapshot)
                    .and_then(|content| informers.of::<VolumeSnapshotContent>().get("", content));
                let driver = content.as_ref().map(|content| content.spec.driver.as_str());
                let manager = content.as_ref().and_then(|content| content.labels().get(SNAPSHOT_MANAGED_BY));
                let is_ours = match manager {
                    Some(node) => *node == self.options.node,
                    None => self.place.is_drawn(snapshot.metadata.uid.as_deref(), |_| true),
                };
                // Of a snapshot whose content is gone, nobody knows the driver.
                if held(snapshot.metadata.deletion_timestamp.is_some())
                    || !is_ours
                    || driver.is_some_and(|driver| driver != self.driver.name())
                {
                    return Ok(Next::Done);
                }
                let all: Api<VolumeSnapshot> = Api::namespaced(self.client.clone(), namespace);
                let_go(&all, name, SNAPSHOT_SOURCE).await
            }
            SourceKind::Claim => {
                let claim = self.claims.get(namespace, name);
                let Some(claim) = claim.filter(|one| has_finalizer(one.as_ref(), CLONE_SOURCE)) else {
                    return Ok(Next::Done);
                };
                let volume = self.volumes.get("", claim::volume_name(&claim));
                let is_ours = volume.is_some_and(|volume| {
                    let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
                    let is_local = !self.place.segments.is_empty();
                    csi.is_some_and(|csi| csi.driver == self.driver.name())
                        && self.place.has(&volume)
                        && (is_local || self.place.is_drawn(claim.metadata.uid.as_deref(), |_| true))
                });
                if held(claim.metadata.deletion_timestamp.is_some()) || !is_ours {
                    return Ok(Next::Done);
                }
                let all: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
                let_go(&all, name, CLONE_SOURCE).await
            }
            SourceKind::Other { .. } => return Ok(Next::Done),
        };
        match released {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Next::Done),
            result => result.map(|()| Next::Done).map_err(api(format!("let the data source {source} go"))),
        }
    }
}

fn is_ours(kind: &SourceKind) -> bool {
    matches!(kind, SourceKind::Snapshot | SourceKind::Claim)
}

/// Whether a claim's volume is still being made, or to be made.
fn is_unfinished(claim: &PersistentVolumeClaim) -> bool {
    let waits = claim.metadata.deletion_timestamp.is_none() && claim::volume_name(claim).is_empty();
    waits || intent::is_held(claim)
}

fn has_finalizer(object: &impl Resource, finalizer: &str) -> bool {
    object.finalizers().iter().any(|name| name == finalizer)
}

async fn keep<K>(all: &Api<K>, source: &Source, finalizer: &str) -> Result<(), ProvisionError>
where
    K: Resource + Clone + PartialEq + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let kept = runtime::edit(all, &source.name, |object: &mut K| {
        if object.meta().deletion_timestamp.is_none() && !has_finalizer(object, finalizer) {
            object.finalizers_mut().push(finalizer.to_owned());
        }
    });
    match kept.await {
        Ok(object) if has_finalizer(&object, finalizer) => Ok(()),
        Ok(_) => Err(SourceError::Going(source.to_string()).into()),
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            Err(SourceError::Missing(source.to_string()).into())
        }
        Err(error) => Err(api(format!("keep the data source {source}"))(error)),
    }
}

async fn let_go<K>(all: &Api<K>, name: &str, finalizer: &str) -> Result<(), kube::Error>
where
    K: Resource + Clone + PartialEq + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let released = runtime::edit(all, name, |object: &mut K| {
        if has_finalizer(object, finalizer) {
            object.finalizers_mut().retain(|name| name != finalizer);
        }
    });
    released.await.map(drop)
}
