//! What clients did with each volume since the server began, over all their connections.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use siltstone_nbd::Traffic;

/// By the names of volumes and snapshots; only those that somebody has connected to.
#[derive(Default)]
pub(crate) struct VolumeTraffic {
    by_name: Mutex<BTreeMap<String, Arc<Traffic>>>,
}

impl VolumeTraffic {
    /// Where a volume's requests are counted.
    pub(crate) fn of(&self, name: &str) -> Arc<Traffic> {
        Arc::clone(self.by_name().entry(name.into()).or_default())
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<(String, Arc<Traffic>)> {
        let by_name = self.by_name();
        by_name.iter().map(|(name, traffic)| (name.clone(), Arc::clone(traffic))).collect()
    }

    /// Forgets volumes that are no more, once nobody is connected to them.
    pub(super) fn forget(&self, is_there: impl Fn(&str) -> bool) {
        self.by_name().retain(|name, traffic| Arc::strong_count(traffic) > 1 || is_there(name));
    }

    fn by_name(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Traffic>>> {
        // Each change is one call, whatever panicked.
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_forgotten_when_it_is_gone_and_nobody_uses_it() {
        let all = VolumeTraffic::default();
        let (used, _) = (all.of("used"), all.of("gone"));
        all.of("there");
        assert!(Arc::ptr_eq(&used, &all.of("used")));
        all.forget(|name| name == "there");
        let names: Vec<String> = all.all().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["there", "used"]);
    }
}
