//! A config file: its keys, their lines, and their values as the command line would have them.

use std::{
    ffi::OsString,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, Command, error::ErrorKind};
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, reason};

/// The key of what is no flag: the pool.
pub(crate) const POOL: &str = "pool";
/// Flags that are about the file itself.
const NOT_IN_FILE: [&str; 1] = ["config"];
/// Keys at least so like a known one are taken for a slip (Jaro-Winkler).
const LIKENESS: f64 = 0.75;

/// What a config file says.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    entries: Vec<Entry>,
}

/// One setting in it.
#[derive(Debug)]
struct Entry {
    key: String,
    line: usize,
    /// A flag that is `false` has none, and one that is `true` has the word `true`.
    values: Vec<String>,
    is_flag: bool,
}

/// The key of an argument of `serve`, if it has one.
pub(crate) fn key(arg: &Arg) -> Option<&str> {
    if matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    ) {
        return None;
    }
    match arg.get_long() {
        Some(long) if NOT_IN_FILE.contains(&long) => None,
        Some(long) => Some(long),
        None => Some(POOL),
    }
}

impl ConfigFile {
    /// Reads a file; `serve` is the command that it is for.
    pub(crate) fn read(path: &Path, serve: &Command) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.into(), source };
        let text = fs::read_to_string(path).map_err(read)?;
        let at = |span: Range<usize>, reason| ConfigError::Line {
            path: path.into(),
            line: line_of(&text, span.start),
            reason,
        };
        let table = DeTable::parse(&text).map_err(|error| {
            at(error.span().unwrap_or_default(), error.message().replace('\n', ", "))
        })?;
        let mut entries = Vec::new();
        for (name, value) in table.get_ref() {
            let name_span = name.span();
            let arg =
                find(serve, name.get_ref()).map_err(|reason| at(name_span.clone(), reason))?;
            let name = name.get_ref().to_string();
            let values = values(&name, arg, value.get_ref());
            let values = values.map_err(|reason| at(value.span(), reason))?;
            let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
            let line = line_of(&text, name_span.start);
            let entry = Entry { key: name, line, values, is_flag };
            entry.check(serve).map_err(|reason| at(value.span(), reason))?;
            entries.push(entry);
        }
        entries.sort_by_key(|entry| entry.line);
        Ok(Self { path: path.into(), entries })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How many settings it has.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The line of a key.
    pub(crate) fn line_of(&self, key: &str) -> Option<usize> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| entry.line)
    }

    /// The pool that it names.
    pub(crate) fn pool(&self) -> Option<&str> {
        let entry = self.entries.iter().find(|entry| entry.key == POOL)?;
        entry.values.first().map(String::as_str)
    }

    /// Its flags, of keys that are wanted, as words of a command line.
    pub(crate) fn words(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<OsString> {
        let wanted = self.entries.iter().filter(|entry| entry.key != POOL && is_wanted(&entry.key));
        wanted.flat_map(Entry::words).collect()
    }
}

impl Entry {
    fn words(&self) -> Vec<OsString> {
        let word = |value: &String| match self.is_flag {
            true => format!("--{}", self.key).into(),
            false => format!("--{}={value}", self.key).into(),
        };
        self.values.iter().map(word).collect()
    }

    /// Whether the flag takes these values. What it needs beside it is for the whole line to tell.
    fn check(&self, serve: &Command) -> Result<(), String> {
        let is_pool = self.key == POOL;
        let words = if is_pool { Vec::new() } else { self.words() };
        let pool = self.values.first().filter(|_| is_pool).map_or(POOL, String::as_str);
        let line = [OsString::from("serve")].into_iter().chain(words);
        let line = line.chain(["--".into(), pool.into()]);
        match serve.clone().try_get_matches_from(line) {
            Err(error)
                if !matches!(
                    error.kind(),
                    ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict
                ) =>
            {
                Err(reason(&error))
            }
            _ => Ok(()),
        }
    }
}

/// The argument of that key.
fn find<'a>(serve: &'a Command, name: &str) -> Result<&'a Arg, String> {
    let keys = || serve.get_arguments().filter_map(|arg| Some((key(arg)?, arg)));
    if let Some((_, arg)) = keys().find(|(known, _)| *known == name) {
        return Ok(arg);
    }
    let likeness = |known: &str| strsim::jaro_winkler(&name.replace('_', "-"), known);
    let nearest = keys().map(|(known, _)| (likeness(known), known));
    let nearest = nearest.max_by(|(one, _), (other, _)| one.total_cmp(other));
    Err(match nearest {
        Some((likeness, known)) if likeness >= LIKENESS => {
            format!("there is no setting '{name}'; did you mean '{known}'?")
        }
        _ => format!("there is no setting '{name}'; 'siltstone serve --help' lists what there is"),
    })
}

/// A value as the command line would have it: so many times the flag, each with one of these.
fn values(name: &str, arg: &Arg, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, DeValue::Boolean(true)) => Ok(vec!["true".into()]),
        (ArgAction::SetTrue, DeValue::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err(format!("'{name}' is true or false")),
        (ArgAction::Append, DeValue::Array(items)) => {
            items.iter().map(|item| text(name, item.get_ref())).collect()
        }
        (_, DeValue::Array(_)) => Err(format!("'{name}' has one value, not a list")),
        (_, value) => text(name, value).map(|text| vec![text]),
    }
}

fn text(name: &str, value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().replace('_', "")),
        _ => Err(format!("'{name}' is a text in quotes, or a whole decimal number")),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{args::Arguments, config::line::serve_of};
    use clap::CommandFactory;

    fn read(text: &str) -> Result<ConfigFile, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        ConfigFile::read(file.path(), serve_of(&mut Arguments::command()))
    }

    #[test]
    fn every_kind_of_setting_becomes_words_of_the_command_line() {
        let file = read(
            "pool = \"a.silt\"\nlisten = [\"unix:/s\", \"127.0.0.1:1\"]\nmax-connections = 1_000\n\
             read-only = false\nstop-at-eof = true\nstaging = \"64M\"\nlog-level = \"debug\"\n",
        )
        .unwrap();
        assert_eq!(file.pool(), Some("a.silt"));
        assert_eq!(file.line_of("staging"), Some(6));
        let expected = [
            "--listen=unix:/s",
            "--listen=127.0.0.1:1",
            "--max-connections=1000",
            "--stop-at-eof",
            "--staging=64M",
            "--log-level=debug",
        ];
        assert_eq!(file.words(|_| true), expected);
        assert_eq!(file.words(|key| key == "staging"), ["--staging=64M"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line, expected) in [
            ("pool = \"p\"\nmax_connections = 5\n", 2, "did you mean 'max-connections'?"),
            ("lisen = 5", 1, "did you mean 'listen'?"),
            ("[serve]\n", 1, "there is no setting 'serve'"),
            ("config = \"other\"", 1, "there is no setting 'config'"),
            ("help = true", 1, "there is no setting 'help'"),
            ("\n\nlisten = [\"nowhere\"]", 3, "neither unix:PATH nor HOST:PORT"),
            ("max-connections = 0", 1, "0 is not in 1..=65536"),
            ("max-connections = 0x10", 1, "whole decimal number"),
            ("max-connections = [1]", 1, "one value"),
            ("read-only = \"yes\"", 1, "true or false"),
            ("log-format = \"xml\"", 1, "text, json"),
            ("pool = \"p\"\npool = \"q\"", 2, "duplicate"),
            ("pool = p", 1, ""),
        ] {
            let error = read(text).unwrap_err();
            let ConfigError::Line { line: found, reason, .. } = &error else { panic!("{error}") };
            assert!(*found == line && reason.contains(expected), "{text:?}: {error}");
            assert!(!reason.contains('\n'), "{error}");
        }
    }
}
