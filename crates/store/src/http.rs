//! HTTP for all stores of this process: one runtime whose threads do nothing but move bytes.
//!
//! Connections are kept and used again, so they must not belong to the runtime of whoever asked
//! first: it may stand still or be gone when the next request comes. Two more things happen here
//! because nothing above sees them: a body is read no faster than it is taken, and an answer that
//! says when to come again is held back until then.

use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use http::header::RETRY_AFTER;
use http_body::Frame;
use http_body_util::StreamBody;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Threads that move bytes; a core each is what TLS takes at tens of Gbit/s.
const MOST_THREADS: usize = 4;
/// Pieces of a body that wait for their reader.
const PIECES: usize = 16;
/// Longest wait that a store may ask for; beyond it the caller's own patience decides.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// Makes clients whose requests run on the shared runtime.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // Whoever was first has installed the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let inner = ReqwestConnector::default().connect(options)?;
        let runtime = runtime().map_err(|source| object_store::Error::Generic {
            store: "store",
            source: Box::new(std::io::Error::new(source.kind(), source.to_string())),
        })?;
        Ok(HttpClient::new(Service { inner, runtime }))
    }
}

/// Returns the runtime behind all requests.
pub(super) fn runtime() -> Result<&'static Runtime, &'static std::io::Error> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(cores.min(MOST_THREADS))
                .thread_name("store-io")
                .enable_all()
                .build()
        })
        .as_ref()
}

#[derive(Debug)]
struct Service {
    inner: HttpClient,
    runtime: &'static Runtime,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let inner = self.inner.clone();
        let (answer, answered) = oneshot::channel();
        let (pieces, mut arrived) = mpsc::channel(PIECES);
        let task = Task(self.runtime.spawn(async move {
            let response = match inner.execute(request).await {
                Ok(response) => response,
                Err(error) => {
                    let _ = answer.send(Err(error));
                    return;
                }
            };
            if let Some(pause) = pause(&response) {
                tokio::time::sleep(pause).await;
            }
            let (head, body) = response.into_parts();
            if answer.send(Ok(head)).is_err() {
                return;
            }
            let mut body = body.bytes_stream();
            while let Some(piece) = body.next().await {
                if pieces.send(piece.map(Frame::data)).await.is_err() {
                    return;
                }
            }
        }));
        let head =
            answered.await.map_err(|_| HttpError::new(HttpErrorKind::Interrupted, Ended))??;
        let body = futures::stream::poll_fn(move |cx| {
            // Dropped with the body: a reader that stops ends the request.
            let _ = &task;
            arrived.poll_recv(cx)
        });
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(StreamBody::new(body))))
    }
}

/// Returns how long the store asks to be left alone.
fn pause(response: &HttpResponse) -> Option<Duration> {
    if !matches!(response.status().as_u16(), 429 | 503) {
        return None;
    }
    // The other form, a date, is not used by stores.
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// A task that ends with whoever waits for it.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the request's task ended")]
struct Ended;
