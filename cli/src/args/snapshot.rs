//! Arguments of the commands on snapshots. As for all commands on pools, they travel to servers:
//! see [`pool`](super::pool).

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::pool::PoolArgument;

#[derive(Debug, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum SnapshotCommand {
    /// Take snapshots, all of one moment.
    ///
    /// They are crash-consistent: they show what the volumes would hold after a power cut in which
    /// no write was lost. Clients can go on writing meanwhile. It takes no time and no space,
    /// whatever the volumes' sizes; what volumes overwrite later is kept as long as a snapshot
    /// needs it.
    Create {
        #[command(flatten)]
        pool: PoolArgument,
        /// A volume, whose snapshot is named by the date and time (UTC, to the second); or, as
        /// VOLUME@SNAPSHOT, with a name for it.
        #[arg(value_name = "VOLUME[@SNAPSHOT]", required = true)]
        snapshots: Vec<String>,
    },
    /// List snapshots.
    List {
        #[command(flatten)]
        pool: PoolArgument,
        /// Only those of this volume.
        volume: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Delete snapshots; what only they hold is freed. Clones of them stay.
    Delete {
        #[command(flatten)]
        pool: PoolArgument,
        /// The snapshots.
        #[arg(value_name = "VOLUME@SNAPSHOT", required = true)]
        snapshots: Vec<String>,
    },
    /// Give a volume back what one of its snapshots holds.
    ///
    /// What it holds now is gone, unless another snapshot has it; all its snapshots stay. Clients
    /// that have the volume open get errors from then on, and have to open it again.
    Rollback {
        #[command(flatten)]
        pool: PoolArgument,
        /// The snapshot.
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: String,
    },
}

#[derive(Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CloneArguments {
    #[command(flatten)]
    pub(crate) pool: PoolArgument,
    /// The snapshot.
    #[arg(value_name = "VOLUME@SNAPSHOT")]
    pub(crate) snapshot: String,
    /// The new volume's name.
    pub(crate) name: String,
}
