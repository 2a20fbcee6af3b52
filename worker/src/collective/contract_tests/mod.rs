//! The contract of [`Collective`], held against every back end by the same tests.
//!
//! A back end implements [`Backend`] for a type without data and names it in [`contract!`], which
//! makes one test of each check: what is moved and reduced (`data`), and how things end when
//! something goes wrong (`failures`). What only one back end has (tokens, certificates) is tested
//! beside it.

pub(super) mod data;
pub(super) mod failures;

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use tch::{Device, Kind, Tensor};

use super::Collective;

/// A way to make rings of connected ranks, one thread each.
pub(super) trait Backend: Sync {
    /// Sizes of rings to test.
    const WORLD_SIZES: &'static [usize];

    /// Where the tensors of a rank live.
    fn device(&self, _rank: usize) -> Device {
        Device::Cpu
    }

    /// Element types that the back end carries.
    fn kinds(&self) -> &'static [Kind] {
        &[Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int64]
    }

    /// Whether float sums have the same bits in every run.
    fn is_deterministic(&self) -> bool {
        true
    }

    /// Runs `body` on `world_size` threads, each with its own end of a fresh ring, and returns
    /// what they returned, by rank. A body may leave without the others.
    fn ring<T: Send>(
        &self,
        world_size: usize,
        deadline: Duration,
        body: impl Fn(&dyn Collective) -> T + Sync,
    ) -> Vec<T>;
}

/// Far more than any check needs.
pub(super) const LONG: Duration = Duration::from_secs(60);
/// Nothing, one element, odd, around the small-message limit, more than a block.
pub(super) const SIZES: [i64; 6] = [0, 1, 7, 2048, 5003, 200_003];
/// Elements of an f32 tensor of 64 MiB.
pub(super) const LARGE: i64 = 16 << 20;

/// Makes the tests of one back end, in a module of the given name.
macro_rules! contract {
    ($name:ident, $backend:ty, [$($module:ident::$check:ident),+ $(,)?]) => {
        mod $name {
            use super::*;
            $(
                #[test]
                fn $check() {
                    $crate::collective::contract_tests::within_limit(stringify!($check), || {
                        $crate::collective::contract_tests::$module::$check(&<$backend>::default());
                    });
                }
            )+
        }
    };
    ($name:ident, $backend:ty) => {
        $crate::collective::contract_tests::contract!($name, $backend, [
            data::all_reduce_sums_and_takes_maxima_for_every_dtype_and_size,
            data::all_gather_and_reduce_scatter_take_even_uneven_and_empty_shares,
            data::shares_of_two_and_three_dimensions_keep_their_rows,
            data::a_maximum_is_nan_where_any_rank_has_one,
            data::broadcast_reaches_all_from_every_root,
            data::exchange_follows_rings_rotations_and_rings_between_groups,
            data::an_exchange_is_in_flight_while_the_caller_computes,
            data::sixty_four_mebibytes_pass_through_every_operation,
            data::float_sums_have_the_same_bits_on_every_rank_and_in_every_run,
            data::several_operations_may_be_in_flight_at_once,
            data::nobody_leaves_a_barrier_before_all_have_come,
            failures::abort_from_another_thread_wakes_every_rank,
            failures::a_peer_that_never_comes_is_a_passed_deadline,
            failures::a_peer_that_dies_in_the_middle_ends_all_within_a_second,
            failures::after_a_failure_what_was_queued_fails_at_once_and_memory_is_left_alone,
            failures::tensors_that_cannot_be_sent_are_refused_by_name,
        ]);
    };
}
pub(super) use contract;

/// Time a check may take: one whose ranks wait for each other for ever fails then.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs a check on a thread of its own, and panics as it does or once it has taken too long.
pub(super) fn within_limit(name: &str, check: impl FnOnce() + Send + 'static) {
    let (done, end) = sync_channel::<()>(1);
    let thread = std::thread::spawn(move || {
        check();
        // A check that panics drops this instead.
        let _ = done.send(());
    });
    if end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
        panic!("{name} has not ended within {LIMIT:?}");
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Small whole numbers, exact in every dtype and in every sum, different on every rank.
pub(super) fn numbers(rows: i64, rank: usize, kind: Kind, device: Device) -> Tensor {
    let index = Tensor::arange(rows, (Kind::Int64, device));
    (index * (rank as i64 + 2) + rank as i64).remainder(11).to_kind(kind)
}

/// Asserts that two tensors hold the same numbers.
#[track_caller]
pub(super) fn assert_same(got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(got.size(), expected.size(), "{what}");
    assert!(got.equal(expected), "{what}: {got} instead of {expected}");
}

/// Runs `check` on rings of every size, for every dtype and length.
pub(super) fn for_all<B: Backend>(
    backend: &B,
    check: impl Fn(&dyn Collective, Kind, Device, i64) + Sync,
) {
    for &world_size in B::WORLD_SIZES {
        backend.ring(world_size, LONG, |ring| {
            for &kind in backend.kinds() {
                for size in SIZES {
                    check(ring, kind, backend.device(ring.rank()), size);
                }
            }
        });
    }
}
