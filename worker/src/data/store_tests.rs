//! The wait for a store that is away, against one that fails as often as it is told.
#![allow(clippy::unwrap_used)]

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};

use url::Url;

use super::*;

/// Answers reads with a generic error until `failures` have been given.
#[derive(Debug)]
struct Flaky {
    name: &'static str,
    inner: InMemory,
    failures: AtomicU32,
    asked: AtomicU32,
}

impl fmt::Display for Flaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(&self, at: &Path, body: PutPayload, o: PutOptions) -> StoreResult<PutResult> {
        self.inner.put_opts(at, body, o).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        o: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, o).await
    }

    async fn get_opts(&self, at: &Path, o: GetOptions) -> StoreResult<GetResult> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let less = |left: u32| left.checked_sub(1);
        if self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            return Err(object_store::Error::Generic { store: "flaky", source: "busy".into() });
        }
        self.inner.get_opts(at, o).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, o: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, o).await
    }
}

fn object(failures: u32, retry: Retry) -> (Object, Arc<Flaky>) {
    let (failures, asked) = (AtomicU32::new(failures), AtomicU32::new(0));
    let store = Arc::new(Flaky { name: "flaky", inner: InMemory::new(), failures, asked });
    let object = Object {
        url: "flaky:///a/b.tar".into(),
        store: Store::of(Arc::clone(&store) as Arc<dyn ObjectStore>),
        path: Path::from("a/b.tar"),
        runtime: None,
        retry,
    };
    object.write(b"hello".to_vec()).unwrap();
    (object, store)
}

fn quick() -> Retry {
    let first = Duration::from_millis(1);
    Retry { first, longest: first, deadline: Duration::from_secs(60) }
}

#[test]
fn a_store_that_fails_for_a_while_is_waited_for() {
    let (object, store) = object(5, quick());
    let parts = object.ranges(&[1..3, 4..5], &Cancel::default()).unwrap();
    assert_eq!(parts, [&b"el"[..], &b"o"[..]]);
    assert!(store.asked.load(Ordering::SeqCst) > 5);
}

#[test]
fn a_store_that_fails_beyond_the_deadline_is_an_error_that_names_the_object() {
    let (object, store) = object(u32::MAX, Retry { deadline: Duration::ZERO, ..quick() });
    let error = object.head().unwrap_err();
    assert_eq!(error.to_string(), "cannot read flaky:///a/b.tar");
    assert!(error.retryable());
    assert_eq!(store.asked.load(Ordering::SeqCst), 1);
}

/// Training data at an endpoint where nobody listens: the job stood silent for 150 s, four times.
#[test]
fn a_store_that_has_never_answered_is_not_waited_for_as_long_as_one_that_has() {
    let failures = u32::MAX;
    let (object, _) = object(failures, Retry::default());
    let after_an_answer = object.store.patience();
    let (inner, failures) = (InMemory::new(), failures.into());
    let flaky = Flaky { name: "never-there", inner, failures, asked: 0.into() };
    let never = Store::of(Arc::new(flaky));
    assert!(never.patience().is_some_and(|first| first <= Duration::from_secs(15)));
    assert!(never.patience() < after_an_answer, "{after_an_answer:?}");
    // It is said at the first failure: a thousand more would have to come before the end.
    let (news, heard) = std::sync::mpsc::channel();
    store::on_news(move |said| drop(news.send(said)));
    let slowly = Duration::from_millis(10);
    let retry = Retry { first: slowly, longest: slowly, ..Retry::default() };
    let object = Object { store: never, retry, ..object };
    let cancel = Cancel::default();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| object.ranges(std::slice::from_ref(&(0..1)), &cancel));
        let trouble = |said: &store::News| {
            matches!(said, store::News::Trouble(why)
                if why.contains("never-there failed") && why.ends_with("trying again for up to 15 s"))
        };
        let mut said = std::iter::from_fn(|| heard.recv_timeout(Duration::from_secs(60)).ok());
        assert!(said.any(|said| trouble(&said)));
        cancel.cancel();
        reader.join().unwrap().unwrap_err();
    });
}

#[test]
fn a_missing_object_is_not_waited_for() {
    let (object, store) = object(0, Retry::default());
    let error = object.sibling("c.tar").head().unwrap_err();
    assert!(matches!(&error, Error::Missing { url } if url == "flaky:///a/c.tar"), "{error}");
    assert_eq!(store.asked.load(Ordering::SeqCst), 1);
}

#[test]
fn a_cancelled_wait_ends_at_once() {
    // Within the store's own patience.
    let long = Duration::from_secs(100);
    let (object, _) = object(u32::MAX, Retry { first: long, longest: long, deadline: long * 2 });
    let cancel = Cancel::default();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| object.ranges(std::slice::from_ref(&(0..1)), &cancel));
        cancel.cancel();
        assert!(matches!(waiting.join().unwrap(), Err(Error::Store { .. })));
    });
}

#[test]
fn urls_find_their_store_and_relative_paths_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a b.tar");
    std::fs::write(&file, b"x").unwrap();
    let mut stores = Stores::default();
    let url = Url::from_file_path(&file).unwrap();
    for name in [file.display().to_string(), url.to_string()] {
        assert_eq!(stores.object(&name).unwrap().head().unwrap().size, 1);
    }
    // A scheme other than file takes the general way.
    let remote = stores.object("memory:///a/b.tar").unwrap();
    assert!(matches!(remote.head(), Err(Error::Missing { .. })));
    for (name, expected) in
        [("ftp://host/a.tar", "no store for ftp://"), ("data/a.tar", "the path is relative")]
    {
        let error = stores.object(name).unwrap_err().to_string();
        assert!(error.starts_with(name) && error.contains(expected), "{error}");
    }
}
