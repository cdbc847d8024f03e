//! Carries out one allowed request on an export.

use std::{sync::Arc, time::Instant};

use crate::{
    error::ExportError,
    export::{Export, Payload},
    reply::{Failure, Outcome},
    request::Command,
    traffic::counted,
};

/// Extents in one answer to a block status request.
pub(crate) const MAX_STATUS_EXTENTS: usize = 8192;
/// What such an answer may take in memory.
const MAX_STATUS_BYTES: usize = 16 * MAX_STATUS_EXTENTS;

/// The bytes of payload that a request holds in memory until its reply is sent.
pub(crate) fn charge_bytes(command: &Command) -> usize {
    match command {
        Command::Read { len, .. } | Command::Write { len, .. } => *len as usize,
        Command::BlockStatus { .. } => MAX_STATUS_BYTES,
        _ => 0,
    }
}

/// Carries out `command`, and counts it; a write comes with its payload. Its time begins now.
pub(crate) fn execute(
    export: Arc<dyn Export>,
    command: Command,
    payload: Option<Box<dyn Payload>>,
) -> impl Future<Output = Outcome> + Send {
    let begun = export.traffic().and_then(|_| Some((counted(&command)?, Instant::now())));
    async move {
        let outcome = carry_out(&*export, command, payload).await;
        if let (Some(traffic), Some((counted, begun))) = (export.traffic(), begun) {
            let failed = matches!(outcome, Outcome::Failed(_));
            traffic.record(counted, begun.elapsed(), failed);
        }
        outcome
    }
}

async fn carry_out(
    export: &dyn Export,
    command: Command,
    payload: Option<Box<dyn Payload>>,
) -> Outcome {
    let done = match command {
        Command::Read { offset, len, dont_fragment } => {
            return match export.read(offset, len).await {
                Ok(data) => Outcome::Data { data, len, dont_fragment },
                Err(error) => failed(error, false),
            };
        }
        Command::BlockStatus { offset, len, one_extent } => {
            let max_extents = if one_extent { 1 } else { MAX_STATUS_EXTENTS };
            return match export.block_status(offset, len, max_extents).await {
                Ok(extents) => Outcome::Extents { extents, len, max_extents },
                Err(error) => failed(error, false),
            };
        }
        Command::Write { offset, fua, .. } => {
            let payload = payload.expect("a write is started when its payload is complete");
            export.write(offset, payload, fua).await
        }
        Command::Flush => export.flush().await,
        Command::Trim { offset, len, fua } => export.trim(offset, len, fua).await,
        Command::Prefetch { offset, len } => export.prefetch(offset, len).await,
        Command::WriteZeroes { offset, len, options } => {
            return match export.write_zeroes(offset, len, options).await {
                Ok(()) => Outcome::Done,
                Err(error) => failed(error, options.fast),
            };
        }
        Command::Disconnect => Ok(()),
    };
    done.map_or_else(|error| failed(error, false), |()| Outcome::Done)
}

fn failed(error: ExportError, may_be_unsupported: bool) -> Outcome {
    Outcome::Failed(match error {
        ExportError::NotSupported if !may_be_unsupported => Failure::Unsupported,
        error => Failure::Export(error),
    })
}
