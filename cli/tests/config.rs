//! The config file: it says what the flags say, flags win, and what is wrong is told with its line.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::fs;

use support::{Folder, Outcome, Server, command, siltstone};

#[test]
fn the_example_is_a_config_file() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/example.toml");
    let said = siltstone(["config", "check", example]).succeeds();
    assert!(said.ends_with("example.toml: 6 settings, all well; not tried: to open the pool, and to listen on the addresses\n"), "{said}");
}

#[test]
fn a_config_that_cannot_be_used_is_refused_with_file_line_and_reason() {
    let folder = Folder::new();
    let file = folder.text("pool.toml");
    for (text, expected) in [
        (
            "pool = \"p\"\nlisen = \"unix:/s\"\n",
            ", line 2: there is no setting 'lisen'; did you mean 'listen'?",
        ),
        ("max_connections = 5\n", "did you mean 'max-connections'?"),
        ("[disk]\n", ", line 1: there is no setting 'disk'; 'siltstone serve --help' lists"),
        ("listen = \"nowhere\"", "\"nowhere\" is neither unix:PATH nor HOST:PORT"),
        ("create = [\"disk\"]", "write NAME=SIZE, such as disk=10G"),
        ("size = \"big\"", ", line 1: invalid value 'big' for '--size <SIZE>'"),
        ("stop-at-eof = 1", ", line 1: 'stop-at-eof' is true or false"),
        ("pool = ", ", line 1: "),
        // Each for itself makes sense.
        (
            "read-only = true\nsize = \"1G\"",
            "pool.toml: the argument '--read-only' cannot be used with '--size <SIZE>'",
        ),
        (
            "scrub-every = \"1d\"",
            "pool.toml: the following required arguments were not provided: --scrub <RATE>",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let sentence = siltstone(["config", "check", &file]).fails(2);
        assert!(sentence.starts_with(&file) && sentence.contains(expected), "{text:?}: {sentence}");
        let outcome = siltstone(["serve", "--config", &file]);
        assert_eq!(outcome.status.code(), Some(2), "{outcome:?}");
    }
    let sentence = siltstone(["serve", "--config", "/nonexistent/file"]).fails(1);
    assert!(sentence.starts_with("cannot read the config file /nonexistent/file: "), "{sentence}");
}

#[test]
fn show_tells_each_setting_and_who_said_so_as_a_config_file() {
    let folder = Folder::new();
    let (file, again) = (folder.text("a.toml"), folder.text("b.toml"));
    let text = "# mine\npool = \"from file\"\nlisten = [\"unix:/a\", \"unix:/b\"]\n\
                max-connections = 7\nread-only = false\nlog-level = \"warn\"\n";
    fs::write(&file, text).unwrap();
    let shown = siltstone(["config", "show", "--config", &file, "--max-connections", "9"]);
    let shown = shown.succeeds();
    let line = |start: &str| {
        let found = shown.lines().find(|line| line.starts_with(start));
        let found = found.unwrap_or_else(|| panic!("{start}: {shown}"));
        found.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("pool"), format!("pool = \"from file\" # {file}, line 2"));
    assert_eq!(line("listen"), format!("listen = [\"unix:/a\", \"unix:/b\"] # {file}, line 3"));
    assert_eq!(line("max-connections"), "max-connections = 9 # command line");
    assert_eq!(line("read-only"), format!("read-only = false # {file}, line 5"));
    assert_eq!(line("log-level"), format!("log-level = \"warn\" # {file}, line 6"));
    assert_eq!(line("# stop-at-eof"), "# stop-at-eof = false # default");
    assert_eq!(line("# scrub-every"), "# scrub-every = \"7d\" # default");
    assert_eq!(line("# staging"), "# staging # not set");
    assert!(!shown.contains("config ="), "{shown}");

    fs::write(&again, &shown).unwrap();
    siltstone(["config", "check", &again]).succeeds();
    let shown_again = siltstone(["config", "show", "--config", &again]).succeeds();
    let settings = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split("  #").next().unwrap().trim_end().to_owned()).collect()
    };
    assert_eq!(settings(&shown), settings(&shown_again));
}

#[test]
fn a_server_does_what_its_config_says_unless_flags_say_otherwise() {
    let folder = Folder::new();
    let pool = folder.text("new.silt");
    let file = folder.text("pool.toml");
    let text = format!(
        "pool = {pool:?}\nsize = \"128M\"\ncreate = [\"one=1G\", \"two=2G\"]\nlisten = \"unix:/nonexistent/s\"\n\
         log-format = \"json\"\n"
    );
    fs::write(&file, text).unwrap();
    // Its socket is a flag, so that of the file does not count.
    let server = Server::start(&pool, &["--config", &file, "--export", "two"]);
    let said = server.announcement();
    assert!(said.contains("volume 'two', 2 GiB:\n") && !said.contains("volume 'one'"), "{said}");
    assert!(server.stop_for_log().lines().all(|line| line.starts_with('{')));

    // The pool of the file, and its address.
    let outcome = Outcome::of(command().args(["serve", "--config", &file]));
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("cannot listen on unix socket /nonexistent/s"), "{outcome:?}");
}
