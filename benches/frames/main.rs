//! How the blocks of a frame are coded, and what of it has to be decoded for one block.
//!
//! `cargo bench -p siltstone-benches --bench frames -- [OPTIONS]`
//!
//! For each way of framing: the bytes stored, with the engine's headers and padding; the time to
//! code; the time to decode one block at random, and whole frames in order. Times are a thread's
//! processor time for a block, and each stands beside what frames of 32 KiB in one piece at
//! level 1 took in the same turn.
//!
//! - `way`: the ways; `codec`: frames coded and decoded.
//! - `corpus`: real data in two halves, one for training dictionaries.
//! - `measure`: one way on one corpus; `report`: the table.
#![forbid(unsafe_code)]

mod codec;
mod corpus;
mod measure;
mod report;
mod way;

use std::{
    collections::btree_map::{BTreeMap, Entry},
    error::Error,
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use siltstone_benches::data;
use zstd::zstd_safe::DDict;

use crate::{
    corpus::Corpus,
    measure::{Dictionary, Out, Subject},
    report::{Cost, Report},
    way::Way,
};

const CORPORA: [&str; 7] =
    ["files", "runs of 4", "runs of 2", "scattered", "text", "drifted", "image"];

type Outcome = Result<(), Box<dyn Error>>;

/// Compares ways of framing blocks.
#[derive(Parser)]
struct Arguments {
    /// Image or other file whose first GiB is the corpus `image`; by default one is built of /usr.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where the image is built.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// How much data is looked at for each half of a corpus.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u64).range(1..=512))]
    size_mib: u64,
    /// How often each way and the whole frame are measured, in turns.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only corpora whose name contains this: files, runs of 4, runs of 2, scattered, text,
    /// drifted, image.
    #[arg(long)]
    corpus: Option<String>,
    /// Only ways whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Writes the rows to a file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match compare(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &Arguments) -> Outcome {
    if !arguments.bench {
        println!("This measures for minutes: run it by cargo bench, or with --bench.");
        return Ok(());
    }
    let mut report = Report::new();
    let mut out = Out::new();
    for name in CORPORA {
        if arguments.corpus.as_ref().is_none_or(|only| name.contains(only.as_str())) {
            compare_on(&load(name, arguments)?, arguments, &mut out, &mut report)?;
        }
    }
    if let Some(path) = &arguments.json {
        report.save(path)?;
    }
    Ok(())
}

fn load(name: &'static str, arguments: &Arguments) -> Result<Corpus, Box<dyn Error>> {
    let bytes = (arguments.size_mib << 20) as usize;
    Ok(match name {
        "files" => corpus::files(bytes),
        "runs of 4" => corpus::files(bytes).scattered(name, 4),
        "runs of 2" => corpus::files(bytes).scattered(name, 2),
        "scattered" => corpus::files(bytes).scattered(name, 1),
        "text" => corpus::text(bytes),
        "drifted" => corpus::drifted(bytes),
        _ => {
            let path = match &arguments.data {
                Some(path) => path.clone(),
                None => data::image(&arguments.directory, data::IMAGE_BYTES)?,
            };
            corpus::image(&data::load(&path, data::IMAGE_BYTES)?, bytes)
        }
    })
}

fn compare_on(
    corpus: &Corpus,
    arguments: &Arguments,
    out: &mut Out,
    report: &mut Report,
) -> Outcome {
    report.begin(corpus.name, corpus.test.len(), corpus.training.len());
    let mut dictionaries: BTreeMap<usize, Dictionary> = BTreeMap::new();
    let mut baseline = Subject::new(&way::baseline(), &[], None);
    let is_wanted =
        |way: &Way| arguments.only.as_ref().is_none_or(|only| way.name.contains(only.as_str()));
    for way in way::all().into_iter().filter(is_wanted) {
        let bytes = way.dictionary_bytes;
        let dictionary = match dictionaries.entry(bytes) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Dictionary::train(&corpus.training, bytes)?),
        };
        let contents = dictionary.for_way(&way);
        let prepared = (bytes > 0).then(|| DDict::create(contents));
        let mut subject = Subject::new(&way, contents, prepared.as_ref());
        let turns: Vec<_> = (0..arguments.rounds)
            .map(|_| {
                let base = baseline.measure(&corpus.test, out);
                (subject.measure(&corpus.test, out), base)
            })
            .collect();
        let cost = Cost {
            encoder_bytes: subject.encoder_bytes(),
            decoder_bytes: prepared.as_ref().map_or(0, DDict::sizeof),
            training_seconds: dictionary.training_seconds,
        };
        report.add(corpus.name, &way.name, corpus.test.len(), &turns, cost);
    }
    Ok(())
}
