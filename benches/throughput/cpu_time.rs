//! The processor time that this process has taken so far, on all cores.

use rustix::time::{ClockId, clock_gettime};

pub(crate) fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
