//! Rows of a table, and the same as JSON.

use std::{io, path::Path};

use serde::Serialize;

use crate::measure::Turn;

/// A way on a corpus: medians of the turns. Ratios are to the whole frame in the same turn.
#[derive(Serialize)]
struct Row {
    corpus: &'static str,
    way: String,
    /// Of the plain data, headers and padding included.
    stored: f64,
    stored_ratio: f64,
    encode_ns: f64,
    encode_ratio: f64,
    encode_ratio_lowest: f64,
    encode_ratio_highest: f64,
    random_ns: f64,
    random_ratio: f64,
    random_ratio_lowest: f64,
    random_ratio_highest: f64,
    sequential_ns: f64,
    sequential_ratio: f64,
    /// Of a context that compresses, with its dictionary.
    encoder_bytes: usize,
    /// Of the dictionary as prepared for decoding.
    decoder_bytes: usize,
    training_seconds: f64,
}

/// What a dictionary takes.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) encoder_bytes: usize,
    pub(crate) decoder_bytes: usize,
    pub(crate) training_seconds: f64,
}

/// Prints rows as they come and keeps them.
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new() }
    }

    pub(crate) fn begin(&self, corpus: &str, test_bytes: usize, training_bytes: usize) {
        println!(
            "\n{corpus}: {} MiB of distinct compressible blocks framed, {} MiB to train on; ns per \
             block, ratios to the first row of the same turn\n{:40} {:>6} {:>6} {:>7} {:>11} {:>7} {:>11} {:>7} {:>6} {:>8} {:>6}",
            test_bytes >> 20,
            training_bytes >> 20,
            "",
            "stored",
            "ratio",
            "encode",
            "ratio",
            "random",
            "ratio",
            "sequen.",
            "ratio",
            "enc/dec",
            "train",
        );
    }

    /// Adds a row of turns, each with the baseline's turn beside it.
    pub(crate) fn add(
        &mut self,
        corpus: &'static str,
        way: &str,
        test_bytes: usize,
        turns: &[(Turn, Turn)],
        cost: Cost,
    ) {
        let value = |of: fn(&Turn) -> f64| sorted(turns.iter().map(|(turn, _)| of(turn)));
        let ratio =
            |of: fn(&Turn) -> f64| sorted(turns.iter().map(|(turn, base)| of(turn) / of(base)));
        let stored = |turn: &Turn| turn.stored_bytes as f64;
        let (encode, random) = (ratio(|turn| turn.encode_ns), ratio(|turn| turn.random_ns));
        let row = Row {
            corpus,
            way: way.into(),
            stored: median(&value(stored)) / test_bytes as f64,
            stored_ratio: median(&ratio(stored)),
            encode_ns: median(&value(|turn| turn.encode_ns)),
            encode_ratio: median(&encode),
            encode_ratio_lowest: encode[0],
            encode_ratio_highest: encode[encode.len() - 1],
            random_ns: median(&value(|turn| turn.random_ns)),
            random_ratio: median(&random),
            random_ratio_lowest: random[0],
            random_ratio_highest: random[random.len() - 1],
            sequential_ns: median(&value(|turn| turn.sequential_ns)),
            sequential_ratio: median(&ratio(|turn| turn.sequential_ns)),
            encoder_bytes: cost.encoder_bytes,
            decoder_bytes: cost.decoder_bytes,
            training_seconds: cost.training_seconds,
        };
        println!(
            "{:40} {:>6.4} {:>6.3} {:>7.0} {:>5.2}{:>6} {:>7.0} {:>5.2}{:>6} {:>7.0} {:>6.2} {:>4}/{:<3} {:>6.1}",
            row.way,
            row.stored,
            row.stored_ratio,
            row.encode_ns,
            row.encode_ratio,
            spread(row.encode_ratio_lowest, row.encode_ratio_highest),
            row.random_ns,
            row.random_ratio,
            spread(row.random_ratio_lowest, row.random_ratio_highest),
            row.sequential_ns,
            row.sequential_ratio,
            row.encoder_bytes >> 10,
            row.decoder_bytes >> 10,
            row.training_seconds,
        );
        self.rows.push(row);
    }

    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(&self.rows).map_err(io::Error::from)?;
        std::fs::write(path, text + "\n")
    }
}

/// Half of the distance between the extremes.
fn spread(lowest: f64, highest: f64) -> String {
    format!("±{:.2}", (highest - lowest) / 2.0)
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Of values in order.
fn median(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
