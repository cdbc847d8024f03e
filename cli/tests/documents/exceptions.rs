//! What does not run as it stands in a document, and why.

/// What is done about a command, or about a block that is none.
#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    /// This is run in its place.
    Instead(&'static str),
    /// It is run after this.
    After(&'static str),
    /// A test of that file runs it.
    TestedBy(&'static str),
    /// Only its options are checked, if it is one of this program.
    Looked,
    /// The block is what this command prints at the beginning, and is compared with it.
    PrintedBy(&'static str),
    /// The block is a config file, which 'siltstone config check' reads.
    Config,
}

/// A command, with what it prints below it, or a block that begins with `start`, in a document.
pub(super) struct Exception {
    pub(super) document: &'static str,
    pub(super) start: &'static str,
    pub(super) how: How,
    pub(super) why: &'static str,
}

const fn except(
    document: &'static str,
    start: &'static str,
    how: How,
    why: &'static str,
) -> Exception {
    Exception { document, start, how, why }
}

/// What a document takes for granted: run before its commands.
pub(super) const STAGES: &[(&str, &str)] = &[
    (OPERATIONS, OPERATIONS_STAGE),
    (
        README,
        "printf 'a small image %.0s' {1..100000} >debian.raw; cp debian.raw backup.raw
     cp debian.raw image.raw; head -c 8M /dev/zero >disk.raw; cp debian.raw sdc
     qemu-img convert -f raw -O qcow2 debian.raw debian.qcow2; cp debian.qcow2 web.qcow2
     mkdir guests; cp debian.qcow2 guests/shop.qcow2
     mkdir images; qemu-img convert -f raw -O vmdk debian.raw images/mail.vmdk
     zstd -q debian.raw -o db.raw.zst
     cp \"$repository/packaging/example.toml\" NAME.toml",
    ),
];

/// A pool that is served, with a volume of which a third stays, and two are overwritten later.
const OPERATIONS_STAGE: &str = "head -c 24M /dev/urandom >disk.raw
    { head -c 16M /dev/urandom; tail -c 8M disk.raw; } >changed.raw
    head -c 160M /dev/urandom >big.raw
    siltstone create pool.silt --size 128M";

/// The log of a server that takes no SIGXFSZ is what a limit on the size of files needs.
const FAILING_DEVICE: &str = "stop_server; trap '' XFSZ
    background siltstone serve pool.silt --listen unix:s --create disk=1G
    siltstone import pool.silt disk disk.raw; siltstone snapshot create pool.silt disk@monday
    sleep 0.5; prlimit --pid $server --fsize=4096:";

/// Noise is stored as it is, so that what is in it can be found in the pool.
const DAMAGED_BLOCK: &str = "stop_server; rm pool.silt
    head -c 24M /dev/urandom >backup.raw
    printf 'here it is damaged' | dd of=backup.raw bs=1 seek=1642496 conv=notrunc status=none
    siltstone create pool.silt --size 128M; siltstone import pool.silt disk backup.raw
    siltstone snapshot create pool.silt disk@monday
    at=$(LC_ALL=C grep -obUaF 'here it is damaged' pool.silt | head -n 1 | cut -d: -f1)
    printf X | dd of=pool.silt bs=1 seek=$at conv=notrunc status=none
    background siltstone serve pool.silt --listen unix:s";

/// Names in documents of what tests must not touch, or cannot: in all of them, and what is there
/// instead.
pub(super) const NAMES: &[(&str, Stand)] = &[
    ("/dev/sdb", Stand::Text("sdb")),
    ("/dev/sdc", Stand::Text("sdc")),
    ("/images", Stand::Text("images")),
    ("/run/siltstone.sock", Stand::Socket),
    ("10809", Stand::Port),
    ("9100", Stand::Port),
    ("journalctl -u siltstone@NAME -o cat", Stand::Text("cat server.log")),
];

/// What stands for a name.
#[derive(Clone, Copy)]
pub(super) enum Stand {
    /// Something in the directory of the test.
    Text(&'static str),
    /// A socket of the test's own.
    Socket,
    /// A port of the test's own.
    Port,
}

use How::{After, Config, Instead, Looked, PrintedBy, TestedBy};

const README: &str = "README.md";
const OPERATIONS: &str = "docs/operations.md";
const SIZING: &str = "cli/tests/sizing.rs";
const PERFORMANCE: &str = "docs/performance.md";
const RELIABILITY: &str = "docs/reliability.md";
const TAKES_LONG: &str = "it takes minutes: its options are checked";

/// All exceptions.
pub(super) const EXCEPTIONS: &[Exception] = &[
    except(
        README,
        "cargo run --release -p siltstone-cli -- serve",
        Instead(
            "background siltstone serve demo.silt --size 2G --create disk=8G --listen unix:demo.sock",
        ),
        "the program is built already, and the usual port may be taken",
    ),
    except(
        README,
        "siltstone create /dev/sdb",
        Instead("siltstone create /dev/sdb --size 128M"),
        "a file stands for the block device, and has no size of its own",
    ),
    except(
        README,
        "siltstone grow /dev/sdb",
        Instead("truncate -s 256M /dev/sdb; siltstone grow /dev/sdb"),
        "a file stands for the block device, and grows first",
    ),
    except(
        README,
        "siltstone top pool.silt",
        Instead(
            "background siltstone serve pool.silt --listen unix:top.sock; \
             siltstone top pool.silt --count 1; stop_server",
        ),
        "it goes on until it is interrupted, and the pool is not served there",
    ),
    except(
        README,
        "size        512 MiB",
        PrintedBy("siltstone stat pool.silt"),
        "what stat prints of another pool",
    ),
    except(
        README,
        "siltstone serve pool.silt --listen unix:/run/siltstone.sock",
        After("siltstone volume create pool.silt disk --size 1G"),
        "the volume was deleted above",
    ),
    except(
        README,
        "nbd-client -unix",
        Looked,
        "it needs root and a kernel with NBD: cli/tests/clients_*.rs do the same without",
    ),
    except(
        README,
        "cp /usr/share/doc/siltstone/examples/example.toml",
        Instead("siltstone config check NAME.toml"),
        "it writes to /etc: packaging/test-deb does it with an installed package",
    ),
    except(
        README,
        "siltstone config check /etc/siltstone/NAME.toml",
        Instead("siltstone config check NAME.toml"),
        "it is in /etc",
    ),
    except(README, "systemctl", Looked, "packaging/test-deb does it with an installed package"),
    except(README, "pool = \"/var/lib", Config, "it is no command"),
    except(
        README,
        "siltstone serve pool.silt --metrics 9100",
        Instead("background siltstone serve pool.silt --metrics 9100 --listen unix:page.sock"),
        "the usual port for NBD may be taken",
    ),
    except(
        README,
        "capi/install.sh",
        TestedBy("capi/tests/programs.rs"),
        "it needs the C libraries",
    ),
    except(
        README,
        "export PKG_CONFIG_PATH",
        TestedBy("capi/tests/programs.rs"),
        "it needs the C libraries",
    ),
    except(README, "cc -o example", TestedBy("capi/tests/programs.rs"), "it needs the C libraries"),
    except(
        README,
        "./example demo.silt",
        TestedBy("capi/tests/programs.rs"),
        "it needs the C libraries",
    ),
    except(
        README,
        "siltstone torture --seconds 60",
        Instead("siltstone torture --seconds 1"),
        TAKES_LONG,
    ),
    except(README, "siltstone torture --kill --kills 100", Looked, TAKES_LONG),
    except(README, "siltstone torture --damage", Looked, TAKES_LONG),
    except(README, "siltstone bench", Looked, TAKES_LONG),
    except(OPERATIONS, "at rest    <=", TestedBy(SIZING), "a formula"),
    except(OPERATIONS, "metadata  =", TestedBy(SIZING), "a formula"),
    except(OPERATIONS, "size  =  1.5", TestedBy(SIZING), "a formula"),
    except(OPERATIONS, "index memory for", TestedBy(SIZING), "a formula"),
    except(
        OPERATIONS,
        "siltstone top pool.silt",
        Instead(
            "background siltstone serve pool.silt --listen unix:s --create disk=1G; \
             siltstone import pool.silt disk disk.raw; siltstone top pool.silt --count 1",
        ),
        "it goes on until it is interrupted; the pool is served from here on",
    ),
    except(
        OPERATIONS,
        "siltstone stat pool.silt\n",
        After(
            "siltstone snapshot create pool.silt disk@monday && \
             siltstone import pool.silt disk changed.raw --force",
        ),
        "a snapshot that its volume has parted from",
    ),
    except(
        OPERATIONS,
        "siltstone import pool.silt disk big.raw",
        After(
            "siltstone volume delete pool.silt disk; siltstone gc pool.silt
             siltstone volume create pool.silt disk --size 1G",
        ),
        "what garbage the import made would be collected, and the pool full for a moment only",
    ),
    except(
        OPERATIONS,
        "siltstone volume create pool.silt new",
        After(FAILING_DEVICE),
        "the device fails",
    ),
    except(
        OPERATIONS,
        "siltstone export pool.silt disk@monday saved.raw",
        After("prlimit --pid $server --fsize=unlimited:"),
        "the copy goes to a sound disk",
    ),
    except(
        OPERATIONS,
        "siltstone check pool.silt",
        After("{ stop_server; true; }"),
        "the server of a device that failed ends with a failure",
    ),
    except(
        OPERATIONS,
        "siltstone scrub pool.silt\nsegment",
        After(DAMAGED_BLOCK),
        "a block is damaged",
    ),
    except("docs/concurrency.md", ".ci/concurrency", Looked, TAKES_LONG),
    except("docs/concurrency.md", "LOOM_MAX_PREEMPTIONS=4 .ci/concurrency", Looked, TAKES_LONG),
    except(
        "docs/concurrency.md",
        "export MIRIFLAGS",
        Looked,
        "it is for a toolchain that is not there",
    ),
    except(PERFORMANCE, "siltstone bench", Looked, TAKES_LONG),
    except(PERFORMANCE, "resident <=", TestedBy("benches/performance/memory.rs"), "a formula"),
    except(PERFORMANCE, "perf", Looked, "it needs perf and rights"),
    except(PERFORMANCE, "valgrind", Looked, "it needs valgrind"),
    except(PERFORMANCE, "callgrind_annotate", Looked, "it needs valgrind"),
    except(RELIABILITY, "siltstone torture", Looked, TAKES_LONG),
    except(RELIABILITY, "torture/mutations/run.sh", Looked, TAKES_LONG),
];
