//! The command's end: it sends itself to the server, and does on its terminal what the server asks.

use std::fs::File;

use super::{
    message::{Answer, Failure, Opened, Request, VERSION},
    packet::{Connection, ControlError},
    place::PoolIdentity,
};
use crate::{args::pool::PoolCommand, errors::CliError, session::Session, terminal::Terminal};

/// Has a server carry out a command. A signal asks the server to end it, and the server's answer
/// is waited for, so that this ends when the command has.
pub(crate) fn run(
    command: &PoolCommand,
    server: &Connection,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let path = &command.operation().pool().path;
    let shown = path.display().to_string();
    let pool = PoolIdentity::of(path).map_err(|error| CliError::file("open", &shown, error))?;
    let to_server = server.try_clone()?;
    terminal.on_interrupt(move || to_server.end_sending());
    server.send_unless_gone(&Request { version: VERSION, pool, command }, None)?;
    loop {
        let packet = server.receive()?.ok_or(ControlError::ServerGone)?;
        match packet.message()? {
            Answer::Print(text) => terminal.print(&text)?,
            Answer::Note(text) => terminal.note(&text)?,
            Answer::Begin { bytes_total } => terminal.begin(bytes_total)?,
            Answer::Advance { bytes, bytes_total } => {
                // That there was a signal, the server knows.
                let _ = terminal.advance(bytes, bytes_total);
            }
            Answer::Finish => terminal.finish(),
            Answer::OpenImage => {
                let image = terminal.open_image().map(|image| {
                    let (file, size_bytes) = image.into_parts();
                    (file, Opened::Image { size_bytes })
                });
                hand_over(server, image)?;
            }
            Answer::OpenTarget { size_bytes } => {
                let target = terminal.open_target(size_bytes).map(|target| {
                    let (file, kind) = target.into_parts();
                    (file, Opened::Target(kind))
                });
                hand_over(server, target)?;
            }
            Answer::KeepTarget => terminal.keep_target()?,
            Answer::Ended { failure: None } => return Ok(()),
            Answer::Ended { failure: Some(failure) } => return Err(failure.into()),
        }
    }
}

/// Sends an open file, or why there is none.
fn hand_over(
    server: &Connection,
    opened: Result<(File, Opened), CliError>,
) -> Result<(), CliError> {
    match opened {
        Ok((file, opened)) => server.send_unless_gone(&opened, Some(&file))?,
        Err(error) => server.send_unless_gone(&Opened::Failed(Failure::from(&error)), None)?,
    }
    Ok(())
}
