//! Waiting for pipes and sockets without waiting for ever: somebody may want the end meanwhile.

use std::{os::fd::AsFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

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
