//! Serves a disk in memory: `memory SIZE_MIB ADDRESS...`, with addresses as `unix:PATH` or
//! `HOST:PORT`. Stops on SIGTERM and SIGINT.

use std::{sync::Arc, time::Duration};

use siltstone_nbd::{
    Listen, Server, ServerConfig,
    memory_export::{FixedCatalog, MemoryExport},
};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let size_mib: u64 = arguments.next().ok_or("usage: memory SIZE_MIB ADDRESS...")?.parse()?;
    let listen = arguments.map(|text| text.parse()).collect::<Result<Vec<Listen>, _>>()?;

    let export = Arc::new(MemoryExport::new("memory", size_mib << 20));
    let catalog = Arc::new(FixedCatalog::new(vec![export]));
    let server = Server::bind(&listen, catalog, ServerConfig::default()).await?;

    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let drained = server.shutdown(Duration::from_secs(10)).await;
    tracing::info!(?drained, "stopped");
    Ok(())
}
