//! The catalogue: what a user can get wrong or meet from the command line, and what is said then.
//!
//! `main.rs` runs every row; `cli/src/errors/causes.rs`, which shares this file, sees to it that no kind
//! of error is forgotten. In a message `*` stands for what changes from run to run.

/// What is there when a command is given. In all of them there are files: `image` of 1 MiB, `noise` of 80
/// MiB, `file` with a line of text, `second`, a pool, and `empty`; and, but for the last ones, a pool `pool` of 64 MiB with a
/// volume `disk` of 1 MiB, a volume `noisy` of noise, and their snapshots `disk@monday` and `noisy@monday`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scene {
    /// Nobody has the pool.
    Rest,
    /// It is served.
    Served,
    /// And a client is connected to `disk`.
    Connected,
    /// And its server was given a limit on the size of files, and has failed.
    Failed,
    /// Served for reading.
    ServedReadOnly,
    /// Served, without a control socket.
    Locked,
    /// A block of `disk` is damaged.
    DamagedBlock,
    /// Both checkpoint records are.
    DamagedRecord,
    /// Half of the pool is missing.
    Truncated,
    /// A newer program wrote the pool.
    Newer,
    /// The pool's log is in a file `log`, in which something else is now.
    OtherLog,
}

/// A command, the scene in which it is given, its exit status and its message. A word in quotes may be empty.
#[allow(dead_code, reason = "of the two who share this, one looks at names only")]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) scene: Scene,
    pub(crate) line: &'static str,
    pub(crate) status: i32,
    pub(crate) message: &'static str,
}

const fn row(
    name: &'static str,
    scene: Scene,
    line: &'static str,
    status: i32,
    message: &'static str,
) -> Row {
    Row { name, scene, line, status, message }
}

use Scene::{
    Connected, DamagedBlock, DamagedRecord, Failed, Locked, Newer, OtherLog, Rest, Served,
    ServedReadOnly, Truncated,
};

const SIZE_FORM: &str = "invalid value 'big' for '--size <SIZE>': a size is a whole number of bytes, or of \
    K, M, G, T, P or E (binary), such as 10G";
const NO_VOLUME: &str =
    "there is no volume named 'other' in this pool; 'siltstone volume list' shows them";
const NO_SNAPSHOT: &str =
    "there is no snapshot 'disk@other' in this pool; 'siltstone snapshot list' shows them";
const NO_POOL: &str =
    "other does not exist; 'siltstone create other --size SIZE' makes a pool there";
const NOT_A_POOL: &str = "file: this is not a siltstone pool: neither superblock is valid (superblock at \
    byte 0: no valid magic number; superblock at byte 524288: no valid magic number)";
const BAD_NAME: &str = "'a/b' cannot name a volume or snapshot: use 1 to 255 bytes without control \
    characters, '/' or '@'";

/// All rows.
pub(crate) const ROWS: &[Row] = &[
    // Command lines that make no sense.
    row("no such command", Rest, "nonsense", 2, "unrecognized subcommand 'nonsense'"),
    row("no such option", Rest, "stat pool --fast", 2, "unexpected argument '--fast' found"),
    row(
        "missing argument",
        Rest,
        "create",
        2,
        "the following required arguments were not provided: <POOL>",
    ),
    row(
        "conflict",
        Rest,
        "serve pool --read-only --size 64M",
        2,
        "the argument '--read-only' cannot be used with '--size <SIZE>'",
    ),
    row("size form", Rest, "create new --size big", 2, SIZE_FORM),
    row(
        "size too large",
        Rest,
        "create new --size 99999999999999999999",
        2,
        "invalid value '99999999999999999999' for '--size <SIZE>': that is more bytes than 64 bits can count",
    ),
    row(
        "choice",
        Rest,
        "create new --size 64M --sync no",
        2,
        "invalid value 'no' for '--sync <SYNC>' [possible values: always, flush]",
    ),
    row(
        "level form",
        Rest,
        "volume create pool v --size 1M --level 20",
        2,
        "invalid value '20' for '--level <LEVELS>': '20' is neither a level from -7 to 19 nor two with .. between them, such as 1..3, of which the first is the lower one",
    ),
    row(
        "frame form",
        Rest,
        "volume create pool v --size 1M --frame 64K",
        2,
        "invalid value '64K' for '--frame <SIZE>': '64K' is no size of a frame: it must be 4K, 8K, 16K or 32K",
    ),
    row(
        "nothing to set",
        Rest,
        "volume set pool disk",
        2,
        "the following required arguments were not provided: <--level <LEVELS>|--frame <SIZE>>",
    ),
    row(
        "address form",
        Rest,
        "serve pool --listen nowhere",
        2,
        "invalid value 'nowhere' for '--listen <ADDRESS>': \"nowhere\" is neither unix:PATH nor HOST:PORT",
    ),
    row(
        "address without path",
        Rest,
        "serve pool --listen unix:",
        2,
        "invalid value 'unix:' for '--listen <ADDRESS>': no path after \"unix:\"",
    ),
    row(
        "address port",
        Rest,
        "serve pool --listen 127.0.0.1:99999",
        2,
        "invalid value '127.0.0.1:99999' for '--listen <ADDRESS>': \"99999\" is not a port number",
    ),
    row(
        "metrics port",
        Rest,
        "serve pool --metrics 99999",
        2,
        "invalid value '99999' for '--metrics <ADDRESS>': 99999 is not a port",
    ),
    row(
        "volume form",
        Rest,
        "serve pool --create disk",
        2,
        "invalid value 'disk' for '--create <NAME=SIZE>': write NAME=SIZE, such as disk=10G",
    ),
    row(
        "list form",
        Rest,
        "serve pool --allow disk",
        2,
        "invalid value 'disk' for '--allow <VOLUME=NAME[,NAME...]>': write VOLUME=NAME[,NAME...], such as disk=alice,host.example",
    ),
    row(
        "list of a snapshot",
        Rest,
        "serve pool --allow disk@monday=a",
        2,
        "invalid value 'disk@monday=a' for '--allow <VOLUME=NAME[,NAME...]>': a volume's list counts for its snapshots, too: name the volume",
    ),
    row(
        "mode form",
        Rest,
        "serve pool --socket-mode 9",
        2,
        "invalid value '9' for '--socket-mode <MODE>': write up to four octal digits, such as 0660",
    ),
    row(
        "rate form",
        Rest,
        "scrub pool --rate 5",
        2,
        "invalid value '5' for '--rate <RATE>': 5 B a second is too slow: a rate has a unit, such as 50M",
    ),
    row(
        "interval form",
        Rest,
        "top pool --interval 5",
        2,
        "invalid value '5' for '--interval <INTERVAL>': a time is a whole number of s, m, h, d or w (seconds to weeks), such as 12h, from 1s to 5200w",
    ),
    row(
        "timeout form",
        Rest,
        "serve pool --handshake-timeout 0",
        2,
        "invalid value '0' for '--handshake-timeout <TIME>': a time is a whole number of s, m, h, d or w (seconds to weeks), such as 12h, from 1s to 5200w",
    ),
    row(
        "control form",
        Rest,
        "stat pool --control ''",
        2,
        "invalid value '' for '--control <PATH>': a path, or none",
    ),
    row(
        "too many connections",
        Rest,
        "serve pool --max-connections 0",
        2,
        "invalid value '0' for '--max-connections <N>': 0 is not in 1..=65536",
    ),
    row(
        "log level",
        Rest,
        "stat pool --log-level x=y=z",
        2,
        "'x=y=z' is not a log level: use off, error, warn, info, debug or trace",
    ),
    row(
        "torture together",
        Rest,
        "torture --seed 1 --jobs 2",
        2,
        "the argument '--seed <SEED>' cannot be used with '--jobs' without --kill: it is one history, lived once",
    ),
    row(
        "torture event",
        Rest,
        "torture --seed 1 --cut 99999999",
        2,
        "the history of seed 1 has * events: it is cut at 0 to *, not 99999999",
    ),
    row(
        "torture place",
        Rest,
        "torture --damage --at 99999999 --pool closed",
        2,
        "the closed pool has 16777216 bytes: what can be damaged is at 0 to 16777215, not at 99999999",
    ),
    // Making pools.
    row(
        "no size",
        Rest,
        "create new",
        2,
        "a pool in a new file needs a size: add --size, such as --size 20G",
    ),
    row(
        "too small",
        Rest,
        "create new --size 1",
        6,
        "a pool needs at least 42 MiB, not 1 B; choose a larger size",
    ),
    row(
        "too large",
        Rest,
        "create new --size 600T",
        6,
        "a pool size of 659706976665600 is not possible: it must be at most 512 TiB",
    ),
    row(
        "odd size",
        Rest,
        "create new --size 1000000001",
        6,
        "new cannot be 953.7 MiB (1000000001 bytes) large: a size is a positive multiple of 4096 bytes",
    ),
    row(
        "index memory",
        Rest,
        "create new --size 64M --index-memory 2T",
        6,
        "an index memory of 2199023255552 is not possible: it must be from 64 KiB to 1 TiB",
    ),
    row(
        "threshold",
        Rest,
        "create new --size 64M --threshold 2000",
        6,
        "a threshold of 2000 is not possible: it must be from 1 to 1024 blocks",
    ),
    row(
        "pool exists",
        Rest,
        "create pool --size 64M",
        6,
        "pool exists already, with a pool in it, and is left as it is: remove it or name another file; --force is for block devices",
    ),
    row(
        "file in place",
        Rest,
        "create file",
        6,
        "file exists already, with something else than a pool in it, and is left as it is: remove it or name another file; --force is for block devices",
    ),
    row(
        "force on a file",
        Rest,
        "create empty --force",
        6,
        "empty exists already, without a pool in it, and is left as it is: remove it or name another file; --force is for block devices",
    ),
    row(
        "log exists",
        Rest,
        "create new --size 64M --nvram file",
        6,
        "file exists already and is left as it is; remove it or name another file",
    ),
    row(
        "export to qcow2",
        Rest,
        "export pool disk disk.qcow2",
        6,
        "an export writes a raw image, and disk.qcow2 has the name of a qcow2 image: export to a file of another name, and convert that, as by 'qemu-img convert -f raw -O qcow2'",
    ),
    row(
        "snapshot as a volume",
        Rest,
        "volume delete pool disk@monday",
        6,
        "'disk@monday' is a snapshot, not a volume: 'siltstone snapshot delete' deletes it",
    ),
    row(
        "directory",
        Rest,
        "create . --size 64M",
        3,
        ". is neither a regular file nor a block device; a pool is one of these",
    ),
    row(
        "nowhere",
        Rest,
        "create /nonexistent/new --size 64M",
        1,
        "cannot open /nonexistent/new: No such file or directory (os error 2)",
    ),
    // Opening them.
    row("no pool", Rest, "stat other", 1, NO_POOL),
    row("not a pool", Rest, "stat file", 3, NOT_A_POOL),
    row(
        "truncated",
        Truncated,
        "stat pool",
        3,
        "pool: the pool is truncated: it is 64 MiB long but its device has only 32 MiB; restore the missing part before opening it",
    ),
    row(
        "newer",
        Newer,
        "stat pool",
        4,
        "pool: the pool needs a newer siltstone: its superblock has version 99, and this program knows up to *",
    ),
    row("damaged record", DamagedRecord, "stat pool", 3, "pool: *"),
    row(
        "other log",
        OtherLog,
        "stat pool",
        3,
        "pool: no record of this pool's NVRAM log in *: it was wiped or belongs elsewhere; put the right one there, or restore it together with the pool",
    ),
    row(
        "in use",
        Locked,
        "stat pool",
        5,
        "pool is in use by *process*, and no server takes commands for it on *pool.control (No such file or directory (os error 2)); stop that process first",
    ),
    row(
        "in use, not asked",
        Locked,
        "stat pool --control none",
        5,
        "pool is in use by *process*; stop that process first",
    ),
    row(
        "being read",
        ServedReadOnly,
        "volume create pool new --size 1M",
        5,
        "pool is served read-only, or being read by another command: it takes no changes until that ends",
    ),
    row(
        "served",
        Served,
        "check pool",
        5,
        "pool is being served, and check needs a pool at rest: stop the server first, or use 'siltstone scrub', which works meanwhile",
    ),
    row(
        "second server",
        Served,
        "serve pool --listen unix:other.sock --log-level off",
        5,
        "*pool is in use by *process*; stop that process first",
    ),
    row(
        "not served",
        Rest,
        "top pool",
        2,
        "pool is not being served, and top shows what a server does: 'siltstone serve' it first",
    ),
    // Volumes and snapshots.
    row("no volume", Rest, "volume delete pool other", 6, NO_VOLUME),
    row(
        "volume exists",
        Rest,
        "volume create pool disk --size 1M",
        6,
        "a volume named 'disk' exists already; choose another name or delete it first",
    ),
    row("volume name", Rest, "volume create pool a/b --size 1M", 6, BAD_NAME),
    row(
        "volume size",
        Rest,
        "volume create pool v --size 1000",
        6,
        "volume 'v' cannot have 1000 B: the size must be a multiple of 512 bytes, at least 512 and at most 1 EiB",
    ),
    row(
        "would shrink",
        Rest,
        "volume resize pool disk --size 512K",
        6,
        "volume 'disk' has 1 MiB, of which the last 512 KiB would be discarded at 512 KiB; add --shrink if they may go",
    ),
    row(
        "would replace",
        Rest,
        "import pool noisy image",
        6,
        "volume 'noisy' holds 4 MiB of data, which an import of image would replace; add --force to replace that",
    ),
    row(
        "would replace, served",
        Served,
        "import pool noisy image --resume",
        6,
        "volume 'noisy' holds 4 MiB of data, which an import of image would replace; add --force to replace that: there is nothing to resume, as *",
    ),
    row(
        "has snapshots",
        Rest,
        "volume delete pool disk",
        6,
        "volume 'disk' has snapshots (1); delete them first, or the volume together with them by 'siltstone volume delete --snapshots'",
    ),
    row("no snapshot", Rest, "snapshot delete pool disk@other", 6, NO_SNAPSHOT),
    row(
        "snapshot exists",
        Rest,
        "snapshot create pool disk@monday",
        6,
        "a snapshot 'disk@monday' exists already; choose another name or delete it first",
    ),
    row("snapshot name", Rest, "snapshot create pool disk@a/b", 6, BAD_NAME),
    row(
        "not a snapshot",
        Rest,
        "clone pool disk new",
        6,
        "'disk' does not name a snapshot: write VOLUME@SNAPSHOT",
    ),
    row(
        "named twice",
        Rest,
        "snapshot delete pool disk@monday disk@monday",
        6,
        "'disk@monday' is named twice; name each snapshot once",
    ),
    row(
        "snapshot is written",
        Rest,
        "import pool disk@monday image",
        6,
        "'disk@monday' is a snapshot and cannot be changed; clone it to write to its contents",
    ),
    // Images.
    row(
        "no image",
        Rest,
        "import pool new other",
        1,
        "cannot open other: No such file or directory (os error 2)",
    ),
    row("image is a directory", Rest, "import pool new .", 1, "cannot open .: is a directory"),
    row(
        "image is empty",
        Rest,
        "import pool new empty",
        6,
        "empty is empty; an empty volume is made by 'siltstone volume create'",
    ),
    row(
        "image is empty, forced",
        Rest,
        "import pool disk empty --force",
        6,
        "empty is empty; an empty volume is made by 'siltstone volume create'",
    ),
    row(
        "stream resumed",
        Rest,
        "import pool new - --size 1M --resume",
        2,
        "standard input cannot be read twice, so its import cannot be resumed: leave --resume out",
    ),
    row(
        "volume resumed",
        Rest,
        "export pool disk copy --resume",
        2,
        "volume 'disk' may change until its export is resumed: export a snapshot of it ('siltstone \
         snapshot create'), or leave --resume out",
    ),
    row(
        "target resumed",
        Rest,
        "export pool disk@monday - --resume",
        2,
        "standard output is no file, so an export to it cannot be resumed: leave --resume out",
    ),
    row(
        "each twice",
        Rest,
        "import pool --each image ./image",
        6,
        "image and ./image would both be imported into volume 'image'; nothing was imported: import one \
         of them alone, with a name for its volume",
    ),
    row(
        "each without a name",
        Rest,
        "import pool --each image -",
        6,
        "no volume can be named after -: import it alone, with a name for its volume",
    ),
    row(
        "stream without size",
        Rest,
        "import pool new -",
        2,
        "the length of standard input is not known: add --size to create volume 'new' for it",
    ),
    row(
        "image too large",
        Rest,
        "import pool new image --size 512K",
        6,
        "image is larger than volume 'new' (512 KiB); enlarge it with 'siltstone volume resize', or import into another volume",
    ),
    row(
        "volume differs",
        Rest,
        "import pool disk image --size 2M",
        6,
        "volume 'disk' exists already with 1 MiB, levels 1..3 and frames of 32K; ask for the same or for none of them, name another volume, or change this one first",
    ),
    row(
        "pool full",
        Rest,
        "import pool new noise",
        7,
        "the pool is full: the write may need * and * are free; trim or delete volumes, or grow the pool",
    ),
    row(
        "volume connected",
        Connected,
        "import pool disk image",
        5,
        "clients are connected to volume 'disk', and an import would change it under them: disconnect them first, or import into another volume",
    ),
    row(
        "file exists",
        Rest,
        "export pool disk file",
        6,
        "file exists already and is left as it is; add --force to overwrite it",
    ),
    row(
        "file is the pool",
        Rest,
        "export pool disk pool --force",
        6,
        "pool is the pool itself; name another file",
    ),
    row(
        "file holds a pool",
        Rest,
        "export pool disk second --force",
        6,
        "second has a pool in it, which an export does not replace: delete that first, or name another file",
    ),
    row(
        "export nowhere",
        Rest,
        "export pool disk /nonexistent/new",
        1,
        "cannot open /nonexistent/new: No such file or directory (os error 2)",
    ),
    row(
        "device full",
        Rest,
        "export pool noisy /dev/full --force",
        7,
        "*No space left on device (os error 28)",
    ),
    // Damage and failures.
    row(
        "damage found",
        DamagedBlock,
        "check pool",
        9,
        "pool: the check found 1 problem; * bytes of volumes are lost, in 2 ranges, everything else can be read",
    ),
    row(
        "export of damage",
        DamagedBlock,
        "export pool noisy new",
        9,
        "volume 'noisy', block *: segment * frame at * block *: checksum mismatch; with --salvage, everything else is exported",
    ),
    row(
        "salvaged",
        DamagedBlock,
        "export pool noisy new --salvage",
        9,
        "volume 'noisy' was exported to new but for * bytes in 1 range, which are lost and zeros there",
    ),
    row(
        "failed pool",
        Failed,
        "volume create pool new --size 1M",
        6,
        "the pool accepts no more changes since an earlier failure: *File too large (os error 27); it can still be read; mend the cause, then open the pool again",
    ),
    // Growth.
    row(
        "shrink pool",
        Rest,
        "grow pool --size 1M",
        6,
        "the pool has 64 MiB and cannot shrink to 1 MiB; if it must be smaller, copy its volumes to a new one",
    ),
    row(
        "grow too far",
        Rest,
        "grow pool --size 1T",
        6,
        "the pool cannot grow to 1 TiB: it was made to grow to * at most; copy its volumes to a pool that is made larger",
    ),
    // Servers.
    row(
        "pool differs",
        Rest,
        "serve pool --size 128M --log-level off",
        6,
        "pool exists already with 64 MiB, not 128 MiB; leave --size out, or see 'siltstone grow'",
    ),
    row(
        "plaintext",
        Rest,
        "serve pool --listen 0.0.0.0:1",
        2,
        "0.0.0.0:1 can be reached by other machines, and clients there need no TLS: give --tls-cert and --tls-key (see 'Encryption and access' in the README), listen on 127.0.0.1 or a unix socket, or add --insecure if the network is trusted",
    ),
    row(
        "option needs another",
        Rest,
        "serve pool --tls-cert file",
        2,
        "--tls-cert needs --tls-key",
    ),
    row(
        "no group",
        Rest,
        "serve pool --listen unix:s --socket-group nobodys",
        6,
        "there is no group 'nobodys': name one that 'getent group' shows, or give its number",
    ),
    row(
        "no certificate file",
        Rest,
        "serve pool --tls-cert other --tls-key other",
        1,
        "cannot read other: No such file or directory (os error 2)",
    ),
    row(
        "no certificate",
        Rest,
        "serve pool --tls-cert file --tls-key file",
        1,
        "file holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)",
    ),
    row(
        "no sound certificate file",
        Rest,
        "serve pool --tls-cert unsound.pem --tls-key key.pem",
        1,
        "unsound.pem is not a sound PEM file: *",
    ),
    row(
        "junk as certificate",
        Rest,
        "serve pool --tls-cert junk.pem --tls-key key.pem",
        1,
        "a certificate in junk.pem cannot be used: *",
    ),
    row(
        "no key",
        Rest,
        "serve pool --tls-cert cert.pem --tls-key cert.pem",
        1,
        "cert.pem holds no private key in PEM form that is not encrypted (-----BEGIN PRIVATE KEY-----)",
    ),
    row(
        "junk as key",
        Rest,
        "serve pool --tls-cert cert.pem --tls-key junk.pem",
        1,
        "the private key in junk.pem cannot be used: *",
    ),
    row(
        "key of another",
        Rest,
        "serve pool --tls-cert cert.pem --tls-key other-key.pem",
        1,
        "the private key in other-key.pem does not belong to the first certificate in cert.pem",
    ),
    row(
        "address not here",
        Rest,
        "serve pool --listen 192.0.2.1:1 --insecure --log-level off",
        1,
        "cannot listen on 192.0.2.1:1: Cannot assign requested address (os error 99)",
    ),
    row(
        "socket nowhere",
        Rest,
        "serve pool --listen unix:/nonexistent/s --log-level off",
        1,
        "cannot listen on unix socket /nonexistent/s: No such file or directory (os error 2)",
    ),
    row(
        "not a socket",
        Rest,
        "serve pool --listen unix:file --log-level off",
        1,
        "file exists and is not a socket; remove it or choose another path",
    ),
    row(
        "control nowhere",
        Rest,
        "serve pool --control /nonexistent/c --listen unix:s --log-level off",
        1,
        "cannot take commands on /nonexistent/c: No such file or directory (os error 2); say where by --control PATH, or do without by --control none",
    ),
    row(
        "no config",
        Rest,
        "serve --config other",
        1,
        "cannot read the config file other: No such file or directory (os error 2)",
    ),
    row(
        "config line",
        Rest,
        "config check file",
        2,
        "file, line 1: key with no value, expected `=`",
    ),
    row(
        "config together",
        Rest,
        "config check lan.toml",
        2,
        "lan.toml: 0.0.0.0:1 can be reached by other machines, *",
    ),
    // The rest.
    row(
        "no file to estimate",
        Rest,
        "estimate other",
        1,
        "cannot open other: No such file or directory (os error 2)",
    ),
    row(
        "no data to estimate",
        Rest,
        "estimate .",
        1,
        ". is neither a file nor a block device; name raw images, other files or devices",
    ),
    row(
        "estimate memory",
        Rest,
        "estimate image --memory 1",
        6,
        "1 B of memory for fingerprints is too little, or more than the system gives; at least 256 KiB is needed",
    ),
    row(
        "estimate threshold",
        Rest,
        "estimate image --threshold 0",
        6,
        "the threshold is 0; it must be from 1 to 1024",
    ),
    row(
        "bench nowhere",
        Rest,
        "bench --directory other",
        1,
        "cannot use other: No such file or directory (os error 2)",
    ),
    row(
        "bench group",
        Rest,
        "bench --only nothing",
        2,
        "no group's name contains \"nothing\"; there are ingest, *",
    ),
    row(
        "bench too little",
        Rest,
        "bench --size 1",
        6,
        "the data has 1 B of distinct blocks; at least 64 MiB are needed",
    ),
    row(
        "bench too much",
        Rest,
        "bench --size 8E",
        7,
        ". has * free and * are needed; give another one by --directory, or less data by --size",
    ),
    row(
        "manuals nowhere",
        Rest,
        "man /proc/other",
        1,
        "cannot write manual pages to /proc/other: No such file or directory (os error 2)",
    ),
];
