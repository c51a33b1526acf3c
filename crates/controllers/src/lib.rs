//! What kube-controller-manager does for volumes and their pods: bind, reclaim, attach and detach, protect, collect,
//! namespaces, taints, default service accounts.
//!
//! Each controller is a pure step from what is known to writes, and a thin executor. All are driven by the shared
//! watches: nothing is looked at again without cause.

pub mod accounts;
pub mod attach_detach;
pub mod bind;
pub mod collect;
pub mod ephemeral;
pub mod populate;
pub mod protect;
pub mod snapshot;
pub mod stateful_set;
pub mod taints;

use runtime::{Context, PartEnded};

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
    /// Taints nodes by their conditions, and evicts pods that don't tolerate a taint.
    Taints,
    /// Gives each namespace its service account `default`.
    ServiceAccounts,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Bind,
        Self::AttachDetach,
        Self::Protect,
        Self::Ephemeral,
        Self::Collect,
        Self::StatefulSet,
        Self::Snapshots,
        Self::Populate,
        Self::Taints,
        Self::ServiceAccounts,
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
            Self::Taints => "taints",
            Self::ServiceAccounts => "service-accounts",
        }
    }
}

/// Runs these controllers until the context is shut down. Stopping loses nothing: all state is in the API.
///
/// # Errors
/// One of them, or what it watches by, ended before that: the process can't do its work any more and should end.
pub async fn run(context: Context, only: &[Controller]) -> Result<(), PartEnded> {
    start(&context, only);
    context.parts.ended().await
}

/// Starts these controllers among the context's parts.
pub fn start(context: &Context, only: &[Controller]) {
    for controller in only {
        let parts = &context.parts;
        let context = || context.clone();
        match controller {
            Controller::Bind => parts.spawn("binder", bind::run(context())),
            Controller::AttachDetach => {
                parts.spawn("attach-detach controller", attach_detach::run(context()));
            }
            Controller::Protect => {
                parts.spawn("protection of claims", protect::claims(context()));
                parts.spawn("protection of volumes", protect::volumes(context()));
                parts.spawn("protection of attributes classes", protect::attributes_classes(context()));
            }
            Controller::Ephemeral => parts.spawn("ephemeral volume controller", ephemeral::run(context())),
            Controller::Populate => parts.spawn("judge of populators", populate::run(context())),
            Controller::Taints => {
                parts.spawn("taints by conditions", taints::by_conditions(context()));
                parts.spawn("taint eviction", taints::evict(context()));
            }
            Controller::ServiceAccounts => {
                parts.spawn("keeper of default accounts", accounts::run(context()))
            }
            Controller::StatefulSet => parts.spawn("stateful set controller", stateful_set::run(context())),
            Controller::Collect => {
                parts.spawn("collector of dependents", collect::owners(context()));
                parts.spawn("collector of namespaces", collect::namespaces(context()));
                parts.spawn("collector of lost pods", collect::lost_pods(context()));
                parts.spawn("collector of lost attachments", collect::lost_attachments(context()));
            }
            Controller::Snapshots => parts.spawn("snapshot controller", snapshot::run(context())),
        }
    }
}
