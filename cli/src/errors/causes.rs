//! For each kind of error that a command can end with: the rows of the catalogue in which it is caused, the
//! test that causes it, or why nobody can from the command line. A new kind does not compile before it
//! is named here; a row that belongs to none, and one that does not exist, fail.

use std::{collections::BTreeSet, path::Path};

use siltstone_benches::{data::DataError, error::BenchError};
use siltstone_device::DeviceError;
use siltstone_engine::{EngineError, EstimateError};
use siltstone_nbd::{ServerError, TlsError};

use super::CliError;
use crate::{
    access::AccessError,
    config::error::ConfigError,
    control::{message::Refusal, packet::ControlError},
};

#[path = "../../tests/error_catalogue/rows.rs"]
mod catalogue;

use Cause::{Never, Rows, Tested};

/// What causes an error.
enum Cause {
    /// Rows of the catalogue.
    Rows(&'static [&'static str]),
    /// A test of that file.
    Tested(&'static str),
    /// Nothing that can be given on a command line.
    Never(#[expect(dead_code, reason = "for those who read this")] &'static str),
}

/// The causes of all variants of an error: it does not compile unless all are named.
macro_rules! causes {
    ($name:ident, $error:ident { $($variant:ident: $cause:expr,)* }) => {
        const $name: &[Cause] = {
            const fn _all_are_named(error: &$error) {
                match error { $($error::$variant { .. } => {})* }
            }
            &[$($cause),*]
        };
    };
}

const LIVE: &str = "cli/tests/control_endings.rs";
const FORMATS: &str = "cli/tests/import_formats.rs";
const RESUMING: &str = "cli/tests/import_resume.rs";

causes!(
    OF_CLI,
    CliError {
        Engine: Rows(&["no volume", "pool full"]),
        Pool: Rows(&["not a pool", "truncated"]),
        NoPool: Rows(&["no pool"]),
        InUse: Rows(&["in use"]),
        Locked: Rows(&["in use, not asked", "second server"]),
        FileInPlace: Rows(&["pool exists", "file in place", "force on a file"]),
        NotRaw: Rows(&["export to qcow2"]),
        IsSnapshot: Rows(&["snapshot as a volume"]),
        BeingRead: Rows(&["being read"]),
        PoolDiffers: Rows(&["pool differs"]),
        Served: Rows(&["served"]),
        NotServed: Rows(&["not served"]),
        AtServer: Rows(&["volume connected", "failed pool"]),
        Control: Tested(LIVE),
        Refused: Tested(LIVE),
        Stopping: Tested(LIVE),
        Listen: Rows(&["control nowhere"]),
        PoolSizeMissing: Rows(&["no size"]),
        Server: Rows(&["address not here", "socket nowhere", "not a socket"]),
        Tls: Rows(&["no certificate file", "no certificate"]),
        Access: Rows(&["plaintext", "option needs another", "no group"]),
        VolumeDiffers: Rows(&["volume differs"]),
        VolumeConnected: Rows(&["volume connected"]),
        WouldShrink: Rows(&["would shrink"]),
        WouldReplace: Rows(&["would replace", "would replace, served"]),
        StreamFormat: Tested(FORMATS),
        StreamResumed: Rows(&["stream resumed"]),
        NoQemuImg: Tested(FORMATS),
        NotConverted: Tested(FORMATS),
        NotConvertedIn: Tested("cli/tests/estimate.rs"),
        OtherFiles: Tested(FORMATS),
        Unfinished: Tested(RESUMING),
        MarkStays: Never(
            "it takes a directory that fails between two writes: a unit test of resume.rs has one"
        ),
        UnfinishedExport: Tested(RESUMING),
        VolumeResumed: Rows(&["volume resumed"]),
        TargetResumed: Rows(&["target resumed"]),
        EachUnnamed: Rows(&["each without a name"]),
        EachSame: Rows(&["each twice"]),
        EachExists: Tested(FORMATS),
        EachFailed: Tested(FORMATS),
        StreamSizeMissing: Rows(&["stream without size"]),
        ImageTooLarge: Rows(&["image too large"]),
        ImageEmpty: Rows(&["image is empty", "image is empty, forced"]),
        FileExists: Rows(&["file exists"]),
        FileIsPool: Rows(&["file is the pool"]),
        FileHoldsPool: Rows(&["file holds a pool"]),
        File: Rows(&[
            "no image",
            "image is a directory",
            "export nowhere",
            "device full",
            "manuals nowhere"
        ]),
        TargetTooSmall: Never("it takes a block device"),
        System: Never("it takes a system without threads or signals"),
        Estimate: Rows(&["no file to estimate"]),
        Bench: Rows(&["bench nowhere"]),
        Config: Rows(&["no config"]),
        LogLevel: Rows(&["log level"]),
        DamageFound: Rows(&["damage found"]),
        NotSalvaged: Rows(&["export of damage"]),
        Salvaged: Rows(&["salvaged"]),
        PromiseBroken: Never("it takes a fault of the engine: torture/mutations has some"),
        Impossible: Rows(&["torture event", "torture place"]),
        Interrupted: Tested(LIVE),
    }
);

causes!(
    OF_ENGINE,
    EngineError {
        Device: Rows(&["nowhere", "directory", "pool exists"]),
        Map: Tested("cli/tests/damage.rs"),
        Log: Never("it takes a device that fails: engine/tests/failures.rs has one"),
        CheckpointRecord: Rows(&["damaged record", "failed pool"]),
        Mark: Never("it takes a device that fails, or a mark of a newer program"),
        OpenLog: Rows(&["other log"]),
        Index: Never("it takes a system without memory; options are refused before"),
        PoolExists: Never("it takes a block device with a pool on it"),
        NotEmpty: Never("it takes a block device with something on it"),
        NotAPool: Rows(&["not a pool"]),
        NewerVersion: Rows(&["newer"]),
        Truncated: Rows(&["truncated"]),
        Metadata: Never("it takes a damaged pool: torture --damage has all of them"),
        TooSmall: Rows(&["too small"]),
        CannotShrink: Rows(&["shrink pool"]),
        GrowsTooFar: Rows(&["grow too far"]),
        InvalidOption: Rows(&["too large", "index memory", "threshold"]),
        NoSuchVolume: Rows(&["no volume"]),
        VolumeExists: Rows(&["volume exists"]),
        InvalidName: Rows(&["volume name", "snapshot name"]),
        InvalidSize: Rows(&["volume size"]),
        InvalidLevels: Never("they are refused as a wrong command line"),
        NoSuchSnapshot: Rows(&["no snapshot"]),
        SnapshotExists: Rows(&["snapshot exists"]),
        NamedTwice: Rows(&["named twice"]),
        NotASnapshot: Rows(&["not a snapshot"]),
        HasSnapshots: Rows(&["has snapshots"]),
        SnapshotReadOnly: Rows(&["snapshot is written"]),
        TooManyAncestors: Never(
            "it takes 256 generations of clones: engine/tests/snapshots has them"
        ),
        CatalogFull: Never("it takes thousands of volumes: engine/tests/snapshots has them"),
        IdsExhausted: Never("it takes two thousand million volumes"),
        VolumeDeleted: Never("it takes a volume that is deleted while a command reads it"),
        VolumeRolledBack: Never("it takes a volume that goes back while a command reads it"),
        OutOfRange: Never("commands ask for no such range"),
        NoSpace: Rows(&["pool full"]),
        ReadOnly: Never(
            "commands on a pool that is open for reading are refused before: BeingRead"
        ),
        Failed: Rows(&["failed pool"]),
        Panicked: Never("it takes a fault of the engine"),
        Thread: Never("it takes a system without threads"),
        Closing: Never("commands on a pool that is being closed are refused before: Stopping"),
        Abandoned: Never("only simulated pools are abandoned"),
        StagingDamaged: Never("it takes faulty memory"),
        BlockDamaged: Rows(&["export of damage"]),
    }
);

causes!(
    OF_DEVICE,
    DeviceError {
        Io: Rows(&["failed pool"]),
        OutOfRange: Never("the engine asks for no such range"),
        Unaligned: Never("the engine asks for no such range"),
        Open: Rows(&["nowhere"]),
        Locked: Never("it is told as CliError::Locked, unless a log of its own is in use"),
        AlreadyExists: Rows(&["log exists"]),
        NotADevice: Rows(&["directory"]),
        InvalidSize: Rows(&["odd size"]),
        TooSmall: Never("it takes a block device"),
        CannotGrow: Never("it takes a block device"),
        Size: Never("it takes a file system that refuses a file's size"),
        Closed: Never("commands end before the device does"),
    }
);

causes!(
    OF_ACCESS,
    AccessError {
        Plaintext: Rows(&["plaintext", "config together"]),
        Incomplete: Rows(&["option needs another"]),
        NoGroup: Rows(&["no group"]),
        Group: Never("it takes a system whose list of groups fails"),
    }
);

causes!(
    OF_CONFIG,
    ConfigError {
        Read: Rows(&["no config"]),
        Line: Rows(&["config line"]),
        Whole: Rows(&["config together"]),
    }
);

causes!(
    OF_REFUSAL,
    Refusal {
        Control: Tested(LIVE),
        Version: Tested(LIVE),
        OtherPool: Tested("cli/tests/control.rs"),
        Busy: Tested(LIVE),
    }
);

causes!(
    OF_CONTROL,
    ControlError {
        Socket: Never("it takes a control socket that fails"),
        TooLong: Never("it takes a command line of hundreds of kilobytes"),
        TooLarge: Tested(LIVE),
        Senseless: Tested(LIVE),
        Unexpected: Tested(LIVE),
        Timeout: Tested(LIVE),
        ServerGone: Tested(LIVE),
    }
);

causes!(
    OF_SERVER,
    ServerError {
        Config: Never("the limits that can be given are checked as a command line"),
        NoAddress: Never("there is a default"),
        Tcp: Rows(&["address not here"]),
        Unix: Rows(&["socket nowhere"]),
        UnixPermissions: Never("it takes a group that the user is not in; root is in all"),
        UnixInUse: Tested("cli/tests/service.rs"),
        Passed: Never("it takes a service manager"),
        PassedOther: Tested("cli/tests/service.rs"),
        NotASocket: Rows(&["not a socket"]),
    }
);

causes!(
    OF_TLS,
    TlsError {
        File: Rows(&["no certificate file"]),
        Pem: Rows(&["no sound certificate file"]),
        NoCertificate: Rows(&["no certificate"]),
        Certificate: Rows(&["junk as certificate"]),
        NoKey: Rows(&["no key"]),
        Key: Rows(&["junk as key"]),
        KeyMismatch: Rows(&["key of another"]),
    }
);

causes!(
    OF_ESTIMATE,
    EstimateError {
        File: Rows(&["no file to estimate"]),
        NotData: Rows(&["no data to estimate"]),
        Memory: Rows(&["estimate memory"]),
        Option: Rows(&["estimate threshold"]),
        Thread: Never("it takes a system without threads"),
    }
);

causes!(
    OF_BENCH,
    BenchError {
        Data: Rows(&["bench nowhere"]),
        Engine: Never("it takes a pool that fails"),
        Device: Never("it takes a device that fails"),
        File: Never("it takes a directory that fails after it was looked at"),
        System: Never("it takes a system without threads"),
        NoGroup: Rows(&["bench group"]),
        TooLittleData: Rows(&["bench too little"]),
        TooLittleRoom: Rows(&["bench too much"]),
        Child: Never("it takes a child that is killed"),
    }
);

causes!(
    OF_DATA,
    DataError {
        File: Rows(&["bench nowhere"]),
        NoMke2fs: Never("it takes a system without mke2fs"),
        Mke2fs: Never("it takes a device that fills up meanwhile"),
        TooLittle: Never("it takes a system with few files"),
        Tmpfs: Never("it takes a tmpfs, which is not everywhere"),
    }
);

/// Mistakes that clap finds itself, or our parsers of values: there is no type that lists them.
const OF_LINES: &[&str] = &[
    "no such command",
    "no such option",
    "missing argument",
    "conflict",
    "size form",
    "size too large",
    "choice",
    "level form",
    "frame form",
    "nothing to set",
    "address form",
    "address without path",
    "address port",
    "metrics port",
    "volume form",
    "list form",
    "list of a snapshot",
    "mode form",
    "rate form",
    "interval form",
    "timeout form",
    "control form",
    "too many connections",
    "torture together",
];

#[test]
fn every_kind_of_error_is_in_the_catalogue_or_said_not_to_be() {
    let known: BTreeSet<&str> = catalogue::ROWS.iter().map(|row| row.name).collect();
    let mut named: BTreeSet<&str> = OF_LINES.iter().copied().collect();
    let all = [
        OF_CLI,
        OF_ENGINE,
        OF_DEVICE,
        OF_ACCESS,
        OF_CONFIG,
        OF_REFUSAL,
        OF_CONTROL,
        OF_SERVER,
        OF_TLS,
        OF_ESTIMATE,
        OF_BENCH,
        OF_DATA,
    ];
    for cause in all.into_iter().flatten() {
        match cause {
            Rows(rows) => named.extend(rows.iter()),
            Tested(path) => {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
                assert!(path.is_file(), "{} is no test", path.display());
            }
            Never(_) => {}
        }
    }
    let missing: Vec<_> = named.difference(&known).collect();
    assert!(missing.is_empty(), "in no row: {missing:?}");
    let idle: Vec<_> = known.difference(&named).collect();
    assert!(idle.is_empty(), "rows of no error: {idle:?}");
}
