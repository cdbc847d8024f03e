//! Where an import into a volume begins that was there before: at the start, if nothing is lost by it or
//! that is meant, where an earlier one was interrupted, or nowhere, if that one is complete.

use siltstone_engine::{EngineError, Volume};

use super::BLOCK_BYTES;
use crate::{
    args::pool::ImportArguments,
    errors::CliError,
    image::Image,
    resume::{Extent, Recalled},
    session::Session,
    size::human,
};

/// Runs that are asked for at a time.
const MAX_RUNS: usize = 4096;
/// And the bytes in which they are.
const MAX_STATUS_BYTES: u64 = 16 << 30;

/// Where an import begins.
pub(super) enum Beginning {
    /// What is before this offset is there.
    At(u64),
    /// All of it is there, and has been.
    Complete,
}

/// Where the import of `image` into `volume` begins; an error if it would replace what was not said to go.
pub(super) fn of(
    arguments: &ImportArguments,
    image: &Image,
    volume: &Volume,
    session: &mut dyn Session,
) -> Result<Beginning, CliError> {
    let ImportArguments { resume, force, .. } = *arguments;
    let recalled = session.recall(&volume.identity().to_string())?;
    match recalled {
        Recalled::Done(Extent::Whole) if resume && !force => return Ok(Beginning::Complete),
        Recalled::Done(Extent::UpTo(done_bytes)) if resume => {
            // So that there is something to read.
            let last_bytes = image.size_bytes().unwrap_or(0).saturating_sub(1);
            let from_bytes = done_bytes.min(last_bytes);
            return Ok(Beginning::At(from_bytes - from_bytes % BLOCK_BYTES));
        }
        _ => {}
    }
    if !force {
        let written_bytes = written_bytes(volume)?;
        if written_bytes > 0 {
            let (volume, file) = (volume.name().into(), image.name().into());
            let advice = advice(resume, recalled);
            return Err(CliError::WouldReplace { volume, file, written_bytes, advice });
        }
    }
    if resume && recalled != Recalled::Done(Extent::Whole) {
        let why = recalled.why_not();
        session.note(&format!("siltstone: importing from the start, as {why}\n"))?;
    }
    Ok(Beginning::At(0))
}

/// What can be done instead of replacing what a volume holds.
fn advice(resume: bool, recalled: Recalled) -> String {
    match recalled {
        Recalled::Done(Extent::UpTo(done_bytes)) => format!(
            "--resume to go on with the import of it that was interrupted at {}, or --force to \
             replace all of that",
            human(done_bytes)
        ),
        Recalled::Done(Extent::Whole) => {
            "--force to do so again: an earlier import of it is complete".into()
        }
        why if resume => {
            format!("--force to replace that: there is nothing to resume, as {}", why.why_not())
        }
        _ => "--force to replace that".into(),
    }
}

/// How much of a volume is not zeros.
pub(super) fn written_bytes(volume: &Volume) -> Result<u64, EngineError> {
    let size_bytes = volume.size_bytes();
    let (mut at, mut written_bytes) = (0, 0);
    while at < size_bytes {
        let len_bytes = (size_bytes - at).min(MAX_STATUS_BYTES);
        for run in pollster::block_on(volume.status(at, len_bytes, MAX_RUNS))? {
            at = run.offset_bytes + run.len_bytes;
            written_bytes += if run.is_hole { 0 } else { run.len_bytes };
        }
    }
    Ok(written_bytes)
}
