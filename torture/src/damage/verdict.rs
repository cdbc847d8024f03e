//! What a damaged pool turns out to be when it is opened and read.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{self, AssertUnwindSafe},
    sync::Arc,
};

use siltstone_device::sim::{Machine, SimDevice};
use siltstone_engine::{EngineError, Findings, Pool};

use super::{
    life::{Contents, options},
    structures::{Cost, FramePlace},
};
use crate::{content::BLOCK, report};

/// What damage has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All data is right, and the damage is named.
    Corrected,
    /// All data is right, and there is nothing to be said.
    Harmless,
    /// Some blocks cannot be read, with an error that says what is damaged; all others are right.
    BlocksReported,
    /// The pool cannot be opened, with an error that says what is damaged.
    Refused,
    /// A promise is broken: this is how.
    Silent(String),
}

impl Verdict {
    /// What the damage costs.
    pub(super) fn cost(&self) -> Cost {
        match self {
            Self::Corrected | Self::Harmless => Cost::Nothing,
            Self::BlocksReported => Cost::Blocks,
            Self::Refused | Self::Silent(_) => Cost::Pool,
        }
    }
}

/// What is expected of a damaged pool.
pub(super) struct Expected<'a> {
    pub(super) contents: &'a Contents,
    /// If only frames are damaged, these: no block of another may be lost.
    pub(super) frames: Option<&'a [FramePlace]>,
    /// Whether segments are damaged: opening a pool does not look at all that is in them, only
    /// `check` does.
    pub(super) in_segments: bool,
}

/// What one opening has shown.
enum Seen {
    Refused,
    Open { lost: BTreeSet<(String, u64)>, is_named: bool },
}

/// Opens the pool for reading and compares all of it; with `writable`, then opens it for writing
/// as well, compares, closes, and looks again.
pub(super) fn judge(device: &Arc<SimDevice>, expected: &Expected<'_>, writable: bool) -> Verdict {
    let looks = || -> Result<Seen, String> {
        let seen = look(device, expected)?;
        if writable {
            use_it(device, expected, &seen)?;
        }
        Ok(seen)
    };
    match panic::catch_unwind(AssertUnwindSafe(looks)) {
        Ok(Ok(Seen::Refused)) => Verdict::Refused,
        Ok(Ok(Seen::Open { lost, is_named })) => match (lost.is_empty(), is_named) {
            (false, _) => Verdict::BlocksReported,
            (true, true) => Verdict::Corrected,
            (true, false) => Verdict::Harmless,
        },
        Ok(Err(reason)) => Verdict::Silent(reason),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Verdict::Silent(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}

/// Runs something on a machine of its own: it notices who waits for ever.
fn on_machine<T>(main: impl AsyncFnOnce(Arc<Machine>) -> T) -> T {
    let machine = Machine::new(1);
    let outcome = machine.run(main(Arc::clone(&machine)));
    machine.kill();
    outcome
}

fn look(device: &Arc<SimDevice>, expected: &Expected<'_>) -> Result<Seen, String> {
    on_machine(async |machine| {
        let opening = Pool::open_in(machine, device.clone(), None, &options(true)).await;
        let pool = match opening {
            Ok(pool) => pool,
            Err(error) => return refused(&error),
        };
        let lost = compare(&pool, expected).await?;
        let mut is_named = !lost.is_empty();
        if !is_named {
            is_named = !pool.quick_stat().repairs.is_empty();
        }
        if lost.is_empty() && expected.in_segments {
            let checked = pool.check_async(&mut |_| {}).await;
            let checked = checked.map_err(|error| format!("check fails: {error}"))?;
            if checked.findings.lost_count() > 0 {
                let found = report::findings(&checked.findings);
                return Err(format!("all can be read, but the check says that not\n{found}"));
            }
            is_named |= !checked.is_sound();
        }
        if !lost.is_empty() {
            let checked = pool.check_async(&mut |_| {}).await;
            let checked = checked.map_err(|error| format!("check fails: {error}"))?;
            check_lost(&lost, &checked.findings)?;
        }
        pool.abandon();
        Ok(Seen::Open { lost, is_named })
    })
}

/// The check must report as lost what cannot be read, by the volume's or snapshot's name, and nothing
/// else.
fn check_lost(lost: &BTreeSet<(String, u64)>, findings: &Findings) -> Result<(), String> {
    let ranges = findings.lost.iter();
    let reported = ranges.flat_map(|range| {
        let end_bytes = range.offset_bytes + range.len_bytes;
        let blocks = range.offset_bytes / BLOCK as u64..end_bytes.div_ceil(BLOCK as u64);
        blocks.map(|block| (range.volume.clone(), block))
    });
    let reported: BTreeSet<_> = reported.collect();
    if reported == *lost {
        return Ok(());
    }
    let [found, expected] = [&reported, lost].map(report::blocks);
    Err(format!(
        "the check says of others that they are lost\nfound:    {found}\nexpected: {expected}"
    ))
}

/// What was lost by `before` may be lost, and nothing else, also when it was opened for writing.
fn use_it(device: &Arc<SimDevice>, expected: &Expected<'_>, before: &Seen) -> Result<(), String> {
    let closed = on_machine(async |machine| {
        let opening = Pool::open_in(machine, device.clone(), None, &options(false)).await;
        let pool = match (opening, before) {
            (Ok(pool), Seen::Open { .. }) => pool,
            (Ok(_), Seen::Refused) => return Err("it can be opened, but only for writing".into()),
            (Err(error), Seen::Refused) => return refused(&error).map(|_| false),
            (Err(error), Seen::Open { lost, .. }) => {
                // What cannot be read cannot be merged either.
                let may = !lost.is_empty();
                return if may { refused(&error).map(|_| false) } else { Err(error.to_string()) };
            }
        };
        let lost = compare(&pool, expected).await?;
        same(&lost, before, "open for writing")?;
        match pool.close_async().await {
            Ok(()) => Ok(true),
            Err(_) if !lost.is_empty() => Ok(true),
            Err(error) => Err(format!("it cannot be closed: {error}")),
        }
    })?;
    if !closed {
        return Ok(());
    }
    match look(device, expected).map_err(|reason| format!("closed after use: {reason}"))? {
        Seen::Refused => Err("it can be opened, but not after it was used".into()),
        Seen::Open { lost, .. } => same(&lost, before, "closed after use"),
    }
}

fn same(lost: &BTreeSet<(String, u64)>, before: &Seen, when: &str) -> Result<(), String> {
    match before {
        Seen::Open { lost: lost_before, .. } if lost == lost_before => Ok(()),
        Seen::Open { lost: lost_before, .. } => {
            let [lost, before] = [lost, lost_before].map(report::blocks);
            Err(format!(
                "{when}, other blocks cannot be read\nfound:    {lost}\nexpected: {before}"
            ))
        }
        Seen::Refused => unreachable!("it was opened before"),
    }
}

/// An opening may fail, but must say what is damaged.
fn refused(error: &EngineError) -> Result<Seen, String> {
    match error {
        EngineError::NotAPool { .. }
        | EngineError::NewerVersion { .. }
        | EngineError::Mark(_)
        | EngineError::CheckpointRecord(_)
        | EngineError::Metadata(_)
        | EngineError::OpenLog(_)
        | EngineError::Log(_)
        | EngineError::Map(_) => Ok(Seen::Refused),
        other => Err(format!("it cannot be opened, and the error is not about damage: {other}")),
    }
}

/// Compares every block of every volume and snapshot; returns those that cannot be read.
async fn compare(pool: &Pool, expected: &Expected<'_>) -> Result<BTreeSet<(String, u64)>, String> {
    let volumes = pool.volumes().into_iter().map(|info| (info.name, info.size_bytes));
    let snapshots = pool.snapshots().into_iter();
    let snapshots =
        snapshots.map(|info| (format!("{}@{}", info.volume, info.snapshot), info.size_bytes));
    let found: BTreeMap<_, _> = volumes.chain(snapshots).collect();
    let found: Vec<_> = found.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    let size = |(name, bytes): (_, &Vec<u8>)| (String::as_str(name), bytes.len() as u64);
    let wanted: Vec<_> = expected.contents.iter().map(size).collect();
    if found != wanted {
        let list = |volumes: &[(&str, u64)]| {
            let text = |(name, bytes): &(&str, u64)| format!("{name} ({bytes} bytes)");
            volumes.iter().map(text).collect::<Vec<_>>().join(", ")
        };
        let (found, wanted) = (list(&found), list(&wanted));
        return Err(format!(
            "the volumes and snapshots are others\nfound:    {found}\nexpected: {wanted}"
        ));
    }
    let mut lost = BTreeSet::new();
    for (name, bytes) in expected.contents {
        let volume = pool.volume(name).map_err(|error| error.to_string())?;
        let mut found = vec![0; bytes.len()];
        let whole = volume.read(0, &mut found).await;
        if whole.is_ok() && found == *bytes {
            continue;
        }
        for (block, bytes) in (0..).zip(bytes.chunks(BLOCK)) {
            let found = &mut found[..bytes.len()];
            match volume.read(block * BLOCK as u64, found).await {
                Ok(()) if found == bytes => {}
                Ok(()) => {
                    let wrong =
                        report::wrong_block(block, &report::data(found), &[report::data(bytes)]);
                    return Err(format!("volume {name}: {wrong}"));
                }
                Err(error) => {
                    check_error(&error, name, block, expected.frames)?;
                    lost.insert((name.clone(), block));
                }
            }
        }
        if lost.is_empty() {
            let whole = whole.map_or_else(|error| error.to_string(), |()| "other data".into());
            return Err(format!("volume {name} reads otherwise as a whole than by block: {whole}"));
        }
    }
    Ok(lost)
}

/// A block may refuse to be read, but must say what is damaged, and of a damaged frame no other
/// may.
fn check_error(
    error: &EngineError,
    name: &str,
    block: u64,
    frames: Option<&[FramePlace]>,
) -> Result<(), String> {
    match (error, frames) {
        (EngineError::BlockDamaged { source, .. }, Some(frames)) => {
            let place = source.place();
            let frame = (place.segment().0, place.frame_offset_bytes());
            if frames.contains(&frame) {
                return Ok(());
            }
        }
        (EngineError::BlockDamaged { .. } | EngineError::Map(_), None) => return Ok(()),
        _ => {}
    }
    Err(format!(
        "volume {name}, block {block} cannot be read, and not for what is damaged: {error}"
    ))
}
