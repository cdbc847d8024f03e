//! Images that are not raw: recognised, read through the real qemu-img, byte for byte, with and without
//! a server; and nothing but their own files is read unless that is asked for.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
};

use siltstone_torture::kill::nbd_client::NbdClient;
use support::{Folder, MIB, Outcome, Server, command, needs, run, siltstone};

/// A raw image of 24 MiB with data, repetitions and holes.
fn raw(folder: &Folder) -> Vec<u8> {
    let mut bytes = vec![0; 24 << 20];
    let mut random = blake3::Hasher::new().finalize_xof();
    random.fill(&mut bytes[..3 << 20]);
    bytes.copy_within(0..MIB as usize, 9 << 20);
    random.fill(&mut bytes[(20 << 20) + 4096..(21 << 20) + 8192]);
    let file = File::create(folder.path("raw")).unwrap();
    file.set_len(24 << 20).unwrap();
    for range in [0..3 << 20, 9 << 20..10 << 20, 20 << 20..22 << 20] {
        file.write_all_at(&bytes[range.clone()], range.start as u64).unwrap();
    }
    bytes
}

fn convert(folder: &Folder, format: &str, options: &[&str], name: &str) -> String {
    let (raw, image) = (folder.text("raw"), folder.text(name));
    run("qemu-img", [&["convert", "-f", "raw", "-O", format], options, &[&raw, &image]].concat());
    image
}

#[track_caller]
fn assert_holds(folder: &Folder, pool: &str, volume: &str, expected: &[u8]) {
    let out = folder.text("out");
    siltstone(["export", pool, volume, &out, "--force"]).succeeds();
    let found = fs::read(&out).unwrap();
    // Some formats round the size of a disk up.
    assert!(found.len() >= expected.len() && found.len() < expected.len() + MIB as usize);
    assert!(found[..expected.len()] == *expected, "{volume} is another disk");
    assert!(found[expected.len()..].iter().all(|byte| *byte == 0));
}

#[test]
fn every_kind_of_image_is_recognised_and_read_whoever_has_the_pool() {
    if !needs("qemu-img") {
        return;
    }
    let folder = Folder::new();
    let expected = raw(&folder);
    let pool = folder.pool("256M");
    let images = [
        ("qcow2", &[][..]),
        ("qcow2", &["-c"]),
        ("qcow2", &["-c", "-o", "compression_type=zstd,cluster_size=4k"]),
        ("qcow", &[]),
        ("qed", &[]),
        ("vmdk", &[]),
        ("vmdk", &["-o", "subformat=streamOptimized"]),
        ("vdi", &[]),
        ("vhdx", &[]),
        ("vpc", &[]),
        ("vpc", &["-o", "subformat=fixed"]),
        ("parallels", &[]),
    ];
    for (number, (format, options)) in images.iter().enumerate() {
        let image = convert(&folder, format, options, "image");
        let name = format!("{format}{number}");
        let said = siltstone(["import", &pool, &name, &image]).succeeds();
        assert!(said.contains(" data, "), "{said}");
        assert_holds(&folder, &pool, &name, &expected);
        fs::remove_file(image).unwrap();
    }
    // A server that has no qemu-img: the command's own process converts. Over an old image, too, of
    // which nothing is left.
    let image = convert(&folder, "qcow2", &["-c"], "image");
    let before = folder.text("before");
    fs::write(&before, vec![9; 25 << 20]).unwrap();
    siltstone(["import", &pool, "live", &before]).succeeds();
    let mut program = command();
    program.env("PATH", "/nonexistent");
    let server = Server::start_as(program, &pool, &[]);
    siltstone(["import", &pool, "live", &image, "--force"]).succeeds();
    siltstone(["import", &pool, "new", &image]).succeeds();
    let log = server.stop_for_log();
    assert!(!log.contains("connected"), "no client of the server's: {log}");
    let mut padded = expected.clone();
    padded.resize(25 << 20, 0);
    assert_holds(&folder, &pool, "live", &padded);
    assert_holds(&folder, &pool, "new", &expected);
    siltstone(["check", &pool]).succeeds();
}

#[test]
fn bytes_are_imported_as_they_are_if_that_is_asked_for() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let mut bytes = vec![7; 1 << 20];
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    let image = folder.text("image");
    fs::write(&image, &bytes).unwrap();
    siltstone(["import", &pool, "file", &image, "--format", "raw"]).succeeds();
    assert_holds(&folder, &pool, "file", &bytes);
    let stream = |options: &[&str]| {
        let mut import = command();
        import.args(["import", &pool, "stream", "-", "--size", "1M"]).args(options);
        Outcome::of(import.stdin(File::open(&image).unwrap()))
    };
    let sentence = stream(&[]).fails(6);
    let expected = "standard input is a stream, from which a qcow2 image cannot be read";
    assert!(sentence.starts_with(expected), "{sentence}");
    stream(&["--format", "vmdk"]).fails(6);
    assert!(!siltstone(["volume", "list", &pool]).succeeds().contains("stream"));
    stream(&["--format", "raw"]).succeeds();
    assert_holds(&folder, &pool, "stream", &bytes);
}

/// An image can name any file as a part of itself, and whoever made it may not be trusted.
#[test]
fn other_files_are_part_of_an_image_only_on_demand() {
    if !needs("qemu-img") {
        return;
    }
    let folder = Folder::new();
    let expected = raw(&folder);
    let pool = folder.pool("256M");
    let (secret, image) = (folder.text("raw"), folder.text("image.qcow2"));
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", &secret, "-F", "raw", &image]);
    let refused = |image: &str, names: &str| {
        let sentence = siltstone(["import", &pool, "v", image]).fails(6);
        assert!(sentence.contains(names) && sentence.contains("--backing"), "{sentence}");
        assert_eq!(siltstone(["volume", "list", &pool, "--json"]).succeeds(), "[]\n");
    };
    refused(&image, &secret);
    // A file of its own for the data, and the extents of a VMDK.
    let (outside, data) = (folder.text("outside.qcow2"), folder.text("data"));
    let option = format!("data_file={data}");
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", &option, &outside, "24M"]);
    refused(&outside, &data);
    let flat = convert(&folder, "vmdk", &["-o", "subformat=monolithicFlat"], "flat.vmdk");
    refused(&flat, "flat-flat.vmdk");

    for image in [&image, &flat] {
        siltstone(["import", &pool, "v", image, "--backing"]).succeeds();
        assert_holds(&folder, &pool, "v", &expected);
        siltstone(["volume", "delete", &pool, "v"]).succeeds();
    }
}

#[test]
fn an_image_that_qemu_img_cannot_read_leaves_no_volume() {
    let folder = Folder::new();
    let pool = folder.pool("256M");
    let image = folder.text("image.qcow2");
    fs::write(&image, b"QFI\xfb\0\0\0\x03 and no more than that").unwrap();
    let none = || assert_eq!(siltstone(["volume", "list", &pool, "--json"]).succeeds(), "[]\n");
    let mut import = command();
    import.args(["import", &pool, "v", &image]).env("PATH", "/nonexistent");
    let sentence = Outcome::of(&mut import).fails(1);
    assert!(sentence.contains("read by qemu-img, and that is not installed"), "{sentence}");
    none();
    if !needs("qemu-img") {
        return;
    }
    let sentence = siltstone(["import", &pool, "v", &image]).fails(1);
    assert!(sentence.starts_with(&format!("qemu-img cannot read {image}: ")), "{sentence}");
    assert!(!sentence.contains("json:"), "{sentence}");
    none();
    // Found out in the middle.
    let mut letters = raw(&folder);
    blake3::Hasher::new().finalize_xof().fill(&mut letters);
    letters.iter_mut().for_each(|byte| *byte = b'a' + *byte % 23);
    fs::write(folder.path("raw"), letters).unwrap();
    fs::remove_file(&image).unwrap();
    convert(&folder, "qcow2", &["-c"], "image.qcow2");
    let file = File::options().write(true).open(&image).unwrap();
    // Of compressed data, which must have an end.
    file.write_all_at(&[0xff; 65536], 2 * MIB).unwrap();
    drop(file);
    let sentence = siltstone(["import", &pool, "v", &image]).fails(1);
    assert!(sentence.starts_with(&format!("qemu-img cannot read {image}: ")), "{sentence}");
    none();
    let server = Server::start(&pool, &[]);
    let sentence = siltstone(["import", &pool, "v", &image]).fails(1);
    assert!(sentence.starts_with(&format!("qemu-img cannot read {image}: ")), "{sentence}");
    none();
    assert!(server.stop().success());
    siltstone(["check", &pool]).succeeds();
}

/// Names that mean something to qemu-img, or to its options, mean a file.
#[test]
fn a_name_is_only_a_name() {
    if !needs("qemu-img") {
        return;
    }
    let folder = Folder::new();
    let expected = raw(&folder);
    let pool = folder.pool("256M");
    for (number, name) in ["a,b=c", "nbd:x:1", "json:{}", "q\"uo'te", "sp ace"].iter().enumerate() {
        let plain = convert(&folder, "qcow2", &[], "plain");
        fs::rename(plain, folder.path(name)).unwrap();
        let volume = number.to_string();
        let mut import = command();
        import.current_dir(folder.path("")).args(["import", &pool, &volume, name]);
        Outcome::of(&mut import).succeeds();
        assert_holds(&folder, &pool, &volume, &expected);
    }
}

/// Zeros follow, also where there is nothing before them.
#[test]
fn nothing_of_what_a_volume_held_stays_behind_a_shorter_image() {
    let folder = Folder::new();
    let pool = folder.pool("256M");
    let file = |name: &str, bytes: &[u8]| {
        fs::write(folder.path(name), bytes).unwrap();
        folder.text(name)
    };
    let (long, short) = (file("long", &vec![7; 2 << 20]), file("short", &[9; 5000]));
    let zeros = file("zeros", &[0; 512]);
    for (image, expected) in [(&short, &[9; 5000][..]), (&zeros, &[])] {
        siltstone(["import", &pool, "v", &long, "--force"]).succeeds();
        siltstone(["import", &pool, "v", image, "--force"]).succeeds();
        let out = folder.text("out");
        siltstone(["export", &pool, "v", &out, "--force"]).succeeds();
        let found = fs::read(&out).unwrap();
        assert_eq!(found.len(), 2 << 20);
        assert!(found.starts_with(expected), "{image}");
        assert!(found[expected.len()..].iter().all(|byte| *byte == 0), "{image}");
    }
}

#[test]
fn each_image_gets_a_volume_of_its_own_and_one_that_fails_stops_no_other() {
    let folder = Folder::new();
    let pool = folder.pool("256M");
    let file = |name: &str, bytes: &[u8]| {
        File::create(folder.path(name)).unwrap().write_all(bytes).unwrap();
        folder.text(name)
    };
    let (one, two) = (file("one.img", &[1; 1 << 20]), file("two.5", &[2; 2 << 20]));
    let (same, empty) = (file("one.raw", &[3; 4096]), file("empty.bin", b""));
    let each = |files: &[&str]| siltstone([&["import", &pool, "--each"], files].concat());
    let none = || assert_eq!(siltstone(["volume", "list", &pool, "--json"]).succeeds(), "[]\n");
    // What cannot be is told before anything is written.
    let sentence = each(&[&two, &one, &same]).fails(6);
    assert!(sentence.contains("would both be imported into volume 'one'"), "{sentence}");
    let sentence = each(&[&two, "-"]).fails(6);
    assert_eq!(
        sentence,
        "no volume can be named after -: import it alone, with a name for its volume"
    );
    none();

    let outcome = each(&[&one, &empty, &folder.text("missing"), &two]);
    assert_eq!(outcome.status.code(), Some(6), "{outcome:?}");
    let said: Vec<&str> = outcome.stderr.lines().collect();
    assert!(said[0].contains("empty.bin is empty") && said[1].contains("missing"), "{said:?}");
    assert_eq!(said[2..], ["siltstone: 2 of 4 imports failed; the others are complete"]);
    let table: Vec<Vec<&str>> = outcome.stdout.lines().skip(2).map(words).collect();
    let path = |name: &str| folder.text(name);
    let (one_path, two_path) = (path("one.img"), path("two.5"));
    assert_eq!(table[0], ["FILE", "VOLUME", "SIZE", "ZERO", "DATA", "DUPLICATE", "NEW", "STORED"]);
    assert_eq!(table[1][..2], [&one_path[..], "one"]);
    assert_eq!(table[2][..2], [&two_path[..], "two.5"]);
    assert_eq!(table[3][..7], ["total", "3", "MiB", "0", "B", "3", "MiB"]);
    for (volume, bytes) in [("one", vec![1; 1 << 20]), ("two.5", vec![2; 2 << 20])] {
        assert_holds(&folder, &pool, volume, &bytes);
    }
    let sentence = each(&[&same, &two]).fails(6);
    assert!(sentence.contains("volume 'one' holds 1 MiB of data"), "{sentence}");
    assert!(sentence.contains("nothing was imported: add --resume"), "{sentence}");
    assert!(
        sentence.ends_with("--force, which replaces what all of these volumes hold"),
        "{sentence}"
    );

    // What is there already is not imported again when the rest is, and what was written to it since stays.
    fs::write(&empty, [4; 512]).unwrap();
    let server = Server::start(&pool, &[]);
    // Nor does anything keep it from being used meanwhile.
    let client = NbdClient::connect(server.socket(), "one").unwrap();
    let outcome = each(&[&one, &empty, &two, "--resume"]);
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(outcome.stdout.contains("into volume 'one' already: nothing to do"), "{outcome:?}");
    assert!(outcome.stdout.contains("into volume 'empty': 512 B"), "{outcome:?}");
    let outcome = each(&[&one, "--force"]);
    assert_eq!(outcome.status.code(), Some(5), "{outcome:?}");
    drop(client);
    assert!(server.stop().success());
    assert_holds(&folder, &pool, "empty", &[4; 512]);
    // Also when all are, as they may have been written to since; unless that is meant.
    let said = each(&[&one, "--resume"]).succeeds();
    // Which must not replace the others.
    let alone = format!("'siltstone import {pool} one {one} --force'");
    assert!(said.ends_with(&format!("nothing to do ({alone} imports it again)\n")), "{said}");
    let said = each(&[&one, "--force"]).succeeds();
    assert!(said.contains("into volume 'one': 1 MiB in "), "{said}");
    // And of one that cannot be known again, what is there is not replaced.
    fs::write(&one, [9; 4096]).unwrap();
    let outcome = each(&[&one, "--resume"]);
    assert_eq!(outcome.status.code(), Some(6), "{outcome:?}");
    assert!(outcome.stderr.contains("'one' holds 1 MiB of data"), "{outcome:?}");
    assert!(outcome.stderr.contains(&format!("; use {alone} to replace that: ")), "{outcome:?}");
    assert!(outcome.stderr.ends_with("siltstone: 1 of 1 import failed; nothing was imported\n"));
    assert_eq!(outcome.stdout, "", "a table of nothing");
    assert_holds(&folder, &pool, "one", &[1; 1 << 20]);
    // What holds nothing is as good as new.
    siltstone(["volume", "create", &pool, "three", "--size", "8K"]).succeeds();
    each(&[&file("three.raw", &[3; 4096])]).succeeds();
    assert_holds(&folder, &pool, "three", &[3; 4096]);
    siltstone(["check", &pool]).succeeds();
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}
