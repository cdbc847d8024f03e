//! The dashboard in a real browser, without a screen: its numbers are those of `stat --json`, its charts move
//! under load, nothing is wrong or comes from elsewhere, and it fits a phone.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::{Folder, Server, has, http::metrics_address, run, siltstone};

/// Where the script that drives the browser is, and the library that it needs.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/page");

/// A browser, and the script that drives it.
struct Browser {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Browser {
    /// `None` where there is none and that is all right: not in continuous integration.
    fn start() -> Option<Self> {
        let chromium = std::env::var("CHROMIUM").unwrap_or("/usr/bin/chromium".into());
        let library = Path::new(SCRIPTS).join("node_modules/playwright-core");
        let missing = [
            (!Path::new(&chromium).exists()).then_some("chromium"),
            Command::new("node").arg("--version").output().is_err().then_some("nodejs"),
            (!library.exists()).then_some("playwright-core (npm ci --prefix cli/tests/page)"),
        ];
        let missing: Vec<&str> = missing.into_iter().flatten().collect();
        if !missing.is_empty() {
            assert!(std::env::var_os("CI").is_none(), "not installed: {missing:?}");
            println!("not installed: {missing:?}: not tested");
            return None;
        }
        let mut child = Command::new("node")
            .arg("look.mjs")
            .current_dir(SCRIPTS)
            .env("CHROMIUM", chromium)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Some(Self { child, stdin, stdout })
    }

    #[track_caller]
    fn tell(&mut self, command: &Value) -> Value {
        writeln!(self.stdin.as_ref().unwrap(), "{command}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}"));
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer["ok"].clone()
    }

    /// Opens the dashboard in a window of that size.
    fn open(&mut self, address: SocketAddr, (width, height): (u32, u32), dark: bool) {
        let url = format!("http://{address}/");
        self.tell(&json!({ "open": url, "width": width, "height": height, "dark": dark }));
    }

    fn values(&mut self, selectors: &[String]) -> Vec<Value> {
        self.tell(&json!({ "values": selectors })).as_array().unwrap().clone()
    }

    /// Nothing was wrong so far.
    #[track_caller]
    fn assert_no_problems(&mut self) {
        assert_eq!(self.tell(&json!({ "problems": true })), json!([]));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends with its input, and takes the browser with it.
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// What the page shows, and where `stat --json` says the same.
fn shown() -> Vec<(String, &'static str)> {
    let mut shown = vec![
        ("#size".to_owned(), "/size_bytes"),
        ("#used".into(), "/used_percent"),
        ("#reduction".into(), "/reduction_ratio"),
        ("#dedup".into(), "/dedup_ratio"),
        ("#compression".into(), "/compression_ratio"),
    ];
    for (class, pointer) in [
        ("stored", "/stored_bytes"),
        ("garbage", "/garbage_bytes"),
        ("overhead", "/overhead_bytes"),
        ("metadata", "/metadata_bytes"),
        ("reserved", "/reserved_bytes"),
        ("free", "/free_bytes"),
    ] {
        shown.push((format!("#space-{class}"), pointer));
    }
    for (column, pointer) in [
        (2, "/volumes/0/size_bytes"),
        (3, "/volumes/0/logical_bytes"),
        (4, "/volumes/0/unique_bytes"),
        (5, "/volumes/0/shared_bytes"),
    ] {
        shown.push((format!("tr[data-volume=disk] :nth-child({column}) data"), pointer));
    }
    shown
}

#[test]
fn the_page_shows_what_stat_says_and_moves_under_load() {
    if !has("mke2fs") || !has("nbdcopy") {
        return;
    }
    let Some(mut browser) = Browser::start() else { return };
    let folder = Folder::new();
    let image = folder.image("image");
    let pool = folder.pool("512M");
    let server =
        Server::start(&pool, &["--create", "disk=128M", "--create", "log=1G", "--metrics", "0"]);
    let address = metrics_address(&server);
    browser.open(address, (1280, 900), false);

    let before = browser.tell(&json!({ "charts": true }));
    run("nbdcopy", ["--flush", image.to_str().unwrap(), &server.uri("disk")]);
    run("nbdcopy", ["--flush", image.to_str().unwrap(), &server.uri("log")]);
    run("nbdcopy", [&server.uri("disk"), &folder.text("back")]);
    siltstone(["snapshot", "create", &pool, "disk@monday"]).succeeds();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let charts = browser.tell(&json!({ "charts": true }));
        let lines =
            |chart: &str, line: usize| (before[chart][line].clone(), charts[chart][line].clone());
        let moved = |chart, line| {
            let (before, now) = lines(chart, line);
            // More than one height: "M x y L x y ...".
            let path = now.as_str().unwrap();
            let points = path.split(['M', 'L']).filter_map(|point| point.split(' ').nth(1));
            let heights = std::collections::BTreeSet::from_iter(points.map(str::to_owned));
            before != now && heights.len() > 1
        };
        if moved("throughput", 0)
            && moved("throughput", 1)
            && moved("operations", 0)
            && charts["latency"][1] != ""
        {
            break;
        }
        assert!(Instant::now() < deadline, "the charts do not move: {charts}");
        thread::sleep(Duration::from_millis(200));
    }

    // What was written is settled in the background, and the page looks now and then.
    let deadline = Instant::now() + Duration::from_secs(60);
    let shown = shown();
    let selectors: Vec<String> = shown.iter().map(|(selector, _)| selector.clone()).collect();
    loop {
        let stat: Value =
            serde_json::from_str(&siltstone(["stat", &pool, "--json"]).succeeds()).unwrap();
        let found = browser.values(&selectors);
        let differing: Vec<String> = shown
            .iter()
            .zip(&found)
            .filter_map(|((selector, pointer), found)| {
                let said = stat.pointer(pointer).unwrap().as_f64().unwrap();
                let value = found["value"].as_str().and_then(|value| value.parse::<f64>().ok());
                // Readers of JSON may be wrong by the last bit.
                let is_same =
                    value.is_some_and(|value| (value - said).abs() <= said.abs() * f64::EPSILON);
                (!is_same).then(|| format!("{selector}: {found}, {pointer}: {said}"))
            })
            .collect();
        if differing.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{differing:#?}");
        thread::sleep(Duration::from_millis(500));
    }
    // And in the words of `stat`.
    let stat = siltstone(["stat", &pool]).succeeds();
    let cell = |name: &str| {
        let line = stat.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        line.trim_start()[name.len()..].trim_start().to_owned()
    };
    for (selector, name) in [
        ("#size", "size"),
        ("#space-stored", "stored"),
        ("#space-metadata", "metadata"),
        ("#reduction", "reduction"),
    ] {
        let text = browser.values(&[selector.into()])[0]["text"].as_str().unwrap().to_owned();
        assert!(cell(name).starts_with(&format!("{text}  ")), "{selector}: {text}; {}", cell(name));
    }
    let row = browser.values(&["tr[data-volume=disk]".into()]);
    assert!(row[0]["text"].as_str().unwrap().starts_with("disk128 MiB"), "{row:?}");
    let events = browser.values(&["#events".into()]);
    let is_told = events[0]["text"].as_str().unwrap().contains("snapshot create");
    assert!(is_told, "commands are among the events: {events:?}");
    browser.assert_no_problems();
    assert!(server.stop().success());
}

#[test]
fn the_page_fits_a_phone_and_can_be_read_aloud() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let name = "a-volume-with-quite-a-long-name-indeed-for-a-phone=1G";
    let server = Server::start(&pool, &["--create", name, "--metrics", "0"]);
    let address = metrics_address(&server);
    for (size, dark) in
        [((360, 740), false), ((360, 740), true), ((768, 1024), false), ((1600, 900), true)]
    {
        browser.open(address, size, dark);
        let layout = browser.tell(&json!({ "layout": true }));
        assert!(layout["page"].as_u64() <= layout["window"].as_u64(), "{size:?}: {layout}");
    }
    let outline = browser.tell(&json!({ "outline": true }));
    assert_eq!(outline["lang"], "en");
    let landmarks = outline["landmarks"].as_array().unwrap();
    for landmark in
        ["header", "main", "footer", "section Load", "section Volumes", "section Events"]
    {
        assert!(landmarks.contains(&landmark.into()), "{landmarks:?}");
    }
    let headings: Vec<u64> = outline["headings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|level| level.as_u64().unwrap())
        .collect();
    assert_eq!((headings[0], headings.iter().filter(|level| **level == 1).count()), (1, 1));
    assert!(headings.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{headings:?}");
    let images = outline["images"].as_array().unwrap();
    assert_eq!(images.len(), 3, "each chart has a name and says in words what it shows");
    for image in images {
        let words = image.as_str().unwrap();
        assert!(words.contains("in the last 5 min") && !words.contains("MISSING"), "{words}");
    }
    assert_eq!((&outline["unnamed_fields"], &outline["unscoped_headers"]), (&json!(0), &json!(0)));
    // It changes with the pool's state alone, and does not chatter.
    assert_eq!(outline["live"], json!(["state"]));
    browser.assert_no_problems();
    assert!(server.stop().success());
}

/// Draws `docs/dashboard.png`:
/// `cargo nextest run --release -p siltstone-cli --test page --run-ignored only`.
#[test]
#[ignore = "draws the picture in the documentation, for a minute and a half"]
fn the_picture_in_the_documentation_is_drawn() {
    assert!(["mke2fs", "fio"].into_iter().all(has));
    let mut browser = Browser::start().unwrap();
    let folder = Folder::new();
    let image = folder.image("image");
    let pool = folder.pool("4G");
    siltstone(["import", &pool, "web", image.to_str().unwrap()]).succeeds();
    let volumes = ["--create", "database=8G", "--create", "backup=20G"];
    let watched = ["--metrics", "0", "--scrub", "200M", "--frame-cache", "32M"];
    let server = Server::start(&pool, &[&volumes[..], &watched].concat());
    siltstone(["snapshot", "create", &pool, "web@monday"]).succeeds();
    siltstone(["clone", &pool, "web@monday", "staging"]).succeeds();
    let job = |name: &str, volume: &str, options: &str| {
        format!("[{name}]\nioengine=nbd\nuri={}\n{options}\n", server.uri(volume))
    };
    let common = "[global]\ntime_based=1\nruntime=75\nrefill_buffers=1\n\
        buffer_compress_percentage=55\nbuffer_compress_chunk=4k\ndedupe_percentage=35\n";
    let database =
        "rw=randrw\nrwmixread=60\nbs=8k\niodepth=16\nsize=256m\nrate_iops=900,600\nfsync=24";
    // Two bursts, the second of which is under way when the picture is taken.
    let burst = "rw=write\nbs=256k\niodepth=16\nsize=1g\nfsync=256";
    let jobs = [
        job("first", "backup", &format!("{burst}\nstartdelay=14\nruntime=16")),
        job("second", "backup", &format!("{burst}\noffset=4g\nstartdelay=46\nruntime=28")),
        job("database", "database", database),
        job("web", "web", "rw=randread\nbs=16k\niodepth=4\nsize=120m\nrate_iops=1500"),
    ];
    let file = folder.text("job.fio");
    std::fs::write(&file, common.to_owned() + &jobs.concat()).unwrap();
    let mut load =
        Command::new("fio").args(["--minimal", &file]).stdout(Stdio::null()).spawn().unwrap();
    thread::sleep(Duration::from_secs(62));
    browser.open(metrics_address(&server), (1120, 1480), false);
    browser.tell(&json!({ "choose": "input[name=window][value='60']" }));
    thread::sleep(Duration::from_secs(4));
    let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/dashboard.png");
    browser.tell(&json!({ "screenshot": picture }));
    browser.assert_no_problems();
    assert!(load.wait().unwrap().success());
    let len_bytes = std::fs::metadata(picture).unwrap().len();
    assert!(len_bytes < 300 << 10, "{len_bytes} bytes are too many for a repository");
    assert!(server.stop().success());
}
