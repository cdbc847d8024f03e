//! What thresholds and index budgets keep of deduplication, and what they cost in reads and RAM.
//!
//! `cargo bench -p siltstone-benches --bench dedup_study -- [OPTIONS]`
//!
//! Each combination takes a pool of its own: a corpus is written to it, the pool is closed and
//! opened again, and the volume written last is read cold, in turns with the device alone.
//!
//! - `corpus`: images similar in time, images built apart, a fragmenting load of overwrites.
//! - `measure`: one pool.
#![forbid(unsafe_code)]

mod corpus;
mod measure;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use siltstone_benches::{
    data,
    plot::{Chart, Line},
};

use crate::{
    corpus::Corpus,
    measure::{Bed, Outcome, Setting},
};

const THRESHOLDS: [u32; 5] = [1, 2, 4, 8, 16];
/// Budgets as fractions of what holds every fingerprint: 1, 1/2, ... 1/64.
const BUDGET_BITS: [u32; 7] = [0, 1, 2, 3, 4, 5, 6];
/// The threshold with which budgets are compared.
const PLAIN_THRESHOLD: u32 = 1;

/// Of the tables.
const HEAD: &str = "| threshold | memory | sample | index KiB | kept % | stored MiB | map entries \
     | frames/MiB | CPU ms/MiB | sequential % | random % |";

/// Measures deduplication against thresholds and index budgets.
#[derive(Parser)]
struct Arguments {
    /// Raw images of one system on several days, in order; by default made from an image of /usr
    /// by changing it in place.
    #[arg(long, num_args = 1.., value_name = "IMAGE")]
    similar: Vec<PathBuf>,
    /// Raw images of systems that were built apart; without them that part is left out.
    #[arg(long, num_args = 1.., value_name = "IMAGE")]
    apart: Vec<PathBuf>,
    /// Where pools go, on the device to be measured; by default under the target directory.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// Where the plots go.
    #[arg(long)]
    plots: Option<PathBuf>,
    /// How long each of the reads of one pool goes on.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match study(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What one corpus came to.
struct Findings {
    name: &'static str,
    thresholds: Vec<Outcome>,
    budgets: Vec<Outcome>,
}

fn study(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    if !arguments.bench {
        println!("This measures for minutes: run it by cargo bench, or with --bench.");
        return Ok(());
    }
    let seconds = Duration::try_from_secs_f64(arguments.seconds)?;
    data::check_directory(&arguments.directory)?;
    let base = data::image(&arguments.directory, data::IMAGE_BYTES)?;
    let mut corpora = vec![match arguments.similar.is_empty() {
        true => Corpus::days(data::load(&base, data::IMAGE_BYTES)?),
        false => Corpus::images("similar images in time", &arguments.similar),
    }];
    if !arguments.apart.is_empty() {
        corpora.push(Corpus::images("images built apart", &arguments.apart));
    }
    corpora.push(Corpus::overwrites(data::load(&base, data::IMAGE_BYTES)?));

    let bed = Bed::new(&arguments.directory, seconds)?;
    let mut all = Vec::new();
    for corpus in &corpora {
        all.push(study_corpus(&bed, corpus)?);
    }
    if let Some(folder) = &arguments.plots {
        std::fs::create_dir_all(folder)?;
        draw(folder, &all)?;
    }
    Ok(())
}

fn study_corpus(bed: &Bed, corpus: &Corpus) -> Result<Findings, Box<dyn Error>> {
    let counts = corpus.count()?;
    let mib = |blocks: u64| (blocks * data::BLOCK_BYTES as u64) >> 20;
    println!(
        "\n{}: {} MiB of data, {} MiB distinct",
        corpus.name(),
        mib(counts.data_blocks),
        mib(counts.distinct_blocks)
    );
    let exact_bytes = measure::exact_index_bytes(counts.distinct_blocks);
    println!("{HEAD}\n|{}", "---|".repeat(HEAD.split('|').count() - 2));
    let run = |threshold: u32, bits: u32| {
        let setting = Setting { threshold, index_bytes: exact_bytes >> bits };
        let outcome = measure::run(bed, corpus, &counts, setting)?;
        println!(
            "| {threshold} | {} | 1 in {} | {} | {:.1} | {} | {} | {:.1} | {:.2} | {:.0} | {:.0} |",
            fraction(bits),
            1_u64 << outcome.sample_bits,
            outcome.index_bytes >> 10,
            outcome.kept * 100.0,
            outcome.stored_bytes >> 20,
            outcome.map_entries,
            outcome.frames_a_mib,
            outcome.cpu_ms_a_mib,
            outcome.sequential * 100.0,
            outcome.random * 100.0,
        );
        Ok::<_, Box<dyn Error>>(outcome)
    };
    let mut findings = Findings { name: corpus.name(), thresholds: vec![], budgets: vec![] };
    for threshold in THRESHOLDS {
        findings.thresholds.push(run(threshold, 0)?);
    }
    for bits in BUDGET_BITS {
        // The whole budget has been measured already, at the plain threshold.
        let done = (bits == 0).then(|| findings.thresholds[0]);
        findings.budgets.push(done.map_or_else(|| run(PLAIN_THRESHOLD, bits), Ok)?);
    }
    Ok(findings)
}

fn fraction(bits: u32) -> String {
    if bits == 0 { "1".into() } else { format!("1/{}", 1 << bits) }
}

fn draw(folder: &Path, all: &[Findings]) -> std::io::Result<()> {
    let thresholds: Vec<String> = THRESHOLDS.iter().map(u32::to_string).collect();
    let budgets: Vec<String> = BUDGET_BITS.iter().map(|&bits| fraction(bits)).collect();
    type Part = fn(&Findings) -> &[Outcome];
    let by_threshold: Part = |findings| &findings.thresholds;
    let by_budget: Part = |findings| &findings.budgets;
    let memory = "index memory, as a share of what holds every fingerprint";
    let threshold = "threshold, blocks";
    type Value = fn(&Outcome) -> f64;
    type Plot<'a> = (&'a str, &'a str, &'a str, &'a [String], Part, Value);
    let charts: [Plot<'_>; 5] = [
        (
            "threshold-kept",
            "duplicates kept, % of all",
            threshold,
            &thresholds,
            by_threshold,
            |outcome| outcome.kept,
        ),
        (
            "threshold-sequential-read",
            "cold sequential read afterwards, % of the raw device",
            threshold,
            &thresholds,
            by_threshold,
            |outcome| outcome.sequential,
        ),
        (
            "threshold-frames",
            "frames read by a stream, % of those that hold it once",
            threshold,
            &thresholds,
            by_threshold,
            |outcome| outcome.frames_a_mib / 32.0,
        ),
        (
            "threshold-random-read",
            "cold random 4 KiB read afterwards, qd 32, % of the raw device",
            threshold,
            &thresholds,
            by_threshold,
            |outcome| outcome.random,
        ),
        ("index-kept", "duplicates kept, % of all", memory, &budgets, by_budget, |outcome| {
            outcome.kept
        }),
    ];
    for (file, title, x_title, ticks, part, value) in charts {
        let line = |findings: &Findings| Line {
            name: findings.name,
            values: part(findings).iter().map(|outcome| value(outcome) * 100.0).collect(),
        };
        let lines = all.iter().map(line).collect();
        let chart = Chart::of_percent(title, x_title, ticks, lines);
        std::fs::write(folder.join(file).with_extension("svg"), chart.svg())?;
    }
    Ok(())
}
