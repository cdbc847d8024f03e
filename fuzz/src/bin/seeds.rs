//! Makes the inputs that the fuzzers start from: `seeds DIRECTORY`, one folder for each target,
//! and the image that `pool_image` damages.

use std::{env, fs, path::PathBuf, process::ExitCode};

// What instruments this program as well.
use libfuzzer_sys as _;
use siltstone_device::{
    SeededRandom,
    header::{HEADER_BYTES, Kind},
    sim::SimDevice,
};
use siltstone_fuzz::{
    client::{self, STYLES},
    pool::{self, Structure},
};
use siltstone_nbd::protocol::{command, command_flag, option};

struct Corpus {
    directory: PathBuf,
    written: u32,
}

impl Corpus {
    fn add(&mut self, target: &str, bytes: &[u8]) {
        let folder = self.directory.join(target);
        let name = folder.join(format!("seed-{}", self.written));
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(name, bytes))
            .expect("seeds are written");
        self.written += 1;
    }
}

/// The checkpoint record's catalog and manifest, by the lengths in its head.
fn parts_of_checkpoint(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let word = |at: usize| {
        let bytes = body.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes) as usize)
    };
    // Behind the head, frontier segments and the beginnings of epochs.
    let start = 64 + word(4)? * 16 + word(48)? * 16;
    let middle = start + word(32)?;
    Some((body.get(start..middle)?, body.get(middle..middle + word(36)?)?))
}

/// The frames of a write unit, found by their magic number.
fn frames(unit: &[u8]) -> impl Iterator<Item = &[u8]> {
    let starts = (0..unit.len().saturating_sub(48)).step_by(16);
    starts.filter(|at| unit[at + 8..at + 10] == *b"SF").filter_map(|at| {
        let stored = u32::from_le_bytes(unit[at + 16..at + 20].try_into().ok()?) as usize;
        unit.get(at..at + 48 + stored)
    })
}

fn structure(corpus: &mut Corpus, device: &SimDevice, structure: &Structure) {
    let bytes = structure.read(device);
    let body = &bytes[HEADER_BYTES..];
    if structure.is(Kind::Superblock) {
        corpus.add("superblock", body);
    } else if structure.is(Kind::Checkpoint) {
        corpus.add("checkpoint", body);
        let (catalog, manifest) = parts_of_checkpoint(body).expect("a whole record");
        corpus.add("catalog", catalog);
        corpus.add("manifest", manifest);
    } else if structure.is(Kind::IndexImage) {
        corpus.add("index_image", body);
    } else if structure.is(Kind::LogRecord) {
        // How many blocks of zeros follow, then from the number on; short data is filled up.
        let front = &bytes[HEADER_BYTES - 8..bytes.len().min(4096)];
        let blocks = bytes.len() / 4096 - 1;
        corpus.add("log_record", &[&[blocks.min(7) as u8], front].concat());
        corpus.add("log_record", &[&[0], &bytes[HEADER_BYTES - 8..]].concat());
    } else if structure.is(Kind::WriteUnit) {
        corpus.add("summary", body);
        let unit_bytes = u32::from_le_bytes(body[36..40].try_into().expect("four bytes"));
        let unit = device.peek(structure.offset_bytes, unit_bytes as usize);
        frames(&unit)
            .filter(|frame| frame.len() < 8192)
            .for_each(|frame| corpus.add("frame", frame));
    }
}

fn clients(corpus: &mut Corpus) {
    let info = client::info_request(&[0, 1, 2, 3]);
    let context = client::context_request();
    // Each with TLS unavailable, optional, required and in force.
    for (mode, style) in (0u8..).step_by(3).zip(STYLES.into_iter().cycle()).take(12) {
        let mut requests = Vec::new();
        for number in [command::READ, command::FLUSH, command::TRIM, command::WRITE_ZEROES] {
            requests.extend(client::request(style, number, 0, 7, 1 << 16, 8192));
        }
        requests.extend(client::request(style, command::BLOCK_STATUS, 8, 8, 0, 1 << 18));
        let payload = if style == client::Style::Extended { command_flag::PAYLOAD_LEN } else { 0 };
        requests.extend(client::request(style, command::WRITE, payload | 1, 9, 4096, 64));
        requests.extend([0xab; 64]);
        requests.extend(client::request(style, command::DISC, 0, 10, 0, 0));
        corpus.add("nbd", &[&[mode], &*client::negotiation(style), &*requests].concat());
        corpus.add("nbd", &[&[mode + 1], &*requests].concat());
        let mut greeting = vec![mode];
        greeting.extend(3u32.to_be_bytes());
        for (number, data) in [
            (option::LIST, &[][..]),
            (option::INFO, &info),
            (option::LIST_META_CONTEXT, &context),
            (option::STARTTLS, &[]),
            (option::EXPORT_NAME, client::EXPORT.as_bytes()),
        ] {
            greeting.extend(client::option(number, data));
        }
        corpus.add("nbd", &greeting);
        corpus.add("nbd", &[mode + 2; 200]);
    }
}

fn main() -> ExitCode {
    let Some(directory) = env::args_os().nth(1) else {
        eprintln!("usage: seeds DIRECTORY");
        return ExitCode::FAILURE;
    };
    let mut corpus = Corpus { directory: directory.into(), written: 0 };
    let device = pool::lived_in();
    fs::create_dir_all(&corpus.directory)
        .and_then(|()| {
            fs::write(corpus.directory.join("pool_image.base"), pool::image_bytes(&device))
        })
        .expect("the image is written");
    for found in pool::structures(&device) {
        structure(&mut corpus, &device, &found);
    }
    let device = pool::with_index_image();
    let images = pool::structures(&device).into_iter().filter(|found| found.is(Kind::IndexImage));
    let images: Vec<_> = images.collect();
    assert!(!images.is_empty(), "a pool leaves an image when it is closed");
    images.iter().for_each(|found| structure(&mut corpus, &device, found));
    clients(&mut corpus);
    // Targets that read their input as a list of choices start from random ones.
    let mut random = SeededRandom::new(7);
    for target in ["log_ring", "map_pages", "nbd", "operations", "pool_image"] {
        for len in [40, 100, 200, 400, 800] {
            let mut bytes = vec![0; len];
            random.fill(&mut bytes);
            corpus.add(target, &bytes);
        }
    }
    println!("{} seeds in {}", corpus.written, corpus.directory.display());
    ExitCode::SUCCESS
}
