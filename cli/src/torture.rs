//! `siltstone torture`: simulated pools in `power`, real servers in `kill`, damaged pools in
//! `damage`; all end alike, as `ending` says.

mod damage;
mod ending;
mod kill;
mod power;

use std::{num::NonZero, ops::ControlFlow, thread};

use crate::{args::torture::TortureArguments, errors::CliError, interrupt::Interrupt, progress};

pub(crate) fn run(arguments: &TortureArguments) -> Result<(), CliError> {
    if arguments.kill.kill {
        kill::run(arguments)
    } else if arguments.damage.damage {
        damage::run(arguments)
    } else {
        power::run(arguments)
    }
}

/// As many as are wanted, or one a core.
fn jobs(arguments: &TortureArguments) -> usize {
    let cores = || thread::available_parallelism().map_or(1, NonZero::get);
    arguments.jobs.map_or_else(cores, usize::from)
}

/// Shows how far a torture has come, until the user wants it to end.
struct Watch {
    bar: indicatif::ProgressBar,
    interrupt: Interrupt,
}

impl Watch {
    fn start() -> Result<Self, CliError> {
        Ok(Self { interrupt: Interrupt::catch()?, bar: progress::text() })
    }

    fn show(&self, text: impl FnOnce() -> String) -> ControlFlow<()> {
        if self.interrupt.is_set() {
            self.bar.set_message("interrupted: finishing what has begun (again to end at once)");
            self.bar.tick();
            return ControlFlow::Break(());
        }
        self.bar.set_message(text());
        self.bar.tick();
        ControlFlow::Continue(())
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
