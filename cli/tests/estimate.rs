//! `siltstone estimate`: what it says beforehand is what a pool holds afterwards.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use serde_json::Value;
use support::{Folder, siltstone};

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&siltstone(arguments).succeeds()).unwrap()
}

#[test]
fn an_estimate_of_images_is_what_importing_them_gives() {
    let folder = Folder::new();
    let image = folder.image("image");
    // The same with its beginning elsewhere: most blocks are duplicates.
    let copy = folder.path("copy");
    let mut bytes = std::fs::read(&image).unwrap();
    bytes.rotate_left(5 << 20);
    std::fs::write(&copy, bytes).unwrap();
    let (image, copy) = (image.to_str().unwrap(), copy.to_str().unwrap());

    let estimate = json(&["estimate", image, copy, "--all", "--json"]);
    let pool = folder.pool("2G");
    siltstone(["import", &pool, "image", image]).succeeds();
    siltstone(["import", &pool, "copy", copy]).succeeds();
    let stat = json(&["stat", &pool, "--json"]);
    for (name, percent) in [
        ("unique_bytes", 0.0),
        ("stored_bytes", 2.0),
        ("dedup_ratio", 2.0),
        ("compression_ratio", 2.0),
    ] {
        let (found, expected) = (estimate[name].as_f64().unwrap(), stat[name].as_f64().unwrap());
        let difference = (found / expected - 1.0).abs() * 100.0;
        assert!(difference <= percent, "{name}: {found}, the pool has {expected}");
    }
    assert_eq!(estimate["files"].as_array().unwrap().len(), 2);

    let text = siltstone(["estimate", image, copy, "--memory", "256K"]).succeeds();
    for part in [image, copy, "thin", "dedup", "compression", "total", "2 to 3 blocks", "THRESHOLD"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn what_cannot_be_estimated_is_refused_by_name() {
    let folder = Folder::new();
    let missing = folder.text("missing");
    assert!(siltstone(["estimate", &missing]).fails(1).contains(&missing));
    let directory = folder.path("directory");
    std::fs::create_dir(&directory).unwrap();
    let directory = directory.to_str().unwrap();
    assert!(siltstone(["estimate", directory]).fails(1).contains(directory));
    assert!(siltstone(["estimate", &missing, "--memory", "1K"]).fails(6).contains("1024 bytes"));
    siltstone(["estimate", &missing, "--threshold", "0"]).fails(6);
}
