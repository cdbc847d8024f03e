//! What is in effect, and who said so.

use std::{fmt, path::PathBuf};

use clap::{ArgAction, ArgMatches, Command, parser::ValueSource};

use super::{file::key, line::CompleteLine};

/// The settings of `serve`, as flags and config file have them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings(Vec<Setting>);

#[derive(Clone, Debug)]
struct Setting {
    key: String,
    values: Vec<String>,
    shape: Shape,
    source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Flag,
    One,
    List,
}

#[derive(Clone, Debug)]
enum Source {
    CommandLine,
    File {
        path: PathBuf,
        line: usize,
    },
    Default,
    /// Nobody.
    Unset,
}

impl Settings {
    /// The settings in `matches`, which parsed `line`.
    pub(crate) fn of(serve: &Command, matches: &ArgMatches, line: &CompleteLine) -> Self {
        let setting = |arg: &clap::Arg| {
            let (key, id) = (key(arg)?, arg.get_id().as_str());
            let shape = match arg.get_action() {
                ArgAction::SetTrue => Shape::Flag,
                ArgAction::Append => Shape::List,
                _ => Shape::One,
            };
            let values = matches.try_get_raw(id).ok().flatten();
            let values = values.map(|all| all.map(|one| one.to_string_lossy().into_owned()));
            let from_file = || {
                let file = line.file.as_ref().filter(|_| !line.given.contains(key))?;
                Some(Source::File { path: file.path().into(), line: file.line_of(key)? })
            };
            let source = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => from_file().unwrap_or(Source::CommandLine),
                // What the file switches off adds no word to the line.
                Some(_) => from_file().unwrap_or(Source::Default),
                None => from_file().unwrap_or(Source::Unset),
            };
            let values = match shape {
                Shape::Flag => vec![matches.get_flag(id).to_string()],
                Shape::One | Shape::List => values.map(Iterator::collect).unwrap_or_default(),
            };
            Some(Setting { key: key.into(), values, shape, source })
        };
        Self(serve.get_arguments().filter_map(setting).collect())
    }

    /// The keys whose values `other` has otherwise.
    pub(crate) fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        let is_same = |one: &Setting| {
            other.0.iter().any(|other| other.key == one.key && other.values == one.values)
        };
        self.0.iter().filter(move |one| !is_same(one)).map(|one| one.key.as_str())
    }
}

/// A config file that says the same, and as remarks, from where each setting is.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.0.iter().map(|setting| (setting.to_string(), setting));
        let lines: Vec<_> = lines.collect();
        let width = lines.iter().map(|(text, _)| text.chars().count()).max().unwrap_or(0);
        for (text, setting) in &lines {
            writeln!(f, "{text:<width$}  # {}", setting.source)?;
        }
        Ok(())
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 0660 is no number in TOML.
        let is_number =
            |value: &str| value.parse().is_ok_and(|number: i64| number.to_string() == value);
        let value = |value: &String| match self.shape {
            Shape::Flag => value.clone(),
            _ if is_number(value) => value.clone(),
            // A JSON string of text from a command line is a TOML string, too.
            _ => serde_json::Value::from(value.as_str()).to_string(),
        };
        let values: Vec<String> = self.values.iter().map(value).collect();
        // What nobody said is a remark: said aloud, it might need other settings beside it.
        if matches!(self.source, Source::Default | Source::Unset) {
            f.write_str("# ")?;
        }
        f.write_str(&self.key)?;
        match self.shape {
            _ if values.is_empty() => Ok(()),
            Shape::List => write!(f, " = [{}]", values.join(", ")),
            Shape::Flag | Shape::One => write!(f, " = {}", values.concat()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("command line"),
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Default => f.write_str("default"),
            Self::Unset => f.write_str("not set"),
        }
    }
}
