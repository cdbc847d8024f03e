//! Real data through every door: NBD with real clients, import and export, and what `stat` says
//! about it. A test whose program is not installed says so and passes.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{collections::HashSet, fs, io::Write, path::Path, process::Stdio};

use rustix::process::Signal;
use serde_json::Value;
use support::{Folder, MIB, Outcome, Server, assert_same, command, has, run, siltstone};

fn stat(pool: &str) -> Value {
    serde_json::from_str(&siltstone(["stat", pool, "--json"]).succeeds()).unwrap()
}

fn assert_sound(pool: &str) {
    let report = siltstone(["check", pool, "--json"]).succeeds();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["problems"].as_array().unwrap().len(), 0);
}

/// The distinct blocks of a file that are not zero, counted independently, in bytes; and all
/// such blocks.
fn blocks(path: &Path) -> (u64, u64) {
    let bytes = fs::read(path).unwrap();
    let blocks = bytes.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0));
    let (mut distinct, mut all) = (HashSet::new(), 0);
    for block in blocks {
        distinct.insert(blake3::hash(block));
        all += 4096;
    }
    (distinct.len() as u64 * 4096, all)
}

#[track_caller]
fn assert_within_a_hundredth(found: u64, expected: u64) {
    assert!(found.abs_diff(expected) * 100 <= expected, "{found} is not about {expected}");
}

#[test]
fn images_pass_unchanged_through_nbd_and_export() {
    if !["mke2fs", "qemu-img", "nbdcopy", "nbdinfo"].into_iter().all(has) {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("image");
    let image_text = image.to_str().unwrap();
    let (distinct, logical) = blocks(&image);
    let pool = folder.pool("512M");
    let server = Server::start(&pool, &["--create", "first=128M", "--create", "second=128M"]);
    let compare =
        |uri: &str| run("qemu-img", ["compare", "-f", "raw", "-F", "raw", image_text, uri]);

    let first = server.uri("first");
    run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", image_text, &first]);
    compare(&first);
    let back = folder.path("back");
    run("nbdcopy", [&first, back.to_str().unwrap()]);
    assert_same(&image, &back);
    assert!(run("nbdinfo", ["--size", &first]).trim() == (128 * MIB).to_string());
    assert!(server.stop().success());

    let after_first = stat(&pool);
    let bytes = |stat: &Value, key: &str| stat[key].as_u64().unwrap();
    assert_within_a_hundredth(bytes(&after_first, "unique_bytes"), distinct);
    assert_within_a_hundredth(bytes(&after_first, "logical_bytes"), logical);
    assert!(bytes(&after_first, "stored_bytes") < distinct, "{after_first:#}");

    // The same data in another volume, after a restart: links, not copies, once the index is warm.
    let server = Server::start(&pool, &["--log-level", "info,siltstone_engine=debug"]);
    server.wait_for_log("the index is warm");
    let second = server.uri("second");
    run("nbdcopy", ["--flush", image_text, &second]);
    compare(&second);
    compare(&server.uri("first"));
    assert!(server.stop().success());
    let after_second = stat(&pool);
    assert_within_a_hundredth(bytes(&after_second, "logical_bytes"), 2 * logical);
    let growth = bytes(&after_second, "stored_bytes") - bytes(&after_first, "stored_bytes");
    assert!(growth * 10 < bytes(&after_first, "stored_bytes"), "grew by {growth}");

    for volume in ["first", "second"] {
        let exported = folder.text(volume);
        siltstone(["export", &pool, volume, &exported]).succeeds();
        assert_same(&image, Path::new(&exported));
    }
    assert_sound(&pool);
}

#[test]
fn imports_and_exports_keep_every_byte() {
    if !has("mke2fs") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("image");
    let image_text = image.to_str().unwrap();
    let (distinct, logical) = blocks(&image);
    let pool = folder.pool("512M");
    let said = siltstone(["import", &pool, "disk", image_text, "--level", "3"]).succeeds();
    assert!(said.contains("into volume 'disk': 128 MiB"), "{said}");
    let found = stat(&pool);
    assert_within_a_hundredth(found["unique_bytes"].as_u64().unwrap(), distinct);
    assert_within_a_hundredth(found["logical_bytes"].as_u64().unwrap(), logical);
    let volumes = siltstone(["volume", "list", &pool, "--json"]).succeeds();
    let volumes: Value = serde_json::from_str(&volumes).unwrap();
    let expected = serde_json::json!([
        { "name": "disk", "size_bytes": 128 * MIB,
          "compression": { "levels": "3", "frame": "32K" }, "is_import_unfinished": false }
    ]);
    assert_eq!(volumes, expected);

    let file = folder.text("file");
    siltstone(["export", &pool, "disk", &file]).succeeds();
    assert_same(&image, Path::new(&file));
    let stored = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&file).unwrap()) * 512;
    assert!(stored <= logical + MIB, "{stored} bytes on disk for {logical} of data");

    // And through pipes, which have no holes.
    let piped = fs::File::create(folder.path("piped")).unwrap();
    let mut export = command().args(["export", &pool, "disk", "-"]).stdout(piped).spawn().unwrap();
    assert!(export.wait().unwrap().success());
    assert_same(&image, &folder.path("piped"));
    let mut import = command();
    import.args(["import", &pool, "again", "-", "--size", "128M"]);
    Outcome::of(import.stdin(fs::File::open(&image).unwrap())).succeeds();
    let again = folder.text("again");
    siltstone(["export", &pool, "again", &again]).succeeds();
    assert_same(&image, Path::new(&again));
    assert_sound(&pool);
}

/// What an import says of an image: what was read, zero, duplicate and new are told apart.
#[test]
fn an_import_says_what_became_of_every_byte() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let mut bytes = vec![0; 8 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes[..3 << 20]);
    bytes.copy_within(..1 << 20, 5 << 20);
    let image = folder.text("image");
    fs::write(&image, &bytes).unwrap();
    let told = |said: &str| said.split_once("; ").unwrap().1.to_owned();
    let said = siltstone(["import", &pool, "one", &image]).succeeds();
    assert!(said.starts_with(&format!("imported {image} into volume 'one': 8 MiB in ")), "{said}");
    assert!(said.contains("iB/s of data); "), "{said}");
    let expected =
        "4 MiB of it zero, 4 MiB data, of which 1 MiB are duplicates and 3 MiB new, stored in ";
    assert!(told(&said).starts_with(expected), "{said}");
    assert!(said.contains("(dedup 1.33:1, compression 1.00:1)"), "{said}");
    let said = siltstone(["import", &pool, "one", &image, "--force"]).succeeds();
    let expected = "4 MiB of it zero, 4 MiB data, all of it duplicates of what the pool holds: \
                    nothing was stored\n";
    assert_eq!(told(&said), expected);
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let said = siltstone(["import", &pool, "one", &image, "--force"]).succeeds();
    assert_eq!(told(&said), "1 MiB of it zero, 0 B data\n");
}

#[test]
fn a_pool_works_with_every_option_of_its_creation() {
    let folder = Folder::new();
    let (nvram, image) = (folder.text("nvram"), folder.path("image"));
    let bytes = patchy(&image, 6 << 20, 11);
    let mapped = ["--nvram", &nvram, "--nvram-mapped", "--nvram-size", "8M"];
    let unmapped = ["--nvram", &nvram];
    let tuned = ["--index-memory", "1M", "--threshold", "4", "--sync", "always"];
    for (at, options) in [&mapped[..], &unmapped, &tuned].into_iter().enumerate() {
        let (pool, out) = (folder.text(&format!("pool{at}")), folder.text(&format!("out{at}")));
        siltstone([&["create", &pool, "--size", "128M"], options].concat()).succeeds();
        siltstone(["import", &pool, "disk", image.to_str().unwrap()]).succeeds();
        siltstone(["export", &pool, "disk", &out]).succeeds();
        assert!(fs::read(&out).unwrap() == bytes, "{options:?}");
        assert_sound(&pool);
        let _ = fs::remove_file(&nvram);
    }
}

/// A file with data, holes and an odd length, in which every byte tells its place.
fn patchy(path: &Path, len: usize, salt: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for start in [0, 100_000, 3 << 20, len - 5000] {
        let end = (start + 70_001).min(len);
        for (at, byte) in bytes[start..end].iter_mut().enumerate() {
            *byte = (at as u8).wrapping_mul(31) ^ ((at >> 8) as u8) ^ salt | 1;
        }
    }
    let mut file = fs::File::create(path).unwrap();
    file.set_len(len as u64).unwrap();
    for (at, piece) in bytes.chunks(4096).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            std::os::unix::fs::FileExt::write_all_at(&file, piece, at as u64 * 4096).unwrap();
        }
    }
    file.flush().unwrap();
    bytes
}

#[test]
fn a_volume_holds_the_last_image_and_zeros_behind_it() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let (one, two, out) = (folder.path("one"), folder.path("two"), folder.text("out"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut expected = patchy(&one, (8 << 20) + 777, 3);
    siltstone(["import", &pool, "disk", &text(&one)]).succeeds();
    expected.resize((8 << 20) + 1024, 0);
    siltstone(["export", &pool, "disk", &out]).succeeds();
    assert!(fs::read(&out).unwrap() == expected, "the size is rounded up to whole sectors");

    let mut expected = patchy(&two, (5 << 20) + 1, 90);
    let said = siltstone(["import", &pool, "disk", &text(&two), "--force"]).succeeds();
    assert!(said.contains("'disk': 5.00 MiB, and zeros from there to 8.00 MiB in "), "{said}");
    expected.resize((8 << 20) + 1024, 0);
    siltstone(["export", &pool, "disk", &out, "--force"]).succeeds();
    assert!(fs::read(&out).unwrap() == expected, "nothing of the first image is left");

    let mut import = command();
    import.args(["import", &pool, "disk", "-", "--force"]);
    import.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut import = import.spawn().unwrap();
    import.stdin.take().unwrap().write_all(b"short").unwrap();
    let said = import.wait_with_output().unwrap();
    assert!(said.status.success());
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("5 B data, of which 0 B are duplicates and 5 B new"), "{said}");
    let mut expected = b"short".to_vec();
    expected.resize((8 << 20) + 1024, 0);
    siltstone(["export", &pool, "disk", &out, "--force"]).succeeds();
    assert!(fs::read(&out).unwrap() == expected, "nothing is left behind a short stream");
    assert_sound(&pool);
}

#[test]
fn an_export_replaces_no_pool_and_nothing_that_somebody_has_locked() {
    let folder = Folder::new();
    let pool = folder.pool("64M");
    siltstone(["volume", "create", &pool, "disk", "--size", "1M"]).succeeds();
    let (other, locked) = (folder.text("other"), folder.text("locked"));
    siltstone(["create", &other, "--size", "64M"]).succeeds();
    let export = |to: &str| siltstone(["export", &pool, "disk", to, "--force"]);
    let said = export(&other).fails(6);
    assert!(said.contains("has a pool in it"), "{said}");
    let server = Server::start(&other, &["--create", "theirs=1M"]);
    export(&other).fails(6);
    assert!(server.stop().success());
    assert_sound(&other);

    fs::write(&locked, "precious").unwrap();
    let file = fs::File::open(&locked).unwrap();
    file.lock().unwrap();
    let said = export(&locked).fails(5);
    assert!(said.contains("is in use by"), "{said}");
    assert_eq!(fs::read(&locked).unwrap(), b"precious");
    file.unlock().unwrap();
    export(&locked).succeeds();
    assert_eq!(fs::metadata(&locked).unwrap().len(), 1 << 20);
}

/// What an overwritten image left in segments that the new one shares is given back.
#[test]
fn garbage_is_collected_on_demand_and_nothing_else() {
    let folder = Folder::new();
    let pool = folder.pool("256M");
    let image = folder.path("image");
    let mut bytes = vec![0; 24 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    fs::write(&image, &bytes).unwrap();
    siltstone(["import", &pool, "v", image.to_str().unwrap()]).succeeds();
    let other = blake3::Hasher::new_keyed(&[1; 32]).finalize();
    for block in bytes.chunks_exact_mut(4096).step_by(2) {
        block[..32].copy_from_slice(other.as_bytes());
    }
    fs::write(&image, &bytes).unwrap();
    siltstone(["import", &pool, "v", image.to_str().unwrap(), "--force"]).succeeds();
    let before = stat(&pool)["free_bytes"].as_u64().unwrap();
    let says = siltstone(["gc", &pool]).succeeds();
    assert!(says.starts_with("moved ") && says.contains("more than before"), "{says}");
    let after = stat(&pool)["free_bytes"].as_u64().unwrap();
    assert!(after > before + (8 << 20), "{says}");
    assert_sound(&pool);
    let copy = folder.path("copy");
    siltstone(["export", &pool, "v", copy.to_str().unwrap()]).succeeds();
    assert!(fs::read(&copy).unwrap() == bytes);
}

#[test]
fn a_new_pool_says_how_large_it_is_and_how_much_it_takes() {
    let folder = Folder::new();
    let pool = folder.text("new");
    let said = siltstone(["create", &pool, "--size", "1G"]).succeeds();
    let free = stat(&pool)["free_bytes"].as_u64().unwrap() >> 20;
    assert_eq!(said, format!("created pool {pool}, 1 GiB, with room for {free} MiB of data\n"));
}

#[test]
fn volumes_are_created_listed_resized_set_and_deleted() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    siltstone(["volume", "create", &pool, "a disk", "--size", "10G", "--level", "-3"]).succeeds();
    siltstone(["volume", "create", &pool, "other", "--size", "512"]).succeeds();
    siltstone(["volume", "resize", &pool, "other", "--size", "1T"]).succeeds();
    let list = siltstone(["volume", "list", &pool]).succeeds();
    assert_eq!(
        list,
        "NAME    SIZE    LEVELS  FRAME\na disk  10 GiB  -3      32K\nother   1 TiB   1..3    32K\n"
    );
    let said = siltstone(["volume", "set", &pool, "a disk", "--frame", "8K"]).succeeds();
    assert_eq!(
        said,
        "what is written to volume 'a disk' from now on has levels -3 and frames of 8K\n"
    );
    siltstone(["volume", "set", &pool, "a disk", "--level", "1..9", "--frame", "4K"]).succeeds();
    let list = siltstone(["volume", "list", &pool]).succeeds();
    assert!(list.contains("\na disk  10 GiB  1..9    4K\n"), "{list}");
    siltstone(["volume", "delete", &pool, "a disk"]).succeeds();
    let list = siltstone(["volume", "list", &pool]).succeeds();
    assert_eq!(list, "NAME   SIZE   LEVELS  FRAME\nother  1 TiB  1..3    32K\n");
    let table = siltstone(["stat", &pool]).succeeds();
    assert!(table.starts_with("size ") && table.contains("128 MiB"), "{table}");
    assert!(
        table.contains("\nother   1 TiB  1..3    0 B      0 B        0 B     0 B\n"),
        "{table}"
    );
}

#[test]
fn a_server_starts_from_nothing_and_starts_again() {
    let folder = Folder::new();
    let pool = folder.text("new.silt");
    let arguments = ["--size", "128M", "--create", "disk=1G", "--listen", "127.0.0.1:0"];
    for signal in [Signal::TERM, Signal::INT] {
        let server = Server::start(&pool, &arguments);
        let announcement = server.announcement();
        assert!(announcement.contains("\nlistening on 127.0.0.1:"), "{announcement}");
        assert!(announcement.contains("\nvolume 'disk', 1 GiB:\n"), "{announcement}");
        let commands = announcement.lines().filter_map(|line| line.strip_prefix("    nbdinfo "));
        let uris: Vec<_> = commands.map(|uri| uri.trim_matches('\'').to_owned()).collect();
        assert_eq!(uris.len(), 2, "{announcement}");
        if has("nbdinfo") {
            for uri in uris {
                assert_eq!(run("nbdinfo", ["--size", &uri]).trim(), "1073741824");
            }
        }
        let status = server.end(signal);
        assert_eq!(status.code(), Some(0));
    }
    let other = ["serve", &pool, "--create", "disk=2G", "--log-level", "off"];
    let sentence = siltstone(other).fails(6);
    assert!(sentence.contains("exists already with 1 GiB"), "{sentence}");
}

#[test]
fn a_killed_server_keeps_what_was_flushed() {
    if !has("qemu-io") {
        return;
    }
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let server = Server::start(&pool, &["--create", "disk=64M"]);
    let uri = server.uri("disk");
    let write = ["-f", "raw", "-c", "write -P 0x5a 12k 3M", "-c", "flush", &uri];
    run("qemu-io", write);
    server.kill();
    let server = Server::start(&pool, &[]);
    let read =
        ["-f", "raw", "-c", "read -P 0x5a 12k 3M", "-c", "read -P 0 0 12k", &server.uri("disk")];
    run("qemu-io", read);
    assert!(server.stop().success());
    assert_sound(&pool);
}

#[test]
fn a_server_for_reading_refuses_changes() {
    if !has("qemu-io") {
        return;
    }
    let folder = Folder::new();
    let pool = folder.pool("128M");
    siltstone(["volume", "create", &pool, "disk", "--size", "64M"]).succeeds();
    let before = fs::read(&pool).unwrap();
    let server = Server::start(&pool, &["--read-only"]);
    let uri = server.uri("disk");
    run("qemu-io", ["-r", "-f", "raw", "-c", "read -P 0 0 1M", &uri]);
    let mut write = std::process::Command::new("qemu-io");
    let refused = Outcome::of(write.args(["-f", "raw", "-c", "write 0 4k", &uri]));
    assert!(!refused.status.success(), "{refused:?}");
    assert!(server.stop().success());
    assert!(fs::read(&pool).unwrap() == before, "not a byte of the pool has changed");
}

#[test]
fn damage_is_found_and_told_with_its_own_exit_status() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let image = folder.text("image");
    // Incompressible data is stored as it is, so that a block of it can be found in the pool.
    let mut random = vec![0; 4 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut random);
    fs::write(&image, &random).unwrap();
    siltstone(["import", &pool, "disk", &image]).succeeds();
    assert_sound(&pool);
    let mut bytes = fs::read(&pool).unwrap();
    let victim = &random[400 * 4096..][..64];
    let at = bytes.windows(64).position(|window| window == victim).unwrap();
    bytes[at] ^= 1;
    fs::write(&pool, &bytes).unwrap();

    let outcome = siltstone(["check", &pool]);
    assert_eq!(outcome.status.code(), Some(9), "{outcome:#?}");
    assert!(outcome.stderr.starts_with("siltstone: ") && outcome.stderr.lines().count() == 1);
    let lost = "lost: volume 'disk', 32768 bytes at byte 1638400: its frames are damaged\n";
    assert!(outcome.stdout.contains(lost), "{outcome:#?}");

    let copy = folder.text("copy");
    let sentence = siltstone(["export", &pool, "disk", &copy]).fails(9);
    assert!(sentence.starts_with("volume 'disk', "), "{sentence}");
    assert!(!fs::exists(&copy).unwrap(), "half an image is no image");
}
