//! The messages between a command and a server.
//!
//! The command sends one [`Request`], then only what it is asked for ([`Opened`]); that it sends no
//! more (end of stream) is the wish that the command end. The server sends [`Answer`]s, the last
//! of which is [`Answer::Ended`].

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{
    packet::{ControlError, decode},
    place::PoolIdentity,
};
use crate::{
    args::pool::PoolCommand,
    errors::{CliError, ExitStatus},
    resume::{Extent, Recalled},
    target::TargetKind,
};

/// The version of these messages and of the commands in them. A server refuses others, as an
/// option that it does not know must not be ignored.
pub(crate) const VERSION: u32 = 7;
/// Text in one message; in JSON it may be six times as long.
pub(crate) const MAX_TEXT_BYTES: usize = 8 << 10;

/// What a command wants.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request<C> {
    /// Its [`VERSION`].
    pub(crate) version: u32,
    /// The pool, so that no other is changed by mistake.
    pub(crate) pool: PoolIdentity,
    /// The command.
    pub(crate) command: C,
}

/// The one part of a request that never changes.
#[derive(Deserialize)]
struct AnyRequest {
    version: u32,
}

impl Request<PoolCommand> {
    /// The request in a packet, for the server of `pool`.
    pub(crate) fn decode(bytes: &[u8], pool: PoolIdentity) -> Result<Self, Refusal> {
        let AnyRequest { version } = decode(bytes)?;
        if version != VERSION {
            return Err(Refusal::Version { version });
        }
        let request: Self = decode(bytes)?;
        if request.pool != pool {
            return Err(Refusal::OtherPool);
        }
        Ok(request)
    }
}

/// Why a server does not carry out a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Not a request.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// One from another version of this program.
    #[error(
        "the pool's server takes commands of version {VERSION}, not {version}: use the server's \
         siltstone, or start it anew with this one"
    )]
    Version {
        /// The command's version.
        version: u32,
    },
    /// One for another pool.
    #[error(
        "the server on that control socket serves another pool: name the one of this pool by --control"
    )]
    OtherPool,
    /// There are too many.
    #[error("the pool's server carries out {limit} commands already; try again later")]
    Busy {
        /// How many at a time.
        limit: usize,
    },
}

/// What a server wants done on the command's terminal.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Answer<'a> {
    /// Print this on standard output.
    Print(Cow<'a, str>),
    /// Print this on standard error.
    Note(Cow<'a, str>),
    /// Show a progress bar.
    Begin {
        /// The bytes that there are.
        bytes_total: Option<u64>,
        /// Those of them that were done before.
        bytes_before: u64,
    },
    /// Show progress.
    Advance {
        /// The bytes done.
        bytes: u64,
        /// The bytes that there are, if that has changed.
        bytes_total: Option<u64>,
    },
    /// Say this beside the progress bar.
    Remark(Cow<'a, str>),
    /// Take the progress bar away.
    Finish,
    /// Open one of the images that the command names, and answer [`Opened`].
    OpenImage {
        /// Which.
        index: usize,
    },
    /// Begin to convert that image, and answer [`Opened`].
    ConvertImage {
        /// What comes before is left out.
        from_bytes: u64,
    },
    /// Wait for the end of the conversion, and answer [`Opened`].
    EndImage,
    /// Tell how far an earlier import of that image came, as [`Opened`].
    Recall {
        /// The volume's identity.
        volume: Cow<'a, str>,
    },
    /// Keep where the import of that image begins, and answer [`Opened`].
    BeginMarks {
        /// The volume's identity.
        volume: Cow<'a, str>,
        /// Where.
        from_bytes: u64,
    },
    /// Keep how far the import of that image is.
    Mark {
        /// The volume's identity.
        volume: Cow<'a, str>,
        /// What is durable.
        done: Extent,
    },
    /// Tell of which volumes an import is not complete, as [`Opened`].
    Unfinished {
        /// Their identities.
        volumes: Cow<'a, [String]>,
    },
    /// Forget how far an import is.
    Forget {
        /// The volume's identity.
        volume: Cow<'a, str>,
    },
    /// Open the file to export to, and answer [`Opened`].
    OpenTarget {
        /// How large it will be.
        size_bytes: u64,
        /// The identity of what is exported, if that can be resumed.
        resumed: Option<Cow<'a, str>>,
    },
    /// Keep how far the export is.
    MarkTarget {
        /// What is durable.
        done_bytes: u64,
    },
    /// The file exported to is complete.
    KeepTarget,
    /// The command has ended.
    Ended {
        /// Why it failed, if it did.
        failure: Option<Failure>,
    },
}

/// What became of what was asked for, most often a file that was to be opened.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Opened {
    /// The image, raw, comes with this message.
    Image {
        /// Its size.
        size_bytes: u64,
    },
    /// The image comes with this message, and is a stream.
    Stream {
        /// Whatever it begins with, it is raw.
        as_is: bool,
    },
    /// The image can be converted.
    Converted {
        /// The size of its disk.
        size_bytes: u64,
    },
    /// A socket comes with this message, on which the image is sent.
    Converting,
    /// All of it was sent.
    Sent,
    /// So much was imported before.
    Recalled(Recalled),
    /// It is kept where an import begins, or not.
    Begun {
        /// Why not.
        why_not: Option<String>,
    },
    /// Of which volumes an import is not complete.
    Unfinished {
        /// In the order in which they were asked about.
        volumes: Vec<bool>,
    },
    /// The file to export to comes with this message.
    Target {
        /// How it is written.
        kind: TargetKind,
        /// What is there already.
        done_bytes: u64,
    },
    /// It cannot be done.
    Failed(Failure),
}

/// A failure, as both ends know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failure {
    status: ExitStatus,
    sentence: String,
}

impl From<&CliError> for Failure {
    fn from(error: &CliError) -> Self {
        let mut sentence = error.to_string();
        sentence.truncate(sentence.floor_char_boundary(MAX_TEXT_BYTES));
        Self { status: error.exit_status(), sentence }
    }
}

impl From<Failure> for CliError {
    fn from(Failure { status, sentence }: Failure) -> Self {
        Self::AtServer { status, sentence }
    }
}

/// Text in pieces that fit a message.
pub(crate) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(MAX_TEXT_BYTES));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests;
