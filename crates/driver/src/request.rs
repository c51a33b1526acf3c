//! What a request asks for, checked without looking at anything but the request: required fields, lengths, sizes,
//! capabilities and parameters. What comes out of here is typed, and can be carried out or refused by the drives.

mod access;
mod controller;
mod ephemeral;
#[cfg(test)]
mod fuzz;
mod group;
mod node;
mod parameters;
mod snapshot;
#[cfg(test)]
mod tests;

pub(crate) use access::Access;
pub(crate) use controller::{Capacity, Create, Delete, Expand, Get, List, Modify, Validate, Verdict};
pub use ephemeral::EPHEMERAL;
pub(crate) use ephemeral::Ephemeral;
pub(crate) use group::{CreateGroup, OneGroup};
pub(crate) use node::{ExpandOnNode, Publish, Stage, Stats, Unpublish, Unstage};
pub(crate) use parameters::Parameters;
pub(crate) use snapshot::{CreateSnapshot, ListSnapshots, OneSnapshot};

use csi::v1::CapacityRange;
use drives::VolumeId;
use std::path::{Path, PathBuf};
use values::Bytes;

/// The specification's limit for strings without one of their own, in bytes.
const LONGEST_STRING: usize = 128;
/// The specification's limit for a map, in bytes of its keys and values.
const LARGEST_MAP: usize = 4096;
/// The kernel's limit for a path, without its final zero byte.
const LONGEST_PATH: usize = 4095;

/// Why a request is refused as it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{field} is missing; set it")]
    Missing { field: &'static str },
    #[error("{field} has {length} bytes; the limit is {limit}")]
    TooLong { field: &'static str, length: usize, limit: usize },
    #[error("{field} is invalid: {why}")]
    Invalid { field: &'static str, why: String },
    /// Well-formed, and more than this driver does.
    #[error("{what} is not served: {instead}")]
    Unserved { what: String, instead: &'static str },
    #[error(
        "no size is at least {} and at most {}; raise limit_bytes or lower required_bytes",
        Bytes(*required),
        Bytes(*limit)
    )]
    EmptyRange { required: u64, limit: u64 },
    /// The specification's own code for this missing field is another than for the rest.
    #[error(
        "staging_target_path is missing; this driver publishes staged volumes only: stage the volume first"
    )]
    NoStagingPath,
    /// Text that no volume of ours ever had as its identity.
    #[error("{0} does not exist: it is not an identity that this driver gives")]
    ForeignVolume(String),
    /// Text that is no token of ours.
    #[error("starting_token {0:?} is not from this driver; list again from the start")]
    ForeignToken(String),
    #[error(
        "a volume of this driver is reachable from {here} alone; ask the driver of a node that was asked for"
    )]
    Elsewhere { here: String },
}

/// A range of sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) required: u64,
    pub(crate) limit: Option<u64>,
}

impl Sizes {
    /// The specification's 0 leaves a side open.
    fn check(range: Option<CapacityRange>) -> Result<Self, Refusal> {
        let range = range.unwrap_or_default();
        let bytes = |field, value: i64| {
            u64::try_from(value).map_err(|_| Refusal::Invalid { field, why: format!("{value} is negative") })
        };
        let required = bytes("capacity_range.required_bytes", range.required_bytes)?;
        let limit = bytes("capacity_range.limit_bytes", range.limit_bytes)?;
        match limit {
            0 => Ok(Self { required, limit: None }),
            limit if limit < required => Err(Refusal::EmptyRange { required, limit }),
            limit => Ok(Self { required, limit: Some(limit) }),
        }
    }
}

/// Of what is to be taken away, length is no matter: nothing that is too long was ever made.
fn present(field: &'static str, value: &str) -> Result<(), Refusal> {
    match value.is_empty() {
        true => Err(Refusal::Missing { field }),
        false => Ok(()),
    }
}

fn text(field: &'static str, value: &str) -> Result<(), Refusal> {
    match value.len() {
        0 => Err(Refusal::Missing { field }),
        length if length > LONGEST_STRING => Err(Refusal::TooLong { field, length, limit: LONGEST_STRING }),
        _ => Ok(()),
    }
}

/// A path that something is to be mounted at.
fn mount_point(field: &'static str, value: &str) -> Result<PathBuf, Refusal> {
    let path = any_path(field, value)?;
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Refusal::Invalid { field, why: format!("{value:?} is not an absolute path") })
}

/// A path that only has to name where a volume already is.
fn any_path(field: &'static str, value: &str) -> Result<PathBuf, Refusal> {
    match value.len() {
        0 => Err(Refusal::Missing { field }),
        length if length > LONGEST_PATH => Err(Refusal::TooLong { field, length, limit: LONGEST_PATH }),
        _ if value.contains('\0') => {
            Err(Refusal::Invalid { field, why: "a path can't hold a zero byte".to_owned() })
        }
        _ => Ok(Path::new(value).to_owned()),
    }
}

/// Checked after all else, as the other fields' errors don't depend on whether there is such a volume.
fn volume(value: &str) -> Result<VolumeId, Refusal> {
    value.parse().map_err(|_| Refusal::ForeignVolume(value.to_owned()))
}
