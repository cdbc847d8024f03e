//! Commands that work on an open pool: one that this process opens, or one that is being served.
//!
//! What is said here travels to servers, which may be older or newer than this program. Whoever
//! changes it raises [`crate::control::message::VERSION`]; a test there sees to it.

use std::{
    fmt,
    path::{Path, PathBuf},
    slice::from_ref,
    str::FromStr,
};

use clap::{ArgGroup, Args, Subcommand};
use serde::{Deserialize, Serialize, Serializer};

use siltstone_engine::{Compression, FrameSize, Levels};

use super::snapshot::{CloneArguments, SnapshotCommand};
use crate::{
    image::format::ImageFormat,
    interval::Interval,
    size::{Size, human},
};

/// A pool, and how its server is reached if it is being served.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PoolArgument {
    /// The pool.
    #[arg(value_name = "POOL")]
    #[serde(serialize_with = "as_shown")]
    pub(crate) path: PathBuf,
    /// The socket on which a server takes commands for its pool: a path, or none
    /// [default: POOL.control].
    #[arg(long, value_name = "PATH")]
    #[serde(skip)]
    pub(crate) control: Option<Control>,
}

/// Where a server takes commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Nowhere.
    None,
    /// On a socket there.
    Path(PathBuf),
}

impl FromStr for Control {
    type Err = &'static str;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        match given {
            "" => Err("a path, or none"),
            "none" => Ok(Self::None),
            path => Ok(Self::Path(path.into())),
        }
    }
}

/// Paths travel to be shown, never to be opened: files are opened by those who named them.
fn as_shown<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// A path, if there is one.
fn one_as_shown<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
}

/// Several paths.
fn all_as_shown<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

/// The commands on open pools.
#[derive(Debug, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PoolCommand {
    /// Create, list, change and delete volumes.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Take, list and delete snapshots, and go back to them.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Create a volume that holds what a snapshot does.
    ///
    /// It shares with the snapshot what neither overwrites. It takes no time and no space, whatever
    /// the snapshot's size.
    Clone(CloneArguments),
    /// Copy an image into a volume, or many images into a volume each.
    ///
    /// The volume is created if it does not exist. One that exists holds the image afterwards,
    /// and zeros behind it: if something is written there, that takes --force. One that NBD clients are
    /// connected to is left as it is. Images that are not raw (qcow2, vmdk, vdi, vhdx, ...) are
    /// recognised, and read by qemu-img. An import that is interrupted leaves no new volume, except with
    /// --resume; in one that was there before it leaves a mix.
    #[command(
        override_usage = "siltstone import [OPTIONS] <POOL> <VOLUME> <FILE>\n       siltstone import [OPTIONS] <POOL> --each <FILE>..."
    )]
    Import(ImportArguments),
    /// Copy a volume or a snapshot into a raw image; what the volume does not store becomes holes.
    ///
    /// Of a volume that clients write to meanwhile, some parts are older than others; of a snapshot
    /// (VOLUME@SNAPSHOT), all are of one moment.
    Export(ExportArguments),
    /// Say what a pool holds and what it costs.
    ///
    /// What follows the size sums to it. Of each volume: LOGICAL is what is mapped; EXCLUSIVE what no
    /// other volume has, SHARED what others have too; UNIQUE what deleting it leaves as garbage,
    /// before compression. To tell whose the data are, the whole map is read, 24 bytes for each entry;
    /// see --quick.
    Stat(StatArguments),
    /// Show what a pool that is being served does, and what bounds its rate of writes.
    ///
    /// A line each interval: what clients write and read, what bounds the writes (clients who do not
    /// send more, their flushes, room in the pool, processors, the tasks that compress, the one that
    /// places units, or the device), and what their rate would be without that. Ctrl-C ends it.
    Top(TopArguments),
    /// Read everything back at a bounded rate, and check it against checksums and fingerprints.
    ///
    /// Finds what the medium has damaged, and lists it as check does; check also compares the
    /// pool's metadata with each other. A server can do this by itself: see serve --scrub.
    Scrub(ScrubArguments),
    /// Read everything back, and mend what is damaged as far as other copies allow.
    ///
    /// Scrubs; then puts another stored copy of the same contents in the place of each damaged block, and
    /// empties the segments in which nothing is lost any more; then scrubs again, and lists what is still
    /// lost. What was lost and has since been written again anywhere in the pool, from a backup
    /// say, comes back to every volume and snapshot that had it.
    Repair(RepairArguments),
    /// Collect garbage: empty all segments that are partly dead, and free them.
    ///
    /// A pool does this by itself when room gets short. This does all of it at once.
    Gc(GcArguments),
    /// Make a pool larger, while it is in use.
    ///
    /// A file is made longer, sparsely; a block device must be as large already. A pool may grow to
    /// at least sixteen times the size that it was made with, and never shrinks.
    Grow(GrowArguments),
}

/// What a log says of it: which command, and on which volumes and snapshots.
impl fmt::Display for PoolCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use {SnapshotCommand as S, VolumeCommand as V};
        let (command, names): (_, &[String]) = match self {
            Self::Volume(V::Create { name, .. }) => ("volume create", from_ref(name)),
            Self::Volume(V::List { .. }) => ("volume list", &[]),
            Self::Volume(V::Resize { name, .. }) => ("volume resize", from_ref(name)),
            Self::Volume(V::Set { name, .. }) => ("volume set", from_ref(name)),
            Self::Volume(V::Delete { name, .. }) => ("volume delete", from_ref(name)),
            Self::Snapshot(S::Create { snapshots, .. }) => ("snapshot create", snapshots),
            Self::Snapshot(S::List { .. }) => ("snapshot list", &[]),
            Self::Snapshot(S::Delete { snapshots, .. }) => ("snapshot delete", snapshots),
            Self::Snapshot(S::Rollback { snapshot, .. }) => {
                ("snapshot rollback", from_ref(snapshot))
            }
            Self::Clone(clone) => {
                let CloneArguments { snapshot, name, .. } = clone;
                ("clone", &[snapshot.clone(), name.clone()])
            }
            Self::Import(import) => ("import", import.volume.as_slice()),
            Self::Export(export) => ("export", from_ref(&export.volume)),
            Self::Stat(_) => ("stat", &[]),
            Self::Top(_) => ("top", &[]),
            Self::Scrub(_) => ("scrub", &[]),
            Self::Repair(_) => ("repair", &[]),
            Self::Gc(_) => ("gc", &[]),
            Self::Grow(_) => ("grow", &[]),
        };
        f.write_str(command)?;
        // Names come from outside: nothing in them may begin another line.
        names.iter().try_for_each(|name| write!(f, " {}", name.escape_debug()))
    }
}

#[derive(Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrowArguments {
    #[command(flatten)]
    pub(crate) pool: PoolArgument,
    /// The pool's new size [default: what its file or block device has now].
    #[arg(long)]
    pub(crate) size: Option<Size>,
}

#[derive(Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GcArguments {
    #[command(flatten)]
    pub(crate) pool: PoolArgument,
}

#[derive(Debug, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum VolumeCommand {
    /// Create an empty volume.
    Create {
        #[command(flatten)]
        pool: PoolArgument,
        /// The volume's name.
        name: String,
        /// The volume's size, which may exceed the pool's.
        #[arg(long)]
        size: Size,
        #[command(flatten)]
        compression: CompressionArguments,
    },
    /// List a pool's volumes.
    List {
        #[command(flatten)]
        pool: PoolArgument,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Change a volume's size.
    Resize {
        #[command(flatten)]
        pool: PoolArgument,
        /// The volume's name.
        name: String,
        /// The new size.
        #[arg(long)]
        size: Size,
        /// Let the size be a smaller one: what lies past it is discarded.
        #[arg(long)]
        shrink: bool,
    },
    /// Change how what is written to a volume from now on is compressed.
    ///
    /// What the volume stores already stays as it is until it is written again, or garbage collection moves it.
    /// Snapshots, and so their clones, keep what they were taken with.
    #[command(group(ArgGroup::new("settings").args(["level", "frame"]).required(true).multiple(true)))]
    Set {
        #[command(flatten)]
        pool: PoolArgument,
        /// The volume's name.
        name: String,
        #[command(flatten)]
        compression: CompressionArguments,
    },
    /// Delete a volume and everything in it.
    Delete {
        #[command(flatten)]
        pool: PoolArgument,
        /// The volume's name.
        name: String,
        /// Delete its snapshots as well; without this, a volume that has any is not deleted.
        #[arg(long)]
        snapshots: bool,
    },
}

#[derive(Default, Clone, Copy, Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompressionArguments {
    /// The volume's zstd levels, from -7 (fastest) to 19 (smallest): when much waits to be written, and
    /// when there is time; or one for both [default of a new volume: 1..3].
    #[arg(long, value_name = "LEVELS", allow_hyphen_values = true)]
    pub(crate) level: Option<Levels>,
    /// How much of the volume is compressed together: 4K, 8K, 16K or 32K. A random read decodes all of
    /// that, and larger frames take less space [default of a new volume: 32K].
    #[arg(long, value_name = "SIZE")]
    pub(crate) frame: Option<FrameSize>,
}

impl CompressionArguments {
    /// What is given, and the rest from `default`.
    pub(crate) fn or(self, default: Compression) -> Compression {
        Compression {
            levels: self.level.unwrap_or(default.levels),
            frame: self.frame.unwrap_or(default.frame),
        }
    }
}

#[derive(Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportArguments {
    #[command(flatten)]
    pub(crate) pool: PoolArgument,
    /// The volume's name.
    #[arg(required_unless_present = "each")]
    pub(crate) volume: Option<String>,
    /// The image: a file, a block device, or - for standard input.
    #[arg(required_unless_present = "each")]
    #[serde(serialize_with = "one_as_shown")]
    pub(crate) file: Option<PathBuf>,
    /// Instead of VOLUME and FILE: import each of these into a volume of its own, named after the file
    /// without .raw, .qcow2 and the like. One that fails does not stop the others.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["volume", "file"])]
    #[serde(serialize_with = "all_as_shown")]
    pub(crate) each: Vec<PathBuf>,
    /// The size of a volume to create [default: the image's, which standard input does not tell].
    #[arg(long)]
    pub(crate) size: Option<Size>,
    /// Go on where an import of the same file into the same volume was interrupted, and keep the volume
    /// if this one is, to be resumed. A file that has changed since, and a block device, are imported
    /// from the start, for which --force is needed; what was stored of them is found as duplicates. Of an
    /// import that is complete, nothing is done. Nobody else may have written to the volume meanwhile.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Replace what is written in a volume; what it held is gone even if the import fails.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) compression: CompressionArguments,
    /// Who opens the images needs them.
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) image: ImageArguments,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) progress: ProgressArguments,
}

impl ImportArguments {
    /// One of the files, if there are as many.
    pub(crate) fn file(&self, index: usize) -> Option<&Path> {
        self.file.iter().chain(&self.each).nth(index).map(PathBuf::as_path)
    }
}

/// How images are read.
#[derive(Default, Clone, Copy, Debug, Args)]
pub(crate) struct ImageArguments {
    /// What kind of image it is, rather than what it looks like. Other kinds than raw are read by
    /// qemu-img, which has to be installed.
    #[arg(long, value_enum)]
    pub(crate) format: Option<ImageFormat>,
    /// Read the other files, too, that an image which is not raw names as parts of it: its backing files,
    /// data files and extents. It can name any file that you can read.
    #[arg(long)]
    pub(crate) backing: bool,
}

/// How people who look at no terminal are told how far a command is.
#[derive(Default, Clone, Copy, Debug, Args)]
pub(crate) struct ProgressArguments {
    /// Where standard error is no terminal, write a line there about how far it is, so often, such as
    /// 10s.
    #[arg(long, value_name = "TIME")]
    pub(crate) progress: Option<Interval>,
}

#[derive(Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExportArguments {
    #[command(flatten)]
    pub(crate) pool: PoolArgument,
    /// The volume, or VOLUME@SNAPSHOT.
    pub(crate) volume: String,
    /// The image: a file, a block device, or - for standard output.
    #[serde(serialize_with = "as_shown")]
    pub(crate) file: PathBuf,
    /// Overwrite a file that exists; what it held is gone even if the export fails.
    #[arg(long)]
    pub(crate) force: bool,
    /// Go on where data is damaged: leave zeros there, and list what is lost.
    #[arg(long)]
    pub(crate) salvage: bool,
    /// Write to FILE.partial, which becomes FILE when it is complete; keep it if this is interrupted, and
    /// go on from there the next time. For snapshots, which do not change in between, and files.
    #[arg(long, conflicts_with = "salvage")]
    pub(crate) resume: bool,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) progress: ProgressArguments,
}

/// The slowest that a scrub reads: less in a second is no rate, but a unit forgotten.
const MIN_RATE: Size = Size(1 << 10);

#[derive(Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TopArguments {
    #[command(flatten)]
    pub(crate) pool: PoolArgument,
    /// Time between lines.
    #[arg(long, default_value = "1s")]
    pub(crate) interval: Interval,
    /// How many lines [default: until interrupted].
    #[arg(long)]
    pub(crate) count: Option<u64>,
    /// Show every stage: how often it runs, how long a run takes, how many are under way.
    #[arg(long)]
    pub(crate) stages: bool,
    /// Print JSON, an object a line.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Bytes a second.
pub(crate) fn parse_rate(given: &str) -> Result<Size, String> {
    match given.strip_suffix("/s").unwrap_or(given).parse::<Size>() {
        Ok(rate) if rate < MIN_RATE => {
            Err(format!("{} a second is too slow: a rate has a unit, such as 50M", human(rate.0)))
        }
        Ok(rate) => Ok(rate),
        Err(error) => Err(format!("{error}")),
    }
}

#[derive(Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScrubArguments {
    #[command(flatten)]
    pub(crate) pool: PoolArgument,
    /// Bytes to read a second, such as 200M [default: as fast as it goes].
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) rate: Option<Size>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RepairArguments {
    /// How it scrubs, before and after.
    #[command(flatten)]
    pub(crate) scrub: ScrubArguments,
}

/// How findings are listed.
#[derive(Clone, Copy, Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listing {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// List every problem and lost range, rather than the first ten thousand of each.
    #[arg(long)]
    pub(crate) all: bool,
}

impl Listing {
    /// How many to list.
    pub(crate) fn limit(self) -> usize {
        if self.all { usize::MAX } else { siltstone_engine::findings::LIST_LIMIT }
    }
}

#[derive(Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StatArguments {
    #[command(flatten)]
    pub(crate) pool: PoolArgument,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Leave out what only the whole map tells: at once, whatever the pool's size.
    #[arg(long)]
    pub(crate) quick: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::{Arguments, Command};

    #[test]
    fn a_log_names_the_command_and_what_it_is_about_in_one_line() {
        for (line, told) in [
            (&["volume", "resize", "p", "a disk", "--size", "1M"][..], "volume resize a disk"),
            (&["snapshot", "delete", "p", "v@s", "w@s"], "snapshot delete v@s w@s"),
            (&["clone", "p", "v@s", "w"], "clone v@s w"),
            (&["volume", "delete", "p", "x\nERROR"], "volume delete x\\nERROR"),
            (&["stat", "p", "--quick"], "stat"),
        ] {
            let arguments = Arguments::try_parse_from(["siltstone"].iter().chain(line)).unwrap();
            let Command::OnPool(command) = arguments.command else { panic!("{line:?}") };
            assert_eq!(command.to_string(), told);
        }
    }
}
