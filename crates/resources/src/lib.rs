//! Annotation, label and finalizer names, our custom resources, and typed helpers over the Kubernetes API types.
//!
//! The helpers are the predicates that more than one controller asks ("which class does this claim have?"), each
//! written once. They are pure.

pub mod affinity;
pub mod annotations;
mod approval;
pub mod attachment;
pub mod claim;
pub mod class;
mod drive;
pub mod expansion;
pub mod finalizers;
pub mod fit;
pub mod group_snapshot;
pub mod labels;
pub mod modification;
pub mod node;
pub mod orlop;
pub mod pod;
pub mod populator;
mod reference;
pub mod reference_grant;
pub mod requests;
pub mod secret;
pub mod snapshot;
pub mod source;
pub mod taints;
pub mod volume;

pub use drive::{Drive, DriveSpec, DriveState, DriveStatus};
pub use group_snapshot::{VolumeGroupSnapshot, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent};
pub use populator::VolumePopulator;
pub use reference::{owner, reference};
pub use reference_grant::{GrantFrom, GrantTo, ReferenceGrant, ReferenceGrantSpec};
pub use snapshot::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};
