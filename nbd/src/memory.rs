//! The memory that payloads take, of all connections together.
//!
//! A connection has [`OWN_BYTES`] to itself, so small requests are taken whatever others do. What it
//! holds beyond that comes out of one budget, which is given in the order of asking: a large request
//! waits until it is its turn and there is room, and nobody overtakes it. So all connections together
//! hold at most the budget, and [`OWN_BYTES`] each.
//!
//! What is held comes back when the storage and the client have done their parts. The storage ends
//! every request; a client may not: one that keeps the budget and hardly moves, while others wait and
//! nobody gets anything, is found by [`Share::is_hoarded`] and loses its connection.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// What every connection may hold, whatever the others do.
pub(crate) const OWN_BYTES: usize = 16 << 10;
/// The budget is counted in units of this.
const UNIT_BYTES: usize = 4 << 10;
/// A client that moves less than this part of what it holds, from one look to the next, hardly moves.
const LEAST_MOVED_FRACTION: u64 = 8;

/// A server's budget.
pub(crate) struct Memory {
    units: Arc<Semaphore>,
    total_units: usize,
    /// Connections that wait for some.
    waiting: AtomicUsize,
    /// How often one that waited got what it waited for.
    grants: AtomicU64,
}

impl Memory {
    pub(crate) fn new(total_bytes: usize) -> Self {
        // What one request asks for is counted in 32 bits.
        let total_units = (total_bytes / UNIT_BYTES).clamp(1, u32::MAX as usize >> 3);
        Self {
            units: Arc::new(Semaphore::new(total_units)),
            total_units,
            waiting: AtomicUsize::new(0),
            grants: AtomicU64::new(0),
        }
    }

    /// What of the budget goes with holding so much. One request may be larger than the budget: it
    /// takes all.
    fn units_for(&self, held_bytes: usize) -> usize {
        held_bytes.saturating_sub(OWN_BYTES).div_ceil(UNIT_BYTES).min(self.total_units)
    }
}

type Grant = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// What one connection holds.
pub(crate) struct Share {
    memory: Arc<Memory>,
    held_bytes: usize,
    /// What of the budget it has.
    units: usize,
    /// Its place among those who wait.
    place: Option<Grant>,
    last_look: Option<Look>,
}

/// What was seen when somebody looked whether a share is hoarded.
#[derive(Clone, Copy)]
struct Look {
    grants: u64,
    moved_bytes: u64,
    /// Others wait, and this connection waits for its client only.
    is_suspect: bool,
}

impl Share {
    pub(crate) fn of(memory: &Arc<Memory>) -> Self {
        Self { memory: Arc::clone(memory), held_bytes: 0, units: 0, place: None, last_look: None }
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether others may have to wait for what it holds.
    pub(crate) fn is_shared(&self) -> bool {
        self.units > 0
    }

    /// Takes so much more, when there is room. Who does not wait to the end gives up its place
    /// ([`Share::give_up_place`]).
    pub(crate) fn poll_take(&mut self, len_bytes: usize, context: &mut Context<'_>) -> Poll<()> {
        let wanted = self.memory.units_for(self.held_bytes + len_bytes);
        loop {
            if let Some(place) = &mut self.place {
                let granted = ready!(place.as_mut().poll(context));
                self.give_up_place();
                self.memory.grants.fetch_add(1, Ordering::Relaxed);
                self.keep(granted.expect("the budget is never closed"));
            }
            let missing = wanted.saturating_sub(self.units);
            if missing == 0 {
                break;
            }
            let missing = u32::try_from(missing).expect("the budget has no more");
            match Arc::clone(&self.memory.units).try_acquire_many_owned(missing) {
                Ok(granted) => self.keep(granted),
                Err(_) => {
                    let units = Arc::clone(&self.memory.units);
                    self.place = Some(Box::pin(units.acquire_many_owned(missing)));
                    self.memory.waiting.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.held_bytes += len_bytes;
        self.settle();
        Poll::Ready(())
    }

    /// Waits no longer.
    pub(crate) fn give_up_place(&mut self) {
        if self.place.take().is_some() {
            self.memory.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Holds so much less.
    pub(crate) fn give_back(&mut self, len_bytes: usize) {
        self.held_bytes -= len_bytes;
        self.settle();
    }

    /// Whether others have waited for what this connection holds since this was last asked, nobody got
    /// anything, and its client, for whom alone it waits, hardly moved. `moved_bytes` counts what was
    /// sent and received.
    pub(crate) fn is_hoarded(&mut self, moved_bytes: u64, awaits_client: bool) -> bool {
        let waiting = self.memory.waiting.load(Ordering::Relaxed);
        let look = Look {
            grants: self.memory.grants.load(Ordering::Relaxed),
            moved_bytes,
            is_suspect: awaits_client && waiting > usize::from(self.place.is_some()),
        };
        let Some(last) = self.last_look.replace(look) else { return false };
        let moved = look.moved_bytes - last.moved_bytes;
        last.is_suspect
            && look.is_suspect
            && last.grants == look.grants
            && moved < self.held_bytes as u64 / LEAST_MOVED_FRACTION
    }

    fn keep(&mut self, granted: OwnedSemaphorePermit) {
        self.units += granted.num_permits();
        granted.forget();
    }

    /// Returns what goes with more than is held.
    fn settle(&mut self) {
        let needed = self.memory.units_for(self.held_bytes);
        if self.units > needed {
            self.memory.units.add_permits(self.units - needed);
            self.units = needed;
        }
        if self.units == 0 {
            self.last_look = None;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_up_place();
        self.give_back(self.held_bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn take(share: &mut Share, len_bytes: usize) -> bool {
        share.poll_take(len_bytes, &mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn what_is_taken_comes_back_whatever_the_sizes() {
        let memory = Arc::new(Memory::new(64 * UNIT_BYTES));
        let mut share = Share::of(&memory);
        let mut random = numbers();
        let mut held = Vec::new();
        for _ in 0..10_000 {
            let len_bytes = random() % (9 * UNIT_BYTES);
            if held.len() < 8 && random().is_multiple_of(2) {
                assert!(take(&mut share, len_bytes));
                held.push(len_bytes);
            } else if !held.is_empty() {
                share.give_back(held.swap_remove(random() % held.len()));
            }
            let sum: usize = held.iter().sum();
            assert_eq!(share.held_bytes(), sum);
            let left = memory.units.available_permits();
            assert_eq!(left, 64 - memory.units_for(sum));
        }
        drop(share);
        assert_eq!(memory.units.available_permits(), 64);
    }

    /// Numbers that repeat from run to run.
    fn numbers() -> impl FnMut() -> usize {
        let mut state = 1_u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize
        }
    }

    #[test]
    fn the_first_to_wait_is_the_first_to_get_and_small_ones_never_wait() {
        let memory = Arc::new(Memory::new(1 << 20));
        let [mut first, mut large, mut late, mut small] = [(); 4].map(|()| Share::of(&memory));
        assert!(take(&mut first, 1 << 19));
        assert!(!take(&mut large, 1 << 20));
        // There is room for it, but it is not its turn.
        assert!(!take(&mut late, 1 << 18));
        assert!(take(&mut small, OWN_BYTES));
        first.give_back(1 << 19);
        assert!(take(&mut large, 1 << 20));
        assert!(!take(&mut late, 1 << 18));
        drop(large);
        assert!(take(&mut late, 1 << 18));
        drop(late);
        assert_eq!(memory.units.available_permits(), memory.total_units);
    }

    #[test]
    fn who_gives_up_its_place_is_in_nobodys_way() {
        let memory = Arc::new(Memory::new(1 << 20));
        let [mut first, mut second, mut third] = [(); 3].map(|()| Share::of(&memory));
        assert!(take(&mut first, 1 << 20));
        assert!(!take(&mut second, 1 << 20));
        assert!(!take(&mut third, 1 << 20));
        drop(second);
        drop(first);
        assert!(take(&mut third, 1 << 20));
    }

    #[test]
    fn one_request_larger_than_the_budget_takes_all_of_it() {
        let memory = Arc::new(Memory::new(1 << 16));
        let [mut one, mut other] = [(); 2].map(|()| Share::of(&memory));
        assert!(take(&mut one, 1 << 20));
        assert!(!take(&mut other, 1 << 20));
        one.give_back(1 << 20);
        assert!(take(&mut other, 1 << 20));
    }

    #[test]
    fn only_who_keeps_others_waiting_and_hardly_moves_hoards() {
        let memory = Arc::new(Memory::new(1 << 20));
        let [mut one, mut other] = [(); 2].map(|()| Share::of(&memory));
        assert!(take(&mut one, 1 << 20));
        assert!(!one.is_hoarded(0, true) && !one.is_hoarded(0, true), "nobody waits");
        assert!(!take(&mut other, 1 << 20));
        assert!(!one.is_hoarded(0, true), "nobody waited when this was last asked");
        assert!(!one.is_hoarded(1 << 18, true), "it moves");
        assert!(one.is_hoarded(1 << 18, true));
        memory.grants.fetch_add(1, Ordering::Relaxed);
        assert!(!one.is_hoarded(1 << 18, true), "somebody got something");
        assert!(!one.is_hoarded(1 << 18, false), "it is not the client's fault");
        assert!(!one.is_hoarded(1 << 18, true), "nor was it since");
        assert!(one.is_hoarded(1 << 18, true));
    }
}
