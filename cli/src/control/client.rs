//! The command's end: it sends itself to the server, and does on its terminal what the server asks.

use std::{fs::File, os::fd::OwnedFd};

use super::{
    message::{Answer, Failure, Opened, Request, VERSION},
    packet::{Connection, ControlError},
    place::PoolIdentity,
};
use crate::{
    args::pool::PoolCommand, errors::CliError, image::Contents, session::Session,
    terminal::Terminal,
};

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
            Answer::Begin { bytes_total, bytes_before } => {
                terminal.begin(bytes_total, bytes_before)?;
            }
            Answer::Advance { bytes, bytes_total } => {
                // That there was a signal, the server knows.
                let _ = terminal.advance(bytes, bytes_total);
            }
            Answer::Finish => terminal.finish(),
            Answer::Remark(text) => terminal.remark(&text),
            Answer::OpenImage { index } => {
                let image = terminal.open_image(index).map(|image| match image.into_contents() {
                    Contents::Sized { file, size_bytes } => {
                        (Some(file), Opened::Image { size_bytes })
                    }
                    Contents::Stream { file, as_is } => (Some(file), Opened::Stream { as_is }),
                    Contents::Converted { size_bytes, .. } => {
                        (None, Opened::Converted { size_bytes })
                    }
                });
                hand_over(server, image)?;
            }
            Answer::ConvertImage { from_bytes } => {
                let socket = terminal.convert_image(from_bytes);
                let socket = socket.map(|socket| File::from(OwnedFd::from(socket)));
                hand_over(server, socket.map(|socket| (Some(socket), Opened::Converting)))?;
            }
            Answer::EndImage => {
                hand_over(server, terminal.end_image().map(|()| (None, Opened::Sent)))?;
            }
            Answer::Recall { volume } => {
                let recalled = terminal.recall(&volume);
                hand_over(server, recalled.map(|recalled| (None, Opened::Recalled(recalled))))?;
            }
            Answer::BeginMarks { volume, from_bytes } => {
                let begun = terminal.begin_marks(&volume, from_bytes);
                hand_over(server, begun.map(|why_not| (None, Opened::Begun { why_not })))?;
            }
            Answer::Mark { volume, done } => terminal.mark(&volume, done)?,
            Answer::Unfinished { volumes } => {
                let volumes = terminal.unfinished(&volumes);
                hand_over(server, volumes.map(|volumes| (None, Opened::Unfinished { volumes })))?;
            }
            Answer::Forget { volume } => terminal.forget(&volume)?,
            Answer::OpenTarget { size_bytes, resumed } => {
                let target = terminal.open_target(size_bytes, resumed.as_deref());
                let target = target.map(|(target, done_bytes)| {
                    let (file, kind) = target.into_parts();
                    (Some(file), Opened::Target { kind, done_bytes })
                });
                hand_over(server, target)?;
            }
            Answer::MarkTarget { done_bytes } => terminal.mark_target(done_bytes)?,
            Answer::KeepTarget => terminal.keep_target()?,
            Answer::Ended { failure: None } => return Ok(()),
            Answer::Ended { failure: Some(failure) } => return Err(failure.into()),
        }
    }
}

/// Sends what was asked for, perhaps with an open file, or why there is none.
fn hand_over(
    server: &Connection,
    opened: Result<(Option<File>, Opened), CliError>,
) -> Result<(), CliError> {
    match opened {
        Ok((file, opened)) => server.send_unless_gone(&opened, file.as_ref())?,
        Err(error) => server.send_unless_gone(&Opened::Failed(Failure::from(&error)), None)?,
    }
    Ok(())
}
