//! TLS with real clients, and the commands of README's section on it. A test whose program is not
//! installed says so and passes.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

#[path = "../../nbd/tests/common/pki.rs"]
mod pki;
mod support;

use std::{fs, path::Path, process::Command};

use pki::Pki;
use rustix::process::Signal;
use support::{Folder, Outcome, Server, assert_same, has, run, siltstone};

/// A server on TCP, and on a unix socket, with certificates of an authority.
fn serve(pool: &str, pki: &Pki, more: &[&str]) -> Server {
    let file = |name| pki.file(name).display().to_string();
    let (certificate, key) = (file("server-cert.pem"), file("server-key.pem"));
    let own = ["--listen", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key];
    Server::start(pool, &[&own[..], more].concat())
}

/// The TCP address of a server.
fn address(server: &Server) -> String {
    let lines = server.announcement().lines();
    let mut addresses = lines.filter_map(|line| line.strip_prefix("listening on 127.0.0.1:"));
    format!("127.0.0.1:{}", addresses.next().unwrap())
}

/// The URI of a volume for a client with the certificates in `folder`.
fn uri(server: &Server, volume: &str, folder: &Path) -> String {
    let folder = folder.display().to_string().replace(' ', "%20");
    format!("nbds://{}/{volume}?tls-certificates={folder}", address(server))
}

/// qemu's name for the same.
fn qemu_options(server: &Server, volume: &str) -> String {
    let address = address(server);
    let (host, port) = address.split_once(':').unwrap();
    format!("driver=nbd,host={host},port={port},export={volume},tls-creds=tls")
}

fn qemu_credentials(folder: &Path) -> String {
    format!("tls-creds-x509,id=tls,endpoint=client,dir={}", folder.display())
}

#[track_caller]
fn fails(program: &str, arguments: &[&str]) -> String {
    let outcome = Outcome::of(Command::new(program).args(arguments));
    assert!(!outcome.status.success(), "{program}: {outcome:#?}");
    outcome.stderr
}

#[test]
fn images_pass_unchanged_through_tls() {
    if !["mke2fs", "nbdcopy", "nbdinfo", "qemu-img"].into_iter().all(has) {
        return;
    }
    let folder = Folder::new();
    let (image, pki) = (folder.image("image"), Pki::new());
    let image_text = image.to_str().unwrap();
    let alice = pki.client("alice", &[]);
    let pool = folder.pool("512M");
    let ca = pki.file("ca-cert.pem").display().to_string();
    let more = ["--tls-client-ca", &ca, "--create", "first=128M", "--create", "second=128M"];
    let server = serve(&pool, &pki, &more);
    let first = uri(&server, "first", &alice);
    assert!(run("nbdinfo", [&first]).contains("protocol: newstyle-fixed with TLS"));
    run("nbdcopy", ["--connections=4", image_text, &first]);
    let back = folder.path("back");
    run("nbdcopy", ["--connections=4", &first, back.to_str().unwrap()]);
    assert_same(&image, &back);
    // Over the unix socket, too.
    let socket = format!(
        "nbds+unix:///first?socket={}&tls-certificates={}",
        server.socket().display(),
        alice.display().to_string().replace(' ', "%20")
    );
    run("nbdcopy", [socket.as_str(), back.to_str().unwrap()]);
    assert_same(&image, &back);

    let (credentials, second) = (qemu_credentials(&alice), qemu_options(&server, "second"));
    let object = ["--object", &credentials];
    let target = ["-n", "-f", "raw", image_text, "--target-image-opts", &second];
    run("qemu-img", [&["convert"], &object[..], &target].concat());
    let image_options = format!("driver=raw,file.driver=file,file.filename={image_text}");
    let both = ["--image-opts", &image_options, &second];
    run("qemu-img", [&["compare"], &object[..], &both].concat());
    assert!(server.stop().success());
}

#[test]
fn clients_without_tls_or_the_right_certificate_get_nothing() {
    if !["nbdinfo", "qemu-img"].into_iter().all(has) {
        return;
    }
    let folder = Folder::new();
    let (pki, other) = (Pki::new(), Pki::new());
    let impostor = other.client("alice", &[]);
    fs::copy(pki.file("ca-cert.pem"), impostor.join("ca-cert.pem")).unwrap();
    let pool = folder.pool("256M");
    let ca = pki.file("ca-cert.pem").display().to_string();
    let server = serve(&pool, &pki, &["--tls-client-ca", &ca, "--create", "disk=64M"]);
    let plain = format!("nbd://{}/disk", address(&server));
    assert!(fails("nbdinfo", &[&plain]).contains("not supported"));
    fails("nbdinfo", &["--list", &plain]);
    for folder in [&impostor, &pki.stranger("nobody")] {
        fails("nbdinfo", &[&uri(&server, "disk", folder)]);
        let (credentials, options) = (qemu_credentials(folder), qemu_options(&server, "disk"));
        fails("qemu-img", &["info", "--object", &credentials, "--image-opts", &options]);
    }
    // A client that trusts another authority wants nothing of this server.
    fails("nbdinfo", &[&uri(&server, "disk", &other.client("bob", &[]))]);
    run("nbdinfo", [&uri(&server, "disk", &pki.client("alice", &[]))]);
    server.wait_for_log("the TLS handshake failed");
    let log = server.stop_for_log();
    let refused: Vec<&str> = log.lines().filter(|line| line.contains("is refused")).collect();
    let [of_disk, of_list] = &refused[..] else { panic!("{log}") };
    for line in [of_disk, of_list] {
        assert!(line.contains(" WARN ") && line.contains("peer=\"127.0.0.1:"), "{line}");
        assert!(line.contains("client=anonymous"), "{line}");
        assert!(line.contains("it has not begun TLS, which this server needs"), "{line}");
    }
    assert!(of_disk.contains("export=\"disk\"") && !of_list.contains("export="), "{log}");
}

/// Whoever can connect can be turned away as often as he likes, and must not fill the log.
#[test]
fn strangers_that_come_again_and_again_do_not_fill_the_log() {
    if !has("nbdinfo") {
        return;
    }
    let folder = Folder::new();
    let pki = Pki::new();
    let pool = folder.pool("256M");
    let server = serve(&pool, &pki, &["--create", "disk=64M"]);
    let plain = format!("nbd://{}/disk", address(&server));
    for _ in 0..30 {
        fails("nbdinfo", &[&plain]);
    }
    let log = server.stop_for_log();
    assert_eq!(log.matches("a client is refused").count(), 10, "{log}");
}

/// SIGHUP: new certificates count for new connections; files that make no sense change nothing.
#[test]
fn certificates_are_renewed_without_a_restart() {
    if !has("nbdinfo") {
        return;
    }
    let folder = Folder::new();
    let (pki, other) = (Pki::new(), Pki::new());
    let (before, after) = (pki.stranger("client"), other.stranger("client"));
    let pool = folder.pool("256M");
    let server = serve(&pool, &pki, &["--create", "disk=64M"]);
    run("nbdinfo", [&uri(&server, "disk", &before)]);
    fails("nbdinfo", &[&uri(&server, "disk", &after)]);

    fs::write(pki.file("server-cert.pem"), "nonsense").unwrap();
    server.signal(Signal::HUP);
    server.wait_for_log("cannot reload the config");
    run("nbdinfo", [&uri(&server, "disk", &before)]);

    for name in ["server-cert.pem", "server-key.pem"] {
        fs::copy(other.file(name), pki.file(name)).unwrap();
    }
    server.signal(Signal::HUP);
    server.wait_for_log("reloaded the config");
    run("nbdinfo", [&uri(&server, "disk", &after)]);
    fails("nbdinfo", &[&uri(&server, "disk", &before)]);
    assert!(server.stop().success());
}

#[test]
fn volumes_with_a_list_are_there_for_those_on_it_only() {
    if !has("nbdinfo") {
        return;
    }
    let folder = Folder::new();
    let pki = Pki::new();
    let pool = folder.pool("256M");
    let ca = pki.file("ca-cert.pem").display().to_string();
    let server = serve(
        &pool,
        &pki,
        &[
            ["--tls", "optional", "--tls-client-ca", &ca, "--tls-client-cert", "optional"],
            ["--create", "open=8M", "--create", "secret=8M", "--allow", "secret=alice,b.test"],
        ]
        .concat(),
    );
    siltstone(["snapshot", "create", &pool, "secret@monday"]).succeeds();
    let plain = format!("nbd://{}/", address(&server));
    let listed = |uri: &str| {
        let list = run("nbdinfo", ["--list", uri]);
        let exports = list.lines().filter_map(|line| line.strip_prefix("export="));
        exports.map(|name| name.trim_matches([':', '"']).to_owned()).collect::<Vec<_>>()
    };
    for (client, names) in [("alice", &[][..]), ("bob", &["b.test"])] {
        let folder = pki.client(client, names);
        assert_eq!(listed(&uri(&server, "", &folder)), ["open", "secret", "secret@monday"]);
        run("nbdinfo", [&uri(&server, "secret", &folder)]);
        run("nbdinfo", [&uri(&server, "secret@monday", &folder)]);
    }
    let others =
        [uri(&server, "", &pki.client("carol", &[])), uri(&server, "", &pki.stranger("x"))];
    for other in others.iter().chain([&plain]) {
        assert_eq!(listed(other), ["open"]);
        for volume in ["secret", "secret@monday"] {
            let one = other.replacen("/?", &format!("/{volume}?"), 1);
            let one = if one == *other { format!("{other}{volume}") } else { one };
            let error = fails("nbdinfo", &[&one]);
            assert!(error.contains("No such file or directory"), "{error}");
        }
    }
    let log = server.stop_for_log();
    let told = |client: &str, volume: &str, why: &str| {
        let parts = [client, volume, why];
        let is_told = |line: &str| parts.iter().all(|part| line.contains(part));
        assert!(log.lines().any(is_told), "{parts:?}: {log}");
    };
    for volume in ["export=\"secret\"", "export=\"secret@monday\""] {
        told("client=carol", volume, "its certificate has none of the names");
        told("client=anonymous", volume, "it has shown no certificate");
    }
    // One line for each, however a client asks for it.
    assert_eq!(log.matches("a client is refused").count(), 6, "{log}");
}

/// README's commands, as they are, but for the port and the program's path.
#[test]
fn the_commands_in_readme_make_certificates_that_work() {
    if !has_openssl() || !["nbdinfo", "nbdcopy", "qemu-img"].into_iter().all(has) {
        return;
    }
    let readme = include_str!("../../README.md");
    let section = readme.split("### Encryption and access").nth(1).unwrap();
    let section = section.split("\n### ").next().unwrap();
    let code = |line: &&str| line.starts_with("    ");
    let commands: Vec<&str> = section.lines().filter(code).map(|line| &line[4..]).collect();
    let commands = commands.join("\n").replace("\\\n", "");
    let (before, after) = commands.split_once("siltstone serve pool.silt").unwrap();
    let (serve, after) = after.split_once('\n').unwrap();

    let folder = Folder::new();
    let shell = |script: &str| {
        let script = format!("set -eux\ncd {}\n{script}", folder.path("").display());
        let outcome = Outcome::of(Command::new("sh").args(["-c", &script]));
        assert!(outcome.status.success(), "{outcome:#?}");
        outcome.stdout
    };
    shell(before);
    fs::write(folder.path("disk.raw"), vec![7; 1 << 20]).unwrap();
    let pool = folder.pool("256M");
    siltstone(["volume", "create", &pool, "disk", "--size", "1M"]).succeeds();
    let serve =
        serve.replace(":10809", ":0").replace(" pki/", &format!(" {}/", folder.text("pki")));
    let server = Server::start(&pool, &serve.split_whitespace().collect::<Vec<_>>());
    let (_, port) =
        address(&server).split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let printed = shell(&after.replace("10809", &port));
    assert!(printed.contains("with TLS"), "{printed}");
    shell("cmp disk.raw copy.raw");
    // The commands that the server itself prints, too.
    for command in server.announcement().lines().filter_map(|line| line.strip_prefix("    ")) {
        if command.contains(&port) && !command.contains("nbdfuse") {
            shell(command);
        }
    }
    assert!(server.stop().success());
}

fn has_openssl() -> bool {
    // It has no --version.
    let found = Command::new("openssl").arg("version").output().is_ok();
    if !found {
        println!("openssl is not installed: not tested");
    }
    found
}

#[test]
fn a_server_stops_in_order_while_clients_use_tls() {
    if !has("qemu-io") {
        return;
    }
    let folder = Folder::new();
    let pki = Pki::new();
    let pool = folder.pool("256M");
    let server = serve(&pool, &pki, &["--create", "disk=64M"]);
    let (credentials, options) = (qemu_credentials(pki.path()), qemu_options(&server, "disk"));
    // It reads its commands from here, and stays.
    let mut client = Command::new("qemu-io")
        .args(["--object", &credentials, "--image-opts", &options])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    server.wait_for_log("tls=true");
    let status = server.end(Signal::TERM);
    drop(client.stdin.take());
    client.wait().unwrap();
    assert!(status.success());
    siltstone(["check", &pool]).succeeds();
}
