//! The codes of refusals, all of them here. What each code asks of the caller is the table of errors in the CSI
//! specification; which codes mean that nothing was done is [`csi::final_error`].

use std::io::ErrorKind;

use crate::request::Refusal;
use drives::{
    CreateError, DeleteError, ExpandError, Interrupted, MountError, SnapshotError, SourceError, StatsError,
};
use tonic::{Code, Status};

/// A refusal that has a code.
pub(crate) trait Coded: std::error::Error {
    fn code(&self) -> Code;
}

/// Bytes of a refusal that a caller gets: it travels in a header, and may quote what was asked.
const LONGEST_MESSAGE: usize = 4096;

/// The refusal as the caller gets it: its code and its own words.
pub(crate) fn refused(error: impl Coded) -> Status {
    let mut message = error.to_string();
    if message.len() > LONGEST_MESSAGE {
        const CUT: &str = "…";
        message.truncate(message.floor_char_boundary(LONGEST_MESSAGE - CUT.len()));
        message.push_str(CUT);
    }
    Status::new(error.code(), message)
}

/// As [`refused`], where something is to be taken away: what is in the way there is no earlier volume of the caller's.
pub(crate) fn refused_unmount(error: MountError) -> Status {
    match error {
        MountError::Taken { .. } => Status::failed_precondition(error.to_string()),
        other => refused(other),
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        refused(refusal)
    }
}

impl Coded for Refusal {
    fn code(&self) -> Code {
        match self {
            Self::Missing { .. } | Self::TooLong { .. } | Self::Invalid { .. } | Self::Unserved { .. } => {
                Code::InvalidArgument
            }
            Self::EmptyRange { .. } => Code::OutOfRange,
            Self::NoStagingPath => Code::FailedPrecondition,
            Self::ForeignVolume(_) => Code::NotFound,
            Self::Elsewhere { .. } => Code::ResourceExhausted,
            Self::ForeignToken(_) => Code::Aborted,
        }
    }
}

impl Coded for CreateError {
    fn code(&self) -> Code {
        match self {
            Self::Incompatible { .. } => Code::AlreadyExists,
            Self::NoSpace { .. } => Code::ResourceExhausted,
            Self::OutOfReach { .. } => Code::Unavailable,
            Self::Unfit { .. } => Code::FailedPrecondition,
            Self::OutOfRange(_) => Code::OutOfRange,
            Self::Refused(_) => Code::InvalidArgument,
            Self::Source(source) => source.code(),
            Self::Busy(_) => Code::Aborted,
            Self::Drive { error, .. } if error.kind() == ErrorKind::StorageFull => Code::ResourceExhausted,
            Self::Drive { .. } | Self::Host(_) => Code::Internal,
            Self::Interrupted(interrupted) => interrupted.code(),
        }
    }
}

impl Coded for Interrupted {
    fn code(&self) -> Code {
        match self {
            Self::TimedOut => Code::DeadlineExceeded,
            // Nobody knows how far it came, so it must not look final.
            Self::Broken(_) => Code::Aborted,
        }
    }
}

impl Coded for SourceError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::Busy(_) => Code::Aborted,
            Self::NoDrive { .. } => Code::Unavailable,
            Self::Unserved { .. } | Self::OwnBtrfs { .. } => Code::InvalidArgument,
            Self::InUse { .. } => Code::FailedPrecondition,
        }
    }
}

impl Coded for SnapshotError {
    fn code(&self) -> Code {
        match self {
            Self::Incompatible { .. } | Self::IncompatibleGroup { .. } => Code::AlreadyExists,
            Self::Source(source) => source.code(),
            Self::NoSpace { .. } | Self::Overflows { .. } => Code::ResourceExhausted,
            Self::Refused(_) => Code::InvalidArgument,
            Self::Busy(_) => Code::Aborted,
            Self::Drive { .. } => Code::Internal,
            Self::Interrupted(interrupted) => interrupted.code(),
        }
    }
}

impl Coded for DeleteError {
    fn code(&self) -> Code {
        match self {
            Self::InUse { .. } | Self::Copied(_) | Self::Member { .. } => Code::FailedPrecondition,
            Self::NoDrive { .. } => Code::Unavailable,
            Self::Busy(_) => Code::Aborted,
            Self::Drive { .. } => Code::Internal,
            Self::Interrupted(interrupted) => interrupted.code(),
        }
    }
}

impl Coded for MountError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            // Final: nothing is mounted. UNAVAILABLE would keep the pod waiting for an unmount that has nothing to do.
            Self::NoDrive { .. } | Self::NotStaged { .. } => Code::FailedPrecondition,
            // The specification's word for asking more than the volume can.
            Self::OtherAccess { .. } | Self::Published { .. } | Self::Open { .. } => Code::FailedPrecondition,
            Self::Busy(_) => Code::Aborted,
            Self::Taken { .. } => Code::AlreadyExists,
            Self::Occupied { .. } => Code::FailedPrecondition,
            Self::Flag(_) | Self::Path { .. } | Self::Place { .. } => Code::InvalidArgument,
            Self::Host(_) => Code::Internal,
            Self::Interrupted(interrupted) => interrupted.code(),
        }
    }
}

impl Coded for StatsError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) | Self::NotMounted { .. } => Code::NotFound,
            Self::NoDrive { .. } => Code::Unavailable,
            Self::Host(_) => Code::Internal,
            Self::Interrupted(interrupted) => interrupted.code(),
        }
    }
}

impl Coded for ExpandError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::OutOfRange(_) => Code::OutOfRange,
            // The specification's OUT_OF_RANGE would tell the caller to give up for good; room may come.
            Self::NoSpace { .. } => Code::ResourceExhausted,
            Self::NoDrive { .. } => Code::Unavailable,
            Self::Busy(_) => Code::Aborted,
            Self::Host(_) => Code::Internal,
            Self::Interrupted(interrupted) => interrupted.code(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{refused, refused_unmount};
    use drives::{
        CreateError, DeleteError, ExpandError, Interrupted, MountError, SnapshotError, SourceError,
        StatsError,
    };
    use std::path::PathBuf;
    use tonic::Code;

    #[test]
    fn who_calls_waits_longer_than_the_drive_is_waited_for() {
        assert!(drives::DEADLINE < csi::CALL_DEADLINE);
    }

    #[test]
    fn what_may_still_take_effect_is_not_told_as_final() {
        let id = || "0a1b/pvc-1".parse::<drives::VolumeId>().expect("well-formed");
        let open = [
            refused(CreateError::from(Interrupted::TimedOut)),
            refused(CreateError::from(Interrupted::Broken("a panic".into()))),
            refused(CreateError::Busy("pvc-1".into())),
            refused(SnapshotError::from(Interrupted::TimedOut)),
            refused(SnapshotError::Busy("snapshot-1".into())),
            refused(SnapshotError::Source(SourceError::Busy(id()))),
            refused(DeleteError::from(Interrupted::TimedOut)),
            refused(DeleteError::Busy(id())),
            refused(MountError::from(Interrupted::TimedOut)),
            refused(MountError::Busy(id())),
            refused(StatsError::from(Interrupted::TimedOut)),
            refused(ExpandError::from(Interrupted::TimedOut)),
            refused(ExpandError::Busy(id())),
        ];
        assert!(open.iter().all(|status| !csi::final_error(status.code())), "{open:?}");
    }

    #[test]
    fn what_is_in_the_way_of_a_mount_or_of_an_unmount() {
        let taken = || MountError::Taken { at: PathBuf::from("/target"), why: "by another volume".into() };
        assert_eq!(refused(taken()).code(), Code::AlreadyExists);
        assert_eq!(refused_unmount(taken()).code(), Code::FailedPrecondition);
        let status = refused(CreateError::NoSpace {
            asked: 9,
            largest_free: 5,
            largest_drive: None,
            drives: Vec::new(),
        });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains('9') && status.message().contains('5'), "{}", status.message());
    }
}
