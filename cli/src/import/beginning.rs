//! Where an import into a volume begins that was there before: at the start, if nothing is lost by it or
//! that is meant, or where an earlier one was interrupted; and nowhere, if that one is complete.

use siltstone_engine::{EngineError, Volume};

use super::{BLOCK_BYTES, advice::Advice};
use crate::{
    args::pool::ImportArguments,
    errors::CliError,
    image::Image,
    resume::{Extent, Recalled},
    session::Session,
};

/// Runs that are asked for at a time.
const MAX_RUNS: usize = 4096;
/// And the bytes in which they are.
const MAX_STATUS_BYTES: u64 = 16 << 30;

/// Where an import begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beginning {
    /// What is before this offset is there.
    pub(super) from_bytes: u64,
    /// Something is written in the volume from there on.
    pub(super) holds_more: bool,
}

/// Whether there is nothing to do, by what is known of an earlier import.
pub(super) fn is_complete(arguments: &ImportArguments, recalled: Recalled) -> bool {
    arguments.resume && !arguments.force && recalled == Recalled::Done(Extent::Whole)
}

/// Where the import of `image` into `volume` begins, by what is known of an earlier one; an error if it
/// would replace what was not said to go.
pub(super) fn of(
    arguments: &ImportArguments,
    image: &Image,
    volume: &Volume,
    recalled: Recalled,
    session: &mut dyn Session,
) -> Result<Beginning, CliError> {
    let ImportArguments { resume, force, .. } = *arguments;
    // What cannot be found out is no reason not to replace it.
    let holds_more = |from_bytes| !is_empty_from(volume, from_bytes).unwrap_or(false);
    if resume && let Recalled::Done(Extent::UpTo(done_bytes)) = recalled {
        // So that there is something to read.
        let last_bytes = image.size_bytes().unwrap_or(0).saturating_sub(1);
        let from_bytes = done_bytes.min(last_bytes);
        let from_bytes = from_bytes - from_bytes % BLOCK_BYTES;
        return Ok(Beginning { from_bytes, holds_more: holds_more(from_bytes) });
    }
    if !force {
        let written_bytes = written_bytes(volume)?;
        if written_bytes > 0 {
            let advice = Advice::new(arguments, volume.name(), image.name());
            let advice = advice.instead_of_replacing(recalled);
            let (volume, file) = (volume.name().into(), image.name().into());
            return Err(CliError::WouldReplace { volume, file, written_bytes, advice });
        }
    }
    if resume && recalled != Recalled::Done(Extent::Whole) {
        let why = recalled.why_not();
        session.note(&format!("siltstone: importing from the start, as {why}\n"))?;
    }
    Ok(Beginning { from_bytes: 0, holds_more: force && holds_more(0) })
}

/// How much of a volume is not zeros.
pub(super) fn written_bytes(volume: &Volume) -> Result<u64, EngineError> {
    let mut written_bytes = 0;
    each_run(volume, 0, &mut |len_bytes| {
        written_bytes += len_bytes;
        true
    })?;
    Ok(written_bytes)
}

/// Whether a volume is all zeros from an offset on, which is found out soon if it is not.
fn is_empty_from(volume: &Volume, from_bytes: u64) -> Result<bool, EngineError> {
    let mut is_empty = true;
    each_run(volume, from_bytes, &mut |_| {
        is_empty = false;
        false
    })?;
    Ok(is_empty)
}

/// Calls `found` with the length of every run of a volume, from an offset on, that is not zeros, until it
/// returns false.
fn each_run(
    volume: &Volume,
    from_bytes: u64,
    found: &mut dyn FnMut(u64) -> bool,
) -> Result<(), EngineError> {
    let (size_bytes, mut at) = (volume.size_bytes(), from_bytes);
    while at < size_bytes {
        let len_bytes = (size_bytes - at).min(MAX_STATUS_BYTES);
        for run in pollster::block_on(volume.status(at, len_bytes, MAX_RUNS))? {
            at = run.offset_bytes + run.len_bytes;
            if !run.is_hole && !found(run.len_bytes) {
                return Ok(());
            }
        }
    }
    Ok(())
}
