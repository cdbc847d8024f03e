//! `siltstone snapshot` and `siltstone clone`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use siltstone_engine::{EngineError, Pool, SnapshotInfo, SnapshotName};

use crate::{
    args::{
        pool::PoolArgument,
        snapshot::{CloneArguments, SnapshotCommand},
    },
    errors::CliError,
    on_pool::{Access, PoolOperation},
    output::table,
    session::{Session, print_json},
    size::human,
};

impl PoolOperation for SnapshotCommand {
    fn pool(&self) -> &PoolArgument {
        match self {
            Self::Create { pool, .. }
            | Self::List { pool, .. }
            | Self::Delete { pool, .. }
            | Self::Rollback { pool, .. } => pool,
        }
    }

    fn access(&self) -> Access {
        match self {
            Self::List { .. } => Access::Read,
            Self::Create { .. } | Self::Delete { .. } | Self::Rollback { .. } => Access::Change,
        }
    }

    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError> {
        match self {
            Self::Create { snapshots, .. } => {
                let names = names(snapshots, &date(SystemTime::now()))?;
                pool.create_snapshots(&names)?;
                report(&names, "took", session)
            }
            Self::List { volume, json, .. } => list(pool, volume.as_deref(), *json, session),
            Self::Delete { snapshots, .. } => {
                let names = snapshots.iter().map(|name| name.parse());
                let names = names.collect::<Result<Vec<_>, EngineError>>()?;
                pool.delete_snapshots(&names)?;
                report(&names, "deleted", session)
            }
            Self::Rollback { snapshot, .. } => {
                let snapshot: SnapshotName = snapshot.parse()?;
                pool.roll_back(&snapshot)?;
                let volume = &snapshot.volume;
                session.print(&format!("rolled volume '{volume}' back to '{snapshot}'\n"))
            }
        }
    }
}

impl PoolOperation for CloneArguments {
    fn pool(&self) -> &PoolArgument {
        &self.pool
    }

    fn access(&self) -> Access {
        Access::Change
    }

    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError> {
        let Self { snapshot, name, .. } = self;
        let volume = pool.clone_snapshot(&snapshot.parse()?, name)?;
        let size = human(volume.size_bytes());
        session.print(&format!("created volume '{name}' from '{snapshot}', {size}\n"))
    }
}

/// The snapshots to take; one that is given no name gets `default`.
fn names(given: &[String], default: &str) -> Result<Vec<SnapshotName>, EngineError> {
    let name = |given: &String| match given.contains('@') {
        true => given.parse(),
        false => SnapshotName::new(given, default),
    };
    given.iter().map(name).collect()
}

fn report(names: &[SnapshotName], done: &str, session: &mut dyn Session) -> Result<(), CliError> {
    let lines: String = names.iter().map(|name| format!("{done} snapshot '{name}'\n")).collect();
    session.print(&lines)
}

fn list(
    pool: &Pool,
    volume: Option<&str>,
    json: bool,
    session: &mut dyn Session,
) -> Result<(), CliError> {
    let mut snapshots = pool.snapshots();
    if let Some(volume) = volume {
        // Which is an error if it does not exist.
        pool.volume(volume)?;
        snapshots.retain(|snapshot| snapshot.volume == volume);
    }
    if json {
        return print_json(session, &snapshots);
    }
    let mut rows = vec![["SNAPSHOT", "SIZE", "TAKEN"].map(String::from).to_vec()];
    for SnapshotInfo { volume, snapshot, size_bytes, created_unix_s } in snapshots {
        let taken = date(UNIX_EPOCH + Duration::from_secs(created_unix_s));
        rows.push(vec![format!("{volume}@{snapshot}"), human(size_bytes), taken]);
    }
    session.print(&table(&rows))
}

/// Like 2026-11-21T18:10:03Z.
fn date(time: SystemTime) -> String {
    // Clocks that no date can be written for are no reason to fail.
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(time.clamp(UNIX_EPOCH, last)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_without_a_name_are_named_alike() {
        let names = names(&["a".into(), "b@s".into(), "c".into()], "now").unwrap();
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a@now", "b@s", "c@now"]);
    }

    #[test]
    fn any_clock_has_a_date_that_can_be_a_name() {
        let from_start = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(date(from_start(1_795_284_603)), "2026-11-21T18:10:03Z");
        for time in [UNIX_EPOCH - Duration::from_secs(1), from_start(u64::from(u32::MAX) << 12)] {
            SnapshotName::new("volume", &date(time)).unwrap();
        }
    }
}
