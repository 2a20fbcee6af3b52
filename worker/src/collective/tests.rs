//! The contract of [`Collective`], held against the tcp back end over real sockets.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::tcp::{AbortFlag, Tcp};
use super::testing::{ring_options, with_ring};
use super::{Collective, Error, ReduceOp, even_counts};

const KINDS: [Kind; 4] = [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int64];
/// Nothing, one element, odd, around the small-message limit, larger than a block.
const SIZES: [i64; 6] = [0, 1, 7, 2048, 5003, 100_001];

/// Small whole numbers, exact in every dtype, different on every rank.
fn numbers(rows: i64, rank: usize, kind: Kind) -> Tensor {
    let index = Tensor::arange(rows, (Kind::Int64, Device::Cpu));
    (index * (rank as i64 + 2) + rank as i64).remainder(11).to_kind(kind)
}

fn list(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_kind(Kind::Double).view(-1)).unwrap()
}

fn for_all(check: impl Fn(&dyn Collective, Kind, i64) + Sync) {
    for world_size in 1..=4 {
        with_ring(world_size, |ring| {
            for kind in KINDS {
                for size in SIZES {
                    check(ring, kind, size);
                }
            }
        });
    }
}

#[test]
fn all_reduce_sums_and_takes_maxima_for_every_dtype_and_size() {
    for_all(|ring, kind, size| {
        let all: Vec<Tensor> = (0..ring.world_size()).map(|r| numbers(size, r, kind)).collect();
        for (op, combine) in [
            (ReduceOp::Sum, (|a: &Tensor, b: &Tensor| a + b) as fn(&Tensor, &Tensor) -> Tensor),
            (ReduceOp::Max, |a: &Tensor, b: &Tensor| a.maximum(b)),
        ] {
            let tensor = all[ring.rank()].copy();
            ring.all_reduce(&tensor, op).unwrap().wait().unwrap();
            let expected = all[1..].iter().fold(all[0].copy(), |sum, t| combine(&sum, t));
            assert_eq!(list(&tensor), list(&expected), "{op:?} {kind:?} {size}");
        }
    });
}

#[test]
fn all_gather_and_reduce_scatter_take_even_uneven_and_empty_shares() {
    for_all(|ring, kind, size| {
        let world_size = ring.world_size();
        let even = even_counts(size as usize, world_size);
        let mut uneven = vec![0; world_size];
        uneven[world_size - 1] = size as usize;
        for counts in [even, uneven] {
            let start: usize = counts[..ring.rank()].iter().sum();
            let own = counts[ring.rank()] as i64;
            let whole = numbers(size, 0, kind);
            let gathered = whole.zeros_like();
            let share = whole.narrow(0, start as i64, own).copy();
            ring.all_gather(&share, &gathered, &counts).unwrap().wait().unwrap();
            assert_eq!(list(&gathered), list(&whole), "all_gather {kind:?} {counts:?}");

            let input = numbers(size, ring.rank(), kind);
            let output = Tensor::zeros([own], (kind, Device::Cpu));
            ring.reduce_scatter(&input, &output, &counts).unwrap().wait().unwrap();
            let all = (1..world_size)
                .fold(numbers(size, 0, kind), |sum, rank| sum + numbers(size, rank, kind));
            let expected = all.narrow(0, start as i64, own);
            assert_eq!(list(&output), list(&expected), "reduce_scatter {kind:?} {counts:?}");
        }
    });
}

#[test]
fn broadcast_exchange_and_barrier_move_what_they_should() {
    for_all(|ring, kind, size| {
        for root in 0..ring.world_size() {
            let tensor = numbers(size, ring.rank(), kind);
            ring.broadcast(&tensor, root).unwrap().wait().unwrap();
            assert_eq!(list(&tensor), list(&numbers(size, root, kind)));
        }
        let previous = (ring.rank() + ring.world_size() - 1) % ring.world_size();
        // Unequal lengths, as sub-chunks of uneven shards have.
        let send = numbers(size + ring.rank() as i64, ring.rank(), kind);
        let received = numbers(size + previous as i64, 0, kind);
        ring.exchange(&send, (ring.rank() + 1) % ring.world_size(), &received, previous).unwrap().wait().unwrap();
        assert_eq!(list(&received), list(&numbers(size + previous as i64, previous, kind)));
        ring.barrier().unwrap();
    });
}

#[test]
fn float_sums_have_the_same_bits_on_every_rank_and_in_every_run() {
    let run = || {
        with_ring(3, |ring| {
            let base = Tensor::arange(100_001, (Kind::Float, Device::Cpu));
            let tensor = (base * (0.37 + ring.rank() as f64)).sin() * 1e3;
            ring.all_reduce(&tensor, ReduceOp::Sum).unwrap().wait().unwrap();
            list(&tensor)
        })
    };
    let (first, second) = (run(), run());
    assert!(first.iter().chain(&second).all(|bits| *bits == first[0]));
}

#[test]
fn several_operations_may_be_in_flight_at_once() {
    with_ring(3, |ring| {
        let tensors: Vec<Tensor> =
            (0..5).map(|i| numbers(50_000 + i, ring.rank(), Kind::Float)).collect();
        let pending: Vec<_> =
            tensors.iter().map(|t| ring.all_reduce(t, ReduceOp::Sum).unwrap()).collect();
        for (i, pending) in pending.into_iter().enumerate() {
            pending.wait().unwrap();
            let expected = (1..3).fold(numbers(50_000 + i as i64, 0, Kind::Float), |sum, r| {
                sum + numbers(50_000 + i as i64, r, Kind::Float)
            });
            assert_eq!(list(&tensors[i]), list(&expected));
        }
    });
}

#[test]
fn a_lost_peer_ends_every_waiting_rank_long_before_any_deadline() {
    with_ring(4, |ring| {
        if ring.rank() == 2 {
            // Leaves without a goodbye, as a killed process does.
            ring.aborter().abort("this rank dies");
            return;
        }
        let tensor = numbers(1_000_000, ring.rank(), Kind::Float);
        let began = Instant::now();
        let error = ring.all_reduce(&tensor, ReduceOp::Sum).and_then(super::Pending::wait);
        assert!(matches!(error, Err(Error::PeerLost { .. } | Error::Aborted { .. })), "{error:?}");
        // Milliseconds on an idle machine; the ring's own deadline is a minute.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    });
}

#[test]
fn abort_from_another_thread_wakes_a_rank_whose_peer_never_comes() {
    let (started, waiting) = std::sync::mpsc::channel();
    let started = std::sync::Mutex::new(started);
    let waiting = std::sync::Mutex::new(waiting);
    with_ring(2, |ring| {
        if ring.rank() == 1 {
            // Takes part in nothing until rank 0 has returned.
            waiting.lock().unwrap().recv().unwrap();
            return;
        }
        let aborter = ring.aborter();
        let tensor = numbers(10, 0, Kind::Float);
        let pending = ring.all_reduce(&tensor, ReduceOp::Sum).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| aborter.abort("told to"));
            let error = pending.wait().unwrap_err();
            assert!(matches!(&error, Error::Aborted { reason } if reason == "told to"), "{error}");
        });
        started.lock().unwrap().send(()).unwrap();
    });
}

#[test]
fn ranks_in_different_operations_are_told_so() {
    let errors = with_ring(2, |ring| {
        let tensor = numbers(4, 0, Kind::Float);
        let pending = match ring.rank() {
            0 => ring.all_reduce(&tensor, ReduceOp::Sum),
            _ => ring.broadcast(&tensor, 0),
        };
        pending.and_then(super::Pending::wait).unwrap_err().to_string()
    });
    assert!(
        errors.iter().any(|e| e.contains("all ranks must start the same collectives")),
        "{errors:?}"
    );
}

#[test]
fn a_wrong_token_and_a_stale_generation_are_turned_away_without_disturbing_the_ring() {
    let (listeners, options) = ring_options(2);
    let mut stranger = options[1].clone();
    stranger.token = vec![8; 32];
    let mut stale = options[1].clone();
    stale.generation.counter = 0;
    std::thread::scope(|scope| {
        let first = scope.spawn(|| Tcp::connect(&listeners[0], &options[0], &AbortFlag::new()));
        for (intruder, answer) in [(&stranger, "WrongToken"), (&stale, "WrongGeneration")] {
            let error = Tcp::connect(&listeners[1], intruder, &AbortFlag::new()).unwrap_err();
            assert!(error.to_string().contains(answer), "{error}");
        }
        let second = scope.spawn(|| Tcp::connect(&listeners[1], &options[1], &AbortFlag::new()));
        // Both ends close politely, each waiting for the other's goodbye.
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        let closing = scope.spawn(move || drop(first.unwrap()));
        drop(second.unwrap());
        closing.join().unwrap();
    });
}

#[test]
fn a_missing_peer_is_an_error_and_an_abort_ends_the_wait_for_it() {
    let (listeners, mut options) = ring_options(2);
    options[0].connect_timeout = Duration::from_millis(200);
    let error = Tcp::connect(&listeners[0], &options[0], &AbortFlag::new()).unwrap_err();
    assert!(error.to_string().contains("rank 1 did not connect in time"), "{error}");

    options[0].connect_timeout = Duration::from_secs(600);
    let abort = AbortFlag::new();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Tcp::connect(&listeners[0], &options[0], &abort));
        abort.set("a newer generation begins");
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Aborted { .. }), "{error}");
    });
}

#[test]
fn tensors_that_cannot_be_sent_are_refused_by_name() {
    with_ring(2, |ring| {
        let error =
            |tensor: &Tensor| ring.all_reduce(tensor, ReduceOp::Sum).unwrap_err().to_string();
        let transposed = Tensor::zeros([3, 4], (Kind::Float, Device::Cpu)).tr();
        assert!(error(&transposed).contains("[4, 3] is not contiguous"));
        let bytes = Tensor::zeros([3], (Kind::Uint8, Device::Cpu));
        assert!(error(&bytes).contains("none of f32, f64, bf16, i64"));
    });
}
