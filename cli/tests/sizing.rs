//! How large to make a pool: the formulas of `docs/operations.md`, held against what pools take.
#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use siltstone_device::SeededRandom;
use siltstone_torture::kill::nbd_client::{Durability, NbdClient};
use support::{Folder, MIB, Server, siltstone};

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const BLOCK: usize = 4096;

fn stat(pool: &str) -> Value {
    serde_json::from_str(&siltstone(["stat", pool, "--json", "--quick"]).succeeds()).unwrap()
}

#[track_caller]
fn number(stat: &Value, name: &str) -> u64 {
    stat[name].as_u64().unwrap_or_else(|| panic!("{name}: {stat:#}"))
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// `metadata`, as the guide has it, and `reserved`.
fn formula(size_bytes: u64) -> (u64, u64) {
    let segment_bytes = match size_bytes {
        ..0x8000_0000 => 2 * MIB,
        0x8000_0000..0x400_0000_0000 => 8 * MIB,
        _ => 16 * MIB,
    };
    let slot_bytes = (size_bytes / 4096 / MIB * MIB).clamp(MIB, 16 * MIB);
    let log_bytes = (size_bytes / 64).clamp(4 * MIB, 64 * MIB);
    let segments = size_bytes / segment_bytes;
    let table_bytes = 16 * KIB * (16 * segments).div_ceil(126);
    let metadata_bytes = MIB + 4 * slot_bytes + log_bytes + table_bytes;
    let metadata_bytes = metadata_bytes.next_multiple_of(segment_bytes);
    let segments = (size_bytes - metadata_bytes) / segment_bytes;
    let reserved = (segments / 32).max((segments / 6).clamp(6, 8));
    (metadata_bytes, reserved * segment_bytes)
}

/// Also each row of the guide's table.
#[test]
fn metadata_and_reserve_of_a_new_pool_are_what_the_formulas_say() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let guide = fs::read_to_string(guide).unwrap();
    let folder = Folder::new();
    let sizes = [64 * MIB, 100 * MIB, GIB, 3 * GIB, 100 * GIB, TIB, 10 * TIB];
    let names = ["64 MiB", "", "1 GiB", "", "100 GiB", "1 TiB", "10 TiB"];
    for (size_bytes, name) in sizes.into_iter().zip(names) {
        let pool = folder.text("pool");
        siltstone(["create", &pool, "--size", &size_bytes.to_string()]).succeeds();
        let stat = stat(&pool);
        let (metadata, reserved) = formula(size_bytes);
        assert_eq!(number(&stat, "metadata_bytes"), metadata, "{size_bytes}");
        assert_eq!(number(&stat, "reserved_bytes"), reserved, "{size_bytes}");
        let row = format!("| {name} | {} MiB | {} MiB |", metadata / MIB, reserved / MIB);
        assert!(name.is_empty() || guide.contains(&row), "{row}");
        fs::remove_file(pool).unwrap();
    }
}

#[test]
fn a_run_that_stands_alone_takes_seven_bytes_of_the_map() {
    let folder = Folder::new();
    let (pool, image) = (folder.pool("512M"), folder.text("image"));
    // What is known, in another order, so that nearly each block is a run.
    let blocks = noise(32 << 20);
    let count = blocks.len() / BLOCK;
    let mut data = blocks.clone();
    for round in 1..=4 {
        let order = (0..count).map(|at| (at * (2 * round + 1001)) % count);
        order.for_each(|block| data.extend_from_slice(&blocks[block * BLOCK..][..BLOCK]));
    }
    fs::write(&image, data).unwrap();
    siltstone(["import", &pool, "disk", &image]).succeeds();
    let stat = stat(&pool);
    let entries = number(&stat, "map_entries");
    assert!(entries >= 4 * count as u64, "{stat:#}");
    let each = number(&stat, "map_bytes") as f64 / entries as f64;
    assert!((5.0..7.5).contains(&each), "{each} bytes a run");
}

#[test]
fn segments_are_left_empty_by_no_more_than_an_eighth() {
    let folder = Folder::new();
    let (pool, image) = (folder.pool("512M"), folder.text("image"));
    let mut data = noise(96 << 20);
    // Every other block compresses well, so that units have all sizes.
    data.chunks_mut(2 * BLOCK).for_each(|two| two[..BLOCK - 64].fill(7));
    data.extend(noise(64 << 20).iter().map(|byte| byte ^ 1));
    fs::write(&image, data).unwrap();
    siltstone(["import", &pool, "disk", &image]).succeeds();
    let stat = stat(&pool);
    let (overhead, stored) = (number(&stat, "overhead_bytes"), number(&stat, "stored_bytes"));
    println!("{} of {} MiB", overhead / MIB, stored / MIB);
    assert!(overhead <= stored / 8 + 3 * 2 * MIB, "{overhead} of {stored}");
}

#[test]
fn a_fingerprint_takes_eight_and_a_half_bytes_of_the_index() {
    let folder = Folder::new();
    let (pool, image) = (folder.text("pool"), folder.text("image"));
    siltstone(["create", &pool, "--size", "512M", "--index-memory", "256K"]).succeeds();
    let new = stat(&pool);
    // The sample is thinned when 15 of 16 slots are taken.
    let fingerprints = number(&new, "index_capacity_entries") as f64 * 15.0 / 16.0;
    let each = number(&new, "index_bytes") as f64 / fingerprints;
    assert!((8.5..8.6).contains(&each), "{each}");
    for (memory, of) in [("2.13 GiB", 1.0), ("137 MiB", 16.0)] {
        let blocks = TIB as f64 / BLOCK as f64;
        let bytes = each * blocks / of;
        let told = if of == 1.0 { bytes / GIB as f64 } else { bytes / MIB as f64 };
        let stands: f64 = memory.split(' ').next().unwrap().parse().unwrap();
        assert!((told / stands - 1.0).abs() < 0.01, "{memory}: {told}");
    }
    // Twice and a half what it takes: one in four is kept.
    let blocks = (2.5 * fingerprints) as usize;
    fs::write(&image, noise(blocks * BLOCK)).unwrap();
    siltstone(["import", &pool, "disk", &image]).succeeds();
    assert!(siltstone(["stat", &pool]).succeeds().contains("of the fingerprints"));
    let server = Server::start(&pool, &[]);
    server.wait_until(|| number(&stat(&pool), "index_entries") > 0, "the index is filled");
    server.wait_until(|| number(&stat(&pool), "index_sample_bits") == 2, "one in four is kept");
    assert!(server.stop().success());
}

#[test]
fn a_server_takes_no_more_memory_than_the_formula_says() {
    let folder = Folder::new();
    let pool = folder.text("pool");
    siltstone(["create", &pool, "--size", "512M", "--index-memory", "1M"]).succeeds();
    let budgets = ["--staging", "8M", "--frame-cache", "16M", "--page-cache", "2M"];
    let server = Server::start(&pool, &[&budgets[..], &["--create", "disk=160M"]].concat());
    const PAYLOAD: usize = 4 << 20;
    let mut client = NbdClient::connect(server.socket(), "disk").unwrap();
    let mut data = noise(160 << 20);
    for round in 0..2 {
        for (at, piece) in (0..).zip(data.chunks_mut(PAYLOAD)) {
            // The second time, all of it is new again.
            piece.chunks_mut(BLOCK).for_each(|block| block[0] ^= round);
            client.write(at * PAYLOAD as u64, piece, Durability::Later).unwrap();
        }
        for (at, piece) in (0..).zip(data.chunks_mut(PAYLOAD)) {
            client.read(at * PAYLOAD as u64, piece).unwrap();
        }
    }
    let processors = std::thread::available_parallelism().unwrap().get() as u64;
    let further = 2 * MIB * processors.saturating_sub(2);
    // One client has a request at a time, and its answer.
    let most = (8 + 16 + 2 + 1 + 64) * MIB + further + 2 * PAYLOAD as u64;
    let peak = server.peak_memory_bytes();
    println!("{} MiB of {} MiB", peak / MIB, most / MIB);
    assert!(peak <= most, "{peak} bytes, and the formula says {most}");
    assert!(server.stop().success());
}

/// What was used to the full, by several clients, by scrubs and by collection, is given back but for the
/// budgets. Half a minute of requests of all sizes is what general allocators hold on to.
#[test]
fn a_server_at_rest_takes_its_budgets_and_32_mib() {
    const VOLUME_MIB: usize = 128;
    let folder = Folder::new();
    let pool = folder.text("pool");
    // Large enough for segments of 8 MiB, which a scrub reads as a whole.
    siltstone(["create", &pool, "--size", "2G", "--index-memory", "1M"]).succeeds();
    let budgets = ["--staging", "16M", "--frame-cache", "64M", "--page-cache", "4M"];
    let volumes: Vec<_> = (0..4).map(|client| format!("client-{client}")).collect();
    let create = volumes.iter().map(|volume| format!("{volume}={VOLUME_MIB}M"));
    let create: Vec<_> = create.flat_map(|volume| ["--create".into(), volume]).collect();
    let options = budgets.into_iter().chain(create.iter().map(String::as_str));
    let server = Server::start(&pool, &options.collect::<Vec<_>>());
    thread::scope(|scope| {
        for (client, volume) in volumes.iter().enumerate() {
            let socket = server.socket();
            scope.spawn(move || use_volume(socket, volume, VOLUME_MIB, client));
        }
    });
    for _ in 0..2 {
        siltstone(["scrub", &pool]).succeeds();
        siltstone(["gc", &pool]).succeeds();
    }
    let processors = thread::available_parallelism().unwrap().get() as u64;
    let most = (16 + 64 + 4 + 1 + 32) * MIB + 2 * MIB * processors.saturating_sub(2);
    // A checkpoint gives back what writes needed, at the latest ten seconds after the last of them.
    let deadline = Instant::now() + Duration::from_secs(30);
    while server.resident_bytes() > most && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
    let resident = server.resident_bytes();
    println!("{} MiB of {} MiB", resident / MIB, most / MIB);
    println!("{} MiB at most", server.peak_memory_bytes() / MIB);
    assert!(resident > (64 + 4) * MIB, "the caches were not used: {resident} bytes");
    assert!(resident <= most, "{resident} bytes, and the guide says {most}");
    assert!(server.stop().success());
}

/// Writes and reads at random, a few blocks or many.
fn use_volume(socket: &Path, volume: &str, volume_mib: usize, client: usize) {
    let mut random = SeededRandom::new(client as u64);
    let mut nbd = NbdClient::connect(socket, volume).unwrap();
    let blocks = volume_mib << 20 >> 12;
    let data = noise(8 << 20);
    let mut out = vec![0; 1 << 20];
    for round in 0..6000 {
        let len = BLOCK << random.below(if round % 8 == 0 { 9 } else { 5 });
        let mut below = |end: usize| random.below(end as u64) as usize;
        let at = below(blocks - len / BLOCK) as u64 * BLOCK as u64;
        if round % 3 == 0 {
            // From anywhere, so that few blocks are alike.
            let from = below(data.len() - len);
            nbd.write(at, &data[from..][..len], Durability::Later).unwrap();
        } else {
            nbd.read(at, &mut out[..len]).unwrap();
        }
    }
}
