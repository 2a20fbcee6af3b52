//! What reading costs: requests and bytes.

use std::sync::Mutex;

use object_store::memory::InMemory;
use object_store::path::Path as StorePath;
use object_store::{GetOptions, GetResult, ObjectStore as _, Result as StoreResult};

use super::*;
use crate::tests::answers::{Answering, Answers};

/// Keeps the bytes that each request asked for; heads ask for none.
#[derive(Debug, Default)]
struct Counting {
    asked: Mutex<Vec<Range<u64>>>,
    refuses: std::sync::atomic::AtomicBool,
}

impl Counting {
    fn take(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

#[async_trait::async_trait]
impl Answers for Counting {
    async fn get(
        &self,
        objects: &InMemory,
        at: &StorePath,
        o: GetOptions,
    ) -> StoreResult<GetResult> {
        if self.refuses.load(std::sync::atomic::Ordering::SeqCst) {
            let path = at.to_string();
            return Err(object_store::Error::PermissionDenied { path, source: "no".into() });
        }
        let head = o.head;
        let got = objects.get_opts(at, o).await?;
        if !head {
            self.asked.lock().unwrap().push(got.range.clone());
        }
        Ok(got)
    }
}

/// Puts files into a store of this name; returns it and their URLs.
fn stored(name: &str, files: &[Vec<u8>]) -> (Arc<Answering<Counting>>, Vec<String>) {
    let store = Answering::registered(name, Counting::default());
    let mut urls = Vec::new();
    for (number, file) in files.iter().enumerate() {
        store.add(&format!("{number}.parquet"), file.clone());
        urls.push(format!("memory://{name}/{number}.parquet"));
    }
    (store, urls)
}

/// Returns rows whose images are 10,000 bytes that cannot be compressed.
fn large(count: usize) -> Vec<(Vec<u8>, String)> {
    let mut state = 1_u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count)
        .map(|row| ((0..10_000).map(|_| byte()).collect(), format!("caption {row}")))
        .collect()
}

fn bytes(requests: &[Range<u64>]) -> u64 {
    requests.iter().map(|range| range.end - range.start).sum()
}

#[test]
fn a_block_of_an_indexed_file_is_one_request_for_the_pages_that_hold_it() {
    let table = large(200);
    let file = table::bytes(PLAIN, pages(5), &[plain(&table[..90]), plain(&table[90..])]);
    let (store, urls) = stored("pages", &[file]);
    let source = opened(urls, 20).unwrap();
    assert_eq!(source.block_samples(), 20);
    store.take();
    let (shard, block) = source.block_of(50);
    let fetched = source.fetch(shard, block, &Default::default()).unwrap();
    let requests = store.take();
    assert_eq!(requests.len(), 1, "{requests:?}");
    // 18 rows that begin within a page, of which four or five hold them, and the captions behind the column.
    let images = 10_000 * 25;
    assert!((10_000 * 18..images + 10_000 * 45).contains(&bytes(&requests)), "{requests:?}");
    // What was asked for, without the gap between the columns.
    assert!((10_000 * 20..images + 5_000).contains(&fetched.bytes), "{}", fetched.bytes);
    assert_holds(&source, &table);
}

#[test]
fn a_row_group_without_an_index_is_one_request_for_its_two_columns() {
    let table = large(60);
    let file = table::bytes(PLAIN, unindexed(), &[plain(&table[..25]), plain(&table[25..])]);
    let (store, urls) = stored("groups", &[file]);
    let source = opened(urls, 20).unwrap();
    store.take();
    let block = source.fetch(1, 0, &Default::default()).unwrap();
    let requests = store.take();
    assert_eq!((block.samples.len(), requests.len()), (35, 1), "{requests:?}");
    assert_eq!(bytes(&requests), block.bytes);
    assert!((350_000..353_000).contains(&block.bytes), "{}", block.bytes);
}

#[test]
fn opening_reads_the_ends_of_files_only() {
    let table = large(100);
    let file = table::bytes(PLAIN, pages(5), &[plain(&table)]);
    let len = file.len() as u64;
    let files: Vec<_> = (0..70).map(|_| file.clone()).collect();
    let (store, urls) = stored("ends", &files);
    let source = opened(urls, 20).unwrap();
    assert_eq!(source.shard_sizes(), [100; 70]);
    let requests = store.take();
    assert_eq!(requests.len(), 70);
    assert!(requests.iter().all(|range| *range == (len - (64 << 10)..len)), "{requests:?}");
}

/// A footer of more than 64 KiB is fetched in one more request.
#[test]
fn a_long_footer_is_fetched_as_well() {
    let groups: Vec<_> = (0..600).map(|row| plain(&rows(row, 1))).collect();
    let file = table::bytes(PLAIN, unindexed(), &groups);
    let (store, urls) = stored("long", &[file]);
    let source = opened(urls, 20).unwrap();
    assert_eq!(store.take().len(), 2);
    assert_holds(&source, &rows(0, 600));
}

/// pyarrow writes pages of 1,024 rows unless told otherwise: blocks of 128 would fetch each eight times.
#[test]
fn blocks_grow_until_pages_are_not_read_again_and_again() {
    let table = rows(0, 4_000);
    let blocks = |page: usize| {
        let file = table::bytes(PLAIN, pages(page), &[plain(&table)]);
        let (_, urls) = stored("grown", &[file]);
        let source = opened(urls, 128).unwrap();
        assert_holds(&source, &table);
        let count = 4_000_u64.div_ceil(source.block_samples());
        let fetch = |block| source.fetch(0, block, &Default::default()).unwrap().bytes;
        let read: u64 = (0..count).map(fetch).sum();
        (source.block_samples(), read as f64 / source.bytes() as f64)
    };
    assert_eq!(blocks(16).0, 128);
    let (rows, read) = blocks(1_000);
    assert!((1_024..=4_000).contains(&rows), "{rows}");
    assert!(read <= 1.5, "{read}");
}

#[test]
fn a_store_that_refuses_is_an_error_and_no_flaw() {
    let (store, urls) = stored("refuses", &[table::bytes(PLAIN, pages(5), &[plain(&rows(0, 9))])]);
    let source = opened(urls, 4).unwrap();
    store.refuses.store(true, std::sync::atomic::Ordering::SeqCst);
    let error = source.fetch(0, 0, &Default::default()).unwrap_err();
    assert!(matches!(&error, Error::Read { url, .. } if url.ends_with("0.parquet")), "{error}");
}
