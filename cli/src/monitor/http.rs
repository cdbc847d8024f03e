//! HTTP, as much of it as pages need. A stranger can hold one of a few connections for a bounded time, and
//! nothing that is sent to the server is kept but a request's head.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::site::{Page, Site};

/// Others wait to be accepted.
const MAX_CONNECTIONS: usize = 32;
/// How long a client may take for a request's head, and may do nothing between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// A connection ends after this, between two answers: others may be waiting for it.
const LIFE: Duration = Duration::from_secs(60);
/// And whoever does not take an answer loses it after so much more.
const GRACE: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept (usually: out of file descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Nothing is loaded from elsewhere, nothing runs that is not the program's own, and no other site shows it.
const SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

type Answer = Response<Full<Bytes>>;

/// Takes requests until it is dropped.
pub(super) async fn serve(listener: TcpListener, site: Arc<Site>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection for metrics has failed");
                }
            }
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => _ = connections.spawn(converse(stream, Arc::clone(&site))),
                Err(error) => {
                    tracing::error!(%error, "cannot accept a connection for metrics");
                    sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
}

async fn converse(stream: TcpStream, site: Arc<Site>) {
    let service = service_fn(|request| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(answer(&site, &request).await) }
    });
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    protocol.max_buf_size(MAX_HEAD_BYTES);
    let mut connection = pin!(protocol.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = sleep(LIFE) => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection for metrics has ended");
    }
}

async fn answer(site: &Site, request: &Request<Incoming>) -> Answer {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused =
            refuse(StatusCode::METHOD_NOT_ALLOWED, "there is nothing to change here\n");
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        // Its body is not wanted.
        refused.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return refused;
    }
    let uri = request.uri();
    match site.page(uri.path(), uri.query().unwrap_or("")).await {
        Some(page) => show(StatusCode::OK, page),
        None => refuse(StatusCode::NOT_FOUND, "there is no such page: see / and /metrics\n"),
    }
}

fn refuse(status: StatusCode, reason: &'static str) -> Answer {
    show(status, Page { kind: "text/plain; charset=utf-8", body: reason.into() })
}

fn show(status: StatusCode, page: Page) -> Answer {
    let mut answer = Response::new(Full::new(page.body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, page.kind),
        (header::CONTENT_SECURITY_POLICY, SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}
