//! The processor time that this process has taken so far, on all cores, and how many wanted some.

use siltstone_device::runtime::processor_ns;

/// It, in seconds.
#[must_use]
pub fn cpu_seconds() -> f64 {
    processor_ns() as f64 / 1e9
}

/// How many threads wanted to run in the last minute.
#[must_use]
pub fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}
