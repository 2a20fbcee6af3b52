//! A store that fails, and answers only many requests at once, as a test tells it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetResult, ObjectStore as _, Result};
use tokio::sync::Notify;

use super::answers::{Answering, Answers};

/// How long a request waits for others that do not come.
const LIMIT: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Requests still to fail.
    pub(super) failures: AtomicU32,
    /// Requests so far.
    pub(super) asked: AtomicUsize,
    /// No request is answered before so many were made.
    pub(super) answers_after: AtomicUsize,
    more: Notify,
}

impl Told {
    /// Returns a new store, behind `memory://NAME/…`.
    pub(super) fn register(name: &str) -> Arc<Answering<Self>> {
        Answering::registered(name, Self::default())
    }

    /// Waits until so many requests were made; returns false if they are not.
    async fn enough(&self) -> bool {
        let enough = async {
            loop {
                let more = self.more.notified();
                let wanted = self.answers_after.load(Ordering::SeqCst);
                if self.asked.load(Ordering::SeqCst) >= wanted {
                    break;
                }
                more.await;
            }
        };
        tokio::time::timeout(LIMIT, enough).await.is_ok()
    }
}

#[async_trait::async_trait]
impl Answers for Told {
    async fn get(&self, objects: &InMemory, at: &Path, o: GetOptions) -> Result<GetResult> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.more.notify_waiters();
        if !self.enough().await {
            return Err(Error::NotSupported { source: "too few requests at once".into() });
        }
        let less = |left: u32| left.checked_sub(1);
        if self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            return Err(Error::Generic { store: "told", source: "busy".into() });
        }
        objects.get_opts(at, o).await
    }
}
