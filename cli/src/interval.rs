//! Times as people write them: `7d`, `12h`, `30m`, `45s`.

use std::{str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// Suffixes and their seconds.
const UNITS: [(char, u64); 5] =
    [('s', 1), ('m', 60), ('h', 3600), ('d', 24 * 3600), ('w', 7 * 24 * 3600)];

/// A time given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interval(pub(crate) Duration);

/// Why a time could not be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a time is a whole number of s, m, h, d or w (seconds to weeks), such as 12h, from 1s to 5200w"
)]
pub(crate) struct ParseIntervalError;

impl FromStr for Interval {
    type Err = ParseIntervalError;

    fn from_str(given: &str) -> Result<Self, ParseIntervalError> {
        let unit = given.chars().next_back().ok_or(ParseIntervalError)?;
        let (_, seconds) =
            UNITS.iter().find(|(letter, _)| *letter == unit).ok_or(ParseIntervalError)?;
        let digits = &given[..given.len() - 1];
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ParseIntervalError);
        }
        let number: u64 = digits.parse().map_err(|_| ParseIntervalError)?;
        let seconds = number.checked_mul(*seconds);
        let seconds = seconds.filter(|seconds| (1..=5200 * UNITS[4].1).contains(seconds));
        seconds.map(|seconds| Self(Duration::from_secs(seconds))).ok_or(ParseIntervalError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_their_units() {
        for (text, seconds) in
            [("1s", 1), ("45s", 45), ("30m", 1800), ("12h", 43200), ("7d", 604_800)]
        {
            assert_eq!(text.parse(), Ok(Interval(Duration::from_secs(seconds))), "{text}");
        }
        assert_eq!("1w".parse::<Interval>(), "7d".parse());
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in
            ["", "s", "7", "-1d", "+1d", "1.5h", "7 d", "7D", "1dd", "0s", "0w", "5201w", "1é"]
        {
            text.parse::<Interval>().unwrap_err();
        }
    }
}
