//! Sizes as people read and write them. All multiples are binary.

/// Units, each 1024 times the one before.
const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
/// The same as people write them.
const SUFFIXES: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

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

/// Up to here a number of bytes is as easy to read as one of KiB.
const FEW_BYTES: u64 = 10 << 10;

/// As [`human`], with the bytes where it is not exact: for sizes that may differ by a little.
#[must_use]
pub fn exact(bytes: u64) -> String {
    match unit(bytes) {
        Some((unit, _)) if bytes < FEW_BYTES && !bytes.is_multiple_of(unit) => {
            format!("{bytes} bytes")
        }
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

/// Why a size could not be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// Not a number with a suffix.
    #[error("a size is a whole number of bytes, or of K, M, G, T, P or E (binary), such as 10G")]
    Form,
    /// More than 64 bits.
    #[error("that is more bytes than 64 bits can count")]
    TooLarge,
}

/// A size as people write it: `10G`, `512M`, `4096`.
///
/// # Errors
/// If it is none.
pub fn parse(given: &str) -> Result<u64, ParseSizeError> {
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
            let index = SUFFIXES.iter().position(|suffix| *suffix == letter);
            index.ok_or(ParseSizeError::Form)? + 1
        }
    };
    if !matches!(letters.as_str(), "" | "iB") {
        return Err(ParseSizeError::Form);
    }
    let unit = 1_u64 << (10 * power);
    number.checked_mul(unit).ok_or(ParseSizeError::TooLarge)
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
            (1025, "1025 bytes"),
            ((9 << 10) + 1, "9217 bytes"),
            ((10 << 10) + 1, "10.0 KiB (10241 bytes)"),
            (20 << 30, "20 GiB"),
            ((20 << 30) + 4096, "20.0 GiB (21474840576 bytes)"),
        ] {
            assert_eq!(exact(bytes), text);
        }
    }

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
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "G", "-1", "+1", "1.5G", "10 G", "10GB", "10B", "1X", "1Ki", "0x10", "١"]
        {
            assert_eq!(parse(text), Err(ParseSizeError::Form), "{text}");
        }
        for text in ["16E", "18446744073709551616", "99999999999999999999999999"] {
            assert_eq!(parse(text), Err(ParseSizeError::TooLarge), "{text}");
        }
    }
}
