//! Properties of the order of samples.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use proptest::prelude::*;

use super::tests::options;
use super::*;

/// Every sample of one epoch, in order of step and row.
fn epoch(order: &Order, number: u64, global_batch: u64) -> Vec<u64> {
    let steps = order.steps_per_epoch();
    (number * steps..(number + 1) * steps)
        .flat_map(|step| (0..global_batch).map(move |row| (step, row)))
        .map(|(step, row)| order.sample(step, row).index)
        .collect()
}

proptest! {
    #[test]
    fn an_epoch_holds_each_sample_at_most_once_and_loses_only_the_stated_remainder(
        sizes in prop::collection::vec(1_u64..90, 1..12),
        lanes in 1_u32..9,
        per_lane in 1_u32..4,
        block in prop::option::of(1_u32..20),
        window in 1_u32..40,
    ) {
        let global_batch = lanes * per_lane;
        let samples: u64 = sizes.iter().sum();
        let options =
            OrderOptions { seed: 1, lanes, block_samples: block, shuffle_window: window, global_batch };
        let Ok(order) = Order::new(&sizes, options) else {
            prop_assert!(samples / u64::from(lanes) < u64::from(per_lane));
            return Ok(());
        };
        for number in 0..2 {
            let seen = epoch(&order, number, u64::from(global_batch));
            let distinct: HashSet<u64> = seen.iter().copied().collect();
            prop_assert_eq!(distinct.len(), seen.len(), "a sample twice in epoch {}", number);
            prop_assert!(seen.iter().all(|&index| index < samples));
            // Lost: what does not fill the lanes, and each lane's last unfilled batch.
            let lost = samples - seen.len() as u64;
            prop_assert!(lost < u64::from(lanes) + u64::from(global_batch));
        }
    }

    #[test]
    fn lanes_are_shared_out_whole_whatever_the_world_size(lanes in 1_u32..100, world in 1_usize..20) {
        let mut next = 0;
        for rank in 0..world {
            let share = share(lanes, rank, world);
            prop_assert_eq!(share.start, next);
            next = share.end;
        }
        prop_assert_eq!(next, lanes);
    }
}

#[test]
fn epochs_differ_and_a_seed_repeats_itself() {
    let order = |seed| Order::new(&[300, 200], OrderOptions { seed, ..options(40, 8) }).unwrap();
    let (first, second) = (epoch(&order(1), 0, 40), epoch(&order(1), 1, 40));
    assert_ne!(first, second);
    assert_eq!(first, epoch(&order(1), 0, 40));
    assert_ne!(first, epoch(&order(2), 0, 40));
    // Any entry alone, in any sequence of questions, is the same: nothing is carried along.
    let asked_backwards = order(1);
    for (place, &index) in first.iter().enumerate().rev() {
        assert_eq!(asked_backwards.sample(place as u64 / 40, place as u64 % 40).index, index);
    }
}

#[test]
fn too_small_a_data_set_is_refused_with_both_numbers() {
    let error = Order::new(&[10, 5], options(64, 64)).unwrap_err().to_string();
    assert!(error.contains("15 samples") && error.contains("global batch of 64"), "{error}");
}

#[test]
fn substitutes_visit_the_reserve_once_each_then_the_lane_and_lie_far_apart() {
    // Two lanes of 1190: two steps of 400 each, so 390 samples are each lane's reserve.
    let options = OrderOptions {
        seed: 3,
        lanes: 2,
        block_samples: Some(256),
        shuffle_window: 64,
        global_batch: 800,
    };
    let order = Order::new(&[1000, 1380], options).unwrap();
    let used: HashSet<u64> = epoch(&order, 0, 800).into_iter().collect();
    let lane: HashSet<u64> = (0..2)
        .flat_map(|step| (0..400).map(move |row| (step, row)))
        .map(|(step, row)| order.sample(step, row).index)
        .collect();
    for (step, row) in [(0, 0), (1, 399), (0, 17)] {
        let reserve: Vec<u64> = (0..32).map(|a| order.substitute(step, row, a)).collect();
        assert!(reserve.iter().all(|index| !used.contains(index)), "from the reserve");
        assert_eq!(reserve.iter().collect::<HashSet<_>>().len(), 32, "each once");
        for damaged in &reserve {
            let run = damaged.saturating_sub(64)..damaged + 64;
            assert!(reserve.iter().any(|index| !run.contains(index)), "a run takes them all");
        }
        let later: Vec<u64> = (32..96).map(|a| order.substitute(step, row, a)).collect();
        assert!(later.iter().all(|i| lane.contains(i) || !used.contains(i)), "from the lane");
        assert!(later.iter().collect::<HashSet<_>>().len() > 50);
        assert_eq!(later[5], order.substitute(step, row, 37), "asked again, the same");
    }
}
