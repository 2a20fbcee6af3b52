//! What people should know of a store beside the log of whoever uses it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::context::Context;
use super::error::Error;

/// How a store fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A request has failed and is made again: why, and for how long. Said once until the store answers.
    Trouble(String),
    /// It answers again.
    Answers(String),
}

type Listener = Box<dyn Fn(News) + Send>;

static LISTENER: Mutex<Option<Listener>> = Mutex::new(None);

/// Lets `listener` hear how the stores of this process fare, in place of an earlier one. It is called on
/// whichever thread uses the store, and must not wait.
pub fn on_news(listener: impl Fn(News) + Send + 'static) {
    *LISTENER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(listener));
}

/// Says that a request has failed and is made again for up to `limit`, once until the store answers.
pub(super) fn say_trouble(context: &Context, error: &Error, limit: Duration) {
    if !context.failed() {
        return;
    }
    let reason = error.to_string();
    let seconds = limit.as_secs_f64().round();
    tracing::warn!(reason, "the store is in trouble; trying again for up to {seconds} s");
    tell(News::Trouble(format!("{reason}; trying again for up to {seconds} s")));
}

/// Notes an answer, and says so where there was none before it.
pub(super) fn answered(context: &Context) {
    let Some(away) = context.answered() else { return };
    let store = context.place.as_str();
    tracing::info!(store, seconds = away.as_secs_f64(), "the store answers again");
    tell(News::Answers(format!("{store} answers again")));
}

fn tell(news: News) {
    let listener = LISTENER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(listener) = &*listener {
        listener(news);
    }
}
