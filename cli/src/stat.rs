//! `siltstone stat`.

use siltstone_engine::{Pool, PoolStat};

use crate::{
    args::pool::{PoolArgument, StatArguments},
    errors::CliError,
    on_pool::{Access, PoolOperation},
    output::table,
    plural::count,
    session::{Session, print_json},
    size::human,
};

impl PoolOperation for StatArguments {
    fn pool(&self) -> &PoolArgument {
        &self.pool
    }

    fn access(&self) -> Access {
        // Its fill and sampling shall be those that a server would have.
        Access::ReadWarm
    }

    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError> {
        let stat = pool.stat()?;
        if self.json { print_json(session, &stat) } else { session.print(&tables(&stat)) }
    }
}

fn tables(stat: &PoolStat) -> String {
    let row = |name: &str, value: String, note: String| vec![name.into(), value, note];
    let full = 100 * stat.index_entries / stat.index_capacity_entries.max(1);
    let one_in = 1u64 << stat.index_sample_bits;
    let kept = if one_in == 1 { "all".into() } else { format!("one in {one_in}") };
    let index = format!("of memory, {full} % full, keeps {kept} of the fingerprints");
    let mut rows = vec![
        row("size", human(stat.size_bytes), String::new()),
        row("free", human(stat.free_bytes), "before reduction".into()),
        row("logical", human(stat.logical_bytes), "mapped by volumes".into()),
        row("unique", human(stat.unique_bytes), ratio("dedup", stat.dedup_ratio)),
        row("stored", human(stat.stored_bytes), ratio("compression", stat.compression_ratio)),
        row("metadata", human(stat.metadata_bytes), String::new()),
        row("index", human(stat.index_bytes), index),
        row("NVRAM log", human(stat.nvram_used_bytes), "in use".into()),
    ];
    let last_scrub = match &stat.last_scrub {
        Some(last) => format!("{} s ago", last.finished_seconds_ago),
        None => "none".into(),
    };
    let found = match &stat.last_scrub {
        Some(last) if last.problems > 0 => {
            let lost = count(last.lost_ranges, "lost range");
            format!("found {} and {lost}: see the log, or check", count(last.problems, "problem"))
        }
        Some(_) => "found nothing wrong".into(),
        None => "since the pool was opened".into(),
    };
    rows.push(row("last scrub", last_scrub, found));
    let mut notes = String::new();
    for repair in &stat.repairs {
        notes += &format!("note: {repair}\n");
    }
    if let Some(failure) = &stat.failure {
        notes += &format!("failure: {failure}\n");
    }
    let head = ["VOLUME", "SIZE", "LOGICAL", "LEVEL"];
    let mut volumes = vec![head.map(String::from).to_vec()];
    for volume in &stat.volumes {
        volumes.push(vec![
            volume.name.clone(),
            human(volume.size_bytes),
            human(volume.logical_bytes),
            volume.level.to_string(),
        ]);
    }
    table(&rows) + &notes + "\n" + &table(&volumes)
}

fn ratio(what: &str, ratio: f64) -> String {
    format!("{what} {ratio:.2}:1")
}
