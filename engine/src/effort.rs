//! Effort: how hard new data is compressed, by how much there is to do.
//!
//! The more work waits, the less of it a block is given. A batch behind which others wait is compressed
//! at the lower of the volume's two levels: the most data a second. A batch behind which nothing waits has
//! the processors to itself, and gets the higher one. A frame's header says which it was.
//!
//! The backlog alone decides, and with it who waits for a place there. Under a load that the greater effort cannot keep up with, it grows until batches
//! of the lesser one have brought it down again, so that just what the processors have to spare is spent.
//! What is overwritten often gets the lesser effort always: it will be garbage soon.

/// So much of staging waits only under load, however many reducers there are: what they are at work on, and what
/// waits for the device, is in staging, too.
const STAGING_PART: usize = 4;

/// How hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Much is waiting.
    Little,
    /// There is time.
    Great,
}

impl Effort {
    /// For a batch behind which so many bytes wait, when the other reducers can take so many at once, and all that
    /// can wait is a part of so much staging memory.
    pub(crate) fn by_load(behind_bytes: usize, others_bytes: usize, staging_bytes: usize) -> Self {
        let most_bytes = others_bytes.min(staging_bytes / STAGING_PART);
        if behind_bytes > most_bytes { Self::Little } else { Self::Great }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_other_reducers_take_at_once_is_no_backlog() {
        const MIB: usize = 1 << 20;
        for (behind_bytes, others_bytes, effort) in [
            (0, 0, Effort::Great),
            (1, 0, Effort::Little),
            (MIB, MIB, Effort::Great),
            (2 * MIB, MIB, Effort::Little),
            // 64 reducers: that much never waits.
            (8 * MIB, 63 * MIB, Effort::Great),
            (9 * MIB, 63 * MIB, Effort::Little),
        ] {
            assert_eq!(Effort::by_load(behind_bytes, others_bytes, 32 * MIB), effort);
        }
    }
}
