//! The processor time that this process has taken so far, on all cores, and that nobody has; and how
//! many wanted some.

use siltstone_device::runtime::processor_ns;

/// What the system counts processor time in, whatever its clock: see proc_stat(5).
const TICKS_PER_SECOND: f64 = 100.0;
/// Of what the system says of a processor's time: idle, and idle until a device answers.
const IDLE_FIELDS: std::ops::Range<usize> = 4..6;

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

/// The time in which processors had nothing to do, of this machine's all together, in seconds; to a
/// hundredth of a second.
#[must_use]
pub fn idle_seconds() -> f64 {
    idle_seconds_of(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
}

fn idle_seconds_of(stat: &str) -> f64 {
    let all = stat.lines().next().unwrap_or_default();
    let fields = all.split_whitespace().enumerate().filter(|(at, _)| IDLE_FIELDS.contains(at));
    let ticks = fields.filter_map(|(_, field)| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

/// How many processors the machine has, of which this process may have fewer.
#[must_use]
pub fn machine_processors() -> usize {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    processors_of(&stat).max(1)
}

fn processors_of(stat: &str) -> usize {
    stat.lines().skip(1).take_while(|line| line.starts_with("cpu")).count()
}

#[test]
fn idle_time_and_processors_are_found_in_what_the_system_says() {
    let stat = "cpu  400 1 30 2000 250 0 7 8 0 0\ncpu0 1 2 3\ncpu1 4 5 6\nintr 9\n";
    assert_eq!(idle_seconds_of(stat), 22.5);
    assert_eq!(processors_of(stat), 2);
}
