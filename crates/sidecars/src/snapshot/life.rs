//! Between the API and the driver, one step at a time. Each can be repeated; that the driver was asked is on record
//! before it is, so that a snapshot which nobody knows of is found again.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::time::Duration;

use k8s_openapi::api::core::v1::SecretReference;
use kube::Api;
use kube::api::PostParams;
use resources::labels::SNAPSHOT_MANAGED_BY;
use resources::reference;
use runtime::{Next, explain, update_if_changed};
use tonic::Code;

use super::kind::{Call, Content};
use super::plan::{Plan, plan};
use super::{Ours, SnapshotError, Snapshotter};
use crate::{provision, secret};

const PREFIX: &str = "csi.storage.k8s.io/";
/// The least and the longest time between two questions whether a snapshot is ready.
const ASK_AGAIN: [u64; 2] = [1, 300];

impl Snapshotter {
    pub(super) async fn live<C: Content>(
        &self,
        content: &C,
        class: Option<&C::Class>,
        ours: Ours,
    ) -> Result<Next, SnapshotError> {
        let (result, reason) = match plan(content) {
            Plan::Nothing => return Ok(Next::Done),
            Plan::Settle => (self.settle(content).await.map(|()| Next::Done), C::CREATE_FAILED),
            // Only who has it deletes it; of the others, the drawn one lets the object go.
            Plan::Create | Plan::Delete(_) | Plan::Release if ours == Ours::Perhaps => return Ok(Next::Done),
            Plan::Create | Plan::Check if !C::is_served_by(&self.driver) => {
                let driver = self.driver.name().to_owned();
                (Err(SnapshotError::Unable { driver, what: C::WHAT }), C::CREATE_FAILED)
            }
            Plan::Create => (self.create(content, class).await, C::CREATE_FAILED),
            Plan::Check => (self.check(content, class).await, C::CHECK_FAILED),
            plan @ (Plan::Delete(_) | Plan::Release) => {
                let gone = self.go(content, &plan).await;
                if let Err(error) = &gone {
                    self.recorder.warning(&reference(content), C::DELETE_FAILED, explain(error));
                }
                return gone.map(|()| Next::Done).or_else(conflict);
            }
        };
        match result {
            // Another node may have it.
            Err(SnapshotError::Unknown(_)) if ours == Ours::Perhaps => Ok(Next::Done),
            Err(error @ SnapshotError::Api { .. }) => conflict(error),
            Err(error) => {
                self.tell(content, reason, &error).await?;
                Err(error)
            }
            Ok(next) => Ok(next),
        }
    }

    async fn create<C: Content>(&self, content: &C, class: Option<&C::Class>) -> Result<Next, SnapshotError> {
        // Of what is being deleted it is only to be found out whether there is a snapshot.
        let going = content.meta().deletion_timestamp.is_some();
        let none = BTreeMap::new();
        let parameters = match class {
            Some(class) => C::parameters(class),
            None if going => &none,
            None => {
                return Err(SnapshotError::ClassGone(content.class_name().unwrap_or_default().to_owned()));
            }
        };
        let parameters = self.parameters(content, parameters)?;
        let secrets = match going {
            true => secret::read_or_none(&self.client, content.secret().as_ref()).await?,
            false => secret::read(&self.client, content.secret().as_ref()).await?,
        };
        let name = content.name_any();
        let contents: Api<C> = Api::all(self.client.clone());
        // Once the driver has given an id, nothing can be lost any more.
        if content.told_handle().is_none() {
            let recorded = update_if_changed(&contents, content, |content| {
                content.annotations_mut().insert(C::BEING_CREATED.to_owned(), "yes".to_owned());
            });
            recorded.await.map_err(api(format!("record on {name} that its snapshot is being taken")))?;
        }
        let told = match content.create(&self.driver, Call { parameters, secrets }).await {
            Ok(told) => told,
            Err(error) => {
                if is_final(&error) {
                    self.settle(content).await?;
                }
                return Err(error);
            }
        };
        self.signal.raise();
        let made = self.write_status(content, |content| content.set_told(&told)).await?;
        self.settle(content).await?;
        Ok(made.as_ref().map_or(Next::Done, again))
    }

    async fn check<C: Content>(&self, content: &C, class: Option<&C::Class>) -> Result<Next, SnapshotError> {
        let secret = class.and_then(|class| asking_secret::<C>(C::parameters(class)));
        let secrets = secret::read(&self.client, secret.or(content.secret()).as_ref()).await?;
        let told = content.check(&self.driver, Call { secrets, ..Call::default() }).await?;
        // Where volumes are local, so are snapshots: from now on this one is known to be here.
        if !self.place.segments.is_empty() {
            let (name, node) = (content.name_any(), self.options.node.clone());
            let contents: Api<C> = Api::all(self.client.clone());
            let labelled = runtime::edit(&contents, &name, |live: &mut C| {
                live.labels_mut().entry(SNAPSHOT_MANAGED_BY.to_owned()).or_insert_with(|| node.clone());
            });
            labelled.await.map_err(api(format!("say on {name} where its snapshot is")))?;
        }
        let known = self.write_status(content, |content| content.set_told(&told)).await?;
        Ok(known.as_ref().map_or(Next::Done, again))
    }

    /// Deletes the snapshot if that is the plan for the object as it is now, and lets the object go.
    async fn go<C: Content>(&self, content: &C, planned: &Plan) -> Result<(), SnapshotError> {
        let name = content.name_any();
        let contents: Api<C> = Api::all(self.client.clone());
        // The one decision that can't be taken back is taken on live objects.
        let live = contents.get_opt(&name).await.map_err(api(format!("read {name}")))?;
        let Some(live) = live.filter(|live| live.uid() == content.uid() && plan(live) == *planned) else {
            return Ok(());
        };
        let sharer = match planned {
            Plan::Delete(handle) => self.sharer(&live, handle).await?,
            _ => None,
        };
        if let Some(other) = &sharer {
            let message =
                format!("the snapshot is left, and its content goes alone: {other} names the same one");
            self.recorder.warning(&reference(&live), "SnapshotShared", message);
        } else if let Plan::Delete(handle) = planned
            && !handle.is_empty()
        {
            let secrets = secret::read_or_none(&self.client, live.secret().as_ref()).await?;
            live.delete(&self.driver, Call { secrets, ..Call::default() }).await?;
            self.signal.raise();
        }
        let released = update_if_changed(&contents, &live, |live| {
            live.finalizers_mut().retain(|name| name != C::FINALIZER);
        });
        match released.await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            result => result.map(drop).map_err(api(format!("let {name} go"))),
        }
    }

    /// Another content of the same snapshot that is not about to go as well.
    async fn sharer<C: Content>(&self, of: &C, handle: &str) -> Result<Option<String>, SnapshotError> {
        let names_it = |other: &C| {
            other.driver() == of.driver() && other.handle() == Some(handle) && other.uid() != of.uid()
        };
        let contents: Api<C> = Api::all(self.client.clone());
        let others = self.context.informers.of::<C>().all();
        for other in others.iter().filter(|other| names_it(other)) {
            let name = other.name_any();
            let live = contents.get_opt(&name).await.map_err(api(format!("read {name}")))?;
            let stays = |live: &C| {
                let is_kept = live.finalizers().iter().any(|name| name == C::FINALIZER);
                let gone = live.meta().deletion_timestamp.is_some() && !is_kept;
                !gone && !matches!(plan(live), Plan::Delete(_))
            };
            if live.is_some_and(|live| names_it(&live) && stays(&live)) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Forgets that the driver was asked.
    async fn settle<C: Content>(&self, content: &C) -> Result<(), SnapshotError> {
        let name = content.name_any();
        let contents: Api<C> = Api::all(self.client.clone());
        let settled = runtime::edit(&contents, &name, |live: &mut C| {
            if live.uid() == content.uid() && live.annotations().contains_key(C::BEING_CREATED) {
                live.annotations_mut().remove(C::BEING_CREATED);
            }
        });
        match settled.await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            result => result.map(drop).map_err(api(format!("clear the record of {name}"))),
        }
    }

    /// Tells a failure: in the status and by an event, once for each wording.
    async fn tell<C: Content>(
        &self,
        content: &C,
        reason: &'static str,
        error: &SnapshotError,
    ) -> Result<(), SnapshotError> {
        let what = if reason == C::CREATE_FAILED {
            "Failed to create snapshot"
        } else {
            "Failed to check and update snapshot content"
        };
        let message = format!("{what}: {}", explain(error));
        if content.failure() != Some(&message) {
            self.recorder.warning(&reference(content), reason, message.clone());
        }
        self.write_status(content, |live| {
            // Another node may have found it meanwhile.
            if !live.is_ready() && live.failure() != Some(&message) {
                live.set_failure(&message);
            }
        })
        .await
        .map(drop)
    }

    /// Changes the status of the object as it is now; nothing if it is gone.
    async fn write_status<C: Content>(
        &self,
        content: &C,
        mut change: impl FnMut(&mut C),
    ) -> Result<Option<C>, SnapshotError> {
        let name = content.name_any();
        let contents: Api<C> = Api::all(self.client.clone());
        let action = || format!("write the status of {name}");
        let mut tries = 4;
        loop {
            let live = contents.get_opt(&name).await.map_err(api(action()))?;
            let Some(live) = live.filter(|live| live.uid() == content.uid()) else { return Ok(None) };
            let mut new = live.clone();
            change(&mut new);
            if new == live {
                return Ok(Some(live));
            }
            tries -= 1;
            match contents.replace_status(&name, &PostParams::default(), &new).await {
                Err(kube::Error::Api(status)) if status.is_conflict() && tries > 0 => {}
                Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(None),
                result => return result.map(Some).map_err(api(action())),
            }
        }
    }

    /// What of a class's parameters goes to the driver.
    fn parameters<C: Content>(
        &self,
        content: &C,
        all: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, SnapshotError> {
        let is_secret = |key: &str| key.ends_with("-secret-name") || key.ends_with("-secret-namespace");
        let reserved = all.keys().filter_map(|key| key.strip_prefix(PREFIX));
        if let Some(unknown) = reserved.into_iter().find(|key| !is_secret(key)) {
            return Err(SnapshotError::UnknownParameter(format!("{PREFIX}{unknown}")));
        }
        let mut parameters = provision::for_driver(Some(all));
        if self.options.extra_metadata {
            let names = content.metadata_parameters().into_iter();
            parameters.extend(names.map(|(key, value)| (format!("{PREFIX}{key}"), value)));
        }
        Ok(parameters)
    }
}

/// The secret that a class names for questions. It is about no object of a user, so it has no templates.
fn asking_secret<C: Content>(parameters: &BTreeMap<String, String>) -> Option<SecretReference> {
    let part = |part: &str| parameters.get(&format!("{PREFIX}{}-secret-{part}", C::ASKING_SECRET)).cloned();
    Some(SecretReference { name: Some(part("name")?), namespace: Some(part("namespace")?) })
}

/// When to ask again about what is not ready: seldom, if it has taken long already.
fn again<C: Content>(content: &C) -> Next {
    if content.is_ready() {
        return Next::Done;
    }
    let [least, longest] = ASK_AGAIN;
    let quarter = u64::try_from(content.age() / 4).unwrap_or_default();
    Next::After(Duration::from_secs(quarter.clamp(least, longest)))
}

/// Whether there is no snapshot after a failure. An error without an answer leaves everything open.
fn is_final(error: &SnapshotError) -> bool {
    match error {
        SnapshotError::Call { status, .. } => {
            status.source().is_none()
                && !matches!(
                    status.code(),
                    Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Aborted
                )
        }
        SnapshotError::NoId(_) => true,
        _ => false,
    }
}

/// A write that met another one: looked at again.
fn conflict(error: SnapshotError) -> Result<Next, SnapshotError> {
    match &error {
        SnapshotError::Api { source: kube::Error::Api(status), .. } if status.is_conflict() => {
            Ok(Next::Overtaken)
        }
        SnapshotError::Api { source: kube::Error::Api(status), .. } if status.is_not_found() => {
            Ok(Next::Done)
        }
        _ => Err(error),
    }
}

fn api(action: String) -> impl FnOnce(kube::Error) -> SnapshotError {
    move |source| SnapshotError::Api { action, source }
}
