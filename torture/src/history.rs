//! One seed: a pool's life, and what is left of it after power cuts at its events.

use std::sync::Arc;

use parking_lot::Mutex;
use siltstone_device::{
    Durability, Operation, SeededRandom,
    sim::{CompletionMode, CrashPolicy, Machine, SimDevice, Verdict},
};
use siltstone_engine::{OpenOptions, Pool};

use crate::{
    clients::{Violation, World},
    content::BLOCK,
    model::Model,
    pools::{self, BALLAST, Base, Bases, ballast, options, work},
    tally::{Tally, add},
};

/// Histories with so few events are cut at each of them.
const EVERY_EVENT: usize = 120;
/// Others are cut at so many random events, and at as many that follow a turning point.
const SAMPLED: usize = 24;
/// Most power cuts in a row.
const MOST_CUTS: u64 = 4;

/// A promise that was broken, and how to see it again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}\n(seed {seed}{}, {base})", at(*.cut))]
pub struct Failure {
    /// The history.
    pub seed: u64,
    /// Where it was cut, if it was.
    pub cut: Option<usize>,
    /// On which kind of pool.
    pub base: &'static str,
    /// What is wrong.
    pub reason: String,
}

fn at(cut: Option<usize>) -> String {
    cut.map_or_else(String::new, |cut| format!(", cut {cut}"))
}

/// What happened, and on which device.
struct Life {
    device: Arc<SimDevice>,
    model: Model,
    /// The event from which on the pool was open.
    opened: usize,
    /// Events around which much is decided: discards, and writes that are durable at once.
    turning_points: Vec<usize>,
}

/// Lives the history of a seed and cuts it at many events, or at `only_cut`.
///
/// # Errors
/// The first promise that was found broken.
pub fn run(
    seed: u64,
    only_cut: Option<usize>,
    bases: &Bases,
    tally: &Arc<Tally>,
) -> Result<(), Failure> {
    let mut random = SeededRandom::new(seed);
    let base = bases.choose(&mut random);
    let failure = |cut, reason| Failure { seed, cut, base: base.name, reason };
    let operations = 8 + random.below(60) as u32;
    let device = base.device.snapshot();
    let known = Known { model: &base.model, event: 0 };
    let ends_well = random.chance(1, 2);
    let life = session(device, base, known, &mut random, operations, ends_well, tally)
        .map_err(|violation| failure(None, violation.0))?;
    let cuts = match only_cut {
        Some(only) => vec![only.min(life.device.history_len())],
        None => choose_cuts(&life, &mut random),
    };
    for event in cuts {
        let mut random = SeededRandom::new(seed ^ (event as u64) << 32);
        cut(&life, base, event, &mut random, tally)
            .map_err(|violation| failure(Some(event), violation.0))?;
    }
    add(&tally.histories, 1);
    Ok(())
}

/// Every event of a short history; of a longer one some, half of them near turning points.
fn choose_cuts(life: &Life, random: &mut SeededRandom) -> Vec<usize> {
    let events = life.device.history_len();
    if events <= EVERY_EVENT {
        return (0..=events).collect();
    }
    let mut cuts = Vec::new();
    for _ in 0..SAMPLED {
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

/// What a pool is compared with: a model, and the event at which its device was cut.
#[derive(Clone, Copy)]
struct Known<'a> {
    model: &'a Model,
    event: usize,
}

/// Cuts the power at `event`, recovers, goes on, cuts again somewhere, and so on; at last closes
/// the pool and checks all of it.
fn cut(
    life: &Life,
    base: &Base,
    event: usize,
    random: &mut SeededRandom,
    tally: &Arc<Tally>,
) -> Result<(), Violation> {
    let mut device = life.device.crash_with(event, policy(random), random);
    let mut model = life.model.clone();
    let mut event = event;
    add(&tally.cuts, 1);
    let more_cuts = random.below(MOST_CUTS);
    for number in 0..=more_cuts {
        let known = Known { model: &model, event };
        // What recovery is like must not depend on who looks.
        if random.chance(1, 8) {
            look(device.snapshot(), base, known, random, tally, random_chance_of_check(base))
                .map_err(|violation| Violation(format!("read only: {violation}")))?;
        }
        let is_last = number == more_cuts;
        let operations = random.below(24) as u32;
        let next = session(device, base, known, random, operations, is_last, tally)
            .map_err(|violation| Violation(format!("after cut {}: {violation}", number + 1)))?;
        if is_last {
            let known = Known { model: &next.model, event: next.device.history_len() };
            return look(next.device.snapshot(), base, known, random, tally, true)
                .map_err(|violation| Violation(format!("closed: {violation}")));
        }
        let events = next.device.history_len() as u64;
        // Often while it recovers.
        let limit = if random.chance(1, 3) { next.opened as u64 } else { events };
        let next_event = random.below(limit + 1) as usize;
        device = next.device.crash_with(next_event, policy(random), random);
        add(&tally.cuts, 1);
        // Before a recovery is over nobody has seen its outcome.
        if next_event >= next.opened {
            model = next.model;
            event = next_event;
        }
    }
    unreachable!("the last round returns")
}

/// Opens a pool, compares it, lets clients work, and closes it or not.
fn session(
    device: Arc<SimDevice>,
    base: &Base,
    known: Known<'_>,
    random: &mut SeededRandom,
    operations: u32,
    ends_well: bool,
    tally: &Arc<Tally>,
) -> Result<Life, Violation> {
    let turning_points = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&turning_points);
    device.set_hook(Box::new(move |event| {
        let is_discard = event.operation == Operation::Discard;
        if is_discard || event.durability == Durability::Immediate {
            noted.lock().push(event.index);
        }
        Verdict::Proceed
    }));
    let options = options(random);
    let (model, opened) = on_machine(&device, random.next_u64(), async |machine| {
        let pool = Pool::open_in(machine.clone(), device.clone(), None, &options)
            .await
            .map_err(|error| Violation(format!("the pool cannot be opened: {error}")))?;
        compare(&pool, base, known, random, tally).await?;
        let opened = device.history_len();
        let model = Model::of(&pool, &[BALLAST]).await.map_err(Violation)?;
        let world = World {
            device: Arc::clone(&device),
            pool: Arc::new(pool),
            model: Arc::new(Mutex::new(model)),
            runtime: machine,
            tally: Arc::clone(tally),
            may_fail: false,
        };
        work(&world, random, operations).await?;
        let World { pool, model, .. } = world;
        let mut model = model.lock().clone();
        model.check_visible(&pool).await.map_err(Violation)?;
        let pool = Arc::into_inner(pool).expect("the clients have gone");
        if ends_well {
            let begun = model.begin_flush();
            let closed = pool.close_async().await;
            closed.map_err(|error| Violation(format!("the pool cannot be closed: {error}")))?;
            model.end_flush(begun, device.history_len());
        } else {
            pool.abandon();
        }
        Ok((model, opened))
    })?;
    device.clear_hook();
    let turning_points = std::mem::take(&mut *turning_points.lock());
    Ok(Life { device, model, opened, turning_points })
}

/// Opens a pool for reading, compares it, and perhaps checks all of it.
fn look(
    device: Arc<SimDevice>,
    base: &Base,
    known: Known<'_>,
    random: &mut SeededRandom,
    tally: &Arc<Tally>,
    check: bool,
) -> Result<(), Violation> {
    let options = OpenOptions { read_only: true, ..options(random) };
    on_machine(&device, random.next_u64(), async |machine| {
        let pool = Pool::open_in(machine, device.clone(), None, &options)
            .await
            .map_err(|error| Violation(format!("the pool cannot be opened: {error}")))?;
        compare(&pool, base, known, random, tally).await?;
        if check {
            let report = pool.check_async(&mut |_| {}).await;
            let report = report.map_err(|error| Violation(format!("check fails: {error}")))?;
            if !report.is_sound() {
                return Err(Violation(format!("check finds {:?}", report.problems)));
            }
            add(&tally.checks, 1);
        }
        pool.abandon();
        Ok(())
    })
}

/// Compares a pool that was just opened with what may be in it.
async fn compare(
    pool: &Pool,
    base: &Base,
    known: Known<'_>,
    random: &mut SeededRandom,
    tally: &Tally,
) -> Result<(), Violation> {
    let mut blocks = known.model.check(pool, known.event).await.map_err(Violation)?;
    if base.ballast_blocks > 0 {
        let volume = pool.volume(BALLAST).map_err(|error| Violation(error.to_string()))?;
        let mut found = [0; BLOCK];
        for _ in 0..8 {
            let block = random.below(base.ballast_blocks);
            let read = volume.read(block * BLOCK as u64, &mut found).await;
            read.map_err(|error| Violation(format!("reading ballast: {error}")))?;
            if found != *ballast(block) {
                return Err(Violation(format!("block {block} of the ballast is another")));
            }
            blocks += 1;
        }
    }
    add(&tally.blocks, blocks);
    add(&tally.recoveries, 1);
    Ok(())
}

/// Runs something on a machine of its own, which ends with it, as does the device's power.
fn on_machine<T>(
    device: &Arc<SimDevice>,
    seed: u64,
    main: impl AsyncFnOnce(Arc<Machine>) -> T,
) -> T {
    device.set_completion_mode(CompletionMode::Queued);
    let machine = Machine::new(seed);
    machine.attach(device);
    let outcome = machine.run(main(Arc::clone(&machine)));
    // What is not acknowledged by now is lost with the process.
    device.cut_power();
    machine.kill();
    device.set_completion_mode(CompletionMode::Inline);
    outcome
}

fn policy(random: &mut SeededRandom) -> CrashPolicy {
    match random.below(8) {
        0 => CrashPolicy::LoseAll,
        1 => CrashPolicy::KeepAll,
        _ => CrashPolicy::Random,
    }
}

/// A whole pool is read in a moment only if there is not much in it.
fn random_chance_of_check(base: &Base) -> bool {
    base.ballast_blocks == 0 || base.ballast_blocks < pools::DISK_BLOCKS
}
