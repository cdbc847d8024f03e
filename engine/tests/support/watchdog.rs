//! Ends the process with a message when a test hangs.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// How long nothing may happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Aborts the process unless it is fed or dropped in time.
pub struct Watchdog {
    sender: mpsc::Sender<String>,
}

impl Watchdog {
    pub fn new(what: impl Into<String>) -> Self {
        let (sender, receiver) = mpsc::channel();
        let mut what: String = what.into();
        thread::spawn(move || {
            loop {
                match receiver.recv_timeout(PATIENCE) {
                    Ok(next) => what = next,
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        eprintln!("HANG: nothing has happened for {PATIENCE:?} in: {what}");
                        std::process::abort();
                    }
                }
            }
        });
        Self { sender }
    }

    /// Something else begins.
    pub fn feed(&self, what: impl Into<String>) {
        let _ = self.sender.send(what.into());
    }
}
