//! `siltstone bench`: what it measures is there to be read, and nothing is left of it.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use serde_json::Value;
use siltstone_device::SeededRandom;
use support::{Folder, MIB, has, siltstone};

/// Data of which all blocks are distinct: as little as is accepted.
fn data(folder: &Folder) -> String {
    let mut data = vec![0; 64 * MIB as usize];
    SeededRandom::new(1).fill(&mut data);
    std::fs::write(folder.path("data"), data).unwrap();
    folder.text("data")
}

/// Runs a group quickly in a folder of its own, and returns what it found.
fn bench(group: &str) -> Value {
    let folder = Folder::new();
    let (data, json) = (data(&folder), folder.text("found.json"));
    let directory = folder.text("directory");
    std::fs::create_dir(&directory).unwrap();
    let place = ["bench", "--directory", &directory, "--data", &data, "--only", group];
    let amount = ["--seconds", "0.1", "--rounds", "1", "--size", "64M", "--json", &json];
    let table = siltstone(place.into_iter().chain(amount)).succeeds();
    let found: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    for row in found["rows"].as_array().unwrap() {
        assert_eq!(row["group"], group);
        assert!(row["value"].as_f64().unwrap() > 0.0, "{row}");
        assert!(table.contains(row["name"].as_str().unwrap()), "{row}: {table}");
    }
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "files are left");
    found
}

#[test]
fn what_bounds_writes_is_kept_with_their_rows() {
    let found = bench("flush");
    assert_eq!(found["rows"].as_array().unwrap().len(), 4);
    let explained = found["explained"].as_array().unwrap();
    assert_eq!(explained.len(), 2);
    // Of the 16 clients it may be the processors or the reducers as well.
    assert_eq!(explained[0]["bound"], "flushes", "{}", explained[0]);
    for explanation in explained {
        assert!(explanation["bound"].is_string(), "{explanation}");
        assert!(explanation["written_bytes_per_second"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn memory_is_that_of_a_process_which_has_nothing_but_the_pool() {
    let found = bench("memory");
    let values: Vec<f64> = found["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["value"].as_f64().unwrap())
        .collect();
    for pool in values.chunks(3) {
        let [peak, before, open] = pool else { panic!("{values:?}") };
        assert!(before < open && open < peak, "{values:?}");
        // The data is 64 MiB, and came through a pipe.
        assert!(*before < 32.0 * MIB as f64, "{values:?}");
    }
}

/// The system's files, in an image of any size.
#[test]
fn data_need_not_be_given() {
    if !has("mke2fs") {
        return;
    }
    let folder = Folder::new();
    let directory = folder.text("");
    let what = ["bench", "--directory", &directory, "--size", "192M", "--only", "flush"];
    let amount = ["--seconds", "0.1", "--rounds", "1"];
    siltstone(what.into_iter().chain(amount)).succeeds();
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_sentence() {
    let folder = Folder::new();
    let sentence = siltstone(["bench", "--only", "nothing"]).fails(2);
    assert!(sentence.contains("ingest") && sentence.contains("growth"), "{sentence}");
    let directory = folder.text("");
    let in_folder = ["bench", "--directory", &directory];
    let sentence = siltstone(in_folder.into_iter().chain(["--size", "1P"])).fails(7);
    assert!(sentence.contains("--size"), "{sentence}");
    std::fs::write(folder.path("short"), [1; 1 << 20]).unwrap();
    let short = folder.text("short");
    let sentence =
        siltstone(in_folder.into_iter().chain(["--size", "64M", "--data", &short])).fails(6);
    assert!(sentence.contains("distinct"), "{sentence}");
}
