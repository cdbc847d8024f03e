//! `siltstone estimate`: what it says beforehand is what a pool holds afterwards.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use serde_json::Value;
use support::{Folder, Outcome, command, needs, run, siltstone};

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
        ("reduction_ratio", 2.0),
    ] {
        let (found, expected) = (estimate[name].as_f64().unwrap(), stat[name].as_f64().unwrap());
        let difference = (found / expected - 1.0).abs() * 100.0;
        assert!(difference <= percent, "{name}: {found}, the pool has {expected}");
    }
    assert_eq!(estimate["files"].as_array().unwrap().len(), 2);

    let text = siltstone(["estimate", image, copy, "--memory", "256K"]).succeeds();
    for part in [image, copy, "thin", "dedup", "compression", "2 to 3 blocks", "THRESHOLD"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_hole_is_no_reduction() {
    let folder = Folder::new();
    let image = folder.path("sparse");
    let mut noise = vec![0; 1 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    std::fs::write(&image, noise).unwrap();
    std::fs::File::options().write(true).open(&image).unwrap().set_len(64 << 20).unwrap();
    let image = image.to_str().unwrap();
    let estimate = json(&["estimate", image, "--json"]);
    let ratio = |name: &str| estimate[name].as_f64().unwrap();
    assert_eq!(ratio("thin_ratio"), 64.0);
    assert!((0.9..=1.0).contains(&ratio("reduction_ratio")), "{estimate}");
    assert!((ratio("total_ratio") / ratio("reduction_ratio") / 64.0 - 1.0).abs() < 1e-9);
    let text = siltstone(["estimate", image]).succeeds();
    let line = text.lines().find(|line| line.starts_with("reduction")).unwrap();
    let given = format!("{:.2}:1", ratio("reduction_ratio"));
    assert_eq!(line.split_whitespace().nth(1), Some(&*given), "{line}");
    let with_thin =
        format!("thin provisioning 64.00:1 apart, and {:.2}:1 with", ratio("total_ratio"));
    assert!(line.contains(&with_thin), "{line}");
}

/// Not of the bytes of its file.
#[test]
fn an_image_that_is_not_raw_is_estimated_by_what_it_holds() {
    if !needs("qemu-img") {
        return;
    }
    let folder = Folder::new();
    let (raw, image) = (folder.text("raw"), folder.text("image.qcow2"));
    let mut noise = vec![0; 3 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise[..2 << 20]);
    noise.copy_within(..1 << 20, 2 << 20);
    std::fs::write(&raw, noise).unwrap();
    std::fs::File::options().write(true).open(&raw).unwrap().set_len(64 << 20).unwrap();
    run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", "-c", &raw, &image]);
    let [expected, found] = [&raw, &image].map(|path| json(&["estimate", path, "--all", "--json"]));
    for name in ["logical_bytes", "data_bytes", "unique_bytes", "stored_bytes", "thin_ratio"] {
        assert_eq!(found[name], expected[name], "{name}");
    }
    assert_eq!(found["files"][0]["path"], *image);
    let as_it_is = json(&["estimate", &image, "--format", "raw", "--json"]);
    assert_ne!(as_it_is["logical_bytes"], expected["logical_bytes"]);
    // Nobody's files are read because an image names them.
    let overlay = folder.text("overlay.qcow2");
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", &raw, "-F", "raw", &overlay]);
    assert!(siltstone(["estimate", &overlay]).fails(6).contains("add --backing"));
    siltstone(["estimate", &overlay, "--backing"]).succeeds();
}

/// And before it takes long, other files and options are looked at.
#[test]
fn an_image_that_cannot_be_converted_for_lack_of_room_is_told_as_that() {
    if !needs("qemu-img") {
        return;
    }
    let folder = Folder::new();
    let (raw, image) = (folder.text("raw"), folder.text("image.qcow2"));
    std::fs::write(&raw, vec![5; 3 << 20]).unwrap();
    run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", &raw, &image]);
    let nowhere = folder.text("nowhere");
    let estimate = |arguments: &[&str]| {
        let mut estimate = command();
        Outcome::of(estimate.env("TMPDIR", &nowhere).arg("estimate").args(arguments))
    };
    let sentence = estimate(&[&image]).fails(1);
    let said = format!("cannot convert {image} in {nowhere}: No such file or directory");
    assert!(sentence.starts_with(&said), "{sentence}");
    assert!(sentence.contains("TMPDIR can name"), "{sentence}");
    let missing = folder.text("missing");
    assert!(estimate(&[&image, &missing]).fails(1).contains(&format!("open {missing}")));
    estimate(&[&image, "--threshold", "0"]).fails(6);

    // A file system that is too small takes rights that not everybody has.
    std::fs::create_dir(&nowhere).unwrap();
    let program = env!("CARGO_BIN_EXE_siltstone");
    let script = format!(
        "mount -t tmpfs -o size=1m none '{nowhere}' 2>/dev/null || exit 99
         TMPDIR='{nowhere}' exec '{program}' estimate '{image}'"
    );
    match std::process::Command::new("unshare").args(["-rm", "sh", "-c", &script]).output() {
        Ok(output) if output.status.code() == Some(7) => {
            let sentence = String::from_utf8(output.stderr).unwrap();
            let said = format!("cannot convert {image} in {nowhere}: No space left on device");
            assert!(sentence.starts_with(&format!("siltstone: {said}")), "{sentence}");
        }
        Ok(output)
            if output.status.code() != Some(99) && !output.stderr.starts_with(b"unshare") =>
        {
            panic!("{output:?}");
        }
        _ => println!("no file system can be mounted: not tested"),
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
    assert!(
        siltstone(["estimate", &missing, "--memory", "1K"]).fails(6).contains("1 KiB of memory")
    );
    siltstone(["estimate", &missing, "--threshold", "0"]).fails(6);
}
