//! The session of a command that was given on this process's own command line.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    args::pool::{ExportArguments, ImportArguments, PoolCommand},
    errors::CliError,
    image::{
        self, Image,
        qemu::{Conversion, QemuImage},
    },
    interrupt::Interrupt,
    output,
    progress::Progress,
    resume::{Extent, Marks, NO_PLACE, Recalled, Source},
    session::{Cancellation, Session},
    target::{self, Target, TargetKind},
};

/// Standard output, standard error, signals, and the files that the command names.
pub(crate) struct Terminal<'a> {
    command: &'a PoolCommand,
    bar: Option<Progress>,
    /// From the first `begin` on.
    interrupt: Option<Interrupt>,
    /// What the first signal does besides, until it is caught.
    on_interrupt: Option<Box<dyn FnOnce() + Send>>,
    /// A new file, until the image in it is complete.
    unfinished: Option<PathBuf>,
    /// The image that was opened last.
    opened: OpenedImage,
    /// An export that may be resumed.
    resumed: Option<Partial>,
}

/// A file that an export writes until it is complete.
struct Partial {
    path: PathBuf,
    /// What is exported.
    snapshot: String,
    source: Option<Source>,
}

/// What is known of an image to import.
#[derive(Default)]
struct OpenedImage {
    /// How it would be recognised later, if it would be.
    source: Option<Source>,
    /// It is read by qemu-img.
    qemu: Option<QemuImage>,
    conversion: Option<Conversion>,
}

impl<'a> Terminal<'a> {
    /// The session of `command`.
    pub(crate) fn new(command: &'a PoolCommand) -> Self {
        Self {
            command,
            bar: None,
            interrupt: None,
            on_interrupt: None,
            unfinished: None,
            opened: OpenedImage::default(),
            resumed: None,
        }
    }

    /// Does something when the first signal comes after `begin`.
    pub(crate) fn on_interrupt(&mut self, action: impl FnOnce() + Send + 'static) {
        self.on_interrupt = Some(Box::new(action));
    }
}

impl Session for Terminal<'_> {
    fn print(&mut self, text: &str) -> Result<(), CliError> {
        output::print(text)
    }

    fn note(&mut self, text: &str) -> Result<(), CliError> {
        // Where nobody reads stderr, what was done is done.
        let _ = io::stderr().write_all(text.as_bytes());
        Ok(())
    }

    fn begin(&mut self, bytes_total: Option<u64>, bytes_before: u64) -> Result<(), CliError> {
        if self.interrupt.is_none() {
            let action = self.on_interrupt.take();
            self.interrupt =
                Some(Interrupt::catch_and(move || action.into_iter().for_each(|f| f()))?);
        }
        let lines_every = match self.command {
            PoolCommand::Import(ImportArguments { progress, .. })
            | PoolCommand::Export(ExportArguments { progress, .. }) => progress.progress,
            _ => None,
        };
        self.bar =
            Some(Progress::begin(bytes_total, bytes_before, lines_every.map(|every| every.0)));
        Ok(())
    }

    fn advance(&mut self, bytes: u64, bytes_total: Option<u64>) -> Result<(), CliError> {
        if let Some(bar) = &mut self.bar {
            bar.advance(bytes, bytes_total);
        }
        self.interrupt.as_ref().map_or(Ok(()), Interrupt::check)
    }

    fn remark(&mut self, text: &str) {
        if let Some(bar) = &mut self.bar {
            bar.remark(text);
        }
    }

    fn finish(&mut self) {
        // It clears itself.
        self.bar = None;
    }

    fn cancellation(&self) -> Cancellation {
        let interrupt = self.interrupt.clone();
        Arc::new(move || interrupt.as_ref().map_or(Ok(()), Interrupt::check))
    }

    fn has_clients(&self, _volume: &str) -> bool {
        // Whoever has the pool to itself serves nobody.
        false
    }

    fn open_image(&mut self, index: usize) -> Result<Image, CliError> {
        self.opened = OpenedImage::default();
        let PoolCommand::Import(arguments) = self.command else { return Err(no_file()) };
        let path = arguments.file(index).ok_or_else(no_file)?;
        let (image, file, qemu) = image::open(path, &arguments.image)?;
        // Of other files that are part of it, it is not known whether they change; and of a stream, not which
        // part of a file it is.
        if !arguments.image.backing && image.size_bytes().is_some() {
            let found = file.metadata();
            let found = found.map_err(|error| CliError::file("open", image.name(), error))?;
            let reading = qemu.as_ref().map_or("raw", |qemu| qemu.format.name());
            self.opened.source = Source::of(&found, reading.into());
        }
        self.opened.qemu = qemu;
        Ok(image)
    }

    fn convert_image(&mut self, from_bytes: u64) -> Result<UnixStream, CliError> {
        let qemu = self.opened.qemu.as_ref().ok_or_else(no_file)?;
        let (socket, conversion) = qemu.convert(from_bytes)?;
        self.opened.conversion = Some(conversion);
        Ok(socket)
    }

    fn end_image(&mut self) -> Result<(), CliError> {
        self.opened.conversion.take().map_or(Ok(()), Conversion::end)
    }

    fn recall(&mut self, volume: &str) -> Result<Recalled, CliError> {
        Ok(match (&self.opened.source, Marks::of_user()) {
            (None, _) => Recalled::Unknowable,
            (_, None) => Recalled::NoPlace,
            (Some(source), Some(marks)) => marks.recall(volume, source),
        })
    }

    fn begin_marks(&mut self, volume: &str, from_bytes: u64) -> Result<Option<String>, CliError> {
        let Some(marks) = Marks::of_user() else { return Ok(Some(NO_PLACE.into())) };
        let Some(source) = &self.opened.source else {
            self.forget(volume)?;
            return Ok(Some(Recalled::Unknowable.why_not().into()));
        };
        match marks.begin(volume, source, Extent::UpTo(from_bytes)) {
            Ok(()) => Ok(None),
            Err(error) => {
                // What was known of another import would be believed.
                self.forget(volume)?;
                let directory = marks.directory().display();
                // Nor is it tried again with each step.
                self.opened.source = None;
                Ok(Some(format!("how far it is cannot be written down in {directory} ({error})")))
            }
        }
    }

    fn mark(&mut self, volume: &str, done: Extent) -> Result<(), CliError> {
        let Some(source) = &self.opened.source else { return Ok(()) };
        match done {
            Extent::UpTo(_) => keep_mark(volume, source, done),
            Extent::Whole => mark_complete(volume, source),
        }
    }

    fn unfinished(&mut self, volumes: &[String]) -> Result<Vec<bool>, CliError> {
        let marks = Marks::of_user();
        let is_unfinished =
            |volume: &String| marks.as_ref().is_some_and(|marks| marks.is_unfinished(volume));
        Ok(volumes.iter().map(is_unfinished).collect())
    }

    fn forget(&mut self, volume: &str) -> Result<(), CliError> {
        forgotten(|marks| marks.forget_import(volume))
    }

    fn open_target(
        &mut self,
        size_bytes: u64,
        resumed: Option<&str>,
    ) -> Result<(Target, u64), CliError> {
        let PoolCommand::Export(arguments) = self.command else { return Err(no_file()) };
        let ExportArguments { pool, file, force, .. } = arguments;
        if let Some(snapshot) = resumed {
            return self.open_partial(snapshot);
        }
        let (target, is_new) = target::open(&pool.path, file, *force, size_bytes)?;
        if is_new {
            self.unfinished = Some(file.clone());
        }
        Ok((target, 0))
    }

    fn mark_target(&mut self, done_bytes: u64) -> Result<(), CliError> {
        let Some(Partial { snapshot, source: Some(source), .. }) = &self.resumed else {
            return Ok(());
        };
        keep_mark(snapshot, source, Extent::UpTo(done_bytes))
    }

    fn keep_target(&mut self) -> Result<(), CliError> {
        self.unfinished = None;
        let (Some(Partial { path, snapshot, .. }), PoolCommand::Export(arguments)) =
            (self.resumed.take(), self.command)
        else {
            return Ok(());
        };
        let file = &arguments.file;
        let renamed = std::fs::rename(&path, file);
        renamed.map_err(|error| CliError::file("rename", &path.display().to_string(), error))?;
        forgotten(|marks| marks.forget_export(&snapshot))
    }
}

impl Terminal<'_> {
    /// Opens the file for an export that may have been interrupted.
    fn open_partial(&mut self, snapshot: &str) -> Result<(Target, u64), CliError> {
        let PoolCommand::Export(arguments) = self.command else { return Err(no_file()) };
        let ExportArguments { pool, file, force, .. } = arguments;
        let path = target::partial_path(&pool.path, file, *force)?;
        let failed = |error| CliError::file("open", &path.display().to_string(), error);
        let known = match target::open_partial(&path, false) {
            Ok(partial) => {
                let source = Source::target(&partial.metadata().map_err(failed)?);
                let recalled = source.as_ref().zip(Marks::of_user());
                match recalled.map(|(source, marks)| marks.recall(snapshot, source)) {
                    Some(Recalled::Done(Extent::UpTo(done_bytes))) => {
                        Some((partial, source, done_bytes))
                    }
                    // Of another snapshot, or somebody else's.
                    _ if !force => return Err(CliError::FileExists { path }),
                    _ => {
                        std::fs::remove_file(&path).map_err(failed)?;
                        None
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let (partial, source, done_bytes) = match known {
            Some(known) => known,
            // Always another file than that of any mark.
            None => {
                let partial = target::open_partial(&path, true).map_err(failed)?;
                let source = Source::target(&partial.metadata().map_err(failed)?);
                if let Some(source) = &source {
                    keep_mark(snapshot, source, Extent::UpTo(0))?;
                }
                (partial, source, 0)
            }
        };
        self.resumed = Some(Partial { path, snapshot: snapshot.into(), source });
        // It is called what it will be.
        Ok((Target::new(file, partial, TargetKind::Sparse), done_bytes))
    }
}

/// Keeps how far a copy is.
fn keep_mark(volume: &str, source: &Source, done: Extent) -> Result<(), CliError> {
    let kept = Marks::of_user().map_or(Ok(()), |marks| marks.keep(volume, source, done));
    if let Err(error) = kept {
        // Then less of it need not be done again, which is no reason to end it.
        tracing::warn!(%error, "how far the command is cannot be written down");
    }
    Ok(())
}

/// Keeps that an import is complete, or at least not that it is not.
fn mark_complete(volume: &str, source: &Source) -> Result<(), CliError> {
    let Some(marks) = Marks::of_user() else { return Ok(()) };
    if let Some(error) = marks.complete(volume, source)? {
        tracing::warn!(%error, "that the import is complete cannot be written down");
    }
    Ok(())
}

/// Forgets how far one is.
fn forgotten(forget: impl FnOnce(&Marks) -> io::Result<()>) -> Result<(), CliError> {
    let forgotten = Marks::of_user().map_or(Ok(()), |marks| forget(&marks));
    forgotten.map_err(|source| CliError::System {
        action: "remove what is known of an interrupted command",
        source,
    })
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        self.finish();
        if let Some(path) = &self.unfinished {
            // Why the image is not complete matters more than a failure here.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A server that asks for a file which the command does not name is not asked twice.
fn no_file() -> CliError {
    CliError::Impossible { reason: "the command names no such file".into() }
}

/// What a file is called in sentences.
pub(crate) fn shown(path: &Path, stream: &str) -> String {
    if path == Path::new("-") { stream.into() } else { path.display().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Command};
    use clap::Parser;

    #[test]
    fn a_new_file_stays_only_if_the_image_in_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("image");
        let line = ["siltstone", "export", "pool", "v", file.to_str().unwrap(), "--force"];
        let Command::OnPool(command) = Arguments::try_parse_from(line).unwrap().command else {
            panic!("{line:?} is a command on a pool");
        };
        let export = |is_complete: bool| {
            let mut terminal = Terminal::new(&command);
            terminal.open_target(4096, None).unwrap();
            if is_complete {
                terminal.keep_target().unwrap();
            }
            drop(terminal);
            file.exists()
        };
        assert!(!export(false));
        assert!(export(true));
        // What was there before is the user's.
        assert!(export(false));
        Terminal::new(&command).open_image(0).map(|_| ()).unwrap_err();
    }
}
