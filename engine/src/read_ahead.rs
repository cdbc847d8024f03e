//! Recognising sequential readers.
//!
//! A volume remembers where a few recent streams of reads ended. A read that starts where one
//! ended continues it; from the second such read on, the window that is read ahead of the stream
//! doubles up to a limit, and stays where it is while the reader has not used half of it. If that limit
//! allows, it is at least the next two reads like this one.
//!
//! A window is limited to its stream's share of half of the frame cache, so that what is read ahead is still there
//! when its reader comes. The share is taken anew whenever more is read ahead; a stream that has ended
//! has its share until others push it out of the few that are remembered. What other volumes read ahead at the
//! same time, and what a caller prefetches, is not counted.

use parking_lot::Mutex;

/// Streams remembered for each volume: one for each of a few clients.
const STREAMS: usize = 8;

/// Blocks read ahead at first.
const FIRST_WINDOW_BLOCKS: u64 = 64;
/// Most blocks read ahead of one stream: 4 MiB.
const MAX_WINDOW_BLOCKS: u64 = 1024;

/// The sequential readers of a volume.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: Mutex<Vec<Stream>>,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The block after the last one read.
    next: u64,
    /// The block after the last one read ahead.
    ahead: u64,
    window_blocks: u64,
}

/// Blocks to read ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub(crate) first: u64,
    pub(crate) len_blocks: u64,
}

impl Streams {
    /// Notes a read of blocks `first..end` and says what to read ahead, if anything, into a cache of
    /// `cache_blocks`.
    pub(crate) fn note(
        &self,
        first: u64,
        end: u64,
        volume_blocks: u64,
        cache_blocks: u64,
    ) -> Option<Ahead> {
        let mut streams = self.streams.lock();
        // A small read may end within a block in which the next one starts.
        let continues = |stream: &Stream| stream.next == first || stream.next == first + 1;
        let Some(at) = streams.iter().position(continues) else {
            if streams.len() == STREAMS {
                streams.remove(0);
            }
            streams.push(Stream { next: end, ahead: end, window_blocks: 0 });
            return None;
        };
        let mut stream = streams.remove(at);
        stream.next = end;
        stream.ahead = stream.ahead.max(end);
        let left = stream.ahead - end;
        let mut ahead = None;
        if left <= stream.window_blocks / 2 {
            let others = streams.iter().filter(|stream| stream.window_blocks > 0).count() as u64;
            let most = (cache_blocks / 2 / (others + 1)).min(MAX_WINDOW_BLOCKS);
            let wished = (stream.window_blocks.max(end - first) * 2).max(FIRST_WINDOW_BLOCKS);
            let window = wished.min(most);
            let until = (end + window).min(volume_blocks);
            if until > stream.ahead {
                ahead = Some(Ahead { first: stream.ahead, len_blocks: until - stream.ahead });
                stream.ahead = until;
                stream.window_blocks = window;
            }
        }
        streams.push(stream);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 MiB.
    const CACHE_BLOCKS: u64 = 16_384;

    #[test]
    fn a_sequential_reader_is_always_ahead_and_never_reads_twice() {
        let streams = Streams::default();
        let mut covered = 0;
        for read in 0..1000 {
            let first = read * 32;
            if let Some(ahead) = streams.note(first, first + 32, 1 << 20, CACHE_BLOCKS) {
                assert!(ahead.first >= covered && ahead.first >= first + 32);
                assert!(ahead.first + ahead.len_blocks <= first + 32 + MAX_WINDOW_BLOCKS);
                covered = ahead.first + ahead.len_blocks;
            }
            assert!(read == 0 || covered > first + 32, "read {read}");
        }
    }

    #[test]
    fn random_reads_read_nothing_ahead() {
        let streams = Streams::default();
        for read in 0..1000u64 {
            let first = read * 7919 % 100_000;
            assert_eq!(streams.note(first, first + 1, 1 << 20, CACHE_BLOCKS), None);
        }
    }

    #[test]
    fn interleaved_readers_are_told_apart_and_the_end_is_kept() {
        let streams = Streams::default();
        let mut seen = [0u64; 4];
        for read in 0..20 {
            for reader in 0..4u64 {
                let first = reader * 5000 + read * 16;
                if let Some(ahead) = streams.note(first, first + 16, 15_200, CACHE_BLOCKS) {
                    seen[reader as usize] += ahead.len_blocks;
                    assert!(ahead.first + ahead.len_blocks <= 15_200);
                }
            }
        }
        assert!(seen.iter().all(|&blocks| blocks >= 64), "{seen:?}");
    }
}
