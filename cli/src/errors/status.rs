//! The one table of exit statuses, and which failure has which.

use std::{io, process::ExitCode};

use serde::{Deserialize, Serialize};
use siltstone_benches::{data::DataError, error::BenchError};
use siltstone_device::DeviceError;
use siltstone_engine::{EngineError, ErrorKind, EstimateError};

use super::CliError;
use crate::{access::AccessError, config::error::ConfigError, resume::MarkStays};

/// What the help says about exit statuses.
pub(crate) const EXIT_STATUS_HELP: &str = "\
Exit statuses:
  0  done
  1  another failure (files, addresses, permissions)
  2  the command line or the config file is wrong
  3  not a pool, or its metadata is damaged or incomplete
  4  the pool needs a newer siltstone
  5  the pool is in use by another process, or the volume by clients
  6  no such volume, it exists already, or a name, size or option is impossible
  7  no space
  8  a device failed
  9  stored data is damaged, found by check, by scrub or by reading
  130  interrupted by a signal";

/// The classes of failure that scripts can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub(crate) enum ExitStatus {
    /// Anything that has no class of its own.
    Other = 1,
    /// The command line (for which clap exits with this by itself) or the config file is wrong.
    Usage = 2,
    /// Not a pool, or one that cannot be opened as it is.
    BadPool = 3,
    /// Written by a newer program.
    NewerVersion = 4,
    /// Another process has the pool, or clients have the volume.
    InUse = 5,
    /// A name, size or option that cannot be.
    Refused = 6,
    /// Pool, file system or quota is full.
    NoSpace = 7,
    /// The device failed.
    Device = 8,
    /// Stored data is damaged.
    Damaged = 9,
    /// The user wanted it to end.
    Interrupted = 130,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}

impl CliError {
    /// The failure's class.
    pub(crate) fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Engine(error)
            | Self::Pool { source: error, .. }
            | Self::NotSalvaged { source: error } => engine_status(error),
            Self::NoPool { .. }
            | Self::Server(_)
            | Self::Tls(_)
            | Self::Access(AccessError::Group { .. })
            | Self::Control(_)
            | Self::Refused(_)
            | Self::Listen(_)
            | Self::NoQemuImg { .. }
            | Self::NotConverted { .. }
            | Self::Stopping => ExitStatus::Other,
            Self::InUse { .. }
            | Self::Locked { .. }
            | Self::BeingRead { .. }
            | Self::Served { .. }
            | Self::VolumeConnected { .. } => ExitStatus::InUse,
            Self::AtServer { status, .. } | Self::EachFailed { status, .. } => *status,
            Self::Unfinished { source, .. } | Self::UnfinishedExport { source, .. } => {
                source.exit_status()
            }
            Self::Interrupted => ExitStatus::Interrupted,
            Self::Impossible { .. }
            | Self::NotServed { .. }
            | Self::Access(AccessError::Plaintext { .. } | AccessError::Incomplete { .. })
            | Self::PoolSizeMissing
            | Self::StreamSizeMissing { .. }
            | Self::StreamResumed { .. }
            | Self::VolumeResumed { .. }
            | Self::TargetResumed { .. }
            | Self::LogLevel { .. } => ExitStatus::Usage,
            Self::Config(error) => match error {
                ConfigError::Read { .. } => ExitStatus::Other,
                ConfigError::Line { .. } | ConfigError::Whole { .. } => ExitStatus::Usage,
            },
            Self::PoolDiffers { .. }
            | Self::Access(AccessError::NoGroup { .. })
            | Self::VolumeDiffers { .. }
            | Self::WouldShrink { .. }
            | Self::WouldReplace { .. }
            | Self::ImageTooLarge { .. }
            | Self::ImageEmpty { .. }
            | Self::StreamFormat { .. }
            | Self::OtherFiles { .. }
            | Self::EachUnnamed { .. }
            | Self::EachSame { .. }
            | Self::EachExists { .. }
            | Self::FileExists { .. }
            | Self::FileInPlace { .. }
            | Self::IsSnapshot { .. }
            | Self::NotRaw { .. }
            | Self::FileIsPool { .. }
            | Self::FileHoldsPool { .. }
            | Self::TargetTooSmall { .. } => ExitStatus::Refused,
            Self::File { source, .. }
            | Self::System { source, .. }
            | Self::MarkStays(MarkStays { source, .. })
            | Self::NotConvertedIn { source, .. } => io_status(source, ExitStatus::Other),
            Self::Estimate(error) => match error {
                EstimateError::File { source, .. } => io_status(source, ExitStatus::Other),
                EstimateError::NotData { .. } | EstimateError::Thread { .. } => ExitStatus::Other,
                EstimateError::Memory { .. } | EstimateError::Option { .. } => ExitStatus::Refused,
            },
            Self::Bench(error) => match error {
                BenchError::Engine(error) => engine_status(error),
                BenchError::Device(error) => device_status(error),
                BenchError::NoGroup { .. } => ExitStatus::Usage,
                BenchError::TooLittleRoom { .. } => ExitStatus::NoSpace,
                BenchError::TooLittleData { .. } | BenchError::Data(DataError::Tmpfs { .. }) => {
                    ExitStatus::Refused
                }
                BenchError::File { source, .. }
                | BenchError::System { source, .. }
                | BenchError::Data(DataError::File { source, .. }) => {
                    io_status(source, ExitStatus::Other)
                }
                BenchError::Data(_) | BenchError::Child { .. } => ExitStatus::Other,
            },
            Self::DamageFound { .. } | Self::Salvaged { .. } | Self::PromiseBroken { .. } => {
                ExitStatus::Damaged
            }
        }
    }
}

fn engine_status(error: &EngineError) -> ExitStatus {
    match error.kind() {
        // A snapshot cannot be changed by anybody; a pool only not by this process.
        ErrorKind::ReadOnly if matches!(error, EngineError::ReadOnly) => ExitStatus::Other,
        kind => status_of_kind(kind),
    }
}

fn device_status(error: &DeviceError) -> ExitStatus {
    engine_status(&EngineError::Device(error.clone()))
}

fn status_of_kind(kind: ErrorKind) -> ExitStatus {
    match kind {
        ErrorKind::BadPool => ExitStatus::BadPool,
        ErrorKind::NewerVersion => ExitStatus::NewerVersion,
        ErrorKind::InUse => ExitStatus::InUse,
        ErrorKind::NotFound
        | ErrorKind::Exists
        | ErrorKind::ReadOnly
        | ErrorKind::Stale
        | ErrorKind::Refused => ExitStatus::Refused,
        ErrorKind::NoSpace => ExitStatus::NoSpace,
        ErrorKind::Device => ExitStatus::Device,
        ErrorKind::Damaged => ExitStatus::Damaged,
        ErrorKind::Closed | ErrorKind::File | ErrorKind::Other => ExitStatus::Other,
    }
}

/// What the operating system's answer says, if it says anything special.
fn io_status(error: &io::Error, otherwise: ExitStatus) -> ExitStatus {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ExitStatus::NoSpace,
        io::ErrorKind::FileTooLarge => ExitStatus::Refused,
        _ => otherwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn io(kind: io::ErrorKind) -> Arc<io::Error> {
        Arc::new(kind.into())
    }

    #[test]
    fn a_sticky_failure_has_the_class_of_its_cause() {
        let cause = EngineError::Device(DeviceError::Io {
            operation: siltstone_device::Operation::Flush,
            offset_bytes: 0,
            len_bytes: 0,
            source: io(io::ErrorKind::Other),
        });
        let failed = EngineError::Failed { cause: Arc::new(cause) };
        assert_eq!(CliError::from(failed).exit_status(), ExitStatus::Device);
    }

    #[test]
    fn a_full_file_system_under_the_pool_is_a_lack_of_space() {
        let error = DeviceError::Io {
            operation: siltstone_device::Operation::Write,
            offset_bytes: 0,
            len_bytes: 4096,
            source: io(io::ErrorKind::StorageFull),
        };
        assert_eq!(CliError::from(EngineError::from(error)).exit_status(), ExitStatus::NoSpace);
    }

    #[test]
    fn the_help_lists_every_status_once() {
        for status in (0..=9).chain([130]) {
            let lines = EXIT_STATUS_HELP.lines();
            assert_eq!(lines.filter(|line| line.starts_with(&format!("  {status}  "))).count(), 1);
        }
    }
}
