//! A power cut at any write or flush loses nothing that a flush acknowledged, and invents nothing;
//! a disk that fails or lies is never believed: histories by seed, for some time.
//!
//! `SILTSTONE_SECONDS` says for how long each of the tests goes on (20 s by default),
//! `SILTSTONE_FIRST_SEED` with which seed it begins. What fails says how to see it again.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

use std::{env, ops::ControlFlow, sync::Arc, time::Duration};

use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_torture::{
    campaign::{self, Plan},
    history,
    host::Host,
    pools::Bases,
    tally::Tally,
};

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().expect("a number"))
}

fn campaign(host: Host, seconds: u64) {
    let plan = Plan {
        first_seed: number("SILTSTONE_FIRST_SEED").unwrap_or(1),
        only_first: false,
        host,
        only_cut: None,
        time: Duration::from_secs(number("SILTSTONE_SECONDS").unwrap_or(seconds)),
        jobs: 1,
    };
    let outcome = campaign::run(&plan, |_, _| ControlFlow::Continue(())).unwrap();
    println!("{:?} in {:.1?}", outcome.counts, outcome.elapsed);
    assert!(outcome.failures.is_empty(), "{}", outcome.failures[0]);
    assert!(outcome.counts.cuts > 0 && outcome.counts.recoveries > outcome.counts.cuts);
}

#[test]
fn no_power_cut_breaks_a_promise_on_a_simulated_machine() {
    campaign(Host::Machine, 20);
}

#[test]
fn no_power_cut_breaks_a_promise_on_threads() {
    campaign(Host::Threads, 20);
}

#[test]
fn a_seed_is_one_history_down_to_the_bytes_on_the_device() {
    let bases = Bases::new();
    let again = Bases::new();
    let mut events = 0;
    for seed in 1..9 {
        let digest = |bases: &Bases| {
            let tally = Arc::new(Tally::default());
            let device: Arc<SimDevice> = history::first_life(seed, bases, &tally).unwrap();
            (device.history_len(), device.history_digest(), tally.counts())
        };
        let once = digest(&bases);
        events += once.0;
        assert_eq!(once, digest(&again), "seed {seed}");
    }
    assert!(events > 200, "something happens");
    let mut random = SeededRandom::new(1);
    assert!(bases.choose(&mut random).device.history_len() == 0, "bases are not lived in");
}
