//! Very many who connect and do nothing, while clients work.

use std::{
    io::Read,
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use siltstone_benches::program;
use siltstone_torture::kill::nbd_client::NbdClient;

use crate::{
    server::{Place, volume},
    world::World,
};

/// How long they stay.
const STAY: Duration = Duration::from_secs(15);
/// How often those who were turned away come again.
const COME_AGAIN: Duration = Duration::from_millis(200);
/// Memory is looked at after the server has had so long to rest from whatever it did before.
const REST: Duration = Duration::from_secs(2);

/// Has `idle` of them choose a volume and `half_open` of them not even that, and notes what each costs.
pub(crate) fn visit(world: &World, place: &Place, idle: usize, half_open: usize) {
    if let Err(error) = try_visit(world, place, idle, half_open) {
        world.fail(format!("strangers: {error}"));
    }
}

fn try_visit(
    world: &World,
    place: &Place,
    idle: usize,
    half_open: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let resident = || {
        let server = world.server.lock();
        let process = server.as_ref().ok_or("there is no server")?.process();
        Ok::<_, Box<dyn std::error::Error>>(program::resident_bytes(process)? as f64)
    };
    world.note("strangers");
    thread::sleep(REST);
    let before = resident()?;
    let name = volume(0);
    let connect = |_| NbdClient::connect(&place.socket(), &name);
    let mut guests: Vec<_> = (0..idle).map(connect).collect::<Result<_, _>>()?;
    thread::sleep(REST);
    let with_idle = resident()?;
    let mut strangers: Vec<UnixStream> = Vec::new();
    let (mut turned_away, mut most, end) = (0, with_idle, Instant::now() + STAY);
    while Instant::now() < end && !world.has_failed() {
        let before = strangers.len();
        strangers.retain_mut(is_connected);
        turned_away += before - strangers.len();
        while strangers.len() < half_open {
            let stream = UnixStream::connect(place.socket())?;
            stream.set_nonblocking(true)?;
            strangers.push(stream);
        }
        thread::sleep(COME_AGAIN);
        most = most.max(resident()?);
    }
    // Those who chose a volume are served as before.
    let mut block = vec![0; 4096];
    for guest in &mut guests {
        guest.read(0, &mut block)?;
    }
    *world.strangers.lock() = vec![
        ("idle connections", idle as f64),
        ("memory of each idle connection, bytes", (with_idle - before) / idle.max(1) as f64),
        ("half-open connections at a time, attempted", half_open as f64),
        ("of these turned away in 15 s", turned_away as f64),
        (
            "memory of each half-open one attempted, bytes",
            (most - with_idle) / half_open.max(1) as f64,
        ),
    ];
    Ok(())
}

/// Whether the server has not hung up.
fn is_connected(stream: &mut UnixStream) -> bool {
    let mut greeting = [0; 64];
    loop {
        match stream.read(&mut greeting) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}
