//! What precedes every message: enough for the receiver to see that both ranks do the same thing.

use std::fmt;

use super::super::ReduceOp;
use ringmaster_kernels::reduce::Dtype;

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Number of the operation in its generation.
    pub(super) sequence: u64,
    pub(super) operation: Operation,
    /// Bytes of the message, or of the whole tensor where shares follow from it.
    pub(super) len: u64,
    /// What the ranks must agree on beyond the length.
    pub(super) terms: Terms,
}

/// What an operation does with its bytes; the same on both sides of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Terms {
    /// None for an operation without data.
    pub(super) dtype: Option<Dtype>,
    /// How a reduction combines.
    pub(super) op: Option<ReduceOp>,
    /// The root of a broadcast.
    pub(super) root: Option<u16>,
    /// Fingerprint of all ranks' shares where the caller chooses them, else 0.
    pub(super) shares: u32,
}

impl Terms {
    /// Returns the terms of data that is only moved.
    pub(super) fn of(dtype: Dtype) -> Self {
        Self { dtype: Some(dtype), ..Self::default() }
    }

    /// Adds how a reduction combines.
    pub(super) fn combining(self, op: ReduceOp) -> Self {
        Self { op: Some(op), ..self }
    }

    /// Adds the root of a broadcast.
    pub(super) fn with_root(self, root: usize) -> Self {
        // Roots 65535 apart look the same; no full mesh has as many ranks.
        Self { root: Some((root % usize::from(u16::MAX)) as u16), ..self }
    }

    /// Adds the fingerprint of `shares`, bytes per rank: FNV-1a of 32 bits.
    pub(super) fn split_into(self, shares: &[usize]) -> Self {
        let bytes = shares.iter().flat_map(|share| (*share as u64).to_le_bytes());
        let hash = bytes
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self { shares: hash, ..self }
    }

    fn encode(self) -> [u8; 7] {
        let dtype = self.dtype.map_or(0, Dtype::code);
        let op = match self.op {
            None => 0,
            Some(ReduceOp::Sum) => 1,
            Some(ReduceOp::Max) => 2,
        };
        let [root_low, root_high] = self.root.map_or(0, |root| root + 1).to_le_bytes();
        let [a, b, c, d] = self.shares.to_le_bytes();
        [dtype | op << 4, root_low, root_high, a, b, c, d]
    }

    fn decode(bytes: [u8; 7]) -> Option<Self> {
        let [kinds, root_low, root_high, a, b, c, d] = bytes;
        let dtype = match kinds & 15 {
            0 => None,
            code => Some(Dtype::from_code(code)?),
        };
        let op = match kinds >> 4 {
            0 => None,
            1 => Some(ReduceOp::Sum),
            2 => Some(ReduceOp::Max),
            _ => return None,
        };
        let root = u16::from_le_bytes([root_low, root_high]).checked_sub(1);
        Some(Self { dtype, op, root, shares: u32::from_le_bytes([a, b, c, d]) })
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(dtype) = self.dtype {
            write!(f, " of {dtype:?}")?;
        }
        if let Some(op) = self.op {
            write!(f, " by {op:?}")?;
        }
        if let Some(root) = self.root {
            write!(f, " from root {root}")?;
        }
        if self.shares != 0 {
            write!(f, " in shares with fingerprint {:08x}", self.shares)?;
        }
        Ok(())
    }
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

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::Broadcast => "broadcast",
            Self::Exchange => "exchange",
            Self::Barrier => "barrier",
            Self::Goodbye => "goodbye",
        }
    }
}

impl Frame {
    pub(super) const LEN: usize = 24;

    pub(super) fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8] = self.operation as u8;
        bytes[9..16].copy_from_slice(&self.terms.encode());
        bytes[16..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let word = |at: usize| bytes[at..at + 8].try_into().ok().map(u64::from_le_bytes);
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
        let terms = Terms::decode(bytes[9..16].try_into().ok()?)?;
        Some(Self { sequence: word(0)?, operation, len: word(16)?, terms })
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequence, operation, len, terms } = self;
        write!(f, "{} #{sequence} of {len} bytes{terms}", operation.name())
    }
}
