//! An import or an export that is interrupted goes on where it was, and never on top of what is no longer so.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use support::{Folder, Outcome, Server, command, needs, run, siltstone};

const LEN: usize = 96 << 20;

/// An image that takes the slowest level seconds to compress, and a pool.
struct Slow {
    folder: Folder,
    pool: String,
    bytes: Vec<u8>,
}

impl Slow {
    fn new() -> Self {
        let folder = Folder::new();
        let pool = folder.pool("256M");
        let mut bytes = vec![0; LEN];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        // Letters are compressible, and long to search for repetitions in.
        bytes.iter_mut().for_each(|byte| *byte = b'a' + *byte % 23);
        bytes[LEN - (3 << 20)..LEN - (1 << 20)].fill(0);
        fs::write(folder.path("raw"), &bytes).unwrap();
        Self { folder, pool, bytes }
    }

    fn import(&self, image: &str, options: &[&str]) -> std::process::Command {
        let mut import = command();
        import.env("XDG_STATE_HOME", self.folder.path("state"));
        import.args(["import", &self.pool, "v", image]).args(options);
        import.stdin(Stdio::null());
        import
    }

    /// How far the import is, by what is remembered.
    fn done_bytes(&self) -> u64 {
        let text = self.marks().first().and_then(|path| fs::read(path).ok());
        let mark: Option<serde_json::Value> =
            text.and_then(|text| serde_json::from_slice(&text).ok());
        mark.and_then(|mark| mark["done"]["up_to"].as_u64()).unwrap_or(0)
    }

    /// What is remembered.
    fn marks(&self) -> Vec<PathBuf> {
        let found = fs::read_dir(self.folder.path("state/siltstone")).into_iter().flatten();
        let found = found.map(|entry| entry.unwrap().path());
        found.filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect()
    }

    /// Ends an import by a signal when some of it is remembered.
    fn interrupted(&self, image: &str, options: &[&str], signal: Signal) -> Outcome {
        let slow = ["--level", "19", "--resume"];
        let mut import = self.import(image, &[options, &slow].concat());
        let mut child = import.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while self.done_bytes() == 0 {
            assert!(child.try_wait().unwrap().is_none(), "{:?}", child.wait_with_output());
            thread::sleep(Duration::from_millis(10));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        let outcome = end(child);
        assert_eq!(self.marks().len(), 1);
        outcome
    }

    /// Imports the rest, faster; once, however often that is asked for.
    fn resumed(&self, image: &str, options: &[&str]) -> Outcome {
        assert_eq!(self.listed(), ["96 MiB", "not complete"]);
        siltstone(["volume", "set", &self.pool, "v", "--level", "1"]).succeeds();
        let outcome = Outcome::of(&mut self.import(image, &[&["--resume"], options].concat()));
        assert!(outcome.status.success(), "{outcome:#?}");
        assert_eq!(self.listed(), ["96 MiB", ""]);
        let again = Outcome::of(&mut self.import(image, &["--resume"])).succeeds();
        assert!(again.ends_with("already: nothing to do (--force imports it again)\n"), "{again}");
        outcome
    }

    /// The size of the volume, and whether its import is not complete, as the list says.
    fn listed(&self) -> [String; 2] {
        let mut list = command();
        list.env("XDG_STATE_HOME", self.folder.path("state")).args(["volume", "list", &self.pool]);
        let said = Outcome::of(&mut list).succeeds();
        let line = said.lines().nth(1).unwrap();
        let column = |name: &str| said.find(name).map_or("", |at| line.get(at..).unwrap_or(""));
        let first = |text: &str| text.split("  ").next().unwrap().to_owned();
        [first(column("SIZE")), first(column("IMPORT"))]
    }

    #[track_caller]
    fn assert_holds(&self, bytes: &[u8]) {
        let out = self.folder.text("out");
        siltstone(["export", &self.pool, "v", &out, "--force"]).succeeds();
        assert!(fs::read(&out).unwrap() == bytes);
    }
}

fn end(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn an_import_that_is_killed_goes_on_where_it_was() {
    let slow = Slow::new();
    let image = slow.folder.text("raw");
    slow.interrupted(&image, &[], Signal::KILL);
    let outcome = slow.resumed(&image, &[]);
    assert_eq!(outcome.stderr, "");
    assert!(outcome.stdout.contains("'v': 96 MiB of it from "), "{}", outcome.stdout);
    slow.assert_holds(&slow.bytes);
    siltstone(["check", &slow.pool]).succeeds();
}

#[test]
fn an_import_that_is_interrupted_says_how_far_it_is_and_keeps_that() {
    let slow = Slow::new();
    let image = slow.folder.text("raw");
    // With little memory for what waits to be written, there is much to be done when it stops.
    let server = Server::start(&slow.pool, &["--staging", "8M"]);
    let sentence = slow.interrupted(&image, &[], Signal::INT).fails(130);
    assert!(sentence.starts_with("interrupted; volume 'v' has the first "), "{sentence}");
    // And so does a server that stops.
    let mut import = slow.import(&image, &["--resume"]);
    let child = import.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(700));
    assert!(server.stop().success());
    let sentence = end(child).fails(1);
    assert!(sentence.starts_with("the pool's server is stopping; volume 'v' has"), "{sentence}");
    let outcome = slow.resumed(&image, &[]);
    assert!(outcome.stdout.contains("'v': 96 MiB of it from "), "{}", outcome.stdout);
    slow.assert_holds(&slow.bytes);
    siltstone(["check", &slow.pool]).succeeds();
}

#[test]
fn an_import_through_qemu_img_and_a_server_goes_on_where_it_was() {
    if !needs("qemu-img") {
        return;
    }
    let slow = Slow::new();
    let image = slow.folder.text("image.qcow2");
    let raw = slow.folder.text("raw");
    run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", "-c", &raw, &image]);
    // With little memory for what waits, it is durable sooner.
    let server = Server::start(&slow.pool, &["--staging", "8M"]);
    slow.interrupted(&image, &[], Signal::KILL);
    let ended = || server.log().contains("'import v' has failed");
    server.wait_until(ended, "the server has seen that the command has gone");
    let outcome = slow.resumed(&image, &[]);
    assert!(outcome.stdout.contains("'v': 96 MiB of it from "), "{}", outcome.stdout);
    assert!(server.stop().success());
    slow.assert_holds(&slow.bytes);
    siltstone(["check", &slow.pool]).succeeds();
}

#[test]
fn a_changed_image_or_another_volume_is_imported_from_the_start() {
    let slow = Slow::new();
    let image = slow.folder.text("raw");
    slow.interrupted(&image, &[], Signal::KILL);
    let mut bytes = slow.bytes.clone();
    bytes[5000] ^= 1;
    let file = File::options().write(true).open(&image).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(&bytes[5000..5001], 5000).unwrap();
    file.set_modified(modified).unwrap();
    drop(file);
    let why = "as the image is another one than then, or has changed";
    let sentence = Outcome::of(&mut slow.import(&image, &["--resume"])).fails(6);
    assert!(
        sentence.contains("add --force to replace that") && sentence.ends_with(why),
        "{sentence}"
    );
    let outcome = slow.resumed(&image, &["--force"]);
    assert!(outcome.stderr.contains(&format!("from the start, {why}")), "{outcome:?}");
    slow.assert_holds(&bytes);

    let mut delete = command();
    delete.env("XDG_STATE_HOME", slow.folder.path("state"));
    Outcome::of(delete.args(["volume", "delete", &slow.pool, "v"])).succeeds();
    assert_eq!(slow.marks(), Vec::<PathBuf>::new(), "of what is deleted nothing is remembered");
    slow.interrupted(&image, &[], Signal::KILL);
    let known = slow.marks();
    // By somebody else.
    siltstone(["volume", "delete", &slow.pool, "v"]).succeeds();
    siltstone(["volume", "create", &slow.pool, "v", "--size", "96M"]).succeeds();
    let outcome = Outcome::of(&mut slow.import(&image, &["--resume"]));
    assert!(outcome.stderr.contains("nothing is known of an earlier import"), "{outcome:?}");
    let marks = slow.marks();
    assert!(marks.len() == 2 && known.iter().all(|old| marks.contains(old)), "of the other, too");
    slow.assert_holds(&bytes);
}

/// One that is not to be resumed leaves nothing, and what it overwrites is not taken for what it was.
#[test]
fn another_import_ends_what_is_remembered() {
    let slow = Slow::new();
    let (image, other) = (slow.folder.text("raw"), slow.folder.text("other"));
    slow.interrupted(&image, &[], Signal::KILL);
    fs::write(&other, vec![8; 1 << 20]).unwrap();
    let sentence = Outcome::of(&mut slow.import(&image, &[])).fails(6);
    let part = "add --resume to go on with the import of it that was interrupted at ";
    assert!(sentence.contains(part), "{sentence}");
    Outcome::of(&mut slow.import(&other, &["--force"])).succeeds();
    assert_eq!(slow.listed(), ["96 MiB", ""]);
    let outcome = Outcome::of(&mut slow.import(&image, &["--resume", "--force"]));
    let known = "importing from the start, as the image is another one than then, or has changed";
    assert!(outcome.status.success() && outcome.stderr.contains(known), "{outcome:?}");
    slow.assert_holds(&slow.bytes);
}

/// What is written is replaced only if that is meant, and if that is interrupted, the mix is told as one.
#[test]
fn what_a_volume_holds_is_replaced_on_demand_and_never_in_part_without_a_word() {
    let slow = Slow::new();
    let (image, old) = (slow.folder.text("raw"), slow.folder.text("old"));
    fs::write(&old, vec![8; LEN]).unwrap();
    siltstone(["volume", "create", &slow.pool, "v", "--size", "96M", "--level", "19"]).succeeds();
    let mark_less = |options: &[&str]| {
        let mut import = slow.import(&image, options);
        import.env("XDG_STATE_HOME", slow.folder.path("old"));
        import
    };
    let mut turn = 0;
    let mut interrupted = |mut import: std::process::Command| {
        // Other letters in each turn, as what is stored already takes no time.
        turn += 1;
        let letters: Vec<u8> = slow.bytes.iter().map(|byte| byte.wrapping_add(turn * 24)).collect();
        fs::write(&image, letters).unwrap();
        let import =
            import.args(["--progress", "1s"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = import.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let line = lines.find(|line| !line.starts_with("0 B")).unwrap();
        assert!(line.contains(" of 96 MiB ("), "{line}");
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let sentence = lines.last().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{sentence}");
        sentence
    };
    for is_served in [false, true] {
        let server = is_served.then(|| Server::start(&slow.pool, &["--staging", "8M"]));
        // Nothing is lost by the first of all.
        let force: &[&str] = if is_served { &["--force"] } else { &[] };
        Outcome::of(&mut slow.import(&old, force)).succeeds();
        let sentence = Outcome::of(&mut slow.import(&image, &[])).fails(6);
        let expected = format!(
            "volume 'v' holds 96 MiB of data, which an import of {image} would replace; add --force to replace that"
        );
        assert!(sentence.starts_with(&expected), "{sentence}");
        slow.assert_holds(&vec![8; LEN]);
        let sentence = interrupted(slow.import(&image, &["--force"]));
        let mix =
            format!("of {image}, and behind that what it held before: the same command with ");
        assert!(sentence.contains(&mix), "{sentence}");
        assert!(sentence.ends_with("with --resume goes on from there"), "{sentence}");
        assert_eq!(slow.listed(), ["96 MiB", "not complete"]);
        let sentence = interrupted(mark_less(&["--force"]));
        assert!(sentence.contains(&mix), "{sentence}");
        let why = "with --force imports it again from the start, as it cannot be resumed: how far it is \
                   cannot be written down in ";
        assert!(sentence.contains(why) && sentence.contains("old/siltstone ("), "{sentence}");
        drop(server);
    }
}

#[test]
fn a_stream_is_not_resumed_and_progress_is_told_in_lines() {
    let slow = Slow::new();
    let sentence = Outcome::of(&mut slow.import("-", &["--resume", "--size", "1M"])).fails(2);
    assert!(sentence.contains("standard input cannot be read twice"), "{sentence}");
    let image = slow.folder.text("raw");
    let mut import = slow.import(&image, &["--level", "19", "--progress", "1s"]);
    let mut child = import.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(line.contains(" of 96 MiB (") && line.contains(" left; "), "{line}");
    assert!(line.contains(" data, ") && line.ends_with(" stored"), "{line}");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(lines.last().unwrap().unwrap(), "siltstone: interrupted");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(siltstone(["volume", "list", &slow.pool, "--json"]).succeeds(), "[]\n");
    assert_eq!(slow.marks(), Vec::<PathBuf>::new());
}

/// Such as in a home that is full: what is written to the volume later is not replaced by `--resume`.
#[test]
fn a_complete_import_that_cannot_be_marked_is_not_resumed() {
    let slow = Slow::new();
    let image = slow.folder.text("raw");
    let mut import = slow.import(&image, &[]);
    let child = import.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mark = loop {
        if let Some(mark) = slow.marks().pop() {
            break mark;
        }
        thread::sleep(Duration::from_millis(1));
    };
    // In the place of every new mark.
    fs::create_dir(mark.with_extension("new")).unwrap();
    let outcome = end(child);
    assert!(outcome.status.success(), "{outcome:#?}");
    assert!(
        outcome.stderr.contains("that the import is complete cannot be written"),
        "{outcome:?}"
    );
    assert_nothing_is_known(&slow, &image);
}

/// No mark says that the image was imported, in part or whole.
#[track_caller]
fn assert_nothing_is_known(slow: &Slow, image: &str) {
    assert_eq!(slow.marks(), Vec::<PathBuf>::new());
    let sentence = Outcome::of(&mut slow.import(image, &["--resume"])).fails(6);
    assert!(sentence.ends_with("as nothing is known of an earlier import"), "{sentence}");
}

/// What comes of it may be any part of the file.
#[test]
fn a_file_on_standard_input_is_not_taken_for_an_import_of_that_file() {
    let slow = Slow::new();
    let image = slow.folder.text("raw");
    let mut file = File::open(&image).unwrap();
    file.seek(SeekFrom::Start(1 << 20)).unwrap();
    let mut import = slow.import("-", &["--size", "96M"]);
    Outcome::of(import.stdin(file)).succeeds();
    assert_nothing_is_known(&slow, &image);
}

#[test]
fn what_is_cut_off_a_volume_is_not_taken_for_imported() {
    let slow = Slow::new();
    let image = slow.folder.text("raw");
    Outcome::of(&mut slow.import(&image, &[])).succeeds();
    let resize = |arguments: &[&str]| {
        let mut resize = command();
        resize.env("XDG_STATE_HOME", slow.folder.path("state"));
        resize.args(["volume", "resize", &slow.pool, "v", "--size"]).args(arguments);
        Outcome::of(&mut resize).succeeds()
    };
    resize(&["97M"]);
    assert_eq!(slow.marks().len(), 1);
    resize(&["10M", "--shrink"]);
    assert_eq!(slow.marks(), Vec::<PathBuf>::new());
    resize(&["96M"]);
    let sentence = Outcome::of(&mut slow.import(&image, &["--resume"])).fails(6);
    assert!(sentence.contains("volume 'v' holds 10 MiB of data"), "{sentence}");
}

/// A volume that somebody has made a snapshot of meanwhile is not deleted.
#[test]
fn a_new_volume_that_cannot_be_deleted_is_told_and_can_be_resumed() {
    let slow = Slow::new();
    let image = slow.folder.text("raw");
    let server = Server::start(&slow.pool, &["--staging", "8M"]);
    let mut import = slow.import(&image, &["--level", "19"]);
    let child = import.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    server.wait_until(|| slow.done_bytes() > 0, "some of it is remembered");
    siltstone(["snapshot", "create", &slow.pool, "v@s"]).succeeds();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let sentence = end(child).fails(130);
    let stays = ", and is not deleted, as volume 'v' has snapshots (1); ";
    assert!(sentence.starts_with("interrupted; volume 'v' has the first "), "{sentence}");
    assert!(sentence.contains(stays), "{sentence}");
    assert!(
        sentence.ends_with(": the same command with --resume goes on from there"),
        "{sentence}"
    );
    drop(server);
    siltstone(["snapshot", "delete", &slow.pool, "v@s"]).succeeds();
    let outcome = slow.resumed(&image, &[]);
    assert!(outcome.stdout.contains("'v': 96 MiB of it from "), "{}", outcome.stdout);
    slow.assert_holds(&slow.bytes);
}

/// What is advised for one of many images does not change what the others are.
#[test]
fn many_of_which_a_part_is_there_are_told_as_that() {
    let folder = Folder::new();
    let pool = folder.pool("64M");
    let image = folder.text("noise.raw");
    let mut noise = vec![0; 80 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(&image, noise).unwrap();
    // Nothing is written in it.
    siltstone(["volume", "create", &pool, "noise", "--size", "80M"]).succeeds();
    let each = |options: &[&str]| {
        let mut each = command();
        each.env("XDG_STATE_HOME", folder.path("state"));
        let outcome = Outcome::of(each.args(["import", &pool, "--each", &image]).args(options));
        assert_eq!(outcome.status.code(), Some(7), "{outcome:#?}");
        let mut said = outcome.stderr.lines().rev();
        assert_eq!(said.next(), Some("siltstone: 1 of 1 import failed; none is complete"));
        said.next().unwrap().to_owned()
    };
    let said = each(&["--resume"]);
    assert!(said.ends_with(&format!(" of {image}: the same command goes on from there")), "{said}");
    let said = each(&["--force"]);
    let alone = format!("'siltstone import {pool} noise {image} --resume' goes on from there");
    assert!(said.ends_with(&format!(", and behind that what it held before: {alone}")), "{said}");
}

#[test]
fn an_export_of_a_snapshot_goes_on_where_it_was() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let (image, out) = (folder.text("image"), folder.text("out"));
    let mut bytes = vec![0; 32 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes[28 << 20..].fill(0);
    fs::write(&image, &bytes).unwrap();
    siltstone(["import", &pool, "disk", &image]).succeeds();
    siltstone(["snapshot", "create", &pool, "disk@s"]).succeeds();
    siltstone(["snapshot", "create", &pool, "disk@other"]).succeeds();
    for refused in [&["disk", &out][..], &["disk@s", "-"]] {
        siltstone([&["export", &pool, "--resume"], refused].concat()).fails(2);
    }
    // A limit ends it in the middle.
    let program = env!("CARGO_BIN_EXE_siltstone");
    let export = format!("'{program}' export '{pool}' disk@s '{out}' --resume");
    let limited = |blocks: u32| {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec {export}");
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]).env("XDG_STATE_HOME", folder.path("state"));
        Outcome::of(shell.stdin(Stdio::null()))
    };
    // A server that has the pool would write the file, without that limit.
    let export_all = |is_served: bool, arguments: &[&str]| {
        let server = is_served.then(|| Server::start(&pool, &[]));
        let mut export = command();
        export.env("XDG_STATE_HOME", folder.path("state"));
        let outcome = Outcome::of(export.args(["export", &pool, "--resume"]).args(arguments));
        drop(server);
        outcome
    };
    let whole = |is_served| export_all(is_served, &["disk@s", &out]);
    for is_served in [false, true] {
        let sentence = limited(20 << 11).fails(6);
        assert!(sentence.contains("out.partial has the first 20 MiB of 'disk@s'"), "{sentence}");
        assert!(!folder.path("out").exists(), "half an image does not have its name");
        let sentence = limited(24 << 11).fails(6);
        assert!(sentence.contains("out.partial has the first 24 MiB of 'disk@s'"), "{sentence}");
        let sentence = export_all(is_served, &["disk@other", &out]).fails(6);
        assert!(sentence.contains("out.partial exists"), "of another snapshot: {sentence}");
        let said = whole(is_served).succeeds();
        assert!(said.contains(": 32 MiB of it from 24 MiB on in "), "{said}");
        assert!(fs::read(&out).unwrap() == bytes);
        assert!(!folder.path("out.partial").exists());
        assert!(whole(is_served).fails(6).contains("--force"));
        // What is not known again is somebody else's.
        fs::remove_file(&out).unwrap();
        limited(20 << 11).fails(6);
        fs::write(folder.path("other"), vec![1; 24 << 20]).unwrap();
        fs::rename(folder.path("other"), folder.path("out.partial")).unwrap();
        assert!(whole(is_served).fails(6).contains("out.partial exists"));
        assert_eq!(fs::read(folder.path("out.partial")).unwrap(), vec![1; 24 << 20]);
        let said = export_all(is_served, &["disk@s", &out, "--force"]).succeeds();
        assert!(said.contains(": 32 MiB in "), "{said}");
        assert!(fs::read(&out).unwrap() == bytes);
        // Nor is one that was written for another snapshot since.
        fs::remove_file(&out).unwrap();
        limited(20 << 11).fails(6);
        export_all(is_served, &["disk@other", &out, "--force"]).succeeds();
        fs::remove_file(&out).unwrap();
        assert!(whole(is_served).succeeds().contains(": 32 MiB in "));
        assert!(fs::read(&out).unwrap() == bytes);
        fs::remove_file(&out).unwrap();
    }
}
