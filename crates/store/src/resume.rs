//! Bodies and listings that break off, and go on where they did.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, Result};

use super::retries::Retries;

/// What of an object is still to come.
pub(super) struct Rest {
    at: Path,
    e_tag: Option<String>,
    range: Range<u64>,
    version: Option<String>,
}

impl Rest {
    pub(super) fn new(meta: &ObjectMeta, range: Range<u64>, how: &GetOptions) -> Self {
        let version = how.version.clone();
        Self { at: meta.location.clone(), e_tag: meta.e_tag.clone(), range, version }
    }

    fn request(&self) -> GetOptions {
        let range = Some(GetRange::Bounded(self.range.clone()));
        GetOptions { range, version: self.version.clone(), ..GetOptions::default() }
    }
}

/// Returns the same bytes as `body`, asking for the rest when it breaks off.
pub(super) fn resumed(
    store: Arc<dyn ObjectStore>,
    retries: Retries,
    rest: Rest,
    body: BoxStream<'static, Result<Bytes>>,
) -> BoxStream<'static, Result<Bytes>> {
    let reading = Reading { store, retries, rest, body: Some(body) };
    futures::stream::try_unfold(reading, Reading::next).boxed()
}

struct Reading {
    store: Arc<dyn ObjectStore>,
    retries: Retries,
    rest: Rest,
    /// None after it broke off.
    body: Option<BoxStream<'static, Result<Bytes>>>,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        loop {
            let error = match &mut self.body {
                Some(body) => match next_piece(body, &mut self.rest).await {
                    Ok(Some(bytes)) => {
                        self.retries.succeeded();
                        return Ok(Some((bytes, self)));
                    }
                    Ok(None) => return Ok(None),
                    Err(error) => error,
                },
                None => match reopen(&*self.store, &self.rest).await {
                    Ok(body) => {
                        self.body = Some(body);
                        continue;
                    }
                    Err(error) => error,
                },
            };
            self.retries.wait_after(error).await?;
            self.body = None;
        }
    }
}

/// Returns the next bytes; none at the end. A body that ends too early is an error.
async fn next_piece(
    body: &mut BoxStream<'static, Result<Bytes>>,
    rest: &mut Rest,
) -> Result<Option<Bytes>> {
    match body.try_next().await? {
        Some(bytes) => {
            rest.range.start += bytes.len() as u64;
            Ok(Some(bytes))
        }
        None if rest.range.start >= rest.range.end => Ok(None),
        None => Err(broken_off(format!("{} bytes are missing", rest.range.end - rest.range.start))),
    }
}

async fn reopen(store: &dyn ObjectStore, rest: &Rest) -> Result<BoxStream<'static, Result<Bytes>>> {
    let result = store.get_opts(&rest.at, rest.request()).await?;
    if rest.e_tag != result.meta.e_tag {
        return Err(object_store::Error::Precondition {
            path: rest.at.to_string(),
            source: "it was replaced while it was read".into(),
        });
    }
    if result.range != rest.range {
        return Err(broken_off(format!("{:?} came for {:?}", result.range, rest.range)));
    }
    Ok(result.into_stream())
}

fn broken_off(reason: String) -> object_store::Error {
    let source = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, reason);
    object_store::Error::Generic { store: "store", source: Box::new(source) }
}

/// Lists, going on after the last object seen when a page cannot be had.
pub(super) fn listed(
    store: Arc<dyn ObjectStore>,
    retries: Retries,
    prefix: Option<Path>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let pages = store.list(prefix.as_ref());
    let listing = Listing { store, retries, prefix, last: None, pages };
    futures::stream::try_unfold(listing, Listing::next).boxed()
}

struct Listing {
    store: Arc<dyn ObjectStore>,
    retries: Retries,
    prefix: Option<Path>,
    last: Option<Path>,
    pages: BoxStream<'static, Result<ObjectMeta>>,
}

impl Listing {
    async fn next(mut self) -> Result<Option<(ObjectMeta, Self)>> {
        loop {
            match self.pages.try_next().await {
                Ok(None) => return Ok(None),
                Ok(Some(object)) => {
                    self.retries.succeeded();
                    self.last = Some(object.location.clone());
                    return Ok(Some((object, self)));
                }
                Err(error) => self.retries.wait_after(error).await?,
            }
            let prefix = self.prefix.as_ref();
            self.pages = match &self.last {
                Some(last) => self.store.list_with_offset(prefix, last),
                None => self.store.list(prefix),
            };
        }
    }
}
