//! `bench collective`: how fast tensors move between ranks.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::processes;
use ringmaster_worker::collective::{Collective, Error, ReduceOp};

/// Steps before the measured ones: the sockets' windows and the caches find their size.
const WARMUP_STEPS: u32 = 2;
/// Bytes of the copies and of the socket stream that the result is compared with.
const REFERENCE_BYTES: usize = 64 << 20;
const REFERENCE_REPEATS: usize = 5;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Op {
    /// The sum over all ranks, in place.
    #[value(name = "all_reduce")]
    AllReduce,
    /// Every rank sends to the next and receives from the previous one.
    #[value(name = "ring")]
    Ring,
    /// Ranks 0 and 1, 2 and 3, … send to each other, for tests: no rank has business with all.
    #[value(name = "pairs", hide = true)]
    Pairs,
    /// Nothing but waiting for all, for tests.
    #[value(name = "barrier", hide = true)]
    Barrier,
}

/// The command line of `bench collective`.
#[derive(Debug, Clone, clap::Args)]
pub struct CollectiveArgs {
    /// Collective to measure.
    #[arg(long)]
    op: Op,
    /// Rank processes, one thread each.
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=64))]
    ranks: u32,
    /// Bytes of every rank's f32 tensor; a multiple of 4.
    #[arg(long, value_parser = bytes)]
    bytes: u64,
    /// Measured steps; the result is their median.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// Repeats the operation until it fails, and says when it did, for tests.
    #[arg(long, hide = true)]
    until_lost: bool,
}

fn bytes(text: &str) -> Result<u64, String> {
    let bytes: u64 = text.parse().map_err(|error| format!("{error}"))?;
    match bytes {
        0 => Err("must be above 0".to_owned()),
        _ if !bytes.is_multiple_of(4) => {
            Err("must be a multiple of 4, the size of an f32".to_owned())
        }
        _ if bytes > 1 << 36 => Err("must be at most 68719476736 (64 GiB)".to_owned()),
        _ => Ok(bytes),
    }
}

/// What a rank measured.
#[derive(Serialize, Deserialize)]
struct Measured {
    /// Seconds of every step.
    seconds: Vec<f64>,
}

/// Runs the bench and prints its result as one line of JSON; as a rank process, runs that rank.
///
/// # Errors
/// A rank failed.
pub fn run(args: &CollectiveArgs) -> anyhow::Result<()> {
    if processes::is_child() {
        return rank(args);
    }
    let line = serde_json::to_string(&measure(args)?)? + "\n";
    std::io::stdout().lock().write_all(line.as_bytes()).context("cannot write the result")
}

fn measure(args: &CollectiveArgs) -> anyhow::Result<Value> {
    let op = args.op.to_possible_value().context("every operation has a name")?;
    let child_args = [
        "collective".to_owned(),
        format!("--op={}", op.get_name()),
        format!("--ranks={}", args.ranks),
        format!("--bytes={}", args.bytes),
        format!("--steps={}", args.steps),
    ];
    let copy = copy_rate();
    let socket = socket_rate()?;
    let ranks = processes::run(args.ranks as usize, 1, false, &child_args)?;
    let ranks: Vec<Measured> =
        ranks.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
    // A step lasts until its slowest rank is done.
    let slowest = (0..args.steps as usize)
        .map(|step| ranks.iter().map(|rank| rank.seconds[step]).fold(0.0, f64::max))
        .collect();
    let seconds = median(slowest);
    Ok(json!({
        "op": op.get_name(),
        "ranks": args.ranks,
        "bytes": args.bytes,
        "steps": args.steps,
        "seconds": seconds,
        "gigabytes_per_second": args.bytes as f64 / seconds / 1e9,
        "copy_gigabytes_per_second": copy,
        "socket_gigabytes_per_second": socket,
    }))
}

/// One rank process, from its first line to its result.
fn rank(args: &CollectiveArgs) -> anyhow::Result<()> {
    tch::set_num_threads(1);
    let ring = processes::child()?;
    let elements = i64::try_from(args.bytes / 4)?;
    let tensor = Tensor::f_ones([elements], (Kind::Float, Device::Cpu))?;
    let received = match args.op {
        Op::AllReduce | Op::Barrier => tensor.shallow_clone(),
        Op::Ring | Op::Pairs => tensor.f_zeros_like()?,
    };
    if args.until_lost {
        return repeat_until_lost(args.op, &*ring, &tensor, &received);
    }
    let mut seconds = Vec::with_capacity(args.steps as usize);
    for step in 0..WARMUP_STEPS + args.steps {
        // Every step adds the same ones, so that the last result can be checked.
        let _ = tensor.shallow_clone().f_fill_(1.0)?;
        // collective: barrier, so that no rank's time holds its wait for another to begin.
        ring.barrier()?;
        let began = Instant::now();
        once(args.op, &*ring, &tensor, &received)?;
        if step >= WARMUP_STEPS {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    check(args.op, &*ring, &received)?;
    processes::report(&Measured { seconds })
}

fn once(op: Op, ring: &dyn Collective, tensor: &Tensor, received: &Tensor) -> Result<(), Error> {
    let (rank, world_size) = (ring.rank(), ring.world_size());
    match op {
        Op::AllReduce => ring.all_reduce(tensor, ReduceOp::Sum)?.wait(),
        Op::Ring => {
            let (next, previous) = ((rank + 1) % world_size, (rank + world_size - 1) % world_size);
            ring.exchange(tensor, next, received, previous)?.wait()
        }
        Op::Pairs => {
            // The last of an odd number keeps its own.
            let other = if rank ^ 1 < world_size { rank ^ 1 } else { rank };
            ring.exchange(tensor, other, received, other)?.wait()
        }
        Op::Barrier => ring.barrier(),
    }
}

/// A fast wrong answer is no measurement.
fn check(op: Op, ring: &dyn Collective, received: &Tensor) -> anyhow::Result<()> {
    let expected = match op {
        Op::AllReduce => ring.world_size() as f64,
        Op::Ring | Op::Pairs | Op::Barrier => 1.0,
    };
    let (least, most) = (received.min().double_value(&[]), received.max().double_value(&[]));
    anyhow::ensure!(
        least == expected && most == expected,
        "the result lies between {least} and {most} instead of being {expected} everywhere"
    );
    Ok(())
}

/// Reports once it is inside the loop, and when and how the loop ended.
fn repeat_until_lost(
    op: Op,
    ring: &dyn Collective,
    tensor: &Tensor,
    received: &Tensor,
) -> anyhow::Result<()> {
    once(op, ring, tensor, received)?;
    processes::report(&json!({ "inside": ring.sequence() }))?;
    loop {
        if let Err(error) = once(op, ring, tensor, received) {
            let at = monotonic()?.as_nanos() as u64;
            return processes::report(&json!({ "lost_at": at, "error": error.to_string() }));
        }
    }
}

/// Returns the time of a clock that all processes of this machine share.
///
/// # Errors
/// The system has no such clock.
pub fn monotonic() -> anyhow::Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?))
}

/// Measures copying within memory on one thread, in bytes copied per second / 1e9.
fn copy_rate() -> f64 {
    let from = vec![1_u8; REFERENCE_BYTES];
    let mut to = vec![0_u8; REFERENCE_BYTES];
    rate(|| to.copy_from_slice(std::hint::black_box(&from)))
}

/// Measures one loopback connection in one direction, from a thread to another, in bytes that
/// arrive per second / 1e9. Both ends stay within a buffer of 256 KiB.
fn socket_rate() -> anyhow::Result<f64> {
    const BLOCK: usize = 256 << 10;
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let writer = std::thread::Builder::new().name("socket-rate".into()).spawn(move || {
        let block = vec![1_u8; BLOCK];
        for _ in 0..(REFERENCE_REPEATS * REFERENCE_BYTES).div_ceil(BLOCK) {
            sender.write_all(&block)?;
        }
        Ok::<_, std::io::Error>(())
    })?;
    let mut block = vec![0_u8; BLOCK];
    let mut failure = None;
    let rate = rate(|| {
        let mut left = REFERENCE_BYTES;
        while left > 0 && failure.is_none() {
            match std::io::Read::read(&mut receiver, &mut block[..BLOCK.min(left)]) {
                Ok(0) => failure = Some(std::io::Error::other("the stream ended early")),
                Ok(read) => left -= read,
                Err(error) => failure = Some(error),
            }
        }
    });
    drop(receiver);
    let sent = writer.join().map_err(|_| anyhow::anyhow!("the sending thread panicked"))?;
    match failure {
        Some(error) => Err(error).context("cannot measure the loopback socket"),
        None => sent.map(|()| rate).context("cannot measure the loopback socket"),
    }
}

/// Returns [`REFERENCE_BYTES`] per median second of `work` / 1e9.
fn rate(mut work: impl FnMut()) -> f64 {
    let seconds = (0..REFERENCE_REPEATS)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed().as_secs_f64()
        })
        .collect();
    REFERENCE_BYTES as f64 / median(seconds) / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
