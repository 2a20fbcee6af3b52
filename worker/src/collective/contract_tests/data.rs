//! What the operations move and reduce.

use tch::{Kind, Tensor};

use super::super::{Collective, ReduceOp, even_counts};
use super::{Backend, LARGE, LONG, assert_same, for_all, numbers};

pub(in crate::collective) fn all_reduce_sums_and_takes_maxima_for_every_dtype_and_size<
    B: Backend,
>(
    backend: &B,
) {
    type Combine = fn(&Tensor, &Tensor) -> Tensor;
    for_all(backend, |ring, kind, device, size| {
        let part = |rank| numbers(size, rank, kind, device);
        let ops: [(ReduceOp, Combine); 2] =
            [(ReduceOp::Sum, |a, b| a + b), (ReduceOp::Max, |a, b| a.maximum(b))];
        for (op, combine) in ops {
            let tensor = part(ring.rank());
            ring.all_reduce(&tensor, op).unwrap().wait().unwrap();
            let expected =
                (1..ring.world_size()).fold(part(0), |sum, rank| combine(&sum, &part(rank)));
            assert_same(&tensor, &expected, &format!("{op:?} {kind:?} {size}"));
        }
    });
}

pub(in crate::collective) fn all_gather_and_reduce_scatter_take_even_uneven_and_empty_shares<
    B: Backend,
>(
    backend: &B,
) {
    for_all(backend, |ring, kind, device, size| {
        let (rank, world_size) = (ring.rank(), ring.world_size());
        let mut last_only = vec![0; world_size];
        last_only[world_size - 1] = size as usize;
        let mut uneven = even_counts(size as usize, world_size);
        let moved = uneven[0] / 2;
        uneven[0] -= moved;
        uneven[world_size - 1] += moved;
        for counts in [even_counts(size as usize, world_size), uneven, last_only] {
            let start = counts[..rank].iter().sum::<usize>() as i64;
            let own = counts[rank] as i64;
            let what = format!("{kind:?} {counts:?}");

            let whole = numbers(size, 0, kind, device);
            let share = whole.narrow(0, start, own).copy();
            let gathered = whole.zeros_like();
            ring.all_gather(&share, &gathered, &counts).unwrap().wait().unwrap();
            assert_same(&gathered, &whole, &what);

            let input = numbers(size, rank, kind, device);
            let output = Tensor::zeros([own], (kind, device));
            ring.reduce_scatter(&input, &output, &counts).unwrap().wait().unwrap();
            let sum = (1..world_size).fold(numbers(size, 0, kind, device), |sum, rank| {
                sum + numbers(size, rank, kind, device)
            });
            assert_same(&output, &sum.narrow(0, start, own), &what);
        }
    });
}

pub(in crate::collective) fn shares_of_two_and_three_dimensions_keep_their_rows<B: Backend>(
    backend: &B,
) {
    for_all(backend, |ring, kind, device, size| {
        let (rank, world_size) = (ring.rank(), ring.world_size());
        let rows = size.min(5003) as usize;
        let mut counts = even_counts(rows, world_size);
        let moved = counts[0] / 3;
        counts[0] -= moved;
        counts[world_size - 1] += moved;
        let start = counts[..rank].iter().sum::<usize>() as i64;
        let own = counts[rank] as i64;
        for row in [vec![5], vec![3, 2], vec![0]] {
            let shape = |rows: i64| [vec![rows], row.clone()].concat();
            let width = row.iter().product::<i64>();
            let part =
                |rank| numbers(rows as i64 * width, rank, kind, device).view(&*shape(rows as i64));
            let what = format!("{kind:?} {counts:?} × {row:?}");

            let share = part(0).narrow(0, start, own).copy();
            let gathered = part(0).zeros_like();
            ring.all_gather(&share, &gathered, &counts).unwrap().wait().unwrap();
            assert_same(&gathered, &part(0), &what);

            let output = Tensor::zeros(&*shape(own), (kind, device));
            ring.reduce_scatter(&part(rank), &output, &counts).unwrap().wait().unwrap();
            let sum = (1..world_size).fold(part(0), |sum, rank| sum + part(rank));
            assert_same(&output, &sum.narrow(0, start, own), &what);
        }
    });
}

pub(in crate::collective) fn a_maximum_is_nan_where_any_rank_has_one<B: Backend>(backend: &B) {
    for &world_size in B::WORLD_SIZES {
        backend.ring(world_size, LONG, |ring| {
            let device = backend.device(ring.rank());
            for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
                let tensor = numbers(5, ring.rank(), kind, device);
                if ring.rank() == 0 {
                    let _ = tensor.narrow(0, 3, 1).fill_(f64::NAN);
                }
                ring.all_reduce(&tensor, ReduceOp::Max).unwrap().wait().unwrap();
                let nans: Vec<bool> = tensor.isnan().try_into().unwrap();
                assert_eq!(nans, [false, false, false, true, false], "{kind:?}");
            }
        });
    }
}

pub(in crate::collective) fn broadcast_reaches_all_from_every_root<B: Backend>(backend: &B) {
    for_all(backend, |ring, kind, device, size| {
        for root in 0..ring.world_size() {
            let tensor = numbers(size, ring.rank(), kind, device);
            ring.broadcast(&tensor, root).unwrap().wait().unwrap();
            let expected = numbers(size, root, kind, device);
            assert_same(&tensor, &expected, &format!("{kind:?} {size} from {root}"));
        }
    });
}

/// Permutations of the ranks: to whom each sends.
fn permutations(world_size: usize) -> Vec<Vec<usize>> {
    let shift = |by: usize| (0..world_size).map(|rank| (rank + by) % world_size).collect();
    let mut all: Vec<Vec<usize>> = (0..world_size).map(shift).collect();
    if world_size == 4 {
        // The ring between two groups of two, and the rotation inside each.
        all.push(vec![2, 3, 0, 1]);
        all.push(vec![1, 0, 3, 2]);
        // Some change places, some keep theirs.
        all.push(vec![3, 1, 2, 0]);
    }
    all
}

pub(in crate::collective) fn exchange_follows_rings_rotations_and_rings_between_groups<
    B: Backend,
>(
    backend: &B,
) {
    for_all(backend, |ring, kind, device, size| {
        for permutation in permutations(ring.world_size()) {
            let to = permutation[ring.rank()];
            let from = permutation.iter().position(|&to| to == ring.rank()).unwrap();
            // Unequal lengths, as sub-chunks of uneven shards have.
            let send = numbers(size + ring.rank() as i64, ring.rank(), kind, device);
            let received = numbers(size + from as i64, 0, kind, device).zeros_like();
            ring.exchange(&send, to, &received, from).unwrap().wait().unwrap();
            let expected = numbers(size + from as i64, from, kind, device);
            assert_same(&received, &expected, &format!("{kind:?} {size} {permutation:?}"));
        }
    });
}

pub(in crate::collective) fn an_exchange_is_in_flight_while_the_caller_computes<B: Backend>(
    backend: &B,
) {
    for &world_size in B::WORLD_SIZES {
        backend.ring(world_size, LONG, |ring| {
            let device = backend.device(ring.rank());
            let next = (ring.rank() + 1) % world_size;
            let previous = (ring.rank() + world_size - 1) % world_size;
            let send = numbers(1 << 20, ring.rank(), Kind::Float, device);
            let received = send.zeros_like();
            let pending = ring.exchange(&send, next, &received, previous).unwrap();
            let matrix = Tensor::ones([64, 64], (Kind::Float, device));
            let mut product = matrix.shallow_clone();
            for _ in 0..10 {
                product = product.matmul(&matrix) / 64.0;
            }
            pending.wait().unwrap();
            assert_same(&product, &matrix, "computed meanwhile");
            assert_same(&received, &numbers(1 << 20, previous, Kind::Float, device), "received");
        });
    }
}

pub(in crate::collective) fn sixty_four_mebibytes_pass_through_every_operation<B: Backend>(
    backend: &B,
) {
    let world_size = B::WORLD_SIZES.iter().copied().find(|&size| size >= 2).unwrap_or(1);
    backend.ring(world_size, LONG, |ring| {
        let (rank, device) = (ring.rank(), backend.device(ring.rank()));
        let part = |rank| numbers(LARGE, rank, Kind::Float, device);
        let sum = (1..world_size).fold(part(0), |sum, rank| sum + part(rank));
        let counts = even_counts(LARGE as usize, world_size);
        let start = counts[..rank].iter().sum::<usize>() as i64;
        let own = counts[rank] as i64;

        let tensor = part(rank);
        ring.all_reduce(&tensor, ReduceOp::Sum).unwrap().wait().unwrap();
        assert_same(&tensor, &sum, "all_reduce");
        let share = tensor.narrow(0, start, own).zeros_like();
        ring.reduce_scatter(&part(rank), &share, &counts).unwrap().wait().unwrap();
        assert_same(&share, &sum.narrow(0, start, own), "reduce_scatter");
        let _ = tensor.shallow_clone().zero_();
        ring.all_gather(&share, &tensor, &counts).unwrap().wait().unwrap();
        assert_same(&tensor, &sum, "all_gather");
        let copied = part(rank);
        ring.broadcast(&copied, world_size - 1).unwrap().wait().unwrap();
        assert_same(&copied, &part(world_size - 1), "broadcast");
        let previous = (rank + world_size - 1) % world_size;
        ring.exchange(&part(rank), (rank + 1) % world_size, &tensor, previous)
            .unwrap()
            .wait()
            .unwrap();
        assert_same(&tensor, &part(previous), "exchange");
    });
}

pub(in crate::collective) fn float_sums_have_the_same_bits_on_every_rank_and_in_every_run<
    B: Backend,
>(
    backend: &B,
) {
    let world_size = B::WORLD_SIZES.iter().copied().max().unwrap_or(1);
    let run = || {
        backend.ring(world_size, LONG, |ring| {
            let part = |rank: usize| {
                let base = Tensor::arange(200_003, (Kind::Float, backend.device(ring.rank())));
                (base * (0.37 + rank as f64)).sin() * 1e3
            };
            let tensor = part(ring.rank());
            ring.all_reduce(&tensor, ReduceOp::Sum).unwrap().wait().unwrap();
            // In rank order: the bits are those of one rank adding one part after the other.
            let in_rank_order = (1..world_size).fold(part(0), |sum, rank| sum + part(rank));
            assert!(!backend.is_deterministic() || tensor.equal(&in_rank_order));
            Vec::<f32>::try_from(tensor).unwrap()
        })
    };
    let first = run();
    assert!(first.iter().all(|bits| *bits == first[0]));
    assert!(!backend.is_deterministic() || run() == first);
}

pub(in crate::collective) fn several_operations_may_be_in_flight_at_once<B: Backend>(backend: &B) {
    for &world_size in B::WORLD_SIZES {
        backend.ring(world_size, LONG, |ring| {
            let part =
                |size: i64, rank| numbers(size, rank, Kind::Float, backend.device(ring.rank()));
            let sizes = [50_000, 7, 300_000, 0, 50_001];
            let tensors = sizes.map(|size| part(size, ring.rank()));
            let began = ring.sequence();
            let pending: Vec<_> =
                tensors.iter().map(|t| ring.all_reduce(t, ReduceOp::Sum).unwrap()).collect();
            assert_eq!(ring.sequence(), began + 5);
            for ((pending, tensor), size) in pending.into_iter().zip(&tensors).zip(sizes) {
                pending.wait().unwrap();
                let sum = (1..world_size).fold(part(size, 0), |sum, r| sum + part(size, r));
                assert_same(tensor, &sum, "all_reduce");
            }
        });
    }
}

pub(in crate::collective) fn nobody_leaves_a_barrier_before_all_have_come<B: Backend>(backend: &B) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    for &world_size in B::WORLD_SIZES {
        let arrived = AtomicUsize::new(0);
        backend.ring(world_size, LONG, |ring: &dyn Collective| {
            for round in 1..=20 {
                arrived.fetch_add(1, Ordering::SeqCst);
                ring.barrier().unwrap();
                assert!(arrived.load(Ordering::SeqCst) >= round * world_size);
                ring.barrier().unwrap();
            }
        });
    }
}
