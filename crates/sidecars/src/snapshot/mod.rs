//! What csi-snapshotter does, node-locally: the driver's part of VolumeSnapshotContents and of their groups.
//!
//! A content is this node's when it says so (`snapshot.storage.kubernetes.io/managed-by`), or when its volume can be
//! used here; of several such nodes all draw the same one. Of one that stands for a snapshot made by other means nobody
//! knows where it is: each node asks its driver, and the one that has it puts its name on the content. What to do is
//! pure ([`plan`]) and the same for single snapshots and groups ([`kind`]); the steps between the API and the driver
//! are in [`life`].

mod group;
mod kind;
mod life;
mod plan;
mod single;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use resources::labels::SNAPSHOT_MANAGED_BY;
use resources::{VolumeGroupSnapshotContent, VolumeSnapshotContent};
use runtime::{Backoff, Change, Context, Queue, Recorder, work};
use tonic::Status;

use self::kind::Content;
use crate::capacity::Signal;
use crate::place::Place;
use crate::{Driver, SecretError};

/// Contents worked on at a time.
const CONCURRENCY: usize = 10;
/// Failing contents are tried again after one second up to five minutes.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(300) };

/// How to take snapshots on a node.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The node.
    pub node: String,
    /// Whether the driver is told the names of snapshot and content, as `csi.storage.k8s.io/volumesnapshot/name` and so
    /// on. Only for drivers that accept parameters they don't know.
    pub extra_metadata: bool,
}

/// Why a content is not what it should be yet.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The API refused or could not be reached.
    #[error("could not {action}")]
    Api {
        /// What was to be done, and with what.
        action: String,
        /// The refusal.
        source: kube::Error,
    },
    /// The driver refused, or did not answer.
    #[error("{call} {about}: {}", crate::driver::wording(status))]
    Call {
        /// The call.
        call: &'static str,
        /// What it was about.
        about: String,
        /// The answer.
        status: Box<Status>,
    },
    /// The driver lacks the capability.
    #[error("the driver {driver} takes no {what}; use another driver's volumes")]
    Unable {
        /// The driver.
        driver: String,
        /// What it does not take.
        what: &'static str,
    },
    /// The class is gone.
    #[error("the class {0} is not found; create it again")]
    ClassGone(String),
    /// A reserved parameter that means nothing.
    #[error(
        "found unknown parameter key \"{0}\" with reserved prefix csi.storage.k8s.io/; remove it from the class"
    )]
    UnknownParameter(String),
    /// The driver's answer makes no sense.
    #[error("the driver answered {0} without an id; that is an error of the driver")]
    NoId(&'static str),
    /// The driver does not have the snapshot.
    #[error("the snapshot {0} is not found by the driver; check the handle in the content")]
    Unknown(String),
    /// The secret that the class names.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// Takes and deletes snapshots by one driver on one node until the context's shutdown.
///
/// `signal` is raised after every snapshot made or deleted.
pub async fn run(context: Context, driver: Driver, options: Options, signal: Signal) {
    let snapshotter = Arc::new(Snapshotter::new(&context, driver, options, signal));
    snapshotter.follow_volumes();
    tokio::join!(
        snapshotter.care_for::<VolumeSnapshotContent>(&context, "snapshot-contents"),
        snapshotter.care_for::<VolumeGroupSnapshotContent>(&context, "snapshot-groups"),
    );
}

struct Snapshotter {
    client: Client,
    driver: Driver,
    options: Options,
    place: Place,
    recorder: Recorder,
    signal: Signal,
    context: Context,
    /// The driver's volumes, here or elsewhere, by their ids.
    volumes: Mutex<HashMap<String, String>>,
}

impl Snapshotter {
    fn new(context: &Context, driver: Driver, options: Options, signal: Signal) -> Snapshotter {
        Snapshotter {
            client: context.client.clone(),
            place: Place::new(context, &driver, &options.node),
            recorder: context.recorder(format!("csi-snapshotter {}", driver.name()), &options.node),
            driver,
            options,
            signal,
            context: context.clone(),
            volumes: Mutex::default(),
        }
    }

    fn follow_volumes(self: &Arc<Self>) {
        let this = self.clone();
        self.context.informers.volumes().subscribe(move |change| {
            let volume = change.object();
            let Some(csi) = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()) else { return };
            if csi.driver != this.driver.name() {
                return;
            }
            let mut volumes = this.volumes.lock();
            match change {
                Change::Applied { .. } => {
                    volumes.insert(csi.volume_handle.clone(), volume.name_any());
                }
                Change::Deleted(_) => _ = volumes.remove(&csi.volume_handle),
            }
        });
    }

    /// Takes care of contents of a kind.
    async fn care_for<C: Content>(self: &Arc<Self>, context: &Context, name: &'static str) {
        let queue: Queue<String> = Queue::with_backoff(name, &context.metrics, BACKOFF);
        let (contents, classes) = (context.informers.of::<C>(), context.informers.of::<C::Class>());
        let (this, tasks) = (self.clone(), queue.clone());
        contents.subscribe(move |change| {
            let Change::Applied { old, new } = change else { return };
            if new.driver() == this.driver.name()
                && managed_elsewhere(&**new, &this.options.node).is_none()
                && old.as_ref().is_none_or(|old| plan::decides(&**old) != plan::decides(&**new))
            {
                tasks.add(new.name_any());
            }
        });
        let (all, tasks) = (contents.clone(), queue.clone());
        let (driver, node) = (self.driver.name().to_owned(), self.options.node.clone());
        classes.subscribe(move |change| {
            let Change::Applied { new: class, .. } = change else { return };
            let of_class = all.all().into_iter().filter(|content| {
                content.driver() == driver
                    && content.class_name() == class.meta().name.as_deref()
                    && !content.is_ready()
                    && managed_elsewhere(&**content, &node).is_none()
            });
            of_class.for_each(|content| tasks.add(content.name_any()));
        });
        // Who takes care of a content may change with the nodes.
        let lost: Arc<Mutex<BTreeMap<String, Option<String>>>> = Arc::default();
        let (waiting, tasks) = (lost.clone(), queue.clone());
        self.place.on_change(move || {
            std::mem::take(&mut *waiting.lock()).into_keys().for_each(|name| tasks.add(name));
        });
        // So it may when nobody knows any more where a content's volume was.
        let informers = &context.informers;
        let (waiting, tasks) = (lost.clone(), queue.clone());
        informers.volumes().subscribe(move |change| {
            let Change::Deleted(volume) = change else { return };
            let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
            let Some(gone) = csi.map(|csi| csi.volume_handle.as_str()) else { return };
            let waiting = waiting.lock();
            let of_it = waiting.iter().filter(|(_, volume)| volume.as_deref() == Some(gone));
            of_it.for_each(|(name, _)| tasks.add(name.clone()));
        });
        let synced = async {
            tokio::join!(
                contents.synced(),
                classes.synced(),
                self.place.synced(),
                informers.volumes().synced(),
            )
        };
        if context.shutdown.run_until_cancelled(synced).await.is_none() {
            return;
        }
        work(queue, CONCURRENCY, context.shutdown.clone(), |name| {
            // Before the draw: a change of nodes during it must bring the content back.
            let content = contents.get("", &name);
            let volume = content.as_ref().and_then(|content| content.volumes().first().cloned());
            lost.lock().insert(name.clone(), volume);
            let ours = content.as_ref().map_or(Ours::No, |content| self.is_ours(&**content));
            if ours != Ours::No || content.is_none() {
                lost.lock().remove(&name);
            }
            let class = content.as_ref().and_then(|content| classes.get("", content.class_name()?));
            let this = self.clone();
            async move {
                match (content, ours) {
                    (Some(content), Ours::Yes | Ours::Perhaps) => {
                        Box::pin(this.live(&*content, class.as_deref(), ours)).await
                    }
                    _ => Ok(runtime::Next::Done),
                }
            }
        })
        .await;
    }

    /// Whether this node takes care of a content.
    fn is_ours<C: Content>(&self, content: &C) -> Ours {
        let node = self.options.node.as_str();
        match content.labels().get(SNAPSHOT_MANAGED_BY) {
            Some(manager) if manager == node => return Ours::Yes,
            Some(_) => return Ours::No,
            None => {}
        }
        let volume = content.volumes().first().and_then(|id| self.volumes.lock().get(id).cloned());
        let volume = volume.and_then(|name| self.context.informers.volumes().get("", &name));
        let is_local = !self.place.segments.is_empty();
        let uid = content.meta().uid.as_deref();
        let is_drawn = match &volume {
            // Not here: another node takes care of it.
            Some(volume) if !self.place.has(volume) => return Ours::No,
            Some(volume) => self.place.is_drawn(uid, |name| self.place.admits(volume, name)),
            None => self.place.is_drawn(uid, |_| true),
        };
        match (is_drawn, volume.is_none() && is_local && content.is_given()) {
            (true, _) => Ours::Yes,
            (false, true) => Ours::Perhaps,
            (false, false) => Ours::No,
        }
    }
}

/// Whether a content is a node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ours {
    Yes,
    /// If its driver knows the snapshot.
    Perhaps,
    No,
}

/// The other node that a content belongs to.
fn managed_elsewhere<'a>(content: &'a impl Resource, node: &str) -> Option<&'a str> {
    let manager = content.meta().labels.as_ref()?.get(SNAPSHOT_MANAGED_BY)?;
    (manager != node).then_some(manager.as_str())
}
