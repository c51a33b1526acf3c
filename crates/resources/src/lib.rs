//! Annotation, label and finalizer names, our custom resources, and typed helpers over the Kubernetes API types.
//!
//! The helpers are the predicates that more than one controller asks ("which class does this claim have?"), each
//! written once. They are pure.

pub mod affinity;
pub mod annotations;
pub mod claim;
pub mod class;
mod drive;
pub mod expansion;
pub mod finalizers;
pub mod fit;
pub mod labels;
pub mod orlop;
mod reference;
pub mod volume;

pub use drive::{Drive, DriveSpec, DriveState, DriveStatus};
pub use reference::{owner, reference};
