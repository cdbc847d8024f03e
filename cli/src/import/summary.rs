//! What imports say that they have done.

use siltstone_engine::{Volume, stats::CounterValues};

use super::{BLOCK_BYTES, copy::Copied};
use crate::{
    output,
    size::{human, per_second},
};

/// What an import did, and what the pool did meanwhile.
pub(super) struct Imported {
    pub(super) image: String,
    pub(super) volume: String,
    pub(super) image_bytes: u64,
    /// What an interrupted import had left to do.
    pub(super) from_bytes: u64,
    pub(super) copied: Copied,
    pub(super) seconds: f64,
    pub(super) before: CounterValues,
    pub(super) after: CounterValues,
}

impl Imported {
    /// Bytes that the pool did not have, and what they take in it; nothing if that is not known, as
    /// counters are the pool's, and do not know whose data was new.
    fn stored(&self) -> Option<(u64, u64)> {
        let Self { before, after, copied, .. } = self;
        if after.written_bytes - before.written_bytes != copied.read_bytes {
            return None;
        }
        let stored_blocks = after.stored_blocks - before.stored_blocks;
        // The end of an image may be a part of a block.
        let new_bytes = (stored_blocks * BLOCK_BYTES).min(copied.data_bytes);
        // What is written about it, and about duplicates, is metadata.
        Some((new_bytes, after.frame_bytes - before.frame_bytes))
    }

    /// What was imported by this command.
    fn own_bytes(&self) -> u64 {
        self.image_bytes - self.from_bytes
    }

    pub(super) fn sentence(&self, volume: &Volume) -> String {
        let Self { image, image_bytes, from_bytes, copied, seconds, .. } = self;
        let behind = match volume.size_bytes().saturating_sub(*image_bytes) {
            0 => String::new(),
            _ => format!(", and zeros from there to {}", human(volume.size_bytes())),
        };
        let resumed = match from_bytes {
            0 => String::new(),
            _ => format!(" of it from {} on", human(*from_bytes)),
        };
        let Copied { read_bytes, data_bytes } = *copied;
        let text = format!(
            "imported {image} into volume '{}': {}{resumed}{behind} in {seconds:.1} s ({} of data); {} of it \
             zero, {} data",
            self.volume,
            human(*image_bytes),
            per_second(read_bytes, *seconds),
            human(self.own_bytes().saturating_sub(data_bytes)),
            human(data_bytes)
        );
        let Some((new_bytes, stored_bytes)) = self.stored() else {
            return text + "; how much was new is not known, as others wrote to the pool, too\n";
        };
        text + &match new_bytes {
            0 if data_bytes == 0 => "\n".into(),
            0 => ", all of it duplicates of what the pool holds: nothing was stored\n".into(),
            _ => format!(
                ", of which {} are duplicates and {} new, stored in {} (dedup {:.2}:1, \
                 compression {:.2}:1)\n",
                human(data_bytes.saturating_sub(new_bytes)),
                human(new_bytes),
                human(stored_bytes),
                data_bytes as f64 / new_bytes as f64,
                new_bytes as f64 / stored_bytes.max(1) as f64
            ),
        }
    }
}

/// What many imports have done, and all of them together.
pub(super) fn table(all: &[&Imported]) -> String {
    let head = ["FILE", "VOLUME", "SIZE", "ZERO", "DATA", "DUPLICATE", "NEW", "STORED"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let mut sums = [Some(0_u64); 6];
    for one in all {
        let (data_bytes, stored) = (one.copied.data_bytes, one.stored());
        let figures = [
            Some(one.own_bytes()),
            Some(one.own_bytes().saturating_sub(data_bytes)),
            Some(data_bytes),
            stored.map(|(new_bytes, _)| data_bytes - new_bytes),
            stored.map(|(new_bytes, _)| new_bytes),
            stored.map(|(_, stored_bytes)| stored_bytes),
        ];
        for (sum, figure) in sums.iter_mut().zip(figures) {
            *sum = sum.zip(figure).map(|(sum, figure)| sum + figure);
        }
        rows.push(row(&one.image, &one.volume, figures));
    }
    rows.push(row("total", "", sums));
    output::table(&rows)
}

fn row(file: &str, volume: &str, figures: [Option<u64>; 6]) -> Vec<String> {
    let figure = |bytes: Option<u64>| bytes.map_or("?".into(), human);
    [file.into(), volume.into()].into_iter().chain(figures.map(figure)).collect()
}
