//! What a command on a pool needs of whoever gave it: somebody to print to, to show progress to, to
//! open files, and to say when it is enough.
//!
//! There are two: the [`Terminal`](crate::terminal::Terminal) of this process, and, in a server,
//! the [`Remote`](crate::control::remote::Remote) client at the other end of the control socket,
//! who does what it is asked on its own terminal. Commands do not know which of the two they have.

use std::{os::unix::net::UnixStream, sync::Arc};

use serde::Serialize;

use crate::{
    errors::CliError,
    image::Image,
    resume::{Extent, Recalled},
    target::Target,
};

/// See the module's page.
pub(crate) trait Session: Send {
    /// Prints on standard output.
    fn print(&mut self, text: &str) -> Result<(), CliError>;

    /// Tells people something on standard error, while standard output carries data.
    fn note(&mut self, text: &str) -> Result<(), CliError>;

    /// Shows a progress bar, over a number of bytes if that is known, of which some may have been
    /// done before. From now on the command can be interrupted, and has to ask at every step whether
    /// it is.
    fn begin(&mut self, bytes_total: Option<u64>, bytes_before: u64) -> Result<(), CliError>;

    /// Shows how far the command is; an error if it is to end.
    fn advance(&mut self, bytes: u64, bytes_total: Option<u64>) -> Result<(), CliError>;

    /// Says something with the progress bar, instead of what was said there before.
    fn remark(&mut self, text: &str);

    /// Takes the progress bar away.
    fn finish(&mut self);

    /// Whether the command is to end, for those who wait elsewhere. Asked for after `begin`.
    fn cancellation(&self) -> Cancellation;

    /// Whether others are connected to a volume or snapshot.
    fn has_clients(&self, volume: &str) -> bool;

    /// Opens one of the images that the command names.
    fn open_image(&mut self, index: usize) -> Result<Image, CliError>;

    /// Begins to convert the image that was opened last, from an offset on: what comes on the socket
    /// are the requests of an NBD client.
    fn convert_image(&mut self, from_bytes: u64) -> Result<UnixStream, CliError>;

    /// Waits for the end of the conversion; an error if not all of the image was sent.
    fn end_image(&mut self) -> Result<(), CliError>;

    /// How far an earlier import of the image that was opened last into a volume came, which is known
    /// by its identity.
    fn recall(&mut self, volume: &str) -> Result<Recalled, CliError>;

    /// Keeps where the import of the image that was opened last into a volume begins, instead of what was
    /// known of earlier ones. Why it could not be resumed, if that cannot be kept; an error if what was
    /// known would be believed later.
    fn begin_marks(&mut self, volume: &str, from_bytes: u64) -> Result<Option<String>, CliError>;

    /// Keeps how far the import of the image that was opened last into a volume has come: what it says
    /// is durable.
    fn mark(&mut self, volume: &str, done: Extent) -> Result<(), CliError>;

    /// Of which of these volumes, by identity, it is known that an import into them is not complete.
    fn unfinished(&mut self, volumes: &[String]) -> Result<Vec<bool>, CliError>;

    /// Forgets how far an import into a volume came.
    fn forget(&mut self, volume: &str) -> Result<(), CliError>;

    /// Opens the file that the command exports to, for an image of so many bytes. If nothing was
    /// there, nothing is there after the command, unless it says that the image is complete, or has
    /// named what it exports by its identity, to be resumed: then it also learns how much of it is
    /// there.
    fn open_target(
        &mut self,
        size_bytes: u64,
        resumed: Option<&str>,
    ) -> Result<(Target, u64), CliError>;

    /// Keeps how far the export is: what is before that is durable.
    fn mark_target(&mut self, done_bytes: u64) -> Result<(), CliError>;

    /// Says that the image is complete.
    fn keep_target(&mut self) -> Result<(), CliError>;
}

/// Whether a command is to end: an error that says why. Cheap to ask, from any thread.
pub(crate) type Cancellation = Arc<dyn Fn() -> Result<(), CliError> + Send + Sync>;

/// Prints a value as JSON.
pub(crate) fn print_json<T: Serialize>(
    session: &mut dyn Session,
    value: &T,
) -> Result<(), CliError> {
    session.print(&crate::output::to_json(value)?)
}
