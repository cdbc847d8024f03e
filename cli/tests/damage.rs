//! A damaged pool: `check` and `scrub` list what is lost and nothing else, also while clients work,
//! and `export --salvage` saves the rest.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    fs,
    ops::Range,
    os::unix::fs::FileExt,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use siltstone_device::header::Kind;
use siltstone_torture::kill::nbd_client::{ClientError, Durability, NbdClient};
use support::{Folder, Server, has, run, siltstone};

const BLOCK: usize = 4096;
/// Incompressible data is stored as it is, so that a block of it can be found in the pool.
const DATA_BYTES: usize = 6 << 20;

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// A pool with volume 'disk', which holds noise.
fn pool(folder: &Folder, size: &str) -> (String, Vec<u8>) {
    let pool = folder.pool(size);
    let data = noise(DATA_BYTES);
    fs::write(folder.path("image"), &data).unwrap();
    siltstone(["import", &pool, "disk", &folder.text("image"), "--size", "64M"]).succeeds();
    (pool, data)
}

/// Flips a bit in the stored copy of a block.
fn damage_block(pool: &str, data: &[u8], block: usize) {
    let bytes = fs::read(pool).unwrap();
    let victim = &data[block * BLOCK..][..64];
    let at = bytes.windows(64).position(|window| window == victim).unwrap();
    flip(pool, at as u64 + 5);
}

fn flip(pool: &str, at: u64) {
    let file = fs::File::options().read(true).write(true).open(pool).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Runs a command that finds damage; returns its JSON.
#[track_caller]
fn damaged(arguments: &[&str]) -> Value {
    let outcome = siltstone(arguments);
    assert_eq!(outcome.status.code(), Some(9), "{outcome:#?}");
    assert!(outcome.stderr.starts_with("siltstone: ") && outcome.stderr.lines().count() == 1);
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn ranges(report: &Value) -> Vec<Range<usize>> {
    let range = |lost: &Value| {
        assert_eq!(lost["volume"], "disk");
        let start = lost["offset_bytes"].as_u64().unwrap() as usize;
        start..start + lost["len_bytes"].as_u64().unwrap() as usize
    };
    report["lost"].as_array().unwrap().iter().map(range).collect()
}

/// Exports what can be read, and asserts that this is everything but `lost`.
#[track_caller]
fn assert_salvages_all_but(folder: &Folder, pool: &str, data: &[u8], lost: &[Range<usize>]) {
    let mut expected = data.to_vec();
    expected.resize(64 << 20, 0);
    let mut lines = String::new();
    for range in lost {
        expected[range.clone()].fill(0);
        let (start, len) = (range.start, range.len());
        lines += &format!("lost: volume 'disk', {len} bytes at byte {start}\n");
    }
    let copy = folder.text("copy");
    let refused = siltstone(["export", pool, "disk", &copy]).fails(9);
    assert!(refused.contains("volume 'disk'") || refused.contains("map"), "{refused}");
    assert!(refused.ends_with("; with --salvage, everything else is exported"), "{refused}");
    assert!(!fs::exists(&copy).unwrap(), "half an image is no image");
    let outcome = siltstone(["export", pool, "disk", &copy, "--salvage"]);
    assert_eq!(outcome.status.code(), Some(9), "{outcome:#?}");
    assert!(outcome.stdout.starts_with(&lines), "{outcome:#?} {lines}");
    assert_eq!(outcome.stdout.lines().count(), lost.len() + 1);
    let ranges = if lost.len() == 1 { "range" } else { "ranges" };
    assert!(outcome.stderr.contains(&format!("in {} {ranges},", lost.len())), "{outcome:#?}");
    assert!(fs::read(&copy).unwrap() == expected, "the rest is as it was");
    fs::remove_file(&copy).unwrap();
}

#[test]
fn damaged_frames_are_listed_for_programs_and_everything_else_is_saved() {
    let folder = Folder::new();
    let (pool, data) = pool(&folder, "128M");
    damage_block(&pool, &data, 400);
    damage_block(&pool, &data, 408);
    damage_block(&pool, &data, 1007);
    let lost = [400 * BLOCK..416 * BLOCK, 1000 * BLOCK..1008 * BLOCK];
    let expected = |cause| {
        let entry = |range: &Range<usize>| {
            json!({ "volume": "disk", "offset_bytes": range.start, "len_bytes": range.len(),
                    "cause": cause })
        };
        Value::Array(lost.iter().map(entry).collect())
    };
    for command in [&["check", &pool, "--json"][..], &["scrub", &pool, "--json", "--rate", "1G/s"]]
    {
        let report = damaged(command);
        assert_eq!(report["lost"], expected("frame"), "{report:#}");
        assert_eq!(report["lost_bytes"], 24 * BLOCK, "{report:#}");
        assert_eq!((&report["more_lost"], &report["more_problems"]), (&json!(0), &json!(0)));
        let problems = report["problems"].as_array().unwrap();
        assert_eq!(problems.len(), 3, "{report:#}");
        for problem in problems {
            assert_eq!(problem["kind"], "frame");
            assert!(problem["segment"].is_u64() && problem["offset_bytes"].is_u64());
        }
    }
    assert_salvages_all_but(&folder, &pool, &data, &lost);

    // To a stream, what is said goes beside it.
    let outcome = siltstone(["export", &pool, "disk", "/dev/null", "--salvage"]);
    assert_eq!(outcome.status.code(), Some(9), "{outcome:#?}");
}

/// As README tells it.
#[test]
fn a_backup_heals_every_volume_that_had_what_is_lost() {
    let folder = Folder::new();
    let (pool, data) = pool(&folder, "128M");
    siltstone(["snapshot", "create", &pool, "disk@then"]).succeeds();
    siltstone(["clone", &pool, "disk@then", "clone"]).succeeds();
    let nothing = siltstone(["repair", &pool]).succeeds();
    assert!(nothing.starts_with("scrubbed 1536 blocks"), "{nothing}");
    damage_block(&pool, &data, 400);
    let report = damaged(&["repair", &pool, "--json"]);
    let lost = 3 * 8 * BLOCK;
    assert_eq!(report["lost_bytes"], lost, "{report:#}");
    let stat = siltstone(["stat", &pool]).succeeds();
    assert!(stat.contains("damaged     1 segment"), "{stat}");

    let server = Server::start(&pool, &[]);
    siltstone(["import", &pool, "restored", &folder.text("image")]).succeeds();
    let said = siltstone(["repair", &pool]).succeeds();
    let told =
        "repaired: 8 damaged blocks found stored elsewhere; 96 KiB were lost before, 0 B are\n";
    assert!(said.ends_with(told), "{said}");
    siltstone(["volume", "delete", &pool, "restored"]).succeeds();
    server.stop();
    siltstone(["check", &pool]).succeeds();
    for volume in ["disk", "disk@then", "clone"] {
        let copy = folder.text(&format!("of {volume}"));
        siltstone(["export", &pool, volume, &copy]).succeeds();
        assert!(fs::read(&copy).unwrap().starts_with(&data), "{volume}");
    }
}

#[test]
fn a_damaged_page_of_the_map_is_a_list_of_lost_ranges() {
    let folder = Folder::new();
    let (pool, data) = pool(&folder, "128M");
    // Every leaf that is part of the map, one after the other.
    let bytes = fs::read(&pool).unwrap();
    let magic = siltstone_device::header::MAGIC;
    let leaves = bytes.chunks(BLOCK).enumerate();
    let leaves = leaves.filter(|(_, page)| page[..4] == magic && page[4..6] == [5, 0]);
    let mut found = 0;
    for (page, _) in leaves {
        let at = (page * BLOCK + 2000) as u64;
        flip(&pool, at);
        let outcome = siltstone(["check", &pool, "--json"]);
        if outcome.status.code() == Some(9) {
            let report = damaged(&["check", &pool, "--json"]);
            assert_eq!(report["problems"][0]["kind"], "map", "{report:#}");
            let lost = ranges(&report);
            assert!(!lost.is_empty(), "{report:#}");
            assert_eq!(ranges(&damaged(&["scrub", &pool, "--json"])), lost);
            assert_salvages_all_but(&folder, &pool, &data, &lost);
            found += 1;
        }
        flip(&pool, at);
    }
    assert!(found > 0);
    siltstone(["check", &pool]).succeeds();
    let said = siltstone(["scrub", &pool]).succeeds();
    assert!(said.starts_with("scrubbed 1536 blocks in 192 frames, "), "{said}");
}

#[test]
fn a_rate_and_an_interval_must_make_sense() {
    for (rate, told) in
        [("0", "0 B a second"), ("50", "50 B a second"), ("1000/s", "1000 B a second")]
    {
        for arguments in [["scrub", "pool", "--rate", rate], ["serve", "pool", "--scrub", rate]] {
            let outcome = siltstone(arguments);
            assert_eq!(outcome.status.code(), Some(2), "{outcome:#?}");
            let told = format!("{told} is too slow: a rate has a unit, such as 50M");
            assert!(outcome.stderr.contains(&told), "{outcome:#?}");
        }
    }
    for arguments in [
        &["--scrub-every", "1d"][..],
        &["--scrub", "1M", "--scrub-every", "often"],
        &["--scrub", "1M", "--scrub-every", "0s"],
    ] {
        let outcome = siltstone([&["serve", "pool"], arguments].concat());
        assert_eq!(outcome.status.code(), Some(2), "{outcome:#?}");
    }
}

/// Those who only look do not keep each other out.
#[test]
fn commands_that_only_read_share_a_pool() {
    let folder = Folder::new();
    let (pool, _) = pool(&folder, "128M");
    let server = Server::start(&pool, &["--read-only"]);
    for command in ["check", "scrub", "stat"] {
        siltstone([command, &pool]).succeeds();
    }
    let sentence = siltstone(["volume", "delete", &pool, "disk"]).fails(5);
    assert!(sentence.contains("is served read-only"), "{sentence}");
    assert!(server.stop().success());
}

/// The lost ranges in a log.
fn logged(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("lost") && line.contains("ERROR")).collect()
}

#[test]
fn a_server_scrubs_while_clients_work_and_names_exactly_what_is_damaged() {
    let folder = Folder::new();
    let (pool, data) = pool(&folder, "2G");
    siltstone(["volume", "create", &pool, "busy", "--size", "32M"]).succeeds();
    damage_block(&pool, &data, 800);
    let server = Server::start(&pool, &["--scrub", "20M", "--scrub-every", "1s"]);
    let load = has("fio").then(|| {
        let uri = format!("--uri={}", server.uri("busy"));
        let mut fio = Command::new("fio");
        fio.args(["--name=load", "--ioengine=nbd", "--rw=randrw", "--bs=4k", "--size=32M"]);
        fio.args(["--iodepth=8", "--verify=crc32c", "--runtime=5", "--time_based", &uri]);
        fio.args([
            "--rate=4m",
            "--verify_backlog=256",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ]);
        fio.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    // Others' blocks of the damaged volume, read and overwritten.
    let mut client = NbdClient::connect(server.socket(), "disk").unwrap();
    let mut block = [0; BLOCK];
    let mut expected = data.clone();
    let mut rounds = 0;
    while server.log().matches("a scrub has ended").count() < 4 {
        let at = (rounds * 37 % 1536) * BLOCK;
        rounds += 1;
        if (800 * BLOCK..808 * BLOCK).contains(&at) {
            let error = client.read(at as u64, &mut block).unwrap_err();
            assert!(matches!(error, ClientError::Refused { errno: 5 }), "{error}");
            continue;
        }
        client.read(at as u64, &mut block).unwrap();
        assert!(block == expected[at..][..BLOCK], "byte {at}");
        if rounds % 5 == 0 {
            block.fill(rounds as u8);
            client.write(at as u64, &block, Durability::Later).unwrap();
            expected[at..][..BLOCK].copy_from_slice(&block);
            client.flush().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    if let Some(load) = load {
        let output = load.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    drop(client);
    let log = server.log();
    let lost = logged(&log);
    assert!(lost.len() >= 4, "{log}");
    for line in lost {
        let (offset, len) = (800 * BLOCK, 8 * BLOCK);
        assert!(line.contains(&format!("offset_bytes={offset} len_bytes={len}")), "{line}");
        assert!(line.contains("volume=\"disk\""), "{line}");
    }
    assert!(log.matches("a scrub begins").count() >= 4, "{log}");
    assert!(server.stop().success());
    // What was damaged, and nothing else, is still so.
    let lost = ranges(&damaged(&["check", &pool, "--json"]));
    assert!(lost.len() == 1 && lost[0] == (800 * BLOCK..808 * BLOCK), "{lost:?}");
}

#[test]
fn a_server_stops_at_once_in_the_middle_of_a_scrub() {
    let folder = Folder::new();
    let (pool, _) = pool(&folder, "128M");
    // At this rate a pass takes an hour.
    let server = Server::start(&pool, &["--scrub", "2K"]);
    server.wait_for_log("a scrub begins");
    if has("qemu-io") {
        run("qemu-io", ["-f", "raw", "-c", "write -P 3 8M 1M", "-c", "flush", &server.uri("disk")]);
    }
    assert!(server.stop().success());
    siltstone(["check", &pool]).succeeds();
}

/// Flips a byte in the first summary of each segment: nothing is lost by that.
fn damage_summaries(pool: &str) -> usize {
    let bytes = fs::read(pool).unwrap();
    let kind = (Kind::WriteUnit as u16).to_le_bytes();
    // Of 2 MiB each; the first begins at such a multiple.
    let starts = (0..bytes.len()).step_by(2 << 20);
    let summaries = starts.filter(|at| {
        bytes[*at..][..4] == siltstone_device::header::MAGIC && bytes[at + 4..][..2] == kind
    });
    summaries.map(|at| flip(pool, at as u64 + 50)).count()
}

#[test]
fn a_server_warns_of_each_problem_by_which_nothing_is_lost() {
    let folder = Folder::new();
    let (pool, _) = pool(&folder, "128M");
    let problems = damage_summaries(&pool);
    assert!(problems > 1);
    let refused = siltstone(["scrub", &pool]);
    let text = format!("found {problems} problems; no data of volumes is lost");
    assert!(refused.stderr.contains(&text), "{refused:#?}");

    let server = Server::start(&pool, &["--scrub", "1G"]);
    server.wait_for_log("a scrub has ended");
    let log = server.log();
    let lines = |level: &str, text: &str| {
        log.lines().filter(|line| line.contains(level) && line.contains(text)).count()
    };
    assert_eq!(lines(" WARN ", "no whole write unit where one must be"), problems, "{log}");
    assert_eq!(lines(" INFO ", "a scrub has ended"), 1, "{log}");
    assert_eq!(lines("ERROR", ""), 0, "{log}");
    assert!(server.stop().success());
}

#[test]
fn what_redundancy_has_corrected_is_noted_and_costs_nothing() {
    let folder = Folder::new();
    let (pool, _) = pool(&folder, "128M");
    let sound = siltstone(["stat", &pool]).succeeds();
    flip(&pool, (512 << 10) + 50);
    for command in ["check", "scrub"] {
        let said = siltstone([command, &pool]).succeeds();
        assert!(said.starts_with("note: superblock at "), "{said}");
        let report = siltstone([command, &pool, "--json"]).succeeds();
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["repairs"].as_array().unwrap().len(), 1, "{report:#}");
    }
    // The note leaves the table as it is.
    let noted = siltstone(["stat", &pool]).succeeds();
    let (notes, rest): (Vec<_>, Vec<_>) =
        noted.lines().partition(|line| line.starts_with("note: "));
    assert_eq!((notes.len(), rest), (1, sound.lines().collect()));
    assert!(sound.contains("last scrub  none"), "{sound}");
}
