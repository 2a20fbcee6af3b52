//! The contract between processes: over tcp on any machine, over NCCL where there is a GPU.
//!
//! NCCL ranks must be processes of their own. Several of them share one GPU by telling NCCL that
//! each is a host of its own (`NCCL_HOSTID`), so that it connects them over sockets; it refuses two
//! ranks on one GPU of one host. The test program starts itself again, once per rank, to run one
//! test that does nothing otherwise.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};

use super::super::tcp::Tcp;
use super::super::testing::{ring_options, with_ring};
use super::super::{ByDevice, Solo, even_counts};
use super::*;
use crate::ffi::cuda::test_device;
use crate::loss::{self, infonce, reference, siglip};

/// What a started process plays: rank, communicator id in hex, all ranks' addresses, part.
const PART: &str = "RINGMASTER_TEST_NCCL_PART";
const KINDS: [Kind; 4] = [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int64];
const SIZES: [i64; 5] = [0, 1, 7, 5003, 100_001];

/// Small whole numbers, exact in every dtype, different on every rank.
fn numbers(rows: i64, rank: usize, kind: Kind, device: Device) -> Tensor {
    let index = Tensor::arange(rows, (Kind::Int64, device));
    (index * (rank as i64 + 2) + rank as i64).remainder(11).to_kind(kind)
}

fn list(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_device(Device::Cpu).to_kind(Kind::Double).view(-1)).unwrap()
}

/// What every back end does with tensors of `device`.
fn keeps_the_contract(ring: &dyn Collective, device: Device) {
    for kind in KINDS {
        for size in SIZES {
            reduces(ring, kind, size, device);
            gathers_and_scatters(ring, kind, size, device);
            moves(ring, kind, size, device);
        }
    }
    maxima_keep_nans(ring, device);
    overlaps(ring, device);
}

fn reduces(ring: &dyn Collective, kind: Kind, size: i64, device: Device) {
    let all: Vec<Tensor> =
        (0..ring.world_size()).map(|rank| numbers(size, rank, kind, device)).collect();
    for op in [ReduceOp::Sum, ReduceOp::Max] {
        let tensor = all[ring.rank()].copy();
        ring.all_reduce(&tensor, op).unwrap().wait().unwrap();
        let expected = all[1..].iter().fold(all[0].copy(), |sum, t| match op {
            ReduceOp::Sum => sum + t,
            ReduceOp::Max => sum.maximum(t),
        });
        assert_eq!(list(&tensor), list(&expected), "{op:?} {kind:?} {size}");
    }
}

fn gathers_and_scatters(ring: &dyn Collective, kind: Kind, size: i64, device: Device) {
    let world_size = ring.world_size();
    let mut last = vec![0; world_size];
    last[world_size - 1] = size as usize;
    for counts in [even_counts(size as usize, world_size), vec![size as usize; world_size], last] {
        let total = counts.iter().sum::<usize>() as i64;
        let start = counts[..ring.rank()].iter().sum::<usize>() as i64;
        let own = counts[ring.rank()] as i64;
        let whole = numbers(3 * total, 0, kind, device).view([total, 3]);
        let gathered = whole.zeros_like();
        let share = whole.narrow(0, start, own).copy();
        ring.all_gather(&share, &gathered, &counts).unwrap().wait().unwrap();
        assert_eq!(list(&gathered), list(&whole), "all_gather {kind:?} {counts:?}");

        let input = |rank| numbers(3 * total, rank, kind, device).view([total, 3]);
        let output = Tensor::zeros([own, 3], (kind, device));
        ring.reduce_scatter(&input(ring.rank()), &output, &counts).unwrap().wait().unwrap();
        let sum = (1..world_size).fold(input(0), |sum, rank| sum + input(rank));
        let expected = sum.narrow(0, start, own);
        assert_eq!(list(&output), list(&expected), "reduce_scatter {kind:?} {counts:?}");
    }
}

fn moves(ring: &dyn Collective, kind: Kind, size: i64, device: Device) {
    let (rank, world_size) = (ring.rank(), ring.world_size());
    for root in 0..world_size {
        let tensor = numbers(size, rank, kind, device);
        ring.broadcast(&tensor, root).unwrap().wait().unwrap();
        assert_eq!(list(&tensor), list(&numbers(size, root, kind, device)));
    }
    // Unequal lengths, as sub-chunks of uneven shards have.
    let previous = (rank + world_size - 1) % world_size;
    let send = numbers(size + rank as i64, rank, kind, device);
    let received = numbers(size + previous as i64, 0, kind, device).zeros_like();
    let next = (rank + 1) % world_size;
    ring.exchange(&send, next, &received, previous).unwrap().wait().unwrap();
    let expected = numbers(size + previous as i64, previous, kind, device);
    assert_eq!(list(&received), list(&expected), "exchange {kind:?} {size}");
    ring.barrier().unwrap();
}

fn maxima_keep_nans(ring: &dyn Collective, device: Device) {
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
        let tensor = numbers(5, ring.rank(), kind, device);
        if ring.rank() == 0 {
            let _ = tensor.narrow(0, 3, 1).fill_(f64::NAN);
        }
        ring.all_reduce(&tensor, ReduceOp::Max).unwrap().wait().unwrap();
        let nans: Vec<bool> = list(&tensor).iter().map(|x| x.is_nan()).collect();
        assert_eq!(nans, [false, false, false, true, false], "{kind:?}");
    }
}

/// Operations in flight while the caller computes, each on what the one before brought.
fn overlaps(ring: &dyn Collective, device: Device) {
    let (rank, world_size) = (ring.rank(), ring.world_size());
    let (next, previous) = ((rank + 1) % world_size, (rank + world_size - 1) % world_size);
    let mut travelling = numbers(50_000, rank, Kind::Float, device);
    let mut computed = Tensor::zeros([64, 64], (Kind::Float, device));
    for _ in 0..world_size {
        let received = travelling.empty_like();
        let pending = ring.exchange(&travelling, next, &received, previous).unwrap();
        let busy = Tensor::ones([64, 64], (Kind::Float, device));
        computed += busy.matmul(&busy);
        pending.wait().unwrap();
        // The buffer that was sent is free again: reusing it must not disturb the transfer.
        let _ = travelling.fill_(-1.0);
        travelling = received + 1.0;
    }
    let expected = numbers(50_000, rank, Kind::Float, device) + world_size as f64;
    assert_eq!(list(&travelling), list(&expected), "once round the ring");
    assert_eq!(computed.double_value(&[0, 0]), 64.0 * world_size as f64);
    ring.settle().unwrap();
}

/// Rows that are the same on every rank and in every run.
fn embeddings(batch: i64, dim: i64, phase: f64) -> Tensor {
    let options = (Kind::Double, Device::Cpu);
    let i = Tensor::arange(batch, options).unsqueeze(1);
    let j = Tensor::arange(dim, options).unsqueeze(0);
    let raw = (&i * (0.37 + phase) + &j * 1.3 + &i * &j * 0.11 + phase).sin(); // [B, d]
    let norm = raw.norm_scalaropt_dim(2.0, [1_i64].as_slice(), true);
    raw / norm
}

/// Both losses against the dense f64 reference, even and uneven shards.
fn losses_are_exact(ring: &dyn Collective, device: Device) {
    let world_size = ring.world_size();
    for counts in [vec![64; world_size], (0..world_size).map(|r| 50 - 33 * r).collect()] {
        let batch = counts.iter().sum::<usize>() as i64;
        let start = counts[..ring.rank()].iter().sum::<usize>() as i64;
        let own = counts[ring.rank()] as i64;
        let seen = |phase| embeddings(batch, 32, phase).to_kind(Kind::Float);
        let share = |phase| seen(phase).narrow(0, start, own).to_device(device);
        let (image, text) = (share(0.0), share(0.4));
        let (all_image, all_text) =
            (seen(0.0).to_kind(Kind::Double), seen(0.4).to_kind(Kind::Double));
        for kind in ["siglip", "infonce"] {
            let (log_scale, bias) =
                if kind == "siglip" { (10_f64.ln(), -10.0) } else { ((1.0_f64 / 0.07).ln(), 0.0) };
            let inputs =
                loss::Inputs { image: &image, text: &text, counts: &counts, log_scale, bias };
            let (got, want) = if kind == "siglip" {
                let options = siglip::Options { sub_chunk: 24 };
                let want = reference::siglip(&all_image, &all_text, log_scale, bias);
                (siglip::ring(&inputs, options, ring).unwrap(), want)
            } else {
                let options = infonce::Options { logits_budget: 0 };
                let want = reference::infonce(&all_image, &all_text, log_scale);
                (infonce::all_gather(&inputs, options, ring).unwrap(), want)
            };
            let context = format!("{kind} {counts:?}");
            let close = |what: &str, got: &[f64], want: &[f64]| {
                let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
                let error = norm(&mut got.iter().zip(want).map(|(a, b)| a - b));
                let size = norm(&mut want.iter().copied()).max(1e-300);
                assert!(error / size < 1e-5, "{what}, {context}: {:e}", error / size);
            };
            let mine = |t: &Tensor| list(&t.narrow(0, start, own));
            close("loss", &[got.loss], &[want.loss]);
            close("dX", &list(&got.grad_image), &mine(&want.grad_image));
            close("dY", &list(&got.grad_text), &mine(&want.grad_text));
            close("dt'", &[got.grad_log_scale], &[want.grad_log_scale]);
            close("dβ", &[got.grad_bias], &[want.grad_bias]);
        }
    }
}

/// A started rank: joins its peers on the host and on the device, and plays its part.
#[test]
fn gpu_rank_process() {
    let Ok(part) = std::env::var(PART) else { return };
    let fields: Vec<&str> = part.split(' ').collect();
    let [rank, id, peers, part] = fields[..] else { panic!("{fields:?}") };
    let device = crate::ffi::cuda::device(ringmaster_manifest::spec::Accelerator::Cuda, 0).unwrap();
    let rank: usize = rank.parse().unwrap();
    let peers: Vec<String> = peers.split(',').map(str::to_owned).collect();
    let world_size = peers.len();
    let host = {
        let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
        let mut options = ring_options(world_size).1.swap_remove(rank);
        options.peers = peers;
        Tcp::connect(&listener, &options, &AbortFlag::new()).unwrap()
    };
    let options = Options {
        id: UniqueId::from_bytes(&hex::decode(id).unwrap()).unwrap(),
        rank,
        world_size,
        ordinal: 0,
        connect_timeout: Duration::from_secs(60),
        deadline: Some(Duration::from_secs(60)),
        abort_deadline: Duration::from_secs(20),
        on_failure: None,
    };
    let ring = Nccl::connect(options, &AbortFlag::new()).unwrap();
    match part {
        "contract" => keeps_the_contract(&ring, device),
        "losses" => {
            losses_are_exact(&ByDevice::new(Box::new(ring), Box::new(host)), device);
        }
        "abort" => is_woken_by_an_abort(&ring, &host, device),
        "death" => notices_a_death(&ring, device),
        other => panic!("no part {other}"),
    }
    println!("{part}: rank {rank} is done");
}

/// Rank 0 waits for a rank that takes part in nothing, and is told to stop.
fn is_woken_by_an_abort(ring: &Nccl, host: &Tcp, device: Device) {
    ring.barrier().unwrap();
    if ring.rank() != 0 {
        // Until rank 0 has seen what it wants to see.
        host.barrier().unwrap();
        ring.aborter().abort("rank 0 has aborted");
        return;
    }
    let tensor = numbers(10, 0, Kind::Float, device);
    let aborter = ring.aborter();
    let pending = ring.all_reduce(&tensor, ReduceOp::Sum).unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || aborter.abort("told to"));
        let error = pending.wait().and_then(|()| ring.settle()).unwrap_err();
        assert!(matches!(&error, Error::Aborted { reason } if reason == "told to"), "{error}");
    });
    println!("abort: {:.3} s", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(ring.all_reduce(&tensor, ReduceOp::Sum).is_err(), "the communicator is gone");
    host.barrier().unwrap();
}

/// The last rank ends without a word; the others' settle fails, long before any deadline.
fn notices_a_death(ring: &Nccl, device: Device) {
    ring.barrier().unwrap();
    if ring.rank() + 1 == ring.world_size() {
        crate::ffi::process::exit_now(0);
    }
    let tensor = numbers(1_000_000, 0, Kind::Float, device);
    let began = Instant::now();
    let result = ring.all_reduce(&tensor, ReduceOp::Sum).and_then(Pending::wait);
    let error = result.and_then(|()| ring.settle()).unwrap_err();
    println!("death: {:.3} s: {error}", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// Starts one process per rank with a fresh communicator and returns what they wrote.
fn run_ranks(world_size: usize, part: &str) -> Vec<String> {
    let id = hex::encode(UniqueId::create().unwrap().as_bytes());
    let (listeners, options) = ring_options(world_size);
    let peers = options[0].peers.join(",");
    let ranks: Vec<Child> = listeners
        .into_iter()
        .enumerate()
        .map(|(rank, listener)| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "collective::nccl::tests::gpu_rank_process", "--nocapture"])
                .env(PART, format!("{rank} {id} {peers} {part}"))
                .env("NCCL_HOSTID", format!("ringmaster-test-{rank}"))
                .env("NCCL_IB_DISABLE", "1")
                .env("NCCL_SOCKET_IFNAME", "lo")
                .env("NCCL_SOCKET_FAMILY", "AF_INET")
                .env("NCCL_MAX_CTAS", "1")
                .env("NCCL_RAS_ENABLE", "0")
                .stdin(Stdio::from(OwnedFd::from(listener)))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    // Read side by side: a rank that fills its pipe would keep the others waiting.
    std::thread::scope(|scope| {
        let readers: Vec<_> = ranks
            .into_iter()
            .map(|rank| scope.spawn(move || rank.wait_with_output().unwrap()))
            .collect();
        let outputs = readers.into_iter().map(|reader| reader.join().unwrap());
        outputs
            .map(|output| {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(output.status.success(), "{part}: {}: {text}", output.status);
                print!("{text}");
                text
            })
            .collect()
    })
}

#[test]
fn this_suite_holds_over_tcp_and_for_a_world_of_one() {
    keeps_the_contract(&Solo::new(), Device::Cpu);
    for world_size in [2, 3] {
        with_ring(world_size, |ring| keeps_the_contract(ring, Device::Cpu));
    }
    with_ring(2, |ring| losses_are_exact(ring, Device::Cpu));
}

#[test]
fn gpu_contract_holds_between_processes_that_share_a_gpu() {
    if test_device().is_none() {
        return;
    }
    for world_size in [1, 2] {
        for text in run_ranks(world_size, "contract") {
            assert!(text.contains("contract: rank"), "{text}");
        }
    }
}

#[test]
fn gpu_losses_are_exact_between_processes_that_share_a_gpu() {
    if test_device().is_none() {
        return;
    }
    for text in run_ranks(2, "losses") {
        assert!(text.contains("losses: rank"), "{text}");
    }
}

#[test]
fn gpu_abort_wakes_a_rank_whose_peer_never_comes() {
    if test_device().is_none() {
        return;
    }
    assert!(run_ranks(2, "abort")[0].contains("abort: rank 0 is done"));
}

#[test]
fn gpu_death_of_a_peer_is_noticed() {
    if test_device().is_none() {
        return;
    }
    assert!(run_ranks(2, "death")[0].contains("death: rank 0 is done"));
}

#[test]
fn without_a_gpu_joining_says_what_is_missing() {
    if Context::primary(0).is_ok() && version().is_ok() {
        println!("skipped: this machine has a GPU and NCCL");
        return;
    }
    let options = Options {
        id: UniqueId::from_bytes(&[0; UniqueId::LEN]).unwrap(),
        rank: 0,
        world_size: 2,
        ordinal: 0,
        connect_timeout: Duration::from_secs(1),
        deadline: None,
        abort_deadline: Duration::from_secs(20),
        on_failure: None,
    };
    let text = Nccl::connect(options, &AbortFlag::new()).unwrap_err().to_string();
    assert!(text.starts_with("cannot form the ring of 2 ranks: "), "{text}");
    assert!(text.contains("accelerator: cpu") || text.contains("LD_LIBRARY_PATH"), "{text}");
}
