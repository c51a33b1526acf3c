//! What kube-controller-manager does for volumes: bind, reclaim, attach and detach, protect, collect, namespaces.
//!
//! Each controller is a pure step from what is known to writes, and a thin executor. All are driven by the shared
//! watches: nothing is looked at again without cause.

pub mod attach_detach;
pub mod bind;
pub mod collect;
pub mod ephemeral;
pub mod populate;
pub mod protect;
pub mod snapshot;
pub mod stateful_set;

use futures::future::BoxFuture;
use runtime::Context;

/// One of the controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// Ties claims and volumes together and reclaims released volumes.
    Bind,
    /// Attaches volumes to the nodes of their pods, and detaches them.
    AttachDetach,
    /// Keeps claims in use, bound volumes and VolumeAttributesClasses that are named from being deleted.
    Protect,
    /// Makes claims for pods' generic ephemeral volumes.
    Ephemeral,
    /// Deletes what lost its owners, its namespace or its node.
    Collect,
    /// Keeps the pods and claims of stateful sets.
    StatefulSet,
    /// Ties snapshots and their contents together.
    Snapshots,
    /// Says which claims nobody will ever fill.
    Populate,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Bind,
        Self::AttachDetach,
        Self::Protect,
        Self::Ephemeral,
        Self::Collect,
        Self::StatefulSet,
        Self::Snapshots,
        Self::Populate,
    ];

    /// The name by which it is chosen.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::AttachDetach => "attach-detach",
            Self::Protect => "protect",
            Self::Ephemeral => "ephemeral",
            Self::Collect => "collect",
            Self::StatefulSet => "stateful-set",
            Self::Snapshots => "snapshots",
            Self::Populate => "populate",
        }
    }
}

/// Runs these controllers until the context is shut down. Stopping loses nothing: all state is in the API.
pub async fn run(context: Context, only: &[Controller]) {
    let running = only.iter().flat_map(|controller| -> Vec<BoxFuture<'static, ()>> {
        let context = || context.clone();
        match controller {
            Controller::Bind => vec![Box::pin(bind::run(context()))],
            Controller::AttachDetach => vec![Box::pin(attach_detach::run(context()))],
            Controller::Protect => vec![
                Box::pin(protect::claims(context())),
                Box::pin(protect::volumes(context())),
                Box::pin(protect::attributes_classes(context())),
            ],
            Controller::Ephemeral => vec![Box::pin(ephemeral::run(context()))],
            Controller::Populate => vec![Box::pin(populate::run(context()))],
            Controller::StatefulSet => vec![Box::pin(stateful_set::run(context()))],
            Controller::Collect => vec![
                Box::pin(collect::owners(context())),
                Box::pin(collect::namespaces(context())),
                Box::pin(collect::lost_pods(context())),
                Box::pin(collect::lost_attachments(context())),
            ],
            Controller::Snapshots => vec![Box::pin(snapshot::run(context()))],
        }
    });
    futures::future::join_all(running.map(tokio::spawn)).await;
}
