//! What only a walk over the pool's map tells: whose the data are, and how much was saved.
//!
//! The walk takes seconds for terabytes, so it is made only when somebody asks, in a thread of its own, and
//! takes a small share of the time at most. Who asks gets what the last one found.

use std::{
    io,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use siltstone_device::runtime::either;
use siltstone_engine::{Pool, PoolStat};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

/// What was found is recent for so long,
const RECENT: Duration = Duration::from_secs(2);
/// and so many times as long as the walk took.
const SHARE_OF_TIME: u32 = 20;
/// Who asks waits so long for a walk that is due.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a walk has found.
pub(super) struct Content {
    /// The pool's figures then.
    pub(super) stat: PoolStat,
    /// The same without the walk: later ones are corrected by the difference.
    pub(super) quick: PoolStat,
    /// When.
    pub(super) at: Instant,
    /// How long it took.
    pub(super) took: Duration,
}

/// Makes walks; ends one that is under way when it is dropped.
pub(super) struct ContentWalk {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    results: Results,
}

/// What walks have found, and how to ask for one.
#[derive(Clone)]
pub(super) struct Results {
    newest: watch::Receiver<Option<Arc<Content>>>,
    /// One that has not begun is enough for everybody.
    request: mpsc::SyncSender<()>,
}

impl ContentWalk {
    pub(super) fn start(pool: &Arc<Pool>) -> io::Result<Self> {
        let (request, requests) = mpsc::sync_channel(1);
        let (found, newest) = watch::channel(None);
        let (stop, mut stopped) = oneshot::channel::<()>();
        let pool = Arc::clone(pool);
        let walks = move || {
            while let Ok(()) = requests.recv() {
                let began = Instant::now();
                let mut stat = None;
                let walk = async { stat = Some(pool.stat_async().await) };
                let end = async { _ = (&mut stopped).await };
                pollster::block_on(either(walk, end));
                let Some(stat) = stat else { return };
                let (quick, at) = (pool.quick_stat(), Instant::now());
                found.send_replace(Some(Arc::new(Content { stat, quick, at, took: at - began })));
                if stopped.try_recv() != Err(oneshot::error::TryRecvError::Empty) {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("content".into()).spawn(walks)?;
        let results = Results { newest, request };
        Ok(Self { stop: Some(stop), thread: Some(thread), results })
    }

    pub(super) fn results(&self) -> Results {
        self.results.clone()
    }
}

impl Drop for ContentWalk {
    fn drop(&mut self) {
        drop(self.stop.take());
        // One who waits for requests is told to look.
        let _ = self.results.request.try_send(());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(
                "looking at the pool's contents has ended by a panic; please report this"
            );
        }
    }
}

impl Results {
    /// What was found last; waits a little for a walk if it is time for one.
    pub(super) async fn recent(&self) -> Option<Arc<Content>> {
        let mut newest = self.newest.clone();
        let last = newest.borrow_and_update().clone();
        let is_recent =
            |content: &Content| content.at.elapsed() < RECENT.max(content.took * SHARE_OF_TIME);
        if last.as_deref().is_some_and(is_recent) {
            return last;
        }
        // If it is full, somebody has asked already.
        let _ = self.request.try_send(());
        match timeout(PATIENCE, newest.changed()).await {
            Ok(Ok(())) => newest.borrow().clone(),
            Ok(Err(_)) | Err(_) => last,
        }
    }
}
