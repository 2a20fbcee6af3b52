//! The promise of the data supply, on a run of a mixture: what training reads depends on the manifest alone. Ranks come
//! and go at random steps, the batch grows, pictures are damaged, stores fail, and every batch is what one undisturbed
//! rank reads from files.

mod faults;
mod ranks;
mod samples;

use std::collections::{BTreeMap, HashSet};

use object_store::ObjectStoreExt as _;
use ringmaster_inputs::image::Hole;
use ringmaster_inputs::rng::{Site, Stream};
use ringmaster_store::Settings;
use ringmaster_tests::proxy::{FaultyProxy, Trouble, What};
use ringmaster_tests::s3::{self, Bucket};
use tempfile::TempDir;

use self::faults::Faulty;
use self::ranks::{Read, Stretch, changing_ranks, one_rank, read};
use self::samples::{SAMPLES, SMALLEST, given, is_damaged, len, opened, shards};
use super::answers::register;
use super::*;
use crate::corrupt::SampleKey;
use crate::order::Visit;

/// Writes the shards as files, and opens them.
fn files() -> (TempDir, Arc<Dataset>) {
    let folder = tempfile::tempdir().unwrap();
    for (path, bytes) in shards() {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let dataset = opened(folder.path().to_str().unwrap());
    (folder, dataset)
}

/// Asserts that two runs have read the same, bit by bit, and know the same corrupt samples.
fn assert_same(actual: &Read, expected: &Read, what: &str) {
    assert_eq!(actual.batches.len(), expected.batches.len(), "{what}");
    for (actual, expected) in actual.batches.iter().zip(&expected.batches) {
        let step = expected.step;
        assert_eq!(actual.step, step, "{what}");
        assert_eq!(actual.samples, expected.samples, "samples of step {step}: {what}");
        assert!(actual.images == expected.images, "pixels of step {step}: {what}");
        assert_eq!(actual.tokens, expected.tokens, "tokens of step {step}: {what}");
        assert_eq!(actual.holes, expected.holes, "holes of step {step}: {what}");
        assert_eq!(actual.replaced, expected.replaced, "replaced in step {step}: {what}");
    }
    assert_eq!(actual.ledger, expected.ledger, "{what}");
}

/// Returns the batches' sizes as ranges of the samples of the run.
fn in_samples(run: &Read) -> impl Iterator<Item = (Range<u64>, &Batch)> {
    let mut next = 0;
    run.batches.iter().map(move |batch| {
        let before = next;
        next += batch.samples.len() as u64;
        (before..next, batch)
    })
}

/// Asserts that every batch has its rows of each source by the formula, and so the run.
fn assert_shares(run: &Read) {
    let mut totals = [0; 3];
    for (samples, batch) in in_samples(run) {
        for (source, total) in totals.iter_mut().enumerate() {
            let rows = batch.samples.iter().filter(|of| of.source == source as u32).count() as u64;
            let expected = given(source, samples.end) - given(source, samples.start);
            assert_eq!(rows, expected, "source {source} in step {}", batch.step);
            *total += rows;
        }
    }
    // Five, four and three twelfths.
    assert_eq!(totals, [SAMPLES / 12 * 5, SAMPLES / 3, SAMPLES / 4]);
}

/// What stands in a row of a batch.
#[derive(Debug, PartialEq)]
struct Row {
    sample: SampleKey,
    pixels: Vec<u8>,
    tokens: Vec<i64>,
    holes: Vec<Hole>,
}

/// Returns all rows of a run by what the order put there; no place comes twice.
fn rows(dataset: &Dataset, run: &Read) -> BTreeMap<Visit, Row> {
    let mut all = BTreeMap::new();
    for (samples, batch) in in_samples(run) {
        let count = samples.end - samples.start;
        let visits = dataset.order().visits(samples.start, count, 0..count, &Windows::default());
        for (row, visit) in visits.into_iter().enumerate() {
            let part =
                |len: usize| row * (len / count as usize)..(row + 1) * (len / count as usize);
            let row = Row {
                sample: batch.samples[row],
                pixels: batch.images[part(batch.images.len())].to_vec(),
                tokens: batch.tokens[part(batch.tokens.len())].to_vec(),
                holes: batch.holes.iter().filter(|h| h.0 == row).map(|h| h.1.clone()).collect(),
            };
            assert!(all.insert(visit, row).is_none(), "{visit:?} twice");
        }
    }
    all
}

/// Asserts that every epoch has each sample once but the reserves, that damaged ones are replaced, and nothing else.
fn assert_epochs(dataset: &Dataset, rows: &BTreeMap<Visit, Row>) {
    let mut epochs: BTreeMap<(u32, u64), HashSet<u64>> = BTreeMap::new();
    for (visit, row) in rows {
        let meant = dataset.order().sample(*visit);
        let original = SampleKey { source: visit.source, index: meant.index };
        assert!(!is_damaged(row.sample), "{row:?}");
        assert!(row.sample == original || is_damaged(original), "{original:?}: {row:?}");
        let epoch = epochs.entry((visit.source, meant.epoch)).or_default();
        assert!(epoch.insert(meant.index), "{original:?} twice in epoch {}", meant.epoch);
    }
    for ((source, epoch), seen) in &epochs {
        // One sample of each of two lanes is its reserve.
        let whole = len(*source) - 2;
        let left = given(*source as usize, SAMPLES) - epoch * whole;
        assert_eq!(seen.len() as u64, whole.min(left), "epoch {epoch} of source {source}");
    }
    let of_smallest = epochs.range((SMALLEST, 0)..=(SMALLEST, u64::MAX));
    assert_eq!(of_smallest.map(|(_, seen)| seen.len()).collect::<Vec<_>>(), [512; 3]);
}

/// Asserts that what is drawn for a sample is drawn anew in every epoch: its caption, and how it is augmented.
fn assert_drawn_anew(rows: &BTreeMap<Visit, Row>) {
    let mut epochs: BTreeMap<SampleKey, Vec<&Row>> = BTreeMap::new();
    for (visit, row) in rows.range(Visit { source: SMALLEST, position: 0 }..) {
        if visit.source == SMALLEST {
            epochs.entry(row.sample).or_default().push(row);
        }
    }
    // Few samples replace others, or are reserves in one of the epochs.
    let three: Vec<_> = epochs.values().filter(|rows| rows.len() == 3).collect();
    let differ = |rows: &[&Row], part: fn(&Row, &Row) -> bool| {
        part(rows[0], rows[1]) && part(rows[0], rows[2]) && part(rows[1], rows[2])
    };
    let pixels = three.iter().filter(|rows| differ(rows, |a, b| a.pixels != b.pixels)).count();
    // Of three draws of two captions a quarter are all alike.
    let captions = three.iter().filter(|rows| !differ(rows, |a, b| a.tokens == b.tokens)).count();
    assert!(three.len() > 450 && pixels * 10 > three.len() * 9, "{pixels} of {}", three.len());
    assert!((60..90).contains(&(captions * 100 / three.len())), "{captions} of {}", three.len());
}

#[test]
fn a_mixture_has_the_counts_of_the_formula_and_each_sample_once_an_epoch_though_the_batch_grows() {
    let (_folder, dataset) = files();
    let plain = read(&dataset, &one_rank(false));
    let grown = read(&dataset, &one_rank(true));
    for run in [&plain, &grown] {
        assert_shares(run);
        assert_epochs(&dataset, &rows(&dataset, run));
        assert_drawn_anew(&rows(&dataset, run));
        let holes: usize = run.batches.iter().map(|batch| batch.holes.len()).sum();
        assert!(holes > 100 && run.ledger.len() > 10, "{holes} holes, {:?}", run.ledger);
    }
    assert_eq!((plain.batches.len(), grown.batches.len()), (72, 54));
    // Whatever the batch, each row is the same: its sample, its caption and what is drawn for it.
    assert!(rows(&dataset, &plain) == rows(&dataset, &grown));
    assert_eq!(plain.ledger, grown.ledger);
}

#[test]
fn ranks_that_come_and_go_read_bit_by_bit_what_one_rank_reads() {
    let (_folder, dataset) = files();
    for grows in [false, true] {
        let expected = read(&dataset, &one_rank(grows));
        for seed in [1, 2] {
            let run = changing_ranks(grows, seed);
            let worlds: Vec<u64> = run.iter().map(|stretch: &Stretch| stretch.world_size).collect();
            assert!([1, 3, 2].iter().all(|world| worlds.contains(world)), "{run:?}");
            assert_same(&read(&dataset, &run), &expected, &format!("{run:?}"));
        }
    }
}

#[test]
fn a_store_that_fails_changes_no_bit_of_what_ranks_that_come_and_go_read() {
    let (_folder, dataset) = files();
    let store = register("mixture-with-faults", shards(), Faulty::default());
    let remote = opened("memory://mixture-with-faults");
    let expected = read(&dataset, &one_rank(true));
    let run = changing_ranks(true, 3);
    assert_same(&read(&remote, &run), &expected, &format!("{run:?}"));
    let (asked, met) = store.met();
    assert!(asked > 200 && met.iter().all(|&times| times > 2), "{asked} requests, met {met:?}");
}

/// What the way to a store does to requests that will be made again.
fn misbehaviour() -> Vec<Trouble> {
    let stands_still = std::time::Duration::from_millis(50);
    vec![
        Trouble::new(What::SlowDown(None)).one_in(53),
        Trouble::new(What::Refuse(500, "InternalError")).one_in(59),
        Trouble::new(What::CutRequest).one_in(61),
        Trouble::new(What::LoseReply).one_in(67),
        Trouble::new(What::CutResponse).one_in(31),
        Trouble::new(What::BlackHole(stands_still)).one_in(71),
    ]
}

/// Puts the shards into a bucket.
fn put(bucket: &Bucket) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = bucket.store();
    let put = |(path, bytes): (String, Vec<u8>)| {
        let store = &store;
        async move { store.put(&path.into(), bytes.into()).await }
    };
    runtime.block_on(futures::future::try_join_all(shards().into_iter().map(put))).unwrap();
}

#[test]
fn an_s3_server_behind_a_faulty_network_changes_no_bit_of_what_is_read() {
    let Some(server) = s3::server() else { return };
    let bucket = server.bucket();
    put(&bucket);
    let proxy = FaultyProxy::start(bucket.address, 7);
    let settings = Settings::new(bucket.through(proxy.address).environment().into_iter());
    let store = ringmaster_store::open_with(&bucket.url(""), &settings).unwrap();
    ringmaster_store::register("mixture-on-s3", store);
    proxy.set(misbehaviour());
    let remote = opened("memory://mixture-on-s3");
    let (_folder, dataset) = files();
    let expected = read(&dataset, &one_rank(true));
    let run = changing_ranks(true, 4);
    assert_same(&read(&remote, &run), &expected, &format!("{run:?}"));
    assert!(proxy.struck() > 10, "{} requests were struck", proxy.struck());
}
