//! What steps lead to, and carrying it out.

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use resources::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use resources::{VolumeGroupSnapshot, VolumeGroupSnapshotContent, group_snapshot, snapshot};
use runtime::Recorder;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A write, conditional on the version that was decided upon.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    Snapshot(Box<VolumeSnapshot>),
    SnapshotStatus(Box<VolumeSnapshot>),
    CreateSnapshot(Box<VolumeSnapshot>),
    Content(Box<VolumeSnapshotContent>),
    ContentStatus(Box<VolumeSnapshotContent>),
    CreateContent(Box<VolumeSnapshotContent>),
    DeleteContent(Box<VolumeSnapshotContent>),
    Group(Box<VolumeGroupSnapshot>),
    GroupStatus(Box<VolumeGroupSnapshot>),
    GroupContent(Box<VolumeGroupSnapshotContent>),
    CreateGroupContent(Box<VolumeGroupSnapshotContent>),
    DeleteGroupContent(Box<VolumeGroupSnapshotContent>),
    Claim(Box<PersistentVolumeClaim>),
    /// Lets a snapshot go, if it is true that it has no content: that may be newer than what is known.
    ReleaseSnapshot {
        snapshot: Box<VolumeSnapshot>,
        without: String,
    },
    /// The same of a group.
    ReleaseGroup {
        group: Box<VolumeGroupSnapshot>,
        without: String,
    },
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    about: ObjectReference,
    is_warning: bool,
    pub(super) reason: &'static str,
    message: String,
}

impl Event {
    pub(super) fn normal(about: ObjectReference, reason: &'static str, message: String) -> Event {
        Event { about, is_warning: false, reason, message }
    }

    pub(super) fn warning(about: ObjectReference, reason: &'static str, message: String) -> Event {
        Event { about, is_warning: true, reason, message }
    }
}

/// The next write, if any, and what to tell once it is made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Step {
    pub(super) write: Option<Write>,
    pub(super) events: Vec<Event>,
}

impl Step {
    pub(super) fn nothing() -> Step {
        Step::default()
    }

    pub(super) fn write(write: Write) -> Step {
        Step { write: Some(write), events: Vec::new() }
    }

    pub(super) fn and(mut self, event: Event) -> Step {
        self.events.push(event);
        self
    }

    /// Makes the write, then tells.
    pub(super) async fn take(self, client: &Client, recorder: &Recorder) -> Result<(), kube::Error> {
        if let Some(write) = self.write {
            Box::pin(carry_out(client, write)).await?;
        }
        for event in self.events {
            match event.is_warning {
                true => recorder.warning(&event.about, event.reason, event.message),
                false => recorder.normal(&event.about, event.reason, event.message),
            }
        }
        Ok(())
    }
}

async fn carry_out(client: &Client, write: Write) -> Result<(), kube::Error> {
    let all = || client.clone();
    match write {
        Write::Snapshot(one) => replace(&within(client, &*one), &*one).await,
        Write::SnapshotStatus(one) => replace_status(&within(client, &*one), &*one).await,
        Write::CreateSnapshot(one) => create(&within(client, &*one), &*one).await,
        Write::Content(one) => replace(&Api::all(all()), &*one).await,
        Write::ContentStatus(one) => replace_status(&Api::all(all()), &*one).await,
        Write::CreateContent(one) => create(&Api::all(all()), &*one).await,
        Write::DeleteContent(one) => delete(&Api::all(all()), &*one).await,
        Write::Group(one) => replace(&within(client, &*one), &*one).await,
        Write::GroupStatus(one) => replace_status(&within(client, &*one), &*one).await,
        Write::GroupContent(one) => replace(&Api::all(all()), &*one).await,
        Write::CreateGroupContent(one) => create(&Api::all(all()), &*one).await,
        Write::DeleteGroupContent(one) => delete(&Api::all(all()), &*one).await,
        Write::Claim(one) => replace(&within(client, &*one), &*one).await,
        // One that there is after all will be heard of, and brings back what it is of.
        Write::ReleaseSnapshot { snapshot, without } => {
            let content = Api::<VolumeSnapshotContent>::all(all()).get_opt(&without).await?;
            match content.is_some_and(|content| snapshot::is_bound_to(&content, &snapshot)) {
                true => Ok(()),
                false => replace(&within(client, &*snapshot), &*snapshot).await,
            }
        }
        Write::ReleaseGroup { group, without } => {
            let content = Api::<VolumeGroupSnapshotContent>::all(all()).get_opt(&without).await?;
            match content.is_some_and(|content| group_snapshot::is_bound_to(&content, &group)) {
                true => Ok(()),
                false => replace(&within(client, &*group), &*group).await,
            }
        }
    }
}

fn within<K>(client: &Client, object: &K) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), &object.namespace().unwrap_or_default())
}

async fn replace<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    api.replace(&object.name_any(), &PostParams::default(), object).await.map(drop)
}

async fn replace_status<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    api.replace_status(&object.name_any(), &PostParams::default(), object).await.map(drop)
}

/// Creates an object. One that is there already is seen soon, and judged then.
async fn create<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        result => result.map(drop),
    }
}

/// Deletes this very object.
async fn delete<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    let only_this = Preconditions { uid: object.uid(), resource_version: None };
    api.delete(&object.name_any(), &DeleteParams::default().preconditions(only_this)).await.map(drop)
}
