//! What telling blocks apart saves the collector: a simulation of placing and collecting, and of
//! nothing else.
//!
//! `cargo bench -p siltstone-benches --bench placement -- [--live PERCENT] [--skew S] [--clients N]`
//!
//! A pool of segments is filled, then single blocks are overwritten with Zipf skew until four times
//! its size has been written. Victims are chosen as the engine does (most yield for the work, weighed
//! by the root of the age), in rounds of a thirty-second of the pool, as soon as little is free. Printed
//! is how much is written for what clients write, in the second half, for each way to place blocks.
//! docs/decisions/0020 has what it says.
#![forbid(unsafe_code)]

use clap::{Parser, ValueEnum};
use siltstone_device::SeededRandom;

/// As of a pool of 1 GiB whose blocks take half their size.
const SEGMENTS: usize = 510;
const SEGMENT_BLOCKS: usize = 1075;
/// Never used: what is kept back, and the map.
const KEPT_SEGMENTS: usize = 25;
/// Free beyond these when a round begins.
const SPARE_SEGMENTS: usize = 10;
/// Room that a round leaves.
const LEFT_SEGMENTS: usize = 8;
const ROUND_SHARE: usize = 32;
/// Blocks of the pool for each slot of the table of recent writes.
const BLOCKS_A_SLOT: usize = 128;
const NOWHERE: u32 = u32::MAX;

#[derive(Parser)]
struct Arguments {
    /// How much of the pool lives.
    #[arg(long, default_value_t = 77)]
    live: usize,
    /// The exponent of Zipf's law.
    #[arg(long, default_value_t = 0.99)]
    skew: f64,
    /// Clients with blocks of their own, each with that skew.
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What decides with which others a block is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Only the collector tells blocks apart, by the age of their segments.
    Age,
    /// The same, and writes over recent writes are apart from others: what the engine does.
    Temperature,
    /// How popular each block is, which nobody knows.
    Oracle,
}

struct Segment {
    blocks: Vec<u32>,
    live: usize,
    generation: u64,
    is_open: bool,
}

struct Pool {
    way: Way,
    segments: Vec<Segment>,
    free: Vec<usize>,
    /// By group of blocks.
    open: [Option<usize>; 8],
    /// Of each block, its segment and its position there.
    places: Vec<(u32, u32)>,
    /// Of each block, how many are more popular, as a share of all.
    ranks: Vec<f64>,
    recent: Vec<u32>,
    generation: u64,
    moved: u64,
    rounds: u64,
}

impl Pool {
    fn new(way: Way, ranks: Vec<f64>) -> Self {
        let segment = |_| Segment { blocks: Vec::new(), live: 0, generation: 0, is_open: false };
        Self {
            way,
            segments: (0..SEGMENTS).map(segment).collect(),
            free: (0..SEGMENTS).collect(),
            open: [None; 8],
            places: vec![(NOWHERE, 0); ranks.len()],
            recent: vec![NOWHERE; SEGMENTS * SEGMENT_BLOCKS / BLOCKS_A_SLOT],
            ranks,
            generation: 0,
            moved: 0,
            rounds: 0,
        }
    }

    fn put(&mut self, block: u32, group: usize) {
        let is_full = |&at: &usize| self.segments[at].blocks.len() == SEGMENT_BLOCKS;
        let at = match self.open[group].filter(|at| !is_full(at)) {
            Some(at) => at,
            None => {
                if let Some(full) = self.open[group] {
                    self.segments[full].is_open = false;
                }
                let at = self.free.pop().expect("rounds leave some free");
                self.generation += 1;
                let generation = self.generation;
                self.segments[at] =
                    Segment { blocks: Vec::new(), live: 0, generation, is_open: true };
                self.open[group] = Some(at);
                at
            }
        };
        let (before, _) = self.places[block as usize];
        if before != NOWHERE {
            self.segments[before as usize].live -= 1;
        }
        let segment = &mut self.segments[at];
        self.places[block as usize] = (at as u32, segment.blocks.len() as u32);
        segment.blocks.push(block);
        segment.live += 1;
    }

    fn popularity(&self, block: u32) -> usize {
        let rank = self.ranks[block as usize];
        [1.0 / 64.0, 1.0 / 16.0, 0.25].iter().filter(|&&bound| rank >= bound).count()
    }

    fn write(&mut self, block: u32) {
        let slot = (u64::from(block) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let slot = slot as usize % self.recent.len();
        let is_recent = std::mem::replace(&mut self.recent[slot], block) == block;
        let group = match self.way {
            Way::Age => 0,
            Way::Temperature => usize::from(is_recent),
            Way::Oracle => self.popularity(block),
        };
        self.put(block, group);
        if self.free.len() < KEPT_SEGMENTS + SPARE_SEGMENTS {
            self.collect();
        }
    }

    fn collect(&mut self) {
        let worth = |segment: &Segment| {
            let (live, age) = (segment.live as f64, self.generation - segment.generation + 1);
            let size = SEGMENT_BLOCKS as f64;
            (size - live) * (age as f64).sqrt() / (size + live)
        };
        let is_victim = |segment: &Segment| {
            !segment.is_open
                && !segment.blocks.is_empty()
                && segment.live < SEGMENT_BLOCKS * 97 / 100
        };
        let numbered = self.segments.iter().enumerate();
        let mut victims: Vec<(f64, usize)> = numbered
            .filter(|(_, segment)| is_victim(segment))
            .map(|(at, segment)| (worth(segment), at))
            .collect();
        victims.sort_by(|one, other| other.0.total_cmp(&one.0));
        let room = (self.free.len() - LEFT_SEGMENTS) * SEGMENT_BLOCKS;
        let mut left = room.min(SEGMENTS * SEGMENT_BLOCKS / ROUND_SHARE);
        let fits = |&(_, at): &(f64, usize)| {
            let fits = self.segments[at].live <= left;
            left = left.saturating_sub(self.segments[at].live);
            fits
        };
        let victims: Vec<usize> = victims.into_iter().take_while(fits).map(|(_, at)| at).collect();
        let mut moving = Vec::new();
        for &at in &victims {
            let age = (self.generation - self.segments[at].generation) as usize;
            for (position, &block) in (0..).zip(&self.segments[at].blocks) {
                if self.places[block as usize] == (at as u32, position) {
                    let by_age = [SEGMENTS / 2, SEGMENTS * 2].iter().filter(|&&old| age >= old);
                    let group = match self.way {
                        Way::Age | Way::Temperature => 2 + by_age.count(),
                        Way::Oracle => 4 + self.popularity(block),
                    };
                    moving.push((group, block));
                }
            }
        }
        moving.sort_unstable();
        self.moved += moving.len() as u64;
        self.rounds += 1;
        for (group, block) in moving {
            self.put(block, group);
        }
        for at in victims {
            self.segments[at].blocks.clear();
            self.free.insert(0, at);
        }
    }
}

fn main() {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("This computes for a minute: run it by cargo bench, or with --bench.");
        return;
    }
    let total = SEGMENTS * SEGMENT_BLOCKS;
    let clients = arguments.clients.max(1);
    let blocks = total * arguments.live.min(90) / 100 / clients * clients;
    let each = blocks / clients;
    let mut random = SeededRandom::new(1);
    let mut shuffled: Vec<u32> = (0..blocks as u32).collect();
    for at in (1..blocks).rev() {
        shuffled.swap(at, random.below(at as u64 + 1) as usize);
    }
    // The n-th of each client are equally popular.
    let mut ranks = vec![0.0; blocks];
    for (at, &block) in shuffled.iter().enumerate() {
        ranks[block as usize] = (at / clients) as f64 / each as f64;
    }
    let mut sum = 0.0;
    let popularity = (1..=each).map(|rank| {
        sum += (rank as f64).powf(-arguments.skew);
        sum
    });
    let cumulative: Vec<f64> = popularity.collect();
    println!("{} % alive, {clients} clients, Zipf {}", arguments.live, arguments.skew);
    println!("placed by     written/client  blocks of clients a round, in segments");
    for way in Way::value_variants() {
        let mut pool = Pool::new(*way, ranks.clone());
        let mut random = SeededRandom::new(2);
        for block in 0..blocks as u32 {
            pool.write(block);
        }
        let writes = 4 * total as u64;
        let mut before = (0, 0);
        for write in 0..writes {
            if write == writes / 2 {
                before = (pool.moved, pool.rounds);
            }
            let at = random.below(1 << 53) as f64 / (1u64 << 53) as f64 * sum;
            let rank = cumulative.partition_point(|&up_to| up_to < at).min(each - 1);
            let client = random.below(clients as u64) as usize;
            pool.write(shuffled[rank * clients + client]);
        }
        let (moved, rounds) = (pool.moved - before.0, pool.rounds - before.1);
        let by_clients = (writes / 2) as f64;
        let a_round = by_clients / rounds.max(1) as f64 / SEGMENT_BLOCKS as f64;
        let name = format!("{way:?}").to_lowercase();
        println!("{name:12}  {:14.2}  {a_round:10.1}", 1.0 + moved as f64 / by_clients);
    }
}
