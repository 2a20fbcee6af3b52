//! The pipeline of an all-reduce around the ends of its blocks, where its turns change.

use super::super::ops::BLOCK;
use super::*;

/// Elements of an f32 block.
const ELEMENTS: i64 = (BLOCK / 4) as i64;

/// Numbers whose sum depends on the order of its terms.
fn waves(elements: i64, rank: usize) -> Tensor {
    let index = Tensor::arange(elements, (Kind::Float, Device::Cpu));
    (index * (0.37 + rank as f64)).sin() * 1e3
}

/// Totals whose shares have about 4, 5 and 6 blocks: a few elements less and more, and so that
/// only some ranks have a last block.
fn totals(world_size: i64) -> Vec<i64> {
    let around = |blocks: i64| {
        let whole = world_size * blocks * ELEMENTS;
        [whole - world_size * 3, whole - 1, whole, whole + 1, whole + world_size * 2 + 1]
    };
    [4, 5, 6].into_iter().flat_map(around).collect()
}

fn assert_sums_in_rank_order(ring: &dyn Collective, totals: &[i64]) {
    for &total in totals {
        let tensor = waves(total, ring.rank());
        ring.all_reduce(&tensor, ReduceOp::Sum).unwrap().wait().unwrap();
        let expected =
            (1..ring.world_size()).fold(waves(total, 0), |sum, rank| sum + waves(total, rank));
        assert!(tensor.equal(&expected), "{total} elements over {}", ring.world_size());
    }
}

#[test]
fn shares_of_four_to_six_blocks_are_summed_in_rank_order_to_the_bit() {
    for world_size in [3, 4] {
        let totals = totals(world_size as i64);
        with_ring(world_size, |ring| assert_sums_in_rank_order(ring, &totals));
    }
}

#[test]
fn with_tls_a_block_that_only_some_ranks_have_is_summed_in_rank_order_to_the_bit() {
    let (listeners, options) = tls_options(3);
    let total = 3 * 5 * ELEMENTS + 1;
    run_ring(listeners, options, |ring| assert_sums_in_rank_order(ring, &[total]));
}
