//! What the documents tell to do works: every command of `README.md` and `docs/*.md` is run as it
//! stands, or as [`exceptions`] says why not; and what it prints is what the document shows, but for
//! figures.
//!
//! A block of which a line begins with `$ ` shows commands with their output. In others that begin with
//! a program all lines are commands. A command is to succeed, unless a failure is shown below it. Commands
//! of a document run in one directory, one after another; what they take for granted is in
//! [`exceptions::STAGES`]. Commands between backquotes are not run: their options are checked. So
//! are the names in commands of cargo, which builds what these tests are built from.
#![allow(clippy::unwrap_used)] // A failed step of a test should stop it.

mod blocks;
mod cargo;
mod exceptions;
mod limits;
mod output;
mod script;
#[path = "../support/mod.rs"]
mod support;
mod warnings;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use blocks::{Command, Content};
use cargo::Packages;
use exceptions::{EXCEPTIONS, Exception, How, NAMES, STAGES, Stand};
use script::{Place, Step};
use support::{Outcome, command, has};

/// Programs that documents use and that may be missing.
const OTHER_PROGRAMS: [&str; 5] = ["openssl", "nbdinfo", "nbdcopy", "qemu-img", "zstd"];

/// What stands between backquotes and only looks like a command: a placeholder, the contents of a block.
const NO_COMMANDS: [&str; 2] = ["siltstone help COMMAND", "siltstone siltstone ..."];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// `README.md` and all of `docs`.
fn documents() -> Vec<String> {
    let mut documents = vec!["README.md".to_owned()];
    for entry in fs::read_dir(repository().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            documents.push(format!("docs/{name}"));
        }
    }
    documents
}

fn text(document: &str) -> String {
    fs::read_to_string(repository().join(document)).unwrap()
}

/// A step of a document's script, where it stands, and what is to be printed.
struct Planned {
    line: usize,
    step: Step,
    output: Vec<String>,
    /// Whether more may follow that.
    is_beginning: bool,
}

impl Planned {
    fn of(line: usize, script: String) -> Self {
        let step = Step { script, fails: false };
        Self { line, step, output: Vec::new(), is_beginning: false }
    }
}

/// What is done for a document, and which exceptions that took.
struct Plan<'a> {
    document: &'a str,
    steps: Vec<Planned>,
    used: BTreeSet<usize>,
    wrong: Vec<String>,
}

impl<'a> Plan<'a> {
    fn of(document: &'a str, packages: &Packages) -> Self {
        let mut plan =
            Self { document, steps: Vec::new(), used: BTreeSet::new(), wrong: Vec::new() };
        if let Some((_, stage)) = STAGES.iter().find(|(of, _)| *of == document) {
            plan.steps.push(Planned::of(0, (*stage).to_owned()));
        }
        for block in blocks::blocks(&text(document)) {
            match block.content() {
                Content::Code => {}
                Content::Shown(lines) => plan.add_shown(block.line, &lines),
                Content::Commands(commands) => {
                    for command in commands {
                        plan.add(&command, packages);
                    }
                }
            }
        }
        plan
    }

    fn exception(&mut self, text: &str) -> Option<&'static Exception> {
        let is_of = |exception: &Exception| {
            exception.document == self.document && text.starts_with(exception.start)
        };
        let number = EXCEPTIONS.iter().position(is_of)?;
        self.used.insert(number);
        Some(&EXCEPTIONS[number])
    }

    fn say(&mut self, line: usize, what: &str) {
        self.wrong.push(format!("{}:{line}: {what}", self.document));
    }

    fn add(&mut self, command: &Command, packages: &Packages) {
        let Command { line, text, output } = command;
        // The same command can stand there twice, and print something else.
        let shown = format!("{text}\n{}", output.join("\n"));
        let exception = self.exception(&shown).map(|exception| exception.how);
        if text.starts_with("cargo ") {
            if let Err(wrong) = packages.check(text) {
                self.say(*line, &wrong);
            }
            if exception.is_none() {
                return;
            }
        }
        if text.starts_with("siltstone ")
            && let Err(wrong) = understood(text)
        {
            self.say(*line, &wrong);
        }
        let script = match exception {
            Some(How::Looked) => return,
            Some(How::TestedBy(path)) => return self.find(*line, path),
            Some(How::Instead(script)) => script.to_owned(),
            Some(How::After(before)) => {
                format!("{{ {before}\n}} >/dev/null 2>&1 && {}", in_background(text))
            }
            Some(How::PrintedBy(_) | How::Config) => return self.say(*line, "it is a command"),
            None => in_background(text),
        };
        let fails = output.iter().any(|line| line.starts_with("siltstone: "));
        let step = Step { script, fails };
        self.steps.push(Planned { line: *line, step, output: output.clone(), is_beginning: false });
    }

    fn add_shown(&mut self, line: usize, lines: &[String]) {
        match self.exception(&lines[0]).map(|exception| exception.how) {
            Some(How::PrintedBy(command)) => self.steps.push(Planned {
                output: lines.to_vec(),
                is_beginning: true,
                ..Planned::of(line, command.to_owned())
            }),
            Some(How::Config) => {
                let file = lines.join("\n");
                let script = format!("siltstone config check /dev/stdin <<'END'\n{file}\nEND");
                self.steps.push(Planned::of(line, script));
            }
            Some(How::TestedBy(path)) => self.find(line, path),
            Some(_) => self.say(line, "it is no command"),
            None => self.say(line, "a block that is neither run nor in exceptions.rs"),
        }
    }

    fn find(&mut self, line: usize, path: &str) {
        if !repository().join(path).is_file() {
            self.say(line, &format!("{path} does not exist"));
        }
    }

    /// Runs what is to be run.
    fn run(&mut self) {
        let mut place = Place::new();
        let mut names = Vec::new();
        for (name, stand) in NAMES {
            let stand = match stand {
                Stand::Text(text) => (*text).to_owned(),
                Stand::Socket => {
                    let file = Path::new(name).file_name().unwrap();
                    place.sockets().join(file).to_str().unwrap().to_owned()
                }
                Stand::Port => place.port(),
            };
            names.push((*name, stand));
        }
        let replaced = |text: &str| {
            names.iter().fold(text.to_owned(), |text, (name, stand)| text.replace(name, stand))
        };
        let mut planned = std::mem::take(&mut self.steps);
        if let Some((at, program)) = missing_program(&planned) {
            println!(
                "{program} is not installed: {} is tested before its first use",
                self.document
            );
            planned.truncate(at);
        }
        let steps: Vec<Step> = planned
            .iter()
            .map(|planned| Step { script: replaced(&planned.step.script), ..planned.step })
            .collect();
        let done = place.run(&steps);
        for (planned, done) in planned.iter().zip(&done) {
            let Planned { line, step, output, is_beginning } = planned;
            if done.status.is_none_or(|status| (status != 0) != step.fails) {
                self.say(*line, &format!("{} ended with {done:#?}", step.script));
            }
            let mut shown: Vec<String> = output.iter().map(|line| replaced(line)).collect();
            if *is_beginning {
                shown.push("...".into());
            }
            if !output.is_empty() && !output::is_as_shown(&shown, &done.printed) {
                let shown = shown.join("\n");
                self.say(*line, &format!("printed:\n{}\nnot as shown:\n{shown}", done.printed));
            }
        }
        if done.len() < planned.len() && self.wrong.is_empty() {
            self.say(planned[done.len()].line, "never came to its turn");
        }
    }
}

/// Servers run beside what follows.
fn in_background(text: &str) -> String {
    match text.starts_with("siltstone serve ") {
        true => format!("background {text}"),
        false => text.to_owned(),
    }
}

/// The first step that needs a program that is not there. Where all should be there, that is a failure.
fn missing_program(steps: &[Planned]) -> Option<(usize, &'static str)> {
    let missing: Vec<&str> = OTHER_PROGRAMS.into_iter().filter(|program| !has(program)).collect();
    assert!(missing.is_empty() || std::env::var_os("CI").is_none(), "missing: {missing:?}");
    steps.iter().enumerate().find_map(|(at, planned)| {
        let first = planned.step.script.split(' ').next();
        let program = missing.iter().find(|program| first == Some(program))?;
        Some((at, *program))
    })
}

/// Whether the program takes such a command line: with --help behind it, it says so, or what is wrong.
fn understood(text: &str) -> Result<(), String> {
    let text = text.replace("\\\n", " ");
    let text = text.split(" #").next().unwrap_or_default();
    let text = text.split(['|', '>']).next().unwrap_or_default();
    let words = text.split_whitespace().skip(1).filter(|word| *word != "[OPTIONS]");
    let outcome = Outcome::of(command().args(words).arg("--help"));
    match outcome.status.success() {
        true => Ok(()),
        false => Err(format!("{text}: {}", outcome.stderr)),
    }
}

/// Whether all that is wrong is that a name stands for a value, or none does.
fn is_placeholder(what: &str) -> bool {
    let value = what.split_once("invalid value '").and_then(|(_, rest)| rest.split('\'').next());
    what.contains("a value is required for")
        || value.is_some_and(|value| value.chars().all(|c| c.is_ascii_uppercase()))
}

#[track_caller]
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn run(documents: &[&str]) {
    let packages = Packages::read();
    let mut wrong = Vec::new();
    for document in documents {
        let mut plan = Plan::of(document, &packages);
        plan.run();
        wrong.append(&mut plan.wrong);
    }
    assert_none(&wrong);
}

#[test]
fn the_commands_of_the_readme_work() {
    run(&["README.md"]);
}

#[test]
fn the_commands_of_the_guide_for_operators_work() {
    run(&["docs/operations.md"]);
}

#[test]
fn the_commands_of_all_other_documents_work() {
    let documents = documents();
    let others = documents.iter().map(String::as_str);
    run(&others
        .filter(|name| !["README.md", "docs/operations.md"].contains(name))
        .collect::<Vec<_>>());
}

/// One that matches nothing hides what it was for.
#[test]
fn every_exception_is_needed() {
    let packages = Packages::read();
    let mut used = BTreeSet::new();
    let mut all = String::new();
    for document in documents() {
        used.append(&mut Plan::of(&document, &packages).used);
        all += &text(&document);
    }
    for (number, Exception { document, start, why, .. }) in EXCEPTIONS.iter().enumerate() {
        assert!(used.contains(&number), "{document} has no block or command '{start}' ({why})");
    }
    for (name, _) in NAMES {
        assert!(all.contains(name), "no document has {name}");
    }
}

#[test]
fn options_between_backquotes_exist() {
    let packages = Packages::read();
    let help = Outcome::of(command().arg("help")).succeeds();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<&str> = commands
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.contains(&"serve"), "{help}");
    let mut wrong = Vec::new();
    for document in documents() {
        for Command { line, text, .. } in blocks::quoted(&text(&document)) {
            let first = text.split(' ').next().unwrap_or_default();
            let is_own = commands.contains(&first) && text.contains(" --");
            let result = match first {
                _ if NO_COMMANDS.contains(&text.as_str()) => Ok(()),
                "siltstone" if text.contains(' ') => understood(&text),
                "cargo" => packages.check(&text),
                _ if is_own => understood(&format!("siltstone {text}")),
                _ => Ok(()),
            };
            let what = result.err().filter(|what| !is_placeholder(what));
            wrong.extend(what.map(|what| format!("{document}:{line}: {what}")));
        }
    }
    assert_none(&wrong);
}
