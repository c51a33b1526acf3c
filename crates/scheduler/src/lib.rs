//! What kube-scheduler does for volumes: a node for every pod, where its volumes are or can be made.
//!
//! One pass per pod: [`place`] is a pure function of the [`World`]; the executor writes what was chosen on claims and
//! volumes, waits for them to be bound, and binds the pod. All claims of a pod are looked at together, and storage that
//! was promised to pods in flight is not promised twice. CPU, memory, ports, pod affinity and spreading are not
//! looked at.

mod capacity;
mod changes;
mod limits;
mod matching;
mod node;
mod place;
mod reasons;
mod scheduler;
mod sources;
mod world;
mod writes;

pub use capacity::{Ledger, Pool, Promise};
pub use matching::{MatchError, volume_on_node};
pub use place::{Placement, Provision, place, place_on};
pub use reasons::{Reason, Refusal};
pub use scheduler::run;
pub use world::{Cause, Labels, World};
