//! Every mistake of [`rows`] is made, and answered with its exit status and one sentence that says what is
//! wrong and what to do.
#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod rows;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{fs::FileExt, process::CommandExt},
    process::{Command, Stdio},
};

use rcgen::{CertificateParams, KeyPair};
use rows::{ROWS, Row, Scene};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use siltstone_device::header::{Header, Identity, Kind, seal};
use siltstone_torture::kill::nbd_client::NbdClient;
use support::{Folder, Outcome, Server, command};
use zerocopy::FromBytes;

const MARK: &[u8] = b"here it is damaged";

/// A scene as it is while its commands run.
struct Stage {
    folder: Folder,
    _server: Option<Server>,
    _client: Option<NbdClient>,
}

impl Stage {
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = match program {
            "siltstone" => command(),
            other => Command::new(other),
        };
        command.args(arguments).current_dir(self.folder.path("")).stdin(Stdio::null());
        command
    }

    fn siltstone(&self, line: &str) -> Outcome {
        let words: Vec<&str> = line.split(' ').map(|word| word.trim_matches('\'')).collect();
        Outcome::of(&mut self.command("siltstone", &words))
    }

    /// The files and, if the scene has one, the pool.
    fn new(scene: Scene) -> Self {
        let mut stage = Self { folder: Folder::new(), _server: None, _client: None };
        let file = |name: &str, bytes: &[u8]| fs::write(stage.folder.path(name), bytes).unwrap();
        file("file", b"a shopping list\n");
        file("empty", b"");
        file("image", &[7; 1 << 20]);
        file("lan.toml", b"listen = [\"0.0.0.0:1\"]\n");
        let [key, other_key] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap();
        file("cert.pem", certificate.self_signed(&key).unwrap().pem().as_bytes());
        file("key.pem", key.serialize_pem().as_bytes());
        file("other-key.pem", other_key.serialize_pem().as_bytes());
        let block = |what: &str, data: &str| {
            format!("-----BEGIN {what}-----\n{data}\n-----END {what}-----\n")
        };
        file("unsound.pem", block("CERTIFICATE", "!").as_bytes());
        let junk = block("CERTIFICATE", "AAAA") + &block("PRIVATE KEY", "AAAA");
        file("junk.pem", junk.as_bytes());
        let mut noise = vec![0; 80 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        file("noise", &noise);
        noise.truncate(4 << 20);
        noise[1 << 20..][..MARK.len()].copy_from_slice(MARK);
        file("some-noise", &noise);
        let log = if scene == Scene::OtherLog { " --nvram log" } else { "" };
        for line in [
            "create second --size 64M",
            &format!("create pool --size 64M{log}"),
            "import pool disk image",
            "import pool noisy some-noise",
            "snapshot create pool disk@monday",
            "snapshot create pool noisy@monday",
        ] {
            stage.siltstone(line).succeeds();
        }
        stage.set(scene);
        stage
    }

    fn set(&mut self, scene: Scene) {
        let pool = self.folder.path("pool");
        let options: &[&str] = match scene {
            Scene::Served | Scene::Connected | Scene::Failed => &[],
            Scene::ServedReadOnly => &["--read-only"],
            Scene::Locked => &["--control", "none"],
            _ => return self.damage(scene),
        };
        let mut program = command();
        if scene == Scene::Failed {
            // A shell that ignores the signal, which its children then do as well.
            program = Command::new("bash");
            let siltstone = env!("CARGO_BIN_EXE_siltstone");
            program.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", siltstone]);
            program.process_group(0);
        }
        let server = Server::start_as(program, &pool, options);
        if scene == Scene::Connected {
            self._client = Some(NbdClient::connect(server.socket(), "disk").unwrap());
        }
        if scene == Scene::Failed {
            let pid = Pid::from_raw(server.pid().try_into().unwrap());
            let limit = Rlimit { current: Some(4096), maximum: Some(4096) };
            prlimit(pid, Resource::Fsize, limit).unwrap();
            // The first change fails, and what comes after it is refused.
            assert!(!self.siltstone("volume create pool first --size 1M").status.success());
        }
        self._server = Some(server);
    }

    fn damage(&self, scene: Scene) {
        let path = self.folder.path("pool");
        let pool = fs::File::options().read(true).write(true).open(&path).unwrap();
        match scene {
            Scene::DamagedBlock => {
                let bytes = fs::read(&path).unwrap();
                let at = bytes.windows(MARK.len()).position(|window| window == MARK).unwrap();
                pool.write_all_at(b"X", at as u64).unwrap();
            }
            // All four copies in their slots.
            Scene::DamagedRecord => pool.write_all_at(&vec![1; 4 << 20], 1 << 20).unwrap(),
            Scene::Truncated => pool.set_len(32 << 20).unwrap(),
            Scene::Newer => {
                for address_bytes in [0, 512 << 10] {
                    let mut block = [0; 4096];
                    pool.read_exact_at(&mut block, address_bytes).unwrap();
                    let (found, _) = Header::read_from_prefix(&block).unwrap();
                    let length_bytes = found.length_bytes.get() as usize;
                    let identity = Identity {
                        kind: Kind::Superblock,
                        version: 99,
                        pool: found.pool.get(),
                        address_bytes,
                    };
                    seal(&mut block[..length_bytes], &identity, found.sequence.get());
                    pool.write_all_at(&block, address_bytes).unwrap();
                }
            }
            Scene::OtherLog => fs::write(self.folder.path("log"), vec![0; 4 << 20]).unwrap(),
            _ => {}
        }
    }
}

/// What a command says of its failure: its sentence, or what is wrong with its line, without usage and tips.
fn message(outcome: &Outcome) -> String {
    let text = outcome.stderr.trim_end();
    match text.strip_prefix("error: ") {
        Some(usage) => {
            let lines = usage.lines().take_while(|line| !line.is_empty());
            lines.map(str::trim).collect::<Vec<_>>().join(" ")
        }
        None => text.strip_prefix("siltstone: ").unwrap_or_else(|| panic!("{outcome:?}")).into(),
    }
}

/// Whether a text is as a pattern says, in which `*` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            text.char_indices().any(|(at, _)| fits(rest, &text[at..])) || fits(rest, "")
        }),
    }
}

#[track_caller]
fn play(scene: Scene) {
    let stage = Stage::new(scene);
    let mut wrong = String::new();
    for Row { name, line, status, message: expected, .. } in
        ROWS.iter().filter(|row| row.scene == scene)
    {
        let _ = fs::remove_file(stage.folder.path("new"));
        let outcome = stage.siltstone(line);
        let found = message(&outcome);
        let is_one_line = found.lines().count() == 1;
        if outcome.status.code() != Some(*status) || !is_one_line || !fits(expected, &found) {
            let code = outcome.status.code();
            wrong += &format!(
                "{name}: siltstone {line}\n  {code:?} {found}\nnot\n  {status} {expected}\n"
            );
        }
    }
    assert!(wrong.is_empty(), "{scene:?}:\n{wrong}");
}

#[test]
fn mistakes_with_a_pool_at_rest_are_told() {
    play(Scene::Rest);
}

#[test]
fn mistakes_with_a_pool_that_is_served_are_told() {
    for scene in [Scene::Served, Scene::Connected, Scene::ServedReadOnly, Scene::Locked] {
        play(scene);
    }
}

#[test]
fn what_is_wrong_with_a_pool_is_told() {
    for scene in [
        Scene::Failed,
        Scene::DamagedBlock,
        Scene::DamagedRecord,
        Scene::Truncated,
        Scene::Newer,
        Scene::OtherLog,
    ] {
        play(scene);
    }
}

#[test]
fn names_of_rows_are_unique() {
    let names: BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), ROWS.len());
}

#[test]
fn stars_stand_for_anything() {
    assert!(fits("a * c", "a b c") && fits("*c", "abc") && fits("a*", "a") && fits("a*", "abc"));
    assert!(!fits("a * c", "a b d") && !fits("a", "ab"));
}
