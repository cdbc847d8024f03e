//! Words for what was expected and what was found.

use std::{collections::BTreeSet, fmt::Write};

use siltstone_engine::Findings;

use crate::content::tags_of;

/// Lines of a list; the rest is counted.
const MOST_LINES: usize = 20;

/// The contents of sectors by their tags.
#[must_use]
pub fn contents(tags: &[u32]) -> String {
    let Some((first, others)) = tags.split_first() else { return "nothing".into() };
    let last = tags[tags.len() - 1];
    if others.iter().all(|tag| tag == first) {
        return match first {
            0 => "zeros".into(),
            tag => format!("tag {tag} in each sector"),
        };
    }
    if tags.windows(2).all(|pair| pair[0] != 0 && pair[0].checked_add(1) == Some(pair[1])) {
        return format!("tags {first} to {last}");
    }
    let tags: Vec<_> = tags.iter().map(ToString::to_string).collect();
    format!("tags {} (0 is zeros)", tags.join(", "))
}

/// What a block holds.
#[must_use]
pub fn data(bytes: &[u8]) -> String {
    match tags_of(bytes) {
        Ok(tags) => contents(&tags),
        Err(_) => {
            let start: Vec<_> = bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            format!("bytes that begin with {}", start.join(" "))
        }
    }
}

/// What was expected and what was found of a block.
#[must_use]
pub fn wrong_block(block: u64, found: &str, expected: &[String]) -> String {
    let mut text = format!("block {block} holds what it may not\nfound:    {found}");
    for (number, one) in expected.iter().enumerate() {
        let lead = if number == 0 { "expected:" } else { "or:      " };
        let _ = write!(text, "\n{lead} {one}");
    }
    text
}

/// What a check found, a line for each problem and each lost range.
#[must_use]
pub fn findings(findings: &Findings) -> String {
    let problems = findings.problems.iter().map(ToString::to_string);
    let lost = findings.lost.iter().map(ToString::to_string);
    let all = findings.problem_count() + findings.lost_count();
    let mut lines: Vec<_> = problems.chain(lost).take(MOST_LINES).collect();
    let more = all - lines.len() as u64;
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines.join("\n")
}

/// Blocks of volumes, neighbours together.
#[must_use]
pub fn blocks(blocks: &BTreeSet<(String, u64)>) -> String {
    if blocks.is_empty() {
        return "no block".into();
    }
    let mut runs: Vec<(&str, u64, u64)> = Vec::new();
    for (volume, block) in blocks {
        match runs.last_mut() {
            Some((last, _, end)) if *last == volume && *end + 1 == *block => *end = *block,
            _ => runs.push((volume, *block, *block)),
        }
    }
    let text = |(volume, start, end): &(&str, u64, u64)| match start == end {
        true => format!("block {start} of volume {volume}"),
        false => format!("blocks {start} to {end} of volume {volume}"),
    };
    let mut list: Vec<_> = runs.iter().take(MOST_LINES).map(text).collect();
    if runs.len() > MOST_LINES {
        list.push(format!("{} more runs", runs.len() - MOST_LINES));
    }
    list.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_named() {
        for (tags, text) in [
            (&[0; 8][..], "zeros"),
            (&[7; 8], "tag 7 in each sector"),
            (&[7, 8, 9], "tags 7 to 9"),
            (&[0, 1, 2], "tags 0, 1, 2 (0 is zeros)"),
            (&[u32::MAX, 0], "tags 4294967295, 0 (0 is zeros)"),
            (&[], "nothing"),
        ] {
            assert_eq!(contents(tags), text);
        }
        assert_eq!(data(&[0; 512]), "zeros");
        let text = format!("bytes that begin with 0a{}", " 0a".repeat(15));
        assert_eq!(data(&[10; 512]), text);
    }

    #[test]
    fn runs_of_blocks_are_one() {
        let set = [("a", 1), ("a", 2), ("a", 4), ("b", 5)];
        let set = set.map(|(volume, block)| (String::from(volume), block)).into();
        let text = "blocks 1 to 2 of volume a, block 4 of volume a, block 5 of volume b";
        assert_eq!(blocks(&set), text);
        assert_eq!(blocks(&BTreeSet::new()), "no block");
    }
}
