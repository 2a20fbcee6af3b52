//! Answers of a store whose requests fail in the ways that a network has: some are cut off, refused with status 503 or
//! never answered, and some answers end early. All of them succeed when they are made often enough.

use std::error::Error as StdError;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt as _;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetResult, GetResultPayload, ObjectStore as _, Result};

use super::*;
use crate::tests::answers::Answers;

/// One request of so many fails.
const ONE_IN: u64 = 8;

/// What a request meets.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Reset,
    SlowDown,
    TimeOut,
    /// The body ends before its end.
    Short,
    /// The connection is lost within the body.
    Cut,
}

/// Those that only a request with a body meets come last.
const FAULTS: [Fault; 5] =
    [Fault::Reset, Fault::SlowDown, Fault::TimeOut, Fault::Short, Fault::Cut];
const WITHOUT_BODY: u64 = 3;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Faulty {
    asked: AtomicU64,
    met: [AtomicU64; FAULTS.len()],
}

impl Faulty {
    /// Returns how many requests there were, and how many of them met each fault.
    pub(super) fn met(&self) -> (u64, Vec<u64>) {
        let load = |count: &AtomicU64| count.load(Ordering::SeqCst);
        (load(&self.asked), self.met.iter().map(load).collect())
    }

    /// Returns what the next request meets, drawn by its number: the one that is made again may fail, too.
    fn next(&self, has_body: bool) -> Option<Fault> {
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        let mut drawn = Stream::new(7, Site::Places, &[number]);
        if drawn.below(ONE_IN) != 0 {
            return None;
        }
        let kinds = if has_body { FAULTS.len() as u64 } else { WITHOUT_BODY };
        let which = drawn.below(kinds) as usize;
        self.met[which].fetch_add(1, Ordering::SeqCst);
        Some(FAULTS[which])
    }
}

#[async_trait::async_trait]
impl Answers for Faulty {
    async fn get(&self, objects: &InMemory, at: &Path, how: GetOptions) -> Result<GetResult> {
        let fault = self.next(!how.head);
        let answer = objects.get_opts(at, how).await;
        match fault {
            None => answer,
            Some(Fault::Reset) => Err(lost(HttpErrorKind::Request, io::ErrorKind::ConnectionReset)),
            Some(Fault::TimeOut) => Err(lost(HttpErrorKind::Timeout, io::ErrorKind::TimedOut)),
            Some(Fault::SlowDown) => {
                Err(failed("status code: 503: <Code>SlowDown</Code><Message>later</Message>"))
            }
            Some(Fault::Short) => half(answer?, None).await,
            Some(Fault::Cut) => {
                let error = lost(HttpErrorKind::Interrupted, io::ErrorKind::UnexpectedEof);
                half(answer?, Some(error)).await
            }
        }
    }
}

fn failed(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    Error::Generic { store: "faulty", source: error.into() }
}

fn lost(kind: HttpErrorKind, io: io::ErrorKind) -> Error {
    failed(HttpError::new(kind, io::Error::from(io)))
}

/// Returns half of an answer, and what happens then.
async fn half(answer: GetResult, then: Option<Error>) -> Result<GetResult> {
    let GetResult { meta, range, attributes, extensions, payload } = answer;
    let GetResultPayload::Stream(mut body) = payload else { unreachable!("memory is no file") };
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece?);
    }
    bytes.truncate(bytes.len() / 2);
    let pieces: Vec<_> = std::iter::once(Ok(bytes.into())).chain(then.map(Err)).collect();
    let payload = GetResultPayload::Stream(futures::stream::iter(pieces).boxed());
    Ok(GetResult { payload, meta, range, attributes, extensions })
}
