//! What `stat --json` says, and what the server knows besides, as JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use siltstone_engine::{Explanation, PoolStat};
use siltstone_nbd::Operation;

use super::observation::Observation;

/// A server's state at one moment.
#[derive(Serialize)]
pub(super) struct Status<'a> {
    version: &'static str,
    /// The pool's path.
    pool: String,
    unix_ms: u64,
    started_unix_ms: u64,
    connections: usize,
    connections_limit: usize,
    /// How old what is known of the contents is; `None` before anything is.
    content_age_ms: Option<u64>,
    /// As `stat --json`.
    stat: &'a PoolStat,
    /// Volumes and snapshots that clients have connected to.
    traffic: Vec<VolumeTraffic<'a>>,
    /// What bounded the last second, as `top --json`.
    explanation: Option<&'a Explanation>,
    /// The same in the words of `top`.
    bound_in_words: String,
    without_in_words: String,
    /// The number of the newest event.
    newest_event: u64,
}

#[derive(Serialize)]
struct VolumeTraffic<'a> {
    name: &'a str,
    connections: usize,
    operations: Vec<OperationTraffic>,
}

#[derive(Serialize)]
struct OperationTraffic {
    operation: &'static str,
    requests: u64,
    bytes: u64,
    failures: u64,
    seconds: f64,
    /// Since the server began.
    p50_us: Option<f64>,
    p99_us: Option<f64>,
}

/// The state that was observed.
pub(super) fn of(observed: &Observation) -> Status<'_> {
    let explanation = observed.explanation.as_ref();
    Status {
        version: env!("CARGO_PKG_VERSION"),
        pool: observed.pool_path.display().to_string(),
        unix_ms: unix_ms(SystemTime::now()),
        started_unix_ms: unix_ms(observed.started),
        connections: observed.connections.0,
        connections_limit: observed.connections.1,
        content_age_ms: observed.content_ages.map(|(age, _)| age.as_millis() as u64),
        stat: &observed.stat,
        traffic: observed.traffic.iter().map(|(name, t)| traffic(observed, name, t)).collect(),
        explanation,
        bound_in_words: explanation.map_or("-".into(), Explanation::bound_in_words),
        without_in_words: explanation.map_or(String::new(), Explanation::without_in_words),
        newest_event: observed.newest_event,
    }
}

fn traffic<'a>(
    observed: &Observation,
    name: &'a str,
    traffic: &[siltstone_nbd::OperationTraffic],
) -> VolumeTraffic<'a> {
    let connected = observed.connected.iter().find(|(volume, _)| volume == name);
    let operation = |(operation, traffic): (&Operation, &siltstone_nbd::OperationTraffic)| {
        let us = |share| traffic.latencies.quantile_seconds(share).map(|seconds| seconds * 1e6);
        OperationTraffic {
            operation: operation.name(),
            requests: traffic.latencies.count(),
            bytes: traffic.bytes,
            failures: traffic.failures,
            seconds: traffic.latencies.sum_seconds(),
            p50_us: us(0.5),
            p99_us: us(0.99),
        }
    };
    VolumeTraffic {
        name,
        connections: connected.map_or(0, |(_, connections)| *connections),
        operations: Operation::ALL.iter().zip(traffic).map(operation).collect(),
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
