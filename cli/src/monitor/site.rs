//! What is where: the dashboard, the metrics, and the JSON that the dashboard is drawn from.

use std::sync::Arc;

use hyper::body::Bytes;
use serde::Serialize;

use super::{
    content::Results,
    metrics,
    observation::{Observation, Watched},
    series::Series,
    status,
};

const TEXT: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";
const JSON: &str = "application/json";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is shown on a path.
pub(super) struct Page {
    /// Its media type.
    pub(super) kind: &'static str,
    /// Itself.
    pub(super) body: Bytes,
}

/// All pages.
pub(super) struct Site {
    watched: Arc<Watched>,
    series: Arc<Series>,
    content: Results,
}

impl Site {
    pub(super) fn new(watched: Arc<Watched>, series: Arc<Series>, content: Results) -> Self {
        Self { watched, series, content }
    }

    /// The page at a path, as it is now; `None` if there is none.
    pub(super) async fn page(&self, path: &str, query: &str) -> Option<Page> {
        let own = |kind, text: &'static str| Some(Page { kind, body: text.into() });
        match path {
            "/" => own(TEXT, include_str!("page/index.html")),
            "/page.css" => own(STYLE, include_str!("page/page.css")),
            "/page.js" => own(SCRIPT, include_str!("page/page.js")),
            "/charts.js" => own(SCRIPT, include_str!("page/charts.js")),
            "/icon.svg" => own(IMAGE, include_str!("page/icon.svg")),
            "/metrics" => self.observed(METRICS, metrics::page).await,
            "/api/status" => self.observed(JSON, |observed| json(&status::of(observed))).await,
            "/api/series" => Some(Page { kind: JSON, body: self.series.json(after(query)).into() }),
            "/api/events" => {
                Some(Page { kind: JSON, body: json(&self.watched.events.recent()).into() })
            }
            _ => None,
        }
    }

    /// A page of what is seen now. Looking at large pools takes a while, and runs apart.
    async fn observed(
        &self,
        kind: &'static str,
        page: impl FnOnce(&Observation) -> String + Send + 'static,
    ) -> Option<Page> {
        let content = self.content.recent().await;
        let (watched, series) = (Arc::clone(&self.watched), Arc::clone(&self.series));
        let page = tokio::task::spawn_blocking(move || page(&watched.observe(content, &series)));
        page.await.ok().map(|body| Page { kind, body: body.into() })
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("what is told has names and numbers alone")
}

/// The number in `after=NUMBER`: points that the reader has already.
fn after(query: &str) -> u64 {
    let given = query.split('&').find_map(|part| part.strip_prefix("after="));
    given.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_reader_has_is_in_the_query() {
        assert_eq!((after(""), after("after=17"), after("x=1&after=2")), (0, 17, 2));
        assert_eq!((after("after=-1"), after("before=3")), (0, 0));
    }
}
