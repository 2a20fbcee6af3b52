//! The collectives themselves, run one after another on the rank's communication thread.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender};

use super::super::{Error, ReduceOp, even_counts};
use super::frame::{Frame, Operation, Terms};
use super::links::Links;
use crate::ffi::memory::HostBytes;
use ringmaster_kernels::reduce::{Dtype, Reduction};

/// Bytes reduced at a time. Where ranks share cores, wake-ups cost more than caches save: over four
/// ranks on two cores blocks of 4 MiB moved 0.70 GB/s, of 512 KiB 0.54, of 64 KiB 0.35. Smaller in
/// tests, so that many blocks stay quick.
pub(super) const BLOCK: usize = if cfg!(test) { 512 << 10 } else { 4 << 20 };
/// Blocks whose parts are under way before a block's result is: what keeps both directions busy.
const AHEAD: usize = 4;
/// All-reduces up to this size go whole to everybody: one latency instead of two.
const SMALL_MESSAGE: usize = 8 << 10;

/// One started operation.
pub(super) struct Job {
    pub(super) sequence: u64,
    pub(super) kind: Kind,
    pub(super) done: SyncSender<Result<(), Error>>,
}

/// An operation and the memory it works on; `shares` are bytes per rank.
pub(super) enum Kind {
    AllReduce { data: HostBytes, dtype: Dtype, op: ReduceOp },
    AllGather { from: HostBytes, to: HostBytes, shares: Vec<usize>, dtype: Dtype },
    ReduceScatter { from: HostBytes, to: HostBytes, shares: Vec<usize>, dtype: Dtype },
    Broadcast { data: HostBytes, root: usize, dtype: Dtype },
    Exchange { send: Parcel, recv: Parcel },
    Barrier,
}

/// What an exchange sends to, or receives from, one rank.
#[derive(Clone, Copy)]
pub(super) struct Parcel {
    pub(super) data: HostBytes,
    pub(super) dtype: Dtype,
    pub(super) peer: usize,
}

/// Runs jobs until the queue closes, then says goodbye; the first failure ends the ring.
pub(super) fn run(mut links: Links, queue: Receiver<Job>) {
    let mut last = 0;
    // One operation at a time, in the order in which it was started. All ranks start the same ones in the same
    // order, so each finds its peers in the same operation or on their way to it.
    for job in queue {
        last = job.sequence;
        let result = match links.check_abort() {
            Ok(()) => perform(&mut links, job.sequence, &job.kind),
            Err(aborted) => Err(aborted),
        };
        if let Err(error) = &result {
            links.forget_sends();
            links.abort_handle().abort(&error.to_string());
        }
        let _ = job.done.send(result);
    }
    // Nobody closes before everybody has finished, so a closed connection always means a failure.
    if links.check_abort().is_ok() {
        let _ = to_all(&mut links, last + 1, Operation::Goodbye);
    }
}

fn perform(links: &mut Links, sequence: u64, kind: &Kind) -> Result<(), Error> {
    let frame =
        |operation, len: usize, terms| Frame { sequence, operation, len: len as u64, terms };
    match kind {
        Kind::AllReduce { data, dtype, op } => {
            let terms = Terms::of(*dtype).combining(*op);
            let frame = frame(Operation::AllReduce, data.len(), terms);
            if data.len() <= SMALL_MESSAGE {
                all_reduce_small(links, frame, *data, *dtype, *op)
            } else {
                all_reduce(links, frame, *data, *dtype, *op)
            }
        }
        Kind::AllGather { from, to, shares, dtype } => {
            let terms = Terms::of(*dtype).split_into(shares);
            let frame = frame(Operation::AllGather, to.len(), terms);
            all_gather(links, frame, *from, *to, &ranges(shares))
        }
        Kind::ReduceScatter { from, to, shares, dtype } => {
            let terms = Terms::of(*dtype).combining(ReduceOp::Sum).split_into(shares);
            let frame = frame(Operation::ReduceScatter, from.len(), terms);
            reduce_scatter(links, frame, *from, *to, &ranges(shares), *dtype)
        }
        Kind::Broadcast { data, root, dtype } => {
            let terms = Terms::of(*dtype).with_root(*root);
            broadcast(links, frame(Operation::Broadcast, data.len(), terms), *data, *root)
        }
        Kind::Exchange { send, recv } => exchange(links, sequence, *send, *recv),
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

/// The part of `range` that belongs to its `index`-th block; empty beyond the end.
fn block_of(range: &Range<usize>, index: usize) -> Range<usize> {
    let start = (range.start + index * BLOCK).min(range.end);
    start..(start + BLOCK).min(range.end)
}

fn block_count(ranges: &[Range<usize>]) -> usize {
    ranges.iter().map(|range| range.len().div_ceil(BLOCK)).max().unwrap_or(0)
}

/// Sends the header of an operation on `len` bytes to all, and checks that all send the same.
fn open(links: &mut Links, frame: Frame) -> Result<(), Error> {
    for peer in links.peers() {
        links.send(peer, frame, HostBytes::EMPTY, 0..0);
    }
    for peer in links.peers() {
        links.expect(peer, frame)?;
    }
    Ok(())
}

/// Reduce-scatter and all-gather over equal shares, 2 (W−1)/W of the buffer each way, as one
/// pipeline: a block's result travels, still warm in the cache, while later blocks are reduced.
///
/// On every connection the order is: [`AHEAD`] blocks of parts, then in turns one more block of
/// parts and one of results. A result overwrites this rank's part of that block, which its reducer
/// has received by then.
fn all_reduce(
    links: &mut Links,
    frame: Frame,
    data: HostBytes,
    dtype: Dtype,
    op: ReduceOp,
) -> Result<(), Error> {
    let elements = even_counts(data.len() / dtype.size(), links.world_size);
    let shares: Vec<usize> = elements.iter().map(|count| count * dtype.size()).collect();
    let ranges = ranges(&shares);
    let count = block_count(&ranges);
    let longest = ranges.iter().map(|range| range.len()).max().unwrap_or(0);
    let mut reduction = Reduction::new(dtype, op, BLOCK.min(longest));
    for peer in links.peers() {
        links.send(peer, frame, HostBytes::EMPTY, 0..0);
    }
    // Sends are queued and go out while this rank receives: no rank waits for another to receive first.
    for block in 0..count.min(AHEAD) {
        send_parts(links, data, &ranges, block);
    }
    for peer in links.peers() {
        links.expect(peer, frame)?;
    }
    for block in 0..count {
        if block + AHEAD < count {
            send_parts(links, data, &ranges, block + AHEAD);
        }
        // The order on the connection: a peer sends the result of a block after the parts of AHEAD more.
        if block > AHEAD {
            receive_results(links, frame, data, &ranges, block - AHEAD - 1)?;
        }
        let own = block_of(&ranges[links.rank], block);
        reduce_block(links, frame, &mut reduction, None, data.write(own.clone()))?;
        for peer in links.peers() {
            links.send_more(peer, data, own.clone());
        }
    }
    for block in count.saturating_sub(AHEAD + 1)..count {
        receive_results(links, frame, data, &ranges, block)?;
    }
    links.flush(frame)
}

/// Queues for every peer this rank's part of a block of the peer's share.
fn send_parts(links: &mut Links, from: HostBytes, ranges: &[Range<usize>], block: usize) {
    for peer in links.peers() {
        links.send_more(peer, from, block_of(&ranges[peer], block));
    }
}

fn receive_results(
    links: &mut Links,
    frame: Frame,
    to: HostBytes,
    ranges: &[Range<usize>],
    block: usize,
) -> Result<(), Error> {
    for peer in links.peers() {
        links.receive(peer, frame, to.write(block_of(&ranges[peer], block)))?;
    }
    Ok(())
}

/// Reduces one block over all ranks, in rank order, into `to`, where this rank's own part lies
/// unless it is given apart.
fn reduce_block(
    links: &mut Links,
    frame: Frame,
    reduction: &mut Reduction,
    own: Option<&[u8]>,
    to: &mut [u8],
) -> Result<(), Error> {
    if to.is_empty() {
        return Ok(());
    }
    // In rank order, whichever part arrives first: the same bits on every rank and in every run.
    for rank in 0..links.world_size {
        if rank == links.rank {
            reduction.fold_own(own, to);
        } else {
            links.receive(rank, frame, reduction.part(to.len()))?;
            reduction.fold_part(to);
        }
    }
    reduction.finish(to);
    Ok(())
}

fn all_reduce_small(
    links: &mut Links,
    frame: Frame,
    data: HostBytes,
    dtype: Dtype,
    op: ReduceOp,
) -> Result<(), Error> {
    let len = data.len();
    for peer in links.peers() {
        links.send(peer, frame, data, 0..len);
    }
    for peer in links.peers() {
        links.expect(peer, frame)?;
    }
    // What is being sent must stay as it is, so the result waits beside it.
    let mut result = vec![0_u64; len.div_ceil(8)];
    let result = &mut bytemuck::cast_slice_mut(&mut result)[..len];
    let mut reduction = Reduction::new(dtype, op, len);
    reduce_block(links, frame, &mut reduction, Some(data.read(0..len)), result)?;
    links.flush(frame)?;
    data.write(0..len).copy_from_slice(result);
    Ok(())
}

/// Sends every rank its share of `from`, and sums what all ranks hold of this rank's share.
fn reduce_scatter(
    links: &mut Links,
    frame: Frame,
    from: HostBytes,
    to: HostBytes,
    ranges: &[Range<usize>],
    dtype: Dtype,
) -> Result<(), Error> {
    let own = ranges[links.rank].clone();
    for peer in links.peers() {
        links.send(peer, frame, from, ranges[peer].clone());
    }
    for peer in links.peers() {
        links.expect(peer, frame)?;
    }
    let mut reduction = Reduction::new(dtype, ReduceOp::Sum, BLOCK.min(own.len()));
    for block in 0..own.len().div_ceil(BLOCK) {
        let part = block_of(&own, block);
        let result = to.write(part.start - own.start..part.end - own.start);
        reduce_block(links, frame, &mut reduction, Some(from.read(part)), result)?;
    }
    links.flush(frame)
}

/// Sends this rank's share to all and receives theirs into place.
fn all_gather(
    links: &mut Links,
    frame: Frame,
    from: HostBytes,
    to: HostBytes,
    ranges: &[Range<usize>],
) -> Result<(), Error> {
    for peer in links.peers() {
        links.send(peer, frame, from, 0..from.len());
    }
    let own = ranges[links.rank].clone();
    if !to.lies_at(own.start, &from) {
        for block in 0..own.len().div_ceil(BLOCK) {
            // The peers need not wait for this rank's own copy.
            links.send_meanwhile(frame)?;
            let part = block_of(&own, block);
            let source = from.read(part.start - own.start..part.end - own.start);
            to.write(part).copy_from_slice(source);
        }
    }
    for peer in links.peers() {
        links.expect(peer, frame)?;
        links.receive(peer, frame, to.write(ranges[peer].clone()))?;
    }
    links.flush(frame)
}

/// Block by block from each rank to the next, beginning at the root: every rank sends the buffer
/// once at most, and all links carry it at the same time.
///
/// Headers go to everybody: ranks that take different ones for the root would else each send to
/// somebody who does not receive.
fn broadcast(links: &mut Links, frame: Frame, data: HostBytes, root: usize) -> Result<(), Error> {
    let world_size = links.world_size;
    let next = (links.rank + 1) % world_size;
    let previous = (links.rank + world_size - 1) % world_size;
    let (receives, sends) = (links.rank != root, next != root);
    for peer in links.peers() {
        links.send(peer, frame, HostBytes::EMPTY, 0..0);
    }
    if !receives && sends {
        links.send_more(next, data, 0..data.len());
    }
    for peer in links.peers() {
        links.expect(peer, frame)?;
    }
    // Each block is passed on as soon as it has come. The root only sends; the rank before it, the last of
    // the chain, only receives.
    if receives {
        for block in 0..data.len().div_ceil(BLOCK) {
            let range = block_of(&(0..data.len()), block);
            links.receive(previous, frame, data.write(range.clone()))?;
            if sends {
                links.send_more(next, data, range);
            }
        }
    }
    links.flush(frame)
}

fn exchange(links: &mut Links, sequence: u64, send: Parcel, recv: Parcel) -> Result<(), Error> {
    let frame = |parcel: Parcel| Frame {
        sequence,
        operation: Operation::Exchange,
        len: parcel.data.len() as u64,
        terms: Terms::of(parcel.dtype),
    };
    let (from, to) = (send.data, recv.data);
    if send.peer == links.rank && recv.peer == links.rank {
        to.write(0..to.len()).copy_from_slice(from.read(0..from.len()));
        return Ok(());
    }
    // Queued first and sent while this rank receives, so that a circle of ranks that all send does not stand
    // still.
    links.send(send.peer, frame(send), from, 0..from.len());
    links.expect(recv.peer, frame(recv))?;
    links.receive(recv.peer, frame(recv), to.write(0..to.len()))?;
    links.flush(frame(send))
}

/// An empty message to and from everybody.
fn to_all(links: &mut Links, sequence: u64, operation: Operation) -> Result<(), Error> {
    let frame = Frame { sequence, operation, len: 0, terms: Terms::default() };
    open(links, frame)?;
    links.flush(frame)
}
