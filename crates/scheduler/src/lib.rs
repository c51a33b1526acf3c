//! What kube-scheduler does: a node for every pod, that its rules admit and where its volumes are or can be made.
//!
//! One pass per pod: [`place`] is a pure function of the [`World`], made of kube-scheduler's plugins; the executor writes
//! what was chosen on claims and volumes, waits for them to be bound, and binds the pod. All claims of a pod are looked
//! at together, and storage that was promised to pods in flight is not promised twice.

mod amounts;
mod capacity;
mod changes;
mod cycle;
mod explain;
mod matching;
mod nodes;
mod place;
mod placed;
mod plugins;
mod ports;
mod preempt;
mod reasons;
mod scheduler;
mod sources;
mod terms;
mod world;
mod writes;

pub use capacity::{Ledger, Pool, Promise};
pub use explain::{Explained, Scores, Verdict, judge, scores};
pub use matching::{MatchError, volume_on_node};
pub use place::{Placement, Provision, place, place_on};
pub use reasons::{Reason, Refusal, Stage, Whole};
pub use scheduler::run;
pub use world::{Cause, Labels, World};
