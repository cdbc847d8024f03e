//! Commands of cargo build what the tests are built from, and take as long: what they name must exist.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use super::repository;

/// The workspace's packages.
pub(super) struct Packages(Vec<Value>);

impl Packages {
    pub(super) fn read() -> Self {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
            .current_dir(repository())
            .output()
            .unwrap();
        let mut metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        let Value::Array(packages) = metadata["packages"].take() else { panic!("no packages") };
        Self(packages)
    }

    /// What is wrong with a command of cargo.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        let text = text.replace("\\\n", " ");
        let text = text.split(" #").next().unwrap_or_default();
        let (cargo, program) = text.split_once(" -- ").unwrap_or((text, ""));
        let words: Vec<&str> = cargo.split_whitespace().collect();
        let after =
            |option: &str| words.iter().position(|word| *word == option).map(|at| words[at + 1]);
        if let Some(path) = after("--path") {
            let manifest = repository().join(path).join("Cargo.toml");
            return manifest.is_file().then_some(()).ok_or(format!("nothing is in {path}"));
        }
        let Some(name) = after("-p") else { return Ok(()) };
        let package = self.0.iter().find(|package| package["name"] == name);
        let package = package.ok_or(format!("there is no package {name}"))?;
        for (option, kind) in [("--bench", "bench"), ("--test", "test"), ("--example", "example")] {
            let Some(name) = after(option) else { continue };
            let targets = package["targets"].as_array().unwrap();
            let target = targets.iter().find(|target| {
                target["name"] == name && target["kind"].as_array().unwrap().contains(&kind.into())
            });
            let target = target.ok_or(format!("{text}: there is no {kind} {name}"))?;
            check_options(Path::new(target["src_path"].as_str().unwrap()), program)?;
        }
        Ok(())
    }
}

/// Options of benches and examples are fields of a structure in their source, or in the library's.
fn check_options(source: &Path, program: &str) -> Result<(), String> {
    let folder = match source.file_name() {
        Some(name) if name == "main.rs" => source.parent().unwrap(),
        _ => source,
    };
    let performance = repository().join("benches/performance/options.rs");
    let text = text_below(folder) + &fs::read_to_string(performance).unwrap();
    for option in program.split_whitespace().filter_map(|word| word.strip_prefix("--")) {
        let field = option.split('=').next().unwrap_or_default().replace('-', "_");
        // Of the test harness.
        if field != "nocapture" && !text.contains(&format!("{field}:")) {
            return Err(format!("--{option} is no option of {}", source.display()));
        }
    }
    Ok(())
}

/// The text of a file, or of all in a folder.
fn text_below(path: &Path) -> String {
    match fs::read_dir(path) {
        Ok(entries) => entries.map(|entry| text_below(&entry.unwrap().path())).collect(),
        Err(_) => fs::read_to_string(path).unwrap(),
    }
}
