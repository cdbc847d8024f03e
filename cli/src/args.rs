//! The command line.

pub(crate) mod pool;
pub(crate) mod snapshot;
pub(crate) mod torture;

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use siltstone_benches::performance;
use siltstone_nbd::Listen;

use self::{
    pool::{Listing, PoolArgument, PoolCommand, parse_rate},
    torture::TortureArguments,
};
use crate::{errors, interval::Interval, size::Size};

/// The address on which volumes are served if none is given.
pub(crate) const DEFAULT_LISTEN: &str = "127.0.0.1:10809";

/// Deduplicating, compressing block storage.
#[derive(Debug, Parser)]
#[command(
    name = "siltstone",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = errors::EXIT_STATUS_HELP
)]
pub(crate) struct Arguments {
    /// What to log: off, error, warn, info, debug, trace [default: RUST_LOG, or info for serve].
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a pool in a new file or on a block device.
    Create(CreateArguments),
    /// Serve a pool's volumes over NBD until SIGTERM or SIGINT.
    Serve(ServeArguments),
    #[command(flatten)]
    OnPool(PoolCommand),
    /// Read everything and check it against checksums, fingerprints and the map.
    ///
    /// Lists what is wrong in the pool, and every range of a volume that is lost by it: also those
    /// of which a damaged map no longer knows anything. Everything else can be read.
    Check(CheckArguments),
    /// Say what a pool would make of existing files or block devices, without writing anything.
    ///
    /// Later files are compared with earlier ones. UNIQUE is what only that file has, SHARED what
    /// others have too, REPEATED what it has more than once; UNIQUE STORED is what the unique part
    /// would take. Ratios are dedup (data / unique), compression (unique / stored) and reduction, which
    /// is both; thin (logical / data) is no part of it, as what is empty takes no room in any pool.
    Estimate(EstimateArguments),
    /// Measure what a pool does on this machine, beside what machine and device can do.
    ///
    /// Each line is a figure beside its limit (the unavoidable work alone, or the device alone), measured in
    /// turns in the same run: what counts is the ratio. A pool is made for it in files in --directory, which
    /// should be on the device in question; nothing is left of them. It takes some minutes. For the rate
    /// of writes of a pool in use, see top.
    Bench(performance::Options),
    /// Cut the power of simulated pools, kill real servers, or damage pools, until a promise breaks.
    ///
    /// Without --kill and --damage: each seed is a pool with clients on a simulated machine. Its power is cut
    /// at many of its events; each time the pool is recovered and compared with what clients were
    /// promised. With --threads the same is lived on threads, for the races between them.
    ///
    /// With --kill: a pool in a real file is served by a real process, which is killed by SIGKILL
    /// while NBD clients work, also while it starts; each time it is started again and every block
    /// is compared. That is the death of a process: what it had written is there, synced or not.
    /// For the loss of power there are the simulated pools.
    ///
    /// With --damage: each byte of the metadata of two small pools is changed, and their sectors
    /// and blocks are zeroed, replaced by older ones and swapped, one at a time; each time the
    /// pool is opened and all of it is compared.
    ///
    /// Ctrl-C ends it in order, with a summary of what was done until then.
    Torture(TortureArguments),
}

impl Arguments {
    /// What this process was given. A command line that makes no sense ends it.
    pub(crate) fn of_process() -> Self {
        Self::try_parse_valid(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// A command line, if it makes sense.
    fn try_parse_valid<T: Into<OsString> + Clone>(
        line: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let arguments = Self::try_parse_from(line)?;
        if let Command::Torture(torture) = &arguments.command {
            torture.validate()?;
        }
        Ok(arguments)
    }
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    /// A file that does not exist yet, or a block device.
    pub(crate) pool: PathBuf,
    /// The pool's size; of a block device, all of it by default.
    #[arg(long)]
    pub(crate) size: Option<Size>,
    /// A file or block device of its own for the NVRAM log [default: inside the pool].
    #[arg(long, value_name = "PATH")]
    pub(crate) nvram: Option<PathBuf>,
    /// The NVRAM log is on byte-addressable memory (DAX, battery-backed): map it.
    #[arg(long, requires = "nvram")]
    pub(crate) nvram_mapped: bool,
    /// The size of the NVRAM log [default: by the pool's size].
    #[arg(long, value_name = "SIZE")]
    pub(crate) nvram_size: Option<Size>,
    /// Memory that the deduplication index may take.
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub(crate) index_memory: Size,
    /// The shortest run of duplicate 4 KiB blocks that is not stored again.
    #[arg(long, value_name = "BLOCKS", default_value_t = 1)]
    pub(crate) threshold: u32,
    /// Overwrite what a block device holds: a file system, or another pool.
    #[arg(long)]
    pub(crate) force: bool,
    /// When writes are made durable.
    #[arg(long, value_enum, default_value_t = Sync::Flush)]
    pub(crate) sync: Sync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sync {
    /// Before each write is acknowledged.
    Always,
    /// When the client flushes.
    Flush,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    pub(crate) pool: PoolArgument,
    /// Where to listen: HOST:PORT or unix:PATH; may be repeated.
    #[arg(long, value_name = "ADDRESS", default_value = DEFAULT_LISTEN)]
    pub(crate) listen: Vec<Listen>,
    /// Create this volume if it does not exist; may be repeated.
    #[arg(long, value_name = "NAME=SIZE", value_parser = parse_new_volume)]
    pub(crate) create: Vec<NewVolume>,
    /// Create the pool with this size if it does not exist.
    #[arg(long)]
    pub(crate) size: Option<Size>,
    /// Refuse every change.
    #[arg(long, conflicts_with_all = ["create", "size"])]
    pub(crate) read_only: bool,
    /// How many clients may be connected at a time.
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) max_connections: u32,
    /// Memory for written data on its way to the device [default: 32M].
    #[arg(long, value_name = "SIZE")]
    pub(crate) staging: Option<Size>,
    /// Memory for decompressed data kept for reads [default: 64M].
    #[arg(long, value_name = "SIZE")]
    pub(crate) frame_cache: Option<Size>,
    /// Memory for the map's pages kept for lookups [default: 16M].
    #[arg(long, value_name = "SIZE")]
    pub(crate) page_cache: Option<Size>,
    /// Stop when standard input ends, too: so a server ends with the program that started it and
    /// holds the other end of a pipe, however that ends.
    #[arg(long)]
    pub(crate) stop_at_eof: bool,
    /// Scrub the pool in the background, reading so many bytes a second [default: do not].
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) scrub: Option<Size>,
    /// How often to begin a scrub: 12h, 7d, ... The first begins with the server, which does not
    /// know of scrubs before its start.
    #[arg(long, value_name = "TIME", default_value = "7d", requires = "scrub")]
    pub(crate) scrub_every: Interval,
}

/// A volume to create.
#[derive(Clone, Debug)]
pub(crate) struct NewVolume {
    pub(crate) name: String,
    pub(crate) size: Size,
}

fn parse_new_volume(given: &str) -> Result<NewVolume, String> {
    // The last '=': names may hold one, sizes cannot.
    let (name, size) = given.rsplit_once('=').ok_or("write NAME=SIZE, such as disk=10G")?;
    let size = size.parse().map_err(|error| format!("{error}"))?;
    Ok(NewVolume { name: name.into(), size })
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    #[command(flatten)]
    pub(crate) pool: PoolArgument,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct EstimateArguments {
    /// Raw images, other files, or block devices.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Memory for fingerprints; when they do not fit, a sample of them is kept.
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub(crate) memory: Size,
    /// The pool's threshold [default: that of a new pool].
    #[arg(long, value_name = "BLOCKS")]
    pub(crate) threshold: Option<u32>,
    /// The zstd level, from -7 (fastest) to 19 (smallest), of frames of 32 KiB [default: 1].
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) level: Option<i8>,
    /// Compress everything that is unique, rather than one frame in 16.
    #[arg(long)]
    pub(crate) all: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_help_names_the_tuning_defaults_as_they_are() {
        let tuning = siltstone_engine::Tuning::default();
        let help = Arguments::command().find_subcommand_mut("serve").unwrap().render_help();
        for (what, bytes) in [
            ("device", tuning.staging_bytes),
            ("reads", tuning.frame_cache_bytes),
            ("lookups", tuning.page_cache_bytes),
        ] {
            let text = format!("{what} [default: {}M]", bytes >> 20);
            assert!(help.to_string().contains(&text), "{text}: {help}");
        }
    }
}
