//! The command line together with its config file.

use std::{collections::HashSet, ffi::OsString, path::PathBuf};

use clap::{ArgMatches, Command, CommandFactory, parser::ValueSource};

use super::{
    error::ConfigError,
    file::{ConfigFile, POOL, key},
};
use crate::args::Arguments;

/// A command line to which a config file has added what it did not say.
#[derive(Debug)]
pub(crate) struct CompleteLine {
    /// All of it.
    pub(crate) words: Vec<OsString>,
    /// The file.
    pub(crate) file: Option<ConfigFile>,
    /// The keys that the command line itself has.
    pub(crate) given: HashSet<String>,
}

/// The command that config files are for, with the flags that all commands have.
pub(crate) fn serve_of(command: &mut Command) -> &mut Command {
    command.build();
    command.find_subcommand_mut("serve").expect("there is such a command")
}

/// The part of a parsed line that has the settings of `serve`: of itself, or of `config show`.
pub(crate) fn serve_matches(matches: &ArgMatches) -> Option<&ArgMatches> {
    match matches.subcommand()? {
        ("serve", serve) => Some(serve),
        ("config", config) => config.subcommand_matches("show"),
        _ => None,
    }
}

/// Adds what the config file says that a command line names, if it names one.
pub(crate) fn complete(words: Vec<OsString>) -> Result<CompleteLine, ConfigError> {
    let unchanged = |words| CompleteLine { words, file: None, given: HashSet::new() };
    let mut command = Arguments::command();
    // What the line lacks may be in the file; what is wrong in it shows when all is put together.
    let Ok(matches) = command.clone().ignore_errors(true).try_get_matches_from(&words) else {
        return Ok(unchanged(words));
    };
    let Some(matches) = serve_matches(&matches) else { return Ok(unchanged(words)) };
    let Ok(Some(path)) = matches.try_get_one::<PathBuf>("config") else {
        return Ok(unchanged(words));
    };
    let serve = serve_of(&mut command);
    let file = ConfigFile::read(path, serve)?;
    let is_given = |id: &str| matches!(matches.value_source(id), Some(ValueSource::CommandLine));
    let given: HashSet<String> = serve
        .get_arguments()
        .filter(|arg| is_given(arg.get_id().as_str()))
        .filter_map(|arg| key(arg).map(str::to_owned))
        .collect();
    let pool = file.pool().filter(|_| !given.contains(POOL)).map(OsString::from);
    // Behind `--` there are no flags.
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let mut complete = words[..end].to_vec();
    complete.extend(file.words(|key| !given.contains(key)));
    if end < words.len() || pool.is_some() {
        complete.push("--".into());
    }
    complete.extend(pool);
    complete.extend(words.into_iter().skip(end + 1));
    Ok(CompleteLine { words: complete, file: Some(file), given })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(file: &str, line: &[&str]) -> Vec<String> {
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), file).unwrap();
        let config = config.path().to_str().unwrap();
        let words = line.iter().map(|word| word.replace("FILE", config).into()).collect();
        let complete = complete(words).unwrap().words.into_iter();
        complete.map(|word| word.into_string().unwrap().replace(config, "FILE")).collect()
    }

    #[test]
    fn what_the_line_says_is_not_taken_from_the_file() {
        let file = "pool = \"p\"\nlisten = \"unix:/s\"\nstaging = \"64M\"\nscrub = \"1M\"\n";
        for (line, expected) in [
            (
                "siltstone serve --config FILE",
                "siltstone serve --config FILE --listen=unix:/s --staging=64M --scrub=1M -- p",
            ),
            (
                "siltstone --log-level warn serve --config=FILE --listen 127.0.0.1:1 q",
                "siltstone --log-level warn serve --config=FILE --listen 127.0.0.1:1 q \
                 --staging=64M --scrub=1M",
            ),
            (
                "siltstone serve --config FILE --scrub-every 1d --staging 1M -- q",
                "siltstone serve --config FILE --scrub-every 1d --staging 1M --listen=unix:/s \
                 --scrub=1M -- q",
            ),
            (
                "siltstone config show --config FILE --scrub 2M",
                "siltstone config show --config FILE --scrub 2M --listen=unix:/s --staging=64M -- p",
            ),
            ("siltstone stat p", "siltstone stat p"),
            ("siltstone serve p", "siltstone serve p"),
            ("siltstone serve --help", "siltstone serve --help"),
        ] {
            let line: Vec<&str> = line.split(' ').collect();
            assert_eq!(completed(file, &line).join(" "), expected);
        }
    }
}
