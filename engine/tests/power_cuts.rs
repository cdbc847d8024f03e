//! A power cut at any write or flush loses nothing that a flush acknowledged, and invents nothing:
//! whole engine, simulated device, histories by seed, each cut at many or all of its events,
//! during recovery too.
//!
//! `SILTSTONE_SECONDS` says how long to look (half a minute by default); `SILTSTONE_SEED` and
//! `SILTSTONE_CUT` repeat a history and a cut, as often as time allows, for threads make each run
//! a little different.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use std::{
    env,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use siltstone_device::{
    Durability, Operation, SeededRandom,
    sim::{CompletionMode, CrashPolicy, SimDevice, Verdict},
};
use siltstone_engine::{OpenOptions, Pool};
use support::{
    content::{BLOCK, bytes_of},
    model::Model,
    pools::{BALLAST, KIB, MIB, base, options, set_completion, work},
    watchdog::Watchdog,
};

/// Pools from which histories begin.
struct Bases {
    small_segments: Arc<SimDevice>,
    large_segments: Arc<SimDevice>,
    nearly_full: Arc<SimDevice>,
}

impl Bases {
    fn new() -> Self {
        Self {
            small_segments: base(256 * KIB, 0),
            large_segments: base(2 * MIB, 0),
            nearly_full: base(256 * KIB, 46),
        }
    }

    fn choose(&self, random: &mut SeededRandom) -> &SimDevice {
        match random.below(4) {
            0 | 1 => &self.nearly_full,
            2 => &self.small_segments,
            _ => &self.large_segments,
        }
    }
}

/// A life of a pool: what clients did, and on which device.
struct Life {
    device: Arc<SimDevice>,
    model: Model,
    /// Events around which much is decided: discards, and writes that are durable at once.
    turning_points: Vec<usize>,
}

/// Opens the pool, lets clients work, and closes it or not.
fn live(device: Arc<SimDevice>, model: Model, random: &mut SeededRandom, operations: u32) -> Life {
    let turning_points = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&turning_points);
    device.set_hook(Box::new(move |event| {
        let is_discard = event.operation == Operation::Discard;
        if is_discard || event.durability == Durability::Immediate {
            noted.lock().unwrap().push(event.index);
        }
        Verdict::Proceed
    }));
    set_completion(&device, random);
    let pool = Pool::open_on(device.clone(), None, &options(random)).unwrap();
    let model = Mutex::new(model);
    work(&device, &pool, &model, random, operations).unwrap();
    model.lock().unwrap().check_visible(&pool).unwrap();
    if random.chance(1, 2) {
        pool.close().unwrap();
    } else {
        // What is not acknowledged by now is lost with the process.
        device.cut_power();
        drop(pool);
    }
    device.set_completion_mode(CompletionMode::Inline);
    device.clear_hook();
    let turning_points = std::mem::take(&mut *turning_points.lock().unwrap());
    Life { device, model: model.into_inner().unwrap(), turning_points }
}

/// Opens a device after a cut and compares it with the model.
fn reopen(
    device: &Arc<SimDevice>,
    options: &OpenOptions,
    model: &Model,
    event: usize,
) -> Result<Pool, String> {
    let pool = Pool::open_on(device.clone(), None, options)
        .map_err(|error| format!("the pool cannot be opened: {error}"))?;
    check(&pool, model, event)?;
    Ok(pool)
}

fn check(pool: &Pool, model: &Model, event: usize) -> Result<(), String> {
    model.check(pool, event)?;
    if let Ok(ballast) = pool.volume(BALLAST) {
        let mut block = [0; BLOCK];
        for at in 0..46 {
            ballast.read_at(at * MIB, &mut block).map_err(|e| format!("ballast: {e}"))?;
        }
    }
    Ok(())
}

fn policy(random: &mut SeededRandom) -> CrashPolicy {
    match random.below(8) {
        0 => CrashPolicy::LoseAll,
        1 => CrashPolicy::KeepAll,
        _ => CrashPolicy::Random,
    }
}

/// Cuts the power at `event`, recovers, goes on, cuts again somewhere, recovers, closes, looks.
fn cut(life: &Life, event: usize, random: &mut SeededRandom) -> Result<(), String> {
    let device = life.device.crash_with(event, policy(random), random);
    // What recovery is like must not depend on who looks.
    if random.chance(1, 4) {
        let read_only = OpenOptions { read_only: true, ..options(random) };
        reopen(&device, &read_only, &life.model, event).map_err(|e| format!("read only: {e}"))?;
    }
    set_completion(&device, random);
    let pool = reopen(&device, &options(random), &life.model, event)?;
    let opened = device.history_len();
    let after = Model::of(&pool, &[BALLAST])?;
    let model = Mutex::new(after);
    let operations = random.below(24) as u32;
    let worked = work(&device, &pool, &model, random, operations);
    worked.map_err(|error| format!("after recovery: {error}"))?;
    model.lock().unwrap().check_visible(&pool).map_err(|e| format!("after recovery: {e}"))?;
    device.cut_power();
    drop(pool);
    device.set_completion_mode(CompletionMode::Inline);

    let second_event = random.below(device.history_len() as u64 + 1) as usize;
    let second = device.crash_with(second_event, policy(random), random);
    let model = model.into_inner().unwrap();
    // Before the first recovery was over nobody had seen its outcome.
    let (model, event) =
        if second_event >= opened { (&model, second_event) } else { (&life.model, event) };
    let at = format!("after a second cut at {second_event} (open until {opened})");
    let pool = reopen(&second, &options(random), model, event).map_err(|e| format!("{at}: {e}"))?;
    let last = Model::of(&pool, &[BALLAST])?;
    pool.close().map_err(|error| format!("{at}, closing: {error}"))?;
    let read_only = OpenOptions { read_only: true, ..options(random) };
    let pool = reopen(&second, &read_only, &last, 0).map_err(|e| format!("{at}, closed: {e}"))?;
    drop(pool);
    Ok(())
}

/// Every event of a short history; of a longer one some, half of them near turning points.
fn choose_cuts(life: &Life, only: Option<u64>, random: &mut SeededRandom) -> Vec<usize> {
    const MOST: u64 = 64;
    let events = life.device.history_len();
    if let Some(only) = only {
        return vec![(only as usize).min(events)];
    }
    if events < MOST as usize {
        return (0..=events).collect();
    }
    let mut cuts = Vec::new();
    for _ in 0..MOST / 2 {
        cuts.push(random.below(events as u64 + 1) as usize);
        if !life.turning_points.is_empty() {
            let chosen = random.below(life.turning_points.len() as u64) as usize;
            let near = life.turning_points[chosen] + random.below(4) as usize;
            cuts.push(near.min(events));
        }
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn a_power_cut_at_any_event_loses_nothing_acknowledged_and_invents_nothing() {
    let seconds = number("SILTSTONE_SECONDS").unwrap_or(30);
    let only_seed = number("SILTSTONE_SEED");
    let only_cut = number("SILTSTONE_CUT");
    let watchdog = Watchdog::new("making base pools");
    let bases = Bases::new();
    let start = Instant::now();
    let (mut histories, mut cuts) = (0u64, 0u64);
    let first = only_seed.unwrap_or_else(|| number("SILTSTONE_FIRST_SEED").unwrap_or(1));
    while start.elapsed() < Duration::from_secs(seconds) || histories == 0 {
        let seed = only_seed.unwrap_or(first + histories);
        let mut random = SeededRandom::new(seed);
        let device = bases.choose(&mut random).snapshot();
        let model = {
            let options = OpenOptions { read_only: true, ..options(&mut random) };
            let pool = Pool::open_on(device.clone(), None, &options).unwrap();
            Model::of(&pool, &[BALLAST]).unwrap()
        };
        watchdog.feed(format!("the first life of seed {seed}"));
        let operations = 8 + random.below(60) as u32;
        let life = live(device, model, &mut random, operations);
        let events = life.device.history_len();
        for event_now in choose_cuts(&life, only_cut, &mut random) {
            if start.elapsed() > Duration::from_secs(seconds + 10) {
                break;
            }
            watchdog.feed(format!("seed {seed}, cut {event_now} of {events}"));
            let mut random = SeededRandom::new(seed ^ (event_now as u64) << 32);
            if let Err(reason) = cut(&life, event_now, &mut random) {
                panic!(
                    "seed {seed}, cut {event_now} of {events}: {reason}\nrepeat: \
                     SILTSTONE_SEED={seed} SILTSTONE_CUT={event_now} cargo test -p \
                     siltstone-engine --test power_cuts"
                );
            }
            cuts += 1;
        }
        histories += 1;
    }
    println!("{histories} histories, {cuts} cuts in {:.1?}", start.elapsed());
}

#[test]
fn the_contents_of_tests_can_be_told() {
    let tags = [0, 1, 2, 3, 0x8000_0001, u32::MAX, 7, 8];
    let mut bytes = bytes_of(&tags);
    assert_eq!(support::content::tags_of(&bytes).unwrap(), tags);
    bytes[700] ^= 1;
    assert!(support::content::tags_of(&bytes).is_err());
}
