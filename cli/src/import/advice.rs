//! What can be done where an import has ended or does not begin, for one image and for each of many: what is
//! advised for one must not change what the others are.

use crate::{
    args::pool::ImportArguments,
    resume::{Extent, Recalled},
    size::human,
};

/// What can be done about one image.
pub(super) struct Advice<'a> {
    arguments: &'a ImportArguments,
    volume: &'a str,
    file: &'a str,
}

impl<'a> Advice<'a> {
    /// About the import of `file` into `volume`.
    pub(super) fn new(arguments: &'a ImportArguments, volume: &'a str, file: &'a str) -> Self {
        Self { arguments, volume, file }
    }

    /// The command that imports nothing but this image, with one more option.
    fn alone(&self, option: &str) -> String {
        let Self { arguments, volume, file } = self;
        format!("'siltstone import {} {volume} {file} {option}'", arguments.pool.path.display())
    }

    fn is_one_of_many(&self) -> bool {
        !self.arguments.each.is_empty()
    }

    /// What imports again what is there already, at the beginning of a sentence's part.
    pub(super) fn again(&self) -> String {
        match self.is_one_of_many() {
            true => self.alone("--force"),
            false => "--force".into(),
        }
    }

    /// How an import that was interrupted goes on; or does not, and why.
    pub(super) fn after_interruption(&self, why_not_resumed: Option<&str>) -> String {
        let ImportArguments { resume, force, .. } = *self.arguments;
        let is_one_of_many = self.is_one_of_many();
        let Some(why) = why_not_resumed else {
            let command = match () {
                // With --force, the same command would replace those that are complete.
                () if is_one_of_many && force => self.alone("--resume"),
                () if resume => "the same command".into(),
                () => "the same command with --resume".into(),
            };
            return format!("{command} goes on from there");
        };
        let command = match is_one_of_many {
            true => self.alone("--force"),
            false => "the same command with --force".into(),
        };
        format!("{command} imports it again from the start, as it cannot be resumed: {why}")
    }

    /// What can be done instead of replacing what the volume holds, by what is known of an earlier import.
    pub(super) fn instead_of_replacing(&self, recalled: Recalled) -> String {
        let forced = match self.is_one_of_many() {
            true => format!("use {}", self.alone("--force")),
            false => "add --force".into(),
        };
        match recalled {
            Recalled::Done(Extent::UpTo(done_bytes)) => format!(
                "add --resume to go on with the import of it that was interrupted at {}; {forced} to \
                 replace all of that",
                human(done_bytes)
            ),
            Recalled::Done(Extent::Whole) => {
                format!("{forced} to do so again: an earlier import of it is complete")
            }
            why if self.arguments.resume => {
                format!(
                    "{forced} to replace that: there is nothing to resume, as {}",
                    why.why_not()
                )
            }
            _ => format!("{forced} to replace that"),
        }
    }
}
