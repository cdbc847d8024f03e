//! Sizes as people write them: `10G`, `512M`, `4096`. All multiples are binary.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
pub(crate) use siltstone_device::size::{exact, human, per_second};

/// Suffixes, each 1024 times the one before.
const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

/// A number of bytes given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Size(pub(crate) u64);

impl Size {
    /// As a number of bytes in memory.
    pub(crate) fn memory_bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Why a size could not be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseSizeError {
    /// Not a number with a suffix.
    #[error("a size is a whole number of bytes, or of K, M, G, T, P or E (binary), such as 10G")]
    Form,
    /// More than 64 bits.
    #[error("that is more bytes than 64 bits can count")]
    TooLarge,
}

impl FromStr for Size {
    type Err = ParseSizeError;

    fn from_str(given: &str) -> Result<Self, ParseSizeError> {
        let digits_len = given.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, suffix) = given.split_at(digits_len);
        if digits.is_empty() {
            return Err(ParseSizeError::Form);
        }
        let number: u64 = digits.parse().map_err(|_| ParseSizeError::TooLarge)?;
        let mut letters = suffix.chars();
        let power = match letters.next().map(|letter| letter.to_ascii_uppercase()) {
            None => 0,
            Some(letter) => {
                let index = UNITS.iter().position(|unit| *unit == letter);
                index.ok_or(ParseSizeError::Form)? + 1
            }
        };
        if !matches!(letters.as_str(), "" | "iB") {
            return Err(ParseSizeError::Form);
        }
        let unit = 1_u64 << (10 * power);
        number.checked_mul(unit).map(Self).ok_or(ParseSizeError::TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_multiples() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1 << 10),
            ("512M", 512 << 20),
            ("10G", 10 << 30),
            ("10g", 10 << 30),
            ("2GiB", 2 << 30),
            ("1T", 1 << 40),
            ("3P", 3 << 50),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "G", "-1", "+1", "1.5G", "10 G", "10GB", "10B", "1X", "1Ki", "0x10", "١"]
        {
            assert_eq!(text.parse::<Size>(), Err(ParseSizeError::Form), "{text}");
        }
        for text in ["16E", "18446744073709551616", "99999999999999999999999999"] {
            assert_eq!(text.parse::<Size>(), Err(ParseSizeError::TooLarge), "{text}");
        }
    }
}
