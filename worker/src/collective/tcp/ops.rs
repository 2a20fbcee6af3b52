//! The collectives themselves, run one after another on the rank's communication thread.

use std::fmt;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender};

use super::super::{Error, ReduceOp, even_counts};
use super::links::{Links, SMALL_MESSAGE};
use super::reduce::{Accumulator, Dtype};
use crate::ffi::memory::HostBytes;

/// Bytes reduced at a time: a block of every rank's part stays in the second-level cache.
const BLOCK: usize = 128 << 10;

/// One started operation.
pub(super) struct Job {
    pub(super) sequence: u64,
    pub(super) kind: Kind,
    pub(super) done: SyncSender<Result<(), Error>>,
}

/// An operation and the memory it works on; `shares` are bytes per rank.
pub(super) enum Kind {
    AllReduce { data: HostBytes, dtype: Dtype, op: ReduceOp },
    AllGather { from: HostBytes, to: HostBytes, shares: Vec<usize> },
    ReduceScatter { from: HostBytes, to: HostBytes, shares: Vec<usize>, dtype: Dtype },
    Broadcast { data: HostBytes, root: usize },
    Exchange { send: HostBytes, to: usize, recv: HostBytes, from: usize },
    Barrier,
}

/// What precedes every message: enough for the receiver to see that both ranks do the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) sequence: u64,
    pub(super) operation: Operation,
    /// Bytes that follow.
    pub(super) len: u64,
}

/// Operation codes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Operation {
    AllReduce = 1,
    AllGather = 2,
    ReduceScatter = 3,
    Broadcast = 4,
    Exchange = 5,
    Barrier = 6,
    Goodbye = 7,
}

impl Frame {
    pub(super) const LEN: usize = 24;

    pub(super) fn name(self) -> &'static str {
        match self.operation {
            Operation::AllReduce => "all_reduce",
            Operation::AllGather => "all_gather",
            Operation::ReduceScatter => "reduce_scatter",
            Operation::Broadcast => "broadcast",
            Operation::Exchange => "exchange",
            Operation::Barrier => "barrier",
            Operation::Goodbye => "goodbye",
        }
    }

    /// While saying goodbye, peers that already have close their side.
    pub(super) fn watches_others(self) -> bool {
        self.operation != Operation::Goodbye
    }

    pub(super) fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8] = self.operation as u8;
        bytes[16..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let operation = match bytes[8] {
            1 => Operation::AllReduce,
            2 => Operation::AllGather,
            3 => Operation::ReduceScatter,
            4 => Operation::Broadcast,
            5 => Operation::Exchange,
            6 => Operation::Barrier,
            7 => Operation::Goodbye,
            _ => return None,
        };
        Some(Self { sequence: word(0), operation, len: word(16) })
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{} of {} bytes", self.name(), self.sequence, self.len)
    }
}

/// Runs jobs until the queue closes, then says goodbye; the first failure ends the ring.
pub(super) fn run(links: Links, queue: Receiver<Job>) {
    let mut last = 0;
    for job in queue {
        last = job.sequence;
        let result = links.check_abort().and_then(|()| perform(&links, job.sequence, &job.kind));
        if let Err(error) = &result {
            links.abort_handle().abort(&error.to_string());
        }
        let _ = job.done.send(result);
    }
    // Nobody closes before everybody has finished, so a closed connection always means a failure.
    if links.check_abort().is_ok() {
        let _ = to_all(&links, last + 1, Operation::Goodbye);
    }
    links.abort_handle().abort("the ring is closed");
}

fn perform(links: &Links, sequence: u64, kind: &Kind) -> Result<(), Error> {
    match kind {
        Kind::AllReduce { data, dtype, op } => all_reduce(links, sequence, *data, *dtype, *op),
        Kind::AllGather { from, to, shares } => {
            let ranges = ranges(shares);
            let own = ranges[links.rank].clone();
            to.write(own).copy_from_slice(from.read(0..from.len()));
            all_gather(links, sequence, Operation::AllGather, *to, &ranges)
        }
        Kind::ReduceScatter { from, to, shares, dtype } => {
            let operation = Operation::ReduceScatter;
            let ranges = ranges(shares);
            scatter_sum(links, sequence, operation, *from, *to, 0, &ranges, *dtype, ReduceOp::Sum)
        }
        Kind::Broadcast { data, root } => broadcast(links, sequence, *data, *root),
        Kind::Exchange { send, to, recv, from } => {
            exchange(links, sequence, *send, *to, *recv, *from)
        }
        Kind::Barrier => to_all(links, sequence, Operation::Barrier),
    }
}

/// Byte ranges of consecutive shares.
fn ranges(shares: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    let mut ranges = Vec::with_capacity(shares.len());
    for share in shares {
        ranges.push(start..start + share);
        start += share;
    }
    ranges
}

fn peers(links: &Links) -> impl Iterator<Item = usize> + use<> {
    let (rank, world_size) = (links.rank, links.world_size);
    (1..world_size).map(move |distance| (rank + distance) % world_size)
}

/// Reduce-scatter, then all-gather, over equal shares: 2 (W−1)/W of the buffer each way.
/// Small buffers go whole to everybody, one latency instead of two.
fn all_reduce(
    links: &Links,
    sequence: u64,
    data: HostBytes,
    dtype: Dtype,
    op: ReduceOp,
) -> Result<(), Error> {
    let operation = Operation::AllReduce;
    if data.len() <= SMALL_MESSAGE {
        return all_reduce_small(links, sequence, data, dtype, op);
    }
    let elements = data.len() / dtype.size();
    let shares: Vec<usize> =
        even_counts(elements, links.world_size).iter().map(|n| n * dtype.size()).collect();
    let ranges = ranges(&shares);
    let own_start = ranges[links.rank].start;
    scatter_sum(links, sequence, operation, data, data, own_start, &ranges, dtype, op)?;
    all_gather(links, sequence, operation, data, &ranges)
}

fn all_reduce_small(
    links: &Links,
    sequence: u64,
    data: HostBytes,
    dtype: Dtype,
    op: ReduceOp,
) -> Result<(), Error> {
    let len = data.len();
    let frame = Frame { sequence, operation: Operation::AllReduce, len: len as u64 };
    let mut sends = Vec::new();
    for peer in peers(links) {
        sends.push(links.send(peer, frame, data, 0..len)?);
    }
    links.finish(frame, sends)?;
    // u64 backing keeps the bytes aligned for every dtype.
    let words = len.div_ceil(8);
    let (mut sum, mut part) = (vec![0_u64; words], vec![0_u64; words]);
    let sum: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut sum)[..len];
    let part: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut part)[..len];
    let mut accumulator = Accumulator::new(dtype, op);
    for rank in 0..links.world_size {
        if rank == links.rank {
            part.copy_from_slice(data.read(0..len));
        } else {
            links.expect(rank, frame)?;
            links.receive(rank, frame, part)?;
        }
        match rank {
            0 => accumulator.start(sum, part),
            _ => accumulator.add(sum, part),
        }
    }
    accumulator.finish(sum);
    data.write(0..len).copy_from_slice(sum);
    Ok(())
}

/// Sends every rank its share of `from`, and sums what all ranks hold of this rank's share, in
/// rank order, into `to` at `to_start`.
#[allow(clippy::too_many_arguments)] // the shared core of two collectives
fn scatter_sum(
    links: &Links,
    sequence: u64,
    operation: Operation,
    from: HostBytes,
    to: HostBytes,
    to_start: usize,
    ranges: &[Range<usize>],
    dtype: Dtype,
    op: ReduceOp,
) -> Result<(), Error> {
    let frame = |len: usize| Frame { sequence, operation, len: len as u64 };
    let own = ranges[links.rank].clone();
    let mut sends = Vec::new();
    for peer in peers(links) {
        let range = ranges[peer].clone();
        sends.push(links.send(peer, frame(range.len()), from, range)?);
    }
    for peer in peers(links) {
        links.expect(peer, frame(own.len()))?;
    }
    let block_len = BLOCK.min(own.len());
    let words = block_len.div_ceil(8);
    let (mut sum, mut part) = (vec![0_u64; words], vec![0_u64; words]);
    let mut accumulator = Accumulator::new(dtype, op);
    for offset in (0..own.len()).step_by(BLOCK) {
        let len = BLOCK.min(own.len() - offset);
        let sum: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut sum)[..len];
        let part: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut part)[..len];
        for rank in 0..links.world_size {
            if rank == links.rank {
                let start = own.start + offset;
                part.copy_from_slice(from.read(start..start + len));
            } else {
                links.receive(rank, frame(own.len()), part)?;
            }
            match rank {
                0 => accumulator.start(sum, part),
                _ => accumulator.add(sum, part),
            }
        }
        accumulator.finish(sum);
        let start = to_start + offset;
        to.write(start..start + len).copy_from_slice(sum);
    }
    links.finish(frame(own.len()), sends)
}

/// Sends this rank's range of `data` to all and receives theirs into place.
fn all_gather(
    links: &Links,
    sequence: u64,
    operation: Operation,
    data: HostBytes,
    ranges: &[Range<usize>],
) -> Result<(), Error> {
    let frame = |len: usize| Frame { sequence, operation, len: len as u64 };
    let own = ranges[links.rank].clone();
    let mut sends = Vec::new();
    for peer in peers(links) {
        sends.push(links.send(peer, frame(own.len()), data, own.clone())?);
    }
    for peer in peers(links) {
        let range = ranges[peer].clone();
        links.expect(peer, frame(range.len()))?;
        links.receive(peer, frame(range.len()), data.write(range.clone()))?;
    }
    links.finish(frame(own.len()), sends)
}

fn broadcast(links: &Links, sequence: u64, data: HostBytes, root: usize) -> Result<(), Error> {
    let len = data.len();
    let frame = Frame { sequence, operation: Operation::Broadcast, len: len as u64 };
    if links.rank != root {
        links.expect(root, frame)?;
        return links.receive(root, frame, data.write(0..len));
    }
    let mut sends = Vec::new();
    for peer in peers(links) {
        sends.push(links.send(peer, frame, data, 0..len)?);
    }
    links.finish(frame, sends)
}

fn exchange(
    links: &Links,
    sequence: u64,
    send: HostBytes,
    to: usize,
    recv: HostBytes,
    from: usize,
) -> Result<(), Error> {
    if to == links.rank && from == links.rank {
        recv.write(0..recv.len()).copy_from_slice(send.read(0..send.len()));
        return Ok(());
    }
    let frame = |len: usize| Frame { sequence, operation: Operation::Exchange, len: len as u64 };
    let sent = links.send(to, frame(send.len()), send, 0..send.len())?;
    links.expect(from, frame(recv.len()))?;
    links.receive(from, frame(recv.len()), recv.write(0..recv.len()))?;
    links.finish(frame(send.len()), vec![sent])
}

/// An empty message to and from everybody.
fn to_all(links: &Links, sequence: u64, operation: Operation) -> Result<(), Error> {
    let frame = Frame { sequence, operation, len: 0 };
    for peer in peers(links) {
        links.send(peer, frame, EMPTY, 0..0)?;
    }
    for peer in peers(links) {
        links.expect(peer, frame)?;
    }
    Ok(())
}

const EMPTY: HostBytes = HostBytes::EMPTY;
