//! The contract between processes, over NCCL where there is a GPU.
//!
//! NCCL ranks must be processes of their own. Several of them share one GPU by telling NCCL that
//! each is a host of its own (`NCCL_HOSTID`), so that it connects them over sockets; it refuses two
//! ranks on one GPU of one host. The test program starts itself again, once per rank, to run one
//! test that does nothing otherwise.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use super::super::ByDevice;
use super::super::contract_tests::{Backend, data, numbers};
use super::super::tcp::Tcp;
use super::super::testing::{ring_options, with_ring};
use super::*;
use crate::ffi::cuda::test_device;
use crate::loss::{self, infonce, reference, siglip};

/// What a started process plays: rank, communicator id in hex, all ranks' addresses, part.
const PART: &str = "RINGMASTER_TEST_NCCL_PART";
/// Sizes that divide nothing.
const TILING: loss::Tiling = loss::Tiling { sub_chunk: 24, image_rows: 20 };

fn list(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_device(Device::Cpu).to_kind(Kind::Double).view(-1)).unwrap()
}

/// This process's end of a ring of `W` processes, for the checks of the contract that do not need
/// all ranks in one process.
struct OneRank<const W: usize> {
    ring: Mutex<Nccl>,
    device: Device,
}

impl<const W: usize> Backend for OneRank<W> {
    const WORLD_SIZES: &'static [usize] = &[W];

    fn device(&self, _rank: usize) -> Device {
        self.device
    }

    fn is_deterministic(&self) -> bool {
        false
    }

    fn ring<T: Send>(
        &self,
        world_size: usize,
        _deadline: Duration,
        body: impl Fn(&dyn Collective) -> T + Sync,
    ) -> Vec<T> {
        let ring = self.ring.lock().unwrap();
        assert_eq!(world_size, ring.world_size());
        let result = body(&*ring);
        ring.settle().unwrap();
        vec![result]
    }
}

fn keeps_the_contract<const W: usize>(ring: Nccl, device: Device) {
    let backend = OneRank::<W> { ring: Mutex::new(ring), device };
    data::all_reduce_sums_and_takes_maxima_for_every_dtype_and_size(&backend);
    data::all_gather_and_reduce_scatter_take_even_uneven_and_empty_shares(&backend);
    data::a_maximum_is_nan_where_any_rank_has_one(&backend);
    data::broadcast_reaches_all_from_every_root(&backend);
    data::exchange_follows_rings_rotations_and_rings_between_groups(&backend);
    data::an_exchange_is_in_flight_while_the_caller_computes(&backend);
    data::sixty_four_mebibytes_pass_through_every_operation(&backend);
    data::several_operations_may_be_in_flight_at_once(&backend);
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
            let inputs = loss::Inputs::pairs(&image, &text, &counts).with_logits(log_scale, bias);
            let (got, want) = if kind == "siglip" {
                let options = siglip::Options { tiling: TILING, group: 1 };
                let want = reference::siglip(&all_image, &all_text, log_scale, bias);
                (siglip::ring(&inputs, options, ring).unwrap(), want)
            } else {
                let options = infonce::Options { tiling: TILING, logits_budget: 0, group: 1 };
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
        "contract" if world_size == 1 => keeps_the_contract::<1>(ring, device),
        "contract" => keeps_the_contract::<2>(ring, device),
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
        ringmaster_agent::ffi::exit_now(0);
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
fn the_losses_of_the_gpu_tests_are_exact_over_tcp() {
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
        ringmaster_tests::skips::skip("no-gpu", "this machine has a GPU and NCCL");
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
