//! The command line.

pub(crate) mod access;
pub(crate) mod config;
pub(crate) mod pool;
pub(crate) mod snapshot;
pub(crate) mod torture;

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use siltstone_benches::performance;
use siltstone_nbd::Listen;

use self::{
    access::AccessArguments,
    config::ConfigCommand,
    pool::{ImageArguments, Listing, PoolArgument, PoolCommand, parse_rate},
    torture::TortureArguments,
};
use crate::{
    config::{
        error::{ConfigError, reason},
        line::{self, serve_matches, serve_of},
        settings::Settings,
    },
    errors::{CliError, status::EXIT_STATUS_HELP},
    interval::Interval,
    monitor::address,
    size::Size,
    tips,
};

/// The address on which volumes are served if none is given.
pub(crate) const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10809);

/// Deduplicating, compressing block storage.
#[derive(Debug, Parser)]
#[command(
    name = "siltstone",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = EXIT_STATUS_HELP
)]
pub(crate) struct Arguments {
    /// What to log: off, error, warn, info, debug, trace, or a filter such as warn,siltstone_nbd=debug
    /// [default: RUST_LOG, or info for serve].
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// How to log: a line for people, or a JSON object, for each event.
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Time, level, place, message, fields.
    Text,
    /// The same as an object.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a pool in a new file or on a block device.
    Create(CreateArguments),
    /// Serve a pool's volumes over NBD until SIGTERM or SIGINT.
    ///
    /// The second of these signals ends the server at once, and the pool recovers when it is opened.
    /// SIGHUP has it read its config file again, without disconnecting anybody: new volumes to
    /// create, what to export and to whom, what to log, and renewed certificates count at once, other
    /// changes from the next start.
    #[command(
        override_usage = "siltstone serve [OPTIONS] <POOL>\n       siltstone serve [OPTIONS] --config <FILE> [POOL]"
    )]
    Serve(Box<ServeArguments>),
    /// Check and show config files for serve.
    #[command(subcommand)]
    Config(ConfigCommand),
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
    /// Print a script that completes this program's commands and options in a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write manual pages, one for each command.
    Man {
        /// Where to; made if it is not there.
        directory: PathBuf,
    },
}

impl Arguments {
    /// What this process was given. A command line that makes no sense ends it.
    pub(crate) fn of_process() -> Result<Self, CliError> {
        match Self::of_line(std::env::args_os()) {
            Ok(arguments) => Ok(arguments),
            Err(LineError::Usage(error)) => tips::corrected(error).exit(),
            Err(LineError::Config(error)) => Err(error.into()),
        }
    }

    /// The same again, by when the config file may say something else.
    pub(crate) fn again() -> Result<Self, CliError> {
        Self::of_line(std::env::args_os()).map_err(|error| match error {
            LineError::Usage(error) => CliError::Impossible { reason: reason(&error) },
            LineError::Config(error) => error.into(),
        })
    }

    /// A command line, with what its config file adds.
    pub(crate) fn of_line<T: Into<OsString>>(
        line: impl IntoIterator<Item = T>,
    ) -> Result<Self, LineError> {
        let line = line::complete(line.into_iter().map(Into::into).collect())?;
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(&line.words)?;
        let arguments = Self::from_arg_matches(&matches);
        let mut arguments = arguments.map_err(|error| error.format(&mut command))?;
        match &mut arguments.command {
            Command::Torture(torture) => torture.validate()?,
            Command::Serve(serve) | Command::Config(ConfigCommand::Show(serve)) => {
                if let Some(matches) = serve_matches(&matches) {
                    serve.settings = Settings::of(serve_of(&mut command), matches, &line);
                }
            }
            _ => {}
        }
        Ok(arguments)
    }
}

/// Why a command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// It makes no sense, or asks for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// Its config file makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
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

/// What `serve` takes. Each flag is a key of the config file as well, by its long name, without
/// anything to be done for it (see [`crate::config`]). One that a reload should apply is named in
/// [`crate::reload`].
#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    pub(crate) pool: PoolArgument,
    /// A TOML file that says what these options say, by their names: max-connections = 100. Options
    /// that are given count more; 'pool' names the pool.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where to listen: HOST:PORT or unix:PATH; may be repeated [default: 127.0.0.1:10809, unless
    /// the service manager passes sockets, which are served in any case].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Vec<Listen>,
    /// Serve only this volume or snapshot; may be repeated [default: all].
    #[arg(long, value_name = "NAME")]
    pub(crate) export: Vec<String>,
    /// Serve metrics for Prometheus at /metrics, and a page to look at, over HTTP: PORT, :PORT (both on
    /// 127.0.0.1) or HOST:PORT. Whoever can connect sees names, sizes and traffic of all volumes and the
    /// server's warnings, but no data, and can change nothing.
    #[arg(long, value_name = "ADDRESS", value_parser = address::parse)]
    pub(crate) metrics: Option<SocketAddr>,
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
    /// Memory for data kept for reads [default: 64M].
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
    #[command(flatten)]
    pub(crate) access: AccessArguments,
    /// All of the above, and who said so.
    #[arg(skip)]
    pub(crate) settings: Settings,
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
    /// Images, other files, or block devices. Images that are not raw (qcow2, vmdk, vdi, vhdx, ...) are
    /// recognised, and converted by qemu-img to files without a name, in TMPDIR or else in /var/tmp,
    /// which takes room for what they hold.
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
    #[command(flatten)]
    pub(crate) image: ImageArguments,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_help_names_the_default_address_as_it_is() {
        let help = Arguments::command().find_subcommand_mut("serve").unwrap().render_help();
        let text = format!("[default: {DEFAULT_LISTEN}");
        assert!(help.to_string().contains(&text), "{text}: {help}");
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
