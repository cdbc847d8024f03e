//! Kinds of failures: what a program does about one, whereas its text is for people.
//!
//! The command line's exit statuses and the C interface's codes are made of these.

use std::io;

use siltstone_cursor::MapError;
use siltstone_device::{DeviceError, header::HeaderError};
use siltstone_nvram::{CheckpointError, LogError, MarkError, OpenError};

use crate::error::{EngineError, FrameError, MetadataError};

/// What kind of failure an [`EngineError`] is: [`EngineError::kind`] says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Not a pool, or one whose metadata is damaged or incomplete.
    BadPool,
    /// The pool needs a newer program.
    NewerVersion,
    /// Another process has the pool.
    InUse,
    /// A volume or snapshot of that name does not exist.
    NotFound,
    /// Something is there already: a volume, a snapshot, a file, a pool.
    Exists,
    /// The pool was opened for reading only, or a snapshot was to be changed.
    ReadOnly,
    /// The volume was deleted or rolled back since the handle to it was made.
    Stale,
    /// A name, size, range or option that cannot be, or not in the present state.
    Refused,
    /// The pool is full, or what is under it.
    NoSpace,
    /// The device failed.
    Device,
    /// Stored data is damaged.
    Damaged,
    /// The pool is closing, or was given up.
    Closed,
    /// The file or device cannot be opened: it does not exist, or permission is missing.
    File,
    /// Anything else: the system gives no memory or thread, or an invariant is broken.
    Other,
}

impl EngineError {
    /// What kind of failure this is. One that all later changes meet has the kind of its cause.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        use EngineError as E;
        match self {
            E::Device(error) => device_kind(error),
            E::Map(MapError::NoSpace) | E::NoSpace { .. } | E::Log(LogError::Full { .. }) => {
                ErrorKind::NoSpace
            }
            E::Map(MapError::Read { source, .. } | MapError::Write { source, .. })
            | E::BlockDamaged { source: FrameError::Device { source, .. }, .. } => {
                device_kind(source)
            }
            E::Map(MapError::Page { .. }) | E::BlockDamaged { .. } => ErrorKind::Damaged,
            E::Log(LogError::Failed { cause, .. })
            | E::CheckpointRecord(CheckpointError::Failed { cause, .. }) => device_kind(cause),
            E::CheckpointRecord(CheckpointError::Device(error))
            | E::OpenLog(OpenError::Device(error))
            | E::Mark(MarkError::Device(error)) => device_kind(error),
            E::OpenLog(OpenError::Version { .. })
            | E::CheckpointRecord(CheckpointError::Newer(_))
            | E::Mark(MarkError::Newer(_))
            | E::Metadata(MetadataError::Header(HeaderError::Version { .. }))
            | E::NewerVersion { .. } => ErrorKind::NewerVersion,
            E::OpenLog(_)
            | E::CheckpointRecord(_)
            | E::NotAPool { .. }
            | E::Truncated { .. }
            | E::Metadata(_) => ErrorKind::BadPool,
            E::PoolExists | E::NotEmpty | E::VolumeExists { .. } | E::SnapshotExists { .. } => {
                ErrorKind::Exists
            }
            E::NoSuchVolume { .. } | E::NoSuchSnapshot { .. } => ErrorKind::NotFound,
            E::VolumeDeleted { .. } | E::VolumeRolledBack { .. } => ErrorKind::Stale,
            E::ReadOnly | E::SnapshotReadOnly { .. } => ErrorKind::ReadOnly,
            E::TooSmall { .. }
            | E::CannotShrink { .. }
            | E::GrowsTooFar { .. }
            | E::InvalidOption { .. }
            | E::InvalidName { .. }
            | E::InvalidSize { .. }
            | E::InvalidLevels { .. }
            | E::CatalogFull { .. }
            | E::IdsExhausted
            | E::NotASnapshot { .. }
            | E::NamedTwice { .. }
            | E::HasSnapshots { .. }
            | E::TooManyAncestors { .. }
            | E::OutOfRange { .. } => ErrorKind::Refused,
            E::Failed { cause } => cause.kind(),
            E::Closing | E::Abandoned => ErrorKind::Closed,
            E::Log(LogError::TooLarge { .. } | LogError::Refused { .. })
            | E::StagingDamaged { .. }
            | E::Map(MapError::Altered { .. })
            | E::Index(_)
            | E::Panicked { .. }
            | E::Thread { .. } => ErrorKind::Other,
        }
    }
}

fn device_kind(error: &DeviceError) -> ErrorKind {
    use DeviceError as D;
    match error {
        D::Io { source, .. } | D::Size { source, .. } => io_kind(source, ErrorKind::Device),
        D::OutOfRange { .. } | D::Unaligned { .. } | D::Closed { .. } => ErrorKind::Device,
        D::Open { source, .. } => io_kind(source, ErrorKind::File),
        D::Locked { .. } => ErrorKind::InUse,
        D::NotADevice { .. } => ErrorKind::BadPool,
        D::AlreadyExists { .. } => ErrorKind::Exists,
        D::InvalidSize { .. } | D::TooSmall { .. } | D::CannotGrow { .. } => ErrorKind::Refused,
    }
}

/// What the operating system's answer says, if it says anything special.
fn io_kind(error: &io::Error, otherwise: ErrorKind) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::FileTooLarge => ErrorKind::Refused,
        _ => otherwise,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use siltstone_device::Operation;

    use super::*;

    fn device_failed(kind: io::ErrorKind) -> EngineError {
        DeviceError::io(Operation::Write, 0, 4096, kind.into()).into()
    }

    #[test]
    fn a_sticky_failure_is_of_the_kind_of_its_cause() {
        let failed = EngineError::Failed { cause: Arc::new(device_failed(io::ErrorKind::Other)) };
        assert_eq!(failed.kind(), ErrorKind::Device);
    }

    #[test]
    fn a_full_file_system_under_the_pool_is_a_lack_of_space() {
        assert_eq!(device_failed(io::ErrorKind::StorageFull).kind(), ErrorKind::NoSpace);
    }
}
