//! Waiting without waiting for ever: somebody may want the end meanwhile.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use siltstone_device::{Runtime, Threads, runtime::either};

use crate::{errors::CliError, session::Cancellation};

/// How often those who wait look whether they still have to.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Something to read, or the end.
    Read,
    /// Room to write, or nobody who reads.
    Write,
}

/// Waits until `file` is ready, or `enough` says so. Returns whether it is ready; that it has
/// failed is for the next read or write to tell.
pub(crate) fn until(
    file: impl AsFd,
    direction: Direction,
    mut enough: impl FnMut() -> bool,
) -> bool {
    let flags = match direction {
        Direction::Read => PollFlags::IN,
        Direction::Write => PollFlags::OUT,
    };
    loop {
        let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK_EVERY.as_nanos() as i64 };
        match poll(&mut [PollFd::new(&file, flags)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return true,
        }
        if enough() {
            return false;
        }
    }
}

/// Waits for `work`, unless the command is cancelled; then `work` is dropped, `grace` later.
pub(crate) fn unless_cancelled<T>(
    work: impl Future<Output = T>,
    cancellation: &Cancellation,
    grace: Duration,
) -> Result<T, CliError> {
    let mut done = None;
    let mut cancelled = Ok(());
    let work = async { done = Some(work.await) };
    let watch = async {
        while cancelled.is_ok() {
            Threads.sleep_until(Instant::now() + LOOK_EVERY).await;
            cancelled = cancellation();
        }
        Threads.sleep_until(Instant::now() + grace).await;
    };
    pollster::block_on(either(work, watch));
    match (done, cancelled) {
        (Some(done), _) => Ok(done),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => unreachable!("the watch ends when the command is cancelled"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, sync::Arc};

    #[test]
    fn work_ends_when_it_is_done_or_cancelled() {
        let go_on: Cancellation = Arc::new(|| Ok(()));
        assert_eq!(unless_cancelled(async { 7 }, &go_on, Duration::ZERO).unwrap(), 7);
        let end: Cancellation = Arc::new(|| Err(CliError::Interrupted));
        let never = unless_cancelled(std::future::pending::<()>(), &end, Duration::ZERO);
        assert!(matches!(never, Err(CliError::Interrupted)));
        // What ends by itself in time has done its work.
        let soon = Threads.sleep_until(Instant::now() + 2 * LOOK_EVERY);
        unless_cancelled(soon, &end, Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn a_pipe_is_waited_for_until_it_is_ready_or_it_is_enough() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut looks = 0;
        let is_ready = until(&reader, Direction::Read, || {
            looks += 1;
            looks == 2
        });
        assert!(!is_ready && looks == 2);
        writer.write_all(b"x").unwrap();
        assert!(until(&reader, Direction::Read, || unreachable!("it is ready")));
        assert!(until(&writer, Direction::Write, || unreachable!("there is room")));
        drop(reader);
        assert!(until(&writer, Direction::Write, || unreachable!("nobody reads")));
    }
}
