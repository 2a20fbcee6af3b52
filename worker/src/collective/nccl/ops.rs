//! The operations as calls of NCCL.

use tch::Kind;

use crate::ffi::device_memory::DeviceBytes;
use crate::ffi::driver::Stream;
use crate::ffi::nccl::{Communicator, DataType, Error, RedOp};

/// An operation and the memory it works on; `shares` are bytes per rank.
#[derive(Debug)]
pub(super) enum Call {
    /// `mask` is reduced along, in the same group.
    AllReduce {
        data: DeviceBytes,
        dtype: DataType,
        op: RedOp,
        mask: Option<DeviceBytes>,
    },
    AllGather {
        from: DeviceBytes,
        to: DeviceBytes,
        shares: Vec<usize>,
        dtype: DataType,
    },
    ReduceScatter {
        from: DeviceBytes,
        to: DeviceBytes,
        shares: Vec<usize>,
        dtype: DataType,
    },
    Broadcast {
        data: DeviceBytes,
        dtype: DataType,
        root: usize,
    },
    Exchange {
        send: DeviceBytes,
        to: usize,
        recv: DeviceBytes,
        from: usize,
        /// Of `send` and of `recv`.
        dtypes: (DataType, DataType),
    },
}

/// Returns NCCL's word for a dtype that [`DeviceBytes::of`] lets through.
pub(super) fn data_type(kind: Kind) -> DataType {
    match kind {
        Kind::Float => DataType::ncclFloat32,
        Kind::Double => DataType::ncclFloat64,
        Kind::BFloat16 => DataType::ncclBfloat16,
        _ => DataType::ncclInt64,
    }
}

/// Queues `call` on `stream`. Every rank makes the same calls: whether a part is empty, and is left
/// out, follows from sizes that all know, or that sender and receiver know.
pub(super) fn queue(
    call: &Call,
    communicator: &mut Communicator,
    stream: &Stream,
) -> Result<(), Error> {
    match call {
        Call::AllReduce { data, .. } if data.is_empty() => Ok(()),
        Call::AllReduce { data, dtype, op, mask: None } => {
            communicator.all_reduce(*data, *dtype, *op, stream)
        }
        Call::AllReduce { data, dtype, op, mask: Some(mask) } => communicator.group(|c| {
            c.all_reduce(*data, *dtype, *op, stream)?;
            c.all_reduce(*mask, *dtype, *op, stream)
        }),
        Call::AllGather { from, to, shares, dtype } => {
            all_gather(communicator, *from, *to, shares, *dtype, stream)
        }
        Call::ReduceScatter { from, to, shares, dtype } => {
            reduce_scatter(communicator, *from, *to, shares, *dtype, stream)
        }
        Call::Broadcast { data, .. } if data.is_empty() => Ok(()),
        Call::Broadcast { data, dtype, root } => {
            communicator.broadcast(*data, *data, *dtype, *root, stream)
        }
        // A group, in which NCCL sends and receives at once: one after the other, a circle of ranks that all
        // send would stand still.
        Call::Exchange { send, to, recv, from, dtypes } => communicator.group(|c| {
            if !send.is_empty() {
                c.send(*send, dtypes.0, *to, stream)?;
            }
            if !recv.is_empty() {
                c.receive(*recv, dtypes.1, *from, stream)?;
            }
            Ok(())
        }),
    }
}

fn all_gather(
    communicator: &mut Communicator,
    from: DeviceBytes,
    to: DeviceBytes,
    shares: &[usize],
    dtype: DataType,
    stream: &Stream,
) -> Result<(), Error> {
    match Split::of(shares) {
        Split::Empty => Ok(()),
        Split::Even => communicator.all_gather(from, to, dtype, stream),
        Split::Uneven(parts) => communicator.group(|c| {
            for part in parts {
                let target = to.part(part.start, part.len);
                // Only the root's own share is read, and that has the part's length.
                let source = if from.len() == part.len { from } else { target };
                c.broadcast(source, target, dtype, part.rank, stream)?;
            }
            Ok(())
        }),
    }
}

fn reduce_scatter(
    communicator: &mut Communicator,
    from: DeviceBytes,
    to: DeviceBytes,
    shares: &[usize],
    dtype: DataType,
    stream: &Stream,
) -> Result<(), Error> {
    match Split::of(shares) {
        Split::Empty => Ok(()),
        Split::Even => communicator.reduce_scatter(from, to, dtype, stream),
        Split::Uneven(parts) => communicator.group(|c| {
            for part in parts {
                let source = from.part(part.start, part.len);
                // The root's share has the part's length; whoever else's has too gives a target
                // that NCCL leaves alone.
                let target = (to.len() == part.len).then_some(to);
                c.reduce(source, target, dtype, part.rank, stream)?;
            }
            Ok(())
        }),
    }
}

/// How a whole is split over the ranks.
#[derive(Debug, PartialEq, Eq)]
enum Split {
    Empty,
    Even,
    /// The parts that are not empty.
    Uneven(Vec<Part>),
}

/// A rank's bytes of a whole.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    rank: usize,
    start: usize,
    len: usize,
}

impl Split {
    fn of(shares: &[usize]) -> Self {
        if shares.iter().all(|share| *share == 0) {
            return Self::Empty;
        }
        if shares.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self::Even;
        }
        let mut start = 0;
        let mut parts = Vec::with_capacity(shares.len());
        for (rank, &len) in shares.iter().enumerate() {
            if len > 0 {
                parts.push(Part { rank, start, len });
            }
            start += len;
        }
        Self::Uneven(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_shares_take_one_call_and_empty_ones_none() {
        assert_eq!(Split::of(&[8, 8, 8]), Split::Even);
        assert_eq!(Split::of(&[8]), Split::Even);
        assert_eq!(Split::of(&[0, 0]), Split::Empty);
    }

    #[test]
    fn uneven_shares_are_one_part_per_rank_that_has_any() {
        let parts = vec![Part { rank: 1, start: 0, len: 12 }, Part { rank: 3, start: 12, len: 4 }];
        assert_eq!(Split::of(&[0, 12, 0, 4]), Split::Uneven(parts));
    }
}
