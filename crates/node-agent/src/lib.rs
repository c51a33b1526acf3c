//! What kubelet does for volumes: desired and actual mounts, volume plugins, pod directories, containers.
//!
//! [`run`] is the agent of one node; a process may run several, each with a root directory of its own. What it does
//! for a pod follows from the API and from what is found on the node: the mount table, records that are written
//! before each effect, and the containers' monitors. It can therefore be killed at any moment and started again:
//! containers keep running meanwhile, mounts are found again, and what was begun is ended.
//!
//! A change of a pod goes through three rooms: [`observe`] looks, [`plan`] decides, [`steps`] does.

mod agent;
mod attach;
mod blocking;
mod containers;
mod descriptor;
mod grow;
mod in_use;
mod layout;
mod leftovers;
mod limits;
pub mod logs;
mod news;
mod node;
mod objects;
mod observe;
mod plan;
mod records;
mod report;
mod run;
mod stats;
mod status;
mod steps;
mod teardown;
mod volumes;
mod wanted;

pub use containers::monitor::main as container_monitor;
pub use layout::Layout;
pub use run::{Drivers, Error, Options, run};
pub use stats::{Stats, StatsError, VolumeMetrics};
pub use teardown::{TeardownError, teardown};
pub use volumes::flex::DIRECTORY as FLEX_VOLUMES;
