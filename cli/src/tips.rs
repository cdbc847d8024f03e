//! What a command line that makes no sense may have meant. The parser guesses by spelling alone, and so
//! names commands that do something else: of its guesses those stay that begin alike, and what people write who
//! know other programs is told where it is here.

use clap::{
    Error,
    builder::StyledStr,
    error::{ContextKind, ContextValue},
};

/// Words that are no commands or options, and what does that.
const ELSEWHERE: [(&[&str], &str); 10] = [
    (&["--repair", "--fix"], "'siltstone repair' mends what is damaged"),
    (&["--overwrite", "--yes"], "where something is replaced, --force says that it may be"),
    (&["list", "ls"], "'siltstone volume list' lists volumes, 'siltstone snapshot list' snapshots"),
    (
        &["delete", "rm", "remove"],
        "'siltstone volume delete' and 'siltstone snapshot delete' delete",
    ),
    (
        &["fsck", "verify"],
        "'siltstone check' verifies a pool at rest, 'siltstone scrub' one in use",
    ),
    (&["restore", "rollback"], "'siltstone snapshot rollback' takes a volume back to a snapshot"),
    (&["info", "status", "show", "df"], "'siltstone stat' says what a pool holds"),
    (&["resize"], "'siltstone volume resize' is for volumes, 'siltstone grow' for pools"),
    (&["mount", "start", "attach"], "'siltstone serve' serves volumes over NBD"),
    (&["init", "format", "mkfs"], "'siltstone create' makes a pool"),
];

/// The same error, with tips that help.
pub(crate) fn corrected(mut error: Error) -> Error {
    let given = [ContextKind::InvalidSubcommand, ContextKind::InvalidArg];
    let given = given.into_iter().find_map(|kind| match error.get(kind) {
        Some(ContextValue::String(given)) => Some(given.clone()),
        _ => None,
    });
    let Some(given) = given else { return error };
    let word = given.split('=').next().unwrap_or_default();
    let elsewhere = ELSEWHERE.iter().find(|(words, _)| words.contains(&word));
    for kind in [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg] {
        let kept = match error.get(kind) {
            Some(_) if elsewhere.is_some() => Vec::new(),
            Some(ContextValue::String(guess)) if is_alike(&given, guess) => continue,
            Some(ContextValue::Strings(guesses)) => {
                let alike = guesses.iter().filter(|guess| is_alike(&given, guess));
                alike.cloned().collect::<Vec<_>>()
            }
            Some(_) => Vec::new(),
            None => continue,
        };
        error.remove(kind);
        if !kept.is_empty() {
            error.insert(kind, ContextValue::Strings(kept));
        }
    }
    // That it could be the name of a file: nobody's is.
    error.remove(ContextKind::Suggested);
    if let Some((_, tip)) = elsewhere {
        let tip = StyledStr::from(*tip);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

/// Whether somebody who wrote one may have meant the other.
fn is_alike(given: &str, guess: &str) -> bool {
    let first = |word: &str| word.trim_start_matches('-').chars().next();
    first(given) == first(guess)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, LineError};

    fn said(line: &str) -> String {
        match Arguments::of_line(line.split(' ')) {
            Err(LineError::Usage(error)) => corrected(error).to_string(),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn a_tip_names_what_does_it_or_is_not_given() {
        for (line, tip) in [
            ("siltstone check p --repair", Some("'siltstone repair' mends what is damaged")),
            ("siltstone stat p --jsn", Some("a similar argument exists: '--json'")),
            ("siltstone volume create p v --size 1G --levels 3", Some("'--level'")),
            ("siltstone sevre p", Some("a similar subcommand exists: 'serve'")),
            ("siltstone mount p", Some("'siltstone serve' serves volumes over NBD")),
            ("siltstone snapshot restore p v@s", Some("'siltstone snapshot rollback' takes")),
            ("siltstone volume rename p a b", None),
            ("siltstone serve p --port 10", None),
            ("siltstone volume list p --verbose", None),
        ] {
            let said = said(line);
            assert!(!said.contains("as a value"), "{said}");
            match tip {
                Some(tip) => assert!(said.contains("tip: ") && said.contains(tip), "{said}"),
                None => assert!(!said.contains("tip: "), "{said}"),
            }
        }
    }
}
