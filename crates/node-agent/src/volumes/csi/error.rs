//! Why a CSI volume is not as a pod needs it.

use std::io;

use tonic::Status;

/// Why a CSI volume is not there yet, or not gone yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CsiError {
    #[error("driver name {0} not found in the list of registered CSI drivers: start the driver on this node")]
    NotRegistered(String),
    #[error("the driver {driver} does not answer: {reason}")]
    Unreachable { driver: String, reason: String },
    #[error("rpc error: code = {} desc = {}", code_name(status.code()), status.message())]
    Call { status: Status },
    #[error("the driver did not answer {0} within two minutes")]
    Deadline(&'static str),
    #[error("volume uses the ReadWriteOncePod access mode and is already in use by another pod")]
    InUse,
    #[error("volume {volume} is not attached to this node yet: {why}")]
    NotAttached { volume: String, why: String, no_room: bool },
    #[error("the API could not be told in time that volume {0} is in use, so it is not mounted")]
    NotReported(String),
    #[error("volume mode \"{mode}\" not supported by driver {driver} ({why})")]
    Lifecycle { driver: String, mode: &'static str, why: String },
    #[error("cannot keep the volume's record: {}", linux::in_words(.0))]
    Record(io::Error),
}

impl CsiError {
    /// Whether the driver may have done, or may yet do, what it was asked for.
    pub(super) fn uncertain(&self) -> bool {
        match self {
            CsiError::Call { status } => !csi::final_error(status.code()),
            CsiError::Deadline(_) => true,
            _ => false,
        }
    }
}

/// The name of a gRPC code as Kubernetes' messages have it.
fn code_name(code: tonic::Code) -> String {
    format!("{code:?}")
}
