//! Real clients: libnbd's tools, qemu's and fio, over unix sockets and TCP. A test whose program
//! is not installed says so and passes.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

use std::{path::Path, process::Command, sync::Arc};

use siltstone_nbd::{
    Listen, Server, ServerConfig,
    memory_export::{FixedCatalog, MemoryExport},
};

const MIB: u64 = 1 << 20;

struct Fixture {
    runtime: tokio::runtime::Runtime,
    server: Option<Server>,
    folder: tempfile::TempDir,
    unix: String,
    tcp: String,
}

impl Fixture {
    /// Serves an empty disk of 64 MiB.
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let catalog = FixedCatalog::new(vec![Arc::new(MemoryExport::new("disk", 64 * MIB))]);
        let listen = [Listen::Unix(socket.clone()), "127.0.0.1:0".parse().unwrap()];
        let server = runtime
            .block_on(Server::bind(&listen, Arc::new(catalog), ServerConfig::default()))
            .unwrap();
        let tcp = format!("nbd://{}/disk", server.addresses()[1]);
        let unix = format!("nbd+unix:///disk?socket={}", socket.display());
        Self { runtime, server: Some(server), folder, unix, tcp }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A file of real-looking data with holes in it.
    fn image(&self, name: &str) -> String {
        let path = self.path(name);
        let mut bytes = vec![0u8; 64 << 20];
        for start in [0, 5 << 20, 40 << 20, (64 << 20) - 70_000] {
            for (i, byte) in bytes[start..start + 70_000].iter_mut().enumerate() {
                *byte = (i as u8).wrapping_mul(17) ^ (i >> 8) as u8 ^ 1;
            }
        }
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let server = self.server.take().unwrap();
        let drained = self.runtime.block_on(server.shutdown(std::time::Duration::from_secs(5)));
        assert_eq!(drained.cut_off, 0);
    }
}

fn installed(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|paths| std::env::split_paths(&paths).any(|p| p.join(program).exists()));
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

/// Runs a program to its good end; returns what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    // The system's own python first: it is the one that has libnbd's module.
    let path = format!("/usr/bin:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("timeout");
    command.env("PATH", path).arg("60").arg(program).args(arguments);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}{errors}", output.status);
    text
}

#[test]
fn nbdinfo_sees_the_export_its_abilities_and_its_holes() {
    if !installed("nbdinfo") {
        return;
    }
    let fixture = Fixture::new();
    for uri in [&fixture.unix, &fixture.tcp] {
        let text = run("nbdinfo", &["--json", uri]);
        for part in [
            "\"export-name\": \"disk\"",
            "\"export-size\": 67108864",
            "\"description\": \"a disk in memory\"",
            "\"can_multi_conn\": true",
            "\"can_fast_zero\": true",
            "\"can_df\": true",
            "\"can_cache\": true",
            "\"block_size_preferred\": 4096",
            "\"structured\": true",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
    assert!(run("nbdinfo", &["--list", &fixture.tcp]).contains("export=\"disk\""));
    assert!(run("nbdinfo", &["--map", &fixture.unix]).contains("67108864    3  hole,zero"));
}

#[test]
fn nbdcopy_copies_in_and_out() {
    if !installed("nbdcopy") {
        return;
    }
    let fixture = Fixture::new();
    let image = fixture.image("in");
    for (index, uri) in [&fixture.unix, &fixture.tcp].into_iter().enumerate() {
        let out = fixture.path(&format!("out{index}"));
        run("nbdcopy", &["--connections=4", "--flush", &image, uri]);
        run("nbdcopy", &["--connections=4", uri, &out]);
        assert!(std::fs::read(&image).unwrap() == std::fs::read(&out).unwrap());
    }
    // Zeros in the file became holes in the export.
    let map = run("nbdinfo", &["--map=base:allocation", "--totals", &fixture.unix]);
    assert!(map.contains("hole,zero"), "{map}");
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    if !installed("qemu-img") {
        return;
    }
    let fixture = Fixture::new();
    let image = fixture.image("in");
    for uri in [&fixture.unix, &fixture.tcp] {
        run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image, uri]);
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, uri]);
    }
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &fixture.unix]);
    assert!(map.contains("\"zero\": true") && map.contains("\"zero\": false"), "{map}");
}

#[test]
fn qemu_io_writes_with_fua_zeroes_and_discards() {
    if !installed("qemu-io") {
        return;
    }
    let fixture = Fixture::new();
    let commands = [
        "write -f -P 0xab 1M 3M",
        "write -z 2M 4k",
        "write -z -u 3M 64k",
        "write -z -u -n 3200k 4k",
        "discard 1M 64k",
        "flush",
        "read -P 0xab 1088k 960k",
        "read -P 0 2M 4k",
        "read -P 0xab 2052k 1020k",
        "read -P 0 3M 64k",
        "read -P 0 3200k 4k",
        "read -P 0xab 3204k 892k",
        "read -P 0 63M 1M",
    ];
    for uri in [&fixture.unix, &fixture.tcp] {
        let mut arguments = vec!["-f", "raw", "--cache=none"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(uri);
        let text = run("qemu-io", &arguments);
        assert!(!text.contains("failed"), "{text}");
    }
}

#[test]
fn fio_reads_back_what_four_connections_wrote() {
    if !installed("fio") {
        return;
    }
    let fixture = Fixture::new();
    for uri in [&fixture.unix, &fixture.tcp] {
        let job = format!(
            "[verify]\nioengine=nbd\nuri={uri}\nrw=randrw\nrwmixread=30\nbsrange=512-128k\n\
             bs_unaligned=0\nblockalign=512\niodepth=32\nnumjobs=4\nsize=8m\noffset_increment=16m\n\
             verify=crc32c\nverify_fatal=1\nverify_state_save=0\nrandrepeat=1\n"
        );
        let file = fixture.path("job.fio");
        std::fs::write(&file, job).unwrap();
        let text = run("fio", &["--minimal", &file]);
        assert!(!text.contains("verify: bad"), "{text}");
    }
}

#[test]
fn libnbd_sees_holes_extents_errors_and_replies_out_of_order() {
    if !installed("nbdsh") {
        return;
    }
    let fixture = Fixture::new();
    let script = r#"
import errno
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri(URI)
h.trim(65536, 0)
h.pwrite(b"x" * 4096, 8192, nbd.CMD_FLAG_FUA)
chunks = []
buf = h.pread_structured(16384, 0, lambda data, offset, status, err: chunks.append((len(data), offset, status)))
assert bytes(buf) == bytes(8192) + b"x" * 4096 + bytes(4096)
assert sorted(c[1:] for c in chunks) == [(0, nbd.READ_HOLE), (8192, nbd.READ_DATA), (12288, nbd.READ_HOLE)], chunks
chunks = []
h.pread_structured(16384, 0, lambda data, offset, status, err: chunks.append(status), nbd.CMD_FLAG_DF)
assert chunks == [nbd.READ_DATA]
extents = []
h.block_status(16384, 0, lambda context, offset, found, err: extents.extend(found))
assert extents == [8192, 3, 4096, 0, 4096, 3], extents
def fails(number, action):
    try:
        action()
    except nbd.Error as error:
        assert error.errnum == number, (error.errnum, number)
    else:
        assert False, "no error"
size = h.get_size()
fails(errno.EINVAL, lambda: h.pread(512, size))
fails(errno.ENOSPC, lambda: h.pwrite(b"1" * 512, size))
fails(errno.EINVAL, lambda: h.trim(512, size))
fails(errno.ENOSPC, lambda: h.zero(512, size))
fails(errno.EINVAL, lambda: h.block_status(512, size, lambda *a: 0))
fails(errno.EINVAL, lambda: h.trim(0, 0))
fails(errno.ENOTSUP, lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE))
h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO)
h.cache(4096, 0)
buffers = [nbd.Buffer(4096 * (1 + i % 40)) for i in range(500)]
cookies = [h.aio_pread(b, 4096 * i) for i, b in enumerate(buffers)]
while cookies:
    h.poll(-1)
    cookies = [cookie for cookie in cookies if not h.aio_command_completed(cookie)]
other = nbd.NBD()
other.connect_uri(URI)
assert h.can_multi_conn()
h.pwrite(b"shared" * 100, 777)
other.flush()
assert other.pread(600, 777) == b"shared" * 100
other.shutdown()
h.flush()
h.shutdown()
"#;
    for uri in [&fixture.unix, &fixture.tcp] {
        run("nbdsh", &["-c", &format!("URI = {uri:?}"), "-c", script]);
    }
}

#[test]
fn nbdfuse_presents_the_export_as_a_file() {
    if !installed("nbdfuse") || !installed("fusermount3") || !Path::new("/dev/fuse").exists() {
        return;
    }
    let fixture = Fixture::new();
    let mount = fixture.path("disk.img");
    std::fs::write(&mount, "").unwrap();
    let mut fuse = Command::new("nbdfuse").args([&mount, &fixture.unix]).spawn().unwrap();
    let size = || std::fs::metadata(&mount).map_or(0, |file| file.len());
    for _ in 0..200 {
        if size() == 64 * MIB || fuse.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    if size() != 64 * MIB {
        eprintln!("SKIPPED: this system does not let nbdfuse mount");
        let _ = fuse.kill();
        let _ = fuse.wait();
        return;
    }
    let result = std::panic::catch_unwind(|| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().read(true).write(true).open(&mount).unwrap();
        file.write_all_at(&[5; 100_000], 12_345).unwrap();
        file.sync_all().unwrap();
        let mut back = vec![0; 100_000];
        file.read_exact_at(&mut back, 12_345).unwrap();
        assert!(back.iter().all(|byte| *byte == 5));
    });
    run("fusermount3", &["-u", &mount]);
    fuse.wait().unwrap();
    result.unwrap();
}
