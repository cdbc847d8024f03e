//! Which volumes the server's clients are connected to: some commands must not change those.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long a client may take to leave that has said so, or ended.
const LEAVING: Duration = Duration::from_secs(1);

/// The volumes and snapshots that clients are connected to.
#[derive(Debug, Default)]
pub(crate) struct ConnectedVolumes {
    /// Connections by name; none is zero.
    connections: Mutex<HashMap<String, usize>>,
    one_less: Condvar,
}

/// A connection to a volume, until it is dropped.
#[derive(Debug)]
pub(crate) struct Connected {
    all: Arc<ConnectedVolumes>,
    volume: String,
}

impl ConnectedVolumes {
    /// A client connects.
    pub(crate) fn connect(self: &Arc<Self>, volume: &str) -> Connected {
        *self.connections().entry(volume.into()).or_default() += 1;
        Connected { all: Arc::clone(self), volume: volume.into() }
    }

    /// Whether clients are connected to a volume, and stay: one whose end was seen before the
    /// server noticed it is waited for.
    pub(crate) fn stay(&self, volume: &str) -> bool {
        let is_connected = |all: &mut HashMap<String, usize>| all.contains_key(volume);
        let connections = self.connections();
        let waited = self.one_less.wait_timeout_while(connections, LEAVING, is_connected);
        waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// How many clients are connected to each volume or snapshot that has any.
    pub(crate) fn counts(&self) -> Vec<(String, usize)> {
        let connections = self.connections();
        let mut counts: Vec<_> = connections.iter().map(|(name, n)| (name.clone(), *n)).collect();
        drop(connections);
        counts.sort_unstable();
        counts
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // Numbers are whole whatever panicked.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut connections = self.all.connections();
        if let Some(count) = connections.get_mut(&self.volume) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.volume);
            }
        }
        drop(connections);
        self.all.one_less.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_connected_until_its_last_client_leaves() {
        let all = Arc::new(ConnectedVolumes::default());
        assert!(!all.stay("disk"));
        let (one, two) = (all.connect("disk"), all.connect("disk"));
        assert!(!all.stay("disk@monday") && !all.stay("other"));
        assert_eq!(all.counts(), [("disk".into(), 2)]);
        drop(one);
        assert!(all.stay("disk"), "the other is still there");
        drop(two);
        assert!(!all.stay("disk"));
        assert!(all.connections().is_empty(), "names do not pile up");
    }

    #[test]
    fn a_client_that_is_leaving_is_waited_for() {
        let all = Arc::new(ConnectedVolumes::default());
        let client = all.connect("disk");
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| all.stay("disk"));
            drop(client);
            assert!(!asked.join().unwrap());
        });
    }
}
