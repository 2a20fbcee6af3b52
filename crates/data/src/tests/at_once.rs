//! How many requests are made at once while a data set is opened.

use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path as StorePath;
use object_store::{
    GetOptions, GetResult, ObjectStore as _, ObjectStoreExt as _, Result as StoreResult,
};
use tokio::sync::Barrier;

use super::answers::{Answering, Answers};
use super::*;

/// Long enough for any machine that makes the requests at once; it ends the test of one that does not.
const DEADLINE: Duration = Duration::from_secs(60);

/// Answers no request for a tar before as many of its kind are there.
#[derive(Debug)]
struct Gathering {
    heads: Barrier,
    reads: Barrier,
}

#[async_trait::async_trait]
impl Answers for Gathering {
    async fn get(
        &self,
        objects: &InMemory,
        at: &StorePath,
        o: GetOptions,
    ) -> StoreResult<GetResult> {
        let of_kind = if o.head { &self.heads } else { &self.reads };
        if at.as_ref().ends_with(".tar")
            && tokio::time::timeout(DEADLINE, of_kind.wait()).await.is_err()
        {
            let path = at.to_string();
            return Err(object_store::Error::PermissionDenied { path, source: "alone".into() });
        }
        objects.get_opts(at, o).await
    }
}

/// Puts shards of three samples into a store that waits for so many heads and reads.
fn gathered(
    name: &str,
    shards: usize,
    [heads, reads]: [usize; 2],
) -> (Arc<Answering<Gathering>>, Vec<String>) {
    let (heads, reads) = (Barrier::new(heads), Barrier::new(reads));
    let store = Answering::registered(name, Gathering { heads, reads });
    let folder = tempfile::tempdir().unwrap();
    let files = write_shards(folder.path(), shards, 3, keep);
    let put = |(number, file): (usize, &String)| {
        let at = format!("{number:03}.tar");
        store.add(&at, std::fs::read(file).unwrap());
        format!("memory://{name}/{at}")
    };
    let urls = files.iter().enumerate().map(put).collect();
    (store, urls)
}

/// One after the other, the properties of ten thousand shards took five minutes at 30 ms each.
#[test]
fn a_store_that_answers_no_head_before_64_are_there_is_opened() {
    let (store, urls) = gathered("heads", 128, [64, 1]);
    let sizes: std::collections::BTreeMap<String, u64> =
        (0..128).map(|number| (format!("{number:03}.tar"), 3)).collect();
    let declared = serde_json::to_vec(&sizes).unwrap();
    store.add("sizes.json", declared);
    let source = open(urls).unwrap();
    assert_eq!(source.shard_sizes(), [3; 128]);
    assert!(read(&source, 383).unwrap().key.starts_with("127.tar/"));
}

/// The headers of small shards come with one request each.
#[test]
fn shards_that_nobody_counted_are_read_sixteen_at_once_over_a_network() {
    let (store, urls) = gathered("reads", 64, [64, 16]);
    assert_eq!(open(urls).unwrap().shard_sizes(), [3; 64]);
    let path = StorePath::from("ringmaster-sizes.json");
    let cached =
        futures::executor::block_on(async { store.objects.get(&path).await?.bytes().await });
    let cached: serde_json::Value = serde_json::from_slice(&cached.unwrap()).unwrap();
    assert_eq!(cached.as_object().unwrap().len(), 64);
}

/// Which one is named does not depend on which thread met its shard first.
#[test]
fn of_several_shards_that_cannot_be_counted_the_first_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let urls = write_shards(folder.path(), 40, 3, keep);
    for bad in [31, 17, 18] {
        std::fs::write(&urls[bad], b"<!DOCTYPE html>\n<html>").unwrap();
    }
    let error = open(urls).unwrap_err();
    assert!(matches!(&error, Error::Empty { url, .. } if url.ends_with("17.tar")), "{error}");
}
