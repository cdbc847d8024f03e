//! Sizes as people read them. All multiples are binary.

/// Units, each 1024 times the one before.
const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// The largest unit that is no more than `bytes`, if there is one.
fn unit(bytes: u64) -> Option<(u64, &'static str)> {
    let power = (bytes.max(1).ilog2() / 10) as usize;
    (power > 0).then(|| (1 << (10 * power), UNITS[power - 1]))
}

/// `bytes` for people: exact below 1 KiB, otherwise three significant digits or so.
#[must_use]
pub fn human(bytes: u64) -> String {
    let Some((unit, name)) = unit(bytes) else { return format!("{bytes} B") };
    if bytes.is_multiple_of(unit) {
        return format!("{} {name}", bytes / unit);
    }
    let value = bytes as f64 / unit as f64;
    let decimals = if value < 10.0 { 2 } else { 1 };
    format!("{value:.decimals$} {name}")
}

/// As [`human`], with the bytes where it is not exact: for sizes that may differ by a little.
#[must_use]
pub fn exact(bytes: u64) -> String {
    match unit(bytes) {
        Some((unit, _)) if !bytes.is_multiple_of(unit) => {
            format!("{} ({bytes} bytes)", human(bytes))
        }
        _ => human(bytes),
    }
}

/// A rate for people: so many bytes in so long.
#[must_use]
pub fn per_second(bytes: u64, seconds: f64) -> String {
    // What took no time worth measuring has taken a little.
    format!("{}/s", human((bytes as f64 / seconds.max(1e-3)) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.50 KiB"),
            (20 << 30, "20 GiB"),
            ((20 << 30) + (100 << 20), "20.1 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn rates_have_the_units_of_sizes() {
        assert_eq!(per_second(3 << 20, 2.0), "1.50 MiB/s");
        assert_eq!(per_second(0, 0.0), "0 B/s");
        assert_eq!(per_second(1 << 20, 0.0), "1000 MiB/s");
        assert_eq!(per_second(u64::MAX, 0.0), "16.0 EiB/s");
    }

    #[test]
    fn sizes_that_look_alike_are_told_apart() {
        for (bytes, text) in [
            (0, "0 B"),
            (1025, "1.00 KiB (1025 bytes)"),
            (20 << 30, "20 GiB"),
            ((20 << 30) + 4096, "20.0 GiB (21474840576 bytes)"),
        ] {
            assert_eq!(exact(bytes), text);
        }
    }
}
