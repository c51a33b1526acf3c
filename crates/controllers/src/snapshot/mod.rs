//! What snapshot-controller does: ties VolumeSnapshots and their contents together, and lets them go in order.
//!
//! A snapshot of a claim gets a content ([`content`]), which the driver's snapshotter fills in; a snapshot of something
//! that exists is tied to the content that an administrator wrote. What follows from the state of both is decided one
//! write at a time ([`step`]), each conditional on the version that was decided upon, so nothing depends on where a
//! controller stopped. Groups are the same one storey higher ([`group`]).

mod content;
mod group;
mod known;
mod secret;
mod step;
mod writes;

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use resources::{annotations, claim};
use runtime::{Change, Context, Key, Next, Queue};

use self::known::Known;
use self::writes::Step;

/// Objects looked at side by side.
const CONCURRENCY: usize = 16;

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Task {
    Snapshot(Key),
    Content(String),
    /// A claim that snapshots are, or were, taken of.
    Claim(Key),
    Group(Key),
    GroupContent(String),
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::Snapshot(key) => write!(f, "VolumeSnapshot {key}"),
            Task::Content(name) => write!(f, "VolumeSnapshotContent {name}"),
            Task::Claim(key) => write!(f, "claim {key}"),
            Task::Group(key) => write!(f, "VolumeGroupSnapshot {key}"),
            Task::GroupContent(name) => write!(f, "VolumeGroupSnapshotContent {name}"),
        }
    }
}

/// Takes care of snapshots until the context is shut down.
pub async fn run(context: Context) {
    let queue = Queue::<Task>::new("snapshots", &context.metrics);
    let known = Arc::new(Known::new(&context));
    follow(&known, &queue);
    if context.shutdown.run_until_cancelled(known.synced()).await.is_none() {
        return;
    }
    let recorder = context.recorder("snapshot-controller", "");
    runtime::work(queue, CONCURRENCY, context.shutdown.clone(), |task| {
        let step = next(&known, &task);
        let (client, recorder) = (&context.client, &recorder);
        async move {
            match step.take(client, recorder).await {
                Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Next::Overtaken),
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Next::Done),
                result => result.map(|()| Next::Done),
            }
        }
    })
    .await;
}

fn next(known: &Known, task: &Task) -> Step {
    match task {
        Task::Snapshot(key) => known.snapshot_facts(key).map(|facts| step::step(&facts)),
        Task::Content(name) => known.contents.get("", name).map(|content| content::step(&content)),
        Task::Claim(key) => known.claim_step(key),
        Task::Group(key) => known.group_facts(key).map(|facts| group::step(&facts)),
        Task::GroupContent(name) => {
            known.group_contents.get("", name).map(|content| group::content_step(&content))
        }
    }
    .unwrap_or_default()
}

/// Queues what a change may concern.
fn follow(known: &Arc<Known>, queue: &Queue<Task>) {
    let (this, tasks) = (known.clone(), queue.clone());
    known.snapshots.subscribe(move |change| {
        let snapshot = change.object();
        let key = Key::of(&**snapshot);
        if let Some(claim) = &snapshot.spec.source.persistent_volume_claim_name {
            let claim = Key { namespace: key.namespace.clone(), name: claim.clone() };
            this.file(&claim, &key.name, matches!(change, Change::Applied { .. }));
            tasks.add(Task::Claim(claim));
        }
        for owner in snapshot.owner_references().iter().filter(|owner| owner.kind == "VolumeGroupSnapshot") {
            let namespace = key.namespace.clone();
            tasks.add(Task::Group(Key { namespace, name: owner.name.clone() }));
        }
        tasks.add(Task::Snapshot(key));
    });
    let (this, tasks) = (known.clone(), queue.clone());
    known.contents.subscribe(move |change| {
        let content = change.object();
        tasks.add(Task::Content(content.name_any()));
        let reference = &content.spec.volume_snapshot_ref;
        let Some((namespace, name)) = reference.namespace.clone().zip(reference.name.clone()) else { return };
        let key = Key { namespace, name };
        if let Some(snapshot) = this.snapshots.get(&key.namespace, &key.name)
            && let Some(claim) = snapshot.spec.source.persistent_volume_claim_name.clone()
        {
            tasks.add(Task::Claim(Key { namespace: key.namespace.clone(), name: claim }));
        }
        if content.annotations().contains_key(annotations::GROUP_HANDLE)
            && let Some(group) = this.group_of(&key)
        {
            tasks.add(Task::Group(group));
        }
        tasks.add(Task::Snapshot(key));
    });
    let (this, tasks) = (known.clone(), queue.clone());
    known.claims.subscribe(move |change| {
        let of = change.object();
        let key = Key::of(&**of);
        let decides = |claim: &k8s_openapi::api::core::v1::PersistentVolumeClaim| {
            (
                claim::phase(claim).to_owned(),
                claim.metadata.deletion_timestamp.is_some(),
                claim.metadata.labels.clone(),
                claim.metadata.finalizers.clone(),
            )
        };
        if let Change::Applied { old: Some(old), new } = change
            && decides(old) == decides(new)
        {
            return;
        }
        for name in this.snapshots_of(&key) {
            tasks.add(Task::Snapshot(Key { namespace: key.namespace.clone(), name }));
        }
        tasks.add(Task::Claim(key.clone()));
        for group in this.groups_waiting_in(&key.namespace) {
            tasks.add(Task::Group(group));
        }
    });
    let (this, tasks) = (known.clone(), queue.clone());
    known.volumes.subscribe(move |change| {
        this.file_volume(change.object(), matches!(change, Change::Applied { .. }));
        let Change::Applied { old, new } = change else { return };
        let claim_of =
            |volume: &PersistentVolume| volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
        let reference = claim_of(new);
        // One may be given to its claim after the claim is Bound, as far as is known here.
        if old.as_ref().is_some_and(|old| claim_of(old) == reference) {
            return;
        }
        let of = reference.and_then(|one| one.namespace.clone().zip(one.name.clone()));
        if let Some((namespace, claim)) = of {
            for name in this.snapshots_of(&Key { namespace: namespace.clone(), name: claim }) {
                tasks.add(Task::Snapshot(Key { namespace: namespace.clone(), name }));
            }
            for group in this.groups_waiting_in(&namespace) {
                tasks.add(Task::Group(group));
            }
        }
    });
    let (this, tasks) = (known.clone(), queue.clone());
    known.classes.subscribe(move |_| {
        let waiting = this.snapshots.all().into_iter().filter(|one| !resources::snapshot::is_ready(one));
        waiting.for_each(|one| tasks.add(Task::Snapshot(Key::of(&*one))));
    });
    follow_groups(known, queue);
}

fn follow_groups(known: &Arc<Known>, queue: &Queue<Task>) {
    let (this, tasks) = (known.clone(), queue.clone());
    known.groups.subscribe(move |change| {
        let key = Key::of(&**change.object());
        if let Change::Deleted(_) = change {
            // What kept its members from being deleted.
            for member in this.snapshots.in_namespace(&key.namespace) {
                if group::name_of(&member).as_deref() == Some(&key.name) {
                    tasks.add(Task::Snapshot(Key::of(&*member)));
                }
            }
        }
        tasks.add(Task::Group(key));
    });
    let tasks = queue.clone();
    known.group_contents.subscribe(move |change| {
        let content = change.object();
        tasks.add(Task::GroupContent(content.name_any()));
        let reference = &content.spec.volume_group_snapshot_ref;
        if let Some((namespace, name)) = reference.namespace.clone().zip(reference.name.clone()) {
            tasks.add(Task::Group(Key { namespace, name }));
        }
    });
    let (this, tasks) = (known.clone(), queue.clone());
    known.group_classes.subscribe(move |_| {
        this.groups.all().into_iter().for_each(|one| tasks.add(Task::Group(Key::of(&*one))));
    });
}
