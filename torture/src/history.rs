//! One seed: a pool's life, and what is left of it after power cuts at its events.

mod cuts;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use siltstone_device::{
    Runtime, SeededRandom,
    sim::{CrashPolicy, SimDevice, Verdict},
};
use siltstone_engine::{OpenOptions, Pool};

use self::cuts::Landmarks;
use crate::{
    clients::{Violation, World},
    content::BLOCK,
    disks::Disk,
    host::Host,
    model::Model,
    pools::{self, BALLAST, Base, Bases, KEPT, ballast, options, work},
    report,
    tally::{Tally, add},
};

/// Lives on a lying disk in one history.
const LIES: u32 = 8;
/// Most power cuts in a row.
const MOST_CUTS: u64 = 4;
/// Blocks of ballast read at a time.
const BALLAST_SAMPLE: u64 = 8;
/// How long a pool has nothing to do until it is at rest.
const REST: Duration = Duration::from_secs(1);

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

/// A cut was asked for that a history does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSuchCut {
    /// It ends before.
    #[error(
        "the history of seed {seed} has {events} events: it is cut at 0 to {events}, not {cut}"
    )]
    Beyond {
        /// The history.
        seed: u64,
        /// What was asked for.
        cut: usize,
        /// How long it is.
        events: usize,
    },
    /// No history on a lying disk is cut.
    #[error("the history of seed {seed} is never cut: it is about a disk that lies")]
    NeverCut {
        /// The history.
        seed: u64,
    },
}

/// Why a history was not lived to its end.
#[derive(Clone, Debug)]
pub enum Unfinished {
    /// A promise was broken.
    Broken(Failure),
    /// The cut that was asked for does not exist.
    NoSuchCut(NoSuchCut),
    /// It was to stop.
    Stopped,
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
    landmarks: Landmarks,
}

/// Lives the history of a seed and cuts it at many events, or at `only_cut`; not to its end if
/// it is to `stop`.
///
/// # Errors
/// The first promise that was found broken, or why it was not lived to its end.
pub fn run(
    seed: u64,
    only_cut: Option<usize>,
    host: Host,
    bases: &Bases,
    tally: &Arc<Tally>,
    stop: &AtomicBool,
) -> Result<(), Unfinished> {
    let mut random = SeededRandom::new(seed);
    let stage = Stage { base: bases.choose(&mut random), host, tally };
    let failure = |cut, violation: Violation| {
        let reason = violation.0;
        Unfinished::Broken(Failure { seed, cut, base: stage.base.name, reason })
    };
    let go_on = || match stop.load(Ordering::Relaxed) {
        true => Err(Unfinished::Stopped),
        false => Ok(()),
    };
    let disk = choose_disk(host, &mut random);
    if disk == Disk::Lying && only_cut.is_some() {
        return Err(Unfinished::NoSuchCut(NoSuchCut::NeverCut { seed }));
    }
    let mut live = || begin(stage, disk, &mut random).map_err(|violation| failure(None, violation));
    let mut life = live()?;
    if disk == Disk::Lying {
        // Several, since nothing is cut and each is short.
        for _ in 0..LIES {
            go_on()?;
            after_a_lie(&life, stage).map_err(|violation| failure(None, violation))?;
            life = live()?;
        }
        add(&tally.histories, 1);
        return Ok(());
    }
    let events = life.device.history_len();
    let cuts = match only_cut {
        Some(cut) if cut > events => {
            return Err(Unfinished::NoSuchCut(NoSuchCut::Beyond { seed, cut, events }));
        }
        Some(only) => vec![only],
        None => life.landmarks.choose_cuts(events, &mut random),
    };
    for event in cuts {
        go_on()?;
        let mut random = SeededRandom::new(seed ^ (event as u64) << 32);
        cut(&life, stage, event, &mut random)
            .map_err(|violation| failure(Some(event), violation))?;
    }
    add(&tally.histories, 1);
    Ok(())
}

/// The device after the first life of a seed on a simulated machine, with its history.
///
/// # Errors
/// A promise that was found broken.
pub fn first_life(
    seed: u64,
    bases: &Bases,
    tally: &Arc<Tally>,
) -> Result<Arc<SimDevice>, Violation> {
    let mut random = SeededRandom::new(seed);
    let stage = Stage { base: bases.choose(&mut random), host: Host::Machine, tally };
    let disk = choose_disk(Host::Machine, &mut random);
    begin(stage, disk, &mut random).map(|life| life.device)
}

fn choose_disk(host: Host, random: &mut SeededRandom) -> Disk {
    match Disk::choose(random) {
        // Whether a lie is found is looked at when everything is at rest, which takes real time.
        Disk::Lying if host == Host::Threads => Disk::Failing,
        disk => disk,
    }
}

/// The first life of a history.
fn begin(stage: Stage<'_>, disk: Disk, random: &mut SeededRandom) -> Result<Life, Violation> {
    let base = stage.base;
    let operations = 8 + random.below(60) as u32;
    let ends_well = random.chance(1, 2);
    let known = Known { model: &base.model, event: 0 };
    let course = Course { disk, operations, ends_well };
    session(base.device.snapshot(), stage, known, random, course)
}

/// What all that happens in a history has in common.
#[derive(Clone, Copy)]
struct Stage<'a> {
    base: &'a Base,
    host: Host,
    tally: &'a Arc<Tally>,
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
    stage: Stage<'_>,
    event: usize,
    random: &mut SeededRandom,
) -> Result<(), Violation> {
    let Stage { base, tally, .. } = stage;
    let mut device = life.device.crash_with(event, policy(random), random);
    let mut model = life.model.clone();
    let mut event = event;
    add(&tally.cuts, 1);
    let more_cuts = random.below(MOST_CUTS);
    for number in 0..=more_cuts {
        let known = Known { model: &model, event };
        // What recovery is like must not depend on who looks.
        if random.chance(1, 8) {
            look(device.snapshot(), stage, known, random, is_small(base))
                .map_err(|violation| Violation(format!("read only: {violation}")))?;
        }
        let is_last = number == more_cuts;
        let operations = random.below(24) as u32;
        let course = Course { disk: Disk::Sound, operations, ends_well: is_last };
        let next = session(device, stage, known, random, course)
            .map_err(|violation| Violation(format!("after cut {}: {violation}", number + 1)))?;
        if is_last {
            let known = Known { model: &next.model, event: next.device.history_len() };
            return look(next.device.snapshot(), stage, known, random, true)
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

/// How a session goes.
#[derive(Clone, Copy)]
struct Course {
    disk: Disk,
    operations: u32,
    /// Whether the pool is closed in the end.
    ends_well: bool,
}

/// Opens a pool, compares it, lets clients work, and closes it or not.
fn session(
    device: Arc<SimDevice>,
    stage: Stage<'_>,
    known: Known<'_>,
    random: &mut SeededRandom,
    course: Course,
) -> Result<Life, Violation> {
    let Stage { base, tally, .. } = stage;
    let Course { disk, operations, ends_well } = course;
    let landmarks = Arc::new(Mutex::new(Landmarks::default()));
    let noted = Arc::clone(&landmarks);
    device.set_hook(Box::new(move |event| {
        noted.lock().note(event);
        Verdict::Proceed
    }));
    let options = options(random);
    let (model, opened) = stage.host.run(&device, random.next_u64(), async |runtime| {
        if disk == Disk::Failing && random.chance(1, 3) {
            device.inject(disk.fault(&device, random));
        }
        let opening = Pool::open_in(runtime.clone(), device.clone(), None, &options).await;
        let pool = match opening {
            Ok(pool) => pool,
            // Nobody has seen anything of it.
            Err(_) if disk == Disk::Failing => return Ok((known.model.clone(), usize::MAX)),
            Err(error) => return Err(Violation(format!("the pool cannot be opened: {error}"))),
        };
        device.clear_faults();
        compare(&pool, base, known, random, tally).await?;
        let opened = device.history_len();
        let model = Model::of(&pool, &[BALLAST]).await.map_err(Violation)?;
        let world = World {
            device: Arc::clone(&device),
            pool: Arc::new(pool),
            model: Arc::new(Mutex::new(model)),
            runtime: runtime.clone(),
            tally: Arc::clone(tally),
            may_fail: disk != Disk::Sound,
        };
        let random_of_disk = SeededRandom::new(random.next_u64());
        let task = disk.misbehave(device.clone(), runtime.clone(), random_of_disk);
        let trouble = runtime.spawn("disk", Box::pin(task));
        work(&world, random, operations).await?;
        trouble.expect("there is a thread for it").await.expect("it does not panic");
        let World { pool, model, .. } = world;
        let mut model = model.lock().clone();
        let pool = Arc::into_inner(pool).expect("the clients have gone");
        if disk == Disk::Lying {
            settle(&*runtime, &pool, &mut model, &device).await;
        } else {
            // Good data can be read, whatever has failed.
            device.clear_faults();
            model.check_visible(&pool).await.map_err(Violation)?;
        }
        tally.note_pool(&pool);
        if ends_well {
            let begun = model.begin_flush();
            match pool.close_async().await {
                Ok(()) => model.end_flush(begun, device.history_len()),
                Err(_) if disk != Disk::Sound => {}
                Err(error) => {
                    return Err(Violation(format!("the pool cannot be closed: {error}")));
                }
            }
        } else {
            pool.abandon();
        }
        Ok((model, opened))
    })?;
    device.clear_hook();
    *tally.faults.lock() += device.struck();
    let landmarks = std::mem::take(&mut *landmarks.lock());
    Ok(Life { device, model, opened, landmarks })
}

/// Lets a pool come to rest after its last flush.
async fn settle(runtime: &dyn Runtime, pool: &Pool, model: &mut Model, device: &SimDevice) {
    let begun = model.begin_flush();
    if pool.flush_async().await.is_ok() {
        model.end_flush(begun, device.history_len());
    }
    runtime.sleep_until(runtime.now() + REST).await;
}

/// Opens a pool whose disk has falsified something: it says so, or every block is right or says so.
fn after_a_lie(life: &Life, stage: Stage<'_>) -> Result<(), Violation> {
    let Stage { base, tally, .. } = stage;
    let event = life.device.history_len();
    let random = &mut SeededRandom::new(event as u64);
    let device = life.device.crash_with(event, CrashPolicy::KeepAll, random);
    let options = OpenOptions { read_only: true, ..options(random) };
    stage.host.run(&device, random.next_u64(), async |runtime| {
        let opening = Pool::open_in(runtime, device.clone(), None, &options).await;
        let Ok(pool) = opening else {
            add(&tally.reported, 1);
            return Ok(());
        };
        let mut damaged = 0;
        let outcome = life.model.check(&pool, event, Some(&mut damaged)).await;
        let blocks = outcome.map_err(|reason| Violation(format!("after a lie: {reason}")))?;
        if base.ballast_blocks > 0 {
            damaged += check_ballast(&pool, base, random).await?;
        }
        add(&tally.blocks, blocks);
        add(&tally.reported, u64::from(damaged > 0));
        pool.abandon();
        Ok(())
    })
}

/// Reads some blocks of the ballast, and of its snapshot; returns how many could not be read.
async fn check_ballast(
    pool: &Pool,
    base: &Base,
    random: &mut SeededRandom,
) -> Result<u64, Violation> {
    let volume = pool.volume(BALLAST).map_err(|error| Violation(error.to_string()))?;
    let kept = (base.kept_blocks > 0).then(|| pool.volume(KEPT));
    let kept = kept.transpose().map_err(|error| Violation(error.to_string()))?;
    let mut found = [0; BLOCK];
    let mut damaged = 0;
    for number in 0..BALLAST_SAMPLE {
        let (volume, blocks) = match (&kept, number % 2) {
            (Some(kept), 0) => (kept, base.kept_blocks),
            _ => (&volume, base.ballast_blocks),
        };
        let block = random.below(blocks);
        match volume.read(block * BLOCK as u64, &mut found).await {
            Ok(()) if found == *ballast(block) => {}
            Ok(()) => return Err(Violation(format!("block {block} of the ballast is another"))),
            Err(_) => damaged += 1,
        }
    }
    Ok(damaged)
}

/// Opens a pool for reading, compares it, and perhaps checks all of it.
fn look(
    device: Arc<SimDevice>,
    stage: Stage<'_>,
    known: Known<'_>,
    random: &mut SeededRandom,
    check: bool,
) -> Result<(), Violation> {
    let Stage { base, tally, .. } = stage;
    let options = OpenOptions { read_only: true, ..options(random) };
    stage.host.run(&device, random.next_u64(), async |runtime| {
        let pool = Pool::open_in(runtime, device.clone(), None, &options)
            .await
            .map_err(|error| Violation(format!("the pool cannot be opened: {error}")))?;
        compare(&pool, base, known, random, tally).await?;
        if check {
            let checked = pool.check_async(&mut |_| {}).await;
            let checked = checked.map_err(|error| Violation(format!("check fails: {error}")))?;
            if !checked.is_sound() {
                let found = report::findings(&checked.findings);
                return Err(Violation(format!("the check of the pool finds damage\n{found}")));
            }
            add(&tally.checks, 1);
        }
        if check && pool.quick_stat().index_image_bytes > 0 {
            add(&tally.closed_images, 1);
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
    let (size_bytes, least) = (pool.size_bytes(), known.model.least_pool_size(known.event));
    if size_bytes < least {
        let reason = format!("the pool has {size_bytes} bytes; it had grown to {least}");
        return Err(Violation(reason));
    }
    let mut blocks = known.model.check(pool, known.event, None).await.map_err(Violation)?;
    if base.ballast_blocks > 0 {
        let damaged = check_ballast(pool, base, random).await?;
        if damaged > 0 {
            return Err(Violation(format!("{damaged} blocks of the ballast cannot be read")));
        }
        blocks += BALLAST_SAMPLE;
    }
    add(&tally.blocks, blocks);
    add(&tally.recoveries, 1);
    Ok(())
}

fn policy(random: &mut SeededRandom) -> CrashPolicy {
    match random.below(8) {
        0 => CrashPolicy::LoseAll,
        1 => CrashPolicy::KeepAll,
        _ => CrashPolicy::Random,
    }
}

/// A whole pool is read in a moment only if there is not much in it.
fn is_small(base: &Base) -> bool {
    base.ballast_blocks == 0 || base.ballast_blocks < pools::DISK_BLOCKS
}
