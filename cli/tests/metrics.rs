//! `serve --metrics`: what it says is what `stat --json` says, in a form that Prometheus' own parser takes,
//! and strangers cannot do anything with it but look.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
};

use serde_json::Value;
use support::{
    Folder, Server, has,
    http::{ask, get, metrics_address},
    run, siltstone,
};

/// The system's Python, for which python3-prometheus-client is installed.
const PYTHON: &str = "/usr/bin/python3";

/// Prometheus' own parser; prints the families as JSON.
const PARSER: &str = "
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
print(json.dumps([{'name': f.name, 'type': f.type, 'unit': f.unit, 'help': f.documentation,
    'samples': [{'name': s.name, 'labels': s.labels, 'value': s.value} for s in f.samples]}
    for f in parse(sys.stdin.read())]))";

fn has_parser() -> bool {
    let import = ["-c", "import prometheus_client.openmetrics.parser"];
    let output = Command::new(PYTHON).args(import).output();
    let found = output.is_ok_and(|output| output.status.success());
    if !found {
        println!("python3-prometheus-client is not installed: not tested");
    }
    found
}

/// The families on the page of metrics, by name.
fn families(address: SocketAddr) -> BTreeMap<String, Value> {
    let page = get(address, "/metrics");
    let mut python = Command::new(PYTHON)
        .args(["-c", PARSER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "not parsed: {page}");
    let families: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    families.into_iter().map(|f| (f["name"].as_str().unwrap().to_owned(), f)).collect()
}

/// The value of a sample with these labels.
#[track_caller]
fn sample(
    families: &BTreeMap<String, Value>,
    family: &str,
    name: &str,
    labels: &[(&str, &str)],
) -> f64 {
    let samples = families.get(family).unwrap_or_else(|| panic!("no {family}"));
    let samples = samples["samples"].as_array().unwrap();
    let has_labels = |sample: &&Value| {
        sample["name"] == name && labels.iter().all(|(key, value)| sample["labels"][key] == *value)
    };
    let found = samples.iter().find(has_labels);
    found.unwrap_or_else(|| panic!("no {name} {labels:?}: {samples:?}"))["value"].as_f64().unwrap()
}

/// A metric: its family, its sample's name, a label, and what `stat --json` says.
type Pair = (&'static str, &'static str, Option<(&'static str, &'static str)>, f64);

/// What `stat --json` says of the pool that is served, and the metrics that say the same.
fn pairs(stat: &Value) -> Vec<Pair> {
    let at = |pointer: &str| stat.pointer(pointer).unwrap().as_f64().unwrap();
    let mut pairs = Vec::new();
    for (family, key) in [
        ("siltstone_size_bytes", "/size_bytes"),
        ("siltstone_provisioned_bytes", "/provisioned_bytes"),
        ("siltstone_logical_bytes", "/logical_bytes"),
        ("siltstone_unique_bytes", "/unique_bytes"),
        ("siltstone_shared_bytes", "/shared_bytes"),
        ("siltstone_snapshot_bytes", "/snapshot_bytes"),
        ("siltstone_dedup_ratio", "/dedup_ratio"),
        ("siltstone_compression_ratio", "/compression_ratio"),
        ("siltstone_reduction_ratio", "/reduction_ratio"),
        ("siltstone_thin_ratio", "/thin_ratio"),
        ("siltstone_staging_limit_bytes", "/staging_limit_bytes"),
        ("siltstone_unit_buffers_limit_bytes", "/unit_buffers_limit_bytes"),
        ("siltstone_frame_cache_bytes", "/frame_cache_bytes"),
        ("siltstone_frame_cache_limit_bytes", "/frame_cache_limit_bytes"),
        ("siltstone_page_cache_limit_bytes", "/page_cache_limit_bytes"),
        ("siltstone_index_bytes", "/index_bytes"),
        ("siltstone_index_entries", "/index_entries"),
        ("siltstone_index_capacity_entries", "/index_capacity_entries"),
        ("siltstone_nvram_bytes", "/nvram_bytes"),
        ("siltstone_nvram_used_bytes", "/nvram_used_bytes"),
    ] {
        pairs.push((family, family, None, at(key)));
    }
    for (class, key) in [
        ("stored", "/stored_bytes"),
        ("garbage", "/garbage_bytes"),
        ("overhead", "/overhead_bytes"),
        ("metadata", "/metadata_bytes"),
        ("reserved", "/reserved_bytes"),
        ("free", "/free_bytes"),
    ] {
        let name = "siltstone_space_bytes";
        pairs.push((name, name, Some(("class", class)), at(key)));
    }
    for (family, name, key) in [
        ("siltstone_reads", "siltstone_reads_total", "/counters/reads"),
        ("siltstone_read_bytes", "siltstone_read_bytes_total", "/counters/read_bytes"),
        ("siltstone_writes", "siltstone_writes_total", "/counters/writes"),
        ("siltstone_written_bytes", "siltstone_written_bytes_total", "/counters/written_bytes"),
        ("siltstone_zeroings", "siltstone_zeroings_total", "/counters/zeroings"),
        ("siltstone_flushes", "siltstone_flushes_total", "/counters/flushes"),
        ("siltstone_linked_blocks", "siltstone_linked_blocks_total", "/counters/linked_blocks"),
        ("siltstone_scrub_passes", "siltstone_scrub_passes_total", "/counters/scrub_passes"),
    ] {
        pairs.push((family, name, None, at(key)));
    }
    for (family, key) in [
        ("siltstone_volume_size_bytes", "/volumes/0/size_bytes"),
        ("siltstone_volume_logical_bytes", "/volumes/0/logical_bytes"),
        ("siltstone_volume_unique_bytes", "/volumes/0/unique_bytes"),
        ("siltstone_volume_shared_bytes", "/volumes/0/shared_bytes"),
    ] {
        pairs.push((family, family, Some(("volume", "disk")), at(key)));
    }
    pairs
}

/// A served pool with data, duplicates, a snapshot, reads, trims and flushes behind it, and a scrub.
fn busy_server(folder: &Folder) -> (String, Server) {
    let pool = folder.pool("512M");
    let arguments = [
        "--create",
        "disk=256M",
        "--metrics",
        "127.0.0.1:0",
        "--scrub",
        "1G",
        "--scrub-every",
        "7d",
    ];
    let server = Server::start(&pool, &arguments);
    let uri = server.uri("disk");
    let commands = [
        "write -P 1 0 8M",
        "write -P 1 16M 4M",
        "aio_write -P 2 64M 1M",
        "flush",
        "read -P 1 1M 2M",
        "discard 2M 1M",
        "write -z 4M 1M",
        "flush",
    ];
    let mut line = vec!["-f", "raw", "-d", "unmap"];
    commands.iter().for_each(|command| line.extend(["-c", command]));
    line.push(&uri);
    run("qemu-io", &line);
    siltstone(["snapshot", "create", &pool, "disk@monday"]).succeeds();
    run("qemu-io", ["-f", "raw", "-c", "write -P 3 0 1M", "-c", "flush", &uri]);
    (pool, server)
}

#[test]
fn metrics_are_what_prometheus_takes_and_what_stat_says() {
    if !has("qemu-io") || !has_parser() {
        return;
    }
    let folder = Folder::new();
    let (pool, server) = busy_server(&folder);
    let address = metrics_address(&server);
    let stat = || -> Value {
        serde_json::from_str(&siltstone(["stat", &pool, "--json"]).succeeds()).unwrap()
    };
    let labels = |label: &Option<(&'static str, &'static str)>| Vec::from_iter(*label);
    let differing = || {
        let (stat, families) = (stat(), families(address));
        let mut differing = Vec::new();
        for (family, name, label, said) in pairs(&stat) {
            let found = sample(&families, family, name, &labels(&label));
            if found != said {
                differing.push(format!("{name} {label:?}: {found}, and stat says {said}"));
            }
        }
        differing
    };
    // What was written is settled in the background, and what volumes hold is looked up now and then.
    server.wait_until(
        || {
            let differing = differing();
            differing.iter().for_each(|line| println!("{line}"));
            differing.is_empty()
        },
        "the metrics say what stat says",
    );

    let found = families(address);
    for (name, family) in &found {
        let kind = family["type"].as_str().unwrap();
        assert!(["counter", "gauge", "histogram"].contains(&kind), "{name}: {kind}");
        assert!(name.starts_with("siltstone_") || name.starts_with("process_"), "{name}");
        assert!(family["help"].as_str().unwrap().ends_with('.'), "{name}: {}", family["help"]);
        let unit = family["unit"].as_str().unwrap();
        assert!(unit.is_empty() || name.ends_with(&format!("_{unit}")), "{name}: {unit}");
        assert!(!name.ends_with("_ms") && !name.ends_with("_percent"), "{name}: a base unit");
        for sample in family["samples"].as_array().unwrap() {
            let sample_name = sample["name"].as_str().unwrap();
            assert_eq!(sample_name.ends_with("_total"), kind == "counter", "{sample_name}");
            assert!(sample["value"].as_f64().unwrap() >= 0.0, "{sample}");
        }
    }
    let classes = found["siltstone_space_bytes"]["samples"].as_array().unwrap();
    let sum: f64 = classes.iter().map(|class| class["value"].as_f64().unwrap()).sum();
    assert_eq!(sum, (512u64 << 20) as f64, "the classes sum to the pool's size");

    // Each request of the client is in its histogram, and no other.
    let duration = "siltstone_request_duration_seconds";
    let of = |name: &str, operation: &str, more: &[(&str, &str)]| {
        let labels = [&[("volume", "disk"), ("operation", operation)], more].concat();
        sample(&found, duration, &format!("{duration}_{name}"), &labels)
    };
    for (operation, at_least) in
        [("read", 1.0), ("write", 4.0), ("flush", 3.0), ("trim", 1.0), ("write_zeroes", 1.0)]
    {
        let count = of("count", operation, &[]);
        assert!(count >= at_least, "{operation}: {count}");
        assert_eq!(of("bucket", operation, &[("le", "+Inf")]), count, "{operation}");
        assert!(of("sum", operation, &[]) > 0.0, "{operation}");
    }
    let bytes = |operation| {
        let labels = [("volume", "disk"), ("operation", operation)];
        sample(&found, "siltstone_request_bytes", "siltstone_request_bytes_total", &labels)
    };
    let mib = |count: u64| (count << 20) as f64;
    assert_eq!((bytes("write"), bytes("trim")), (mib(8 + 4 + 1 + 1), mib(1)));
    assert_eq!((bytes("read"), bytes("write_zeroes")), (mib(2), mib(1)));
    let snapshots = [("volume", "disk")];
    assert_eq!(
        sample(&found, "siltstone_volume_snapshots", "siltstone_volume_snapshots", &snapshots),
        1.0
    );
    assert!(server.stop().success());
}

#[test]
fn strangers_who_never_choose_a_volume_are_counted_and_those_who_had_to_make_room() {
    if !has_parser() {
        return;
    }
    let folder = Folder::new();
    let pool = folder.pool("256M");
    let server =
        Server::start(&pool, &["--create", "disk=64M", "--metrics", "0", "--max-half-open", "2"]);
    let address = metrics_address(&server);
    let strangers: Vec<_> =
        (0..3).map(|_| std::os::unix::net::UnixStream::connect(server.socket()).unwrap()).collect();
    let counted = || {
        let (families, name) = (families(address), "siltstone_half_open_connections");
        let ended = format!("{name}_ended");
        let ended_total = sample(&families, &ended, &format!("{ended}_total"), &[]);
        (sample(&families, name, name, &[]), ended_total)
    };
    server.wait_until(|| counted() == (2.0, 1.0), "two strangers wait, and one had to leave");
    drop(strangers);
    server.wait_until(|| counted() == (0.0, 1.0), "none waits any more");
    assert!(server.stop().success());
}

#[test]
fn the_grafana_dashboard_uses_metrics_that_exist() {
    if !has("qemu-io") {
        return;
    }
    let folder = Folder::new();
    let (_pool, server) = busy_server(&folder);
    let address = metrics_address(&server);
    let has_all = || {
        let page = get(address, "/metrics");
        ["siltstone_last_scrub_problems ", "siltstone_utilisation_ratio{"]
            .iter()
            .all(|name| page.contains(name))
    };
    server.wait_until(has_all, "a scrub has ended, and a second passed");
    let page = get(address, "/metrics");
    let names: BTreeSet<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/grafana.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            expressions.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    assert!(expressions.len() >= 15, "{expressions:?}");
    let mut used = 0;
    for expression in &expressions {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let words = expression.split(|c| !is_name(c));
        for word in words.filter(|w| w.starts_with("siltstone_") || w.starts_with("process_")) {
            assert!(names.contains(word), "{word} in {expression} is not on the page");
            used += 1;
        }
    }
    assert!(used >= expressions.len());
    assert!(server.stop().success());
}

#[test]
fn strangers_can_look_and_nothing_else() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let server = Server::start(&pool, &["--metrics", ":0"]);
    let address = metrics_address(&server);
    assert!(address.ip().is_loopback());
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/charts.js", "text/javascript"),
        ("/icon.svg", "image/svg+xml"),
        ("/metrics", "application/openmetrics-text; version=1.0.0"),
        ("/api/status", "application/json"),
        ("/api/series", "application/json"),
        ("/api/events", "application/json"),
    ] {
        let (head, body) = ask(address, "GET", path);
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{path}: {head}");
        assert!(head.contains(&format!("content-type: {kind}")), "{path}: {head}");
        assert!(head.contains("content-security-policy: default-src 'none'; "), "{path}: {head}");
        assert!(!body.is_empty(), "{path}");
        let (head, body) = ask(address, "HEAD", path);
        assert!(head.starts_with("HTTP/1.1 200 OK") && body.is_empty(), "{path}: {head}");
    }
    for path in ["/index.html", "/../etc/passwd", "/metrics/", "/api"] {
        assert!(ask(address, "GET", path).0.starts_with("HTTP/1.1 404 "), "{path}");
    }
    for method in ["POST", "PUT", "DELETE"] {
        let (head, _) = ask(address, method, "/api/status");
        assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("allow: GET, HEAD"), "{head}");
    }
    let mut stream = TcpStream::connect(address).unwrap();
    let long = "x".repeat(1 << 20);
    // It need not be taken to its end, nor the answer be heard.
    let _ = write!(stream, "GET / HTTP/1.1\r\nHost: {long}\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "a long head is refused");
    // The pages name nothing that is elsewhere.
    for path in ["/", "/page.css", "/page.js", "/charts.js"] {
        let page = get(address, path).replace("http://www.w3.org/2000/svg", "");
        assert!(!page.contains("http:") && !page.contains("https:"), "{path}");
    }
    // More of them than there may be, who say nothing: others get their turn all the same.
    let idle: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert!(get(address, "/metrics").ends_with("# EOF\n"));
    drop(idle);
    assert!(server.stop().success());
}

#[test]
fn what_cannot_be_listened_on_is_said_in_a_sentence() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (pool, socket) = (folder.pool("128M"), format!("unix:{}", folder.text("s")));
    let line = ["serve", &pool, "--log-level", "error", "--listen", &socket, "--metrics", &address];
    let sentence = siltstone(line).fails(1);
    assert!(sentence.contains(&address), "{sentence}");
    for wrong in ["nowhere", "unix:/tmp/metrics", "70000"] {
        let outcome = siltstone(["serve", &pool, "--metrics", wrong]);
        assert_eq!(outcome.status.code(), Some(2), "{outcome:?}");
    }
}
