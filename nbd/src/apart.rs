//! Requests that are not answered at once, and so run apart from their connection.
//!
//! The connection polls a request first. One that has to wait, for a device mostly, is then kept
//! by its waker, and becomes a task when it is woken: so there is no task, and no thread is woken
//! for one, before there is something to do. What the waiting brings, decompression for example,
//! is done by that task on whichever thread has time.
//!
//! A request that waits belongs to those who will wake it. If nobody does, nothing ends it: a connection that
//! is cut off gives up those of its own ([`Waiting`]).

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;
use tokio::runtime::Handle;

type BoxedFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs `future` to its end, which is not waited for. Polls it once before it returns; what is returned can
/// give it up. Must be called within a tokio runtime.
fn run(mut future: BoxedFuture) -> Option<Arc<Apart>> {
    let apart = Arc::new(Apart { state: Mutex::new(State::Polled), runtime: Handle::current() });
    let waker = Waker::from(Arc::clone(&apart));
    let mut context = Context::from_waker(&waker);
    // As in a task of its own, a panic is the request's, not the connection's.
    let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
    if !matches!(polled, Ok(Poll::Pending)) {
        return None;
    }
    let mut state = apart.state.lock();
    match *state {
        State::Polled => {
            *state = State::Waiting(future);
            drop(state);
            Some(apart)
        }
        State::Woken => {
            drop(state);
            apart.runtime.spawn(Begun { future: Some(future) });
            None
        }
        State::Waiting(_) => unreachable!("only the first poll makes it wait"),
    }
}

enum State {
    /// For the first time, right now.
    Polled,
    /// During that, or later; the task's own wakers do all further waking.
    Woken,
    Waiting(BoxedFuture),
}

struct Apart {
    state: Mutex<State>,
    runtime: Handle,
}

impl Wake for Apart {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let state = std::mem::replace(&mut *self.state.lock(), State::Woken);
        if let State::Waiting(future) = state {
            self.runtime.spawn(Begun { future: Some(future) });
        }
    }
}

/// The requests that a connection runs apart, each at a place of its own.
#[derive(Default)]
pub(crate) struct Waiting {
    places: Vec<Option<Arc<Apart>>>,
    free: Vec<usize>,
}

impl Waiting {
    /// Runs the future that `request` makes for its place, which it gives back ([`Self::ended`]) when it has
    /// ended. Must be called within a tokio runtime.
    pub(crate) fn run(&mut self, request: impl FnOnce(usize) -> BoxedFuture) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = run(request(place));
    }

    /// The request at that place has ended.
    pub(crate) fn ended(&mut self, place: usize) {
        self.places[place] = None;
        self.free.push(place);
    }
}

/// Nobody is left who waits for them. Those that were woken are the runtime's, which drops them with itself.
impl Drop for Waiting {
    fn drop(&mut self) {
        for apart in self.places.iter().flatten() {
            let state = std::mem::replace(&mut *apart.state.lock(), State::Woken);
            // Not under the lock: it may wake itself.
            drop(state);
        }
    }
}

/// A request's task. A runtime that is being shut down drops it at once, where it was woken: by someone who may
/// hold the very lock that the request's own wait takes when it is given up. So a request that has not ended
/// is dropped on a thread of its own.
struct Begun {
    /// `None` once it has ended.
    future: Option<BoxedFuture>,
}

impl Future for Begun {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let future = self.future.as_mut().expect("a task is not polled after its end");
        let polled = future.as_mut().poll(context);
        if polled.is_ready() {
            self.future = None;
        }
        polled
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            // Without a thread it stays: the process ends soon.
            let spare = std::thread::Builder::new().name("given-up".into());
            let _ = spare.spawn(move || drop(future));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::mpsc, thread, time::Duration};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_request_that_is_woken_later_is_finished_elsewhere() {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let (sender, receiver) = mpsc::channel();
        let _apart = run(Box::pin(async move {
            // It tells what it got.
            let _ = sender.send(answered.await);
        }));
        assert!(receiver.try_recv().is_err());
        let answer = thread::spawn(move || answer.send(7));
        assert_eq!(answer.join().unwrap(), Ok(()));
        let received = tokio::task::spawn_blocking(move || receiver.recv_timeout(LIMIT));
        assert_eq!(received.await.unwrap(), Ok(Ok(7)));
    }

    /// Locks when it is dropped, as one who waits in a list does to leave it.
    struct Leaves(Arc<Mutex<()>>, mpsc::Sender<()>);

    impl Drop for Leaves {
        fn drop(&mut self) {
            let _list = self.0.lock();
            // It tells that it got there.
            let _ = self.1.send(());
        }
    }

    #[tokio::test]
    async fn a_request_that_is_never_woken_goes_with_its_connection() {
        let held = Arc::new(());
        let (for_ended, for_stuck) = (Arc::clone(&held), Arc::clone(&held));
        let waker = Arc::new(Mutex::new(None::<Waker>));
        let list = Arc::clone(&waker);
        let mut waiting = Waiting::default();
        waiting.run(|_| Box::pin(async move { drop(for_ended) }));
        assert_eq!(Arc::strong_count(&held), 2, "what is at hand is gone at once");
        waiting.ended(0);
        waiting.run(|_| {
            Box::pin(async move {
                let _held = for_stuck;
                // The list that it waits in knows it, and it knows the list.
                poll_fn::<(), _>(|context| {
                    *list.lock() = Some(context.waker().clone());
                    Poll::Pending
                })
                .await;
            })
        });
        assert_eq!(Arc::strong_count(&held), 2);
        drop(waiting);
        assert_eq!(Arc::strong_count(&held), 1);
        // It is too late now, and does no harm.
        waker.lock().take().unwrap().wake();
    }

    /// Whoever wakes may hold the lock of the list that the request waits in.
    #[test]
    fn a_request_that_is_woken_after_the_runtimes_end_is_given_up_elsewhere() {
        let (list, waiting) = (Arc::new(Mutex::new(())), Arc::new(Mutex::new(None::<Waker>)));
        let (sender, receiver) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (leaves, waker) = (Leaves(Arc::clone(&list), sender), Arc::clone(&waiting));
        runtime.block_on(async {
            run(Box::pin(async move {
                let _leaves = leaves;
                poll_fn::<(), _>(|context| {
                    *waker.lock() = Some(context.waker().clone());
                    Poll::Pending
                })
                .await;
            }));
        });
        drop(runtime);
        let woken = thread::spawn(move || {
            let waker = waiting.lock().take().unwrap();
            let _list = list.lock();
            waker.wake();
        });
        assert_eq!(receiver.recv_timeout(LIMIT), Ok(()), "it waits for its own lock");
        woken.join().unwrap();
    }

    /// A wake-up that comes while the first poll still runs must not be lost.
    #[tokio::test]
    async fn a_request_that_is_woken_in_its_first_poll_is_finished() {
        let (sender, receiver) = mpsc::channel();
        let mut polls = 0;
        run(Box::pin(async move {
            poll_fn(|context| {
                polls += 1;
                // More than once is not too often.
                context.waker().wake_by_ref();
                context.waker().wake_by_ref();
                if polls == 3 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            // It tells that it came to its end.
            let _ = sender.send(());
        }));
        let received = tokio::task::spawn_blocking(move || receiver.recv_timeout(LIMIT));
        assert_eq!(received.await.unwrap(), Ok(()));
    }
}
