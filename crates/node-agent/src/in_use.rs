//! `volumesInUse` of the Node: what must not be detached from it.
//!
//! A volume is reported before it is mounted, and no more after it was unmounted. It may be mounted once the Node lists
//! it as attached in an answer to that report, or later: whoever detaches takes it off that list first and looks at
//! `volumesInUse` last, so one of the two sees the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use resources::node;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a report may take before its volume is tried again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Waits between attempts to report.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Who uses a volume: UID of a pod, name of the PersistentVolume.
pub(crate) type User = (String, String);
/// Users by the volume's name in the Node's status.
pub(crate) type Users = BTreeMap<String, BTreeSet<User>>;

/// The volumes of one node that are in use, and what the API was told of them.
pub(crate) struct InUse {
    nodes: Api<Node>,
    node: String,
    users: watch::Sender<Users>,
    told: watch::Sender<Option<Told>>,
}

#[derive(Clone, Default)]
struct Told {
    in_use: BTreeSet<String>,
    /// What the API's answer listed as attached.
    attached: BTreeSet<String>,
}

impl InUse {
    /// The volumes that are in use already; nobody is told before [`InUse::report`] runs.
    pub(crate) fn new(client: &Client, node: &str, users: Users) -> InUse {
        let (users, told) = (watch::Sender::new(users), watch::Sender::new(None));
        InUse { nodes: Api::all(client.clone()), node: node.to_owned(), users, told }
    }

    /// Waits until the volume is reported as used. The answer is whether the Node then listed it as attached; None: the
    /// API could not be told in time.
    pub(crate) async fn take(&self, volume: &str, user: User) -> Option<bool> {
        self.users.send_if_modified(|users| users.entry(volume.to_owned()).or_default().insert(user));
        let mut told = self.told.subscribe();
        let is_told = |told: &Option<Told>| told.as_ref().is_some_and(|told| told.in_use.contains(volume));
        let told = tokio::time::timeout(PATIENCE, told.wait_for(is_told)).await.ok()?.ok()?;
        told.as_ref().map(|told| told.attached.contains(volume))
    }

    /// The user has unmounted the volume, or never mounted it.
    pub(crate) fn give_up(&self, volume: &str, user: &User) {
        self.users.send_if_modified(|users| {
            let removed = users.get_mut(volume).is_some_and(|all| all.remove(user));
            users.retain(|_, all| !all.is_empty());
            removed
        });
    }

    /// The pod uses nothing any more.
    pub(crate) fn give_up_all(&self, uid: &str) {
        self.users.send_if_modified(|users| {
            let of_pod = |user: &User| user.0 == uid;
            let some = users.values().flatten().any(of_pod);
            users.values_mut().for_each(|all| all.retain(|user| !of_pod(user)));
            users.retain(|_, all| !all.is_empty());
            some
        });
    }

    /// Reports again: the Node was made anew.
    pub(crate) fn again(&self) {
        self.told.send_replace(None);
        self.users.send_modify(|_| {});
    }

    /// Reports every change until shutdown; changes that come meanwhile are reported together.
    pub(crate) async fn report(&self, shutdown: &CancellationToken) {
        let mut users = self.users.subscribe();
        users.mark_changed();
        let reporting = async {
            let mut pause = FIRST_PAUSE;
            while users.changed().await.is_ok() {
                while let Err(error) = self.tell(&mut users).await {
                    tracing::warn!(
                        node = self.node,
                        error = runtime::explain(&error),
                        "cannot report the volumes in use"
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                pause = FIRST_PAUSE;
            }
        };
        shutdown.run_until_cancelled(reporting).await;
    }

    async fn tell(&self, users: &mut watch::Receiver<Users>) -> Result<(), kube::Error> {
        let in_use: BTreeSet<String> = users.borrow_and_update().keys().cloned().collect();
        let before = self.told.borrow().as_ref().map(|told| told.in_use.clone());
        if before.as_ref() == Some(&in_use) {
            return Ok(());
        }
        let seen = match before {
            Some(_) => None,
            None => {
                let live = self.nodes.get(&self.node).await?;
                let same = node::volumes_in_use(&live).iter().eq(in_use.iter());
                same.then_some(live)
            }
        };
        let live = match seen {
            Some(live) => live,
            None => {
                let patch = Patch::Merge(json!({"status": {"volumesInUse": in_use}}));
                self.nodes.patch_status(&self.node, &PatchParams::default(), &patch).await?
            }
        };
        let attached = node::volumes_attached(&live).map(str::to_owned).collect();
        self.told.send_replace(Some(Told { in_use, attached }));
        Ok(())
    }
}
