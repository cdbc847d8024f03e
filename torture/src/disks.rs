//! Disks that fail and disks that lie, beside the clients at work.

use std::{sync::Arc, time::Duration};

use siltstone_device::{
    Runtime, SeededRandom,
    sim::{
        SimDevice,
        fault::{Fault, FaultKind, Times},
    },
};

/// What kind of disk a history has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Does what it is asked.
    Sound,
    /// Fails requests, and says so: once, for a while, or for good.
    Failing,
    /// Falsifies one request, and does not say so.
    Lying,
}

impl Disk {
    /// One of them; mostly a sound one.
    #[must_use]
    pub fn choose(random: &mut SeededRandom) -> Self {
        match random.below(10) {
            0..=5 => Self::Sound,
            6..=7 => Self::Failing,
            _ => Self::Lying,
        }
    }

    /// What goes wrong with it.
    #[must_use]
    pub fn kinds(self) -> Vec<FaultKind> {
        let goes_wrong = |kind: &FaultKind| match self {
            Self::Sound => false,
            Self::Failing => !kind.is_silent(),
            // A flush that lies leaves nothing that anyone could tell after a power cut.
            Self::Lying => kind.is_silent() && *kind != FaultKind::LostFlush,
        };
        FaultKind::ALL.into_iter().filter(goes_wrong).collect()
    }

    /// The next fault.
    #[must_use]
    pub fn fault(self, device: &SimDevice, random: &mut SeededRandom) -> Fault {
        use siltstone_device::Device;
        let fault = Fault::random(random, device.size_bytes(), &self.kinds());
        let times = match self {
            // One at a time is what redundancy is for.
            Self::Lying => Times::Count(1),
            _ if random.chance(1, 16) => Times::Always,
            _ => fault.times,
        };
        Fault { times, ..fault }
    }

    /// Lets things go wrong while clients work: returns when all faults have been injected.
    pub async fn misbehave(
        self,
        device: Arc<SimDevice>,
        runtime: Arc<dyn Runtime>,
        mut random: SeededRandom,
    ) {
        let count = match self {
            Self::Sound => 0,
            Self::Failing => 1 + random.below(6),
            Self::Lying => 1,
        };
        for _ in 0..count {
            let most_us = 1 << random.below(15);
            let pause = Duration::from_micros(random.below(most_us));
            runtime.sleep_until(runtime.now() + pause).await;
            device.inject(self.fault(&device, &mut random));
        }
    }
}
