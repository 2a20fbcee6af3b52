//! Objects that change, or arrive in part, while a job reads them.
#![allow(clippy::unwrap_used)]

use std::path::Path as FilePath;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use futures::StreamExt as _;
use object_store::memory::InMemory;
use object_store::{
    GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore, Result as StoreResult,
};
use ringmaster_tests::web::WebServer;

use super::*;
use crate::tests::answers::{Answering, Answers};

/// How a store differs from one that keeps every promise.
#[derive(Debug, Clone, Copy, Default)]
struct Ways {
    /// It has no ETags, as plain web servers.
    untagged: bool,
    /// Its ETags are weak.
    weak: bool,
    /// This many bodies end before they are whole, after as many bytes.
    cut: Option<(usize, usize)>,
}

/// Remembers the ranges that it was asked for, and the conditions.
#[derive(Debug)]
struct Odd {
    ways: Ways,
    cut: AtomicUsize,
    asked: Mutex<Vec<(Range<u64>, Option<String>)>>,
}

#[async_trait::async_trait]
impl Answers for Odd {
    async fn get(
        &self,
        objects: &InMemory,
        at: &Path,
        mut o: GetOptions,
    ) -> StoreResult<GetResult> {
        if let Some(GetRange::Bounded(range)) = &o.range {
            self.asked.lock().unwrap().push((range.clone(), o.if_match.clone()));
        }
        if self.ways.untagged {
            o.if_match = None;
        }
        let is_head = o.head;
        let mut result = objects.get_opts(at, o).await?;
        let tag = result.meta.e_tag.take().filter(|_| !self.ways.untagged);
        let weak = self.ways.weak;
        result.meta.e_tag = tag.map(|tag| if weak { format!("W/{tag}") } else { tag });
        let less = |left: usize| left.checked_sub(1);
        if !is_head && self.cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            let (_, len) = self.ways.cut.unwrap();
            let (meta, range) = (result.meta.clone(), result.range.clone());
            let attributes = result.attributes.clone();
            let extensions = result.extensions.clone();
            let bytes = result.bytes().await?;
            let part = bytes.slice(..len.min(bytes.len()));
            let payload =
                GetResultPayload::Stream(futures::stream::once(async move { Ok(part) }).boxed());
            return Ok(GetResult { payload, meta, range, attributes, extensions });
        }
        Ok(result)
    }
}

/// Returns an object of such a store, with these bytes. Pauses pass at once.
fn object(ways: Ways, bytes: &[u8]) -> (Object, Arc<Answering<Odd>>) {
    let cut = AtomicUsize::new(ways.cut.map_or(0, |(bodies, _)| bodies));
    let store = Answering::new(Odd { ways, cut, asked: Mutex::default() });
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    let object = Object {
        url: "odd:///a/b.tar".into(),
        store: Store::of(Arc::clone(&store) as Arc<dyn ObjectStore>),
        path: Path::from("a/b.tar"),
        runtime: Some(Arc::new(runtime)),
        patience: LONGEST_WAIT,
        first: OnceLock::new(),
    };
    object.write(bytes.to_vec()).unwrap();
    (object, store)
}

fn read(object: &Object, range: Range<u64>) -> Result<Bytes, Error> {
    let ranges = std::slice::from_ref(&range);
    object.ranges(ranges, &CancellationToken::new()).map(|parts| parts[0].clone())
}

fn replaced(result: Result<Bytes, Error>) -> bool {
    matches!(result, Err(Error::Replaced { url }) if url.ends_with("b.tar"))
}

#[test]
fn a_replaced_object_is_an_error_and_never_bytes_of_the_new_one() {
    for (ways, new) in [
        (Ways::default(), &b"HELLO"[..]),
        (Ways { weak: true, ..Ways::default() }, b"HELLO"),
        (Ways { untagged: true, ..Ways::default() }, b"HELLO world"),
    ] {
        let (object, store) = object(ways, b"hello");
        assert_eq!(object.head().unwrap().size, 5);
        assert_eq!(read(&object, 3..5).unwrap(), "lo");
        let condition = store.asked.lock().unwrap()[0].1.clone();
        assert_eq!(condition.is_some(), !ways.untagged && !ways.weak, "{ways:?}");
        object.write(new.to_vec()).unwrap();
        assert!(replaced(read(&object, 3..5)), "{ways:?}");
        // Another object of the same store is not this one.
        let sibling = object.sibling("c.tar");
        sibling.write(b"other".to_vec()).unwrap();
        assert_eq!(read(&sibling, 0..5).unwrap(), "other");
    }
}

#[test]
fn a_body_that_ends_early_is_asked_for_again_or_an_error_with_the_place() {
    let (some, store) = object(Ways { cut: Some((3, 2)), ..Ways::default() }, b"hello world");
    some.head().unwrap();
    assert_eq!(read(&some, 1..10).unwrap(), "ello worl");
    assert!(store.asked.lock().unwrap().len() > 1);
    let (all, _) = object(Ways { cut: Some((usize::MAX, 0)), ..Ways::default() }, b"hello world");
    all.head().unwrap();
    let error = read(&all, 1..10).unwrap_err();
    assert_eq!(error.to_string(), "cannot read bytes 1 to 10 of odd:///a/b.tar");
}

#[test]
fn neighbouring_ranges_are_one_request_and_distant_ones_several() {
    let bytes: Vec<u8> = (0..4 << 20).map(|i| (i % 251) as u8).collect();
    let (object, store) = object(Ways::default(), &bytes);
    let ranges = [3 << 20..(3 << 20) + 9, 5..9, 100..100, 600..700_000];
    let parts = object.ranges(&ranges, &CancellationToken::new()).unwrap();
    for (range, part) in ranges.iter().zip(parts) {
        assert_eq!(part, bytes[range.start as usize..range.end as usize]);
    }
    let mut asked: Vec<_> = store.asked.lock().unwrap().iter().map(|(r, _)| r.clone()).collect();
    asked.sort_by_key(|range| range.start);
    assert_eq!(asked, [5..700_000, 3 << 20..(3 << 20) + 9]);
}

fn write_file(path: &FilePath, bytes: &[u8], age: u64) {
    std::fs::write(path, bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
}

#[test]
fn a_file_that_is_replaced_or_touched_is_an_error_and_one_that_is_not_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.tar");
    for (new, age) in [(&b"HELLO"[..], 10), (b"HE", 10), (b"HELLO world", 100), (b"HE", 100)] {
        write_file(&path, b"hello", 100);
        let object = Stores::default().object(path.to_str().unwrap()).unwrap();
        object.head().unwrap();
        assert_eq!(read(&object, 3..5).unwrap(), "lo");
        write_file(&path, new, age);
        assert!(replaced(read(&object, 3..5)), "{new:?}");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(read(&object, 3..5), Err(Error::Missing { .. })));
    }
}

/// It has no ETags, and one time of change for all.
#[test]
fn a_file_of_a_plain_web_server_is_told_apart_by_its_length() {
    let folder = tempfile::tempdir().unwrap();
    let server = WebServer::start(folder.path());
    let path = folder.path().join("b.tar");
    for new in [&b"HE"[..], b"HELLO world"] {
        std::fs::write(&path, b"hello").unwrap();
        let object = Stores::default().object(&server.url("b.tar")).unwrap();
        object.head().unwrap();
        assert_eq!(read(&object, 3..5).unwrap(), "lo");
        std::fs::write(&path, new).unwrap();
        assert!(replaced(read(&object, 3..5)), "{new:?}");
    }
}
