//! Many operations at a time on a few threads, as a server has them: an executor of a page.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use parking_lot::Mutex;

/// Lanes of one thread that may go on.
struct Ready {
    lanes: Mutex<Vec<usize>>,
    thread: Thread,
}

struct LaneWaker {
    ready: Arc<Ready>,
    lane: usize,
}

impl Wake for LaneWaker {
    fn wake(self: Arc<Self>) {
        self.ready.lanes.lock().push(self.lane);
        self.ready.thread.unpark();
    }
}

/// Runs all futures to their ends on this thread.
fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let count = futures.len();
    let lanes = Mutex::new((0..count).collect());
    let ready = Arc::new(Ready { lanes, thread: thread::current() });
    let waker = |lane| Waker::from(Arc::new(LaneWaker { ready: Arc::clone(&ready), lane }));
    let mut lanes: Vec<Option<(Pin<Box<_>>, Waker)>> =
        (0..).zip(futures).map(|(lane, future)| Some((Box::pin(future), waker(lane)))).collect();
    let mut results = Vec::with_capacity(count);
    while results.len() < count {
        let woken = std::mem::take(&mut *ready.lanes.lock());
        if woken.is_empty() {
            thread::park();
        }
        for lane in woken {
            // A lane may be woken once more after its end.
            let Some((future, waker)) = &mut lanes[lane] else { continue };
            if let Poll::Ready(result) = pin!(future).poll(&mut Context::from_waker(waker)) {
                results.push(result);
                lanes[lane] = None;
            }
        }
    }
    results
}

/// Runs `lanes` futures, made by `start(lane)`, on `threads` threads; returns all results, or the
/// first error.
///
/// # Errors
/// What a future ends with.
pub fn run<T: Send, E: Send, F: Future<Output = Result<T, E>>>(
    threads: usize,
    lanes: usize,
    start: impl Fn(usize) -> F + Sync,
) -> Result<Vec<T>, E> {
    let start = &start;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|first| {
                scope.spawn(move || join_all((first..lanes).step_by(threads).map(start).collect()))
            })
            .collect();
        let results =
            workers.into_iter().flat_map(|worker| worker.join().expect("a lane does not panic"));
        results.collect()
    })
}
