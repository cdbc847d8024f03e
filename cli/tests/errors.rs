//! What mistakes leave behind: nothing, whichever command meets them. What is said of each is in the catalogue
//! (`error_catalogue`).

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{fs, os::unix::fs::PermissionsExt, process::Stdio};

use support::{Folder, Outcome, Server, command, siltstone};

const POOL_SIZE: &str = "128M";

/// Commands that open a pool, whatever they do with it.
fn openers<'a>(pool: &'a str, image: &'a str) -> Vec<Vec<&'a str>> {
    vec![
        vec!["stat", pool],
        vec!["check", pool],
        vec!["volume", "list", pool],
        vec!["volume", "create", pool, "v", "--size", "1M"],
        vec!["import", pool, "v", image],
        vec!["export", pool, "v", "/dev/null"],
    ]
}

#[test]
fn the_help_lists_the_exit_statuses() {
    let help = siltstone(["help"]).succeeds();
    assert!(
        help.contains("  5  the pool is in use by another process, or the volume by clients\n"),
        "{help}"
    );
}

#[test]
fn a_missing_pool_is_reported_by_every_command() {
    let folder = Folder::new();
    let image = folder.text("image");
    fs::write(&image, [1; 4096]).unwrap();
    let missing = folder.text("missing");
    for arguments in openers(&missing, &image) {
        let sentence = siltstone(arguments).fails(1);
        assert!(sentence.starts_with(&format!("{missing} does not exist; ")), "{sentence}");
    }
    let served = siltstone(["serve", &missing, "--log-level", "error"]).fails(1);
    assert!(served.contains("siltstone create"), "{served}");
}

#[test]
fn what_is_no_pool_is_reported_by_every_command() {
    let folder = Folder::new();
    let image = folder.text("image");
    fs::write(&image, [1; 4096]).unwrap();
    let (empty, text, large) = (folder.text("empty"), folder.text("text"), folder.text("large"));
    fs::write(&empty, "").unwrap();
    fs::write(&text, "a shopping list\n").unwrap();
    fs::write(&large, vec![b'x'; 2 << 20]).unwrap();
    for path in [&empty, &text, &large] {
        for arguments in openers(path, &image) {
            let sentence = siltstone(arguments).fails(3);
            assert!(sentence.starts_with(path.as_str()), "{sentence}");
            assert!(sentence.contains("not a siltstone pool"), "{sentence}");
        }
    }
    let directory = folder.text("");
    for arguments in openers(&directory, &image) {
        let sentence = siltstone(arguments).fails(3);
        assert!(sentence.contains("neither a regular file nor a block device"), "{sentence}");
    }
}

#[test]
fn a_pool_without_its_nvram_log_is_reported() {
    let folder = Folder::new();
    let (pool, nvram) = (folder.text("pool"), folder.text("nvram"));
    let size = ["--size", POOL_SIZE, "--nvram", &nvram, "--nvram-size", "4M"];
    siltstone([&["create", &pool], &size[..]].concat()).succeeds();
    assert_eq!(fs::metadata(&nvram).unwrap().len(), 4 << 20);
    siltstone(["stat", &pool]).succeeds();
    fs::write(&nvram, vec![0; 4 << 20]).unwrap();
    let sentence = siltstone(["stat", &pool]).fails(3);
    assert!(sentence.contains("NVRAM"), "{sentence}");
    fs::remove_file(&nvram).unwrap();
    let sentence = siltstone(["stat", &pool]).fails(1);
    assert!(sentence.contains(&nvram), "{sentence}");
}

#[test]
fn a_pool_in_use_is_refused_and_keeps_running() {
    let folder = Folder::new();
    let pool = folder.pool(POOL_SIZE);
    let image = folder.text("image");
    fs::write(&image, [1; 4096]).unwrap();
    let server = Server::start(&pool, &["--create", "disk=1G", "--control", "none"]);
    let holder = format!("in use by process {} (siltstone)", server.pid());
    // All at once: each waits a little before it gives up.
    std::thread::scope(|scope| {
        for arguments in openers(&pool, &image) {
            scope.spawn(|| {
                let sentence = siltstone(arguments).fails(5);
                assert!(sentence.contains(&holder), "{sentence}");
                let nobody = format!("no server takes commands for it on {pool}.control");
                assert!(sentence.contains(&nobody), "{sentence}");
            });
        }
        scope.spawn(|| {
            let sentence = siltstone(["stat", &pool, "--control", "none"]).fails(5);
            assert!(!sentence.contains("no server"), "nobody was to be asked: {sentence}");
            assert!(sentence.contains(&holder), "{sentence}");
        });
    });
    assert!(server.stop().success());
    siltstone(["stat", &pool]).succeeds();
}

#[test]
fn a_pool_that_is_served_read_only_says_so_to_changes() {
    let folder = Folder::new();
    let pool = folder.pool(POOL_SIZE);
    let server = Server::start(&pool, &["--read-only"]);
    let sentence = siltstone(["volume", "create", &pool, "v", "--size", "1M"]).fails(5);
    assert!(sentence.contains("is served read-only"), "{sentence}");
    siltstone(["stat", &pool]).succeeds();
    assert!(server.stop().success());
    siltstone(["volume", "create", &pool, "v", "--size", "1M"]).succeeds();
}

#[test]
fn a_pool_that_cannot_be_created_leaves_nothing_behind() {
    let folder = Folder::new();
    let (pool, nvram) = (folder.text("pool"), folder.text("nvram"));
    for (arguments, status, expected) in [
        (&[][..], 2, "add --size"),
        (&["--size", "1M"], 6, "at least"),
        (&["--size", "1000000001"], 6, "multiple of 4096"),
        (&["--size", "0"], 6, "at least"),
        (&["--size", POOL_SIZE, "--threshold", "0"], 6, "threshold"),
        (&["--size", POOL_SIZE, "--index-memory", "1"], 6, "index memory"),
        (&["--size", POOL_SIZE, "--nvram-size", "1"], 6, "NVRAM log size"),
        (&["--size", POOL_SIZE, "--nvram", &nvram, "--threshold", "0"], 6, "threshold"),
        (&["--size", POOL_SIZE, "--nvram", "/nonexistent/log"], 1, "/nonexistent/log"),
    ] {
        let sentence = siltstone([&["create", &pool], arguments].concat()).fails(status);
        assert!(sentence.contains(expected), "{sentence}");
        assert!(!fs::exists(&pool).unwrap() && !fs::exists(&nvram).unwrap(), "{arguments:?}");
    }
    let nowhere = folder.text("missing/pool");
    siltstone(["create", &nowhere, "--size", POOL_SIZE]).fails(1);
}

#[test]
fn creating_a_pool_never_overwrites() {
    let folder = Folder::new();
    let (pool, file) = (folder.pool(POOL_SIZE), folder.text("file"));
    fs::write(&file, "precious").unwrap();
    for path in [&pool, &file] {
        let sentence = siltstone(["create", path, "--size", POOL_SIZE]).fails(6);
        assert!(sentence.contains("exists already"), "{sentence}");
    }
    let other = folder.text("other");
    let sentence = siltstone(["create", &other, "--size", POOL_SIZE, "--nvram", &file]).fails(6);
    assert!(sentence.contains(&file), "{sentence}");
    assert!(!fs::exists(&other).unwrap());
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    siltstone(["stat", &pool]).succeeds();
}

#[test]
fn a_pool_that_may_not_be_opened_is_reported() {
    let folder = Folder::new();
    let pool = folder.pool(POOL_SIZE);
    fs::set_permissions(&pool, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&pool).is_ok() {
        println!("root may open everything: not tested");
        return;
    }
    let sentence = siltstone(["stat", &pool]).fails(1);
    assert!(sentence.contains("Permission denied"), "{sentence}");
}

#[test]
fn impossible_sizes_of_volumes_are_refused_and_leave_them_as_they_are() {
    let folder = Folder::new();
    let pool = folder.pool(POOL_SIZE);
    siltstone(["volume", "create", &pool, "disk", "--size", "1G"]).succeeds();
    for (arguments, expected) in [
        (&["create", &pool, "none", "--size", "0"][..], "multiple of 512"),
        (&["create", &pool, "odd", "--size", "4095"], "cannot have 4095 bytes: "),
        (&["create", &pool, "huge", "--size", "15E"], "at most 1 EiB"),
        (&["resize", &pool, "disk", "--size", "1073741825"], "multiple of 512"),
        (&["resize", &pool, "disk", "--size", "513", "--shrink"], "multiple of 512"),
    ] {
        let sentence = siltstone([&["volume"], arguments].concat()).fails(6);
        assert!(sentence.contains(expected), "{sentence}");
    }
    let list = siltstone(["volume", "list", &pool]).succeeds();
    assert_eq!(list, "NAME  SIZE   LEVELS  FRAME\ndisk  1 GiB  1..3    32K\n");
}

#[test]
fn images_that_cannot_be_imported_leave_no_volume() {
    let folder = Folder::new();
    let pool = folder.pool(POOL_SIZE);
    let (empty, image) = (folder.text("empty"), folder.text("image"));
    fs::write(&empty, "").unwrap();
    fs::write(&image, vec![7; 2 << 20]).unwrap();
    let directory = folder.text("");
    for (arguments, status, expected) in [
        (&["/nonexistent/image"][..], 1, "/nonexistent/image"),
        (&[&directory], 1, "directory"),
        (&[&empty], 6, "is empty"),
        (&["-"], 2, "add --size"),
        (&[&image, "--size", "1M"], 6, "is larger than volume 'v'"),
    ] {
        let sentence = siltstone([&["import", &pool, "v"], arguments].concat()).fails(status);
        assert!(sentence.contains(expected), "{sentence}");
    }
    // What is too long shows only at its end.
    let stream = fs::File::open(&image).unwrap();
    let mut import = command();
    import.args(["import", &pool, "v", "-", "--size", "1M"]).stdin(stream);
    let sentence = Outcome::of(&mut import).fails(6);
    assert!(sentence.starts_with("standard input is larger than"), "{sentence}");
    assert_eq!(siltstone(["volume", "list", &pool, "--json"]).succeeds(), "[]\n");

    siltstone(["import", &pool, "v", &image]).succeeds();
    for option in [["--size", "4M"], ["--level", "3"], ["--frame", "8K"]] {
        let sentence = siltstone([&["import", &pool, "v", &image], &option[..]].concat()).fails(6);
        assert!(sentence.contains("exists already with 2 MiB"), "{sentence}");
    }
    let same = ["import", &pool, "v", &image, "--size", "2M", "--level", "1..3", "--force"];
    siltstone(same).succeeds();
}

#[test]
fn an_image_that_does_not_fit_the_pool_leaves_it_as_it_was() {
    let folder = Folder::new();
    let pool = folder.pool("64M");
    let image = folder.text("image");
    let mut random = vec![0_u8; 96 << 20];
    let mut state = 1_u64;
    for word in random.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        word.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    fs::write(&image, random).unwrap();
    let sentence = siltstone(["import", &pool, "v", &image]).fails(7);
    assert!(sentence.contains("the pool is full"), "{sentence}");
    assert_eq!(siltstone(["volume", "list", &pool, "--json"]).succeeds(), "[]\n");
    siltstone(["check", &pool]).succeeds();
}

#[test]
fn exports_overwrite_nothing_unasked() {
    let folder = Folder::new();
    let pool = folder.pool(POOL_SIZE);
    siltstone(["volume", "create", &pool, "disk", "--size", "1M"]).succeeds();
    let (file, new) = (folder.text("file"), folder.text("new"));
    fs::write(&file, "precious").unwrap();
    let sentence = siltstone(["export", &pool, "disk", &file]).fails(6);
    assert!(sentence.contains("--force"), "{sentence}");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let sentence = siltstone(["export", &pool, "disk", &pool, "--force"]).fails(6);
    assert!(sentence.contains("is the pool itself"), "{sentence}");
    siltstone(["export", &pool, "other", &new]).fails(6);
    assert!(!fs::exists(&new).unwrap());
    siltstone(["export", &pool, "disk", "/nonexistent/image"]).fails(1);
    siltstone(["export", &pool, "disk", &folder.text("")]).fails(1);
    siltstone(["export", &pool, "disk", &file, "--force"]).succeeds();
    assert_eq!(fs::read(&file).unwrap(), vec![0; 1 << 20]);
}

#[test]
fn readers_that_leave_cause_no_panic() {
    let folder = Folder::new();
    let pool = folder.pool(POOL_SIZE);
    siltstone(["volume", "create", &pool, "disk", "--size", "64M"]).succeeds();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let run = |arguments: &[&str]| {
        let mut child =
            command().args(arguments).stdout(closed()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = String::new();
        std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut stderr).unwrap();
        Outcome { status: child.wait().unwrap(), stdout: String::new(), stderr }
    };
    run(&["stat", &pool]).succeeds();
    run(&["stat", &pool, "--json"]).succeeds();
    run(&["volume", "list", &pool]).succeeds();
    run(&["check", &pool]).succeeds();
    // But half an image is a failure.
    let sentence = run(&["export", &pool, "disk", "-"]).fails(1);
    assert!(sentence.starts_with("cannot write to standard output: "), "{sentence}");
}

#[test]
fn addresses_that_cannot_be_had_are_reported() {
    let folder = Folder::new();
    let pool = folder.pool(POOL_SIZE);
    let file = folder.text("file");
    fs::write(&file, "no socket").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for (address, expected) in [
        (taken.local_addr().unwrap().to_string(), "cannot listen on 127.0.0.1:"),
        (format!("unix:{file}"), "is not a socket"),
        ("unix:/nonexistent/socket".into(), "/nonexistent/socket"),
    ] {
        let serve = ["serve", &pool, "--listen", &address, "--log-level", "off"];
        let sentence = siltstone(serve).fails(1);
        assert!(sentence.contains(expected), "{sentence}");
    }
    // What was opened is closed in order, and the log says so to its end.
    let serve = ["serve", &pool, "--listen", "unix:/nonexistent/socket"];
    let outcome = siltstone(serve);
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    let [.., closed, sentence] = &lines[..] else { panic!("{outcome:?}") };
    assert!(closed.contains("closed the pool"), "{outcome:?}");
    assert!(sentence.starts_with("siltstone: cannot listen on"), "{outcome:?}");
    // A pool that would have been made for it is not left behind, and one of another size not taken.
    let (new, address) = (folder.text("new"), taken.local_addr().unwrap().to_string());
    let serve = |size, pool| {
        siltstone(["serve", pool, "--size", size, "--listen", &address, "--log-level", "off"])
    };
    let sentence = serve(POOL_SIZE, &new).fails(1);
    assert!(sentence.contains("cannot listen on"), "{sentence}");
    assert!(!fs::exists(&new).unwrap());
    let sentence = serve("256M", &pool).fails(6);
    assert!(sentence.contains("exists already with 128 MiB, not 256 MiB"), "{sentence}");
    assert!(serve(POOL_SIZE, &pool).fails(1).contains("cannot listen on"));
    assert!(fs::exists(&pool).unwrap());
    let serve = ["serve", &pool, "--create", "disk=1000", "--log-level", "off"];
    let sentence = siltstone(serve).fails(6);
    assert!(sentence.contains("multiple of 512"), "{sentence}");
}

/// A service manager starts a server anew when one was killed, and the kernel may take its time to let
/// go of the pool.
#[test]
fn a_server_waits_for_a_pool_that_nobody_serves() {
    let folder = Folder::new();
    let pool = folder.pool(POOL_SIZE);
    let lock = fs::File::open(&pool).unwrap();
    lock.lock().unwrap();
    let server = std::thread::scope(|scope| {
        let server = scope.spawn(|| Server::start(&pool, &[]));
        // Longer than a command waits.
        std::thread::sleep(std::time::Duration::from_millis(2500));
        lock.unlock().unwrap();
        server.join().unwrap()
    });
    assert!(server.log().contains("the pool is still locked"), "{}", server.log());
    assert!(server.stop().success());
}
