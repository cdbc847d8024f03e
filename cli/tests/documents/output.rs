//! Compares what a command printed with what a document shows of it: words count, figures do not.

/// A line of a document that stands for any number of lines.
const LEFT_OUT: &str = "...";
/// What may follow a figure.
const UNITS: [&str; 9] = ["B", "KiB", "MiB", "GiB", "TiB", "ms", "us", "ns", "s"];
/// What may follow a unit: a fast machine has more of a unit where a slow one has fewer of another.
const PER_SECOND: &str = "/s";

/// Whether lines are as shown.
pub(super) fn is_as_shown(shown: &[String], printed: &str) -> bool {
    let shown: Vec<String> = shown.iter().map(|line| masked(line)).collect();
    let printed: Vec<String> = printed.lines().map(masked).collect();
    matches(&shown, &printed)
}

fn matches(shown: &[String], printed: &[String]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first == LEFT_OUT => {
            (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..]))
        }
        Some((first, rest)) => {
            printed.split_first().is_some_and(|(line, after)| first == line && matches(rest, after))
        }
    }
}

/// A line without its figures, their units and its columns' widths.
pub(super) fn masked(line: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let mut text = String::new();
        for c in word.chars() {
            let is_inside = matches!(c, '.' | ',' | ':' | '-') && text.ends_with('#');
            match c {
                '0'..='9' if !text.ends_with('#') => text.push('#'),
                '0'..='9' => {}
                _ if is_inside => text.push(c),
                _ => text.push(c),
            }
            // Of "12.3" and "1:2" there is one figure.
            for inner in ["#.#", "#,#", "#:#", "#-#"] {
                if text.ends_with(inner) {
                    text.truncate(text.len() - 2);
                }
            }
        }
        // A unit belongs to its figure, with what follows it.
        let bare = word.trim_end_matches([',', ';', ')', ':', '.']);
        let unit = bare.strip_suffix(PER_SECOND).unwrap_or(bare);
        match words.last_mut() {
            Some(last) if last.ends_with('#') && UNITS.contains(&unit) => {
                *last += &word[bare.len()..];
            }
            _ => words.push(text),
        }
    }
    words.join(" ")
}

#[test]
fn figures_do_not_count_and_words_do() {
    let shown = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    assert_eq!(masked("stored    119.0 MiB  data"), "stored # data");
    assert_eq!(masked("dedup 2.09:1, 26 % used (0 B)"), "dedup #, # % used (#)");
    assert_eq!(masked("2026-11-22T11:41:09.123456Z WARN"), "#T#Z WARN");
    assert_eq!(masked("in 0.0 s (1.2 GiB/s of data)"), masked("in 0.1 s (360.9 MiB/s of data)"));
    assert!(is_as_shown(&shown(&["a 1 KiB", "..."]), "a  20.5 MiB\nb\nc\n"));
    assert!(is_as_shown(&shown(&["...", "c"]), "a\nb\nc\n"));
    assert!(!is_as_shown(&shown(&["a 1 KiB"]), "a 1 KiB\nb\n"));
    assert!(!is_as_shown(&shown(&["normal"]), "full\n"));
}
