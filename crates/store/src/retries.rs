//! How often, and for how long, a request that failed is made again: the one place with a deadline.
//!
//! The library's own retries cannot stand for it. Their deadline is fixed when a store is opened, and this one
//! is shorter while the store has never answered. They count from a body's first request, however long the body
//! takes, where a piece that arrives is a new beginning here. They tell nobody, and files and fakes have none.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use object_store::Result;
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::error::{self, Error};
use super::{http, news};

/// Pauses before a request is made again; [`spread`] varies each.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_max_delay(LAST_PAUSE)
    .without_max_times();
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// For how long a request is made again before its failure counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) usual: Duration,
    /// While the store has never answered.
    pub(super) first: Duration,
}

impl Patience {
    /// For how long a request that fails now is made again.
    pub(super) fn now(self, context: &Context) -> Duration {
        if context.reached() { self.usual } else { self.first }
    }

    /// The same, but never longer than `most`.
    pub(super) fn at_most(self, most: Duration) -> Self {
        Self { usual: self.usual.min(most), first: self.first.min(most) }
    }
}

/// Returns the error with its explanation inside.
pub(super) fn explained(context: &Context, error: object_store::Error) -> object_store::Error {
    if error::find(&error).is_some() {
        return error;
    }
    let path = match &error {
        object_store::Error::NotFound { path, .. }
        | object_store::Error::AlreadyExists { path, .. }
        | object_store::Error::Precondition { path, .. } => path.clone(),
        _ => String::new(),
    };
    Error::explain(&error, context).into_store_error(&path)
}

/// The pauses of one request.
pub(super) struct Retries {
    context: Arc<Context>,
    patience: Option<Patience>,
    /// Ends the wait for a store that is away.
    cancel: Option<CancellationToken>,
    began: Instant,
    pauses: ExponentialBackoff,
}

impl Retries {
    pub(super) fn new(
        context: Arc<Context>,
        patience: Option<Patience>,
        cancel: Option<CancellationToken>,
    ) -> Self {
        Self { context, patience, cancel, began: Instant::now(), pauses: PAUSES.build() }
    }

    /// Notes that the store answered; patience starts anew.
    pub(super) fn succeeded(&mut self) {
        news::answered(&self.context);
        (self.began, self.pauses) = (Instant::now(), PAUSES.build());
    }

    /// Waits before the request is made again.
    ///
    /// # Errors
    /// The explained error, if it is not worth it or the wait was cancelled.
    pub(super) async fn wait_after(&mut self, error: object_store::Error) -> Result<()> {
        let error = explained(&self.context, error);
        if !error::is_transient(&error) {
            if error::find(&error).is_some_and(|error| error.kind.is_answer()) {
                let _ = self.context.answered();
            }
            return Err(error);
        }
        let Some(patience) = self.patience else { return Err(error) };
        let limit = patience.now(&self.context);
        let pause = self.pauses.next().unwrap_or(LAST_PAUSE);
        if self.began.elapsed() + pause > limit {
            return Err(error);
        }
        if let Some(error) = error::find(&error) {
            tracing::debug!(%error, pause_ms = pause.as_millis() as u64, "the request is made again");
            news::say_trouble(&self.context, error, limit);
        }
        if self.slept(spread(pause)).await { Ok(()) } else { Err(error) }
    }

    /// Waits; returns false if it was cancelled.
    async fn slept(&self, pause: Duration) -> bool {
        match &self.cancel {
            Some(cancel) => cancel.run_until_cancelled(sleep(pause)).await.is_some(),
            None => {
                sleep(pause).await;
                true
            }
        }
    }
}

async fn sleep(pause: Duration) {
    match timer(pause) {
        Some(timer) => timer.await,
        // There are no threads for a runtime: this one waits by itself.
        None => std::thread::sleep(pause),
    }
}

/// Returns a timer of the caller's runtime or, where it has none, as a thread that reads local files, of the
/// one behind all requests.
fn timer(pause: Duration) -> Option<Sleep> {
    let handle = match Handle::try_current() {
        Ok(current) => current,
        Err(_) => http::runtime().ok()?.handle().clone(),
    };
    let _entered = handle.enter();
    Some(tokio::time::sleep(pause))
}

/// Returns between three quarters and five quarters of a pause, so that many do not come at once. The jitter
/// of backon would only lengthen it, up to double.
fn spread(pause: Duration) -> Duration {
    let draw = RandomState::new().hash_one(0) % 1024;
    pause.mul_f64(0.75 + draw as f64 / 2048.0)
}
