//! What the program can fail with; [`status`] has what it exits with then.

use std::{io, path::PathBuf};

use siltstone_benches::error::BenchError;
use siltstone_engine::{EngineError, ErrorKind, EstimateError, FrameSize, Levels};
use siltstone_nbd::{ServerError, TlsError};

use crate::{
    access::AccessError,
    config::error::ConfigError,
    control::{
        message::Refusal,
        packet::ControlError,
        place::{ListenError, NoAnswer},
    },
    holder::Holder,
    image::format::ImageFormat,
    plural::count,
    resume::MarkStays,
    size::{exact, human},
};

#[cfg(test)]
mod causes;
pub(crate) mod status;

pub(crate) use status::ExitStatus;

/// A command's failure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The engine refused or failed, and says all there is to say.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The pool could not be opened or created.
    #[error("{path}: {source}")]
    Pool {
        /// The pool.
        path: PathBuf,
        /// Why.
        source: EngineError,
    },
    /// Nothing is where the pool should be.
    #[error("{path} does not exist; 'siltstone create {path} --size SIZE' makes a pool there")]
    NoPool {
        /// The path.
        path: PathBuf,
    },
    /// Another process has the pool, and does not take commands for it.
    #[error("{path} is in use by {holder}, and {source}; stop that process first")]
    InUse {
        /// The pool.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
        /// Why it cannot be asked.
        source: NoAnswer,
    },
    /// Another process has the pool, and is not asked.
    #[error("{path} is in use by {holder}; stop that process first")]
    Locked {
        /// The pool.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// Others read the pool, and the command would change it.
    #[error(
        "{path} is served read-only, or being read by another command: it takes no changes until \
         that ends"
    )]
    BeingRead {
        /// The pool.
        path: PathBuf,
    },
    /// The pool is there, and is not what was asked for.
    #[error(
        "{path} exists already with {}, not {}; leave --size out, or see 'siltstone grow'",
        exact(*.size_bytes), exact(*.given_bytes)
    )]
    PoolDiffers {
        /// The pool.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The size asked for.
        given_bytes: u64,
    },
    /// The pool is being served, and the command needs it at rest.
    #[error(
        "{path} is being served, and {command} needs a pool at rest: stop the server first, or use \
         'siltstone scrub', which works meanwhile"
    )]
    Served {
        /// The pool.
        path: PathBuf,
        /// The command.
        command: &'static str,
    },
    /// The pool is at rest.
    #[error(
        "{path} is not being served, and {command} shows what a server does: 'siltstone serve' it first"
    )]
    NotServed {
        /// The pool.
        path: PathBuf,
        /// The command.
        command: &'static str,
    },
    /// The command was carried out by the pool's server, and failed there.
    #[error("{sentence}")]
    AtServer {
        /// The failure's class.
        status: ExitStatus,
        /// All there is to say.
        sentence: String,
    },
    /// The control socket fails, or the other end does not keep to the protocol.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The server does not carry out the command.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The server that carries out the command is asked to stop.
    #[error("the pool's server is stopping")]
    Stopping,
    /// The server cannot listen for commands.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A pool was to be made where there is a file.
    #[error(
        "{path} exists already, {what}, and is left as it is: remove it or name another file; --force \
         is for block devices"
    )]
    FileInPlace {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A new file has no size of its own.
    #[error("a pool in a new file needs a size: add --size, such as --size 20G")]
    PoolSizeMissing,
    /// Server could not be started.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The certificates of a server are not what they should be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Who may connect to a server makes no sense.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The volume exists and is not what was asked for.
    #[error(
        "volume '{volume}' exists already with {}, levels {levels} and frames of {frame}; ask for the same or for \
         none of them, name another volume, or change this one first",
        exact(*.size_bytes)
    )]
    VolumeDiffers {
        /// The volume.
        volume: String,
        /// Its size.
        size_bytes: u64,
        /// Its levels.
        levels: Levels,
        /// The size of its frames.
        frame: FrameSize,
    },
    /// An import would change a volume under those who use it.
    #[error(
        "clients are connected to volume '{volume}', and an import would change it under them: \
         disconnect them first, or import into another volume"
    )]
    VolumeConnected {
        /// The volume.
        volume: String,
    },
    /// A smaller size was given for a volume, and not said to be meant.
    #[error(
        "volume '{volume}' has {}, of which the last {} would be discarded at {}; add --shrink if \
         they may go",
        exact(*.current_bytes), exact(current_bytes - size_bytes), exact(*.size_bytes)
    )]
    WouldShrink {
        /// The volume.
        volume: String,
        /// Its size.
        current_bytes: u64,
        /// The size asked for.
        size_bytes: u64,
    },
    /// The length of a stream is not known beforehand.
    #[error("the length of {file} is not known: add --size to create volume '{volume}' for it")]
    StreamSizeMissing {
        /// The stream.
        file: String,
        /// The volume.
        volume: String,
    },
    /// The image does not fit.
    #[error(
        "{file} is larger than volume '{volume}' ({}); enlarge it with 'siltstone volume resize', \
         or import into another volume",
        exact(*.size_bytes)
    )]
    ImageTooLarge {
        /// The image.
        file: String,
        /// The volume.
        volume: String,
        /// The volume's size.
        size_bytes: u64,
    },
    /// An image that is not raw comes as a stream.
    #[error(
        "{file} is a stream, from which a {format} image cannot be read: name the file itself, or add \
         --format raw to import its bytes as they are"
    )]
    StreamFormat {
        /// The stream.
        file: String,
        /// What it holds.
        format: ImageFormat,
    },
    /// A stream cannot be read again.
    #[error("{file} cannot be read twice, so its import cannot be resumed: leave --resume out")]
    StreamResumed {
        /// The stream.
        file: String,
    },
    /// The image needs a program that is not there.
    #[error(
        "{file} is a {format} image, which is read by qemu-img, and that is not installed (Debian: \
         apt install qemu-utils); --format raw imports its bytes as they are"
    )]
    NoQemuImg {
        /// The image.
        file: String,
        /// What it is.
        format: ImageFormat,
    },
    /// The image cannot be read.
    #[error("qemu-img cannot read {file}: {said}")]
    NotConverted {
        /// The image.
        file: String,
        /// What qemu-img says.
        said: String,
    },
    /// The image is to be converted to a file, for which there is no room, or no directory.
    #[error(
        "cannot convert {file} in {directory}: {source}; TMPDIR can name a directory with room for what the \
         image holds"
    )]
    NotConvertedIn {
        /// The image.
        file: String,
        /// Where the file would be.
        directory: PathBuf,
        /// Why it cannot.
        source: io::Error,
    },
    /// The image names other files as parts of it.
    #[error(
        "{file} is a {format} image that has other files as parts of it ({others}); add --backing if \
         they are what they should be"
    )]
    OtherFiles {
        /// The image.
        file: String,
        /// What it is.
        format: ImageFormat,
        /// The files.
        others: String,
    },
    /// An import would replace what a volume holds, which was not said to be meant.
    #[error(
        "volume '{volume}' holds {} of data, which an import of {file} would replace; {advice}",
        human(*.written_bytes)
    )]
    WouldReplace {
        /// The volume.
        volume: String,
        /// The image.
        file: String,
        /// What is written in it.
        written_bytes: u64,
        /// What can be done instead, and why.
        advice: String,
    },
    /// A part of the image is there, and stays.
    #[error(
        "{source}; volume '{volume}' has the first {} of {file}{rest}: {next}",
        human(*.done_bytes)
    )]
    Unfinished {
        /// Why there is no more of it.
        source: Box<CliError>,
        /// The image.
        file: String,
        /// The volume.
        volume: String,
        /// How much there is.
        done_bytes: u64,
        /// What else the volume holds.
        rest: String,
        /// How it goes on.
        next: String,
    },
    /// A complete import would be taken for a part of one.
    #[error(transparent)]
    MarkStays(#[from] MarkStays),
    /// A part of an export is there, and stays.
    #[error(
        "{source}; {file}.partial has the first {} of '{volume}', and the same command goes on from \
         there",
        human(*.done_bytes)
    )]
    UnfinishedExport {
        /// Why there is no more of it.
        source: Box<CliError>,
        /// The image.
        file: String,
        /// The snapshot.
        volume: String,
        /// How much there is.
        done_bytes: u64,
    },
    /// What is exported could be something else the next time.
    #[error(
        "volume '{volume}' may change until its export is resumed: export a snapshot of it ('siltstone \
         snapshot create'), or leave --resume out"
    )]
    VolumeResumed {
        /// The volume.
        volume: String,
    },
    /// An export to something that is no file has nothing to go on from.
    #[error("{file} is no file, so an export to it cannot be resumed: leave --resume out")]
    TargetResumed {
        /// The target.
        file: String,
    },
    /// No volume can have the name of a file.
    #[error("no volume can be named after {file}: import it alone, with a name for its volume")]
    EachUnnamed {
        /// The file.
        file: String,
    },
    /// Two files have the same name.
    #[error(
        "{other} and {file} would both be imported into volume '{volume}'; nothing was imported: \
         import one of them alone, with a name for its volume"
    )]
    EachSame {
        /// A file.
        file: String,
        /// One before it.
        other: String,
        /// Their volume.
        volume: String,
    },
    /// A volume that is to be made is there.
    #[error(
        "volume '{volume}' holds {} of data, which an import of {file} would replace; nothing was \
         imported: add --resume if it is from an earlier import, or --force, which replaces what all of \
         these volumes hold",
        human(*.written_bytes)
    )]
    EachExists {
        /// The file.
        file: String,
        /// Its volume.
        volume: String,
        /// What is written in it.
        written_bytes: u64,
    },
    /// Of many imports, some have failed, and why was told.
    #[error("{failed} of {} failed; {}", count(*.all as u64, "import"), others(all - failed, *.is_any_unfinished))]
    EachFailed {
        /// How many.
        failed: usize,
        /// Out of how many.
        all: usize,
        /// A part of some image is there, and stays.
        is_any_unfinished: bool,
        /// The first failure's class.
        status: ExitStatus,
    },
    /// Nothing to import.
    #[error("{file} is empty; an empty volume is made by 'siltstone volume create'")]
    ImageEmpty {
        /// The image.
        file: String,
    },
    /// An export was to make an image that it does not make.
    #[error(
        "an export writes a raw image, and {path} has the name of a {format} image: export to a file of \
         another name, and convert that, as by 'qemu-img convert -f raw -O {}'",
        format.name()
    )]
    NotRaw {
        /// The file.
        path: PathBuf,
        /// What its name says.
        format: ImageFormat,
    },
    /// A snapshot was to be deleted as if it were a volume.
    #[error("'{snapshot}' is a snapshot, not a volume: 'siltstone snapshot delete' deletes it")]
    IsSnapshot {
        /// The snapshot, its volume's name included.
        snapshot: String,
    },
    /// Export would overwrite a file.
    #[error("{path} exists already and is left as it is; add --force to overwrite it")]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// Export would overwrite the pool that it reads.
    #[error("{path} is the pool itself; name another file")]
    FileIsPool {
        /// The file.
        path: PathBuf,
    },
    /// Export would overwrite another pool.
    #[error(
        "{path} has a pool in it, which an export does not replace: delete that first, or name another file"
    )]
    FileHoldsPool {
        /// The file.
        path: PathBuf,
    },
    /// An operation on a file other than the pool failed.
    #[error("cannot {action} {file}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// The block device has less room than the volume.
    #[error("{path} is smaller than the volume ({}); name a larger device", exact(*.size_bytes))]
    TargetTooSmall {
        /// The device.
        path: PathBuf,
        /// The volume's size.
        size_bytes: u64,
    },
    /// The process could not set itself up.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// There is no estimate.
    #[error(transparent)]
    Estimate(#[from] EstimateError),
    /// Something could not be measured.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// The config file makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log filter makes no sense.
    #[error("'{given}' is not a log level: use off, error, warn, info, debug or trace")]
    LogLevel {
        /// What was given.
        given: String,
    },
    /// A check or a scrub found damage.
    #[error("{path}: the {pass} found {}; {}", count(*.problems, "problem"), lost(*.lost_bytes, *.lost_ranges))]
    DamageFound {
        /// The pool.
        path: PathBuf,
        /// What looked.
        pass: &'static str,
        /// How many.
        problems: u64,
        /// Ranges of volumes.
        lost_ranges: u64,
        /// And their bytes.
        lost_bytes: u64,
    },
    /// An export has met damage.
    #[error("{source}; with --salvage, everything else is exported")]
    NotSalvaged {
        /// What cannot be read.
        source: EngineError,
    },
    /// An export has left out what could not be read.
    #[error(
        "volume '{volume}' was exported to {file} but for {} in {}, which are lost and zeros there",
        count(*.lost_bytes, "byte"),
        count(*.lost_ranges as u64, "range")
    )]
    Salvaged {
        /// The volume.
        volume: String,
        /// The image.
        file: String,
        /// Ranges of the volume.
        lost_ranges: usize,
        /// And their bytes.
        lost_bytes: u64,
    },
    /// A tortured pool broke a promise.
    #[error("{} broken; each is described with a way to see it again", count(*.violations, "promise"))]
    PromiseBroken {
        /// How many.
        violations: u64,
    },
    /// What was asked for cannot be, as only looking showed.
    #[error("{reason}")]
    Impossible {
        /// What can be.
        reason: String,
    },
    /// The user wanted it to end.
    #[error("interrupted")]
    Interrupted,
}

/// What a damaged pool has lost.
fn lost(bytes: u64, ranges: u64) -> String {
    match ranges {
        0 => "no data of volumes is lost".into(),
        _ => format!(
            "{} of volumes are lost, in {}, everything else can be read",
            count(bytes, "byte"),
            count(ranges, "range")
        ),
    }
}

/// What became of the imports that have not failed.
fn others(complete: usize, is_any_unfinished: bool) -> &'static str {
    match complete {
        0 if is_any_unfinished => "none is complete",
        0 => "nothing was imported",
        1 => "the other is complete",
        _ => "the others are complete",
    }
}

impl CliError {
    /// A [`CliError::File`] from its parts.
    pub(crate) fn file(action: &'static str, file: &str, source: impl Into<io::Error>) -> Self {
        Self::File { action, file: file.into(), source: source.into() }
    }

    /// Whether nothing that the command has yet to do could be done: its user wants it to end, or cannot
    /// be reached, or the pool is of no use.
    pub(crate) fn is_of_all(&self) -> bool {
        match self {
            Self::Interrupted | Self::Stopping | Self::Control(_) => true,
            Self::Engine(error) => matches!(error.kind(), ErrorKind::Closed | ErrorKind::Device),
            Self::Unfinished { source, .. } => source.is_of_all(),
            _ => false,
        }
    }
}
