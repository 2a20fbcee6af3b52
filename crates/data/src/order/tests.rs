//! Properties of the order of samples.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// Options of the order, and the longest block.
type Setup = (Options, u64);

fn options(lanes: u32, block_samples: u64, pool_samples: u64) -> Setup {
    (Options { seed: 1, lanes, pool_samples }, block_samples)
}

fn order(shards: &[u64], options: Setup) -> Order {
    mixture(&[(shards, 1.0)], options)
}

fn mixture(sources: &[(&[u64], f64)], (options, block_samples): Setup) -> Order {
    let weights: Vec<f64> = sources.iter().map(|source| source.1).collect();
    let sources: Vec<Source> = sources
        .iter()
        .enumerate()
        .map(|(number, source)| {
            let shards = source.0.to_vec();
            Source { name: format!("s{number}"), shards, block_samples }
        })
        .collect();
    Order::new(&sources, Shares::new(&weights).unwrap(), options).unwrap()
}

/// What a run with batches of these sizes reads after `before` samples, in order of step and row.
fn run(order: &Order, before: u64, batches: &[u64]) -> Vec<Visit> {
    run_without(order, before, batches, &Windows::default())
}

fn run_without(order: &Order, mut before: u64, batches: &[u64], left_out: &Windows) -> Vec<Visit> {
    let mut visits = Vec::new();
    for &batch in batches {
        visits.extend(order.visits(before, batch, 0..batch, left_out));
        before += batch;
    }
    visits
}

fn sorted(mut visits: Vec<Visit>) -> Vec<Visit> {
    visits.sort_unstable();
    visits
}

proptest! {
    #[test]
    fn an_epoch_has_each_sample_once_but_the_reserves_whatever_the_sizes(
        shards in prop::collection::vec(0_u64..900, 1..12),
        lanes in 1_u32..9,
        block in 1_u64..40,
        pool in 1_u64..3000,
    ) {
        let samples: u64 = shards.iter().sum();
        prop_assume!(samples > 0);
        let order = order(&shards, options(lanes, block, pool));
        let len = order.epoch_len(0);
        prop_assert_eq!(samples - len, samples / u64::from(lanes) / 256 * u64::from(lanes));
        for epoch in 0..2 {
            let at = |position| order.sample(Visit { source: 0, position });
            let seen: Vec<SampleId> = (epoch * len..(epoch + 1) * len).map(at).collect();
            let distinct: HashSet<u64> = seen.iter().map(|id| id.index).collect();
            prop_assert_eq!(distinct.len() as u64, len);
            prop_assert!(seen.iter().all(|id| id.epoch == epoch && id.index < samples));
        }
    }

    #[test]
    fn the_size_of_the_batch_changes_neither_what_is_read_nor_a_count(
        weights in prop::collection::vec(0.2_f64..2.0, 1..4),
        start in 0_u64..5000,
        lanes in 1_u32..20,
    ) {
        let shards = [300, 150, 77];
        let sources: Vec<(&[u64], f64)> = weights.iter().map(|&weight| (&shards[..], weight)).collect();
        let order = mixture(&sources, options(lanes, 16, 200));
        let one = sorted(run(&order, start, &[64; 12]));
        let other = sorted(run(&order, start, &[64, 64, 128, 128, 32, 96, 256]));
        prop_assert_eq!(&one, &other);
        // Every position of every source, without a gap.
        for source in 0..weights.len() {
            let counts = order.shares.before(source, start)..order.shares.before(source, start + 768);
            let own = one.iter().filter(|visit| visit.source == source as u32);
            prop_assert!(own.map(|visit| visit.position).eq(counts));
        }
    }

    #[test]
    fn ranks_of_any_number_read_together_what_one_reads(
        weights in prop::collection::vec(0.2_f64..2.0, 1..4),
        step in 0_u64..50,
        world in 1_u64..20,
    ) {
        let shards = [300, 150, 77];
        let sources: Vec<(&[u64], f64)> = weights.iter().map(|&weight| (&shards[..], weight)).collect();
        let order = mixture(&sources, options(8, 16, 200));
        let (batch, before) = (97, step * 97);
        let one = order.visits(before, batch, 0..batch, &Windows::default());
        let of_rank = |rank| order.visits(before, batch, rank * batch / world..(rank + 1) * batch / world, &Windows::default());
        let all: Vec<Visit> = (0..world).flat_map(of_rank).collect();
        prop_assert_eq!(all, one);
    }

    #[test]
    fn what_is_left_out_is_read_by_no_batch_and_all_else_is(
        weights in prop::collection::vec(0.2_f64..2.0, 1..6),
        gaps in prop::collection::vec((0_u64..200, 1_u64..200), 0..5),
        batches in prop::collection::vec(60_u64..150, 1..12),
    ) {
        let mut windows = Vec::new();
        let mut next = 0;
        for (gap, len) in gaps {
            windows.push(next + gap..next + gap + len);
            next += gap + len;
        }
        let shards = [500, 400];
        let sources: Vec<(&[u64], f64)> =
            weights.iter().map(|&weight| (&shards[..], weight)).collect();
        let order = mixture(&sources, options(4, 16, 200));
        let left_out = Windows::new(windows.clone()).unwrap();
        let samples: u64 = batches.iter().sum();
        let visits = run_without(&order, 0, &batches, &left_out);
        prop_assert_eq!(visits.len() as u64, samples);
        for source in 0..weights.len() {
            let count = |n: u64| order.shares.before(source, n);
            // Positions one after the other, but for those of the windows.
            let out = |position: &u64| {
                windows.iter().any(|w| (count(w.start)..count(w.end)).contains(position))
            };
            let expected: Vec<u64> =
                (0..).filter(|position| !out(position)).take(count(samples) as usize).collect();
            let own = sorted(visits.clone()).into_iter().filter(|v| v.source == source as u32);
            prop_assert_eq!(own.map(|visit| visit.position).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn rows_of_a_batch_stand_by_lane(
        lanes in 1_u32..12,
        before in 0_u64..3000,
        batch in 1_u64..200,
    ) {
        let order = order(&[1000, 777], options(lanes, 16, 100));
        let visits = order.visits(before, batch, 0..batch, &Windows::default());
        let len = order.epoch_len(0);
        let place = |visit: &Visit| {
            let within = visit.position % len;
            (visit.position / len, within % u64::from(lanes), within)
        };
        let places: Vec<_> = visits.iter().map(place).collect();
        prop_assert!(places.is_sorted(), "{:?}", places);
        prop_assert!(sorted(visits).iter().map(|v| v.position).eq(before..before + batch));
    }
}

#[test]
fn epochs_differ_and_a_seed_repeats_itself() {
    let with_seed = |seed| {
        let (options, block) = options(8, 4, 100);
        order(&[300, 200], (Options { seed, ..options }, block))
    };
    let epoch = |order: &Order, number: u64| -> Vec<u64> {
        let positions = number * 500..(number + 1) * 500;
        positions.map(|position| order.sample(Visit { source: 0, position }).index).collect()
    };
    let first = epoch(&with_seed(1), 0);
    assert_ne!(first, epoch(&with_seed(1), 1));
    assert_eq!(first, epoch(&with_seed(1), 0));
    assert_ne!(first, epoch(&with_seed(2), 0));
    // Any position alone, in any sequence of questions, is the same: nothing is carried along.
    let order = with_seed(1);
    for (position, &index) in first.iter().enumerate().rev() {
        let visit = Visit { source: 0, position: position as u64 };
        assert_eq!(order.sample(visit), SampleId { epoch: 0, index });
    }
}

#[test]
fn two_sources_alike_are_permuted_differently() {
    let order = mixture(&[(&[1000], 1.0), (&[1000], 1.0)], options(4, 16, 100));
    let of = |source| -> Vec<u64> {
        (0..900).map(|position| order.sample(Visit { source, position }).index).collect()
    };
    assert_ne!(of(0), of(1));
}

/// Each rank reads few lanes, and always the same ones: what a block's other samples are fetched for.
#[test]
fn a_lane_is_read_by_two_neighbours_at_most() {
    let sources: [(&[u64], f64); 2] = [(&[200_000; 5], 3.0), (&[200_000; 2], 1.0)];
    let order = mixture(&sources, options(64, 128, 250_000));
    for world in [3, 8, 16] {
        let mut readers: BTreeMap<(u32, u64), HashSet<u64>> = BTreeMap::new();
        for step in 0..20 {
            let visits = order.visits(step * 4096, 4096, 0..4096, &Windows::default());
            for (row, visit) in visits.iter().enumerate() {
                let lane = visit.position % order.epoch_len(visit.source) % 64;
                let rank = row as u64 * world / 4096;
                readers.entry((visit.source, lane)).or_default().insert(rank);
            }
        }
        assert_eq!(readers.len(), 128);
        for (lane, ranks) in readers {
            let ends = ranks.iter().max().unwrap() - ranks.iter().min().unwrap();
            assert!(ends <= 1, "lane {lane:?} is read by ranks {ranks:?} of {world}");
        }
    }
}

/// 1.28 million samples sorted into 1,000 classes, as ImageNet lies in a folder: pairs of one class in a batch,
/// against those of a full shuffle.
#[test]
fn classes_that_lie_together_meet_hardly_more_often_than_in_a_full_shuffle() {
    const CLASS: u64 = 1280;
    let order = order(&[10_000; 128], options(64, 128, 250_000));
    for batch in [4096_u64, 32_768] {
        let (mut pairs, batches) = (0_u64, 160_000 / batch);
        // All through an epoch, at its beginning and across its end too.
        for number in 0..batches {
            let before = number * (order.epoch_len(0) / (batches - 1)) / batch * batch;
            let mut classes: HashMap<u64, u64> = HashMap::new();
            for visit in order.visits(before, batch, 0..batch, &Windows::default()) {
                *classes.entry(order.sample(visit).index / CLASS).or_default() += 1;
            }
            pairs += classes.values().map(|count| count * (count - 1) / 2).sum::<u64>();
        }
        let full = (batches * batch * (batch - 1) / 2) as f64 * (CLASS - 1) as f64 / 1_279_999.0;
        let ratio = pairs as f64 / full;
        assert!((1.2..1.5).contains(&ratio), "at a batch of {batch}: {ratio}");
    }
}

#[test]
fn a_set_that_fits_the_pool_is_a_full_permutation() {
    let order = order(&[5000; 4], options(16, 128, 250_000));
    let sequence: Vec<u64> =
        (0..19_000).map(|position| order.sample(Visit { source: 0, position }).index).collect();
    // Neighbours in the order are neighbours in no shard more often than by chance, within a lane as across.
    for distance in [1, 16] {
        let near =
            sequence.windows(distance + 1).filter(|w| w[0].abs_diff(w[distance]) < 128).count();
        let chance = sequence.len() as f64 * 2.0 * 127.0 / 20_000.0;
        assert!((near as f64 - chance).abs() < 5.0 * chance.sqrt(), "{near} against {chance}");
    }
}

/// A source with fewer samples than a block for every lane gave a batch neighbouring lanes, and they lay in one block.
#[test]
fn a_small_source_of_a_mixture_mixes_as_well_as_a_large_one() {
    const CLASS: u64 = 128;
    let sources: [(&[u64], f64); 2] = [(&[200_000; 2], 99.0), (&[3072], 1.0)];
    let order = mixture(&sources, options(256, 128, 250_000));
    for batch in [512_u64, 4096] {
        let (mut pairs, mut all) = (0.0, 0.0);
        for step in 0..400 {
            let visits = order.visits(step * batch, batch, 0..batch, &Windows::default());
            let small: Vec<u64> = visits
                .into_iter()
                .filter(|visit| visit.source == 1)
                .map(|visit| order.sample(visit).index / CLASS)
                .collect();
            for (place, class) in small.iter().enumerate() {
                pairs += small[..place].iter().filter(|other| *other == class).count() as f64;
                all += place as f64;
            }
        }
        let ratio = pairs / all / ((CLASS - 1) as f64 / 3071.0);
        assert!((0.6..1.5).contains(&ratio), "at a batch of {batch}: {ratio}");
    }
}

#[test]
fn the_source_that_takes_what_rounding_leaves_is_checked_with_it() {
    let shards: [&[u64]; 4] = [&[5], &[50], &[50], &[50]];
    let order = mixture(&shards.map(|shards| (shards, 1.0)), options(4, 16, 200));
    let first = order.visits(0, 15, 0..15, &Windows::default());
    assert_eq!(first.iter().filter(|visit| visit.source == 0).count(), 6);
    let error = order.check_batch(15).unwrap_err().to_string();
    assert!(error.contains("source s0 has 5 samples and would give 6 rows"), "{error}");
}

#[test]
fn substitutes_visit_the_reserve_once_each_then_the_lane_then_the_source_and_lie_far_apart() {
    // Two lanes of 12,800: reserves of 50.
    let order = order(&[10_000, 15_600], options(2, 256, 4000));
    let len = order.epoch_len(0);
    assert_eq!(len, 25_600 - 100);
    let used: HashSet<u64> =
        (0..len).map(|position| order.sample(Visit { source: 0, position }).index).collect();
    let lane = |number: u64| -> HashSet<u64> {
        let positions = (0..len).filter(|position| position % 2 == number);
        positions.map(|position| order.sample(Visit { source: 0, position }).index).collect()
    };
    let lanes = [lane(0), lane(1)];
    for position in [0, 17, len - 1] {
        let visit = Visit { source: 0, position };
        let reserve: Vec<u64> = (0..32).map(|attempt| order.substitute(visit, attempt)).collect();
        assert!(reserve.iter().all(|index| !used.contains(index)), "from the reserve");
        assert_eq!(reserve.iter().collect::<HashSet<_>>().len(), 32, "each once");
        let own = &lanes[(position % 2) as usize];
        let later: Vec<u64> = (32..64).map(|attempt| order.substitute(visit, attempt)).collect();
        assert!(later.iter().all(|i| own.contains(i) || !used.contains(i)), "from the lane");
        let last: HashSet<u64> = (64..96).map(|attempt| order.substitute(visit, attempt)).collect();
        assert!(last.iter().any(|index| !own.contains(index) && used.contains(index)));
        assert!(last.len() > 25, "from the whole source");
        assert_eq!(later[5], order.substitute(visit, 37), "asked again, the same");
    }
}

#[test]
fn a_source_with_one_sample_to_a_lane_has_substitutes_too() {
    let order = order(&[7], options(64, 128, 250_000));
    let visit = Visit { source: 0, position: 3 };
    let tried: HashSet<u64> = (0..96).map(|attempt| order.substitute(visit, attempt)).collect();
    assert_eq!(tried.len(), 7);
}

#[test]
fn too_small_a_source_is_refused_with_all_numbers() {
    let order = mixture(&[(&[10, 5], 1.0), (&[4000], 3.0)], options(8, 128, 250_000));
    assert!(order.check_batch(60).is_ok());
    let error = order.check_batch(64).unwrap_err().to_string();
    assert!(error.contains("source s0 has 15 samples") && error.contains("16 rows"), "{error}");
}

#[test]
fn windows_out_of_order_are_refused() {
    for windows in [vec![0..9, 9..9], vec![5..9, 3..4], vec![5..9, 8..12]] {
        assert!(Windows::new(windows.clone()).is_err(), "{windows:?}");
    }
}

/// What is fetched ahead is dropped when the order has passed it: never before the last visit, and soon after.
#[test]
fn a_block_is_needed_until_its_lane_has_left_the_window() {
    const BLOCK: u64 = 16;
    // Shards of whole blocks, so that a block is a sixteenth of its index.
    for (shards, pool) in [(&[4000_u64, 3120][..], 600), (&[4000, 3120], 5000), (&[304, 32], 600)] {
        let order = order(shards, options(8, BLOCK, pool));
        let len = order.epoch_len(0);
        let mut held: HashMap<u64, u64> = HashMap::new();
        let (mut fetched, mut most) = (0_u64, 0);
        let mut start = 0;
        for position in 0..2 * len {
            let visit = Visit { source: 0, position };
            let until = order.needed_until(visit);
            assert!(until > position);
            held.retain(|_, until| *until > position);
            let block = order.sample(visit).index / BLOCK;
            let slot = held.entry(block).or_insert_with(|| {
                fetched += 1;
                0
            });
            *slot = until.max(*slot);
            most = most.max(held.len() as u64);
            if position + 1 == len {
                start = fetched;
            }
        }
        let blocks = (shards.iter().sum::<u64>()).div_ceil(BLOCK);
        // Blocks that a border of lanes or windows cuts are fetched twice at most.
        assert!(start <= 2 * blocks, "{start} fetched of {blocks} blocks in an epoch");
        // Shards and lanes cut blocks, so that a few more are held than the pool has samples for.
        let pool = order.pool(0).div_ceil(BLOCK);
        assert!(most <= 2 * pool + 64, "{most} held, {pool} blocks in the pool");
        if order.is_permuted(0) {
            assert_eq!(fetched, blocks, "fetched once for both epochs");
        }
    }
}

#[test]
fn first_positions_follow_what_is_left_out() {
    let order = mixture(&[(&[500], 1.0), (&[500], 1.0)], options(4, 16, 100));
    let left_out = Windows::new(vec![10..30, 50..60]).unwrap();
    for (before, start) in [(0, 0), (8, 8), (10, 30), (28, 48), (30, 60), (40, 70)] {
        assert_eq!(order.first_positions(before, &left_out), [start / 2; 2], "{before}");
    }
}

/// Ten million samples in 10,000 shards, as a job that goes on somewhere in its eighth epoch finds its place.
#[test]
#[expect(clippy::print_stderr, reason = "the times it prints are what the test is for")]
fn a_place_deep_inside_an_epoch_of_ten_million_samples_is_found_at_once() {
    const BATCH: u64 = 32_768;
    let began = std::time::Instant::now();
    let order = order(&[1000; 10_000], options(256, 128, 250_000));
    let laid_out = began.elapsed();
    let before = order.epoch_len(0) * 7 + order.epoch_len(0) / 3 * 2;
    let visits = order.visits(before, BATCH, 0..BATCH, &Windows::default());
    let placed = began.elapsed();
    let indices: HashSet<u64> = visits.iter().map(|visit| order.sample(*visit).index).collect();
    let found = began.elapsed();
    eprintln!(
        "10,000 shards of 1,000 samples: laid out in {laid_out:.1?}, the places of a batch of {BATCH} known after \
         {placed:.1?}, their samples after {found:.1?}"
    );
    assert_eq!(indices.len() as u64, BATCH, "no sample twice");
    assert!(visits.iter().all(|visit| order.sample(*visit).epoch == 7));
    assert!(found.as_secs() < 10, "{found:?}");
}
