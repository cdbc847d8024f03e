//! Any history of snapshots, clones, rollbacks and writes, against a model.

use std::collections::BTreeMap;

use siltstone_device::SeededRandom;
use siltstone_engine::{EngineError, Pool, SnapshotName, VolumeOptions};

use super::{BLOCK, MIB, assert_holds, create, open, write};

/// Volumes and snapshots, and what each is to hold.
#[derive(Default)]
struct Model {
    volumes: BTreeMap<String, Vec<u64>>,
    snapshots: BTreeMap<SnapshotName, Vec<u64>>,
    versions: u64,
    names: u64,
}

impl Model {
    fn any<K: Clone, V>(of: &BTreeMap<K, V>, random: &mut SeededRandom) -> Option<K> {
        let at = random.below(of.len().max(1) as u64) as usize;
        of.keys().nth(at).cloned()
    }

    fn new_name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    fn step(&mut self, pool: &Pool, random: &mut SeededRandom) {
        let Some(volume) = Self::any(&self.volumes, random) else {
            let name = self.new_name();
            let blocks = 1 + random.below(300);
            pool.create_volume(&name, &VolumeOptions::new(blocks * BLOCK)).unwrap();
            self.volumes.insert(name, vec![0; blocks as usize]);
            return;
        };
        let snapshot = Self::any(&self.snapshots, random);
        let are_many = self.volumes.len() > 2;
        let versions = self.volumes.get_mut(&volume).unwrap();
        let blocks = versions.len() as u64;
        match (random.below(100), snapshot) {
            (0..50, _) => {
                let disk = pool.volume(&volume).unwrap();
                let first = random.below(blocks);
                for at in first..(first + 1 + random.below(20)).min(blocks) {
                    self.versions += 1;
                    // Some of it is a duplicate.
                    let version = if random.below(4) == 0 { 1 + at } else { self.versions };
                    versions[at as usize] = version;
                    write(&disk, at, version);
                }
            }
            (50..58, _) => {
                let disk = pool.volume(&volume).unwrap();
                let first = random.below(blocks);
                let len = (1 + random.below(60)).min(blocks - first);
                disk.discard(first * BLOCK, len * BLOCK).unwrap();
                versions[first as usize..(first + len) as usize].fill(0);
            }
            (58..72, _) => {
                let own = self.new_name();
                let of: Vec<_> = self.volumes.keys().filter(|_| random.below(3) > 0).collect();
                let names: Vec<_> =
                    of.iter().map(|volume| SnapshotName::new(volume, &own).unwrap()).collect();
                pool.create_snapshots(&names).unwrap();
                for name in names {
                    let versions = self.volumes[&name.volume].clone();
                    self.snapshots.insert(name, versions);
                }
            }
            (72..78, Some(snapshot)) => {
                pool.delete_snapshots(std::slice::from_ref(&snapshot)).unwrap();
                self.snapshots.remove(&snapshot);
            }
            (78..82, Some(snapshot)) => {
                let clone = self.new_name();
                pool.clone_snapshot(&snapshot, &clone).unwrap();
                self.volumes.insert(clone, self.snapshots[&snapshot].clone());
            }
            (82..85, Some(snapshot)) => {
                let before = pool.volume(&snapshot.volume).unwrap();
                pool.roll_back(&snapshot).unwrap();
                let versions = self.snapshots[&snapshot].clone();
                self.volumes.insert(snapshot.volume, versions);
                let refused = before.read_at(0, &mut [0; 512]).unwrap_err();
                assert!(matches!(refused, EngineError::VolumeRolledBack { .. }), "{refused}");
            }
            (85..88, _) if are_many => {
                pool.delete_volume_and_snapshots(&volume).unwrap();
                self.volumes.remove(&volume);
                self.snapshots.retain(|name, _| name.volume != volume);
            }
            (88..90, _) => {
                let blocks = 1 + random.below(300);
                pool.resize_volume(&volume, blocks * BLOCK).unwrap();
                versions.resize(blocks as usize, 0);
            }
            (90..92, _) => pool.checkpoint().unwrap(),
            (92..93, _) => pool.collect_garbage().unwrap(),
            (_, Some(snapshot)) => self.check_snapshot(pool, &snapshot),
            _ => self.check_volume(pool, &volume),
        }
    }

    fn check_volume(&self, pool: &Pool, volume: &str) {
        assert_holds(&pool.volume(volume).unwrap(), &self.volumes[volume]);
    }

    fn check_snapshot(&self, pool: &Pool, snapshot: &SnapshotName) {
        let disk = pool.volume(&snapshot.to_string()).unwrap();
        assert_holds(&disk, &self.snapshots[snapshot]);
    }

    fn check(&self, pool: &Pool) {
        let names: Vec<_> = pool.volumes().into_iter().map(|volume| volume.name).collect();
        assert!(names.iter().eq(self.volumes.keys()), "{names:?}");
        let names: Vec<_> = pool
            .snapshots()
            .iter()
            .map(|info| SnapshotName::new(&info.volume, &info.snapshot).unwrap())
            .collect();
        assert_eq!(names, self.snapshots.keys().cloned().collect::<Vec<_>>());
        self.volumes.keys().for_each(|volume| self.check_volume(pool, volume));
        self.snapshots.keys().for_each(|snapshot| self.check_snapshot(pool, snapshot));
    }
}

#[test]
fn any_history_of_snapshots_clones_and_writes_reads_as_it_should() {
    for seed in 0..6 {
        let (device, mut pool) = create(64 * MIB);
        let mut random = SeededRandom::new(seed);
        let mut model = Model::default();
        for _ in 0..4 {
            for _ in 0..150 {
                model.step(&pool, &mut random);
            }
            model.check(&pool);
            pool.close().unwrap();
            pool = open(&device);
            model.check(&pool);
        }
        let report = pool.check(&mut |_| {}).unwrap();
        assert!(report.is_sound(), "{report:#?}");
    }
}
