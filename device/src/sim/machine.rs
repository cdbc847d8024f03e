//! A machine with one thread, on which a seed decides everything that is left to chance.
//!
//! All tasks of a simulation, and the requests of its devices, take turns in one loop. Each turn a
//! random number chooses: poll a task that was woken, complete a request that a device holds
//! ([`CompletionMode::Queued`](super::CompletionMode)), or let time jump to the next timer. So one
//! seed is one order of events, and running it again gives the same order, down to the bytes on the
//! devices. Time is virtual: a turn takes a few microseconds of it, and when there is nothing to do,
//! it jumps. If there is nothing to wait for either, the machine stands still for ever: a
//! deadlock, which is reported at once by the names of the tasks.
//!
//! Some seeds choose evenly; others favour the newest of what waits, or the oldest, so that the rest
//! starves for a while, as on a machine under load.
//!
//! Between two awaits a task is alone. Races inside such steps are for other tools.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use futures_channel::oneshot;
use parking_lot::Mutex;

use super::SimDevice;
use crate::{
    SeededRandom,
    runtime::{Joining, Runtime, Sleep, Task},
};

/// Turns after which a machine is taken to run in circles.
const MAX_TURNS: u64 = 5_000_000;

/// The longest that one turn takes, in nanoseconds of virtual time.
const MAX_TURN_NS: u64 = 20_000;

/// The task that [`Machine::run`] was given.
const MAIN: usize = usize::MAX;

/// See the module's page. Not to be shared between threads, though its parts are.
pub struct Machine {
    state: Mutex<State>,
    /// The moment at which virtual time is zero.
    start: Instant,
    this: Weak<Self>,
}

struct State {
    random: SeededRandom,
    elapsed: Duration,
    turns: u64,
    tasks: Vec<Slot>,
    /// Woken, not yet polled.
    ready: Vec<Arc<Woken>>,
    /// By deadline, then by number.
    timers: BTreeMap<(Duration, u64), Waker>,
    next_timer: u64,
    devices: Vec<Arc<SimDevice>>,
    /// Of so many turns with something else to do, one completes a request.
    device_slowness: u64,
    /// Which of the tasks that wait is polled, and which of the requests completed.
    task_taste: Taste,
    request_taste: Taste,
}

/// How one of several is chosen.
#[derive(Clone, Copy, Debug)]
enum Taste {
    Even,
    /// Mostly the last to come.
    Newest,
    /// Mostly the first to come, more or less: others have taken its place.
    Oldest,
}

impl Taste {
    fn random(random: &mut SeededRandom) -> Self {
        match random.below(4) {
            0 | 1 => Self::Even,
            2 => Self::Newest,
            _ => Self::Oldest,
        }
    }

    fn choose(self, random: &mut SeededRandom, len: usize) -> usize {
        let any = random.below(len as u64) as usize;
        if random.chance(1, 16) {
            return any;
        }
        match self {
            Self::Even => any,
            Self::Newest => len - 1,
            Self::Oldest => 0,
        }
    }
}

struct Slot {
    name: String,
    /// `None` while it is polled and once it has ended.
    task: Option<Running>,
}

struct Running {
    task: Task,
    ended: oneshot::Sender<thread::Result<()>>,
}

/// A task's waker.
struct Woken {
    machine: Weak<Machine>,
    task: usize,
    is_queued: AtomicBool,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::AcqRel)
            && let Some(machine) = self.machine.upgrade()
        {
            machine.state.lock().ready.push(Arc::clone(&self));
        }
    }
}

/// What a turn does.
enum Turn {
    Poll(Arc<Woken>),
    Complete(Arc<SimDevice>, usize),
    /// Timers have fired or time has passed; look again.
    Pass,
    Deadlock(String),
}

impl Machine {
    /// A machine at time zero without tasks or devices.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        let mut random = SeededRandom::new(seed);
        let device_slowness = 1 << random.below(6);
        let task_taste = Taste::random(&mut random);
        let request_taste = Taste::random(&mut random);
        let state = State {
            random,
            elapsed: Duration::ZERO,
            turns: 0,
            tasks: Vec::new(),
            ready: Vec::new(),
            timers: BTreeMap::new(),
            next_timer: 0,
            devices: Vec::new(),
            device_slowness,
            task_taste,
            request_taste,
        };
        let start = Instant::now();
        Arc::new_cyclic(|this| Self { state: Mutex::new(state), start, this: this.clone() })
    }

    /// Completes the requests of `device` from now on, which must be in mode
    /// [`CompletionMode::Queued`](super::CompletionMode).
    pub fn attach(&self, device: &Arc<SimDevice>) {
        self.state.lock().devices.push(Arc::clone(device));
    }

    /// Virtual time since the machine was made.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.state.lock().elapsed
    }

    /// Turns taken so far.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.state.lock().turns
    }

    /// Runs `main`, and all tasks beside it, until `main` has ended. Tasks that have not ended stay
    /// for the next call.
    ///
    /// # Panics
    /// If a task panics, if all that is left waits for what never comes, or if nothing ends for
    /// five million turns.
    pub fn run<T>(&self, main: impl Future<Output = T>) -> T {
        let mut main = pin!(main);
        let woken = Arc::new(self.woken(MAIN));
        let waker = Waker::from(Arc::clone(&woken));
        Arc::clone(&woken).wake();
        loop {
            match self.next_turn() {
                Turn::Poll(woken) if woken.task == MAIN => {
                    woken.is_queued.store(false, Ordering::Release);
                    let mut context = Context::from_waker(&waker);
                    if let Poll::Ready(outcome) = main.as_mut().poll(&mut context) {
                        self.state.lock().ready.retain(|woken| woken.task != MAIN);
                        return outcome;
                    }
                }
                Turn::Poll(woken) => self.poll(&woken),
                Turn::Complete(device, chosen) => device.complete_queued(chosen),
                Turn::Pass => {}
                Turn::Deadlock(tasks) => panic!("deadlock: everything waits: {tasks}"),
            }
        }
    }

    /// Drops every task where it stands, as the end of a process would.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        let tasks = std::mem::take(&mut state.tasks);
        let devices = std::mem::take(&mut state.devices);
        let timers = std::mem::take(&mut state.timers);
        state.ready.clear();
        drop(state);
        // Not under the lock: their ends may wake others.
        drop((tasks, timers, devices));
        self.state.lock().ready.clear();
    }

    fn woken(&self, task: usize) -> Woken {
        Woken { machine: self.this.clone(), task, is_queued: AtomicBool::new(false) }
    }

    fn next_turn(&self) -> Turn {
        let mut state = self.state.lock();
        let turn = state.next_turn();
        let fired = state.take_fired();
        drop(state);
        fired.into_iter().for_each(Waker::wake);
        turn
    }

    fn poll(&self, woken: &Arc<Woken>) {
        let number = woken.task;
        woken.is_queued.store(false, Ordering::Release);
        let slot = |state: &mut State| state.tasks.get_mut(number).and_then(|s| s.task.take());
        // It may have ended since it was woken.
        let Some(mut running) = slot(&mut self.state.lock()) else { return };
        let waker = Waker::from(Arc::clone(woken));
        match running.task.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => {
                if let Some(slot) = self.state.lock().tasks.get_mut(number) {
                    slot.task = Some(running);
                }
            }
            Poll::Ready(()) => {
                // Its memory goes before anyone hears of its end.
                drop(running.task);
                let _ = running.ended.send(Ok(()));
            }
        }
    }
}

impl State {
    fn next_turn(&mut self) -> Turn {
        self.turns += 1;
        assert!(self.turns < MAX_TURNS, "livelock: {}", self.names());
        self.elapsed += Duration::from_nanos(self.random.below(MAX_TURN_NS));
        let queued: usize = self.devices.iter().map(|device| device.queued_len()).sum();
        if self.ready.is_empty() && queued == 0 {
            return match self.timers.first_key_value() {
                Some((&(deadline, _), _)) => {
                    self.elapsed = self.elapsed.max(deadline);
                    Turn::Pass
                }
                None => Turn::Deadlock(self.names()),
            };
        }
        let complete =
            self.ready.is_empty() || queued > 0 && self.random.below(self.device_slowness + 1) == 0;
        if !complete {
            let chosen = self.task_taste.choose(&mut self.random, self.ready.len());
            return Turn::Poll(self.ready.swap_remove(chosen));
        }
        let mut chosen = self.request_taste.choose(&mut self.random, queued);
        for device in &self.devices {
            let len = device.queued_len();
            if chosen < len {
                return Turn::Complete(Arc::clone(device), chosen);
            }
            chosen -= len;
        }
        unreachable!("the number chosen is below the sum of the lengths")
    }

    /// The timers whose time has come.
    fn take_fired(&mut self) -> Vec<Waker> {
        let mut fired = Vec::new();
        while let Some(timer) = self.timers.first_entry()
            && timer.key().0 <= self.elapsed
        {
            fired.push(timer.remove());
        }
        fired
    }

    fn names(&self) -> String {
        let alive = self.tasks.iter().filter(|slot| slot.task.is_some());
        let names: Vec<_> = alive.map(|slot| slot.name.as_str()).collect();
        format!("main, {}", names.join(", "))
    }
}

impl Runtime for Machine {
    fn spawn(&self, name: &str, task: Task) -> io::Result<Joining> {
        let (ended, joining) = Joining::new();
        let mut state = self.state.lock();
        let woken = Arc::new(self.woken(state.tasks.len()));
        let task = Some(Running { task, ended });
        state.tasks.push(Slot { name: name.into(), task });
        drop(state);
        woken.wake();
        Ok(joining)
    }

    fn now(&self) -> Instant {
        self.start + self.elapsed()
    }

    fn unix_seconds(&self) -> u64 {
        // Some day in 2001.
        1_000_000_000 + self.elapsed().as_secs()
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        let deadline = deadline.saturating_duration_since(self.start);
        let this = self.this.clone();
        let mut number = None;
        Box::pin(poll_fn(move |context| {
            let Some(machine) = this.upgrade() else { return Poll::Pending };
            let mut state = machine.state.lock();
            if state.elapsed >= deadline {
                return Poll::Ready(());
            }
            let number = *number.get_or_insert_with(|| {
                state.next_timer += 1;
                state.next_timer
            });
            state.timers.insert((deadline, number), context.waker().clone());
            Poll::Pending
        }))
    }

    fn parallelism(&self) -> usize {
        2
    }

    fn can_block(&self) -> bool {
        false
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.lock();
        write!(f, "Machine(after {} turns and {:?}: {})", state.turns, state.elapsed, state.names())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AlignedBuffer, BLOCK_BYTES, ByteOffset, Durability, request, sim::CompletionMode};

    fn simulation(seed: u64) -> (Arc<Machine>, Arc<SimDevice>) {
        let machine = Machine::new(seed);
        let device = SimDevice::new(1 << 20);
        device.set_completion_mode(CompletionMode::Queued);
        machine.attach(&device);
        (machine, device)
    }

    /// Several tasks that write at random; the order in which their writes completed.
    fn orders(seed: u64) -> (Vec<u64>, Duration) {
        let (machine, device) = simulation(seed);
        let order = Arc::new(Mutex::new(Vec::new()));
        let elapsed = machine.run(async {
            let mut tasks = Vec::new();
            for number in 0..8 {
                let (order, device) = (Arc::clone(&order), Arc::clone(&device));
                let inner = Arc::clone(&machine);
                let task = Box::pin(async move {
                    inner.sleep_until(inner.now() + Duration::from_micros(number % 3)).await;
                    let block = AlignedBuffer::zeroed(BLOCK_BYTES);
                    let offset = ByteOffset(number * BLOCK_BYTES as u64);
                    request::write(&*device, offset, block, Durability::Flush).await.unwrap();
                    order.lock().push(number);
                });
                tasks.push(machine.spawn(&format!("writer-{number}"), task).unwrap());
            }
            for task in tasks {
                task.await.unwrap();
            }
            machine.elapsed()
        });
        let order = order.lock().clone();
        (order, elapsed)
    }

    #[test]
    fn a_seed_is_one_order_and_different_seeds_are_different_orders() {
        for seed in 0..20 {
            assert_eq!(orders(seed), orders(seed));
        }
        let different: std::collections::BTreeSet<_> = (0..20).map(|s| orders(s).0).collect();
        assert!(different.len() > 15, "{different:?}");
    }

    #[test]
    fn time_jumps_when_there_is_nothing_to_do() {
        let machine = Machine::new(1);
        let year = Duration::from_secs(365 * 86400);
        let before = machine.now();
        machine.run(machine.sleep_until(before + year));
        assert!(machine.now() >= before + year);
        assert!(machine.turns() < 10);
    }

    #[test]
    #[should_panic(expected = "deadlock: everything waits: main, stuck")]
    fn a_deadlock_is_reported_by_name() {
        let machine = Machine::new(1);
        let joining = machine.spawn("stuck", Box::pin(std::future::pending())).unwrap();
        machine.run(joining).unwrap();
    }

    #[test]
    fn killed_tasks_are_dropped_where_they_stand() {
        let machine = Machine::new(1);
        let held = Arc::new(());
        let inner = Arc::clone(&held);
        let task = Box::pin(async move {
            std::future::pending::<()>().await;
            drop(inner);
        });
        let joining = machine.spawn("holder", task).unwrap();
        machine.run(machine.sleep_until(machine.now() + Duration::from_millis(1)));
        assert_eq!(Arc::strong_count(&held), 2);
        machine.kill();
        assert_eq!(Arc::strong_count(&held), 1);
        drop(joining);
    }
}
