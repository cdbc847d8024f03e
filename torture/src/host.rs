//! Where a history is lived: on a simulated machine, or on threads.

use std::sync::Arc;

use siltstone_device::{
    Runtime, Threads,
    sim::{CompletionMode, Machine, SimDevice},
};

/// What runs the tasks of a history and completes the requests of its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Host {
    /// One thread, on which a seed decides everything: a history can be repeated exactly.
    #[default]
    Machine,
    /// Real threads, in whose races no two runs are alike: they reach what lies between the steps
    /// of a simulated machine.
    Threads,
}

impl Host {
    /// Runs something with a runtime of its own. In the end the device has no power, and of a
    /// simulated machine nothing is left.
    pub fn run<T>(
        self,
        device: &Arc<SimDevice>,
        seed: u64,
        main: impl AsyncFnOnce(Arc<dyn Runtime>) -> T,
    ) -> T {
        match self {
            Self::Machine => {
                device.set_completion_mode(CompletionMode::Queued);
                let machine = Machine::new(seed);
                machine.attach(device);
                let outcome = machine.run(main(machine.clone()));
                // What is not acknowledged by now is lost with the process.
                device.cut_power();
                machine.kill();
                device.set_completion_mode(CompletionMode::Inline);
                outcome
            }
            Self::Threads => {
                let shuffled = CompletionMode::Shuffled { seed };
                let mode = if seed.is_multiple_of(2) { CompletionMode::Inline } else { shuffled };
                device.set_completion_mode(mode);
                let outcome = pollster::block_on(main(Arc::new(Threads)));
                device.cut_power();
                device.set_completion_mode(CompletionMode::Inline);
                outcome
            }
        }
    }
}
