//! The wait for a store that is away, against one that fails as often as it is told.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use object_store::memory::InMemory;
use object_store::{GetOptions, GetResult, ObjectStore, Result as StoreResult};

use url::Url;

use super::*;
use crate::tests::answers::{Answering, Answers};

/// Answers reads with a generic error until `failures` have been given.
#[derive(Debug)]
struct Flaky {
    name: &'static str,
    failures: AtomicU32,
    asked: AtomicU32,
}

#[async_trait::async_trait]
impl Answers for Flaky {
    fn name(&self) -> &str {
        self.name
    }

    async fn get(&self, objects: &InMemory, at: &Path, o: GetOptions) -> StoreResult<GetResult> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let less = |left: u32| left.checked_sub(1);
        if self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            return Err(object_store::Error::Generic { store: "flaky", source: "busy".into() });
        }
        objects.get_opts(at, o).await
    }
}

/// Returns an object of a store that has not answered yet, and fails so often. Pauses pass at once.
fn never_asked(name: &'static str, failures: u32) -> (Object, Arc<Answering<Flaky>>) {
    let (failures, asked) = (AtomicU32::new(failures), AtomicU32::new(0));
    let store = Answering::new(Flaky { name, failures, asked });
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    let object = Object {
        url: "flaky:///a/b.tar".into(),
        store: Store::of(Arc::clone(&store) as Arc<dyn ObjectStore>),
        path: Path::from("a/b.tar"),
        runtime: Some(Arc::new(runtime)),
        patience: LONGEST_WAIT,
        first: OnceLock::new(),
    };
    (object, store)
}

fn object(failures: u32) -> (Object, Arc<Answering<Flaky>>) {
    let (object, store) = never_asked("flaky", failures);
    object.write(b"hello".to_vec()).unwrap();
    (object, store)
}

fn first_byte(object: &Object, cancel: &CancellationToken) -> Result<Vec<Bytes>, Error> {
    object.ranges(std::slice::from_ref(&(0..1)), cancel)
}

/// Returns the time by the clock that pauses pass on.
fn now(object: &Object) -> tokio::time::Instant {
    object.block_on(async { tokio::time::Instant::now() })
}

#[test]
fn a_store_that_fails_for_a_while_is_waited_for() {
    let (object, store) = object(5);
    let parts = object.ranges(&[1..3, 4..5], &CancellationToken::new()).unwrap();
    assert_eq!(parts, [&b"el"[..], &b"o"[..]]);
    assert!(store.asked.load(Ordering::SeqCst) > 5);
}

/// Readers of local files have no runtime.
#[test]
fn a_thread_without_a_runtime_waits_too() {
    let (object, store) = object(1);
    let object = Object { runtime: None, ..object };
    assert_eq!(first_byte(&object, &CancellationToken::new()).unwrap(), [&b"h"[..]]);
    assert_eq!(store.asked.load(Ordering::SeqCst), 2);
}

#[test]
fn a_store_that_fails_beyond_the_deadline_is_an_error_that_names_the_object() {
    let (object, store) = object(u32::MAX);
    let object = Object { patience: Duration::ZERO, ..object };
    let error = object.head().unwrap_err();
    assert_eq!(error.to_string(), "cannot read flaky:///a/b.tar");
    assert!(matches!(error, Error::Store { .. }));
    assert_eq!(store.asked.load(Ordering::SeqCst), 1);
}

/// Training data at an endpoint where nobody listens: the job stood silent for 150 s, four times.
#[test]
fn a_store_that_has_never_answered_is_not_waited_for_as_long_as_one_that_has() {
    let (news, heard) = std::sync::mpsc::channel();
    store::on_news(move |said| drop(news.send(said)));
    for (name, has_answered, limit) in [("never-there", false, 15), ("once-there", true, 120)] {
        let (object, _) = never_asked(name, u32::MAX);
        if has_answered {
            object.write(b"hello".to_vec()).unwrap();
        }
        let began = now(&object);
        first_byte(&object, &CancellationToken::new()).unwrap_err();
        let waited = now(&object) - began;
        // The last pause is of 5 s, a quarter more or less.
        assert!((limit - 5..=limit + 1).contains(&waited.as_secs()), "{name}: {waited:?}");
        let (failed, until) =
            (format!("{name} failed"), format!("trying again for up to {limit} s"));
        let trouble = |said: store::News| {
            matches!(said, store::News::Trouble(why)
                if why.contains(&failed) && why.ends_with(&until))
        };
        assert!(heard.try_iter().any(trouble), "{name}: nobody was told");
    }
}

/// The rank is to say what failed before the coordinator takes it for hung.
#[test]
fn data_is_not_waited_for_as_long_as_a_checkpoint_may_be() {
    let (object, _) = object(u32::MAX);
    let object = Object { patience: Duration::from_secs(60), ..object };
    let began = now(&object);
    object.head().unwrap_err();
    let waited = now(&object) - began;
    assert!((55..=61).contains(&waited.as_secs()), "{waited:?}");
}

#[test]
fn a_missing_object_is_not_waited_for() {
    let (object, store) = object(0);
    let error = object.sibling("c.tar").head().unwrap_err();
    assert!(matches!(&error, Error::Missing { url } if url == "flaky:///a/c.tar"), "{error}");
    assert_eq!(store.asked.load(Ordering::SeqCst), 1);
}

#[test]
fn a_cancelled_wait_ends_at_once() {
    let (object, _) = object(u32::MAX);
    // By this clock the store is waited for two minutes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let object = Object { runtime: Some(Arc::new(runtime)), ..object };
    let (cancel, began) = (CancellationToken::new(), Instant::now());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| first_byte(&object, &cancel));
        cancel.cancel();
        assert!(matches!(waiting.join().unwrap(), Err(Error::Read { .. })));
    });
    assert!(began.elapsed() < Duration::from_secs(60), "it waited for the store");
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
