//! Models: every interleaving of threads that serve a queue with those who fill and close it.

use super::*;
use crate::sync::{
    atomic::{AtomicUsize, Ordering},
    explore::{Arc, explore, thread},
};

fn flush(completed: &Arc<AtomicUsize>) -> Request {
    let completed = Arc::clone(completed);
    let completion = Box::new(move |_| {
        completed.fetch_add(1, Ordering::AcqRel);
    });
    Request::Flush { completion }
}

fn serve(queue: &RequestQueue) {
    while let Some(request) = queue.next() {
        request.complete(Ok(()));
    }
}

/// Every request is completed once, and the threads end when the queue is closed.
#[test]
fn every_request_is_served_and_every_thread_ends() {
    explore("request queue: served and closed", Some(3), || {
        let (queue, completed) = (Arc::new(RequestQueue::default()), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || serve(&queue))
            })
            .collect();
        queue.push(vec![flush(&completed), flush(&completed)], 2);
        queue.push(vec![flush(&completed)], 2);
        queue.close();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(completed.load(Ordering::Acquire), 3);
    });
}

/// Two requests reach two threads that wait, although each holds on to its own: neither is left
/// in the queue for want of a wake-up.
#[test]
fn a_batch_wakes_a_thread_for_each_request() {
    explore("request queue: a thread for each request", Some(3), || {
        let (queue, completed) = (Arc::new(RequestQueue::default()), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || queue.next().unwrap().complete(Ok(())))
            })
            .collect();
        queue.push(vec![flush(&completed), flush(&completed)], 2);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(completed.load(Ordering::Acquire), 2);
    });
}
