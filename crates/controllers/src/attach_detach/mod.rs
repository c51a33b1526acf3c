//! The attach-detach controller: VolumeAttachments for the volumes of pods, for drivers that need attaching.
//!
//! What is wanted follows from pods, claims and volumes; what is there are the VolumeAttachments, with what the nodes
//! say to have mounted (`volumesInUse`). Nothing else is kept that a restart would miss: the wait for a node that can't
//! be asked to unmount is written on the attachment ([`resources::annotations::DETACH_WANTED`]).
//!
//! Decisions are pure: [`attach`] for a volume on all its nodes, [`detach`] for a node with all its volumes. One task at
//! a time decides about a volume, so that no two nodes are given one that can be on one node only, and one about a
//! node, so that its `volumesAttached` has one writer. A node mounts only what it reads there after it wrote
//! `volumesInUse`; a volume is taken from there before `volumesInUse` is read for the last time. One of the two sees
//! the other, so that nothing is detached that is being mounted.

mod attach;
mod controller;
mod detach;
mod world;

use std::fmt;
use std::sync::Arc;

use runtime::{Context, Queue, work};

pub use attach::{Blocked, Decision, News, Standing, Users, Volume, decide as decide_volume};
use controller::Controller;
pub use detach::{Held, Known, NodeStep, Release, TakeBack, decide as decide_node, is_ours, release};
use world::World;

/// Volumes and nodes looked at side by side.
const CONCURRENCY: usize = 16;

/// What is decided about at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// A volume, by its name in a node's status.
    Volume(String),
    /// A node.
    Node(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Volume(name) => write!(f, "volume {name}"),
            Key::Node(name) => write!(f, "node {name}"),
        }
    }
}

/// Attaches and detaches volumes until the context is shut down.
pub async fn run(context: Context) {
    let queue = Queue::<Key>::new("attach-detach", &context.metrics);
    let world = Arc::new(World::new(&context.informers));
    world.follow(&queue);
    if context.shutdown.run_until_cancelled(world.synced()).await.is_none() {
        return;
    }
    let controller = Controller::new(&context, world);
    work(queue, CONCURRENCY, context.shutdown.clone(), |key| controller.reconcile(key)).await;
}
