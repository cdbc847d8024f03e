//! The session of a command that was given on this process's own command line.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use indicatif::ProgressBar;

use crate::{
    args::pool::{ExportArguments, ImportArguments, PoolCommand},
    errors::CliError,
    image::Image,
    interrupt::Interrupt,
    output, progress,
    session::{Cancellation, Session},
    target::{self, Target},
};

/// Standard output, standard error, signals, and the files that the command names.
pub(crate) struct Terminal<'a> {
    command: &'a PoolCommand,
    bar: Option<ProgressBar>,
    /// From the first `begin` on.
    interrupt: Option<Interrupt>,
    /// What the first signal does besides, until it is caught.
    on_interrupt: Option<Box<dyn FnOnce() + Send>>,
    /// A new file, until the image in it is complete.
    unfinished: Option<PathBuf>,
}

impl<'a> Terminal<'a> {
    /// The session of `command`.
    pub(crate) fn new(command: &'a PoolCommand) -> Self {
        Self { command, bar: None, interrupt: None, on_interrupt: None, unfinished: None }
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

    fn begin(&mut self, bytes_total: Option<u64>) -> Result<(), CliError> {
        if self.interrupt.is_none() {
            let action = self.on_interrupt.take();
            self.interrupt =
                Some(Interrupt::catch_and(move || action.into_iter().for_each(|f| f()))?);
        }
        self.bar = Some(progress::bytes(bytes_total));
        Ok(())
    }

    fn advance(&mut self, bytes: u64, bytes_total: Option<u64>) -> Result<(), CliError> {
        if let Some(bar) = &self.bar {
            if let Some(total) = bytes_total {
                bar.set_length(total);
            }
            bar.set_position(bytes);
        }
        self.interrupt.as_ref().map_or(Ok(()), Interrupt::check)
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn cancellation(&self) -> Cancellation {
        let interrupt = self.interrupt.clone();
        Arc::new(move || interrupt.as_ref().map_or(Ok(()), Interrupt::check))
    }

    fn has_clients(&self, _volume: &str) -> bool {
        // Whoever has the pool to itself serves nobody.
        false
    }

    fn open_image(&mut self) -> Result<Image, CliError> {
        match self.command {
            PoolCommand::Import(ImportArguments { file, .. }) => Image::open(file),
            _ => Err(no_file()),
        }
    }

    fn open_target(&mut self, size_bytes: u64) -> Result<Target, CliError> {
        let PoolCommand::Export(arguments) = self.command else { return Err(no_file()) };
        let ExportArguments { pool, file, force, .. } = arguments;
        let (target, is_new) = target::open(&pool.path, file, *force, size_bytes)?;
        if is_new {
            self.unfinished = Some(file.clone());
        }
        Ok(target)
    }

    fn keep_target(&mut self) -> Result<(), CliError> {
        self.unfinished = None;
        Ok(())
    }
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
            terminal.open_target(4096).unwrap();
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
        Terminal::new(&command).open_image().map(|_| ()).unwrap_err();
    }
}
