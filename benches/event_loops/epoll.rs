//! Transport on tokio: a task for each connection, as the server has it.

use std::{error::Error, os::unix::net::UnixStream, sync::Arc};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{MAX_REPLIES, REPLY_BYTES, REQUEST_BYTES, cores, replies};

/// Serves until the process is ended.
pub(crate) fn serve(streams: Vec<UnixStream>) -> Result<(), Box<dyn Error>> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(cores()).enable_io().build()?;
    let replies = Arc::new(replies());
    runtime.block_on(async {
        for stream in streams {
            stream.set_nonblocking(true)?;
            let stream = tokio::net::UnixStream::from_std(stream)?;
            tokio::spawn(transmit(stream, replies.clone()));
        }
        std::future::pending().await
    })
}

async fn transmit(mut stream: tokio::net::UnixStream, replies: Arc<Vec<u8>>) {
    let mut received = vec![0; 64 << 10];
    let mut partial = 0;
    // The client leaving ends it.
    while let Ok(len) = stream.read(&mut received).await
        && len > 0
    {
        let mut count = (partial + len) / REQUEST_BYTES;
        partial = (partial + len) % REQUEST_BYTES;
        while count > 0 {
            let now = count.min(MAX_REPLIES);
            if stream.write_all(&replies[..now * REPLY_BYTES]).await.is_err() {
                return;
            }
            count -= now;
        }
    }
}
