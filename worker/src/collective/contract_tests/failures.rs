//! How operations end when something goes wrong. A ring of one has no peers to lose; there the
//! checks of lost peers have nothing to do.

use std::sync::mpsc::sync_channel;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use super::super::{Collective, Error, Pending, ReduceOp};
use super::{Backend, LARGE, LONG, numbers};

/// What the contract allows a blocked rank after a peer's death or an abort.
const PROMPT: Duration = Duration::from_secs(1);

fn largest<B: Backend>() -> Option<usize> {
    B::WORLD_SIZES.iter().copied().max().filter(|&size| size > 1)
}

pub(in crate::collective) fn abort_from_another_thread_wakes_every_rank<B: Backend>(backend: &B) {
    let Some(world_size) = largest::<B>() else { return aborted_alone(backend) };
    // The last rank takes part in nothing until all others have returned.
    let returned = Barrier::new(world_size);
    backend.ring(world_size, LONG, |ring| {
        let tensor = numbers(LARGE / 16, 0, Kind::Float, backend.device(ring.rank()));
        if ring.rank() + 1 < world_size {
            let pending = ring.all_reduce(&tensor, ReduceOp::Sum).unwrap();
            let aborter = ring.aborter();
            let began = Instant::now();
            let error = std::thread::scope(|scope| {
                scope.spawn(move || aborter.abort("told to"));
                pending.wait().unwrap_err()
            });
            assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
            // A peer's abort may have come first.
            let told = matches!(&error, Error::Aborted { reason } if reason == "told to");
            assert!(told || matches!(error, Error::PeerLost { .. }), "{error}");
        }
        returned.wait();
        // The operation that the others were in, whose headers the last rank may still find.
        let error = ring.all_reduce(&tensor, ReduceOp::Sum).and_then(Pending::wait);
        assert!(matches!(error, Err(Error::Aborted { .. } | Error::PeerLost { .. })), "{error:?}");
    });
}

fn aborted_alone<B: Backend>(backend: &B) {
    backend.ring(1, LONG, |ring| {
        ring.aborter().abort("told to");
        assert!(matches!(ring.barrier(), Err(Error::Aborted { .. })));
    });
}

pub(in crate::collective) fn a_peer_that_never_comes_is_a_passed_deadline<B: Backend>(backend: &B) {
    if largest::<B>().is_none() {
        return;
    }
    let deadline = Duration::from_millis(300);
    let (gave_up, absent) = sync_channel::<()>(1);
    let absent = Mutex::new(absent);
    backend.ring(2, deadline, |ring| {
        if ring.rank() == 1 {
            absent.lock().unwrap().recv().unwrap();
            return;
        }
        let began = Instant::now();
        let tensor = numbers(100_000, 0, Kind::Float, backend.device(0));
        let error = ring.all_reduce(&tensor, ReduceOp::Sum).and_then(Pending::wait).unwrap_err();
        assert!(matches!(error, Error::Deadline { peer: 1, .. }), "{error}");
        assert!(began.elapsed() >= deadline && began.elapsed() < deadline + PROMPT);
        gave_up.send(()).unwrap();
    });
}

pub(in crate::collective) fn a_peer_that_dies_in_the_middle_ends_all_within_a_second<B: Backend>(
    backend: &B,
) {
    let Some(world_size) = largest::<B>() else { return };
    let died = Mutex::new(None);
    // Not a collective: whoever has left one may abort before the others have.
    let ready = std::sync::Barrier::new(world_size);
    let lost = backend.ring(world_size, LONG, |ring| {
        let tensor = numbers(LARGE, ring.rank(), Kind::Float, backend.device(ring.rank()));
        ready.wait();
        let pending = ring.all_reduce(&tensor, ReduceOp::Sum);
        if ring.rank() == 1 {
            // The transfer is under way: 64 MiB take tens of milliseconds.
            *died.lock().unwrap() = Some(Instant::now());
            ring.aborter().abort("this rank dies");
            assert!(pending.and_then(Pending::wait).is_err());
            return None;
        }
        let error = pending.and_then(Pending::wait).unwrap_err();
        assert!(matches!(error, Error::PeerLost { .. } | Error::Aborted { .. }), "{error}");
        Some(Instant::now())
    });
    let died = died.lock().unwrap().unwrap();
    for noticed in lost.into_iter().flatten() {
        let after = noticed.saturating_duration_since(died);
        assert!(after < PROMPT, "{after:?}");
    }
}

/// A failed operation once reported its error while threads of its own still sent from the
/// tensors. Their owner may free or change them from that moment on.
pub(in crate::collective) fn after_a_failure_what_was_queued_fails_at_once_and_memory_is_left_alone<
    B: Backend,
>(
    backend: &B,
) {
    if largest::<B>().is_none() {
        return;
    }
    let returned = Barrier::new(2);
    backend.ring(2, LONG, |ring| {
        let device = backend.device(ring.rank());
        if ring.rank() == 1 {
            ring.barrier().unwrap();
            // Takes part in nothing else, so every send of rank 0 is stuck half-way.
            returned.wait();
            return;
        }
        ring.barrier().unwrap();
        let tensors: Vec<Tensor> =
            (0..5).map(|i| numbers(LARGE / 4, i, Kind::Float, device)).collect();
        let pending: Vec<Pending> =
            tensors.iter().map(|t| ring.all_reduce(t, ReduceOp::Sum).unwrap()).collect();
        ring.aborter().abort("told to");
        let began = Instant::now();
        for pending in pending {
            assert!(matches!(pending.wait(), Err(Error::Aborted { .. })));
        }
        assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
        // Whoever still used this memory would now send or overwrite these numbers.
        for tensor in &tensors {
            let _ = tensor.shallow_clone().fill_(-1.0);
        }
        returned.wait();
        assert!(ring.all_reduce(&tensors[0], ReduceOp::Sum).and_then(Pending::wait).is_err());
        for tensor in &tensors {
            assert_eq!(tensor.eq(-1.0).all().int64_value(&[]), 1);
        }
    });
}

pub(in crate::collective) fn tensors_that_cannot_be_sent_are_refused_by_name<B: Backend>(
    backend: &B,
) {
    if largest::<B>().is_none() {
        return;
    }
    backend.ring(2, LONG, |ring: &dyn Collective| {
        let device = backend.device(ring.rank());
        let error =
            |tensor: &Tensor| ring.all_reduce(tensor, ReduceOp::Sum).unwrap_err().to_string();
        let transposed = Tensor::zeros([3, 4], (Kind::Float, device)).tr();
        assert!(error(&transposed).contains("[4, 3] is not contiguous"));
        let bytes = Tensor::zeros([3], (Kind::Uint8, device));
        assert!(error(&bytes).contains("none of f32, f64, bf16, i64"));
        let (three, four) =
            (Tensor::zeros([3], (Kind::Float, device)), Tensor::zeros([4], (Kind::Float, device)));
        assert!(ring.all_gather(&three, &four, &[3, 2]).is_err());
        assert!(ring.reduce_scatter(&four, &three, &[2, 2]).is_err());
        let wide = Tensor::zeros([4, 2], (Kind::Float, device));
        let narrow = Tensor::zeros([2, 1], (Kind::Float, device));
        let wider = "are not as wide as those of";
        let error = |result: Result<Pending, Error>| result.unwrap_err().to_string();
        assert!(error(ring.all_gather(&narrow, &wide, &[2, 2])).contains(wider));
        assert!(error(ring.reduce_scatter(&wide, &narrow, &[2, 2])).contains(wider));
        assert!(ring.broadcast(&three, 2).is_err());
        // None of these was started, so the ring still works.
        ring.all_reduce(&three, ReduceOp::Sum).unwrap().wait().unwrap();
    });
}
