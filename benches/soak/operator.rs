//! Somebody who does all that one can do to a server in use, one thing after the other.

use std::{
    error::Error,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use siltstone_torture::kill::nbd_client::NbdClient;

use crate::{
    server::{EXTRA, Place, volume},
    world::World,
};

/// Snapshots that are kept, of all clients' volumes together.
const KEPT_SNAPSHOTS: u64 = 3;
/// How long a reload may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether the operator is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What is done, in turns.
#[derive(Clone, Copy, Debug)]
enum Act {
    Snapshot,
    Scrape,
    Clone,
    Scrub,
    Collect,
    Reload,
    Restart,
}

const ROUND: [Act; 12] = [
    Act::Snapshot,
    Act::Scrape,
    Act::Clone,
    Act::Reload,
    Act::Snapshot,
    Act::Collect,
    Act::Scrape,
    Act::Snapshot,
    Act::Reload,
    Act::Scrub,
    Act::Scrape,
    Act::Restart,
];

/// See the module's page.
pub(crate) struct Operator<'a> {
    world: &'a World,
    place: &'a Place,
    pause: Duration,
    /// Snapshots taken, and deleted.
    taken: u64,
    deleted: u64,
}

fn snapshot(number: u64) -> String {
    format!("{}@{number}", volume(0))
}

impl<'a> Operator<'a> {
    pub(crate) fn new(world: &'a World, place: &'a Place, pause: Duration) -> Self {
        Self { world, place, pause, taken: 0, deleted: 0 }
    }

    /// Goes on until it is told to stop or something is wrong.
    pub(crate) fn run(mut self) {
        for act in ROUND.into_iter().cycle() {
            let next = Instant::now() + self.pause;
            while Instant::now() < next {
                thread::sleep(LOOK_EVERY);
                if self.world.operator_is_done.load(Ordering::Relaxed) || self.world.has_failed() {
                    return;
                }
            }
            if let Err(error) = self.act(act) {
                self.world.fail(format!("the operator ({act:?}): {error}"));
                return;
            }
        }
    }

    fn act(&mut self, act: Act) -> Result<()> {
        let what = match act {
            Act::Snapshot => {
                self.take()?;
                "snapshot"
            }
            Act::Scrape => {
                let server = self.world.server.lock();
                server.as_ref().ok_or("no server")?.metrics()?;
                return Ok(());
            }
            Act::Clone => {
                let newest = snapshot(self.taken - 1);
                self.place.run(&["clone", "POOL", &newest, "clone"])?;
                self.place.run(&["volume", "delete", "POOL", "clone"])?;
                "snapshot"
            }
            Act::Scrub => {
                self.place.run(&["scrub", "POOL"])?;
                "scrub"
            }
            Act::Collect => {
                self.place.run(&["gc", "POOL"])?;
                "collection"
            }
            Act::Reload => {
                self.reload()?;
                "reload"
            }
            Act::Restart => {
                self.restart()?;
                "restart"
            }
        };
        self.world.note(what);
        Ok(())
    }

    /// One of all clients' volumes at the same moment; the oldest goes.
    fn take(&mut self) -> Result<()> {
        let name = |client| format!("{}@{}", volume(client), self.taken);
        let names: Vec<_> = (0..crate::client::Habit::ALL.len()).map(name).collect();
        let create = ["snapshot", "create", "POOL"].into_iter();
        self.place.run(&create.chain(names.iter().map(String::as_str)).collect::<Vec<_>>())?;
        self.taken += 1;
        if self.taken - self.deleted > KEPT_SNAPSHOTS {
            for client in 0..names.len() {
                let oldest = format!("{}@{}", volume(client), self.deleted);
                self.place.run(&["snapshot", "delete", "POOL", &oldest])?;
            }
            self.deleted += 1;
        }
        Ok(())
    }

    /// A volume comes by the config, and goes by a command.
    fn reload(&self) -> Result<()> {
        self.place.write_config(true)?;
        self.world.server.lock().as_ref().ok_or("no server")?.reload()?;
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = NbdClient::connect(&self.place.socket(), EXTRA) {
            if Instant::now() > deadline {
                return Err(format!("the config's new volume is not there: {error}").into());
            }
            thread::sleep(LOOK_EVERY);
        }
        self.place.write_config(false)?;
        self.place.run(&["volume", "delete", "POOL", EXTRA])
    }

    fn restart(&self) -> Result<()> {
        let mut server = self.world.server.lock();
        self.world.restarts.fetch_add(1, Ordering::SeqCst);
        let stopped = server.take().ok_or("no server")?.stop();
        *server = Some(self.place.start()?);
        self.world.restarts.fetch_add(1, Ordering::SeqCst);
        stopped
    }
}
