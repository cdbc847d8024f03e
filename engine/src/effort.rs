//! Effort: how hard new data is compressed, by how much there is to do.
//!
//! The more work waits, the less of it a block is given. A batch behind which others wait is compressed
//! at the lower of the volume's two levels: the most data a second. A batch behind which nothing waits has
//! the processors to itself, and gets the higher one. A frame's header says which it was.
//!
//! The backlog alone decides. Under a load that the greater effort cannot keep up with, it grows until batches
//! of the lesser one have brought it down again, so that just what the processors have to spare is spent.
//! What is overwritten often gets the lesser effort always: it will be garbage soon.

/// How hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Much is waiting.
    Little,
    /// There is time.
    Great,
}

impl Effort {
    /// For a batch behind which so many bytes wait, when the other reducers can take so many at once.
    pub(crate) fn by_load(behind_bytes: usize, others_bytes: usize) -> Self {
        if behind_bytes > others_bytes { Self::Little } else { Self::Great }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_other_reducers_take_at_once_is_no_backlog() {
        for (behind_bytes, others_bytes, effort) in [
            (0, 0, Effort::Great),
            (1, 0, Effort::Little),
            (1 << 20, 1 << 20, Effort::Great),
            (2 << 20, 1 << 20, Effort::Little),
        ] {
            assert_eq!(Effort::by_load(behind_bytes, others_bytes), effort);
        }
    }
}
