//! Binding claims to volumes: what Kubernetes calls the PersistentVolumeController.
//!
//! A look at a claim or a volume is a pure function of the [`World`] ([`sync_claim`], [`sync_volume`]) that gives a
//! [`Step`]. Decisions are made one after another under one lock, and the volumes they write to stay marked until the
//! writes have ended, so that no two claims are given one volume; the writes of different decisions run side by side.

mod binder;
mod claim;
mod cluster;
mod matching;
mod operation;
mod plugins;
mod provision;
mod reclaim;
mod step;
mod upkeep;
mod volume;
mod world;

pub use binder::run;
pub use claim::{acceptable, is_delayed, sync_claim};
pub use cluster::{Cluster, Written, write_all};
pub use matching::{MatchError, volume_for};
pub use operation::{Outcome, run as operate};
pub use plugins::{MIGRATED, Plugin, PluginError, Plugins};
pub use step::{Notice, Operation, Step, Write, claim_reference, volume_reference};
pub use upkeep::{deletion_finalizers, migrate_claim, migrate_volume};
pub use volume::{Live, Look, sync_volume};
pub use world::{ClaimKey, Filed, Key, Modes, Volumes, World, claims_of_pod};
