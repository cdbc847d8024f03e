//! What is noted every few seconds, and what comes of it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use siltstone_benches::{
    plot::{Chart, Line, Mark},
    program,
    sample::median,
};

use crate::{
    server::Place,
    world::{Kind, World},
};

const WINDOW: Duration = Duration::from_secs(2);
/// Labels of a chart's time axis.
const TICKS: usize = 8;

/// A window of time.
#[derive(Clone, Debug, Serialize)]
struct Window {
    seconds: f64,
    resident_bytes: u64,
    requests_per_second: f64,
    /// Of all requests that were answered at the first attempt.
    p50_us: BTreeMap<&'static str, f64>,
    p99_us: BTreeMap<&'static str, f64>,
}

/// Looks at the world, window by window.
pub(crate) struct Watch<'a> {
    world: &'a World,
    start: Instant,
    next: Instant,
    requests: u64,
    windows: Vec<Window>,
}

/// What the soak says.
#[derive(Serialize)]
pub(crate) struct Figures {
    minutes: f64,
    requests: u64,
    verified_blocks: u64,
    restarts: u64,
    longest_pause_ms: u64,
    acts: BTreeMap<&'static str, usize>,
    /// Medians of the last tenth of all windows in those of the second tenth.
    memory_last_to_second_tenth: Option<f64>,
    p99_last_to_second_tenth: BTreeMap<&'static str, f64>,
    strangers: Vec<(&'static str, f64)>,
    pub(crate) errors: Vec<String>,
    windows: Vec<Window>,
    #[serde(skip)]
    marks: Vec<(&'static str, Vec<usize>)>,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(world: &'a World) -> Self {
        let start = Instant::now();
        Self { world, start, next: start, requests: 0, windows: Vec::new() }
    }

    /// Waits for the end of a window, and notes it.
    pub(crate) fn step(&mut self) {
        self.next += WINDOW;
        thread::sleep(self.next.saturating_duration_since(Instant::now()));
        let resident_bytes = match &*self.world.server.lock() {
            Some(server) => program::resident_bytes(server.process()),
            None => return,
        };
        let resident_bytes = match resident_bytes {
            Ok(bytes) => bytes,
            Err(error) => return self.world.fail(format!("the server is gone: {error}")),
        };
        let mut latencies = std::mem::take(&mut *self.world.latencies.lock());
        let mut at = |share| {
            let kinds = Kind::ALL.into_iter().zip(&mut latencies);
            let counted = kinds.filter(|(_, latencies)| latencies.count() > 0);
            counted.map(|(kind, latencies)| (kind.name(), latencies.us_at(share))).collect()
        };
        let (p50_us, p99_us) = (at(0.5), at(0.99));
        let requests = self.world.requests.load(Ordering::Relaxed);
        let requests_per_second = (requests - self.requests) as f64 / WINDOW.as_secs_f64();
        self.requests = requests;
        let seconds = self.start.elapsed().as_secs_f64();
        let window = Window { seconds, resident_bytes, requests_per_second, p50_us, p99_us };
        self.windows.push(window);
    }

    /// Ends the server, checks its pool and its log, and sums up.
    pub(crate) fn finish(self, world: &World, place: &Place) -> Figures {
        if let Some(server) = world.server.lock().take()
            && let Err(error) = server.stop()
        {
            world.fail(error.to_string());
        }
        if let Err(error) = place.run(&["check", "POOL"]) {
            world.fail(error.to_string());
        }
        match fs::read_to_string(place.log()) {
            Ok(log) => {
                let errors = log.lines().filter(|line| line.contains(" ERROR "));
                errors.for_each(|line| world.fail(format!("in the server's log: {line}")));
            }
            Err(error) => world.fail(format!("the server's log: {error}")),
        }
        let (mut acts, mut marks) = (BTreeMap::new(), BTreeMap::new());
        for event in world.events.lock().iter() {
            *acts.entry(event.what).or_insert(0) += 1;
            let seconds = (event.at - self.start).as_secs_f64();
            let at = self.windows.partition_point(|window| window.seconds < seconds);
            if at < self.windows.len() {
                marks.entry(event.what).or_insert_with(Vec::new).push(at);
            }
        }
        let windows = &self.windows;
        let ratio = |value: &dyn Fn(&Window) -> Option<f64>| {
            let tenth = (windows.len() / 10).max(1);
            let of =
                |windows: &[Window]| median(&windows.iter().filter_map(value).collect::<Vec<_>>());
            let second = windows.get(tenth..2 * tenth).and_then(of)?;
            Some(of(&windows[windows.len() - tenth..])? / second)
        };
        let p99_ratio = |kind: Kind| {
            let ratio = ratio(&|window| window.p99_us.get(kind.name()).copied())?;
            Some((kind.name(), ratio))
        };
        Figures {
            minutes: self.start.elapsed().as_secs_f64() / 60.0,
            requests: world.requests.load(Ordering::Relaxed),
            verified_blocks: world.verified_blocks.load(Ordering::Relaxed),
            restarts: world.restarts.load(Ordering::Relaxed) / 2,
            longest_pause_ms: world.longest_pause_ms.load(Ordering::Relaxed),
            acts,
            memory_last_to_second_tenth: ratio(&|window| Some(window.resident_bytes as f64)),
            p99_last_to_second_tenth: Kind::ALL.into_iter().filter_map(p99_ratio).collect(),
            strangers: world.strangers.lock().clone(),
            errors: world.errors(),
            marks: marks.into_iter().collect(),
            windows: self.windows,
        }
    }
}

impl Figures {
    pub(crate) fn print(&self) {
        println!("requests                    {:>12}", self.requests);
        println!("blocks compared             {:>12}", self.verified_blocks);
        for (what, count) in &self.acts {
            println!("{what:<28}{count:>12}");
        }
        println!("longest pause of a restart  {:>9} ms", self.longest_pause_ms);
        let all = |value: &dyn Fn(&Window) -> Option<f64>| {
            median(&self.windows.iter().filter_map(value).collect::<Vec<_>>()).unwrap_or(f64::NAN)
        };
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let memory = all(&|window| Some(window.resident_bytes as f64));
        let ratio = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
        let memory_ratio = ratio(self.memory_last_to_second_tenth);
        println!("\n                                  median   last tenth / second tenth");
        println!("resident memory              {:>7.1} MiB   {memory_ratio}", mib(memory));
        for kind in Kind::ALL {
            let p99 = all(&|window| window.p99_us.get(kind.name()).copied());
            let ratio = ratio(self.p99_last_to_second_tenth.get(kind.name()).copied());
            println!("p99 of {:<22}{:>7.2} ms    {ratio}", kind.name(), p99 / 1e3);
        }
        println!();
        for (what, value) in &self.strangers {
            println!("{what:<46}{value:>9.0}");
        }
        println!("\nerrors: {}", self.errors.len());
        for error in &self.errors {
            println!("  {error}");
        }
    }

    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_vec_pretty(self)?)
    }

    /// Draws memory, and latencies.
    pub(crate) fn draw(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let step = (self.windows.len() / TICKS).max(1);
        let tick = |(at, window): (usize, &Window)| match at.is_multiple_of(step) {
            true => format!("{:.1}", window.seconds / 60.0),
            false => String::new(),
        };
        let ticks: Vec<String> = self.windows.iter().enumerate().map(tick).collect();
        let marks = |names: &[&str]| {
            let chosen = self.marks.iter().filter(|(name, _)| names.contains(name));
            chosen.map(|(name, at)| Mark { name, at: at.clone() }).collect()
        };
        let chart = |title, unit, lines| Chart {
            title,
            x_title: "minutes",
            unit,
            base: 0.0,
            ticks: &ticks,
            lines,
            marks: marks(&["restart", "collection"]),
        };
        let mib = |window: &Window| window.resident_bytes as f64 / f64::from(1 << 20);
        let memory =
            vec![Line { name: "resident memory", values: self.windows.iter().map(mib).collect() }];
        let memory = chart("Memory of a server in use", "MiB", memory);
        fs::write(directory.join("soak-memory.svg"), memory.svg())?;
        let lines = Kind::ALL.into_iter().map(|kind| {
            let ms = |window: &Window| window.p99_us.get(kind.name()).map_or(0.0, |us| us / 1e3);
            Line { name: kind.name(), values: self.windows.iter().map(ms).collect() }
        });
        let latencies = chart("p99 of requests, four clients", "ms", lines.collect());
        fs::write(directory.join("soak-latency.svg"), latencies.svg())
    }
}
