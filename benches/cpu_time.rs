//! The processor time that this process has taken so far, on all cores.

use siltstone_device::runtime::processor_ns;

/// It, in seconds.
#[must_use]
pub fn cpu_seconds() -> f64 {
    processor_ns() as f64 / 1e9
}
