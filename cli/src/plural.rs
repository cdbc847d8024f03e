//! Counts with their words.

/// `1 range`, `2 ranges`, `0 flushes`. What is counted is named by its last word.
pub(crate) fn count(number: u64, one: &str) -> String {
    if number == 1 {
        return format!("1 {one}");
    }
    let is_vowel = |letter: char| "aeiou".contains(letter);
    match one.strip_suffix('y') {
        Some(stem) if !stem.ends_with(is_vowel) => format!("{number} {stem}ies"),
        _ if ["s", "sh", "ch", "x"].iter().any(|end| one.ends_with(end)) => {
            format!("{number} {one}es")
        }
        _ => format!("{number} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_agree_with_their_numbers() {
        for (number, one, text) in [
            (0, "range", "0 ranges"),
            (1, "range", "1 range"),
            (2, "range", "2 ranges"),
            (1, "flush", "1 flush"),
            (2, "flush", "2 flushes"),
            (1, "history", "1 history"),
            (2, "history", "2 histories"),
            (3, "power cut", "3 power cuts"),
            (2, "day", "2 days"),
        ] {
            assert_eq!(count(number, one), text);
        }
    }
}
