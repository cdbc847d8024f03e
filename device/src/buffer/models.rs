//! Models: every interleaving of threads that take and drop buffers of one pool.

use super::*;
use crate::sync::explore::{explore, thread, yield_now};

const LEN: usize = BLOCK_BYTES;

/// Memory has one owner at a time, and a pool keeps no more of it than it may.
#[test]
fn memory_has_one_owner_and_the_limit_holds() {
    explore("buffers: one owner", Some(3), || {
        let pool = BufferPool::new(LEN);
        let use_buffers = |pool: &BufferPool, mark: u8| {
            for _ in 0..2 {
                let mut buffer = pool.take(LEN);
                buffer[0] = mark;
                yield_now();
                assert_eq!(buffer[0], mark, "somebody else has the same memory");
                assert!(pool.idle_bytes() <= LEN);
            }
        };
        let other = {
            let pool = pool.clone();
            thread::spawn(move || use_buffers(&pool, 1))
        };
        use_buffers(&pool, 2);
        other.join().unwrap();
        assert!(pool.idle_bytes() <= LEN);
    });
}
